"""What a step of each anchor costs beside the plain passes it consists of, in time and in memory.

The network is at random weights, inputs are at random: neither changes the cost. σ is at its default before any sample,
the objective of a request is `entropy`.

Time. On a CPU it is the process's own (its threads' together), so that other work on the machine counts little; on a
GPU it is the clock's. Unit is the plain pass: zero_grad, mean cross-entropy, backward, on one batch, in eval mode. In
every repeat each
row runs right after as many plain passes as it has passes of its own, on as many batches; printed is the median of
time / (time of a plain pass) over the repeats, with the smallest and largest, and of time / (time of its passes). A
step of Bayesian gradient descent is one batch of a preparation with the default draws. A step of `nabla_tau` is that of
its loop: read a forget and a retain batch, two forward passes, one backward pass, AdamW; its unit are two plain passes.

Memory. Peak beyond what was held before, in a process of its own for each figure; the caller's model, the data and,
where there is one, the state are held before. A row counts from its start: its working copy of the weights, gradients,
all vectors, set-up, two steps (a preparation: one epoch of two batches, all told). A plain pass with its gradients
already there gives the activations; what a row holds beyond them is divided by the number of parameters. On a GPU it is
the allocator's figure, else the kernel's high-water mark of resident memory, with freed blocks handed back at once.

    python benchmarks/anchors.py --repeats 7
    python benchmarks/anchors.py --rows "kl_gaussian" --profile
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from expunge import anchors, objectives
from expunge.anchors._bgd import Learner
from expunge.anchors._flat import Flat
from expunge.anchors._learn import prepared
from expunge.anchors._posterior import Posterior
from expunge.data import Batch, Data
from expunge.method import Needs, See, Session, State
from expunge.methods import build
from expunge.methods._steps import Descent
from expunge.objectives import Context
from expunge.task import Classification
from expunge.tensors import parameters
from expunge.zoo import networks
from fisher import BLOCK, Setting, machine, peak, say, seconds, show

SHAPE, CLASSES = (3, 32, 32), 10
TASK = Classification()


@dataclass(frozen=True)
class Row:
    """What is measured: an anchor's step, a preparation's or a method's; its passes, and what is aimed at."""

    kind: str
    passes: int
    settings: dict[str, Any] = field(default_factory=dict)
    most: float | None = None  # plain passes
    vectors: int | None = None  # bytes a parameter


FROZEN = {"sigma": "frozen"}
ROWS = {
    "kl_gaussian": Row("kl_gaussian", 2, {}, 2.3, 32),
    "kl_gaussian, two pairs": Row("kl_gaussian", 4, {"draws": 2}, None, 32),
    "kl_gaussian, explicit": Row("kl_gaussian", 2, {"rule": "explicit"}),
    "kl_gaussian, adam": Row("kl_gaussian", 2, {"rule": "adam"}),
    "kl_gaussian, frozen": Row("kl_gaussian", 2, FROZEN),
    "kl_gaussian, lean": Row("kl_gaussian", 2, FROZEN | {"lean": True, "stored": "uint8"}, None, 21),
    "fisher": Row("fisher", 1),
    "l2sp": Row("l2sp", 1),
    "none": Row("none", 1),
    "preparation": Row("prepare", 4, {}, 4 * 1.15, 20),
    "nabla_tau": Row("nabla_tau", 2, {}, 2 * 1.1),
}


class Case:
    """One network with its data, and a function for each row that takes its step."""

    def __init__(self, name: str, batch: int, setting: Setting) -> None:
        torch.set_num_threads(setting.threads)
        torch.manual_seed(0)
        self.runtime = setting.runtime(batch)
        self.device = torch.device(self.runtime.torch_device)
        self.model = networks.factory(name, SHAPE, CLASSES)().eval().to(self.device)
        self.count = sum(p.numel() for p in self.model.parameters())
        parts = [torch.randn(batch, *SHAPE) for _ in range(2)]
        self.first, self.second = (
            Data.from_arrays(x, torch.arange(batch) % CLASSES, name=n) for x, n in zip(parts, ("a", "b"), strict=True)
        )
        self.both = Data.from_arrays(torch.cat(parts), torch.arange(2 * batch) % CLASSES, name="both")
        self.batches = [data.read(range(batch)).to(self.device) for data in (self.first, self.second)]

    def plain(self, batch: Batch, *, fresh: bool = True) -> None:
        self.model.zero_grad(set_to_none=fresh)
        with self.runtime.autocast():
            loss = F.cross_entropy(self.model(batch.inputs), batch.target)
        loss.backward()

    def session(self, phase: str, needs: Needs, **given: Any) -> Session:
        return Session(
            task=TASK,
            runtime=self.runtime,
            seed=0,
            method="m",
            phase=phase,
            needs=needs,
            source=self.model,
            given=given,
        )

    def state(self, row: Row) -> State:
        if row.kind not in ("kl_gaussian", "fisher"):
            return State()
        sigma = {n: torch.full_like(p, -4.0) for n, p in parameters(self.model).items()}
        return Posterior(sigma, 50_000.0, {}).state(row.settings.get("stored", "float32"))

    def hold(self, row: Row, state: State) -> anchors.Hold:
        """Return the steps of a request."""
        anchor, objective = anchors.build({"name": row.kind, **row.settings}), objectives.build("entropy")
        context = Context(TASK)

        def lowered(model: nn.Module, batch: Batch) -> torch.Tensor:
            return objective.loss(TASK.forward(model, batch)[0], batch, context)

        session = self.session("unlearn", Needs(forget=See.LABELLED), forget=self.first)
        return anchor.hold(session, state, lowered, None)

    def prepare(self, row: Row) -> Callable[[], Any]:
        """Return a whole preparation of one epoch of two batches."""
        anchor = anchors.build({"name": "kl_gaussian", "epochs": 1, "most_epochs": 1, "learn_batch": len(self.first)})
        return lambda: prepared(anchor, self.session("prepare", Needs(train=See.LABELLED), train=self.both))

    def step(self, row: Row) -> Callable[[], Any]:
        """Return what takes a step, set up."""
        if row.kind == "prepare":
            session = self.session("prepare", Needs(train=See.LABELLED), train=self.first)
            settings = anchors.build({"name": "kl_gaussian", "learn_batch": len(self.first)})
            learner = Learner(settings, session, Flat(session.model), 0.02, self.runtime)
            return lambda: list(map(learner._step, [self.first], [range(len(self.first))]))
        if row.kind == "nabla_tau":
            method = build({"name": "nabla_tau", "batch_size": len(self.first)})
            session = self.session("unlearn", method.unlearns, forget=self.first, retain=self.second)
            descent = Descent(session, method, session.model)
            others, aim = descent.lockstep([self.second]), SimpleNamespace(tau=4.0, each=False)
            return lambda: method._epoch(descent, aim, others, 0.5, 1e-3)
        hold = self.hold(row, self.state(row))
        return lambda: hold.step(self.batches[0])


