"""The support vector machine of the published attacks, made fast for one feature by merging points of like value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import SVC

Array = NDArray[np.float64]
C = 3.0
AT_ONCE = 2**18  # kernel values worked out at once
ROUNDING = 1e-14  # of a sum that should be 0, as a share of its terms
LEAST = np.finfo(np.float64).tiny


@dataclass(frozen=True, eq=False)
class Machine:
    """A fitted machine: f(x) = Σ_j α_j exp(−γ ‖x − s_j‖²) + b, s_j its support vectors, α_j their signed coefficients.

    Args:
        fitted: scikit-learn's.
        whole: fitted on every point by itself; the decision is then scikit-learn's own.
    """

    fitted: SVC
    whole: bool

    def decide(self, x: Array) -> Array:
        """Return f at (N, D) points, (N,): above 0 for the positive class.

        Where f is 0 the classes are not told apart; scikit-learn then predicts the positive one, and so does this.
        """
        if self.whole:
            found: Array = np.asarray(self.fitted.decision_function(x))
            return np.where(found == 0, LEAST, found)
        step = max(1, AT_ONCE // len(self.fitted.support_vectors_))
        blocks = [self._kernel(x[i : i + step]) @ self.fitted.dual_coef_[0] for i in range(0, len(x), step)]
        found = np.concatenate(blocks) + self.fitted.intercept_[0]
        nothing = np.abs(found) < ROUNDING * np.abs(self.fitted.dual_coef_).sum()
        return np.where(nothing, LEAST, found)

    def _kernel(self, x: Array) -> Array:
        points, gamma = self.fitted.support_vectors_, self.fitted.gamma
        if x.shape[1] == 1:
            away = x - points.T
            away *= away
        else:
            away = (x * x).sum(axis=1)[:, None] - 2 * x @ points.T + (points * points).sum(axis=1)
        away *= -gamma
        found: Array = np.exp(away, out=away)
        return found


def fit(x: Array, y: NDArray[np.bool_], *, bins: int | None, balanced: bool = False) -> Machine:
    """Return a machine with an RBF kernel, C = 3 and γ = 1/D, unscaled, fitted to points of two classes.

    Points of one class and one value enter as one of their joint weight, which leaves the optimum as it is. Of one
    feature with more than ``bins`` distinct values, the points of one class in one cell of equally filled cells are
    taken for such, at their mean: cells are narrow where points are dense, whatever the feature's scale.

    Args:
        x: features, (N, D).
        y: which points are of the positive class, (N,); both classes occur.
        bins: number of cells; None takes every point by itself.
        balanced: give both classes the same total weight.

    Returns:
        The machine.
    """
    weight = np.ones(len(y))
    if bins is not None and x.shape[1] == 1:
        x, y, weight = merged(x[:, 0], y, bins)
    if balanced:
        weight = np.where(y, weight / weight[y].sum(), weight / weight[~y].sum()) * weight.sum() / 2
    # Without a seed of its own it draws one from numpy's random state, which is the caller's.
    found = SVC(C=C, kernel="rbf", gamma=1 / x.shape[1], random_state=0).fit(x, y, sample_weight=weight)
    return Machine(found, bins is None)


def merged(x: Array, y: NDArray[np.bool_], bins: int) -> tuple[Array, NDArray[np.bool_], Array]:
    """Return few points (M, 1) that stand for many of one feature (N,), with their classes and weights (M,)."""
    values, cell = np.unique(x, return_inverse=True)
    if len(values) > bins:
        edges = np.sort(x)[np.arange(1, bins) * len(x) // bins]
        cell = np.searchsorted(edges, x, side="right")
    kinds, key = np.unique(2 * cell + y, return_inverse=True)
    weight = np.bincount(key).astype(float)
    middle = np.bincount(key, x) / weight if len(values) > bins else values[kinds // 2]
    return middle[:, None], kinds % 2 == 1, weight
