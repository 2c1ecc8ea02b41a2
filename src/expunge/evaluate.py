"""Measure models side by side: every number beside retrained's, its gap, and the retrained-to-retrained floor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from expunge import attacks as attack_registry
from expunge import mapped, methods, predicted, tensors
from expunge import metrics as metric_registry
from expunge.data import Data
from expunge.errors import Misfit, NotFinite, UserError, listing
from expunge.evidence import Evidence, Outputs, collect, head_tap
from expunge.method import Nature
from expunge.metric import Audit, Found, Kept, Metric, Number, Value
from expunge.metrics.membership import Membership
from expunge.noise import untouched
from expunge.runtime import Runtime
from expunge.scenario import Scenario
from expunge.scores import FLOOR, REFERENCE, Scores, merged, with_gaps
from expunge.signals import is_chance, is_probabilities
from expunge.stamp import forgotten
from expunge.task import Binary, Classes, Task
from expunge.train import Recipe
from expunge.twins import near_duplicates
from expunge.unlearn import Unlearned, unlearn

Model = nn.Module | Unlearned


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
    canaries: tuple[Data, Data] | None = None,
    triggered: Data | None = None,
    known: Scores | None = None,
    outputs: dict[str, dict[str, Outputs]] | None = None,
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
        shadows: evidence of shadow models, handed to attacks; see `expunge.evidence.Shadow`.
        metrics: names or instances; all by default.
        attacks: names; all by default, without ``shadows`` those that need none.
        runtime: device, batch size, precision, progress.
        seed: of everything random.
        canaries: planted samples and never trained ones, from `expunge.canaries.Canaries.samples`; ``train`` is then
            the data as planted.
        triggered: unseen samples with a trigger under the class that it stands for, from
            `expunge.poison.Backdoor.triggered`; ``train`` is then the data as poisoned.

        known: scores of the same original and retrained models on the same scenario: its rows are taken over, not
            measured again.
        outputs: what the original and the first retrained model say, by name and split: what is there is not
            collected again, what is not is put in; pass it with ``known``, which says what is wrong with them.

    Returns:
        Values, gaps, floor, and what plots need.

    Raises:
        UserError: no model, an unknown metric or attack, two metrics of one number, ids that are not in the data, or
            unseen canaries that were trained on.
    """
    runtime = runtime or Runtime()
    if not models:
        raise UserError("at least one model", "none", "pass for example {'original': model}")
    chosen = _metrics(metrics, attacks, shadows)
    splits = _splits(train, test, holdout, scenario)
    same = None if "test" not in splits else _like_forgotten(splits["test"], scenario)
    there = () if known is None else tuple(known.values)
    named, groups, declined = _named(models, task, scenario, runtime, seed, there)
    work = _Work(
        named=named,
        read=splits | ({} if canaries is None else _planted(*canaries, scenario)) | _tried(triggered),
        data={**splits, **({} if same is None else _halves(splits["test"], same))},
        same=same,
        common={"task": task, "scenario": scenario, "recipe": recipe, "new_model": new_model, "seed": seed},
        runtime=runtime,
        chosen=chosen,
        flaws={} if known is None else dict(known.flaws),
        kept={} if outputs is None else outputs,
    )
    for name in (n for n in ("original", REFERENCE) if n in named and n not in work.kept):
        work.kept[name] = work.said(name)
    measured = {name: model for name, model in named.items() if name not in there}
    rows = {name: work.row(name) for name in measured}
    scores = _scores(measured, rows, chosen, scenario)
    caveats = _caveats(splits, work.kept, work.flaws, runtime) if known is None else _flawed(work.flaws)
    scores = replace(scores, declined=declined, flaws=work.flaws, caveats=caveats)
    found = merged(scores, {group: names for group, names in groups.items() if names[0] in measured})
    return with_gaps(found if known is None else known.with_rows(found))


