"""The correctness attack: members are predicted rightly more often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.attacks._labelled import labelled
from expunge.evidence import Outputs
from expunge.metric import Attack


@dataclass(frozen=True, kw_only=True)
class Correctness(Attack):
    """Score = 1 where the largest logit is the label's, else 0.

    With two values there is one threshold: AUC = ½ + (accuracy on members − accuracy on the others)/2, and no true
    positive rate above 0 at a small false positive rate unless nearly all of the others are wrong.

    References:
        S. Yeom, I. Giacomelli, M. Fredrikson, S. Jha, "Privacy Risk in Machine Learning: Analyzing the Connection to
        Overfitting", 2018, https://arxiv.org/abs/1709.01604.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "labels"})
    label: ClassVar[str] = "correctness attack"

    def score(self, outputs: Outputs, before: Outputs | None = None) -> Tensor:
        """Return 1 where right and 0 where wrong, (N,).

        Raises:
            UserError: no labels.
        """
        return labelled(outputs.signals.correct, self.label)


ATTACK = Correctness
