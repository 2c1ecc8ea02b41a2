"""What an edit costs beside training anew, and beside training anew in fewer epochs: all in one run, as ratios.

For each seed a network is trained, and forgets a class by every method of a grid file, in an order drawn anew, with
retrainings before, between and after; every time is divided by the mean of that seed's retrainings in full. Rows: the
median over seeds, and the range. Preparing is paid once a model, before any request; of `retrained in E epochs` and
`retrain` there is none. What a qualification costs is T models of the pool, as many retrained ones a kind of request,
and T edits: in units of one retraining it is about 2·T + T·(edit).

    python benchmarks/verdict_costs.py benchmarks/grids/digits.toml --data digits --request class=3 --fast 6 --fast 12
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from expunge import zoo
from expunge.bench import grid as grids
from expunge.method import Method
from expunge.methods import build, load
from expunge.originals import original
from expunge.runtime import Runtime
from expunge.trial import Request
from expunge.unlearn import prepare, unlearn
from expunge.zoo import Problem

QUIET = Runtime(progress=False, processes=1)


def main() -> None:
    """Time every method and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path, help="whose methods are timed")
    parser.add_argument("--data", required=True)
    parser.add_argument("--network", help="default the first of the grid")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--request", default="class=3")
    parser.add_argument("--fast", action="append", type=int, default=[], help="epochs of a row retrained in so many")
    parser.add_argument("--method", action="append", help="names in the grid; default all")
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    asked = grids.load(chosen.grid)
    network = chosen.network or next(iter(asked.file.networks or [zoo.network(chosen.data)]))
    problem = zoo.load(chosen.data, network, data_dir=chosen.data_dir, limit=chosen.limit)
    methods = {name: build(each) for name, each in asked.methods.items() if not chosen.method or name in chosen.method}
    rows = defaultdict[str, list[tuple[float, float]]](list)
    declined = dict[str, str]()
    for seed in range(chosen.seeds):
        _timed(problem, Request.parse(chosen.request), methods, chosen.fast, seed, rows, declined)
        print(f"seed {seed}", flush=True)
    print("\n| method | prepare/retraining | edit/retraining (range) |\n|---|---|---|")
    for name, found in sorted(rows.items(), key=lambda row: median(edit for _, edit in row[1])):
        edits = [edit for _, edit in found]
        ready = median(first for first, _ in found)
        print(f"| {name} | {ready:.3f} | {median(edits):.3f} ({min(edits):.3f} to {max(edits):.3f}) |")
    for name, why in declined.items():
        print(f"| {name} | declines: {why} | |")


def _timed(
    problem: Problem,
    request: Request,
    methods: dict[str, Method],
    fast: list[int],
    seed: int,
    rows: dict[str, list[tuple[float, float]]],
    declined: dict[str, str],
) -> None:
    """Put the times of one seed among the rows, in units of its own mean retraining."""
    first = original(problem, problem.train, runtime=QUIET, seed=seed)
    given: dict[str, Any] = {"original": first, "runtime": QUIET} if request.needs_original else {}
    scenario = request.draw(problem, seed, **given)[1]
    common: dict[str, Any] = {"holdout": problem.holdout, "new_model": problem.new_model, "seed": seed}
    common |= {"scenario": scenario, "runtime": QUIET}
    sets = {"forget": problem.train.subset(scenario.forget), "retain": problem.train.without(scenario.forget)}

    def seconds(method: Method, epochs: int | None = None) -> tuple[float, float]:
        recipe = problem.recipe
        if epochs is not None and recipe is not None:
            recipe = replace(recipe, epochs=epochs)
        ready = prepare(method, first, problem.task, train=problem.train, recipe=recipe, **common)
        done = unlearn(method, ready.model, problem.task, state=ready.state, recipe=recipe, **sets, **common)
        return ready.seconds, done.seconds

    retrain = load("retrain")()
    names = [*methods, *(f"retrained in {epochs} epochs" for epochs in fast)]
    order = np.random.default_rng(seed).permutation(len(names))
    whole, found = [seconds(retrain)[1]], dict[str, tuple[float, float]]()
    for place, at in enumerate(order):
        name = names[at]
        method = methods.get(name, retrain)
        if why := method.declines(problem.task, scenario, first):
            declined[name] = why
        else:
            found[name] = seconds(method, None if name in methods else fast[at - len(methods)])
        if place in (len(order) // 2, len(order) - 1):
            whole.append(seconds(retrain)[1])
    unit = mean(whole)
    rows["retrain"] += [(0.0, each / unit) for each in whole]
    for name, (ready, edit) in found.items():
        rows[name].append((ready / unit, edit / unit))


if __name__ == "__main__":
    main()
