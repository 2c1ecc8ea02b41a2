"""What models predict of real targets, thinned for reports: points, errors and a few whole series, without ids."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evidence import Outputs
from expunge.files import canonical
from expunge.metric import Audit
from expunge.scores import Scores
from expunge.task import Quantile, Regression, Task

SETS = ("forget", "retain", "test")
SCATTERED = ("forget", "test")  # sets whose samples are drawn one by one
POINTS = 2000  # samples of a set that are kept one by one, and errors of a set that are kept
WHOLE = {"forget": 12000, "test": 6000}  # predictions of a set in a document, all models together
LEVELS = 100  # steps of a distribution of errors
WINDOWS, STEPS = 6, 168  # series that are kept, and steps of one
FINE = 1000  # parts of the targets' span that a number is rounded to: a drawn pixel, and no more of the data than that
BIG = 1e9  # a number beyond is written with an exponent
Numbers = NDArray[np.float64]


def is_real(task: Task) -> bool:
    """Return whether a task's targets are real numbers, so that predictions can be drawn over them."""
    return isinstance(task, Regression | Quantile)


def keep(audit: Audit) -> None:
    """Keep what reports draw of the predictions of the model under audit, where the task's targets are real numbers.

    In ``audit.kept.samples``, of each set in `SETS`: ``real/SET/error``, the absolute errors |ŷ − y| in rising order,
    and ``real/SET/count``, how many samples there are; of the sets in `SCATTERED` ``real/SET/target`` and
    ``real/SET/said``; and whole series of the forget set under ``real/window/...``, where a sample has several targets.
    Numbers of a sample with several targets are means over them. Of many samples `POINTS` are kept, evenly over the
    sorted targets, and never their ids.

    Args:
        audit: everything known about the model.
    """
    if not is_real(audit.task) or "model" in audit.flaws:
        return
    kept = audit.kept.samples
    for split in SETS:
        outputs = audit.outputs(split)
        if outputs is None or outputs.target is None or not len(outputs):
            continue
        target, said = _pair(outputs)
        kept[f"real/{split}/count"] = np.array([float(len(target))])
        errors = np.sort(np.abs(said - target).mean(axis=1))
        kept[f"real/{split}/error"] = errors[_even(len(errors), POINTS)]
        if split in SCATTERED:
            target, said = target.mean(axis=1), said.mean(axis=1)
            at = _spread(target, POINTS)
            kept[f"real/{split}/target"], kept[f"real/{split}/said"] = target[at], said[at]
    _keep_windows(audit)


def _keep_windows(audit: Audit) -> None:
    """Keep a few series of the forget set, spread evenly over the errors of the original, else of retrained."""
    own = audit.outputs("forget")
    roles = (role for role in ("original", "retrained") if role not in audit.flaws)
    first = next((o for role in roles if (o := audit.outputs("forget", role)) is not None), None)
    if own is None or own.target is None or first is None or first.target is None or not len(own):
        return
    target, said = _pair(own)
    if target.shape[1] == 1:
        return
    theirs, told = _pair(first)
    errors = np.abs(told - theirs).mean(axis=1)
    at, kept = _spread(errors, WINDOWS), audit.kept.samples
    kept["real/window/error"], kept["real/window/steps"] = errors[at], np.full(len(at), float(target.shape[1]))
    for name, values in {"target": target, "said": said, **_interval(audit.task, own)}.items():
        kept[f"real/window/{name}"] = np.ascontiguousarray(values[at, :STEPS])


def _interval(task: Task, outputs: Outputs) -> dict[str, Numbers]:
    """Return the lowest and the highest quantile, (N, T) each, where the task gives several."""
    if not isinstance(task, Quantile) or len(task.quantiles) == 1:
        return {}
    ends = np.sort(outputs.outputs.double().numpy(), axis=-1)  # of quantiles that cross, those that lie outermost
    return {"low": ends[..., 0].reshape(len(ends), -1), "high": ends[..., -1].reshape(len(ends), -1)}


def _pair(outputs: Outputs) -> tuple[Numbers, Numbers]:
    """Return targets and predictions, (N, T) each."""
    assert outputs.target is not None
    said = (
        outputs.prediction.double().flatten(1) if outputs.prediction.dim() > 1 else outputs.prediction.double()[:, None]
    )
    return outputs.target.double().reshape(said.shape).numpy(), said.numpy()


def _even(n: int, most: int) -> NDArray[np.int64]:
    """Return at most so many of n places, the middles of as many equal parts.

    >>> _even(3, 5).tolist(), _even(10, 2).tolist()
    ([0, 1, 2], [2, 7])
    """
    count = min(n, most)
    return np.floor((np.arange(count) + 0.5) * n / max(1, count)).astype(np.int64)


def _spread(values: Numbers, most: int) -> NDArray[np.int64]:
    """Return the places of at most so many values, evenly over the sorted ones: all stretches have their share."""
    return np.argsort(values, kind="stable")[_even(len(values), most)]


