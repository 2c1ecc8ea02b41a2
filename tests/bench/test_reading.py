"""Finished cells read back into tables: what they cost, keys that cells share, numbers that nothing else moves."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from expunge.bench import rows, stages, table
from expunge.bench.collect import groups, uncollected
from expunge.bench.grid import Grid, load
from expunge.bench.runner import InProcess, plan, run
from expunge.bench.stages import Setting
from expunge.bench.store import Store
from expunge.evidence import Outputs
from expunge.metric import Unavailable
from expunge.task import Binary

GRID = """
seeds = 2
metrics = ["accuracy", "cost"]
scenarios = ["class=3", "sequential:class=3+5"]
[data.digits]
limit = 150
[networks.mlp]
recipe = {epochs = 1}
[methods.ssd]
[methods."ssd 3"]
name = "ssd"
alpha = 3
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Grid, Store]]:
    """A small grid and its store, computed once."""
    folder = tmp_path_factory.mktemp("grid")
    (folder / "grid.toml").write_text(GRID)
    grid, store = load(folder / "grid.toml"), Store.open(folder / "store")
    summary = run(plan([t for c in grid.cells() for t in c.results()], store), store, InProcess(Setting(store.path)))
    assert not summary.failed, [store.failure(task) for task in summary.failed]
    yield grid, store
    for kept in (stages._PROBLEMS, stages._PRINTS, stages._MODELS, stages._DRAWN, stages._REFERENCES):
        kept.found.clear()


def test_evidence_keeps_class_logits_beside_the_outputs(tmp_path: Path) -> None:
    z, y = torch.randn(4, 1, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    two = Binary().class_logits(z)
    said = Outputs(z, Binary().predictions(z), y, Binary().loss(z, y), {"head": torch.ones(4, 2)}, two)
    (tmp_path / "there").mkdir()
    rows.save_evidence(tmp_path / "there", {"original": {"test": said, "forget": Outputs(two, y)}})
    found = rows.load_evidence(tmp_path / "there")["original"]
    assert torch.equal(found["test"].logits, two)
    assert torch.equal(found["test"].signals.margin, said.signals.margin)
    assert found["forget"].classes is None
    assert torch.equal(found["forget"].logits, two)


def test_what_cells_cost_is_kept_beside_the_fastest_retraining(finished: tuple[Grid, Store]) -> None:
    grid, store = finished
    one, first, second = groups(grid, store)
    for group in (one, first, second):
        for seed in grid.seeds:
            times = [
                store.read(task, stages.RESULT)["seconds"]
                for task in group.tasks[seed, ""].needs
                if task.stage == "retrained"
            ]
            assert len(times) == 2
            assert group.costs[seed, ""]["retrain"] == min(times)
            cost = group.costs[seed, "ssd"]
            assert cost["prepare"] > 0
            assert cost["total"] >= cost["unlearn"] > 0
    for seed in grid.seeds:
        before, after = first.costs[seed, "ssd"], second.costs[seed, "ssd"]
        assert before["edits"] == before["unlearn"]
        assert after["edits"] == pytest.approx(before["unlearn"] + after["unlearn"])
        assert after["prepare"] == before["prepare"]


def test_what_edits_recorded_is_read_where_it_is_asked_for(finished: tuple[Grid, Store]) -> None:
    grid, store = finished
    assert not any(group.logs for group in groups(grid, store))
    for group in groups(grid, store, logs=True):
        assert set(group.logs) == {(seed, method) for seed in grid.seeds for method in grid.methods}
        for key, log in group.logs.items():
            edit = next(need for need in group.tasks[key].needs if need.stage == "unlearned")
            assert log == store.read(edit, stages.RESULT)["log"]
            assert log
        assert group.when == 0.0


@pytest.mark.parametrize("form", ["rich", "markdown", "latex", "csv", "json", "html"])
def test_every_form_of_a_computed_grid(finished: tuple[Grid, Store], form: str) -> None:
    grid, store = finished
    shown = table.render(grid, groups(grid, store), form)
    text = "\n".join(map(str, shown)) if form == "rich" else shown
    assert "digits, mlp, sequential" in text or '"scenario": "sequential' in text
    if form != "rich":
        assert shown == table.render(grid, groups(grid, store), form)
        assert all(name in text for name in ("retrained (other seed)", "ssd 3"))


def test_the_table_of_a_grid_does_not_depend_on_what_it_shares_the_store_with(
    finished: tuple[Grid, Store], tmp_path: Path
) -> None:
    grid, store = finished
    (tmp_path / "grid.toml").write_text(GRID.replace('[methods."ssd 3"]\nname = "ssd"\nalpha = 3\n', ""))
    less = load(tmp_path / "grid.toml")
    both = [json.loads(table.render(g, groups(g, store), "json"))["groups"] for g in (grid, less)]
    for more, fewer in zip(*both, strict=True):
        assert [row for row in more["rows"] if row["model"] != "ssd 3"] == fewer["rows"]
        assert (more["floor"], more["numbers"]) == (fewer["floor"], fewer["numbers"])
        assert {m: cost for m, cost in more["costs"].items() if m != "ssd 3"} == fewer["costs"]


def test_cells_that_share_tasks_have_the_keys_of_those_that_do_not(finished: tuple[Grid, Store]) -> None:
    grid, _ = finished
    alone = [
        task.key
        for at in grid.places
        for seed in grid.seeds
        for cell in (grid.shared(at, seed), *(grid.cell(at, method, seed) for method in grid.methods))
        for task in cell.results()
    ]
    assert [task.key for cell in grid.cells() for task in cell.results()] == alone
    shared, first, *_ = grid.cells()
    assert first.results()[0].needs[1] is shared.results()[0]


def test_reasons_that_many_rows_give_are_one_object() -> None:
    one, other = (rows._value("there is no trigger") for _ in range(2))
    assert one is other
    assert one == Unavailable("there is no trigger")


@pytest.mark.parametrize("before", [True, False])
def test_the_search_for_cycles_goes_on_as_it_was(before: bool) -> None:
    was = gc.isenabled()
    (gc.enable if before else gc.disable)()
    try:
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() is before
    finally:
        (gc.enable if was else gc.disable)()
