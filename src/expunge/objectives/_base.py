"""What a forgetting objective is: a number a sample of the forget set, lowered; it knows nothing of what is kept."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from expunge.data import Batch
from expunge.errors import UserError
from expunge.method import Needs, Reference, See, Session
from expunge.objectives._labels import uniform
from expunge.part import Checks
from expunge.task import Classes, Task, class_count, class_logits, sample_losses

GONE = 0.01  # of a class: the share of its samples that may still be told right


@dataclass(frozen=True)
class Context:
    """What an objective looks at besides outputs, in one request.

    Args:
        task: per-sample loss.
        teacher: a frozen network in eval mode, or None.
        draws: uniform numbers (n_f,) of the samples to forget, or None.
        tau: the mean loss on held-out data, in the loss's unit, or None.
        accuracy: on held-out data, in [0, 1], or None where it is not known.
        whole_class: whether the request is for a whole class.
    """

    task: Task
    teacher: nn.Module | None = None
    draws: Tensor | None = None
    tau: float | None = None
    accuracy: float | None = None
    whole_class: bool = False

    def logits(self, outputs: Tensor) -> Tensor:
        """Return one logit a class, (B, K), of a network's outputs (B, ...).

        Raises:
            UserError: the task has no exclusive classes.
        """
        return class_logits(self.task, outputs, "this objective")

    def count(self, outputs: Tensor) -> int:
        """Return the number of classes K, 0 where there are none."""
        return class_count(self.task, outputs)

    def taught(self, batch: Batch) -> Tensor:
        """Return the teacher's class logits (B, K), without gradients."""
        assert self.teacher is not None
        with torch.no_grad():
            return self.logits(self.task.forward(self.teacher, batch)[0])


@dataclass(frozen=True)
class Level:
    """How much of the forget set a model still knows, means over its samples in eval mode.

    Args:
        value: of the objective before it is capped.
        loss: the task's loss, in its unit; None without labels.
        entropy: of the predicted classes, in nats; None where there are none.
        accuracy: share told as labelled, or, without labels, as by the original; None where there are no classes.
        classes: K, or 0.
    """

    value: float
    loss: float | None
    entropy: float | None
    accuracy: float | None
    classes: int


class Objective(Checks, ABC):
    """A forgetting objective U, a number a sample to be lowered; a subclass is a frozen dataclass in a file of its own.

    Its mean over a batch is what a method lowers. An objective without a lower bound is capped: once a batch is past
    the cap, it has no gradient.
    """

    reference: ClassVar[Reference | None] = None
    labels: ClassVar[bool] = False
    classes: ClassVar[bool] = True
    teacher: ClassVar[Literal["original", "untrained"] | None] = None
    drawn: ClassVar[bool] = False
    threshold: ClassVar[bool] = False
    weighed: ClassVar[bool] = False  # samples count with their weight: it is the loss of training
    compared: ClassVar[bool] = False  # whether what is forgotten is told by the accuracy on held-out data

    @property
    def bounded(self) -> bool:
        """Whether it has a lower bound, of its own or by its cap."""
        return True

    @property
    def needs(self) -> Needs:
        """What it reads to unlearn; of the held-out loss that it may need says the anchor where that comes from."""
        return Needs(
            forget=See.LABELLED if self.labels else See.INPUTS,
            fresh=self.teacher == "untrained",
            scenario=True,
            optional=frozenset({"scenario"}),
        )

    def declines(self, task: Task) -> str | None:
        """Return why a task has no such objective, or None."""
        if self.classes and not isinstance(task, Classes):
            return f"the objective {self.name} is of classes, and this task has none"
        return None

    def context(self, session: Session, tau: float | None = None, accuracy: float | None = None) -> Context:
        """Return what it looks at in a request.

        Args:
            session: the request; torch's generator draws what is random.
            tau: the mean held-out loss, where it is known.
            accuracy: on held-out data, where it is known.
        """
        teacher = None
        if self.teacher == "original":
            teacher = session.original
        elif self.teacher == "untrained":
            teacher = session.new_model().eval().requires_grad_(False)
        scenario = session.scenario if session.needs.scenario else None
        return Context(
            task=session.task,
            teacher=teacher,
            draws=uniform(len(session.forget)) if self.drawn else None,
            tau=tau,
            accuracy=accuracy,
            whole_class=scenario is not None and scenario.kind == "class",
        )

    @abstractmethod
    def values(self, outputs: Tensor, batch: Batch, context: Context) -> Tensor:
        """Return U of each sample (B,), before any cap.

        Args:
            outputs: of the model that forgets, (B, ...).
            batch: samples of the forget set.
            context: of the request.
        """

    def loss(self, outputs: Tensor, batch: Batch, context: Context) -> Tensor:
        """Return what a step on a batch lowers, a scalar: the mean of `values`, without gradient past the cap.

        Args:
            outputs: of the model that forgets, (B, ...).
            batch: samples of the forget set.
            context: of the request.
        """
        values = self.values(outputs, batch, context)
        if self.weighed and batch.weight is not None:
            values = values * batch.weight.to(values)
        mean = values.mean()
        return mean.detach() if self.past(mean.detach(), context.count(outputs)) else mean

    def past(self, mean: Tensor, classes: int) -> bool:
        """Return whether a batch's mean is past the cap.

        Args:
            mean: of its values, a scalar.
            classes: K, or 0 where there are none.
        """
        return False

    @abstractmethod
    def reached(self, level: Level, context: Context) -> bool:
        """Return whether the forget set is forgotten as far as this objective goes."""

    def idle(self, level: Level, context: Context) -> bool:
        """Return whether the model, as it comes, has nothing to forget; default: it is forgotten already."""
        return self.reached(level, context)

    @abstractmethod
    def met(self, level: Level, context: Context) -> str:
        """Return in words how far the forget set is forgotten, beside what is called forgotten."""


