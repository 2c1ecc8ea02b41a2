"""What deletion requests cost in all: prepare once, unlearn and audit each, against a retraining for each.

SSD on CIFAR-10 where the folder of data sets has it, else on digits. Retraining is timed twice: by expunge's own `fit`
and by a plain torch loop for the same recipe, data in memory, no validation, in the fastest of its variants
(channels-last or not, bf16 autocast or not, torch.compile or not; compilation is not counted). What would take too
long is timed on a part (`--steps` of training, `--part` samples for prepare and audit) and a fourth of it, and
extended linearly; the table says so. `unlearn` is timed in full, with reading the stored state. The network is the one
that the timed training by `fit` left: where that was cut short it knows little, which changes no time.

The audit is `evaluate` of the original, the unlearned model and the controls with all metrics. Retrained models to
compare with are not in it: each costs one retraining more, and serves one request.

Break-even is the smallest k with prepare + k·(unlearn + audit) < k·retraining.

    python benchmarks/request.py --network resnet18 --steps 20 --part 1024
    python benchmarks/request.py --data digits --steps 0 --part 0
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.data import Data
from expunge.evaluate import evaluate
from expunge.method import Method, State
from expunge.methods import load
from expunge.runtime import Runtime
from expunge.scenario import forget_ids
from expunge.task import Task, output_tensor
from expunge.train import Recipe, augment, batch_orders, fit
from expunge.unlearn import Unlearned, prepare, unlearn
from expunge.zoo import Problem
from expunge.zoo import load as load_problem
from fisher import Setting, machine, say, show

ENOUGH = 4.0  # seconds
TRIAL = 4  # steps on which the variants of the plain loop are compared
REQUESTS = (1, 10, 100)


@dataclass(frozen=True)
class Time:
    """Seconds, and how they were found."""

    seconds: float
    how: str = "measured"

    def line(self, what: str) -> list[str]:
        return [what, spoken(self.seconds), self.how]


def spoken(seconds: float) -> str:
    """Return a time with its unit.

    >>> spoken(0.5), spoken(100), spoken(90_000)
    ('0.50 s', '100 s', '25.0 h')
    """
    if seconds < 600:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def timed(device: str, call: Callable[..., Any], *args: Any, **named: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    value = call(*args, **named)
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, value


def extended(run: Callable[[int], float], wanted: int, part: int, unit: str, most: int | None = None) -> Time:
    """Return the time for all that is wanted: measured, or linear from a part and a fourth of the part.

    A part that takes less than ENOUGH seconds says little and is made larger, up to ``most``.
    """
    if not part or wanted <= part:
        return Time(run(wanted))
    most = min(wanted, most or wanted)
    part = min(part, most)
    run(max(1, part // 4))  # first calls choose kernels and take memory
    while True:
        few = max(1, part // 4)
        low, high = run(few), run(part)
        if high >= ENOUGH or part == most:
            break
        part = min(most, 4 * part)
    if part == wanted:
        return Time(high)
    slope = (high - low) / (part - few)
    if slope <= 0:
        raise SystemExit(f"No time can be told from {part:,} {unit}: give --steps 0 and --part 0 to measure all.")
    return Time(high + slope * (wanted - part), f"estimated from {few:,} and {part:,} {unit} of {wanted:,}")


@dataclass(frozen=True)
class Variant:
    """One way to run the plain loop."""

    channels_last: bool
    bf16: bool
    compiled: bool

    def __str__(self) -> str:
        names = [n for n in ("channels_last", "bf16", "compiled") if getattr(self, n)]
        return " + ".join(names).replace("channels_last", "channels-last") or "as it comes"

    def autocast(self, device: str) -> AbstractContextManager[object]:
        return torch.autocast(torch.device(device).type, dtype=torch.bfloat16) if self.bf16 else nullcontext()


class Loop:
    """Training of a network on tensors in memory, as short as the recipe allows; nothing is checked, nothing kept."""

    def __init__(self, problem: Problem, data: Data, recipe: Recipe, device: str, variant: Variant) -> None:
        assert problem.new_model is not None
        torch.manual_seed(0)
        self.recipe, self.device, self.variant = recipe, device, variant
        whole = data.read(range(len(data))).to(device)
        assert isinstance(whole.inputs, Tensor)
        assert whole.target is not None
        self.inputs, self.target = whole.inputs, whole.target
        self.layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        model = problem.new_model().train().to(device)
        if variant.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = self._optimizer(model)
        self.model: Callable[[Tensor], Any] = torch.compile(model) if variant.compiled else model

    def _optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        common: dict[str, Any] = {"lr": self.recipe.lr, "weight_decay": self.recipe.weight_decay, "fused": True}
        if self.recipe.optimizer == "sgd":
            return torch.optim.SGD(model.parameters(), momentum=self.recipe.momentum, **common)
        return torch.optim.AdamW(model.parameters(), **common)

    def _orders(self) -> Iterator[tuple[float, Tensor]]:
        for epoch in range(self.recipe.epochs):
            seen = 0
            for at in batch_orders(self.recipe.batch_size, torch.randperm(len(self.target))):
                seen += len(at)
                where = epoch + seen / len(self.target) if epoch < self.recipe.warmup else epoch
                yield self.recipe.rate(where), torch.from_numpy(at).to(self.device)

    def step(self, rate: float, at: Tensor) -> None:
        inputs = self.inputs[at]
        if inputs.dim() == 4:
            inputs = augment(inputs, self.recipe.crop, self.recipe.flip).contiguous(memory_format=self.layout)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        with self.variant.autocast(self.device):
            loss = F.cross_entropy(output_tensor(self.model(inputs)), self.target[at].long())
        loss.backward()
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], self.recipe.clip)
        self.optimizer.step()

    def warm(self) -> None:
        """Run a full and a last batch, for which compiled code differs."""
        last = len(list(batch_orders(self.recipe.batch_size, torch.arange(len(self.target))))[-1])
        for size in (self.recipe.batch_size, last):
            for _ in range(2):
                self.step(0.0, torch.arange(min(size, len(self.target)), device=self.device))

    def run(self, steps: int) -> None:
        for rate, at in itertools.islice(self._orders(), steps):
            self.step(rate, at)


def fastest(problem: Problem, data: Data, recipe: Recipe, device: str) -> tuple[Loop, Variant]:
    """Return the plain loop in its fastest variant, warmed up."""
    found: list[tuple[float, Variant, Loop]] = []
    for flags in itertools.product((False, True), repeat=3):
        variant = Variant(*flags)
        try:
            loop = Loop(problem, data, recipe, device, variant)
            loop.warm()
            spent = min(timed(device, loop.run, TRIAL)[0] for _ in range(2))
        except Exception as error:  # no compiler on this machine, or no such kernel
            say(f"plain loop, {variant}: {type(error).__name__}")
            continue
        say(f"plain loop, {variant}: {spent / TRIAL:.3f} s a step")
        found.append((spent, variant, loop))
    _, variant, loop = min(found, key=lambda entry: entry[0])
    return loop, variant


class Study:
    """One problem, one request."""

    def __init__(self, problem: Problem, forget: int, runtime: Runtime) -> None:
        assert problem.recipe is not None
        self.problem, self.runtime, self.recipe = problem, runtime, replace(problem.recipe, patience=None)
        self.ids = problem.train.ids[:forget]
        self.retain = problem.train.without(self.ids)
        self.each = sum(1 for _ in batch_orders(self.recipe.batch_size, torch.arange(len(self.retain))))
        self.steps = self.recipe.epochs * self.each
        self.ssd, self.model, self.state = load("ssd")(), None, State()

    def timed(self, call: Callable[..., Any], *args: Any, **named: Any) -> tuple[float, Any]:
        return timed(self.runtime.torch_device, call, *args, **named)

    @property
    def trained(self) -> nn.Module:
        assert self.model is not None
        return self.model

    @property
    def who(self) -> tuple[Method, nn.Module, Task]:
        return self.ssd, self.trained, self.problem.task

    def fit(self, steps: int) -> float:
        """Return the time of a training of so many steps, all or at most one epoch; keep the network."""
        assert self.problem.new_model is not None
        torch.manual_seed(0)
        start, recipe, data = self.problem.new_model(), self.recipe, self.retain
        if steps < self.steps:
            # Few steps at the full rate would leave wild weights, whose extreme numbers are slow to compute with.
            recipe = replace(recipe, epochs=1, lr=recipe.lr / 100)
            data = data.subset(data.ids[: steps * recipe.batch_size])
        spent, self.model = self.timed(fit, start, self.problem.task, data, recipe, runtime=self.runtime)
        say(f"fit, {steps} steps: {spent:.1f} s")
        return spent

    def prepare(self, samples: int) -> float:
        train = self.problem.train.subset(self.problem.train.ids[:samples])
        spent, ready = self.timed(prepare, *self.who, train=train, runtime=self.runtime)
        self.state = ready.state
        say(f"prepare, {samples} samples: {spent:.1f} s")
        return spent

    def unlearn(self) -> tuple[Time, Unlearned]:
        forget = self.problem.train.subset(self.ids)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "state.safetensors"
            self.state.save(file)
            read, state = self.timed(State.load, file)  # its tensors are read where they are used
            spent, done = self.timed(unlearn, *self.who, forget=forget, state=state, runtime=self.runtime)
        say(f"unlearn: {read + spent:.1f} s")
        return Time(read + spent), done

    @property
    def rows(self) -> int:
        """Samples that an audit reads for each model."""
        return sum(len(d) for d in (self.problem.train, self.problem.test, self.problem.holdout) if d is not None)

    def audit(self, rows: int, done: Unlearned) -> float:
        """Return the time of an audit on so many samples, shared out over the sets as they are."""
        share = rows / self.rows
        parts: dict[str, Any] = {
            name: None if data is None else data.subset(data.ids[: max(8, round(share * len(data)))])
            for name, data in (("test", self.problem.test), ("holdout", self.problem.holdout))
        }
        train = self.problem.train.subset(
            self.problem.train.ids[: max(len(self.ids) + 8, round(share * len(self.problem.train)))]
        )
        rest = parts | {"recipe": self.problem.recipe, "new_model": self.problem.new_model, "runtime": self.runtime}
        scenario = forget_ids(train, self.ids, **parts)
        models = {"original": self.trained, "ssd": done}
        spent, _ = self.timed(evaluate, models, self.problem.task, train=train, scenario=scenario, **rest)
        say(f"audit, {rows} samples: {spent:.1f} s")
        return spent


def break_even(once: float, each: float, retraining: float) -> str:
    """Return the smallest k with once + k·each < k·retraining."""
    return "never" if each >= retraining else str(math.floor(once / (retraining - each)) + 1)


def study(problem: Problem, args: argparse.Namespace, runtime: Runtime) -> None:
    case = Study(problem, args.forget, runtime)
    where = machine(Setting(runtime.torch_device, runtime.precision, args.threads))
    own = extended(case.fit, case.steps, args.steps, "steps", most=case.each)  # a part of it is one epoch at most
    ready = extended(case.prepare, len(problem.train), args.part and max(args.part, 4 * args.forget), "samples")
    edit, done = case.unlearn()
    part = args.part and max(args.part, 8 * args.forget)
    audit = extended(lambda rows: case.audit(rows, done), case.rows, part, "samples")
    loop, variant = fastest(problem, case.retain, case.recipe, runtime.torch_device)
    plain = extended(lambda n: case.timed(loop.run, n)[0], case.steps, args.steps, "steps")
    weights = sum(p.numel() for p in case.trained.parameters())
    print(
        f"{problem.network} ({weights:,} weights) on {problem.name}, {len(problem.train):,} training samples, ", end=""
    )
    print(f"{case.recipe.epochs} epochs; a request forgets {args.forget:,}. {where}.\n")
    lines = [["what", "time", "how"], ready.line("prepare, once")]
    lines += [edit.line("unlearn with the stored state, a request")]
    lines += [audit.line(f"audit, a request ({case.rows:,} samples)")]
    lines += [plain.line(f"retraining, plain loop ({variant})"), own.line("retraining, `fit`")]
    show(lines)
    names = [f"{k} request{'s' if k > 1 else ''}" for k in REQUESTS]
    lines = [["way", *names, "break-even, plain loop", "break-even, `fit`"]]
    for text, each in (("with audit", edit.seconds + audit.seconds), ("without audit", edit.seconds)):
        totals = [spoken(ready.seconds + k * each) for k in REQUESTS]
        ends = [break_even(ready.seconds, each, way.seconds) for way in (plain, own)]
        lines.append([f"prepare and unlearn, {text}", *totals, *(e if e == "never" else f"k = {e}" for e in ends)])
    for text, way in (("plain loop", plain), ("`fit`", own)):
        lines.append([f"retraining, {text}", *(spoken(k * way.seconds) for k in REQUESTS), "–", "–"])
    show(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["cifar10", "digits"], help="default cifar10 if it is there, else digits")
    parser.add_argument("--network", help="default resnet18 on cifar10, on digits its own")
    parser.add_argument("--samples", type=int, help="training samples of the problem; default all")
    parser.add_argument("--forget", type=int, default=100, help="samples of a request")
    parser.add_argument("--steps", type=int, default=20, help="training steps that are timed; 0 for all")
    parser.add_argument("--part", type=int, default=1024, help="samples of prepare and audit that are timed; 0 for all")
    parser.add_argument("--data-dir", type=Path, help="folder of data sets; default the variable EXPUNGE_DATA")
    parser.add_argument("--device", default="auto", help="auto is cuda if there is one")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = args.data_dir or (Path(os.environ["EXPUNGE_DATA"]) if os.environ.get("EXPUNGE_DATA") else None)
    there = folder is not None and (folder / "cifar10").is_dir()
    data = args.data or ("cifar10" if there else "digits")
    network = args.network or ("resnet18" if data == "cifar10" else None)
    problem = load_problem(data, network, data_dir=folder, limit=args.samples)
    if args.forget >= len(problem.train):
        parser.error(f"--forget below {len(problem.train)}, the number of training samples")
    study(problem, args, Runtime(device=args.device))


if __name__ == "__main__":
    main()
