"""``expunge bench`` as a user runs it: filled, interrupted, extended, looked at."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from expunge.bench.collect import groups
from expunge.bench.grid import load
from expunge.bench.store import Store
from shell import Run, expunge, refused

GRID = """
title = "Two seeds of digits"
seeds = 2
metrics = ["accuracy", "loss", "cost"]
scenarios = ["class=3", "random=0.1"]
[data.digits]
limit = 200
[networks.mlp]
recipe = {epochs = 2}
[methods.finetune]
epochs = 1
[methods."ssd at 5"]
name = "ssd"
alpha = 5
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a grid and its finished store."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "grid.toml").write_text(GRID)
    code, out, err = expunge("bench", "run", "grid.toml", "--store", "store", cwd=folder)
    assert code == 0, err
    assert "Two seeds of digits: 38 done, in " in out
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def numbers(folder: Path) -> dict[str, object]:
    """Return every value of a grid but times, by place, model and name."""
    grid = load(folder / "grid.toml")
    return {
        f"{group.name} {seed} {model}": {k: v for k, v in found.items() if not k.startswith("cost/")}
        for group in groups(grid, Store.open(folder / "store"))
        for seed, scores in group.runs.items()
        for model, found in scores.values.items()
    }


def test_a_finished_grid_computes_nothing_again(folder: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (folder / "store").rglob("*.json")}
    code, out, _ = expunge("bench", "run", "grid.toml", "--store", "store", cwd=folder)
    assert code == 0
    assert "Two seeds of digits: nothing to do, in 0 s. 12 cells in all." in out
    assert {p: p.stat().st_mtime_ns for p in (folder / "store").rglob("*.json")} == before


def test_a_method_added_computes_its_own_cells_and_changes_no_other_number(folder: Path) -> None:
    before = numbers(folder)
    (folder / "grid.toml").write_text(GRID + "[methods.lfssd]\nalpha = 3\n")
    _, out, _ = expunge("bench", "run", "grid.toml", "--store", "store", "--plan", cwd=folder)
    assert "Missing: 2 prepared, 4 unlearned, 4 measured." in out
    code, out, _ = expunge("bench", "run", "grid.toml", "--store", "store", cwd=folder)
    assert code == 0
    assert "10 done" in out
    after = numbers(folder)
    assert {k: v for k, v in after.items() if not k.endswith("lfssd")} == before
    assert len(after) == len(before) + 4


def test_other_settings_of_the_edit_share_what_was_prepared(folder: Path) -> None:
    (folder / "grid.toml").write_text(GRID + '[methods."ssd at 9"]\nname = "ssd"\nalpha = 9\n')
    _, out, _ = expunge("bench", "run", "grid.toml", "--store", "store", "--plan", cwd=folder)
    assert "Missing: 4 unlearned, 4 measured." in out


def test_a_table_names_every_model_and_a_file_holds_the_same(folder: Path) -> None:
    code, out, _ = expunge("bench", "table", "grid.toml", "-s", "store", "--format", "markdown", cwd=folder)
    assert code == 0
    for model in ("original", "retrained", "finetune", "ssd at 5", "no_op", "head_mask"):
        assert model.replace("_", "") in out.replace("\\_", "").replace("_", "")
    words = ("bench", "table", "grid.toml", "-s", "store", "-o", "table.md")
    assert expunge(*words, cwd=folder)[0] == 0
    assert (folder / "table.md").read_text().strip() == out.strip()
    assert expunge(*words, cwd=folder)[0] == 2
    assert expunge("--yes", *words, cwd=folder)[0] == 0


def test_a_table_has_a_column_of_what_methods_record(folder: Path) -> None:
    words = ("bench", "table", "grid.toml", "-s", "store", "--log", "steps")
    assert expunge(*words, "-o", "table.md", cwd=folder)[0] == 0
    assert "| log: steps |" in (folder / "table.md").read_text()
    _, out, _ = expunge("--json", *words, cwd=folder)
    logs = {row["model"]: row["logs"] for row in json.loads(out)["groups"][0]["rows"]}
    assert logs["finetune"]["steps"]["n"] == 2
    assert logs["finetune"]["steps"]["x"] > 0
    assert logs["ssd at 5"] == logs["retrained"] == {}
    assert "did you mean 'steps'" in refused(folder, *words[:-1], "stepps")


def test_a_report_has_an_index_and_a_page_a_request(folder: Path, whole_reports: None) -> None:
    code, out, _ = expunge("bench", "report", "grid.toml", "-s", "store", "-o", "report", cwd=folder)
    assert code == 0
    assert "index.html" in out
    assert len(list((folder / "report").rglob("*.html"))) >= 3


