"""``expunge qualify`` as a user runs it: record and report, a pool shared and resumed, refusals, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.bench import stages
from expunge.qualify.record import Qualification
from shell import Run, refused

PROJECT = """
[model]
network = "mlp"
[data]
name = "digits"
limit = 260
[recipe]
epochs = 3
lr = 0.1
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a small project, in the folder that commands run in."""
    (tmp_path / "expunge.toml").write_text(PROJECT)
    return tmp_path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a pool that the tests of the module share."""
    return tmp_path_factory.mktemp("pool") / "pool"


def words(store: Path, *more: object, method: str = "ssd", models: int = 8) -> tuple[object, ...]:
    return ("qualify", "-m", method, "--models", models, "--store", store, *more)


def body(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "expunge-qualified" / "qualification.json").read_text())
    return found


def test_a_record_and_a_report_of_a_small_pool(run: Run, project: Path, store: Path) -> None:
    code, out, err = run(*words(store, "-r", "random=5", "-r", "random=2,times=2", "-r", "class=3"))
    assert code in (0, 3), err
    found = body(project)
    assert [kind["kind"] for kind in found["kinds"]] == ["random", "class"]
    assert [size["n"] for size in found["kinds"][0]["sizes"]] == [2, 5]
    assert found["kinds"][0]["in_row"]["tried"] == [1, 2]
    assert found["pool"]["models"] == 8
    assert found["method"]["name"] == "ssd"
    assert found["model"] is None  # the project trains its network: there is no model yet
    for kind in found["kinds"]:
        assert kind["verdict"]["value"] != "indistinguishable within margin"  # eight models cannot show it
        assert kind["verdict"]["officer"]
        assert kind["words"] in out
    assert "trained on 130 of 260 samples" in found["excludes"][0]
    Qualification.load(project / "expunge-qualified" / "qualification.json")
    page = (project / "expunge-qualified" / "report.html").read_text()
    assert "Qualification of ssd" in page
    for word in ("deleted", "guarantee"):
        assert all(word not in kind["verdict"]["text"] for kind in found["kinds"])


def test_doing_nothing_is_found_and_ends_with_3(run: Run, project: Path, store: Path) -> None:
    code, _, err = run(*words(store, "-r", "class=3", method="no_op", models=30))
    assert code == 3, err
    kind = body(project)["kinds"][0]
    assert kind["verdict"]["value"] == "distinguishable"
    assert kind["sizes"][0]["failed"] == kind["sizes"][0]["failed_original"] > 3


def test_a_plan_trains_nothing(run: Run, project: Path, tmp_path: Path) -> None:
    code, out, err = run(*words(tmp_path / "none", "-r", "random=5", "-r", "class=3", "--plan"))
    assert code == 0, err
    assert "8 to train" in out
    assert "16 models retrained" in out  # five samples are more than 2 % of a half
    assert not (tmp_path / "none").exists()
    _, out, _ = run(*words(tmp_path / "none", "-r", "class=3", "--plan", "--vary", "batch_size=16"))
    assert "16 to train" in out
    assert "16 models retrained" in out


def test_the_record_is_for_the_model_that_requests_start_from(run: Run, project: Path, store: Path) -> None:
    assert run("prepare")[0] == 0
    assert run(*words(store, "-r", "random=2"))[0] in (0, 3)
    assert body(project)["model"] == json.loads((project / "expunge-work" / "record.json").read_text())["weights"]


def test_without_requests_those_that_fit_are_taken(run: Run, project: Path, tmp_path: Path) -> None:
    _, out, _ = run(*words(tmp_path / "none", "--plan"))
    assert "for random 1, random 5 %, hardest 10, near-duplicates 10, class 0;" in out  # 40 in a row would be too many
    (project / "expunge.toml").write_text(PROJECT.replace("limit = 260", "limit = 400"))
    assert "random 10 × 4," in run(*words(tmp_path / "none", "--plan"))[1]


def test_requests_that_the_method_declines_are_named_in_the_record(run: Run, project: Path, tmp_path: Path) -> None:
    where = tmp_path / "own"
    code, out, err = run(*words(where, "-r", "random=5", "-r", "class=3", method="unsir"))
    assert code in (0, 3), err
    found, why = body(project), "it learns noise against one class, and the forget set is of kind 'ids'"
    assert [kind["kind"] for kind in found["kinds"]] == ["class"]
    assert found["declined"] == [{"kind": "random", "words": "Random samples (random 5)", "why": why}]
    said = f"Random samples (random 5) were not simulated: the method declines them ({why})."
    assert said in found["excludes"]
    assert said in " ".join(out.split())
    page = (project / "expunge-qualified" / "report.html").read_text()
    assert "Random samples (random 5) were not simulated" in page
    assert len(list((where / "retrained").glob("*/done.json"))) == 8  # of the class, none for what is declined
    code, out, err = run(*words(where, "-r", "random=5", "-r", "random=2", "-o", "none", method="unsir"))
    assert (code, out) == (2, "")
    assert "it learns noise against one class" in err
    assert not (project / "none").exists()


def test_a_person_is_not_named_among_what_is_declined(run: Run, project: Path, store: Path) -> None:
    given = ("-r", "class=3", "-r", "subject:superclass=round")
    code, out, err = run(*words(store, *given, method="unsir"))
    assert code in (0, 3), err
    assert [each["words"] for each in body(project)["declined"]] == ["All samples of one person"]
    for text in (out, *(p.read_text() for p in (project / "expunge-qualified").iterdir())):
        assert "subject round" not in text


def test_interrupted_it_goes_on(run: Run, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = stages._STAGES["unlearned"], 0

    def cut(work: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return real(work)

    monkeypatch.setitem(stages._STAGES, "unlearned", cut)
    code, _, err = run(*words(tmp_path / "own", "-r", "random=5"))
    assert code == 130
    assert "goes on" in err
    assert not (project / "expunge-qualified").exists()
    code, _, err = run(*words(tmp_path / "own", "-r", "random=5"))
    assert code in (0, 3), err
    assert calls == 9  # eight edits, and the one that was cut off


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("-r", "nonsense=5"), "Expected a request KIND=VALUE"),
        (("-r", "random=100"), "at most 65 samples"),
        (("-r", "subject:who=*"), "every model is asked to forget"),
        (("-r", "random=5", "-r", "random=5"), "each once"),
        (("-m", "no_such"), "method"),
        (("--set", "alpha=-1"), "alpha"),
        (("--vary", "no_such=3"), "no_such"),
        (("--vary", "batch_size=0"), "batch_size"),
        (("--vary", "epochs=3"), "another recipe in --vary"),
    ],
)
def test_bad_input_is_one_sentence(run: Run, project: Path, store: Path, more: tuple[str, ...], text: str) -> None:
    found = refused(project, *words(store, *more))
    assert text in found
    assert not (project / "expunge-qualified").exists()


def test_an_odd_number_of_models_and_another_recipe_are_refused(run: Run, project: Path, store: Path) -> None:
    assert "even number of models" in refused(project, *words(store, "-r", "random=2", models=9))
    assert run(*words(store, "-r", "random=2", "-o", "first"))[0] in (0, 3)
    (project / "expunge.toml").write_text(PROJECT.replace("epochs = 3", "epochs = 4"))
    found = refused(project, *words(store, "-r", "random=2"))
    assert "epochs 3 instead of 4" in found
