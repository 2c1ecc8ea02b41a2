"""How fast is a pool of shadow models trained: one after the other, in two processes, or stacked in one pass?

Every model is trained on its half of the training set (`expunge.shadows.draw`; an odd last sample is left out, so that
all halves are equal) by the data set's own recipe without early stopping, from its own initialisation. All ways train
the same models from the same seeds: `plain` by `expunge.train.fit` one after the other, `workers` by `fit` in two
processes of one thread each, half of the models in either, `stacked, K` by `expunge.stacked.fit_stacked`, K at a time.

In every repeat the ways run one after another; printed are models per minute, the median over the repeats, and the
ratio to `plain` of the same repeat, with its smallest and largest. Start-up is left out: imports, reading the data, and
in each process and of each size of stack a first training of one epoch. Nothing else should run on the machine; where
something does, the processors' seconds a model, median over the repeats, say more than those of the clock. That the
same is trained is told by the largest difference of any weight from `plain`, in the last repeat, and by the mean test
accuracy; rounding grows over many steps.

    python benchmarks/pool.py --data digits --models 16 --repeats 3
    python benchmarks/pool.py --data fashion_mnist --limit 1000 --models 8 --repeats 3
    python benchmarks/pool.py --data fashion_mnist --models 16 --device cuda
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch
from torch import nn

from expunge import zoo
from expunge.data import Data
from expunge.evidence import collect
from expunge.runtime import Runtime
from expunge.seeds import seed as named_seed
from expunge.shadows import draw
from expunge.stacked import fit_stacked, stackable
from expunge.tensors import isolated_rng
from expunge.train import Recipe, fit
from fisher import Setting, machine, say

WORKERS = 2


@dataclass(frozen=True)
class Asked:
    """What is trained and where; a process of its own builds its `Pool` from it."""

    data: str
    network: str | None
    limit: int | None
    models: int
    device: str
    threads: int


class Pool(NamedTuple):
    """The models to train, each from its own start on its own half."""

    problem: zoo.Problem
    recipe: Recipe
    starts: list[nn.Module]
    halves: list[Data]
    runtime: Runtime


def pool(asked: Asked) -> Pool:
    """Draw halves and starts."""
    torch.set_num_threads(asked.threads)
    logging.getLogger("expunge").setLevel(logging.ERROR)
    problem = zoo.load(asked.data, asked.network, limit=asked.limit)
    assert problem.recipe is not None
    assert problem.new_model is not None
    ids = problem.train.ids[: len(problem.train) // 2 * 2]
    seen = draw(ids, asked.models, seed=0)
    halves = [problem.train.subset([i for i, inside in zip(ids, row, strict=True) if inside]) for row in seen]
    starts = []
    for k in range(asked.models):
        with isolated_rng(named_seed("fresh", k)):
            starts.append(problem.new_model())
    recipe = replace(problem.recipe, patience=None)
    return Pool(problem, recipe, starts, halves, Runtime(device=asked.device, progress=False))


def plain(it: Pool, which: range, recipe: Recipe | None = None) -> list[nn.Module]:
    """Train some of the models one after the other."""
    recipe, task = recipe or it.recipe, it.problem.task
    return [fit(it.starts[k], task, it.halves[k], recipe, runtime=it.runtime, seed=k) for k in which]


def stacked(it: Pool, size: int, recipe: Recipe | None = None, count: int | None = None) -> list[nn.Module]:
    """Train all models, or the first ones, ``size`` at a time."""
    found, count = [], count or len(it.starts)
    for first in range(0, count, size):
        part = slice(first, first + size)
        seeds = range(len(it.starts))[part]
        args = it.starts[part], it.problem.task, it.halves[part], recipe or it.recipe
        found += fit_stacked(*args, seeds=seeds, runtime=it.runtime)
    return found


def worker(asked: Asked, rank: int, pipe: Connection) -> None:
    """Say when ready, then train this process's models whenever told to."""
    it = pool(replace(asked, threads=1))
    plain(it, range(1), replace(it.recipe, epochs=1))
    pipe.send(0.0)
    while pipe.recv():
        start = time.process_time()
        plain(it, range(rank, asked.models, WORKERS))
        pipe.send(time.process_time() - start)


