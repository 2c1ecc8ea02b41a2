"""The protocol of the measuring side: values with intervals, or a reason why there is none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from torch import Tensor, nn

from expunge.evidence import Evidence, Outputs
from expunge.scenario import Scenario
from expunge.stats import Interval
from expunge.task import Task
from expunge.train import Recipe

SPLITS = ("forget", "retain", "test", "test_forget", "test_retain", "holdout")
"""Sets of samples: forget and retain are training data; test_forget is the test data of the forgotten kind."""


class Goal(StrEnum):
    """Which values of a metric are good."""

    MAX = "max"
    MIN = "min"
    AS_RETRAINED = "as_retrained"


@dataclass(frozen=True)
class Value:
    """A measured number.

    Args:
        x: the estimate.
        low: lower end of its 95 % interval; −inf where one observation gives none.
        high: upper end.
        n: observations behind it: samples, or models when pooled over seeds.
        unit: ``1`` for shares in [0, 1], ``nats``, ``s``, ``bytes``, ...
    """

    x: float
    low: float
    high: float
    n: int
    unit: str = "1"

    @classmethod
    def of(cls, interval: Interval, unit: str = "1") -> Value:
        """Return the interval as a value."""
        return cls(interval.x, interval.low, interval.high, interval.n, unit)


@dataclass(frozen=True)
class Unavailable:
    """A number that cannot be had, and why; never a default number."""

    reason: str


Found = dict[str, Value | Unavailable]


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Everything known about one model under audit.

    Args:
        evidence: outputs by (role, split). Roles: ``model``, ``original``, ``retrained``. Splits: see `SPLITS`.
        models: modules by role.
        task: outputs, loss, predictions.
        scenario: who is forgotten.
        edit: what the unlearn result carried: seconds, total_seconds, peak_memory; empty for a bare module.
        recipe: the original's training recipe, or None.
        new_model: builds the network before training, or None.
        tap: name of the features that probes read, or None.
        seed: of everything random.
    """

    evidence: Evidence
    models: Mapping[str, nn.Module]
    task: Task
    scenario: Scenario
    edit: Mapping[str, float] = field(default_factory=dict)
    recipe: Recipe | None = None
    new_model: Callable[[], nn.Module] | None = None
    tap: str | None = None
    seed: int = 0

    def outputs(self, split: str, role: str = "model") -> Outputs | None:
        """Return the outputs of a role on a split, None where there are none."""
        return self.evidence.get((role, split))


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """Numbers about the audited model, from evidence collected once."""

    goal: ClassVar[Goal]
    range: ClassVar[tuple[float, float]]
    needs: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def __call__(self, audit: Audit) -> Found:
        """Return the named values; undefined ones as `Unavailable`."""


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A guess at who was in the training set; it only scores, curves and intervals live once in `attacks`."""

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    needs: ClassVar[frozenset[str]] = frozenset()
    threshold: ClassVar[float | None] = None  # of an attack that decides by itself

    def fit(self, audit: Audit, shadows: Sequence[Evidence] = ()) -> Attack:
        """Return the fitted attack; default: itself."""
        return self

    @abstractmethod
    def score(self, outputs: Outputs, before: Outputs | None = None) -> Tensor:
        """Return (N,) scores, higher = more like a member."""
