"""What was measured: values, gaps to retrained, the floor; pooling over seeds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from expunge import stats
from expunge.errors import UserError, listing, suggest
from expunge.metric import Found, Goal, Number, Place, Unavailable, Value
from expunge.scenario import Asked

REFERENCE, FLOOR = "retrained", "retrained (other seed)"
Series = Mapping[str, Mapping[Place, Value | Unavailable]]


@dataclass(frozen=True)
class Scores:
    """What `evaluate` measured on one training seed, or `pooled` over several.

    Args:
        values: by model and metric.
        gaps: value minus retrained's, or minus the ideal where the number has one by definition, by model and metric,
            where both are defined; signed. Its interval is over samples where one model was measured, over seeds where
            pooled.
        distances: the size of that gap, averaged over seeds after the sign is dropped: what the floor compares with.
        floor: mean |gap| over all pairs of retrained models of one seed, by metric; empty without a second one.
        numbers: what each metric's name stands for: label, goal, range, ideal.
        declined: reason by control or method that does not apply.
        notes: what the unlearn results say a reader must know, by model.
        settings: of the unlearn results, by model.
        changed: share of changed parameters by model and tensor.
        samples: per-sample loss, entropy and member scores by model and split, for plots.
        asked: who is forgotten: kind, target, sizes.
        series: curves and groups by model and name: values by place.
        flaws: why nothing can be said of a model's outputs, by model.
        caveats: what a reader must know of this scenario, in sentences.
        seeds: training seeds behind the numbers.
    """

    values: Mapping[str, Found]
    gaps: Mapping[str, dict[str, Value]]
    distances: Mapping[str, dict[str, float]]
    floor: Mapping[str, Value]
    numbers: Mapping[str, Number]
    declined: Mapping[str, str]
    notes: Mapping[str, str]
    settings: Mapping[str, Mapping[str, Any]]
    changed: Mapping[str, Mapping[str, float]]
    samples: Mapping[str, Mapping[str, np.ndarray]] = field(repr=False)
    asked: Asked
    series: Mapping[str, Series] = field(repr=False, default_factory=dict)
    flaws: Mapping[str, str] = field(default_factory=dict)
    caveats: tuple[str, ...] = ()
    seeds: int = 1

    @property
    def goals(self) -> dict[str, Goal]:
        """Which values are good, by metric."""
        return {name: number.goal for name, number in self.numbers.items()}

    def __getitem__(self, model: str) -> Found:
        """Return one model's values.

        Raises:
            UserError: no such model.
        """
        if model not in self.values:
            raise UserError("an evaluated model", repr(model), suggest(model, self.values))
        return self.values[model]

    def only(self, models: Sequence[str]) -> Scores:
        """Return the rows of some models alone."""
        parts = ("values", "gaps", "distances", "notes", "settings", "changed", "samples", "series", "flaws")
        kept: dict[str, Any] = {p: {m: v for m, v in getattr(self, p).items() if m in models} for p in parts}
        return replace(self, **kept)

    def renamed(self, old: str, new: str) -> Scores:
        """Return the scores with one model under another name."""
        parts = ("values", "gaps", "distances", "notes", "settings", "changed", "samples", "series", "flaws")
        both: dict[str, Any] = {p: {new if m == old else m: v for m, v in getattr(self, p).items()} for p in parts}
        return replace(self, **both)

    def with_rows(self, other: Scores) -> Scores:
        """Return the scores with further rows, measured beside the same original and retrained models."""
        parts = (
            "values",
            "gaps",
            "distances",
            "declined",
            "notes",
            "settings",
            "changed",
            "samples",
            "series",
            "flaws",
        )
        both: dict[str, Any] = {p: {**getattr(self, p), **getattr(other, p)} for p in parts}
        return replace(self, **both, caveats=tuple(dict.fromkeys([*self.caveats, *other.caveats])))


def pooled(runs: Sequence[Scores], *, partial: bool = False) -> Scores:
    """Pool runs of several training seeds: means with 95 % t intervals; gaps are paired by seed before averaging.

    Args:
        runs: one `evaluate` result a seed, each with its own original and retrained models.
        partial: whether a model may be missing from some runs; it is then pooled over those that have it.

    Returns:
        The pooled scores; a value undefined on any seed stays undefined, with the first reason.

    Raises:
        UserError: no run, or runs of different models or metrics.
    """
    if not runs:
        raise UserError("at least one run to pool", "none", "call evaluate once a seed")
    if len(runs) == 1:
        return runs[0]
    first = runs[0]
    for run in runs[1:]:
        if not partial and {m: set(v) for m, v in run.values.items()} != {m: set(v) for m, v in first.values.items()}:
            got = f"{listing(run.values)} after {listing(first.values)}"
            raise UserError("runs of the same models and metrics", got, "evaluate every seed alike")
    own = {m: [r for r in runs if m in r.values] for m in dict.fromkeys(m for r in runs for m in r.values)}
    return Scores(
        values={m: {k: pool([r.values[m][k] for r in rs]) for k in rs[0].values[m]} for m, rs in own.items()},
        gaps={m: defined({k: [r.gaps[m].get(k) for r in rs] for k in rs[0].gaps[m]}) for m, rs in _in("gaps", own)},
        distances={m: _sizes([r.distances[m] for r in rs]) for m, rs in _in("distances", own)},
        floor=defined({k: [r.floor.get(k) for r in runs] for k in first.floor}),
        numbers=first.numbers,
        declined={m: why for r in runs for m, why in r.declined.items() if m not in own},
        notes={m: " ".join(dict.fromkeys(r.notes.get(m, "") for r in rs)).strip() for m, rs in _in("notes", own)},
        settings={m: rs[0].settings[m] for m, rs in _in("settings", own)},
        changed={
            m: {k: float(np.mean([r.changed[m][k] for r in rs])) for k in rs[0].changed[m]}
            for m, rs in _in("changed", own)
        },
        samples={m: _joined([r.samples[m] for r in rs]) for m, rs in _in("samples", own)},
        asked=first.asked,
        series={m: _series([r.series.get(m, {}) for r in rs]) for m, rs in _in("series", own)},
        flaws={m: why for r in runs for m, why in r.flaws.items()},
        caveats=_caveats(runs),
        seeds=sum(r.seeds for r in runs),
    )


def _caveats(runs: Sequence[Scores]) -> tuple[str, ...]:
    """Return what a reader must know of the runs; of what does not hold for all of them, for how many it does."""
    counts = Counter(c for run in runs for c in dict.fromkeys(run.caveats))
    return tuple(c if n == len(runs) else f"On {n} of {len(runs)} seeds: {c}" for c, n in counts.items())


def _in(part: str, own: Mapping[str, Sequence[Scores]]) -> Iterator[tuple[str, list[Scores]]]:
    """Yield the models that a part of the scores speaks of, with the runs in which it does."""
    for model, runs in own.items():
        having = [r for r in runs if model in getattr(r, part)]
        if having:
            yield model, having


def merged(scores: Scores, groups: Mapping[str, Sequence[str]]) -> Scores:
    """Return the scores with replicates under one name: values pooled, samples joined, changes averaged.

    Args:
        scores: with one entry a replicate.
        groups: the replicates' names by the name they get.

    Returns:
        The merged scores.
    """

    def first(found: Mapping[str, Any]) -> dict[str, Any]:
        return {name: found[names[0]] for name, names in groups.items() if names[0] in found}

    values = {
        name: {
            k: pool([scores.values[n][k] for n in ns]) if len(ns) > 1 else v for k, v in scores.values[ns[0]].items()
        }
        for name, ns in groups.items()
    }
    changed = {
        name: {k: float(np.mean([scores.changed[n][k] for n in ns])) for k in scores.changed[ns[0]]}
        for name, ns in groups.items()
        if all(n in scores.changed for n in ns)
    }
    samples = {name: _joined([scores.samples[n] for n in ns]) for name, ns in groups.items()}
    series = {name: _series([scores.series.get(n, {}) for n in ns]) for name, ns in groups.items()}
    flaws = {name: scores.flaws[n] for name, ns in groups.items() for n in ns if n in scores.flaws}
    gaps = {  # paired with the reference by sample; of several replicates only the mean's gap means anything
        name: scores.gaps[ns[0]] for name, ns in groups.items() if len(ns) == 1 and ns[0] in scores.gaps
    }
    notes, settings = first(scores.notes), first(scores.settings)
    parts: dict[str, Any] = {"values": values, "gaps": gaps, "changed": changed, "samples": samples}
    return replace(scores, **parts, notes=notes, settings=settings, series=series, flaws=flaws)


def pool(found: Sequence[Value | Unavailable]) -> Value | Unavailable:
    """Return the mean with a t interval, inside [0, 1] for shares; one undefined value makes the pool undefined.

    Changes of shares may be negative, and some distances exceed 1: where a value does, that end is not cut. Where a
    count was given up at its cap, its interval [cap, ∞), the mean is a lower bound as well.
    """
    values = [v for v in found if isinstance(v, Value)]
    if len(values) < len(found):
        return next(v for v in found if isinstance(v, Unavailable))
    mean = stats.mean_t([v.x for v in values])
    if any(math.isfinite(v.low) and v.high == math.inf for v in values):
        return Value(mean.x, mean.x, math.inf, mean.n, values[0].unit)
    if values[0].unit != "1" or len(values) == 1:
        return Value.of(mean, values[0].unit)
    signed = any(v.x < 0 or -math.inf < v.low < 0 for v in values)
    large = any(v.x > 1 or 1 < v.high < math.inf for v in values)
    low, high = mean.low if signed else max(0.0, mean.low), mean.high if large else min(1.0, mean.high)
    return Value(mean.x, low, high, mean.n)


def _series(runs: Sequence[Series]) -> dict[str, dict[Place, Value | Unavailable]]:
    """Pool series place by place; a place that some runs lack, such as a class without samples, is left out."""
    found: dict[str, dict[Place, Value | Unavailable]] = {}
    for name in dict.fromkeys(n for run in runs for n in run):
        points = [run.get(name, {}) for run in runs]
        places = [at for at in points[0] if all(at in p for p in points)]
        found[name] = {at: points[0][at] if len(points) == 1 else pool([p[at] for p in points]) for at in places}
    return found


def _joined(runs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join the samples that every run has; one whose model has a flaw has none."""
    return {k: np.concatenate([run[k] for run in runs]) for k in runs[0] if all(k in run for run in runs)}


