"""What every metric and attack must keep, as functions that fail with an AssertionError; and audits to hold them to."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge import attacks
from expunge.data import Data
from expunge.evidence import Outputs, collect
from expunge.metric import (
    NEEDS,
    SPLITS,
    Attack,
    Audit,
    Found,
    Goal,
    Kept,
    Metric,
    MetricFault,
    Number,
    Unavailable,
    Value,
    missing,
)
from expunge.metrics.membership import Membership
from expunge.noise import Noise
from expunge.runtime import Runtime
from expunge.scenario import Scenario, forget_class, forget_ids, forget_range
from expunge.task import Binary, Classes, Classification, Quantile, Regression, Task
from expunge.tensors import weights_digest
from expunge.train import Recipe, fit, fresh

WIDTH, CLASSES, FORGOTTEN, FAR = 6, 4, 1, 3.0
TAP = "2:input"
ROLES = ("model", "original", "retrained")
OUTER = ("test", "test_forget", "test_retain")
CANARIES = ("canary", "canary_kept", "canary_unseen")
PLANTED = (*CANARIES, "triggered")
D = torch.float64
TASKS: dict[str, tuple[Task, int]] = {  # task and number of outputs
    "class": (Classification(), CLASSES),
    "ids": (Classification(), CLASSES),
    "regression": (Regression(), 1),
    "quantile": (Quantile(), 3),
    "binary": (Binary(), 1),
}


# A setting: three small networks on data of three kinds of request.


def network(outputs: int = CLASSES) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, outputs)).double()


@dataclass(frozen=True)
class Setting:
    """Models, data and request, from which audits are collected in any order and batch size."""

    models: Mapping[str, nn.Module]
    data: Mapping[str, Data]
    task: Task
    scenario: Scenario
    recipe: Recipe
    new_model: Callable[[], nn.Module]

    def audit(self, *, batch: int = 50, mixed: int | None = None, **models: nn.Module) -> Audit:
        """Return the audit, its outputs collected in batches of this size and its samples mixed by this seed."""
        runtime = Runtime(progress=False, batch_size=batch, device="cpu")
        data = {name: part if mixed is None else _mixed(part, mixed) for name, part in self.data.items()}
        roles = {**self.models, **models}
        evidence = {
            (role, split): collect(model, self.task, part, taps=[TAP], runtime=runtime)
            for role, model in roles.items()
            for split, part in data.items()
        }
        return Audit(
            evidence=evidence,
            models=roles,
            task=self.task,
            scenario=self.scenario,
            edit={"seconds": 0.5, "total_seconds": 0.75, "peak_memory": 1024.0},
            recipe=self.recipe,
            new_model=self.new_model,
            tap=TAP,
            seed=3,
            data={name: part for name, part in data.items() if name not in PLANTED},
            runtime=runtime,
        )


def _mixed(data: Data, seed: int) -> Data:
    order = np.random.default_rng([seed, len(data)]).permutation(len(data))
    ids = data.ids
    return data.subset([ids[i] for i in order])


@cache
def setting(kind: str) -> Setting:
    """Return a setting of a kind of `TASKS`: a class is forgotten, a range of the quantile task, else some ids."""
    task, outputs = TASKS[kind]
    real = isinstance(task, Regression | Quantile)
    generator = torch.Generator().manual_seed(0)
    centres = 1.2 * torch.randn(CLASSES, WIDTH, generator=generator, dtype=D)

    def draw(n: int, name: str) -> Data:
        y = torch.arange(n) % CLASSES
        x = centres[y] + torch.randn(n, WIDTH, generator=generator, dtype=D)
        target = x[:, :1] + 0.3 * x[:, 1:2] if real else y
        target = 2 * x[:, 0].abs() if kind == "quantile" else (y // 2).double() if kind == "binary" else target
        columns = {"region": ["north" if i % 3 else "south" for i in range(n)], "clean": y.roll(1).tolist()}
        return Data.from_arrays(x, target, columns=columns, name=name)

    train, test, holdout = draw(96, "train"), draw(144, "test"), draw(16, "holdout")
    train, _ = Noise(deviation=0.5).plant(train, 0.4)
    ids = train.ids[5 : 65 if kind == "binary" else 29]
    case = forget_class(train, FORGOTTEN) if kind == "class" else forget_ids(train, ids)
    if kind == "quantile":
        case = forget_range(train, FAR, 99.0)
    like = {}
    if kind in ("class", "quantile"):
        pairs = zip(test.ids, test.targets().tolist(), strict=True)
        same = [i for i, y in pairs if (y == FORGOTTEN if kind == "class" else y >= FAR)]
        like = {"test_forget": test.subset(same), "test_retain": test.without(same)}
    retain = train.subset(case.retain)
    recipe = Recipe(epochs=12, batch_size=16, lr=0.01 if kind == "regression" else 0.1)

    def new() -> nn.Module:
        return network(outputs)

    quiet = Runtime(progress=False, batch_size=64, device="cpu")
    start = fresh(new(), new_model=new, seed=1)
    models = {"original": fit(start, task, train, recipe, runtime=quiet, seed=1)}
    models["retrained"] = fit(start, task, retain, recipe, runtime=quiet, seed=2)
    models["model"] = copy.deepcopy(models["original"])
    with torch.no_grad():
        for p in models["model"].parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=D)
    parts = {"forget": train.subset(case.forget), "retain": retain, "test": test, "holdout": holdout, **like}
    planted = {name: draw(n, name) for name, n in zip(PLANTED, (8, 12, 16, 20), strict=True)}
    return Setting(models, {**parts, **planted}, task, case, recipe, new)


# What a metric found, run so that a broken declaration is a failed assertion, and compared.


def run(metric: Metric, audit: Audit) -> Found:
    """Return what a metric finds in an audit whose notes are its own, its declaration being kept."""
    try:
        found = metric(audit)
    except MetricFault as fault:
        raise AssertionError(str(fault)) from fault
    check_values(metric, found)
    return found


def apart(audit: Audit) -> Audit:
    """Return the audit with notes of its own."""
    return replace(audit, kept=Kept(), shared=dict(audit.shared))


def check_values(metric: Metric, found: Found) -> None:
    """Every number that is declared, inside its range and its interval; no other."""
    declared = metric.numbers
    assert found.keys() == declared.keys(), f"{found.keys() ^ declared.keys()} declared or returned, not both"
    for name, value in found.items():
        if isinstance(value, Unavailable):
            assert value.reason.strip(), f"{name} is unavailable without a reason"
            continue
        low, high = declared[name].range
        assert low <= value.x <= high, f"{name} = {value.x} is outside [{low}, {high}]"
        assert value.low <= value.x <= value.high, f"{name} = {value.x} is outside its interval"
        assert value.n >= 1, f"{name} has {value.n} observations"
        assert value.n > 1 or value.low < value.high, f"{name} is certain of one observation"


def check_same(one: Any, other: Any, what: str, tolerance: float = 1e-9) -> None:
    """Two results are the same: numbers to the tolerance, reasons and names to the letter."""
    assert type(one) is type(other), f"{what}: {one} and {other}"
    if isinstance(one, Mapping):
        assert list(one) == list(other), f"{what}: {list(one)} and {list(other)}"
        for key in one:
            check_same(one[key], other[key], f"{what} {key}", tolerance)
    elif isinstance(one, Value):
        assert (one.n, one.unit) == (other.n, other.unit), f"{what}: {one} and {other}"
        for a, b in ((one.x, other.x), (one.low, other.low), (one.high, other.high)):
            assert math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance), f"{what}: {one} and {other}"
    elif isinstance(one, np.ndarray):
        np.testing.assert_allclose(np.sort(one), np.sort(other), rtol=tolerance, atol=tolerance, err_msg=what)
    else:
        assert one == other, f"{what}: {one} and {other}"


# The declaration.


def check_declared(metric: Metric) -> None:
    """A metric says what it gives, what it needs, and when it gives nothing."""
    cls = type(metric)
    assert isinstance(cls.goal, Goal)
    assert isinstance(cls.target, float | int | None)
    _check_needs(cls.needs | cls.wants, cls.undefined)
    assert isinstance(cls.trains, bool)
    assert metric.numbers, "a metric without numbers"
    for name, number in metric.numbers.items():
        check_number(name, number)
    assert cls.__doc__
    assert cls.__doc__.splitlines()[0].endswith("."), "the first line of its docstring is no sentence"


def check_number(name: str, number: Number) -> None:
    assert isinstance(number, Number)
    assert number.label.strip(), f"{name} has no label"
    assert not number.label[0].isspace()
    assert isinstance(number.goal, Goal)
    low, high = number.range
    assert low < high, f"{name} has the range {number.range}"
    if number.target is not None:
        assert low <= number.target <= high, f"the ideal of {name}, {number.target}, is outside its range"
    assert name == name.strip()
    assert " " not in name


def check_attack_declared(attack: type[Attack]) -> None:
    assert isinstance(attack.goal, Goal)
    _check_needs(attack.needs, attack.undefined)
    assert attack.label.strip()
    assert attack.counts in ("members", "unseen")
    assert attack.threshold is not None or attack.counts == "members"
    assert attack.against in (None, "retrained", "original")
    if attack.against is not None:
        assert attack.against in attack.needs, f"it compares with {attack.against} and does not need it"
    assert attack.__doc__
    assert attack.__doc__.splitlines()[0].endswith(".")


def _check_needs(needs: frozenset[str], undefined: tuple[str, ...]) -> None:
    assert isinstance(needs, frozenset)
    assert needs <= NEEDS, f"{set(needs - NEEDS)} is no need"
    assert isinstance(undefined, tuple)
    for text in undefined:
        assert isinstance(text, str)
        assert len(text) >= 10, f"{text!r} could be part of any reason"


# Known answers.


@dataclass(frozen=True)
class Case:
    """An audit whose numbers are known."""

    audit: Audit
    want: Mapping[str, float | str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-6


def check_known(metric: Metric, case: Case) -> None:
    """The numbers are the known ones; a text stands for a reason that begins so."""
    found = run(metric, apart(case.audit))
    assert case.want, "no answer is known"
    for name, want in case.want.items():
        assert name in found, f"{name} is not among {list(found)}"
        value = found[name]
        if isinstance(want, str):
            assert isinstance(value, Unavailable), f"{name} = {value}"
            assert value.reason.startswith(want), f"{name}: {value.reason}"
        else:
            assert isinstance(value, Value), f"{name}: {value}"
            assert math.isclose(value.x, want, abs_tol=case.tolerance), f"{name} = {value.x}, not {want}"


# Invariance, and what is left behind.


def check_invariant(metric: Metric, at: Setting) -> None:
    """Neither the order of the samples nor the batches in which outputs were collected change a number."""
    whole = at.audit(batch=500)
    want = (run(metric, whole), whole.kept)
    for what, other in (
        ("the same again", at.audit(batch=500)),
        ("batches of 7", at.audit(batch=7)),
        ("batches of 1", at.audit(batch=1)),
        ("samples mixed", at.audit(batch=500, mixed=1)),
        ("samples mixed again", at.audit(batch=500, mixed=2)),
    ):
        found = run(metric, other)
        check_same(want[0], found, what)
        check_same(want[1].gaps, other.kept.gaps, f"{what}, gaps")
        check_same(_sorted(want[1].series), _sorted(other.kept.series), f"{what}, series")
        check_same(want[1].samples, other.kept.samples, f"{what}, samples")


def _sorted(series: Mapping[str, Mapping[Any, Any]]) -> dict[str, Any]:
    return {name: dict(sorted(places.items(), key=str)) for name, places in series.items()}


def check_harmless(metric: Metric, audit: Audit) -> None:
    """Models, their modes, random states and evidence are left as they were found."""
    for model in audit.models.values():
        model.train()
        model[1].eval()
        model[0].bias.requires_grad_(False)
    before = _state(audit)
    torch.manual_seed(11)
    states = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    try:
        with torch.no_grad():
            run(metric, apart(audit))
            assert not torch.is_grad_enabled()
        assert torch.equal(torch.get_rng_state(), states[0]), "torch's random state moved"
        assert str(np.random.get_state()) == states[1], "numpy's random state moved"
        assert random.getstate() == states[2], "Python's random state moved"
        assert _state(audit) == before, "a model or its evidence was changed"
        for model in audit.models.values():
            modules = list(model.modules())
            assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in modules)
            assert all(p.grad is None for p in model.parameters())
    finally:
        for model in audit.models.values():
            model.eval().requires_grad_(True)


def _state(audit: Audit) -> list[Any]:
    models = [
        (
            weights_digest(m),
            [part.training for part in m.modules()],
            [p.requires_grad for p in m.parameters()],
        )
        for m in audit.models.values()
    ]
    tensors = [
        float(part.double().sum())
        for said in audit.evidence.values()
        for part in (said.outputs, said.prediction, said.target, said.loss, *said.features.values())
        if part is not None
    ]
    return [*models, *tensors, sorted(audit.edit.items()), list(audit.data)]


# A copy of the reference has no gap to it.


def check_reference(metric: Metric, at: Setting) -> None:
    """Of a bit-identical copy of retrained every number is retrained's own, or its ideal where it has none."""
    reference = at.models["retrained"]
    own = run(metric, at.audit(model=reference))
    audit = at.audit(model=copy.deepcopy(reference))
    audit = replace(audit, edit={})
    found = run(metric, audit)
    for name, value in found.items():
        was, target = own[name], metric.numbers[name].target
        if isinstance(value, Unavailable):
            continue
        if isinstance(was, Value) and not name.startswith("cost/"):
            assert math.isclose(value.x, was.x, abs_tol=1e-9), f"{name}: {value.x}, and {was.x} of retrained itself"
        elif isinstance(was, Unavailable) and was.reason == "it is the reference itself":
            assert target is not None, f"{name} is undefined of retrained, and has no ideal to be held to"
            assert math.isclose(value.x, target, abs_tol=1e-9), f"{name} of a copy is {value.x}, its ideal {target}"
    for name, gap in audit.kept.gaps.items():
        if isinstance(gap, Value):
            assert math.isclose(gap.x, 0.0, abs_tol=1e-9), f"the gap of {name} of a copy is {gap.x}"
            assert gap.low <= 0 <= gap.high


