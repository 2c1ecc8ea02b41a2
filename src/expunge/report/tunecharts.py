"""The trials of a tuning as charts: value by trial, by each field, and over two fields."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from expunge.report import format as fmt
from expunge.report.svg import BLUE, GREY, INK, SKY, VERMILION, figure, inline, style

HISTORY, SLICE, PLANE = (720, 270), (330, 235), (345, 240)  # pixels
SPAN = 20  # largest over smallest value beyond which its axis is logarithmic
LINES = {"retrained (other seed)": "a second retrained model", "head_mask": "head_mask", "no_op": "nothing done"}
Document = Mapping[str, Any]
Trial = Mapping[str, Any]


def default_of(document: Document, name: str) -> Any:
    """Return the default settings' value of a searched field; of a composition's method where its name has a dot."""
    found: Any = document["default"]
    for part in name.split("."):
        found = found.get(part)
    return found


def history(document: Document, key: str) -> str:
    """Return the value of every trial and the smallest so far, with what it is to be compared with as lines.

    Args:
        document: of one tuned method.
        key: prefix of the ids, unique in the page.

    Returns:
        An SVG element.
    """
    trials = _valued(document)
    with style(key):
        fig = figure(*HISTORY)
        ax = fig.add_subplot()
        lines = {text: document["compared"]["values"].get(name) for name, text in LINES.items()}
        shown = {text: value for text, value in lines.items() if value is not None}
        _value_axis(ax, [t["value"] for t in trials], [v for v in shown.values() if v > 0])
        for at, (text, value) in enumerate(shown.items()):
            ax.axhline(value, color=SKY if at == 0 else GREY, lw=1.2, ls=("--", ":", "-.")[at], zorder=1)
            ax.annotate(f" {text}", (1, value), xycoords=("axes fraction", "data"), va="center", fontsize=9)
        _points(ax, [t["number"] + 1 for t in trials], trials, document)
        values = [t["value"] if t["state"] == "complete" else math.inf for t in trials]
        best = [b if math.isfinite(b) else math.nan for b in np.minimum.accumulate(values)]
        ax.step([t["number"] + 1 for t in trials], best, where="post", color=INK, lw=1.3, zorder=2)
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        ax.set(xlabel="trial", ylabel=f"objective '{document['objective']}'")
        said = f"{fmt.count(len(trials), 'trial')}; smallest value {min(t['value'] for t in trials):.3g}"
        return inline(fig, key, f"{document['method']['name']}: {said}")


def slices(document: Document, key: str) -> list[str]:
    """Return a chart a searched field: the value of every trial over the field's value.

    Args:
        document: of one tuned method.
        key: prefix of the ids, unique in the page.

    Returns:
        SVG elements.
    """
    return [_slice(document, name, f"{key}-{i}") for i, name in enumerate(document["space"])]


def plane(document: Document, key: str) -> str | None:
    """Return the two fields that matter most as a plane, each trial a dot in the colour of its value.

    Args:
        document: of one tuned method.
        key: prefix of the ids, unique in the page.

    Returns:
        An SVG element; None with fewer than two fields that are numbers, or three trials.
    """
    space, weight = document["space"], document["importance"]
    names = sorted((n for n in space if "low" in space[n]), key=lambda n: -weight.get(n, 0.0))[:2]
    trials = [t for t in _valued(document) if all(n in t["chosen"] for n in names)]
    values = [t["value"] for t in trials]
    if len(names) < 2 or len(trials) < 3 or min(values) == max(values):
        return None
    with style(key):
        fig = figure(*PLANE)
        ax = fig.add_subplot()
        x, y = ([t["chosen"][n] for t in trials] for n in names)
        log = min(values) > 0 and max(values) / min(values) > SPAN
        norm = (LogNorm if log else Normalize)(min(values), max(values))
        dots = ax.scatter(x, y, c=values, cmap="viridis_r", norm=norm, s=26, lw=0)
        best = next(t for t in _valued(document) if t["number"] == document["best"])
        if all(n in best["chosen"] for n in names):
            ax.plot(*(best["chosen"][n] for n in names), "*", color=VERMILION, ms=13, mew=0)
        for axis, name in zip("xy", names, strict=True):
            _field_axis(ax, axis, document, name)
        bar = fig.colorbar(dots, ax=ax, label="objective")
        if log:
            _decades(bar.ax.yaxis, min(values), max(values))
        bar.outline.set_visible(False)
        return inline(fig, key, f"{document['method']['name']}: value over {' and '.join(names)}")


def _slice(document: Document, name: str, key: str) -> str:
    trials = _valued(document)
    with style(key):
        fig = figure(*SLICE)
        ax = fig.add_subplot()
        choices = document["space"][name].get("choices")
        having = [t for t in trials if name in t["chosen"]]
        _value_axis(ax, [t["value"] for t in trials], [])
        at = [choices.index(t["chosen"][name]) if choices else t["chosen"][name] for t in having]
        default = next((t for t in trials if t["number"] == 0), None)
        start = default_of(document, name)
        if default is not None and (start in choices if choices else isinstance(start, int | float)):
            having, at = [default, *having], [choices.index(start) if choices else start, *at]
        elif default is not None:  # its value is no number, such as auto
            ax.axhline(default["value"], color=INK, lw=1.1, ls="--")
            where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "bottom", "fontsize": 9}
            ax.annotate(f"default: {fmt.plain(start, 12)}", (0.02, default["value"]), **where)
        _points(ax, at, having, document)
        if choices:
            ax.set_xticks(range(len(choices)), [fmt.plain(c, 12) for c in choices])
        else:
            _field_axis(ax, "x", document, name)
        ax.set_xlabel(_label(document, name))
        ax.set_title("objective", loc="left", fontsize=10)
        return inline(fig, key, f"{document['method']['name']}: value of {len(having)} trials over {name}")


def _valued(document: Document) -> list[Trial]:
    return [t for t in document["history"] if t["value"] is not None]


def _points(ax: Axes, at: Sequence[float], trials: Sequence[Trial], document: Document) -> None:
    """Draw trials: dots on all seeds, rings that were given up, the default a diamond, the chosen one a star."""
    for x, trial in zip(at, trials, strict=True):
        y = trial["value"]
        if trial["state"] != "complete":
            ax.plot(x, y, "o", mfc="none", mec=GREY, ms=4.5, zorder=2)
        elif trial["number"] not in (0, document["best"]):
            ax.plot(x, y, "o", color=BLUE, ms=5, mew=0, zorder=3)
        if trial["number"] == 0:
            ax.plot(x, y, "D", color=INK, ms=6.5, mew=0, zorder=4)
        if trial["number"] == document["best"]:
            ax.plot(x, y, "*", color=VERMILION, ms=13, mew=0, zorder=5)


def _value_axis(ax: Axes, values: Sequence[float], others: Sequence[float]) -> None:
    every = [*values, *others]
    if min(values) > 0 and max(every) / min(every) > SPAN:
        ax.set_yscale("log")
        _decades(ax.yaxis, min(every), max(every))
    ax.grid(axis="y")
    ax.set_axisbelow(True)


def _field_axis(ax: Axes, axis: str, document: Document, name: str) -> None:
    which = ax.xaxis if axis == "x" else ax.yaxis
    if document["space"][name].get("log"):
        (ax.set_xscale if axis == "x" else ax.set_yscale)("log")
        _decades(which, document["space"][name]["low"], document["space"][name]["high"])
    elif document["space"][name].get("whole"):
        which.set_major_locator(MaxNLocator(5, integer=True))
    which.set_label_text(_label(document, name))


def _decades(axis: Axis, low: float, high: float) -> None:
    """Mark a logarithmic axis at 1, 2 and 5 of each decade, of many decades at 1, in plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def _label(document: Document, name: str) -> str:
    symbol = document["space"][name].get("symbol")
    return fmt.plain(f"{name} ({symbol})" if symbol else name, 30)
