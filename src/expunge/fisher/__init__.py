"""The exact per-sample diagonal: I_i = (1/N) Σ_s |∂q_s/∂θ_i|^p, mean over samples of the power, not the reverse."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge import __version__, identity
from expunge.data import Batch, Data, id_texts
from expunge.errors import Incompatible, UserError
from expunge.files import digest
from expunge.fisher.checks import check_data, check_model, check_sums
from expunge.fisher.checks import chosen as wanted_parameters
from expunge.fisher.engine import Again, Chosen, Engine, check_engine
from expunge.fisher.partial import Partial
from expunge.fisher.quantities import MEANS, Quantity, check_quantity
from expunge.fisher.sums import WINDOW, Sums, place
from expunge.passes import SMALLER, Passes, whole
from expunge.runtime import Runtime
from expunge.task import Task
from expunge.tensors import weights_digest

__all__ = ["Diagonal", "Engine", "Quantity", "diagonal", "diagonals"]


@dataclass(frozen=True)
class Diagonal:
    """Sums over samples of powers of per-sample gradients, at stated weights.

    Args:
        sums: float64 tensors in the parameters' shapes; float32, rounded once at the end, where memory was short.
        count: samples behind them (batches for ``batch_mean`` and ``batch_mean_norm``).
        of: the quantity.
        at: digest of the weights they were taken at.
    """

    sums: Mapping[str, Tensor]
    count: int
    of: str
    at: str

    @property
    def values(self) -> dict[str, Tensor]:
        """The mean over samples, sums / count."""
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
        if self.of in MEANS or other.count >= self.count:
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
            ``true`` (expectation over the model's class probabilities, one backward pass a class); ``output_norm``
            (q = ‖f‖², absolute gradients, needs no labels); ``batch_mean`` and ``batch_mean_norm`` (the square of the
            batch-mean gradient of the loss, or the absolute one of ‖f‖², averaged over batches of
            ``runtime.batch_size`` in data order: what published code computes, not the Fisher).
        engine: ``layers`` (rules a layer, the rest batched), ``batched`` (vmap), ``reference`` (one backward pass a
            sample), ``auto`` (as ``layers``). A rule serves a parameter only where it agrees with ``reference`` on
            a few samples of the data.
        params: names of the parameters wanted; all trainable ones by default.
        runtime: device, batch size, memory, precision, progress, and ``workdir``, from which an interrupted pass
            goes on to the same bits.
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

    Squares are summed in float32 within 256 samples (or a batch, if that is more) and in float64 across. Several
    processes share the pass: each takes every count-th batch, and every one returns the diagonals of the whole. Where
    memory runs out the batches are halved, except for means over batches, whose value depends on them. With
    ``runtime.workdir`` sums are written every ``runtime.checkpoint_every`` seconds and removed at the end.

    Args:
        model: as in `diagonal`.
        task: as in `diagonal`.
        data: as in `diagonal`.
        groups: ids by group name; groups may overlap.
        of: as in `diagonal`; means over batches take no groups.
        engine: as in `diagonal`.
        params: as in `diagonal`.
        runtime: as in `diagonal`.
        seed: as in `diagonal`.

    Returns:
        A diagonal under ``all`` and under each group's name.

    Raises:
        UserError: unknown quantity, engine or parameter; a group named ``all``, empty, or with unknown ids; a model
            in train mode, with random outputs, or whose outputs depend on the other samples of a batch; processes
            that were given different weights, samples or settings; memory too small for one sample.
        NotFinite: NaN or infinite gradients, by parameter.
    """
    runtime = runtime or Runtime()
    with runtime.agreed():
        _check(model, task, data, groups, of, engine)
        model = runtime.placed(model)
        wanted = wanted_parameters(model, params)
        cells = _cells(data, groups)
        at = weights_digest(model)
    if runtime.count > 1:
        groups_of = sorted((sorted(names), order.tolist()) for names, order in cells.items())
        settings = digest(of, engine, sorted(wanted), runtime.batch_size, seed)
        runtime.same(weights=at, samples=digest(data.ids, groups_of), settings=settings)
    device, pairs = place(wanted, len(cells))
    pairs = any(runtime.gathered(pairs))
    with runtime.agreed(), _eagerly():
        with whole(f"two samples of {data.name}", SMALLER):
            chosen = Chosen(model, task, data, wanted, of, engine, runtime, seed)
        parts: list[Any] = []
        if runtime.workdir is not None:
            orders = [[sorted(names), order.tolist()] for names, order in cells.items()]
            how = [of, engine, sorted(wanted), seed, WINDOW, __version__]
            parts = [at, data.ids, orders, how, identity.described(task), identity.built(model)]
        partial = Partial(runtime, data, parts, chosen.mark)
        sums = _passed(data, chosen, list(cells.values()), runtime, partial, device, pairs)
    parts_of: dict[frozenset[str], Diagonal] = {}
    for (members, order), own in zip(cells.items(), sums, strict=True):
        total = dict(zip(wanted, runtime.sum([own[name] for name in wanted]), strict=True))
        check_sums(total)
        batches = -(-len(order) // runtime.batch_size)
        parts_of[members] = Diagonal(total, batches if of in MEANS else len(order), of, at)
    partial.clear()
    found = {"all": _joined(list(parts_of.values()))}
    for name in groups:
        found[name] = _joined([d for members, d in parts_of.items() if name in members])
    return found


def _eagerly() -> AbstractContextManager[object]:
    """Run compiled models uncompiled: rules need the modules' own calls. Free where nothing was ever compiled."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


def _check(
    model: nn.Module, task: Task, data: Data, groups: Mapping[str, Iterable[object]], of: str, engine: str
) -> None:
    check_model(model)
    check_data(data)
    check_quantity(of, task)
    check_engine(engine)
    if of in MEANS and groups:
        raise UserError(f"no groups for '{of}'", "some", "call diagonal once a group, its batches are its own")


def _passed(
    data: Data,
    chosen: Chosen,
    cells: Sequence[np.ndarray],
    runtime: Runtime,
    partial: Partial,
    device: torch.device,
    pairs: bool,
) -> list[dict[str, Tensor]]:
    """Return the sums of each cell over this process's batches, going on where an interrupted pass was."""
    passes = Passes(runtime)
    sums = [Sums(chosen.params, exact=chosen.exact, device=device, pairs=pairs) for _ in cells]
    group, start, size = partial.load(sums)
    passes.size = size or passes.size
    window = max(1, WINDOW // runtime.batch_size) * runtime.batch_size
    orders = [runtime.part(order) for order in cells]
    done = sum(len(order) for order in orders[:group]) + start
    with runtime.tracking(f"importance of {data.name}", len(data)) as advance:
        if done:
            advance(done * runtime.count)
        for at in range(group, len(orders)):
            while start < len(orders[at]):
                now = orders[at][start : start + window]
                _window(data, chosen, now, passes, sums[at], lambda n: advance(n * runtime.count))
                start, done = start + len(now), done + len(now)
                partial.keep(at, start, done, passes.size, sums)
            start = 0
    return [one.totals() for one in sums]


def _window(
    data: Data, chosen: Chosen, order: np.ndarray, passes: Passes, sums: Sums, advance: Callable[[int], None]
) -> None:
    """Add a window of samples to the sums, again from its beginning where a batch of it was given up half-way."""
    told = 0
    while True:
        failed, done = False, 0

        def work(batch: Batch) -> int:
            nonlocal failed
            try:
                chosen(batch, sums)
            except Exception:
                failed = True
                raise
            return len(batch)

        with suppress(Again):
            for n in passes.over(data, work, order):
                done += n
                if done > told:
                    advance(done - told)
                    told = done
        if not failed:
            sums.close()
            return
        sums.discard()


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
