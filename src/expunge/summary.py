"""The document that reports read: one section a scenario, as plain JSON values."""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expunge import __version__, mapped, methods
from expunge.attacks import _roc
from expunge.bounds import Outcome
from expunge.files import jsonable, write_document
from expunge.metric import Unavailable, Value
from expunge.predicted import gathered
from expunge.scores import FLOOR, REFERENCE, Scores

BINS = 30
SHARES = "predictions/classes"
BY_CLASS = ("subgroups/label", SHARES)  # series whose places are classes
DRAWN = ("original", "method", REFERENCE)  # roles whose predictions of real targets are drawn, in this order
DOCUMENT, SCHEMA = "expunge.audit", 2
_TEXTS = {
    "original": "trained on everything",
    REFERENCE: "trained anew without the forget set: the reference of every gap",
    FLOOR: "a second retrained model of another seed: the floor of every gap",
}


def section(
    scores: Scores,
    *,
    name: str,
    text: str,
    counts: Mapping[str, int],
    declined: Mapping[str, str] | None = None,
    samples: Sequence[Mapping[str, str]] = (),
    bounds: Sequence[Outcome] = (),
    classes: Sequence[str] = (),
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
        bounds: what became of bounds on this scenario's numbers.
        classes: names of the classes by index, for groups by class.

    Returns:
        The section.
    """
    refused = {**scores.declined, **(declined or {})}
    models = [_model(scores, n) for n in scores.values] + [_model(scores, n, why) for n, why in refused.items()]
    drawn = {role: [m["name"] for m in models if m["role"] == role] for role in (*DRAWN, "floor")}
    shown = [name for role in DRAWN for name in drawn[role]]
    predictions, maps = gathered(scores, shown, drawn["floor"]), mapped.gathered(scores, shown)
    if predictions is not None:  # a control that says nothing of real targets stands in no table of them
        models = [m for m in models if not (m["role"] == "control" and m["declined"])]
    return {
        "name": name,
        "kind": scores.asked.kind,
        "target": jsonable(scores.asked.target),
        "text": text,
        "counts": dict(counts),
        "models": models,
        **numbers(scores),
        "curves": _curves(scores),
        "series": {m: _series(found, classes) for m, found in scores.series.items() if found},
        "bounds": [outcome.to_json() for outcome in bounds],
        "changed": jsonable(scores.changed),
        "samples": [dict(s) for s in samples],
        **({} if predictions is None else {"predictions": predictions}),
        **({} if maps is None else {"maps": maps}),
    }


def numbers(scores: Scores) -> dict[str, Any]:
    """Return the numbers of a section: ``seeds``, ``metrics``, ``values``, ``gaps``, ``floor`` and ``caveats``.

    Args:
        scores: of one seed, or pooled.

    Returns:
        Plain JSON values.
    """
    return {
        "seeds": scores.seeds,
        "metrics": [
            {
                "name": k,
                "label": number.label,
                "unit": _unit(scores, k),
                "goal": str(number.goal),
                "target": number.target,
                "range": [end if math.isfinite(end) else None for end in number.range],
                "group": k.partition("/")[0],
            }
            for k, number in scores.numbers.items()
        ],
        "values": {m: {k: _plain(v) for k, v in found.items()} for m, found in scores.values.items()},
        "gaps": {
            m: {k: {**_plain(v), "distance": scores.distances[m][k]} for k, v in found.items()}
            for m, found in scores.gaps.items()
        },
        "floor": {k: _plain(v) for k, v in scores.floor.items()},
        "caveats": list(scores.caveats),
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
        "nature": methods.load(method).nature if known else "",
        "flaw": scores.flaws.get(name, ""),
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
    """Return densities of loss and entropy on common edges, and the attacks' curves, each seed's samples pooled."""
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
    return found | {"roc": _rocs(scores)}


def _rocs(scores: Scores) -> dict[str, Any]:
    """Return the curve of each attack and model, each seed's samples pooled."""
    found: dict[str, dict[str, Any]] = {}
    for model, samples in scores.samples.items():
        for key in (k for k in samples if k.startswith("score/") and k.endswith("/members")):
            attack, others = key.split("/")[1], samples[key.replace("/members", "/others")]
            if len(samples[key]) and len(others):
                fpr, tpr = _roc.curve(samples[key], others)
                corner = _corners(fpr, tpr)
                rates = {"fpr": fpr[corner].tolist(), "tpr": tpr[corner].tolist()}
                found.setdefault(attack, {})[model] = rates
    return found


def _series(
    found: Mapping[str, Mapping[Any, Value | Unavailable]], classes: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Return the series as lists of points, classes by their names."""

    def named(series: str, at: Any) -> Any:
        if not series.startswith(BY_CLASS) or not isinstance(at, int):
            return at
        words = f"class {at}" if series == SHARES else at  # a number would be a place on an axis
        return classes[at] if 0 <= at < len(classes) else words

    return {name: [{"at": named(name, at), **_plain(v)} for at, v in points.items()] for name, points in found.items()}


def _corners(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return which points of a staircase are needed to draw it: the ends and where its direction changes."""
    straight = (np.diff(x[:-1]) * np.diff(y[1:]) == np.diff(x[1:]) * np.diff(y[:-1])) if len(x) > 2 else np.zeros(0)
    return np.concatenate([[True], ~straight.astype(bool), [True]])


def _density(values: np.ndarray, edges: np.ndarray) -> list[float]:
    """Return the share of the values in each bin; values beyond the edges count in the outer bins."""
    return (np.histogram(values.clip(edges[0], edges[-1]), edges)[0] / max(1, len(values))).tolist()  # type: ignore[no-any-return]
