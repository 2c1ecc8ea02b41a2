"""What a batch means: outputs, per-sample loss, predictions."""

from __future__ import annotations

from expunge.task._base import (
    CLASSES,
    Classes,
    Task,
    check_targets,
    class_count,
    class_logits,
    output_tensor,
    run,
    sample_losses,
)
from expunge.task.binary import Binary
from expunge.task.causal_lm import CausalLM
from expunge.task.classification import Classification
from expunge.task.multilabel import MultiLabel
from expunge.task.quantile import Quantile
from expunge.task.regression import Regression

__all__ = [
    "CLASSES",
    "Binary",
    "CausalLM",
    "Classes",
    "Classification",
    "MultiLabel",
    "Quantile",
    "Regression",
    "Task",
    "check_targets",
    "class_count",
    "class_logits",
    "output_tensor",
    "run",
    "sample_losses",
]

for _task in (Binary, CausalLM, Classification, MultiLabel, Quantile, Regression):
    _task.__module__ = __name__  # a recorded identity names the public place, wherever a class is written
