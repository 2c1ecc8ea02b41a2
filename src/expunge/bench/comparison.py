"""What one table of the benchmark compares: rows, numbers, ranks, costs and published numbers of a place and step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from expunge import metrics as families
from expunge import stats
from expunge.bench.collect import Group
from expunge.bench.grid import CONTROLS, Grid, Place
from expunge.bench.ranks import Ranking, needed, ranking
from expunge.errors import UserError, suggest
from expunge.metric import Number, Value
from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report.distance import UNCOUNTED
from expunge.scores import FLOOR, REFERENCE, Scores, pooled
from expunge.summary import numbers

# The numbers of a short table, where they were measured.
SHOWN = (
    "accuracy/forget",
    "accuracy/forget_clean",
    "accuracy/retain",
    "accuracy/test",
    "accuracy/test_forget",
    "membership/entropy_lr",
    "membership/loss/auc",
    "probe/one_shot",
    "backdoor/success",
    "gaussian/score",
    "cost/seconds",
    "cost/changed",
)
WORDS = {
    "declined": "declined: {}",
    "failed": "failed: {}",
    "blocked": "not run, for what it needs is not there: {}",
    "corrupt": "corrupt: {}",
    "running": "running",
    "missing": "not run yet",
}
UNITS = {"cost/seconds": "s", "cost/total_seconds": "s", "cost/peak_memory": "bytes", "loss": "nats"}  # of papers
PREPARE, EDITS, AUDIT = "prepare", "edits", "measure"
PARTS = (PREPARE, EDITS, AUDIT)


@dataclass(frozen=True)
class Row:
    """One model of a table.

    Args:
        model: its name in the grid.
        role: ``original``, ``retrained``, ``floor`` (a further retrained model), ``control``, ``method``, or
            ``published`` where papers alone have it.
        seeds: that it was measured on.
        absent: why nothing is known of it, in words; empty where something is.
        lacking: why seeds are missing that other rows have; empty where none is.
    """

    model: str
    role: str
    seeds: tuple[int, ...]
    absent: str = ""
    lacking: str = ""


@dataclass(frozen=True)
class Source:
    """Numbers from a paper.

    Args:
        name: title, authors, year, table.
        differences: what differs from our data and protocol.
        values: by model and number: mean and spread as printed, None where no spread is.
    """

    name: str
    differences: tuple[str, ...]
    values: Mapping[str, Mapping[str, tuple[float, float | None]]]


@dataclass(frozen=True)
class Cost:
    """What a method cost over seeds, in seconds: means with 95 % t intervals.

    Args:
        parts: of ``prepare``, of all ``edits`` so far, and of the audit (``measure``).
        retrain: of the fastest retraining of the same seed.
        ratio: of prepare and edits over that, seed by seed; the audit counts in neither, both need one.
        total: mean of all parts together.
    """

    parts: Mapping[str, stats.Interval]
    retrain: stats.Interval
    ratio: stats.Interval
    total: float


@dataclass(frozen=True)
class Comparison:
    """What one table compares.

    Args:
        group: the finished cells.
        rows: models in the order of the table.
        scores: pooled over seeds; a row of one seed as that seed measured it; None where nothing is finished.
        published: numbers from papers on this place.
        numbers: the columns.
        least: seeds that a ranking takes.
        logged: values that methods record, in columns of their own.
    """

    group: Group
    rows: tuple[Row, ...]
    scores: Scores | None
    published: tuple[Source, ...]
    numbers: tuple[str, ...]
    least: int
    logged: tuple[str, ...] = ()

    @cached_property
    def section(self) -> Mapping[str, Any] | None:
        """The numbers as a section of the report's document holds them; None where nothing is finished."""
        if self.scores is None:
            return None
        flaws, settings = self.scores.flaws, self.scores.settings
        models = [
            {"name": r.model, "role": r.role, "nature": "", "flaw": flaws.get(r.model, ""),
             "settings": dict(settings.get(r.model, {}))}
            for r in self.rows if r.seeds
        ]  # fmt: skip
        return {"counts": dict(self.scores.asked.counts), "models": models, **numbers(self.scores)}

    @cached_property
    def rankings(self) -> Mapping[str, Ranking]:
        """The ranks of methods and controls by number; none of costs and of distances between weights."""
        kept = [n for n in self.numbers if _family(n) not in UNCOUNTED and n in self.known]
        return {number: self._ranking(number) for number in kept}

    @property
    def known(self) -> Mapping[str, Number]:
        """What the numbers stand for."""
        return {} if self.scores is None else self.scores.numbers

    @cached_property
    def costs(self) -> dict[str, Cost]:
        """What the methods cost, where it was kept."""
        found = {row.model: self._cost(row) for row in self.rows if row.role == "method"}
        return {model: cost for model, cost in found.items() if cost is not None}

    def unit(self, number: str) -> str:
        """Return the unit of a number."""
        every = [] if self.scores is None else self.scores.values.values()
        measured = (v.unit for found in every if isinstance(v := found.get(number), Value))
        return next(measured, UNITS.get(number) or UNITS.get(_family(number), "1"))

    def log(self, model: str, name: str) -> stats.Interval | None:
        """Return the mean over seeds of a value that a method's edits recorded; None where none did."""
        found = [_last(self.group.logs.get((seed, model), {}).get(name)) for seed in sorted(self.group.runs)]
        there = [x for x in found if x is not None]
        return stats.mean_t(there) if there else None

    def published_here(self, number: str) -> list[tuple[int, Source]]:
        """Return the papers that have a number, numbered from 1."""
        every = enumerate(self.published, 1)
        return [(i, source) for i, source in every if any(number in found for found in source.values.values())]

    def _ranking(self, number: str) -> Ranking:
        runs = self.group.runs
        models = [row.model for row in self.rows if row.role in ("control", "method")]
        every = {m: {s: d for s in sorted(runs) if (d := _distance(runs[s], m, number)) is not None} for m in models}
        floor = {s: abs(runs[s].floor[number].x) for s in sorted(runs) if number in runs[s].floor}
        some = {model: found for model, found in every.items() if found}
        return ranking(some, floor or None, least=self.least, step=fmt.resolution(self.unit(number)))

    def _cost(self, row: Row) -> Cost | None:
        costs = self.group.costs
        both = [
            (own, shared["retrain"])
            for seed in row.seeds
            if all(p in (own := costs.get((seed, row.model), {})) for p in PARTS)
            and (shared := costs.get((seed, ""), {})).get("retrain")
        ]
        if not both:
            return None
        parts = {part: stats.mean_t([own[part] for own, _ in both]) for part in PARTS}
        ratio = stats.mean_t([(own[PREPARE] + own[EDITS]) / retrain for own, retrain in both])
        retrain = stats.mean_t([seconds for _, seconds in both])
        return Cost(parts, retrain, ratio, sum(part.x for part in parts.values()))


