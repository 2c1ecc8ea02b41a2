"""Peak memory of prepare and forget on ResNet-18 and ViT, beside the weights and beside a plain training step.

Memory is what a phase holds at its peak beyond what was held before it: from the allocator on a GPU, else the
process's resident memory, sampled every 5 ms. Each figure is taken in a process of its own.

    python benchmarks/memory.py --batch 16 64
"""

from __future__ import annotations

import argparse
import tempfile
from multiprocessing import get_context
from pathlib import Path

import torch

from expunge.data import Data
from expunge.method import State
from expunge.methods import load
from expunge.runtime import Runtime, peak_memory
from expunge.task import Classification
from expunge.unlearn import prepare, unlearn
from expunge.zoo import networks

SHAPES = {"resnet18": (3, 32, 32), "vit": (3, 32, 32), "vit-base-patch16-224": (3, 224, 224)}


def network(name: str) -> torch.nn.Module:
    if name != "vit-base-patch16-224":
        return networks.factory(name, SHAPES[name], 10)()
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(num_labels=10))  # that network's sizes, weights at random


def measure(phase: str, name: str, batch: int, count: int, device: str, folder: str) -> float:
    """Return the peak of one phase in MiB; in a fresh process, for memory once held is seldom given back."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    runtime = Runtime(device=device, batch_size=batch, progress=False)
    task, model = Classification(), network(name).to(runtime.torch_device).eval()
    data = Data.from_arrays(torch.randn(count, *SHAPES[name]), torch.arange(count) % 10)
    ssd, file = load("ssd")(), Path(folder) / f"{name}-{batch}.safetensors"
    if phase == "prepare":
        ready = prepare(ssd, model, task, train=data, runtime=runtime)
        ready.state.save(file, overwrite=True)
        return ready.peak_memory / 2**20
    if phase == "forget":
        forget = data.subset(data.ids[: count // 2])
        return unlearn(ssd, model, task, forget=forget, state=State.load(file), runtime=runtime).peak_memory / 2**20
    with peak_memory(runtime.torch_device) as peak:
        batch_ = next(iter(data.batches(batch))).to(runtime.torch_device)
        task.loss(task.forward(model, batch_)[0], batch_.target).mean().backward()
    return peak[0] / 2**20


def apart(*args: object) -> float:
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "vit"], choices=list(SHAPES))
    parser.add_argument("--batch", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    print("| network | batch | weights | plain forward and backward | prepare | forget | prepare / plain |")
    print("|---|---|---|---|---|---|---|")
    folder = tempfile.mkdtemp()
    for name in args.networks:
        for batch in args.batch:
            rest = (name, batch, args.samples, args.device, folder)
            found = {phase: apart(phase, *rest) for phase in ("plain", "prepare", "forget")}
            weights = sum(p.numel() * p.element_size() for p in network(name).parameters()) / 2**20
            cells = [f"{n:.0f} MiB" for n in (weights, *found.values())]
            print(
                f"| {name} | {batch} |", " | ".join(cells), f"| {found['prepare'] / found['plain']:.1f} |", flush=True
            )


if __name__ == "__main__":
    main()
