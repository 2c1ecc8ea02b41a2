"""Membership attacks turned into numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from expunge import attacks, stats
from expunge.attacks import _roc
from expunge.evidence import Evidence, Outputs
from expunge.metric import Attack, Audit, Found, Goal, Metric, Unavailable, Value
from expunge.task import Classification

_NUMBERS = ("auc", "balanced_accuracy", "tpr_at_fpr_0.01")


@dataclass(frozen=True, kw_only=True)
class Membership(Metric):
    """Each attack's success at telling forget samples (members) from unseen ones of the same kind.

    Unseen are test samples of the forgotten class, subclass, subject or range; for other kinds all test samples,
    whatever their labels, so that a set of odd labels differs from them by its labels too. An attack
    with a threshold of its own gives the share of the forget set it calls member; the others give AUC (DeLong),
    cross-validated balanced accuracy, and the true positive rate at a false positive rate of 1 %. Goal: retrained's
    values; below them the forgotten stand out as well.

    Args:
        names: attacks to run; all by default.
        shadows: evidence of shadow models for attacks that want it.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    names: tuple[str, ...] | None = None
    shadows: Sequence[Evidence] = field(default=())

    def __call__(self, audit: Audit) -> Found:
        """Return ``membership/<attack>`` or ``membership/<attack>/<number>``."""
        found: Found = {}
        for name in attacks.names() if self.names is None else self.names:
            attack = attacks.load(name)()
            keys = [f"membership/{name}"] if attack.threshold is not None else []
            keys = keys or [f"membership/{name}/{number}" for number in _NUMBERS]
            reason = self._missing(attack, audit)
            if reason:
                found |= dict.fromkeys(keys, Unavailable(reason))
            else:
                found |= self._run(name, attack.fit(audit, self.shadows), audit)
        return found

    def _missing(self, attack: Attack, audit: Audit) -> str | None:
        if "classes" in attack.needs and not isinstance(audit.task, Classification):
            return "the task has no classes"
        for split in ("forget", "test", *(n for n in attack.needs if n in ("retain", "holdout"))):
            outputs = audit.outputs(split)
            if outputs is None or len(outputs) == 0:
                return f"there are no samples in {split}"
            if outputs.loss is None and "classes" not in attack.needs:
                return f"{split} has no labels"
            if outputs.loss is not None and not bool(torch.isfinite(outputs.loss).all()):
                return f"a loss on {split} is infinite or not a number"
        return None

    def _run(self, name: str, attack: Attack, audit: Audit) -> Found:
        members, others = member_scores(attack, audit)
        if attack.threshold is not None:
            called = int((members > attack.threshold).sum())
            return {f"membership/{name}": Value.of(stats.wilson(called, len(members)))}
        prefix = f"membership/{name}"
        if len(others) == 0:
            return {f"{prefix}/{n}": Unavailable("no unseen sample of the forgotten kind") for n in _NUMBERS}
        return {
            f"{prefix}/auc": _roc.auc(members, others),
            f"{prefix}/balanced_accuracy": _roc.balanced_accuracy(members, others, audit.seed),
            f"{prefix}/tpr_at_fpr_0.01": _roc.tpr_at(members, others, 0.01),
        }


def member_scores(attack: Attack, audit: Audit) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a fitted attack's scores of the forget set and of unseen samples of the same kind."""
    forget, unseen = audit.outputs("forget"), audit.outputs("test_forget")
    unseen = audit.outputs("test") if unseen is None else unseen
    return _scores(attack, forget), _scores(attack, unseen)


def _scores(attack: Attack, outputs: Outputs | None) -> NDArray[np.float64]:
    if outputs is None or len(outputs) == 0:
        return np.empty(0)
    found: NDArray[np.float64] = attack.score(outputs).double().numpy()
    return found


METRIC = Membership
