"""Ranks of methods by their distance to retrained, told only as far as seeds and chance allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from expunge import stats
from expunge.report import format as fmt
from expunge.report.distance import ALPHA, p_value
from expunge.zoo import networks

FEWEST, FEWEST_SMALL = 5, 10  # seeds below which nothing is ranked
LARGE = ("resnet18", networks.BASE)  # networks that are dear to train; all others are small ones


@dataclass(frozen=True)
class Pair:
    """Two rows compared over the seeds that both have.

    Args:
        a: one row.
        b: the other.
        difference: mean of |gap of a| − |gap of b| over seeds with its 95 % t interval, for itself.
        p: two-sided p-value of the paired t test.
        adjusted: the same, corrected for all pairs of the number by Holm.
        told: whether the two are told apart: ``adjusted`` is at most 0.05.
    """

    a: str
    b: str
    difference: stats.Interval
    p: float
    adjusted: float
    told: bool


@dataclass(frozen=True)
class Rank:
    """Where a row may stand.

    Args:
        low: best rank that is not excluded.
        high: worst rank that is not excluded.
        floor: how it stands to a second retrained model: ``like`` where it is not told from it, else ``farther`` or
            ``nearer`` to retrained; empty where there is none.
    """

    low: int
    high: int
    floor: Literal["like", "farther", "nearer", ""] = ""

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}–{self.high}"


@dataclass(frozen=True)
class Ranking:
    """The order of the rows in one number.

    Args:
        ranks: by row, nearest to retrained first; empty without an order.
        pairs: every comparison, those with the floor among them.
        reason: why there is no order, or an empty string.
    """

    ranks: Mapping[str, Rank]
    pairs: tuple[Pair, ...]
    reason: str = ""


def needed(network: str) -> int:
    """Return the seeds that a ranking of methods on a network takes: small ones are cheap, and vary more.

    >>> needed("resnet18"), needed("mlp")
    (5, 10)
    """
    return FEWEST if network in LARGE else FEWEST_SMALL


def ranking(
    distances: Mapping[str, Mapping[int, float]],
    floor: Mapping[int, float] | None,
    *,
    least: int,
    step: float = 0.0,
) -> Ranking:
    """Return the ranks of rows by |gap to retrained|, as ranges: what is not told apart may stand in either order.

    Every pair is compared by a paired t test of the differences of |gap| over seeds, and all p-values of the number
    are corrected together by Holm; a difference counts as known to one printed digit at best, since seeds that agree
    to the last sample prove no spread of zero. Among n rows, row i has the ranks from 1 + #{rows told to be
    nearer} to n − #{rows told to be farther}: with a probability of 95 % all ranges together hold the true ranks.

    Why t and not Wilcoxon's signed ranks: the smallest p-value of the latter is 0.0625 of 5 seeds and 0.002 of 10, so
    that no pair of the former, and none of eight rows of the latter (28 pairs), could be told apart at any distance.
    The t test asks for differences that are about normal, as numbers over many samples, each of its own models, are.

    Args:
        distances: |gap| by row and seed.
        floor: |gap| of two retrained models by seed; compared with every row, not ranked.
        least: seeds that a row must have to be ranked.
        step: least half of an interval of a difference: one printed digit, in the number's unit.

    Returns:
        The ranking; without ranks where fewer than two rows have as many seeds.

    References:
        M. Mogstad, J. P. Romano, A. M. Shaikh, D. Wilhelm, "Inference for Ranks with Applications to Mobility across
        Neighbourhoods and Academic Achievement across Countries", 2024, https://doi.org/10.1093/restud/rdad006.
    """
    enough = {row: found for row, found in distances.items() if len(found) >= least}
    if len(enough) < 2:
        most = max((len(found) for found in distances.values()), default=0)
        few = f"{fmt.count(most, 'seed')} rank{'s' if most == 1 else ''} nothing here, it takes {least}"
        return Ranking({}, (), few if most < least else "nothing to compare")
    with_floor = floor is not None and len(floor) >= least
    rows = enough | ({"": floor} if with_floor and floor is not None else {})
    pairs = _pairs(rows, step)
    nearer = {row: 0 for row in rows}
    farther = dict(nearer)
    for pair in pairs:
        if pair.told and "" not in (pair.a, pair.b):
            first, last = (pair.a, pair.b) if pair.difference.x < 0 else (pair.b, pair.a)
            farther[first] += 1
            nearer[last] += 1
    beside: dict[str, Literal["like", "farther", "nearer", ""]] = {
        pair.a: "like" if not pair.told else "farther" if pair.difference.x > 0 else "nearer"
        for pair in pairs
        if not pair.b
    }
    means = {row: sum(found[seed] for seed in sorted(found)) / len(found) for row, found in enough.items()}
    ordered = sorted(enough, key=lambda row: (1 + nearer[row], len(enough) - farther[row], means[row], row))
    ranks = {row: Rank(1 + nearer[row], len(enough) - farther[row], beside.get(row, "")) for row in ordered}
    return Ranking(ranks, pairs)


def _pairs(rows: Mapping[str, Mapping[int, float]], step: float) -> tuple[Pair, ...]:
    """Return every comparison over the seeds that both have; the floor, whose name is empty, stands second."""
    names, seeds = list(rows), sorted({seed for found in rows.values() for seed in found})
    sizes = np.array([[rows[name].get(seed, np.nan) for seed in seeds] for name in names])
    first, second = np.triu_indices(len(names), 1)
    gaps = sizes[first] - sizes[second]
    count = np.isfinite(gaps).sum(1)
    first, second, gaps, count = (x[count > 1] for x in (first, second, gaps, count))  # one seed shows no spread
    means, spread = np.nanmean(gaps, 1), np.nanstd(gaps, 1, ddof=1)
    halves = special.stdtrit(count - 1, 1 - ALPHA / 2) * spread / np.sqrt(count)
    every = zip(means.tolist(), (means - halves).tolist(), (means + halves).tolist(), count.tolist(), strict=True)
    found = [stats.Interval(*one) for one in every]
    chances = [p_value(d.x, d.low, d.high, d.n, step) for d in found]
    pairs = zip(first.tolist(), second.tolist(), found, chances, stats.holm(chances), strict=True)
    return tuple(Pair(names[i], names[j], d, p, q, q <= ALPHA) for i, j, d, p, q in pairs)
