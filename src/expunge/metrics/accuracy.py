"""Top-1 accuracy on six sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from expunge import stats
from expunge.metric import SPLITS, Audit, Found, Goal, Metric, Unavailable, Value
from expunge.task import Classification


@dataclass(frozen=True, kw_only=True)
class Accuracy(Metric):
    """Correct over all samples on forget and retain (training data), test, test_forget, test_retain, holdout.

    Over samples, never the mean of batch accuracies, which over-weights a short last batch. Wilson's interval.
    Range [0, 1]; the goal is retrained's value, not 0 and not 1.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __call__(self, audit: Audit) -> Found:
        """Return ``accuracy/<split>`` for every split."""
        return {f"accuracy/{split}": self._one(audit, split) for split in SPLITS}

    def _one(self, audit: Audit, split: str) -> Value | Unavailable:
        outputs = audit.outputs(split)
        if not isinstance(audit.task, Classification):
            return Unavailable("the task has no classes")
        if outputs is None or len(outputs) == 0:
            return Unavailable(f"there are no samples in {split}")
        if outputs.target is None:
            return Unavailable(f"{split} has no labels")
        right = int((outputs.prediction == outputs.target).sum())
        return Value.of(stats.wilson(right, len(outputs)))


METRIC = Accuracy
