"""What the exact per-sample diagonal costs, as a multiple of one plain forward and backward pass over the same data.

Engines and the plain pass are interleaved on the same batches, one torch thread; the median of the repeats is printed.

    python benchmarks/fisher.py --repeats 5
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from expunge.data import Data
from expunge.fisher import diagonal
from expunge.runtime import Runtime
from expunge.task import Classification
from expunge.zoo import networks

ENGINES = ("layers", "batched", "reference")


def plain(model: nn.Module, data: Data, size: int) -> None:
    for batch in data.batches(size):
        model.zero_grad()
        nn.functional.cross_entropy(model(batch.inputs), batch.target).backward()


def case(name: str, shape: tuple[int, ...], samples: int, size: int, repeats: int) -> None:
    torch.manual_seed(0)
    model = networks.factory(name, shape, 10)().eval()
    data = Data.from_arrays(torch.randn(samples, *shape), torch.randint(10, (samples,)))
    runtime = Runtime(batch_size=size, device="cpu", progress=False)
    work: dict[str, Callable[[], object]] = {"plain": lambda: plain(model, data, size)}
    for engine in ENGINES:
        work[engine] = lambda e=engine: diagonal(model, Classification(), data, engine=e, runtime=runtime)
    times: dict[str, list[float]] = {key: [] for key in work}
    for turn in range(repeats + 1):
        for key, call in work.items():
            start = time.perf_counter()
            call()
            if turn:  # the first turn warms up
                times[key].append(time.perf_counter() - start)
    ratios = {k: statistics.median(a / b for a, b in zip(times[k], times["plain"], strict=True)) for k in ENGINES}
    print(f"| {name} {shape} | {samples} / {size} | " + " | ".join(f"{ratios[k]:.2f}×" for k in ENGINES) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| network, input | samples / batch | " + " | ".join(ENGINES) + " |")
    print("|---|---|---|---|---|")
    case("mlp", (1, 8, 8), 4096, 64, args.repeats)
    case("convnet", (1, 8, 8), 2048, 64, args.repeats)
    case("convnet", (3, 32, 32), 512, 64, args.repeats)


if __name__ == "__main__":
    main()
