"""The public network of the S3T runs: a small ViT trained on half the classes of a data set, written as a checkpoint.

The network `vit_public` of `expunge.zoo` reads it, and starts from it on the other half: `fashion_mnist_private` or
`digits_private`. The checkpoint lies in `FOLDER/vit-public-1x28x28`, and is found where EXPUNGE_MODELS names FOLDER.

    python benchmarks/s3t_public.py --data digits --models models
    python benchmarks/s3t_public.py --data fashion_mnist --data-dir data --limit 10000 --models models
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from expunge import zoo
from expunge.recipe import Recipe
from expunge.runtime import Runtime
from expunge.seeds import seed as named_seed
from expunge.tensors import isolated_rng
from expunge.train import fit
from expunge.zoo import public


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", choices=["digits", "fashion_mnist"])
    parser.add_argument("--data-dir", type=Path, help="folder of data sets; default EXPUNGE_DATA, then the Hub")
    parser.add_argument("--limit", type=int, help="training samples; default all of the half")
    parser.add_argument("--epochs", type=int, help="default 60 on digits, 10 on Fashion-MNIST")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=Path, required=True, help="folder to write the checkpoint into")
    args = parser.parse_args()
    torch.set_num_threads(1)
    p = zoo.load(f"{args.data}_public", data_dir=args.data_dir, limit=args.limit)
    shape = zoo.known(p.name).shape
    place = public.folder_of(shape, args.models)
    if place.exists():
        parser.error(f"{place} is there: remove it, or name another folder")
    with isolated_rng(named_seed("public", args.seed)):
        model = public.blank(shape, len(p.classes))
    epochs = args.epochs or {"digits": 60, "fashion_mnist": 10}[args.data]
    recipe = Recipe(epochs=epochs, batch_size=32, lr=2e-3, optimizer="adamw", weight_decay=0.01, warmup=1, clip=1.0)
    start = time.perf_counter()
    trained = fit(model, p.task, p.train, recipe, runtime=Runtime(device="cpu"), seed=args.seed).eval()
    seconds = time.perf_counter() - start
    batch = p.test.read(range(len(p.test)))
    with torch.inference_mode():
        right = p.task.forward(trained, batch)[0].argmax(1) == batch.target
    print(f"{len(p.train)} samples of {', '.join(p.classes)}: {epochs} epochs, {seconds:.0f} s.")
    print(f"Accuracy {100 * float(right.double().mean()):.1f} % of {len(p.test)} test samples.")
    args.models.mkdir(parents=True, exist_ok=True)
    print(public.save(trained, shape, args.models))


if __name__ == "__main__":
    main()
