"""Which α should dampening take when nobody tunes it? Pass rates of a grid of rules on several data sets, networks.

For every class (and for 5 % random and 5 % mislabelled samples) and seed: train, prepare once, retrain twice, then
apply the method under each rule. A class case passes when accuracy on unseen samples of the class is at most 5 % and
accuracy on the rest is within 3 points of retrained. The two other kinds report distances to retrained.

    python benchmarks/ssd_alpha.py --data digits --network convnet --seeds 5
    python benchmarks/ssd_alpha.py --data cifar10 --data-dir FOLDER --limit 6000 --seeds 2
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from expunge import zoo
from expunge.data import Data
from expunge.evidence import collect
from expunge.fisher import diagonals
from expunge.methods import load
from expunge.runtime import Runtime
from expunge.scenario import forget_class, forget_ids, forget_random
from expunge.train import fit, fresh
from expunge.unlearn import prepare, unlearn
from expunge.zoo.embedded import mislabelled

QUIET = Runtime(progress=False, device="cpu")
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
TOPS = (0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12)
FIXED = (2.0, 3.0, 4.0, 5.0, 6.0, 10.0)
BOTH = tuple((c, q) for c in (0.2, 0.3, 0.4) for q in (0.03, 0.04, 0.06))


def train(p: zoo.Problem, data: Data, seed: int) -> torch.nn.Module:
    start = fresh(p.new_model(), new_model=p.new_model, seed=seed)
    return fit(start, p.task, data, p.recipe, runtime=QUIET, seed=seed)


def accuracy(p: zoo.Problem, model: torch.nn.Module, data: Data) -> float:
    found = collect(model, p.task, data, runtime=QUIET)
    return float((found.prediction == found.target).double().mean())


def rules(p: zoo.Problem, model: torch.nn.Module, data: Data, forget: list[str], of: str) -> dict[str, float]:
    """Return α by rule: shares of the bound n/n_f, fixed values, upper quantiles, and the larger of two."""
    found = diagonals(model, p.task, data, groups={"forget": forget}, of=of, runtime=QUIET)
    i_f = torch.cat([v.flatten() for v in found["forget"].values.values()])
    i_d = torch.cat([v.flatten() for v in found["all"].values.values()])
    ratio = torch.where(i_d > 0, i_f / i_d.clamp_min(1e-300), torch.zeros(())).numpy()
    bound = len(data) / len(forget)
    out = {f"share {c:g}": c * bound for c in SHARES}
    out |= {f"fixed {a:g}": a for a in FIXED}
    top = {q: float(np.quantile(ratio, 1 - q)) for q in {*TOPS, *(q for _, q in BOTH)}}
    out |= {f"top {q:g}": top[q] for q in TOPS}
    return out | {f"share {c:g}, at most top {q:g}": max(c * bound, top[q]) for c, q in BOTH}


def case(p: zoo.Problem, name: str, kind: str, label: int, seed: int) -> list[dict[str, object]]:
    data, build = p.train, {"class": lambda: forget_class(p.train, label), "random": None, "mislabelled": None}[kind]
    if kind == "mislabelled":
        data, ids = mislabelled(p.train, 0.05, classes=len(p.classes), seed=seed)
        scenario = forget_ids(data, ids)
    else:
        scenario = build() if build else forget_random(data, 0.05, seed=seed)
    original = train(p, data, seed)
    retrained = [train(p, data.without(scenario.forget), seed + 1000 * k) for k in range(2)]
    labels = p.test.targets().tolist()
    unseen = p.test.subset([i for i, y in zip(p.test.ids, labels, strict=True) if y == label])
    rest = p.test.without(unseen.ids) if kind == "class" else p.test
    forgotten = unseen if kind == "class" else data.subset(scenario.forget)
    want = [(accuracy(p, m, forgotten), accuracy(p, m, rest)) for m in retrained]
    ready = prepare(load(name)(), original, p.task, train=data, runtime=QUIET)
    rows = []
    for rule, alpha in rules(p, original, data, list(scenario.forget), load(name)().of).items():
        method = replace(load(name)(), alpha=alpha)
        forget = data.subset(scenario.forget)
        done = unlearn(method, ready.model, p.task, forget=forget, state=ready.state, runtime=QUIET)
        a_f, a_r = accuracy(p, done.model, forgotten), accuracy(p, done.model, rest)
        rows.append(
            {
                "method": name,
                "data": p.name,
                "network": p.network,
                "kind": kind,
                "label": label,
                "seed": seed,
                "bound": len(data) / len(scenario.forget),
                "rule": rule,
                "alpha": alpha,
                "selected": done.log["selected"],
                "forget": a_f,
                "rest": a_r,
                "retrained_forget": want[0][0],
                "retrained_rest": want[0][1],
                "floor_forget": abs(want[0][0] - want[1][0]),
                "floor_rest": abs(want[0][1] - want[1][1]),
                "original_forget": accuracy(p, original, forgotten),
                "passed": a_f <= 0.05 and abs(a_r - want[0][1]) <= 0.03,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", choices=[d for d in zoo.datasets() if d != "diabetes"])
    parser.add_argument("--data-dir", type=Path, help="folder of data sets; default EXPUNGE_DATA, then the Hub")
    parser.add_argument("--method", default="ssd", choices=["ssd", "lfssd"])
    parser.add_argument("--network", help="default the data set's own")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=6000)
    parser.add_argument("--output", type=Path, help="JSON lines, appended")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("expunge").setLevel(logging.ERROR)  # rules beyond the bound are part of the grid
    p = zoo.load(args.data, args.network, data_dir=args.data_dir, limit=args.limit)
    rows = []
    for seed in range(args.seeds):
        for kind, label in [*(("class", c) for c in range(len(p.classes))), ("random", -1), ("mislabelled", -1)]:
            found = case(p, args.method, kind, label, seed)
            rows += found
            print(f"{args.method} {p.name} {p.network} {kind} {label} seed {seed}: ", end="")
            print(sum(bool(r["passed"]) for r in found), "of", len(found), "rules pass", flush=True)
            if args.output:
                with args.output.open("a") as out:
                    out.writelines(json.dumps(r) + "\n" for r in found)
    by = defaultdict(list)
    for row in rows:
        by[row["rule"], row["kind"]].append(row)
    print("| rule | class: passed | rest − retrained | random: forget, rest | mislabelled: forget, rest | selected |")
    print("|---|---|---|---|---|---|")
    for rule in dict.fromkeys(r["rule"] for r in rows):
        cells = [rule]
        group = by[rule, "class"]
        cells.append(f"{sum(r['passed'] for r in group)} of {len(group)}")
        cells.append(f"{100 * np.mean([r['rest'] - r['retrained_rest'] for r in group]):+.1f}")
        for kind in ("random", "mislabelled"):
            g = by[rule, kind]
            gaps = [100 * np.mean([r[k] - r[f"retrained_{k}"] for r in g]) for k in ("forget", "rest")]
            cells.append(f"{gaps[0]:+.1f}, {gaps[1]:+.1f}")
        cells.append(f"{100 * np.mean([r['selected'] for r in group]):.1f} %")
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
