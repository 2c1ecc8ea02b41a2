"""Tug of war and average gap: one number for how far accuracies are from retrained's, all together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from expunge.attacks.svc import SVCEfficacy
from expunge.metric import Audit, Found, Goal, Kept, Metric, Number, Unavailable, Value, missing


def tow(model: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """Return Π over sets of (1 − |Δ|), Δ the difference of two accuracies in [0, 1] on that set.

    >>> seen = {"forget": 0.10, "retain": 0.98, "test": 0.74}
    >>> round(tow(seen, {"forget": 0.0, "retain": 1.0, "test": 0.73}), 5)
    0.87318
    """
    found = 1.0
    for name, x in model.items():
        found *= 1 - abs(x - retrained[name])
    return found


def average_gap(model: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """Return the mean over numbers of |Δ|, in their unit.

    >>> retrained = {"UA": 5.24, "RA": 100, "TA": 94.26, "MIA": 12.88}
    >>> round(average_gap({"UA": 2.85, "RA": 99.62, "TA": 93.93, "MIA": 14.39}, retrained), 4)
    1.1525
    """
    return sum(abs(x - retrained[name]) for name, x in model.items()) / len(model)


@dataclass(frozen=True, kw_only=True)
class Tow(Metric):
    """Tug of war and average gap: three accuracies, and MIA efficacy, against retrained's; one number each.

    With Δ = the model's − retrained's, accuracies A and MIA efficacy in [0, 1]: ToW = (1 − |ΔA_forget|)
    (1 − |ΔA_retain|)(1 − |ΔA_test|), 1 being ideal, and the average gap = (|ΔUA| + |ΔRA| + |ΔTA| + |ΔMIA|)/4, 0 being
    ideal, with UA = 1 − A_forget, RA = A_retain, TA = A_test and MIA the share of the forget set that the attack
    ``svc`` calls unseen. Where a class is forgotten as a whole, the test set is without it, since retrained cannot
    know it.

    Both hide which part is off and to which side, and a masked output passes where a class is forgotten: they say
    nothing of what is left inside the network. A pair of models is one observation: there is no interval before
    several seeds are pooled.

    References:
        ToW: K. Zhao, M. Kurmanji, G.-O. Bărbulescu, E. Triantafillou, P. Triantafillou, "What makes unlearning hard
        and what to do about it", 2024, https://arxiv.org/abs/2406.01257. Average gap: C. Fan, J. Liu, Y. Zhang,
        E. Wong, D. Wei, S. Liu, "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both
        Image Classification and Generation", 2024, https://arxiv.org/abs/2310.12508.
    """

    goal: ClassVar[Goal] = Goal.MAX
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain", "test", "labels", "logits", "retrained"})
    undefined: ClassVar[tuple[str, ...]] = ("MIA efficacy cannot be had",)

    @property
    def numbers(self) -> dict[str, Number]:
        """``tow/tow`` and ``tow/average_gap``."""
        return {
            "tow/tow": self.number("tug of war of accuracies", target=1.0),
            "tow/average_gap": self.number("average gap of UA, RA, TA and MIA", goal=Goal.MIN, target=0.0),
        }

    def measure(self, audit: Audit) -> Found:
        """Return both numbers."""
        tested = "test_retain" if _gone(audit) else "test"
        reason = missing(frozenset({tested, "labels", "retrained"}), audit)
        if reason:
            return self.none(reason)
        sets = ("forget", "retain", tested)
        own, other = ({s: _accuracy(audit, s, role) for s in sets} for role in ("model", "retrained"))
        found: Found = {"tow/tow": Value.single(tow(own, other))}
        mia = efficacy(audit)
        reference = audit.once("tow/retrained", lambda: efficacy(_as_model(audit)))
        if isinstance(mia, Unavailable):
            return found | {"tow/average_gap": mia}
        if isinstance(reference, Unavailable):
            return found | {"tow/average_gap": reference}
        gap = average_gap({**own, "MIA": mia}, {**other, "MIA": reference})  # |ΔUA| is |ΔA_forget|
        return found | {"tow/average_gap": Value.single(gap)}


def efficacy(audit: Audit) -> float | Unavailable:
    """Return the share of the forget set that the attack ``svc`` calls unseen, or why it cannot be had."""
    attack = SVCEfficacy()
    reason = missing(attack.needs | {"forget", "test"}, audit) or attack.declines(audit)
    if reason:
        return Unavailable(f"MIA efficacy cannot be had: {reason}")
    scores = audit.fitted(attack).score(audit.said("forget"))
    return float((scores <= 0).double().mean())


def _as_model(audit: Audit) -> Audit:
    """Return the audit of retrained alone."""
    said = {("model", split): o for (role, split), o in audit.evidence.items() if role == "retrained"}
    return replace(audit, evidence=said, models={}, kept=Kept(), flaws={})


def _gone(audit: Audit) -> bool:
    """Return whether a class is forgotten as a whole."""
    labels = audit.said("retain").target
    return audit.scenario.kind == "class" and labels is not None and not bool((labels == audit.scenario.target).any())


def _accuracy(audit: Audit, split: str, role: str) -> float:
    said = audit.said(split, role)
    assert said.target is not None
    return float(said.prediction.eq(said.target).double().mean())


METRIC = Tow
