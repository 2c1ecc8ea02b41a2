"""Measured rows on disk: numbers in one small file, material of plots in others, evidence of the references."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from expunge import tensors
from expunge.bench.store import write_plain
from expunge.evidence import Outputs
from expunge.files import jsonable
from expunge.metric import Goal, Number, Unavailable, Value
from expunge.scenario import Asked
from expunge.scores import Scores

VALUES, DETAILS, SAMPLES, EVIDENCE = "values.json", "details.json", "samples.safetensors", "evidence.safetensors"
Plain = Any  # [x, low, high, n, unit], or the reason why there is none


def save(folder: Path, scores: Scores) -> None:
    """Write the rows into a folder: `VALUES` for tables, `DETAILS` and `SAMPLES` for reports."""
    write_plain(folder / VALUES, to_json(scores))
    series = {
        model: {name: [[at, _plain(v)] for at, v in points.items()] for name, points in found.items()}
        for model, found in scores.series.items()
    }
    write_plain(folder / DETAILS, {"series": jsonable(series), "changed": jsonable(scores.changed)})
    samples = {f"{m}\n{k}": torch.as_tensor(v) for m, found in scores.samples.items() for k, v in found.items()}
    tensors.save(folder / SAMPLES, samples, {})


def to_json(scores: Scores) -> dict[str, Any]:
    """Return the numbers of scores, and what belongs to them in words, as plain JSON values."""
    return {
        "values": {m: {k: _plain(v) for k, v in found.items()} for m, found in scores.values.items()},
        "gaps": {m: {k: _plain(v) for k, v in found.items()} for m, found in scores.gaps.items()},
        "distances": {m: dict(found) for m, found in scores.distances.items()},
        "floor": {k: _plain(v) for k, v in scores.floor.items()},
        "numbers": {k: _number(n) for k, n in scores.numbers.items()},
        "declined": dict(scores.declined),
        "notes": dict(scores.notes),
        "settings": jsonable(scores.settings),
        "asked": jsonable(asdict(scores.asked)),
        "flaws": dict(scores.flaws),
        "caveats": list(scores.caveats),
    }


def from_json(body: Mapping[str, Any]) -> Scores:
    """Return the scores that `to_json` gave, without series and samples."""
    return Scores(
        values={m: {k: _value(v) for k, v in found.items()} for m, found in body["values"].items()},
        gaps={m: {k: _measured(v) for k, v in found.items()} for m, found in body["gaps"].items()},
        distances=body["distances"],
        floor={k: _measured(v) for k, v in body["floor"].items()},
        numbers={k: _declared(n) for k, n in body["numbers"].items()},
        declined=body["declined"],
        notes=body["notes"],
        settings=body["settings"],
        changed={},
        samples={m: {} for m in body["values"]},
        asked=Asked(**body["asked"]),
        series={m: {} for m in body["values"]},
        flaws=body["flaws"],
        caveats=tuple(body["caveats"]),
    )


def details(folder: Path, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what reports need beside the numbers: fields of `Scores` by name.

    Args:
        folder: that `save` wrote into.
        body: its `DETAILS`.

    Returns:
        ``series``, ``samples`` and ``changed``.
    """
    found = tensors.load(folder / SAMPLES)[0].whole()
    samples: dict[str, dict[str, Any]] = {}
    for name in found:
        model, _, key = name.partition("\n")
        samples.setdefault(model, {})[key] = found[name].numpy()
    series = {
        model: {name: {at: _value(v) for at, v in points} for name, points in every.items()}
        for model, every in body["series"].items()
    }
    return {"series": series, "samples": samples, "changed": body["changed"]}


def save_evidence(folder: Path, outputs: Mapping[str, Mapping[str, Outputs]]) -> None:
    """Write what models say of each sample, by model and split."""
    flat: dict[str, Any] = {}
    for model, splits in outputs.items():
        for split, said in splits.items():
            parts = {
                "outputs": said.outputs,
                "prediction": said.prediction,
                "target": said.target,
                "loss": said.loss,
                "classes": said.classes,
            }
            parts |= {f"feature\n{tap}": value for tap, value in said.features.items()}
            flat |= {f"{model}\n{split}\n{k}": v for k, v in parts.items() if v is not None}
    tensors.save(folder / EVIDENCE, flat, {})


def load_evidence(folder: Path) -> dict[str, dict[str, Outputs]]:
    """Return what `save_evidence` wrote."""
    found = tensors.load(folder / EVIDENCE)[0].whole()
    parts: dict[str, dict[str, dict[str, Any]]] = {}
    for name in found:
        model, split, key = name.split("\n", 2)
        parts.setdefault(model, {}).setdefault(split, {})[key] = found[name]
    return {m: {s: _outputs(each) for s, each in splits.items()} for m, splits in parts.items()}


def _outputs(parts: Mapping[str, Any]) -> Outputs:
    features = {k.partition("\n")[2]: v for k, v in parts.items() if k.startswith("feature\n")}
    target, loss, classes = (parts.get(k) for k in ("target", "loss", "classes"))
    return Outputs(parts["outputs"], parts["prediction"], target, loss, features, classes)


def _plain(value: Value | Unavailable) -> Plain:
    """Return a value as a list; an end at infinity as None; a reason as its text."""
    if isinstance(value, Unavailable):
        return value.reason
    ends = (v if math.isfinite(v) else None for v in (value.low, value.high))
    return [value.x, *ends, value.n, value.unit]


def _value(plain: Plain) -> Value | Unavailable:
    return _unavailable(plain) if isinstance(plain, str) else _measured(plain)


def _measured(plain: Plain) -> Value:
    x, low, high, n, unit = plain
    return Value(x, -math.inf if low is None else low, math.inf if high is None else high, n, unit)


@lru_cache(maxsize=1024)  # the same few reasons stand in every row
def _unavailable(reason: str) -> Unavailable:
    return Unavailable(reason)


def _number(number: Number) -> list[Any]:
    low, high = (end if math.isfinite(end) else None for end in number.range)
    return [number.label, str(number.goal), low, high, number.target]


def _declared(plain: list[Any]) -> Number:
    label, goal, low, high, target = plain
    return Number(label, Goal(goal), (-math.inf if low is None else low, math.inf if high is None else high), target)
