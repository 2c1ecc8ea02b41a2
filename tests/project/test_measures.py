"""Metrics with settings: from the project file, through the audit and the policy's bounds, and no fault let through."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from banks import done, place
from expunge import metrics
from expunge.errors import UserError
from expunge.metrics.decisions import Decisions
from expunge.metrics.relearn import Relearn
from expunge.project import Project
from expunge.project.measures import changed, measure, measures
from expunge.service.measure import families
from shell import _reports, refused

__all__ = ["_reports"]


def test_fields_are_those_of_the_class() -> None:
    assert measure("decisions", {"threshold": 0.1, "bins": 5}) == Decisions(threshold=0.1, bins=5)
    assert measure("decisions", {"threshold": 0}) == Decisions(threshold=0.0)
    assert measure("relearn", {"curve": [0, 3], "lr": 1}) == Relearn(curve=(0, 3), lr=1.0)
    assert measures(["loss", "decisions"], {"decisions": {"bins": 4}, "segments": {}})[1] == Decisions(bins=4)
    assert [type(m) for m in measures(metrics.names(), {})] == [metrics.load(name) for name in metrics.names()]


def test_a_default_that_is_written_down_changes_nothing() -> None:
    assert changed({"decisions": {"threshold": 0.5}, "relearn": {"curve": [0, 1, 2, 5, 10, 20]}}) == {}
    assert changed({"decisions": {"threshold": 0.5, "bins": 4}}) == {"decisions": {"bins": 4}}


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("decision", {}, "a known metric, got 'decision': did you mean 'decisions'"),
        ("decisions", {"treshold": 0.1}, "a setting of the metric decisions, got 'treshold': did you mean 'threshold'"),
        ("loss", {"bins": 3}, "a setting of the metric loss, got 'bins': it has none"),
        ("membership", {"names": ["loss"]}, "a setting of the metric membership, got 'names': it has none"),
        ("decisions", {"threshold": "0.1"}, r"a value that fits decisions.threshold, got '0.1' \(.*valid number"),
        ("decisions", {"threshold": True}, "a value that fits decisions.threshold, got True"),
        ("decisions", {"bins": 2.5}, "a value that fits decisions.bins, got 2.5"),
        ("decisions", {"threshold": 1.0}, r"decisions.threshold in \[0, 1\), got 1.0: give a probability"),
        ("relearn", {"curve": 3}, "a value that fits relearn.curve, got 3"),
    ],
)
def test_what_is_refused(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        measure(name, settings)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = place(tmp_path_factory.mktemp("bank") / "b", {"task.kind": "binary", "data.target": "default"}, "one")
    done(where, "prepare")
    done(where, "forget", "--subject", "o1", "-o", "gone")
    return where


def settings(where: Path, lines: str) -> None:
    file = where / "expunge.toml"
    file.write_text(file.read_text().partition("[metrics")[0] + lines)


def test_a_threshold_of_the_project_is_that_of_the_audit_and_of_bounds(bank: Path) -> None:
    rates = []
    for threshold in (0.05, 0.95):
        settings(bank, f"[metrics.decisions]\nthreshold = {threshold}\n")
        done(bank, "--yes", "audit", "--unlearned", "gone", "--metric", "decisions", "-o", "audit")
        numbers = json.loads((bank / "audit" / "audit.json").read_text())["sections"][0]["values"]["ssd"]
        rates.append(numbers["decisions/rate/test"]["x"])
        own = Project.open(bank / "expunge.toml")
        assert Decisions(threshold=threshold) in own.metrics()
        assert Decisions(threshold=threshold) in families(own)
        assert Project.from_json(own.to_json()).metrics(["decisions"]) == [Decisions(threshold=threshold)]
    assert rates[0] > rates[1]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("[metrics.decisions]\nthreshold = 2\n", "decisions.threshold in [0, 1) @1, got 2"),
        ("[metrics.decision]\nthreshold = 0.2\n", "a known metric @1, got 'decision'"),
        (
            "[metrics]\ndecisions = 0.2\n",
            "metrics.decisions @2 to be right, got 0.2 (should",
        ),
        ("[metrics.loss]\nthreshold = 0.2\n", "a setting of the metric loss @1"),
    ],
)
def test_a_fault_is_told_with_its_line_before_anything_is_done(lines: str, said: str, bank: Path) -> None:
    settings(bank, "")
    before = (bank / "expunge.toml").read_text().count("\n")
    settings(bank, lines)
    said = re.sub(r"@(\d)", lambda found: f"in line {before + int(found[1])} of expunge.toml", said)
    assert said in refused(bank, "prepare", "-o", "other")
    settings(bank, "")


def test_the_template_shows_it(tmp_path: Path) -> None:
    done(tmp_path, "init", "--task", "binary", "-o", "expunge.toml")
    text = (tmp_path / "expunge.toml").read_text()
    assert "# [metrics.decisions]\n# threshold = 0.5" in text
    (tmp_path / "expunge.toml").write_text(
        text.replace("# [metrics.d", "[metrics.d").replace("# threshold", "threshold")
    )
    assert Project.open(tmp_path / "expunge.toml").metrics(["decisions"]) == [Decisions()]
