"""The entropy logistic-regression attack of the dampening papers, as their released code runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from expunge.errors import UserError
from expunge.evidence import Evidence, Outputs
from expunge.metric import Attack, Audit


@dataclass(frozen=True, kw_only=True)
class EntropyLR(Attack):
    """Logistic regression on one feature, the entropy of the predicted distribution.

    Fitted with balanced class weights on retained training samples (member) against the whole test set; the number
    reported is the share of the forget set called member. The sign is free: if members have the higher entropy,
    high entropy means member. A population attack on one model, of low power; for classes it mixes class shift
    with membership.

    Args:
        penalty: ``multinomial`` fits two mirrored weight vectors, which equals binary regression at twice C; the
            released code does so. ``binary`` is the ordinary one.
        weight: fitted slope.
        bias: fitted intercept.

    References:
        V. S. Chundawat, A. K. Tarun, M. Mandal, M. Kankanhalli, "Can Bad Teaching Induce Forgetting?", 2023,
        https://arxiv.org/abs/2205.08096, in the variant released with J. Foster, S. Schoepf, A. Brintrup, "Fast
        Machine Unlearning Without Retraining Through Selective Synaptic Dampening", 2024.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "retain"})
    label: ClassVar[str] = "entropy attack"
    threshold: ClassVar[float | None] = 0.0

    penalty: Literal["multinomial", "binary"] = "multinomial"
    weight: float | None = None
    bias: float | None = None

    def fit(self, audit: Audit, shadows: Sequence[Evidence] = ()) -> EntropyLR:
        """Fit on the audited model's own outputs on retain and test."""
        members, others = audit.outputs("retain"), audit.outputs("test")
        if members is None or others is None:
            raise UserError("outputs on retain and test for the entropy attack", "none", "pass train and test data")
        return self.fit_entropies(members.signals.entropy.numpy(), others.signals.entropy.numpy())

    def fit_entropies(self, members: np.ndarray, others: np.ndarray) -> EntropyLR:
        """Fit on entropies of members (N,) and others (M,)."""
        x = np.concatenate([members, others])[:, None]
        y = np.concatenate([np.ones(len(members)), np.zeros(len(others))])
        c = 2.0 if self.penalty == "multinomial" else 1.0
        model = LogisticRegression(C=c, class_weight="balanced").fit(x, y)
        return replace(self, weight=float(model.coef_[0, 0]), bias=float(model.intercept_[0]))

    def score(self, outputs: Outputs, before: Outputs | None = None) -> Tensor:
        """Return weight·H + bias, (N,); above 0 is called member.

        Raises:
            UserError: not fitted.
        """
        if self.weight is None or self.bias is None:
            raise UserError("a fitted attack", "an unfitted one", "call fit first")
        return self.weight * outputs.signals.entropy + self.bias


ATTACK = EntropyLR
