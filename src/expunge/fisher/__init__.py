"""The exact per-sample diagonal: I_i = (1/N) Σ_s |∂q_s/∂θ_i|^p, mean over samples of the power, not the reverse."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from textwrap import shorten
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data import Batch, Data, id_texts
from expunge.errors import Incompatible, UserError, suggest
from expunge.files import digest
from expunge.fisher import batched, layers, reference
from expunge.fisher.checks import Sums, check_data, check_model, check_sums, chosen, wide, zeros
from expunge.fisher.quantities import Quantity, check_quantity, power, ready
from expunge.passes import SMALLER, Passes, whole
from expunge.runtime import Runtime
from expunge.task import Task
from expunge.tensors import weights_digest

__all__ = ["Diagonal", "Engine", "Quantity", "diagonal", "diagonals"]

log = logging.getLogger(__name__)
Engine = Literal["auto", "layers", "batched", "reference"]
Step = Callable[[Batch], Sums]


@dataclass(frozen=True)
class Diagonal:
    """Sums over samples of powers of per-sample gradients, at stated weights.

    Args:
        sums: float64 tensors in the parameters' shapes.
        count: samples behind them (batches for ``batch_mean``).
        of: the quantity.
        at: digest of the weights they were taken at.
    """

    sums: Mapping[str, Tensor]
    count: int
    of: str
    at: str

    @property
    def values(self) -> dict[str, Tensor]:
        """The mean over samples, sums / count, float64."""
        return {name: s / self.count for name, s in self.sums.items()}

    def merge(self, other: Diagonal) -> Diagonal:
        """Return the diagonal of both parts together, exact by counts."""
        self._like(other)
        return Diagonal(
            {n: s + other.sums[n] for n, s in self.sums.items()}, self.count + other.count, self.of, self.at
        )

    def subtract(self, other: Diagonal) -> Diagonal:
        """Return the diagonal without the other's samples, clamped at 0 against rounding.

        Raises:
            Incompatible: as many samples are taken away as there are, or the quantity is not a sum over samples.
        """
        self._like(other)
        if self.of == "batch_mean" or other.count >= self.count:
            got = f"{other.count} of {self.count} samples of '{self.of}'"
            raise Incompatible("fewer samples to take away than there are", got, "recompute the diagonal")
        left = {n: (s - other.sums[n]).clamp_min(0) for n, s in self.sums.items()}
        return Diagonal(left, self.count - other.count, self.of, self.at)

    def _like(self, other: Diagonal) -> None:
        if (self.of, self.at, self.sums.keys()) != (other.of, other.at, other.sums.keys()):
            want = f"a diagonal of '{self.of}' at weights {self.at[:12]} with the same parameters"
            raise Incompatible(want, f"one of '{other.of}' at {other.at[:12]}", "recompute one of them")


def diagonal(
    model: nn.Module,
    task: Task,
    data: Data,
    *,
    of: Quantity = "loss",
    engine: Engine = "auto",
    params: Sequence[str] | None = None,
    runtime: Runtime | None = None,
    seed: int = 0,
) -> Diagonal:
    """Return the exact per-sample diagonal, independent of batch size, order and partition.

    I_i = (1/N) Σ_s (∂q_s/∂θ_i)², or |∂q_s/∂θ_i| for ``output_norm``.

    Args:
        model: in eval mode; its parameters, modes and hooks are left as found.
        task: gives outputs and the per-sample loss.
        data: N samples, labelled for ``loss`` and ``batch_mean``.
        of: ``loss`` (empirical Fisher); ``sampled_loss`` (labels drawn from the model, seeded by sample id);
            ``true`` (expectation over the model's class probabilities); ``output_norm`` (q = ‖f‖², absolute
            gradients, needs no labels); ``batch_mean`` (the square of the batch-mean gradient, averaged over
            batches of ``runtime.batch_size`` in data order: what published code computes, not the Fisher).
        engine: ``layers`` (rules a layer, the rest batched), ``batched`` (vmap), ``reference`` (one backward a
            sample), ``auto`` (the fastest that agrees with ``reference`` on one sample).
        params: names of the parameters wanted; all trainable ones by default.
        runtime: device, batch size, memory, precision, progress.
        seed: of ``sampled_loss``.

    Returns:
        The diagonal; ``values`` are means over samples.

    References:
        J. Martens, "New insights and perspectives on the natural gradient method", 2020,
        https://jmlr.org/papers/v21/17-678.html (empirical and true Fisher).
    """
    return diagonals(model, task, data, groups={}, of=of, engine=engine, params=params, runtime=runtime, seed=seed)[
        "all"
    ]


def diagonals(
    model: nn.Module,
    task: Task,
    data: Data,
    *,
    groups: Mapping[str, Iterable[object]],
    of: Quantity = "loss",
    engine: Engine = "auto",
    params: Sequence[str] | None = None,
    runtime: Runtime | None = None,
    seed: int = 0,
) -> dict[str, Diagonal]:
    """Return the diagonals of the data (``all``) and of groups of its samples from one pass over it.

    Several processes share the pass: each takes every count-th batch, the sums are added in float64 and every
    process returns the diagonals of the whole. Where memory runs out the batches are halved, except for
    ``batch_mean``, whose value depends on them.

    Args:
        model: as in `diagonal`.
        task: as in `diagonal`.
        data: as in `diagonal`.
        groups: ids by group name; groups may overlap.
        of: as in `diagonal`; ``batch_mean`` takes no groups.
        engine: as in `diagonal`.
        params: as in `diagonal`.
        runtime: as in `diagonal`.
        seed: as in `diagonal`.

    Returns:
        A diagonal under ``all`` and under each group's name.

    Raises:
        UserError: unknown quantity, engine or parameter; a group named ``all``, empty, or with unknown ids; processes
            that were given different weights, samples or settings; memory too small for one sample.
    """
    runtime = runtime or Runtime()
    with runtime.agreed():
        _check(model, task, data, groups, of, engine)
        model = runtime.placed(model)
        wanted = chosen(model, params)
        cells = _cells(data, groups)
        at = weights_digest(model)
    if runtime.count > 1:
        groups_of = sorted((sorted(names), order.tolist()) for names, order in cells.items())
        settings = digest(of, engine, sorted(wanted), runtime.batch_size, seed)
        runtime.same(weights=at, samples=digest(data.ids, groups_of), settings=settings)
    with runtime.agreed():
        with whole(f"one sample of {data.name}", SMALLER):
            step = _plan(model, task, data, wanted, of, engine, runtime, seed)

        def work(batch: Batch) -> tuple[int, Sums]:
            return len(batch), step(ready(of, model, task, data, batch, runtime, seed))

        sums = _passed(data, work, cells, wanted, runtime)
    parts: dict[frozenset[str], Diagonal] = {}
    for members, order in cells.items():
        total = dict(zip(wanted, runtime.sum([sums[members][name] for name in wanted]), strict=True))
        check_sums(total)
        batches = -(-len(order) // runtime.batch_size)
        parts[members] = Diagonal(total, batches if of == "batch_mean" else len(order), of, at)
    found = {"all": _joined(list(parts.values()))}
    for name in groups:
        found[name] = _joined([d for members, d in parts.items() if name in members])
    return found


def _check(
    model: nn.Module, task: Task, data: Data, groups: Mapping[str, Iterable[object]], of: str, engine: str
) -> None:
    check_model(model)
    check_data(data)
    check_quantity(of, task)
    if engine not in ("auto", "layers", "batched", "reference"):
        raise UserError("a known engine", repr(engine), suggest(engine, ["auto", "layers", "batched", "reference"]))
    if of == "batch_mean" and groups:
        raise UserError("no groups for 'batch_mean'", "some", "call diagonal once a group, its batches are its own")


def _passed(
    data: Data,
    work: Callable[[Batch], tuple[int, Sums]],
    cells: Mapping[frozenset[str], np.ndarray],
    params: Mapping[str, nn.Parameter],
    runtime: Runtime,
) -> dict[frozenset[str], Sums]:
    """Return the sums of each cell over this process's batches."""
    passes, found = Passes(runtime), {}
    with runtime.tracking(f"importance of {data.name}", len(data)) as advance:
        for members, order in cells.items():
            total = found[members] = zeros(params)
            for n, sums in passes.over(data, work, runtime.part(order)):
                for name, value in sums.items():
                    total[name] += value
                advance(n * runtime.count)
    return found


