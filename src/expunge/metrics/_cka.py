"""Centred kernel alignment of two sets of features with linear kernels, in blocks of memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK = 2**19  # numbers worked on at once
FLAT = 1e-12  # share of (Σ ‖x_i‖²)², rows centred, below which a self-similarity is rounding
STILL = 1e-14  # share of Σ ‖x_i‖² below which what is left after centring is rounding


def cka(x: Tensor, y: Tensor, *, unbiased: bool = True, of_y: float | None = None) -> float:
    """Return the linear CKA of two sets of features of the same samples, CKA = HSIC(K, L)/√(HSIC(K, K)·HSIC(L, L)).

    K = X Xᵀ and L = Y Yᵀ. It is unchanged by rotation and common scaling of either side, and by shifts; 1 for features
    that agree up to these. The number of features may differ.

    ``unbiased`` takes the estimator of HSIC that is right on average at any number of samples, and CKA lies in
    [−1, 1], around 0 for unrelated features; the plain estimator, in [0, 1], comes near 1 for any features where
    samples are few beside them. N × N kernels are never made: ‖XᵀY‖² is summed a block at a time, or as Σ K∘L where
    samples are fewer than features.

    Args:
        x: (N, ...) features, flattened to (N, D).
        y: (N, ...) features of the same samples.
        unbiased: take the unbiased estimator, which needs 4 samples; the plain one needs 2.
        of_y: what `alone` returned for y, where it is known.

    Returns:
        The alignment; NaN where it is undefined: too few samples, features that are not finite, or features of one
        side that are all alike (unbiased: or equally far apart).

    References:
        S. Kornblith, M. Norouzi, H. Lee, G. Hinton, "Similarity of Neural Network Representations Revisited", 2019,
        https://arxiv.org/abs/1905.00414. Unbiased estimator: L. Song, A. Smola, A. Gretton, J. Bedo, K. Borgwardt,
        "Feature Selection via Dependence Maximization", 2012, https://www.jmlr.org/papers/v13/song12a.html.
    """
    x, y = _flat(x), _flat(y)
    if len(x) != len(y) or len(x) < (4 if unbiased else 2):
        return math.nan
    own, other = alone(x, unbiased=unbiased), alone(y, unbiased=unbiased) if of_y is None else of_y
    found = hsic(x, y, unbiased=unbiased) / math.sqrt(own * other)
    return min(1.0, max(-1.0, found)) if abs(found) < 1 + 1e-6 else found


def alone(x: Tensor, *, unbiased: bool = True) -> float:
    """Return `hsic` of features with themselves; NaN where they tell no sample apart, or are not finite."""
    x = _flat(x)
    own = hsic(x, x, unbiased=unbiased)
    spread, size = (float(_lengths(x, m).sum()) for m in (_mean(x), torch.zeros(x.shape[1], dtype=torch.float64)))
    return own if spread > STILL * size and own > FLAT * spread**2 else math.nan


def hsic(x: Tensor, y: Tensor, *, unbiased: bool = True) -> float:
    """Return the Hilbert-Schmidt independence criterion of linear kernels, up to a factor that depends on N alone.

    With centred rows x_i and y_i, k_i = ‖x_i‖² and l_i = ‖y_i‖²: ‖XᵀY‖² for the plain estimator, and
    ‖XᵀY‖² − n/(n−2) Σ k_i l_i + Σ k_i Σ l_i/((n−1)(n−2)) for the unbiased one.

    Args:
        x: (N, D).
        y: (N, E).
        unbiased: which estimator.

    Returns:
        The criterion times (n−1)² or n(n−3).
    """
    mean_x, mean_y = _mean(x), _mean(y)
    crossed = _crossed(x, y, mean_x, mean_y)
    if not unbiased:
        return crossed
    n, k, others = len(x), _lengths(x, mean_x), _lengths(y, mean_y)
    return crossed - n / (n - 2) * float(k @ others) + float(k.sum() * others.sum()) / ((n - 1) * (n - 2))


def _flat(features: Tensor) -> Tensor:
    return features.reshape(len(features), -1) if features.numel() else features.new_zeros(len(features), 1)


def _step(width: int) -> int:
    return max(1, BLOCK // max(1, width))


def _mean(x: Tensor) -> Tensor:
    step = _step(x.shape[1])
    rows = [x[i : i + step].double().sum(dim=0) for i in range(0, len(x), step)]
    return torch.stack(rows).sum(dim=0) / len(x)


def _lengths(x: Tensor, mean: Tensor) -> Tensor:
    """Return ‖x_i − mean‖² of each row, (N,)."""
    step = _step(x.shape[1])
    return torch.cat([(x[i : i + step].double() - mean).square().sum(dim=1) for i in range(0, len(x), step)])


def _crossed(x: Tensor, y: Tensor, mean_x: Tensor, mean_y: Tensor) -> float:
    """Return ‖XᵀY‖² of centred rows: by pairs of features, or by pairs of samples where those are fewer."""
    n, wide = len(x), max(x.shape[1], y.shape[1])
    if n * (x.shape[1] + y.shape[1]) < x.shape[1] * y.shape[1]:
        step, total = _step(wide), 0.0
        for i in range(0, n, step):
            a, b = x[i : i + step].double() - mean_x, y[i : i + step].double() - mean_y
            for j in range(0, n, step):
                c, d = x[j : j + step].double() - mean_x, y[j : j + step].double() - mean_y
                total += float(((a @ c.T) * (b @ d.T)).sum())
        return total
    columns, rows, total = _step(y.shape[1]), _step(wide), 0.0
    for first in range(0, x.shape[1], columns):
        means = mean_x[first : first + columns]
        part = torch.zeros(len(means), y.shape[1], dtype=torch.float64)
        for i in range(0, n, rows):
            left = x[i : i + rows, first : first + columns].double() - means
            part.addmm_(left.T, y[i : i + rows].double() - mean_y)
        total += float(part.square().sum())
    return total
