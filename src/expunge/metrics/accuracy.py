"""Top-1 accuracy on six sets, and on the forget set by its true labels where they were flipped."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge import stats
from expunge.evidence import Outputs
from expunge.metric import SPLITS, Audit, Found, Goal, Metric, Number, Unavailable, Value, missing

TRUE = "accuracy/forget_clean"


@dataclass(frozen=True, kw_only=True)
class Accuracy(Metric):
    """Correct over all samples on forget and retain (training data), test, test_forget, test_retain, holdout.

    Over samples, never the mean of batch accuracies, which over-weights a short last batch. Wilson's interval; the
    gap to retrained is paired by sample. Range [0, 1]; the goal is retrained's value, not 0 and not 1.

    Of forget samples that were trained on under wrong labels, ``accuracy/forget`` counts the wrong ones, which the
    original repeats. ``accuracy/forget_clean`` counts the true ones, read from the column ``clean`` of the data: it
    says whether what was wrong is set right.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs: ClassVar[frozenset[str]] = frozenset({"classes"})
    undefined: ClassVar[tuple[str, ...]] = ("has no column 'clean'", "holds no class index")

    @property
    def numbers(self) -> dict[str, Number]:
        """``accuracy/<split>`` for every split, and ``accuracy/forget_clean``."""
        found = {f"accuracy/{split}": self.number(f"accuracy, {text}") for split, text in SPLITS.items()}
        return {**found, TRUE: self.number("accuracy, forget set by its true labels")}

    def measure(self, audit: Audit) -> Found:
        """Return correct/total on each split, and on the forget set by its true labels."""
        return {**{f"accuracy/{split}": self._one(audit, split) for split in SPLITS}, TRUE: self._true(audit)}

    def _one(self, audit: Audit, split: str) -> Value | Unavailable:
        reason = missing(frozenset({split, "labels"}), audit)
        if reason:
            return Unavailable(reason)
        target = audit.said(split).target
        assert target is not None
        return _counted(audit, split, target, f"accuracy/{split}", frozenset({split, "labels", "retrained"}))

    def _true(self, audit: Audit) -> Value | Unavailable:
        reason = missing(frozenset({"forget"}), audit)
        if reason:
            return Unavailable(reason)
        data = audit.data.get("forget")
        if data is None or "clean" not in data.columns:
            return Unavailable("the forget set has no column 'clean' with the labels before they were flipped")
        labels = data.column("clean")
        if not all(isinstance(label, Integral) for label in labels):
            return Unavailable("the column 'clean' holds no class index in some rows")
        target = torch.tensor([int(label) for label in labels])
        return _counted(audit, "forget", target, TRUE, frozenset({"forget", "retrained"}))


def _counted(audit: Audit, split: str, target: Tensor, name: str, compared: frozenset[str]) -> Value:
    """Return the share of a split that the model has right by these labels; the gap to retrained is kept."""
    right = _right(audit.said(split), target)
    if missing(compared, audit) is None:
        between = stats.paired_proportions(right, _right(audit.said(split, "retrained"), target))
        audit.kept.gaps[name] = Value.of(between)
    return Value.of(stats.wilson(int(right.sum()), len(right)))


def _right(outputs: Outputs, target: Tensor) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = outputs.prediction.eq(target).numpy()
    return found


METRIC = Accuracy