def race(case: Case, rows: list[str], repeats: int) -> tuple[dict[str, list[float]], list[float]]:
    """Time all rows, interleaved, each right after as many plain passes as its own."""
    steps = {name: case.step(ROWS[name]) for name in rows}
    found, plain = {name: list[float]() for name in rows}, list[float]()
    for batch in case.batches:
        case.plain(batch)
    for call in steps.values():
        call()
    for turn in range(repeats):
        for name, call in steps.items():
            passes = ROWS[name].passes
            plains = [lambda at=at: case.plain(case.batches[at % 2]) for at in range(passes)]
            unit = sum(seconds(case.device, one) for one in plains) / passes
            found[name].append(seconds(case.device, call) / unit)
            plain.append(unit)
            say(f"  repeat {turn + 1} of {repeats}: {name} {found[name][-1]:.2f} of {1e3 * unit:.0f} ms")
    return found, plain


def held(name: str, network: str, batch: int, setting: Setting) -> float:
    """Return the bytes that a row holds a parameter beyond the activations of a plain pass; in a fresh process."""
    case, row = Case(network, batch, setting), ROWS[name]
    torch.optim.Adam([torch.zeros(1)])  # the first one brings modules of torch along
    for _ in range(2):
        case.plain(case.batches[0], fresh=False)  # gradients are there, and what libraries keep
    gc.collect()
    activations = peak(case.device, lambda: case.plain(case.batches[0], fresh=False))
    case.model.zero_grad(set_to_none=True)
    if row.kind in ("prepare", "nabla_tau"):
        call = case.prepare(row) if row.kind == "prepare" else lambda: [case.step(row)() for _ in range(2)]
    else:
        state = case.state(row)

        def call() -> None:
            hold = case.hold(row, state)
            for one in case.batches:
                hold.step(one)

    gc.collect()
    return (peak(case.device, call) - activations) / case.count


def apart(*args: Any) -> float:
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(held, args)


def spread(values: list[float], by: float = 1.0) -> str:
    low, mid, high = (f(values) / by for f in (min, statistics.median, max))
    return f"{mid:.2f} ({low:.2f}–{high:.2f})"


def profile(case: Case, rows: list[str]) -> None:
    for name in rows:
        call = case.step(ROWS[name])
        call()
        with torch.profiler.profile() as found:
            call()
        print(name, found.key_averages().table(sort_by="self_cpu_time_total", row_limit=18, max_name_column_width=40))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--network", default="resnet18", help="of the zoo, for 32×32 images")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="full", choices=["full", "bf16"])
    parser.add_argument("--skip-memory", action="store_true", help="times alone")
    parser.add_argument("--skip-time", action="store_true", help="memory alone")
    parser.add_argument("--profile", action="store_true", help="instead, the rows' time by operation")
    args = parser.parse_args()
    # Processes that measure memory inherit it; this one has read its own settings already.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(BLOCK), "MALLOC_TRIM_THRESHOLD_": str(BLOCK)}
    setting = Setting(args.device, args.precision, args.threads)
    where = machine(setting)  # the commit at the start: it may move on meanwhile
    print(f"{args.network}, batch {args.batch}. {where}.\n", flush=True)
    if args.profile:
        profile(Case(args.network, args.batch, setting), args.rows)
        return
    if not args.skip_time:
        found, plain = race(Case(args.network, args.batch, setting), args.rows, args.repeats)
        print(f"A plain pass took {1e3 * statistics.median(plain):.0f} ms (median). {args.repeats} repeats.\n")
        lines = [["step", "passes", "plain passes", "beside its own passes", "aim, plain passes"]]
        for name, ratios in found.items():
            row = ROWS[name]
            aim = "–" if row.most is None else f"{row.most:.2f}"
            lines.append([name, str(row.passes), spread(ratios), spread(ratios, row.passes), aim])
        show(lines)
    if not args.skip_memory:
        lines = [["step", "bytes a parameter beyond activations", "aim"]]
        for name in args.rows:
            lines.append(
                [name, f"{apart(name, args.network, args.batch, setting):.1f}", str(ROWS[name].vectors or "–")]
            )
            say(" ".join(lines[-1]))
        show(lines)


if __name__ == "__main__":
    main()