@dataclass(frozen=True)
class _Work:
    """One evaluation: every model is compared with the original and retrained; others' evidence is not kept."""

    named: Mapping[str, Model]
    read: Mapping[str, Data]
    data: Mapping[str, Data]
    same: np.ndarray | None
    common: Mapping[str, Any]
    runtime: Runtime
    chosen: Sequence[Metric]
    flaws: dict[str, str]
    kept: dict[str, dict[str, Outputs]]
    taps: dict[str, str | None] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)

    def tap(self, name: str) -> str | None:
        """Return where a model's features are read; None where nothing reads them."""
        if name not in self.taps:
            probing = any("features" in m.needs | m.wants for m in self.chosen)
            model, task = _module(self.named[name]), self.common["task"]
            self.taps[name] = head_tap(model, task, self.read["forget"], self.runtime) if probing else None
        return self.taps[name]

    def said(self, name: str) -> dict[str, Outputs]:
        """Return a model's outputs by split, and note what is wrong with them."""
        model, task = self.named[name], self.common["task"]
        try:
            found, flaw = _collect(_module(model), task, self.read, self.same, self.tap(name), self.runtime)
        except Misfit as error:  # the original was trained on such labels: there the data is at fault, not the model
            if name == "original":
                raise
            found, flaw = {}, f"its outputs do not fit the labels ({_lower(str(error).partition(': ')[0])})"
        inherited = self.flaws.get("original") if _is_control(name) else None  # it is made of the original
        other = flaw or inherited or _other_request(model, name, self.common["scenario"]) or _copy(name, self.named)
        if other:
            self.flaws[name] = other
        return found

    def row(self, name: str) -> tuple[Found, Kept]:
        """Return a model's numbers, and what they leave for plots."""
        own = self.kept[name] if name in self.kept else self.said(name)
        roles = {"original": self.kept.get("original", {}), "retrained": self.kept.get(REFERENCE, {}), "model": own}
        present = {"model": name, "original": "original", "retrained": REFERENCE}
        audit = Audit(
            evidence={(role, split): o for role, found in roles.items() for split, o in found.items()},
            models={role: _module(self.named[n]) for role, n in present.items() if n in self.named},
            edit=_edit(self.named[name]),
            tap=self.tap(name),
            data=self.data,
            runtime=self.runtime,
            flaws={role: self.flaws[n] for role, n in present.items() if n in self.flaws},
            shared=self.shared,
            **self.common,
        )
        found = {key: value for metric in self.chosen for key, value in metric(audit).items()}
        _densities(audit)
        predicted.keep(audit)
        mapped.keep(audit, anew=_is_retrained(name) or _is_exact(self.named[name]))
        return found, audit.kept


def _tried(triggered: Data | None) -> dict[str, Data]:
    return {} if triggered is None else {"triggered": triggered}


def _scores(
    named: Mapping[str, Model],
    rows: Mapping[str, tuple[Found, Kept]],
    chosen: Sequence[Metric],
    scenario: Scenario,
) -> Scores:
    records = {name: kept for name, (_, kept) in rows.items()}
    results = {n: m for n, m in named.items() if isinstance(m, Unlearned)}
    changed = {n: m.changed for n, m in results.items() if m.changed is not None}
    return Scores(
        values={n: found for n, (found, _) in rows.items()},
        gaps={n: {k: v for k, v in records[n].gaps.items() if isinstance(v, Value)} for n in named},
        distances={},
        floor={},
        numbers=dict[str, Number](item for metric in chosen for item in metric.numbers.items()),
        declined={},
        notes={n: m.note for n, m in results.items()},
        settings={n: m.method for n, m in results.items()},
        changed={n: {k: c / size for k, (c, size) in found.tensors.items()} for n, found in changed.items()},
        samples={n: records[n].samples for n in named},
        asked=scenario.asked,
        series={n: records[n].series for n in named},
    )


def _metrics(
    metrics: Sequence[str | Metric] | None, attacks: Sequence[str] | None, shadows: Sequence[Evidence]
) -> list[Metric]:
    for name in attacks or ():
        attack_registry.load(name)
    given = list[str | Metric](metric_registry.names() if metrics is None else metrics)
    if attacks is not None and "membership" not in given:
        remedy = "add it, or give Membership(names=...) and no attacks"
        raise UserError("'membership' among the metrics, which runs the attacks", "none", remedy)
    found: list[Metric] = []
    for metric in (m for i, m in enumerate(given) if isinstance(m, Metric) or m not in given[:i]):
        if isinstance(metric, Membership) and shadows and not metric.shadows:
            found.append(replace(metric, shadows=shadows))
        elif isinstance(metric, Metric):
            found.append(metric)
        elif metric == "membership":
            found.append(Membership(names=None if attacks is None else tuple(attacks), shadows=shadows))
        else:
            found.append(metric_registry.load(metric)())
    counts = Counter(name for metric in found for name in metric.numbers)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        remedy = "evaluate them one after the other, or leave one out"
        raise UserError("each number from one metric", f"{listing(twice)} from several", remedy)
    return found


