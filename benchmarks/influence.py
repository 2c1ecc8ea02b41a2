"""What curvature costs beside plain passes: products with it, IAU's one step, and the dual form's solve in its memory.

The network is at random weights in eval mode, inputs are at random: neither changes the cost.

Time. On a CPU it is the process's own (its threads' together); on a GPU the clock's. Unit is the plain pass over the
same samples: zero_grad, mean cross-entropy, backward, batch by batch. In every repeat each row runs right after a plain
pass; printed is the median of time / (time of the plain pass), with the smallest and largest.

- A product with the Hessian, Gauss-Newton or Fisher curvature is one of `expunge.influence.Curvature` over the samples,
  as conjugate gradients take it; so its unit is a gradient over them.
- `iau` is the whole `unlearn` of the method on a session, half the samples to forget and half to stay.
- The dual form is one solve with the Fisher information of the samples: their products with one another, Gv, Gᵀa, and
  the residual. Its unit is the plain pass over them as well, and so counts the layers' factors, which are taken
  once or a few times, and the N²·p multiplications, which grow faster than N: `--samples` says how many.

Memory. The solve's peak beyond what was held before, in a process of its own: the model, the data and two samples run
to warm up are held before. The peak has vectors of p float64, activations of a batch, held factors and tiles.

    python benchmarks/influence.py --repeats 3 --samples 48
    python benchmarks/influence.py --rows woodbury --samples 1000 --device cuda
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.data import Data
from expunge.influence import Curvature, LowRank, OfModel, Space, Woodbury
from expunge.influence.products import KINDS
from expunge.method import Session, State
from expunge.methods import build
from expunge.task import Classification
from expunge.zoo import networks
from fisher import Setting, machine, peak, say, seconds, show

SHAPE, CLASSES = (3, 32, 32), 10
TASK = Classification()
AIMS = {"hessian": 4.0, "iau": 1.1}  # plain passes
MEMORY = 2.0  # GiB, of the dual form
ROWS = (*KINDS, "iau", "woodbury")
BLOCK = 2**24  # bytes: from here on a freed block goes back to the system while memory is measured


class Case:
    """One network with its data."""

    def __init__(self, name: str, samples: int, batch: int, setting: Setting) -> None:
        torch.set_num_threads(setting.threads)
        torch.manual_seed(0)
        self.runtime = setting.runtime(batch)
        self.device = torch.device(self.runtime.torch_device)
        self.model = networks.factory(name, SHAPE, CLASSES)().eval().to(self.device)
        self.data = Data.from_arrays(torch.randn(samples, *SHAPE), torch.arange(samples) % CLASSES, name="train")
        self.space = Space(self.model)
        self.vector = torch.randn(self.space.size, dtype=torch.float64).to(self.device)

    def plain(self) -> None:
        """Go once over the samples, forward and backward."""
        for start in range(0, len(self.data), self.runtime.batch_size):
            at = range(start, min(start + self.runtime.batch_size, len(self.data)))
            batch = self.data.read(at).to(self.device)
            self.model.zero_grad()
            F.cross_entropy(self.model(batch.inputs), batch.target).backward()
        self.model.zero_grad()

    def row(self, name: str) -> Callable[[], Any]:
        """Return what is timed."""
        if name == "woodbury":
            return self.solved
        if name == "iau":
            return self.iau
        curvature = Curvature(self.space, TASK, [self.data], self.runtime, kind=name)  # type: ignore[arg-type]
        return lambda: curvature.products(self.vector[None])

    def iau(self) -> None:
        """Take the one step of the method."""
        method, half = build({"name": "iau"}), self.data.ids[::2]
        given = {"forget": self.data.subset(half), "retain": self.data.without(half)}
        session = Session(
            task=TASK,
            runtime=self.runtime,
            seed=0,
            method="iau",
            phase="unlearn",
            needs=method.unlearns,
            source=self.model,
            given=given,
        )
        method.unlearn(session, State())

    def solved(self) -> Tensor:
        """Solve with the Fisher information of the samples and a damping of 1."""
        rows = OfModel(self.space, TASK, self.data, self.runtime)
        return Woodbury().solve(LowRank(rows), self.vector, 1.0).x


def race(case: Case, rows: list[str], repeats: int) -> tuple[dict[str, list[float]], list[float]]:
    """Time all rows, interleaved, each right after a plain pass."""
    calls = {name: case.row(name) for name in rows}
    found, plain = {name: list[float]() for name in rows}, list[float]()
    case.plain()
    for name, call in calls.items():
        if name != "woodbury":
            call()
    for turn in range(repeats):
        for name, call in calls.items():
            if name == "woodbury" and turn:
                continue  # the longest by far
            unit = seconds(case.device, case.plain)
            found[name].append(seconds(case.device, call) / unit)
            plain.append(unit)
            say(f"  repeat {turn + 1} of {repeats}: {name} {found[name][-1]:.2f} of {unit:.2f} s")
    return found, plain


def held(name: str, samples: int, batch: int, setting: Setting) -> tuple[int, int]:
    """Return the bytes of the dual form's solve and the number of parameters; in a fresh process."""
    case = Case(name, samples, batch, setting)
    few = case.data.subset(case.data.ids[:2])
    Woodbury().solve(LowRank(OfModel(case.space, TASK, few, case.runtime)), case.vector, 1.0)
    gc.collect()
    return peak(case.device, case.solved), case.space.size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--network", default="resnet18", help="of the zoo, for 32×32 images")
    parser.add_argument("--samples", type=int, default=1000, help="of every row")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--skip-memory", action="store_true", help="times alone")
    parser.add_argument("--skip-time", action="store_true", help="memory alone")
    args = parser.parse_args()
    # The process that measures memory inherits it; this one has read its own settings already.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(BLOCK), "MALLOC_TRIM_THRESHOLD_": str(BLOCK)}
    setting = Setting(args.device, "full", args.threads)
    where = machine(setting)
    print(f"{args.network}, {args.samples} samples in batches of {args.batch}. {where}.\n", flush=True)
    if not args.skip_time:
        found, plain = race(Case(args.network, args.samples, args.batch, setting), args.rows, args.repeats)
        print(f"A plain pass took {statistics.median(plain):.2f} s (median). {args.repeats} repeats; woodbury one.\n")
        lines = [["row", "plain passes", "aim"]]
        for name, ratios in found.items():
            text = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
            lines.append([name, text, f"{AIMS[name]:.1f}" if name in AIMS else "–"])
        show(lines)
    if not args.skip_memory and "woodbury" in args.rows:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            size, count = pool.submit(held, args.network, args.samples, args.batch, setting).result()
        whole = 4 * count * args.samples
        lines = [["dual form", "GiB", "aim"], ["peak", f"{size / 2**30:.2f}", f"{MEMORY:.1f}"]]
        show([*lines, [f"G of {args.samples} × {count:,} whole", f"{whole / 2**30:.2f}", "–"]])


if __name__ == "__main__":
    main()
