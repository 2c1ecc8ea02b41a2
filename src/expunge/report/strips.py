"""Every training seed as a point, a panel a number and a row a model, before the band of the retrained models."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report import layout
from expunge.report.charts import NAME, TITLE, room
from expunge.report.grids import Leaf
from expunge.report.looks import Look
from expunge.report.svg import BLUE, INK, SKY, Dot, figure, inline, style

SPREAD = 0.44  # of the rows' distance over which the seeds of a row are spread
MOST = 8  # panels
Metric = Mapping[str, Any]


def shown(leaf: Leaf) -> list[Metric]:
    """Return the numbers that are drawn: those that tell most, but costs."""
    return [] if leaf.section is None else [m for m in layout.key(leaf.section) if m["group"] != "cost"][:MOST]


def models(leaf: Leaf) -> list[str]:
    """Return the models that any seed has a number of, in the order of a table."""
    if leaf.section is None:
        return []
    return [str(m["name"]) for m in doc.models(leaf.section) if not m.get("declined") and not m["flaw"]]


def values(leaf: Leaf, model: str, metric: str) -> dict[int, float]:
    """Return a model's number by seed, where it is defined."""
    found = {seed: doc.found(run, "values", model, metric) for seed, run in leaf.runs.items()}
    return {seed: float(v["x"]) for seed, v in found.items() if v is not None}


def published(leaf: Leaf, model: str, metric: str) -> list[Sequence[float]]:
    """Return what papers say of a model's number: mean and, where known, spread."""
    found = (p.values.get(model, {}).get(metric) for p in leaf.published)
    return [v for v in found if v is not None]


def chart(leaf: Leaf, look: Mapping[str, Look], ids: Mapping[str, str], links: Mapping[str, str], key: str) -> str:
    """Return every seed as a point, a panel for each number; an outlier shows, where a mean hides it.

    Args:
        leaf: a place with numbers.
        look: how each model is drawn.
        ids: of the models' symbols in the page.
        links: address of the cells by model; the seed's place in them is behind it.
        key: prefix of the ids, unique in the page.

    Returns:
        An SVG element, or an empty string where nothing was measured.
    """
    metrics, names = shown(leaf), models(leaf)
    if not metrics or not names:
        return ""
    with style(key):
        fig = figure(150 + 118 * len(metrics), 84 + 21 * len(names), apart=0.06)
        axes = fig.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        dots = []
        for ax, metric in zip(axes, metrics, strict=True):
            dots += _panel(ax, leaf, metric, names, look, ids, links)
        axes[0].set_yticks(range(len(names)), [fmt.plain(m, NAME) for m in names])
        axes[0].set_ylim(len(names) - 0.4, -0.6)
        told = ", ".join(str(m["label"]) for m in metrics)
        seeds = fmt.count(len(leaf.runs), "training seed")
        return inline(fig, key, f"{seeds} as points, {fmt.count(len(names), 'model')}: {told}", dots)


def _panel(
    ax: Axes,
    leaf: Leaf,
    metric: Metric,
    names: Sequence[str],
    look: Mapping[str, Look],
    ids: Mapping[str, str],
    links: Mapping[str, str],
) -> list[Dot]:
    by, unit, name = fmt.scale(str(metric["unit"])), str(metric["unit"]), str(metric["name"])
    _band(ax, leaf, metric, by)
    dots, ends, seeds = [], list[float](), list(leaf.runs)
    for row, model in enumerate(names):
        found = values(leaf, model, name)
        if not found:
            ax.annotate("–", (0.5, row), xycoords=("axes fraction", "data"), va="center", ha="center", fontsize=9)
        for seed, x in found.items():
            at = row + SPREAD * (((seeds.index(seed) + 0.5) / len(seeds)) - 0.5 if len(seeds) > 1 else 0.0)
            title = f"{model}, seed {seed}: {fmt.digits(x, unit)}{fmt.suffix(unit)}"
            dots.append(Dot(ax, by * x, at, ids[model], title, f"{links[model]}-s{seed}", size=8.5, opacity=0.8))
        if len(found) > 1:
            mean = by * sum(found.values()) / len(found)
            ax.plot([mean, mean], [row - 0.36, row + 0.36], color=look[model].colour, lw=1.8, alpha=0.75)
        papers = published(leaf, model, name)
        for paper in papers:
            _paper(ax, row, paper, by)
        ends += [by * x for x in found.values()] + [by * p[0] for p in papers]
    room(ax, unit, min(ends, default=0.0), max(ends, default=1.0))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    ax.set_axisbelow(True)
    ax.set_title("\n".join(textwrap.wrap(fmt.plain(str(metric["label"]), 3 * TITLE), TITLE)), loc="left", fontsize=10)
    return dots


def _band(ax: Axes, leaf: Leaf, metric: Metric, by: float) -> None:
    """Draw where the retrained models of all seeds lie: a band from the lowest to the highest, a line at their mean.

    A number with an ideal by definition has it as the line, and a second retrained model's values as the band.
    """
    section = leaf.section or {"models": []}
    roles = ("floor",) if metric["target"] is not None else ("retrained", "floor")
    found = [
        by * x
        for model in doc.of_role(section, *roles)
        for x in values(leaf, str(model["name"]), str(metric["name"])).values()
    ]
    if found:
        ax.axvspan(min(found), max(found), color=SKY, alpha=0.28, lw=0)
    goal = by * float(metric["target"]) if metric["target"] is not None else None
    own = [
        x for m in doc.of_role(section, "retrained") for x in values(leaf, str(m["name"]), str(metric["name"])).values()
    ]
    goal = by * sum(own) / len(own) if goal is None and own else goal
    if goal is not None:
        ax.axvline(goal, color=BLUE, lw=1.4)


def _paper(ax: Axes, row: int, paper: Sequence[float], by: float) -> None:
    """Draw a published value as a ring below its row, with its spread as a line."""
    x, spread = by * paper[0], by * paper[1] if len(paper) > 1 else 0.0
    if spread:
        ax.plot([x - spread, x + spread], [row, row], color=INK, lw=0.9, alpha=0.8)
    ax.plot(x, row, "o", mfc="none", mec=INK, ms=8.5, mew=1.1)
