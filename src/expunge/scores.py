"""What was measured: values, gaps to retrained, the floor; pooling over seeds; the document that reports read."""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expunge import __version__, methods, stats
from expunge.attacks import _roc
from expunge.errors import UserError, listing, suggest
from expunge.files import jsonable, write_document
from expunge.metric import Found, Goal, Unavailable, Value
from expunge.scenario import Scenario

REFERENCE, FLOOR = "retrained", "retrained (other seed)"
BINS = 30
DOCUMENT, SCHEMA = "expunge.audit", 1


@dataclass(frozen=True)
class Scores:
    """What `evaluate` measured on one training seed, or `pooled` over several.

    Args:
        values: by model and metric.
        gaps: value minus retrained's, by model and metric, where both are defined; signed.
        distances: the size of that gap, averaged over seeds after the sign is dropped: what the floor compares with.
        floor: mean |gap| over all pairs of retrained models of one seed, by metric; empty without a second one.
        goals: which values are good, by metric.
        declined: reason by control or method that does not apply.
        notes: what the unlearn results say a reader must know, by model.
        settings: of the unlearn results, by model.
        changed: share of changed parameters by model and tensor.
        samples: per-sample loss, entropy and member scores by model and split, for plots.
        scenario: who is forgotten.
        seeds: training seeds behind the numbers.
    """

    values: Mapping[str, Found]
    gaps: Mapping[str, dict[str, Value]]
    distances: Mapping[str, dict[str, float]]
    floor: Mapping[str, Value]
    goals: Mapping[str, Goal]
    declined: Mapping[str, str]
    notes: Mapping[str, str]
    settings: Mapping[str, Mapping[str, Any]]
    changed: Mapping[str, Mapping[str, float]]
    samples: Mapping[str, Mapping[str, np.ndarray]] = field(repr=False)
    scenario: Scenario = field(repr=False)
    seeds: int = 1

    def __getitem__(self, model: str) -> Found:
        """Return one model's values.

        Raises:
            UserError: no such model.
        """
        if model not in self.values:
            raise UserError("an evaluated model", repr(model), suggest(model, self.values))
        return self.values[model]


