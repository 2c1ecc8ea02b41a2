"""A pool of shadow models: the margins of samples under each, and which samples each was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from expunge import seeds
from expunge.errors import UserError, listing

Floats = NDArray[np.float64]
CHANCE = 0.01  # that a sample is still short of models after as many as an error names


def table(values: ArrayLike, rows: str) -> Floats:
    """Return finite numbers with a column per sample as float64.

    Args:
        values: (R, N) with R and N at least 1.
        rows: what a row is, for messages.

    Returns:
        The array, (R, N).

    Raises:
        UserError: another number of axes, no row or column, or a value that is not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise UserError(f"an array of {rows} by samples", f"shape {x.shape}", "stack one row per model")
    bad = int(x.size - np.isfinite(x).sum())
    if bad:
        raise UserError(f"finite numbers of {rows}", f"{bad} that are not", "leave out models that diverged")
    return x


def line(values: ArrayLike, n: int, what: str) -> Floats:
    """Return one finite number per sample, (n,), as float64.

    Raises:
        UserError: another shape, or a value that is not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.shape != (n,):
        raise UserError(f"{what} of shape ({n},)", f"shape {x.shape}", "give one number per sample, in the same order")
    if not np.isfinite(x).all():
        raise UserError(f"finite {what}", "some that are not", "check the model that gave them")
    return x


@dataclass(frozen=True, eq=False)
class Pool:
    """Margins of N samples under T models, each trained on some of them.

    Args:
        margins: φ = ln p_y − ln Σ_{c≠y} p_c, nats, (T, N), finite.
        seen: whether the model of the row was trained on the sample of the column, (T, N) bool.
        ids: ids of the samples, N distinct ones, in the order of the columns.

    Raises:
        UserError: shapes that do not fit, a margin that is not finite, a mask that is not bool, or an id twice.

    References:
        N. Carlini, S. Chien, M. Nasr, S. Song, A. Terzis, F. Tramèr, "Membership Inference Attacks From First
        Principles", 2022, https://arxiv.org/abs/2112.03570.
    """

    margins: Floats
    seen: NDArray[np.bool_]
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "margins", table(self.margins, "models"))
        object.__setattr__(self, "seen", np.asarray(self.seen))
        object.__setattr__(self, "ids", tuple(self.ids))
        shape = self.margins.shape
        if self.seen.dtype != np.bool_ or self.seen.shape != shape:
            got = f"{self.seen.dtype} of shape {self.seen.shape}"
            raise UserError(f"a bool mask of shape {shape}", got, "say of each model which samples it was trained on")
        if len(self.ids) != shape[1]:
            raise UserError(f"{shape[1]} ids", str(len(self.ids)), "give one id per column of the margins")
        _distinct(self.ids)

    @property
    def inside(self) -> NDArray[np.int64]:
        """Models that were trained on each sample, (N,)."""
        return np.asarray(self.seen.sum(axis=0), dtype=np.int64)

    @property
    def outside(self) -> NDArray[np.int64]:
        """Models that were not, (N,)."""
        return len(self.seen) - self.inside

    def require(self, *, inside: int = 0, outside: int = 0) -> None:
        """Check that every sample has enough models on either side.

        The message says how many more would do: the least number on independent random halves, by ``more``, and the
        number on halves of ``draw``, twice what the sample that is shortest lacks, with certainty.

        Args:
            inside: models that were trained on a sample, at least.
            outside: models that were not.

        Raises:
            UserError: a sample has fewer.
        """
        lacks = inside - self.inside, outside - self.outside
        most = int(max(v.max() for v in lacks))
        if most > 0:
            m = more(*lacks)
            raise UserError(
                f"for every sample at least {inside} models trained on it and {outside} not",
                f"as few as {self.inside.min()} and {self.outside.min()} among {len(self.ids)} samples",
                f"train {m} more models on random halves, enough with a probability of {1 - CHANCE:.0%} or more (union "
                f"bound over the samples, Binomial({m}, 1/2) each), or {2 * most} more on halves from "
                "expunge.shadows.draw, enough for sure",
            )

    def without(self, *models: int) -> Pool:
        """Return the pool without some models: the target, and its partner of ``draw`` if it has one.

        Raises:
            UserError: no such model, or no other.
        """
        wrong = [t for t in models if not 0 <= t < len(self.seen)]
        if wrong:
            raise UserError(f"models from 0 to {len(self.seen) - 1}", listing(wrong), "count from 0")
        left = np.setdiff1d(np.arange(len(self.seen)), models)
        if left.size == 0:
            raise UserError("models beside those left out", f"a pool of {len(self.seen)}", "train more models")
        return Pool(self.margins[left], self.seen[left], self.ids)

    def of(self, ids: Sequence[str]) -> Pool:
        """Return the pool of some samples, in the order given.

        Raises:
            UserError: an id that is not in the pool, or one given twice.
        """
        places = {name: at for at, name in enumerate(self.ids)}
        unknown = [i for i in ids if i not in places]
        if unknown:
            raise UserError("ids of the pool", f"also {listing(unknown)}", "collect margins of these samples first")
        at = [places[i] for i in ids]
        return Pool(self.margins[:, at], self.seen[:, at], tuple(ids))


def _distinct(ids: Sequence[str]) -> None:
    if len(set(ids)) != len(ids):
        known: set[str] = set()
        twice = [i for i in ids if i in known or known.add(i)]  # type: ignore[func-returns-value]
        raise UserError("distinct ids", f"{listing(dict.fromkeys(twice))} more than once", "number the samples")


def more(inside: ArrayLike, outside: ArrayLike, *, chance: float = CHANCE) -> int:
    """Return the fewest further models on independent random halves with which no sample lacks any.

    Of m such models Binomial(m, ½) saw a sample. The chance that some sample is still short is at most
    Σ_i P(B < inside_i) + P(B < outside_i), a union bound over the samples and the sides; m is the smallest number for
    which that is at most ``chance``. For a new pool give what every sample needs.

    Args:
        inside: models that each sample lacks among those trained on it, (N,); 0 or less where it lacks none.
        outside: the same among those not trained on it.
        chance: that some sample is short nevertheless, in (0, 1).

    >>> more([8] * 1000, [8] * 1000)
    43

    Raises:
        UserError: sides of different lengths, or a chance outside (0, 1).
    """
    lacks = [np.asarray(v, dtype=np.int64).ravel() for v in (inside, outside)]
    if lacks[0].size != lacks[1].size or not 0 < chance < 1:
        got = f"{lacks[0].size} and {lacks[1].size} samples, chance {chance}"
        raise UserError("as many samples on both sides and a chance in (0, 1)", got, "count every sample once")
    needed, samples = np.unique(np.concatenate(lacks), return_counts=True)

    def short(m: int) -> bool:
        return float(samples @ binom.cdf(needed - 1, m, 0.5)) > chance

    high = 1
    while short(high):
        high *= 2
    low = high // 2
    if not short(0):
        return 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if short(middle) else (low, middle)
    return high


def draw(ids: Sequence[str], models: int, seed: int) -> NDArray[np.bool_]:
    """Return balanced random halves: which samples each of T models is to be trained on.

    Rows 2k and 2k + 1 are a random half of the samples and its complement; of an odd number of models the last has no
    partner. So every model sees half of the samples, and every sample is seen by half of the models; of an odd number,
    half of it rounded up or down. Independent halves leave Binomial(T, ½) models inside: of 50,000 samples under 16
    models, some 1,000 have three or fewer on one side, and the worst fits set the number of models. Equal sizes also
    keep the models equally good, so that a margin does not tell how large its model's training set was.

    Where a model of the pool is the target, leave its partner out as well, ``pool.without(t, t ^ 1)``: every sample
    then has as many models inside as outside, whether the target saw it or not. Without the target alone, the side that
    it was on is one short, and its fit the worse one: where nothing is to tell, ``lira`` with each sample's own
    deviation comes to an AUC of 0.43 with 8 models and of 0.49 with 16, in place of ½.

    Args:
        ids: ids of the samples, distinct; their order has no effect on who sees what.
        models: number of models, T.
        seed: the same seed, ids and number give the same halves, and more models add to those of fewer.

    Returns:
        Whether the model of the row sees the sample of the column, (T, N).

    Raises:
        UserError: an id twice, fewer than 2 samples, or no model.
    """
    if models < 1:
        raise UserError("at least 1 model", str(models), "draw halves for as many models as are trained")
    columns = _ordered(ids)
    return np.stack([_half(columns, t, seed) for t in range(models)])


def half(ids: Sequence[str], model: int, seed: int) -> NDArray[np.bool_]:
    """Return one row of `draw`: which samples a model is to be trained on, (N,).

    Args:
        ids: as in `draw`.
        model: row, from 0.
        seed: as in `draw`.

    >>> bool((half(["a", "b", "c"], 4, 0) == draw(["a", "b", "c"], 6, 0)[4]).all())
    True

    Raises:
        UserError: an id twice, fewer than 2 samples, or a row below 0.
    """
    if model < 0:
        raise UserError("a model from 0", str(model), "count from 0")
    return _half(_ordered(ids), model, seed)


def _ordered(ids: Sequence[str]) -> NDArray[np.int64]:
    """Return the columns in the order of their ids."""
    _distinct(ids)
    if len(ids) < 2:
        raise UserError("at least 2 samples", str(len(ids)), "draw halves of the training set")
    return np.argsort(np.asarray(ids, dtype=str), kind="stable")


def _half(columns: NDArray[np.int64], model: int, seed: int) -> NDArray[np.bool_]:
    n = len(columns)
    rng = np.random.default_rng(seeds.seed("shadow halves", seed, model - model % 2))
    seen = np.zeros(n, dtype=np.bool_)
    seen[columns[rng.permutation(n)[: n // 2]]] = True
    return seen if model % 2 == 0 else ~seen
