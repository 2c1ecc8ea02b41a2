"""Membership attacks turned into numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from expunge import attacks, stats
from expunge.attacks import _roc
from expunge.evidence import Evidence, Outputs
from expunge.metric import Attack, Audit, Found, Goal, Metric, Number, Unavailable, Value, missing

RATES = (0.01, 0.001)
_LABELS = {"auc": "AUC", "balanced_accuracy": "balanced accuracy"}
# Of retrained against itself: nothing to tell apart, so that chance is the ideal.
_ITSELF = {"auc": 0.5, "balanced_accuracy": 0.5, **{f"tpr_at_fpr_{rate:g}": rate for rate in RATES}}
_LABELS |= {f"tpr_at_fpr_{rate:g}": f"TPR at {100 * rate:g} % FPR" for rate in RATES}


@dataclass(frozen=True, kw_only=True)
class Membership(Metric):
    """Each attack's success at telling forget samples (members) from unseen ones of the same kind.

    Unseen are test samples of the forgotten class, subclass, subject or range; for other kinds all test samples,
    whatever their labels, so that a set of odd labels differs from them by its labels too. An attack
    with a threshold of its own gives the share of the forget set it calls member (or, where it says so, unseen); the
    others give AUC (DeLong), cross-validated balanced accuracy, and the true positive rate at a false positive rate
    of 1 % and of 0.1 %, where there are enough unseen samples to resolve it. Goal: retrained's
    values; below them the forgotten stand out as well.

    Args:
        names: attacks to run; all by default, without ``shadows`` those that need none.
        shadows: evidence of shadow models for attacks that want it; see `expunge.evidence.Shadow`.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "test"})
    undefined: ClassVar[tuple[str, ...]] = (
        "no unseen sample of the forgotten kind",
        "needs shadow models:",
        *_roc.UNDEFINED,
    )

    names: tuple[str, ...] | None = None
    shadows: Sequence[Evidence] = field(default=())

    @property
    def numbers(self) -> dict[str, Number]:
        """Return ``membership/<attack>`` of those that decide, else ``membership/<attack>/<number>``."""
        found: dict[str, Number] = {}
        for name in self._names():
            found |= self._numbers(name, attacks.load(name))
        return found

    def measure(self, audit: Audit) -> Found:
        """Fit and run each attack; one whose needs are not met is unavailable with the reason."""
        found: Found = {}
        for name in self._names():
            attack = attacks.load(name)()
            reason = missing(attack.needs | self.needs, audit) or attack.declines(audit) or self._few(attack)
            if reason:
                found |= dict.fromkeys(self._numbers(name, type(attack)), Unavailable(reason))
            else:
                found |= self._run(name, audit.fitted(attack, self.shadows), audit)
        return found

    def _names(self) -> Sequence[str]:
        if self.names is not None:
            return self.names
        return attacks.names() if self.shadows else attacks.alone()

    def _few(self, attack: Attack) -> str | None:
        if len(self.shadows) >= attack.shadows:
            return None
        return f"needs shadow models: {len(self.shadows)} given, at least {attack.shadows}"

    def _numbers(self, name: str, attack: type[Attack]) -> dict[str, Number]:
        if attack.threshold is not None:
            told = "member" if attack.counts == "members" else "unseen"
            return {f"membership/{name}": self.number(f"{attack.label}: forget set called {told}")}
        itself = _ITSELF if attack.against == "retrained" else {}
        return {
            f"membership/{name}/{key}": self.number(f"{attack.label}: {text}", target=itself.get(key))
            for key, text in _LABELS.items()
        }

    def _run(self, name: str, attack: Attack, audit: Audit) -> Found:
        if attack.threshold is not None:
            members = _scores(attack, audit, "forget")
            called = int((members > attack.threshold).sum())
            count = called if attack.counts == "members" else len(members) - called
            return {f"membership/{name}": Value.of(stats.wilson(count, len(members)))}
        members, others = member_scores(attack, audit)
        prefix, keys = f"membership/{name}", self._numbers(name, type(attack))
        if len(others) == 0:
            return dict.fromkeys(keys, Unavailable("no unseen sample of the forgotten kind"))
        audit.kept.samples[f"score/{name}/members"], audit.kept.samples[f"score/{name}/others"] = members, others
        return {
            f"{prefix}/auc": _roc.auc(members, others),
            f"{prefix}/balanced_accuracy": _roc.balanced_accuracy(members, others, audit.seed),
            **{f"{prefix}/tpr_at_fpr_{rate:g}": _roc.tpr_at(members, others, rate) for rate in RATES},
        }


def member_scores(attack: Attack, audit: Audit) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a fitted attack's scores of the forget set and of unseen samples of the same kind."""
    like = "test" if audit.outputs("test_forget") is None else "test_forget"
    return _scores(attack, audit, "forget"), _scores(attack, audit, like)


def _scores(attack: Attack, audit: Audit, split: str) -> NDArray[np.float64]:
    outputs = audit.outputs(split)
    before: Outputs | None = None if attack.against is None else audit.outputs(split, attack.against)
    if outputs is None or len(outputs) == 0:
        return np.empty(0)
    found: NDArray[np.float64] = attack.score(outputs, before).double().numpy()
    return found


METRIC = Membership
