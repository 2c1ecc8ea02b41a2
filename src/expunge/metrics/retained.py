"""What those who stay pay in privacy: whether they are known as members, and whether the edit tells who was deleted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from expunge.attacks import _roc
from expunge.attacks.svc import staying
from expunge.evidence import Outputs
from expunge.metric import Audit, Found, Goal, Metric, Number, Unavailable, Value, missing


@dataclass(frozen=True, kw_only=True)
class Retained(Metric):
    """Membership of the samples that stay, and of those that went, as an attacker with the original sees it.

    - ``retained/auc`` = P(p_y of a retained sample > p_y of an unseen one) + ½ P(equal), the confidence attack on the
      retain set; unseen are the test samples of the kinds that stay, where a whole kind is forgotten. Unlearning that
      trains on few retained samples, or on all of them once more, may make members of those who stay stand out more
      than they do to retrained.
    - ``retained/drop_auc`` = P(drop of a forgotten sample > drop of a retained one) + ½ P(equal), drop = φ(original) −
      φ(model) with the margin φ = ln p_y − ln Σ_{c≠y} p_c: an attacker who holds the model of before and of after asks
      who was deleted. Retraining lets the forgotten fall as well, and its value is the goal. It is undefined of a
      model that answers as the original does.

    Intervals are DeLong's, over samples.

    References:
        Before and after: M. Chen, Z. Zhang, T. Wang, M. Backes, M. Humbert, Y. Zhang, "When Machine Unlearning
        Jeopardizes Privacy", 2021, https://arxiv.org/abs/2005.02205. Those who stay: N. Carlini, M. Jagielski,
        C. Zhang, N. Papernot, A. Terzis, F. Tramèr, "The Privacy Onion Effect: Memorization is Relative", 2022,
        https://arxiv.org/abs/2206.10469.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs: ClassVar[frozenset[str]] = frozenset({"logits", "labels", "retain"})
    wants: ClassVar[frozenset[str]] = frozenset({"test", "forget", "original"})
    undefined: ClassVar[tuple[str, ...]] = ("needs 2 samples on each side", "all scores are equal")

    @property
    def numbers(self) -> dict[str, Number]:
        """``retained/auc`` and ``retained/drop_auc``."""
        return {
            "retained/auc": self.number("AUC, retained samples against unseen ones like them"),
            "retained/drop_auc": self.number("AUC of the margin's drop since the original, forgotten against retained"),
        }

    def measure(self, audit: Audit) -> Found:
        """Return both areas under the curve."""
        return {"retained/auc": self._members(audit), "retained/drop_auc": self._deleted(audit)}

    def _members(self, audit: Audit) -> Value | Unavailable:
        if reason := missing(frozenset({"test", "labels"}), audit):
            return Unavailable(reason)
        retain, others = (side.signals.confidence for side in (audit.said("retain"), staying(audit)))
        assert retain is not None
        assert others is not None
        return _roc.auc(retain.numpy(), others.numpy())

    def _deleted(self, audit: Audit) -> Value | Unavailable:
        if reason := missing(frozenset({"forget", "retain", "labels", "original"}), audit):
            return Unavailable(reason)
        gone, stay = (_drop(audit.said(s, "original"), audit.said(s)) for s in ("forget", "retain"))
        return _roc.auc(gone, stay)


def _drop(before: Outputs, after: Outputs) -> NDArray[np.float64]:
    was, now = before.signals.margin, after.signals.margin
    assert was is not None
    assert now is not None
    found: NDArray[np.float64] = (was - now).numpy()
    return found


METRIC = Retained
