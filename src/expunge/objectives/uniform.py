"""Predictions that are the uniform distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.data import Batch
from expunge.objectives._base import Context, Level, Objective, uncertain, uncertain_words
from expunge.part import option


@dataclass(frozen=True, kw_only=True)
class Uniform(Objective):
    """Draw the predictions to the uniform distribution: U = KL(1/K ‖ p) = −ln K − mean_k ln p_k, ∂U/∂z = p − 1/K.

    Needs the inputs alone. It is bounded by 0, and its gradient never vanishes, however certain a prediction.

    Reached at a mean entropy of ``target`` · ln K.
    """

    target: float = option(0.9, unit="share of ln K", text="mean entropy of the forget set's predictions to reach")

    def __post_init__(self) -> None:
        self.inside("target", 0, 1)

    def values(self, outputs: Tensor, batch: Batch, context: Context) -> Tensor:
        """Return KL(1/K ‖ p) of each sample (B,), in nats."""
        logits = context.logits(outputs)
        logs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=1)
        return -math.log(logits.shape[1]) - logs.mean(dim=1)

    def reached(self, level: Level, context: Context) -> bool:
        """Return whether the mean entropy is at the target or above."""
        return uncertain(level, self.target)

    def met(self, level: Level, context: Context) -> str:
        """Return in words how far it is."""
        return uncertain_words(level, self.target)


OBJECTIVE = Uniform
