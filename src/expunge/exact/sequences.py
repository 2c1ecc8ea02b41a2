"""Which orders of its slices a shard is trained in, and how deep they still serve when slices have been hit.

At each position of a sequence a group of layers is trained on all slices so far, so a request that hits a slice ends
the sequence just above it: what survives is a prefix, and it does if none of its slices was hit, in whatever order.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from expunge.errors import UserError, suggest
from expunge.exact.orders import Order, budgeted, checked, cyclic
from expunge.exact.priors import Score, ascending, bms, conditional

Select = Literal["cyclic", "bms", "sorted", "cover", "random"]
PRIOR: tuple[Select, ...] = ("bms", "sorted", "random")  # what may look at probabilities
TABLED = 16  # most slices for which all sets of slices are gone through


class Live(NamedTuple):
    """The sequence that serves.

    Args:
        which: index of the sequence in its shard.
        depth: number of its leading stages that are still active, at least 1.
    """

    which: int
    depth: int


def cover(slices: int, budget: int) -> list[Order]:
    """Return rotations, then greedily the sequence that adds most new sets of leading slices.

    A depth of k survives if the set of the k leading slices is clean, whatever their order, and there are C(L,k) such
    sets. C(L, ⌊L/2⌋) sequences can hold them all and then serve as deep as all L!: 6 for L = 4, 10 for 5, 20 for 6.
    Ties go to the first sequence in dictionary order; where no set is left, those of `cyclic` follow.

    Args:
        slices: number of slices, L, at most 16.
        budget: number of sequences, B.

    >>> ["".join(map(str, s)) for s in cover(4, 6)[4:]]
    ['0213', '1302']

    Raises:
        UserError: as `choose`, or more than 16 slices.
    """
    slices, budget = budgeted(slices, budget)
    if slices > TABLED:
        got = f"{slices} slices"
        raise UserError(f"at most {TABLED} slices to cover all their sets", got, "take cyclic or bms")
    found = cyclic(slices, min(slices, budget))
    fresh = np.ones(2**slices, dtype=np.int64)
    fresh[0] = 0
    for order in found:
        fresh[prefixes(order)] = 0
    while len(found) < budget and fresh.any():
        order = _richest(fresh, slices)
        found.append(order)
        fresh[prefixes(order)] = 0
    more = iter(cyclic(slices, min(budget + len(found), math.factorial(slices)))) if len(found) < budget else iter(())
    have = set(found)
    return [*found, *[order for order in more if order not in have][: budget - len(found)]]


def prefixes(order: Sequence[int]) -> NDArray[np.int64]:
    """Return the sets of the first 1..L slices as bit masks, (L,): bit j is slice j."""
    return np.cumsum(np.int64(1) << np.asarray(order, dtype=np.int64))


def _richest(fresh: NDArray[np.int64], slices: int) -> Order:
    """Return the first sequence, in dictionary order, with most new sets: the longest path from no slice to all."""
    masks = np.arange(fresh.size)
    gain = np.full(fresh.size, -1, dtype=np.int64)  # of going on from a set to all slices
    gain[-1] = 0
    sizes = np.array([m.bit_count() for m in range(fresh.size)])
    for size in range(slices - 1, -1, -1):
        here = masks[sizes == size]
        for j in range(slices):
            free = here[here >> j & 1 == 0]
            gain[free] = np.maximum(gain[free], fresh[free | 1 << j] + gain[free | 1 << j])
    order: list[int] = []
    at = 0
    for _ in range(slices):
        nexts = [j for j in range(slices) if not at >> j & 1]
        j = next(j for j in nexts if fresh[at | 1 << j] + gain[at | 1 << j] == gain[at])
        order.append(j)
        at |= 1 << j
    return tuple(order)


def choose(
    slices: int,
    budget: int,
    prior: ArrayLike | None = None,
    select: Select = "cyclic",
    seed: int = 0,
    *,
    requests: float = 10.0,
    kind: Score = "expected",
) -> list[Order]:
    """Return the sequences that one shard is trained in.

    Args:
        slices: number of slices of a shard, L.
        budget: number of sequences, B, at most L!.
        prior: weight of each slice, (L,): how likely a request to the shard hits it; None where nothing is known.
        select: ``cyclic`` and ``cover`` know no prior; ``sorted`` (`ascending`) and ``bms`` need one, ``bms`` beyond L
            sequences draws the rest as ``random`` does; ``random`` (`conditional`) takes one or none.
        seed: of what is drawn.
        requests: of ``bms``, number of requests to the shard that sequences are scored by, t.
        kind: of ``bms``, which `score`.

    Returns:
        B distinct sequences, the most preferred first.

    Raises:
        UserError: an unknown rule, a budget above L!, a prior of another length, with negative values or zeros alone,
            one for a rule that knows none, or none for a rule that needs it.

    References:
        As `cyclic`.
    """
    slices, budget = budgeted(slices, budget)
    if select not in get_args(Select):
        raise UserError("a rule to choose sequences by", repr(select), suggest(select, get_args(Select)))
    if prior is not None and select not in PRIOR:
        remedy = "take bms, sorted or random with a prior, or leave it out"
        raise UserError(f"no prior for the rule {select}, which knows none", "one", remedy)
    if select == "cyclic":
        return cyclic(slices, budget)
    if select == "cover":
        return cover(slices, budget)
    if select == "random":
        return conditional(slices, budget, prior, seed=seed)
    if prior is None:
        remedy = "give one weight a slice, or take cyclic, cover or random"
        raise UserError(f"a prior for the rule {select}", "none", remedy)
    if select == "sorted":
        return ascending(prior, slices, budget)
    found = bms(prior, slices, min(slices, budget), requests=requests, kind=kind)
    return [*found, *conditional(slices, budget - slices, prior, seed=seed, taken=found)] if budget > slices else found


def depth(sequence: Sequence[int], hit: Collection[int]) -> int:
    """Return how many leading stages of a sequence are still active: the slices before the first that was hit.

    Args:
        sequence: of slices, the top one first.
        hit: slices in which a sample was deleted.

    >>> depth((2, 3, 0, 1), {0}), depth((2, 3, 0, 1), {2, 1})
    (2, 0)
    """
    return next((i for i, j in enumerate(sequence) if j in hit), len(sequence))


def best(sequences: Sequence[Sequence[int]], hit: Collection[int]) -> Live | None:
    """Return the sequence of a shard that serves: the deepest, the first of equally deep ones.

    Args:
        sequences: of the shard, in their fixed order.
        hit: slices in which a sample was deleted.

    Returns:
        Which, and its depth; None where every sequence has lost its top slice.

    >>> best([(0, 1, 2), (2, 0, 1), (1, 2, 0)], {1})
    Live(which=1, depth=2)
    """
    depths = [depth(order, hit) for order in sequences]
    deepest = max(depths, default=0)
    return Live(depths.index(deepest), deepest) if deepest else None


def depths(sequences: Sequence[Order]) -> NDArray[np.int64]:
    """Return the depth that a shard serves at for each set of hit slices, (2^L,): bit j of the index is slice j.

    Args:
        sequences: of the shard, of at most 16 slices.

    >>> depths([(0, 1), (1, 0)]).tolist()
    [2, 1, 1, 0]

    Raises:
        UserError: more than 16 slices, or sequences that are no permutations of the same slices.
    """
    orders = checked(sequences)
    slices = orders.shape[1]
    if slices > TABLED:
        got = f"{slices} slices"
        raise UserError(f"at most {TABLED} slices to go through all sets that can be hit", got, "simulate instead")
    deepest = np.zeros(2**slices, dtype=np.int64)  # by the set of clean slices: the largest clean prefix in it
    for order in orders:
        deepest[prefixes(order)] = np.arange(1, slices + 1)
    for j in range(slices):
        pairs = deepest.reshape(-1, 2, 2**j)
        np.maximum(pairs[:, 1], pairs[:, 0], out=pairs[:, 1])
    return deepest[::-1].copy()  # the complement of a set, as an index, counts from the end


def stages(sequences: Sequence[Order]) -> int:
    """Return how many stages have to be trained and stored: sequences share those of a common beginning.

    >>> stages([(0, 1, 2), (0, 2, 1)])
    5

    Raises:
        UserError: sequences that are no permutations of the same slices.
    """
    return len({tuple(order[:k]) for order in checked(sequences).tolist() for k in range(1, len(order) + 1)})