def _cells(data: Data, groups: Mapping[str, Iterable[object]]) -> dict[frozenset[str], np.ndarray]:
    """Split positions by the set of groups they belong to, so that one pass serves all groups."""
    member: list[set[str]] = [set() for _ in range(len(data))]
    where = {key: at for at, key in enumerate(data.ids)}
    for name, ids in groups.items():
        keys = id_texts(ids)
        unknown = [k for k in keys if k not in where]
        if name == "all" or not keys or unknown:
            got = f"unknown {unknown[0]}" if unknown else ("the name 'all'" if name == "all" else "an empty group")
            raise UserError(f"groups of ids of {data.name}", got, "name the group otherwise, with ids of the data")
        for key in keys:
            member[where[key]].add(name)
    cells: dict[frozenset[str], list[int]] = {}
    for at, names in enumerate(member):
        cells.setdefault(frozenset(names), []).append(at)
    return {names: np.asarray(order, dtype=np.int64) for names, order in cells.items()}


def _joined(parts: Sequence[Diagonal]) -> Diagonal:
    first, *rest = parts
    for part in rest:
        first = first.merge(part)
    return first


def _plan(
    model: nn.Module,
    task: Task,
    data: Data,
    params: Mapping[str, nn.Parameter],
    of: Quantity,
    engine: Engine,
    runtime: Runtime,
    seed: int,
) -> Step:
    """Choose the engine for each parameter; rules are tried on two samples and must agree with the reference."""
    if of == "batch_mean":

        def mean(batch: Batch) -> Sums:
            with whole(f"a batch of {len(batch)} samples", "lower Runtime.batch_size, which 'batch_mean' depends on"):
                return reference.batch_mean(model, task, batch, params, runtime)

        return mean
    if engine == "reference":
        return lambda batch: reference.sums(model, task, batch, params, of, runtime)
    if engine == "batched":
        return lambda batch: batched.sums(model, task, batch, params, of, runtime)
    few = ready(of, model, task, data, data.read(range(min(2, len(data)))), runtime, seed)
    truth = reference.sums(model, task, few, params, of, runtime)
    modules = _agreeing(model, task, few, params, of, runtime, truth)
    names = {id(p): name for name, p in params.items()}
    ruled = {names[id(p)] for m in modules.values() for p in m.parameters(recurse=False) if id(p) in names}
    rest = {name: p for name, p in params.items() if name not in ruled}
    fallback = _fallback(model, task, few, rest, of, runtime, truth)

    watch = True

    def step(batch: Batch) -> Sums:
        nonlocal watch
        first, watch = watch, False  # lost squares show in the first batch; to look in each costs as much as the rules
        try:
            found = layers.sums(model, task, batch, params, of, runtime, modules, first) if modules else {}
        except layers.Reused:  # the model took another way on this batch
            return reference.sums(model, task, batch, params, of, runtime)
        return {**found, **(fallback(batch) if rest else {})}

    return step


