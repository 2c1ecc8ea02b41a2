"""The trade-off of forgetting, keeping and time, drawn: scatter plots with the front, intervals, seeds and names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import Transform

from expunge.report import format as fmt
from expunge.report import labels
from expunge.report.charts import NAME
from expunge.report.looks import Look
from expunge.report.pareto import Mark, Trade, front
from expunge.report.svg import BLUE, GREY, INK, SKY, Dot, figure, inline, style

WIDTH, HEIGHT, ALONE = 850, 430, 620
LETTERS = 9.5  # size of a label
RADIUS = 5.0  # of a mark
APART, APART_SMALL = 0.07, 0.17  # least distance of two ticks, a share of the axis
DECADES = 5  # below the end of an axis, in which ticks are looked for
ARROW: Any = {"arrowstyle": "-", "color": GREY, "lw": 0.7, "shrinkA": 0, "shrinkB": 5}


def chart(found: Trade, look: Mapping[str, Look], ids: Mapping[str, str], links: Mapping[str, str], key: str) -> str:
    """Return the trade-off as scatter plots: forget side against what was to stay, and both against time.

    Args:
        found: the trade-off.
        look: how each model is drawn.
        ids: of the models' symbols in the page.
        links: address of each model's cells.
        key: prefix of the ids, unique in the page.

    Returns:
        An SVG element.
    """
    timed = any(mark.time is not None and mark.line.role == "method" for mark in found.marks)
    with style(key):
        fig = figure(WIDTH if timed else ALONE, HEIGHT, apart=0.06)
        places = fig.add_gridspec(2, 2 if timed else 1, width_ratios=(1.75, 1) if timed else None)
        ax = fig.add_subplot(places[:, 0])
        panels = [(ax, "forget", "kept")]
        if timed:
            above, below = (fig.add_subplot(places[row, 1]) for row in (0, 1))
            panels += [(above, "time", "forget"), (below, "time", "kept")]
        dots = [dot for panel in panels for dot in _panel(found, *panel, look, ids, links, small=panel[0] is not ax)]
        fig.get_layout_engine().execute(fig)  # type: ignore[union-attr]
        fig.set_layout_engine("none")
        _label(ax, found)
        return inline(fig, key, _told(found), dots)


def _told(found: Trade) -> str:
    parts = [f"{m.line.model} {m.forget.x:.3g} and {m.kept.x:.3g}" for m in found.marks]
    return f"Distance from retrained in {found.forget['label']} and in {found.kept['label']}: {'; '.join(parts)}"


def _panel(
    found: Trade,
    ax: Axes,
    across: str,
    up: str,
    look: Mapping[str, Look],
    ids: Mapping[str, str],
    links: Mapping[str, str],
    small: bool,
) -> list[Dot]:
    """Draw axes, floor, front and intervals of one pair of sides, and return its marks."""
    shown = [m for m in found.marks if getattr(m, across) is not None and getattr(m, up) is not None]
    for name, axis in ((across, "x"), (up, "y")):
        _axis(ax, axis, found, name, shown, small)
    floors = dict(zip(("forget", "kept"), found.floors, strict=True))
    _floor(ax, floors.get(across), floors.get(up))
    if "time" in (across, up):
        ax.axvline(1, color=BLUE, lw=1.2)
    ours = [(getattr(m, across).x, getattr(m, up).x) for m in shown if m.line.role == "method"]
    _stairs(ax, ours)
    dots = []
    for mark in shown:
        x, y, drawn = getattr(mark, across), getattr(mark, up), look[mark.line.model]
        for ends, fixed, flat in ((x, y.x, True), (y, x.x, False)):
            if math.isfinite(ends.low) and math.isfinite(ends.high):
                limits = ax.get_xlim() if flat else ax.get_ylim()
                line = ([max(ends.low, limits[0]), min(ends.high, limits[1])], [fixed, fixed])
                ax.plot(*(line if flat else line[::-1]), color=drawn.colour, lw=1.1, alpha=0.75)
        symbol = ids[mark.line.model]
        if not small and len(mark.seeds) > 1:
            dots += [
                Dot(ax, s.forget, s.kept, symbol, f"{mark.line.model}, seed {s.seed}", size=7, opacity=0.35)
                for s in mark.seeds
            ]
    for mark in shown:
        x, y = getattr(mark, across).x, getattr(mark, up).x
        title = f"{mark.line.model}: {_value(found, across, x)}, {_value(found, up, y)}"
        dots.append(Dot(ax, x, y, ids[mark.line.model], title, links[mark.line.model], size=11 if small else 14))
    return dots


def _value(found: Trade, side: str, x: float) -> str:
    if side == "time":
        return f"{fmt.times(x)} the time of the fastest retraining" if x >= 0.05 else f"{x:.2g}× the time"
    metric = found.forget if side == "forget" else found.kept
    unit = str(metric["unit"])
    return f"{fmt.digits(x / fmt.scale(unit), unit)}{fmt.suffix(unit, gap=True)} in {metric['label']}"


def _axis(ax: Axes, axis: str, found: Trade, side: str, shown: Sequence[Mark], small: bool) -> None:
    """Set an axis: time is logarithmic, a distance linear up to about the floor and logarithmic beyond it."""
    which, name = (ax.xaxis, "x") if axis == "x" else (ax.yaxis, "y")
    ends = [getattr(m, side).x for m in shown]  # intervals of few seeds reach far: they are cut at the frame
    ends += [getattr(s, side) for m in shown for s in m.seeds if getattr(s, side) is not None]
    if side == "time":
        low, high = min([*ends, 1.0]) / 1.6, max([*ends, 1.0]) * 1.6
        ax.set(**{f"{name}scale": "log", f"{name}lim": (low, high)})
        label, small_label = "time of the edit ÷ fastest retraining", ""
    else:
        metric, floor = (found.forget, found.floors[0]) if side == "forget" else (found.kept, found.floors[1])
        unit = str(metric["unit"])
        step = fmt.resolution(unit) * fmt.scale(unit)
        high = 1.25 * max([*ends, 4 * step or 1e-3])
        bend = max(floor or 0.0, 5 * step, high / 300)
        (ax.set_xscale if name == "x" else ax.set_yscale)("symlog", linthresh=bend, linscale=0.7)
        low = -0.14 * bend
        ax.set(**{f"{name}lim": (low, high)})
        small_label = f"{metric['label']},{fmt.suffix(unit, gap=True)}"
        label = f"{metric['label']}: distance from retrained,{fmt.suffix(unit, gap=True)}"
    which.set_major_locator(FixedLocator(_ticks(which.get_transform(), low, high, APART_SMALL if small else APART)))
    which.set_minor_locator(NullLocator())
    which.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,g}"))
    which.set_label_text("" if small_label and small else fmt.plain(label, 90), fontsize=9 if small else 10)
    if small and small_label:
        ax.set_title(fmt.plain(small_label, 46), fontsize=9, fontweight="normal", loc="left", pad=6)
    ax.grid(visible=True)
    ax.set_axisbelow(True)


def _ticks(transform: Transform, low: float, high: float, apart: float) -> list[float]:
    """Return ticks of 0 and of 1, 5, 2 and 3 in each decade, first the round ones, wherever there is room.

    Args:
        transform: of the axis.
        low: its lower end.
        high: its upper end.
        apart: least distance between two, a share of the axis.
    """
    first, last = transform.transform([low, high])
    kept = [0.0] if low < 0 else []
    decades = range(math.floor(math.log10(high)) - DECADES, math.ceil(math.log10(high)) + 1)
    for digit in (1, 5, 2, 3):
        for tick in (round(digit * 10.0**e, 12) for e in reversed(decades)):
            places = (np.asarray(transform.transform([*kept, tick])) - first) / (last - first)
            if max(low, 0.0) < tick <= high and all(abs(places[:-1] - places[-1]) >= apart):
                kept.append(tick)
    return sorted(kept)


def _floor(ax: Axes, across: float | None, up: float | None) -> None:
    """Shade what is no farther from retrained than a second retrained model."""
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    if across is not None:
        ax.add_patch(Rectangle((left, low), across - left, (up or high) - low, color=SKY, alpha=0.28, lw=0))
    elif up is not None:
        ax.add_patch(Rectangle((left, low), right - left, up - low, color=SKY, alpha=0.28, lw=0))


def _stairs(ax: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Draw the front as stairs: what lies above and to the right of them is dominated."""
    best = sorted({p for p, kept in zip(points, front(points), strict=True) if kept})
    if not best:
        return
    right, top = ax.get_xlim()[1], ax.get_ylim()[1]
    x, y = [best[0][0]], [top]
    for (ax_, ay), after in zip(best, [*best[1:], None], strict=True):
        x += [ax_, right if after is None else after[0]]
        y += [ay, ay]
    ax.plot(x, y, color=INK, lw=1.1, ls=(0, (4, 2.5)), alpha=0.55, zorder=1.5)


def _label(ax: Axes, found: Trade) -> None:
    """Write the models' names beside their marks, those of methods first; who finds no room is in the list above."""
    marks = sorted(found.marks, key=lambda m: m.line.role != "method")
    places = [ax.transData.transform((m.forget.x, m.kept.x)) for m in marks]
    points = [(float(x), float(y)) for x, y in places]
    names = [fmt.plain(m.line.model, NAME) for m in marks]
    box = ax.get_window_extent()
    offsets = labels.place(
        points, [labels.extent(n, LETTERS) for n in names], (box.x0, box.y0, box.x1 + 30, box.y1), RADIUS
    )
    for mark, name, offset in zip(marks, names, offsets, strict=True):
        if offset is not None:
            ax.annotate(
                name,
                (mark.forget.x, mark.kept.x),
                xytext=(offset.across, offset.up),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=LETTERS,
                arrowprops=ARROW if offset.far else None,
            )
