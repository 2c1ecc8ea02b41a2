"""Gradient restriction in a grid: a network with it beside the same without, originals and retrained models alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from expunge.bench import stages
from expunge.bench.collect import groups
from expunge.bench.grid import load
from expunge.bench.runner import InProcess, plan, run
from expunge.bench.stages import Setting
from expunge.bench.store import Store
from expunge.errors import UserError
from expunge.metric import Value
from expunge.penalties import GradientNorm
from expunge.recipe import Recipe, fields_of

GRID = """seeds = [4]
metrics = ["accuracy", "loss"]
scenarios = ["random=15"]
[data.digits]
limit = 150
[networks.plain]
name = "mlp"
recipe = {epochs = 2, lr = 0.1}
[networks.restricted]
name = "mlp"
recipe = {epochs = 2, lr = 0.1, gradient_norm = 0.5}
[methods.iau]
lr = 0.003
[methods."iau, sums"]
name = "iau"
update = "sgd"
reduction = "sum"
lr = 1e-4
"""


@pytest.fixture(autouse=True)
def _nothing_read_before() -> Iterator[None]:
    yield
    for kept in (stages._PROBLEMS, stages._PRINTS, stages._MODELS, stages._DRAWN, stages._REFERENCES):
        kept.found.clear()


def test_original_and_retrained_models_are_trained_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, call = list[int](), GradientNorm.__call__

    def counted(self: GradientNorm, *given: Any) -> Tensor:
        assert self == GradientNorm(0.5)
        sizes.append(len(given[1]))
        return call(self, *given)

    monkeypatch.setattr(GradientNorm, "__call__", counted)
    (tmp_path / "grid.toml").write_text(GRID)
    grid, store = load(tmp_path / "grid.toml"), Store.open(tmp_path / "store")
    recipes = [Recipe(**fields_of(cell.recipe)) for cell in grid.places.values()]
    assert [r.penalties for r in recipes] == [(), (GradientNorm(0.5),)]
    work = plan([task for cell in grid.cells() for task in cell.results()], store)
    summary = run(work, store, InProcess(Setting(store.path)))
    assert not summary.failed, [store.failure(task) for task in summary.failed]
    assert sum(sizes) == 2 * (150 + 2 * 135)  # two epochs of the original, and of two retrained models without 15
    found = {g.place.network: g.runs[4] for g in groups(grid, store)}
    for model in ("original", "retrained", "iau", "iau, sums"):
        plain, other = (found[name][model]["loss/test"] for name in ("plain", "restricted"))
        assert isinstance(plain, Value)
        assert isinstance(other, Value)
        assert plain.x != other.x


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("-1", "Recipe.gradient_norm of 0 or more in line 11 of grid.toml, got -1: give a finite number"),
        ("'x'", "Recipe.gradient_norm of 0 or more in line 11 of grid.toml, got 'x'"),
        ("{form = 'sum'}", "Recipe.gradient_norm.form global or per_tensor in line 11 of grid.toml, got 'sum'"),
        ("{alpha = 0}", "Recipe.gradient_norm.alpha above 0 in line 11 of grid.toml, got 0"),
    ],
)
def test_what_it_cannot_be_is_refused_with_its_line(tmp_path: Path, value: str, text: str) -> None:
    (tmp_path / "grid.toml").write_text(GRID.replace("gradient_norm = 0.5", f"gradient_norm = {value}"))
    with pytest.raises(UserError, match=text):
        load(tmp_path / "grid.toml")
