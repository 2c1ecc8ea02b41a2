"""The tables of a grid: mean and interval over seeds, gap to retrained, floor, ranks, costs, published numbers."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from expunge.bench import forms, remarks
from expunge.bench.collect import Group, uncollected
from expunge.bench.comparison import Comparison, Cost, Row, check, check_logs, compare
from expunge.bench.grid import Grid
from expunge.bench.ranks import Ranking
from expunge.bench.sheets import LOG, sheets
from expunge.errors import UserError, suggest
from expunge.files import jsonable
from expunge.metric import Unavailable, Value
from expunge.report.format import plain
from expunge.stats import Interval

Form = Literal["rich", "markdown", "latex", "csv", "json", "html"]
DOCUMENT, SCHEMA = "expunge.table", 1
FLOOR = "floor"
TUNED = ("method", "default", "chosen", "on", "trials", "seeds", "objective", "budget")  # not every trial
COLUMNS = (
    *("place", "step", "model", "number", "value", "low", "high", "n", "gap", "gap_low", "gap_high", "floor"),
    *("unit", "seeds", "rank", "published", "published_spread", "source", "reason"),
)


def render(
    grid: Grid,
    groups: Sequence[Group],
    form: str,
    *,
    metrics: Sequence[str] | None = None,
    logs: Sequence[str] = (),
) -> Any:
    """Return the tables of a grid: one a place and step, with ranks, costs, and the decay over requests.

    Rows: the original, retrained models, controls, methods in the grid's order, and the floor. Columns: the numbers
    that tell most, and those that papers have; programs (``csv``, ``json``) get all numbers. What is told: means with
    95 % t intervals over seeds, gaps paired by seed; of one seed intervals over samples, by their ends. The same
    store gives the same bytes.

    Args:
        grid: that asked for the cells.
        groups: the finished ones, as `expunge.bench.collect.groups` returns them.
        form: ``rich``, ``markdown``, ``latex``, ``csv``, ``json`` or ``html``.
        metrics: numbers, such as ``accuracy/test``, and families of numbers, such as ``membership``, to take instead.
        logs: numbers that methods record in their log, such as ``steps``, in columns of their own; of those recorded
            step by step the last. The groups must be read with ``logs``.

    Returns:
        A list of things that rich prints for ``rich``, otherwise a text.

    Raises:
        UserError: an unknown form or number, or a log that no method has.
    """
    if form not in get_args(Form):
        raise UserError("a form of a table", repr(form), suggest(form, get_args(Form)))
    check(groups, metrics)
    check_logs(groups, logs)
    with uncollected():
        every = form in ("csv", "json")
        return _rendered(grid, [compare(grid, group, metrics, every=every, logs=logs) for group in groups], form)


def _rendered(grid: Grid, found: Sequence[Comparison], form: str) -> Any:
    if form == "csv":
        return _csv(found)
    if form == "json":
        return json.dumps(document(grid, found), ensure_ascii=False, allow_nan=False) + "\n"  # indenting takes seconds
    if form == "rich":
        return forms.rich(grid.title, sheets(grid, found, compact=True))
    texts = {"markdown": forms.markdown, "latex": forms.latex, "html": forms.html}
    return texts[form](grid.title, sheets(grid, found))


def document(grid: Grid, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return the tables as plain JSON values.

    Args:
        grid: that asked for them.
        comparisons: one a place and step.

    Returns:
        ``kind``, ``schema``, ``title``, ``grid`` and ``groups``: of each place and step the ``numbers``, ``rows``
        with values and gaps, the ``floor``, ``ranks`` with every test, ``costs``, ``published`` and ``notes``.
    """
    head = {"kind": DOCUMENT, "schema": SCHEMA, "title": grid.title, "grid": grid.name, "about": grid.file.about}
    return {**head, "groups": [_group(grid, comparison) for comparison in comparisons]}


def _group(grid: Grid, comparison: Comparison) -> dict[str, Any]:
    group, known, kept = comparison.group, comparison.known, comparison.numbers
    at = {"data": group.place.data, "network": group.place.network, "scenario": group.place.scenario}
    floor = {} if comparison.scores is None else comparison.scores.floor
    return {
        "name": group.name,
        "place": at,
        "step": group.step,
        "steps": group.steps,
        "text": group.text,
        "seeds": sorted(group.runs),
        "versions": {name: sorted(found) for name, found in sorted(group.versions.items())},
        "numbers": [_number(comparison, number) for number in kept if number in known],
        "rows": [_row(comparison, row) for row in comparison.rows],
        "floor": {number: _plain(floor[number]) for number in kept if number in floor},
        "ranks": {number: _ranking(found) for number, found in comparison.rankings.items()},
        "costs": {model: _cost(cost) for model, cost in comparison.costs.items()},
        "published": [
            {
                "source": source.name,
                "differences": list(source.differences),
                "values": {
                    model: {n: _printed(comparison, model, n, *value) for n, value in found.items()}
                    for model, found in source.values.items()
                },
            }
            for source in comparison.published
        ],
        "tuned": {m: {k: v for k, v in found.items() if k in TUNED} for m, found in sorted(grid.tuned.items())},
        "notes": remarks.under(grid, comparison),
    }


