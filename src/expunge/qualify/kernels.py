"""Kernel matrices, their sums under many labellings by matrix products, and the labellings of a permutation test."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations, islice

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist, pdist

from expunge.errors import UserError

Floats = NDArray[np.float64]
Labels = NDArray[np.bool_]
LARGEST = 10_000  # rows of all samples together: their kernel matrix takes 800 MB
AT_ONCE = 2**24  # numbers of relabelled sums held in memory together
TIE = 1e-12  # kernels are at most 1: statistics closer than this differ by rounding alone


def kernel(x: Floats, y: Floats, bandwidth: float) -> Floats:
    """Return the Gaussian kernel exp(−‖x − y‖²/(2σ²)) of all rows, (n, D) and (m, D) to (n, m)."""
    return np.asarray(np.exp(cdist(x, y, "sqeuclidean") / (-2 * bandwidth**2)), dtype=np.float64)


def median_distance(rows: ArrayLike) -> float:
    """Return the median distance of two different rows, (n, D); 0 of one row or where most rows are equal."""
    x = np.asarray(rows, dtype=np.float64)
    return float(np.median(pdist(x))) if len(x) > 1 else 0.0


def relabellings(n: int, m: int, *, paired: bool = False, most: int = 999, seed: int = 0) -> tuple[Labels, bool]:
    """Return relabellings of n + m rows, (B, n + m) with True for the first sample, and whether these are all.

    The labels as observed (the first n rows) are left out where all are listed; ``most`` are drawn where there are
    more of them. Paired, row i and row n + i exchange labels or keep them.

    Raises:
        UserError: pairs of unequal number, or fewer than one relabelling.
    """
    if most < 1 or (paired and n != m):
        got = f"{n} and {m} rows" if most >= 1 else f"{most} permutations"
        raise UserError("pairs of rows and at least one permutation", got, "pair the rows, or take 999 permutations")
    rng = np.random.default_rng(seed)
    if paired:
        all_of_them = n < 60 and 2**n <= most + 1
        bits = (np.arange(1, 2**n)[:, None] >> np.arange(n)) & 1 if all_of_them else rng.integers(2, size=(most, n))
        return np.concatenate([bits == 0, bits == 1], axis=1), all_of_them
    if math.comb(n + m, n) <= most + 1:
        at = np.array(list(islice(combinations(range(n + m), n), 1, None)), dtype=np.int64)  # the first is observed
    else:
        at = rng.permuted(np.tile(np.arange(n + m), (most, 1)), axis=1)[:, :n]
    labels = np.zeros((len(at), n + m), dtype=bool)
    np.put_along_axis(labels, at, True, axis=1)
    return labels, math.comb(n + m, n) <= most + 1


def samples(*samples: ArrayLike) -> list[Floats]:
    """Return the samples as rows of float64, refusing what no kernel takes.

    Raises:
        UserError: fewer than two rows, rows of different widths, a number that is not finite, or too many rows.
    """
    found = [np.asarray(s, dtype=np.float64) for s in samples]
    if any(s.ndim != 2 or len(s) < 2 or s.shape[1] != found[0].shape[-1] for s in found):
        got = ", ".join(str(s.shape) for s in found)
        raise UserError("samples of at least two rows of one width", got, "give a row a model, (n, D)")
    if not all(np.isfinite(s).all() for s in found):
        raise UserError("finite rows", "some that are not", "drop undefined ones first")
    rows = sum(len(s) for s in found)
    if rows > LARGEST:
        raise UserError(f"at most {LARGEST} rows together", str(rows), "draw fewer of them, by a seed")
    return found


def bandwidth_of(bandwidth: float | None, *samples: Floats) -> float:
    """Return the bandwidth given, or the median distance of all rows; the largest where most rows are equal.

    Raises:
        UserError: a bandwidth that is not positive.
    """
    if bandwidth is not None:
        if not (bandwidth > 0 and math.isfinite(bandwidth)):
            raise UserError("a bandwidth above 0", str(bandwidth), "leave it out for the median distance")
        return bandwidth
    every = np.concatenate(samples)
    return median_distance(every) or float(pdist(every).max()) or 1.0


def gram(rows: Floats, sigma: float) -> Floats:
    """Return the kernel matrix with a diagonal of 0, as the unbiased sums leave it out."""
    k = kernel(rows, rows, sigma)
    np.fill_diagonal(k, 0.0)
    return k


def sums(k: Floats, labels: Labels) -> tuple[Floats, Floats, Floats]:
    """Return Σ k within the first sample, within the second and between them, each (B,), by one matrix product."""
    a = labels.astype(np.float64)
    rows = k.sum(axis=1)
    first = np.einsum("bi,bi->b", a @ k, a)
    between = a @ rows - first
    return first, rows.sum() - first - 2 * between, between


def two(k: Floats, labels: Labels, n: int, m: int) -> Floats:
    """Return MMD² under each labelling."""
    first, second, between = sums(k, labels)
    return first / (n * (n - 1)) + second / (m * (m - 1)) - 2 * between / (n * m)


def blocks(statistic: Callable[[Labels], Floats], labels: Labels) -> Floats:
    """Return a statistic (B,) of labels (B, N), worked out some labellings at a time."""
    step = max(1, AT_ONCE // labels.shape[1])
    return np.concatenate([statistic(labels[i : i + step]) for i in range(0, len(labels), step)])


def share(excess: Floats) -> float:
    """Return (1 + #{excess ≥ 0})/(B + 1)."""
    return float((1 + int((excess >= -TIE).sum())) / (excess.size + 1))