def test_status_says_what_is_there_and_what_is_not(folder: Path) -> None:
    (folder / "grid.toml").write_text(GRID + "[methods.lfssd]\n")
    code, out, _ = expunge("bench", "status", "grid.toml", "-s", "store", cwd=folder)
    assert code == 0
    assert "2 missing" in out
    assert "2 done" in out
    _, out, _ = expunge("--json", "bench", "status", "grid.toml", "-s", "store", cwd=folder)
    found = json.loads(out)["cells"]
    assert len(found) == 16
    assert {c["status"] for c in found if c["method"] == "lfssd"} == {"missing"}
    code, out, _ = expunge("bench", "status", "grid.toml", "-s", "elsewhere", cwd=folder)
    assert code == 0
    assert "Not run: start it with expunge bench run grid.toml --store elsewhere" in out
    assert not (folder / "elsewhere").exists()


def test_a_cell_that_fails_keeps_its_traceback_and_is_retried_on_request(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expunge.methods.lfssd import LFSSD

    (folder / "grid.toml").write_text(GRID + "[methods.lfssd]\nalpha = 3\n")
    words = ("bench", "run", "grid.toml", "--store", "store")
    with monkeypatch.context() as patch:

        def broken(*_: object) -> None:
            raise RuntimeError("the disk of this test is full")

        patch.setattr(LFSSD, "prepare", broken)
        code, out, _ = expunge(*words, cwd=folder)
    assert code == 1
    assert "RuntimeError: the disk of this test is full" in out
    assert "Try failed ones again with expunge bench run grid.toml --store store --retry" in out
    code, out, _ = expunge("bench", "status", "grid.toml", "-s", "store", "--traceback", cwd=folder)
    assert "blocked" in out
    assert "in broken" in out
    code, out, _ = expunge(*words, cwd=folder)
    assert code == 1, "a failed cell is not tried again unasked"
    code, out, _ = expunge(*words, "--retry", cwd=folder)
    assert code == 0
    assert "10 done" in out


def test_a_method_that_declines_says_why_in_status_and_table(folder: Path) -> None:
    text = GRID.replace('scenarios = ["class=3", "random=0.1"]', 'scenarios = ["random=0.1"]')
    (folder / "grid.toml").write_text(text)
    _, out, _ = expunge("--json", "bench", "table", "grid.toml", "-s", "store", cwd=folder)
    assert "head_mask" in out
    assert "it masks one class, and the forget set is of kind 'random'" in out


def test_a_corrupt_cell_is_reported_and_computed_anew_on_request_only(folder: Path) -> None:
    before = numbers(folder)
    cell = next((folder / "store" / "measured").iterdir())
    (cell / "values.json").write_text("{}")
    words = ("bench", "run", "grid.toml", "--store", "store")
    code, out, _ = expunge(*words, cwd=folder)
    assert code == 1
    assert f"corrupt: measured/{cell.name}: compute it anew with --recompute" in out
    assert len(numbers(folder)) == len(before) - 1
    code, out, _ = expunge(*words, "--recompute", cwd=folder)
    assert code == 0
    assert numbers(folder) == before


def test_too_many_cells_are_asked_for(folder: Path) -> None:
    words = ("bench", "run", "grid.toml", "--store", "fresh", "--max-cells", "3")
    code, _, err = expunge(*words, cwd=folder)
    assert code == 2
    assert "Expected at most 3 cells to compute without asking, got 12" in err


BAD = [
    ('methods = ["sdd"]', "a known method", "did you mean 'ssd'"),
    ('methods = ["ssd"]\nseedz = 3', "'seedz'", "did you mean 'seeds'"),
    ('methods = ["ssd"]\nscenarios = ["clas=3"]', "line 2", "'class'"),
]


@pytest.mark.parametrize(("text", "got", "remedy"), BAD)
def test_a_grid_with_a_fault_is_refused_with_its_line(tmp_path: Path, text: str, got: str, remedy: str) -> None:
    rest = "" if "scenarios" in text else 'scenarios = ["class=3"]\n'
    (tmp_path / "grid.toml").write_text(f'{text}\n{rest}data = ["digits"]\n')
    said = refused(tmp_path, "bench", "run", "grid.toml")
    assert "of grid.toml" in said
    assert got in said
    assert remedy in said


def test_a_table_of_nothing_says_what_to_run(tmp_path: Path, run: Run) -> None:
    (tmp_path / "grid.toml").write_text(GRID)
    said = refused(tmp_path, "bench", "table", "grid.toml")
    assert "run expunge bench run grid.toml first" in said


def test_a_store_of_a_newer_version_is_refused(folder: Path) -> None:
    head = folder / "store" / "store.json"
    head.write_text(json.dumps(json.loads(head.read_text()) | {"schema": 99}))
    assert "update expunge" in refused(folder, "bench", "run", "grid.toml", "--store", "store")


def test_a_folder_that_is_no_store_is_refused(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("precious")
    assert "another folder, not empty" in refused(folder, "bench", "run", "grid.toml", "--store", "mine")
