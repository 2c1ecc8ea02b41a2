"""What a figure over a grid is to show: which methods and places, along which setting, and what of that is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from expunge.bench import sweeps
from expunge.bench.collect import Group
from expunge.bench.grid import Grid
from expunge.bench.pages import short
from expunge.bench.sweeps import Sweep
from expunge.errors import UserError, listing, suggest
from expunge.report import frontiers, standalone, traces
from expunge.report.grids import told
from expunge.report.traces import Over, Scale

SAID = 4  # missing things that the note of a figure tells one by one
STATUS = "expunge bench status says what is missing, and why"
Kind = Literal["trace", "frontier"]
Names = Sequence[str]


@dataclass(frozen=True)
class Wanted:
    """What a figure is to show.

    Args:
        of: ``trace``, what edits recorded over their steps, or ``frontier``, two numbers along a setting.
        show: of a trace a panel each, the recorded names in it; of a frontier one pair of numbers, across and up. By
            default all that is recorded; accuracy on the forget set and on what was to stay.
        along: setting by whose value lines are told apart, or points are joined; by default the only one there is.
        methods: names in the grid, or patterns with ``*``; none for all.
        at: texts in the names of places; none for all.
        over: what is counted across in a trace.
        scale: of a trace's upward axes.
        each: a line for every seed in a trace, instead of the mean.
    """

    of: Kind = "trace"
    show: Sequence[Names] = ()
    along: str | None = None
    methods: Names = ()
    at: Names = ()
    over: Over = "steps"
    scale: Scale = "auto"
    each: bool = False


@dataclass(frozen=True)
class Made:
    """A figure.

    Args:
        chart: what is drawn.
        title: of the grid.
        said: what is missing or left out, a sentence each.
    """

    chart: traces.Chart | frontiers.Chart
    title: str
    said: tuple[str, ...]

    def write(self, path: Path) -> None:
        """Write it as SVG, PNG or PDF, by the file's ending.

        Raises:
            UserError: another ending.
        """
        standalone.write(path, self.chart.draw, title=self.title, told=self.chart.told())


@dataclass(frozen=True)
class Shown:
    """What is there of what a figure is to show.

    Args:
        grid: what was asked for.
        places: the groups that are meant.
        methods: settings of the methods that are meant, by their names in the grid.
        wanted: what the figure is to show.
    """

    grid: Grid
    places: Sequence[Group]
    methods: Mapping[str, Mapping[str, Any]]
    wanted: Wanted

    def runs(self, group: Group, method: str) -> list[int]:
        """Return the finished seeds of a method at a place."""
        return [seed for seed in sorted(group.runs) if (seed, method) not in group.gaps]

    def short(self, group: Group) -> str:
        """Return a place's name without what all places of the grid have in common."""
        return short(self.grid, group.place)

    def head(self, group: Group) -> str:
        """Return what a place is called above a panel: in short beside others."""
        return self.short(group) if len(self.places) > 1 else group.name

    def scope(self, *methods: str) -> list[str]:
        """Return what all panels are about, as a sentence of the note, or none."""
        parts = [*methods, *([self.places[0].name] if len(self.places) == 1 else [])]
        return [f"{' at '.join(parts)}."] if parts else []

    def missing(self, methods: Names) -> list[str]:
        """Return which cells are not finished, and why."""
        found, seeds = [], self.grid.seeds
        for group in self.places:
            for method in methods:
                by: dict[tuple[str, str], list[int]] = {}
                for seed in seeds:
                    if (gap := group.gaps.get((seed, method))) is not None:
                        by.setdefault((gap.status, gap.reason), []).append(seed)
                why = [told(*key, which, len(seeds)) for key, which in by.items()]
                found += [f"{method} at {self.short(group)}: {'; '.join(why)}."] if why else []
        return found

    def sweep(self, methods: Names, *, needed: bool) -> Sweep | None:
        """Return methods along the setting that is named, or along the only one there is.

        Args:
            methods: names in the grid.
            needed: whether there must be one.

        Raises:
            UserError: none is named, one is needed, and there is none or several; or the one that is named is none.
        """
        asked = {name: self.methods[name] for name in methods}
        if self.wanted.along is not None:
            return sweeps.sweep(asked, self.wanted.along)
        found = sweeps.swept(asked)
        if len(found) == 1:
            return sweeps.sweep(asked, found[0])
        if found and needed:
            raise UserError("one setting to go along", listing(found), f"choose one, as in --along {found[0]}")
        if needed:
            remedy = "put methods into the grid that differ in one number alone"
            raise UserError(f"methods that differ in one setting alone among {listing(asked)}", "none", remedy)
        return None


def shown(grid: Grid, groups: Sequence[Group], wanted: Wanted) -> Shown:
    """Return what is there of what a figure is to show.

    Args:
        grid: what was asked for.
        groups: what there is, from `expunge.bench.collect.groups`.
        wanted: what the figure is to show.

    Returns:
        Of requests that follow each other the last step, unless another one is named.

    Raises:
        UserError: no such method or place, or nothing finished among those.
    """
    found = Shown(
        grid, _places(groups, wanted.at), {m: grid.methods[m] for m in _methods(grid, wanted.methods)}, wanted
    )
    if not any(found.runs(group, method) for group in found.places for method in found.methods):
        where = listing(group.name for group in found.places)
        raise UserError(f"finished cells of {listing(found.methods)} at {where}", "none", STATUS)
    return found


def noted(missing: Sequence[str]) -> list[str]:
    """Return what is missing as the note of a figure tells it."""
    left = len(missing) - SAID
    return [*missing[:SAID], *([f"{left} more missing."] if left > 0 else [])]


def _methods(grid: Grid, patterns: Names) -> list[str]:
    for pattern in patterns:
        if not any(_is(name, pattern) for name in grid.methods):
            raise UserError("a method of the grid, or a pattern of some", repr(pattern), suggest(pattern, grid.methods))
    return [name for name in grid.methods if not patterns or any(_is(name, pattern) for pattern in patterns)]


def _is(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _places(groups: Sequence[Group], texts: Names) -> list[Group]:
    """Return the groups that are meant: the last step of a place, another one where the text names it."""
    for text in texts:
        if not any(text in group.name for group in groups):
            known = dict.fromkeys(repr(group.name) for group in groups)
            raise UserError("a text in the name of a place", repr(text), f"take a part of {listing(known)}")
    last = [group for group in groups if group.step == group.steps]
    if not texts:
        return last
    return [g for g in groups if any(t in g.name and (g in last or t not in str(g.place)) for t in texts)]
