"""Away from what the original says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from expunge.data import Batch
from expunge.objectives._base import Context, Level, Objective, level_cap, loss_words
from expunge.objectives._distances import divergence
from expunge.part import Reference, option
from expunge.references import KURMANJI_2023


@dataclass(frozen=True, kw_only=True)
class Scrub(Objective):
    """Leave the original's predictions: U = −T²·KL(p_o ‖ p), p_o and p softmax of logits/T; ∂U/∂z = −T(p − p_o).

    Needs the inputs; the original is the teacher. Where both agree, as they do at the start, it has no gradient. It has
    no lower bound: past a mean divergence of ``cap`` a batch has no gradient; ``capped=False`` lets it go on.

    Reached at a mean divergence of the cap.
    """

    reference: ClassVar[Reference] = KURMANJI_2023
    teacher: ClassVar[Literal["original", "untrained"] | None] = "original"

    temperature: float = option(4.0, symbol="T", unit="1", text="by which all logits are divided")
    cap: float | None = option(None, unit="nats", text="mean divergence that ends it; unset, 2·ln K")
    capped: bool = option(True, unit="-", text="whether a batch past the cap has no gradient")

    def __post_init__(self) -> None:
        self.positive("temperature", "cap")
        self.flag("capped")

    @property
    def bounded(self) -> bool:
        """Whether it is capped."""
        return self.capped

    def values(self, outputs: Tensor, batch: Batch, context: Context) -> Tensor:
        """Return −T²·KL(p_o ‖ p) of each sample (B,), in nats."""
        return -divergence(context.taught(batch), context.logits(outputs), self.temperature)

    def past(self, mean: Tensor, classes: int) -> bool:
        """Return whether a batch's mean divergence, without T², is at the cap or above."""
        return self.capped and -float(mean) / self.temperature**2 >= level_cap(self.cap, classes)

    def reached(self, level: Level, context: Context) -> bool:
        """Return whether the mean divergence is at the cap or above."""
        return -level.value / self.temperature**2 >= level_cap(self.cap, level.classes)

    def met(self, level: Level, context: Context) -> str:
        """Return in words how far it is."""
        far = -level.value / self.temperature**2
        return loss_words(far, "mean divergence", level_cap(self.cap, level.classes))


OBJECTIVE = Scrub
