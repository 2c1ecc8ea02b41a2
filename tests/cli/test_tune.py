"""``expunge tune`` as a user runs it: files, report, what it prints, going on after Ctrl-C, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.bench import objectives
from expunge.bench.collect import groups
from expunge.bench.grid import load
from expunge.bench.ground import Ground
from expunge.bench.store import Store
from expunge.report import tunepage
from shell import Run, refused, sentence

GRID = """
seeds = [3, 120]
data = {digits = {limit = 300}}
networks = {mlp = {recipe = {epochs = 3}}}
scenarios = ["class=3"]
methods = ["no_such_row"]
"""


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """Return a grid file with small data, in the folder that commands run in."""
    (tmp_path / "grid.toml").write_text(GRID.replace("no_such_row", "ssd"))
    return Path("grid.toml")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store that all tests of the module fill."""
    return tmp_path_factory.mktemp("tune") / "store"


def words(*more: object, store: Path, trials: int = 4) -> tuple[object, ...]:
    return ("tune", *more, "--grid", "grid.toml", "--trials", trials, "--seeds", 2, "--store", store)


def test_settings_are_found_and_a_grid_uses_them(run: Run, grid: Path, store: Path, tmp_path: Path) -> None:
    code, out, err = run(*words("ssd", "finetune", "--set", "finetune.epochs=1", store=store))
    assert code == 0, err
    assert "measure it on other seeds" in out
    assert '[methods.ssd] tuned = "expunge-tuned/ssd.json"' in out
    page = (tmp_path / "expunge-tuned" / "report.html").read_text()
    for name in ("ssd", "finetune"):
        body = json.loads((tmp_path / "expunge-tuned" / f"{name}.json").read_text())
        assert (body["kind"], body["schema"]) == ("expunge.tuned", 1)
        assert body["seeds"] == [121, 122]  # behind the grid's own
        assert body["trials"] == len(body["history"]) == 4
        assert body["value"] <= body["default_value"]
        assert body["on"][0]["text"] == "digits, 300 samples, mlp, class 3"
        assert tunepage.sentence(body) in out
        assert f"<h2>{name}</h2>" in page
    assert body["fixed"] == {"epochs": 1}
    assert list(body["chosen"]) == ["lr"]
    (tmp_path / "next.toml").write_text(
        GRID.replace("methods", "#") + '[methods.ssd]\ntuned = "expunge-tuned/ssd.json"\n'
    )
    code, out, err = run("bench", "run", "next.toml", "--plan", "--store", store)
    assert code == 0, err


def test_the_method_of_a_composition_is_searched_and_a_grid_uses_what_was_found(
    run: Run, grid: Path, store: Path, tmp_path: Path
) -> None:
    given = ("salun", "--set", "method.name=random_label", "--set", "method.epochs=1", "--set", "density=0.5")
    code, out, err = run(*words(*given, "--range", "method.lr=0.01:0.1", "-o", "nested", store=store, trials=2))
    assert code == 0, err
    assert "method.lr = " in out
    body = json.loads((tmp_path / "nested" / "salun.json").read_text())
    assert list(body["chosen"])[0] == "method.lr"
    assert body["method"]["method"]["lr"] == body["chosen"]["method.lr"]
    assert "method.lr" in (tmp_path / "nested" / "report.html").read_text()
    (tmp_path / "next.toml").write_text(GRID.replace("methods", "#") + '[methods.salun]\ntuned = "nested/salun.json"\n')
    found = load(tmp_path / "next.toml")
    assert found.methods["salun"] == body["method"]


def test_the_same_command_again_reads_and_as_json_says_the_same(
    run: Run, grid: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*words("ssd", "-o", "here", store=store))[0] == 0
    first = json.loads((tmp_path / "here" / "ssd.json").read_text())
    monkeypatch.setattr(Ground, "tried", lambda *_: pytest.fail("nothing is left to try"))
    code, out, err = run("--json", *words("ssd", "-o", "here", store=store))
    assert code == 0, err
    said = json.loads(out)
    assert said["methods"]["ssd"] == {k: v for k, v in first.items() if k not in ("kind", "schema")}
    assert said["report"] == "here/report.html"


