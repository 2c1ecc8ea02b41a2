"""Intervals for means, proportions and rank statistics, paired tests, and corrections for many of them; no torch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special
from scipy import stats as distributions

from expunge.errors import UserError, suggest

Kind = Literal["percentile", "basic", "bca"]
AT_ONCE = 2**22  # resampled values held in memory together


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


def _upper(level: float) -> float:
    """Return the probability below the upper end of a two-sided interval."""
    if not 0 < level < 1:
        raise UserError("a level between 0 and 1", str(level), "write 95 % as 0.95")
    return (1 + level) / 2


def _finite(values: ArrayLike, use: str) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0 or not np.isfinite(x).all():
        got = f"{x.size} values, some not finite" if x.size else "0 values"
        raise UserError(f"finite values to {use}", got, "drop undefined ones first")
    return x


def _counted(successes: int, n: int) -> None:
    if n <= 0 or not 0 <= successes <= n:
        raise UserError("0 <= successes <= n with n > 0", f"{successes} of {n}", "count the trials again")


def mean_t(values: ArrayLike, level: float = 0.95) -> Interval:
    """Return the mean with its Student t interval, x̄ ± t_{(1+level)/2, n−1} · s/√n with s the sample deviation.

    One value has no spread to estimate: its interval is (−∞, ∞), never ± 0.

    >>> i = mean_t([72.1, 72.9, 73.4, 72.5, 73.25])
    >>> round(i.x, 2), round(i.high - i.x, 4)
    (72.83, 0.6652)

    Raises:
        UserError: no value, one that is not finite, or a level outside (0, 1).
    """
    x, upper = _finite(values, "average"), _upper(level)
    mean = float(x.mean())
    if x.size == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    half = float(special.stdtrit(x.size - 1, upper) * x.std(ddof=1) / math.sqrt(x.size))  # tables take many of them
    return Interval(mean, mean - half, mean + half, int(x.size))


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Return a proportion with its Wilson score interval.

    >>> i = wilson(11, 500)
    >>> round(i.low, 5), round(i.high, 5)
    (0.01233, 0.03896)

    Raises:
        UserError: no trial, more successes than trials, or a level outside (0, 1).
    """
    _counted(successes, n)
    z = float(distributions.norm.ppf(_upper(level)))
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else middle - half  # exact at the ends, where rounding would leave the estimate out
    high = 1.0 if successes == n else middle + half
    return Interval(p, low, high, n)


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Return a proportion with its exact Clopper-Pearson interval.

    The ends are quantiles of beta distributions, low = B_{(1−level)/2}(k, n−k+1) and high = B_{(1+level)/2}(k+1, n−k);
    low is 0 for k = 0, high is 1 for k = n. It covers at its level or above, always; Wilson's, shorter, on average.

    Args:
        successes: number of successes, k.
        n: number of trials.
        level: confidence level.

    >>> i = clopper_pearson(11, 500)
    >>> round(i.low, 5), round(i.high, 5)
    (0.01103, 0.03902)

    Raises:
        UserError: no trial, more successes than trials, or a level outside (0, 1).

    References:
        C. J. Clopper, E. S. Pearson, "The use of confidence or fiducial limits illustrated in the case of the
        binomial", 1934, https://doi.org/10.1093/biomet/26.4.404.
    """
    _counted(successes, n)
    upper = _upper(level)
    low = 0.0 if successes == 0 else float(distributions.beta.ppf(1 - upper, successes, n - successes + 1))
    high = 1.0 if successes == n else float(distributions.beta.ppf(upper, successes + 1, n - successes))
    return Interval(successes / n, low, high, n)


def bootstrap(
    values: ArrayLike,
    statistic: Callable[..., Any] = np.mean,
    *,
    kind: Kind = "bca",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return a statistic of independent values with a bootstrap interval.

    With θ̂ the statistic of the values, q_p the p-quantile of the statistic over resamples drawn with replacement, and
    α = (1−level)/2: ``percentile`` is [q_α, q_{1−α}]; ``basic`` is [2θ̂ − q_{1−α}, 2θ̂ − q_α]; ``bca`` is [q_α₁, q_α₂]
    with α₁ and α₂ shifted for bias (share of resamples below θ̂) and skewness (n statistics of all values but one).

    One value has no spread to estimate: its interval is (−∞, ∞). Values that are all equal return an interval of no
    width, as in ``mean_t``: resampling sees no spread that the values do not show. Of fewer than some twenty values
    all three kinds are too short; for a mean take ``mean_t``. The order of the values has no effect.

    Args:
        values: independent observations; more than one axis is flattened.
        statistic: a function of an array to a number; one that takes ``axis`` works on many resamples at once.
        kind: which interval.
        level: confidence level.
        resamples: number of resamples, at least one beyond each end: 2/(1−level).
        seed: seed of the resampling; the same seed gives the same interval.

    >>> i = bootstrap([1.0, 2.0, 4.0, 8.0, 16.0], np.median, kind="percentile")
    >>> i.x, i.low, i.high
    (4.0, 1.0, 16.0)

    Raises:
        UserError: no value, one that is not finite, an unknown kind, too few resamples, a level outside (0, 1), or a
            statistic undefined on the values, on a resample, or (``bca``) for want of variation.

    References:
        B. Efron, R. J. Tibshirani, "An Introduction to the Bootstrap", 1993, https://doi.org/10.1201/9780429246593.
        BCa: B. Efron, "Better bootstrap confidence intervals", 1987, https://doi.org/10.1080/01621459.1987.10478410.
    """
    x = np.sort(_finite(values, "resample"), axis=None)
    _upper(level)
    least = math.ceil(2 / (1 - level) - 1e-9)
    if kind not in get_args(Kind):
        raise UserError("a kind of bootstrap interval", repr(kind), suggest(kind, get_args(Kind)))
    if resamples < least:
        raise UserError(f"at least {least} resamples for the level {level}", str(resamples), "take 2000 or more")
    estimate = float(statistic(x))
    if not math.isfinite(estimate):
        raise UserError("a statistic that is finite on the values", str(estimate), "choose another statistic")
    if x.size == 1:
        return Interval(estimate, -math.inf, math.inf, 1)
    if x[0] == x[-1]:
        return Interval(estimate, estimate, estimate, int(x.size))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # what the warnings speak of ends as NaN, refused below
        found = distributions.bootstrap(
            (x,),
            statistic,
            method=kind,
            confidence_level=level,
            n_resamples=resamples,
            batch=max(1, AT_ONCE // x.size),
            random_state=np.random.default_rng(seed),  # the name that every supported scipy knows
        ).confidence_interval
    low, high = float(found.low), float(found.high)
    if math.isnan(low) or math.isnan(high):
        remedy = 'take kind="percentile"' if kind == "bca" else "choose a statistic defined on every resample"
        raise UserError(f"a statistic with a {kind} interval", "an undefined one", remedy)
    return Interval(estimate, low, high, int(x.size))


def paired(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Interval:
    """Return the mean of a − b over pairs with the Student t interval of the differences, as ``mean_t`` gives it.

    What the two values of a pair share (a seed, a sample) cancels. One pair has the interval (−∞, ∞).

    Args:
        a: first value of each pair.
        b: second value of each pair, in the same order.
        level: confidence level.

    >>> i = paired([72.1, 72.9, 73.4], [71.0, 72.0, 72.2])
    >>> round(i.x, 4), round(i.low, 4), round(i.high, 4)
    (1.0667, 0.6872, 1.4461)

    Raises:
        UserError: numbers of values that differ, no pair, a value that is not finite, or a level outside (0, 1).
    """
    x, y = _finite(a, "average"), _finite(b, "average")
    if x.shape != y.shape:
        raise UserError("as many values on both sides", f"{x.size} and {y.size}", "pair values of one seed or sample")
    return mean_t(x - y, level)


def _discordant(right_a: ArrayLike, right_b: ArrayLike) -> tuple[int, int, int]:
    """Return the pairs right in a alone, those right in b alone, and all."""
    x, y = np.asarray(right_a), np.asarray(right_b)
    if x.shape != y.shape or x.size == 0:
        raise UserError("an answer of each side for every sample", f"{x.size} and {y.size}", "pair the same samples")
    if not (np.isin(x, (0, 1)).all() and np.isin(y, (0, 1)).all()):
        raise UserError("answers that are true or false", "other values", "compare predictions with labels first")
    return int((x > y).sum()), int((y > x).sum()), int(x.size)


def paired_proportions(right_a: ArrayLike, right_b: ArrayLike, level: float = 0.95) -> Interval:
    """Return the difference of two proportions over the same samples, a − b, with Bonett and Price's interval.

    With n samples, f of them right in a alone and g in b alone, the estimate is (f − g)/n. One pair is added to f and
    to g: p = (f+1)/(n+2), q = (g+1)/(n+2), and the interval is p − q ± z·√((p + q − (p − q)²)/(n+2)), cut to [−1, 1]
    and widened to the estimate where a low level leaves it out. It has a width even where no pair differs.

    Args:
        right_a: for each sample, whether it is right (true or 1) in a.
        right_b: the same for b, in the same order.
        level: confidence level; z is the normal quantile of (1 + level)/2.

    >>> i = paired_proportions([True] * 9 + [False], [True] * 6 + [False] * 4)
    >>> round(i.x, 4), round(i.low, 4), round(i.high, 4)
    (0.3, -0.0867, 0.5867)

    Raises:
        UserError: numbers of answers that differ, none, one that is neither true nor false, or a level outside (0, 1).

    References:
        D. G. Bonett, R. M. Price, "Adjusted Wald confidence interval for a difference of binomial proportions based
        on paired data", 2012, https://doi.org/10.3102/1076998611411915.
    """
    f, g, n = _discordant(right_a, right_b)
    x, p, q = (f - g) / n, (f + 1) / (n + 2), (g + 1) / (n + 2)
    half = float(distributions.norm.ppf(_upper(level))) * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return Interval(x, min(x, max(-1.0, p - q - half)), max(x, min(1.0, p - q + half)), n)


def _sum(a: Interval, b: Interval) -> Interval:
    """Return a + b of independent parts: distances from the estimates to the ends add up in squares, side by side."""
    x = a.x + b.x
    down, up = math.hypot(a.x - a.low, b.x - b.low), math.hypot(a.high - a.x, b.high - b.x)
    return Interval(x, x - down, x + up, a.n + b.n)


def half_sum(a: Interval, b: Interval) -> Interval:
    """Return (a + b)/2 with the interval recovered from those of the two independent parts.

    References:
        Method of variance estimates recovery: G. Y. Zou, A. Donner, "Construction of confidence limits about
        effect measures", 2008, https://doi.org/10.1002/sim.3095.
    """
    both = _sum(a, b)
    return Interval(both.x / 2, max(0.0, both.low / 2), min(1.0, both.high / 2), both.n)


def difference(a: Interval, b: Interval) -> Interval:
    """Return a − b with the interval recovered from those of the two independent estimates.

    low = x − √((a.x − a.low)² + (b.high − b.x)²) and high = x + √((a.high − a.x)² + (b.x − b.low)²), with
    x = a.x − b.x; an end from which a side is unbounded is infinite. Two estimates on the same seeds or samples are
    not independent: take ``paired`` or ``paired_proportions``.

    Args:
        a: first estimate.
        b: second estimate, of the same unit and level.

    >>> i = difference(wilson(56, 70), wilson(48, 80))
    >>> round(i.x, 4), round(i.low, 4), round(i.high, 4)
    (0.2, 0.0524, 0.3339)

    Raises:
        UserError: an estimate that is not finite, or an end that is NaN.

    References:
        That of ``half_sum``. Of two of Wilson's intervals it is method 10 of R. G. Newcombe, "Interval estimation for
        the difference between independent proportions: comparison of eleven methods", 1998,
        https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I.
    """
    for i in (a, b):
        if not math.isfinite(i.x) or math.isnan(i.low) or math.isnan(i.high):
            raise UserError("finite estimates to subtract", str(i), "drop undefined ones first")
    return _sum(a, Interval(-b.x, -b.high, -b.low, b.n))


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
        UserError: a group is empty, a score is NaN, or a level is outside (0, 1).

    References:
        E. R. DeLong, D. M. DeLong, D. L. Clarke-Pearson, "Comparing the areas under two or more correlated
        receiver operating characteristic curves: a nonparametric approach", 1988, https://doi.org/10.2307/2531595.
        Midrank form: X. Sun, W. Xu, "Fast implementation of DeLong's algorithm", 2014.
    """
    a, b, upper = np.asarray(members, np.float64), np.asarray(others, np.float64), _upper(level)
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
    quantile = float(distributions.t.ppf(upper, min(a.size, b.size) - 1))
    half = quantile * math.sqrt(spread) / (x * (1 - x))
    logit = math.log(x / (1 - x))
    low, high = (float(special.expit(v)) for v in (logit - half, logit + half))
    return Interval(x, low, high, int(a.size + b.size))


def t_test(values: ArrayLike) -> float:
    """Return the two-sided p-value of Student's test that the mean is 0; of differences, the paired t test.

    p = 2·P(T_{n−1} > |x̄|·√n/s), s the sample deviation: below 1 − level exactly where the interval of ``mean_t``
    leaves 0 out. One value is no evidence: 1. Equal values give the limit of a spread that vanishes, 0, or 1 where
    they are all 0.

    Args:
        values: independent observations.

    >>> round(t_test([1.1, 0.9, 1.2]), 4)
    0.0068

    Raises:
        UserError: no value, or one that is not finite.

    References:
        Student, "The probable error of a mean", 1908, https://doi.org/10.1093/biomet/6.1.1.
    """
    x = _finite(values, "average")
    if x.size == 1:
        return 1.0
    mean, error = float(x.mean()), float(x.std(ddof=1)) / math.sqrt(x.size)
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * distributions.t.sf(abs(mean) / error, x.size - 1))


def mcnemar(right_a: ArrayLike, right_b: ArrayLike) -> float:
    """Return the exact two-sided p-value of McNemar's test that two proportions over the same samples are equal.

    With f samples right in a alone and g in b alone, p = min(1, 2·P(B ≤ min(f, g))), B binomial of f + g trials with
    probability ½; 1 where no pair differs.

    Args:
        right_a: for each sample, whether it is right (true or 1) in a.
        right_b: the same for b, in the same order.

    >>> mcnemar([1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0])
    0.0625

    Raises:
        UserError: numbers of answers that differ, none, or one that is neither true nor false.

    References:
        Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
        1947, https://doi.org/10.1007/BF02295996.
    """
    f, g, _ = _discordant(right_a, right_b)
    return float(min(1.0, 2 * distributions.binom.cdf(min(f, g), f + g, 0.5)))


def _probabilities(p: Sequence[float]) -> NDArray[np.float64]:
    x = np.asarray(p, dtype=np.float64)
    wrong = x[~((x >= 0) & (x <= 1))]
    if wrong.size:
        raise UserError("p-values between 0 and 1", str(wrong[0]), "leave out tests that have none")
    return x


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm: rejecting those at most α keeps the chance of any false rejection at α.

    With p₍₁₎ ≤ … ≤ p₍ₘ₎ the adjusted i-th is min(1, max_{j≤i} (m − j + 1)·p₍ⱼ₎), however the tests depend on each
    other. The result is in the order of ``p``; of none, none.

    Args:
        p: p-values of a family of tests, in any order.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]

    Raises:
        UserError: a p-value that is NaN or outside [0, 1].

    References:
        S. Holm, "A simple sequentially rejective multiple test procedure", 1979, https://www.jstor.org/stable/4615733.
    """
    x = _probabilities(p)
    order = np.argsort(x)
    adjusted = np.maximum.accumulate(x[order] * np.arange(x.size, 0, -1))
    return [float(v) for v in np.minimum(adjusted, 1.0)[np.argsort(order)]]


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Benjamini and Hochberg: those at most α hold a share α of false ones on average.

    With p₍₁₎ ≤ … ≤ p₍ₘ₎ the adjusted i-th is min_{j≥i} (m/j)·p₍ⱼ₎, right for independent tests and for tests with
    positive dependence. The result is in the order of ``p``; of none, none.

    Args:
        p: p-values of a family of tests, in any order.

    >>> [round(v, 4) for v in benjamini_hochberg([0.01, 0.5, 0.03, 0.02])]
    [0.04, 0.5, 0.04, 0.04]

    Raises:
        UserError: a p-value that is NaN or outside [0, 1].

    References:
        Y. Benjamini, Y. Hochberg, "Controlling the false discovery rate: a practical and powerful approach to
        multiple testing", 1995, https://doi.org/10.1111/j.2517-6161.1995.tb02031.x.
    """
    x = _probabilities(p)
    order = np.argsort(-x)
    adjusted = np.minimum.accumulate(x[order] * (x.size / np.arange(x.size, 0, -1)))  # no factor is below 1
    return [float(v) for v in adjusted[np.argsort(order)]]


def principal_axes(
    features: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the two principal axes of features: their mean (F,), the axes (F, 2), and each one's share of variance.

    Where features vary along fewer than two directions, the axes that are left over are 0. The sign of an axis is set
    so that its largest entry is positive: the same features give the same map.

    Args:
        features: of samples, (N, F).
    """
    middle = features.mean(axis=0)
    _, sizes, rows = np.linalg.svd(features - middle, full_matrices=False)
    total = float(np.square(sizes).sum())
    found, shares = np.zeros((features.shape[1], 2)), np.zeros(2)
    for at, (size, row) in enumerate(zip(sizes[:2], rows[:2], strict=True)):
        if size > 1e-12 * math.sqrt(max(total, 1e-300)):
            found[:, at] = row * np.sign(row[np.abs(row).argmax()])
            shares[at] = size**2 / total
    return middle, found, shares
