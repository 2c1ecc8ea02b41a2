"""``expunge bench figure`` as a user types it, the commands of its page, and the trace in the report of ``forget``."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.main import get_group

from expunge.cli._app import app
from htmls import Page
from shell import Run, expunge, refused

DOCS = Path(__file__).parent.parent.parent / "docs" / "benchmark.md"
GRID = """
title = "Ascents"
seeds = 2
metrics = ["accuracy"]
scenarios = ["class=3"]
[data.digits]
limit = 100
[networks.mlp]
recipe = {epochs = 1, batch_size = 50}
[methods."ascent 0.001"]
name = "gradient_ascent"
lr = 0.001
[methods."ascent 0.01"]
name = "gradient_ascent"
lr = 0.01
[methods.ssd]
"""
FIGURE = ("bench", "figure", "grid.toml", "--store", "store")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a grid and its finished store."""
    folder = tmp_path_factory.mktemp("figure")
    (folder / "grid.toml").write_text(GRID)
    code, _, err = expunge("bench", "run", "grid.toml", "--store", "store", cwd=folder)
    assert code == 0, err
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_a_trace_is_one_command_that_reads_the_store_alone(folder: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (folder / "store").rglob("*")}
    code, out, err = expunge(*FIGURE, "--show", "forget_loss", "-o", "loss.svg", cwd=folder)
    assert code == 0, err
    assert out.splitlines() == ["Figure: loss.svg", "Nothing recorded of forget_loss: ssd."]
    text = (folder / "loss.svg").read_text(encoding="utf-8")
    assert all(part in text for part in ("η = 0.001", "η = 0.01", "forget loss", "Lines are means over 2 seeds"))
    assert {p: p.stat().st_mtime_ns for p in (folder / "store").rglob("*")} == before


def test_a_frontier_is_one_command(folder: Path) -> None:
    code, out, err = expunge("--json", *FIGURE, "--of", "frontier", "--along", "lr", "-o", "f.png", cwd=folder)
    assert code == 0, err
    assert json.loads(out) == {"file": "f.png", "said": []}
    assert (folder / "f.png").read_bytes().startswith(b"\x89PNG")


def test_a_panel_of_several_names_and_one_below_it(folder: Path) -> None:
    words = ("--show", "loss, forget_loss", "--show", "loss", "-m", "ascent*", "--over", "epochs", "--each")
    code, _, err = expunge(*FIGURE, *words, "-o", "two.svg", cwd=folder)
    assert code == 0, err
    text = (folder / "two.svg").read_text(encoding="utf-8")
    assert all(part in text for part in ("lowered loss", "forget loss", "epochs", "A line for each of 2 seeds."))


def test_a_file_that_is_there_is_replaced_only_where_somebody_says_so(folder: Path) -> None:
    (folder / "a.svg").write_text("mine")
    assert "an existing file" in refused(folder, *FIGURE, "-o", "a.svg")
    code, _, err = expunge("--yes", *FIGURE, "-o", "a.svg", cwd=folder)
    assert code == 0, err
    assert (folder / "a.svg").read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--show", "kl", "-o", "a.svg"), "Expected a name that methods recorded step by step, got 'kl': choose from"),
        (("-o", "a.jpg"), "Expected a file that ends in .svg, .png or .pdf, got '.jpg': choose one of them."),
        (("--of", "frontier", "--along", "lam", "-o", "a.svg"), "got 'lam': choose from"),
        (("-m", "scrub", "-o", "a.svg"), "Expected a method of the grid, or a pattern of some, got 'scrub'"),
        (("--at", "class 4", "-o", "a.svg"), "take a part of 'digits, mlp, class 3'"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(folder: Path, words: tuple[str, ...], said: str) -> None:
    assert said in refused(folder, *FIGURE, *words)


def test_without_finished_cells_the_command_that_computes_is_named(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(GRID)
    assert "run expunge bench run grid.toml first" in refused(tmp_path, *FIGURE, "-o", "a.svg")


def commands() -> list[list[str]]:
    """Return the words of each figure command in the page, after ``expunge bench figure``."""
    section = DOCS.read_text(encoding="utf-8").partition("## Figures")[2].partition("\n## ")[0].replace("\\\n", "")
    lines = re.findall(r"^expunge bench figure (.*)$", section, flags=re.MULTILINE)
    return [shlex.split(line) for line in lines]


def test_the_page_has_a_command_for_each_figure_of_the_papers_and_all_are_understood(run: Run) -> None:
    found = commands()
    assert len(found) == 3
    bench = get_group(app).commands["bench"]
    figure = bench.commands["figure"]  # type: ignore[attr-defined]
    kinds = [figure.make_context("figure", list(words)).params for words in found]
    assert [(k["of"], k["show"]) for k in kinds][:2] == [("trace", ["penalty"]), ("frontier", ())]
    assert kinds[2]["show"] == ["forget_loss,retain_loss,tau", "alpha", "hinge_active"]
    code, out, _ = run("bench", "figure", "--help")
    assert code == 0
    assert all(word in " ".join(out.split()) for word in ("trace", "frontier", "--show kl", "λ", "--along lam"))
    assert len(figure.params) - 1 <= 12  # the grid apart


@pytest.mark.usefixtures("whole_reports")
def test_the_report_of_forget_shows_how_the_edit_went(work: Path, run: Run, tmp_path: Path) -> None:
    words = ("-m", "gradient_ascent", "--set", "lr=0.001", "--random", 20, "-o", tmp_path / "edited")
    code, out, err = run("forget", "--start", work, *words)
    assert code == 0, err
    page = Page((tmp_path / "edited" / "report.html").read_text(encoding="utf-8"))
    assert "How the edit went What the method recorded while it took its steps." in page.text
    labels = [attrs.get("aria-label", "") for _, attrs in page.found]
    losses = json.loads((tmp_path / "edited" / "record.json").read_text())["log"]["forget_loss"]
    assert len(losses) > 1
    assert any(f"forget loss {losses[-1][1]:.3f} nats" in label for label in labels)
