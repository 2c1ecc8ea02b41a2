"""The protocol of the measuring side: values with intervals, or a reason why there is none."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, TypeVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.data import Data
from expunge.errors import ExpungeError, UserError, listing
from expunge.evidence import Evidence, Outputs
from expunge.runtime import Runtime
from expunge.scenario import Scenario
from expunge.stats import Interval
from expunge.task import Classes, Task
from expunge.train import Recipe

SPLITS = {
    "forget": "forget set",
    "retain": "retain set",
    "test": "test set",
    "test_forget": "test, forgotten kind",
    "test_retain": "test, the rest",
    "holdout": "holdout set",
}
"""Sets of samples: forget and retain are training data; test_forget is the test data of the forgotten kind."""

NEEDS = frozenset({*SPLITS, "labels", "classes", "logits", "features", "original", "retrained", "data", "recipe"})
"""What a metric or attack may need; see `missing`."""


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

    @classmethod
    def single(cls, x: float, unit: str = "1") -> Value:
        """Return one observation, whose spread is unknown."""
        return cls(float(x), -math.inf, math.inf, 1, unit)


@dataclass(frozen=True)
class Unavailable:
    """A number that cannot be had, and why; never a default number."""

    reason: str


T = TypeVar("T")
Found = dict[str, Value | Unavailable]
Place = str | int | float


@dataclass(frozen=True)
class Number:
    """What a named number of a metric is.

    Args:
        label: its name in words.
        goal: which values are good.
        range: of possible values.
        target: the ideal value by definition, such as 0 of a distance to retrained; None where it is retrained's
            value.
    """

    label: str
    goal: Goal
    range: tuple[float, float]
    target: float | None = None


@dataclass(frozen=True)
class Kept:
    """What metrics leave for plots and tables beside their numbers; see `Audit`.

    Args:
        series: values by name and place: a curve by its abscissa, groups by their name.
        samples: per-sample numbers by name.
        gaps: differences to retrained by number, where a metric can pair samples.
        fits: attacks fitted on the audited model, by their settings; see `Audit.fitted`.
    """

    series: dict[str, dict[Place, Value | Unavailable]] = field(default_factory=dict)
    samples: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    gaps: Found = field(default_factory=dict)
    fits: dict[str, Attack] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Everything known about one model under audit.

    Args:
        evidence: outputs by (role, split). Roles: ``model``, ``original``, ``retrained``. Splits: see `SPLITS`, and
            ``canary``, ``canary_kept``, ``canary_unseen``: planted samples that are forgotten, that stay, and such
            that were never trained on; ``triggered``: unseen samples with a backdoor's trigger.
        models: modules by role.
        task: outputs, loss, predictions.
        scenario: who is forgotten.
        edit: what the unlearn result carried: seconds, total_seconds, peak_memory; empty for a bare module.
        recipe: the original's training recipe, or None.
        new_model: builds the network before training, or None.
        tap: name of the features that probes read, or None.
        seed: of everything random.
        data: samples by split, for measures that train or perturb a copy of the model.
        runtime: device, batch size, progress.
        flaws: by role, why nothing can be said of its outputs: NaN, probabilities instead of logits, other classes.
        kept: what metrics leave for plots.
        shared: what metrics worked out once for all models of an evaluation, by name; see `once`.
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
    data: Mapping[str, Data] = field(default_factory=dict)
    runtime: Runtime = field(default_factory=Runtime)
    flaws: Mapping[str, str] = field(default_factory=dict)
    kept: Kept = field(default_factory=Kept)
    shared: dict[str, Any] = field(default_factory=dict, repr=False)

    def outputs(self, split: str, role: str = "model") -> Outputs | None:
        """Return the outputs of a role on a split, None where there are none."""
        return self.evidence.get((role, split))

    def said(self, split: str, role: str = "model") -> Outputs:
        """Return the outputs of a role on a split that a metric declares to need.

        Raises:
            UserError: there are none.
        """
        found = self.outputs(split, role)
        if found is None:
            raise UserError(f"outputs of {role} on {split}", "none", "declare the need")
        return found

    @property
    def unseen(self) -> Outputs | None:
        """Outputs on unseen samples of the forgotten kind; on all test samples where the kind cannot be told."""
        like = self.outputs("test_forget")
        return self.outputs("test") if like is None else like

    @property
    def is_reference(self) -> bool:
        """Whether the model under audit is the retrained reference itself."""
        return "retrained" in self.models and self.models.get("model") is self.models["retrained"]

    def once(self, name: str, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, worked out once for all models of an evaluation.

        Args:
            name: starts with the metric's family, and says all that the result depends on beside task, scenario, data,
                seed and the models in the roles ``original`` and ``retrained``, which are the same for all.
            work: what to do; it must not read what is the audited model's own.

        Returns:
            The result, which nobody may change.
        """
        if name not in self.shared:
            self.shared[name] = work()
        found: T = self.shared[name]
        return found

    def fitted(self, attack: Attack, shadows: Sequence[Evidence] = ()) -> Attack:
        """Return an attack fitted on the audited model, once for all measures that use it with the same settings."""
        if shadows:
            return attack.fit(self, shadows)
        key = f"{type(attack).__module__} {attack!r}"
        if key not in self.kept.fits:
            self.kept.fits[key] = attack.fit(self)
        return self.kept.fits[key]

    def record(self, name: str, at: Place, value: Value | Unavailable) -> None:
        """Keep one value of a series, such as a point of a curve or one subgroup."""
        self.kept.series.setdefault(name, {})[at] = value


