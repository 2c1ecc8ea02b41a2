"""Forget a class of the source data before a network is put to use on other data, densely and at 95 % sparsity.

A network learns the source data. One of its classes is forgotten: by retraining without it, or by l1_sparse, on the
dense network and on one that was pruned first. Then the features go to another data set, of which a few images are
labelled: a new head is trained on the frozen features, standardised (linear probe), and the whole network is trained on
(fine-tuned; what was pruned stays 0). Beside them stands a network that never saw the source. Each seed draws its own
images of both data sets and trains its own network; all networks of a seed get the same images, the same new head and
the same recipe, the target's own. Target images are resized to the source's, and standardised.

Printed are means over seeds with 95 % t intervals; in brackets the difference to the untouched dense network of the
same seed. Cost is prepare and edit, as a multiple of retraining the dense network in the same seed.

    EXPUNGE_DATA=... python examples/transfer/transfer.py
    python examples/transfer/transfer.py --source digits --limit 200 --forget 3 --seeds 2      # a quick look, no files
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from expunge.data import Data
from expunge.errors import ExpungeError
from expunge.evidence import collect
from expunge.masks import Masks
from expunge.methods import build, load
from expunge.methods.pruned import MASK
from expunge.originals import original
from expunge.recipe import Recipe
from expunge.scenario import forget_class
from expunge.seeds import seed as named_seed
from expunge.stats import mean_t
from expunge.task import Classification
from expunge.tensors import isolated_rng
from expunge.train import fit
from expunge.unlearn import prepare, unlearn
from expunge.zoo import Problem
from expunge.zoo import load as problem_of

TASK = Classification()
FIRST, TRUTH = "dense, untouched", "dense, retrained without the class"
HEADS = ("source network", "source: other classes", "source: the class", "target: probe", "target: fine-tuned", "cost")


@dataclass(frozen=True)
class Source:
    """A network that has learnt the source, the seconds it took beyond the original, and which weights may move."""

    model: nn.Module
    seconds: float
    masks: Masks | None = None


def sources(problem: Problem, label: int, sparsity: float, seed: int) -> dict[str, Source]:
    """Return the networks of one seed: untouched, retrained and unlearned, dense and sparse; and an untrained one."""
    request = forget_class(problem.train, label)
    asked = {"forget": problem.train.subset(request.forget), "retain": problem.train.subset(request.retain)}
    asked |= {"recipe": problem.recipe, "new_model": problem.new_model, "scenario": request, "seed": seed}
    model = original(problem, problem.train, seed=seed)
    found = {FIRST: Source(model, 0.0)}
    for name, text in (("retrain", TRUTH), ("l1_sparse", "dense, l1_sparse")):
        done = unlearn(load(name)(), model, TASK, **asked)
        found[text] = Source(done.model, done.seconds)
    start = {"train": problem.train, "recipe": problem.recipe, "new_model": problem.new_model, "seed": seed}
    pruned = {
        n: build({"name": "pruned", "method": {"name": n}, "sparsity": sparsity}) for n in ("retrain", "l1_sparse")
    }
    ready = prepare(pruned["retrain"], model, TASK, **start)  # l1_sparse prepares nothing more, and shares it
    kept = {k.removeprefix(MASK): mask for k, mask in ready.state.tensors.items() if k.startswith(MASK)}
    masks, title = Masks(kept), f"{sparsity:.0%} sparse"
    found[f"{title}, untouched"] = Source(ready.model, ready.seconds, masks)
    for name, text in (("retrain", f"{title}, retrained without the class"), ("l1_sparse", f"{title}, l1_sparse")):
        done = unlearn(pruned[name], ready.model, TASK, state=ready.state, **asked)
        found[text] = Source(done.model, ready.seconds + done.seconds, masks)
    with isolated_rng(named_seed("never", seed)):
        return {**found, "never saw the source": Source(problem.new_model().eval(), 0.0)}


def like(data: Data, images: torch.Tensor, mean: float, std: float) -> Data:
    """Return images resized to those of another data set, with as many channels, standardised."""
    batch = data.read(range(len(data)))
    x = F.interpolate((batch.inputs - mean) / std, size=images.shape[2:], mode="bilinear", align_corners=False)
    return Data.from_arrays(x.expand(-1, images.shape[1], -1, -1).contiguous(), batch.target, name=data.name)


def correct(model: nn.Module, data: Data) -> float:
    """Return accuracy, in points."""
    said = collect(model, TASK, data)
    return 100 * float(said.prediction.eq(said.target).double().mean())


def head(model: nn.Module, classes: int, seed: int) -> nn.Linear:
    with isolated_rng(named_seed("head", seed)):
        return nn.Linear(model.head.in_features, classes)


def probe(source: Source, train: Data, test: Data, classes: int, recipe: Recipe, seed: int) -> float:
    """Train a head on features that were read off once, in eval mode, and so cannot move; return test accuracy.

    Features are standardised by the training images, or the rate would suit some networks and not others.
    """

    def features(data: Data) -> torch.Tensor:
        return collect(source.model, TASK, data, taps=["head:input"]).features["head:input"].float()

    x, unseen = features(train), features(test)
    mean, std = x.mean(0), x.std(0)
    std[std == 0] = 1.0  # of features that are dead on those images
    learnt, tried = (Data.from_arrays((f - mean) / std, d.targets()) for f, d in ((x, train), (unseen, test)))
    return correct(fit(head(source.model, classes, seed), TASK, learnt, recipe, seed=seed), tried)


def tuned(source: Source, train: Data, test: Data, classes: int, recipe: Recipe, seed: int) -> float:
    """Train all of the network on under a new head, what was pruned staying 0; return test accuracy."""
    model = copy.deepcopy(source.model)
    model.head = head(model, classes, seed)
    return correct(fit(model, TASK, train, recipe, seed=seed, masks=source.masks), test)


def one(chosen: argparse.Namespace, seed: int) -> dict[str, list[float]]:
    """Return a row of numbers for each network of a seed."""
    problem = problem_of(chosen.source, "convnet", limit=chosen.limit, seed=seed)
    target = problem_of(chosen.target)
    few = problem_of(chosen.target, limit=chosen.shots, seed=seed).train
    if chosen.epochs is not None:
        problem = replace(problem, recipe=replace(problem.recipe, epochs=chosen.epochs))
    recipe = target.recipe if chosen.epochs is None else replace(target.recipe, epochs=chosen.epochs)
    images, pixels = problem.train.read([0]).inputs, few.read(range(len(few))).inputs
    scale = float(pixels.mean()), float(pixels.std())
    learnt, unseen, classes = like(few, images, *scale), like(target.test, images, *scale), len(target.classes)
    split = forget_class(problem.test, chosen.forget)  # of the test images: those of the class, and the others
    rows = {}
    found = sources(problem, chosen.forget, chosen.sparsity, seed)
    for name, source in found.items():
        told = [correct(source.model, problem.test.subset(ids)) for ids in (split.retain, split.forget)]
        on = [run(source, learnt, unseen, classes, recipe, seed) for run in (probe, tuned)]
        rows[name] = [*told, *on, source.seconds / found[TRUTH].seconds]
    return rows


def cell(values: Sequence[float], first: Sequence[float] | None = None, *, digits: int = 1) -> str:
    """Return a mean with half of its interval, and the same of the paired difference to other values."""
    mean = mean_t(values)
    spread = f" ± {mean.high - mean.x:.{digits}f}" if mean.n > 1 else ""  # one value has none
    if first is None:
        return f"{mean.x:.{digits}f}{spread}"
    gap = mean_t([a - b for a, b in zip(values, first, strict=True)])
    beside = f" ± {gap.high - gap.x:.{digits}f}" if gap.n > 1 else ""
    return f"{mean.x:.{digits}f}{spread} ({gap.x:+.{digits}f}{beside})"


def table(runs: Sequence[dict[str, list[float]]]) -> str:
    """Return the seeds' rows as one markdown table."""
    lines = ["| " + " | ".join(HEADS) + " |", "|---|" + "---:|" * (len(HEADS) - 1)]
    for name in runs[0]:
        columns, firsts = (list(zip(*(run[n] for run in runs), strict=True)) for n in (name, FIRST))
        cells = [cell(x) for x in columns[:2]]
        cells += [cell(x, None if name == FIRST else base) for x, base in zip(columns[2:4], firsts[2:4], strict=True)]
        cells.append(cell(columns[4], digits=2) if any(columns[4]) else "–")
        if name == "never saw the source":
            cells[:2] = ["–", "–"]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="fashion_mnist", help="a data set of images; EXPUNGE_DATA names its folder")
    parser.add_argument("--limit", type=int, default=3000, help="training images of the source, balanced by class")
    parser.add_argument("--forget", type=int, default=8, help="class of the source, by index; 8 are bags")
    parser.add_argument("--sparsity", type=float, default=0.95, help="share of the convolutions' weights that are 0")
    parser.add_argument("--target", default="digits", help="a data set of images")
    parser.add_argument("--shots", type=int, default=200, help="labelled images of the target, balanced by class")
    parser.add_argument("--seeds", type=int, default=5, help="0 to this less one")
    parser.add_argument(
        "--epochs", type=int, help="of all trainings from scratch and on the target; default the recipes'"
    )
    chosen = parser.parse_args(arguments)
    runs = []
    for seed in range(chosen.seeds):
        runs.append(one(chosen, seed))
        print(f"seed {seed} done", file=sys.stderr, flush=True)
    print(table(runs))


if __name__ == "__main__":
    try:
        main()
    except ExpungeError as error:
        sys.exit(str(error))
