"""The charts of a section as inline SVG: numbers beside retrained's, distributions, parameters changed."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgba
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report.document import Section
from expunge.report.looks import Look
from expunge.report.svg import BLUE, INK, RULE, SKY, figure, inline, style

NAME = 22  # letters of a model's name in a chart
SHARES = (1e-12, 0.01, 0.1, 0.5, 0.99, 1.01)  # classes of the share changed, beside exactly 0
SHARE_NAMES = ("0%", "below 1%", "1–10%", "10–50%", "50–99%", "all")
PANEL, STRIP = 205, 720
TITLE = 17  # letters of a line above a panel
ROWS = 16  # panels of one overview, at most
Metric = Mapping[str, Any]


def overview(section: Section, metrics: Sequence[Metric], look: Mapping[str, Look], key: str) -> str | None:
    """Return several numbers side by side: every model's dot and interval beside retrained's line and floor band.

    Args:
        section: a section of the document.
        metrics: one panel each.
        look: how each model is drawn, from `expunge.report.looks.looks`.
        key: prefix of the ids, unique in the page.

    Returns:
        An SVG element, a row for each model; None where nothing was measured.
    """
    models = [m["name"] for m in doc.models(section) if not m.get("declined") and not m["flaw"]]
    shown = [m for m in metrics if m["group"] != "cost"]
    shown = [m for m in shown if any(doc.found(section, "values", name, m["name"]) for name in models)][:ROWS]
    if not shown or not models:
        return None
    with style(key):
        fig = figure(150 + 118 * len(shown), 84 + 21 * len(models), apart=0.06)
        axes = fig.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for ax, metric in zip(axes, shown, strict=True):
            _panel(ax, section, metric, models, look)
        axes[0].set_yticks(range(len(models)), [fmt.plain(m, NAME) for m in models])
        axes[0].set_ylim(len(models) - 0.4, -0.6)
        told = []
        for metric in shown:
            values = {m: doc.found(section, "values", m, metric["name"]) for m in models}
            told.append(f"{metric['label']}: {', '.join(f'{m} {fmt.value(v)}' for m, v in values.items() if v)}")
        return inline(fig, key, "; ".join(told))


def _panel(ax: Axes, section: Section, metric: Metric, models: Sequence[str], look: Mapping[str, Look]) -> None:
    by = fmt.scale(metric["unit"])
    _reference(ax, section, metric)
    for at, model in enumerate(models):
        value = doc.found(section, "values", model, metric["name"])
        if value is None:
            ax.annotate("–", (0.5, at), xycoords=("axes fraction", "data"), va="center", ha="center", fontsize=9)
            continue
        if fmt.half(value) is not None:
            ax.plot([by * value["low"], by * value["high"]], [at, at], color=look[model].colour, lw=1.8)
        ax.plot(by * value["x"], at, look[model].marker, color=look[model].colour, ms=6.5, mew=0)
    room(ax, metric["unit"], ax.dataLim.x0, ax.dataLim.x1)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    ax.set_axisbelow(True)
    ax.set_title("\n".join(textwrap.wrap(fmt.plain(metric["label"], 3 * TITLE), TITLE)), loc="left", fontsize=10)


def _reference(ax: Axes, section: Section, metric: Metric) -> None:
    """Draw what is to be come close to, retrained's value or the ideal, as a line and the floor around it as a band."""
    reference = doc.of_role(section, "retrained")
    value = doc.found(section, "values", reference[0]["name"], metric["name"]) if reference else None
    goal = metric["target"] if metric["target"] is not None else None if value is None else value["x"]
    if goal is None:
        return
    by, floor = fmt.scale(metric["unit"]), doc.floor(section, metric["name"])
    if floor is not None:
        ends = [by * (goal - floor["x"]), by * (goal + floor["x"])]
        low, high = metric.get("range") or ((0, 1) if metric["unit"] == "1" else (None, None))
        ends = [
            ends[0] if low is None else max(by * low, ends[0]),
            ends[1] if high is None else min(by * high, ends[1]),
        ]
        ax.axvspan(ends[0], ends[1], color=SKY, alpha=0.28, lw=0)
    ax.axvline(by * goal, color=BLUE, lw=1.4)


def room(ax: Axes, unit: str, low: float, high: float) -> None:
    """Set the horizontal axis: a few ticks, and never so short that a printed digit looks like a gulf.

    Args:
        ax: the axes.
        unit: of the numbers; shares are percent, stay inside 0 to 100 but for the dots' own width, and span two points.
        low: smallest number, in its printed scale.
        high: largest number.
    """
    least = 2.0 if unit == "1" else max(20 * fmt.resolution(unit) * fmt.scale(unit), 0.02 * max(abs(low), abs(high)))
    span = max(high - low, least) or 1.0
    middle = (low + high) / 2
    if unit == "1" and low >= 0 and high <= 100:
        middle = min(max(middle, span / 2), 100 - span / 2)
    ax.set_xlim(middle - 0.58 * span, middle + 0.58 * span)
    ax.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]))
    percent = FuncFormatter(lambda x, _: f"{x:g}%".replace("-", "−") if -100 - 1e-9 <= x <= 100 + 1e-9 else "")
    number = FuncFormatter(lambda x, _: (f"{x:,.0f}" if 1e3 <= abs(x) < 1e6 else f"{x:.3g}").replace("-", "−"))
    ax.xaxis.set_major_formatter(percent if unit == "1" else number)


