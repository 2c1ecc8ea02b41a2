"""Errors of predicted numbers, in and out of the forgotten range, beside those of the best constant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from expunge import stats
from expunge.evidence import Outputs
from expunge.metric import SPLITS, Audit, Found, Goal, Metric, Number, Unavailable, Value, missing
from expunge.metrics._distance import within
from expunge.stats import Interval
from expunge.task import Quantile, Regression

_SPLITS = ("forget", "test", "test_forget", "test_retain")
_KINDS = {"mae": "mean absolute error", "rmse": "root mean squared error"}
_CONSTANT = {"mae": "median", "rmse": "mean"}
_UNIT = "target units"
_PINBALL = "pinball loss of the retain quantiles"


@dataclass(frozen=True, kw_only=True)
class Error(Metric):
    """Mean absolute and root mean squared error of predictions, and of the constants that serve the retain set best.

    With ŷ_i and y_i of T numbers each: ``error/mae/<split>`` = mean_i mean_t |ŷ_it − y_it| and ``error/rmse/<split>``
    = √(mean_i mean_t (ŷ_it − y_it)²), on the forget set (training data), on test, and on the test samples inside
    (``test_forget``) and outside (``test_retain``) the forgotten range. Of predicted quantiles the one nearest to the
    median is taken. Goal: retrained's value, which on the forgotten range is a large one.

    ``error/mae_constant/<split>`` and ``error/rmse_constant/<split>`` are the errors of a model that knows nothing of
    its inputs: it always says the median of the retain set's targets (or for rmse their mean), number by number. They
    are the same for every model. ``error/pinball_constant/<split>``, of predicted quantiles, is the loss of always
    saying the quantiles of the retain set's targets, to be held against ``loss/<split>``. An error near them is one of
    a model that does not know, whatever the range; retrained above them on unseen samples means that the network
    learned nothing that lasts.

    t intervals over samples, of rmse by the root of its ends; the gap of mae to retrained is paired by sample.

    References:
        A. K. Tarun, V. S. Chundawat, M. Mandal, M. Kankanhalli, "Deep Regression Unlearning", 2023,
        https://arxiv.org/abs/2210.08196, which reports the errors; the constant is ours.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    needs: ClassVar[frozenset[str]] = frozenset({"labels"})
    wants: ClassVar[frozenset[str]] = frozenset({*_SPLITS, "retain"})
    undefined: ClassVar[tuple[str, ...]] = ("the task has no real targets", "the task predicts no quantiles")

    @property
    def numbers(self) -> dict[str, Number]:
        """``error/<kind>/<split>`` and ``error/<kind>_constant/<split>`` of mae and rmse, of pinball the constant's."""
        own = {f"error/{k}/{s}": self.number(f"{text}, {SPLITS[s]}") for k, text in _KINDS.items() for s in _SPLITS}
        constant = {
            f"error/{k}_constant/{s}": self.number(f"{text} of the retain {_CONSTANT[k]}, {SPLITS[s]}")
            for k, text in _KINDS.items()
            for s in _SPLITS
        }
        pinball = {f"error/pinball_constant/{s}": self.number(f"{_PINBALL}, {SPLITS[s]}") for s in _SPLITS}
        return own | constant | pinball

    def measure(self, audit: Audit) -> Found:
        """Return both errors on each split, of the model and of the constants."""
        if not isinstance(audit.task, Regression | Quantile):
            return self.none("the task has no real targets")
        found: Found = {}
        for kind in _KINDS:
            for split in _SPLITS:
                found[f"error/{kind}/{split}"] = _own(audit, kind, split)
                found[f"error/{kind}_constant/{split}"] = _of_constant(audit, kind, split)
        return found | {f"error/pinball_constant/{split}": _of_quantiles(audit, split) for split in _SPLITS}


def _own(audit: Audit, kind: str, split: str) -> Value | Unavailable:
    reason = missing(frozenset({split, "labels"}), audit)
    if reason:
        return Unavailable(reason)
    own = _errors(audit.said(split), kind)
    if kind == "mae" and missing(frozenset({split, "labels", "retrained"}), audit) is None:
        other = _errors(audit.said(split, "retrained"), kind)
        audit.kept.gaps[f"error/mae/{split}"] = Value.of(stats.paired(own.numpy(), other.numpy()), _UNIT)
    return _mean(own, kind)


def _of_constant(audit: Audit, kind: str, split: str) -> Value | Unavailable:
    reason = missing(frozenset({split, "labels"}), audit) or missing(frozenset({"retain", "labels"}), audit)
    if reason:
        return Unavailable(reason)
    rest, targets = _targets(audit.said("retain")), _targets(audit.said(split))
    said = np.median(rest.numpy(), axis=0) if kind == "mae" else rest.numpy().mean(axis=0)
    return _mean(_sizes(torch.from_numpy(said) - targets, kind), kind)


def _of_quantiles(audit: Audit, split: str) -> Value | Unavailable:
    if not isinstance(audit.task, Quantile):
        return Unavailable("the task predicts no quantiles")
    reason = missing(frozenset({split, "labels"}), audit) or missing(frozenset({"retain", "labels"}), audit)
    if reason:
        return Unavailable(reason)
    rest, own = _targets(audit.said("retain")).numpy(), audit.said(split)
    # Of a whole sample: no number has a smaller pinball loss on it, as interpolated ones may have.
    found = np.quantile(rest, audit.task.quantiles, axis=0, method="inverted_cdf").T
    outputs = torch.from_numpy(np.ascontiguousarray(found)).reshape(own.outputs.shape[1:]).expand(own.outputs.shape)
    assert own.target is not None
    losses = audit.task.loss(outputs, own.target.double())
    return Value.of(within(stats.mean_t(losses.numpy()), (0.0, math.inf)), "loss")


def _targets(outputs: Outputs) -> Tensor:
    """Return the targets, (N, T)."""
    assert outputs.target is not None
    return outputs.target.double().reshape(len(outputs), -1)


def _errors(outputs: Outputs, kind: str) -> Tensor:
    """Return the error of each sample, (N,): absolute, or squared."""
    return _sizes(outputs.prediction.double().reshape(len(outputs), -1) - _targets(outputs), kind)


def _sizes(away: Tensor, kind: str) -> Tensor:
    return (away.abs() if kind == "mae" else away.square()).mean(dim=1)


def _mean(errors: Tensor, kind: str) -> Value:
    """Return the mean, of squares its root, with a t interval that stays above 0."""
    found = within(stats.mean_t(errors.numpy()), (0.0, math.inf))
    if kind == "rmse":
        low = math.sqrt(found.low) if math.isfinite(found.low) else found.low
        found = Interval(math.sqrt(found.x), low, math.sqrt(found.high), found.n)
    return Value.of(found, _UNIT)


METRIC = Error