def _named(
    models: Mapping[str, Model | Sequence[Model]],
    task: Task,
    scenario: Scenario,
    runtime: Runtime,
    seed: int,
    there: Sequence[str],
) -> tuple[dict[str, Model], dict[str, list[str]], dict[str, str]]:
    """Give each replicate a name of its own, group them by the caller's names, and add the controls not yet there."""
    named: dict[str, Model] = {}
    groups: dict[str, list[str]] = {}
    for name, given in models.items():
        several: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
        if not several or not all(isinstance(m, nn.Module | Unlearned) for m in several):
            raise UserError(f"a module or unlearn result under '{name}'", type(given).__name__, "pass one, or a list")
        for i, model in enumerate(several):
            if name == REFERENCE and i:  # further retrained models are rows of their own
                own = group = FLOOR if i == 1 else f"{FLOOR} {i}"
            else:
                own, group = (name if i == 0 else f"{name}\0{i}"), name
            if own in named:
                raise UserError("a name for each model", f"'{own}' for two", "name it otherwise")
            named[own] = model
            groups.setdefault(group, []).append(own)
    declined: dict[str, str] = {}
    original = named.get("original")
    for control in (n for n in methods.names(controls=True) if methods.load(n).control and original is not None):
        method, model = methods.load(control)(), _module(original)  # type: ignore[arg-type]
        reason = method.declines(task, scenario, model)
        if control in named or control in there:
            continue
        if reason:
            declined[control] = reason
        else:
            ids = scenario.forget
            try:
                named[control] = unlearn(method, model, task, forget=ids, scenario=scenario, runtime=runtime, seed=seed)
            except NotFinite:
                declined[control] = "the original's weights hold NaN or infinity"
                continue
            groups[control] = [control]
    return named, groups, declined


def _is_control(name: str) -> bool:
    return name in methods.names(controls=True) and methods.load(name).control


def _module(model: Model) -> nn.Module:
    return model.model if isinstance(model, Unlearned) else model


def _edit(model: Model) -> dict[str, float]:
    if not isinstance(model, Unlearned):
        return {}
    return {"seconds": model.seconds, "total_seconds": model.total_seconds, "peak_memory": model.peak_memory}


def _splits(train: Data, test: Data | None, holdout: Data | None, scenario: Scenario) -> dict[str, Data]:
    """Return the sets to measure on: forget and retain as the scenario names them, and what is unseen."""
    found = {"forget": train.subset(scenario.forget), "retain": train.subset(scenario.retain)}
    trained = set(scenario.train)
    for name, data in (("test", test), ("holdout", holdout)):
        both = [] if data is None else [i for i in data.ids if i in trained]
        if data is not None and both and _same_content(train.subset(both), data.subset(both)):
            remedy = f"pass {name} data that was not trained on"
            raise UserError(f"{name} data outside the training set", f"{listing(both)} in both", remedy)
        if data is not None and len(data):
            found[name] = data
    return found


def _same_content(one: Data, other: Data) -> bool:
    """Return whether a sample is the same under the same id; data sets may well share ids such as train/0."""
    a, b = (untouched(d).fingerprints(b"", labelled=False)[1] for d in (one, other))
    return bool((a == b).any())


def _planted(planted: Data, unseen: Data, scenario: Scenario) -> dict[str, Data]:
    """Return the canaries that are forgotten, those that stay, and those never trained on.

    Planted ones that an earlier request took out of the training set are none of these.

    Raises:
        UserError: an unseen one is in the training set.
    """
    forget, retain = set(scenario.forget), set(scenario.retain)
    trained = [i for i in unseen.ids if i in forget or i in retain]
    if trained:
        remedy = "pass as train, and build the scenario on, the data as it was trained on: Canaries.applied(data)"
        raise UserError("unseen canaries outside the training set", f"{listing(trained)} in it", remedy)
    gone, stay = ([i for i in planted.ids if i in ids] for ids in (forget, retain))
    parts = {"canary": planted.subset(gone), "canary_kept": planted.subset(stay), "canary_unseen": unseen}
    return {name: data for name, data in parts.items() if len(data)}


def _halves(test: Data, same: np.ndarray) -> dict[str, Data]:
    ids = np.asarray(test.ids, dtype=object)
    return {"test_forget": test.subset(ids[same].tolist()), "test_retain": test.subset(ids[~same].tolist())}


def _collect(
    model: nn.Module,
    task: Task,
    splits: Mapping[str, Data],
    same: np.ndarray | None,
    tap: str | None,
    runtime: Runtime,
) -> tuple[dict[str, Outputs], str]:
    """Return the outputs on every split, and why they cannot be used, if so."""
    found: dict[str, Outputs] = {}
    for split, data in splits.items():
        try:
            found[split] = collect(model, task, data, taps=[tap] if tap else [], runtime=runtime)
        except NotFinite:
            return {}, f"its outputs on {split} hold NaN or infinity"
    if same is not None:
        found["test_forget"] = found["test"].take(torch.from_numpy(np.flatnonzero(same)))
        found["test_retain"] = found["test"].take(torch.from_numpy(np.flatnonzero(~same)))
    return found, _squashed(task, [said for said in found.values() if len(said)])


