"""Where does label-agnostic forgetting stop, where should it have, and what share of its time do its densities take?

Labels are read here to judge, never by the method. For each request and seed the method runs with its own stopping, and
again without it, ended after every tenth of its budget. D is the sum of the distances to a retrained network of two
accuracies: on what is to be forgotten (unseen samples of the classes where whole classes go, else the forget set, whose
wrong labels count as its labels) and on the rest of the test set. The best end is the one of least D, the start among
them. Printed: where it stopped, what it went back to, the best end, D at the start, at its end, at the best and after
the whole budget, and the rank correlation of both ends over all cases.

Shares of the time, of a preparation and an unlearning together: representations (the extraction passes), densities
(both fits), updates with looks, and the density of the retain set that the next state has.

    python benchmarks/laf.py --data digits --seeds 5
    python benchmarks/laf.py --data fashion_mnist --limit 3000 --tuned benchmarks/grids/tuned/digits/laf.json
"""

from __future__ import annotations

import argparse
import logging
import statistics
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import spearmanr
from torch import nn

from expunge import methods, zoo
from expunge.data import Data
from expunge.draws import Request
from expunge.evidence import collect
from expunge.files import read_document
from expunge.methods.laf import LAF
from expunge.originals import original
from expunge.runtime import Runtime
from expunge.unlearn import Unlearned, prepare, unlearn
from fisher import Setting, machine, say

QUIET = Runtime(progress=False, device="cpu")
REQUESTS = ("class=0", "classes=5+6+7+8+9,fraction=0.4", "mislabelled=0.3")
TENTHS = 10
PARTS = ("representations", "densities", "steps", "refit", "map")


class Case(NamedTuple):
    """One request on one original, with what a retrained network scores."""

    request: str
    seed: int
    model: nn.Module
    train: Data
    scenario: Any
    judged: tuple[Data, Data]
    goal: tuple[float, float]
    problem: zoo.Problem

    def distance(self, model: nn.Module) -> float:
        """Return D in points."""
        return 100 * sum(abs(a - b) for a, b in zip(scores(self.problem, model, self.judged), self.goal, strict=True))


def scores(problem: zoo.Problem, model: nn.Module, judged: tuple[Data, Data]) -> tuple[float, float]:
    """Return the accuracies on what is to be forgotten and on the rest."""
    found = [collect(model, problem.task, data, runtime=QUIET) for data in judged]
    first, second = (float((f.prediction == f.target).double().mean()) for f in found)
    return first, second


def cases(problem: zoo.Problem, requests: list[str], seeds: int) -> list[Case]:
    """Train an original and a retrained network for each request and seed."""
    found = []
    for text in requests:
        request = Request.parse(text)
        for seed in range(seeds):
            train, scenario = request.draw(problem, seed)
            model = original(problem, train, runtime=QUIET, seed=seed)
            retrained = original(problem, train.without(scenario.forget), runtime=QUIET, seed=seed)
            judged = train.subset(scenario.forget), problem.test
            if request.kind == "class":
                labels = problem.test.targets().tolist()
                own = [i for i, label in zip(problem.test.ids, labels, strict=True) if label == request.value]
                judged = problem.test.subset(own), problem.test.without(own)
            goal = scores(problem, retrained, judged)
            found.append(Case(text, seed, model, train, scenario, judged, goal, problem))
            say(f"{text}, seed {seed}: retrained scores {100 * goal[0]:.1f} and {100 * goal[1]:.1f}")
    return found


class Ran(NamedTuple):
    """What one run of the method left, with the seconds of its preparation."""

    done: Unlearned
    prepared: float


def ran(case: Case, method: LAF) -> Ran:
    """Prepare and unlearn."""
    ready = prepare(method, case.model, case.problem.task, train=case.train, runtime=QUIET, seed=case.seed)
    done = unlearn(
        method,
        ready.model,
        case.problem.task,
        forget=case.train.subset(case.scenario.forget),
        retain=case.train.without(case.scenario.forget),
        state=ready.state,
        scenario=case.scenario,
        runtime=QUIET,
        seed=case.seed,
    )
    return Ran(done, ready.seconds)


def stopping(case: Case, method: LAF) -> list[str]:
    """Return a row of the first table, and keep what the second needs."""
    own = ran(case, method)
    log = own.done.log
    ended = log.get("rolled_back_to", log["steps"])
    every = {0: case.distance(case.model)}
    for tenth in range(1, TENTHS + 1):
        updates = max(1, method.updates * tenth // TENTHS)
        every[updates] = case.distance(ran(case, replace(method, updates=updates, early=False)).done.model)
    best = min(every, key=lambda at: (every[at], at))
    told = [every[0], case.distance(own.done.model), every[best], every[method.updates]]
    why = {"flat": "stood still", "retain": "retain samples", "budget": "budget"}.get(log["stopped"], log["stopped"])
    steps = [log["steps"], ended, best]
    return [case.request, str(case.seed), why, *map(str, steps), *(f"{d:.1f}" for d in told)]


def shares(case: Case, method: LAF) -> dict[str, float]:
    """Return the parts of the time of a preparation and an unlearning together."""
    own = ran(case, method)
    total = own.prepared + own.done.seconds
    parts = {"preparation": own.prepared} | {name: own.done.log["part_seconds"].get(name, 0.0) for name in PARTS}
    return {name: value / total for name, value in parts.items()}


def table(heads: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    print("| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), sep="\n")
    print(*("| " + " | ".join(row) + " |" for row in rows), sep="\n", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="a named data set")
    parser.add_argument("--network", help="a named network; unset, the data set's own")
    parser.add_argument("--limit", type=int, help="training samples")
    parser.add_argument("--requests", nargs="+", default=list(REQUESTS), help="as in a grid file")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tuned", type=Path, help="what expunge tune found for laf; unset, the defaults")
    parser.add_argument("--costs-only", action="store_true", help="shares of the time alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("expunge").setLevel(logging.ERROR)
    found = methods.build(read_document(args.tuned, "expunge.tuned", 1)["method"]) if args.tuned else LAF()
    if not isinstance(found, LAF):
        parser.error(f"{args.tuned} holds settings of {found.name}, not of laf")
    problem = zoo.load(args.data, args.network, limit=args.limit)
    say(
        f"{machine(Setting(device='cpu', threads=1, precision='full'))}; {problem.name}, {len(problem.train):,} samples"
    )
    all_cases = cases(problem, args.requests, args.seeds)
    if not args.costs_only:
        rows = []
        for case in all_cases:
            rows.append(stopping(case, found))
            say(" | ".join(rows[-1]))
        heads = [
            "request",
            "seed",
            "ended by",
            "updates",
            "weights of",
            "best",
            "D: start",
            "its end",
            "best",
            "budget",
        ]
        table(heads, rows)
        ends, best = [int(row[4]) for row in rows], [int(row[5]) for row in rows]
        told = f"rank correlation of its end and the best, over {len(rows)} cases"
        alike = len(set(ends)) == 1 or len(set(best)) == 1
        print(f"\n{told}: {'none, one is always the same' if alike else f'{spearmanr(ends, best).statistic:.2f}'}\n")
    parts = []
    for request, group in groupby(all_cases, key=lambda c: c.request):
        each = [shares(case, replace(found, early=False)) for case in group]
        parts.append([request, *(f"{100 * statistics.median(s[n] for s in each):.1f}" for n in each[0])])
    table(["request", "preparation, %", *(f"{name}, %" for name in PARTS)], parts)


if __name__ == "__main__":
    main()
