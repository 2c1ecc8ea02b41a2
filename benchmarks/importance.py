"""The exact per-sample importance against the published batch-mean one, in SSD and LFSSD, forgetting a class.

For every seed and class: train the original and two retrained networks, compute each importance once, and dampen at
every setting. The batch-mean importance is taken at several batch sizes, with the training set in three orders:
``shuffled`` (by the seed), ``label`` (sorted by class), ``last`` (sorted, the class to forget last, as published).
Settings: the share of weights selected (the α that selects at most that share), α itself, and α as a multiple of
n/n_f; at each share also λ = 0, which asks whether the choice of weights or the strength of the dampening decides.

A case passes when accuracy on unseen samples of the class is at most 5 % and accuracy on the rest of the test set is
within 3 points of retrained. One line of the output is one finished case; a run that is started again goes on.

    python benchmarks/importance.py run --data digits --network convnet --seeds 10 --classes 10 --output out.jsonl
    python benchmarks/importance.py run --data cifar10 --data-dir FOLDER --limit 5000 --classes 1 --output out.jsonl
    python benchmarks/importance.py table out.jsonl
    python benchmarks/importance.py plot out.jsonl --folder docs/results
"""

from __future__ import annotations

import argparse
import copy
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot
from torch import Tensor, nn

from expunge import stats, zoo
from expunge.data import Batch, Data
from expunge.files import digest
from expunge.fisher import Diagonal, Quantity, diagonal, diagonals
from expunge.methods._dampen import dampen, ratio_above
from expunge.runtime import Runtime
from expunge.scenario import forget_class
from expunge.seeds import seed as named_seed
from expunge.tensors import parameters
from expunge.train import fit, fresh

matplotlib.use("svg")
QUIET = Runtime(progress=False, device="cpu")
METHODS: dict[str, tuple[Quantity, Quantity]] = {
    "ssd": ("loss", "batch_mean"),
    "lfssd": ("output_norm", "batch_mean_norm"),
}
BATCHES = (16, 64, 256)
ORDERS = ("shuffled", "label", "last")
SHARES = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12)
SOURCES = ("exact", *(f"{order} {size}" for order in ORDERS for size in BATCHES))
LINES = {"exact": "black", "last 64": "#d62728", "label 64": "#1f77b4", "shuffled 64": "#2ca02c"}
ALPHAS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0)
BOUNDS = (0.2, 0.3, 0.4, 0.5, 0.6)
TESTED = 1000  # test samples that every setting is scored on
GRID = digest(METHODS, BATCHES, ORDERS, SHARES, ALPHAS, BOUNDS, TESTED)[:12]
Case = dict[str, Any]


def train(p: zoo.Problem, data: Data, seed: int) -> nn.Module:
    start = fresh(p.new_model(), new_model=p.new_model, seed=seed)
    return fit(start, p.task, data, p.recipe, runtime=QUIET, seed=seed).eval()


def scores(p: zoo.Problem, model: nn.Module, test: Batch, label: int) -> tuple[float, float]:
    """Return the accuracy on test samples of the class, and on the others."""
    with torch.inference_mode():
        parts = [test.part(slice(i, i + 250)) for i in range(0, len(test), 250)]
        right = torch.cat([p.task.forward(model, b)[0].argmax(1) for b in parts]) == test.target
    of_class = test.target == label
    return float(right[of_class].double().mean()), float(right[~of_class].double().mean())


def ordered(data: Data, forget: set[str], order: str, seed: int) -> Data:
    """Return the training set in one of the orders."""
    rows = np.random.default_rng(named_seed("importance", seed)).permutation(len(data))
    if order != "shuffled":
        ids, labels = data.ids, data.targets().numpy()
        last = [order == "last" and i in forget for i in ids]
        rows = np.lexsort((np.arange(len(data)), labels, last))
    return replace(data, positions=data.positions[rows])