def distributions(section: Section, quantity: str, look: Mapping[str, Look], key: str) -> list[str]:
    """Return small charts of how a quantity is distributed on the forget and the test set, on shared axes.

    Args:
        section: a section of the document.
        quantity: ``loss`` or ``entropy``.
        look: how each model is drawn, from `expunge.report.looks.looks`.
        key: prefix of the ids, unique in the page.

    Returns:
        SVG elements for original, retrained and every method that has a curve.
    """
    curve = section.get("curves", {}).get(quantity)
    wanted = [m["name"] for m in doc.of_role(section, "original", "retrained", "method")]
    models = [m for m in wanted if curve and {"forget", "test"} <= set(curve["densities"].get(m, {}))]
    if not curve or not models:
        return []
    edges = np.asarray(curve["edges"], dtype=np.float64)
    shares = {m: {split: _shares(curve["densities"][m][split]) for split in ("forget", "test")} for m in models}
    top = max(float(s.max()) for by in shares.values() for s in by.values())
    goal = next((m["name"] for m in doc.of_role(section, "retrained") if m["name"] in models), None)
    units = [m["unit"] for m in doc.metrics(section) if m["name"].startswith(f"{quantity}/")]
    label = f"{quantity}, nats" if quantity == "entropy" or "nats" in units else quantity
    out = []
    for at, model in enumerate(models):
        ours = shares[model] | ({"goal": shares[goal]["forget"]} if goal not in {None, model} and goal else {})
        out.append(_distribution(model, look[model], edges, ours, top, label, f"{key}-{at}"))
    return out


def _shares(densities: Sequence[float]) -> NDArray[np.float64]:
    mass = np.asarray(densities, dtype=np.float64)
    return np.asarray(mass / mass.sum() if mass.sum() > 0 else mass)


def _distribution(
    model: str,
    look: Look,
    edges: NDArray[np.float64],
    shares: Mapping[str, NDArray[np.float64]],
    top: float,
    quantity: str,
    key: str,
) -> str:
    with style(key):
        fig = figure(PANEL, 160)
        ax = fig.add_subplot()
        # A root scale: the low, wide shape of unseen samples must be visible beside the spike of memorised ones.
        ax.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
        ax.stairs(shares["forget"], edges, fill=True, color=look.colour, alpha=0.38, lw=0)
        ax.stairs(shares["forget"], edges, color=look.colour, lw=1.5, baseline=None)
        if "goal" in shares:
            ax.stairs(shares["goal"], edges, color=BLUE, lw=1.3, ls=(0, (1, 1.2)), baseline=None)
        ax.stairs(shares["test"], edges, color=INK, lw=1.1, ls=(0, (4, 2)), baseline=None)
        ax.set_ylim(0, top * 1.05)
        ax.yaxis.set_major_locator(FixedLocator([y for y in (0.02, 0.1, 0.25, 0.5, 1.0) if y <= top * 1.05]))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g}%"))
        ratios = edges[1:] / edges[:-1] if edges[0] > 0 else np.array([1.0, 2.0])
        if np.allclose(ratios, ratios[0], rtol=1e-3) and ratios[0] > 1.01:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(numticks=4))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            ax.xaxis.set_minor_locator(FixedLocator([]))
            ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlim(edges[0], edges[-1])
        ax.grid(axis="y")
        ax.set_axisbelow(True)
        ax.set_title(fmt.plain(model, NAME), loc="left")
        ax.set_xlabel(quantity)
        means = {s: f"{100 * float(shares[s][0]):.0f}% of the {s} set" for s in ("forget", "test")}
        return inline(fig, key, f"{quantity} under {model}: in the lowest bin {means['forget']}, {means['test']}")


def changed(section: Section, key: str) -> str | None:
    """Return the share of parameters changed, a strip of layers for each model.

    Args:
        section: a section of the document.
        key: prefix of the ids, unique in the page.

    Returns:
        An SVG element, or None where nothing was recorded.
    """
    shares = section.get("changed") or {}
    models = [m["name"] for m in doc.models(section) if shares.get(m["name"])]
    layers = list(dict.fromkeys(name for m in models for name in shares[m]))
    if not models:
        return None
    grid = np.array([[shares[m].get(layer, np.nan) for layer in layers] for m in models], dtype=np.float64)
    # Steps of opacity, not of colour: they read on white, on black and on paper alike.
    blues = ListedColormap([to_rgba(BLUE, a) for a in (0.0, 0.13, 0.28, 0.45, 0.65, 0.92)])
    with style(key):
        fig = figure(STRIP, 150 + 26 * len(models))
        ax = fig.add_subplot()
        colours = BoundaryNorm([0, *SHARES], blues.N)
        ax.pcolormesh(np.ma.masked_invalid(grid), cmap=blues, norm=colours, edgecolor=RULE, lw=0.6)
        ax.set_yticks(np.arange(len(models)) + 0.5, [fmt.plain(m, NAME) for m in models])
        every = -(-len(layers) // 28)
        shown = list(range(0, len(layers), every))
        ax.set_xticks(np.array(shown) + 0.5, [fmt.plain(layers[i], 26) for i in shown], rotation=90, fontsize=9)
        ax.invert_yaxis()
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        if len(layers) <= 12:
            _numbers(ax, grid)
        handles = [Patch(facecolor=blues(i), edgecolor=RULE, label=name) for i, name in enumerate(SHARE_NAMES)]
        fig.legend(handles=handles, loc="outside upper left", ncols=len(handles), handlelength=1.2, columnspacing=1.4)
        told = [f"{m} {fmt.digits(float(np.nanmean(row)), '1')}%" for m, row in zip(models, grid, strict=True)]
        return inline(fig, key, f"Mean share of parameters changed in a layer: {'; '.join(told)}")


def _numbers(ax: Axes, grid: NDArray[np.float64]) -> None:
    for (row, column), share in np.ndenumerate(grid):
        if not np.isnan(share):
            text = (
                f"{100 * share:.0f}%" if share in {0, 1} or 0.01 <= share <= 0.99 else "<1%" if share < 0.5 else ">99%"
            )
            ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=9)
