"""The confidence attack: members are given a higher probability of their label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.attacks._labelled import labelled
from expunge.evidence import Outputs
from expunge.metric import Attack


@dataclass(frozen=True, kw_only=True)
class Confidence(Attack):
    """Score = p_y, the softmax probability of the label.

    For cross-entropy it ranks as the loss does, −ln p_y, so that its numbers are those of the attack ``loss`` up to
    ties of probabilities that round to 1 or 0; of a task with another loss, or of labels smoothed, they may differ.

    References:
        L. Song, P. Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning Models", 2021,
        https://arxiv.org/abs/2003.10595.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "labels"})
    label: ClassVar[str] = "confidence attack"

    def score(self, outputs: Outputs, before: Outputs | None = None) -> Tensor:
        """Return p_y, (N,).

        Raises:
            UserError: no labels.
        """
        return labelled(outputs.signals.confidence, self.label)


ATTACK = Confidence
