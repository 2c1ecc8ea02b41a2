"""The command line as a user runs it: what it prints, what it writes, how it refuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from expunge import __version__
from expunge.methods import names
from expunge.tensors import load as load_tensors
from projects import shop
from shell import Run, expunge, listing, sentence


def test_help_teaches_and_version_is_told(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert all(command in out for command in ("demo", "init", "prepare", "forget", "audit", "methods"))
    assert run("--version")[1].strip() == f"expunge {__version__}"
    for command in ("demo", "init", "prepare", "forget", "audit", "methods", "cite"):
        code, out, _ = run(command, "--help")
        assert code == 0
        assert len(out) > 300


def test_methods_and_citations_come_from_the_classes(run: Run) -> None:
    code, out, _ = run("--json", "methods")
    assert code == 0
    assert set(json.loads(out)) == set(names(controls=True))
    assert json.loads(out)["ssd"]["unlearn"] == "forget with labels"
    assert json.loads(out)["ssd"]["declines"] == "-"
    tasks, kinds = "multilabel, regression, quantile, causal_lm", "subclass, random, ids, subject, range, dates"
    hidden = f"{tasks}; forget sets of kind {kinds}"
    assert json.loads(out)["head_mask"]["declines"] == hidden
    code, out, _ = run("methods", "ssd")
    assert code == 0
    assert "alpha" in out
    assert "Needs to prepare: train with labels." in out
    code, out, _ = run("cite", "ssd")
    assert out.startswith("@inproceedings{ssd,")
    assert "Selective Synaptic Dampening" in out


def test_methods_plans_with_what_one_has(run: Run) -> None:
    code, out, _ = run("--json", "methods", "--have", "forget,train-state", "--task", "classification")
    found = json.loads(out)
    assert code == 0
    assert found["ssd"]["usable"]
    assert found["retrain"]["missing"] == ["retain with labels", "recipe"]
    code, out, _ = run("methods", "--have", "forget, train-state")
    assert code == 0
    assert "What remains" in out
    assert "retain with labels, recipe" in out
    code, out, _ = run("methods", "--have", "")
    assert "No method remains with that." in out
    code, _, err = run("methods", "--have", "forgot")
    assert code == 2
    assert "a word for what you have, got 'forgot': did you mean 'forget'" in err


@pytest.mark.usefixtures("whole_reports")
def test_prepare_forget_audit(run: Run, work: Path, forgotten: Path, tmp_path: Path) -> None:
    assert sorted(p.name for p in work.iterdir()) == ["model.safetensors", "record.json", "state.safetensors"]
    assert (forgotten / "report.html").read_text().startswith("<!doctype html>")
    record = json.loads((forgotten / "record.json").read_text())
    assert record["method"]["name"] == "ssd"
    assert len(record["forgotten"]) == 103
    assert record["before"] == json.loads((work / "record.json").read_text())["weights"]
    code, out, _ = run("audit", "--unlearned", forgotten, "--original", work, "-o", tmp_path / "audit")
    assert code == 0
    assert "head_mask" in out
    page = json.loads((tmp_path / "audit" / "audit.json").read_text())
    roles = {m["name"]: m["role"] for m in page["sections"][0]["models"]}
    assert roles["ssd"] == "method"
    assert roles["retrained (other seed)"] == "floor"
    assert page["sections"][0]["samples"] == []
    assert "data:image" not in (tmp_path / "audit" / "report.html").read_text()


@pytest.mark.usefixtures("whole_reports")
def test_a_method_that_changes_nothing_is_not_said_to_have_forgotten(run: Run, work: Path, tmp_path: Path) -> None:
    code, out, _ = run("forget", "--start", work, "-m", "no_op", "--class", 3, "-o", tmp_path / "idle")
    assert code == 3
    assert out.startswith("Nothing was forgotten: no_op changed no parameter for the 103 of 1168 samples.")
    assert "They are not marked as forgotten: ask again with another setting or method." in out
    record = json.loads((tmp_path / "idle" / "record.json").read_text())
    assert (record["changed"], record["outcome"]) == (0, "nothing changed")
    assert "Nothing was forgotten: no_op changed no parameter" in (tmp_path / "idle" / "report.html").read_text()


def test_ids_of_which_nothing_was_forgotten_can_be_asked_for_again(run: Run, work: Path, tmp_path: Path) -> None:
    first = ("forget", "--start", work, "--class", 3, "--set", "alpha=1000", "-o", tmp_path / "idle")
    assert run(*first)[0] == 3
    record = json.loads((tmp_path / "idle" / "record.json").read_text())
    assert (record["forgotten"], record["outcome"]) == ([], "nothing changed")
    code, out, err = run(
        "--json", "forget", "--start", tmp_path / "idle", "--class", 3, "--set", "alpha=2", "-o", tmp_path / "2"
    )
    assert code == 0, err
    assert len(json.loads(out)["forgotten"]) == 103
    code, _, err = run("forget", "--start", tmp_path / "2", "--class", 3, "-o", tmp_path / "3")
    assert code == 2
    assert not (tmp_path / "3").exists()


def test_requests_follow_one_another_and_remember(run: Run, work: Path, forgotten: Path, tmp_path: Path) -> None:
    ids = json.loads((work / "record.json").read_text())
    assert "forgotten" not in ids
    code, out, _ = run("--json", "forget", "--start", forgotten, "--random", 5, "-o", tmp_path / "second")
    assert code == 0
    record = json.loads(out)
    assert len(record["forgotten"]) == 108
    assert len(record["scenario"]["train"]) == 1168 - 103
    (tmp_path / "ids.txt").write_text(record["scenario"]["forget"][0] + "\n")
    code, _, err = run(
        "forget", "--start", tmp_path / "second", "--ids", tmp_path / "ids.txt", "-o", tmp_path / "third"
    )
    assert code == 2
    assert sentence(err).startswith("Expected ids that are still to be forgotten, got already forgotten digits/")
    assert not (tmp_path / "third").exists()


def test_retrain_needs_no_state_and_serves_as_reference(run: Run, work: Path, forgotten: Path, tmp_path: Path) -> None:
    code, _, err = run("forget", "-m", "retrain", "--start", work, "--class", 3, "-o", tmp_path / "retrained")
    assert code == 0, err
    words = ("audit", "--unlearned", forgotten, "--original", work, "--retrained", tmp_path / "retrained")
    assert run(*words, "-o", tmp_path / "audit")[0] == 0
    code, out, _ = run(*words, "--plan", "-o", tmp_path / "audit2")
    assert code == 0
    assert "probe of 0 samples" not in out
    assert run(*words, "--retrained", forgotten, "--plan", "-o", tmp_path / "audit2")[0] == 2
    code, _, err = run(*words, "--retrained", forgotten, "-o", tmp_path / "audit2")
    assert code == 2
    assert "a folder of forget -m retrain for the same request" in err


@pytest.mark.usefixtures("whole_reports")
def test_samples_are_shown_only_when_asked_for(run: Run, work: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("digits/0\n")
    train = json.loads(run("--json", "forget", "--start", work, "--random", 2, "-o", tmp_path / "two")[1])
    assert len(train["scenario"]["forget"]) == 2
    words = ("audit", "--unlearned", tmp_path / "two", "--original", work, "-o", tmp_path / "shown", "--show-samples")
    assert run(*words)[0] == 0
    assert (tmp_path / "shown" / "report.html").read_text().count("data:image/png") == 2


SLOW = """
import pathlib, time
import expunge.folders as folders
from expunge.cli import main
write = folders.write_document
def slow(*words):
    pathlib.Path("writing").touch()
    time.sleep(60)
    write(*words)
