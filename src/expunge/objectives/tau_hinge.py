"""As high as the loss on held-out data, and no higher."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from expunge.data import Batch
from expunge.errors import UserError
from expunge.objectives._base import Context, Level, Objective, loss_words, losses
from expunge.part import Reference, option
from expunge.references import TRIPPA_2024

Hinge = Literal["one_sided", "two_sided"]
Reduction = Literal["auto", "batch", "sample"]
ABOVE = 1.05  # times the forget loss: τ must be higher for anything to be forgotten


@dataclass(frozen=True, kw_only=True)
class TauHinge(Objective):
    """Raise the loss to what it is on data that the model never saw: U = max(0, τ − L̄)², L̄ the mean over the batch.

    ∂U/∂ℓ_i = −2·max(0, τ − L̄)/B: the pull fades as the loss nears τ, and ends there. ``reduction="sample"`` has the
    mean over samples of max(0, τ − ℓ_i)², so that one hard sample does not hide those still remembered; ``auto`` is
    that for a whole class and the batch's mean else. ``hinge="two_sided"`` has (τ − L̄)², which draws a loss that is
    too high back down; the published code for text has that.

    Of a whole class τ is max(τ, ln K), unless ``tau`` says it: a model that never saw the class has a far larger loss
    on it than on held-out data of all classes. Needs labels, and any task's loss will do. It is bounded by 0.

    Reached at a mean loss of τ.
    """

    reference: ClassVar[Reference] = TRIPPA_2024
    labels: ClassVar[bool] = True
    classes: ClassVar[bool] = False
    threshold: ClassVar[bool] = True

    tau: float | None = option(
        None, symbol="τ", unit="the loss's", text="the loss to rise to; unset, the mean loss on held-out data"
    )
    hinge: Hinge = option("one_sided", unit="-", text="whether a loss above τ is left alone, or drawn down: two_sided")
    reduction: Reduction = option(
        "auto", unit="-", text="batch: the hinge on the batch's mean; sample: on each; auto: sample for a whole class"
    )

    def __post_init__(self) -> None:
        self.positive("tau")
        self.one_of("hinge", *get_args(Hinge))
        self.one_of("reduction", *get_args(Reduction))

    def level(self, classes: int, context: Context) -> float:
        """Return τ.

        Args:
            classes: K, or 0 where there are none.
            context: of the request.

        Raises:
            UserError: it is not known.
        """
        if self.tau is not None:
            return self.tau
        if context.tau is None:
            remedy = "pass holdout=, prepare with holdout data, or set tau_hinge.tau"
            raise UserError("a loss on held-out data for tau_hinge", "none", remedy)
        return max(context.tau, math.log(classes)) if context.whole_class and classes else context.tau

    def each(self, context: Context) -> bool:
        """Return whether the hinge is on each sample."""
        return self.reduction == "sample" or (self.reduction == "auto" and context.whole_class)

    def hinged(self, losses: Tensor, tau: float) -> Tensor:
        """Return max(0, τ − ℓ)², or (τ − ℓ)² of two sides, elementwise."""
        gap = tau - losses
        return (gap.clamp_min(0) if self.hinge == "one_sided" else gap).square()

    def values(self, outputs: Tensor, batch: Batch, context: Context) -> Tensor:
        """Return the hinge on the loss of each sample (B,)."""
        return self.hinged(losses(outputs, batch, context), self.level(context.count(outputs), context))

    def loss(self, outputs: Tensor, batch: Batch, context: Context) -> Tensor:
        """Return the hinge on the batch's mean loss, or the mean over samples, a scalar."""
        found = losses(outputs, batch, context)
        return self.of(found, self.level(context.count(outputs), context), each=self.each(context))

    def of(self, losses: Tensor, tau: float, *, each: bool) -> Tensor:
        """Return U of a batch, a scalar.

        Args:
            losses: of its samples, (B,).
            tau: τ.
            each: whether the hinge is on each sample.

        >>> float(TauHinge().of(Tensor([1.0, 2.0]), 2.0, each=False))
        0.25
        """
        return self.hinged(losses, tau).mean() if each else self.hinged(losses.mean(), tau)

    def reached(self, level: Level, context: Context) -> bool:
        """Return whether the mean loss is τ or above."""
        assert level.loss is not None
        return level.loss >= self.level(level.classes, context)

    def idle(self, level: Level, context: Context) -> bool:
        """Return whether τ is not above 1.05 times the mean forget loss: as high as on held-out data already."""
        assert level.loss is not None
        return self.level(level.classes, context) <= ABOVE * level.loss

    def met(self, level: Level, context: Context) -> str:
        """Return in words how far it is."""
        assert level.loss is not None
        return loss_words(level.loss, "mean loss", self.level(level.classes, context))


OBJECTIVE = TauHinge
