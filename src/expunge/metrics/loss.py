"""Mean per-sample loss on six sets, for any task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from expunge import stats
from expunge.metric import SPLITS, Audit, Found, Goal, Metric, Number, Unavailable, Value, missing
from expunge.task import Classes


@dataclass(frozen=True, kw_only=True)
class Loss(Metric):
    """The task's loss averaged over samples, with a t interval; nats for classes, target units for regression."""

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)

    @property
    def numbers(self) -> dict[str, Number]:
        """``loss/<split>`` for every split."""
        return {f"loss/{split}": self.number(f"loss, {text}") for split, text in SPLITS.items()}

    def measure(self, audit: Audit) -> Found:
        """Return the mean loss on each split."""
        unit = "nats" if isinstance(audit.task, Classes) else "loss"
        return {f"loss/{split}": self._one(audit, split, unit) for split in SPLITS}

    def _one(self, audit: Audit, split: str, unit: str) -> Value | Unavailable:
        reason = missing(frozenset({split, "labels"}), audit)
        if reason is None and isinstance(audit.task, Classes):
            reason = audit.flaws.get("model")
        if reason:
            return Unavailable(reason)
        own = audit.said(split).loss
        assert own is not None
        if missing(frozenset({split, "labels", "retrained"}), audit) is None:
            other = audit.said(split, "retrained").loss
            if other is not None and other.isfinite().all():
                audit.kept.gaps[f"loss/{split}"] = Value.of(stats.paired(own.numpy(), other.numpy()), unit)
        return Value.of(stats.mean_t(own.numpy()), unit)


METRIC = Loss
