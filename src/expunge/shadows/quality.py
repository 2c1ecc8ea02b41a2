"""Forgetting quality of the 2023 NeurIPS unlearning competition: an ε for each forgotten sample, and points for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from expunge.errors import UserError
from expunge.shadows.pool import Floats, table

DELTA = 1e-5
CAP = 50.0
BIN = 0.5
FINE = 100  # thresholds in a unit of the margin
BUFFER = 2.0  # nats about the ends of the narrower side's range that an interval's ends are tried in
NARROW = 0.01  # a side whose range is below this share of the other's is told apart without more ado


@dataclass(frozen=True, eq=False)
class Quality:
    """Forgetting quality.

    Args:
        score: F, the mean of the points over the samples, in [0, 1]; 1 is every ε below 0.5.
        epsilon: of each sample, (N,), in [0, 50].
        points: of each sample, (N,), in [0, 1].
        bins: bins that earn points.
    """

    score: float
    epsilon: Floats
    points: Floats
    bins: int

    def final(self, *, retain: tuple[float, float], test: tuple[float, float]) -> float:
        """Return F · RA_U/RA_R · TA_U/TA_R, the competition's score.

        Args:
            retain: accuracy on retain data of the unlearned and of the retrained models, means over models.
            test: the same on test data.

        Returns:
            The score.

        Raises:
            UserError: an accuracy below 0, or one of retrained models that is 0.
        """
        (ours, theirs), (our_test, their_test) = retain, test
        if min(ours, our_test) < 0 or min(theirs, their_test) <= 0:
            got = f"{retain} and {test}"
            raise UserError("accuracies, those of retrained models above 0", got, "give (unlearned, retrained)")
        return self.score * (ours / theirs) * (our_test / their_test)


def epsilon(fpr: ArrayLike, fnr: ArrayLike, delta: float = DELTA) -> NDArray[np.float64]:
    """Return the ε that an attack's error rates rule out anything below, given δ.

    ε = max(0, ln(1 − δ − FPR) − ln FNR, ln(1 − δ − FNR) − ln FPR); infinite where both rates are 0, and NaN where
    exactly one is: that is taken for a sign of too few models, and such a threshold is left out.

    Args:
        fpr: false positive rates, any shape, in [0, 1].
        fnr: false negative rates, of the same shape.
        delta: δ, in [0, 1).

    >>> [round(float(e), 7) for e in epsilon([0.1, 0.5, 0.01], [0.2, 0.5, 0.3])]
    [2.079429, 0.0, 4.248481]

    Raises:
        UserError: a rate outside [0, 1], shapes that differ, or a delta outside [0, 1).
    """
    a, b = np.asarray(fpr, dtype=np.float64), np.asarray(fnr, dtype=np.float64)
    if a.shape != b.shape or not (((a >= 0) & (a <= 1)).all() and ((b >= 0) & (b <= 1)).all()):
        raise UserError("pairs of rates in [0, 1]", f"shapes {a.shape} and {b.shape}", "divide counts by models")
    if not 0 <= delta < 1:
        raise UserError("a delta in [0, 1)", str(delta), "take 1e-5")
    with np.errstate(divide="ignore", invalid="ignore"):
        sides = [np.log(np.maximum(1 - delta - x, 0.0)) - np.log(y) for x, y in ((a, b), (b, a))]
    finite = np.maximum(0.0, np.fmax(*sides))
    return np.where((a == 0) & (b == 0), np.inf, np.where(a * b == 0, np.nan, finite))


def epsilons(unlearned: ArrayLike, retrained: ArrayLike, delta: float = DELTA) -> NDArray[np.float64]:
    """Return each sample's ε: that of the best threshold at telling unlearned from retrained models.

    The side with the larger median counts as positive above a threshold, tried 100 times a unit from the smallest to
    the largest value. The side of narrower range counts as positive between two thresholds: each is tried 100 times a
    unit within 2 of that side's largest value and, the range apart, of its smallest. ε is the largest over all, at most
    50. Where one side's range is below 1 % of the other's, ε is 50.

    So it is for a deterministic method applied to one trained model: N copies of one model have no range, and the
    quality is 0 however good the method. Train N originals, and unlearn each.

    Where no threshold is left, ε is 0, and so it is where every value of both sides is the same (ours; the published
    code stops at the first and divides by 0 at the second). Ensembles may be of different sizes (ours).

    Args:
        unlearned: margins of the forgotten samples, (A, N).
        retrained: the same under retrained models, (B, N).
        delta: δ.

    Returns:
        ε, (N,), in [0, 50].

    Raises:
        UserError: shapes that do not fit, fewer than 2 models a side, or a margin that is not finite.
    """
    a, b = table(unlearned, "unlearned models"), table(retrained, "retrained models")
    if a.shape[1] != b.shape[1]:
        raise UserError("the same samples on both sides", f"{a.shape[1]} and {b.shape[1]}", "collect them in one order")
    if min(len(a), len(b)) < 2:
        raise UserError("at least 2 models on either side", f"{len(a)} and {len(b)}", "train more models")
    missed, wrong = np.arange(len(a) + 1) / len(a), np.arange(len(b) + 1) / len(b)
    fpr, fnr = np.broadcast_arrays(wrong[None, :], missed[:, None])
    by_counts = np.nan_to_num(epsilon(fpr, fnr, delta), nan=0.0, posinf=CAP)  # [unlearned missed, retrained taken]
    a, b = np.sort(a, axis=0), np.sort(b, axis=0)
    return np.array([_best(x, y, by_counts) for x, y in zip(a.T.copy(), b.T.copy(), strict=True)])


def _best(a: Floats, b: Floats, by_counts: Floats) -> float:
    """Return ε of one sample, of sorted values (A,) and (B,)."""
    ranges = a[-1] - a[0], b[-1] - b[0]
    if max(ranges) == 0:
        return CAP if a[0] != b[0] else 0.0
    if min(ranges) < NARROW * max(ranges):
        return CAP
    single, double = _single(a, b), _double(a, b, min(ranges))
    found = [by_counts[np.minimum(missed, len(a)), taken].max() for missed, taken in (single, double)]
    return float(min(max(found), CAP))


def _single(a: Floats, b: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return unlearned missed and retrained taken for unlearned, at each threshold."""
    least, most = min(a[0], b[0]), max(a[-1], b[-1])
    cuts = np.linspace(least, most, max(2, math.ceil((most - least) * FINE)))
    below_a, below_b = np.searchsorted(a, cuts), np.searchsorted(b, cuts)
    if np.median(b) > np.median(a):
        return len(a) - below_a, below_b
    return below_a, len(b) - below_b


