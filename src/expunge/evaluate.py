"""Measure models side by side: every number beside retrained's, its gap, and the retrained-to-retrained floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from expunge import attacks as attack_registry
from expunge import methods
from expunge import metrics as metric_registry
from expunge.attacks.entropy_lr import entropy
from expunge.attacks.loss import LossThreshold
from expunge.data import Data
from expunge.errors import UserError
from expunge.evidence import Evidence, Outputs, collect
from expunge.metric import Audit, Found, Goal, Metric
from expunge.metrics.membership import Membership, member_scores
from expunge.runtime import Runtime
from expunge.scenario import Scenario
from expunge.scores import FLOOR, REFERENCE, Scores, merged, with_gaps
from expunge.task import Classification, Task
from expunge.train import Recipe
from expunge.unlearn import Unlearned, unlearn

Model = nn.Module | Unlearned


def head_tap(model: nn.Module) -> str | None:
    """Return the tap of the features: the input of the last linear layer, None where there is no linear layer."""
    linear = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and name]
    return f"{linear[-1]}:input" if linear else None


def evaluate(
    models: Mapping[str, Model | Sequence[Model]],
    task: Task,
    *,
    train: Data,
    scenario: Scenario,
    test: Data | None = None,
    holdout: Data | None = None,
    recipe: Recipe | None = None,
    new_model: Callable[[], nn.Module] | None = None,
    shadows: Sequence[Evidence] = (),
    metrics: Sequence[str | Metric] | None = None,
    attacks: Sequence[str] | None = None,
    runtime: Runtime | None = None,
    seed: int = 0,
) -> Scores:
    """Measure models on one scenario; outputs are collected once per model and split.

    The controls ``no_op`` and ``head_mask`` are added where there is an ``original``. The first ``retrained`` is
    the reference of every gap; further ones stand under ``expunge.scores.FLOOR`` and give the floor.

    Args:
        models: modules, unlearn results or lists of them, by name; ``original`` and ``retrained`` are special.
        task: outputs and loss.
        train: training data, forget samples included.
        scenario: who is forgotten; its ids are in the data.
        test: test data.
        holdout: validation data.
        recipe: the original's training recipe, for metrics that train.
        new_model: builds the network before training, for metrics that train.
        shadows: evidence of shadow models, handed to attacks.
        metrics: names or instances; all by default.
        attacks: names; all by default.
        runtime: device, batch size, precision, progress.
        seed: of everything random.

    Returns:
        Values, gaps, floor, and what plots need.

    Raises:
        UserError: no model, an unknown metric or attack, or ids that are not in the data.
    """
    runtime = runtime or Runtime()
    if not models:
        raise UserError("at least one model", "none", "pass for example {'original': model}")
    chosen = _metrics(metrics, attacks, shadows)
    named, declined = _named(models, task, scenario, runtime, seed)
    tap = next((head_tap(_module(m)) for m in named.values()), None)
    tap = tap if any("features" in m.needs for m in chosen) else None
    splits = _splits(train, test, holdout, scenario)
    seen = {n: _collect(_module(m), task, splits, test, scenario, tap, runtime) for n, m in named.items()}
    values: dict[str, Found] = {}
    samples: dict[str, dict[str, np.ndarray]] = {}
    goals: dict[str, Goal] = {}
    for name, model in named.items():
        roles = {"model": name, "original": "original", "retrained": REFERENCE}
        audit = Audit(
            evidence={(r, s): o for r, n in roles.items() if n in seen for s, o in seen[n].items()},
            models={r: _module(named[n]) for r, n in roles.items() if n in named},
            task=task,
            scenario=scenario,
            edit=_edit(model),
            recipe=recipe,
            new_model=new_model,
            tap=tap,
            seed=seed,
        )
        values[name] = {}
        for metric in chosen:
            found = metric(audit)
            values[name] |= found
            goals |= dict.fromkeys(found, metric.goal)
        samples[name] = _samples(audit)
    results = {n: m for n, m in named.items() if isinstance(m, Unlearned)}
    changed = {n: m.changed for n, m in results.items() if m.changed is not None}
    scores = Scores(
        values=merged(values),
        gaps={},
        floor={},
        goals=goals,
        declined=declined,
        notes={n: m.note for n, m in results.items()},
        settings={n: m.method for n, m in results.items()},
        changed={n: {k: c / size for k, (c, size) in found.tensors.items()} for n, found in changed.items()},
        samples=samples,
        scenario=scenario,
    )
    return with_gaps(scores)


def _metrics(
    metrics: Sequence[str | Metric] | None, attacks: Sequence[str] | None, shadows: Sequence[Evidence]
) -> list[Metric]:
    for name in attacks or ():
        attack_registry.load(name)
    found: list[Metric] = []
    for metric in metric_registry.names() if metrics is None else metrics:
        if isinstance(metric, Metric):
            found.append(metric)
        elif metric == "membership":
            found.append(Membership(names=None if attacks is None else tuple(attacks), shadows=shadows))
        else:
            found.append(metric_registry.load(metric)())
    return found


def _named(
    models: Mapping[str, Model | Sequence[Model]], task: Task, scenario: Scenario, runtime: Runtime, seed: int
) -> tuple[dict[str, Model], dict[str, str]]:
    """Flatten lists to ``name``, ``name #2`` ... and add the controls."""
    named: dict[str, Model] = {}
    for name, given in models.items():
        several: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
        if not several or not all(isinstance(m, nn.Module | Unlearned) for m in several):
            raise UserError(f"a module or unlearn result under '{name}'", type(given).__name__, "pass one, or a list")
        for i, model in enumerate(several):
            second = FLOOR if i == 1 else f"{FLOOR} #{i}"
            named[name if i == 0 else second if name == REFERENCE else f"{name} #{i + 1}"] = model
    declined: dict[str, str] = {}
    original = named.get("original")
    for control in (n for n in methods.names(controls=True) if methods.load(n).control and original is not None):
        method, model = methods.load(control)(), _module(original)  # type: ignore[arg-type]
        reason = method.declines(task, scenario, model)
        if reason:
            declined[control] = reason
        elif control not in named:
            ids = scenario.forget
            named[control] = unlearn(method, model, task, forget=ids, scenario=scenario, runtime=runtime, seed=seed)
    return named, declined


