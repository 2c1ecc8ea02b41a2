"""What becomes of a model while requests follow each other: each number over the requests fulfilled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report import layout, series
from expunge.report.document import Entry
from expunge.report.grids import Leaf
from expunge.report.looks import Look

ACROSS = "requests fulfilled"
SIZE = (330, 235)  # of a chart, in pixels


@dataclass(frozen=True)
class Course:
    """One number over the steps of a request.

    Args:
        name: of the number.
        label: heading.
        svg: the chart.
        steps: requests fulfilled, where anything was measured.
        rows: the values of each model as text, a dash where there is none.
    """

    name: str
    label: str
    svg: str
    steps: tuple[int, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def courses(leaves: Sequence[Leaf], look: Mapping[str, Look], key: str) -> list[Course]:
    """Return the numbers that tell most as curves over the steps, retrained beside the methods.

    Args:
        leaves: the steps of one place, in order.
        look: how each model is drawn.
        key: prefix of the ids, unique in the page.

    Returns:
        A course for each number that two steps have; costs among them, since they may grow.
    """
    last = next((leaf.section for leaf in reversed(leaves) if leaf.section is not None), None)
    found = [] if last is None else [_course(leaves, m, look, f"{key}-{i}") for i, m in enumerate(layout.key(last))]
    return [course for course in found if course is not None]


def _course(leaves: Sequence[Leaf], metric: Mapping[str, Any], look: Mapping[str, Look], key: str) -> Course | None:
    name, label = str(metric["name"]), str(metric["label"])
    points: dict[str, list[Entry]] = {}
    for leaf in leaves:
        for model in [] if leaf.section is None else doc.models(leaf.section):
            value = doc.found(leaf.section or {}, "values", str(model["name"]), name)
            if value is not None:
                points.setdefault(str(model["name"]), []).append({**_inside(value, metric), "at": leaf.step})
    steps = tuple(sorted({int(p["at"]) for some in points.values() for p in some}))
    if len(steps) < 2:
        return None
    points = {model: points[model] for model in look if model in points}
    svg = series.lines(points, label, (ACROSS, ""), look, key, SIZE)
    texts = {model: {p["at"]: fmt.value(p) for p in some} for model, some in points.items()}
    rows = tuple((model, tuple(text.get(at, fmt.MISSING) for at in steps)) for model, text in texts.items())
    return Course(name, label, svg, steps, rows)


def _inside(value: Entry, metric: Mapping[str, Any]) -> Entry:
    """Return a value with its interval cut at the ends of the number's range: no time is below 0."""
    low, high = metric.get("range") or (None, None)
    ends = dict(value)
    if low is not None and value.get("low") is not None:
        ends["low"] = max(low, value["low"])
    if high is not None and value.get("high") is not None:
        ends["high"] = min(high, value["high"])
    return ends