folders.write_document = slow
main()
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_end_in_the_midst_of_writing_leaves_old_files_as_they_were(how: signal.Signals, tmp_path: Path) -> None:
    place = shop(tmp_path / "shop")
    words = ["--yes", "prepare"]
    assert expunge(*words, cwd=place)[0] == 0
    before = listing(place)
    process = subprocess.Popen([sys.executable, "-c", SLOW, *words], cwd=place, stderr=subprocess.PIPE, text=True)
    started = time.monotonic()
    while not (place / "writing").exists() and time.monotonic() - started < 60:
        time.sleep(0.05)
    process.send_signal(how)
    assert process.wait(timeout=60) != 0
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    (place / "writing").unlink()
    after = listing(place)
    assert {k: v for k, v in after.items() if not k.startswith(".expunge-work.")} == before
    if how == signal.SIGINT:
        assert after == before
    assert expunge(*words, cwd=place)[0] == 0


def test_one_seed_gives_the_same_folder(run: Run, work: Path, tmp_path: Path) -> None:
    assert run("prepare", "--data", "digits", "--network", "mlp", "-o", tmp_path / "again")[0] == 0
    one, two = (load_tensors(p / "model.safetensors")[0] for p in (work, tmp_path / "again"))
    assert all((one[k] == two[k]).all() for k in one)


@pytest.mark.usefixtures("whole_reports")
def test_the_whole_demo_runs_and_its_report_stands_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "thesis.txt").write_text("precious")
    code, _, err = run("demo", "-o", tmp_path / "busy")
    assert code == 2
    assert "Expected a folder that expunge wrote" in err
    code, out, err = run("demo", "-o", tmp_path / "demo", "--seeds", 1)
    assert code == 0, err
    assert "Report:" in out
    page = json.loads((tmp_path / "demo" / "audit.json").read_text())
    assert [s["kind"] for s in page["sections"]] == ["class", "random", "ids"]
    text = (tmp_path / "demo" / "report.html").read_text()
    assert "<script" not in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "data:image/png" in text
    assert (tmp_path / "busy" / "thesis.txt").read_text() == "precious"


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "expunge", "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == f"expunge {__version__}"


def test_settings_of_the_runtime_change_no_result(run: Run, work: Path, tmp_path: Path) -> None:
    words = ("--yes", "forget", "--start", work, "--class", 4)
    assert run(*words, "-o", tmp_path / "one")[0] == 0
    small = ("--set", "runtime.batch_size=7", "--set", 'runtime.precision="full"')
    assert run("--device", "cpu", *words, *small, "-o", tmp_path / "two")[0] == 0
    one, two = (load_tensors(tmp_path / n / "model.safetensors")[0] for n in ("one", "two"))
    assert all(one[k].allclose(two[k], atol=1e-6) for k in one)


def test_import_is_light() -> None:
    code = "import sys, expunge; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