# Degenerate input.

Change = Callable[[Audit], Audit]


def _without(*splits: str) -> Change:
    def change(audit: Audit) -> Audit:
        evidence = {key: o for key, o in audit.evidence.items() if key[1] not in splits}
        return replace(audit, evidence=evidence, data={k: d for k, d in audit.data.items() if k not in splits})

    return change


def _nobody(role: str) -> Change:
    def change(audit: Audit) -> Audit:
        evidence = {key: o for key, o in audit.evidence.items() if key[0] != role}
        return replace(audit, evidence=evidence, models={k: m for k, m in audit.models.items() if k != role})

    return change


def _said(change: Callable[[Outputs], Outputs], *roles: str) -> Change:
    def changed(audit: Audit) -> Audit:
        evidence = {key: change(o) if key[0] in (roles or ROLES) else o for key, o in audit.evidence.items()}
        return replace(audit, evidence=evidence)

    return changed


def _kept(pick: Callable[[str, Outputs], Tensor]) -> Change:
    """Keep some samples of every split, the same for all roles and in the data."""

    def change(audit: Audit) -> Audit:
        where = {split: pick(split, audit.said(split)) for role, split in audit.evidence if role == "model"}
        evidence = {(role, split): o.take(where[split]) for (role, split), o in audit.evidence.items()}
        data = {}
        for split, part in audit.data.items():
            ids = part.ids
            data[split] = part.subset([ids[i] for i in where[split].tolist()])
        return replace(audit, evidence=evidence, data=data)

    return change