def missing(needs: frozenset[str], audit: Audit) -> str | None:
    """Return the reason why a need is not met, or None.

    Args:
        needs: of `NEEDS`. Splits: samples are there; ``labels``: those splits have labels and finite losses;
            ``classes``: the task is classification; ``logits``: that, with outputs that are logits;
            ``features``: activations were collected; ``original``, ``retrained``: outputs of that model on those
            splits, of the same shape, and for ``retrained`` the model is not the reference itself; ``data``: samples
            to train or perturb on; ``recipe``: the training recipe.
        audit: everything known about the model.
    """
    splits = [s for s in SPLITS if s in needs]
    reasons = [
        _missing_task(needs, audit),
        audit.flaws.get("model") if needs - {"data", "recipe"} and "model" in audit.flaws else None,
        *(_missing_split(split, "labels" in needs, audit) for split in splits),
        *(_missing_role(role, splits, audit) for role in ("original", "retrained") if role in needs),
    ]
    if "features" in needs:
        tapped = all(audit.tap in audit.said(s).features for s in splits if audit.outputs(s) is not None)
        if audit.tap is None or not tapped:
            reasons.append("no features were collected: the network has no linear head to tap")
    if "data" in needs and not all(split in audit.data for split in splits):
        reasons.append("the samples themselves were not given, only outputs")
    if "recipe" in needs and audit.recipe is None:
        reasons.append("there is no training recipe")
    return next((r for r in reasons if r), None)


def _missing_task(needs: frozenset[str], audit: Audit) -> str | None:
    if needs & {"classes", "logits"} and not isinstance(audit.task, Classes):
        return "the task has no classes"
    return None


def _missing_split(split: str, labelled: bool, audit: Audit) -> str | None:
    outputs = audit.outputs(split)
    if outputs is None or len(outputs) == 0:
        return f"there are no samples in {split}"
    if labelled and outputs.loss is None:
        return f"{split} has no labels"
    if labelled and outputs.loss is not None and not bool(torch.isfinite(outputs.loss).all()):
        return f"a loss on {split} is infinite or not a number"
    return None


def _missing_role(role: str, splits: Sequence[str], audit: Audit) -> str | None:
    if role == "retrained" and audit.is_reference:
        return "it is the reference itself"
    if role in audit.flaws:
        return f"{role}: {audit.flaws[role]}"
    found = [(audit.outputs(s), audit.outputs(s, role)) for s in splits]
    if role not in audit.models and not any(other is not None for _, other in found):
        return f"there is no {role} model to compare with"
    for split, (own, other) in zip(splits, found, strict=True):
        if other is None:
            return f"there are no outputs of {role} on {split}"
        if own is not None and own.outputs.shape != other.outputs.shape:
            sizes = f"{tuple(other.outputs.shape[1:])} instead of {tuple(own.outputs.shape[1:])}"
            return f"{role} has other outputs: {sizes} a sample"
    return None


