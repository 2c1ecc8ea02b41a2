"""Curves and rates of scores of members and others: pure functions, used by every attack."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import binom
from sklearn.model_selection import StratifiedKFold

from expunge import stats
from expunge.metric import Unavailable, Value

Scores = NDArray[np.float64]
Line = tuple[float, float]
FOLDS = 10
STEPS = 100
NEAR, CLOSE = 1e-4, 1e-15  # what the last step gained, as a share of the loss at the start
TINY = 1e-12  # keeps the steps finite where no sample bends the loss any more
UNDEFINED = (
    "needs 2 samples on each side",
    "all scores are equal",
    "a false positive rate of",
    "there are no members",
    f"{FOLDS} folds need",
)


def curve(members: Scores, others: Scores) -> tuple[Scores, Scores]:
    """Return false and true positive rates at every threshold, from (0, 0) to (1, 1)."""
    cuts = np.unique(np.concatenate([members, others]))[::-1]
    # counts before division: 1 − 99/100 is above 0.01 in floating point
    fpr = (len(others) - np.searchsorted(np.sort(others), cuts, side="left")) / len(others)
    tpr = (len(members) - np.searchsorted(np.sort(members), cuts, side="left")) / len(members)
    return np.concatenate([[0.0], fpr]), np.concatenate([[0.0], tpr])


def auc(members: Scores, others: Scores) -> Value | Unavailable:
    """Return the area under the curve with DeLong's interval."""
    if len(members) < 2 or len(others) < 2:
        return Unavailable(f"needs 2 samples on each side, has {len(members)} and {len(others)}")
    if np.ptp(np.concatenate([members, others])) == 0:
        return Unavailable("all scores are equal")
    return Value.of(stats.auc(members, others))


def tpr_at(members: Scores, others: Scores, rate: float) -> Value | Unavailable:
    """Return the largest true positive rate at a false positive rate of at most ``rate``.

    The 95 % interval holds two errors, added in squares on either side: that of the share of members above a threshold
    (Wilson's), and that of the threshold, for a few others settle it. Of m others, Binomial(m, rate) lie above the true
    one; its 2.5 % and 97.5 % quantiles bound it by two of them, and the members above these bound the rate. Where less
    than one other is to be expected above it at the lower quantile, as of fewer than some 370 others at 1 %, there is
    no lower bound beside 0.
    """
    m, least = len(others), int(np.ceil(1 / rate))
    if m < least:
        return Unavailable(f"a false positive rate of {rate:g} needs {least} unseen samples, there are {m}")
    if len(members) == 0:
        return Unavailable("there are no members")
    if np.ptp(np.concatenate([members, others])) == 0:
        return Unavailable("all scores are equal")
    fpr, tpr = curve(members, others)
    x = float(tpr[fpr <= rate].max())
    own = stats.wilson(round(x * len(members)), len(members))
    few, many = (int(binom.ppf(p, m, rate)) for p in (0.025, 0.975))
    down, up = float(tpr[fpr <= (few - 1) / m].max(initial=0.0)), float(tpr[fpr <= many / m].max())
    low, high = math.hypot(x - own.low, x - min(x, down)), math.hypot(own.high - x, max(x, up) - x)
    return Value(x, max(0.0, x - low), min(1.0, x + high), len(members))


def balanced_accuracy(members: Scores, others: Scores, seed: int) -> Value | Unavailable:
    """Return (TPR + TNR)/2 of a balanced logistic regression on the score, by stratified 10-fold cross-validation.

    Scores enter as ranks in [−1, 1], so that neither their scale nor outliers matter, and sorted, so that the order
    of the samples does not. The regression finds the sign: members that stand out by low scores count too, and the
    AUC tells which it was. The interval is that of two proportions; the folds' dependence is not in it. Where there is
    nothing to tell, a held-out fold is missing on its side, and the estimate often falls far below chance. An attack
    that finds its sign is truly never worse than chance, and so the interval always reaches up to 0.5.

    Returns:
        The value, or why there is none.
    """
    if min(len(members), len(others)) < FOLDS:
        return Unavailable(f"{FOLDS} folds need {FOLDS} samples on each side, there are {len(members)}, {len(others)}")
    scores = np.concatenate([np.sort(members), np.sort(others)])
    if scores.min() == scores.max():
        return Unavailable("all scores are equal")
    x = 2 * stats.midranks(scores) / len(scores) - 1
    y = np.arange(len(scores)) < len(members)
    whole = line(x, y)
    called = np.zeros(len(y), dtype=bool)
    for fitted, held in StratifiedKFold(FOLDS, shuffle=True, random_state=seed % 2**32).split(x, y):
        weight, bias = line(x[fitted], y[fitted], whole)
        called[held] = weight * x[held] + bias > 0
    caught = stats.wilson(int(called[y].sum()), len(members))
    cleared = stats.wilson(int((~called[~y]).sum()), len(others))
    both = stats.half_sum(caught, cleared)
    return Value(both.x, both.low, max(0.5, both.high), both.n)


def line(x: Scores, y: NDArray[np.bool_], start: Line = (0.0, 0.0)) -> Line:
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
