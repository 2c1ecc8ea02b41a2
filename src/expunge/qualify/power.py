"""The smallest effect that so many replicates, models or samples could have shown, and how many show a given one."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special
from scipy import stats as distributions

from expunge.errors import UserError
from expunge.qualify.equivalence import check_level
from expunge.qualify.rank import Side, least

Floats = NDArray[np.float64]
NODES, WEIGHTS = np.polynomial.legendre.leggauss(400)
MOST = 1_000_000  # replicates that no plan goes beyond


def check_power(power: float, level: float) -> None:
    """Refuse a power or a level that is no such chance.

    Raises:
        UserError: a power outside [0.5, 1), or a level outside (0, 0.5).
    """
    check_level(level)
    if not 0.5 <= power < 1:
        raise UserError("a power from 0.5 to below 1", str(power), "write 95 % as 0.95")


def error_of(n: int, spread: float, paired: bool = True) -> tuple[float, float]:
    """Return the standard error of a mean difference of n replicates, and its degrees of freedom.

    Args:
        n: replicates, of either group where unpaired.
        spread: standard deviation of one difference; unpaired, of one number.
        paired: whether differences are taken within replicates.

    Raises:
        UserError: fewer than one replicate, or a spread below 0.
    """
    if n < 1 or not (spread >= 0 and math.isfinite(spread)):
        raise UserError("at least one replicate and a finite spread", f"{n} and {spread}", "count and measure again")
    if n == 1:
        return math.inf, 0.0
    return (spread / math.sqrt(n), n - 1.0) if paired else (spread * math.sqrt(2 / n), 2.0 * n - 2)


def _able(error: float, n: int, level: float, sides: int = 1) -> bool:
    """Return whether n replicates can reject at all: one never does, equal ones by the sign test, p = sides·2⁻ⁿ."""
    return sides * 0.5**n <= level if error == 0 else math.isfinite(error)


def _mean_over_errors(df: float, f: Callable[[Floats], Floats], most: float = math.inf) -> float:
    """Return E[f(X)] of the ratio X ≤ most of the estimated standard error to the true one, X² ~ χ²(df)/df."""
    low, high = np.sqrt(distributions.chi2.ppf([1e-14, 1 - 1e-14], df) / df)
    high = min(float(high), most)
    if high <= low:
        return 0.0
    x = (NODES + 1) / 2 * (high - low) + low
    density = distributions.chi2.pdf(df * x * x, df) * 2 * df * x
    return float((WEIGHTS * density * f(x)).sum() * (high - low) / 2)


def tost_power(
    n: int, spread: float, margin: float, *, truth: float = 0.0, level: float = 0.05, paired: bool = True
) -> float:
    """Return the chance that two one-sided tests pass, for normal differences of a known spread.

    With e the standard error, t the level's quantile and X the ratio of the estimated to the true error,
    power = E[Φ((δ − θ)/e − tX) − Φ(−(δ + θ)/e + tX)] over X < δ/(te): exact, by quadrature.

    Args:
        n: replicates, of either group where unpaired.
        spread: standard deviation of one difference; unpaired, of one number. An estimate from few replicates is
            itself off by a share of about 1/√(2n), and so is what follows from it.
        margin: δ.
        truth: θ, the true mean difference.
        level: of the tests.
        paired: whether differences are taken within replicates. Unpaired, two groups of one size and spread; of two or
            three replicates each, Welch's test has less power than this.

    >>> round(tost_power(20, 1.0, 1.0), 4), round(tost_power(20, 1.0, 1.0, truth=1.0), 4)
    (0.9922, 0.05)

    Raises:
        UserError: fewer than one replicate, a spread below 0, a margin not above 0, or a level outside (0, 0.5).

    References:
        K. F. Phillips, "Power of the two one-sided tests procedure in bioequivalence", 1990,
        https://doi.org/10.1007/BF01063556.
    """
    check_level(level)
    if not margin > 0:
        raise UserError("a margin above 0", str(margin), "state the largest difference that does not matter")
    error, df = error_of(n, spread, paired)
    if not _able(error, n, level):
        return 0.0
    if error == 0:
        return float(abs(truth) < margin)
    t = float(special.stdtrit(df, 1 - level))
    up, down = (margin - truth) / error, (margin + truth) / error

    def passing(x: Floats) -> Floats:
        return np.asarray(special.ndtr(up - t * x) - special.ndtr(t * x - down))

    return max(0.0, _mean_over_errors(df, passing, most=(up + down) / (2 * t)))


def smallest_margin(
    n: int, spread: float, *, power: float = 0.95, truth: float = 0.0, level: float = 0.05, paired: bool = True
) -> float:
    """Return the smallest margin that two one-sided tests pass with the power; infinite of one replicate.

    Args:
        n: as in `tost_power`.
        spread: as in `tost_power`.
        power: chance of passing.
        truth: the true mean difference.
        level: of the tests.
        paired: as in `tost_power`.

    >>> round(smallest_margin(20, 1.0), 4)
    0.8369

    Raises:
        UserError: as `tost_power`, or a power outside [0.5, 1).
    """
    check_power(power, level)
    error, _ = error_of(n, spread, paired)
    if not _able(error, n, level):
        return math.inf
    if error == 0:
        return abs(truth)

    def short(units: float) -> float:
        return tost_power(n, spread, abs(truth) + units * error, truth=truth, level=level, paired=paired) - power

    return abs(truth) + error * _root(short)


def _root(short: Callable[[float], float]) -> float:
    """Return where a function that grows from below 0 is 0, among numbers above 0."""
    high = 1.0
    while short(high) < 0:
        high *= 2
    return float(optimize.brentq(short, 1e-9, high, xtol=1e-9))


def replicates(
    spread: float, margin: float, *, power: float = 0.95, truth: float = 0.0, level: float = 0.05, paired: bool = True
) -> int | None:
    """Return the fewest replicates with which two one-sided tests pass with the power, or None where none suffice.

    Args:
        spread: as in `tost_power`.
        margin: δ.
        power: chance of passing.
        truth: the true mean difference; at the margin or beyond it nothing suffices.
        level: of the tests.
        paired: as in `tost_power`.

    >>> replicates(1.0, 1.0), replicates(1.0, 1.0, truth=0.5), replicates(1.0, 1.0, truth=1.0)
    (15, 45, None)

    Raises:
        UserError: as `tost_power`, or a power outside [0.5, 1).
    """
    check_power(power, level)

    def enough(n: int) -> bool:
        return tost_power(n, spread, margin, truth=truth, level=level, paired=paired) >= power

    high = 2
    while not enough(high):
        high *= 2
        if abs(truth) >= margin or high > MOST:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def smallest_difference(
    n: int, spread: float, *, margin: float = 0.0, power: float = 0.95, level: float = 0.05, paired: bool = True
) -> float:
    """Return the smallest mean difference found beyond the margin with the power; infinite of one replicate.

    It is δ + λe with E[Φ(λ − tX)] = power, t the quantile of 1 − level/2 and X as in `tost_power`: the noncentral t
    power of the side on which the difference lies.

    Args:
        n: as in `tost_power`.
        spread: as in `tost_power`.
        margin: δ; 0 for the two-sided t test.
        power: chance of finding it.
        level: of the test.
        paired: as in `tost_power`.

    >>> round(smallest_difference(20, 1.0), 4)
    0.8504

    Raises:
        UserError: fewer than one replicate, a spread below 0, a level outside (0, 0.5), or a power outside [0.5, 1).
    """
    check_power(power, level)
    error, df = error_of(n, spread, paired)
    if not _able(error, n, level, sides=2):
        return math.inf
    if error == 0:
        return margin
    t = float(special.stdtrit(df, 1 - level / 2))
    units = _root(lambda units: _mean_over_errors(df, lambda x: np.asarray(special.ndtr(units - t * x))) - power)
    return margin + units * error


def allowed(k: int, level: float, side: Side) -> int:
    """Return how many of k retrained models may be as extreme where the rank still rejects; −1 for never.

    Raises:
        UserError: a level outside (0, 0.5), or an unknown side.
    """
    least(level, side)
    return math.floor(level * (k + 1) / (2 if side == "both" else 1) + 1e-9) - 1


def rank_power(k: int, shift: float, *, level: float = 0.05, side: Side = "both") -> float:
    """Return the chance that the rank of a shifted model is rejected, all numbers normal with one spread.

    power = ∫ φ(u) P(B ≤ c) du, B binomial of k trials with probability Φ(−u − s) and c the number of retrained models
    that may be as extreme; the far side, which hardly ever rejects, is left out.

    Args:
        k: retrained models.
        shift: s, of the unlearned model, in standard deviations of a retrained one.
        level: of the rank.
        side: which numbers are extreme.

    >>> round(rank_power(19, 0.0, side="upper"), 4), rank_power(18, 9.0, side="upper")
    (0.05, 0.0)

    Raises:
        UserError: a level outside (0, 0.5), or an unknown side.
    """
    c = allowed(k, level, side)
    if c < 0:
        return 0.0
    u = 9 * NODES
    chance = distributions.binom.cdf(c, k, special.ndtr(-u - shift))
    return float(9 * (WEIGHTS * distributions.norm.pdf(u) * chance).sum())


def smallest_shift(
    k: int, spread: float = 1.0, *, power: float = 0.95, level: float = 0.05, side: Side = "both"
) -> float:
    """Return the smallest shift of a normal number that the rank rejects with the power; infinite below `rank.least`.

    Args:
        k: retrained models.
        spread: standard deviation of a retrained model's number.
        power: chance of rejecting.
        level: of the rank.
        side: which numbers are extreme.

    >>> round(smallest_shift(19, side="upper"), 3), smallest_shift(18, side="upper")
    (3.721, inf)

    Raises:
        UserError: a level outside (0, 0.5), a power outside [0.5, 1), or an unknown side.
    """
    check_power(power, level)
    if allowed(k, level, side) < 0:
        return math.inf
    return spread * _root(lambda s: rank_power(k, s, level=level, side=side) - power)


def smallest_share(k: int, *, power: float = 0.95, level: float = 0.05, side: Side = "upper") -> float:
    """Return how far out a model must lie to be rejected with the power, as the share of retrained ones beyond it.

    The share π has P(B ≤ c) = power, B binomial of k trials: a quantile of a beta distribution, whatever the
    distribution of the numbers. 0 where k is too small to reject at all.

    Args:
        k: retrained models.
        power: chance of rejecting.
        level: of the rank.
        side: which numbers are extreme.

    >>> round(smallest_share(19), 5), round(smallest_share(99), 5), smallest_share(5)
    (0.0027, 0.02011, 0.0)

    Raises:
        UserError: as `smallest_shift`.
    """
    check_power(power, level)
    c = allowed(k, level, side)
    return float(distributions.beta.ppf(1 - power, c + 1, k - c)) if c >= 0 else 0.0


def auc_width(forgotten: int, unseen: int, level: float = 0.95) -> float:
    """Return w such that an attack that knows nothing has an AUC within 0.5 ± w at the level.

    w = z·√((N + M + 1)/(12NM)), the variance of Hanley and McNeil, and of the rank sum, at 0.5.

    Args:
        forgotten: N, forgotten samples.
        unseen: M, samples that no model was trained on.
        level: confidence, on both sides.

    >>> round(auc_width(257, 257), 4)
    0.05

    Raises:
        UserError: a group without samples, or a level outside (0, 1).

    References:
        J. A. Hanley, B. J. McNeil, "The meaning and use of the area under a receiver operating characteristic (ROC)
        curve", 1982, https://doi.org/10.1148/radiology.143.1.7063747.
    """
    if forgotten < 1 or unseen < 1 or not 0 < level < 1:
        got = f"{forgotten}, {unseen} and {level}"
        raise UserError(
            "samples of both kinds and a level between 0 and 1", got, "count the samples, write 95 % as 0.95"
        )
    z = float(special.ndtri((1 + level) / 2))
    return z * math.sqrt((forgotten + unseen + 1) / (12 * forgotten * unseen))


def auc_samples(width: float = 0.05, level: float = 0.95, ratio: float = 1.0) -> int:
    """Return the fewest forgotten samples that resolve an attack's AUC around 0.5 to ± width.

    The root of 12·ratio·w²N² = z²((1 + ratio)N + 1), rounded up: `auc_width` of N and ⌈ratio·N⌉ is at most the width.

    Args:
        width: w.
        level: confidence, on both sides.
        ratio: unseen samples for each forgotten one.

    >>> auc_samples(0.05), auc_samples(0.01)
    (257, 6403)

    Raises:
        UserError: a width outside (0, 0.5), a ratio not above 0, or a level outside (0, 1).
    """
    if not (0 < width < 0.5 and ratio > 0 and 0 < level < 1):
        got = f"{width}, {ratio} and {level}"
        raise UserError("a width below 0.5, a ratio above 0 and a level below 1", got, "ask for ±0.05 at 0.95")
    z2 = float(special.ndtri((1 + level) / 2)) ** 2
    a, b = 12 * ratio * width**2, z2 * (1 + ratio)
    return max(1, math.ceil((b + math.sqrt(b * b + 4 * a * z2)) / (2 * a) - 1e-9))
