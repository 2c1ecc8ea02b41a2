"""Requests to an exact method: by the ledger's routes, and by the command line, one after another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from expunge.folders import Folder
from expunge.tensors import weights_digest
from expunge.unlearn import prepare
from projects import parquet, rows, shop
from services import Shop
from shell import Run, expunge, run, sentence

__all__ = ["run"]
SISA: dict[str, Any] = {
    **{"method.name": "sisa", "method.alpha": None, "method.slices": 2, "method.stage_epochs": 2},
    **{"recipe.epochs": 2, "method.retrain": False},
}


@pytest.fixture(scope="module")
def _exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shop(tmp_path_factory.mktemp("exact") / "shop", SISA)
    code, out, err = expunge("prepare", cwd=folder)
    assert code == 0, err
    assert "Exact: no served weight was trained on a deleted sample" in out
    return folder


@pytest.fixture
def prepared(_exact: Path, tmp_path: Path) -> Path:
    return shutil.copytree(_exact, tmp_path / "shop", ignore=shutil.ignore_patterns("__pycache__"))


def where(folder: Folder) -> dict[tuple[int, int], list[str]]:
    """Return the ids of each slice of each shard."""
    book = folder.method.book(folder.state)  # type: ignore[attr-defined]
    found: dict[tuple[int, int], list[str]] = {}
    for one in folder.project.train.ids:
        if not book.gone[book.rows([one])][0]:
            found.setdefault(tuple(int(n[0]) for n in book.place([one])), []).append(one)  # type: ignore[arg-type]
    return found


def test_the_ledger_edits_and_retrains_with_an_exact_method(prepared: Path) -> None:
    own = Shop(prepared)
    places = where(own.start())
    one, two = places[0, 1][:2]
    own.ask("r1", one)
    (outcome,) = own.process()
    assert (outcome.step, outcome.how) == ("deployed", "edit"), outcome.text
    served = own.served()
    assert served.method.book(served.state).plan() == (((0, 1), 1), ((0, 1), 2))  # type: ignore[attr-defined]
    assert weights_digest(served.model()) == served.record["weights"]
    own.ask("r2", two)
    (outcome,) = own.process()
    assert (outcome.step, outcome.how) == ("deployed", "edit"), outcome.text
    again = own.served()
    assert again.record["weights"] == served.record["weights"]
    assert again.state.meta["expunge"]["forgotten"] == 2
    own.ask("r3", places[1, 0][0], route="retrain")
    outcome, *_ = own.process(how="retrain")
    assert (outcome.step, outcome.how) == ("deployed", "retrain"), outcome.text
    last, place = own.served(), own.project
    train = place.train.without([one, two, places[1, 0][0]])
    given: dict[str, Any] = {"recipe": place.recipe, "new_model": place.new_model, "train": train}
    assert last.record["weights"] == weights_digest(prepare(last.method, last.model(), place.task, **given).model)
    assert own.remembered() == sorted([one, two, places[1, 0][0]])
    own.sound()


def test_the_command_line_forgets_again_and_refuses_what_is_gone(prepared: Path, run: Run, tmp_path: Path) -> None:
    start = Folder.open(prepared / "expunge-work")
    places = where(start)
    one, two = places[1, 1][:2]

    def ids(text: str) -> Path:
        path = tmp_path / f"{text}.txt"
        path.write_text(f"{text}\n")
        return path

    first, second = tmp_path / "first", tmp_path / "second"
    code, out, err = run("forget", "--start", prepared / "expunge-work", "--ids", ids(one), "-o", first)
    assert code == 0, err
    assert "Stages that are served, of 2, by shard: 2, 1." in out
    code, out, err = run("forget", "--start", first, "--ids", ids(two), "-o", second)
    assert code == 0, err
    assert "No live stage had read these samples: what is served stays as it was." in out
    record = json.loads((second / "record.json").read_text())
    assert record["forgotten"] == sorted([one, two])
    assert record["before"] == record["weights"]
    for gone, said in ((one, "already forgotten"), ("zebedee", "unknown zebedee")):
        code, _, err = run("forget", "--start", second, "--ids", ids(gone), "-o", tmp_path / "third")
        assert code == 2
        assert said in sentence(err)
    again = Folder.open(second)
    assert weights_digest(again.model()) == record["weights"]
    stored = again.project.network.load(second)
    assert weights_digest(stored) == again.method.book(again.state).config["base"]  # type: ignore[attr-defined]
    code, out, err = run("audit", "--unlearned", first, "--original", prepared / "expunge-work", "-o", tmp_path / "a")
    assert code == 0, err
    assert "sisa" in out


def test_early_stopping_is_refused_before_anything_is_written(run: Run, tmp_path: Path) -> None:
    folder = shop(tmp_path / "shop", {**SISA, "recipe.patience": 2, "data.holdout": "holdout.parquet"})
    parquet(folder / "holdout.parquet", rows(20, seed=2, first=2000))
    code, _, err = expunge("prepare", cwd=folder)
    assert code == 2
    assert "a recipe without early stopping for sisa, got patience=2: leave it out" in sentence(err)
    assert not (folder / "expunge-work").exists()
