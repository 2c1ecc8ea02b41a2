"""What is kept over what is forgotten, along a setting: a line a family of methods, beside retrained and original."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from expunge.report import format as fmt
from expunge.report import labels, looks
from expunge.report.looks import Look
from expunge.report.svg import GREY, figure
from expunge.report.traces import Line, footnote, legend, number, wrapped
from expunge.stats import Interval

REFERENCES = ("original", "retrained")
SIDE, LOW, ALONE, HIGH = 300, 265, 500, 320  # pixels of a panel, and of one alone
MARGIN, FOOT, NAMED, NOTED = 40, 60, 15, 13  # pixels beside and below, of a row of the legend, of a line of the note
LETTERS, RADIUS = 9.0, 4.5  # of a label and of a mark, in pixels
SMALLEST, LARGEST = 3.6, 7.4  # marks along a line
SINGLE = "P*v<>dpH"  # marks of methods off any line
WIDE = 3  # panels side by side


@dataclass(frozen=True)
class Axis:
    """One direction of the plane.

    Args:
        label: of the number.
        unit: ``1`` for a share.
    """

    label: str
    unit: str

    def text(self) -> str:
        """Return the label with its unit."""
        unit = "%" if self.unit == "1" else self.unit
        return f"{self.label}, {unit}" if unit else self.label


@dataclass(frozen=True)
class Spot:
    """One model: its two numbers, means over seeds with their intervals, in their own unit.

    Args:
        label: value of the setting, or an empty string.
        x: what is forgotten.
        y: what is kept.
    """

    label: str
    x: Interval
    y: Interval


@dataclass(frozen=True)
class Family:
    """Methods that differ in the setting alone, or one model by itself.

    Args:
        name: in the legend.
        spots: in the order of the setting.
    """

    name: str
    spots: tuple[Spot, ...]


@dataclass(frozen=True)
class Plane:
    """The models of one place.

    Args:
        head: heading.
        families: lines, single methods, original and retrained.
    """

    head: str
    families: tuple[Family, ...]


@dataclass(frozen=True)
class Chart:
    """Planes of one figure.

    Args:
        planes: one a place.
        across: of the numbers across.
        up: of the numbers upwards.
        setting: along which points are joined, as its symbol or name.
        note: below the panels.
    """

    planes: tuple[Plane, ...]
    across: Axis
    up: Axis
    setting: str
    note: str = ""

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in pixels."""
        wide = min(WIDE, len(self.planes))
        rows = -(-len(self.planes) // wide)
        width, height = (MARGIN + ALONE, HIGH) if wide == 1 else (MARGIN + SIDE * wide, LOW * rows)
        words = NAMED * len(self._look()) / 3 + NOTED * len(wrapped(self.note, width))
        return width, height + FOOT + words

    def draw(self) -> Figure:
        """Return the figure; inside `expunge.report.svg.style`."""
        fig, look, wide = figure(*self.size, apart=0.05), self._look(), min(WIDE, len(self.planes))
        grid = fig.subplots(-(-len(self.planes) // wide), wide, squeeze=False)
        axes = list(grid.flat)
        for ax, plane in zip(axes, self.planes, strict=False):
            self._plane(ax, plane, look)
        for ax in axes[len(self.planes) :]:
            ax.set_axis_off()
        legend(fig, [Line(name, each, ()) for name, each in look.items()], self.size[0])
        footnote(fig, self.note, self.size[0])
        fig.get_layout_engine().execute(fig)  # type: ignore[union-attr]
        fig.set_layout_engine("none")  # what is written beside points must not move them
        for ax, plane in zip(axes, self.planes, strict=False):
            self._names(ax, plane)
        return fig

    def told(self) -> str:
        """Return what the figure shows, for those who cannot see it."""
        parts = []
        for plane in self.planes:
            found = [f"{family.name}: {', '.join(self._spots(family))}" for family in plane.families]
            parts.append(f"{plane.head}: {'; '.join(found)}")
        return f"{self.up.label} over {self.across.label}. {'. '.join(parts)}"

    def _spots(self, family: Family) -> Iterator[str]:
        for spot in family.spots:
            value = f"{_text(spot.y, self.up)} over {_text(spot.x, self.across)}"
            yield f"{self.setting} = {spot.label} {value}" if spot.label else value

    def _look(self) -> Mapping[str, Look]:
        """Return how each family is drawn in every panel: lines in colours, single methods in grey."""
        families = [family for plane in self.planes for family in plane.families]
        lines = dict.fromkeys(family.name for family in families if len(family.spots) > 1)
        names = dict.fromkeys([*REFERENCES, *lines, *(family.name for family in families)])
        models = [
            {"name": n, "role": n if n in REFERENCES else "method"} for n in names if n in REFERENCES or n in lines
        ]
        found = looks.looks([{"models": models}])
        alone = cycle(Look(GREY, marker, "") for marker in SINGLE)
        shown = {family.name for family in families}
        every = {name: found.get(name) or next(alone) for name in names if name in shown}
        return {name: look if name in lines else replace(look, line="") for name, look in every.items()}

    def _plane(self, ax: Axes, plane: Plane, look: Mapping[str, Look]) -> None:
        by = fmt.scale(self.across.unit), fmt.scale(self.up.unit)
        spots = [spot for family in plane.families for spot in family.spots]
        ax.set_xlim(*_ends([by[0] * s.x.x for s in spots], self.across.unit))
        ax.set_ylim(*_ends([by[1] * s.y.x for s in spots], self.up.unit))
        for family in plane.families:
            _family(ax, family, look[family.name], by, cross=family.name == "retrained")
        for axis, unit in ((ax.xaxis, self.across.unit), (ax.yaxis, self.up.unit)):
            mark = "%" if unit == "1" else ""
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
            axis.set_major_formatter(FuncFormatter(lambda v, _, mark=mark: f"{number(v)}{mark}"))
        ax.set_title(fmt.plain(plane.head, 48), fontsize=10.5)
        ax.set_xlabel(self.across.text())
        ax.set_ylabel(self.up.text())
        ax.grid(visible=True)
        ax.set_axisbelow(True)

    def _names(self, ax: Axes, plane: Plane) -> None:
        """Write the setting's values beside their points where there is room, those at the ends of a line first.

        The size of a mark says the order where there is none.
        """
        by = fmt.scale(self.across.unit), fmt.scale(self.up.unit)
        ranked = [(_rank(i, len(f.spots)), spot) for f in plane.families for i, spot in enumerate(f.spots)]
        order = [spot for _, spot in sorted(ranked, key=lambda pair: pair[0])]
        places = [ax.transData.transform((by[0] * s.x.x, by[1] * s.y.x)) for s in order]
        points = [(float(x), float(y)) for x, y in places]
        named = [(spot, point) for spot, point in zip(order, points, strict=True) if spot.label]
        box = ax.get_window_extent()
        sizes = [labels.extent(spot.label, LETTERS) for spot, _ in named]
        frame = (box.x0, box.y0, box.x1, box.y1)
        found = labels.place([point for _, point in named], sizes, frame, RADIUS, points)
        for (spot, _), offset in zip(named, found, strict=True):
            if offset is not None and not offset.far:
                ax.annotate(
                    spot.label,
                    (by[0] * spot.x.x, by[1] * spot.y.x),
                    xytext=(offset.across, offset.up),
                    textcoords="offset points",
                    ha="center",
                    va="center",
                    fontsize=LETTERS,
                )


def _rank(at: int, of: int) -> int:
    """Return how late a point of a line is labelled."""
    return 0 if at in (0, of - 1) else 1


def _text(found: Interval, axis: Axis) -> str:
    entry = {"x": found.x, "low": found.low, "high": found.high, "n": found.n, "unit": axis.unit}
    return fmt.value(entry if math.isfinite(found.low) else entry | {"low": None, "high": None})


def _ends(values: Sequence[float], unit: str) -> tuple[float, float]:
    """Return the ends of an axis by its points alone: intervals of few seeds reach far, and are cut at the frame."""
    low, high = min(values), max(values)
    least = 2.0 if unit == "1" else 0.02 * max(abs(low), abs(high)) or 1.0
    pad = 0.08 * max(high - low, least) + max(0.0, least - (high - low)) / 2
    return low - pad, high + pad


def _family(ax: Axes, family: Family, look: Look, by: tuple[float, float], cross: bool) -> None:
    """Draw a line with its points, larger marks for larger values, and their intervals."""
    x, y = ([by[i] * end.x for end in ends] for i, ends in enumerate(_sides(family)))
    if cross:  # where one wants to be, on both sides
        for drawn in (ax.axvline(x[0]), ax.axhline(y[0])):
            drawn.set(color=look.colour, lw=1.0, ls=(0, (1, 2)), zorder=1)
    for spot in family.spots:
        ends = [(by[0] * spot.x.low, by[0] * spot.x.high), (by[1] * spot.y.low, by[1] * spot.y.high)]
        for side, (low, high) in enumerate(ends):
            if math.isfinite(low) and math.isfinite(high):
                fixed = [by[1 - side] * (spot.x, spot.y)[1 - side].x] * 2
                arm = [_cut(ax, side, low), _cut(ax, side, high)]
                ax.plot(*([arm, fixed] if side == 0 else [fixed, arm]), color=look.colour, lw=0.9, alpha=0.55)
    if len(x) > 1:
        ax.plot(x, y, **look.stroke())
    for i, (across, up) in enumerate(zip(x, y, strict=True)):
        size = SMALLEST + (LARGEST - SMALLEST) * i / (len(x) - 1) if len(x) > 1 else LARGEST
        ax.plot(across, up, marker=look.marker, color=look.colour, ms=size, mew=0, zorder=4)


def _sides(family: Family) -> tuple[list[Interval], list[Interval]]:
    return [spot.x for spot in family.spots], [spot.y for spot in family.spots]


def _cut(ax: Axes, side: int, value: float) -> float:
    low, high = ax.get_xlim() if side == 0 else ax.get_ylim()
    return min(max(value, low), high)