def importances(
    p: zoo.Problem, model: nn.Module, data: Data, forget: list[str], seed: int
) -> Iterator[tuple[str, str, Diagonal, Diagonal]]:
    """Yield method, estimator, the training set's importance and the forget set's."""
    gone = set(forget)
    for method, (exact, mean) in METHODS.items():
        found = diagonals(model, p.task, data, groups={"forget": forget}, of=exact, runtime=QUIET)
        yield method, "exact", found["all"], found["forget"]
        for order in ORDERS:
            train = ordered(data, gone, order, seed)
            part = train.subset([i for i in train.ids if i in gone])
            for size in BATCHES:
                runtime = replace(QUIET, batch_size=size)
                whole, own = (diagonal(model, p.task, d, of=mean, runtime=runtime) for d in (train, part))
                yield method, f"{order} {size}", whole, own


def settings(forget: Diagonal, whole: Diagonal, bound: float) -> Iterator[tuple[str, float, float, float]]:
    """Yield sweep, its value, α and λ."""
    for share in SHARES:
        alpha = ratio_above(forget, whole, share)
        yield "share", share, alpha, 1.0
        yield "prune", share, alpha, 0.0
    yield from (("alpha", alpha, alpha, 1.0) for alpha in ALPHAS)
    yield from (("bound", share, share * bound, 1.0) for share in BOUNDS)


def estimator(
    p: zoo.Problem, model: nn.Module, test: Batch, label: int, found: tuple[Diagonal, Diagonal], n: tuple[int, int]
) -> tuple[dict[str, Any], Tensor]:
    """Return the outcome of every setting under one importance, and which weights are among the first 4 %."""
    whole, forget = found
    names = parameters(model)
    theta, i_d, i_f = (
        torch.cat([source[k].detach().flatten() for k in names]) for source in (names, whole.values, forget.values)
    )
    ratio = torch.where(i_d > 0, i_f / i_d.clamp_min(1e-300), torch.zeros(()))
    trial, rows, bound = copy.deepcopy(model), [], n[0] / n[1]
    before = scores(p, model, test, label)
    for sweep, value, alpha, shrink in settings(forget, whole, bound):
        # As the method has it: at the bound only rounding would decide, so an exact ratio there is not selected.
        cut = float("inf") if whole.of in ("loss", "output_norm") and alpha >= bound else alpha
        new, count = dampen(theta, i_f, i_d, cut, shrink)
        after = before
        if count.changed:
            nn.utils.vector_to_parameters(new, list(parameters(trial).values()))
            after = scores(p, trial, test, label)
        rows.append([sweep, value, alpha, count.selected / count.size, count.changed / count.size, *after])
    extra = {"largest": float(ratio.max()), "unseen": int(((i_d == 0) & (i_f > 0)).sum()), "rows": rows}
    return extra, ratio > ratio_above(forget, whole, 0.04)


def case(p: zoo.Problem, original: nn.Module, label: int, seed: int) -> Case:
    """Return one finished case: a class forgotten at every setting under every importance."""
    forget = list(forget_class(p.train, label).forget)
    again = [train(p, p.train.without(forget), seed + 1000 * k) for k in range(2)]
    test = p.test.read(range(min(TESTED, len(p.test))))
    found: Case = {"bound": len(p.train) / len(forget), "original": scores(p, original, test, label)}
    found["retrained"] = [scores(p, m, test, label) for m in again]
    chosen: dict[str, Tensor] = {}
    for method, name, whole, own in importances(p, original, p.train, forget, seed):
        counts = len(p.train), len(forget)
        found[f"{method} {name}"], mask = estimator(p, original, test, label, (whole, own), counts)
        exact = chosen.setdefault(method, mask)
        found[f"{method} {name}"]["shared"] = float((mask & exact).sum() / (mask | exact).sum())
    return found


