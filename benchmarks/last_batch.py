"""Does a small last batch of an epoch cost test accuracy? CIFAR-10's example, with 5,700 samples and with 5,696.

Batches of 64 leave 4 of 5,700 samples for the last one, and none of 5,696. Each seed draws its own samples.

    python benchmarks/last_batch.py --data-dir FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from expunge.evidence import collect
from expunge.project import Project
from expunge.runtime import Runtime
from expunge.trial import original

FILE = Path(__file__).parent.parent / "examples" / "cifar10" / "expunge.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder of data sets; default the variable EXPUNGE_DATA")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, nargs="+", default=[5700, 5696])
    args = parser.parse_args()
    torch.set_num_threads(1)
    problem = Project.open(FILE, args.data_dir).problem()
    found: dict[int, list[float]] = {n: [] for n in args.samples}
    for seed in range(args.seeds):
        ids = np.random.default_rng(seed).permutation(problem.train.ids)
        for n in args.samples:
            data = problem.train.subset(sorted(ids[:n], key=lambda i: int(i.split("/")[-1])))
            model = original(problem, data, runtime=Runtime(progress=False), seed=seed)
            said = collect(model, problem.task, problem.test)
            found[n].append(float((said.prediction == said.target).double().mean()))
            print(f"seed {seed}, {n} samples: {found[n][-1]:.4f}", flush=True)
    for n, values in found.items():
        print(f"{n} samples: mean {np.mean(values):.4f}")


if __name__ == "__main__":
    main()