class Workers:
    """Processes that wait for work."""

    def __init__(self, asked: Asked, stack: ExitStack) -> None:
        self.pipes = []
        self.used = 0.0  # processors' seconds of the last training
        spawn = get_context("spawn")
        for rank in range(WORKERS):
            here, there = spawn.Pipe()
            process = spawn.Process(target=worker, args=(asked, rank, there), daemon=True)
            process.start()
            there.close()
            stack.callback(process.join)
            stack.callback(here.send, False)
            self.pipes.append(here)
        self._wait()

    def _wait(self) -> None:
        self.used = sum(pipe.recv() for pipe in self.pipes)

    def train(self) -> list[nn.Module]:
        """Train all models; they stay where they were trained."""
        for pipe in self.pipes:
            pipe.send(True)
        self._wait()
        return []


def accuracy(it: Pool, models: list[nn.Module]) -> float:
    """Return the mean test accuracy in per cent."""
    assert it.problem.test is not None
    found = [collect(m, it.problem.task, it.problem.test, runtime=it.runtime) for m in models]
    return 100 * statistics.mean(float((f.prediction == f.target).double().mean()) for f in found)


def gap(models: list[nn.Module], others: list[nn.Module]) -> float:
    """Return the largest difference of any weight."""
    pairs = zip(models, others, strict=True)
    each = [(p, q) for a, b in pairs for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    return max(float((p - q).detach().abs().max()) for p, q in each)


def row(name: str, seconds: list[float], base: list[float], count: int, told: list[str]) -> str:
    """Return a row of the table."""
    ratios = [b / s for b, s in zip(base, seconds, strict=True)]
    speed = f"{60 * count / statistics.median(seconds):.1f}"
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
    return "| " + " | ".join([name, speed, ratio, *told]) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="a named data set")
    parser.add_argument("--network", help="a named network; unset, the data set's own")
    parser.add_argument("--limit", type=int, help="training samples, of which every model sees half")
    parser.add_argument("--models", type=int, default=16)
    parser.add_argument("--stacks", nargs="+", type=int, default=[2, 4, 8, 16], help="models trained at once")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of this process: plain and stacked")
    args = parser.parse_args()
    sizes = [k for k in args.stacks if args.models % k == 0]
    asked = Asked(args.data, args.network, args.limit, args.models, args.device, args.threads)
    it = pool(asked)
    refused = stackable(it.starts[0], it.problem.task, it.halves[0], it.recipe, runtime=it.runtime)
    if refused is not None:
        say(f"no stacks: {refused}")
        sizes = []
    where = machine(Setting(device=args.device, threads=args.threads, precision="full"))
    settings = f"{it.problem.network}, {args.models} models on {len(it.halves[0]):,} samples, {it.recipe.epochs} epochs"
    say(f"{where}; {it.problem.name}, {settings}, batches of {it.recipe.batch_size}")
    short = replace(it.recipe, epochs=1)
    plain(it, range(1), short)
    for k in sizes:
        stacked(it, k, short, count=k)
    with ExitStack() as stack:
        workers = Workers(asked, stack)
        ways: dict[str, Callable[[], list[nn.Module]]] = {"plain": lambda: plain(it, range(args.models))}
        ways[f"workers, {WORKERS}"] = workers.train
        ways |= {f"stacked, {k}": (lambda k=k: stacked(it, k)) for k in sizes}  # type: ignore[misc]
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        used: dict[str, list[float]] = {name: [] for name in ways}
        made: dict[str, list[nn.Module]] = {}
        for repeat in range(args.repeats):
            for name, way in ways.items():
                workers.used = 0.0
                start, own = time.perf_counter(), time.process_time()
                made[name] = way()
                seconds[name].append(time.perf_counter() - start)
                used[name].append(workers.used + time.process_time() - own)
                say(f"repeat {repeat + 1}, {name}: {seconds[name][-1]:.1f} s, of processors {used[name][-1]:.1f} s")
    heads = ["way", "models a minute", "× plain", "processors' s a model", "weights off by", "test accuracy, %"]
    print("| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), sep="\n")
    for name in ways:
        told = [f"{statistics.median(used[name]) / args.models:.2f}", "", ""]
        if made[name]:
            told[1:] = [f"{gap(made[name], made['plain']):.0e}", f"{accuracy(it, made[name]):.2f}"]
        print(row(name, seconds[name], seconds["plain"], args.models, told), flush=True)


if __name__ == "__main__":
    main()
