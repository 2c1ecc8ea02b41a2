"""Reading a grid's finished cells: one group a data set, network, request and step, with a row a method and seed."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from expunge.bench import rows
from expunge.bench.cell import Cell, Task
from expunge.bench.grid import Grid, Place
from expunge.bench.stages import RESULT
from expunge.bench.store import DONE, Store
from expunge.errors import UserError
from expunge.scores import Scores, pooled

WAITS = "not run yet"


@dataclass(frozen=True)
class Gap:
    """Why a cell has no row.

    Args:
        status: ``missing``, ``running``, ``failed``, ``corrupt``, ``declined`` or ``blocked``.
        reason: in words.
        trace: the traceback of a failed one.
    """

    status: str
    reason: str
    trace: str = ""


@dataclass(frozen=True)
class Group:
    """All that was measured at one place of a grid, after one step of its request.

    Args:
        place: data set, network and request, by their names in the grid.
        step: requests fulfilled, of as many as follow each other.
        steps: how many follow each other.
        text: a sentence on who is forgotten.
        classes: names of the classes.
        runs: by seed: scores of original, retrained models, controls and all methods there are, named as in the grid.
        gaps: by seed and method (``""`` for what all methods share): why there is no row.
        tasks: by seed and method: the task that measured it.
        costs: by seed and method: seconds of ``prepare``, of the last edit (``unlearn``, with checks and copies
            ``total``), of all ``edits`` so far, and of measuring (``measure``); by seed under ``""``: of the fastest
            retraining (``retrain``) and of measuring what all methods share.
        versions: that the rows were made with.
        logs: by seed and method: what the last edit recorded; with details or logs only.
        when: when the last row was written, in seconds since 1970; 0 without details.
    """

    place: Place
    step: int
    steps: int
    text: str
    classes: tuple[str, ...]
    runs: Mapping[int, Scores]
    gaps: Mapping[tuple[int, str], Gap]
    tasks: Mapping[tuple[int, str], Task]
    costs: Mapping[tuple[int, str], Mapping[str, float]]
    versions: Mapping[str, frozenset[str]]
    logs: Mapping[tuple[int, str], Mapping[str, Any]] = field(default_factory=dict)
    when: float = 0.0

    @property
    def name(self) -> str:
        """The heading of its table."""
        return str(self.place) + (f", after request {self.step} of {self.steps}" if self.steps > 1 else "")

    @cached_property
    def scores(self) -> Scores | None:
        """The scores pooled over seeds; a method that some seeds lack over those that have it; None without any."""
        return pooled([self.runs[seed] for seed in sorted(self.runs)], partial=True) if self.runs else None

    @property
    def declined(self) -> dict[str, str]:
        """Reason by method that applies on no seed."""
        there = {model for scores in self.runs.values() for model in scores.values}
        return {m: gap.reason for (_, m), gap in self.gaps.items() if gap.status == "declined" and m not in there}


def states(grid: Grid, store: Store) -> dict[tuple[Place, int, str], Gap]:
    """Return how far each cell of a grid is, by place, seed and method (``""``: what all methods share).

    Args:
        grid: which cells.
        store: where they are.

    Returns:
        The status, and the reason where there is one; a cell of several steps is as far as its first unfinished one.
    """
    found = {}
    for at in grid.places:
        for seed in grid.seeds:
            for method in ("", *grid.methods):
                cell = grid.cell(at, method, seed) if method else grid.shared(at, seed)
                open_ones = (task for task in cell.results() if store.status(task) != "done")
                first = next(open_ones, None)
                found[at, seed, method] = Gap("done", "") if first is None else _why(store, first)
    return found


def groups(grid: Grid, store: Store, *, details: bool = False, logs: bool = False) -> list[Group]:
    """Read what a grid asks for and a store has.

    Args:
        grid: which cells.
        store: where they are.
        details: read also what reports need beside the numbers: curves, samples, series, and what edits recorded.
        logs: read what edits recorded without the rest.

    Returns:
        A group a place and step, in the grid's order.
    """
    with uncollected():
        return [
            _group(grid, store, at, step, cell, details, logs or details)
            for at, cell in grid.places.items()
            for step in cell.asked.measured
        ]


@contextmanager
def uncollected() -> Iterator[None]:
    """Pause the search for cycles: numbers of many cells have none, and it would walk all of them again and again."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _group(grid: Grid, store: Store, at: Place, step: int, cell: Cell, details: bool, logged: bool) -> Group:
    runs, gaps, tasks = dict[int, Scores](), dict[tuple[int, str], Gap](), dict[tuple[int, str], Task]()
    costs, versions = dict[tuple[int, str], dict[str, float]](), dict[str, set[str]]()
    asked: dict[str, Any] = {}
    logs, when = dict[tuple[int, str], Mapping[str, Any]](), 0.0
    for seed in grid.seeds:
        cells = grid.shared(at, seed)
        base = cells.task("reference", step)
        tasks[seed, ""] = base
        shared = _row(store, base, details, gaps, (seed, ""), costs, versions)
        if shared is None:
            gaps |= {(seed, m): gaps[seed, ""] for m in grid.methods}
            continue
        asked = asked or _asked(store, base)
        parts = [shared]
        for method, settings in grid.methods.items():
            task = cells.with_method(settings).task("measured", step)
            tasks[seed, method] = task
            row = _row(store, task, details, gaps, (seed, method), costs, versions)
            if row is not None:
                parts.append(row.renamed(str(settings["name"]), method))
        runs[seed] = _together(parts)
        there = {m: tasks[seed, m] for m in ("", *grid.methods) if (seed, m) not in gaps}
        if logged:
            logs |= {(seed, m): _log(store, task) for m, task in there.items() if m}
        if details:
            when = max(when, *((store.folder(task) / DONE).stat().st_mtime for task in there.values()))
    text, classes = str(asked.get("text", "")), tuple(asked.get("classes", ()))
    seen = {k: frozenset(v) for k, v in versions.items()}
    return Group(at, step, cell.asked.steps, text, classes, runs, gaps, tasks, costs, seen, logs, when)


