"""Backdoor: does the model still obey a trigger that was planted in its training data?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from expunge import stats
from expunge.evidence import Outputs
from expunge.metric import Audit, Found, Goal, Metric, Number, Value, missing

MUST_BE_PLANTED = "no trigger was planted: poison the training data with expunge.poison.Backdoor before training"


@dataclass(frozen=True, kw_only=True)
class Backdoor(Metric):
    """Share of unseen samples of other classes, with the trigger, that are taken for the class it stands for.

    The success rate of the attack, with Wilson's interval; the gap to retrained is paired by sample. The samples are
    test samples that were not trained on, with the patch that the forgotten ones carry (`expunge.poison.Backdoor`);
    those whose true class is the target are left out, for a model without the backdoor has them right. The goal is
    retrained's value: what a model that never saw the trigger takes for that class by mistake, which is seldom 0.

    References:
        T. Gu, B. Dolan-Gavitt, S. Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply
        Chain", 2017, https://arxiv.org/abs/1708.06733.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs: ClassVar[frozenset[str]] = frozenset({"classes"})
    undefined: ClassVar[tuple[str, ...]] = ("no trigger was planted", "the triggered samples have no labels")

    @property
    def numbers(self) -> dict[str, Number]:
        """``backdoor/success``."""
        return {"backdoor/success": self.number("success of the trigger")}

    def measure(self, audit: Audit) -> Found:
        """Return the share of triggered samples that are taken for the class of the trigger."""
        own = audit.outputs("triggered")
        if own is None or len(own) == 0:
            return self.none(MUST_BE_PLANTED)
        if own.target is None:
            return self.none("the triggered samples have no labels")
        obeys = own.prediction.eq(own.target).numpy()
        other = audit.outputs("triggered", "retrained")
        if other is not None and missing(frozenset({"retrained"}), audit) is None and _alike(own, other):
            also = other.prediction.eq(own.target).numpy()
            audit.kept.gaps["backdoor/success"] = Value.of(stats.paired_proportions(obeys, also))
        return {"backdoor/success": Value.of(stats.wilson(int(obeys.sum()), len(obeys)))}


def _alike(own: Outputs, other: Outputs) -> bool:
    return own.outputs.shape == other.outputs.shape


METRIC = Backdoor