def _first(n: int, *splits: str) -> Change:
    return _kept(lambda split, o: torch.arange(min(n, len(o)) if split in (splits or SPLITS) else len(o)))


def _relogit(change: Callable[[Tensor], Tensor], *roles: str) -> Change:
    """Change the outputs, and what follows from them."""

    def changed(audit: Audit) -> Audit:
        def one(said: Outputs) -> Outputs:
            outputs, task = change(said.outputs), audit.task
            if outputs.shape != said.outputs.shape and not isinstance(task, Classification):
                return replace(said, outputs=outputs)
            loss = None if said.target is None else task.loss(outputs, said.target)
            said = replace(said, outputs=outputs, prediction=task.predictions(outputs), loss=loss)
            return said if said.classes is None or not isinstance(task, Classes) else _with_logits(said, task)

        return _said(one, *roles)(audit)

    return changed


def _with_logits(said: Outputs, task: Classes) -> Outputs:
    return replace(said, classes=task.class_logits(said.outputs))


def _unlabelled(said: Outputs) -> Outputs:
    return replace(said, target=None, loss=None)


def _infinite(said: Outputs) -> Outputs:
    return (
        said if said.loss is None else replace(said, loss=said.loss.clone().index_fill_(0, torch.tensor([0]), math.inf))
    )


