"""The membership attack of regression: a support vector machine on each sample's error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from expunge import stats
from expunge.attacks import _roc
from expunge.attacks.svc import SVCEfficacy
from expunge.metric import Audit, Found, Goal, Metric, Number, Unavailable, Value, missing
from expunge.task import Quantile, Regression


@dataclass(frozen=True, kw_only=True)
class ErrorAttack(Metric):
    """How well errors tell retained from unseen samples, and how much of the forget set they then call member.

    The attack ``svc`` with the feature |ŷ − y| is fitted on half of the drawn retain samples (members) and half of as
    many unseen ones (others); the forget set is in neither. ``error_attack/auc`` is the AUC of its decision on the
    other halves (DeLong's interval): near one half it tells nothing, and then neither does the second number.
    ``error_attack/members`` is the share of the forget set called member (Wilson's interval), which is
    1 − ``membership/svc``. Goal of both: retrained's value.

    References:
        A. K. Tarun, V. S. Chundawat, M. Mandal, M. Kankanhalli, "Deep Regression Unlearning", 2023,
        https://arxiv.org/abs/2210.08196; members without the forget set, and the halves, are ours.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain", "test", "labels"})
    undefined: ClassVar[tuple[str, ...]] = (
        "it is an attack on regression",
        *SVCEfficacy.undefined,
        *_roc.UNDEFINED,
    )

    @property
    def numbers(self) -> dict[str, Number]:
        """``error_attack/auc`` and ``error_attack/members``."""
        return {
            "error_attack/auc": self.number("error attack: AUC on retain and unseen samples held back"),
            "error_attack/members": self.number("error attack: forget set called member"),
        }

    def measure(self, audit: Audit) -> Found:
        """Fit the attack and return both numbers."""
        if not isinstance(audit.task, Regression | Quantile):
            return self.none("it is an attack on regression")
        attack = SVCEfficacy()
        reason = missing(attack.needs, audit) or attack.declines(audit)
        if reason:
            return self.none(reason)
        fitted = audit.fitted(attack)
        assert isinstance(fitted, SVCEfficacy)
        auc: Value | Unavailable = _roc.auc(*fitted.held)
        called = (fitted.score(audit.said("forget")) > 0).numpy()
        members = Value.of(stats.wilson(int(called.sum()), len(called)))
        return {"error_attack/auc": auc, "error_attack/members": members}


METRIC = ErrorAttack
