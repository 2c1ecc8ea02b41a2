"""KL divergence of margins: unlearned models beside retrained ones, sample by sample, and what chance alone gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from expunge import seeds
from expunge.errors import UserError
from expunge.shadows.pool import Floats, table

Splits = Mapping[str, ArrayLike]


@dataclass(frozen=True, eq=False)
class Spread:
    """A percentile over random groups of the same models.

    Args:
        mean: over the groups.
        low: their 2.5 % quantile.
        high: their 97.5 % quantile.
        values: of each pair of groups.
        size: models in a group.
    """

    mean: float
    low: float
    high: float
    values: Floats
    size: int


@dataclass(frozen=True, kw_only=True)
class Klom:
    """KL divergence of margins between unlearned and retrained models (KLOM).

    For each sample, margins of both ensembles are clipped to [low, high], and counted in equal bins from the smallest
    to the largest of either: shares p of the unlearned, q of the retrained. Shares q below ``smoothing`` are raised to
    it and q is scaled to sum to 1; the divergence is Σ p ln(p/q), nats. A split's value is a percentile of it over the
    split's samples.

    Bins, their range, the direction and the floor of q are those of the authors' public code; that the largest value
    counts in the last bin, where that code drops it, is ours. So are ``floor`` and the comparison at equal sizes.

    The value depends on the number of models. An empty bin of q costs up to −ln smoothing (11.5 nats at 1e-5), and with
    n models in 20 bins some are empty by chance: of normal margins, two ensembles of one distribution are some 9 nats
    apart for n = 8, 1.2 for 64 and 0.1 for 500 at the 95th percentile. A value means nothing beside 0; set it beside
    ``floor`` at the same number of models on either side.

    Args:
        bins: number of bins.
        low: margins below are taken for this, nats.
        high: margins above are taken for this, nats.
        smoothing: least share of the retrained in a bin.
        percentile: of the samples of a split.

    Raises:
        UserError: a field out of range.

    References:
        K. Georgiev, R. Rinberg, S. M. Park, S. Garg, A. Ilyas, A. Madry, S. Neel, "Attribute-to-Delete: Machine
        Unlearning via Datamodel Matching", 2024, https://arxiv.org/abs/2410.23232.
    """

    bins: int = 20
    low: float = -100.0
    high: float = 100.0
    smoothing: float = 1e-5
    percentile: float = 95.0

    def __post_init__(self) -> None:
        if self.bins < 2 or not self.low < self.high:
            got = f"{self.bins} bins in [{self.low:g}, {self.high:g}]"
            raise UserError("at least 2 bins and a range", got, "take 20 bins in [-100, 100]")
        if not (0 < self.smoothing < 1 / self.bins and 0 <= self.percentile <= 100):
            got = f"{self.smoothing:g} and {self.percentile:g}"
            raise UserError("a smoothing in (0, 1/bins) and a percentile", got, "take 1e-5 and 95")

    def divergence(self, unlearned: ArrayLike, retrained: ArrayLike) -> NDArray[np.float64]:
        """Return the divergence of each sample, (N,), nats, below −ln smoothing + ln(1 + bins·smoothing).

        Args:
            unlearned: margins, (A, N).
            retrained: margins, (B, N).

        Returns:
            The divergences; where every margin of a sample is the same, ln(1 + (bins − 1)·smoothing), nearly 0.
        """
        a, b = _sides(unlearned, retrained)
        return self._divergence(a, b)

    def measure(
        self,
        unlearned: ArrayLike,
        retrained: ArrayLike,
        splits: Splits,
        *,
        size: int | None = None,
        repeats: int = 20,
        seed: int = 0,
    ) -> dict[str, Spread]:
        """Return each split's percentile between groups of unlearned and retrained models.

        Args:
            unlearned: margins, (A, N).
            retrained: margins, (B, N).
            splits: by name, columns or a bool mask (N,).
            size: models in either group, drawn anew each time; None takes all of both, once.
            repeats: number of pairs of groups.
            seed: of the draws.

        Returns:
            By split; ``size`` is that of the smaller group.

        Raises:
            UserError: an ensemble smaller than ``size``, a split that does not fit, or no repeat.
        """
        a, b = _sides(unlearned, retrained)
        if size is None:
            return self._spread([self._divergence(a, b)], _columns(splits, a.shape[1]), min(len(a), len(b)))
        if not 1 <= size <= min(len(a), len(b)) or repeats < 1:
            got = f"{size} of {len(a)} and {len(b)}, {repeats} repeats"
            raise UserError("groups no larger than either ensemble and a repeat", got, "take smaller groups")
        rng = np.random.default_rng(seeds.seed("klom groups", seed))
        found = []
        for _ in range(repeats):
            ours, theirs = (side[rng.permutation(len(side))[:size]] for side in (a, b))
            found.append(self._divergence(ours, theirs))
        return self._spread(found, _columns(splits, a.shape[1]), size)

    def floor(
        self, retrained: ArrayLike, splits: Splits, *, size: int | None = None, repeats: int = 20, seed: int = 0
    ) -> dict[str, Spread]:
        """Return each split's percentile between disjoint random groups of retrained models: what unlearning can reach.

        Give ``measure`` the same ``size``, or the floor is of another number of models and not comparable. The spread
        is that over divisions of these models; between fresh ensembles it is somewhat larger.

        Args:
            retrained: margins, (B, N).
            splits: by name, columns or a bool mask (N,).
            size: models in either group, at most B/2; None takes half of them.
            repeats: number of divisions.
            seed: of the divisions.

        Returns:
            By split.

        Raises:
            UserError: fewer than 2·size models, a split that does not fit, or no repeat.
        """
        b = table(retrained, "retrained models")
        each = len(b) // 2 if size is None else size
        if not 1 <= each <= len(b) // 2 or repeats < 1:
            got = f"{len(b)} for groups of {each}, {repeats} repeats"
            raise UserError("twice as many retrained models as compared and a repeat", got, "take a smaller size")
        rng = np.random.default_rng(seeds.seed("klom floor", seed))
        found = []
        for _ in range(repeats):
            order = rng.permutation(len(b))
            found.append(self._divergence(b[order[:each]], b[order[each : 2 * each]]))
        return self._spread(found, _columns(splits, b.shape[1]), each)

    def _divergence(self, a: Floats, b: Floats) -> Floats:
        values = np.clip(np.concatenate([a, b]), self.low, self.high)
        start, width = values.min(axis=0), np.ptp(values, axis=0)
        share = (values - start) / np.where(width > 0, width, 1.0)
        at = np.minimum((share * self.bins).astype(np.int64), self.bins - 1)
        p, q = (self._shares(part) for part in (at[: len(a)], at[len(a) :]))
        q = np.maximum(q, self.smoothing)
        q /= q.sum(axis=1, keepdims=True)
        return np.asarray(special.rel_entr(p, q).sum(axis=1), dtype=np.float64)

    def _shares(self, at: NDArray[np.int64]) -> Floats:
        """Return each bin's share of the models, (N, bins)."""
        n = at.shape[1]
        flat = (at + self.bins * np.arange(n)).ravel()
        return np.bincount(flat, minlength=n * self.bins).reshape(n, self.bins) / len(at)

    def _spread(self, found: list[Floats], splits: dict[str, NDArray[np.int64]], size: int) -> dict[str, Spread]:
        result = {}
        for name, columns in splits.items():
            values = np.array([np.percentile(f[columns], self.percentile) for f in found])
            low, high = np.percentile(values, [2.5, 97.5])
            result[name] = Spread(float(values.mean()), float(low), float(high), values, size)
        return result


def _sides(unlearned: ArrayLike, retrained: ArrayLike) -> tuple[Floats, Floats]:
    a, b = table(unlearned, "unlearned models"), table(retrained, "retrained models")
    if a.shape[1] != b.shape[1]:
        raise UserError("the same samples on both sides", f"{a.shape[1]} and {b.shape[1]}", "collect them in one order")
    return a, b


def _columns(splits: Splits, n: int) -> dict[str, NDArray[np.int64]]:
    found = {}
    for name, given in splits.items():
        x = np.asarray(given)
        fits = x.shape == (n,) if x.dtype == np.bool_ else x.ndim == 1 and np.issubdtype(x.dtype, np.integer)
        columns = np.flatnonzero(x) if fits and x.dtype == np.bool_ else x
        if not fits or columns.size == 0 or columns.min() < 0 or columns.max() >= n:
            got = f"{x.dtype} of shape {x.shape}"
            raise UserError(f"columns below {n} or a mask of {n} for the split {name}", got, "leave out empty splits")
        found[name] = columns.astype(np.int64)
    return found