def one_seed(job: tuple[dict[str, Any], Path | None, list[int]]) -> list[Case]:
    """Return the cases of one seed, which share the original."""
    torch.set_num_threads(1)
    about, folder, labels = job
    p = zoo.load(about["data"], about["network"], data_dir=folder, limit=about["limit"])
    original = train(p, p.train, about["seed"])
    return [{**about, "label": label} | case(p, original, label, about["seed"]) for label in labels]


def read(path: Path) -> list[Case]:
    """Return the finished cases; a line that was cut off is none."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def run(args: argparse.Namespace) -> None:
    problem = zoo.load(args.data, args.network, data_dir=args.data_dir, limit=args.limit)
    classes, network = len(problem.classes), problem.network
    done = {(c["data"], c["network"], c["limit"], c["grid"], c["seed"], c["label"]) for c in read(args.output)}
    jobs = []
    for seed in range(args.seeds):
        about = {"data": args.data, "network": network, "limit": args.limit, "grid": GRID, "seed": seed}
        labels = [(seed * args.classes + k) % classes for k in range(args.classes)]
        labels = [label for label in labels if (*about.values(), label) not in done]
        if labels:
            jobs.append((about, args.data_dir, labels))
    if args.output.exists() and not args.output.read_bytes().endswith(b"\n"):
        args.output.open("a").write("\n")  # so that the next line is none with one that was cut off
    with get_context("spawn").Pool(args.workers) as pool, args.output.open("a") as out:
        for cases in pool.imap_unordered(one_seed, jobs):
            for found in cases:
                out.write(json.dumps(found) + "\n")
            out.flush()
            print(f"{args.data} {network} seed {cases[0]['seed']}: {len(cases)} classes", flush=True)


# Tables and figures: a case is a class of a seed; means are first taken over the classes of a seed.


def grouped(files: list[Path]) -> dict[str, list[Case]]:
    """Return the cases by data set and network, each once."""
    found: dict[str, dict[tuple[int, int], Case]] = {}
    for one in (c for path in files for c in read(path) if c["grid"] == GRID):
        found.setdefault(f"{one['data']}, {one['network']}", {})[one["seed"], one["label"]] = one
    return {name: list(cases.values()) for name, cases in found.items()}


def outcome(one: Case, source: str, sweep: str, value: float) -> list[float]:
    """Return α, shares selected and changed, accuracy on the class and on the rest, of one setting."""
    return next(r[2:] for r in one[source]["rows"] if r[0] == sweep and r[1] == value)


def auto(one: Case, source: str, bound: float | None, share: float) -> list[float]:
    """Return the outcome of the larger α of two rules: a share of n/n_f, and a share of the weights."""
    two = [outcome(one, source, "share", share)]
    return max(two if bound is None else [*two, outcome(one, source, "bound", bound)])


def passed(one: Case, found: list[float]) -> bool:
    return found[3] <= 0.05 and abs(found[4] - one["retrained"][0][1]) <= 0.03


def by_seed(cases: list[Case], value: Callable[[Case], float]) -> stats.Interval:
    """Return the mean with its t interval over seeds."""
    seeds: dict[int, list[float]] = defaultdict(list)
    for one in cases:
        seeds[one["seed"]].append(value(one))
    return stats.mean_t([float(np.mean(v)) for v in seeds.values()])


def row(*cells: object) -> None:
    print("| " + " | ".join(str(c) for c in cells) + " |")


def head(title: str, *cells: str) -> None:
    print(f"\n{title}\n")
    row(*cells)
    print("|" + "---|" * len(cells))


def points(i: stats.Interval) -> str:
    """Return an interval in per cent or points."""
    return f"{100 * i.x:.1f} ({100 * i.low:.1f} to {100 * i.high:.1f})"


def tables(found: dict[str, list[Case]]) -> None:
    """Print every table as Markdown."""
    for name, cases in found.items():
        bounds = sorted({round(c["bound"], 1) for c in cases})
        before, floor, class_before, again = (
            points(by_seed(cases, value))
            for value in (
                lambda c: c["original"][1],
                lambda c: abs(c["retrained"][0][1] - c["retrained"][1][1]),
                lambda c: c["original"][0],
                lambda c: float(passed(c, [0, 0, 0, *c["retrained"][1]])),
            )
        )
        seeds = f"{len(cases)} cases, {len({c['seed'] for c in cases})} seeds"
        print(f"\n## {name}: {seeds}, n/n_f {bounds[0]:g} to {bounds[-1]:g}\n")
        print(
            f"Accuracy of the original: {before} on the rest, {class_before} on the class. The second retrained network"
        )
        print(f"differs from the first by {floor} points on the rest; {again} % of them would pass.")
        for method in METHODS:
            title = f"{method.upper()}, {name}"
            by_share(title, method, cases)
            by_alpha(title, method, cases)
            at_share(title, method, cases)
            by_rule(title, method, cases)
    chosen(found)


def count(cases: list[Case], source: str, sweep: str, value: float) -> int:
    return sum(passed(c, outcome(c, source, sweep, value)) for c in cases)


def by_share(title: str, method: str, cases: list[Case]) -> None:
    text = f"**{title}: passed of {len(cases)}, by share of weights selected** (last rows: those set to 0, λ = 0)"
    head(text, "importance", *(f"{100 * v:g} %" for v in SHARES))
    for source in SOURCES:
        row(source, *(count(cases, f"{method} {source}", "share", v) for v in SHARES))
    for source in LINES:
        row(f"{source}, λ = 0", *(count(cases, f"{method} {source}", "prune", v) for v in SHARES))


def by_alpha(title: str, method: str, cases: list[Case]) -> None:
    head(f"**{title}: passed of {len(cases)}, by α**", "importance", *(f"{v:g}" for v in ALPHAS))
    for source in LINES:
        row(source, *(count(cases, f"{method} {source}", "alpha", v) for v in ALPHAS))


def at_share(title: str, method: str, cases: list[Case], share: float = 0.04) -> None:
    """Print one share with intervals, and each importance beside the exact one, case by case.

    ``ratio`` is the median over cases of the largest I_f/I_D as a multiple of n/n_f; ``in common`` is how many of the
    weights that either selects both select.
    """
    columns = (
        "passed, % (Wilson)",
        "class",
        "rest − retrained",
        "only exact",
        "only this",
        "largest ratio",
        "in common",
    )
    head(f"**{title}: at {100 * share:g} %, in points, 95 % t intervals over seeds**", "importance", *columns)
    ours = [passed(c, outcome(c, f"{method} exact", "share", share)) for c in cases]
    for source in SOURCES:
        key = f"{method} {source}"
        at = {id(c): outcome(c, key, "share", share) for c in cases}
        theirs = [passed(c, at[id(c)]) for c in cases]
        row(
            source,
            points(stats.wilson(sum(theirs), len(cases))),
            points(by_seed(cases, lambda c, at=at: at[id(c)][3])),
            points(by_seed(cases, lambda c, at=at: at[id(c)][4] - c["retrained"][0][1])),
            sum(a and not b for a, b in zip(ours, theirs, strict=True)),
            sum(b and not a for a, b in zip(ours, theirs, strict=True)),
            f"{np.median([c[key]['largest'] / c['bound'] for c in cases]):.2g}",
            f"{100 * np.mean([c[key]['shared'] for c in cases]):.0f} %",
        )


def by_rule(title: str, method: str, cases: list[Case]) -> None:
    """Print the rule of ``alpha="auto"`` for the exact importance, with other constants."""
    text = f"**{title}, exact: passed of {len(cases)}, by rule α = max(c·n/n_f, what selects q)**"
    head(text, "c", *(f"q = {100 * v:g} %" for v in SHARES))
    for bound in (None, *BOUNDS):
        each = [sum(passed(c, auto(c, f"{method} exact", bound, v)) for c in cases) for v in SHARES]
        row("none" if bound is None else bound, *each)


def chosen(found: dict[str, list[Case]]) -> None:
    """Print what each importance passes elsewhere at the share and at the α that pass most on digits."""
    digits = [c for name, cases in found.items() if name.startswith("digits") for c in cases]
    others = {name: cases for name, cases in found.items() if not name.startswith("digits")}
    if not digits or not others:
        return
    print("\n## Tuned on digits, both networks together")
    for method in METHODS:
        text = f"**{method.upper()}: the share and the α that pass most on digits, and what they pass elsewhere**"
        columns = [f"{name} ({sweep})" for sweep in ("share", "α") for name in others]
        head(text, "importance", "share", "α", *columns)
        for source in SOURCES:
            key = f"{method} {source}"
            best = {
                sweep: max(values, key=lambda v, key=key, sweep=sweep: count(digits, key, sweep, v))
                for sweep, values in (("share", SHARES), ("alpha", ALPHAS))
            }
            each = [f"{count(c, key, s, v)} of {len(c)}" for s, v in best.items() for c in others.values()]
            row(source, f"{100 * best['share']:g} %", f"{best['alpha']:g}", *each)


def band(axes: Any, x: Sequence[float], found: list[stats.Interval], **look: Any) -> None:
    """Draw a curve with its intervals."""
    axes.plot(x, [100 * i.x for i in found], linewidth=1.2, **look)
    low, high = [100 * i.low for i in found], [100 * i.high for i in found]
    axes.fill_between(x, low, high, color=look["color"], alpha=0.12, linewidth=0)


def grid(rows: list[str], columns: Sequence[str]) -> tuple[Any, Any]:
    """Return a figure with a row a data set; titles above its columns."""
    size = (max(3 * len(columns), 7), 2.2 * len(rows) + 0.5)
    figure, axes = pyplot.subplots(len(rows), len(columns), figsize=size, squeeze=False, sharex="col")
    for at, name in enumerate(rows):
        axes[at][0].set_ylabel(name.replace(", ", "\n"))
    for at, name in enumerate(columns):
        axes[0][at].set_title(name, fontsize=9)
    return figure, axes


def label(axes: Any, sweep: str, **look: Any) -> None:
    """Label the axis of a sweep, with the values that are there."""
    ticks = (0.005, 0.01, 0.02, 0.04, 0.08, 0.12) if sweep == "share" else (1, 2, 5, 10, 20, 50, 100)
    axes.set(xscale="log", **look)
    if axes.get_subplotspec().is_last_row():
        axes.set_xlabel("weights selected, %" if sweep == "share" else "α")
    axes.set_xticks(ticks, [f"{100 * v:g}" if sweep == "share" else f"{v:g}" for v in ticks])
    axes.minorticks_off()


def save(figure: Any, path: Path) -> None:
    """Write the figure with one legend below it, its coordinates to a hundredth of a point."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.5 / figure.get_figheight(), 1, 1))
    figure.legend(handles, names, loc="lower center", ncol=min(5, len(names)), frameon=False)
    figure.savefig(path, metadata={"Date": None})
    lean = re.sub(r"(\d\.\d\d)\d+", r"\1", re.sub(r"<!--.*?-->|\n *", "\n", path.read_text(encoding="utf-8")))
    path.write_text(re.sub(r"\n+", "\n", lean), encoding="utf-8")
    pyplot.close(figure)
    print(path)