def _number(comparison: Comparison, name: str) -> dict[str, Any]:
    found = comparison.known[name]
    return {
        "name": name,
        "label": found.label,
        "unit": comparison.unit(name),
        "goal": str(found.goal),
        "range": [_end(end) for end in found.range],
        "target": found.target,
    }


def _row(comparison: Comparison, row: Row) -> dict[str, Any]:
    scores, model = comparison.scores, row.model
    values = {} if scores is None else scores.values.get(model, {})
    gaps = {} if scores is None else scores.gaps.get(model, {})
    sizes = {} if scores is None else scores.distances.get(model, {})
    of = "samples" if len(row.seeds) == 1 else "seeds"
    return {
        "model": model,
        "role": row.role,
        "seeds": list(row.seeds),
        "reason": row.absent or row.lacking,
        "settings": {} if scores is None else jsonable(scores.settings.get(model, {})),
        "intervals": of,
        "values": {number: _plain(values[number]) for number in comparison.numbers if number in values},
        "gaps": {n: {**_plain(gaps[n]), "distance": sizes[n]} for n in comparison.numbers if n in gaps},
        "logs": {name: _interval(mean) for name in comparison.logged if (mean := comparison.log(model, name))},
    }


def _ranking(found: Ranking) -> dict[str, Any]:
    return {
        "reason": found.reason,
        "ranks": {
            model: {"low": rank.low, "high": rank.high, "beside_floor": rank.floor or None}
            for model, rank in found.ranks.items()
        },
        "pairs": [
            {
                "a": p.a,
                "b": p.b or FLOOR,
                "difference": p.difference.x,
                "n": p.difference.n,
                "p": p.p,
                "holm": p.adjusted,
            }
            for p in found.pairs
        ],
    }


def _cost(cost: Cost) -> dict[str, Any]:
    parts = {name: _interval(part) for name, part in cost.parts.items()}
    return {**parts, "total": cost.total, "retrain": _interval(cost.retrain), "ratio": _interval(cost.ratio)}


def _printed(comparison: Comparison, model: str, number: str, mean: float, spread: float | None) -> dict[str, Any]:
    ours = None if comparison.scores is None else comparison.scores.values.get(model, {}).get(number)
    difference = ours.x - mean if isinstance(ours, Value) else None
    return {"mean": mean, "spread": spread, "ours_minus_published": difference}


def _plain(value: Value | Unavailable) -> dict[str, Any]:
    if isinstance(value, Unavailable):
        return {"unavailable": value.reason}
    return {"x": value.x, "low": _end(value.low), "high": _end(value.high), "n": value.n, "unit": value.unit}


def _interval(found: Interval) -> dict[str, Any]:
    return {"x": found.x, "low": _end(found.low), "high": _end(found.high), "n": found.n}


def _end(end: float) -> float | None:
    return end if math.isfinite(end) else None


def _csv(comparisons: Sequence[Comparison]) -> str:
    """Return one line a place, step, model and number; a second paper's number stands in a line of its own."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for comparison in comparisons:
        at = {"place": plain(comparison.group.place), "step": comparison.group.step}
        for row in comparison.rows:
            said = {"model": plain(row.model), "seeds": len(row.seeds)}
            lines = [line for number in comparison.numbers for line in _lines(comparison, row, number)]
            lines += [_logged(mean, name) for name in comparison.logged if (mean := comparison.log(row.model, name))]
            writer.writerows(at | said | line for line in lines or [{"reason": plain(row.absent)}])
    return out.getvalue()


def _lines(comparison: Comparison, row: Row, number: str) -> list[dict[str, Any]]:
    """Return the lines of one number: ours with the first paper's, then those of further papers."""
    scores, base = comparison.scores, {"number": number, "unit": comparison.unit(number)}
    value = None if scores is None else scores.values.get(row.model, {}).get(number)
    line: dict[str, Any] = {**base, "reason": plain(row.absent)}
    if isinstance(value, Value):
        line |= {"value": value.x, "low": _blank(value.low), "high": _blank(value.high), "n": value.n}
    elif isinstance(value, Unavailable):
        line["reason"] = plain(value.reason)
    gap = None if scores is None else scores.gaps.get(row.model, {}).get(number)
    if gap is not None:
        line |= {"gap": gap.x, "gap_low": _blank(gap.low), "gap_high": _blank(gap.high)}
    if scores is not None and number in scores.floor:
        line["floor"] = scores.floor[number].x
    ranking = comparison.rankings.get(number)
    if ranking is not None and row.model in ranking.ranks:
        line["rank"] = str(ranking.ranks[row.model])
    printed = [_paper(source.name, source.values, row.model, number) for source in comparison.published]
    papers = [paper for paper in printed if paper]
    return [line | (papers[0] if papers else {}), *(base | paper for paper in papers[1:])]


def _logged(mean: Interval, name: str) -> dict[str, Any]:
    return {
        "number": LOG + plain(name),
        "value": mean.x,
        "low": _blank(mean.low),
        "high": _blank(mean.high),
        "n": mean.n,
    }


def _paper(name: str, values: Mapping[str, Any], model: str, number: str) -> dict[str, Any]:
    found = values.get(model, {}).get(number)
    if found is None:
        return {}
    return {"published": found[0], "published_spread": "" if found[1] is None else found[1], "source": plain(name)}


def _blank(end: float) -> float | str:
    return end if math.isfinite(end) else ""