def compare(
    grid: Grid, group: Group, names: Sequence[str] | None, *, every: bool = False, logs: Sequence[str] = ()
) -> Comparison:
    """Return what a table of a group compares.

    Args:
        grid: that asked for it.
        group: its finished cells.
        names: numbers and families of numbers, as `check` accepts them; None for a short choice.
        every: where none are named, all numbers instead of that choice.
        logs: values that methods record, as `check_logs` accepts them.

    Returns:
        The comparison.
    """
    published = _published(grid, group)
    rows = _rows(grid, group, published)
    kept = _numbers(list(group.runs.values()), published, names, every)
    scores = _pooled(group, rows, kept)
    least = needed(grid.places[group.place].network)
    return Comparison(group, rows, scores, published, kept, least, tuple(dict.fromkeys(logs)))


def check(groups: Sequence[Group], names: Sequence[str] | None) -> None:
    """Refuse what is neither a number nor a family of numbers of any group.

    Raises:
        UserError: an unknown name; says which one may be meant.
    """
    numbers = {number for group in groups for run in group.runs.values() for number in run.numbers}
    within = {_family(number) for number in numbers} or set(families.names())
    for name in names or ():
        there = name in numbers | within if numbers else _family(name) in within
        if not there:
            raise UserError("a number or a family of numbers", repr(name), suggest(name, numbers | within))


def check_logs(groups: Sequence[Group], names: Sequence[str]) -> None:
    """Refuse what no edit of any group recorded as a number; groups must be read with what edits recorded.

    Raises:
        UserError: an unknown name; says which one may be meant.
    """
    every = (log for group in groups for log in group.logs.values())
    known = {name for log in every for name, value in log.items() if _last(value) is not None}
    for name in names:
        if name not in known:
            remedy = suggest(name, known) if known else "leave it out: no method here records any"
            raise UserError("a number that a method of the grid records", repr(name), remedy)


def _last(value: Any) -> float | None:
    """Return a recorded number, the last of those recorded step by step; None for what is no finite number."""
    if isinstance(value, list) and value and isinstance(value[-1], list) and len(value[-1]) == 2:
        value = value[-1][1]
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None


def _numbers(
    runs: Sequence[Scores], published: Sequence[Source], names: Sequence[str] | None, every: bool
) -> tuple[str, ...]:
    """Return the columns: those asked for, else the short choice and what papers have, else all there are."""
    printed = dict.fromkeys(n for source in published for found in source.values.values() for n in found)
    known = runs[0].numbers if runs else {}
    there = [str(m["name"]) for m in doc.metrics({"metrics": [{"name": n, "group": _family(n)} for n in known]})]
    if names is not None:
        return tuple(dict.fromkeys(n for name in names for n in there if name in (n, _family(n))))
    measured = [n for n in there if any(isinstance(v.get(n), Value) for run in runs for v in run.values.values())]
    short = [n for n in SHOWN if n in measured] or measured
    return tuple(dict.fromkeys([*(measured if every else short), *printed]))


