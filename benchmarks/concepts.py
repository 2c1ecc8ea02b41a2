"""What poisoning by concepts costs: forward passes to find concepts, and seconds to poison images.

Random images and concepts on an untrained network: places depend on the values, costs do not. The claims are at most 2
forward passes an image, that of its donor included, and at most 20 s for 5,000 images of 32×32 pixels on two cores.

    python benchmarks/concepts.py
    python benchmarks/concepts.py --network resnet18 --images 500
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

from expunge.concepts.patches import Ask, poison_images
from expunge.data import Data
from expunge.evidence import head_tap
from expunge.runtime import Runtime
from expunge.task import Classification
from expunge.zoo.networks import build

PASSES, SECONDS, AT, SIDE = 2.0, 20.0, 5000, 32


class Counted(nn.Module):
    """Counts the images that a network is run on."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.inner(x)  # type: ignore[no-any-return]


def measured(network: str, images: int, side: int, mode: str, concepts: int) -> tuple[float, float]:
    """Return forward passes an image, and the seconds to poison and read all of them."""
    torch.manual_seed(0)
    model = Counted(build(network, (3, side, side), 10)).eval()
    runtime = Runtime(progress=False, device="cpu")
    forget = Data.from_arrays(torch.randn(images, 3, side, side), name="forget")
    donors = Data.from_arrays(torch.randn(images, 3, side, side), name="donors")
    tap = head_tap(model, Classification(), forget, runtime)
    assert tap is not None
    width = Classification().forward(model, forget.read([0, 1]), [tap])[1][tap].shape[1]
    vectors, names = torch.randn(concepts, width), tuple(f"concept {i}" for i in range(concepts))
    model.seen, started = 0, time.perf_counter()
    found = poison_images(
        Ask(
            model=model,
            task=Classification(),
            forget=forget,
            donors=donors,
            targets=torch.zeros(images, dtype=torch.int64),
            tap=tap,
            names=names,
            vectors=vectors,
            intercepts=torch.zeros(concepts),
            donor_names=names,
            donor_vectors=vectors,
            donor_intercepts=torch.zeros(concepts),
            mode=mode,  # type: ignore[arg-type]
            size=None,
            runtime=runtime,
            seed=0,
        )
    )
    for _ in found.data.batches(256):
        pass
    return model.seen / images, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="convnet4", help="by its name in the zoo")
    parser.add_argument("--images", type=int, default=AT)
    parser.add_argument("--side", type=int, default=SIDE, help="pixels")
    parser.add_argument("--concepts", type=int, default=3, help="patches on each image")
    args = parser.parse_args()
    torch.set_num_threads(2)
    print(f"{args.images:,} images of {args.side}×{args.side}, {args.network}, {args.concepts} concepts, two threads")
    print(f"{'mode':<10}  passes/image  seconds")
    bad = []
    for mode in ("localized", "center", "random", "full", "whole", "none"):
        passes, seconds = measured(args.network, args.images, args.side, mode, args.concepts)
        print(f"{mode:<10}  {passes:12.3f}  {seconds:7.2f}", flush=True)
        if passes > PASSES + 0.1:  # the few that show which features are averaged
            bad.append(f"{mode}: {passes:.2f} forward passes an image, at most {PASSES:g} are claimed")
        if args.images <= AT and args.side <= SIDE and seconds > SECONDS:
            bad.append(f"{mode}: {seconds:.1f} s, at most {SECONDS:g} are claimed")
    print("\n".join(bad) or "both claims hold")
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
