"""The trade-off of forgetting, keeping and time: each model's distance from retrained on both sides, and the front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from expunge import stats
from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report import layout
from expunge.report.document import Entry
from expunge.report.grids import Leaf, Line, lines

FORGET = ("accuracy/forget", "loss/forget", "*/forget")
KEPT = ("accuracy/test_retain", "accuracy/test", "accuracy/retain", "loss/test_retain", "loss/test", "loss/retain")
TIME = "cost/seconds"
EDIT, RETRAIN = "unlearn", "retrain"  # parts of what a cell took
Metric = Mapping[str, Any]


@dataclass(frozen=True)
class Seen:
    """One training seed of a model.

    Args:
        seed: the seed.
        forget: size of the gap on the forget side, in its printed scale.
        kept: the same on what was to stay.
        time: seconds of the edit over those of that seed's fastest retraining, or None.
    """

    seed: int
    forget: float
    kept: float
    time: float | None


@dataclass(frozen=True)
class Mark:
    """One model.

    Args:
        line: its row.
        forget: mean size of its gap on the forget side with its interval, in the printed scale.
        kept: the same on what was to stay.
        time: seconds of the edit over those of the fastest retraining, or None.
        seeds: each seed alone.
        front: whether no method is at least as near on both sides, and nearer on one.
        lasting: the same with time as a third side.
    """

    line: Line
    forget: stats.Interval
    kept: stats.Interval
    time: stats.Interval | None
    seeds: tuple[Seen, ...]
    front: bool = False
    lasting: bool = False


@dataclass(frozen=True)
class Trade:
    """The trade-off at one place.

    Args:
        forget: the number of the forget side.
        kept: the number of what was to stay.
        floors: mean difference of two retrained models on both sides, in the printed scale; None where unknown.
        fastest: seconds of the fastest retraining of a seed, mean over seeds, or None.
        marks: floor, controls, methods.
    """

    forget: Metric
    kept: Metric
    floors: tuple[float | None, float | None]
    fastest: float | None
    marks: tuple[Mark, ...]


def front(points: Sequence[Sequence[float]]) -> list[bool]:
    """Return which points no other dominates: none is at most as large on every side and smaller on one.

    >>> front([(1, 5), (2, 2), (3, 3), (2, 2)])
    [True, True, False, True]
    """

    def beats(one: Sequence[float], other: Sequence[float]) -> bool:
        return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)

    return [not any(beats(other, point) for other in points) for point in points]


def trade(leaf: Leaf, methods: Sequence[str]) -> Trade | None:
    """Return the trade-off at a place.

    Args:
        leaf: the place.
        methods: names in the grid's order.

    Returns:
        Distances of floor, controls and methods; None where one of the two sides was not measured, or nothing was.
    """
    section = leaf.section
    if section is None:
        return None
    there = layout.measured(section)
    forget, kept = _side(there, FORGET), _side(there, KEPT)
    if forget is None or kept is None:
        return None
    fastest = {seed: t for seed in leaf.runs if (t := _fastest(leaf, seed)) is not None}
    found = [_mark(leaf, line, forget, kept, fastest) for line in lines(leaf, methods) if not line.absent]
    marks = [mark for mark in found if mark is not None]
    ours = [mark for mark in marks if mark.line.role == "method"]
    if not ours:
        return None
    flat = dict(zip(_names(ours), front([(m.forget.x, m.kept.x) for m in ours]), strict=True))
    timed = [mark for mark in ours if mark.time is not None]
    deep = front([(m.forget.x, m.kept.x, m.time.x) for m in timed if m.time is not None])
    whole = dict(zip(_names(timed), deep, strict=True))
    floors = [_scaled(doc.floor(section, str(m["name"]))) for m in (forget, kept)]
    marked = (_fronted(mark, flat, whole) for mark in marks)
    mean = stats.mean_t(list(fastest.values())).x if fastest else None
    return Trade(forget, kept, (floors[0], floors[1]), mean, tuple(marked))


def _names(marks: Sequence[Mark]) -> list[str]:
    return [mark.line.model for mark in marks]


def _fronted(mark: Mark, flat: Mapping[str, bool], whole: Mapping[str, bool]) -> Mark:
    name = mark.line.model
    own = (mark.line, mark.forget, mark.kept, mark.time, mark.seeds)
    return Mark(*own, front=flat.get(name, False), lasting=whole.get(name, False))


def _side(metrics: Sequence[Metric], patterns: Sequence[str]) -> Metric | None:
    return next((m for pattern in patterns for m in metrics if fnmatchcase(str(m["name"]), pattern)), None)


def _scaled(entry: Entry | None) -> float | None:
    return None if entry is None else fmt.scale(str(entry["unit"])) * float(entry["x"])


def _fastest(leaf: Leaf, seed: int) -> float | None:
    """Return the seconds of a seed's fastest retraining, as the tables take it."""
    models = [] if leaf.section is None else doc.of_role(leaf.section, "retrained", "floor")
    found = [_seconds(leaf, seed, str(model["name"]), "", RETRAIN) for model in models]
    return min((t for t in found if t), default=None)


def _seconds(leaf: Leaf, seed: int, model: str, cell: str, part: str) -> float | None:
    """Return how long a model took: as measured, else as the cell that made it tells; None where neither does."""
    value = doc.found(leaf.runs[seed], "values", model, TIME)
    known = leaf.cells.get((seed, cell))
    spent = float(value["x"]) if value is not None else 0.0 if known is None else known.seconds.get(part, 0.0)
    return spent if spent > 0 else None


def _mark(leaf: Leaf, line: Line, forget: Metric, kept: Metric, fastest: Mapping[int, float]) -> Mark | None:
    seen = []
    for seed, run in leaf.runs.items():
        gaps = [doc.found(run, "gaps", line.model, str(m["name"])) for m in (forget, kept)]
        if gaps[0] is None or gaps[1] is None:
            continue
        spent = _seconds(leaf, seed, line.model, line.model, EDIT)
        sizes = [fmt.scale(str(g["unit"])) * fmt.size(g) for g in gaps if g is not None]
        seen.append(Seen(seed, sizes[0], sizes[1], spent / fastest[seed] if spent and seed in fastest else None))
    if not seen:
        return None
    times = [s.time for s in seen if s.time is not None]
    mean = _mean(times) if len(times) == len(seen) else None
    return Mark(line, _mean([s.forget for s in seen]), _mean([s.kept for s in seen]), mean, tuple(seen))


def _mean(values: Sequence[float]) -> stats.Interval:
    """Return the mean with its interval over seeds, cut at 0, below which no size and no time lies."""
    found = stats.mean_t(values)
    return found if math.isinf(found.low) else stats.Interval(found.x, max(found.low, 0.0), found.high, found.n)
