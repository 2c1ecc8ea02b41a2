"""How far the distribution of predictions is from retrained's: what a permutation of the samples does not change."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import wasserstein_distance

from expunge import stats
from expunge.metric import SPLITS, Audit, Found, Goal, Metric, Number, Unavailable, Value
from expunge.metrics._distance import beside, within
from expunge.stats import Interval
from expunge.task import Quantile, Regression

Array = NDArray[np.float64]
_SPLITS = ("forget", "retain", "test")


def w1(
    one: ArrayLike, other: ArrayLike, one_weights: ArrayLike | None = None, other_weights: ArrayLike | None = None
) -> float:
    """Return the 1-Wasserstein distance of two sets of numbers, ∫ |F − G|; of vectors the mean over coordinates.

    Args:
        one: (N,) or (N, T).
        other: (M,) or (M, T).
        one_weights: (N,), not negative; equal where None.
        other_weights: (M,).

    Returns:
        The distance, in the numbers' unit.

    >>> w1([0, 1, 3], [5, 6, 8]), w1([1, 2], [2, 1])
    (5.0, 0.0)
    """
    a, b = (np.asarray(v, dtype=np.float64).reshape(len(np.asarray(v)), -1) for v in (one, other))
    each = [wasserstein_distance(x, y, one_weights, other_weights) for x, y in zip(a.T, b.T, strict=True)]
    return float(np.mean(each))


def shares(one: Array, other: Array) -> Array:
    """Return each pair's share of the distance of two samples of one size, (N,); their mean is the distance.

    With φ the potential of the optimal transport, φ'(x) = sign(F(x) − G(x)), the share of a pair is φ(b_i) − φ(a_i).
    φ is where the distance does not change to first order, so that the spread of the shares is that of the distance.

    Args:
        one: a, (N,).
        other: b, (N,), of the same samples.
    """
    places, at = np.unique(np.concatenate([one, other]), return_inverse=True)
    n = len(one)
    ahead = np.bincount(at[:n], minlength=len(places)) - np.bincount(at[n:], minlength=len(places))
    rise = np.sign(np.cumsum(ahead)[:-1]) * np.diff(places)
    potential = np.concatenate([[0.0], np.cumsum(rise)])
    found: Array = potential[at[n:]] - potential[at[:n]]
    return found


@dataclass(frozen=True, kw_only=True)
class Wasserstein(Metric):
    """1-Wasserstein distance between the predictions of the model and of retrained, ∫ |F − G|, on three sets.

    For as many predictions on both sides it is the mean distance of the sorted ones; of several numbers a sample the
    mean over them. It compares distributions: predictions that change places among the samples leave it at 0, which
    ``paired/distance`` does not. 0 is ideal, and no second retrained model reaches it: hold it to the floor.

    The t interval is over samples, each with its share of the distance (see `shares`). Where two distributions are
    equal but for noise the distance is above 0 by that noise alone, and the interval says nothing of it.

    References:
        A. K. Tarun, V. S. Chundawat, M. Mandal, M. Kankanhalli, "Deep Regression Unlearning", 2023,
        https://arxiv.org/abs/2210.08196. The potential: F. Santambrogio, "Optimal Transport for Applied
        Mathematicians", 2015, https://doi.org/10.1007/978-3-319-20828-2.
    """

    goal: ClassVar[Goal] = Goal.MIN
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    target: ClassVar[float | None] = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"retrained"})
    wants: ClassVar[frozenset[str]] = frozenset(_SPLITS)
    undefined: ClassVar[tuple[str, ...]] = ("it is a distance of regression",)

    @property
    def numbers(self) -> dict[str, Number]:
        """``wasserstein/<split>`` of forget, retain and test."""
        return {f"wasserstein/{s}": self.number(f"W1 of predictions to retrained's, {SPLITS[s]}") for s in _SPLITS}

    def measure(self, audit: Audit) -> Found:
        """Return the distance on each split."""
        if not isinstance(audit.task, Regression | Quantile):
            return self.none("it is a distance of regression")
        return {f"wasserstein/{split}": self._one(audit, split) for split in _SPLITS}

    def _one(self, audit: Audit, split: str) -> Value | Unavailable:
        pair = beside(audit, split, self.needs)
        if isinstance(pair, Unavailable):
            return pair
        own, other = (said.prediction.double().reshape(len(said), -1).numpy() for said in pair)
        each = np.mean([shares(a, b) for a, b in zip(own.T, other.T, strict=True)], axis=0)
        spread = within(stats.mean_t(each), self.range)
        found = Interval(w1(own, other), spread.low, spread.high, spread.n)
        return Value.of(_holding(found), "target units")


def _holding(found: Interval) -> Interval:
    """Return the interval with ends that rounding did not take past the estimate."""
    return Interval(found.x, min(found.low, found.x), max(found.high, found.x), found.n)


METRIC = Wasserstein
