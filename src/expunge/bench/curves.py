"""What a grid's edits recorded over their steps, as panels: a line a method, value of a setting, or recorded name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from expunge.bench.collect import Group
from expunge.bench.shown import Made, Names, Shown, noted
from expunge.bench.sweeps import Sweep
from expunge.errors import UserError, listing, suggest
from expunge.metric import Value
from expunge.report import format as fmt
from expunge.report import looks, recorded, traces
from expunge.report.looks import Look
from expunge.report.recorded import Points
from expunge.report.traces import Line, Panel

MOST = 24  # panels of one figure
Labels = Mapping[str, tuple[str, Look]]  # label and look by the method's name in the grid


def trace(shown: Shown) -> Made:
    """Return what edits recorded as curves.

    Args:
        shown: methods and places, whose groups were read with ``logs``.

    Returns:
        The figure: a row for each panel that was asked for; a column for each place, and within it for each method
        where a panel has several recorded names, for each family of methods where they go along a setting.

    Raises:
        UserError: nothing is recorded, a name that nobody recorded, names in percent and others in one panel, a
            setting that is none, something not recorded once an epoch over epochs, or too many panels.
    """
    return _Trace(shown).made()


@dataclass(frozen=True)
class _Column:
    """The methods of one column at a place."""

    head: str
    group: Group
    lines: Labels


@dataclass(frozen=True)
class _Trace:
    """Curves while they are made."""

    shown: Shown

    def made(self) -> Made:
        """Return the figure."""
        shown, wanted = self.shown, self.shown.wanted
        columns = self._columns()
        if len(self.rows) * len(columns) > MOST:
            got = f"{fmt.count(len(self.rows), 'row')} of {fmt.count(len(columns), 'column')}"
            raise UserError(f"at most {MOST} panels", got, "choose with --method, --at or --show")
        panels = tuple(tuple(self._panel(row, column) for column in columns) for row in self.rows)
        silent = [m for m in shown.methods if m not in self.having and any(shown.runs(g, m) for g in shown.places)]
        missing = shown.missing([m for m in shown.methods if m not in silent]) + self._lacking()
        note = [*shown.scope(*(self.having if len(self.having) == 1 else ())), *self._means(panels), *noted(missing)]
        chart = traces.Chart(
            rows=panels,
            heads=tuple(column.head for column in columns),
            over=wanted.over,
            scale=wanted.scale,
            each=wanted.each,
            note=" ".join(note),
        )
        left = [f"Nothing recorded of {listing(self.names)}: {listing(silent, 12)}."] if silent else []
        return Made(chart, shown.grid.title, (*missing, *left, *chart.lost()))

    @cached_property
    def series(self) -> dict[tuple[str, str], dict[str, dict[int, Points]]]:
        """What was recorded step by step, by place and method, name, and seed."""
        found: dict[tuple[str, str], dict[str, dict[int, Points]]] = {}
        for group in self.shown.places:
            for method in self.shown.methods:
                own = found.setdefault((group.name, method), {})
                for seed in self.shown.runs(group, method):
                    for name, pairs in recorded.series(group.logs.get((seed, method), {})).items():
                        own.setdefault(name, {})[seed] = recorded.points(pairs)
        return found

    @cached_property
    def rows(self) -> list[Names]:
        """The recorded names of each row."""
        known = dict.fromkeys(name for own in self.series.values() for name in own)
        asked = self.shown.wanted.show
        if not known:
            remedy = "take methods that do, such as nabla_tau or distruction"
            raise UserError(f"something recorded step by step by {listing(self.shown.methods)}", "nothing", remedy)
        for row in asked:
            for name in (name for name in row if name not in known):
                raise UserError("a name that methods recorded step by step", repr(name), suggest(name, known))
            if len({recorded.quantity(name).unit == "1" for name in row}) > 1:
                got = f"{listing(row)}, some in percent"
                raise UserError("recorded names of one unit in a panel", got, "give each its own --show")
        courses = [n for n in known if any(len(r) > 1 for own in self.series.values() for r in own.get(n, {}).values())]
        return list(asked) or list(recorded.panels(courses or list(known)))

    @cached_property
    def names(self) -> list[str]:
        """All names that are drawn."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    @property
    def several(self) -> bool:
        """Whether lines are recorded names in any panel: each method then has a column of its own."""
        return any(len(row) > 1 for row in self.rows)

    @cached_property
    def having(self) -> list[str]:
        """The methods that recorded any of these names."""
        there = {m for (_, m), own in self.series.items() if own.keys() & set(self.names)}
        return [method for method in self.shown.methods if method in there]

    def _columns(self) -> list[_Column]:
        shown, inside = self.shown, self._inside()
        found = []
        for group in shown.places:
            for head, lines in inside.items():
                if any(self.series[group.name, method].keys() & set(self.names) for method in lines):
                    parts = [shown.short(group)] if len(shown.places) > 1 else []
                    parts += [head] if len(inside) > 1 else []
                    found.append(_Column(", ".join(parts) or group.name, group, lines))
        return found

    def _inside(self) -> dict[str, Labels]:
        """Return the columns at a place: heading, and the methods with their labels."""
        sweep = self.shown.sweep(self.having, needed=False)
        every = [{"name": name, "role": "method"} for name in self.shown.grid.methods]
        look = looks.looks([{"models": every}])
        found: dict[str, Labels]
        if sweep is not None:
            found = _families(sweep, look)
            found |= {_other(m, found): {m: (m, look[m])} for m in self.having if m not in sweep.values}
        else:
            found = {"": {method: (method, look[method]) for method in self.having}}
        if not self.several:
            return found
        families = len(found) > 1
        return {
            ", ".join(filter(None, (head if families and label != head else "", label))): {method: (label, line)}
            for head, lines in found.items()
            for method, (label, line) in lines.items()
        }

    def _panel(self, row: Names, column: _Column) -> Panel:
        lines, unit, named = [], self._loss_unit(column.group), recorded.named(row)
        for method, own in column.lines.items():
            found = self.series[column.group.name, method]
            for name in (name for name in row if name in found):
                runs = tuple(self._run(column.group, method, name, seed) for seed in found[name])
                if len(row) > 1:
                    label, look = recorded.quantity(name).label, named[name]
                else:
                    label, look = ("", recorded.ALONE) if self.several else own
                lines.append(Line(label, look, runs))
        return Panel(recorded.shared(row, unit) if len(row) > 1 else recorded.quantity(row[0], unit), tuple(lines))

    def _run(self, group: Group, method: str, name: str, seed: int) -> Points:
        """Return one seed's curve over what is counted across."""
        found = self.series[group.name, method][name][seed]
        if self.shown.wanted.over == "steps":
            return found
        own = {n: runs[seed] for n, runs in self.series[group.name, method].items() if seed in runs}
        return by_epoch(found, own, group.logs[seed, method].get("epochs"), f"{name} of {method}")

    def _loss_unit(self, group: Group) -> str:
        """Return the unit of the task's loss, where it was measured."""
        rows = group.scores.values.values() if group.scores else ()
        found = (v.unit for row in rows for k, v in row.items() if k.startswith("loss/") and isinstance(v, Value))
        return next(found, "")

    def _lacking(self) -> list[str]:
        """Return of which finished seeds there is no record, and how much of it is not finite."""
        found, lost = [], 0
        for group in self.shown.places:
            for method in self.having:
                own, done = self.series[group.name, method], self.shown.runs(group, method)
                for name in (name for name in self.names if name in own):
                    lost += sum(not math.isfinite(y) for run in own[name].values() for _, y in run)
                    seeds = [str(seed) for seed in done if seed not in own[name]]
                    text = f"no {name} recorded by {'seed' if len(seeds) == 1 else 'seeds'} {fmt.listed(seeds)}"
                    found += [f"{method} at {self.shown.short(group)}: {text}."] if seeds else []
        return found + ([f"Left out: {fmt.count(lost, 'value')}, NaN or infinite."] if lost else [])

    def _means(self, panels: Sequence[Sequence[Panel]]) -> list[str]:
        """Return what lines, bands and thin lines are."""
        lines = [line for row in panels for panel in row for line in panel.lines]
        seeds = max(len(line.runs) for line in lines)
        if seeds == 1 or self.shown.wanted.each:
            return ["One seed." if seeds == 1 else f"A line for each of {seeds} seeds."]
        text = [f"Lines are means over {seeds} seeds, bands their 95% t intervals, cut at the frame."]
        if any(traces.course(line.runs).rest for line in lines if len(line.runs) > 1):
            text.append("Thin lines: single seeds beyond the last point that all have.")
        return text


