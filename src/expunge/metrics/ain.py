"""Anamnesis index on unseen samples: how soon ordinary training brings the forgotten range back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn
from torch.optim import Optimizer

from expunge.errors import UserError
from expunge.metric import Audit, Found, Goal, Metric, Number, Unavailable, Value, missing
from expunge.metrics import _tune
from expunge.metrics._tune import Order, Part
from expunge.seeds import seed as named_seed
from expunge.task import Classes
from expunge.tensors import isolated_rng
from expunge.train import optimizer_of


def index(own: int, reference: int, cap: int) -> Value | Unavailable:
    """Return the anamnesis index r(model)/r(retrained) of two counts of steps.

    Where the model is not back within the cap, the index is a lower bound, [cap/r, ∞).

    Args:
        own: steps of the model, at most the cap.
        reference: steps of retrained.
        cap: steps at which either was given up.

    >>> index(3, 12, 100).x, index(3, 0, 100).reason
    (0.25, 'undefined: retrained is at the target before any step')
    """
    if reference == 0:
        return Unavailable("undefined: retrained is at the target before any step")
    if reference >= cap:
        return Unavailable(f"capped: {cap} steps are not enough for retrained to relearn the forgotten range")
    x = own / reference
    return Value(x, x, math.inf, 1, "ratio") if own >= cap else Value.single(x, "ratio")


@dataclass(frozen=True, kw_only=True)
class Anamnesis(Metric):
    """Steps of ordinary training until the forgotten range is known again, against retrained's; not of classes.

    A private copy is trained on the whole training set, forget samples included, by the optimiser, the rate and the
    batch size of the recipe, the rate held constant, on the plain loss, without augmentation; BatchNorm keeps its
    statistics and dropout is off. The order of the batches is fixed by the seed and the same for every model.
    ``ain/steps`` is the number of steps r, counted from 0 and looked at after every one, until the mean loss on
    *unseen* samples of the forgotten kind is at most (1 + alpha) times the original's. ``ain/index`` =
    r(model)/r(retrained): 1 is ideal, near 0 the range was still known, far above 1 it was fought off beyond what a
    model has that never saw it.

    Given up at ``cap`` steps: the count and the index then are lower bounds, [cap, ∞); of retrained it leaves no index,
    and neither does a retrained model that is at the target before any step. `relearn` asks for the forget samples
    themselves, which a model that knew them by heart brings back last; with classes it counts right answers.

    Args:
        lr: learning rate; None for the recipe's.
        alpha: how far above the original's loss counts as back.
        cap: steps at which it is given up; the published cap is ten epochs.
        limit: unseen samples that are asked about at most.

    Raises:
        UserError: a setting outside its range.

    References:
        V. S. Chundawat, A. K. Tarun, M. Mandal, M. Kankanhalli, "Zero-Shot Machine Unlearning", 2022,
        https://arxiv.org/abs/2201.05629. Of regression: A. K. Tarun, V. S. Chundawat, M. Mandal, M. Kankanhalli,
        "Deep Regression Unlearning", 2023, https://arxiv.org/abs/2210.08196.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    needs: ClassVar[frozenset[str]] = frozenset(
        {"forget", "retain", "test_forget", "labels", "data", "recipe", "original"}
    )
    wants: ClassVar[frozenset[str]] = frozenset({"retrained"})
    undefined: ClassVar[tuple[str, ...]] = (
        "the task has classes",
        "undefined: retrained is at the target before any step",
        "steps are not enough for",
        *_tune.UNDEFINED,
    )
    trains: ClassVar[bool] = True

    lr: float | None = None
    alpha: float = 0.05
    cap: int = 500
    limit: int = 2000

    def __post_init__(self) -> None:
        for name in ("cap", "limit"):
            if getattr(self, name) < 1:
                raise UserError(f"ain.{name} of 1 or more", str(getattr(self, name)), "give a larger number")
        if not 0 <= self.alpha < math.inf:
            raise UserError("ain.alpha of 0 or more", str(self.alpha), "give a share of the original's loss")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UserError("ain.lr above 0", str(self.lr), "give a positive number, or None for the recipe's")

    @property
    def numbers(self) -> dict[str, Number]:
        """``ain/steps`` and ``ain/index``."""
        return {
            "ain/steps": self.number("steps to relearn unseen samples of the forgotten kind"),
            "ain/index": self.number("anamnesis index on unseen samples: steps against retrained's", target=1.0),
        }

    def measure(self, audit: Audit) -> Found:
        """Train copies of the model and of retrained, and count."""
        if isinstance(audit.task, Classes):
            return self.none("the task has classes, of which relearn counts the right answers")
        with isolated_rng(named_seed("ain", audit.seed)):
            own = self._steps(audit, "model")
            if isinstance(own, Unavailable):
                return self.none(own.reason)
            ended = own >= self.cap
            steps = Value(own, own, math.inf, 1, "steps") if ended else Value.single(own, "steps")
            return {"ain/steps": steps, "ain/index": self._index(audit, own)}

    def _index(self, audit: Audit, own: int) -> Value | Unavailable:
        reason = missing(self.needs | {"retrained"}, audit)
        if reason is not None:
            return Unavailable(reason)
        reference = self._steps(audit, "retrained")
        if isinstance(reference, Unavailable):
            return Unavailable(f"retrained: {reference.reason}")
        return index(own, reference, self.cap)

    def _steps(self, audit: Audit, role: str) -> int | Unavailable:
        """Return the steps a role's model needs, the cap where they are not enough."""
        unseen = _tune.some(audit, "test_forget", self.limit, "ain")
        bar = (1 + self.alpha) * float(_tune.before(audit, unseen, "original", "test_forget").mean())
        what = (repr(self), audit.recipe, bar)
        return _tune.tried(lambda: _tune.once(audit, role, what, lambda who: self._counted(audit, who, unseen, bar)))

    def _counted(self, audit: Audit, role: str, unseen: Part, bar: float) -> int:
        model = _tune.copied(audit, role)
        with audit.runtime.alone().tracking("relearning", self.cap) as advance:
            for step in self._training(model, audit):
                if step == self.cap or float(_tune.ask(model, audit, unseen).mean()) <= bar:
                    return step
                advance(1)
        raise AssertionError("training goes on without end")

    def _training(self, model: nn.Module, audit: Audit) -> Iterator[int]:
        recipe = audit.recipe
        assert recipe is not None
        how = recipe if self.lr is None else replace(recipe, lr=self.lr)

        def optimizer(model: nn.Module) -> Optimizer:
            return optimizer_of(model, how)

        return _tune.training(model, audit.task, _whole(audit, how.batch_size), optimizer, audit.runtime.alone())


def _whole(audit: Audit, size: int) -> list[tuple[Part, Order]]:
    """Return forget and retain samples under one order, each taking its share of every batch."""
    forget, retain = (_tune.some(audit, split, len(audit.data[split])) for split in ("forget", "retain"))
    n, among = len(forget), len(forget) + len(retain)
    one, other = itertools.tee(_tune.endless(among, min(size, among), "ain", audit.seed))
    return [(forget, (at[at < n] for at in one)), (retain, (at[at >= n] - n for at in other))]


METRIC = Anamnesis
