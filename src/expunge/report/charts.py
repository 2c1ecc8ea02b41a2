"""The charts of a section as inline SVG: accuracies, distributions, ROC curves, parameters changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report.document import Section
from expunge.report.svg import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RULE, SKY, VERMILION, figure, inline, style

NAME = 22  # letters of a model's name in a chart
FINEST = 1e-3  # smallest false-positive rate drawn
SHARES = (1e-12, 0.01, 0.1, 0.5, 0.99, 1.01)  # classes of the share changed, beside exactly 0
SHARE_NAMES = ("0%", "below 1%", "1–10%", "10–50%", "50–99%", "all")
WIDTH, PANEL, STRIP = 370, 205, 720


@dataclass(frozen=True)
class Look:
    """How a model is drawn in every chart.

    Args:
        colour: of line and marker.
        marker: of its dot, told apart without colour.
        line: dashes of its line, told apart without colour.
    """

    colour: str
    marker: str
    line: Any


def looks(sections: Sequence[Section]) -> dict[str, Look]:
    """Return the look of each model: fixed by its role, and by its place among those of the same role.

    Args:
        sections: all sections of the page, so that a model looks the same in each.

    Returns:
        Looks by model name; more methods than colours repeat colours with other markers and dashes.
    """
    of = {
        "original": cycle([Look(INK, "X", "-")]),
        "retrained": cycle([Look(BLUE, "D", "-")]),
        "floor": cycle([Look(SKY, "d", (0, (5, 2)))]),
        "control": cycle([Look(GREY, m, s) for m, s in (("v", (0, (1, 1.5))), ("<", (0, (4, 1.5, 1, 1.5))))]),
    }
    colours = cycle((VERMILION, GREEN, PURPLE, ORANGE))
    markers = cycle("os^Ph*p")
    lines = cycle(((0, (6, 1.5)), (0, (3, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (2, 1)), (0, (8, 2, 2, 2))))
    out: dict[str, Look] = {}
    for model in (m for section in sections for m in doc.models(section)):
        if model["name"] not in out:
            method = Look(next(colours), next(markers), next(lines)) if model["role"] not in of else None
            out[model["name"]] = method or next(of[model["role"]])
    return out


def accuracies(section: Section, look: Mapping[str, Look], key: str) -> list[str]:
    """Return one chart for each accuracy: every model's dot and interval beside retrained's line and floor band.

    Args:
        section: a section of the document.
        look: how each model is drawn, from `looks`.
        key: prefix of the ids, unique in the page.

    Returns:
        SVG elements in the order of the table; none where no accuracy was measured.
    """
    every = [m for m in doc.metrics(section) if m["group"] == "accuracy" and m["unit"] == "1"]
    with_values = [
        m for m in every if any(doc.found(section, "values", r["name"], m["name"]) for r in section["models"])
    ]
    return [_accuracy(section, metric, look, f"{key}-{i}") for i, metric in enumerate(with_values)]


def _accuracy(section: Section, metric: Mapping[str, Any], look: Mapping[str, Look], key: str) -> str:
    models = [m["name"] for m in doc.models(section) if not m.get("declined")]
    values = {m: doc.found(section, "values", m, metric["name"]) for m in models}
    with style(key):
        fig = figure(WIDTH, 58 + 21 * len(models))
        ax = fig.add_subplot()
        _reference(ax, section, metric["name"])
        for at, model in enumerate(models):
            value = values[model]
            if value is None:
                ax.annotate("not available", (0.02, at), xycoords=("axes fraction", "data"), va="center", fontsize=9)
                continue
            if fmt.half(value) is not None:
                ax.plot([100 * value["low"], 100 * value["high"]], [at, at], color=look[model].colour, lw=1.8)
            ax.plot(100 * value["x"], at, look[model].marker, color=look[model].colour, ms=6.5, mew=0)
        _room(ax)
        ax.set_yticks(range(len(models)), [fmt.plain(m, NAME) for m in models])
        ax.set_ylim(len(models) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.grid(axis="x")
        ax.set_axisbelow(True)
        ax.set_title(fmt.plain(metric["label"], 46), loc="left")
        told = [f"{m} {fmt.value(v)}" for m, v in values.items() if v is not None]
        return inline(fig, key, f"{metric['label']}: {'; '.join(told)}")


def _reference(ax: Axes, section: Section, metric: str) -> None:
    """Draw retrained's value as a line and the floor around it as a band."""
    reference = doc.of_role(section, "retrained")
    value = doc.found(section, "values", reference[0]["name"], metric) if reference else None
    floor = doc.floor(section, metric)
    if value is None:
        return
    if floor is not None:
        ends = [100 * (value["x"] - floor["x"]), 100 * (value["x"] + floor["x"])]
        ax.axvspan(max(0.0, ends[0]), min(100.0, ends[1]), color=SKY, alpha=0.28, lw=0)
    ax.axvline(100 * value["x"], color=BLUE, lw=1.4)


