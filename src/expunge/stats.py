"""Intervals for means, proportions and rank statistics; no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special
from scipy import stats as distributions

from expunge.errors import UserError


@dataclass(frozen=True)
class Interval:
    """An estimate with a confidence interval.

    Args:
        x: the estimate.
        low: lower end.
        high: upper end.
        n: number of observations behind it.
    """

    x: float
    low: float
    high: float
    n: int


def mean_t(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return the mean with its Student t interval, x̄ ± t_{(1+level)/2, n−1} · s/√n with s the sample deviation.

    One value has no spread to estimate: its interval is (−∞, ∞), never ± 0.

    >>> i = mean_t([72.1, 72.9, 73.4, 72.5, 73.25])
    >>> round(i.x, 2), round(i.high - i.x, 4)
    (72.83, 0.6652)

    Raises:
        UserError: no value, or one that is not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0 or not np.isfinite(x).all():
        raise UserError("finite values to average", f"{x.size} values, some not finite", "drop undefined ones first")
    mean = float(x.mean())
    if x.size == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    half = float(distributions.t.ppf((1 + level) / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size))
    return Interval(mean, mean - half, mean + half, int(x.size))


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Return a proportion with its Wilson score interval.

    >>> i = wilson(11, 500)
    >>> round(i.low, 5), round(i.high, 5)
    (0.01233, 0.03896)

    Raises:
        UserError: no trial, or more successes than trials.
    """
    if n <= 0 or not 0 <= successes <= n:
        raise UserError("0 <= successes <= n with n > 0", f"{successes} of {n}", "count the trials again")
    z = float(distributions.norm.ppf((1 + level) / 2))
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(0.0, middle - half), min(1.0, middle + half), n)


def half_sum(a: Interval, b: Interval) -> Interval:
    """Return (a + b)/2 with the interval recovered from those of the two independent parts.

    References:
        Method of variance estimates recovery: G. Y. Zou, A. Donner, "Construction of confidence limits about
        effect measures", 2008, https://doi.org/10.1002/sim.3095.
    """
    x = (a.x + b.x) / 2
    down = math.hypot(a.x - a.low, b.x - b.low) / 2
    up = math.hypot(a.high - a.x, b.high - b.x) / 2
    return Interval(x, max(0.0, x - down), min(1.0, x + up), a.n + b.n)


def midranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ranks 1..n of the values, ties sharing their mean rank."""
    return np.asarray(distributions.rankdata(values), dtype=np.float64)


def auc(members: ArrayLike, others: ArrayLike, level: float = 0.95) -> Interval:
    """Return P(member score > other score) + P(tie)/2 with DeLong's interval on the logit scale.

    The logit keeps the interval inside [0, 1]; a t quantile with the smaller group's degrees of freedom widens it for
    few samples. At an estimate of exactly 0 or 1 the variance estimate is zero;
    the interval then is the one-sided bound 1 − (1−level)^{1/n}, n the smaller group's size. Elsewhere a group of one
    sample has no spread to estimate: the interval is [0, 1].

    >>> auc([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]).x.__round__(4)
    0.7778

    Raises:
        UserError: a group is empty, or a score is NaN.

    References:
        E. R. DeLong, D. M. DeLong, D. L. Clarke-Pearson, "Comparing the areas under two or more correlated
        receiver operating characteristic curves: a nonparametric approach", 1988, https://doi.org/10.2307/2531595.
        Midrank form: X. Sun, W. Xu, "Fast implementation of DeLong's algorithm", 2014.
    """
    a, b = np.asarray(members, np.float64), np.asarray(others, np.float64)
    if a.size == 0 or b.size == 0 or np.isnan(a).any() or np.isnan(b).any():
        raise UserError("scores of members and of others without NaN", f"{a.size} and {b.size}", "check the splits")
    joint = midranks(np.concatenate([a, b]))
    above = (joint[: a.size] - midranks(a)) / b.size  # share of others below each member
    below = 1 - (joint[a.size :] - midranks(b)) / a.size  # share of members above each other
    x = float(above.mean())
    if x in (0.0, 1.0):
        slack = 1 - (1 - level) ** (1 / min(a.size, b.size))
        return Interval(x, max(0.0, x - slack), min(1.0, x + slack), int(a.size + b.size))
    if min(a.size, b.size) == 1:
        return Interval(x, 0.0, 1.0, int(a.size + b.size))
    spread = sum(float(v.var(ddof=1)) / v.size for v in (above, below))
    if spread == 0:  # ties alone: nothing is known of the spread
        return Interval(x, 0.0, 1.0, int(a.size + b.size))
    quantile = float(distributions.t.ppf((1 + level) / 2, min(a.size, b.size) - 1))
    half = quantile * math.sqrt(spread) / (x * (1 - x))
    logit = math.log(x / (1 - x))
    low, high = (float(special.expit(v)) for v in (logit - half, logit + half))
    return Interval(x, low, high, int(a.size + b.size))
