"""Simulated requests on a pool of models, and how far each model stands from models that never saw the samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from expunge.errors import UserError

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
PRIOR = 4  # values of the average variance that each sample's own is mixed with: a few models tell little of one sample
FLOOR = 1e-3  # nats; a deviation below it is rounding
LEAST = 3  # models that stand for the retrained at a sample, without which it has no mean and deviation to speak of
PARTS = ("forget", "retain", "test")


@dataclass(frozen=True, eq=False)
class Said:
    """What R models say of all N training and M test samples.

    Args:
        train: score of the label, (R, N): the margin φ = ln p_y − ln Σ_{c≠y} p_c of classes, nats, else minus the loss.
        test: the same of test samples, (R, M).
        kept: which training samples the model was trained on and is to remember, (R, N).
        right: of classes, whether the label is the prediction, (R, N); None of other tasks.
        right_test: the same of test samples, (R, M).

    Raises:
        UserError: shapes that do not fit, or a score that is not finite.
    """

    train: Floats
    test: Floats
    kept: Mask
    right: Mask | None = None
    right_test: Mask | None = None

    def __post_init__(self) -> None:
        own = {self.train.shape, self.kept.shape} | ({self.right.shape} if self.right is not None else set())
        other = {self.test.shape} | ({self.right_test.shape} if self.right_test is not None else set())
        if len(own) != 1 or len(other) != 1 or self.train.ndim != 2 or len(self.test) != len(self.train):
            got = f"shapes {sorted(own)} and {sorted(other)}"
            raise UserError(
                "a row a model and a column a sample, (R, N) and (R, M)", got, "collect all on the same data"
            )
        bad = int((~np.isfinite(self.train)).any(axis=1).sum() + (~np.isfinite(self.test)).any(axis=1).sum())
        if bad:
            raise UserError("finite scores of all models", f"{bad} rows with others", "leave out models that diverged")

    def __len__(self) -> int:
        return len(self.train)

    def rows(self, index: NDArray[np.int64] | list[int]) -> Said:
        """Return some of the models, in the order given."""
        right = None if self.right is None else self.right[index]
        right_test = None if self.right_test is None else self.right_test[index]
        return Said(self.train[index], self.test[index], self.kept[index], right, right_test)


@dataclass(frozen=True, eq=False)
class Gaps:
    """How far models stand from others of their kind, sample by sample; nan where a sample is not in the part.

    Args:
        gap: score less the mean of the models that stand for the retrained, by part, (T, N) or (T, M).
        z: the same in standard deviations of such a model.
        accuracy: share of right predictions in the part less that of those models, by part, (T,); empty of tasks
            without classes.
    """

    gap: Mapping[str, Floats]
    z: Mapping[str, Floats]
    accuracy: Mapping[str, Floats]

    def mean(self, part: str) -> Floats:
        """Return each model's mean gap over a part, (T,), in units of the score."""
        return np.asarray(np.nanmean(self.gap[part], axis=1), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Trials:
    """T simulated requests of one kind, each on its own original, beside models retrained without the samples.

    Row t of every group is of request t. The models of ``reference`` are what a sample's retrained mean and deviation
    are taken over: without row t and its partner t ^ 1, whose training half is the other one, lest a model be compared
    with itself or with its own mirror image.

    Args:
        ids: of the training samples, N.
        forget: which are forgotten in each request, (T, N).
        original: the models before.
        unlearned: the models after.
        retrained: for each request a model that never saw its samples.
        reference: R models; rows t and t ^ 1 belong to request t.
        stands: at which samples a model of the reference stands for one that never saw them, (R, N); by default where
            it was not trained on them.

    Raises:
        UserError: shapes that do not fit, a request without samples, or too few models of the reference for a sample.
    """

    ids: tuple[str, ...]
    forget: Mask
    original: Said
    unlearned: Said
    retrained: Said
    reference: Said
    stands: Mask | None = None

    def __post_init__(self) -> None:
        t, n = self.forget.shape
        groups, whole = (self.original, self.unlearned, self.retrained), self.reference.train.shape
        shapes = {s.train.shape for s in groups} | {(t, n)}
        odd = len({s.test.shape[1] for s in (*groups, self.reference)}) != 1
        odd = odd or (self.stands is not None and self.stands.shape != whole)
        if (
            odd
            or len(shapes) != 1
            or len(self.ids) != n
            or self.reference.train.shape[1] != n
            or len(self.reference) < t
        ):
            got = f"{sorted(shapes)}, {len(self.ids)} ids, {self.reference.train.shape} of the reference"
            raise UserError("a row a request and a column a sample in every group", got, "collect all on one data set")
        empty = int((~self.forget.any(axis=1)).sum())
        if empty:
            raise UserError("samples to forget in each request", f"none in {empty} of {t}", "ask for a larger share")
        check_stands(self.forget, self._chosen["forget"])

    def __len__(self) -> int:
        return len(self.forget)

    def rows(self, index: NDArray[np.int64] | list[int]) -> Trials:
        """Return some of the requests, in the order given, with their models; pairs must stay beside each other."""
        groups = {name: getattr(self, name).rows(index) for name in ("original", "unlearned", "retrained", "reference")}
        stands = None if self.stands is None else self.stands[index]
        return replace(self, forget=self.forget[index], stands=stands, **groups)

    def instead(self, models: Said) -> Trials:
        """Return the same requests with other models in the place of the unlearned ones, as a control."""
        return replace(self, unlearned=models)

    @cached_property
    def unlearned_gaps(self) -> Gaps:
        """Gaps of the unlearned models."""
        return self.gaps(self.unlearned)

    @cached_property
    def retrained_gaps(self) -> Gaps:
        """Gaps of the retrained models on the same forgotten samples: the floor."""
        return self.gaps(self.retrained)

    def gaps(self, models: Said) -> Gaps:
        """Return the gaps of models, a row a request.

        With μ and s² the mean and variance of the models that stand for a retrained one at a sample, c of them, s²
        mixed with the average variance as if that were 4 further values, z = (φ − μ)/(s √(1 + 1/c)): for a retrained
        model it has mean 0, and a variance near 1 where deviations are alike; of few models, samples of a small
        deviation have a smaller one, and those of a large deviation a larger.

        Args:
            models: (T, ...); each request's forgotten samples are those of this study.
        """
        parts = {"forget": self.forget, "retain": models.kept & ~self.forget}
        gap, z, accuracy = {}, {}, {}
        for part in PARTS:
            inside = parts.get(part)
            score = models.test if inside is None else models.train
            mean, sd, expected = self._moments[part]
            away = score - mean
            known = self._counts[part] >= LEAST if inside is None else inside & (self._counts[part] >= LEAST)
            gap[part] = np.where(known, away, np.nan)
            z[part] = np.where(known, away / sd, np.nan)
            right = models.right_test if inside is None else models.right
            if right is not None and expected is not None and known.shape[1]:
                accuracy[part] = np.nanmean(np.where(known, right - expected, np.nan), axis=1)
        return Gaps(gap, z, accuracy)

    @cached_property
    def _chosen(self) -> dict[str, Mask]:
        """Which models of the reference count at a sample, by part."""
        r = self.reference
        stands = ~r.kept if self.stands is None else self.stands
        return {"forget": stands, "retain": r.kept, "test": np.ones(r.test.shape, dtype=np.bool_)}

    @cached_property
    def _counts(self) -> dict[str, Floats]:
        return {part: self._summed(mask.astype(np.float64)) for part, mask in self._chosen.items()}

    @cached_property
    def _moments(self) -> dict[str, tuple[Floats, Floats, Floats | None]]:
        return {part: self._moment(part) for part in PARTS}

    def _moment(self, part: str) -> tuple[Floats, Floats, Floats | None]:
        """Return mean, deviation and mean accuracy of each request's reference at each sample, (T, ...)."""
        r, mask, count = self.reference, self._chosen[part], self._counts[part]
        score, right = (r.test, r.right_test) if part == "test" else (r.train, r.right)
        middle = score.mean(axis=0)  # sums of squares about it lose no digits
        off = np.where(mask, score - middle, 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = self._summed(off) / count
            squares = np.maximum(self._summed(np.square(off)) - count * np.square(mean), 0.0)
            free = np.maximum(count - 1, 0.0)
            average = np.nansum(squares, axis=1, keepdims=True) / np.maximum(free.sum(axis=1, keepdims=True), 1.0)
            variance = (squares + PRIOR * average) / (free + PRIOR)
            sd = np.maximum(np.sqrt(variance * (1 + 1 / count)), FLOOR)
            expected = None if right is None else self._summed(np.where(mask, right, 0.0)) / count
        return mean + middle, sd, expected

    def _summed(self, values: Floats) -> Floats:
        return _without_pair(values, len(self))


def check_stands(forget: Mask, stands: Mask) -> None:
    """Refuse requests about samples for which too few models stand for a retrained one.

    Args:
        forget: which are forgotten in each request, (T, N).
        stands: at which samples a model stands for one that never saw them, (R, N).

    Raises:
        UserError: a forgotten sample has fewer than 3 such models, the request's own pair left out.
    """
    worst = int(_without_pair(stands.astype(np.float64), len(forget))[forget].min())
    if worst < LEAST:
        got = f"as few as {worst} for a sample, the request's own pair of halves left out"
        remedy = f"train {2 * (LEAST - worst)} or more further models"
        raise UserError(f"{LEAST} or more models that never saw a forgotten sample", got, remedy)


def _without_pair(values: Floats, requests: int) -> Floats:
    """Return for each request the sum over models without its own row and the partner's, (R, N) to (T, N)."""
    t = np.arange(requests)
    partner = np.where(((t ^ 1) < len(values))[:, None], values[np.minimum(t ^ 1, len(values) - 1)], 0.0)
    return np.asarray(values.sum(axis=0) - values[t] - partner, dtype=np.float64)


def summary(gaps: Gaps) -> Floats:
    """Return a row of plain numbers for each model, (T, D): what a test of vectors compares.

    Of forget, retain and test samples each: mean z, mean |z|, the 10 and 90 % quantiles of z, and the accuracy's gap
    where the task has classes. z is cut at ±10, so that one sample does not decide.
    """
    rows = []
    for part in PARTS:
        if gaps.z[part].shape[1] == 0:  # no test data
            continue
        z = np.clip(gaps.z[part], -10.0, 10.0)
        rows += [np.nanmean(z, axis=1), np.nanmean(np.abs(z), axis=1), *np.nanquantile(z, [0.1, 0.9], axis=1)]
        rows += [gaps.accuracy[part]] if part in gaps.accuracy else []
    return np.stack(rows, axis=1)
