"""What each method costs: seconds to unlearn and to prepare, as multiples of one training epoch over the retain set.

All methods with their defaults, on one request of a data set. Epochs are timed between the methods, so that a machine
that grows slower slows both. What is timed is the method's own work, without the checks and copies around it. Beside
the seconds stand the passes that the method says it makes: a pass of a training step reads, differentiates and steps,
one of importance reads and differentiates.

    python benchmarks/methods.py --data digits --request class=3
    python benchmarks/methods.py --data digits --request random=0.05 --repeats 5
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from expunge import choice
from expunge.draws import Request
from expunge.errors import Declined, UserError
from expunge.method import Method
from expunge.methods import names
from expunge.originals import original
from expunge.runtime import Runtime
from expunge.train import fit
from expunge.unlearn import prepare, unlearn
from expunge.zoo import load
from fisher import Setting, machine, say, show


def epoch(model: Any, problem: Any, retain: Any, runtime: Runtime) -> float:
    """Return the seconds of two epochs less those of one: what starting a training costs drops out."""

    def timed(epochs: int) -> float:
        recipe = replace(problem.recipe, epochs=epochs, warmup=0.0)
        start = time.perf_counter()
        fit(model, problem.task, retain, recipe, runtime=runtime)
        return time.perf_counter() - start

    timed(1)
    return max(1e-9, timed(2) - timed(1))


def costs(method: Method, given: dict[str, Any], call: Callable[[], float], repeats: int) -> list[str]:
    """Return a row of the table: unlearn and prepare as multiples of an epoch timed before and after."""
    model, task, train = given["model"], given["task"], given["train"]
    shared = {k: given[k] for k in ("holdout", "recipe", "scenario", "runtime", "new_model")}
    asked = {"forget": given["forget"], "retain": given["retain"], **shared}
    edits, passes, preparations = [], [], []
    before = call()
    for _ in range(repeats):
        ready = prepare(method, model, task, train=train, **shared)
        done = unlearn(method, ready.model, task, state=ready.state, **asked)
        after = call()
        one = (before + after) / 2
        edits.append(done.seconds / one)
        preparations.append(ready.seconds / one)
        passes.append(done.log.get("steps", ""))
        before = after
    spread = f"{statistics.median(edits):.2f} ({min(edits):.2f} to {max(edits):.2f})"
    words = [choice.passes(method, phase) for phase in ("prepare", "unlearn")]
    return [method.name, spread, words[1], str(passes[-1]), f"{statistics.median(preparations):.2f}", words[0]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="a named data set")
    parser.add_argument("--network", help="a named network; unset, the data set's own")
    parser.add_argument("--limit", type=int, help="training samples")
    parser.add_argument("--request", default="class=3", help="who is forgotten")
    parser.add_argument("--methods", nargs="*", help="some of them; unset, all")
    parser.add_argument("--repeats", type=int, default=3, help="of each method")
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    runtime = Runtime(progress=False, device=chosen.device)
    problem = load(chosen.data, chosen.network, limit=chosen.limit)
    request = Request.parse(chosen.request)
    train = request.training(problem, 0)
    first = original(problem, train, runtime=runtime, seed=0)
    drawn = {"original": first, "runtime": runtime} if request.needs_original else {}
    _, scenario = request.draw(problem, 0, **drawn)
    given = {
        "model": first,
        "task": problem.task,
        "train": train,
        "forget": train.subset(scenario.forget),
        "retain": train.without(scenario.forget),
        "holdout": problem.holdout,
        "recipe": problem.recipe,
        "new_model": problem.new_model,
        "scenario": scenario,
        "runtime": runtime,
    }
    where = machine(Setting(device=chosen.device, threads=1, precision="full"))
    torch.set_num_threads(1)
    say(f"{where}; {problem.name}, {len(train):,} samples, {len(given['forget']):,} to forget ({request})")
    rows, left = [], []
    for name in chosen.methods or names():
        try:
            rows.append(
                costs(
                    choice.example(name), given, lambda: epoch(first, problem, given["retain"], runtime), chosen.repeats
                )
            )
        except Declined as error:
            left.append(f"{name}: {error.remedy}")
        except UserError as error:
            left.append(f"{name}: {error}")
    heads = [
        "method",
        "unlearn, epochs: median (range)",
        "passes it says",
        "steps",
        "prepare, epochs",
        "passes it says",
    ]
    show([heads, *rows])
    for line in left:
        say(f"Not timed: {line}")


if __name__ == "__main__":
    main()
