"""The paired attack: an attacker who holds the retrained model too compares each sample's two margins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from expunge.errors import UserError
from expunge.evidence import Evidence, Outputs
from expunge.metric import Attack, Audit
from expunge.task import Classes


@dataclass(frozen=True, kw_only=True)
class Paired(Attack):
    """Score = φ under the model − φ under retrained, of the same sample.

    φ = ln p_y − ln Σ_{c≠y} p_c is the margin; of a task without classes the score is the loss under retrained minus
    the loss under the model. What makes a sample easy or hard is in both terms and drops out, which makes this the
    strongest of the attacks that need one model of each kind. Two trainings differ on all samples; what counts is
    whether they differ more, or less, on forget samples than on unseen ones: an AUC of 0.5 is the ideal by definition,
    above it the forgotten are still known, below it they are known less than had they never been there.

    Of a removed class both sets belong to the class: a model that still knows it knows both, and stays at 0.5. There
    the metric family ``paired`` tells by its gap and shift.

    Args:
        margins: whether the outputs are logits, to be compared by margins; fitted.

    References:
        The margin is that of N. Carlini, S. Chien, M. Nasr, S. Song, A. Terzis, F. Tramèr, "Membership Inference
        Attacks From First Principles", 2022, https://arxiv.org/abs/2112.03570; one retrained model takes the place
        of many.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"labels", "retrained"})
    undefined: ClassVar[tuple[str, ...]] = ("a loss of retrained is infinite or not a number",)
    label: ClassVar[str] = "paired attack"
    against: ClassVar[str | None] = "retrained"

    margins: bool = True

    def declines(self, audit: Audit) -> str | None:
        """Return why not: without classes it compares losses, and one of retrained's is not finite."""
        said = [audit.outputs(split, "retrained") for split in ("forget", "test", "test_forget")]
        losses = [o.loss for o in said if o is not None and o.loss is not None]
        if isinstance(audit.task, Classes) or all(bool(loss.isfinite().all()) for loss in losses):
            return None
        return "a loss of retrained is infinite or not a number"

    def fit(self, audit: Audit, shadows: Sequence[Evidence] = ()) -> Paired:
        """Learn whether the task has classes."""
        return replace(self, margins=isinstance(audit.task, Classes))

    def score(self, outputs: Outputs, before: Outputs | None = None) -> Tensor:
        """Return the difference of margins, or of losses, (N,).

        Args:
            outputs: of the model.
            before: of the retrained model on the same samples.

        Raises:
            UserError: no labels, or no outputs of the retrained model.
        """
        if before is None:
            raise UserError("outputs of the retrained model for the paired attack", "none", "pass them as before")
        if self.margins:
            own, other = outputs.signals.margin, before.signals.margin
        else:
            own, other = (None if o.loss is None else -o.loss for o in (outputs, before))
        if own is None or other is None:
            raise UserError("labelled samples for the paired attack", "none", "give targets")
        return own - other


ATTACK = Paired
