"""What reading the evidence costs: every measure that runs no model, on the logits of a large evaluation.

Logits of three models (audited, original, retrained) on 50,000 samples of 100 classes are made up, divided into forget,
retain, test and holdout. Each family and attack is then timed beside one yardstick taken in the same run: sorting the
logits of one model, row by row by NumPy, 20 times. Memory is the peak of the process beyond the evidence itself, in
multiples of one model's logits. Measures that train or run a network (`Metric.trains`) are not here: their cost is that
of the network.

    python benchmarks/audit.py
    python benchmarks/audit.py --samples 10000 --classes 1000 --features 64
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import threading
import timeit
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from expunge import attacks, metrics
from expunge.evidence import Outputs
from expunge.metric import Audit, Metric, Value
from expunge.metrics.membership import Membership
from expunge.runtime import Runtime
from expunge.scenario import Scenario
from expunge.task import Classification

SORTS = 20
SHARES = {"forget": 0.1, "retain": 0.6, "test": 0.2, "holdout": 0.1}
TAP = "head:input"


def outputs(n: int, classes: int, features: int, sure: float, seed: int) -> Outputs:
    """Return made-up outputs: logits that favour the label by so much."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(n))
    logits[torch.arange(n), target] += sure
    loss = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    taps = {TAP: torch.randn(n, features, generator=generator)} if features else {}
    return Outputs(logits, logits.argmax(dim=1), target, loss, taps)


def evidence(samples: int, classes: int, features: int) -> dict[tuple[str, str], Outputs]:
    """Return the evidence of three models."""
    found = {}
    for seed, (role, sure) in enumerate({"model": 3.0, "original": 5.0, "retrained": 2.5}.items()):
        for at, (split, share) in enumerate(SHARES.items()):
            found[role, split] = outputs(round(share * samples), classes, features, sure, 10 * seed + at)
    return found


def audit(found: dict[tuple[str, str], Outputs], features: int) -> Audit:
    """Return an audit of random forgetting, its outputs fresh so that nothing worked out before is found again."""
    fresh = {k: Outputs(o.outputs, o.prediction, o.target, o.loss, o.features) for k, o in found.items()}
    case = Scenario(train=("a", "b"), forget=("a",), kind="random", target=1)
    models = {role: torch.nn.Linear(1, 1) for role in ("model", "original", "retrained")}
    tap = TAP if features else None
    runtime = Runtime(progress=False)
    return Audit(evidence=fresh, models=models, task=Classification(), scenario=case, tap=tap, runtime=runtime)


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Return the least of several runs."""
    return min(timeit.repeat(work, number=1, repeat=repeats))


class Peak:
    """The process's largest resident memory inside the block beyond that at its start, bytes."""

    def __enter__(self) -> Peak:
        gc.collect()
        self.start = self.most = self._now()
        self._stop = threading.Event()
        self._watch = threading.Thread(target=self._run)
        self._watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._watch.join()

    @property
    def extra(self) -> int:
        """Bytes beyond the start."""
        return self.most - self.start

    def _run(self) -> None:
        while not self._stop.wait(0.002):
            self.most = max(self.most, self._now())

    @staticmethod
    def _now() -> int:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()


def sorting(found: dict[tuple[str, str], Outputs], repeats: int) -> tuple[int, float, float]:
    """Return the bytes of one model's logits, and the seconds of sorting them so many times by row, and all in one.

    Each result is dropped at once: keeping them would time the operating system's memory. NumPy sorts rows by vector
    instructions where the processor has them, which makes this the strictest yardstick at hand.
    """
    logits = np.concatenate([o.outputs.numpy() for (role, _), o in found.items() if role == "model"])
    by_row, flat = (SORTS * seconds(lambda axis=axis: np.sort(logits, axis=axis), 3 * repeats) for axis in (1, None))  # type: ignore[misc]
    return logits.nbytes, by_row, flat


def cheap() -> dict[str, Metric]:
    """Return every measure that runs no model, attacks one by one."""
    found: dict[str, Metric] = {n: metrics.load(n)() for n in metrics.names() if n != "membership"}
    found = {name: metric for name, metric in found.items() if not metric.trains}
    return found | {f"membership: {name}": Membership(names=(name,)) for name in attacks.names()}


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--features", type=int, default=0, help="width of tapped features; 0 for none")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = evidence(given.samples, given.classes, given.features)
    measures = cheap()

    def everything(found: dict[tuple[str, str], Outputs]) -> None:
        one = audit(found, given.features)  # signals are worked out once, as in an audit
        for metric in measures.values():
            metric(one)

    everything(evidence(1000, given.classes, given.features))  # what is loaded and allocated once
    with Peak() as peak:  # before anything of this size was done: memory that was freed may stay with the process
        everything(found)
    size, yardstick, flat = sorting(found, given.repeats)
    print(f"{given.samples} samples, {given.classes} classes, {size / 2**20:.0f} MiB of logits a model")
    print(f"yardstick: sorting them by row {SORTS} times: {yardstick:.2f} s; all in one: {flat:.2f} s\n")
    print(f"{'measure':32s} {'of the yardstick':>16s} {'numbers':>8s}")
    for name, metric in measures.items():
        spent = seconds(lambda metric=metric: metric(audit(found, given.features)), given.repeats)  # type: ignore[misc]
        there = sum(isinstance(v, Value) for v in metric(audit(found, given.features)).values())
        print(f"{name:32s} {spent / yardstick:16.3f} {there:8d}", flush=True)

    spent = seconds(lambda: everything(found), given.repeats)
    print(f"\n{'all of them, one audit':32s} {spent / yardstick:16.2f}   (at most 3)")
    print(f"{'the same by one sort of all':32s} {spent / flat:16.2f}")
    print(f"{'extra memory at the peak':32s} {peak.extra / size:16.2f}   of one model's logits (at most 3)")


if __name__ == "__main__":
    main()
