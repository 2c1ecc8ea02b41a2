"""Does unlearning come closer to retraining on a sparse network? The average gap over sparsities, from a grid's store.

Reads what `expunge bench run` left for `benchmarks/grids/sparsity.toml`, whose methods are named METHOD SPARSITY, such
as ``finetune 95``: `Pruned` with that method, at that percentage. Each is compared with ``retrain`` at the same
sparsity and seed, the sparse retrained network. The average gap is the mean over UA (errors on the forget set), RA
(accuracy on the retain set), TA (on the test set; of a class request without that class) and MIA-efficacy of
|method − retrain|, in points, seed by seed; then its mean over seeds with a 95 % t interval.

    expunge bench run benchmarks/grids/sparsity.toml --workers 2
    python benchmarks/sparsity.py --plot docs/results/sparsity.svg
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from expunge import stats
from expunge.bench.collect import Group, groups
from expunge.bench.grid import load
from expunge.bench.store import Store
from expunge.metric import Value
from fisher import show

GRID = Path(__file__).parent / "grids" / "sparsity.toml"
NUMBERS = ("accuracy/forget", "accuracy/retain", ("accuracy/test_retain", "accuracy/test"), "membership/svc")
TRUTH = "retrain"
matplotlib.rcParams["svg.hashsalt"] = "expunge"  # the same figure gives the same bytes


def number(found: Mapping[str, object], names: str | Sequence[str]) -> float | None:
    """Return the first of some numbers that was measured."""
    for name in (names,) if isinstance(names, str) else names:
        value = found.get(name)
        if isinstance(value, Value):
            return value.x
    return None


def gaps(group: Group, method: str, sparsity: str) -> list[float]:
    """Return the average gap of each seed, in points."""
    out = []
    for seed in sorted(group.runs):
        values = group.runs[seed].values
        if f"{method} {sparsity}" not in values or f"{TRUTH} {sparsity}" not in values:
            continue
        own, truth = (values[f"{name} {sparsity}"] for name in (method, TRUTH))
        pairs = [(number(own, names), number(truth, names)) for names in NUMBERS]
        sizes = [100 * abs(a - b) for a, b in pairs if a is not None and b is not None]
        if len(sizes) == len(NUMBERS):
            out.append(sum(sizes) / len(sizes))
    return out


def table(group: Group, methods: Sequence[str], sparsities: Sequence[str]) -> list[list[str]]:
    """Return rows: a method, its mean gap at each sparsity, and how much less the gap is at 95 % than dense, paired."""
    lines = []
    for method in methods:
        cells = []
        for sparsity in sparsities:
            found = gaps(group, method, sparsity)
            mean = stats.mean_t(found) if found else None
            cells.append("–" if mean is None else f"{mean.x:.1f} ± {mean.high - mean.x:.1f}")
        dense, sparse = gaps(group, method, sparsities[0]), gaps(group, method, "95")
        change = "–"
        if len(dense) == len(sparse) > 1:
            paired = stats.mean_t([b - a for a, b in zip(dense, sparse, strict=True)])
            change = f"{paired.x:+.1f} ({paired.low:+.1f} to {paired.high:+.1f})"
        lines.append([method, *cells, change])
    return lines


def truths(group: Group, sparsities: Sequence[str]) -> list[str]:
    """Return the test accuracy of the sparse retrained network at each sparsity: what sparsity itself costs."""
    cells = []
    for sparsity in sparsities:
        runs = [run.values.get(f"{TRUTH} {sparsity}", {}) for run in group.runs.values()]
        found = [100 * x for run in runs if (x := number(run, "accuracy/test")) is not None]
        mean = stats.mean_t(found) if found else None
        cells.append("–" if mean is None else f"{mean.x:.1f} ± {mean.high - mean.x:.1f}")
    return ["test accuracy of retrain", *cells, ""]


def plot(found: Sequence[Group], methods: Sequence[str], sparsities: Sequence[str], path: Path) -> None:
    """Draw the average gap over the sparsity, a panel a request, with 95 % t intervals."""
    figure = Figure(figsize=(4.6 * len(found), 3.6), layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for axis, group in zip(axes, found, strict=True):
        for at, method in enumerate(methods):
            means = [stats.mean_t(g) if (g := gaps(group, method, s)) else None for s in sparsities]
            places = [i + 0.06 * (at - len(methods) / 2) for i, mean in enumerate(means) if mean is not None]
            there = [mean for mean in means if mean is not None]
            halves = [mean.high - mean.x for mean in there]
            axis.errorbar(places, [mean.x for mean in there], halves, marker="o", ms=3, lw=1.2, capsize=2, label=method)
        axis.set_xticks(range(len(sparsities)), [f"{s} %" for s in sparsities])
        axis.set(title=str(group.place.scenario), xlabel="sparsity", ylabel="average gap to sparse retrained, points")
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Print the tables, and draw the curve where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", nargs="?", type=Path, default=GRID, help="grid file with methods named METHOD SPARSITY")
    parser.add_argument("--store", type=Path, default=Path("expunge-bench"), help="folder of results")
    parser.add_argument("--plot", type=Path, help="an SVG file to draw")
    chosen = parser.parse_args()
    asked = load(chosen.grid)
    found = groups(asked, Store.open(chosen.store))
    names = [name.rpartition(" ") for name in asked.methods]
    methods = list(dict.fromkeys(method for method, _, _ in names if method != TRUTH))
    sparsities = list(dict.fromkeys(sparsity for _, _, sparsity in names))
    for group in found:
        print(f"### {group.name}\n")
        heads = ["average gap, points", *(f"{s} %" for s in sparsities), "95 % less dense, paired"]
        show([heads, *table(group, methods, sparsities), truths(group, sparsities)])
    if chosen.plot is not None:
        plot(found, methods, sparsities, chosen.plot)


if __name__ == "__main__":
    main()
