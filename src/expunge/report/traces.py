"""Curves of what edits recorded over steps or epochs: panels of lines, a line a seed or a mean with its interval."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from expunge import stats
from expunge.report import format as fmt
from expunge.report import labels, recorded
from expunge.report.looks import Look
from expunge.report.recorded import Points, Quantity
from expunge.report.svg import figure, inline, style

Over = Literal["steps", "epochs"]
Scale = Literal["auto", "linear", "log"]
Placed = Sequence[tuple[Axes, "Panel"]]

ONE = "What the method recorded while it took its steps."
TEXT = (
    f"{ONE} Lines are means over seeds, bands their 95% t intervals, cut at the frame; thin lines are single seeds "
    "beyond the last point that all have."
)
SPAN = 100.0  # largest over smallest positive value beyond which an axis is logarithmic
BAND: dict[str, Any] = {"alpha": 0.13, "lw": 0}
LEAST = 10.0  # points of percent that an axis of shares spans, at least
MARKS = 12  # markers on a line, at most
PANEL, MARGIN, ROW, ALONE, FOOT = 265, 75, 165, 270, 62  # pixels; a row alone is higher
SMALL, LOW, WIDE = 235, 150, 3  # width and height of a panel in a page, panels side by side there
LETTER = 5.1  # pixels of a letter of a note
NAME = 40  # letters of a label
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Line:
    """One quantity of one model.

    Args:
        label: in the legend.
        look: how it is drawn.
        runs: of each training seed.
    """

    label: str
    look: Look
    runs: tuple[Points, ...]


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Args:
        quantity: what is drawn upwards.
        lines: what is drawn; empty for a panel in which nothing is.
    """

    quantity: Quantity
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Chart:
    """Panels of one figure.

    Args:
        rows: panels; those of a row share what is drawn upwards, and its axis.
        heads: a heading for each column, or none: then each panel has its quantity as its heading, and its own axis.
        over: what is counted sideways.
        scale: of the upward axes; ``auto`` is logarithmic where values span much.
        each: a line for every seed, instead of the mean with its 95 % interval.
        note: below the panels.
    """

    rows: tuple[tuple[Panel, ...], ...]
    heads: tuple[str, ...] = ()
    over: Over = "steps"
    scale: Scale = "auto"
    each: bool = False
    note: str = ""

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in pixels."""
        columns, rows = len(self.rows[0]), len(self.rows)
        if not self.heads:
            return 20 + SMALL * columns, 40 + LOW * rows
        wide = MARGIN + (2 * PANEL if columns == 1 else PANEL * columns)
        return wide, FOOT + (ALONE if rows == 1 else ROW * rows) + 13 * len(wrapped(self.note, wide))

    def draw(self) -> Figure:
        """Return the figure; inside `expunge.report.svg.style`."""
        fig = figure(*self.size, apart=0.03)
        grid = fig.subplots(len(self.rows), len(self.rows[0]), squeeze=False, sharex="col" if self.heads else False)
        for axes, row in zip(grid, self.rows, strict=True):
            pairs = list(zip(axes, row, strict=True))
            for some in [pairs] if self.heads else [[pair] for pair in pairs]:
                self._share(some)
        self._words(grid)
        legend(fig, [line for row in self.rows for panel in row for line in panel.lines], self.size[0])
        footnote(fig, self.note, self.size[0])
        return fig

    def told(self) -> str:
        """Return what the figure shows, for those who cannot see it: where each line ends."""
        heads = self.heads or ("",) * len(self.rows[0])
        parts = [_told(panel, head) for row in self.rows for panel, head in zip(row, heads, strict=True) if panel.lines]
        return f"Over {self.over}, at the last point. {'. '.join(parts)}"

    def lost(self) -> list[str]:
        """Return what a logarithmic axis does not show, a sentence a row."""
        found = []
        for row in self.rows:
            quantity, values = row[0].quantity, _values(row)
            low = sum(y <= 0 for y in values)
            if low and self._logarithmic(values, quantity):
                count = fmt.count(low, "value")
                found.append(f"{quantity.label}: {count} of 0 or below, which a logarithmic axis does not show.")
            elif low and self.scale == "log":
                found.append(f"{quantity.label}: nothing above 0, so that its axis is linear.")
        return found

    def _share(self, placed: Placed) -> None:
        """Draw panels of one quantity with one upward axis."""
        quantity = placed[0][1].quantity
        by, values = fmt.scale(quantity.unit), _values([panel for _, panel in placed])
        log = self._logarithmic(values, quantity)
        for ax, panel in placed:
            if not panel.lines:
                ax.set_axis_off()
                ax.text(0.5, 0.5, "not recorded" if self.heads else "", transform=ax.transAxes, ha="center", fontsize=9)
                continue
            _upward(ax, values, quantity.unit, log)
            for line in panel.lines:
                _line(ax, line, by, self.each)

    def _logarithmic(self, values: Sequence[float], quantity: Quantity) -> bool:
        """Return whether an axis is logarithmic: never where nothing is above 0."""
        above = [y for y in values if y > 0]
        if self.scale != "auto" or not above:
            return self.scale == "log" and bool(above)
        return quantity.spans and min(values) >= 0 and max(above) / min(above) > SPAN

    def _words(self, grid: Any) -> None:
        """Write headings and labels: of columns and rows, or of each panel."""
        for i, row in enumerate(self.rows):
            below = self.rows[i + 1] if i + 1 < len(self.rows) else None
            for j, panel in enumerate(row):
                ax = grid[i][j]
                title = (self.heads[j] if i == 0 else "") if self.heads else panel.quantity.axis
                ax.set_title("\n".join(textwrap.wrap(fmt.plain(title, 90), 38)), fontsize=10.5 if self.heads else 10)
                if self.heads and panel is next((p for p in row if p.lines), None):
                    ax.set_ylabel("\n".join(textwrap.wrap(panel.quantity.axis, 24)))
                elif self.heads:
                    ax.tick_params(labelleft=False)
                if below is None or (not self.heads and not below[j].lines):
                    ax.set_xlabel(self.over)
                _sideways(ax.xaxis)


def _values(panels: Sequence[Panel]) -> list[float]:
    """Return all finite values of panels of one quantity, as printed."""
    found = (y for panel in panels for line in panel.lines for run in line.runs for _, y in run)
    return [fmt.scale(panels[0].quantity.unit) * y for y in found if math.isfinite(y)]


def edit(runs: Sequence[Mapping[str, recorded.Pairs]], key: str, loss_unit: str = "") -> str | None:
    """Return what one model's edits recorded as small charts for a page: means over seeds, with their intervals.

    Args:
        runs: of each seed the numbers recorded step by step, by name, as `expunge.report.recorded.series` has them.
        key: prefix of the ids, unique in the page.
        loss_unit: unit of the task's loss, where it is known.

    Returns:
        An SVG element; None where no name has two points.
    """
    every = dict.fromkeys(name for run in runs for name in run)
    names = [name for name in every if any(len(run.get(name, ())) > 1 for run in runs)]
    if not names:
        return None
    made = [_panel(some, runs, loss_unit) for some in recorded.panels(names)]
    made += [Panel(Quantity(""), ())] * (-len(made) % WIDE)
    chart = Chart(tuple(tuple(made[i : i + WIDE]) for i in range(0, len(made), WIDE)))
    with style(key):
        return inline(chart.draw(), key, chart.told())


def _panel(names: Sequence[str], runs: Sequence[Mapping[str, recorded.Pairs]], loss_unit: str) -> Panel:
    found = {name: tuple(recorded.points(run[name]) for run in runs if name in run) for name in names}
    if len(names) == 1:
        return Panel(recorded.quantity(names[0], loss_unit), (Line("", recorded.ALONE, found[names[0]]),))
    look = recorded.named(names)
    lines = tuple(Line(recorded.quantity(name).label, look[name], found[name]) for name in names)
    return Panel(recorded.shared(names, loss_unit), lines)


@dataclass(frozen=True)
class Course:
    """Several seeds as one line.

    Args:
        steps: that all seeds have.
        means: over the seeds at these steps, with their intervals.
        rest: of each seed what it has after the last of these steps, that step included.
    """

    steps: tuple[float, ...]
    means: tuple[stats.Interval, ...]
    rest: tuple[Points, ...]


def course(runs: Sequence[Points]) -> Course:
    """Return the mean over seeds at the steps that all of them have, and what single seeds have beyond.

    A mean over the seeds that are left would jump where one ends, and show those that took longest.

    Args:
        runs: of each seed.

    Returns:
        Mean and 95 % t interval by step; where a seed is not finite the mean is not either.

    >>> found = course([[(1, 1.0), (2, 3.0)], [(1, 2.0), (2, 4.0), (3, 9.0)]])
    >>> found.steps, [m.x for m in found.means], found.rest
    ((1, 2), [1.5, 3.5], (((2, 4.0), (3, 9.0)),))
    """
    by = [dict(run) for run in runs]
    common = sorted(set.intersection(*(set(run) for run in by)))
    means = tuple(_mean([run[step] for run in by]) for step in common)
    last = common[-1] if common else -math.inf
    rest = [tuple((s, y) for s, y in run if s >= last) for run in runs]
    return Course(tuple(common), means, tuple(some for some in rest if len(some) > (1 if common else 0)))


def _mean(values: Sequence[float]) -> stats.Interval:
    if all(map(math.isfinite, values)):
        return stats.mean_t(values)
    return stats.Interval(math.nan, math.nan, math.nan, len(values))


def _line(ax: Axes, line: Line, by: float, each: bool) -> None:
    stroke = line.look.stroke() | {"marker": line.look.marker, "ms": 4.2, "mew": 0}
    if each or len(line.runs) == 1:
        for run in line.runs:
            thin = {"lw": 1.0, "alpha": 0.75} if len(line.runs) > 1 else {}
            ax.plot([s for s, _ in run], [by * y for _, y in run], **stroke | thin | _spaced(len(run)))
        return
    found = course(line.runs)
    low, high = ([by * getattr(m, end) for m in found.means] for end in ("low", "high"))
    least, most = _range(ax, line, by)
    ax.fill_between(found.steps, np.maximum(low, least), np.minimum(high, most), **BAND, color=line.look.colour)
    ax.plot(found.steps, [by * m.x for m in found.means], **stroke | _spaced(len(found.steps)))
    for run in found.rest:
        ax.plot([s for s, _ in run], [by * y for _, y in run], **stroke | {"lw": 0.8, "alpha": 0.7, "marker": ""})


def _range(ax: Axes, line: Line, by: float) -> tuple[float, float]:
    """Return where a band is cut: a share at 0 and 100 %, on a logarithmic axis at its lower end."""
    if ax.get_yscale() == "log":
        return ax.get_ylim()[0], math.inf
    values = [by * y for run in line.runs for _, y in run if math.isfinite(y)]
    share = by == fmt.scale("1") and min(values) >= 0 and max(values) <= by
    return (0.0, by) if share else (-math.inf, math.inf)


def _spaced(n: int) -> dict[str, Any]:
    return {"markevery": max(1, -(-n // MARKS))}


def _upward(ax: Axes, values: Sequence[float], unit: str, log: bool) -> None:
    """Set the upward axis by the seeds' own values: intervals of few seeds reach far, and are cut at the frame."""
    if log:
        above = [y for y in values if y > 0]
        ax.set_yscale("log")
        ax.set_ylim(min(above) / 1.5, max(above) * 1.5)
        some = (1,) if max(above) > 1e4 * min(above) else (1, 3) if max(above) > 1e2 * min(above) else (1, 2, 5)
        ax.yaxis.set_major_locator(LogLocator(subs=some, numticks=7))
        ax.yaxis.set_minor_locator(NullLocator())
    else:
        low, high = min(values, default=0.0), max(values, default=1.0)
        if unit == "1" and low >= 0 and high <= 100:  # a few points must not look like a gulf
            middle = min(max((low + high) / 2, LEAST / 2), 100 - LEAST / 2)
            low, high = min(low, middle - LEAST / 2), max(high, middle + LEAST / 2)
        pad = 0.06 * ((high - low) or abs(high) or 1.0)
        ax.set_ylim(low - pad, high + pad)
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    mark = "%" if unit == "1" else ""
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{number(y)}{mark}"))
    ax.grid(axis="y")
    ax.set_axisbelow(True)


