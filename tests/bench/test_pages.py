"""The report over a grid as a folder, made of a real store."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benches import fill, tiny
from expunge.bench import pages
from expunge.bench.collect import Group, groups
from expunge.bench.grid import Grid, load
from expunge.bench.store import Store
from expunge.errors import UserError
from expunge.report import gridpage
from expunge.report.grids import Book
from htmls import Page, check

COMMAND = "expunge bench report tiny.toml"
MEASURED = '["accuracy", "loss", "cost"]'
REQUESTS = '["class=3", "sequential=5,times=2"]'


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    changes = {"seeds": "2", "metrics": MEASURED, "scenarios": REQUESTS}
    return tiny(tmp_path_factory.mktemp("grid"), **changes)


@pytest.fixture(scope="module")
def filled(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished store."""
    path = tmp_path_factory.mktemp("filled") / "store"
    assert not fill(grid, path).failed
    return path


@pytest.fixture(scope="module")
def found(grid: Grid, filled: Path) -> list[Group]:
    return groups(grid, Store.open(filled), details=True)


@pytest.fixture(scope="module")
def written(grid: Grid, found: list[Group], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the report."""
    folder = tmp_path_factory.mktemp("written") / "report"
    assert pages.write(folder, grid, found, command=COMMAND) == folder / "index.html"
    return folder


def read(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text(encoding="utf-8") for p in sorted(folder.rglob("*.html"))}


def book(grid: Grid, store: Path) -> Book:
    return pages.book(grid, groups(grid, Store.open(store)), COMMAND)


def test_warnings_of_the_tables_stand_in_the_index_too(grid: Grid, found: list[Group]) -> None:
    on = {"data": next(iter(grid.places.values())).data, "network": "mlp", "request": {"kind": "class", "value": 3}}
    tuned = {"ssd": {"on": [on], "trials": 50, "seeds": [0], "objective": "x"}}
    text = Page(gridpage.pages(pages.book(replace(grid, tuned=tuned), found, COMMAND))["index.html"]).text
    assert text.count("Warning: ssd was tuned on digits, the data reported here.") == 1  # for both places at once
    assert "Warning: the methods were not tuned with the same budget" in text
    assert "Warning: ssd" not in Page(gridpage.pages(pages.book(grid, found, COMMAND))["index.html"]).text


def test_the_folder_has_an_index_and_two_pages_a_step_that_hang_together(written: Path) -> None:
    steps = ["01-digits-mlp-class-3", *(f"0{n}-digits-mlp-sequential-5-2-after-request-{n - 1}-of-2" for n in (2, 3))]
    names = ["index", *steps, *(f"cells/{name}" for name in steps)]
    found = check(read(written))
    assert sorted(found) == sorted(f"{name}.html" for name in names)
    for part in ("12 cells: 12 done.", "Last measured", COMMAND, "While requests follow each other", "class 3"):
        assert part in found["index.html"].text, part


def test_a_place_is_called_by_what_others_do_not_share(written: Path) -> None:
    heads = [attrs["href"] for tag, attrs in Page(read(written)["index.html"]).found if attrs.get("href") == "#p2"]
    assert heads
    assert "model class 3 sequential 5 × 2 after request 2 of 2" in Page(read(written)["index.html"]).text


def test_a_cell_tells_its_settings_its_folder_its_times_and_what_was_recorded(
    written: Path, found: list[Group]
) -> None:
    page = Page((written / "cells/01-digits-mlp-class-3.html").read_text(encoding="utf-8"))
    task = found[0].tasks[1, "ssd"]
    assert task.name in page.text
    for part in ("alpha auto", "importance exact", "selected", "unlearn, s", "measure, s"):
        assert part in page.text, part
    x = found[0].runs[1].values["ssd"]["accuracy/test"].x
    assert f"{100 * x:.1f}%" in page.text


def test_the_same_store_gives_the_same_bytes(grid: Grid, filled: Path, tmp_path: Path) -> None:
    found = []
    for name in ("one", "other"):
        part = groups(grid, Store.open(filled), details=True)[:1]
        pages.write(tmp_path / name, grid, part, command=COMMAND)
        found.append({str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*.*")})
    assert found[0] == found[1]
    assert len(found[0]) == 4


def test_a_report_is_replaced_only_on_request_and_nothing_else_ever(
    grid: Grid, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "pages", lambda _: {"index.html": "new"})
    copy = shutil.copytree(written, tmp_path / "copy")
    with pytest.raises(UserError, match="an existing file or folder"):
        pages.write(copy, grid, [], command=COMMAND)
    assert read(copy) == read(written)
    pages.write(copy, grid, [], command=COMMAND, overwrite=True)
    assert read(copy) == {"index.html": "new"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="a folder that expunge wrote"):
        pages.write(tmp_path / "other", grid, [], command=COMMAND, overwrite=True)
    assert (tmp_path / "other" / "thesis.tex").read_text() == "years of work"


def test_a_report_that_fails_leaves_nothing(grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "pages", lambda _: {"index.html": "new", "cells/x.html": 3})
    with pytest.raises(TypeError):
        pages.write(tmp_path / "report", grid, [], command=COMMAND)
    assert list(tmp_path.iterdir()) == []


def test_cells_that_failed_or_wait_are_told_by_status_and_reason(
    grid: Grid, filled: Path, found: list[Group], tmp_path: Path
) -> None:
    store = Store.open(Path(shutil.copytree(filled, tmp_path / "store")))
    task = found[0].tasks[1, "ssd"]
    store.forget(task)
    store.fail(task, "out of memory", "a trace with /home/somebody", usage=False)
    store.forget(found[0].tasks[0, "finetune"])
    whole = book(grid, store.path)
    cells = whole.leaves[0].cells
    assert (cells[1, "ssd"].status, cells[1, "ssd"].reason) == ("failed", "out of memory")
    assert cells[0, "finetune"].status == "missing"
    assert whole.leaves[0].seeds("ssd") == (1, 2)
    assert whole.statuses() == {"done": 10, "failed": 1, "missing": 1}
    assert set(whole.leaves[0].runs) == {0, 1}
    assert "ssd" not in whole.leaves[0].runs[1]["values"]


def test_a_control_that_declined_gives_its_reason(grid: Grid, filled: Path) -> None:
    last = book(grid, filled).leaves[-1]
    model = next(m for m in last.section["models"] if m["name"] == "head_mask")  # type: ignore[index]
    assert "masks one class" in model["declined"]


def test_a_store_without_anything_is_a_report_too(grid: Grid, tmp_path: Path) -> None:
    whole = book(grid, tmp_path / "store")
    assert whole.created == ""
    assert {leaf.section for leaf in whole.leaves} == {None}
    index = pages.write(tmp_path / "report", grid, groups(grid, Store.open(tmp_path / "store")), command=COMMAND)
    assert "12 cells: 12 not run yet." in check(read(index.parent))["index.html"].text


def test_published_numbers_go_to_their_place_after_the_last_request(filled: Path, tmp_path: Path) -> None:
    text = (
        '\n[[published]]\nsource = "A paper"\ndata = "digits"\nnetwork = "mlp"\nscenario = "sequential 5 × 2"\n'
        'differences = ["Other data."]\n[published.values.ssd]\n"accuracy/test" = [0.9, 0.01]\n'
    )
    tiny(tmp_path, seeds="2", metrics=MEASURED, scenarios=REQUESTS)
    file = tmp_path / "tiny.toml"
    file.write_text(file.read_text(encoding="utf-8") + text, encoding="utf-8")
    papers = [leaf.published for leaf in book(load(file), filled).leaves]
    assert [len(p) for p in papers] == [0, 0, 1]
    assert papers[2][0].values["ssd"]["accuracy/test"] == [0.9, 0.01]