def test_an_interrupted_search_says_how_to_go_on_and_does(
    run: Run, grid: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Ground.tried, []

    def tried(self: Ground, *given: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, *given)

    monkeypatch.setattr(Ground, "tried", tried)
    code, out, err = run(*words("ssd", "-o", "cut", store=store))
    assert code == 130
    assert sentence(err) == "Interrupted: the same command goes on where it was."
    assert not (tmp_path / "cut" / "ssd.json").exists()
    code, out, err = run(*words("ssd", "-o", "cut", store=store))
    assert code == 0, err
    assert run(*words("ssd", "-o", "whole", store=store))[0] == 0
    cut, whole = (json.loads((tmp_path / name / "ssd.json").read_text()) for name in ("cut", "whole"))
    assert [(t["chosen"], t["value"]) for t in cut["history"]] == [(t["chosen"], t["value"]) for t in whole["history"]]
    assert cut["method"] == whole["method"]


DIGITS = ("--data", "digits", "--request", "class=3")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("ssd",), "Expected a data set and a request to tune on, got no --data and --request"),
        (("ssd", "--data", "digits"), "got no --request"),
        (("sdd", *DIGITS), "did you mean 'ssd'"),
        (("ssd", "--data", "digit", "--request", "class=3"), "did you mean 'digits'"),
        (("ssd", "--data", "digits", "--request", "klass=3"), "did you mean 'class'"),
        (("ssd", *DIGITS, "--network", "mpl"), "did you mean 'mlp'"),
        (("retrain", *DIGITS), "Expected a method with fields to search, got retrain, which declares none"),
        (("ssd", *DIGITS, "--set", "alpah=3"), "did you mean 'alpha'"),
        (("ssd", *DIGITS, "--range", "alpha=9:1"), "Expected finite LOW < HIGH"),
        (("ssd", *DIGITS, "--set", "alpha=1", "--range", "alpha=1:9"), "either fixed or searched"),
        (("ssd", *DIGITS, "--objective", "unseen"), "that the objective 'unseen' can judge"),
        (("ssd", *DIGITS, "--objective", "near"), "Expected a known objective"),
        (("ssd", *DIGITS, "--set", "runtime.batchsize=3"), "did you mean 'batch_size'"),
        (("ssd", *DIGITS, "--set", "runtime.batch_size=0"), "batch_size of 1 or more"),
        (("ssd", *DIGITS, "--grid", "grid.toml"), "Expected either --grid, or --data with --request, got both"),
        (("ssd", "finetune", *DIGITS, "--set", "alpha=1"), "METHOD.FIELD with several methods"),
        (("ssd", "finetune", *DIGITS, "--range", "alpha=1:2"), "write ssd.alpha=1:2"),
        (("ssd", *DIGITS, "-o", "grid.toml"), "a folder of expunge tune, or a free path"),
        (("ssd", *DIGITS, "-o", "."), "another folder, not empty"),
    ],
)
def test_refusals_write_nothing(grid: Path, tmp_path: Path, given: tuple[str, ...], said: str) -> None:
    assert said in refused(tmp_path, "tune", *given)


@pytest.mark.slow
def test_on_digits_a_setting_is_found_that_is_at_least_as_close_to_retrained_as_the_default_on_other_seeds(
    run: Run, tmp_path: Path
) -> None:
    """Fifty trials on seeds 100 to 102 without the test set; then both settings on seeds 0 to 4, on the test set."""
    code, _, err = run("tune", "ssd", *DIGITS, "--store", "store")
    assert code == 0, err
    body = json.loads((tmp_path / "expunge-tuned" / "ssd.json").read_text())
    assert body["best"] > 0
    assert body["value"] < body["default_value"]
    (tmp_path / "grid.toml").write_text(
        'seeds = 5\ndata = ["digits"]\nscenarios = ["class=3"]\nmetrics = ["accuracy", "loss", "membership"]\n'
        'attacks = ["entropy_lr", "loss"]\n[methods.ssd]\n[methods."ssd tuned"]\nname = "ssd"\n'
        'tuned = "expunge-tuned/ssd.json"\n'
    )
    code, _, err = run("bench", "run", "grid.toml", "--store", "store")
    assert code == 0, err
    (group,) = groups(load(tmp_path / "grid.toml"), Store.open(tmp_path / "store"))
    runs, aim = list(group.runs.values()), objectives.load("retrained")
    scales = aim.scales(runs)
    far = {
        name: np.mean([np.mean(list(aim.lengths(scores, name, scales).values())) for scores in runs])
        for name in ("ssd", "ssd tuned", "no_op", "retrained (other seed)")
    }
    assert far["ssd tuned"] <= far["ssd"] < far["no_op"]
    assert far["retrained (other seed)"] < far["ssd tuned"]