def _squashed(task: Task, said: Sequence[Outputs]) -> str:
    """Return why outputs are no logits, as of a network that ends in a softmax or a sigmoid; empty where they are."""
    if isinstance(task, Binary):
        if all(is_chance(o.outputs, o.target) for o in said):
            return "its outputs are probabilities, where logits are expected: leave out its sigmoid"
    elif isinstance(task, Classes) and all(is_probabilities(o.outputs) for o in said):
        return "its outputs are probabilities that sum to 1, where logits are expected: leave out its softmax"
    return ""


def _other_request(model: Model, name: str, scenario: Scenario) -> str:
    """Return why a result is none of this request: its state says that it forgot others than the scenario's."""
    if not isinstance(model, Unlearned):
        return ""
    gone, stayed = (forgotten(model.state, ids) for ids in (scenario.forget, scenario.retain))
    if gone is None or stayed is None or (gone.all() and not stayed.any()):
        return ""
    if _is_retrained(name):
        return "it was retrained without other samples than those of this request"
    return "it was made to forget other samples than those of this request"


def _copy(name: str, named: Mapping[str, Model]) -> str:
    """Return why a retrained model says nothing: it is one that is there already, and so near to it for no merit.

    Two retrained models of one seed are the same to the bit; the floor between them would be 0.
    """
    if not _is_retrained(name):
        return ""
    own = _module(named[name])
    there = [n for n in named if n == "original" or _is_retrained(n)]
    for other in there[: there.index(name)] if any(True for _ in own.parameters()) else []:
        if tensors.weights_digest(_module(named[other])) == tensors.weights_digest(own):
            if other == "original":
                return "it has the original's weights to the bit, and so was not retrained"
            return f"it has the weights of {other} to the bit: a floor needs one retrained from another seed"
    return ""


def _is_retrained(name: str) -> bool:
    return name == REFERENCE or name.startswith(FLOOR)


def _is_exact(model: Model) -> bool:
    name = model.method["name"] if isinstance(model, Unlearned) else ""
    return name in methods.names() and methods.load(name).nature is Nature.EXACT


def _caveats(
    splits: Mapping[str, Data], kept: Mapping[str, Mapping[str, Outputs]], flaws: Mapping[str, str], runtime: Runtime
) -> tuple[str, ...]:
    """Return what a reader must know, in sentences: models that cannot be measured, twins of forgotten samples."""
    found = list(_flawed(flaws))
    sizes = [tuple(kept[n]["forget"].outputs.shape[1:]) for n in ("original", REFERENCE) if kept.get(n)]
    if len(set(sizes)) > 1:
        what = f"outputs of shape {sizes[1]} where the original has {sizes[0]}"
        found.append(f"The retrained model gives {what}: what compares the two sample by sample is left out.")
    # Features of a model that was trained on the forget set would bring it near to what it was trained beside.
    seen_by = {} if REFERENCE in flaws else kept.get(REFERENCE, {})
    unseen = {name: splits[name] for name in ("test", "holdout") if name in splits}
    twins = near_duplicates(splits["forget"], splits["retain"], seen_by, unseen)
    return (*dict.fromkeys(found), *twins.sentences())


def _flawed(flaws: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"Nothing is said of {name.partition(chr(0))[0]}: {why}." for name, why in flaws.items())


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _like_forgotten(data: Data, scenario: Scenario) -> np.ndarray | None:
    """Return which samples are of the forgotten kind, None where that cannot be said of unseen samples."""
    target = scenario.target
    column = target.get("column") if isinstance(target, dict) else None
    if column is None and not data.labelled:
        return None
    if isinstance(target, dict) and "classes" in target:  # several classes, forgotten one after another
        return np.isin(data.targets().numpy(), target["classes"])
    if column is not None and column not in data.columns:
        return None
    if scenario.kind == "class":
        return data.targets().numpy() == target  # type: ignore[no-any-return]
    if column is not None and scenario.kind in ("subclass", "subject"):
        same = np.asarray([v == target["value"] or str(v) == str(target["value"]) for v in data.column(column)])
        return None if scenario.kind == "subject" and not same.any() else same  # unseen subjects are the rule
    if scenario.kind == "range":
        # As plain numbers, like the forget set's: in float32 a bound such as 0.7 is another number.
        values = data.targets().reshape(-1).tolist() if column is None else data.column(column)
        return np.asarray([target["low"] <= v < target["high"] for v in values])
    return None


def _densities(audit: Audit) -> None:
    """Keep per-sample loss and entropy on forget and test, for plots."""
    for split in ("forget", "test"):
        outputs = audit.outputs(split)
        if outputs is not None and outputs.loss is not None and bool(outputs.loss.isfinite().all()):
            audit.kept.samples[f"loss/{split}"] = outputs.loss.numpy()
        if outputs is not None and isinstance(audit.task, Classes) and "model" not in audit.flaws:
            audit.kept.samples[f"entropy/{split}"] = outputs.signals.entropy.numpy()