def _sideways(axis: Axis) -> None:
    axis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_major_formatter(FuncFormatter(lambda x, _: number(x)))


def number(x: float) -> str:
    """Return the number of a tick.

    >>> number(1500), number(0.0008), number(-2e-7), number(1e5)
    ('1,500', '0.0008', '−2×10⁻⁷', '10⁵')
    """
    size = abs(x)
    if size == 0 or 1e-4 <= size < 1e5:
        return f"{x:,.10g}".replace("-", "−")
    mantissa, power = f"{x:.2e}".split("e")
    head = f"{float(mantissa):g}".replace("-", "−")
    exponent = str(int(power)).translate(SUPERSCRIPT)
    return f"10{exponent}" if head == "1" else f"{head}×10{exponent}"


def legend(fig: Figure, lines: Sequence[Line], width: float) -> None:
    """Write each label once, above the panels, in as many columns as there is room for.

    Args:
        fig: the figure.
        lines: what is drawn; labels that are empty are left out.
        width: of the figure, in pixels.
    """
    once = {fmt.plain(line.label, NAME): line.look for line in lines if line.label}
    if not once:
        return
    handles = [
        Line2D([], [], label=name, marker=look.marker, ms=5.5, mew=0, **look.stroke()) for name, look in once.items()
    ]
    widest = max(labels.extent(name, 10)[0] for name in once) + 62
    columns = max(1, min(len(once), int((width - 20) // widest)))
    fig.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=2.6, columnspacing=1.6)


def footnote(fig: Figure, text: str, width: float) -> None:
    """Write a note below the panels, in lines as wide as the figure."""
    if text:
        fig.supxlabel("\n".join(wrapped(text, width)), x=0.012, ha="left", fontsize=9)


def wrapped(text: str, width: float) -> list[str]:
    """Return a note in lines of a figure so many pixels wide."""
    return textwrap.wrap(fmt.plain(text), int(width / LETTER))


def _told(panel: Panel, head: str) -> str:
    unit = panel.quantity.unit
    ends = [f"{line.label} {_last(line, unit)}".strip() for line in panel.lines]
    return f"{head + ': ' if head else ''}{panel.quantity.label}: {'; '.join(ends)}"


def _last(line: Line, unit: str) -> str:
    """Return the mean over seeds of where a line ends, in words."""
    ends = [run[-1][1] for run in line.runs if run and math.isfinite(run[-1][1])]
    if not ends:
        return "not finite"
    return f"{fmt.digits(sum(ends) / len(ends), unit)}{fmt.suffix(unit)}"
