"""Top-1 accuracy on six sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from expunge import stats
from expunge.evidence import Outputs
from expunge.metric import SPLITS, Audit, Found, Goal, Metric, Number, Unavailable, Value, missing


@dataclass(frozen=True, kw_only=True)
class Accuracy(Metric):
    """Correct over all samples on forget and retain (training data), test, test_forget, test_retain, holdout.

    Over samples, never the mean of batch accuracies, which over-weights a short last batch. Wilson's interval; the
    gap to retrained is paired by sample. Range [0, 1]; the goal is retrained's value, not 0 and not 1.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs: ClassVar[frozenset[str]] = frozenset({"classes"})

    @property
    def numbers(self) -> dict[str, Number]:
        """``accuracy/<split>`` for every split."""
        return {f"accuracy/{split}": self.number(f"accuracy, {text}") for split, text in SPLITS.items()}

    def measure(self, audit: Audit) -> Found:
        """Return correct/total on each split."""
        return {f"accuracy/{split}": self._one(audit, split) for split in SPLITS}

    def _one(self, audit: Audit, split: str) -> Value | Unavailable:
        reason = missing(frozenset({split, "labels"}), audit)
        if reason:
            return Unavailable(reason)
        own = audit.said(split)
        right = _right(own)
        if missing(frozenset({split, "labels", "retrained"}), audit) is None:
            between = stats.paired_proportions(right, _right(audit.said(split, "retrained")))
            audit.kept.gaps[f"accuracy/{split}"] = Value.of(between)
        return Value.of(stats.wilson(int(right.sum()), len(right)))


def _right(outputs: Outputs) -> NDArray[np.bool_]:
    assert outputs.target is not None
    found: NDArray[np.bool_] = outputs.prediction.eq(outputs.target).numpy()
    return found


METRIC = Accuracy