def _double(a: Floats, b: Floats, width: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the same for intervals: what lies in one counts for the side of narrower range."""
    a_is_narrow = a[-1] - a[0] < b[-1] - b[0]
    top = (a if a_is_narrow else b)[-1]
    steps = np.linspace(-BUFFER, BUFFER, round(2 * BUFFER * FINE))
    right = top + steps
    left = (right[:, None] - width) + steps
    in_a, in_b = (
        np.maximum(np.searchsorted(x, right, side="right")[:, None] - np.searchsorted(x, left), 0) for x in (a, b)
    )
    if a_is_narrow:
        return len(a) - in_a, in_b
    return in_a, len(b) - in_b


def bins(models: int) -> int:
    """Return how many bins of ε, 0.5 wide each, earn points with N models a side: 2·⌈ln(N − 1)⌉.

    The published rule; its last bin may lie beyond what N models can show, see ``resolved``.

    >>> bins(512), bins(16)
    (14, 6)

    Raises:
        UserError: fewer than 3 models: none would earn points.
    """
    if models < 3:
        raise UserError("at least 3 models on either side", str(models), "train more models; the rule was made for 512")
    return 2 * math.ceil(math.log(models - 1))


def resolved(models: int, delta: float = DELTA) -> int:
    """Return in how many bins a finite ε of N models a side can fall.

    The largest finite ε is that of one error in N on either side, ln(1 − δ − 1/N) − ln(1/N), close to ln(N − 1); with
    no error at all it is infinite. No value lies between the two, so the last bin of ``bins`` may stay empty.

    >>> resolved(512), resolved(16)
    (13, 6)

    Raises:
        UserError: fewer than 3 models.
    """
    bins(models)
    return int(float(epsilon(1 / models, 1 / models, delta)) / BIN) + 1


def points(epsilon: ArrayLike, models: int) -> NDArray[np.float64]:
    """Return the points of each ε: 2^−b in bin b = ⌊ε/0.5⌋ of those that ``bins`` counts, 0 beyond.

    Args:
        epsilon: of each sample, 0 or more.
        models: models on either side, N.

    Returns:
        Points, of the same shape.

    Raises:
        UserError: an ε that is negative or NaN, or fewer than 3 models.
    """
    e = np.asarray(epsilon, dtype=np.float64)
    if not (e >= 0).all():
        raise UserError("values of epsilon of 0 or more", "others", "take them from epsilons")
    b = np.floor(np.minimum(e, CAP) / BIN)
    return np.where(b < bins(models), 2.0**-b, 0.0)


def forgetting_quality(unlearned: ArrayLike, retrained: ArrayLike, delta: float = DELTA) -> Quality:
    """Return the forgetting quality F = mean over forgotten samples of 2^−⌊ε/0.5⌋.

    Perfect unlearning does not score 1. The best of many thresholds finds an ε by chance: two ensembles of normal
    margins alike score some 0.2, of 8 models as of 512. Retrained against retrained, at the same numbers of models,
    says what is within reach. The rule was made for 512 a side; fewer cut the bins.

    Args:
        unlearned: margins of the forgotten samples, (A, N), each row from an original of its own.
        retrained: the same under retrained models, (B, N).
        delta: δ.

    Returns:
        The quality; bins are those of the smaller side.

    Raises:
        UserError: shapes that do not fit, fewer than 3 models a side, or a margin that is not finite.

    References:
        E. Triantafillou, P. Kairouz, F. Pedregosa, J. Hayes, M. Kurmanji, K. Zhao, V. Dumoulin, J. Jacques Junior,
        I. Mitliagkas, J. Wan, L. Sun Hosoya, S. Escalera, G. K. Dziugaite, P. Triantafillou, I. Guyon, "Are we making
        progress in unlearning? Findings from the first NeurIPS unlearning competition", 2024,
        https://arxiv.org/abs/2406.09073.
    """
    e = epsilons(unlearned, retrained, delta)
    models = min(len(np.asarray(unlearned)), len(np.asarray(retrained)))
    earned = points(e, models)
    return Quality(float(earned.mean()), e, earned, bins(models))
