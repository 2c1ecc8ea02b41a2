"""What models on halves of the data say of all of it: the right half, the right model, and data held to its content."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from expunge import zoo
from expunge.bench import answers, problems, stages
from expunge.bench.cell import Cell, Task
from expunge.bench.runner import InProcess, plan, run
from expunge.bench.stages import MODEL, Setting
from expunge.bench.store import Store
from expunge.data import Data
from expunge.errors import Incompatible, UserError
from expunge.evidence import collect
from expunge.methods import build
from expunge.originals import original
from expunge.runtime import Runtime
from expunge.scenario import Scenario
from expunge.shadows import draw
from expunge.steps import Step
from expunge.trial import APART, Request, handled

LIMIT, SEED = 120, 5
SSD, FINETUNE = build({"name": "ssd", "alpha": 3}).settings(), build({"name": "finetune", "epochs": 1}).settings()
KEPT = ("_PROBLEMS", "_HALVES", "_CHANGED", "_PRINTS", "_MODELS", "_DRAWN", "_REFERENCES", "_RESULTS")


def clear() -> None:
    for name in KEPT:
        getattr(stages, name).found.clear()


@pytest.fixture(autouse=True)
def _nothing_read_before() -> Iterator[None]:
    yield
    clear()


def cell(model: int | None = 0, *, name: str = "digits", seed: int = SEED, **changes: Any) -> Cell:
    part = {} if model is None else {"half": {"model": model, "seed": 2}}
    recipe = replace(zoo.recipe(name, "mlp"), epochs=1).to_json()
    given = {"request": Request("random", 7).to_json(), "recipe": recipe} | changes
    return Cell(data={"name": name, "limit": LIMIT, **part}, network="mlp", seed=seed, **given)


def do(path: Path, *tasks: Task) -> Store:
    store = Store.open(path)
    summary = run(plan(tasks, store), store, InProcess(Setting(path)))
    assert not summary.failed, [store.failure(task) for task in summary.failed]
    return store


def problem(model: int, name: str = "digits") -> zoo.Problem:
    """Return a problem with the half of its data that a model sees, by hand."""
    whole = zoo.load(name, "mlp", limit=LIMIT)
    seen = draw(whole.train.ids, model + 1, 2)[model]
    part = whole.train.subset([i for i, s in zip(whole.train.ids, seen, strict=True) if s])
    assert whole.recipe is not None
    return replace(whole, train=part, recipe=replace(whole.recipe, epochs=1))


def first(model: int, name: str = "digits") -> nn.Module:
    part = problem(model, name)
    return original(part, part.train, seed=SEED)


def by_hand(model: nn.Module, name: str, test: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return score and whether the prediction is right, from the outputs alone, on all data."""
    whole = zoo.load(name, "mlp", limit=LIMIT)
    data = whole.test if test else whole.train
    assert data is not None
    said = collect(model, whole.task, data, runtime=Runtime(progress=False))
    outputs, target = said.outputs.double().numpy(), data.targets().double().numpy()
    if name == "diabetes":
        return -((outputs.reshape(len(data), -1) - target.reshape(len(data), -1)) ** 2).mean(axis=1), np.empty(0)
    scores = []
    for row, y in zip(outputs, target.astype(int), strict=True):
        p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        scores.append(np.log(p[y]) - np.log(np.delete(p, y).sum()))
    return np.array(scores), outputs.argmax(axis=1) == target


def check(found: answers.Answers, model: nn.Module, name: str = "digits") -> None:
    for test, scores, right in ((False, found.train, found.right), (True, found.test, found.right_test)):
        want, correct = by_hand(model, name, test)
        assert scores.dtype == np.float64
        np.testing.assert_allclose(scores, want, rtol=1e-4, atol=1e-4)
        if name == "digits":
            assert right is not None
            assert right.dtype == np.bool_
            assert (right == correct).all()
            assert 0 < right.mean() < 1