def plots(found: dict[str, list[Case]], folder: Path) -> None:
    """Write the three figures, the same bytes from the same cases."""
    pyplot.rcParams.update({"svg.hashsalt": "importance", "svg.fonttype": "none", "font.size": 8})
    folder.mkdir(parents=True, exist_ok=True)
    plot_passed(found, folder / "importance-passed.svg")
    plot_gaps(found, folder / "importance-gaps.svg")
    plot_batches(found, folder / "importance-batches.svg")


def plot_passed(found: dict[str, list[Case]], path: Path) -> None:
    """Draw pass rates over shares and over α, with Wilson intervals."""
    places = [(method, sweep, values) for method in METHODS for sweep, values in (("share", SHARES), ("alpha", ALPHAS))]
    figure, axes = grid(list(found), [f"{method.upper()}: cases passed, %" for method, *_ in places])
    for at, cases in enumerate(found.values()):
        for place, (method, sweep, values) in zip(axes[at], places, strict=True):
            for line, color in LINES.items():
                rates = [stats.wilson(count(cases, f"{method} {line}", sweep, v), len(cases)) for v in values]
                band(place, values, rates, color=color, label=line)
            label(place, sweep, ylim=(-3, 103))
    save(figure, path)


def plot_gaps(found: dict[str, list[Case]], path: Path) -> None:
    """Draw accuracies over shares, with t intervals over seeds."""
    places = [(method, of) for method in METHODS for of in (3, 4)]
    titles = {3: "class, %", 4: "rest − retrained, points"}
    figure, axes = grid(list(found), [f"{method.upper()}: {titles[of]}" for method, of in places])
    for at, cases in enumerate(found.values()):
        for place, (method, of) in zip(axes[at], places, strict=True):
            for line, color in LINES.items():
                each = [by_seed(cases, partial(gap, f"{method} {line}", v, of)) for v in SHARES]
                band(place, SHARES, each, color=color, label=line)
            label(place, "share")
            place.axhline(5 if of == 3 else -3, color="grey", linewidth=0.6, linestyle=":")
    save(figure, path)


