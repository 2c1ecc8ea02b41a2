"""Heat maps of the gaps to retrained, in yardsticks: rows are models, columns numbers by family or places."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report import layout, tables
from expunge.report.distance import UNCOUNTED, distance_class, length, told
from expunge.report.document import Section
from expunge.report.findings import farthest
from expunge.report.grids import Leaf, Line, lines

WIDEST = 22  # columns of a band
LONGEST = 46  # letters of a head
PART = 4  # columns of a family that are worth beginning at the end of a band
ALONE = 2  # numbers of a family that gets a heading of its own
NO_YARDSTICK = "no yardstick: neither a floor nor an interval was measured"
Metric = Mapping[str, Any]


@dataclass(frozen=True)
class Spot:
    """One cell of a heat map.

    Args:
        text: length of the gap in yardsticks without its sign of times, or a dash.
        more: a second line: the gap with its sign, or a count.
        distance: class 0 to 4 of the length; None where there is none.
        title: what it is made of, or why there is none.
        number: name of the number, where it is about one.
    """

    text: str
    more: str
    distance: int | None
    title: str
    number: str = ""


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        name: of the number.
        label: heading.
        first: whether a family begins with it.
    """

    name: str
    label: str
    first: bool = False


@dataclass(frozen=True)
class Family:
    """A heading over several columns.

    Args:
        title: name of the family.
        size: columns.
        text: what its numbers say.
    """

    title: str
    size: int
    text: str = ""


@dataclass(frozen=True)
class Band:
    """A heat map as wide as a page.

    Args:
        families: headings over the columns.
        columns: the numbers.
        rows: a row of spots for each line; empty where nothing is known of the model.
    """

    families: tuple[Family, ...]
    columns: tuple[Column, ...]
    rows: tuple[tuple[Line, tuple[Spot, ...]], ...]


def first(leaf: Leaf, methods: Sequence[str]) -> Band | None:
    """Return the heat map of the numbers that tell most, costs left out; None where there is none."""
    metrics = [] if leaf.section is None else [m for m in layout.key(leaf.section) if m["group"] != "cost"]
    if not metrics:
        return None
    columns = tuple(Column(str(m["name"]), str(m["label"])) for m in metrics)
    return Band((), columns, _rows(leaf, methods, columns))


def bands(leaf: Leaf, methods: Sequence[str], widest: int = WIDEST) -> list[Band]:
    """Return the heat map of every number that was measured, costs left out, in bands that fit a page.

    Args:
        leaf: a place of a grid.
        methods: names in the grid's order.
        widest: columns of a band.

    Returns:
        Bands in the order of a table; a family that does not fit into what is left of one goes on in the next.
    """
    out: list[list[tuple[Family, tuple[Column, ...]]]] = [[]]
    room = widest
    for family, columns in _families(leaf.section):
        left = columns
        while left:
            count = len(left) if len(left) <= room else room if room >= PART and len(left) >= room + ALONE else 0
            if count:
                out[-1].append((replace(family, size=count), (replace(left[0], first=True), *left[1:count])))
            left, room = left[count:], room - count
            if left:
                out.append([])
                room = widest
    return [_band(leaf, methods, parts) for parts in out if parts]


def _band(leaf: Leaf, methods: Sequence[str], parts: Sequence[tuple[Family, tuple[Column, ...]]]) -> Band:
    columns = tuple(column for _, some in parts for column in some)
    return Band(tuple(family for family, _ in parts), columns, _rows(leaf, methods, columns))


def _families(section: Section | None) -> list[tuple[Family, list[Column]]]:
    """Return each family's columns under short heads: single numbers together, and last those that show no trace."""
    if section is None:
        return []
    there = {m["name"] for m in layout.measured(section)}
    groups = {g: [m for m in ms if m["name"] in there] for g, ms in doc.groups(section).items() if g != "cost"}
    single = [m for g, ms in groups.items() if len(ms) < ALONE and g not in UNCOUNTED for m in ms]
    counted = [(g, ms) for g, ms in groups.items() if len(ms) >= ALONE and g not in UNCOUNTED]
    rest = [(g, groups[g]) for g in groups if g in UNCOUNTED]
    return [_family(group, metrics) for group, metrics in [*counted, ("", single), *rest] if metrics]