@pytest.mark.parametrize("model", [0, 3])
def test_an_original_is_trained_on_exactly_its_half(tmp_path: Path, model: int) -> None:
    task = cell(model).task("answered")
    store = do(tmp_path, task)
    weights = stages.Work(task, store, Setting(tmp_path), Runtime()).filled(task.needs[0])
    for (name, ours), theirs in zip(weights.state_dict().items(), first(model).state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    other = first(model ^ 1).state_dict().values()
    assert any((a != b).any() for a, b in zip(weights.state_dict().values(), other, strict=True))
    found = answers.load(store.folder(task))
    assert found.train.shape == (len(zoo.load("digits", "mlp", limit=LIMIT).train),)
    check(found, first(model))


def parts(model: int, request: Request) -> tuple[zoo.Problem, list[Step]]:
    own = problem(model)
    _, scenario = request.draw(own, SEED)
    assert isinstance(scenario, Scenario)
    assert set(scenario.forget) <= set(own.train.ids)
    return own, [Step(scenario, scenario)]


def edited(model: int, settings: dict[str, Any], request: Request, seed: int = SEED) -> nn.Module:
    own, steps = parts(model, request)
    common: dict[str, Any] = {"recipe": own.recipe, "new_model": own.new_model, "holdout": own.holdout}
    runtime = Runtime(progress=False)
    return handled(build(settings), first(model), own, own.train, steps, seed=seed, runtime=runtime, **common).model


@pytest.mark.parametrize("again", [0, 1])
def test_a_retrained_model_is_one_of_the_half_without_the_samples(tmp_path: Path, again: int) -> None:
    task = cell(3).task("answered", 1, again)
    store = do(tmp_path, task)
    assert task.needs[0].stage == "retrained"
    retrained = edited(3, build({"name": "retrain"}).settings(), Request("random", 7), SEED + APART * again)
    check(answers.load(store.folder(task)), retrained)


@pytest.mark.parametrize("settings", [SSD, FINETUNE])
def test_an_unlearned_model_is_the_methods(tmp_path: Path, settings: dict[str, Any]) -> None:
    task = cell(3).with_method(settings).task("answered", 1)
    store = do(tmp_path, task)
    found = answers.load(store.folder(task))
    check(found, edited(3, settings, Request("random", 7)))
    before = cell(3).task("answered")
    do(tmp_path, before)
    assert (answers.load(store.folder(before)).train != found.train).any()


def test_a_method_that_serves_its_model_is_asked_as_served(tmp_path: Path) -> None:
    settings, request = build({"name": "head_mask"}).settings(), Request("class", 3)
    task = cell(3, request=request.to_json()).with_method(settings).task("answered", 1)
    found = answers.load(do(tmp_path, task).folder(task))
    threes = zoo.load("digits", "mlp", limit=LIMIT).train.targets().numpy() == 3
    assert found.right is not None
    assert not found.right[threes].any()
    assert found.right[~threes].any()


def test_each_of_several_requests_in_a_row_is_asked(tmp_path: Path) -> None:
    own = cell(2, request=Request("sequential", 4, times=2).to_json()).with_method(FINETUNE)
    tasks = [own.task("answered", step) for step in (1, 2)]
    store = do(tmp_path, *tasks)
    one, two = (answers.load(store.folder(task)).train for task in tasks)
    assert (one != two).any()
    assert [task.needs[0].step for task in tasks] == [1, 2]


def test_no_two_halves_share_a_model_and_answers_are_named_by_what_is_asked() -> None:
    cells = [
        cell(0),
        cell(1),
        cell(None),
        replace(cell(0), data={**cell(0).data, "half": {"model": 0, "seed": 3}}),
        cell(0, seed=6),
    ]
    assert len({c.task("trained").key for c in cells}) == len(cells)
    assert len({c.task("answered").key for c in cells}) == len(cells)
    shared = cell(0)
    tasks = [
        shared.task("answered"),
        shared.task("answered", 1),
        shared.task("answered", 1, 1),
        shared.with_method(SSD).task("answered", 1),
        shared.with_method(FINETUNE).task("answered", 1),
        cell(0, request=Request("random", 8).to_json()).task("answered", 1),
    ]
    assert len({task.key for task in tasks}) == len(tasks)
    assert [task.needs[0].stage for task in tasks] == [
        "trained",
        "retrained",
        "retrained",
        "unlearned",
        "unlearned",
        "retrained",
    ]
    other = cell(0, request=Request("class", 1).to_json())
    assert other.task("answered").key == shared.task("answered").key  # whatever is asked later
    measured = replace(shared, measures={"metrics": ["accuracy"], "attacks": []}).with_method(SSD)
    assert measured.task("answered", 1).key == shared.with_method(SSD).task("answered", 1).key
    assert all("answered" not in (need.stage for need in task.reads) for task in tasks)


def test_a_cell_on_all_data_has_the_key_it_had_before_there_were_halves() -> None:
    spec = cell(None).task("trained").spec
    assert spec["data"] == {"name": "digits", "limit": LIMIT}
    assert sorted(spec) == ["change", "data", "format", "network", "recipe", "seed", "stage"]


def test_a_task_without_classes_has_scores_and_no_predictions(tmp_path: Path) -> None:
    task = cell(1, name="diabetes").task("answered")
    found = answers.load(do(tmp_path, task).folder(task))
    assert found.right is None
    assert found.right_test is None
    check(found, first(1, "diabetes"), "diabetes")
    assert (found.train <= 0).all()


def test_answers_without_test_data_and_without_labels(tmp_path: Path) -> None:
    own = problem(0)
    model, runtime = first(0), Runtime(progress=False)
    found = answers.ask(model, own.task, own.train, None, runtime)
    assert found.test.shape == (0,)
    assert found.right_test is not None
    assert found.right_test.shape == (0,)
    answers.save(tmp_path, found)
    again = answers.load(tmp_path)
    for name in ("train", "test", "right", "right_test"):
        ours, theirs = getattr(again, name), getattr(found, name)
        assert ours.dtype == theirs.dtype
        assert (ours == theirs).all()
    inputs = own.train.read(range(len(own.train))).inputs
    assert isinstance(inputs, torch.Tensor)
    with pytest.raises(UserError, match="labels in bare, got none: give targets"):
        answers.ask(model, own.task, Data.from_arrays(inputs, name="bare"), None, runtime)


@pytest.mark.parametrize("model", [-1, -2])
def test_a_half_below_0_is_refused(model: int) -> None:
    with pytest.raises(UserError, match=f"a model from 0, got {model}"):
        problems.half_of(zoo.load("digits", "mlp", limit=LIMIT).train, {"model": model, "seed": 0})


def reversed_sets(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    real: Callable[..., zoo.Problem] = zoo.load

    def changed(*args: Any, **keywords: Any) -> zoo.Problem:
        found = real(*args, **keywords)
        data = getattr(found, part)
        return replace(found, **{part: data.subset(list(reversed(data.ids)))})

    monkeypatch.setattr(zoo, "load", changed)
    clear()


@pytest.mark.parametrize("source", ["trained", "retrained", "unlearned"])
def test_data_changed_under_its_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    shared = cell(3)
    task = {
        "trained": shared.task("answered"),
        "retrained": shared.task("answered", 1, 1),
        "unlearned": shared.with_method(SSD).task("answered", 1),
    }[source]
    store = do(tmp_path, task.needs[0])
    reversed_sets(monkeypatch, "train")
    assert stages.perform(task, Setting(tmp_path)) == "failed"
    assert "other samples under its name" in (store.failure(task) or {})["message"]
    work = stages.Work(task, store, Setting(tmp_path), Runtime())
    with pytest.raises(Incompatible, match="the data that trained/.* was trained on, got other samples"):
        stages._answered(work)


def test_interrupted_and_resumed_nothing_is_computed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [c.task("answered", s, a) for c in (cell(0), cell(1)) for s, a in ((0, 0), (1, 1))]
    tasks += [cell(0).with_method(SSD).task("answered", 1)]
    begun: list[str] = []
    broken = ["trained", "retrained", "answered", "unlearned"]

    def watched(name: Any, real: Any) -> Any:
        def stage(work: stages.Work) -> Any:
            if name in broken:
                broken.remove(name)
                raise KeyboardInterrupt
            begun.append(work.task.name)
            return real(work)

        return stage

    for name, real in list(stages._STAGES.items()):
        monkeypatch.setitem(stages._STAGES, name, watched(name, real))
    for left in (4, 3, 2, 1):
        assert len(broken) == left
        with pytest.raises(KeyboardInterrupt):
            do(tmp_path / "a", *tasks)
    store = do(tmp_path / "a", *tasks)
    assert len(begun) == len(set(begun)) == 2 + 2 + 2 + 1 + 1 + 5  # trained, drawn, retrained, prepared, unlearned
    do(tmp_path / "a", *tasks)
    assert len(begun) == 13
    other = do(tmp_path / "b", *tasks)
    for task in tasks:
        ours, theirs = ((s.folder(task) / answers.FILE).read_bytes() for s in (store, other))
        assert ours == theirs
    assert (store.folder(tasks[0].needs[0]) / MODEL).is_file()