def _family(number: str) -> str:
    return number.partition("/")[0]


def _rows(grid: Grid, group: Group, published: Sequence[Source]) -> tuple[Row, ...]:
    runs = [group.runs[seed] for seed in sorted(group.runs)]
    again = dict.fromkeys(m for run in runs for m in run.values if m.startswith(FLOOR)) or {FLOOR: None}
    roles = {"original": "original", REFERENCE: "retrained"} | dict.fromkeys(again, "floor")
    roles |= dict.fromkeys(CONTROLS, "control") | dict.fromkeys(grid.methods, "method")
    theirs = dict.fromkeys(model for source in published for model in source.values if model not in roles)
    ours = [_row(group, model, role) for model, role in roles.items()]
    return (*ours, *(Row(model, "published", (), "published only: not in this grid") for model in theirs))


def _row(group: Group, model: str, role: str) -> Row:
    runs = {seed: group.runs[seed] for seed in sorted(group.runs)}
    seeds = tuple(seed for seed, run in runs.items() if model in run.values)
    why = _why(group, model if role == "method" else "", bool(seeds))
    flaws = [run.flaws[model] for run in runs.values() if model in run.flaws]
    declined = [run.declined[model] for run in runs.values() if model in run.declined]
    if seeds:
        said = f"nothing can be said of it: {flaws[0].rstrip('.')}" if flaws else ""
        return Row(model, role, seeds, said, why if len(seeds) < len(runs) else "")
    if declined:
        return Row(model, role, (), WORDS["declined"].format(declined[0].rstrip(".")))
    return Row(model, role, (), why or "not measured")


def _why(group: Group, method: str, named: bool) -> str:
    """Return why a row lacks seeds, in words, with the seeds where reasons differ or other seeds have it."""
    found = dict[str, list[int]]()
    for (seed, who), gap in sorted(group.gaps.items()):
        if who == method:
            found.setdefault(WORDS[gap.status].format(gap.reason.rstrip(".")), []).append(seed)
    if len(found) == 1 and not named:
        return next(iter(found))
    return "; ".join(f"{spelled(seeds)} {why}" for why, seeds in found.items())


def spelled(seeds: Sequence[int]) -> str:
    """Return seeds as text, those in a row as a range.

    >>> spelled([0, 1, 2, 3]), spelled([0, 2, 3]), spelled([4])
    ('seeds 0–3', 'seeds 0, 2 and 3', 'seed 4')
    """
    ordered = sorted(seeds)
    if len(ordered) > 2 and ordered[-1] - ordered[0] == len(ordered) - 1:
        return f"seeds {ordered[0]}–{ordered[-1]}"
    return ("seed " if len(ordered) == 1 else "seeds ") + fmt.listed([str(seed) for seed in ordered])


def _published(grid: Grid, group: Group) -> tuple[Source, ...]:
    """Return what papers say of a place; of requests that follow each other, they speak of the last."""
    if group.step != group.steps:
        return ()
    there = (e for e in grid.file.published if Place(e.data, e.network, e.scenario) == group.place)
    return tuple(
        Source(
            entry.source,
            tuple(entry.differences),
            {
                model: {number: (x[0], x[1] if len(x) > 1 else None) for number, x in found.items()}
                for model, found in entry.values.items()
            },
        )
        for entry in there
    )


def _pooled(group: Group, rows: Sequence[Row], kept: Sequence[str]) -> Scores | None:
    """Return some numbers pooled over seeds; what one seed alone measured keeps its interval over samples."""
    runs = {seed: _narrowed(group.runs[seed], kept) for seed in sorted(group.runs)}
    if not runs:
        return None
    scores = pooled(list(runs.values()), partial=True)
    only = {row.model: runs[row.seeds[0]] for row in rows if len(row.seeds) == 1}
    values = dict(scores.values) | {m: run.values[m] for m, run in only.items()}
    gaps = dict(scores.gaps) | {m: run.gaps[m] for m, run in only.items() if m in run.gaps}
    return replace(scores, values=values, gaps=gaps)


def _narrowed(run: Scores, kept: Sequence[str]) -> Scores:
    """Return the scores of some numbers alone, without series and samples, so that no others are pooled."""

    def some(found: Mapping[str, Any]) -> dict[str, Any]:
        return {number: found[number] for number in kept if number in found}

    parts: dict[str, Any] = {
        p: {m: some(v) for m, v in getattr(run, p).items()} for p in ("values", "gaps", "distances")
    }
    parts |= {part: some(getattr(run, part)) for part in ("floor", "numbers")}
    parts |= {part: {model: {} for model in run.values} for part in ("series", "samples")}
    return replace(run, **parts, changed={})


def _distance(run: Scores, model: str, number: str) -> float | None:
    return run.distances.get(model, {}).get(number)
