"""The benchmark's tables as text: numbers of each place and step, ranks, costs, and how numbers decay over requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from expunge.bench import remarks
from expunge.bench.comparison import EDITS, PARTS, PREPARE, Comparison, Cost, Row
from expunge.bench.grid import Grid
from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report.distance import distance_class, length
from expunge.report.document import Entry
from expunge.report.layout import unit
from expunge.report.tables import head
from expunge.stats import Interval

FLOOR, LOG = "floor", "log: "
MARKS = {"like": " ≈", "farther": " >", "nearer": " <", "": ""}
HEADS = {PREPARE: "prepare", EDITS: "edits", "measure": "audit"}


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Args:
        text: the value, or a dash.
        gap: the signed gap to retrained, or an empty string.
        title: what a reader may ask for: n, or why there is a dash.
        distance: class 0 to 4 of the gap by its length, or None.
    """

    text: str = fmt.MISSING
    gap: str = ""
    title: str = ""
    distance: int | None = None


@dataclass(frozen=True)
class Line:
    """One row of a table.

    Args:
        name: of the model.
        cells: one for each head.
        role: of the model.
        said: why nothing is known of it, or on how many seeds it rests.
    """

    name: str
    cells: tuple[Cell, ...]
    role: str = ""
    said: str = ""

    @property
    def floor(self) -> bool:
        """Whether it says how far retrained models lie apart, and is no model."""
        return self.name == self.role == FLOOR

    @property
    def empty(self) -> bool:
        """Whether no cell holds anything."""
        return all(cell.text == fmt.MISSING for cell in self.cells)


@dataclass(frozen=True)
class Head:
    """Over a column.

    Args:
        long: in words.
        short: for a narrow column, of several lines.
        tied: whether it belongs to the column before it.
    """

    long: str
    short: str
    tied: bool = False


