"""The neighbour-class attack: does a removed class fall on its nearest neighbour, as one never trained on does?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from expunge.attacks import _svm
from expunge.errors import UserError
from expunge.evidence import Evidence, Outputs
from expunge.metric import Attack, Audit
from expunge.signals import by_rows

logger = logging.getLogger(__name__)
LEAST = 2  # samples of the nearest class, and of the others
BLOCK = 1024  # samples worked on at once


@dataclass(frozen=True, kw_only=True)
class Neighbours(Attack):
    """Share of the forgotten class that the model takes for its nearest class, by the probability it gives that one.

    A network that never saw a class puts many of its samples, though not all, on the classes nearest to it. One that
    still knows the class, or was pushed off it by force, does so for fewer, or for all. For class removal only:

    1. The nearest class is the one with the largest mean probability under the retrained model, over unseen samples
       of the forgotten class (over the forget set where there are none), each sample's softmax restricted to the
       other classes; under the audited model itself where there is no retrained one.
    2. On the audited model's softmax over all classes, and unseen samples of the classes that stay, a support vector
       machine (RBF, C = 3, γ = 1, both sides of the same weight) learns from that one class's probability which
       samples belong to it. No training data is used.
    3. Each forget sample that it takes for the nearest class counts as unseen. The number is their share.

    Neither 0 nor 1 is good: retrained's value is the goal, and below it the class is known, or avoided, too well. A
    masked head passes the class's samples to what the original finds second likeliest, often the same class as a
    retrained network chooses: what it hides must be looked for below the output.

    After the idea and outline of the paper. Ours on purpose: one reference model in place of several, one machine for
    the nearest class in place of one for each class, one probability in place of all logits, and the forget set
    itself, as in every membership number, in place of test samples of the class.

    Args:
        nearest: the nearest class; fitted.
        machine: fitted.

    References:
        A. Ebrahimpour-Boroojeny, Y. Wang, H. Sundaram, "On the Necessity of Output Distribution Reweighting for
        Effective Class Unlearning", 2025, https://arxiv.org/abs/2506.20893 (there MIA-NN).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "labels", "retain"})
    undefined: ClassVar[tuple[str, ...]] = (
        "it attacks a removed class, and the forget set is of kind",
        "samples of the class stay in training",
        "unseen samples of the nearest class and of others",
    )
    label: ClassVar[str] = "neighbour-class attack"
    threshold: ClassVar[float | None] = 0.0
    counts: ClassVar[str] = "unseen"

    nearest: int | None = None
    machine: _svm.Machine | None = field(default=None, repr=False)

    def declines(self, audit: Audit) -> str | None:
        """Return why not: no class is removed, or unseen samples of the classes that stay are too few."""
        case = audit.scenario
        if case.kind != "class":
            return f"it attacks a removed class, and the forget set is of kind '{case.kind}'"
        if bool(_labels(audit.said("retain")).eq(case.target).any()):
            return "samples of the class stay in training"
        labels = _labels(audit.said("test"))
        nearest = _nearest(audit)
        own, others = int((labels == nearest).sum()), int(((labels != nearest) & (labels != case.target)).sum())
        if min(own, others) < LEAST:
            return f"{LEAST} unseen samples of the nearest class and of others are needed, there are {own} and {others}"
        return None

    def fit(self, audit: Audit, shadows: Sequence[Evidence] = ()) -> Neighbours:
        """Find the nearest class, and learn from unseen samples how it is told from the rest."""
        nearest, test = _nearest(audit), audit.said("test")
        logger.info("neighbour-class attack: class %s is nearest to class %s", nearest, audit.scenario.target)
        found = replace(self, nearest=nearest)
        labels = _labels(test)
        stays = labels != audit.scenario.target
        x = found._probability(test)[stays].numpy()
        return replace(found, machine=_svm.fit(x, (labels[stays] == nearest).numpy(), bins=1000, balanced=True))

    def score(self, outputs: Outputs, before: Outputs | None = None) -> Tensor:
        """Return minus the machine's decision value, (N,): above 0 the sample is not taken for the nearest class.

        Raises:
            UserError: not fitted.
        """
        if self.machine is None:
            raise UserError("a fitted attack", "an unfitted one", "call fit first")
        return -torch.from_numpy(self.machine.decide(self._probability(outputs).numpy()))

    def _probability(self, outputs: Outputs) -> Tensor:
        """Return the probability of the nearest class, (N, 1)."""
        return by_rows(lambda z: z.double().softmax(dim=1)[:, [self.nearest]], outputs.logits)


def _labels(outputs: Outputs) -> Tensor:
    assert outputs.target is not None
    return outputs.target


def _nearest(audit: Audit) -> int:
    """Return the class nearest to the forgotten one."""
    own, other = audit.said("forget"), audit.outputs("forget", "retrained")
    alike = other is not None and other.outputs.shape == own.outputs.shape and "retrained" not in audit.flaws
    role = "retrained" if alike else "model"
    like = audit.outputs("test_forget", role)
    logits = (audit.said("forget", role) if like is None or len(like) == 0 else like).logits
    rest = [c for c in range(logits.shape[1]) if c != audit.scenario.target]
    sums = [part[:, rest].softmax(dim=1).sum(dim=0) for part in logits.double().split(BLOCK)]
    return rest[int(torch.stack(sums).sum(dim=0).argmax())]


ATTACK = Neighbours