class MetricFault(ExpungeError):
    """A metric broke its own declaration: other names, or a value outside its range."""


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """Numbers about the audited model, from evidence collected once.

    An author writes `numbers` and `measure`; `__call__` checks needs before and the declaration afterwards, so that no
    metric can forget a check, return a name it does not declare, or a value outside its range.
    """

    goal: ClassVar[Goal]
    range: ClassVar[tuple[float, float]]
    target: ClassVar[float | None] = None
    needs: ClassVar[frozenset[str]] = frozenset()
    wants: ClassVar[frozenset[str]] = frozenset()  # needs of some of its numbers, unavailable one by one
    undefined: ClassVar[tuple[str, ...]] = ()  # reasons of its own, in words; those of `missing` go without saying
    trains: ClassVar[bool] = False  # runs the model again: costs more than reading outputs

    @property
    @abstractmethod
    def numbers(self) -> dict[str, Number]:
        """What this metric returns, by name."""

    @abstractmethod
    def measure(self, audit: Audit) -> Found:
        """Return a value or reason for names of `numbers`, needs being met; names left out are a fault."""

    @final
    def __call__(self, audit: Audit) -> Found:
        """Return the named values; undefined ones as `Unavailable`.

        Raises:
            MetricFault: the metric returned other names than it declares, or a value outside its range.
        """
        declared = self.numbers
        reason = missing(self.needs, audit)
        if reason:
            return self.none(reason)
        found = self.measure(audit)
        if found.keys() != declared.keys():
            raise MetricFault(f"{type(self).__name__} declares {listing(declared)} and returned {listing(found)}")
        for name, value in found.items():
            low, high = declared[name].range
            if not isinstance(value, Value | Unavailable):
                got = type(value).__name__
                raise MetricFault(f"{type(self).__name__} returned a {got} for {name}, not a Value or Unavailable")
            if isinstance(value, Value) and not low <= value.x <= high:  # NaN is not inside either
                raise MetricFault(f"{name} = {value.x} is outside its range [{low}, {high}]")
        return {name: found[name] for name in declared}

    def none(self, reason: str) -> Found:
        """Return every number as unavailable for one reason."""
        return dict.fromkeys(self.numbers, Unavailable(reason))

    def number(
        self,
        label: str,
        *,
        goal: Goal | None = None,
        range: tuple[float, float] | None = None,
        target: float | None = None,
    ) -> Number:
        """Return a declaration with the family's goal, range and target where none of its own is given."""
        return Number(label, goal or self.goal, range or self.range, self.target if target is None else target)


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A guess at who was in the training set; it only scores, curves and intervals live once in `attacks`.

    An attack without a ``threshold`` is judged by ranks: AUC, balanced accuracy, true positive rates at small false
    positive rates. One with a threshold decides by itself: the share of the forget set it calls member is reported,
    or with ``counts`` set to ``unseen`` the share it calls non-member.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    needs: ClassVar[frozenset[str]] = frozenset()  # beside forget and test
    undefined: ClassVar[tuple[str, ...]] = ()
    label: ClassVar[str]  # in words, as in "entropy attack"
    threshold: ClassVar[float | None] = None  # of an attack that decides by itself
    counts: ClassVar[str] = "members"  # or "unseen"; of an attack that decides by itself
    against: ClassVar[str | None] = None  # role whose outputs on the same samples are handed to score as ``before``
    shadows: ClassVar[int] = 0  # shadow models that it needs at least

    def fit(self, audit: Audit, shadows: Sequence[Evidence] = ()) -> Attack:
        """Return the fitted attack; default: itself."""
        return self

    def declines(self, audit: Audit) -> str | None:
        """Return the reason why this attack does not apply, or None; needs are met already."""
        return None

    @abstractmethod
    def score(self, outputs: Outputs, before: Outputs | None = None) -> Tensor:
        """Return (N,) scores, higher = more like a member."""
