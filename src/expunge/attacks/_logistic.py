"""Balanced logistic regression on one feature, by Newton's method: what cross-validation can afford to repeat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Line = tuple[float, float]
STEPS = 100
NEAR, CLOSE = 1e-4, 1e-15  # what the last step gained, as a share of the loss at the start
TINY = 1e-12  # keeps the steps finite where no sample bends the loss any more


def fit(x: NDArray[np.float64], y: NDArray[np.bool_], start: Line = (0.0, 0.0)) -> Line:
    """Return slope w and bias b of a logistic regression in which both classes weigh alike, whatever their sizes.

    They minimise w²/2 + Σ_i s_i ln(1 + exp(−t_i (w x_i + b))) with t_i = ±1 and s_i = n/(2 n_class): what
    scikit-learn's ``LogisticRegression(class_weight="balanced")`` minimises, for one feature.

    Args:
        x: the feature, (n,), of a size near 1.
        y: which samples are of the positive class, (n,); both classes occur.
        start: where to begin; the solution of much the same samples saves most of the work.

    Returns:
        The slope and the bias.
    """
    positive = int(y.sum())
    weight = np.where(y, len(y) / (2 * positive), len(y) / (2 * (len(y) - positive)))
    sign = np.where(y, 1.0, -1.0)

    def loss(w: float, b: float) -> float:
        return w * w / 2 + float(weight @ np.logaddexp(0, -sign * (w * x + b)))

    (w, b), total = start, float(len(y))
    for _ in range(STEPS):
        p = expit(w * x + b)
        error, bend = weight * (p - y), weight * p * (1 - p)
        by_w, by_b = w + float(error @ x), float(error.sum())
        ww, wb, bb = 1 + float(bend @ (x * x)), float(bend @ x), float(bend.sum()) + TINY
        size = ww * bb - wb * wb
        down_w, down_b = (bb * by_w - wb * by_b) / size, (ww * by_b - wb * by_w) / size
        gain, step = down_w * by_w + down_b * by_b, 1.0
        if gain > NEAR * total:  # far off a whole step may overshoot; near by it does not
            here = loss(w, b)
            while step > NEAR and loss(w - step * down_w, b - step * down_b) > here:
                step /= 2
        w, b = w - step * down_w, b - step * down_b
        if gain <= CLOSE * total:
            break
    return w, b
