"""Orders of slices, the counts and probabilities that go with them, and how far apart several orders are.

An order or sequence is a permutation of the slices 0..L−1 of a shard, the top one first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from expunge.errors import UserError

Order = tuple[int, ...]


def whole(value: object, what: str, least: int = 1) -> int:
    """Return a count as it was given.

    Raises:
        UserError: it is no whole number, or below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise UserError(f"{what}, a whole number of at least {least}", repr(value), "write one")
    return int(value)


def probabilities(prior: ArrayLike, slices: int) -> NDArray[np.float64]:
    """Return the probabilities that a request to the shard hits each slice, scaled to sum to 1.

    Args:
        prior: a probability or any other weight for each slice, not negative.
        slices: number of slices, L.

    Raises:
        UserError: another number of weights than slices, one that is negative or not finite, or none above 0.
    """
    try:
        p = np.asarray(prior, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError("a prior of numbers, one a slice", repr(prior), "write one weight a slice") from error
    if p.shape != (slices,):
        got = f"{p.size} in the shape {p.shape}" if p.ndim != 1 else str(p.size)
        raise UserError(f"a prior of {slices} weights, one a slice", got, "write one weight a slice")
    if not np.isfinite(p).all() or (p < 0).any():
        wrong = p[~(np.isfinite(p) & (p >= 0))][0]
        raise UserError("finite prior weights of at least 0", f"{wrong:g}", "write how likely each slice is hit")
    if p.max() <= 0:
        raise UserError("a prior with a weight above 0", "zeros alone", "leave the prior out where nothing is known")
    p = p / p.max()  # so that the sum of huge weights is finite
    return np.asarray(p / p.sum())


def budgeted(slices: int, budget: int) -> tuple[int, int]:
    """Return a number of slices and one of sequences.

    Raises:
        UserError: one is below 1, or there are fewer sequences than that, L!.
    """
    count, asked = whole(slices, "slices"), whole(budget, "a budget of sequences")
    if count < 21 and asked > math.factorial(count):  # beyond, no list is that long
        most = math.factorial(count)
        got = f"a budget of {asked}"
        raise UserError(f"at most {most} sequences of {count} slices, all there are", got, f"ask for {most} or fewer")
    return count, asked


def checked(sequences: Sequence[Order], slices: int | None = None) -> NDArray[np.int64]:
    """Return sequences as an array (B, L).

    Args:
        sequences: permutations of the same slices.
        slices: number of slices, L; None for as many as the first sequence has.

    Raises:
        UserError: no sequence, or one that is no permutation of 0..L−1.
    """
    if len(sequences) == 0:
        raise UserError("at least one sequence", "none", "take a budget of at least 1")
    length = len(sequences[0]) if slices is None else slices
    for order in sequences:
        if sorted(order) != list(range(length)) or length == 0:
            got = repr(tuple(order))
            raise UserError(
                f"each of the slices 0..{length - 1} once in a sequence", got, "write a permutation of them"
            )
    return np.asarray(sequences, dtype=np.int64)


def cyclic(slices: int, budget: int) -> list[Order]:
    """Return sequences as far apart as can be: rotations first, then rotations of suffixes.

    With b = 0..B−1 written in mixed radix, d_0 = b mod L, d_1 = ⌊b/L⌋ mod (L−1), ..., the identity has its suffix from
    position j rotated right by d_j, for j = 0, 1, ... All are distinct up to B = L!, and the mean distance is
    `distance_bound` at every B for L = 3, 4, 5.

    Args:
        slices: number of slices, L.
        budget: number of sequences, B.

    >>> ["".join(map(str, s)) for s in cyclic(4, 6)]
    ['0123', '3012', '2301', '1230', '0312', '3201']

    Raises:
        UserError: no slice, no budget, or a budget above L!.

    References:
        S. Basu Roy Chowdhury, K. Choromanski, A. Sehanobish, A. Dubey, S. Chaturvedi, "Towards Scalable Exact Machine
        Unlearning Using Parameter-Efficient Fine-Tuning", 2025, https://arxiv.org/abs/2406.16257, rotates so; the
        mixed radix, which leaves nothing to choose, is ours.
    """
    slices, budget = budgeted(slices, budget)
    found = []
    for b in range(budget):
        order, rest, j = list(range(slices)), b, 0
        while rest:
            rest, turn = divmod(rest, slices - j)
            tail = order[j:]
            order[j:] = tail[len(tail) - turn :] + tail[: len(tail) - turn]
            j += 1
        found.append(tuple(order))
    return found


def hamming(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the number of positions at which two sequences hold different slices.

    Raises:
        UserError: sequences of different lengths.
    """
    if len(a) != len(b):
        raise UserError("sequences of the same length", f"{len(a)} and {len(b)} slices", "compare those of one shard")
    return sum(x != y for x, y in zip(a, b, strict=True))


def mean_distance(sequences: Sequence[Order]) -> float:
    """Return the mean of `hamming` over all pairs of sequences, O(BL): L − Σ_i Σ_j C(n_ij, 2) / C(B, 2).

    n_ij is the number of sequences with slice j at position i.

    >>> mean_distance(cyclic(4, 5))
    3.6

    Raises:
        UserError: fewer than two sequences, or ones that are no permutations of the same slices.
    """
    orders = checked(sequences)
    budget, slices = orders.shape
    if budget < 2:
        raise UserError("at least two sequences to compare", str(budget), "take a larger budget")
    same = sum(int((n * (n - 1) // 2).sum()) for n in (np.bincount(column) for column in orders.T))
    return float(slices - same / (budget * (budget - 1) / 2))


def distance_bound(slices: int, budget: int) -> float:
    """Return the largest mean distance that B sequences of L slices can have.

    D_max = L − L·[ρ·C(q+1, 2) + (L−ρ)·C(q, 2)] / C(B, 2) with B = qL + ρ and 0 ≤ ρ < L: every position is balanced.

    Args:
        slices: number of slices, L.
        budget: number of sequences, B, at least 2.

    >>> round(distance_bound(5, 10), 4)
    4.4444

    Raises:
        UserError: fewer than two sequences, or more than L!.
    """
    slices, budget = budgeted(slices, budget)
    q, rest = divmod(whole(budget, "a budget of sequences", 2), slices)
    same = rest * math.comb(q + 1, 2) + (slices - rest) * math.comb(q, 2)
    return slices - slices * same / math.comb(budget, 2)
