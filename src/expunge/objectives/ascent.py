"""Up the loss of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.data import Batch
from expunge.objectives._base import Context, Level, Objective, level_cap, loss_words, losses
from expunge.part import Reference, option
from expunge.references import THUDI_2022
from expunge.task import Classes, Task


@dataclass(frozen=True, kw_only=True)
class Ascent(Objective):
    """Raise the loss of training: U = −L(z, y), for classes ∂U/∂z = −(p − onehot(y)). A sample counts with its weight.

    Needs labels; any task has a loss. It has no lower bound: past a mean loss of ``cap`` a batch has no gradient;
    ``capped=False`` lets it go on.

    Reached at a mean loss of the cap.
    """

    reference: ClassVar[Reference] = THUDI_2022
    labels: ClassVar[bool] = True
    classes: ClassVar[bool] = False
    weighed: ClassVar[bool] = True

    cap: float | None = option(None, unit="the loss's", text="mean loss that ends it; unset, 2·ln K of K classes")
    capped: bool = option(True, unit="-", text="whether a batch past the cap has no gradient")

    def __post_init__(self) -> None:
        self.positive("cap")
        self.flag("capped")

    @property
    def bounded(self) -> bool:
        """Whether it is capped."""
        return self.capped

    def declines(self, task: Task) -> str | None:
        """Decline a cap of ln K where there are no classes."""
        if self.cap is None and not isinstance(task, Classes):
            return "the objective ascent is capped at 2·ln K of K classes, and this task has none: set its cap"
        return None

    def values(self, outputs: Tensor, batch: Batch, context: Context) -> Tensor:
        """Return minus the task's loss of each sample (B,)."""
        return -losses(outputs, batch, context)

    def past(self, mean: Tensor, classes: int) -> bool:
        """Return whether a batch's mean loss is at the cap or above."""
        return self.capped and -float(mean) >= level_cap(self.cap, classes)

    def reached(self, level: Level, context: Context) -> bool:
        """Return whether the mean loss is at the cap or above."""
        return -level.value >= level_cap(self.cap, level.classes)

    def met(self, level: Level, context: Context) -> str:
        """Return in words how far it is."""
        return loss_words(-level.value, "mean loss", level_cap(self.cap, level.classes))


OBJECTIVE = Ascent
