"""Every method on every task: run from end to end, or declined with its reason, as the page on regression has it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

from expunge import choice, methods
from expunge.data import Data
from expunge.errors import Declined
from expunge.evidence import collect
from expunge.method import Method
from expunge.methods import load
from expunge.originals import original
from expunge.runtime import Runtime
from expunge.scenario import Scenario, forget_class, forget_random, forget_range
from expunge.task import Binary, Classification, MultiLabel, Quantile, Regression, Task
from expunge.train import Recipe, fit
from expunge.unlearn import Unlearned, prepare, unlearn
from expunge.zoo import load as problem

PAGE = Path(__file__).parents[2] / "docs/regression.md"
QUIET = Runtime(progress=False, batch_size=7, device="cpu")
RECIPE = Recipe(epochs=2, lr=0.05, batch_size=8)
TASKS: dict[str, Task] = {
    "Classification": Classification(),
    "Binary": Binary(),
    "MultiLabel": MultiLabel(),
    "Regression": Regression(),
    "Quantile": Quantile(),
}
OTHERWISE: dict[str, dict[str, Any]] = {  # settings with which a method works where its defaults do not
    "gradient_ascent": {"until": None},
    "neg_grad_plus": {"until": None},
    "salun": {"method": "finetune"},
    "distruction": {"objective": "tau_hinge"},
    "influence": {"curvature": "fisher"},
}


def network(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, outputs))


@dataclass(frozen=True)
class Place:
    """A tiny trained network of a task, with a request."""

    task: Task
    model: nn.Module
    train: Data
    holdout: Data
    case: Scenario
    outputs: int


def place(name: str) -> Place:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, generator=generator)
    value = x.sum(dim=1) + 0.1 * torch.randn(40, generator=generator)
    targets: dict[str, tuple[Tensor, int]] = {
        "Classification": ((value > 0).long() + (value > 1.5).long(), 3),
        "Binary": ((value > 0.5).long(), 1),
        "MultiLabel": ((x[:, :2] > 0).float(), 2),
        "Regression": (value, 1),
        "Quantile": (value, 3),
    }
    y, outputs = targets[name]
    train = Data.from_arrays(x[:31], y[:31], name="train")
    holdout = Data.from_arrays(x[31:], y[31:], name="holdout")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = fit(network(outputs), TASKS[name], train, RECIPE, runtime=QUIET)
    if name in ("Regression", "Quantile"):
        case = forget_range(train, 1.0, 9.0)
    else:
        case = forget_random(train, 6) if name == "MultiLabel" else forget_class(train, 1)
    return Place(TASKS[name], model, train, holdout, case, outputs)


@pytest.fixture(scope="module", params=TASKS)
def at(request: pytest.FixtureRequest) -> Place:
    return place(request.param)


def run(method: Method, at: Place) -> Unlearned:
    given: dict[str, Any] = {"holdout": at.holdout, "recipe": RECIPE, "new_model": partial(network, at.outputs)}
    given |= {"scenario": at.case, "runtime": QUIET}
    ready = prepare(method, at.model, at.task, train=at.train, **given)
    sets = {"forget": at.train.subset(at.case.forget), "retain": at.train.without(at.case.forget)}
    return unlearn(method, ready.model, at.task, **sets, state=ready.state, **given)


def declined(method: Method, task: Task) -> str | None:
    """Return why a method declines a task whatever is to be forgotten, or None; `s3t` looks at the network besides."""
    return method.declines(task, None, nn.Identity() if method.name == "s3t" else network(1))


def settings(name: str) -> dict[str, Any]:
    """Return the fields of a method's example that its other settings leave alone."""
    return {**methods.load(name).example, **OTHERWISE.get(name, {})}


def cell(name: str, task: Task) -> str:
    """Return what the table says of a method and a task."""
    if not declined(choice.example(name), task):
        return "yes"
    if name in OTHERWISE and not declined(methods.build({"name": name, **OTHERWISE[name]}), task):
        return " ".join(f"`{key}={value if value is None else repr(value)}`" for key, value in OTHERWISE[name].items())
    return "–"


def row(name: str) -> str:
    """Return a method's line of the table."""
    said = (declined(choice.example(name), task) for task in TASKS.values())
    reasons = dict.fromkeys(re.sub(r", and this task.*", "", reason) for reason in said if reason)
    return f"| `{name}` | {' | '.join(cell(name, task) for task in TASKS.values())} | {'; '.join(reasons)} |"


