"""A bound that a share of all values keeps to, whatever their distribution; no torch."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as distributions

from expunge.errors import UserError


def least_pairs(quantile: float, level: float = 0.95) -> int:
    """Return the fewest pairs whose largest difference bounds the quantile at the level: the least n with qⁿ ≤ 1 − level.

    >>> least_pairs(0.5), least_pairs(0.8), least_pairs(0.9), least_pairs(0.95)
    (5, 14, 29, 59)

    Raises:
        UserError: a quantile or a level outside (0, 1).
    """  # noqa: E501
    _inside(quantile, "quantile")
    _inside(level, "level")
    return max(1, math.ceil(math.log(1 - level) / math.log(quantile) - 1e-9))


def tolerance(values: ArrayLike, share: float = 0.9, confidence: float = 0.95) -> float | None:
    """Return an upper bound that at least a share of all values keeps to, with a confidence; None of too few values.

    With x₍₁₎ ≤ … ≤ x₍ₙ₎ it is x₍ⱼ₎ of the least j with P(B ≤ j − 1) ≥ confidence, B binomial of n trials with
    probability ``share``: with at least that confidence the values drawn like these lie at or below it in at least
    that share of cases, whatever their distribution. `least_pairs` values are enough to have one.

    Args:
        values: independent draws, (n,).
        share: of further draws that the bound holds for.
        confidence: chance that it does hold for so many.

    >>> tolerance(range(1, 60)), tolerance(range(28))
    (58.0, None)

    Raises:
        UserError: no value, one that is not finite, or a share or confidence outside (0, 1).

    References:
        S. S. Wilks, "Determination of sample sizes for setting tolerance limits", 1941,
        https://doi.org/10.1214/aoms/1177731788.
    """
    x = np.sort(np.asarray(values, dtype=np.float64).ravel())
    if x.size == 0 or not np.isfinite(x).all():
        got = "some not finite" if x.size else "none"
        raise UserError("finite values to bound", got, "leave out those that are undefined")
    _inside(share, "share")
    _inside(confidence, "confidence")
    if x.size < least_pairs(share, confidence):
        return None
    enough = distributions.binom.cdf(np.arange(x.size), x.size, share) >= confidence - 1e-12
    enough[-1] = True  # as `least_pairs` says, which rounds more generously
    return float(x[int(np.argmax(enough))])


def _inside(p: float, what: str) -> None:
    if not 0 < p < 1:
        raise UserError(f"a {what} between 0 and 1", str(p), "write 95 % as 0.95")