def _room(ax: Axes) -> None:
    """Leave the axis at least two points wide, inside 0 to 100 but for the dots' own width."""
    low, high = ax.dataLim.x0, ax.dataLim.x1
    span = max(high - low, 2.0)
    middle = min(max((low + high) / 2, span / 2), 100 - span / 2)
    ax.set_xlim(middle - 0.56 * span, middle + 0.56 * span)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}%" if -1e-9 <= x <= 100 + 1e-9 else ""))


def distributions(section: Section, quantity: str, look: Mapping[str, Look], key: str) -> list[str]:
    """Return small charts of how a quantity is distributed on the forget and the test set, on shared axes.

    Args:
        section: a section of the document.
        quantity: ``loss`` or ``entropy``.
        look: how each model is drawn, from `looks`.
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
            ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlim(edges[0], edges[-1])
        ax.grid(axis="y")
        ax.set_axisbelow(True)
        ax.set_title(fmt.plain(model, NAME), loc="left")
        ax.set_xlabel(quantity)
        means = {s: f"{100 * float(shares[s][0]):.0f}% of the {s} set" for s in ("forget", "test")}
        return inline(fig, key, f"{quantity} under {model}: in the lowest bin {means['forget']}, {means['test']}")


def roc(section: Section, look: Mapping[str, Look], key: str) -> str | None:
    """Return the ROC curves of the loss attack, log by log, with the diagonal of a guess.

    Args:
        section: a section of the document.
        look: how each model is drawn, from `looks`.
        key: prefix of the ids, unique in the page.

    Returns:
        An SVG element, or None where there is no curve.
    """
    curves = (section.get("curves", {}).get("roc") or {}).get("loss") or {}
    names = [m["name"] for m in doc.models(section) if curves.get(m["name"], {}).get("fpr")]
    if not names:
        return None
    rates = [f for m in names for f in curves[m]["fpr"] if f > 0]
    least = min(0.1, max(FINEST, min(rates, default=FINEST)))
    with style(key):
        lines = -(-len(names) // 2)
        fig = figure(WIDTH, 325 + 18 * lines)
        ax = fig.add_subplot()
        ax.plot([least, 1], [least, 1], color=GREY, lw=1, ls=(0, (1, 2)))
        for model in names:
            fpr, tpr = (np.asarray(curves[model][side], dtype=np.float64) for side in ("fpr", "tpr"))
            behind = look[model].colour == GREY
            ax.plot(
                np.maximum(fpr, least / 10),  # log of 0: outside the frame instead of nowhere
                np.maximum(tpr, least / 10),
                color=look[model].colour,
                ls=look[model].line,
                lw=1.4 if behind else 1.9,
                zorder=2 if behind else 3,
            )
        ax.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(least, 1.05), aspect="equal")
        ax.set(xlabel="false-positive rate", ylabel="true-positive rate")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g}%"))
            axis.set_minor_formatter(FuncFormatter(lambda _x, _at: ""))
        ax.grid(which="major")
        ax.set_axisbelow(True)
        handles = [Line2D([], [], color=look[m].colour, ls=look[m].line, lw=1.9) for m in names]
        legend = fig.legend(
            handles, ["x" * min(len(fmt.plain(m)), NAME) for m in names], loc="outside lower left", ncols=2
        )
        for text, model in zip(legend.get_texts(), names, strict=True):
            text.set_text(fmt.plain(model, NAME))  # set afterwards: a legend drops labels that start with _
        return inline(fig, key, f"ROC curves of the loss attack on {fmt.listed([fmt.plain(m) for m in names])}")


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
