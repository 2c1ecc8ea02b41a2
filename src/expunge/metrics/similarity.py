"""How alike model and retrained are: their features, and what they predict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from expunge import stats
from expunge.metric import SPLITS, Audit, Found, Goal, Metric, Number, Unavailable, Value
from expunge.metrics._cka import alone, cka
from expunge.metrics._distance import beside, check_choice

Estimator = Literal["unbiased", "plain"]
_SPLITS = ("forget", "retain", "test")


@dataclass(frozen=True, kw_only=True)
class Similarity(Metric):
    """Linear CKA of the features that probes read, and the share of samples with the same prediction; 1 is ideal.

    CKA compares how samples lie to one another in the features of the model and of retrained, whatever their rotation
    and scale, see `expunge.metrics._cka.cka`; it lies in [−1, 1] by the unbiased estimator of HSIC, in [0, 1] by the
    plain one. Agreement is (1/N) Σ 1[prediction = retrained's], with Wilson's interval. Two trainings of another seed
    disagree on some samples too: the second retrained model says on how many.

    Args:
        estimator: of HSIC; ``plain`` gives numbers near 1 for any two networks where samples are few beside features,
            and stands under a name of its own.

    References:
        S. Kornblith, M. Norouzi, H. Lee, G. Hinton, "Similarity of Neural Network Representations Revisited", 2019,
        https://arxiv.org/abs/1905.00414.
    """

    goal: ClassVar[Goal] = Goal.MAX
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    target: ClassVar[float | None] = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"retrained"})
    wants: ClassVar[frozenset[str]] = frozenset({"features", "classes"})
    undefined: ClassVar[tuple[str, ...]] = (
        "retrained: no features were collected",
        "samples are needed, there are",
        "the features of one side do not tell samples apart",
    )

    estimator: Estimator = "unbiased"

    def __post_init__(self) -> None:
        check_choice("estimator", self.estimator, Estimator)

    @property
    def numbers(self) -> dict[str, Number]:
        """``similarity/cka/<split>``, or ``cka_plain``, and ``similarity/agreement/<split>``."""
        low = 0.0 if self.estimator == "plain" else -1.0
        features = f"CKA of features with retrained's ({self.estimator})"
        same = "same prediction as retrained"
        return {
            **{f"{self._cka}/{s}": self.number(f"{features}, {SPLITS[s]}", range=(low, 1.0)) for s in _SPLITS},
            **{f"similarity/agreement/{s}": self.number(f"{same}, {SPLITS[s]}", range=(0.0, 1.0)) for s in _SPLITS},
        }

    def measure(self, audit: Audit) -> Found:
        """Return alignment and agreement on each split that has samples."""
        return {
            **{f"{self._cka}/{split}": self._features(audit, split) for split in _SPLITS},
            **{f"similarity/agreement/{split}": _agreement(audit, split) for split in _SPLITS},
        }

    @property
    def _cka(self) -> str:
        return "similarity/cka" if self.estimator == "unbiased" else "similarity/cka_plain"

    def _features(self, audit: Audit, split: str) -> Value | Unavailable:
        pair = beside(audit, split, frozenset({"features"}))
        if isinstance(pair, Unavailable):
            return pair
        own, other = pair[0].features[str(audit.tap)], next(iter(pair[1].features.values()), None)
        if other is None:
            return Unavailable("retrained: no features were collected, the network has no linear head to tap")
        unbiased = self.estimator == "unbiased"
        least = 4 if unbiased else 2
        if len(own) < least:
            return Unavailable(f"{least} samples are needed, there are {len(own)}")
        of_retrained = audit.once(f"{self._cka}/{split}/retrained", lambda: alone(other, unbiased=unbiased))
        x = cka(own, other, unbiased=unbiased, of_y=of_retrained)
        if math.isnan(x):
            return Unavailable("the features of one side do not tell samples apart, or are not finite")
        return Value(x, -math.inf, math.inf, len(own), "")


def _agreement(audit: Audit, split: str) -> Value | Unavailable:
    pair = beside(audit, split, frozenset({"classes"}))
    if isinstance(pair, Unavailable):
        return pair
    same = pair[0].prediction.eq(pair[1].prediction)
    return Value.of(stats.wilson(int(same.sum()), len(same)))


METRIC = Similarity
