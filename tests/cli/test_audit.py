"""``expunge audit`` as a user runs it: chosen measures, bounds that decide the exit code, canaries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge import attacks, metrics
from shell import Run, sentence


@pytest.fixture(scope="module")
def words(work: Path, forgotten: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Return the words of an audit with a retrained model at hand, so that none has to be trained."""
    from shell import expunge

    path = tmp_path_factory.mktemp("audit") / "retrained"
    assert expunge("forget", "--start", work, "-m", "retrain", "--class", "3", "-o", path, cwd=path.parent)[0] == 0
    return ("audit", "--unlearned", forgotten, "--original", work, "--retrained", path)


def test_bounds_that_hold_exit_with_0_and_missed_ones_with_3(
    run: Run, words: tuple[object, ...], tmp_path: Path
) -> None:
    chosen = ("--metric", "accuracy", "--metric", "loss")
    held = ("--bound", "accuracy/test_retain >= 0.5", "--bound", "gap accuracy/forget <= 0.05")
    code, out, _ = run(*words, *chosen, *held, "-o", tmp_path / "held")
    assert code == 0
    assert "Bound met: accuracy/test_retain >= 0.5, got 0.9" in out
    missed = ("--bound", "accuracy/test >= 0.99", "--bound", "accuracy/retain >= 0.5")
    code, out, _ = run(*words, *chosen, *missed, "-o", tmp_path / "missed")
    assert code == 3
    assert "Bound missed: accuracy/test >= 0.99, got 0.8" in out
    assert "off by 0.1" in out
    assert "bound 'gap accuracy/test' instead, for retrained misses this one too, at 0.8" in out
    page = json.loads((tmp_path / "missed" / "audit.json").read_text())
    assert [b["met"] for b in page["sections"][0]["bounds"]] == [False, True]
    assert (tmp_path / "missed" / "report.html").exists()


def test_what_cannot_be_measured_misses_its_bound(run: Run, words: tuple[object, ...], tmp_path: Path) -> None:
    bound = ("--metric", "canaries", "--bound", "canaries/forgotten <= 0.6")
    code, out, _ = run(*words, *bound, "-o", tmp_path / "none")
    assert code == 3
    assert "could not be measured: canaries must be planted before training" in out


def test_canaries_show_without_a_retrained_model_what_was_forgotten(run: Run, tmp_path: Path) -> None:
    (tmp_path / "expunge.toml").write_text(
        '[model]\nnetwork = "mlp"\nweights = "train"\nbase = "random"\n[data]\nname = "digits"\n'
        "[recipe]\nepochs = 30\ncanaries = 40\n"
        '[policy]\nbounds = ["canaries/forgotten <= 0.65"]\n'
    )
    code, out, _ = run("prepare", "-o", "work")
    assert code == 0
    assert "Canaries: 40 of them under random labels" in out
    (tmp_path / "ids.txt").write_text("\n".join(json.loads(Path("work/canaries.json").read_text())["planted"]))
    for name in ("ssd", "retrain"):
        assert run("forget", "--start", "work", "-m", name, "--ids", "ids.txt", "-o", name)[0] == 0
    words = ("--original", "work", "--retrained", "retrain", "--metric", "canaries")
    words = (*words, "--canaries", "work/canaries.json")
    code, out, _ = run("--json", "audit", "--unlearned", "retrain", *words, "-o", "good")
    assert code == 0
    found = json.loads(out)["sections"][0]["values"]
    assert found["no_op"]["canaries/forgotten"]["low"] > 0.75
    assert found["retrain"]["canaries/forgotten"]["low"] < 0.5 < found["retrain"]["canaries/forgotten"]["high"]
    code, out, _ = run("audit", "--unlearned", "ssd", *words, "-o", "bad")
    assert code == 3
    assert "Bound missed: canaries/forgotten <= 0.65" in out


def test_measures_are_chosen_by_family_and_by_attack(run: Run, words: tuple[object, ...], tmp_path: Path) -> None:
    code, out, _ = run("--json", *words, "--metric", "accuracy", "--metric", "loss", "-o", tmp_path / "a")
    assert code == 0
    assert {m["group"] for m in json.loads(out)["sections"][0]["metrics"]} == {"accuracy", "loss"}
    code, out, _ = run("--json", *words, "--metric", "membership/entropy_lr", "-o", tmp_path / "b")
    assert [m["name"] for m in json.loads(out)["sections"][0]["metrics"]] == ["membership/entropy_lr"]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (("--metric", "accuracie"), "a known metric or attack in --metric, got 'accuracie': did you mean 'accuracy'"),
        (("--metric", "svc"), "a known metric or attack in --metric, got 'svc': write membership/svc"),
        (("--bound", "accuracy/tst > 0.5"), "a number that is measured, got 'accuracy/tst': did you mean"),
        (("--metric", "loss", "--bound", "accuracy/test > 0.5"), "without its family: add --metric accuracy"),
        (("--bound", "accuracy/test"), "a bound NAME OP NUMBER with OP one of >= <= > <, got 'accuracy/test'"),
        (("--bound", "accuracy/test >= high"), "a number in the bound 'accuracy/test >= high', got 'high'"),
        (("--metric", "accuracy", "--bound", "loss/test < 1"), "a bound on a number that is measured, got 'loss/test'"),
        (("--canaries", "nowhere.json"), "nowhere.json"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    run: Run, words: tuple[object, ...], tmp_path: Path, extra: tuple[str, ...], said: str
) -> None:
    code, _, err = run(*words, *extra, "-o", tmp_path / "bad")
    assert code == 2
    assert said in sentence(err)
    assert not (tmp_path / "bad").exists()


def test_every_measure_is_listed_with_what_it_needs(run: Run) -> None:
    code, out, _ = run("--json", "measures")
    assert code == 0
    every = {*metrics.names(), *(f"membership/{name}" for name in attacks.names())}
    assert set(json.loads(out)) == every - {"membership"}
    numbers = {n for row in json.loads(out).values() for n in row["numbers"]}
    assert {"accuracy/test", "membership/loss/auc", "probe/one_shot"} <= numbers
    code, out, _ = run("measures")
    assert [n for n in numbers if n not in out] == []  # whole, for they are typed into --bound
    code, out, _ = run("measures", "membership/entropy_lr")
    assert code == 0
    assert "Logistic regression on one feature" in out
    assert "membership/entropy_lr" in out
    code, _, err = run("measures", "nonsense")
    assert code == 2
    assert "a known metric or attack" in sentence(err)