def _bare(said: Outputs) -> Outputs:
    return replace(said, features={})


def _flat(said: Outputs) -> Outputs:
    return replace(said, features={k: torch.ones_like(v) for k, v in said.features.items()})


def _flawed(role: str, why: str) -> Change:
    return lambda audit: replace(audit, flaws={**audit.flaws, role: why})


def _nan(audit: Audit) -> Audit:
    evidence = {key: o for key, o in audit.evidence.items() if key[0] != "model"}
    return replace(audit, evidence=evidence, flaws={"model": "its outputs on forget hold NaN or infinity"})


def _reference(audit: Audit) -> Audit:
    evidence = {(r, s): audit.said(s, "retrained") if r == "model" else o for (r, s), o in audit.evidence.items()}
    return replace(audit, evidence=evidence, models={**audit.models, "model": audit.models["retrained"]})


def _frozen(audit: Audit) -> Audit:
    models = {role: copy.deepcopy(m).requires_grad_(False) for role, m in audit.models.items()}
    return replace(audit, models=models)


def _other_network(audit: Audit) -> Audit:
    outputs = audit.said("forget").outputs.shape[1]
    wide = nn.Sequential(nn.Linear(WIDTH, 9), nn.ReLU(), nn.Linear(9, outputs)).double()
    return replace(audit, models={**audit.models, "retrained": wide, "original": copy.deepcopy(wide)})


