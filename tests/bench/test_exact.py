"""An exact method in a grid: what is kept of it between requests, and that it measures what a trial in one go does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from expunge import zoo
from expunge.bench.collect import groups
from expunge.bench.grid import load
from expunge.bench.ground import stored
from expunge.bench.runner import InProcess, plan, run
from expunge.bench.stages import MODEL, STATE, Setting
from expunge.bench.store import Store
from expunge.draws import Request
from expunge.exact.ensemble import Ensemble
from expunge.method import State
from expunge.methods import build
from expunge.metric import Value
from expunge.runtime import Runtime
from expunge.tensors import load as load_tensors
from expunge.trial import trial

GRID = """
seeds = [4]
metrics = ["accuracy", "loss"]
scenarios = ["single=3"]
[data.digits]
limit = 150
[networks.mlp]
recipe = {epochs = 3, lr = 0.1}
[methods.sisa]
shards = 2
slices = 2
"""


def test_a_grid_of_single_requests_measures_what_a_trial_does(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(GRID)
    grid, store = load(tmp_path / "grid.toml"), Store.open(tmp_path / "store")
    setting = Setting(store.path)
    summary = run(plan([task for cell in grid.cells() for task in cell.results()], store), store, InProcess(setting))
    assert not summary.failed, [store.failure(task) for task in summary.failed]
    last = groups(grid, store)[-1].runs[4]
    problem = zoo.load("digits", "mlp", limit=150)
    assert problem.recipe is not None
    problem = replace(problem, recipe=replace(problem.recipe, epochs=3, lr=0.1))
    made = {name: build(settings) for name, settings in grid.methods.items()}
    whole = trial(problem, Request.parse("single=3"), made, runtime=Runtime(progress=False), seed=4)
    for name in ("accuracy/forget", "accuracy/test", "loss/forget"):
        ours, theirs = last["sisa"][name], whole["sisa"][name]
        assert isinstance(ours, Value)
        assert isinstance(theirs, Value)
        assert ours.x == theirs.x
    (cell,) = (c for c in grid.cells() if (c.method or {}).get("name") == "sisa")
    model, state = stored(cell, cell.made, store, setting)
    assert isinstance(model, Ensemble)
    folders = sorted((tmp_path / "store" / "unlearned").glob("*"))
    books = [made["sisa"].book(State.load(f / STATE)) for f in folders if _sharded(f)]  # type: ignore[attr-defined]
    assert sorted(book.requests for book in books) == [1, 2, 3]
    for folder in folders:
        names = load_tensors(folder / MODEL)[0]
        assert not any(name.startswith(("base", "members")) for name in names)
    assert state.meta["expunge"]["requests"] == 0


def _sharded(folder: Path) -> bool:
    return "book" in State.load(folder / STATE).meta