def test_the_page_runs(capsys: pytest.CaptureFixture[str]):
    torch.manual_seed(0)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(code, {})
    assert re.findall(r"^\w+", capsys.readouterr().out, re.MULTILINE) == ["finetune", "gaussian_amnesiac", "blindspot"]


def test_the_table_of_the_page_is_what_methods_say():
    want = [row(name) for name in methods.names()]
    rows = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| `\w+` \|.*\|.*\|.*\|", line)
    ]
    head = f"| method | {' | '.join(TASKS)} | declined, because |"
    assert head in PAGE.read_text(encoding="utf-8")
    assert rows == want


def no_classes(*_: object, **__: object) -> Tensor:
    raise AssertionError("the largest of real outputs was taken for a class")


@pytest.mark.parametrize("name", methods.names())
def test_a_method_works_or_is_declined_with_its_reason(name: str, at: Place, monkeypatch: pytest.MonkeyPatch):
    if isinstance(at.task, Regression | Quantile):
        monkeypatch.setattr(torch.Tensor, "argmax", no_classes)
        monkeypatch.setattr(torch, "argmax", no_classes)
    default = methods.build({"name": name, **methods.load(name).example})
    reason = default.declines(at.task, at.case, at.model)
    if reason:
        with pytest.raises(Declined, match=re.escape(reason)):
            run(default, at)
        changed = methods.build({"name": name, **settings(name)})
        if changed == default or changed.declines(at.task, at.case, at.model):
            return
        default = changed
    done = run(default, at)
    assert all(bool(torch.isfinite(p).all()) for p in done.model.parameters())
    assert done.changed is None or done.changed.count > 0 or done.note


def test_what_works_on_real_targets():
    real = {name for name in methods.names() if cell(name, Regression()) != "–"}
    assert {"retrain", "finetune", "ssd", "lfssd", "blindspot", "gaussian_amnesiac", "nabla_tau"} <= real
    assert real == {name for name in methods.names() if cell(name, Quantile()) != "–"} | {"certified_removal"} & real


def test_what_is_of_classes_is_declined_in_their_absence():
    of_classes = {"amnesiac", "bad_teacher", "random_label", "scrub", "unsir"}
    for task in (Regression(), Quantile(), MultiLabel()):
        assert {name for name in of_classes if cell(name, task) != "–"} == set()
    assert {name for name in of_classes if cell(name, Binary()) != "yes"} == set()


# What the paper orders, on the digits as values.


@pytest.mark.slow
def test_blindspot_is_nearer_to_retrained_than_gaussian_amnesiac_and_that_than_finetune():
    """W1 between predictions of the forgotten training samples and retrained's, digits up to 2; three seeds' mean."""
    digits = problem("digits_value")
    train = digits.train
    gone = forget_range(train, 0.0, 2.5).forget
    sets = {"forget": train.subset(gone), "retain": train.without(gone)}
    found: dict[str, list[float]] = {name: [] for name in ("blindspot", "gaussian_amnesiac", "finetune", "original")}
    for seed in range(3):
        first = original(digits, train, runtime=QUIET, seed=seed)
        again = original(digits, sets["retain"], runtime=QUIET, seed=100 + seed)
        want = collect(again, digits.task, sets["forget"], runtime=QUIET).prediction.flatten()

        def apart(model: nn.Module, want: Tensor = want) -> float:
            said = collect(model, digits.task, sets["forget"], runtime=QUIET).prediction.flatten()
            return float(wasserstein_distance(said.double().numpy(), want.double().numpy()))

        found["original"].append(apart(first))
        for name in ("blindspot", "gaussian_amnesiac", "finetune"):
            method = load(name)(epochs=5)
            given = {"recipe": digits.recipe, "new_model": digits.new_model, "runtime": QUIET, "seed": seed}
            ready = prepare(method, first, digits.task, train=train, **given)
            done = unlearn(method, first, digits.task, **sets, state=ready.state, **given)
            found[name].append(apart(done.model))
    mean = {name: sum(values) / len(values) for name, values in found.items()}
    assert mean["blindspot"] < mean["gaussian_amnesiac"] < mean["finetune"], found
    assert mean["finetune"] > 0.8 * mean["original"], found