def _module(model: Model) -> nn.Module:
    return model.model if isinstance(model, Unlearned) else model


def _edit(model: Model) -> dict[str, float]:
    if not isinstance(model, Unlearned):
        return {}
    return {"seconds": model.seconds, "total_seconds": model.total_seconds, "peak_memory": model.peak_memory}


def _splits(train: Data, test: Data | None, holdout: Data | None, scenario: Scenario) -> dict[str, Data]:
    found = {"forget": train.subset(scenario.forget), "retain": train.without(scenario.forget)}
    found |= {k: v for k, v in (("test", test), ("holdout", holdout)) if v is not None}
    return found


def _collect(
    model: nn.Module,
    task: Task,
    splits: Mapping[str, Data],
    test: Data | None,
    scenario: Scenario,
    tap: str | None,
    runtime: Runtime,
) -> dict[str, Outputs]:
    found = {
        split: collect(model, task, data, taps=[tap] if tap else [], runtime=runtime) for split, data in splits.items()
    }
    if test is not None:
        same = _like_forgotten(test, scenario)
        if same is not None:
            at = torch.from_numpy(np.flatnonzero(same))
            found["test_forget"] = found["test"].take(at)
            found["test_retain"] = found["test"].take(torch.from_numpy(np.flatnonzero(~same)))
    return found


def _like_forgotten(data: Data, scenario: Scenario) -> np.ndarray | None:
    """Return which samples are of the forgotten kind, None where the kind says nothing of unseen samples."""
    target = scenario.target
    if scenario.kind == "class":
        return data.targets().numpy() == target  # type: ignore[no-any-return]
    if scenario.kind in ("subclass", "subject") and target["column"] in data.columns:
        values = data.column(target["column"])
        same = np.asarray([v == target["value"] or str(v) == str(target["value"]) for v in values])
        return None if scenario.kind == "subject" and not same.any() else same  # unseen subjects are the rule
    if scenario.kind == "range":
        column = target["column"]
        values = data.targets().reshape(-1).numpy() if column is None else data.column(column)
        return np.asarray([target["low"] <= v < target["high"] for v in values])
    return None


def _samples(audit: Audit) -> dict[str, np.ndarray]:
    """Return per-sample loss and entropy on forget and test, and the loss attack's scores, for plots."""
    found: dict[str, np.ndarray] = {}
    for split in ("forget", "test"):
        outputs = audit.outputs(split)
        if outputs is not None and outputs.loss is not None:
            found[f"loss/{split}"] = outputs.loss.numpy()
        if outputs is not None and isinstance(audit.task, Classification):
            found[f"entropy/{split}"] = entropy(outputs).numpy()
    if "loss/forget" in found and "loss/test" in found:
        found["score/members"], found["score/others"] = member_scores(LossThreshold(), audit)
    return found
