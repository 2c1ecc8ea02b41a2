"""How often the target lies between the outermost predicted quantiles, and how far apart they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from expunge import stats
from expunge.evidence import Outputs
from expunge.metric import SPLITS, Audit, Found, Goal, Metric, Number, Unavailable, Value, missing
from expunge.metrics._distance import within
from expunge.task import Quantile

_SPLITS = ("forget", "test", "test_forget", "test_retain")


@dataclass(frozen=True, kw_only=True)
class Coverage(Metric):
    """Share of targets from the lowest to the highest predicted quantile, and the mean width of that interval.

    With levels q_1 < … < q_Q and T steps: ``coverage/<split>`` = mean_i mean_t [f_i1t ≤ y_it ≤ f_iQt], which a
    calibrated forecast brings to q_Q − q_1 on samples like those it was trained on, and ``coverage/width/<split>`` =
    mean_i mean_t (f_iQt − f_i1t), below 0 where quantiles cross. A wide interval covers everything, so that one says
    little without the other. Goal of both: retrained's value. The pinball loss is ``loss``.

    Wilson's interval for the share where there is one step a sample, else a t interval over samples, whose steps
    depend on each other; samples that overlap, as windows of one series do, make both too short.

    References:
        T. Gneiting, F. Balabdaoui, A. E. Raftery, "Probabilistic forecasts, calibration and sharpness", 2007,
        https://doi.org/10.1111/j.1467-9868.2007.00587.x.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs: ClassVar[frozenset[str]] = frozenset({"labels"})
    wants: ClassVar[frozenset[str]] = frozenset(_SPLITS)
    undefined: ClassVar[tuple[str, ...]] = ("the task predicts no quantiles", "one quantile bounds no interval")

    @property
    def numbers(self) -> dict[str, Number]:
        """``coverage/<split>`` and ``coverage/width/<split>``."""
        share = {f"coverage/{s}": self.number(f"targets inside the interval, {SPLITS[s]}") for s in _SPLITS}
        everything = (-math.inf, math.inf)
        width = {
            f"coverage/width/{s}": self.number(f"width of the interval, {SPLITS[s]}", range=everything) for s in _SPLITS
        }
        return share | width

    def measure(self, audit: Audit) -> Found:
        """Return share and width on each split."""
        if not isinstance(audit.task, Quantile):
            return self.none("the task predicts no quantiles")
        if len(audit.task.quantiles) < 2:
            return self.none("one quantile bounds no interval")
        found: Found = {}
        for split in _SPLITS:
            reason = missing(frozenset({split, "labels"}), audit)
            found[f"coverage/{split}"] = Unavailable(reason) if reason else _share(audit, split)
            found[f"coverage/width/{split}"] = Unavailable(reason) if reason else _width(audit, split)
        return found


def _ends(outputs: Outputs) -> tuple[Tensor, Tensor]:
    """Return the outermost quantiles, (N, T) each."""
    values = outputs.outputs.reshape(len(outputs), -1, outputs.outputs.shape[-1])
    return values[..., 0], values[..., -1]


def _inside(outputs: Outputs) -> Tensor:
    """Return the share of its steps whose target is inside, of each sample, (N,)."""
    low, high = _ends(outputs)
    assert outputs.target is not None
    target = outputs.target.double().reshape(low.shape)
    return ((low <= target) & (target <= high)).double().mean(dim=1)


def _share(audit: Audit, split: str) -> Value:
    said = audit.said(split)
    own, single = _inside(said).numpy(), _ends(said)[0].shape[1] == 1
    if missing(frozenset({split, "labels", "retrained"}), audit) is None:
        other = _inside(audit.said(split, "retrained")).numpy()
        between = stats.paired_proportions(own, other) if single else stats.paired(own, other)
        audit.kept.gaps[f"coverage/{split}"] = Value.of(between)
    if single:
        return Value.of(stats.wilson(int(own.sum()), len(own)))
    return Value.of(within(stats.mean_t(own), (0.0, 1.0)))


def _width(audit: Audit, split: str) -> Value:
    own = _widths(audit.said(split))
    if missing(frozenset({split, "labels", "retrained"}), audit) is None:
        between = stats.paired(own, _widths(audit.said(split, "retrained")))
        audit.kept.gaps[f"coverage/width/{split}"] = Value.of(between, "target units")
    return Value.of(stats.mean_t(own), "target units")


def _widths(outputs: Outputs) -> NDArray[np.float64]:
    low, high = _ends(outputs)
    found: NDArray[np.float64] = (high - low).mean(dim=1).numpy()
    return found


METRIC = Coverage
