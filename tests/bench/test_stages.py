"""Stages of a cell: the same numbers as a trial in one go, shared work, data that changed under its name."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benches import leftovers
from expunge import zoo
from expunge.bench import stages
from expunge.bench.cell import Cell, Task, ordered
from expunge.bench.collect import groups
from expunge.bench.grid import Grid, load
from expunge.bench.runner import InProcess, plan, run
from expunge.bench.stages import Setting
from expunge.bench.store import Store
from expunge.draws import Request
from expunge.errors import Unwritable
from expunge.methods import build
from expunge.metric import Value
from expunge.runtime import Runtime
from expunge.trial import trial

GRID = """
seeds = [4]
metrics = ["accuracy", "loss", "membership", "relearn", "backdoor", "gaussian"]
attacks = ["loss", "entropy_lr"]
scenarios = ["{request}"]
[data.digits]
limit = 150
[networks.mlp]
recipe = {{epochs = 3, lr = 0.1}}
[methods.finetune]
epochs = 1
[methods.ssd]
alpha = 3
"""
REQUESTS = ["class=3", "random=0.1", "mislabelled=0.2", "hardest=10", "poison=0.2,target=1", "noised=0.2"]
REQUESTS += ["sequential:class=3+5"]
SHARED: dict[str, Any] = {
    "data": {"name": "digits", "limit": 150},
    "network": "mlp",
    "recipe": zoo.recipe("digits", "mlp").to_json(),
    "request": {"kind": "class", "value": 3},
    "seed": 0,
}


@pytest.fixture(autouse=True)
def _nothing_read_before() -> Iterator[None]:
    yield
    for kept in (stages._PROBLEMS, stages._PRINTS, stages._MODELS, stages._DRAWN, stages._REFERENCES):
        kept.found.clear()


def filled(folder: Path, text: str) -> tuple[Grid, Store]:
    """Return a grid and its store, finished in this process."""
    (folder / "grid.toml").write_text(text)
    grid, store = load(folder / "grid.toml"), Store.open(folder / "store")
    work = plan([task for cell in grid.cells() for task in cell.results()], store)
    summary = run(work, store, InProcess(Setting(store.path)))
    assert not summary.failed, [store.failure(task) for task in summary.failed]
    return grid, store


@pytest.mark.parametrize("text", REQUESTS)
def test_a_grid_measures_what_a_trial_in_one_go_does(tmp_path: Path, text: str) -> None:
    grid, store = filled(tmp_path, GRID.format(request=text))
    last = groups(grid, store)[-1].runs[4]
    problem = zoo.load("digits", "mlp", limit=150)
    assert problem.recipe is not None
    problem = replace(problem, recipe=replace(problem.recipe, epochs=3, lr=0.1))
    made = {name: build(settings) for name, settings in grid.methods.items()}
    whole = trial(problem, Request.parse(text), made, runtime=Runtime(progress=False), seed=4)
    names = set(last["original"])
    assert {"accuracy/forget", "accuracy/test", "membership/loss/auc", "relearn/steps"} <= names
    for model in ("original", "retrained", "retrained (other seed)", "no_op", "finetune", "ssd"):
        for name in names:
            ours, theirs = last[model][name], whole[model][name]
            same = ours.x == theirs.x if isinstance(ours, Value) and isinstance(theirs, Value) else ours == theirs
            assert same, (model, name, ours, theirs)
            assert last.distances.get(model, {}).get(name) == whole.distances.get(model, {}).get(name)
    assert {k: v.x for k, v in last.floor.items()} == {k: v.x for k, v in whole.floor.items() if k in names}


def test_requests_one_after_another_are_measured_after_each(tmp_path: Path) -> None:
    text = GRID.format(request="sequential=10,times=3").replace('"relearn", "backdoor", "gaussian"', '"cost"')
    grid, store = filled(tmp_path, text)
    found = groups(grid, store)
    assert [(g.step, g.steps) for g in found] == [(1, 3), (2, 3), (3, 3)]
    assert [g.runs[4].asked.counts["forget"] for g in found] == [10, 20, 30]
    times = [g.runs[4]["ssd"]["cost/seconds"] for g in found]
    assert [g.costs[4, "ssd"]["edits"] for g in found] == [t.x for t in times if isinstance(t, Value)]  # all edits
    assert times[2].x > times[1].x > times[0].x  # type: ignore[union-attr]


def test_single_requests_are_measured_after_the_last(tmp_path: Path) -> None:
    grid, store = filled(tmp_path, GRID.format(request="single=3"))
    assert [(g.step, g.steps) for g in groups(grid, store)] == [(3, 3)]


def test_no_method_enters_the_key_of_what_all_methods_share() -> None:
    shared = SHARED | {"measures": {"metrics": ["accuracy"], "attacks": [], "retrained": 2}}
    ssd, other, tune = (
        Cell(**shared, method=build(m).settings())
        for m in ({"name": "ssd", "alpha": 3}, {"name": "ssd", "alpha": 4}, {"name": "finetune"})
    )
    common = {task.name for task in ordered([Cell(**shared)])}
    assert len(common) == 5
    for cell in (ssd, other, tune):
        assert common < {task.name for task in ordered([cell])}
    both = {task.name for task in ordered([ssd])} & {task.name for task in ordered([other])}
    assert {name.partition("/")[0] for name in both - common} == {"prepared"}
    assert ssd.key() != other.key()


def test_more_retrained_models_keep_those_there_are() -> None:
    two, three = (
        {t.name for t in ordered([Cell(**SHARED, measures={"metrics": [], "attacks": [], "retrained": n})])}
        for n in (2, 3)
    )
    assert {name.partition("/")[0] for name in two - three} == {"reference"}
    assert sorted(name.partition("/")[0] for name in three - two) == ["reference", "retrained"]


@pytest.mark.parametrize(("part", "at"), [("train", 0), ("test", 1)])
def test_other_data_under_the_same_name_is_refused(
    part: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, store = filled(tmp_path, GRID.format(request="class=3"))
    real = zoo.load

    def changed(*args: Any, **keywords: Any) -> zoo.Problem:
        problem = real(*args, **keywords)
        data = getattr(problem, part)
        return replace(problem, **{part: data.subset(list(reversed(data.ids)))})

    monkeypatch.setattr(zoo, "load", changed)
    for kept in (stages._PROBLEMS, stages._PRINTS, stages._MODELS):
        kept.found.clear()
    task = list(grid.cells())[at].results()[0]  # of references, or of a method measured beside them
    store.forget(task)
    assert stages.perform(task, Setting(store.path)) == "failed"
    assert "other samples under its name" in (store.failure(task) or {})["message"]


def test_a_task_whose_needs_are_not_there_fails_and_says_so(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    task = Task("retrained", Cell(**SHARED), 1, 0)
    assert stages.perform(task, Setting(store.path)) == "failed"
    assert "not finished" in (store.failure(task) or {})["message"]


def test_a_store_that_cannot_be_written_ends_the_run_and_no_task_counts_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "grid.toml").write_text(GRID.format(request="class=3"))
    grid, store = load(tmp_path / "grid.toml"), Store.open(tmp_path / "store")
    real, left = stages.save_weights, [2]

    def full(*given: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*given)

    todo = plan([task for cell in grid.cells() for task in cell.results()], store)
    monkeypatch.setattr(stages, "save_weights", full)
    with pytest.raises(Unwritable, match="to write .*store.*, got No space left on device: free the space or choose"):
        run(todo, store, InProcess(Setting(store.path)))
    assert {store.status(task) for task in todo.tasks} == {"done", "missing"}
    assert leftovers(store.path) == []
    monkeypatch.undo()
    todo = plan([task for cell in grid.cells() for task in cell.results()], store)
    assert set(run(todo, store, InProcess(Setting(store.path))).counts) == {"done"}
