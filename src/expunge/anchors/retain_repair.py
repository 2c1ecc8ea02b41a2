"""Retain data beside the forget set, which repairs what forgetting breaks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from expunge.anchors._base import Lowered
from expunge.anchors._descent import Descent, Stepping
from expunge.data import Batch
from expunge.errors import UserError
from expunge.method import Needs, Search, See, Session, State, option
from expunge.objectives._distances import divergence
from expunge.passes import whole
from expunge.recipe import Recipe
from expunge.task import Classes, Task, class_logits
from expunge.train import endless_orders, outputs_and_losses

Keep = Literal["loss", "original", "both"]
SMALLER = "lower retain_repair.budget, or raise steps"


@dataclass(frozen=True, kw_only=True)
class RetainRepair(Stepping):
    """Lower (1−λ)·U + λ·R, R the mean over a batch of the retain set, drawn anew for every step.

    ``keep`` says what R is: the ``loss`` of training; ``original``, KL(p_o ‖ p) from what the original says, which
    asks for no labels; or ``both``, their sum. That is the repair of ∇τ, NegGrad+ and amnesiac, of the two teachers,
    and of SCRUB; their own schedules are those methods'.

    Needs retain data. Without one of its classes or kinds, those are not held.
    """

    retained: ClassVar[bool] = True

    lam: float = option(
        0.5,
        symbol="λ",
        unit="1",
        text="weight of the retain set, in (0, 1); the objective has 1 − λ",
        search=Search(0.05, 0.95),
    )
    keep: Keep = option("loss", unit="-", text="loss of training, what the original says, or both")
    budget: float = option(
        6.0,
        unit="passes over the retain set",
        text="in all: a step reads as many samples of it as that gives; several share one where that is less than one",
        search=Search(1, 20),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.inside("lam", 0, 1)
        self.one_of("keep", *get_args(Keep))
        self.positive("budget")

    @property
    def unlearns(self) -> Needs:
        """Retain data, with labels unless the original alone is kept."""
        return Needs(retain=See.INPUTS if self.keep == "original" else See.LABELLED)

    def passes(self, phase: str, recipe: Recipe | None, steps: int | None) -> dict[str, float]:
        """Return the passes over the retain set, and one over a batch of the forget set a step."""
        return {"forget": 1.0, "retain": self.budget} if phase == "unlearn" else {}

    def declines(self, task: Task, model: object) -> str | None:
        """Decline to compare probabilities where there are none."""
        if self.keep != "loss" and not isinstance(task, Classes):
            return f"the anchor retain_repair with keep {self.keep!r} compares probabilities, and this task has none"
        return None

    def hold(self, session: Session, state: State, lowered: Lowered, steps: int | None) -> Descent:
        """Return steps on the objective and the retain set."""
        return _Repair(session, state, lowered, self, steps)


class _Repair(Descent):
    """Steps on the objective and a batch of the retain set."""

    anchor: RetainRepair

    def __init__(
        self, session: Session, state: State, lowered: Lowered, anchor: RetainRepair, steps: int | None
    ) -> None:
        super().__init__(session, state, lowered, anchor, steps)
        each = anchor.budget * len(session.retain) / self.steps
        self.lam, self.keep = anchor.lam, anchor.keep
        self.batches = self._endless(min(max(1, int(each)), len(session.retain)), math.ceil(1 / min(1.0, each)))

    def _endless(self, size: int, times: int) -> Iterator[Batch]:
        """Yield batches of the retain set for ever, every pass in a new order, each batch some times in a row."""
        retain = self.session.retain
        for at in endless_orders(size, len(retain)):
            with whole(f"a batch of {len(at)} retain samples", SMALLER):
                batch = retain.read(at).to(self.runtime.torch_device)
            yield from repeat(batch, times)

    def with_rest(self, value: Tensor) -> Tensor:
        """Return (1−λ)·U + λ·R."""
        batch = next(self.batches)
        with whole(f"a batch of {len(batch)} retain samples", SMALLER):
            return (1 - self.lam) * value + self.lam * self._rest(batch)

    def _rest(self, batch: Batch) -> Tensor:
        if self.keep == "original":
            return self._apart(batch, self.session.task.forward(self.model, batch)[0])
        if batch.target is None:
            raise UserError("labels of the retain data", "none", "give targets, or set keep to 'original'")
        outputs, losses = outputs_and_losses(self.model, self.session.task, batch)
        mean = (losses if batch.weight is None else losses * batch.weight.to(losses)).mean()
        return mean if self.keep == "loss" else mean + self._apart(batch, outputs)

    def _apart(self, batch: Batch, outputs: Tensor) -> Tensor:
        """Return the mean KL from what the original says."""
        with torch.no_grad():
            before = self.session.task.forward(self.session.original, batch)[0]
        task = self.session.task
        return divergence(class_logits(task, before), class_logits(task, outputs)).mean()


ANCHOR = RetainRepair