def _family(group: str, metrics: Sequence[Metric]) -> tuple[Family, list[Column]]:
    title = layout.TITLES.get(group, (group or layout.OTHER).capitalize())
    shared, heads = layout.shortened([str(m["label"]) for m in metrics], group)
    text = " ".join(filter(None, (layout.TEXTS.get(group, ""), f"Here: {shared}." if shared else "")))
    columns = [Column(str(m["name"]), _fitting(head + layout.unit(m))) for m, head in zip(metrics, heads, strict=True)]
    return Family(title, len(columns), text), columns


def _fitting(head: str) -> str:
    """Return a head short enough for two lines on end: first what stands in brackets goes, then its end."""
    return head if len(head) <= LONGEST else fmt.plain(re.sub(r" \([^)]*\)", "", head), LONGEST)


def _rows(leaf: Leaf, methods: Sequence[str], columns: Sequence[Column]) -> tuple[tuple[Line, tuple[Spot, ...]], ...]:
    section = leaf.section or {"models": [], "metrics": []}
    known = {row.model: row for row in tables.rows(section)}
    at = {m["name"]: i for i, m in enumerate(doc.metrics(section))}
    labels = {m["name"]: str(m["label"]) for m in section["metrics"]}
    found = []
    for line in lines(leaf, methods):
        cells = () if line.absent else tuple(known[line.model].cells[at[c.name]] for c in columns)
        found.append((line, tuple(_spot(cell, labels[cell.metric]) for cell in cells)))
    return tuple(found)


def _spot(cell: tables.Cell, label: str) -> Spot:
    if not cell.available:
        return Spot(fmt.MISSING, "", None, f"{label}: {cell.title}", cell.metric)
    title = f"{label}: {cell.text}; {cell.title}"
    if cell.distance is None:
        return Spot(fmt.MISSING, cell.gap, None, f"{title}; {NO_YARDSTICK}", cell.metric)
    own = cell.text.partition(" ")[0]  # a number with the ideal 0 is its own gap
    return Spot(cell.times.removesuffix("×"), cell.gap or own, cell.distance, title, cell.metric)


def typical(section: Section, model: Metric) -> float | None:
    """Return the median length of a model's gaps in yardsticks, over all numbers but costs and weights."""
    metrics = [m for m in section["metrics"] if m["group"] not in UNCOUNTED]
    lengths = [times for m in metrics if (times := length(section, model, m)) is not None]
    return median(lengths) if lengths else None


def overview(leaves: Sequence[Leaf], methods: Sequence[str]) -> list[tuple[Line, list[Spot]]]:
    """Return how far each model is from retrained at each place: the median over its numbers, and how many lie beyond.

    Args:
        leaves: the columns.
        methods: names in the grid's order.

    Returns:
        A row for every model that any leaf has; a spot for each leaf.
    """
    found = [{line.model: line for line in lines(leaf, methods)} for leaf in leaves]
    names = [name for name in dict.fromkeys(n for each in found for n in each) if name not in methods]
    rows = []
    for name in [*names, *methods]:
        spots = [_whole(leaf, each.get(name)) for leaf, each in zip(leaves, found, strict=True)]
        line = next(each[name] for each in found if name in each)
        rows.append((replace(line, absent="", partly=""), spots))
    return rows


def _whole(leaf: Leaf, line: Line | None) -> Spot:
    """Return a model's distance from retrained at one place, over all its numbers."""
    if line is None or line.entry is None or leaf.section is None or line.absent:
        return Spot(fmt.MISSING, "", None, line.absent if line is not None and line.absent else "not measured here")
    count, middle = told(leaf.section, line.entry), typical(leaf.section, line.entry)
    if middle is None:
        return Spot(fmt.MISSING, "", None, NO_YARDSTICK)
    title = f"beyond the yardstick on {count.beyond} of {fmt.count(count.measured, 'number')}"
    if count.farthest is not None:
        title += f", farthest in {farthest(count)}"
    if line.partly:
        title += f"; {line.partly}"
    return Spot(fmt.times(middle), f"{count.beyond} of {count.measured}", distance_class(middle), title)
