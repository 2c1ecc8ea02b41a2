"""A dry run of prepare or unlearn: what would be read, how often, and how long it would take, from a measured probe."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from expunge import stamp
from expunge.copies import private
from expunge.data import Data
from expunge.errors import ExpungeError
from expunge.method import SETS, Method, See
from expunge.runtime import Runtime
from expunge.scenario import Scenario
from expunge.task import Task
from expunge.tensors import isolated_rng
from expunge.train import Recipe, fit
from expunge.unlearn import check, prepare, unlearn

PROBE = 64  # samples a set of the smaller of the first two probes
BRIEF = 1.0  # seconds: a probe that takes less is doubled, until it fills two batches


@dataclass(frozen=True)
class Plan:
    """What a phase of a method would do.

    Args:
        passes: times each set is read, by set.
        sizes: samples of each set.
        seconds: estimate for the whole, checks included; None where the phase would be refused.
        problem: why it would be refused, or empty.
        probed: samples that the probe ran on.
    """

    passes: Mapping[str, float]
    sizes: Mapping[str, int]
    seconds: float | None
    problem: str = ""
    probed: int = 0

    @property
    def reads(self) -> int:
        """Samples read in all."""
        return round(sum(n * self.sizes[name] for name, n in self.passes.items()))


def plan(
    method: Method,
    phase: str,
    model: nn.Module,
    task: Task,
    *,
    given: Mapping[str, Any],
    runtime: Runtime | None = None,
    seed: int = 0,
) -> Plan:
    """Check a whole call, run it on few samples and extrapolate; nothing is written, no model is changed.

    The time is a straight line through two probes of n and 2n samples a set: t(N) = t(2n) + (t(2n) − t(n))/n·(N − 2n),
    a training counted by its epochs. n is 64, or half the largest set, doubled while a probe is brief and does not
    fill two batches. A method that takes all of a set or none is probed by plain training on a part of it, or by the
    call itself where that reads no sample.

    Args:
        method: from `expunge.methods`.
        phase: ``prepare`` or ``unlearn``.
        model: the network.
        task: outputs and loss.
        given: what `prepare` or `unlearn` would be called with, by keyword.
        runtime: device, batch size, precision.
        seed: of everything random.

    Returns:
        Passes over each set, seconds, and the reason where the phase would be refused.
    """
    recipe: Recipe | None = given.get("recipe")
    needs = method.prepares if phase == "prepare" else method.unlearns
    seen = [n for n in SETS if needs.declared(n) and getattr(needs, n) >= See.INPUTS and isinstance(given.get(n), Data)]
    passes: dict[str, float] = {}
    sizes = {n: len(given[n]) for n in seen}
    quiet = replace(runtime or Runtime(), progress=False, workdir=None)
    call: Callable[..., Any] = prepare if phase == "prepare" else unlearn
    # Time knows no learning rate, and a few samples at the full one, without its warm-up, may diverge.
    short = None if recipe is None else replace(recipe, epochs=1, warmup=0.0, patience=None, lr=1e-6 * recipe.lr)
    once = method.passes(phase, short)

    start: nn.Module | None = None

    def probe(size: int) -> tuple[float, float]:
        part = {n: v.subset(v.ids[:size]) if n in SETS and isinstance(v, Data) else v for n, v in given.items()}
        part["recipe"] = short
        if isinstance(given.get("scenario"), Scenario) and isinstance(part.get("forget"), Data):
            part["scenario"] = replace(given["scenario"], forget=tuple(part["forget"].ids))
        reads = sum(p * min(size, sizes[n]) for n, p in once.items() if n in seen)
        begun = time.perf_counter()
        if start is not None and short is not None:
            fit(start, task, part[largest], short, runtime=quiet, seed=seed)
            reads = float(len(part[largest]))
        else:
            call(method, model, task, **part, runtime=quiet, seed=seed)
        return reads, time.perf_counter() - begun

    most = max(sizes.values(), default=0)
    largest = max(sizes, key=lambda n: sizes[n], default="")
    full = 2 * max(quiet.batch_size, 0 if recipe is None else recipe.batch_size)
    size = min(PROBE, max(2, most // 2))
    try:
        with quiet.agreed():
            check(method, phase, model, task, given)
            found = method.foreseen(phase, {**given, "state": stamp.bare(given.get("state"))}, seed)
            passes = {n: p for n, p in found.items() if n in seen}
            if needs.fresh and "fresh" in needs.required() and callable(given.get("new_model")):
                with isolated_rng(seed):
                    given["new_model"]()  # one that nobody said how to build says so when it is called
            if method.whole and passes:
                start = private(method.served_from(model)).requires_grad_(True)
        if method.whole and not passes:  # it reads no sample, so the call itself is its probe
            begun = time.perf_counter()
            call(method, model, task, **given, runtime=quiet, seed=seed)
            return Plan(passes, sizes, time.perf_counter() - begun)
        probe(min(8, size))  # the first call pays for what is done once: kernels chosen, modules imported
        small, large = probe(size), probe(2 * size)
        while 2 * size < min(full, most) and quiet.shared(large[1]) < BRIEF:
            size *= 2
            small, large = large, probe(2 * size)
    except ExpungeError as error:
        return Plan(passes, sizes, None, str(error))
    total = sum(p * sizes[n] for n, p in passes.items())
    rate = (large[1] - small[1]) / max(1.0, large[0] - small[0])
    if rate <= 0 or large[0] <= small[0]:  # too few samples to tell a sample's cost from the call's
        rate = large[1] / max(1.0, large[0])
    return Plan(passes, sizes, large[1] + rate * max(0.0, total - large[0]), probed=round(large[0]))
