"""The loop of methods that take steps on a private copy: batches, modes, masks, checks, counts, the best epoch."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.data import Batch, Data
from expunge.errors import NotFinite
from expunge.method import Needs, See, Session, State, option
from expunge.methods._fields import Checked
from expunge.passes import whole
from expunge.task import Classes, Quantile, Regression, Task
from expunge.tensors import changed
from expunge.train import (
    augmented,
    batch_orders,
    endless_orders,
    mean_loss,
    optimizer_of,
    outputs_and_losses,
    stepped,
)

SIZE = 64  # samples a step where neither the method nor a recipe says


@dataclass(frozen=True)
class Taken:
    """The samples of one step.

    Args:
        batch: of all sources together; its targets are None unless every source shows labels.
        origin: (B,) int64, which source each sample is from, 0 the first.
        beside: samples of the sources that go in lockstep, or None.
        parts: the samples of each source that has some here, in their order in the batch, with the labels it shows.
    """

    batch: Batch
    origin: Tensor
    beside: Taken | None = None
    parts: Mapping[int, Batch] = field(default_factory=dict)

    def of(self, source: int) -> Tensor:
        """Return which samples are from a source, (B,) bool."""
        return self.origin == source


Loss = Callable[[nn.Module, Taken], Tensor]


@dataclass(frozen=True, kw_only=True)
class Stepping(Checked):
    """What methods have in common that take steps of an optimiser: how long, how, and what they see besides.

    BatchNorm statistics move with training batches unless ``norm="frozen"``; a batch of a single sample has no
    statistics, and is normalised by the running ones.
    """

    prepared_by: ClassVar[frozenset[str] | None] = frozenset()  # nothing is prepared but the record of ids
    least_epochs: ClassVar[int] = 1

    epochs: int = option(5, symbol="E", unit="epochs", text="how long")
    lr: float = option(0.01, symbol="η", unit="1", text="learning rate")
    optimizer: Literal["sgd", "adam", "adamw"] = option("sgd", unit="-", text="sgd, adam or adamw")
    momentum: float = option(0.9, symbol="μ", unit="1", text="of sgd")
    weight_decay: float = option(5e-4, symbol="wd", unit="1", text="coupled L2; of adamw decoupled")
    batch_size: int | None = option(
        None, symbol="B", unit="samples", text=f"a step; unset, the recipe's, or {SIZE} without a recipe"
    )
    clip: float | None = option(None, unit="1", text="largest norm of a step's gradient; unset, no limit")
    norm: Literal["moving", "frozen"] = option(
        "moving", unit="-", text="whether BatchNorm statistics move with the batches, or stay frozen"
    )
    keep_best: bool = option(
        False, unit="-", text="return the epoch with the lowest loss on holdout data, which it then needs"
    )

    def __post_init__(self) -> None:
        self.one_of("optimizer", "adam", "adamw", "sgd")
        self.one_of("norm", "frozen", "moving")
        self.count("epochs", self.least_epochs)
        self.count("batch_size", 1)
        self.positive("lr", "clip")
        self.positive("momentum", "weight_decay", zero=True)

    @property
    def trains(self) -> bool:
        """Whether steps are taken in train mode: with dropout, and BatchNorm as ``norm`` says."""
        return True

    def sees(self, **sets: Any) -> Needs:
        """Return needs with what every such method may have: the recipe, and with ``keep_best`` holdout data."""
        more = Needs(
            recipe=True,
            holdout=See.LABELLED if self.keep_best else See.NONE,
            optional=frozenset({"recipe"}),
        )
        return Needs(**sets) | more

    def reads(self, phase: str, *, times: int | None = None, **sets: float) -> dict[str, float]:
        """Return the passes to unlearn, with ``keep_best`` those over holdout data among them; none to prepare.

        Args:
            phase: ``prepare`` or ``unlearn``.
            times: how often ``keep_best`` looks at holdout data; unset, once an epoch.
            sets: passes over each set.
        """
        if phase != "unlearn":
            return {}
        best = {"holdout": float(self.epochs if times is None else times)} if self.keep_best else {}
        return {name: float(passes) for name, passes in sets.items() if passes} | best


@dataclass(frozen=True, kw_only=True)
class Stepped(Stepping):
    """Methods that do nothing but take such steps; a subclass says which in `descend`."""

    @abstractmethod
    def descend(self, session: Session, descent: Descent) -> None:
        """Take the steps."""

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """Take the steps, and report how many they were."""
        with descending(session, self, state=state) as descent:
            self.descend(session, descent)
        return descent.finished(), state


def only_classes(task: Task, why: str) -> str | None:
    """Return the reason why a method of classes does not apply to a task, or None."""
    return None if isinstance(task, Classes) else f"{why}, and this task has no classes"


def only_reals(task: Task, why: str) -> str | None:
    """Return the reason why a method of real targets does not apply to a task, or None."""
    return None if isinstance(task, Regression | Quantile) else f"{why}, and this task's targets are no real numbers"


@contextmanager
def descending(
    session: Session, method: Stepping, model: nn.Module | None = None, state: State | None = None
) -> Iterator[Descent]:
    """Yield a descent with a progress bar over the samples of all passes that the method says it makes."""
    sets = method.passes("unlearn", session.recipe if session.needs.recipe else None)
    known = {name: data for name, data in session.given.items() if isinstance(data, Data)}
    total = sum(n * len(known[name]) for name, n in sets.items() if name in known)
    with session.runtime.tracking(f"unlearning by {method.name}", round(total)) as advance:
        yield Descent(session, method, session.model if model is None else model, advance, state)


class Descent:
    """Steps on a model, counted.

    Args:
        session: task, runtime, masks, and where values are recorded.
        method: gives the optimiser's settings.
        model: is edited in place.
        advance: called with the samples of each step.
        state: what the method prepared, for those that prepare something.
    """

    def __init__(
        self,
        session: Session,
        method: Stepping,
        model: nn.Module,
        advance: Callable[[int], None] = lambda n: None,
        state: State | None = None,
    ) -> None:
        self.session, self.method, self.model, self.advance = session, method, model, advance
        self.state = State() if state is None else state
        self.task, self.runtime = session.task, session.runtime
        self.recipe = session.recipe if session.needs.recipe else None
        self.optimizer = optimizer_of(model, method)
        self.held = None if session.masks is None else session.masks.hold(model)
        self.steps = self.epochs = 0
        self._best, self._kept = math.inf, dict[str, Tensor]()

    @property
    def size(self) -> int:
        """Samples a step."""
        asked = self.method.batch_size
        return asked or (SIZE if self.recipe is None else self.recipe.batch_size)

    def epoch(
        self,
        sources: Sequence[Data],
        loss: Loss,
        *,
        beside: Sequence[Data] = (),
        size: int | None = None,
        beside_size: int | None = None,
        others: Iterator[NDArray[np.int64]] | None = None,
        order: Tensor | None = None,
        rate: float | None = None,
        name: str = "loss",
        made: int = 0,
    ) -> float:
        """Go once through the samples of all sources together, a step a batch.

        Args:
            sources: data sets, their samples mixed in one random order.
            loss: of the samples of a step, a scalar to be lowered.
            beside: data sets whose samples go in lockstep, begun again in a new order when they are used up.
            size: samples a step, instead of the method's.
            beside_size: samples of ``beside`` a step, instead of ``size``.
            others: from `lockstep`, to go on in ``beside`` from epoch to epoch instead of in a new order.
            order: positions in the sources one after another, instead of a random order.
            rate: learning rate, instead of the method's.
            name: under which the mean is recorded.
            made: how many of the sources, the first ones, hold inputs that the method made: they are not augmented.

        Returns:
            The mean loss over the samples.

        Raises:
            NotFinite: the loss is NaN or infinite; names the step, and the setting to lower.
            UserError: memory does not suffice for a batch.
        """
        size = size or self.size
        for group in self.optimizer.param_groups:
            group["lr"] = self.method.lr if rate is None else rate
        order = torch.randperm(sum(map(len, sources))) if order is None else order
        if beside and others is None:
            others = self.lockstep(beside, beside_size or size)
        total, seen = 0.0, 0
        for at in batch_orders(size, order):
            with whole(f"a batch of {len(at)} samples", f"lower {self.method.name}.batch_size"):
                aside = None if others is None else self._taken(beside, next(others))
                now = self._taken(sources, at, aside, made)
                least = len(at) if aside is None else min(len(at), len(aside.batch))
                total += len(at) * self.step(lambda now=now: loss(self.model, now), least)  # type: ignore[misc]
            seen += len(at)
            self.advance(len(at) + (0 if aside is None else len(aside.batch)))
        mean = total / max(1, seen)
        self.session.record(name, mean, step=self.steps)
        return mean

    def lockstep(self, sources: Sequence[Data], size: int | None = None) -> Iterator[NDArray[np.int64]]:
        """Return positions in some sources, a batch after another, for ever; every pass is in a new order.

        Args:
            sources: counted one after another.
            size: samples a batch, instead of the method's.

        Returns:
            The positions of each batch.
        """
        return endless_orders(size or self.size, sum(map(len, sources)))

    def step(self, loss: Callable[[], Tensor], samples: int) -> float:
        """Take one step down a loss.

        Args:
            loss: computes the scalar, the model in train mode unless the method's `trains` says otherwise.
            samples: in the batch, the smaller one of two: BatchNorm in train mode refuses a single one.

        Returns:
            The loss before the step.

        Raises:
            NotFinite: the loss is NaN or infinite.
        """
        self._train(frozen=self.method.norm == "frozen" or samples == 1)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            with self.runtime.autocast():
                value = loss()
            if not bool(torch.isfinite(value)):
                want = f"a finite loss of {self.method.name}"
                remedy = f"lower {self.method.name}.lr (now {self.method.lr:g})"
                raise NotFinite(want, f"{value.item()} at step {self.steps + 1}", remedy)
            if value.requires_grad:
                value.backward()
        stepped(self.model, self.optimizer, self.method.clip, self.held)
        self.steps += 1
        return float(value.detach())

    def outputs(self, batch: Batch) -> Tensor:
        """Return the outputs (B, ...) of the model being edited."""
        return self.task.forward(self.model, batch)[0]

    def losses(self, batch: Batch) -> Tensor:
        """Return the task's loss of each sample (B,), times its weight."""
        return self.weighted(outputs_and_losses(self.model, self.task, batch)[1], batch)

    def weighted(self, losses: Tensor, batch: Batch) -> Tensor:
        """Return losses of samples (B,), each times its weight where the batch has weights."""
        return losses if batch.weight is None else losses * batch.weight.to(losses)

    def measured(self, data: Data) -> float:
        """Return the mean loss over labelled samples, in eval mode.

        Raises:
            NotFinite: it is NaN or infinite; names the step, and the setting to lower.
        """
        self.model.eval()
        try:
            now = mean_loss(self.model, self.task, data, self.runtime)
        except NotFinite as error:
            want, got = f"a finite loss of {self.method.name} on {data.name}", f"none after step {self.steps}"
            raise NotFinite(want, got, f"lower {self.method.name}.lr (now {self.method.lr:g})") from error
        self.advance(len(data))
        return now

    def ended(self) -> None:
        """Count an epoch; with ``keep_best`` keep its weights if the loss on holdout data is the lowest so far."""
        self.epochs += 1
        if self.method.keep_best:
            self.model.eval()
            now = mean_loss(self.model, self.task, self.session.holdout, self.runtime)
            self.advance(len(self.session.holdout))
            self.session.record("holdout_loss", now, step=self.steps)
            if now < self._best:
                self._best, self._kept = now, self.kept()
                self.session.record("best_epoch", self.epochs)

    def kept(self) -> dict[str, Tensor]:
        """Return a copy of all weights and buffers."""
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def finished(self) -> nn.Module:
        """Return the model in eval mode, the best epoch's where asked; record how many steps and epochs there were."""
        if self._kept:
            self.model.load_state_dict(self._kept)
        self.optimizer.zero_grad(set_to_none=True)
        self.model.eval()
        self.session.record("steps", self.steps)
        self.session.record("epochs", self.epochs)
        moved = changed(self.session.source, self.model)
        if moved is not None and moved.count == 0 and "note" not in self.session.log:
            text = f"None of the {self.steps} steps moved a weight: the loss has no gradient, or rounding swallows it."
            self.session.record("note", text)
        return self.model

    def _train(self, frozen: bool) -> None:
        self.model.train(self.method.trains)
        if frozen:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._NormBase):
                    module.eval()

    def _taken(
        self, sources: Sequence[Data], at: NDArray[np.int64], beside: Taken | None = None, made: int = 0
    ) -> Taken:
        """Read positions of several sources, counted one after another, into one batch; augment all but ``made``."""
        starts = np.cumsum([0, *(len(data) for data in sources)])
        which = np.searchsorted(starts, at, side="right") - 1
        parts, origins = dict[int, Batch](), []
        for i, data in enumerate(sources):
            own = at[which == i] - starts[i]
            if len(own):
                batch = data.read(own).to(self.runtime.torch_device)
                parts[i] = batch if self.recipe is None or i < made else augmented(batch, self.recipe)
                origins += [i] * len(own)
        origin = torch.tensor(origins, device=self.runtime.torch_device)
        return Taken(joined(list(parts.values())), origin, beside, parts)


def joined(batches: Sequence[Batch]) -> Batch:
    """Return batches as one; targets are None unless all have them, weights are 1 where a batch has none."""
    if len(batches) == 1:
        return batches[0]
    first = batches[0].inputs
    inputs: Any = (
        {k: torch.cat([b.inputs[k] for b in batches]) for k in first}  # type: ignore[index]
        if isinstance(first, dict)
        else torch.cat([b.inputs for b in batches])  # type: ignore[misc]
    )
    targets, weights = [b.target for b in batches], [b.weight for b in batches]
    target = None if any(t is None for t in targets) else torch.cat([t for t in targets if t is not None])
    weight = None
    if any(w is not None for w in weights):
        device = next(w for w in weights if w is not None).device
        weight = torch.cat(
            [torch.ones(len(b), device=device) if w is None else w for b, w in zip(batches, weights, strict=True)]
        )
    return Batch(inputs, target, weight, torch.cat([b.index for b in batches]))
