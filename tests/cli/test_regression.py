"""A request on real targets from the command line: both reports draw predictions, and speak of no classes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from expunge.report import render
from htmls import Page
from shell import expunge


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one that prepare wrote, and what forget and audit left of it."""
    path = tmp_path_factory.mktemp("real")
    audit = ("audit", "--original", "work", "--unlearned", "gone", "-o", "audit")
    for words in (
        ("prepare", "--data", "diabetes", "-m", "finetune", "-o", "work"),
        ("forget", "--start", "work", "--random", "30", "-o", "gone"),
        (*audit, "--metric", "error", "--metric", "wasserstein", "--metric", "accuracy"),
    ):
        code, _, err = expunge(*words, cwd=path)
        assert code == 0, err
    return path


@pytest.mark.usefixtures("whole_reports")
@pytest.mark.parametrize("name", ["gone", "audit"])
def test_a_report_of_real_targets_draws_predictions_and_speaks_of_no_class(place: Path, name: str) -> None:
    page = Page((place / name / "report.html").read_text())
    assert page.open == []
    text = page.text.partition("In short")[2].partition("Made with")[0]
    for said in ("Predictions over targets", "Errors of forgotten, retained and unseen samples", "They are data"):
        assert said in text
    assert re.findall(r"[^.:]{0,40}\b(?:class|classes|head_mask)\b[^.:]{0,40}", text) == []
    assert re.findall(r"(?<!balanced )accuracy", text) == []
    assert ("ideal 0: original" in text) == (name == "audit")


def test_the_report_is_drawn_anew_from_the_document(place: Path) -> None:
    page = json.loads((place / "audit" / "audit.json").read_text())
    (part,) = page["sections"]
    assert set(part["predictions"]["scatter"]) == {"forget", "test"}
    assert part["predictions"]["bytes"] < 20_000
    assert "Predictions over targets" in render(page)
    gone = json.loads((place / "gone" / "record.json").read_text())["forgotten"]
    text = (place / "audit" / "audit.json").read_text()
    assert [i for i in gone if f'"{i}"' in text] == []
