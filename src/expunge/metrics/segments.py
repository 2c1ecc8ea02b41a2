"""Whose scores and decisions moved: mean score and share of accepted samples by segment, against the original's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from expunge import stats
from expunge.errors import UserError
from expunge.metric import Audit, Found, Goal, Metric, Number, Unavailable, Value, missing
from expunge.metrics._chances import NOT_TWO, Array, chances
from expunge.metrics._groups import LEAST, columns, level_of, staying
from expunge.stats import Interval
from expunge.task import Classes, Quantile, Regression

_NEITHER = "the task has neither two classes nor real targets"


@dataclass(frozen=True, kw_only=True)
class Segments(Metric):
    """Largest change, against the original, of the mean score and of the acceptance rate of a segment.

    Segments are the groups of `subgroups`: samples that are not of the forgotten kind, by the values of every column
    with 2 to 50 of them, and by class where there are two; those with at least 10 samples count. The score s_i is the
    predicted probability of class 1, in [0, 1]; of a regression the mean prediction, in target units. A sample is
    accepted where that probability is above ``threshold``.

    With Δ_g = mean_{i∈g} (s_i(model) − s_i(original)), paired by sample: ``segments/score_change`` = max_g |Δ_g|, and
    ``segments/rate_change`` the same of the shares accepted. Of many segments one looks moved by accident, so the
    interval is simultaneous: with m segments each is taken at the level 1 − 0.05/m (Bonferroni) and turned into one of
    |Δ_g|; the largest true change then lies between the largest of the lower and the largest of the upper ends.
    Retraining moves segments as well, and its value is the goal. The series ``segments/<column>`` and
    ``segments/<column>/rate`` hold each Δ_g with its sign, 95 % intervals of one segment chosen beforehand.

    Args:
        threshold: probability above which a sample is accepted.

    Raises:
        UserError: a threshold outside [0, 1).

    References:
        That of `subgroups`: O. J. Dunn, "Multiple comparisons among means", 1961,
        https://doi.org/10.1080/01621459.1961.10482090.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    wants: ClassVar[frozenset[str]] = frozenset({"test", "retain", "original"})
    undefined: ClassVar[tuple[str, ...]] = (
        _NEITHER,
        NOT_TWO,
        "every test sample is of the forgotten kind",
        f"no segment has {LEAST} samples",
        f"fewer than {LEAST} samples: ",
    )

    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise UserError("segments.threshold in [0, 1)", str(self.threshold), "give a probability")

    @property
    def numbers(self) -> dict[str, Number]:
        """``segments/score_change`` and ``segments/rate_change``."""
        return {
            "segments/score_change": self.number("largest change of a segment's mean score"),
            "segments/rate_change": self.number("largest change of a segment's acceptance rate", range=(0.0, 1.0)),
        }

    def measure(self, audit: Audit) -> Found:
        """Keep the changes of every segment, and return the largest."""
        split = staying(audit)
        if split is None:
            return self.none("every test sample is of the forgotten kind")
        reason = missing(frozenset({split, "original"}), audit)
        if reason:
            return self.none(reason)
        now, before = _scores(audit, split, "model"), _scores(audit, split, "original")
        if isinstance(now, Unavailable):
            return self.none(now.reason)
        if isinstance(before, Unavailable):
            return self.none(before.reason)
        real = not isinstance(audit.task, Classes)
        unit, large = "target units" if real else "1", list[NDArray[np.int64]]()
        for column, groups in columns(audit, split):
            for at, rows in groups.items():
                few = Unavailable(f"fewer than {LEAST} samples: {len(rows)}") if len(rows) < LEAST else None
                large += [] if few else [rows]
                score = few or Value.of(stats.paired(now[rows], before[rows]), unit)
                audit.record(f"segments/{column}", at, score)
                if not real:
                    rate = few or Value.of(stats.paired_proportions(*self._decided(now[rows], before[rows])))
                    audit.record(f"segments/{column}/rate", at, rate)
        if not large:
            return self.none(f"no segment has {LEAST} samples")
        level, pairs = level_of(len(large)), [(now[rows], before[rows]) for rows in large]
        scores = _largest([stats.paired(*pair, level=level) for pair in pairs], unit)
        if real:
            return {"segments/score_change": scores, "segments/rate_change": Unavailable(NOT_TWO)}
        rates = [stats.paired_proportions(*self._decided(*pair), level=level) for pair in pairs]
        return {"segments/score_change": scores, "segments/rate_change": _largest(rates, "1")}

    def _decided(self, now: Array, before: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        return now > self.threshold, before > self.threshold


def _scores(audit: Audit, split: str, role: str) -> Array | Unavailable:
    """Return one score a sample, (N,): the chance of class 1, or the mean prediction."""
    if isinstance(audit.task, Regression | Quantile):
        said = audit.said(split, role)
        found: Array = said.prediction.double().reshape(len(said), -1).mean(dim=1).numpy()
        return found
    return chances(audit, split, role) if isinstance(audit.task, Classes) else Unavailable(_NEITHER)


def _largest(changes: Sequence[Interval], unit: str) -> Value:
    """Return the largest size of a change, between the largest of the ends of the sizes."""
    ends = [(max(0.0, i.low, -i.high), max(-i.low, i.high)) for i in changes]
    most = max(changes, key=lambda i: abs(i.x))
    return Value(abs(most.x), max(low for low, _ in ends), max(high for _, high in ends), most.n, unit)


METRIC = Segments
