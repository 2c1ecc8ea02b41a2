"""How soon two independent estimates of σ agree, and what learning σ costs beside plain training.

Agreement is the rank correlation of the two estimates of ln σ over all weights after each epoch of Bayesian gradient
descent, one original a seed, for each number of pairs a batch and each batch size. Beside it stands the epoch at which
it first reached 0.8, and the share of the weights whose σ is below σ0/√2: there the samples tell more than the prior.

Cost is the processor time of an epoch of that descent as a multiple of a plain epoch's: forward pass, mean loss and
backward pass, in eval mode and in the same batches, no optimiser. The two take turns; printed is the median of the
ratios with the smallest and largest, and the ratio divided by the draws 2·pairs, of which each is a plain pass.

    python benchmarks/agreement.py --seeds 3 --epochs 30
    python benchmarks/agreement.py --data digits --pairs 2 4 --batch 32 128
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from dataclasses import replace
from typing import Any

import torch

from expunge.anchors._bgd import Learner
from expunge.anchors._flat import Flat
from expunge.anchors._settings import Learning
from expunge.method import Needs, See, Session
from expunge.originals import original
from expunge.runtime import Runtime
from expunge.train import batch_orders
from expunge.zoo import load
from fisher import Setting, machine, say, seconds

SHOWN = (1, 2, 3, 5, 10, 20, 30, 60, 100, 200)
ENOUGH = 0.8
CPU = torch.device("cpu")


def begun(problem: Any, model: torch.nn.Module, seed: int) -> Session:
    """Return the session of a preparation."""
    return Session(
        task=problem.task,
        runtime=Runtime(progress=False, device="cpu"),
        seed=seed,
        method="kl_gaussian",
        phase="prepare",
        needs=Needs(train=See.LABELLED),
        source=model,
        given={"train": problem.train},
    )


def plain(session: Session, batch: int) -> None:
    """Run one epoch of forward and backward passes."""
    model, data = session.model, session.train
    for at in batch_orders(batch, torch.randperm(len(data))):
        part = data.read(at)
        session.task.loss(session.task.forward(model, part)[0], part.target).mean().backward()


def ratios(session: Session, settings: Learning, repeats: int) -> list[float]:
    """Return the time of an epoch of the descent over that of a plain one, taken in turns."""
    how = replace(settings, epochs=2, most_epochs=2, agreement=0.999)
    flat = Flat(session.model)
    plain(session, settings.learn_batch)
    found = []
    for _ in range(repeats):
        before = seconds(CPU, lambda: [plain(session, settings.learn_batch) for _ in range(2)])
        ours = seconds(CPU, lambda: Learner(how, session, flat, how.sigma0, session.runtime).run())
        found.append(ours / before)
    return found


def row(problem: Any, models: list[torch.nn.Module], settings: Learning, repeats: int) -> list[str]:
    """Return a row of the table."""
    curves, told = [], []
    for seed, model in enumerate(models):
        session = begun(problem, model, seed)
        flat = Flat(session.model)
        found = Learner(settings, session, flat, settings.sigma0, session.runtime).run()
        curves.append(found.agreement)
        inner = flat.scalars(found.log_sigma).exp() < settings.sigma0 / 2**0.5
        told.append(float(inner.double().mean()))
    cost = ratios(begun(problem, models[0], 0), settings, repeats)
    shown = [e for e in SHOWN if e <= settings.most_epochs]
    means = [f"{statistics.mean(c[e - 1] for c in curves):.2f}" for e in shown]
    reached = [next((str(e) for e, value in enumerate(c, start=1) if value >= ENOUGH), "-") for c in curves]
    spread = f"{statistics.median(cost):.2f} ({min(cost):.2f} to {max(cost):.2f})"
    each = f"{statistics.median(cost) / (2 * settings.pairs):.3f}"
    head = [str(settings.pairs), str(settings.learn_batch), f"{settings.sigma0:g}"]
    return [*head, *means, " ".join(reached), f"{statistics.mean(told):.2f}", spread, each]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="a named data set")
    parser.add_argument("--network", help="a named network; unset, the data set's own")
    parser.add_argument("--limit", type=int, help="training samples")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--pairs", type=int, nargs="+", default=[2])
    parser.add_argument("--batch", type=int, nargs="+", default=[128])
    parser.add_argument("--sigma0", type=float, nargs="+", default=[0.02])
    parser.add_argument("--repeats", type=int, default=5, help="of the timing")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    problem = load(chosen.data, chosen.network, limit=chosen.limit)
    runtime = Runtime(progress=False, device="cpu")
    models = [original(problem, problem.train, runtime=runtime, seed=seed) for seed in range(chosen.seeds)]
    where = machine(Setting(device="cpu", threads=1, precision="full"))
    say(f"{where}; {problem.name}, {len(problem.train):,} samples, {chosen.seeds} seeds")
    shown = [f"epoch {e}" for e in SHOWN if e <= chosen.epochs]
    heads = ["pairs", "batch", "σ0", *shown, f"{ENOUGH} at", "below σ0/√2", "time / plain epoch", "of each draw"]
    print("| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), sep="\n", flush=True)
    for pairs, batch, sigma0 in itertools.product(chosen.pairs, chosen.batch, chosen.sigma0):
        settings = Learning(
            pairs=pairs,
            learn_batch=batch,
            sigma0=sigma0,
            epochs=chosen.epochs,
            most_epochs=chosen.epochs,
            agreement=0.9999,
        )
        print("| " + " | ".join(row(problem, models, settings, chosen.repeats)) + " |", flush=True)


if __name__ == "__main__":
    main()
