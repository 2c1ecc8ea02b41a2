"""Deletion requests on models of numbers and of one logit, through the shell: received, fulfilled, checked, undone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from banks import done, place
from expunge.metric import Metric
from expunge.project import Project
from expunge.service import measure
from expunge.train import fresh
from expunge.zoo import embedding_row
from shell import _reports, expunge, refused

__all__ = ["_reports"]
CARDS = """\
[model]
network = "tabular"

[data]
name = "cards"
limit = 400

[recipe]
epochs = 2
lr = 0.003
optimizer = "adamw"
weight_decay = 0.0

[method]
name = "fresh_rows"
method = {name = "finetune", epochs = 1}

[policy]
accuracy_drop = 0.5
bounds = ["decisions/flipped/original <= 0.9"]

[metrics.decisions]
threshold = 0.1
"""
PROJECTS: dict[str, tuple[dict[str, Any], str]] = {
    "regression": ({"task.kind": "regression", "data.target": "value"}, "one"),
    "binary": ({"task.kind": "binary", "data.target": "default"}, "one"),
    "multilabel": ({"task.kind": "multilabel", "data.target": ["late", "rich", "old"]}, "three"),
    "quantile": ({"task.kind": "quantile", "data.target": "value"}, "three"),
}


@pytest.fixture(autouse=True)
def _few_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure a few families of numbers: the others take most of the time."""
    every, names = measure.families, ("accuracy", "loss", "error", "decisions")

    def few(place: Any) -> list[Metric]:
        return [m for m in every(place) if type(m).__module__.rpartition(".")[2] in names]

    monkeypatch.setattr(measure, "families", few)


@pytest.fixture(scope="module", params=["regression", "binary"])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes, network = PROJECTS[request.param]
    where = place(tmp_path_factory.mktemp("requests") / request.param, changes, network)
    done(where, "prepare")
    return where


@pytest.fixture
def here(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / prepared.name))


def served(where: Path) -> dict[str, torch.Tensor]:
    return load_file(where / "expunge-requests/models/model/current/model.safetensors")


def opened(where: Path) -> list[str]:
    return [row["request"] for row in json.loads(done(where, "--json", "requests", "list"))["requests"]]


def test_a_plan_tells_of_a_qualification_that_is_not_there(here: Path) -> None:
    done(here, "requests", "add", "two", "--id", "100", "--id", "103")
    file = here / "expunge.toml"
    text = file.read_text()
    assert "[requests]" not in text
    file.write_text(f'{text}\n[requests]\nqualification = "none.json"\n')
    code, out, err = expunge("requests", "process", "--plan", cwd=here)
    assert (code, out) == (2, "")
    assert "none.json" in err


def test_a_request_is_received_fulfilled_recorded_and_undone(here: Path) -> None:
    assert "12 training samples match" in done(here, "requests", "add", "person", "--subject", "o1")
    assert "2 training samples match" in done(here, "requests", "add", "two", "--id", "100", "--id", "103")
    assert set(opened(here)) == {"person", "two"}
    plan = json.loads(done(here, "--json", "requests", "process", "--plan"))["plan"]
    assert [(row["how"], set(row["requests"])) for row in plan] == [("edit", {"person", "two"})]
    assert "is served" in done(here, "requests", "process")
    assert opened(here) == []
    assert "0 problems" in done(here, "requests", "verify")

    done(here, "requests", "export", "person", "-o", "pack")
    assert "0 problems" in done(here, "requests", "verify", "pack")
    texts = [p.read_text() for p in (here / "pack").iterdir()]
    assert not any("o1" in text.split('"')[1::2] for text in texts)  # nobody is named
    page = here / "pack" / "record.json"
    page.write_text(page.read_text().replace("edit", "edits", 1))
    code, out, _ = expunge("requests", "verify", "pack", cwd=here)
    assert code == 1
    assert "record.json" in out

    before, after = load_file(here / "expunge-work/model.safetensors"), served(here)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert "is served again" in done(here, "requests", "rollback")
    assert all(torch.equal(before[name], now) for name, now in served(here).items())
    assert set(opened(here)) == {"person", "two"}

    assert "retrained" in done(here, "requests", "process", "--how", "retrain")
    assert opened(here) == []
    assert "0 problems" in done(here, "requests", "verify")
    said = refused(here, "prepare", "-o", "again")
    assert "14 of 60 samples that were deleted on request" in said


def test_a_range_is_no_request(here: Path) -> None:
    wanted = {
        "regression": "a request by class of a model that has classes, got '0..1': name samples by --ids FILE",
        "binary": "a class: a number, or one of bad, good, got 0..1: name one that exists",
    }[here.name]
    assert wanted in refused(here, "requests", "add", "r", "--class", "0..1")
    (here / "many.csv").write_text("request,subject,class\na,o1,\nb,,0..1\n")
    assert wanted in refused(here, "requests", "add", "--from", "many.csv")
    assert "unknown o9" in refused(here, "requests", "add", "r", "--subject", "o9")


@pytest.mark.parametrize("name", ["multilabel", "quantile"])
def test_several_outputs_are_served_too(name: str, tmp_path: Path) -> None:
    changes, network = PROJECTS[name]
    where = place(tmp_path / name, changes, network)
    done(where, "prepare")
    done(where, "requests", "add", "person", "--subject", "o1")
    assert "is served" in done(where, "requests", "process")
    assert "0 problems" in done(where, "requests", "verify")
    assert "a request by class of a model that has classes" in refused(where, "requests", "add", "r", "--class", "1")


def test_a_cardholder_goes_with_all_rows_and_the_embedding_row(tmp_path: Path) -> None:
    (tmp_path / "expunge.toml").write_text(CARDS)
    project = Project.open(tmp_path / "expunge.toml")
    people = [str(v) for v in project.train.column("subject")]
    who = max(set(people), key=people.count)
    done(tmp_path, "prepare")
    out = done(tmp_path, "requests", "add", "card", "--subject", who)
    assert f"{people.count(who)} training samples match" in out
    assert people.count(who) > 1
    assert "is served" in done(tmp_path, "requests", "process")
    model = project.blank()
    model.load_state_dict(load_file(tmp_path / "expunge-work/model.safetensors"))
    trained = embedding_row(model, who)
    model.load_state_dict(served(tmp_path))
    assert not torch.equal(embedding_row(model, who), trained)
    drawn = fresh(model, new_model=project.new_model, seed=0)
    assert torch.equal(embedding_row(model, who), embedding_row(drawn, who))  # as before any training
    assert opened(tmp_path) == []
    assert "0 problems" in done(tmp_path, "requests", "verify")
    (tmp_path / "expunge.toml").write_text(CARDS.replace("threshold = 0.1", "threshold = 1.0"))
    said = refused(tmp_path, "requests", "process")
    assert "decisions.threshold in [0, 1) in line 22 of expunge.toml, got 1.0" in said
