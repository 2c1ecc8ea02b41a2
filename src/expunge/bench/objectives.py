"""What tuning makes small: the distance to retrained, or, where nobody retrains, the distance to unseen samples.

The test set is no part of it. What is called holdout here is the validation set, measured in the test set's place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from expunge.draws import Request
from expunge.errors import ExpungeError, UserError, suggest
from expunge.metric import Unavailable, Value
from expunge.scores import REFERENCE, Scores

FAMILIES = ("accuracy", "loss", "membership")
ATTACKS = ("entropy_lr", "loss")
ATTACKED = ("membership/entropy_lr", "membership/loss/auc")
POINT, NAT, PART = 0.01, 0.01, 0.05  # least scale of shares, of losses of classes, and as a part of retrained's loss


class Undefined(ExpungeError):
    """A number of the objective does not exist for a model, such as an attack on outputs that are all alike."""


class Objective(ABC):
    """What is made small: the mean of some lengths, each 0 at best."""

    name: ClassVar[str]
    text: ClassVar[str]  # one sentence for reports
    retrained: ClassVar[int]  # models to retrain for each seed

    @abstractmethod
    def refuses(self, request: Request) -> str | None:
        """Return why the objective says nothing on requests of this kind, or None."""

    @abstractmethod
    def scales(self, runs: Sequence[Scores]) -> dict[str, float]:
        """Return what each length is measured in.

        Args:
            runs: scores of what a request's settings are compared with, one a seed.

        Returns:
            By number.
        """

    @abstractmethod
    def lengths(self, scores: Scores, model: str, scales: Mapping[str, float]) -> dict[str, float]:
        """Return how far a model is from what is sought, by number.

        Args:
            scores: of one seed.
            model: whose.
            scales: from `scales`.

        Raises:
            Undefined: a number does not exist for this model.
        """


class Retrained(Objective):
    """Distance to the retrained model: the mean over numbers k of |x_k − x_k^retrained| / s_k.

    Numbers: accuracy and mean loss on forget, retain and holdout, there on samples of the forgotten kind and on the
    rest apart where a class, subclass, subject or range is forgotten; accuracy on the forget set by its true labels
    where they were flipped; the AUC of the loss attack, and the share of the forget set that the entropy attack calls
    member, both with holdout as the unseen samples. Without classes: no accuracies, no entropy attack.

    s_k is the floor: |difference| of the two retrained models of a seed, averaged over the tuning seeds. The floor of
    few seeds is often 0, so s_k is at least one point (0.01) and one sample (1/n) for shares, and 5 % of retrained's
    value for losses, of classes at least 0.01 nats. So 1 means: as far from retrained as another retrained model is.
    """

    name = "retrained"
    text = (
        "Mean over accuracies, losses and attacks of the gap to the retrained model, each in units of the difference "
        "between two retrained models: 0 is retrained itself, 1 as far as another retrained model."
    )
    retrained = 2

    def refuses(self, request: Request) -> str | None:
        """Return None: every request can be retrained for."""
        return None

    def scales(self, runs: Sequence[Scores]) -> dict[str, float]:
        """Return the floor of each number over the seeds, or the least scale where that is larger."""
        found = {}
        for name in _numbers(runs[0].values[REFERENCE]):
            values = [run.values[REFERENCE].get(name) for run in runs]
            floors = [run.floor.get(name) for run in runs]
            there = [v for v in values if isinstance(v, Value)]
            if len(there) < len(runs) or not all(floors):
                continue
            floor = float(np.mean([f.x for f in floors if f is not None]))
            if max(floor, least := _least(there)) > 0:
                found[name] = max(floor, least)
        return found

    def lengths(self, scores: Scores, model: str, scales: Mapping[str, float]) -> dict[str, float]:
        """Return |gap to retrained| / scale by number."""
        return {
            told(name): abs(_defined(scores, model, name) - _defined(scores, REFERENCE, name)) / scale
            for name, scale in scales.items()
        }


class Unseen(Objective):
    """Distance to unseen samples, without any retrained model: the mean of three shares in [0, 1].

    |2·AUC − 1| of the loss attack on forget against holdout: 0 where the losses of forgotten and of unseen samples
    are alike; and what accuracy on retain and on holdout lost against the original, 0 where nothing was lost. Without
    classes the last two are 1 − L_original/L of the mean loss L, 0 where it did not grow.

    That forgotten samples shall look like unseen ones is what SCRUB's rewinding and Nabla-Tau aim for. It holds in
    the mean for a random part of the training data. It cannot know what retraining does to a class, person or wrong
    label that is gone altogether, so it refuses these; and the samples that a model knew by heart are harder than
    unseen ones, so of ``hardest`` it forgets too little.

    References:
        M. Kurmanji, P. Triantafillou, J. Hayes, E. Triantafillou, "Towards Unbounded Machine Unlearning", 2023,
        https://arxiv.org/abs/2302.09880. D. Trippa, C. Campagnano, M. S. Bucarelli, G. Tolomei, F. Silvestri,
        "Nabla-tau: Gradient-based and Task-agnostic machine Unlearning", 2024, https://arxiv.org/abs/2403.14339.
    """

    name = "unseen"
    text = (
        "Without a retrained model: mean of how well the loss attack tells forgotten samples from unseen ones "
        "(|2·AUC − 1|) and of what accuracy on the retain and the holdout set lost against the original."
    )
    retrained = 0

    def refuses(self, request: Request) -> str | None:
        """Return why unseen samples tell nothing of what is forgotten, or None."""
        if request.kind == "random" or request.kind == "hardest" or request.kind == "single":
            return None
        if request.kind == "sequential" and not isinstance(request.value, tuple):
            return None
        if request.changes_data:
            return "a model retrained without changed samples does not treat them as it treats unseen ones"
        return "the untouched original treats unseen samples of that kind as it treats the forgotten, and would win"

    def scales(self, runs: Sequence[Scores]) -> dict[str, float]:
        """Return 1 for each of the three shares."""
        kind = "accuracy" if isinstance(runs[0].values["original"].get("accuracy/retain"), Value) else "loss"
        return dict.fromkeys(("membership/loss/auc", f"{kind}/retain", f"{kind}/test"), 1.0)

    def lengths(self, scores: Scores, model: str, scales: Mapping[str, float]) -> dict[str, float]:
        """Return the three shares."""
        found = {}
        for name, scale in scales.items():
            value = _defined(scores, model, name)
            if name in ATTACKED:
                share = abs(2 * value - 1)
            else:
                before = _defined(scores, "original", name)
                lost = before - value if name.startswith("accuracy/") else 1 - before / value if value > before else 0.0
                share = max(0.0, lost)
            found[told(name)] = share / scale
        return found


OBJECTIVES: dict[str, Objective] = {each.name: each for each in (Retrained(), Unseen())}


def load(name: str) -> Objective:
    """Return an objective.

    >>> load("retrained").retrained
    2

    Raises:
        UserError: no such objective.
    """
    if name not in OBJECTIVES:
        raise UserError("a known objective", repr(name), suggest(name, OBJECTIVES))
    return OBJECTIVES[name]


def told(name: str) -> str:
    """Return a number's name with holdout for what `expunge.evaluate.evaluate` was given as test.

    >>> told("accuracy/test_forget"), told("membership/loss/auc")
    ('accuracy/holdout_forget', 'membership/loss/auc')
    """
    return name.replace("/test", "/holdout")


def _numbers(found: Mapping[str, Value | Unavailable]) -> list[str]:
    """Return the numbers that a retrained model has, each set of samples once."""
    names = [name for name, value in found.items() if isinstance(value, Value)]
    for family in ("accuracy", "loss"):
        if {f"{family}/test_forget", f"{family}/test_retain"} <= set(names):
            names.remove(f"{family}/test")
    return [n for n in names if n.startswith(("accuracy/", "loss/")) or n in ATTACKED]


def _least(values: Sequence[Value]) -> float:
    """Return the least scale of a number, from retrained's values on each seed."""
    if values[0].unit == "1":
        return max(POINT, *(1 / v.n for v in values))
    return max(NAT if values[0].unit == "nats" else 0.0, PART * float(np.mean([abs(v.x) for v in values])))


def _defined(scores: Scores, model: str, name: str) -> float:
    value = scores[model].get(name)
    if not isinstance(value, Value):
        reason = value.reason if isinstance(value, Unavailable) else "it was not measured"
        raise Undefined(f"{told(name)} is undefined: {reason}")
    return value.x