def _sizes(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    keys = [k for k in runs[0] if all(k in run for run in runs)]
    return {k: float(np.mean([run[k] for run in runs])) for k in keys}


def defined(found: Mapping[str, Sequence[Value | None]]) -> dict[str, Value]:
    """Return the mean of each name's values with a t interval, where every one is defined."""
    out = {}
    for name, several in found.items():
        values = [v for v in several if v is not None]
        if values and len(values) == len(several):
            out[name] = Value.of(stats.mean_t([v.x for v in values]), values[0].unit)
    return out


def with_gaps(scores: Scores) -> Scores:
    """Return the scores with the gaps to retrained, their sizes, and the floor over all pairs of retrained models.

    The gap of a number with an ideal by definition, such as a distance to retrained, is its own distance from that
    ideal; its floor is that of the further retrained models, for they were measured against the first.
    """
    base = {} if REFERENCE in scores.flaws else scores.values.get(REFERENCE, {})
    ideals = {k: n.target for k, n in scores.numbers.items() if n.target is not None}
    gaps = {
        name: _differences(found, base, ideals, scores.gaps.get(name, {}))
        for name, found in scores.values.items()
        if name != REFERENCE
    }
    again = [name for name in scores.values if name.startswith(FLOOR)]
    retrained = [found for name, found in scores.values.items() if name == REFERENCE or name in again]
    pairs = [_differences(a, b, {}, {}) for i, a in enumerate(retrained) for b in retrained[:i]] if base else []
    floor = {}
    for key in scores.numbers:
        several = [gaps[name] for name in again] if key in ideals else pairs
        found = [pair[key] for pair in several if key in pair]
        if found:  # pairs share models: they give a mean, and no interval
            size = float(np.mean([abs(v.x) for v in found]))
            floor[key] = Value(size, -math.inf, math.inf, len(found), found[0].unit)
    distances = {name: {k: abs(v.x) for k, v in found.items()} for name, found in gaps.items()}
    return replace(scores, gaps=gaps, distances=distances, floor=floor)


def _differences(
    found: Found, base: Found, ideals: Mapping[str, float], paired: Mapping[str, Value]
) -> dict[str, Value]:
    gaps = {}
    for key, value in found.items():
        if not isinstance(value, Value):
            continue
        ideal, reference = ideals.get(key), base.get(key)
        if ideal is not None:
            gaps[key] = Value(value.x - ideal, value.low - ideal, value.high - ideal, value.n, value.unit)
        elif isinstance(reference, Value):
            x = value.x - reference.x
            own = paired.get(key)
            same = own is not None and math.isclose(own.x, x, rel_tol=1e-6, abs_tol=1e-9)
            gaps[key] = own if own is not None and same else Value.single(x, value.unit)
    return gaps
