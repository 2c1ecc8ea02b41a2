"""What methods share that raise the loss on the samples to forget: the loss at which they stop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from expunge.data import Batch
from expunge.errors import NotFinite, UserError
from expunge.method import Session, option
from expunge.methods._steps import Descent, Stepped, only_classes
from expunge.objectives.ascent import Ascent
from expunge.scenario import Scenario
from expunge.task import Task, class_count
from expunge.train import mean_loss

Until = float | Literal["chance"] | None


@dataclass(frozen=True, kw_only=True)
class Ascending(Stepped):
    """What methods have in common that raise the forget loss, which has no upper bound, until it has risen enough.

    The epoch with the lowest loss on holdout data is often the first of an ascent, and always one that has forgotten
    less than the one at which ``until`` ends it: ``keep_best`` asks for ``until`` to be None.
    """

    until: Until = option(
        "chance",
        unit="the loss's",
        text="mean forget loss that ends it after an epoch: a number, chance for ln K of K classes, or null for none",
    )

    keep_best: bool = option(
        False,
        unit="-",
        text="return the epoch with the lowest loss on holdout data, which it then needs: of an ascent often the "
        "first, which has hardly forgotten; with until null alone",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_best and self.until is not None:
            remedy = "leave keep_best out, for it returns an epoch before until was reached, or set until to None"
            raise UserError(f"{self.name}.keep_best or {self.name}.until", "both", remedy)
        if isinstance(self.until, str):
            if self.until != "chance":
                want = f"{self.name}.until 'chance', a number or None"
                raise UserError(want, repr(self.until), "choose one of them")
        elif self.until is not None:
            self.positive("until")

    def declines(self, task: Task, scenario: Scenario | None, model: nn.Module) -> str | None:
        """Decline to stop at chance where there are no classes."""
        why = f"{self.name} stops at the loss of chance unless until is set to a number or None"
        return only_classes(task, why) if self.until == "chance" else None


class Ceiling:
    """The objective `ascent` on the forget set, and the loss at which it ends.

    Args:
        session: holds forget data with labels.
        descent: takes the steps.
        method: says which loss.
    """

    def __init__(self, session: Session, descent: Descent, method: Ascending) -> None:
        self.session, self.descent, self.method = session, descent, method
        self.objective = Ascent(capped=False)  # until looks at all samples after an epoch, a cap at each batch
        self.context = self.objective.context(session)
        self.classes = 0

    def loss(self, batch: Batch) -> Tensor:
        """Return minus the mean loss of a batch of forget samples, a scalar, and keep how many classes there are."""
        outputs = self.descent.outputs(batch)
        self.classes = class_count(self.descent.task, outputs)
        return self.objective.loss(outputs, batch, self.context)

    def reached(self) -> bool:
        """Count an epoch, and return whether the mean forget loss, in eval mode, is at the ceiling or above."""
        self.descent.ended()
        until = self.method.until
        if until is None:
            return False
        level = math.log(self.classes) if until == "chance" else until
        now = self._measured()
        if now < level:
            return False
        epochs = self.descent.epochs
        self.session.record("reached_epoch", epochs)
        if epochs < self.method.epochs:
            what = "that of chance" if until == "chance" else "the one asked for"
            text = f"stopped after epoch {epochs} of {self.method.epochs}: the mean forget loss {now:.4g} reached"
            self.session.record("note", f"{text} {level:.4g}, {what}")
        return True

    def _measured(self) -> float:
        descent, forget = self.descent, self.session.forget
        descent.model.eval()
        try:
            now = mean_loss(descent.model, descent.task, forget, descent.runtime)
        except NotFinite as error:
            name = self.method.name
            got, remedy = f"NaN or infinity after step {descent.steps}", f"lower {name}.lr (now {self.method.lr:g})"
            raise NotFinite(f"a finite forget loss of {name}", got, remedy) from error
        descent.advance(len(forget))
        self.session.record("forget_loss", now, step=descent.steps)
        return now
