"""A class forgotten by its concepts from the command line: pictures only where they are asked for, and the manifest."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from htmls import Page
from shell import Run, expunge

LITTLE = ("images=12", "windows=6", "clusters=3", "redraws=2", "examples=6", "least=0.5", "level=1", "epochs=2")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("concepts") / "start"
    fields = [w for field in LITTLE for w in ("--set", field)]
    code, _, err = expunge(
        "prepare", "--data", "digits", "-m", "concept_poisoning", *fields, "-o", path, cwd=path.parent
    )
    assert code == 0, err
    return path


def test_pictures_are_kept_where_they_are_asked_for_and_shown_where_samples_are(
    run: Run, start: Path, tmp_path: Path, whole_reports: None
) -> None:
    words = ("forget", "--start", start, "--class", "3", "--set", "donor=5")
    assert run(*words, "-o", tmp_path / "bare")[0] == 0
    log = json.loads((tmp_path / "bare" / "record.json").read_text())["log"]
    assert "poisoned" not in log
    assert not any(page["windows"] for page in log["concept_pages"])
    html = (tmp_path / "bare" / "report.html").read_text()
    assert "<img" not in html
    assert "Concepts that concept_poisoning worked with" in html
    assert "stands without a row that changes labels alone" in Page(html).text

    assert run(*words, "--set", "shown=2", "-o", tmp_path / "shown")[0] == 0
    html = (tmp_path / "shown" / "report.html").read_text()
    assert html.count("<img") > 6
    assert '<a href="manifest.csv">' in html
    rows = list(csv.DictReader((tmp_path / "shown" / "manifest.csv").read_text().splitlines()))
    assert len(rows) == 103
    assert {row["label"] for row in rows} == {"5"}

    audit = ("audit", "--unlearned", tmp_path / "shown", "--original", start, "--metric", "accuracy")
    assert run(*audit, "-o", tmp_path / "closed")[0] == 0
    assert "<img" not in (tmp_path / "closed" / "report.html").read_text()
    assert run(*audit, "--show-samples", "-o", tmp_path / "open")[0] == 0
    text = Page((tmp_path / "open" / "report.html").read_text()).text
    assert "Poisoned samples beside the originals" in text
    assert "The whole manifest" not in text  # it lies beside the report of forget
