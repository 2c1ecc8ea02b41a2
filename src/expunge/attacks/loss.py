"""The loss-threshold attack: members have a lower loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.attacks._labelled import labelled
from expunge.evidence import Outputs
from expunge.metric import Attack


@dataclass(frozen=True, kw_only=True)
class LossThreshold(Attack):
    """Score = −ℓ(x, y).

    References:
        S. Yeom, I. Giacomelli, M. Fredrikson, S. Jha, "Privacy Risk in Machine Learning: Analyzing the Connection to
        Overfitting", 2018, https://arxiv.org/abs/1709.01604.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"labels"})
    label: ClassVar[str] = "loss attack"

    def score(self, outputs: Outputs, before: Outputs | None = None) -> Tensor:
        """Return −loss, (N,).

        Raises:
            UserError: no labels.
        """
        return -labelled(outputs.loss, self.label)


ATTACK = LossThreshold
