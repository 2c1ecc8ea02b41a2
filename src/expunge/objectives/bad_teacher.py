"""What a network without training says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from expunge.data import Batch
from expunge.objectives._base import Context, Level, Objective, told, told_words
from expunge.objectives._distances import divergence
from expunge.part import Reference, option
from expunge.references import CHUNDAWAT_2023


@dataclass(frozen=True, kw_only=True)
class BadTeacher(Objective):
    """Follow an untrained network: U = KL(t ‖ p), t and p softmax of logits/T, without a factor T²; ∂U/∂z = (p − t)/T.

    Needs the inputs and the network before training. It is bounded by 0. With ``compat="official"`` it is divided by K,
    as published code has it.

    Reached when no more than ``target`` of the forget set are told right, or, without labels, told as the original
    tells them.
    """

    reference: ClassVar[Reference] = CHUNDAWAT_2023
    teacher: ClassVar[Literal["original", "untrained"] | None] = "untrained"
    compared: ClassVar[bool] = True

    target: float | None = option(
        None,
        unit="share",
        text="of the forget set told right, to come down to; unset, 1 % of a whole class, else as of held-out data",
    )
    temperature: float = option(1.0, symbol="T", unit="1", text="by which all logits are divided")
    compat: Literal["paper", "official"] = option(
        "paper", unit="-", text="official divides by the number of classes, as the published code does"
    )

    def __post_init__(self) -> None:
        self.inside("target", 0, 1, ends=True)
        self.positive("temperature")
        self.one_of("compat", "paper", "official")

    def values(self, outputs: Tensor, batch: Batch, context: Context) -> Tensor:
        """Return KL(t ‖ p) of each sample (B,), in nats."""
        student = context.logits(outputs)
        return self._scaled(divergence(context.taught(batch), student, self.temperature), student.shape[1])

    def loss(self, outputs: Tensor, batch: Batch, context: Context) -> Tensor:
        """Return the mean of KL(t ‖ p) over a batch, a scalar."""
        return self.distance(context.taught(batch), context.logits(outputs))

    def distance(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return the mean over a batch of KL(softmax(teacher/T) ‖ softmax(student/T)), whoever teaches.

        Args:
            teacher: logits (B, K); no gradient flows into them.
            student: logits (B, K).

        Returns:
            A scalar in nats; with ``compat="official"`` divided by K.
        """
        return self._scaled(divergence(teacher, student, self.temperature).mean(), student.shape[1])

    def _scaled(self, found: Tensor, classes: int) -> Tensor:
        """Return T²·KL without its factor, and divided by K as the published code does it."""
        found = found / self.temperature**2
        return found / classes if self.compat == "official" else found

    def reached(self, level: Level, context: Context) -> bool:
        """Return whether few enough of the forget set are told right."""
        return told(level, context, self.target)

    def met(self, level: Level, context: Context) -> str:
        """Return in words how far it is."""
        return told_words(level, context, self.target)


OBJECTIVE = BadTeacher
