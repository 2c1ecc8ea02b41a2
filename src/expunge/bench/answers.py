"""What one model says of every training and test sample, written down for studies of many models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge import tensors
from expunge.data import Data
from expunge.errors import UserError
from expunge.evidence import collect
from expunge.runtime import Runtime
from expunge.task import Classes, Task

FILE = "answers.safetensors"


@dataclass(frozen=True, eq=False)
class Answers:
    """Scores of the label and whether it is the prediction, of one model.

    Args:
        train: of training samples, (N,): the margin φ = ln p_y − ln Σ_{c≠y} p_c of classes, nats, else minus the loss.
        test: of test samples, (M,); none without test data.
        right: of classes, whether the largest output is the label's, (N,); None of other tasks.
        right_test: the same of test samples.
    """

    train: NDArray[np.float64]
    test: NDArray[np.float64]
    right: NDArray[np.bool_] | None
    right_test: NDArray[np.bool_] | None


def ask(model: nn.Module, task: Task, train: Data, test: Data | None, runtime: Runtime) -> Answers:
    """Run a model once over training and test data.

    Args:
        model: whose.
        task: outputs and loss.
        train: labelled training samples, whether or not the model was trained on them.
        test: labelled test samples, or None.
        runtime: device, batch size, progress.

    Returns:
        The scores, in the order of the data.

    Raises:
        UserError: samples without labels.
        NotFinite: an output is NaN or infinite.
    """
    own, right = _scores(model, task, train, runtime)
    if test is None or len(test) == 0:
        return Answers(own, np.empty(0), right, None if right is None else np.empty(0, dtype=np.bool_))
    other, right_test = _scores(model, task, test, runtime)
    return Answers(own, other, right, right_test)


def _scores(
    model: nn.Module, task: Task, data: Data, runtime: Runtime
) -> tuple[NDArray[np.float64], NDArray[np.bool_] | None]:
    said = collect(model, task, data, runtime=runtime)
    if said.target is None or said.loss is None:
        raise UserError(f"labels in {data.name}", "none", "give targets when building the data")
    if not isinstance(task, Classes):
        return -said.loss.numpy(), None
    margin, correct = said.signals.margin, said.signals.correct
    assert margin is not None
    assert correct is not None
    return margin.numpy(), correct.numpy() > 0


def save(folder: Path, answers: Answers) -> None:
    """Write answers into a task's folder."""
    found: dict[str, Tensor] = {
        name: torch.from_numpy(np.ascontiguousarray(value))
        for name, value in vars(answers).items()
        if value is not None
    }
    tensors.save(folder / FILE, found, {})


def load(folder: Path) -> Answers:
    """Return what `save` wrote.

    Raises:
        CorruptArtefact: it is not what was written.
    """
    found = {name: value.numpy() for name, value in tensors.load(folder / FILE)[0].whole().items()}
    return Answers(found["train"], found["test"], found.get("right"), found.get("right_test"))
