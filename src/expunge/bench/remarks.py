"""What is said under a table of the benchmark: what to be careful about, seeds, floor, ranks, papers, tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from expunge.bench.comparison import Comparison, spelled
from expunge.bench.grid import Grid
from expunge.draws import Request
from expunge.methods import load
from expunge.metric import Unavailable, Value
from expunge.report import format as fmt
from expunge.report.findings import caveats

WARNING = "Warning:"
NOTHING = "no field to search"
RANKS = (
    "Ranks by the size of the gap to retrained, among methods and controls: all pairs of a number are compared by "
    "paired t tests over seeds, corrected together by Holm at 5%; what is not told apart shares its ranks. "
    "≈: not told from a second retrained model; > and <: told to be farther from retrained, or nearer, than one."
)
COSTS = (
    "Seconds, means over seeds, and shares of the whole. Prepare is paid once, before any request. The last column "
    "sets prepare and edits against the fastest retraining of the same seed; the audit counts in neither."
)

SEVERAL = "Of several requests all edits so far stand beside one retraining, that after the last of them."


def under(grid: Grid, comparison: Comparison) -> list[str]:
    """Return the notes of a table, in sentences.

    Args:
        grid: that asked for it.
        comparison: what it compares.

    Returns:
        The notes, warnings first.
    """
    section = comparison.section
    said = [
        *([] if section is None else caveats(section)),
        *_seeds(comparison),
        *_floor(comparison),
        *_logged(comparison),
        *_unmeasured(comparison),
        *_unranked(comparison),
        *_costs(comparison),
        *_published(comparison),
        *_tuning(grid, comparison),
        *_versions(comparison),
    ]
    return sorted(said, key=lambda note: not note.startswith(WARNING))


def warned(grid: Grid, comparison: Comparison) -> list[str]:
    """Return the warnings of a table that rest on how the grid was made: costs and tuning.

    Args:
        grid: that asked for it.
        comparison: what it compares.

    Returns:
        The warnings.
    """
    return [note for note in (*_costs(comparison), *_tuning(grid, comparison)) if note.startswith(WARNING)]


def _seeds(comparison: Comparison) -> Iterator[str]:
    """Yield what the numbers rest on, and which seeds are missing where."""
    runs = sorted(comparison.group.runs)
    alone = [row.model for row in comparison.rows if len(row.seeds) == 1]
    if len(runs) > 1:
        yield (
            f"{spelled(runs).capitalize()}, each with its own original and retrained models: mean ± half of the 95% t "
            "interval over seeds, or its ends where it is cut at 0 or 100%; with it the gap to the retrained model of "
            "the same seed."
        )
    if alone and len(runs) > 1:
        yield f"One seed alone: {fmt.listed(alone)}; in brackets the interval over samples, not over seeds."
    elif alone:
        yield "In brackets the 95% interval over samples, where there is one; none is over seeds."
    lacking = sorted({seed for (seed, who) in comparison.group.gaps if not who})
    if lacking and runs:
        why = sorted({gap.reason.rstrip(".") for (_, who), gap in comparison.group.gaps.items() if not who})
        yield f"Not counted: {spelled(lacking)} ({'; '.join(why)})."
    for row in comparison.rows:
        if row.lacking and len(row.seeds) < len(runs):
            yield f"{row.model} rests on {len(row.seeds)} of {fmt.count(len(runs), 'seed')}: {row.lacking}."


def _floor(comparison: Comparison) -> Iterator[str]:
    if comparison.scores is not None and comparison.scores.floor:
        yield (
            "Floor: how far two retrained models of different seeds lie apart, the mean size of their difference. A "
            "gap no longer than that may be chance."
        )


def _logged(comparison: Comparison) -> Iterator[str]:
    if comparison.logged:
        yield (
            "Columns of a log hold what methods themselves recorded of their last edit, of values recorded step by "
            "step the last: means over seeds. The original and retrained models have none, so there are no gaps."
        )


def _unmeasured(comparison: Comparison) -> Iterator[str]:
    """Yield why columns are empty."""
    scores = comparison.scores
    for number in comparison.numbers:
        every = [] if scores is None else [found[number] for found in scores.values.values() if number in found]
        if not any(isinstance(value, Value) for value in every):
            reasons = dict.fromkeys(v.reason.rstrip(".") for v in every if isinstance(v, Unavailable))
            yield f"No {number} of ours: {next(iter(reasons), 'it is not measured here')}."


def _unranked(comparison: Comparison) -> Iterator[str]:
    """Yield why there is no order; one sentence for all numbers."""
    rankings = comparison.rankings.values()
    reasons = list(dict.fromkeys(ranking.reason for ranking in rankings if ranking.reason))
    if reasons and not any(ranking.ranks for ranking in rankings):
        yield f"No ranks: {reasons[0]}. Read the rows as measurements, not as an order."


def _costs(comparison: Comparison) -> Iterator[str]:
    dear = [model for model, cost in comparison.costs.items() if cost.ratio.x > 1]
    if dear:
        yield f"{WARNING} {fmt.listed(dear)} {'costs' if len(dear) == 1 else 'cost'} more than the fastest retraining."
    methods = [row.model for row in comparison.rows if row.role == "method" and row.seeds]
    if methods and not comparison.costs:
        yield "What prepare, edits and audit cost beside a retraining was not kept in this store."


def _published(comparison: Comparison) -> Iterator[str]:
    for i, source in enumerate(comparison.published, 1):
        differences = " ".join(text if text.endswith(".") else f"{text}." for text in source.differences)
        how = f" It differs from ours: {differences}" if differences else ""
        yield f"[{i}] {source.name}: as printed there, with its own spread, beside it ours minus theirs.{how}"


def _tuning(grid: Grid, comparison: Comparison) -> Iterator[str]:
    """Yield what was tuned, on what and how long; what was tuned on the data reported is a warning."""
    methods = [row.model for row in comparison.rows if row.role == "method"]
    if not grid.tuned:
        yield "No method was tuned: all have the settings written in the grid, else their defaults."
        return
    budgets = dict[str, str]()
    for model in methods:
        found = grid.tuned.get(model)
        idle = found is None and not _searched(grid.methods[model])
        budgets[model] = NOTHING if idle else "not tuned" if found is None else _budget(found)
    for budget in dict.fromkeys(budgets.values()):
        yield f"Tuning of {fmt.listed([m for m in methods if budgets[m] == budget])}: {budget}."
    if len(set(budgets.values()) - {NOTHING}) > 1:
        yield f"{WARNING} the methods were not tuned with the same budget, which favours those that were tuned more."
    data = grid.places[comparison.group.place].data
    seen = [m for m in methods if _data(data) in {_data(on["data"]) for on in grid.tuned.get(m, {}).get("on", ())}]
    if seen:
        verb = "was" if len(seen) == 1 else "were"
        yield f"{WARNING} {fmt.listed(seen)} {verb} tuned on {_name(data)}, the data reported here."


def _searched(settings: Mapping[str, Any]) -> bool:
    """Return whether a method, or the one that it runs, declares where a field of it is searched."""
    own = fields(load(settings["name"]))
    inner = [value for value in settings.values() if isinstance(value, Mapping) and "name" in value]
    return any(f.metadata.get("search") is not None for f in own) or any(map(_searched, inner))


def _budget(tuned: Mapping[str, Any]) -> str:
    """Return how much was tried, and where, in words."""
    where = [f"{_name(on['data'])}, {on['network']}, {Request.from_json(dict(on['request']))}" for on in tuned["on"]]
    seeds = fmt.count(len(tuned["seeds"]), "seed")
    return f"{fmt.count(int(tuned['trials']), 'setting')} tried on {'; '.join(where)}, {seeds} each"


def _name(data: Mapping[str, Any]) -> str:
    return str(data.get("name") or data.get("project"))


def _data(data: Mapping[str, Any]) -> tuple[str, str]:
    """Return what tells data sets apart: a known one's name, of a project what its files hold."""
    return (_name(data), "") if "digest" not in data else ("", str(data["digest"]))


def _versions(comparison: Comparison) -> Iterator[str]:
    mixed = {name: sorted(v) for name, v in sorted(comparison.group.versions.items()) if len(v) > 1}
    for name, versions in mixed.items():
        yield f"{WARNING} rows were made with different versions of {name}: {fmt.listed(versions)}."