def _together(parts: list[Scores]) -> Scores:
    first, *others = parts
    for other in others:
        first = first.with_rows(other)
    return first


def _row(
    store: Store,
    task: Task,
    details: bool,
    gaps: dict[tuple[int, str], Gap],
    key: tuple[int, str],
    costs: dict[tuple[int, str], dict[str, float]],
    versions: dict[str, set[str]],
) -> Scores | None:
    """Return a task's rows; where there are none, note why."""
    folder = store.folder(task)
    try:
        done = store.done(task)
        if done is None or done["outcome"] == "declined":
            gaps[key] = _why(store, task)
            return None
        found = rows.from_json(store.parsed(folder, done, rows.VALUES))
        if details:
            more = rows.details(folder, store.parsed(folder, done, rows.DETAILS))
            found = replace(found, **more)
    except UserError as error:
        gaps[key] = Gap("corrupt", str(error))
        return None
    costs[key] = {"measure": float(done["seconds"]), **done.get("cost", {})}
    for name, version in done["versions"].items():
        versions.setdefault(name, set()).add(str(version))
    return found


def _log(store: Store, task: Task) -> dict[str, Any]:
    """Return what the edit behind a row recorded; nothing where it cannot be read any more."""
    edit = next(need for need in task.needs if need.stage == "unlearned")
    try:
        return dict(store.read(edit, RESULT)["log"])
    except UserError:
        return {}


def _why(store: Store, task: Task) -> Gap:
    """Return why a task is not done: itself, or through what it needs."""
    status = store.status(task)
    if status == "declined":
        return Gap("declined", str((store.done(task) or {}).get("reason", "")))
    if status == "failed":
        known = store.failure(task) or {}
        return Gap("failed", str(known.get("message", "")), str(known.get("traceback", "")))
    if status in ("running", "corrupt"):
        return Gap(status, f"{task.name} is {status}")
    for need in task.needs:
        if store.status(need) == "done":
            continue
        found = _why(store, need)
        if found.status in ("declined", "failed", "corrupt", "blocked"):
            return found if found.status == "declined" else Gap("blocked", found.reason, found.trace)
    return Gap("missing", WAITS)


def _asked(store: Store, task: Task) -> dict[str, Any]:
    """Return what is said of the request where it was drawn."""
    drawn = next(n for n in task.needs if n.stage == "drawn")
    try:
        found = store.done(drawn)
    except UserError:
        return {}
    return dict((found or {}).get("asked", {}))