def _kind(kind: str, target: Any) -> Change:
    return lambda audit: replace(audit, scenario=replace(audit.scenario, kind=kind, target=target))


def _one_class(split: str, said: Outputs) -> Tensor:
    assert said.target is not None
    first = said.target.reshape(len(said), -1)[:, 0]
    same = (first > 0) if said.target.is_floating_point() else first.eq(FORGOTTEN if "forget" in split else 0)
    return torch.nonzero(same)[:, 0]


WIDER = torch.tensor([[0.0, 0.0]], dtype=D)
DEGENERATE: dict[str, Change] = {
    "as it is": lambda audit: audit,
    "no test data": _without(*OUTER),
    "no holdout": _without("holdout"),
    "no retain data": _without("retain"),
    "no forget data": _without("forget"),
    "no unseen sample of the kind": _first(0, "test_forget"),
    "no unseen sample but of the kind": _first(0, "test_retain"),
    "no canaries": _without(*CANARIES),
    "no trigger": _without("triggered"),
    "no triggered sample": _first(0, "triggered"),
    "no unseen canaries": _without("canary_unseen"),
    "no forgotten canaries": _without("canary"),
    "one class a split": _kept(_one_class),
    "one sample a split": _first(1),
    "one sample to forget": _first(1, "forget"),
    "two samples a split": _first(2),
    "nine samples a split": _first(9),
    "all outputs equal": _relogit(torch.zeros_like),
    "all features equal": _said(_flat),
    "probabilities, told": lambda a: _flawed("model", "its outputs are probabilities that sum to 1, where logits are")(
        _relogit(lambda z: z.softmax(dim=1))(a)
    ),
    "probabilities, not told": _relogit(lambda z: z.softmax(dim=1)),
    "NaN outputs": _nan,
    "NaN outputs of retrained": lambda a: _flawed("retrained", "its outputs on test hold NaN or infinity")(
        replace(a, evidence={key: o for key, o in a.evidence.items() if key[0] != "retrained"})
    ),
    "NaN outputs of the original": lambda a: _flawed("original", "its outputs on test hold NaN or infinity")(
        replace(a, evidence={key: o for key, o in a.evidence.items() if key[0] != "original"})
    ),
    "retrained of another request": _flawed("retrained", "it was retrained without other samples"),
    "saturated logits": _relogit(lambda z: 1e4 * z),
    "an infinite loss": _said(_infinite),
    "an infinite loss of retrained": _said(_infinite, "retrained"),
    "no retrained": _nobody("retrained"),
    "no original": _nobody("original"),
    "the model alone": lambda a: _nobody("original")(_nobody("retrained")(a)),
    "it is the reference": _reference,
    "retrained with more classes": _relogit(lambda z: torch.cat([z, WIDER.expand(len(z), 2)], dim=1), "retrained"),
    "no labels": _said(_unlabelled),
    "no features": lambda a: replace(_said(_bare)(a), tap=None),
    "no features of retrained": _said(_bare, "retrained"),
    "outputs alone": lambda a: replace(a, data={}, models={}, edit={}, recipe=None, new_model=None),
    "no samples": lambda a: replace(a, data={}),
    "no recipe": lambda a: replace(a, recipe=None, new_model=None),
    "a bare module": lambda a: replace(a, edit={}),
    "frozen models": _frozen,
    "another network": _other_network,
    "a random request": _kind("random", 24),
    "a subject": _kind("subject", {"column": "who", "value": "x"}),
}


