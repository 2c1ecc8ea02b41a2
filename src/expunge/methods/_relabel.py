"""Training on with wrong labels on the samples to forget: the loop, and the base of methods that redraw the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from expunge.data import Batch
from expunge.method import Needs, Search, See, Session, option
from expunge.methods._steps import Descent, Stepped, Taken, only_classes
from expunge.objectives import Context
from expunge.objectives.random_label import RandomLabel
from expunge.scenario import Scenario
from expunge.task import Task, check_targets, class_count, sample_losses
from expunge.train import Recipe

Order = Literal["forget_first", "mixed"]
Compat = Literal["paper", "official"]


def mixed_loss(descent: Descent, taken: Taken, objective: RandomLabel, context: Context) -> Tensor:
    """Return the mean loss of a step's samples, those of source 0 under drawn labels, a scalar.

    Args:
        descent: model and task.
        taken: labelled samples; source 0 is the forget set.
        objective: says which labels are drawn.
        context: holds the draws.
    """
    batch = taken.batch
    assert batch.target is not None
    outputs = descent.outputs(batch)
    check_targets(descent.task, outputs, batch.target)
    own = taken.of(0)
    target = batch.target.long().clone()
    index = batch.index[own.to(batch.index.device)]
    target[own] = objective.relabelled(target[own], index, class_count(descent.task, outputs), context)
    return descent.weighted(sample_losses(descent.task, outputs, target), batch).mean()


def relabelled_epoch(
    session: Session, descent: Descent, objective: RandomLabel, context: Context, *, order: Order
) -> None:
    """Go once through the forget set under drawn labels and once through the retain set under its own.

    Args:
        session: holds forget and retain data with labels.
        descent: takes the steps.
        objective: of the forget set.
        context: holds the draws; the same context gives the same labels.
        order: ``forget_first`` all batches of the forget set before those of the retain set, ``mixed`` one shuffle.
    """

    def wrong(batch: Batch) -> Tensor:
        return objective.loss(descent.outputs(batch), batch, context)

    if order == "mixed":
        descent.epoch([session.forget, session.retain], lambda _, now: mixed_loss(descent, now, objective, context))
    else:
        descent.epoch([session.forget], lambda _, now: wrong(now.batch), name="forget_loss")
        descent.epoch([session.retain], lambda _, now: descent.losses(now.batch).mean(), name="retain_loss")
    descent.ended()


@dataclass(frozen=True, kw_only=True)
class Relabelling(Stepped):
    """What methods have in common that train on with wrong labels on the forget set; it needs classes and labels.

    Passes: E over the forget set and E over the retain set; with ``keep_best`` E over holdout.
    """

    lr: float = option(0.01, symbol="η", unit="1", text="learning rate", search=Search(1e-4, 1e-1, log=True))

    @property
    def unlearns(self) -> Needs:
        """Forget and retain data with labels; the recipe where there is one."""
        return self.sees(forget=See.LABELLED, retain=See.LABELLED)

    def declines(self, task: Task, scenario: Scenario | None, model: nn.Module) -> str | None:
        """Decline what has no classes to draw a label from."""
        return only_classes(task, f"{self.name} draws wrong classes")

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return the epochs over both sets, and over holdout data with ``keep_best``."""
        return self.reads(phase, forget=self.epochs, retain=self.epochs)


@dataclass(frozen=True, kw_only=True)
class RandomLabelling(Relabelling):
    """Relabelling with new labels in every epoch; a subclass may hold weights by masks around `descend`."""

    epochs: int = option(
        10, symbol="E", unit="passes over both sets", text="how long", search=Search(1, 10, whole=True)
    )
    redraw: bool = option(True, unit="-", text="draw new labels in every epoch, or once for all")
    order: Order = option(
        "forget_first", unit="-", text="forget_first: in every epoch forget batches, then retain batches; mixed: in one"
    )
    compat: Compat = option(
        "paper", unit="-", text="paper: labels are drawn from the wrong classes; official: the true one may be drawn"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.one_of("order", *get_args(Order))
        self.one_of("compat", *get_args(Compat))

    @property
    def objective(self) -> RandomLabel:
        """What is lowered on the forget set, under the labels of one draw."""
        return RandomLabel(exclude_true=self.compat == "paper")

    def descend(self, session: Session, descent: Descent) -> None:
        """Train on for the epochs, the forget set's labels drawn from the session's seed."""
        context = self.objective.context(session)
        for epoch in range(self.epochs):
            if epoch and self.redraw:
                context = self.objective.context(session)
            relabelled_epoch(session, descent, self.objective, context, order=self.order)
