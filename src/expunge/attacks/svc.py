"""MIA efficacy: the share of the forget set that a support vector machine takes for never trained on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.attacks import _svm
from expunge.errors import UserError
from expunge.evidence import Evidence, Outputs
from expunge.metric import Attack, Audit
from expunge.seeds import seed as named_seed
from expunge.task import Classes, Quantile, Regression

logger = logging.getLogger(__name__)
BLOCK = 4096  # samples scored at once
Scores = NDArray[np.float64]
Feature = Literal["confidence", "correctness", "entropy", "modified_entropy", "probabilities", "error"]


@dataclass(frozen=True, kw_only=True)
class SVCEfficacy(Attack):
    """Share of the forget set that a machine, fitted on retained samples (members) against unseen ones, calls unseen.

    MIA efficacy = 1 − mean(called member): higher means better forgotten, and retrained's value is the goal. Members
    are n samples of retain, the others n unseen ones of the kinds that stay (of the whole test set where the forgotten
    are of no kind), n the smaller number, logged. The kernel is RBF with C = 3 and γ = 1/features, the features are
    unscaled and the classes unweighted.

    The choice of the feature moves the number more than most methods do, and where members and others look alike
    anyway the machine's answer is arbitrary: hold it against the spread of retrained models. ``correctness`` gives
    1 − accuracy on the forget set as long as members are the more accurate, accuracy where they are the less, and a
    constant where both are equally so: 0, while as released rounding decides between 0 and 1.

    The forgetting rate Fr that concept poisoning is published with is the same share, of a linear machine on the whole
    vector of outputs that is fitted once, on the original network. It nears 1 once a class is given other labels, and
    is below 0.9 for classes that are gone; so it stands here with a machine of the audited network's own.

    Of a regression the feature is the mean absolute error of a sample, |ŷ − y|, in units of its mean over the points
    fitted on, for its scale is arbitrary. There the machine is fitted on half of either n alone, and ``held`` keeps its
    decisions on the others: how well errors tell retained from unseen samples at all, which the metric ``error_attack``
    reports. How they rank forget against unseen samples is the AUC of the attack ``loss``.

    Args:
        feature: read off the softmax p: true-class confidence p_y, correctness, entropy, modified entropy, or the
            whole vector; of a regression always ``error``.
        draw: which n: ``random``, by the audit's seed, or the ``first`` in the data's order, as released.
        bins: cells in which points of one feature are merged; None fits on every point, as released.
        most: points a side that ``probabilities`` is fitted on at most, for they cannot be merged.
        scale: what errors are divided by; fitted.
        machine: fitted.
        held: decisions on members and others that were held back, of a regression; fitted.

    References:
        J. Jia, J. Liu, P. Ram, Y. Yao, G. Liu, Y. Liu, P. Sharma, S. Liu, "Model Sparsity Can Simplify Machine
        Unlearning", 2023, https://arxiv.org/abs/2304.04934. Of regression: A. K. Tarun, V. S. Chundawat, M. Mandal,
        M. Kankanhalli, "Deep Regression Unlearning", 2023, https://arxiv.org/abs/2210.08196.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"labels", "retain"})
    undefined: ClassVar[tuple[str, ...]] = (
        "the task has neither classes nor real targets",
        "needs 2 retained and 2 unseen samples of the kinds that stay",
        "needs 4 retained and 4 unseen samples of the kinds that stay",
    )
    label: ClassVar[str] = "SVC attack (high = forgotten)"
    threshold: ClassVar[float | None] = 0.0
    counts: ClassVar[str] = "unseen"

    feature: Feature = "confidence"
    draw: Literal["random", "first"] = "random"
    bins: int | None = 1000
    most: int = 2000
    scale: float = 1.0
    machine: _svm.Machine | None = field(default=None, repr=False)
    held: tuple[Scores, Scores] = field(default=(np.empty(0), np.empty(0)), repr=False, compare=False)

    def declines(self, audit: Audit) -> str | None:
        """Return why not: the task has no such feature, or there is nothing to fit on."""
        if not isinstance(audit.task, Classes | Regression | Quantile):
            return "the task has neither classes nor real targets"
        sizes, least = (len(audit.said("retain")), len(staying(audit))), 2 if isinstance(audit.task, Classes) else 4
        if min(sizes) < least:
            need = f"needs {least} retained and {least} unseen samples of the kinds that stay"
            return f"{need}, has {sizes[0]} and {sizes[1]}"
        return None

    def fit(self, audit: Audit, shadows: Sequence[Evidence] = ()) -> SVCEfficacy:
        """Fit on the audited model's own outputs on retain and unseen samples."""
        members, others = audit.said("retain"), staying(audit)
        plain = replace(self, feature=self.feature if isinstance(audit.task, Classes) else "error", scale=1.0)
        n = min(len(members), len(others), self.most if plain.feature == "probabilities" else len(members))
        half = plain.feature == "error"
        fitted = (n + 1) // 2 if half else n
        logger.info(
            "SVC attack: fitted on %d of %d members and %d of %d others", fitted, len(members), fitted, len(others)
        )
        drawn = [plain._features(side, plain._draw(side, n, audit.seed)) for side in (members, others)]
        if half:
            # Each side by itself: halves of the same ranks would share what sets the two whole sides apart by accident.
            rng = np.random.default_rng(named_seed("svc halves", audit.seed))
            drawn = drawn if self.draw == "first" else [side[torch.from_numpy(rng.permutation(n))] for side in drawn]
        x = torch.cat([side[:fitted] for side in drawn])
        scale = (float(x.mean()) or 1.0) if half else 1.0
        machine = _svm.fit((x / scale).numpy(), np.arange(2 * fitted) < fitted, bins=self.bins)
        first, second = (machine.decide((side[fitted:] / scale).numpy()) if half else np.empty(0) for side in drawn)
        return replace(plain, scale=scale, machine=machine, held=(first, second))

    def score(self, outputs: Outputs, before: Outputs | None = None) -> Tensor:
        """Return the machine's decision value, (N,); above 0 is called member.

        Raises:
            UserError: not fitted.
        """
        machine = self.machine
        if machine is None:
            raise UserError("a fitted attack", "an unfitted one", "call fit first")

        def decide(rows: Tensor) -> Tensor:
            return torch.from_numpy(machine.decide((self._features(outputs, rows) / self.scale).numpy()))

        rows = torch.arange(len(outputs))
        return torch.cat([decide(part) for part in rows.split(BLOCK)])

    def _draw(self, outputs: Outputs, n: int, seed: int) -> Tensor:
        """Return which n samples to fit on."""
        if self.draw == "first":
            return torch.arange(n)
        # Drawn from the samples in order of a feature, so that their own order has no say.
        order = outputs.signals.entropy if self.feature == "probabilities" else self._features(outputs)[:, 0]
        chosen = np.random.default_rng(named_seed("svc", seed)).choice(len(outputs), n, replace=False)
        return order.argsort(stable=True)[torch.from_numpy(np.sort(chosen))]

    def _features(self, outputs: Outputs, rows: Tensor | None = None) -> Tensor:
        """Return the features (N, D) of all samples, or of those at these rows."""
        if self.feature == "error":
            assert outputs.target is not None
            away = outputs.prediction.double() - outputs.target.reshape(outputs.prediction.shape)
            found = away.abs().reshape(len(away), -1).mean(dim=1, keepdim=True)
        elif self.feature == "probabilities":
            return (outputs.logits if rows is None else outputs.logits[rows]).double().softmax(dim=1)
        else:
            found = getattr(outputs.signals, "correct" if self.feature == "correctness" else self.feature)[:, None]
        return found if rows is None else found[rows]


def staying(audit: Audit) -> Outputs:
    """Return unseen samples like those that stay in training: without the forgotten kind, if it is gone as a whole."""
    test, rest, kind = audit.said("test"), audit.outputs("test_retain"), audit.scenario
    retain = audit.said("retain").target
    in_part = kind.kind == "class" and retain is not None and bool((retain == kind.target).any())
    return test if rest is None or in_part else rest


ATTACK = SVCEfficacy