def reasons(audit: Audit) -> set[str]:
    """Return every reason that unmet needs can have in this audit."""
    sets = [frozenset({split}) for split in SPLITS]
    more = [frozenset[str](), *(frozenset({need}) for need in NEEDS - set(SPLITS)), frozenset({"labels", "retrained"})]
    alone = [missing(need, audit) for need in more]
    pairs = [missing(a | b, audit) for a, b in product(sets, more)]
    return {reason for reason in (*alone, *pairs) if reason}


def check_degenerate(metric: Metric, audit: Audit) -> Found:
    """Whatever comes, it does not raise, keeps its range, and what is undefined has a reason that was declared."""
    audit = apart(audit)
    found = run(metric, audit)
    unmet = reasons(audit)
    series = [(name, at, value) for name, places in audit.kept.series.items() for at, value in places.items()]
    for name, value in [*found.items(), *((f"{name} at {at}", v) for name, at, v in series)]:
        if isinstance(value, Unavailable):
            texts = declared_texts(metric, name)
            known = value.reason in unmet or any(text in value.reason for text in texts)
            assert known, f"{name}: {value.reason!r} is not among the declared reasons {texts}"
        else:
            assert not math.isnan(value.x), f"{name} is NaN"
    for name, values in audit.kept.samples.items():
        assert np.isfinite(values).all(), f"samples {name} are not finite"
    return found


def declared_texts(metric: Metric, name: str) -> tuple[str, ...]:
    """Return the reasons that a metric declares, with those of the attack behind a number."""
    texts = type(metric).undefined
    if isinstance(metric, Membership):
        texts += attacks.load(name.split("/")[1]).undefined
    return texts


def check_nothing_from_nothing(metric: Metric, audit: Audit) -> None:
    """No number where nothing is known, none on a set that is not there, and none of a model that has a flaw."""
    bare = replace(audit, evidence={}, models={}, edit={}, recipe=None, new_model=None, tap=None, data={})
    for name, value in check_degenerate(metric, bare).items():
        assert isinstance(value, Unavailable), f"{name} = {value} of nothing"
    if metric.needs | metric.wants:
        for name, value in check_degenerate(metric, _nan(audit)).items():
            assert isinstance(value, Unavailable), f"{name} = {value} of outputs that hold NaN"
    for split in SPLITS:
        gone = (split, *(s for s in OUTER if split == "test"))
        for name, value in check_degenerate(metric, _without(*gone)(audit)).items():
            if name.endswith(f"/{split}"):
                assert isinstance(value, Unavailable), f"{name} = {value} without {split}"
