"""The entropy attack by threshold: predictions on members are surer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.evidence import Outputs
from expunge.metric import Attack


@dataclass(frozen=True, kw_only=True)
class Entropy(Attack):
    """Score = −H = Σ_c p_c ln p_c of the softmax p; no label is used, so a sure mistake counts as a member.

    ``entropy_lr`` reads the same number, but fits its threshold and sign on retained samples against the test set.

    References:
        L. Song, P. Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning Models", 2021,
        https://arxiv.org/abs/2003.10595.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    label: ClassVar[str] = "entropy attack by ranks"

    def score(self, outputs: Outputs, before: Outputs | None = None) -> Tensor:
        """Return −H, (N,), nats."""
        return -outputs.signals.entropy


ATTACK = Entropy
