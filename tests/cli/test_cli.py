"""The command line as a user runs it: what it prints, what it writes, how it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from expunge import __version__
from expunge.cli import main
from expunge.methods import names
from expunge.tensors import load as load_tensors

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["expunge", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        out = capsys.readouterr()
        code = stop.value.code
        return (code if isinstance(code, int) else 1 if code else 0), out.out, out.err

    return call


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that prepare wrote, for all tests of this module."""
    path = tmp_path_factory.mktemp("cli") / "work"
    command = [sys.executable, "-c", "from expunge.cli import main; main()", "prepare", "-m", "ssd"]
    done = subprocess.run([*command, "--network", "mlp", "--output", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Prepared ssd on 1168 samples" in done.stdout
    return path


@pytest.fixture(scope="module")
def forgotten(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "forgotten"
    command = [sys.executable, "-c", "from expunge.cli import main; main()", "forget"]
    done = subprocess.run(
        [*command, "--start", work, "--class", "3", "-o", path], capture_output=True, text=True, check=True
    )
    assert "Forgot 103 of 1168 samples by ssd" in done.stdout
    return path


def test_help_teaches_and_version_is_told(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert all(command in out for command in ("demo", "prepare", "forget", "audit", "methods", "cite"))
    assert run("--version")[1].strip() == f"expunge {__version__}"
    for command in ("demo", "prepare", "forget", "audit", "methods", "cite"):
        code, out, _ = run(command, "--help")
        assert code == 0
        assert len(out) > 300


def test_methods_and_citations_come_from_the_classes(run: Run) -> None:
    code, out, _ = run("--json", "methods")
    assert code == 0
    assert set(json.loads(out)) == set(names(controls=True))
    assert json.loads(out)["ssd"]["unlearn"] == "forget with labels"
    assert json.loads(out)["ssd"]["declines"] == "-"
    hidden = "regression; forget sets of kind subclass, random, ids, subject, range"
    assert json.loads(out)["head_mask"]["declines"] == hidden
    code, out, _ = run("methods", "ssd")
    assert code == 0
    assert "alpha" in out
    assert "Needs to prepare: train with labels." in out
    code, out, _ = run("cite", "ssd")
    assert out.startswith("@inproceedings{ssd,")
    assert "Selective Synaptic Dampening" in out


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
    assert "forget ids that are in train, got unknown digits/" in err
    assert not (tmp_path / "third").exists()


def test_retrain_needs_no_state_and_serves_as_reference(run: Run, work: Path, forgotten: Path, tmp_path: Path) -> None:
    code, _, err = run("forget", "-m", "retrain", "--start", work, "--class", 3, "-o", tmp_path / "retrained")
    assert code == 0, err
    words = ("audit", "--unlearned", forgotten, "--original", work, "--retrained", tmp_path / "retrained")
    assert run(*words, "-o", tmp_path / "audit")[0] == 0
    code, _, err = run(*words, "--retrained", forgotten, "-o", tmp_path / "audit2")
    assert code == 2
    assert "a folder of forget -m retrain for the same request" in err


def test_samples_are_shown_only_when_asked_for(run: Run, work: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("digits/0\n")
    train = json.loads(run("--json", "forget", "--start", work, "--random", 2, "-o", tmp_path / "two")[1])
    assert len(train["scenario"]["forget"]) == 2
    words = ("audit", "--unlearned", tmp_path / "two", "--original", work, "-o", tmp_path / "shown", "--show-samples")
    assert run(*words)[0] == 0
    assert (tmp_path / "shown" / "report.html").read_text().count("data:image/png") == 2


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("forget", "--start", "WORK"), "exactly one of --ids, --class and --random, got none"),
        (("forget", "--start", "WORK", "--class", "3", "--random", "2"), "got --class and --random"),
        (("forget", "--start", "WORK", "--class", "11"), "a sample of class 11 in train, got no sample that matches"),
        (("forget", "--start", "WORK", "--random", "1168"), "1 to 1167 samples to forget, got 1168"),
        (("forget", "--start", "WORK", "--random", "0"), "1 to 1167 samples to forget, got 0"),
        (("forget", "--start", "WORK", "--ids", "IDS"), "got unknown digits/none"),
        (("forget", "--start", "WORK", "--ids", "TWICE"), "more than once"),
        (("forget", "--start", "WORK", "--ids", "EMPTY"), "at least one sample to forget, got an empty forget set"),
        (("forget", "--start", "WORK", "--ids", "missing.txt"), "a text file with one id a line at missing.txt"),
        (("forget", "--start", "nowhere", "--class", "3"), "a folder written by prepare or forget at nowhere"),
        (("forget", "--start", "WORK", "--class", "3", "--set", "alhpa=3"), "did you mean 'alpha'"),
        (("forget", "--start", "WORK", "--class", "3", "--set", "alpha"), "settings of the form KEY=VALUE"),
        (("forget", "--start", "WORK", "--class", "3", "-m", "lfssd"), "the state that lfssd prepared, got none"),
        (("forget", "--start", "WORK", "--random", "3", "-m", "head_mask"), "it masks one class"),
        (("prepare", "-m", "sdd", "-o", "new"), "a known method, got 'sdd': did you mean 'ssd'"),
        (("prepare", "--data", "digit", "-o", "new"), "a known data set, got 'digit': did you mean 'digits'"),
        (("prepare", "--data", "diabetes", "--network", "convnet", "-o", "new"), "inputs of 3 dimensions for convnet"),
        (("prepare", "-o", "WORK"), "a path that is free to write"),
        (("--device", "cdua", "prepare", "-o", "new"), "a torch device, got 'cdua'"),
        (
            ("forget", "--start", "WORK", "--class", "3", "--set", "name=lfssd"),
            "fields of the method in --set",
        ),
        (
            ("forget", "--start", "WORK", "--class", "3", "-o", "WORK", "--overwrite"),
            "an output apart from what is",
        ),
        (("prepare", "-o", "BUSY", "--overwrite"), "a folder that expunge wrote at BUSY, got another one, not empty"),
        (("--device", "mps", "prepare", "-o", "new"), "device cpu or cuda, got 'mps'"),
        (("audit", "--unlearned", "WORK", "--original", "WORK"), "a folder written by forget"),
        (("cite", "sdd"), "did you mean 'ssd'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(words: tuple[str, ...], text: str, run: Run, work: Path) -> None:
    Path("IDS").write_text("digits/none\n")
    Path("EMPTY").write_text("\n\n")
    some = json.loads((work / "record.json").read_text())
    assert some["data"] == "digits"
    Path("TWICE").write_text("digits/5\ndigits/5\n")
    Path("BUSY").mkdir()
    Path("BUSY/precious.txt").write_text("precious")
    before = sorted(p.name for p in work.iterdir())
    code, out, err = run(*(str(work) if w == "WORK" else w for w in words))
    assert code == 2, (out, err)
    assert text in " ".join(err.split())
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.strip()]) == 1
    assert Path("BUSY/precious.txt").read_text() == "precious"
    assert not Path("new").exists()
    assert not Path("expunge-forgotten").exists()
    assert sorted(p.name for p in work.iterdir()) == before


@pytest.mark.parametrize("words", [("forget", "--no-such-option"), ("nonsense",), ("demo", "--seeds", "0")])
def test_bad_usage_is_exit_2(words: tuple[str, ...], run: Run) -> None:
    assert run(*words)[0] == 2


@pytest.mark.parametrize("file", ["model.safetensors", "state.safetensors", "record.json"])
@pytest.mark.parametrize("damage", ["cut", "swap"])
def test_a_damaged_folder_is_named(
    file: str, damage: str, run: Run, work: Path, forgotten: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(work, copy)
    raw = (copy / file).read_bytes()
    (copy / file).write_bytes(raw[: len(raw) // 2] if damage == "cut" else (forgotten / file).read_bytes())
    code, _, err = run("forget", "--start", copy, "--class", 4, "-o", "new")
    assert code == 2
    assert "Traceback" not in err
    assert not Path("new").exists()


def test_an_interrupt_half_way_leaves_old_files_as_they_were(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(work, out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    command = [sys.executable, "-c", "from expunge.cli import main; main()", "-v", "prepare", "--overwrite", "-o", out]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ})
    time.sleep(4.0)  # in the midst of training or importing; never at the end, which takes longer
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    assert process.returncode != 0
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_one_seed_gives_the_same_folder(run: Run, work: Path, tmp_path: Path) -> None:
    assert run("prepare", "--network", "mlp", "-o", tmp_path / "again")[0] == 0
    one, two = (load_tensors(p / "model.safetensors")[0] for p in (work, tmp_path / "again"))
    assert all((one[k] == two[k]).all() for k in one)


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


def test_import_is_light() -> None:
    code = "import sys, expunge; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
