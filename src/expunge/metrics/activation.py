"""Activation distance: how far the model's predicted probabilities are from retrained's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from expunge import stats
from expunge.metric import SPLITS, Audit, Found, Goal, Metric, Number, Unavailable, Value
from expunge.metrics._distance import beside, check_choice, mean, within
from expunge.signals import by_rows

Convention = Literal["l1", "l2", "rms"]
_SPLITS = ("forget", "retain", "test")
_LIMIT: dict[str, float] = {"l1": 2.0, "l2": math.sqrt(2), "rms": math.sqrt(2)}  # of two sure, different answers
_LABELS = {"l1": "L1", "l2": "L2", "rms": "RMS"}


def l1(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Return ‖p − q‖₁ of two softmax distributions from logits (N, K), sample by sample: (N,) in [0, 2]."""
    return by_rows(lambda a, b: _gap(a, b).abs().sum(dim=1), p_logits, q_logits).clamp(max=_LIMIT["l1"])


def l2(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Return ‖p − q‖₂ of two softmax distributions from logits (N, K), sample by sample: (N,) in [0, √2]."""
    return by_rows(lambda a, b: _gap(a, b).norm(dim=1), p_logits, q_logits).clamp(max=_LIMIT["l2"])


def rms(p_logits: Tensor, q_logits: Tensor) -> float:
    """Return √(mean over samples of ‖p − q‖₂²) of two softmax distributions from logits (N, K), in [0, √2]."""
    return math.sqrt(float(l2(p_logits, q_logits).square().mean()))


def _gap(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    return p_logits.double().softmax(dim=1) - q_logits.double().softmax(dim=1)


@dataclass(frozen=True, kw_only=True)
class Activation(Metric):
    """Distance of the model's softmax outputs p from retrained's q on the same samples; 0 is ideal.

    Three conventions go by this name, and their numbers must not be compared: ``l1`` is the mean of ‖p − q‖₁, in
    [0, 2]; ``l2`` the mean of ‖p − q‖₂, in [0, √2]; ``rms`` √(mean of ‖p − q‖₂²), in [0, √2]. Means are over samples.

    Args:
        convention: which; part of the number's name and its unit.

    References:
        l1, in the code of A. Golatkar, A. Achille, S. Soatto, "Forgetting Outside the Box: Scrubbing Deep Networks of
        Information Accessible from Input-Output Observations", 2020, https://arxiv.org/abs/2003.02960. l2, in that of
        V. S. Chundawat, A. K. Tarun, M. Mandal, M. Kankanhalli, "Can Bad Teaching Induce Forgetting? Unlearning in
        Deep Networks using an Incompetent Teacher", 2023, https://arxiv.org/abs/2205.08096.
    """

    goal: ClassVar[Goal] = Goal.MIN
    range: ClassVar[tuple[float, float]] = (0.0, _LIMIT["l1"])
    target: ClassVar[float | None] = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"logits", "retrained"})

    convention: Convention = "l2"

    def __post_init__(self) -> None:
        check_choice("convention", self.convention, Convention)

    @property
    def numbers(self) -> dict[str, Number]:
        """``activation/<convention>/<split>`` of forget, retain and test."""
        limits = (0.0, _LIMIT[self.convention])
        label = f"activation distance ({_LABELS[self.convention]}) to retrained"
        return {
            f"activation/{self.convention}/{split}": self.number(f"{label}, {SPLITS[split]}", range=limits)
            for split in _SPLITS
        }

    def measure(self, audit: Audit) -> Found:
        """Return the distance on each split that has samples."""
        return {f"activation/{self.convention}/{split}": self._one(audit, split) for split in _SPLITS}

    def _one(self, audit: Audit, split: str) -> Value | Unavailable:
        pair = beside(audit, split, self.needs)
        if isinstance(pair, Unavailable):
            return pair
        p, q = (said.logits for said in pair)
        limits, unit = (0.0, _LIMIT[self.convention]), _LABELS[self.convention]
        if self.convention == "rms":  # the root of the mean square, and of the ends of its interval
            square = within(stats.mean_t(l2(p, q).square().numpy()), (0.0, limits[1] ** 2))
            if math.isinf(square.low):
                return Value.single(math.sqrt(square.x), unit)
            x, low, high = (min(math.sqrt(v), limits[1]) for v in (square.x, square.low, square.high))
            return Value(x, low, high, square.n, unit)
        return mean((l1 if self.convention == "l1" else l2)(p, q), limits, unit)


METRIC = Activation
