"""The examples that print tables run from end to end, made small."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from expunge import zoo
from expunge.bench import collect, grid, runner
from expunge.bench.stages import Setting
from expunge.bench.store import Store
from expunge.data import Data
from expunge.metric import Value
from expunge.recipe import Recipe

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def transfer() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("transfer", EXAMPLES / "transfer" / "transfer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["transfer"] = module  # where its dataclass looks itself up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["transfer"]


def test_the_backdoor_is_planted_and_every_method_is_measured(tmp_path: Path) -> None:
    asked = grid.load(EXAMPLES / "backdoor" / "grid.toml")
    assert {float(s["sparsity"]) for s in asked.methods.values() if "sparsity" in s} == {0.75, 0.9, 0.95, 0.99}
    ((at, cell),) = asked.places.items()
    recipe = Recipe(epochs=6, batch_size=32, lr=0.1).to_json()
    small = {at: replace(cell, data={"name": "digits", "limit": 300}, recipe=recipe)}
    methods = {}
    for name, fields in asked.methods.items():
        inner = fields["method"] | {"epochs": 1} if "epochs" in fields.get("method", {}) else fields.get("method")
        methods[name] = fields | ({"epochs": 1} if "epochs" in fields else {}) | ({"method": inner} if inner else {})
    asked = replace(asked, places=small, methods=methods, seeds=(0,))
    store = Store.open(tmp_path)
    work = runner.plan([task for cell in asked.cells() for task in cell.results()], store)
    told = runner.run(work, store, runner.InProcess(Setting(store.path, device="cpu")))
    assert [store.failure(task)["traceback"] for task in told.failed] == []
    (group,) = collect.groups(asked, store)
    values = group.runs[0].values
    found = {name: values[name]["backdoor/success"] for name in ("original", "retrained", "no_op", *methods)}
    assert all(isinstance(v, Value) for v in found.values())
    assert found["original"].x > found["retrained"].x + 0.5
    assert found["no_op 75"].x > found["retrain 75"].x + 0.5


def test_the_features_are_put_to_use_on_other_data(transfer: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--limit", "130", "--shots", "60", "--epochs", "1", "--sparsity", "0.8"]
    transfer.main(["--source", "digits", "--forget", "3", "--seeds", "2", *small])
    head, line, *rows = [r.strip("| ").split(" | ") for r in capsys.readouterr().out.splitlines()]
    assert head == list(transfer.HEADS)
    assert [row[0] for row in rows] == [
        *(
            f"{kind}, {state}"
            for kind in ("dense", "80% sparse")
            for state in ("untouched", "retrained without the class", "l1_sparse")
        ),
        "never saw the source",
    ]
    number = re.compile(r"\d+\.\d ± \d+\.\d( \([+-]\d+\.\d ± \d+\.\d\))?")
    assert all(number.fullmatch(text) for row in rows for text in row[3:5])
    assert rows[0][5] == "–"
    assert rows[1][5] == "1.00 ± 0.00"
    assert rows[1][2] == "0.0 ± 0.0"  # nobody without the class answers it


def test_a_pruned_source_stays_pruned_and_is_left_as_it_was(transfer: ModuleType) -> None:
    problem = zoo.load("digits", "convnet", limit=100)
    problem = replace(problem, recipe=replace(problem.recipe, epochs=1))
    found = transfer.sources(problem, 3, 0.8, seed=0)
    sparse = [source for source in found.values() if source.masks is not None]
    assert len(sparse) == 3
    assert all(source.masks.strays(source.model) == 0 for source in sparse)
    assert sparse[0].masks.density == pytest.approx(0.2, abs=1e-3)
    before = {name: t.clone() for name, t in sparse[2].model.state_dict().items()}
    target = transfer.like(problem.train, torch.zeros(1, 3, 12, 12), 0.0, 2.0)
    assert target.read([0]).inputs.shape == (1, 3, 12, 12)
    recipe = Recipe(epochs=1)
    for run in (transfer.probe, transfer.tuned):
        assert 0 <= run(sparse[2], problem.train, problem.test, 10, recipe, 0) <= 100
    assert all(torch.equal(before[name], t) for name, t in sparse[2].model.state_dict().items())


def test_images_are_resized_and_standardised(transfer: ModuleType) -> None:
    data = Data.from_arrays(torch.full((2, 1, 4, 4), 3.0), [0, 1])
    made = transfer.like(data, torch.zeros(1, 1, 8, 8), 1.0, 2.0)
    torch.testing.assert_close(made.read([0, 1]).inputs, torch.ones(2, 1, 8, 8))
    assert made.targets().tolist() == [0, 1]