@dataclass(frozen=True)
class Sheet:
    """One table.

    Args:
        title: heading.
        text: a sentence on it, or an empty string.
        first: over the names.
        heads: over the columns.
        lines: rows.
        notes: under it, in sentences.
    """

    title: str
    text: str
    first: str
    heads: tuple[Head, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()


def sheets(grid: Grid, comparisons: Sequence[Comparison], *, compact: bool = False) -> list[Sheet]:
    """Return the tables of a grid: of each place and step its numbers, ranks and costs, and of each place the decay.

    Args:
        grid: that asked for them.
        comparisons: one a place and step, steps of a place after each other.
        compact: numbers without spaces and percent signs, for a terminal.

    Returns:
        The tables.
    """
    found = []
    for _, several in groupby(comparisons, key=lambda c: c.group.place):
        steps = list(several)
        for comparison in steps:
            found += [_main(grid, comparison, compact), *_ranks(comparison), *_costs(comparison)]
        if len(steps) > 1:
            found += _decay(steps, compact)
    return found


def _main(grid: Grid, comparison: Comparison, compact: bool) -> Sheet:
    columns = [
        (number, source)
        for number in comparison.numbers
        for source in (None, *(i for i, _ in comparison.published_here(number)))
    ]
    lines = [
        Line(
            row.model,
            tuple(
                cell(comparison, row, number, compact)
                if source is None
                else _printed(comparison, row.model, number, source - 1)
                for number, source in columns
            )
            + tuple(_logged(comparison, row, name, compact) for name in comparison.logged),
            row.role,
            row.absent or _seeds(comparison, row),
        )
        for row in comparison.rows
    ]
    floors = [_floor(comparison, number, compact) if source is None else Cell() for number, source in columns]
    floors += [Cell() for _ in comparison.logged]
    if any(floor.text != fmt.MISSING for floor in floors):
        lines.append(Line(FLOOR, tuple(floors), FLOOR))
    heads = tuple(
        _head(comparison, number)
        if source is None
        else Head(f"{_label(comparison, number)} in [{source}]", f"[{source}]", tied=True)
        for number, source in columns
    )
    heads += tuple(Head(LOG + name, f"log:\n{name}") for name in comparison.logged)
    notes = tuple(remarks.under(grid, comparison))
    return Sheet(comparison.group.name, comparison.group.text, "model", heads, tuple(lines), notes)


def _seeds(comparison: Comparison, row: Row) -> str:
    every = len(comparison.group.runs)
    return "" if len(row.seeds) == every else f"{len(row.seeds)} of {fmt.count(every, 'seed')}"


def _metric(comparison: Comparison, number: str) -> Mapping[str, Any] | None:
    section = comparison.section
    return None if section is None else next((m for m in section["metrics"] if m["name"] == number), None)


def _label(comparison: Comparison, number: str) -> str:
    found = comparison.known.get(number)
    return number if found is None else found.label


def _head(comparison: Comparison, number: str) -> Head:
    metric = _metric(comparison, number) or {"name": number, "unit": comparison.unit(number), "target": None}
    ideal = fmt.ideal(metric)
    return Head(_label(comparison, number) + unit(metric) + (f" (ideal {ideal})" if ideal else ""), head(metric))


def cell(comparison: Comparison, row: Row, number: str, compact: bool = False) -> Cell:
    """Return one number of a row with its gap to retrained.

    Args:
        comparison: of the row.
        row: one of its rows.
        number: one of its numbers.
        compact: without spaces and percent signs.

    Returns:
        The cell; a dash with the reason where there is no number.
    """
    section, metric = comparison.section, _metric(comparison, number)
    if section is None or metric is None or not row.seeds:
        return Cell(title=row.absent)
    model = next(m for m in section["models"] if m["name"] == row.model)
    value, gap = (doc.found(section, part, row.model, number) for part in ("values", "gaps"))
    if value is None:
        why = doc.reason(section, model, number)
        ideal = fmt.ideal(metric) if row.role == "retrained" and why == doc.ITSELF else ""
        return Cell(ideal or fmt.MISSING, title=why)
    alone = len(row.seeds) == 1
    text = fmt.value(value, compact=compact, named=False, ends=alone or _cut(value))
    title = f"n = {value['n']} {'samples' if alone else 'seeds'}"
    if gap is None or metric["group"] == "cost":
        return Cell(text, title=title)
    far = length(section, model, metric)
    shown = fmt.difference(gap, like=value["x"], compact=compact, ends=alone and not compact)
    distance = None if far is None else distance_class(far)
    return Cell(text, "" if metric["target"] == 0 else shown, title, distance)


def _logged(comparison: Comparison, row: Row, name: str, compact: bool) -> Cell:
    """Return what a method recorded of its edits, without a gap: original and retrained have no such thing."""
    mean = comparison.log(row.model, name)
    if mean is None:
        return Cell(title=row.absent or f"it records no {name}")
    return Cell(fmt.value(_entry(mean, ""), compact=compact, named=False), title=f"n = {fmt.count(mean.n, 'seed')}")


def _cut(value: Entry) -> bool:
    """Return whether the interval of a share was cut at 0 or 1, so that half of it is not that of its t interval."""
    if value["unit"] != "1" or (fmt.half(value) or 0.0) < fmt.resolution("1"):
        return False
    return bool(value["low"] == 0 or value["high"] == 1)


def _floor(comparison: Comparison, number: str, compact: bool) -> Cell:
    entry = None if comparison.section is None else doc.floor(comparison.section, number)
    if entry is None or number.startswith("cost/"):
        return Cell()
    return Cell(fmt.value(entry, compact=compact, gap=True, named=False))


def _printed(comparison: Comparison, model: str, number: str, source: int) -> Cell:
    """Return a paper's number as printed, and ours minus it."""
    found = comparison.published[source].values.get(model, {}).get(number)
    if found is None:
        return Cell()
    unit = comparison.unit(number)
    section = comparison.section
    ours = None if section is None else doc.found(section, "values", model, number)
    gap = "" if ours is None else f"ours {fmt.gap({'x': ours['x'] - found[0], 'unit': unit}, like=found[0])}"
    return Cell(printed(*found, unit), gap, comparison.published[source].name)


def printed(mean: float, spread: float | None, unit: str) -> str:
    """Return a paper's number with all the digits it has, percent for shares.

    >>> printed(0.9145, 0.0011, "1"), printed(0.7454, 0.0, "1"), printed(308, 5, "s"), printed(0.5, None, "1")
    ('91.45 ± 0.11%', '74.54 ± 0.00%', '308 ± 5', '50.0%')
    """
    numbers = [x * fmt.scale(unit) for x in (mean, spread) if x is not None]
    exact = (p for p in range(6) if all(abs(round(x, p) - x) < 1e-9 * max(1.0, abs(x)) for x in numbers))
    places = max(next(exact, 6), 1 if unit == "1" else 0)
    text = " ± ".join(f"{x:,.{places}f}" for x in numbers).replace("-", "−")
    return text + ("%" if unit == "1" else "")


def _ranks(comparison: Comparison) -> list[Sheet]:
    """Return the table of ranks, where there are any."""
    shown = {number: found for number, found in comparison.rankings.items() if found.ranks}
    if not shown:
        return []
    lines = []
    for row in comparison.rows:
        ranks = [found.ranks.get(row.model) for found in shown.values()]
        if not any(ranks):
            continue
        cells = [Cell() if rank is None else Cell(f"{rank}{MARKS[rank.floor]}") for rank in ranks]
        beside = [rank.floor for rank in ranks if rank is not None and rank.floor]
        like = Cell(f"{beside.count('like')} of {len(beside)}") if beside else Cell()
        lines.append(Line(row.model, (*cells, like), row.role))
    heads = [_head(comparison, number) for number in shown]
    last = Head("numbers not told from a second retrained model", "≈\nretrained")
    title = f"{comparison.group.name}: ranks"
    return [Sheet(title, "", "model", (*heads, last), tuple(lines), (remarks.RANKS,))]


def _costs(comparison: Comparison) -> list[Sheet]:
    """Return the table of costs beside a retraining, where they were kept."""
    if not comparison.costs:
        return []
    lines = tuple(Line(model, _cost(cost), "method") for model, cost in comparison.costs.items())
    names = [
        *(f"{HEADS[part]}, s" for part in PARTS),
        "in all, s",
        "fastest retraining, s",
        "prepare and edits / retraining",
    ]
    heads = tuple(
        Head(name, "\n".join(name.replace(", s", "\ns").replace(" / ", "\n/ ").split("\n"))) for name in names
    )
    notes = (remarks.COSTS, *((remarks.SEVERAL,) if comparison.group.steps > 1 else ()))
    return [Sheet(f"{comparison.group.name}: costs", "", "method", heads, lines, notes)]


def _cost(cost: Cost) -> tuple[Cell, ...]:
    parts = [
        Cell(f"{fmt.digits(part.x, 's')} ({fmt.digits(part.x / cost.total if cost.total else 0.0, '1')}%)")
        for part in cost.parts.values()
    ]
    dear = ", more" if cost.ratio.x > 1 else ""
    ratio = Cell(f"{fmt.value(_entry(cost.ratio), named=False)}×{dear}", distance=4 if dear else None)
    return (*parts, Cell(fmt.digits(cost.total, "s")), Cell(fmt.value(_entry(cost.retrain), named=False)), ratio)


def _entry(found: Interval, unit: str = "s") -> dict[str, Any]:
    return {"x": found.x, "low": found.low, "high": found.high, "n": found.n, "unit": unit}


def _decay(steps: Sequence[Comparison], compact: bool) -> list[Sheet]:
    """Return a table a number: models by request, with the floor of each."""
    last = steps[-1]
    heads = tuple(Head(f"after request {c.group.step}", str(c.group.step)) for c in steps)
    found = []
    for number in last.numbers:
        lines = []
        for row in last.rows:
            then = [next(r for r in c.rows if r.model == row.model) for c in steps]
            cells = [cell(c, r, number, compact) for c, r in zip(steps, then, strict=True)]
            line = Line(row.model, tuple(cells), row.role, row.absent)
            lines += [] if line.empty else [line]
        floor = Line(FLOOR, tuple(_floor(c, number, compact) for c in steps), FLOOR)
        lines += [] if floor.empty else [floor]
        if lines:
            title = f"{last.group.place}: {_head(last, number).long} by request"
            found.append(Sheet(title, "", "model", heads, tuple(lines)))
    return found
