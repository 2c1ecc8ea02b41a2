"""Predictions as unsure as they can be."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from expunge.data import Batch
from expunge.objectives._base import Context, Level, Objective, uncertain, uncertain_words
from expunge.objectives._distances import negative_entropy
from expunge.part import option


@dataclass(frozen=True, kw_only=True)
class Entropy(Objective):
    """Raise the entropy of the predictions: U = Σ_k p_k·ln p_k, ∂U/∂z = p⊙(ln p + H).

    Needs the inputs alone. It is bounded by −ln K. Where a prediction is certain the gradient vanishes. Forgotten
    samples become less certain than unseen ones, which itself tells them apart: it is meant for whole classes.

    Reached at a mean entropy of ``target`` · ln K.
    """

    target: float = option(0.9, unit="share of ln K", text="mean entropy of the forget set's predictions to reach")

    def __post_init__(self) -> None:
        self.inside("target", 0, 1)

    def values(self, outputs: Tensor, batch: Batch, context: Context) -> Tensor:
        """Return Σ_k p_k·ln p_k of each sample (B,)."""
        return negative_entropy(context.logits(outputs))

    def reached(self, level: Level, context: Context) -> bool:
        """Return whether the mean entropy is at the target or above."""
        return uncertain(level, self.target)

    def met(self, level: Level, context: Context) -> str:
        """Return in words how far it is."""
        return uncertain_words(level, self.target)


OBJECTIVE = Entropy
