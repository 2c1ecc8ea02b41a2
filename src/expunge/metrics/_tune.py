"""Private copies that are trained on, changed and asked again: what relearning and robustness share."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from expunge import stats, tensors
from expunge.copies import private
from expunge.data import Data
from expunge.errors import NotFinite, UserError
from expunge.evidence import Outputs, collect
from expunge.metric import Audit, Unavailable, Value, missing
from expunge.passes import out_of_memory
from expunge.runtime import Runtime
from expunge.seeds import seed as named_seed
from expunge.task import Classes, Task

T = TypeVar("T")
Order = Iterator[NDArray[np.int64]]
Build = Callable[[nn.Module], torch.optim.Optimizer]
UNDEFINED = (
    "the model itself was not given",
    "no copy of the model can be made",
    "the model has no trainable parameters",
    "its outputs do not depend on a trainable parameter",
    "fine-tuning diverged",
    "the changed copy's outputs hold NaN or infinity",
    "memory does not suffice",
)
"""Reasons of `Stopped`."""

_DIVERGED = "fine-tuning diverged: a loss is NaN or infinite; a lower learning rate may help"


class Stopped(Exception):
    """Why a copy could not be trained or asked, in words; it becomes an `Unavailable`."""


def tried(work: Callable[[], T]) -> T | Unavailable:
    """Return what the work gives, or the reason why the model does not let it be done."""
    try:
        return work()
    except Stopped as stop:
        return Unavailable(str(stop))
    except NotFinite:
        return Unavailable("the changed copy's outputs hold NaN or infinity")
    except Exception as error:
        if not out_of_memory(error):
            raise
        return Unavailable("memory does not suffice to change a copy of the model")


def copied(audit: Audit, role: str = "model") -> nn.Module:
    """Return a private copy of a role's model where work runs, in eval mode.

    So BatchNorm keeps its statistics, which few samples would wreck, and dropout is off: nothing but the weights
    moves, and each step is determined by them. Recurrent layers stand in train mode without dropout, which computes
    the same: cuDNN gives gradients in train mode only.

    Raises:
        Stopped: there is no model, or no copy can be made of it.
    """
    if role not in audit.models:
        raise Stopped("the model itself was not given, only its outputs")
    try:
        copy = private(audit.models[role]).to(audit.runtime.torch_device).eval()
    except UserError as error:
        raise Stopped(f"no copy of the model can be made: {error}") from error
    for module in copy.modules():
        if isinstance(module, nn.RNNBase):
            module.dropout = 0.0
            module.train()
    return copy


@dataclass(frozen=True)
class Part:
    """Some samples of one split.

    Args:
        data: the samples.
        at: their positions in the split, and so in the evidence.
    """

    data: Data
    at: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.at)

    def take(self, at: NDArray[np.int64]) -> Part:
        """Return the samples at these positions of the part."""
        return Part(replace(self.data, positions=self.data.positions[at]), self.at[at])

    def order(self, size: int, *names: object) -> Order:
        """Yield positions in the part, ``size`` at a time, see `endless`."""
        return endless(len(self), size, *names)


def endless(n: int, size: int, *names: object) -> Order:
    """Yield positions below n, ``size`` at a time: one permutation, seeded by names, after another, without end."""
    generator = np.random.default_rng(named_seed(*names))
    every = itertools.chain.from_iterable(generator.permutation(n) for _ in itertools.count())
    while True:
        yield np.fromiter(every, np.int64, size)


def some(audit: Audit, split: str, limit: int, *names: object) -> Part:
    """Return a seeded draw of at most ``limit`` samples of a split, in the order of their ids.

    The order of the ids, not that of the data: which samples meet in a batch then does not depend on how the data is
    sorted.
    """
    data = audit.data[split]
    whole = Part(data, np.arange(len(data))).take(np.argsort(np.asarray(data.ids, dtype=str), kind="stable"))
    if len(whole) <= limit:
        return whole
    drawn = np.random.default_rng(named_seed(*names, audit.seed)).choice(len(whole), limit, replace=False)
    return whole.take(np.sort(drawn))


def training(
    model: nn.Module, task: Task, sources: Sequence[tuple[Part, Order]], how: float | Build, runtime: Runtime
) -> Iterator[int]:
    """Train a copy in place on the unweighted mean loss; yield the number of steps done: 0, 1, 2, ...

    Args:
        model: the copy; its mode is kept.
        task: outputs and per-sample loss.
        sources: samples with the order in which they are taken; each step takes one batch of each, which may be empty
            of all but one.
        how: learning rate of plain SGD, or what builds the optimiser of a model.
        runtime: device, precision.

    Yields:
        Steps done, from 0 before the first one.

    Raises:
        Stopped: nothing to train, or a loss is not finite.
    """
    params = list(tensors.parameters(model).values())
    if not params:
        raise Stopped("the model has no trainable parameters")
    optimizer = how(model) if callable(how) else torch.optim.SGD(params, lr=how)
    for count in itertools.count():
        yield count
        picks = [(part, next(order)) for part, order in sources]
        batches = [part.data.read(pick).to(runtime.torch_device) for part, pick in picks if len(pick)]
        total = sum(len(batch) for batch in batches)
        optimizer.zero_grad(set_to_none=True)
        moved = False
        for batch in batches:  # one after the other: inputs of two sets need not have one shape
            with torch.enable_grad(), runtime.autocast():
                outputs, _ = task.forward(model, batch)
                assert batch.target is not None
                loss = task.loss(outputs, batch.target).sum() / total
            if not bool(torch.isfinite(loss)):
                raise Stopped(_DIVERGED)
            if loss.requires_grad:
                loss.backward()
                moved = True
        if not moved:
            raise Stopped("its outputs do not depend on a trainable parameter")
        optimizer.step()


def ask(model: nn.Module, audit: Audit, part: Part) -> NDArray[np.float64]:
    """Return what a model in place answers, (N,): 1 where the class is right, else 0; without classes the loss.

    Raises:
        NotFinite: an output is NaN or infinite.
    """
    said = collect(model, audit.task, part.data, runtime=replace(audit.runtime.alone(), progress=False))
    return judged(said, audit.task)


def judged(said: Outputs, task: Task) -> NDArray[np.float64]:
    """Return the same of outputs that were collected, labels being there."""
    assert said.target is not None
    assert said.loss is not None
    right = said.prediction.eq(said.target).double() if isinstance(task, Classes) else said.loss
    found: NDArray[np.float64] = right.numpy()
    return found


def before(audit: Audit, part: Part, role: str = "model", split: str = "forget") -> NDArray[np.float64]:
    """Return what a role answered on samples of a split before anything was changed, from the evidence."""
    return judged(audit.said(split, role).take(torch.from_numpy(part.at)), audit.task)


def value(answers: NDArray[np.float64], task: Task) -> Value:
    """Return the mean of answers: a share with Wilson's interval, without classes a mean loss with a t interval.

    Answers that are shares themselves, means over draws, vary less than those that are 0 or 1 with the same mean:
    for them Wilson's interval, from the counts around theirs, is wide enough.
    """
    if not isinstance(task, Classes):
        return Value.of(stats.mean_t(answers), "loss")
    n, total = len(answers), float(answers.sum())
    few, many = int(np.floor(total + 1e-9)), int(np.ceil(total - 1e-9))
    return Value(total / n, stats.wilson(few, n).low, stats.wilson(many, n).high, n)


def gap(audit: Audit, name: str, own: NDArray[np.float64], other: Callable[[], NDArray[np.float64]]) -> None:
    """Keep the difference of answers to retrained's on the same samples, where there is a retrained model.

    Args:
        audit: where it is kept.
        name: of the number.
        own: the audited model's answers, (N,).
        other: gives retrained's, (N,).
    """
    if missing(frozenset({"forget", "labels", "retrained"}), audit) is not None:
        return
    found = tried(other)
    if isinstance(found, Unavailable):
        return
    shares = isinstance(audit.task, Classes)
    binary = shares and bool(np.isin(own, (0, 1)).all() and np.isin(found, (0, 1)).all())
    between = stats.paired_proportions(own, found) if binary else stats.paired(own, found)
    audit.kept.gaps[name] = Value.of(between, "1" if shares else "loss")


_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, Any]] = weakref.WeakKeyDictionary()


def once(audit: Audit, role: str, what: Hashable, work: Callable[[str], T]) -> T:
    """Return what work gives for a role's model; retrained's is kept, for every other model is compared with it.

    It is kept as long as the model lives, and looked up by everything that the work reads: its settings, the seed,
    the weights and which of them are trained, the samples, precision and device.

    Args:
        audit: whose models and samples they are.
        role: whose model.
        what: settings of the work.
        work: called with the role.

    Returns:
        The result, not to be changed.
    """
    model = audit.models.get(role)
    if model is None or model is not audit.models.get("retrained"):
        return work(role)
    parts = [audit.data[split] for split in ("forget", "retain", "test_forget") if split in audit.data]
    samples = tuple((weakref.ref(part.source), part.positions.tobytes()) for part in parts)
    where = (audit.runtime.precision, audit.runtime.torch_device, id(audit.task))
    trained = tuple(p.requires_grad for p in model.parameters())
    key = (what, audit.seed, tensors.weights_digest(model), trained, samples, where)
    kept = _KNOWN.setdefault(model, {})
    if key not in kept:
        kept[key] = work(role)
    return cast(T, kept[key])
