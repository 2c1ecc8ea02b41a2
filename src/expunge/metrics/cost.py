"""What the edit cost, and how much of the network it touched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from expunge import tensors
from expunge.metric import Audit, Found, Goal, Metric, Number, Unavailable, Value


@dataclass(frozen=True, kw_only=True)
class Cost(Metric):
    """Seconds of the edit, seconds with checks and copies, peak extra memory, share of parameters changed."""

    goal: ClassVar[Goal] = Goal.MIN
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)

    undefined: ClassVar[tuple[str, ...]] = (
        "a bare module was given, not an unlearn result",
        "there is no original to compare with",
        "it is another network than the original",
    )

    @property
    def numbers(self) -> dict[str, Number]:
        """``cost/seconds``, ``cost/total_seconds``, ``cost/peak_memory`` and ``cost/changed``."""
        return {
            "cost/seconds": self.number("time of the edit"),
            "cost/total_seconds": self.number("time with checks and copies"),
            "cost/peak_memory": self.number("extra memory at the peak"),
            "cost/changed": self.number("parameters changed", range=(0.0, 1.0)),
        }

    def measure(self, audit: Audit) -> Found:
        """Return what the unlearn result carried, and the share of parameters changed."""
        found: Found = {}
        for name, unit in (("seconds", "s"), ("total_seconds", "s"), ("peak_memory", "bytes")):
            x = audit.edit.get(name)
            none = Unavailable("a bare module was given, not an unlearn result")
            found[f"cost/{name}"] = none if x is None else Value.single(x, unit)
        found["cost/changed"] = self._changed(audit)
        return found

    def _changed(self, audit: Audit) -> Value | Unavailable:
        if "original" not in audit.models:
            return Unavailable("there is no original to compare with")
        changed = tensors.changed(audit.models["original"], audit.models["model"])
        if changed is None:
            return Unavailable("it is another network than the original")
        return Value.single(changed.share)


METRIC = Cost