def _agreeing(
    model: nn.Module,
    task: Task,
    few: Batch,
    params: Mapping[str, nn.Parameter],
    of: str,
    runtime: Runtime,
    truth: Sums,
) -> dict[str, nn.Module]:
    modules = layers.used_once(model, task, few, runtime, layers.covered(model, params))
    while modules:
        try:
            found = layers.sums(model, task, few, params, of, runtime, modules)
            break
        except layers.Reused as error:
            modules.pop(error.name)
    names = {id(p): name for name, p in params.items()}
    noise = _noise(truth, params, of)
    good = {}
    for name, module in modules.items():
        own = [names[id(p)] for p in module.parameters(recurse=False) if id(p) in names]
        if all(_close(found[n], truth[n], params[n], runtime, noise) for n in own):
            good[name] = module
    return good


def _noise(truth: Sums, params: Mapping[str, nn.Parameter], of: str) -> float:
    """Return what rounding leaves where a gradient is 0, as an attention key's bias has it."""
    eps = max(torch.finfo(p.dtype).eps for p in params.values())
    return (8 * eps) ** power(of) * max(float(t.max()) for t in truth.values())


def _close(a: Tensor, b: Tensor, parameter: Tensor, runtime: Runtime, noise: float) -> bool:
    half = runtime.precision == "bf16" or parameter.dtype in (torch.bfloat16, torch.float16)
    slack = 0.05 if half else 1e-3
    return bool((a - b).abs().sum() <= slack * wide(b).abs().sum() + noise * b.numel())


def _fallback(
    model: nn.Module,
    task: Task,
    few: Batch,
    rest: Mapping[str, nn.Parameter],
    of: str,
    runtime: Runtime,
    truth: Sums,
) -> Step:
    slow = partial(_swap, reference.sums, model, task, rest, of, runtime)
    if not rest:
        return slow
    try:
        found, noise = batched.sums(model, task, few, rest, of, runtime), _noise(truth, rest, of)
        if all(_close(found[n], truth[n], rest[n], runtime, noise) for n in rest):
            log.info("no layer rule for %d parameters (%s, ...): vmap computes them", len(rest), next(iter(rest)))
            return partial(_swap, batched.sums, model, task, rest, of, runtime)
        why = "other values than one backward pass a sample"
    except (RuntimeError, NotImplementedError, ValueError) as error:
        why = shorten(str(error), 80, placeholder=" ...")
    log.warning("vmap refuses this model (%s): one backward pass a sample computes %d parameters", why, len(rest))
    return slow


def _swap(
    engine: Callable[..., Sums],
    model: nn.Module,
    task: Task,
    params: Mapping[str, nn.Parameter],
    of: str,
    runtime: Runtime,
    batch: Batch,
) -> Sums:
    return engine(model, task, batch, params, of, runtime)
