"""Sequences chosen by how likely requests hit each slice: sorted, matched, or drawn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from expunge.errors import UserError, suggest
from expunge.exact.orders import Order, budgeted, cyclic, probabilities
from expunge.seeds import seed as seeded

Score = Literal["expected", "printed"]
LISTED = 7  # most slices for which all permutations are gone through


def ascending(prior: ArrayLike, slices: int, budget: int) -> list[Order]:
    """Return sequences of the slices sorted by probability, the least likely on top, and the rotations of that order.

    Beyond L sequences suffixes are rotated as in `cyclic`. Slices of equal probability keep their order.

    Args:
        prior: weight of each slice, (L,).
        slices: number of slices, L.
        budget: number of sequences, B.

    >>> ascending([0.2, 0.5, 0.3], 3, 2)
    [(0, 2, 1), (1, 0, 2)]

    Raises:
        UserError: as `choose`.
    """
    rising = [int(j) for j in np.argsort(probabilities(prior, slices), kind="stable")]
    return [tuple(rising[j] for j in order) for order in cyclic(slices, budget)]


def score(order: Sequence[int], prior: ArrayLike, requests: float = 10.0, kind: Score = "expected") -> float:
    """Return how much of a sequence is left after some requests to its shard, under a prior.

    ``expected``: Σ_i (1 − Σ_{j≤i} p_{π(j)})^t, the expected depth. ``printed``: Σ_i i·(1 − Σ_{j≤i} p_{π(j)})^t, the
    published equation 24, which is called the expected number of surviving slices and is not.

    Args:
        order: the sequence π, or the first slices of it.
        prior: weight of each slice, (L,).
        requests: number of requests to the shard, t.
        kind: which of the two.

    >>> round(score((3, 2, 1, 0), [0.4, 0.3, 0.2, 0.1], 2), 2)
    1.46

    Raises:
        UserError: t that is not above 0, an unknown kind, a wrong prior, or a slice that is unknown or comes twice.
    """
    if not (math.isfinite(requests) and requests > 0):
        raise UserError("a number of requests above 0 to score sequences by", repr(requests), "take 10, or 100")
    if kind not in get_args(Score):
        raise UserError("a score of sequences", repr(kind), suggest(kind, get_args(Score)))
    p = probabilities(prior, len(np.atleast_1d(np.asarray(prior))))
    if len(set(order)) < len(order) or not set(order) <= set(range(p.size)):
        got = repr(tuple(order))
        raise UserError(f"slices 0..{p.size - 1} in a sequence, each at most once", got, "write a permutation of them")
    return math.exp(_log_score(order, p, requests, kind))


def _log_left(hit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ln(1 − hit), −∞ where slices with all the probability are hit."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.clip(1 - hit, 0.0, 1.0)))


def _log_score(order: Sequence[int], p: NDArray[np.float64], requests: float, kind: Score) -> float:
    """Return ln of a score, which tells scores apart that vanish as numbers."""
    weight = np.arange(1, len(order) + 1) if kind == "printed" else np.ones(len(order))
    with np.errstate(divide="ignore"):
        return float(special.logsumexp(requests * _log_left(np.cumsum(p[list(order)])), b=weight))


def bms(prior: ArrayLike, slices: int, budget: int, *, requests: float = 10.0, kind: Score = "expected") -> list[Order]:
    """Return sequences chosen by bipartite matching, highest score first: a Latin square's best rows.

    One partial sequence starts with each slice. At each further position a matching of maximum weight hands every
    partial sequence a slice that it has not, each slice once, weight = `score` of the extension. A perfect one always
    exists: the graph is regular. So no two sequences have the same slice at the same position. O(L⁴).

    Both kinds of score match alike, as the factor i is the same for a whole position; they differ in which are best.
    With ``requests=1`` every Latin square has the same total score.

    Args:
        prior: weight of each slice, (L,).
        slices: number of slices, L.
        budget: number of sequences, B, at most L.
        requests: number of requests to the shard, t.
        kind: of `score`.

    >>> [order[0] for order in bms([0.5, 0.3, 0.2], 3, 2)]
    [2, 1]

    Raises:
        UserError: a budget above L, and as `score` and `choose`.

    References:
        As `cyclic`, algorithm 2 and equation 24.
    """
    slices, budget = budgeted(slices, budget)
    if budget > slices:
        remedy = 'take choose(select="bms"), which draws the rest, or fewer'
        raise UserError(f"at most {slices} sequences from a matching, one a slice", f"a budget of {budget}", remedy)
    p = probabilities(prior, slices)
    orders = [[j] for j in range(slices)]
    score(orders[0], p, requests, kind)  # refuses what is no score
    for _ in range(1, slices):
        left = requests * _log_left(p[np.array(orders)].sum(axis=1)[:, None] + p[None, :])
        used = (np.arange(slices)[:, None], np.array(orders))
        left[used] = -np.inf
        weights = np.exp(left - top) if (top := left.max()) > -np.inf else np.zeros_like(left)  # 1 is the largest
        weights[used] = -np.inf
        for order, slice_ in zip(orders, optimize.linear_sum_assignment(weights, maximize=True)[1], strict=True):
            order.append(int(slice_))
    return sorted((tuple(o) for o in orders), key=lambda o: (-_log_score(o, p, requests, kind), o))[:budget]


def conditional(
    slices: int, budget: int, prior: ArrayLike | None = None, *, seed: int = 0, taken: Sequence[Order] = ()
) -> list[Order]:
    """Return distinct sequences drawn slice by slice without replacement, with weight 1 − p.

    Args:
        slices: number of slices, L.
        budget: number of sequences, B.
        prior: weight of each slice, (L,); None draws uniformly.
        seed: of the draws.
        taken: sequences that are not to be drawn.

    >>> sorted(conditional(3, 6)) == sorted(cyclic(3, 6))
    True

    Raises:
        UserError: as `choose`, or a budget beyond what can be drawn: a slice that alone is ever hit always comes last.
    """
    slices, budget = budgeted(slices, budget)
    p = np.full(slices, 1 / slices) if prior is None else probabilities(prior, slices)
    # At most one weight is 0: all requests hit that slice, and it always comes last.
    weight = np.ones(slices) if prior is None or slices == 1 else np.where(p >= 1, 0.0, 1 - p)
    refused = {order for order in taken if weight.all() or weight[order[-1]] == 0}
    if slices <= LISTED:
        most = math.factorial(slices if weight.all() else slices - 1) - len(refused)
    else:  # draws are repeated until they are new, which stays short up to half of what the other slices allow
        most = math.factorial(slices - 1) // 2
    if budget > most:
        remedy = f"ask for {most} or fewer, or take cyclic"
        raise UserError(f"at most {most} sequences to draw of these slices", f"a budget of {budget}", remedy)
    rng = np.random.default_rng(seeded("sequences", seed, slices))
    if slices <= LISTED:
        return _race(weight, rng, refused)[:budget]
    found: dict[Order, None] = {}
    while len(found) < budget:
        with np.errstate(divide="ignore"):
            order = tuple(int(j) for j in np.argsort(rng.exponential(size=slices) / weight, kind="stable"))
        if order not in refused:
            found[order] = None
    return list(found)


def _race(weight: NDArray[np.float64], rng: np.random.Generator, refused: Collection[Order]) -> list[Order]:
    """Return what drawing and rejecting repeats returns, in law, however many are asked for.

    Exponential times with rates P(π) arrive in the order of draws without replacement; every π has one.
    """
    orders = np.array(list(itertools.permutations(range(weight.size))))
    heavy = weight[orders]
    rest = np.cumsum(heavy[:, ::-1], axis=1)[:, ::-1]  # weight of what can still be drawn, at each position
    chance = np.prod(np.divide(heavy, rest, out=np.ones_like(heavy), where=rest > 0), axis=1)
    with np.errstate(divide="ignore"):
        time = rng.exponential(size=len(orders)) / chance
    drawn = (tuple(int(j) for j in orders[i]) for i in np.argsort(time, kind="stable"))
    return [order for order in drawn if order not in refused]
