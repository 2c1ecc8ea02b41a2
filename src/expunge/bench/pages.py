"""The report over a whole grid as a folder of HTML files: an index, a page a place and step, a page of its cells."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from expunge.bench.collect import Group
from expunge.bench.comparison import compare
from expunge.bench.grid import Grid, Place
from expunge.bench.remarks import warned
from expunge.files import atomic, check_free, write_document
from expunge.report import concepts, maps
from expunge.report.gridpage import INDEX, pages
from expunge.report.grids import DONE, Book, Cell, Leaf, Published
from expunge.report.recorded import series
from expunge.scores import Scores
from expunge.summary import section

KIND, SCHEMA, MANIFEST = "expunge.pages", 1, "manifest.json"
LONGEST = 60  # letters of a file's name


def write(folder: Path, grid: Grid, groups: Sequence[Group], *, command: str, overwrite: bool = False) -> Path:
    """Write the report over a grid: a folder that can be copied anywhere, whole or not at all.

    Args:
        folder: to write.
        grid: what was asked for.
        groups: what there is, from `expunge.bench.collect.groups`; with its details, each place has its curves.
        command: that made the report.
        overwrite: replace a report that is there.

    Returns:
        The index; the same store gives the same bytes.

    Raises:
        UserError: the folder is taken, is none that expunge wrote, or cannot be written.
    """
    check_free(folder, overwrite)
    found = pages(book(grid, groups, command))
    with atomic(folder) as room:
        room.mkdir()
        for name, text in found.items():
            (room / name).parent.mkdir(exist_ok=True)
            (room / name).write_text(text, encoding="utf-8", errors="replace")
        write_document(room / MANIFEST, KIND, SCHEMA, {"index": INDEX, "pages": sorted(found)})
    return folder / INDEX


def book(grid: Grid, groups: Sequence[Group], command: str) -> Book:
    """Return a grid and what is known of it as the report reads them: plain values, sections of audit documents."""
    places = list(grid.places)
    axes = {
        "data sets": [p.data for p in places],
        "networks": [p.network for p in places],
        "requests": [p.scenario for p in places],
        "methods": list(grid.methods),
        "seeds": [str(s) for s in grid.seeds],
    }
    return Book(
        title=grid.title,
        about=grid.file.about,
        axes={name: list(dict.fromkeys(values)) for name, values in axes.items()},
        leaves=[_leaf(grid, group, number) for number, group in enumerate(groups, 1)],
        methods=list(grid.methods),
        tuned=grid.tuned,
        command=command,
        created=_when(max((group.when for group in groups), default=0.0)),
    )


def _leaf(grid: Grid, group: Group, number: int) -> Leaf:
    scores = group.scores
    return Leaf(
        place=str(group.place),
        slug=_slug(number, group.name),
        section=None if scores is None else _section(group, scores),
        text=group.text,
        step=group.step,
        steps=group.steps,
        runs={seed: _section(group, _bare(run)) for seed, run in group.runs.items()},
        cells={(seed, method): _cell(group, seed, method) for seed in grid.seeds for method in ("", *grid.methods)},
        versions={name: ", ".join(sorted(versions)) for name, versions in sorted(group.versions.items())},
        short=short(grid, group.place),
        warnings=warned(grid, compare(grid, group, ())),
        published=[
            Published(p.source, p.differences, p.values)
            for p in grid.file.published
            if (p.data, p.network, p.scenario) == (group.place.data, group.place.network, group.place.scenario)
            and group.step == group.steps
        ],
    )


def short(grid: Grid, at: Place) -> str:
    """Return a place's name without what all places of the grid have in common.

    Args:
        grid: the grid.
        at: one of its places.

    Returns:
        The name; in full where there is no other place.
    """
    parts = ("data", "network", "scenario")
    own = [getattr(at, part) for part in parts if len({getattr(p, part) for p in grid.places}) > 1]
    return ", ".join(own) or str(at)


def _section(group: Group, scores: Scores) -> dict[str, Any]:
    return section(
        scores,
        name=group.name,
        text=group.text,
        counts=scores.asked.counts,
        declined=group.declined,
        classes=group.classes,
    )


def _bare(scores: Scores) -> Scores:
    """Return the numbers alone: of one seed neither curves nor samples are drawn."""
    nothing: Mapping[str, Any] = {}
    return replace(scores, samples=nothing, series=nothing, changed=nothing)


def _cell(group: Group, seed: int, method: str) -> Cell:
    gap, task = group.gaps.get((seed, method)), group.tasks.get((seed, method))
    log = group.logs.get((seed, method), {})
    return Cell(
        status=DONE if gap is None else gap.status,
        reason="" if gap is None else gap.reason,
        name="" if task is None else task.name,
        seconds=dict(group.costs.get((seed, method), {})),
        log={k: v for k, v in log.items() if _single(v)},
        series=series(log),
        concepts=concepts.gathered(log),
        map=log.get(maps.RECORD),
    )


def _single(value: Any) -> bool:
    """Return whether a recorded value is one number, text or mark; what was recorded step by step is drawn."""
    return isinstance(value, str | int | float | bool)


def _when(seconds: float) -> str:
    """Return a time as ISO 8601, an empty text for 0."""
    return datetime.fromtimestamp(int(seconds), UTC).isoformat() if seconds else ""


def _slug(number: int, name: str) -> str:
    """Return a file name of letters, digits and hyphens that no other place has.

    >>> _slug(3, "digits, convnet, random 5 %")
    '03-digits-convnet-random-5'
    """
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"{number:02}-{words[:LONGEST].rstrip('-')}".rstrip("-")