def by_epoch(run: Points, series: Mapping[str, Points], epochs: Any, what: str) -> Points:
    """Return a curve over epochs; what was recorded before the first step stands at 0.

    Args:
        run: step and value.
        series: all that was recorded step by step, of which something that was recorded once an epoch tells the time.
        epochs: how many there were, as recorded.
        what: is drawn, for messages.

    Returns:
        Epoch and value.

    Raises:
        UserError: nothing was recorded once an epoch, or the curve has steps within epochs.

    >>> losses = [(0, 0.9), (12, 0.5), (24, 0.4)]
    >>> by_epoch([(0, 0.7), (24, 0.6)], {"loss": losses}, 2, "tau of nabla_tau")
    [(0.0, 0.7), (2.0, 0.6)]
    """
    ends = [sorted({step for step, _ in points if step > 0}) for points in series.values()]
    clock = next((steps for steps in ends if len(steps) == epochs), [])
    at = {0.0: 0.0} | {step: float(i) for i, step in enumerate(clock, 1)}
    if not clock or not all(step in at for step, _ in run):
        got = "steps within epochs" if clock else "nothing"
        raise UserError(f"{what} recorded at the ends of epochs, to draw it over epochs", got, "draw it over steps")
    return [(at[step], y) for step, y in run]


def _families(sweep: Sweep, look: Mapping[str, Look]) -> dict[str, Labels]:
    """Return label and look of each method by family: values dark to light, the same in every family."""
    values = sorted(set(sweep.values.values()))
    ramp = dict(zip(values, recorded.ramp(len(values)), strict=True))
    found: dict[str, Labels] = {}
    for family, methods in sweep.ordered().items():
        found[family] = {m: (sweep.label(m), ramp[sweep.values[m]]) for m in methods}
    return found


def _other(method: str, families: Mapping[str, Any]) -> str:
    """Return the heading of a method that is in no family."""
    return f"{method} (alone)" if method in families else method
