"""Relearning: how quickly does what was forgotten come back when a copy is trained on it again?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from expunge.errors import UserError
from expunge.metric import Audit, Found, Goal, Metric, Number, Unavailable, Value, missing
from expunge.metrics import _tune
from expunge.metrics._tune import Part
from expunge.seeds import seed as named_seed
from expunge.task import Classes
from expunge.tensors import isolated_rng

Answers = dict[int, NDArray[np.float64]]
FIRST = 32  # samples asked about at once, then twice as many, and so on


@dataclass(frozen=True, kw_only=True)
class Relearn(Metric):
    """Steps until the forgotten is back, against retrained's, and what a few of its samples bring back of the rest.

    A private copy is fine-tuned by plain SGD on batches of forget and retain samples, their order fixed by the seed
    and the same for every model; BatchNorm keeps its statistics and dropout is off. Large sets are represented by a
    seeded draw of at most ``limit`` samples each.

    ``relearn/steps`` is the number of steps r, counted from 0, until the accuracy on the forget samples is at least
    (1 − alpha) times the original's; without classes, until their mean loss is at most (1 + alpha) times the
    original's. At ``cap`` steps it is given up: the value then is the cap, its interval [cap, ∞).
    ``relearn/ain``, the anamnesis index, is r of the model over r of retrained: 1 is ideal, near 0 the forgotten was
    still there, far above 1 it was fought off beyond what a model has that never saw it.
    ``relearn/few`` is the accuracy (without classes, the mean loss) on all other forget samples after ``few_steps``
    steps with a few of them, at most ``few`` and at most the share ``few_share``; the series ``relearn/curve`` shows
    it by steps. Of a model that still knows the rest, a few samples recall it. Goal of both: retrained's value.

    Args:
        lr: learning rate.
        batch: samples a step.
        mix: share of each batch that are retain samples, in [0, 1).
        alpha: how far below the original counts as back.
        cap: steps at which it is given up.
        few: at most so many samples to recall the rest with.
        few_share: at most this share of the forget set.
        few_steps: steps with them.
        curve: further steps at which the curve is drawn.
        limit: samples of a set that are used at most.

    Raises:
        UserError: a setting outside its range.

    References:
        Relearn time: A. Golatkar, A. Achille, S. Soatto, "Eternal Sunshine of the Spotless Net: Selective Forgetting
        in Deep Networks", 2020, https://arxiv.org/abs/1911.04933. Anamnesis index: V. S. Chundawat, A. K. Tarun,
        M. Mandal, M. Kankanhalli, "Zero-Shot Machine Unlearning", 2022, https://arxiv.org/abs/2201.05629.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain", "labels", "data"})
    undefined: ClassVar[tuple[str, ...]] = (
        "the original has no forget sample right",
        "undefined: retrained is at the target before any step",
        "steps are not enough for",
        "one forget sample leaves no other to ask about",
        *_tune.UNDEFINED,
    )
    trains: ClassVar[bool] = True

    lr: float = 0.02
    batch: int = 32
    mix: float = 0.25
    alpha: float = 0.05
    cap: int = 250
    few: int = 16
    few_share: float = 0.1
    few_steps: int = 10
    curve: tuple[int, ...] = (0, 1, 2, 5, 10, 20)
    limit: int = 2000

    def __post_init__(self) -> None:
        for name, low in (("batch", 1), ("cap", 1), ("few", 1), ("few_steps", 0), ("limit", 2)):
            if getattr(self, name) < low:
                raise UserError(f"relearn.{name} of {low} or more", str(getattr(self, name)), "give a larger number")
        for name in ("mix", "alpha", "few_share"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"relearn.{name} in [0, 1)", str(getattr(self, name)), "give a share")
        if not 0 < self.lr < math.inf:
            raise UserError("relearn.lr above 0", str(self.lr), "give a positive number")

    @property
    def numbers(self) -> dict[str, Number]:
        """``relearn/steps``, ``relearn/ain`` and ``relearn/few``."""
        return {
            "relearn/steps": self.number("steps to relearn the forget set"),
            "relearn/ain": self.number("anamnesis index: steps against retrained's", target=1.0),
            "relearn/few": self.number("forget set after relearning a few of it"),
        }

    def measure(self, audit: Audit) -> Found:
        """Train copies of the model, and count."""
        with isolated_rng(named_seed("relearn", audit.seed)):
            steps = self._steps(audit, "model")
            return {
                "relearn/steps": steps if isinstance(steps, Unavailable) else self._value(steps),
                "relearn/ain": self._ain(audit, steps),
                "relearn/few": self._few(audit),
            }

    def _value(self, steps: int) -> Value:
        if steps < self.cap:
            return Value.single(steps, "steps")
        return Value(steps, steps, math.inf, 1, "steps")

    def _ain(self, audit: Audit, steps: int | Unavailable) -> Value | Unavailable:
        reason = missing(self.needs | {"retrained"}, audit)
        if reason is not None:
            return Unavailable(reason)
        if isinstance(steps, Unavailable):
            return steps
        reference = self._steps(audit, "retrained")
        if isinstance(reference, Unavailable):
            return Unavailable(f"retrained: {reference.reason}")
        if reference == 0:
            return Unavailable("undefined: retrained is at the target before any step")
        for who, count in (("retrained", reference), ("the model", steps)):
            if count >= self.cap:
                return Unavailable(f"{self.cap} steps are not enough for {who} to relearn the forget set")
        return Value.single(steps / reference, "ratio")

    def _steps(self, audit: Audit, role: str) -> int | Unavailable:
        """Return the steps a role's model needs, the cap where they are not enough."""
        reason = missing(self.needs | {"original"}, audit)
        if reason is not None:
            return Unavailable(reason)
        forget = _tune.some(audit, "forget", self.limit, "relearn")
        known = _tune.before(audit, forget, "original")
        if isinstance(audit.task, Classes):
            if known.sum() == 0:
                return Unavailable("the original has no forget sample right: there is nothing that could come back")
            bar = len(forget) - math.ceil((1 - self.alpha) * known.sum() - 1e-9)  # wrong answers allowed
        else:
            bar = (1 + self.alpha) * float(known.mean())
        return _tune.tried(
            lambda: _tune.once(
                audit, role, (repr(self), "steps", bar), lambda who: self._counted(audit, who, forget, bar)
            )
        )

    def _counted(self, audit: Audit, role: str, forget: Part, bar: float) -> int:
        model = _tune.copied(audit, role)
        with audit.runtime.alone().tracking("relearning", self.cap) as advance:
            for step in self._training(model, audit, forget):
                if step == self.cap or _back(model, audit, forget, bar):
                    return step
                advance(1)
        raise AssertionError("training goes on without end")

    def _training(self, model: nn.Module, audit: Audit, forget: Part) -> Iterator[int]:
        """Train on these forget samples mixed with retain samples."""
        kept = min(round(self.mix * self.batch), self.batch - 1)
        sources = [(forget, forget.order(self.batch - kept, "relearn", audit.seed, "forget"))]
        if kept:
            retain = _tune.some(audit, "retain", self.limit, "relearn")
            sources.append((retain, retain.order(kept, "relearn", audit.seed, "retain")))
        return _tune.training(model, audit.task, sources, self.lr, audit.runtime.alone())

    def _few(self, audit: Audit) -> Value | Unavailable:
        forget = _tune.some(audit, "forget", self.limit, "relearn")
        if len(forget) < 2:
            return Unavailable("one forget sample leaves no other to ask about")
        count = max(1, min(self.few, int(self.few_share * len(forget))))
        order = next(forget.order(len(forget), "relearn", audit.seed, "few"))
        few, rest = forget.take(np.sort(order[:count])), forget.take(np.sort(order[count:]))

        def recalled(role: str) -> Answers:
            return _tune.once(audit, role, (repr(self), "few"), lambda who: self._recalled(audit, who, few, rest))

        found = _tune.tried(lambda: recalled("model"))
        if isinstance(found, Unavailable):
            return found
        for step in sorted(found):
            audit.record("relearn/curve", step, _tune.value(found[step], audit.task))
        own = found[self.few_steps]
        _tune.gap(audit, "relearn/few", own, lambda: recalled("retrained")[self.few_steps])
        return _tune.value(own, audit.task)

    def _recalled(self, audit: Audit, role: str, few: Part, rest: Part) -> Answers:
        """Return what the model answers on the rest after some steps with the few, by steps."""
        model, places = _tune.copied(audit, role), {*self.curve, self.few_steps}
        found: Answers = {}
        for step in self._training(model, audit, few):
            if step in places:
                found[step] = _tune.ask(model, audit, rest)
            if step == max(places):
                break
        return found


def _back(model: nn.Module, audit: Audit, forget: Part, bar: float) -> bool:
    """Return whether the forget set is back: at most so many wrong answers, or without classes so high a mean loss."""
    if not isinstance(audit.task, Classes):
        return float(_tune.ask(model, audit, forget).mean()) <= bar
    wrong, start, size = 0.0, 0, FIRST
    while start < len(forget):
        part = forget.take(np.arange(start, min(start + size, len(forget))))
        wrong += len(part) - float(_tune.ask(model, audit, part).sum())
        if wrong > bar:  # a copy far from the target is not asked about every sample
            return False
        start, size = start + size, 2 * size
    return True


METRIC = Relearn