def pooled(runs: Sequence[Scores]) -> Scores:
    """Pool runs of several training seeds: means with 95 % t intervals; gaps are paired by seed before averaging.

    Args:
        runs: one `evaluate` result a seed, each with its own original and retrained models.

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
        if {m: set(v) for m, v in run.values.items()} != {m: set(v) for m, v in first.values.items()}:
            got = f"{listing(run.values)} after {listing(first.values)}"
            raise UserError("runs of the same models and metrics", got, "evaluate every seed alike")
    return Scores(
        values={m: {k: pool([r.values[m][k] for r in runs]) for k in first.values[m]} for m in first.values},
        gaps={m: defined({k: [r.gaps[m].get(k) for r in runs] for k in first.gaps[m]}) for m in first.gaps},
        distances={m: _sizes([r.distances[m] for r in runs]) for m in first.distances},
        floor=defined({k: [r.floor.get(k) for r in runs] for k in first.floor}),
        goals=first.goals,
        declined=first.declined,
        notes={m: " ".join(dict.fromkeys(r.notes.get(m, "") for r in runs)).strip() for m in first.notes},
        settings=first.settings,
        changed={
            m: {k: float(np.mean([r.changed[m][k] for r in runs])) for k in first.changed[m]} for m in first.changed
        },
        samples={
            m: {k: np.concatenate([r.samples[m][k] for r in runs]) for k in first.samples[m]} for m in first.samples
        },
        scenario=first.scenario,
        seeds=sum(r.seeds for r in runs),
    )


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
    samples = {
        name: {k: np.concatenate([scores.samples[n][k] for n in ns]) for k in scores.samples[ns[0]]}
        for name, ns in groups.items()
    }
    notes, settings = first(scores.notes), first(scores.settings)
    return replace(scores, values=values, changed=changed, samples=samples, notes=notes, settings=settings)


def pool(found: Sequence[Value | Unavailable]) -> Value | Unavailable:
    """Return the mean with a t interval, inside [0, 1] for shares; one undefined value makes the pool undefined."""
    values = [v for v in found if isinstance(v, Value)]
    if len(values) < len(found):
        return next(v for v in found if isinstance(v, Unavailable))
    mean = stats.mean_t([v.x for v in values])
    if values[0].unit != "1" or len(values) == 1:
        return Value.of(mean, values[0].unit)
    return Value(mean.x, max(0.0, mean.low), min(1.0, mean.high), mean.n)


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
    """Return the scores with the gaps to retrained, their sizes, and the floor over all pairs of retrained models."""
    base = scores.values.get(REFERENCE, {})
    gaps = {name: _differences(found, base) for name, found in scores.values.items() if name != REFERENCE}
    retrained = [found for name, found in scores.values.items() if name == REFERENCE or name.startswith(FLOOR)]
    pairs = [_differences(a, b) for i, a in enumerate(retrained) for b in retrained[:i]]
    floor = {}
    for key in base:
        sizes = [abs(pair[key].x) for pair in pairs if key in pair]
        if sizes:  # pairs share models: they give a mean, and no interval
            unit = next(pair[key].unit for pair in pairs if key in pair)
            floor[key] = Value(float(np.mean(sizes)), -math.inf, math.inf, len(sizes), unit)
    distances = {name: {k: abs(v.x) for k, v in found.items()} for name, found in gaps.items()}
    return replace(scores, gaps=gaps, distances=distances, floor=floor)


def _differences(found: Found, base: Found) -> dict[str, Value]:
    return {
        k: Value(v.x - r.x, -math.inf, math.inf, 1, v.unit)
        for k, v in found.items()
        if isinstance(v, Value) and isinstance(r := base.get(k), Value)
    }


_SPLITS = {
    "forget": "forget set",
    "retain": "retain set",
    "test": "test set",
    "test_forget": "test, forgotten kind",
    "test_retain": "test, the rest",
    "holdout": "holdout set",
}
_LABELS = {
    "membership/entropy_lr": "entropy attack: forget set called member",
    "membership/loss/auc": "loss attack: AUC",
    "membership/loss/balanced_accuracy": "loss attack: balanced accuracy",
    "membership/loss/tpr_at_fpr_0.01": "loss attack: TPR at 1 % FPR",
    "probe/one_shot": "one-shot linear probe: recall of the class",
    "cost/seconds": "time of the edit",
    "cost/total_seconds": "time with checks and copies",
    "cost/peak_memory": "extra memory at the peak",
    "cost/changed": "parameters changed",
}
_TEXTS = {
    "original": "trained on everything",
    REFERENCE: "trained anew without the forget set: the reference of every gap",
    FLOOR: "a second retrained model of another seed: the floor of every gap",
}


def label(metric: str) -> str:
    """Return a metric's name in words.

    >>> label("accuracy/test_retain")
    'accuracy, test, the rest'
    """
    family, _, split = metric.partition("/")
    return _LABELS.get(metric, f"{family}, {_SPLITS[split]}" if split in _SPLITS else metric.replace("/", ", "))


def section(
    scores: Scores,
    *,
    name: str,
    text: str,
    counts: Mapping[str, int],
    declined: Mapping[str, str] | None = None,
    samples: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """Return one scenario of the report document, as plain JSON values.

    Args:
        scores: of one seed, or pooled.
        name: heading.
        text: one sentence on who is forgotten.
        counts: samples by set: train, forget, retain, holdout, test.
        declined: reasons by method that was asked for and does not apply.
        samples: images to show, with id, label and image as a data address; mind that a report of an erasure must
            not carry what was erased.

    Returns:
        The section.
    """
    refused = {**scores.declined, **(declined or {})}
    return {
        "name": name,
        "kind": scores.scenario.kind,
        "target": jsonable(scores.scenario.target),
        "text": text,
        "counts": dict(counts),
        "seeds": scores.seeds,
        "models": [_model(scores, n) for n in scores.values] + [_model(scores, n, why) for n, why in refused.items()],
        "metrics": [
            {"name": k, "label": label(k), "unit": _unit(scores, k), "goal": str(goal), "group": k.partition("/")[0]}
            for k, goal in scores.goals.items()
        ],
        "values": {m: {k: _plain(v) for k, v in found.items()} for m, found in scores.values.items()},
        "gaps": {
            m: {k: {**_plain(v), "distance": scores.distances[m][k]} for k, v in found.items()}
            for m, found in scores.gaps.items()
        },
        "floor": {k: _plain(v) for k, v in scores.floor.items()},
        "curves": _curves(scores),
        "changed": jsonable(scores.changed),
        "samples": [dict(s) for s in samples],
    }


def save_document(path: Path, page: Mapping[str, Any]) -> None:
    """Write a report document as JSON, atomically."""
    write_document(path, DOCUMENT, SCHEMA, {k: v for k, v in page.items() if k not in ("kind", "schema")})


def document(sections: Sequence[Mapping[str, Any]], *, title: str, lead: str, command: str | None) -> dict[str, Any]:
    """Return the whole report document around its sections."""
    return {
        "kind": DOCUMENT,
        "schema": SCHEMA,
        "title": title,
        "lead": lead,
        "created": datetime.now(UTC).replace(microsecond=0).isoformat(),
        "versions": {
            "expunge": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "platform": sys.platform,
        },
        "command": command,
        "sections": [dict(s) for s in sections],
    }


def _model(scores: Scores, name: str, declined: str | None = None) -> dict[str, Any]:
    settings = dict(scores.settings.get(name, {}))
    method = settings.get("name", name)
    known = method in methods.names(controls=True)
    control = known and methods.load(method).control
    role = "floor" if name.startswith(FLOOR) else name if name in ("original", REFERENCE) else "method"
    doc = (methods.load(method).__doc__ or "").splitlines()[0] if known else ""
    return {
        "name": name,
        "role": "control" if control else role,
        "text": _TEXTS.get(FLOOR if role == "floor" else name, doc),
        "settings": jsonable(settings),
        "notes": [scores.notes[name]] if scores.notes.get(name) else [],
        "declined": declined,
    }


def _unit(scores: Scores, metric: str) -> str:
    found = [v[metric] for v in scores.values.values() if isinstance(v.get(metric), Value)]
    return next((v.unit for v in found if isinstance(v, Value)), "1")


def _plain(value: Value | Unavailable) -> dict[str, Any]:
    if isinstance(value, Unavailable):
        return {"unavailable": value.reason}
    ends = (v if math.isfinite(v) else None for v in (value.low, value.high))
    return {"x": value.x, **dict(zip(("low", "high"), ends, strict=True)), "n": value.n, "unit": value.unit}


def _curves(scores: Scores) -> dict[str, Any]:
    """Return densities of loss and entropy on common edges, and the loss attack's curve, each seed's samples pooled."""
    found: dict[str, Any] = {}
    for quantity in ("loss", "entropy"):
        parts = {m: s for m, s in scores.samples.items() if f"{quantity}/forget" in s and f"{quantity}/test" in s}
        if not parts:
            continue
        top = max(float(v.max()) for s in parts.values() for k, v in s.items() if k.startswith(quantity))
        edges = np.geomspace(max(top, 1e-6) * 1e-5, max(top, 1e-6), BINS + 1)
        densities = {
            m: {split: _density(s[f"{quantity}/{split}"], edges) for split in ("forget", "test")}
            for m, s in parts.items()
        }
        found[quantity] = {"edges": edges.tolist(), "densities": densities}
    roc = {}
    for model, samples in scores.samples.items():
        if len(samples.get("score/members", ())) and len(samples.get("score/others", ())):
            fpr, tpr = _roc.curve(samples["score/members"], samples["score/others"])
            corner = _corners(fpr, tpr)
            roc[model] = {"fpr": fpr[corner].tolist(), "tpr": tpr[corner].tolist()}
    return found | ({"roc": roc} if roc else {})


def _corners(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return which points of a staircase are needed to draw it: the ends and where its direction changes."""
    straight = (np.diff(x[:-1]) * np.diff(y[1:]) == np.diff(x[1:]) * np.diff(y[:-1])) if len(x) > 2 else np.zeros(0)
    return np.concatenate([[True], ~straight.astype(bool), [True]])


def _density(values: np.ndarray, edges: np.ndarray) -> list[float]:
    """Return the share of the values in each bin; values beyond the edges count in the outer bins."""
    return (np.histogram(values.clip(edges[0], edges[-1]), edges)[0] / max(1, len(values))).tolist()  # type: ignore[no-any-return]
