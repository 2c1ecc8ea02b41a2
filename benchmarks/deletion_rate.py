"""How many deletion requests exact unlearning systems serve before they start over: simulated, beside closed forms.

A system has m shards of L slices and B sequences a shard; SISA without retraining is B = 1. A request names one sample.
Unless a table says otherwise, each request hits one of the mL slices, all alike and with replacement, nothing is
healed, and the system fails when no shard has a sequence left. ± is the standard error of the simulated mean, z the
distance from the closed form in standard errors. Systems of one table answer the same requests.

1. ``rates``: requests until failure, and until the first shard is lost.
2. ``finite``: each sample is deleted at most once; also owners of unequal weight, which have no closed form.
3. ``prior``: slices that are hit with unequal probability, for three rules of choosing sequences.
4. ``ablations``: random sequences, the same or others in each shard, and sequences that share their top slice.
5. ``retention``: the probability that a shard keeps a depth, and the mean depth that is served.
6. ``restarts``: trainings from scratch during 1,000 requests, also with lost shards rebuilt in the background.
7. ``sequences``: mean distances of sequences.
8. ``costs``: retraining in SISA, work of a sequence, seconds of the simulator.

    python benchmarks/deletion_rate.py
    python benchmarks/deletion_rate.py --only rates prior --runs 4000
    python benchmarks/deletion_rate.py --plots docs/results
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from expunge.errors import UserError
from expunge.exact import costs, rates
from expunge.exact.arrivals import Independent, Owners, Plan, Requests, Samples
from expunge.exact.orders import cyclic, distance_bound, mean_distance
from expunge.exact.priors import bms, conditional
from expunge.exact.sequences import cover
from expunge.exact.simulate import Summary, lifetime, plans, restarts, simulate
from expunge.report.svg import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION
from fisher import say, show

FOUR = (0.4, 0.3, 0.2, 0.1)
ZIPF = tuple(1 / i for i in range(1, 9))
SYSTEMS = (
    *((3, 4, b) for b in (1, 2, 4)),
    *((5, 4, b) for b in (1, 2, 3, 4)),
    *((5, 6, b) for b in range(1, 7)),
    *((10, 8, b) for b in (1, 8)),
    *((5, 32, b) for b in (1, 8, 32)),
    *((5, 64, b) for b in (1, 64)),
    *((10, 32, b) for b in (1, 8, 32)),
)
AFTER = (1, 5, 10, 20, 40, 60)
PRINTED = ((1, 1), (1, 3), (1, 6), (2, 2), (2, 3), (2, 6), (3, 2))  # depth k, requests r
NAMES = {"cyclic": "most likely first, rotated", "sorted": "sorted rotation", "bms": "matching"}
SETS: dict[str, Callable[[], list[Any]]] = {
    "SISA (B = 1)": lambda: cyclic(4, 1),
    "2 rotations": lambda: cyclic(4, 2),
    "4 rotations": lambda: cyclic(4, 4),
    "6 that cover": lambda: cover(4, 6),
    "all 24": lambda: cyclic(4, 24),
}
matplotlib.rcParams["svg.hashsalt"] = "expunge"  # the same figure gives the same bytes


def cells(found: Summary, expected: float) -> list[str]:
    """Return a closed form, the simulated mean with its standard error, and how far apart they are."""
    return [f"{expected:.2f}", f"{found.mean:.2f} ± {found.se:.2f}", f"{(found.mean - expected) / found.se:+.1f}"]


def rate_table(runs: int, seed: int) -> None:
    lines = [["m, L, B", "δ", "simulated", "z", "sd", "simulated", "first shard lost", "simulated", "z", "δ / SISA's"]]
    for m, length, budget in SYSTEMS:
        found = lifetime(Independent(shards=m, slices=length), plans(m, length, budget), runs=runs, seed=seed)
        sd = math.sqrt(rates.deletion_variance(m, length, budget))
        lines.append(
            [
                f"{m}, {length}, {budget}",
                *cells(found.all, rates.deletion_rate(m, length, budget)),
                *[f"{sd:.2f}", f"{found.all.sd:.2f}"],
                *cells(found.first, rates.first_lost(m, length, budget)),
                f"{rates.gain(m, length, budget):.2f}×",
            ]
        )
    show(lines)


def owners(m: int, length: int, each: int, spread: float, seed: int) -> Owners:
    """Return owners, as many in each slice, with log-normal weights."""
    count = m * length * each
    weights = np.random.default_rng(seed).lognormal(sigma=spread, size=count)
    return Owners(weights=weights.tolist(), places=[i % (m * length) for i in range(count)], shards=m, slices=length)


def finite_table(runs: int, seed: int) -> None:
    lines = [["samples", "m, L, B", "δ", "simulated", "z", "first shard lost", "simulated", "z"]]
    cases: list[tuple[str, Requests, int]] = [
        *(("240", Samples(sizes=[[20] * 4] * 3), b) for b in (1, 4)),
        *(("1,200", Samples(sizes=[[60] * 4] * 5), b) for b in (1, 4)),
        ("50,000", Samples(sizes=[[2500] * 4] * 5), 4),
        *(("1,080 unequal", Samples(sizes=[[172, 207, 156], [176, 190, 179]]), b) for b in (1, 3)),
        *((f"200 owners, σ = {s:g}", owners(5, 4, 10, s, seed), b) for s in (0.0, 1.0) for b in (1, 4)),
    ]
    for name, requests, budget in cases:
        plan = plans(requests.shards, requests.slices, budget)
        found = lifetime(requests, plan, runs=runs, seed=seed)
        try:
            ends = [cells(found.all, requests.expected(plan)), cells(found.first, requests.expected(plan, "first"))]
        except UserError:  # no closed form
            ends = [["–", f"{x.mean:.2f} ± {x.se:.2f}", "–"] for x in (found.all, found.first)]
        lines.append([name, f"{requests.shards}, {requests.slices}, {budget}", *ends[0], *ends[1]])
    show(lines)


def ranked(prior: Sequence[float], shards: int, budget: int, select: Any) -> Plan:
    return plans(shards, len(prior), budget, None if select == "cyclic" else prior, select)


def prior_table(runs: int, seed: int) -> None:
    lines = [["prior", "B", *[c for name in NAMES.values() for c in (f"δ, {name}", "simulated", "z")]]]
    for name, prior, budgets in ((str(FOUR), FOUR, (1, 2, 3, 4)), ("1/i, i = 1..8", ZIPF, (1, 2, 4, 8))):
        requests = Independent(shards=5, slices=len(prior), prior=prior)
        for budget in budgets:
            line = [name, str(budget)]
            for select in NAMES:
                plan = ranked(prior, 5, budget, select)
                line += cells(lifetime(requests, plan, runs=runs, seed=seed).all, requests.expected(plan))
            lines.append(line)
    show(lines)


def ablation_table(runs: int, seed: int) -> None:
    lines = [["m = 5, L = 4, B = 4", "distinct top slices", "δ", "simulated", "z", "mean depth after 10 requests"]]
    requests = Independent(shards=5, slices=4)
    alike = [(0, *(1 + j for j in order)) for order in cyclic(3, 4)]
    ways: dict[str, Plan] = {
        "SISA (B = 1)": plans(5, 4, 1),
        "4 that share their top slice": [alike] * 5,
        "4 random, the same in each shard": plans(5, 4, 4, select="random", seed=seed),
        "4 random, other ones in each shard": plans(5, 4, 4, select="random", seed=seed, own=True),
        "4 rotations (S3T)": plans(5, 4, 4),
        "6 that cover (B = 6)": plans(5, 4, 6, select="cover"),
    }
    for name, plan in ways.items():
        found = simulate(requests, plan, runs=runs, seed=seed, after=[10])
        tops = sum(len({order[0] for order in shard}) for shard in plan)
        depth = f"{found.depth[10].mean:.3f} ± {found.depth[10].se:.3f}"
        lines.append([name, f"{tops} of 20", *cells(found.lifetime.all, requests.expected(plan)), depth])
    show(lines)


def retention_table(runs: int, seed: int) -> None:
    lines = [["L = 4: k, r", "SISA", "lemma 2, B = 4", "4 random, exact", *list(SETS)[2:]]]
    sets = {name: make() for name, make in SETS.items()}
    for k, r in PRINTED:
        first = [
            rates.retention_sisa(4, k, r),
            rates.retention_printed(4, k, r, 4),
            rates.retention_random(4, k, r, 4),
        ]
        rest = [float(rates.retention(found, [r])[0, k]) for found in list(sets.values())[2:]]
        lines.append([f"{k}, {r}", *[f"{x:.4f}" for x in (*first, *rest)]])
    show(lines)
    lines = [["mean served depth, m = 5, L = 4, after", *map(str, AFTER), "mean over the life"]]
    for name, sequences in sets.items():
        found = simulate(Independent(shards=5, slices=4), [sequences] * 5, runs=runs, seed=seed, after=AFTER)
        exact = rates.served_depth(sequences, AFTER, shards=5)
        both = [f"{x:.3f} ({found.depth[r].mean:.3f})" for r, x in zip(AFTER, exact.tolist(), strict=True)]
        lines.append([f"{name}: exact (simulated)", *both, f"{found.served.mean:.3f} ± {found.served.se:.3f}"])
    show(lines)


def restart_table(runs: int, seed: int) -> None:
    lines = [["1,000 requests, m = 5, L = 4", "from scratch, renewal theorem", "simulated", "shards rebuilt"]]
    runs = min(runs, 4000)
    for budget in (1, 2, 4):
        for heal in (None, 20, 5):
            found = restarts(Independent(shards=5, slices=4), plans(5, 4, budget), heal=heal, runs=runs, seed=seed)
            known = rates.renewals(1000, rates.deletion_rate(5, 4, budget), rates.deletion_variance(5, 4, budget))
            name = f"B = {budget}, " + ("no healing" if heal is None else f"lost shards back after {heal} requests")
            scratch, rebuilt = (f"{x.mean:.2f} ± {x.se:.2f}" for x in (found.scratch, found.rebuilt))
            lines.append([name, "–" if heal is not None else f"{known:.2f}", scratch, rebuilt])
    show(lines)


def sequence_table(runs: int, seed: int) -> None:
    lines = [["L, B", "generator", "upper bound", "random"]]
    for length, budget in ((4, 5), (4, 8), (4, 13), (4, 24), (5, 5), (5, 10), (5, 20), (5, 120), (6, 12), (6, 120)):
        drawn = mean_distance(conditional(length, budget, seed=seed))
        found = (mean_distance(cyclic(length, budget)), distance_bound(length, budget), drawn)
        lines.append([f"{length}, {budget}", *[f"{x:.4f}" for x in found]])
    show(lines)


def cost_table(runs: int, seed: int) -> None:
    lines = [["cost", "value"]]
    lines.append(["SISA, N = 1000, m = 5, 5 requests one at a time, samples", f"{costs.sharding_cost(1000, 5, 5):.1f}"])
    lines.append(["the same, together", f"{costs.sharding_cost_batch(1000, 5, 5):.1f}"])
    lines.append(["slicing, L = 4, of the shard's training", f"{costs.slicing_cost(1, 4):.2f}"])
    for length in (3, 4, 6):
        kinds: list[tuple[str, dict[str, Any]]] = [
            ("equal epochs a stage", {}),
            ("activations kept", {"cached": True}),
            ("equal samples", {"equal": "samples"}),
        ]
        for name, kind in kinds:
            lines.append([f"a sequence, L = {length}, {name}, of one model", f"{costs.work(length, **kind):.2f}"])
    for m, length in ((5, 4), (5, 6), (10, 32)):
        start = time.perf_counter()
        lifetime(Independent(shards=m, slices=length), plans(m, length, length), runs=runs, seed=seed)
        name = f"{runs:,} simulated lifetimes, m = {m}, L = {length}, seconds"
        lines.append([name, f"{time.perf_counter() - start:.2f}"])
    show(lines)


TABLES = {
    "rates": rate_table,
    "finite": finite_table,
    "prior": prior_table,
    "ablations": ablation_table,
    "retention": retention_table,
    "restarts": restart_table,
    "sequences": sequence_table,
    "costs": cost_table,
}


def panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(4.4 * count, 3.5), layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Figure, axes: Sequence[Axes], path: Path, *, aside: bool = False) -> None:
    """Write a figure with legends, or one beside it, its axes from 0 unless they are set."""
    for axis in axes:
        if axis.get_yscale() == "linear" and axis.get_autoscaley_on():
            axis.set_ylim(bottom=0)
        if not aside:
            axis.legend(frameon=False, fontsize=8)
    if aside:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def set_line(axis: Axes, at: Sequence[int], values: Any, name: str) -> None:
    """Draw a line of one of `SETS`; two of them coincide, and the wider one lies below."""
    colour = dict(zip(SETS, (GREY, GREEN, ORANGE, SKY, BLUE), strict=True))[name]
    looks: dict[str, dict[str, Any]] = {"6 that cover": {"lw": 4, "zorder": 1}, "all 24": {"lw": 1.4, "ls": "--"}}
    axis.plot(at, values, color=colour, label=name, **looks.get(name, {"lw": 1.4}))


def rate_line(
    axis: Axes, colour: str, name: str, along: Sequence[int], systems: Sequence[tuple[int, int, int]]
) -> None:
    """Draw closed forms as a line, and simulated means as dots on some of it, with two standard errors."""
    axis.plot(along, [rates.deletion_rate(*s) for s in systems], color=colour, lw=1.4, label=name)
    some = sorted({round(i) for i in np.linspace(0, len(systems) - 1, 6)})
    found = [lifetime(Independent(shards=m, slices=n), plans(m, n, b)).all for m, n, b in (systems[i] for i in some)]
    where = [along[i] for i in some]
    axis.errorbar(where, [f.mean for f in found], [2 * f.se for f in found], fmt="o", ms=3.5, color=colour, capsize=2)


def rate_figure(path: Path) -> None:
    figure, axes = panels(3)
    for colour, length in ((SKY, 4), (BLUE, 6), (GREEN, 32), (VERMILION, 64)):
        budgets = list(range(1, length + 1))
        rate_line(axes[0], colour, f"L = {length}", budgets, [(5, length, b) for b in budgets])
    axes[0].set(title="m = 5 shards", xlabel="sequences a shard, B", xscale="log", yscale="log")
    shown, heights = (1, 2, 4, 8, 16, 32, 64), (50, 100, 200, 500, 1000, 2000)
    axes[0].set_xticks(shown, [str(b) for b in shown])
    axes[0].set_yticks(heights, [str(h) for h in heights])
    axes[0].minorticks_off()
    for colour, name, b in ((GREY, "SISA (B = 1)", 1), (ORANGE, "B = 8", 8), (VERMILION, "B = 32", 32)):
        shards, slices = list(range(1, 11)), list(range(2, 33))
        rate_line(axes[1], colour, name, shards, [(m, 32, b) for m in shards])
        rate_line(axes[2], colour, name.replace("B = 32", "B = L"), slices, [(5, n, min(b, n)) for n in slices])
    axes[1].set(title="L = 32 slices", xlabel="shards, m")
    axes[2].set(title="m = 5 shards", xlabel="slices a shard, L")
    axes[0].set_ylabel("requests until all is retrained, δ")
    save(figure, axes, path)


def prior_figure(path: Path) -> None:
    figure, axes = panels(2)
    for axis, name, prior in ((axes[0], "prior 0.4, 0.3, 0.2, 0.1", FOUR), (axes[1], "prior ∝ 1/i, L = 8", ZIPF)):
        requests, budgets = Independent(shards=5, slices=len(prior), prior=prior), range(1, len(prior) + 1)
        for colour, (select, words) in zip((GREY, ORANGE, BLUE), NAMES.items(), strict=True):
            every = [ranked(prior, 5, b, select) for b in budgets]
            axis.plot(budgets, [requests.expected(plan) for plan in every], color=colour, lw=1.4, label=words)
            found = [lifetime(requests, plan).all for plan in every]
            style: dict[str, Any] = {"fmt": "o", "ms": 3.5, "color": colour, "capsize": 2}
            axis.errorbar(budgets, [f.mean for f in found], [2 * f.se for f in found], **style)
        axis.set(title=f"{name}, m = 5", xlabel="sequences a shard, B")
        axis.set_xticks(budgets)
    axes[0].set_ylabel("requests until all is retrained, δ")
    save(figure, axes, path)


def retention_figure(path: Path) -> None:
    figure, axes = panels(3)
    requests = list(range(13))
    known = {name: rates.retention(make(), requests) for name, make in SETS.items() if name != "2 rotations"}
    for k, axis in enumerate(axes, start=1):
        random = [rates.retention_random(4, k, r, 4) for r in requests]
        printed = [rates.retention_printed(4, k, r, 4) for r in requests]
        axis.plot(requests, printed, color=GREY, lw=1.2, ls=":", label="lemma 2, B = 4, as published")
        axis.plot(requests, random, color=PURPLE, lw=1.4, ls="--", label="4 random sequences, exact")
        for name, found in known.items():
            set_line(axis, requests, found[:, k], name)
        axis.set(title=f"depth of at least {k} of 4", xlabel="requests to the shard")
    axes[0].set_ylabel("probability")
    save(figure, axes, path, aside=True)


def depth_figure(path: Path) -> None:
    figure, axes = panels(1)
    requests, after = list(range(101)), list(range(0, 101, 10))
    for name, make in SETS.items():
        sequences = make()
        set_line(axes[0], requests, rates.served_depth(sequences, requests, shards=5), name)
        found = simulate(Independent(shards=5, slices=4), [sequences] * 5, after=after).depth
        axes[0].plot(after, [found[r].mean for r in after], "o", ms=3, color=axes[0].lines[-1].get_color())
    axes[0].set(title="m = 5, L = 4", xlabel="requests to the system", ylabel="mean depth served, of 4")
    save(figure, axes, path)


def distance_figure(path: Path) -> None:
    figure, axes = panels(2)
    budgets = [*range(2, 25), *range(30, 121, 6)]
    lines = {
        "upper bound": (GREY, [distance_bound(6, b) for b in budgets]),
        "generator": (BLUE, [mean_distance(cyclic(6, b)) for b in budgets]),
        "random": (ORANGE, [mean_distance(conditional(6, b)) for b in budgets]),
    }
    for name, (colour, found) in lines.items():
        axes[0].plot(budgets, found, color=colour, lw=3 if colour == GREY else 1.4, label=name)
    axes[0].set(title="no prior, L = 6", xlabel="sequences, B", ylabel="mean distance", ylim=(4, 6.1))
    slices = range(2, 17)
    priors = [np.random.default_rng(n).dirichlet(np.ones(n)) for n in slices]
    matched = [mean_distance(bms(p, p.size, p.size)) for p in priors]
    drawn = [mean_distance(conditional(p.size, p.size, p)) for p in priors]
    axes[1].plot(slices, list(slices), color=GREY, lw=3, label="upper bound, L")
    axes[1].plot(slices, matched, color=BLUE, lw=1.4, label="matching")
    axes[1].plot(slices, drawn, color=ORANGE, lw=1.4, label="drawn by the prior")
    axes[1].set(title="a prior, B = L", xlabel="slices, L")
    save(figure, axes, path)


FIGURES = {
    "s3t-rates": rate_figure,
    "s3t-prior": prior_figure,
    "s3t-retention": retention_figure,
    "s3t-depth": depth_figure,
    "s3t-distances": distance_figure,
}


def main() -> None:
    """Print the tables, and draw the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(TABLES), choices=list(TABLES), help="tables to print")
    parser.add_argument("--runs", type=int, default=100_000, help="simulated runs a row; 4,000 at most of restarts")
    parser.add_argument("--seed", type=int, default=0, help="of the requests")
    parser.add_argument("--plots", type=Path, help="a folder for the figures, of 4,000 runs a dot")
    chosen = parser.parse_args()
    for name in chosen.only:
        say(f"{name}: {chosen.runs:,} runs, seed {chosen.seed}")
        TABLES[name](chosen.runs, chosen.seed)
    if chosen.plots is not None:
        chosen.plots.mkdir(parents=True, exist_ok=True)
        for name, draw in FIGURES.items():
            draw(chosen.plots / f"{name}.svg")
            say(f"drawn: {chosen.plots / name}.svg")


if __name__ == "__main__":
    main()
