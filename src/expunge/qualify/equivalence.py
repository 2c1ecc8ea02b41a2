"""Whether the difference between unlearned and retrained models lies within a margin, or beyond it; no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special
from scipy import stats as distributions

from expunge.errors import UserError
from expunge.qualify.tolerance import least_pairs, tolerance
from expunge.stats import Interval

ROUNDING = 1e-12  # a spread below this share of the largest value is rounding, not spread


@dataclass(frozen=True, kw_only=True)
class Equivalence:
    """The result of two one-sided tests of one number over replicates.

    Args:
        name: of the number.
        margin: δ, the largest difference that does not matter, in the number's unit.
        interval: the mean difference unlearned − retrained with its interval of confidence 1 − 2·level.
        p: of the hypothesis that the mean difference is δ or more away from 0; small means within the margin.
        beyond: of the hypothesis that the mean difference is at most δ away from 0; small means beyond the margin.
        spread: standard deviation of one difference.
        error: standard error of the mean difference.
        df: degrees of freedom of the error.
        n: replicates, the smaller group's where the groups are unpaired.
        paired: whether differences were taken within replicates.
        level: chance that a difference at the margin passes.
    """

    name: str
    margin: float
    interval: Interval
    p: float
    beyond: float
    spread: float
    error: float
    df: float
    n: int
    paired: bool
    level: float

    @property
    def passes(self) -> bool:
        """Whether the difference is within the margin: p ≤ level, and so the interval inside (−δ, δ)."""
        return self.p <= self.level

    @property
    def estimate(self) -> float:
        """The mean difference."""
        return self.interval.x


@dataclass(frozen=True, kw_only=True)
class Joint:
    """The result of an intersection-union test.

    Args:
        p: the largest of the tests' p-values.
        worst: the name of the number that has it.
        level: chance that numbers of which at least one is at or beyond its margin pass.
    """

    p: float
    worst: str
    level: float

    @property
    def passes(self) -> bool:
        """Whether every number is within its margin."""
        return self.p <= self.level


@dataclass(frozen=True, kw_only=True)
class Margin:
    """A margin read off pairs of models that are both retrained.

    Args:
        delta: the margin, factor times the upper bound.
        bound: the quantile of the pairs' absolute differences: its estimate, and from 0 to its upper bound.
        quantile: which quantile.
        level: confidence of the upper bound.
        factor: what the bound was multiplied by.
        reason: the same in words.
    """

    delta: float
    bound: Interval
    quantile: float
    level: float
    factor: float
    reason: str


def values(x: ArrayLike, what: str) -> NDArray[np.float64]:
    """Return finite numbers, one a replicate, as a flat array.

    Raises:
        UserError: no number, or one that is not finite.
    """
    found = np.asarray(x, dtype=np.float64).ravel()
    if found.size == 0 or not np.isfinite(found).all():
        got = "some not finite" if found.size else "none"
        raise UserError(f"finite numbers of {what}", got, "run or drop the replicates without one")
    return found


def check_level(level: float) -> None:
    """Refuse a level that is no error probability.

    Raises:
        UserError: the level is outside (0, 0.5).
    """
    if not 0 < level < 0.5:
        raise UserError("a level between 0 and 0.5", str(level), "write 5 % as 0.05")


def tost(
    unlearned: ArrayLike,
    retrained: ArrayLike,
    margin: float,
    *,
    level: float = 0.05,
    paired: bool = True,
    name: str = "difference",
) -> Equivalence:
    """Return two one-sided tests that the mean of unlearned − retrained is within ±δ.

    With d̄ the mean difference, e its standard error and T of Student's distribution, p = max(P(T > (d̄ + δ)/e),
    P(T < (d̄ − δ)/e)): p ≤ level exactly where d̄ ± t_{1−level}·e lies within ±δ. Paired, e = s/√n with n − 1 degrees
    of freedom; unpaired, Welch's e and Satterthwaite's degrees of freedom. The opposite question, whether the
    difference is beyond the margin, has ``beyond`` = min(1, 2·min(P(T > (d̄ − δ)/e), P(T < (d̄ + δ)/e))), which for
    δ → 0 is the two-sided t test; at one level below one half at most one of the two is answered with yes.

    One replicate has no spread: both p are 1 and the interval is unbounded. Differences that are all equal give no
    estimate of a spread either; then the sign test speaks, p = 2⁻ⁿ, which needs no normality.

    Args:
        unlearned: the number of each unlearned model, (n,). Each replicate has its own original and its own
            retrained model, so that the spread is over both; unlearnings of one original are no replicates.
        retrained: the number of each retrained model, (n,) in the same order, or (m,) unpaired.
        margin: δ, in the unit of the number, chosen before the numbers were seen.
        level: chance that a difference of exactly δ passes.
        paired: whether the two numbers of one row are of one replicate.
        name: of the number, for reports.

    >>> r = tost([0.81, 0.80, 0.82, 0.79], [0.80, 0.80, 0.81, 0.80], 0.03)
    >>> round(r.p, 4), r.passes, round(r.interval.low, 4), round(r.interval.high, 4)
    (0.0052, True, -0.0088, 0.0138)

    Raises:
        UserError: no number or one that is not finite, groups that cannot be paired, a margin that is not positive,
            or a level outside (0, 0.5).

    References:
        D. J. Schuirmann, "A comparison of the two one-sided tests procedure and the power approach for assessing the
        equivalence of average bioavailability", 1987, https://doi.org/10.1007/BF01068419. Beyond a margin:
        K. R. Murphy, B. Myors, "Testing the hypothesis that treatments have negligible effects: minimum-effect tests
        in the general linear model", 1999, https://doi.org/10.1037/0021-9010.84.2.234.
    """
    check_level(level)
    a, b = values(unlearned, "unlearned models"), values(retrained, "retrained models")
    if paired and a.size != b.size:
        raise UserError("as many retrained as unlearned", f"{b.size} and {a.size}", "pair replicates or say unpaired")
    if not (margin > 0 and math.isfinite(margin)):
        raise UserError("a margin above 0", str(margin), "state the largest difference that does not matter")
    mean = float((a - b).mean()) if paired else float(a.mean() - b.mean())
    error, df, n = _error(a, b, paired)
    p, beyond, half = _tails(mean, error, df, n, margin, level)
    spread = error * math.sqrt(n if paired else n / 2)
    interval = Interval(mean, mean - half, mean + half, n)
    return Equivalence(
        name=name, margin=margin, interval=interval, p=p, beyond=beyond, spread=spread, error=error, df=df, n=n,
        paired=paired, level=level,
    )  # fmt: skip


def _error(a: NDArray[np.float64], b: NDArray[np.float64], paired: bool) -> tuple[float, float, int]:
    """Return standard error, degrees of freedom and n; the error is infinite where one number has no spread."""
    n = min(a.size, b.size)
    if n == 1:
        return math.inf, 0.0, 1
    tiny = ROUNDING * max(float(np.abs(a).max()), float(np.abs(b).max()))
    if paired:
        s = float((a - b).std(ddof=1))
        return (s / math.sqrt(n) if s > tiny else 0.0), n - 1.0, n
    sizes = np.array([a.size, b.size])
    sds = np.array([float(x.std(ddof=1)) for x in (a, b)])
    parts = np.where(sds > tiny, sds, 0.0) ** 2 / sizes
    total = float(parts.sum())
    if total == 0:
        return 0.0, n - 1.0, n
    return math.sqrt(total), total**2 / float((parts**2 / (sizes - 1)).sum()), n


def _tails(mean: float, error: float, df: float, n: int, margin: float, level: float) -> tuple[float, float, float]:
    """Return p within the margin, p beyond it, and half the width of the interval."""
    if math.isinf(error):
        return 1.0, 1.0, math.inf
    if error == 0:
        sign = 0.5**n
        within, outside = abs(mean) < margin, abs(mean) > margin
        return (sign if within else 1.0), (2 * sign if outside else 1.0), (0.0 if sign <= level else math.inf)
    low, high = (mean + margin) / error, (mean - margin) / error
    p = max(float(distributions.t.sf(low, df)), float(distributions.t.cdf(high, df)))
    beyond = 2 * min(float(distributions.t.sf(high, df)), float(distributions.t.cdf(low, df)))
    return p, min(1.0, beyond), float(special.stdtrit(df, 1 - level)) * error


def every(results: Sequence[Equivalence]) -> Joint:
    """Return the intersection-union test that every number is within its margin: the largest p decides.

    The hypothesis to reject is that at least one number is at or beyond its margin. Whichever it is, its own test
    passes with a chance of at most its level, and all of them pass no more often than that one: the level holds
    without any correction for their number, however they depend on each other. The price is power.

    Args:
        results: tests of one level.

    Raises:
        UserError: no test, or tests of different levels.

    References:
        R. L. Berger, "Multiparameter hypothesis testing and acceptance sampling", 1982,
        https://doi.org/10.1080/00401706.1982.10487790.
    """
    levels = {r.level for r in results}
    if len(levels) != 1:
        got = f"levels {sorted(levels)}" if levels else "no test"
        raise UserError("tests of one level", got, "run two one-sided tests of each number at the same level")
    worst = max(results, key=lambda r: r.p)
    return Joint(p=worst.p, worst=worst.name, level=worst.level)


def margin_from_floor(
    differences: ArrayLike, *, factor: float = 1.0, quantile: float = 0.8, level: float = 0.95
) -> Margin:
    """Return a margin from how far two retrained models of one replicate lie apart.

    The bound is `expunge.qualify.tolerance.tolerance` of the absolute differences: it lies below the q-quantile with a
    chance of at most 1 − level, whatever their distribution. Fewer pairs give a looser margin, not a tighter one, so
    their number belongs in the report; and pairs that are also replicates of the test make margin and test depend on
    each other: take others.

    Args:
        differences: retrained − retrained', one pair of each replicate, (n,), any sign.
        factor: what to multiply the bound by.
        quantile: q, the share of such pairs that lie no further apart.
        level: confidence of the bound.

    >>> margin_from_floor([0.01, -0.02, 0.015, 0.03, -0.005], quantile=0.5).delta
    0.03

    Raises:
        UserError: too few pairs for the quantile, one that is not finite, differences that are all 0, a factor that is
            not positive, or a quantile or level outside (0, 1).

    References:
        W. Q. Meeker, G. J. Hahn, L. A. Escobar, "Statistical Intervals: A Guide for Practitioners and Researchers",
        2017, https://doi.org/10.1002/9781118594841, chapter 5.
    """
    least = least_pairs(quantile, level)
    x = np.sort(np.abs(values(differences, "pairs of retrained models")))
    if x.size < least:
        want = f"at least {least} pairs of retrained models for the {quantile:g} quantile at {level:.0%}"
        raise UserError(want, str(x.size), f"retrain {least - x.size} more pairs or ask for a lower quantile")
    if not (factor > 0 and math.isfinite(factor)):
        raise UserError("a factor above 0", str(factor), "take 1 for the floor itself")
    high = tolerance(x, quantile, level)
    if not high:
        raise UserError(
            "retrained models that differ", "differences of 0", "state a margin or vary the retraining seed"
        )
    middle = float(np.quantile(x, quantile))
    times = "" if factor == 1 else f", times {factor:g}"
    reason = (
        f"With {level:.0%} confidence at least {quantile:.0%} of pairs of retrained models differ by no more than "
        f"{high:.4g} ({x.size} pairs{times})."
    )
    return Margin(
        delta=factor * high,
        bound=Interval(middle, 0.0, high, int(x.size)),
        quantile=quantile,
        level=level,
        factor=factor,
        reason=reason,
    )