def most_told(level: Level, context: Context, target: float | None) -> float:
    """Return the share of the forget set that may still be told right, in [0, 1].

    Args:
        level: of the forget set.
        context: of the request.
        target: share in [0, 1]; None: 1 % of a whole class, else the accuracy on held-out data, or chance where that
            is not known.
    """
    if target is not None:
        return target
    known = 1 / level.classes if context.accuracy is None else context.accuracy
    return GONE if context.whole_class else known


def told(level: Level, context: Context, target: float | None) -> bool:
    """Return whether no more of the forget set is told right than `most_told`."""
    assert level.accuracy is not None
    return level.accuracy <= most_told(level, context, target)


def told_words(level: Level, context: Context, target: float | None) -> str:
    """Return in words how many of the forget set are told right, beside the most that may be."""
    return f"{level.accuracy:.1%} of the forget set are told right (at most {most_told(level, context, target):.1%})"


def uncertain_words(level: Level, share: float) -> str:
    """Return in words the mean entropy of the forget set's predictions, beside what is to be reached."""
    least = share * math.log(level.classes)
    return f"the mean entropy of the forget set's predictions is {level.entropy:.3g} nats ({least:.3g} or more)"


def loss_words(found: float, what: str, least: float) -> str:
    """Return in words a mean over the forget set, beside what is to be reached."""
    return f"the {what} of the forget set is {found:.3g} ({least:.3g} or more)"


def uncertain(level: Level, share: float) -> bool:
    """Return whether the mean entropy of the forget set's predictions has reached a share of ln K."""
    assert level.entropy is not None
    return level.entropy >= share * math.log(level.classes)


def losses(outputs: Tensor, batch: Batch, context: Context) -> Tensor:
    """Return the task's loss of each sample (B,), its targets checked.

    Raises:
        UserError: the batch has no targets, or ones that do not fit, or the loss is not one number a sample.
    """
    return sample_losses(context.task, outputs, targets(batch))


def targets(batch: Batch) -> Tensor:
    """Return the targets of a batch (B, ...).

    Raises:
        UserError: it has none.
    """
    if batch.target is None:
        raise UserError("labels of the samples to forget", "none", "give targets when building the data")
    return batch.target


def level_cap(cap: float | None, classes: int) -> float:
    """Return a cap in nats: the number, or 2·ln K where none is given."""
    return 2 * math.log(classes) if cap is None else cap
