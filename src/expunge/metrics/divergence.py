"""Jensen-Shannon divergence between the model's and retrained's predictive distributions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from expunge.metric import SPLITS, Audit, Found, Goal, Metric, Number, Unavailable, Value
from expunge.metrics._distance import LIMIT, Base, beside, check_choice, js, js_compat, mean

__all__ = ["METRIC", "Divergence", "js", "js_compat"]

_SPLITS = ("forget", "retain", "test", "test_forget")


@dataclass(frozen=True, kw_only=True)
class Divergence(Metric):
    """Mean over samples of JS(p, q), p the model's softmax and q retrained's on the same sample; 0 is ideal.

    JS = ½ KL(p‖m) + ½ KL(q‖m) with m = (p + q)/2, in [0, ln 2] nats or [0, 1] bits, see `js`. Unlike an accuracy it
    sees how sure the model is and which wrong class it prefers. Two trainings of another seed differ too: the second
    retrained model says how much of the divergence is that.

    Args:
        base: of the logarithm; also the unit.
        compat: give the number that published code calls JS divergence, see `js_compat`, in nats and under a name of
            its own.

    References:
        J. Lin, "Divergence measures based on the Shannon entropy", 1991, https://doi.org/10.1109/18.61115. As a
        distance to retrained: V. S. Chundawat, A. K. Tarun, M. Mandal, M. Kankanhalli, "Can Bad Teaching Induce
        Forgetting? Unlearning in Deep Networks using an Incompetent Teacher", 2023, https://arxiv.org/abs/2205.08096.
    """

    goal: ClassVar[Goal] = Goal.MIN
    range: ClassVar[tuple[float, float]] = (0.0, LIMIT["bits"])
    target: ClassVar[float | None] = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"logits", "retrained"})

    base: Base = "nats"
    compat: bool = False

    def __post_init__(self) -> None:
        check_choice("base", self.base, Base)

    @property
    def numbers(self) -> dict[str, Number]:
        """``divergence/js/<split>`` of forget, retain, test and test_forget; ``divergence/js_compat/<split>``."""
        limits = (0.0, math.inf if self.compat else LIMIT[self.base])
        label = "published JS divergence from retrained" if self.compat else "JS divergence from retrained"
        return {self._name(split): self.number(f"{label}, {SPLITS[split]}", range=limits) for split in _SPLITS}

    def measure(self, audit: Audit) -> Found:
        """Return the mean divergence on each split that has samples."""
        return {self._name(split): self._one(audit, split) for split in _SPLITS}

    def _name(self, split: str) -> str:
        return f"divergence/{'js_compat' if self.compat else 'js'}/{split}"

    def _one(self, audit: Audit, split: str) -> Value | Unavailable:
        pair = beside(audit, split, self.needs)
        if isinstance(pair, Unavailable):
            return pair
        p, q = (said.logits for said in pair)
        if self.compat:
            return mean(js_compat(p, q), (0.0, math.inf), "nats per class")
        return mean(js(p, q, self.base), (0.0, LIMIT[self.base]), self.base)


METRIC = Divergence
