"""Which of two samples of vectors is nearer to a third: unlearned, original or retrained otherwise; no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as distributions

from expunge.qualify.kernels import (
    TIE,
    Floats,
    Labels,
    bandwidth_of,
    blocks,
    gram,
    kernel,
    median_distance,
    relabellings,
    samples,
    share,
    sums,
    two,
)

Side = Literal["farther", "nearer"]


@dataclass(frozen=True, kw_only=True)
class Permuted:
    """What every permutation test returns.

    Args:
        p: permutation p-value.
        floor: the smallest p that could have come out.
        relabellings: how many relabellings stood beside the one observed.
        exact: whether these were all there are, instead of draws from them.
        sizes: rows of each sample, in the order given.
        bandwidth: σ of the kernel.
    """

    p: float
    floor: float
    relabellings: int
    exact: bool
    sizes: tuple[int, ...]
    bandwidth: float


@dataclass(frozen=True, kw_only=True)
class TwoSample(Permuted):
    """The result of a test that two samples come from one distribution; a small p says that they differ.

    Args:
        mmd2: unbiased estimate of the squared maximum mean discrepancy; may be below 0.
    """

    mmd2: float


@dataclass(frozen=True, kw_only=True)
class Relative(Permuted):
    """The result of a test that a sample is farther from (or nearer to) a reference than another sample is.

    Args:
        side: what a small p says of the first sample.
        mmd2: unbiased MMD² of the first sample and the reference.
        other: unbiased MMD² of the other sample and the reference.
        error: estimated standard error of the difference of the two.
        normal: asymptotic normal p-value, for many rows and samples that are not all of one distribution; None
            where the standard error is 0.
    """

    side: Side
    mmd2: float
    other: float
    error: float
    normal: float | None

    @property
    def difference(self) -> float:
        """MMD² of the first sample less that of the other."""
        return self.mmd2 - self.other


@dataclass(frozen=True, kw_only=True)
class Nearer:
    """Where the unlearned sample lies between the original and other retrained ones.

    Args:
        nearer: whether it is nearer to the retrained sample than the original is.
        farther: whether it is farther from it than other legitimate retrained models; None without these.
    """

    nearer: Relative
    farther: Relative | None


def mmd2(x: ArrayLike, y: ArrayLike, bandwidth: float | None = None) -> float:
    """Return the unbiased estimate of the squared maximum mean discrepancy of two samples.

    MMD² = Σ_{i≠j} k(xᵢ, xⱼ)/(n(n−1)) + Σ_{i≠j} k(yᵢ, yⱼ)/(m(m−1)) − 2 Σ_{i,j} k(xᵢ, yⱼ)/(nm), around 0 where both
    samples are of one distribution.

    Args:
        x: (n, D), n at least 2.
        y: (m, D), m at least 2.
        bandwidth: σ of the kernel; the median distance of the rows of both samples by default.

    >>> round(mmd2([[0.0], [1.0]], [[0.0], [1.0]], bandwidth=1.0), 4)
    -0.3935

    Raises:
        UserError: a sample of fewer than two rows, rows of different widths, a number that is not finite, more rows
            than memory holds, or a bandwidth that is not positive.

    References:
        A. Gretton, K. M. Borgwardt, M. J. Rasch, B. Schölkopf, A. Smola, "A Kernel Two-Sample Test", 2012,
        https://jmlr.org/papers/v13/gretton12a.html.
    """
    a, b = samples(x, y)
    n, m = len(a), len(b)
    k = gram(np.concatenate([a, b]), bandwidth_of(bandwidth, a, b))
    return float(two(k, np.arange(n + m)[None] < n, n, m)[0])


def two_sample(
    x: ArrayLike,
    y: ArrayLike,
    *,
    bandwidth: float | None = None,
    paired: bool = False,
    permutations: int = 999,
    seed: int = 0,
) -> TwoSample:
    """Return the permutation test that two samples of independent rows come from one distribution.

    With T the MMD² of the rows as they are labelled and T_b that of B relabellings, p = (1 + #{T_b ≥ T})/(B + 1): its
    level holds for every number of rows. Where there are no more than B + 1 relabellings in all, each stands in once.

    Args:
        x: (n, D), n at least 2.
        y: (m, D), m at least 2.
        bandwidth: σ of the kernel; by default the median distance of all rows, which no relabelling changes.
        paired: whether row i of both belongs to one replicate; then labels are swapped within pairs alone.
        permutations: B.
        seed: of the relabellings.

    >>> two_sample([[0.0], [0.1], [0.2], [0.3]], [[9.0], [9.1], [9.2], [9.3]]).p.__round__(4)
    0.0286

    Raises:
        UserError: as `mmd2`; pairs of unequal number; fewer than one permutation.

    References:
        Those of `mmd2`. The 1 added: B. Phipson, G. K. Smyth, "Permutation P-values should never be zero: calculating
        exact P-values when permutations are randomly drawn", 2010, https://doi.org/10.2202/1544-6115.1585.
    """
    a, b = samples(x, y)
    n, m = len(a), len(b)
    sigma = bandwidth_of(bandwidth, a, b)
    k = gram(np.concatenate([a, b]), sigma)
    labels, exact = relabellings(n, m, paired=paired, most=permutations, seed=seed)
    found = float(two(k, np.arange(n + m)[None] < n, n, m)[0])
    p = share(blocks(lambda some: two(k, some, n, m), labels) - found)
    both = 2 if paired or n == m else 1  # exchanging the two names leaves the statistic as it is
    return TwoSample(
        mmd2=found,
        p=p,
        relabellings=len(labels),
        exact=exact,
        floor=(both if exact else 1) / (len(labels) + 1),
        sizes=(n, m),
        bandwidth=sigma,
    )


def relative(
    first: ArrayLike,
    other: ArrayLike,
    reference: ArrayLike,
    *,
    side: Side,
    bandwidth: float | None = None,
    paired: bool = False,
    permutations: int = 999,
    seed: int = 0,
) -> Relative:
    """Return the test that one sample is farther from a reference, or nearer to it, than another sample is.

    The statistic is T = MMD²(first, reference) − MMD²(other, reference), both unbiased, under one kernel. Its
    permutation p relabels the rows of ``first`` and ``other`` and leaves the reference: (1 + #{T_b ≥ T})/(B + 1), with
    ≤ for ``nearer``, valid for every number of rows under the hypothesis that the two could be exchanged, which is what
    "no farther than another retrained model" says. Its normal p is Φ(∓T/e) with e² the sum over the three samples of
    the variance of a row's share in T over their number (paired: of the rows' shares summed by replicate); it answers
    the wider hypothesis MMD²(first) ≤ MMD²(other), for many rows and samples that are not all of one distribution.

    A row is what is independent: a model, as the vector of its outputs or measured numbers. With the outputs of one
    model on many samples as rows, two retrained models of different seeds differ as well, and enough samples show it;
    then rank the distance of the unlearned model among those of several retrained ones instead.

    Args:
        first: (n, D), n at least 2; the sample in question.
        other: (m, D), m at least 2; the original models, or other legitimate retrained ones.
        reference: (r, D), r at least 2; the retrained models.
        side: what a small p says of ``first``.
        bandwidth: σ of the kernel; by default the median distance of the reference's rows, none of which is tested
            (of all rows where these are equal, which no relabelling changes).
        paired: whether row i of ``first`` and ``other`` (and of a reference of as many rows) is of one replicate; then
            labels are swapped within pairs alone.
        permutations: B.
        seed: of the relabellings.

    Raises:
        UserError: as `mmd2`; pairs of unequal number; fewer than one permutation.

    References:
        W. Bounliphone, E. Belilovsky, M. B. Blaschko, I. Antonoglou, A. Gretton, "A Test of Relative Similarity For
        Model Selection in Generative Models", 2016, https://arxiv.org/abs/1511.04581 (the variance here is that of
        the first-order projections, in place of its longer sums). Of unlearned models: M. Ribero, A. Schrab,
        A. Gretton, "Regularized f-Divergence Kernel Tests", 2026, https://arxiv.org/abs/2601.19755.
    """
    u, w, r = samples(first, other, reference)
    n, m = len(u), len(w)
    sigma = bandwidth_of(bandwidth if bandwidth is not None else median_distance(r) or None, u, w, r)
    k = gram(np.concatenate([u, w]), sigma)
    to = kernel(np.concatenate([u, w]), r, sigma)
    labels, exact = relabellings(n, m, paired=paired, most=permutations, seed=seed)
    cross, own = to.mean(axis=1), np.arange(n + m)[None] < n
    found = _difference(k, cross, own, n, m)[0]
    sign = 1.0 if side == "farther" else -1.0
    p = share(sign * (blocks(lambda some: _difference(k, cross, some, n, m), labels) - found))
    inner = gram(r, sigma).sum() / (len(r) * (len(r) - 1))
    near = k[:n, :n].sum() / (n * (n - 1)) - 2 * cross[:n].mean() + inner
    far = k[n:, n:].sum() / (m * (m - 1)) - 2 * cross[n:].mean() + inner
    error = _standard_error(k, to, n, paired)
    return Relative(
        side=side,
        mmd2=float(near),
        other=float(far),
        p=p,
        normal=float(distributions.norm.sf(sign * (near - far) / error)) if error > TIE else None,
        error=error,
        relabellings=len(labels),
        exact=exact,
        floor=1 / (len(labels) + 1),
        sizes=(n, m, len(r)),
        bandwidth=sigma,
    )


def three_samples(
    unlearned: ArrayLike,
    retrained: ArrayLike,
    original: ArrayLike,
    others: ArrayLike | None = None,
    *,
    bandwidth: float | None = None,
    paired: bool = False,
    permutations: int = 999,
    seed: int = 0,
) -> Nearer:
    """Return whether unlearned models are nearer to retrained ones than the originals, and no farther than others.

    Args:
        unlearned: (n, D), a row a model.
        retrained: (r, D), the reference; trained apart from ``others``.
        original: (m, D), the models before unlearning.
        others: (l, D), other legitimate retrained models (another seed or batch size), or None.
        bandwidth: as in `relative`; one for both tests by default.
        paired: as in `relative`, as are the permutations and the seed.
        permutations: B.
        seed: of the relabellings.

    Raises:
        UserError: as `relative`.

    References:
        Those of `relative`.
    """

    def against(other: ArrayLike, side: Side) -> Relative:
        return relative(
            unlearned, other, retrained,
            side=side, bandwidth=bandwidth, paired=paired, permutations=permutations, seed=seed,
        )  # fmt: skip

    away = None if others is None else against(others, "farther")
    return Nearer(nearer=against(original, "nearer"), farther=away)


def _difference(k: Floats, cross: Floats, labels: Labels, n: int, m: int) -> Floats:
    """Return MMD²(first, reference) − MMD²(other, reference) under each labelling; what is the reference's cancels."""
    first, second, _ = sums(k, labels)
    a = labels.astype(np.float64) @ cross
    b = cross.sum() - a
    return np.asarray(first / (n * (n - 1)) - second / (m * (m - 1)) - 2 * a / n + 2 * b / m)


def _standard_error(k: Floats, to: Floats, n: int, paired: bool) -> float:
    """Return the standard error of the difference of two MMD² from the first-order share of each row in it."""
    m, r = len(k) - n, to.shape[1]
    u = 2 * (k[:n, :n].sum(axis=1) / (n - 1) - to[:n].mean(axis=1))
    w = 2 * (k[n:, n:].sum(axis=1) / (m - 1) - to[n:].mean(axis=1))
    v = 2 * (to[n:].mean(axis=0) - to[:n].mean(axis=0))
    if paired:
        own = (u - w + v).var(ddof=1) / n if r == n else (u - w).var(ddof=1) / n + v.var(ddof=1) / r
    else:
        own = u.var(ddof=1) / n + w.var(ddof=1) / m + v.var(ddof=1) / r
    return math.sqrt(float(own))