def gap(source: str, share: float, of: int, one: Case) -> float:
    """Return accuracy on the class, or the difference to retrained on the rest."""
    return outcome(one, source, "share", share)[of] - (one["retrained"][0][1] if of == 4 else 0.0)


def plot_batches(found: dict[str, list[Case]], path: Path) -> None:
    """Draw pass rates over shares for every batch size and order."""
    looks = {"exact": ("black", "-")} | {
        f"{order} {size}": (LINES[f"{order} 64"], style)
        for order in reversed(ORDERS)
        for size, style in zip(BATCHES, (":", "-", "--"), strict=True)
    }
    figure, axes = grid(list(found), [f"{method.upper()}: cases passed, %" for method in METHODS])
    for at, cases in enumerate(found.values()):
        for place, method in zip(axes[at], METHODS, strict=True):
            for line, (color, style) in looks.items():
                each = [100 * count(cases, f"{method} {line}", "share", v) / len(cases) for v in SHARES]
                place.plot(SHARES, each, color=color, linestyle=style, linewidth=1, label=line)
            label(place, "share", ylim=(-3, 103))
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    go = steps.add_parser("run", help="train, measure, append a line a case")
    go.add_argument("--data", default="digits", choices=[d for d in zoo.datasets() if d != "diabetes"])
    go.add_argument("--data-dir", type=Path, help="folder of data sets; default EXPUNGE_DATA, then the Hub")
    go.add_argument("--network", help="default the data set's own")
    go.add_argument("--limit", type=int, help="training samples; default all")
    go.add_argument("--seeds", type=int, default=10)
    go.add_argument("--classes", type=int, default=1, help="classes a seed, the next seed going on where one ends")
    go.add_argument("--workers", type=int, default=1)
    go.add_argument("--output", type=Path, required=True, help="JSON lines, appended")
    for name, text in (("table", "print Markdown"), ("plot", "write three SVG figures")):
        step = steps.add_parser(name, help=text)
        step.add_argument("files", type=Path, nargs="+")
    step.add_argument("--folder", type=Path, default=Path("docs/results"))
    args = parser.parse_args()
    if args.step == "run":
        run(args)
        return
    found = grouped(args.files)
    if args.step == "table":
        tables(found)
    else:
        plots(found, args.folder)


if __name__ == "__main__":
    main()