def gathered(scores: Scores, names: Sequence[str], floors: Sequence[str] = ()) -> dict[str, Any] | None:
    """Return what reports draw of predictions, as plain JSON values of bounded size.

    Args:
        scores: of one seed, or pooled.
        names: models that are drawn.
        floors: models whose errors alone are drawn.

    Returns:
        ``scatter`` by set: ``of``, how many samples there are, and ``groups`` of models with the same targets;
        ``errors`` by set: ``of``, and by model the error at 0, 1, ... 100 % of the samples; ``windows``: targets,
        predictions and intervals of a few series; ``bytes``: the size of all this. None where targets are not real.
    """
    kept = {m: {k.removeprefix("real/"): v for k, v in found.items()} for m, found in scores.samples.items()
            if any(k.startswith("real/") for k in found)}  # fmt: skip
    shown = [m for m in names if m in kept]
    if not shown:
        return None
    scatter = {split: _scatter({m: kept[m] for m in shown}, split) for split in SCATTERED}
    errors = {split: _errors({m: kept[m] for m in [*shown, *floors] if m in kept}, split) for split in SETS}
    found: dict[str, Any] = {
        "scatter": {split: part for split, part in scatter.items() if part},
        "errors": {split: part for split, part in errors.items() if part},
        "windows": _windows({m: kept[m] for m in shown}),
    }
    return found | {"bytes": len(canonical(found))}


def _scatter(kept: Mapping[str, Mapping[str, Numbers]], split: str) -> dict[str, Any] | None:
    """Return points of one set, models with the same targets together."""
    there = {m: found for m, found in kept.items() if f"{split}/target" in found}
    if not there:
        return None
    most = min(POINTS, WHOLE[split] // len(there))
    groups: list[tuple[Numbers, dict[str, Numbers]]] = []
    for model, found in there.items():
        target, said = found[f"{split}/target"], found[f"{split}/said"]
        mine = next((said_by for other, said_by in groups if np.array_equal(other, target)), None)
        if mine is None:
            groups.append((target, mine := {}))
        mine[model] = said
    decimals = _decimals(target for target, _ in groups)
    out = []
    for target, said_by in groups:
        at = _spread(target, most)
        out.append({"target": _rounded(target[at], decimals),
                    "said": {m: _rounded(said[at], decimals) for m, said in said_by.items()}})  # fmt: skip
    return {"of": int(next(iter(there.values()))[f"{split}/count"].sum()), "groups": out}


def _errors(kept: Mapping[str, Mapping[str, Numbers]], split: str) -> dict[str, Any] | None:
    """Return the errors of each model on one set, at equal steps of the share of samples."""
    there = {m: found for m, found in kept.items() if f"{split}/error" in found}
    if not there:
        return None
    shares = np.linspace(0, 1, LEVELS + 1)
    quantiles = {m: np.quantile(found[f"{split}/error"], shares) for m, found in there.items()}
    return {
        "of": int(next(iter(there.values()))[f"{split}/count"].sum()),
        "models": {m: [float(f"{q:.4g}") for q in found] for m, found in quantiles.items()},
    }


def _windows(kept: Mapping[str, Mapping[str, Numbers]]) -> dict[str, Any] | None:
    """Return a few series with what each model said of them; of several seeds those of the first."""
    first = next((found for found in kept.values() if "window/target" in found), None)
    if first is None:
        return None
    target = first["window/target"][:WINDOWS]
    same = {m: found for m, found in kept.items()
            if "window/target" in found and np.array_equal(found["window/target"][:WINDOWS], target)}  # fmt: skip
    decimals = _decimals([target])

    def part(name: str) -> dict[str, list[list[float]]]:
        key = f"window/{name}"
        return {m: [_rounded(row, decimals) for row in f[key][:WINDOWS]] for m, f in same.items() if key in f}

    return {
        "of": int(first["forget/count"].sum()),
        "steps": int(first["window/steps"][0]),
        "errors": [float(f"{e:.3g}") for e in first["window/error"][:WINDOWS]],
        "target": [_rounded(row, decimals) for row in target],
        **{name: part(name) for name in ("said", "low", "high")},
    }


def _decimals(parts: Iterable[Numbers]) -> int:
    """Return the decimals that the targets' span asks for, fewer than none for large ones."""
    parts = list(parts)
    span = max(float(p.max()) for p in parts) - min(float(p.min()) for p in parts)
    size = span or max(float(np.abs(p).max()) for p in parts) or 1.0
    return -math.floor(math.log10(size / FINE))


def _rounded(values: Numbers, decimals: int) -> list[float]:
    """Return numbers with so many decimals, whole ones as such.

    >>> _rounded(np.array([0.12345, -0.0004]), 2), _rounded(np.array([1234.0]), -1)
    ([0.12, 0], [1230])
    """
    return [int(v) if abs(v) < BIG and v == int(v) else v for v in (round(float(v), decimals) for v in values)]
