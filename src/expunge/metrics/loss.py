"""Mean per-sample loss on six sets, for any task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from expunge import stats
from expunge.metric import SPLITS, Audit, Found, Goal, Metric, Unavailable, Value
from expunge.task import Classification


@dataclass(frozen=True, kw_only=True)
class Loss(Metric):
    """The task's loss averaged over samples, with a t interval; nats for classes, target units for regression."""

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def __call__(self, audit: Audit) -> Found:
        """Return ``loss/<split>`` for every split."""
        unit = "nats" if isinstance(audit.task, Classification) else "loss"
        found: Found = {}
        for split in SPLITS:
            outputs = audit.outputs(split)
            if outputs is None or len(outputs) == 0:
                found[f"loss/{split}"] = Unavailable(f"there are no samples in {split}")
            elif outputs.loss is None:
                found[f"loss/{split}"] = Unavailable(f"{split} has no labels")
            elif not bool(torch.isfinite(outputs.loss).all()):
                found[f"loss/{split}"] = Unavailable(f"a loss on {split} is infinite or not a number")
            else:
                found[f"loss/{split}"] = Value.of(stats.mean_t(outputs.loss.tolist()), unit)
        return found


METRIC = Loss
