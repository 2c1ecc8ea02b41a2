"""Canaries: are planted samples that were forgotten told from such as were never trained on?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.attacks import _roc
from expunge.evidence import Outputs
from expunge.metric import Audit, Found, Goal, Metric, Number, Unavailable, Value
from expunge.scenario import Scenario

MUST_BE_PLANTED = (
    "canaries must be planted before training: train with Recipe(canaries=N) and pass the manifest that fit wrote"
)


@dataclass(frozen=True, kw_only=True)
class Canaries(Metric):
    """AUC of the loss at telling planted canaries (members: lower loss) from unseen ones, DeLong's interval.

    Planted and unseen canaries are drawn alike and labelled alike at random (`expunge.canaries.plant`): to a model that
    never saw the planted ones they are the same kind of sample. So ``canaries/forgotten``, of those in the forget set,
    is 0.5 on average for any model trained without them; this is known, and needs no retrained model. Above 0.5 they
    are still known by their low loss; below it they stand out by too high a loss, which gives them away as well.

    ``canaries/kept`` is the same of planted ones that stay, 1 where the model knows them by heart. It is the power of
    the test: near 0.5, canaries leave no trace in this model, and the other number says nothing. A retrained model is
    trained on them as well, hence the goal: retrained's value.

    The truth of 0.5 holds where planted canaries are forgotten whatever they look like, as by ids or by a random draw.
    Of a class, or a range of the target, unseen canaries under the same labels are taken. A request by a column picks
    canaries that may look unlike the unseen ones: there ``canaries/forgotten`` is unavailable.

    References:
        N. Carlini, C. Liu, Ú. Erlingsson, J. Kos, D. Song, "The Secret Sharer: Evaluating and Testing Unintended
        Memorization in Neural Networks", 2019, https://arxiv.org/abs/1802.08232.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs: ClassVar[frozenset[str]] = frozenset({"labels"})
    undefined: ClassVar[tuple[str, ...]] = (
        "canaries must be planted before training",
        "no planted canary is in the forget set",
        "every planted canary is in the forget set",
        "the forget set was chosen by a column",
        "a loss of a canary is infinite or not a number",
        "the canaries have no labels",
        *_roc.UNDEFINED,
    )

    @property
    def numbers(self) -> dict[str, Number]:
        """``canaries/forgotten`` and ``canaries/kept``."""
        return {
            "canaries/forgotten": self.number("AUC, forgotten canaries against unseen ones", target=0.5),
            "canaries/kept": self.number("AUC, canaries that stay against unseen ones"),
        }

    def measure(self, audit: Audit) -> Found:
        """Return the AUC of forgotten and of kept canaries; the scores of the former are kept for the curve."""
        unseen, gone, stay = (audit.outputs(f"canary{part}") for part in ("_unseen", "", "_kept"))
        if unseen is None or (gone is None and stay is None):
            return self.none(MUST_BE_PLANTED)
        there = [o for o in (unseen, gone, stay) if o is not None]
        if any(o.loss is None or o.target is None for o in there):
            return self.none("the canaries have no labels")
        if not all(bool(torch.isfinite(o.loss).all()) for o in there if o.loss is not None):
            return self.none("a loss of a canary is infinite or not a number")
        return {
            "canaries/forgotten": _forgotten(audit, gone, unseen),
            "canaries/kept": _kept(audit, stay, unseen),
        }


def _forgotten(audit: Audit, gone: Outputs | None, unseen: Outputs) -> Value | Unavailable:
    if gone is None:
        return Unavailable("no planted canary is in the forget set")
    wanted = audit.scenario.target
    if isinstance(wanted, dict) and wanted.get("column") is not None:
        return Unavailable("the forget set was chosen by a column: unseen canaries are not like the forgotten ones")
    members, others = _scores(audit, gone, unseen)
    audit.kept.samples["score/canaries/members"], audit.kept.samples["score/canaries/others"] = members, others
    return _roc.auc(members, others)


def _kept(audit: Audit, stay: Outputs | None, unseen: Outputs) -> Value | Unavailable:
    if stay is None:
        return Unavailable("every planted canary is in the forget set")
    return _roc.auc(*_scores(audit, stay, unseen))


def _scores(audit: Audit, planted: Outputs, unseen: Outputs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    like = _like(audit.scenario, planted, unseen)
    assert planted.loss is not None
    assert like.loss is not None
    return -planted.loss.double().numpy(), -like.loss.double().numpy()


def _like(scenario: Scenario, planted: Outputs, unseen: Outputs) -> Outputs:
    """Return the unseen canaries that are all of the forgotten kind, or all not, where the planted ones are."""
    assert planted.target is not None
    assert unseen.target is not None
    theirs, ours = _of_the_kind(scenario, planted.target), _of_the_kind(scenario, unseen.target)
    if theirs is None or ours is None or bool(theirs.any()) != bool(theirs.all()):
        return unseen
    return unseen.take(torch.nonzero(ours == theirs[0])[:, 0])


def _of_the_kind(scenario: Scenario, target: Tensor) -> Tensor | None:
    """Return which labels are of the forgotten kind, (N,), None where labels do not tell."""
    wanted = scenario.target
    if scenario.kind == "class":
        return target.reshape(-1).eq(wanted)
    if isinstance(wanted, dict) and "classes" in wanted:
        return torch.isin(target.reshape(-1), torch.tensor(wanted["classes"]))
    if scenario.kind == "range" and isinstance(wanted, dict) and wanted.get("column") is None:
        flat = target.reshape(-1).double()
        return flat.ge(wanted["low"]) & flat.lt(wanted["high"])
    return None


METRIC = Canaries
