"""The modified-entropy attack: sure and right is a member, sure and wrong is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.attacks._labelled import labelled
from expunge.evidence import Outputs
from expunge.metric import Attack


@dataclass(frozen=True, kw_only=True)
class ModifiedEntropy(Attack):
    """Score = (1 − p_y) ln p_y + Σ_{c≠y} p_c ln(1 − p_c), the negative of the modified entropy.

    Released unlearning code takes ln p_c in place of ln(1 − p_c) and the label columns of all rows at once, so that a
    sample's number depends on which others share its batch. Here it depends on its own outputs and label alone.

    References:
        L. Song, P. Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning Models", 2021,
        https://arxiv.org/abs/2003.10595.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "labels"})
    label: ClassVar[str] = "modified-entropy attack"

    def score(self, outputs: Outputs, before: Outputs | None = None) -> Tensor:
        """Return minus the modified entropy, (N,), nats.

        Raises:
            UserError: no labels.
        """
        return -labelled(outputs.signals.modified_entropy, self.label)


ATTACK = ModifiedEntropy
