"""Bad usage of the command line: one sentence, exit code 2, everything as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from shell import Run, sentence


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ("forget", "--start", "WORK"),
            "exactly one of --ids, --class, --subclass, --subject, --random, --samples, got none",
        ),
        (("forget", "--start", "WORK", "--class", "3", "--random", "2"), "got --class and --random"),
        (("forget", "--start", "WORK", "--class", "11"), "a sample of class 11 in train, got no sample that matches"),
        (("forget", "--start", "WORK", "--random", "1168"), "1 to 1167 samples to forget, got 1168"),
        (("forget", "--start", "WORK", "--random", "0"), "1 to 1167 samples to forget, got 0"),
        (
            ("forget", "--start", "WORK", "--ids", "IDS"),
            "ids of the training data, got unknown digits/none: write them as",
        ),
        (("forget", "--start", "WORK", "--ids", "TWICE"), "more than once"),
        (("forget", "--start", "WORK", "--ids", "EMPTY"), "ids in EMPTY, one a line, got none"),
        (("forget", "--start", "WORK", "--ids", "missing.txt"), "a text file with one id a line at missing.txt"),
        (("forget", "--start", "nowhere", "--class", "3"), "a folder written by prepare or forget at nowhere"),
        (("forget", "--start", "WORK", "--class", "3", "--set", "alhpa=3"), "did you mean 'alpha'"),
        (("forget", "--start", "WORK", "--class", "3", "--set", "alpha"), "settings of the form KEY=VALUE"),
        (("forget", "--start", "WORK", "--class", "3", "-m", "lfssd"), "the state that lfssd prepared, got none"),
        (("forget", "--start", "WORK", "--random", "3", "-m", "head_mask"), "it masks one class"),
        (("prepare", "--data", "digits", "-m", "sdd", "-o", "new"), "a known method, got 'sdd': did you mean 'ssd'"),
        (("prepare", "--data", "digit", "-o", "new"), "a known data set, got 'digit': did you mean 'digits'"),
        (("prepare", "--data", "diabetes", "--network", "convnet", "-o", "new"), "inputs of 3 dimensions for convnet"),
        (("prepare", "--data", "digits", "-o", "WORK"), "a path that is free to write"),
        (("--device", "cdua", "prepare", "--data", "digits", "-o", "new"), "a torch device, got 'cdua'"),
        (
            ("forget", "--start", "WORK", "--class", "3", "--set", "name=lfssd"),
            "fields of the method in --set",
        ),
        (
            ("--yes", "forget", "--start", "WORK", "--class", "3", "-o", "WORK"),
            "an output apart from what is",
        ),
        (
            ("--yes", "prepare", "--data", "digits", "-o", "BUSY"),
            "a folder that expunge wrote at BUSY, got another one, not empty",
        ),
        (("--device", "mps", "prepare", "--data", "digits", "-o", "new"), "device cpu or cuda, got 'mps'"),
        (("audit", "--unlearned", "WORK", "--original", "WORK"), "a folder written by forget"),
        (("cite", "sdd"), "did you mean 'ssd'"),
        (
            ("prepare", "-o", "new"),
            "a project: a file expunge.toml here, or --project, got none: write one with expunge init",
        ),
        (("--project", "no.toml", "prepare", "--data", "digits"), "--project or --data, got both"),
        (("--project", "no.toml", "prepare"), "a project file no.toml, got nothing there"),
        (("forget", "--start", "WORK", "--class", "tree"), "a class: a number, or one of 0, 1, 2"),
        (("forget", "--start", "WORK", "--subject", "ann"), "a column that names the subject, got none: set subject ="),
        (("forget", "--start", "WORK", "--subclass", "x"), "'x' in superclass in train, got no sample that matches"),
        (("forget", "--start", "WORK", "--samples", "x.parquet"), "the named data set digits: name ids instead"),
        (
            ("forget", "--start", "WORK", "--class", "3", "--set", "runtime.size=3"),
            "known keys in [runtime], got 'size'",
        ),
        (("forget", "--start", "WORK", "--class", "3", "--set", "runtime=3"), "runtime.KEY=VALUE, got runtime alone"),
        (
            ("forget", "--start", "WORK", "--class", "3", "--set", "runtime.batch_size=0"),
            "got 0 (input should be greater",
        ),
        (
            ("forget", "--start", "WORK", "--class", "3", "--set", "runtime.workdir=3"),
            "runtime.workdir to be right, got 3",
        ),
        (("forget", "--start", "WORK", "--class", "3", "--set", "alpha=" + "9" * 5000), "ssd.alpha of 0 or more"),
        (("forget", "--start", "WORK", "--class", "3", "--set", "alpha=" + "[" * 9999), "a value that fits ssd.alpha"),
        (("audit", "--unlearned", "WORK", "--original", "WORK", "--set", "alpha=3"), "give the method's to forget"),
        (("prepare", "--data", "digits", "-o", "a" * 300), "a usable path, aaaa"),
        (("prepare", "--data", "digits", "-o", "BUSY/precious.txt"), "a path that is free to write"),
        (("--yes", "prepare", "--data", "digits", "-o", "BUSY/precious.txt"), "got a file: choose another path"),
        (("prepare", "--data", "digits", "-o", "BUSY/precious.txt/new"), "precious.txt, not writable: choose another"),
        (("init", "-m", "sdd"), "did you mean 'ssd'"),
        (("init", "-o", "BUSY"), "a file to write, got the folder BUSY: name a file"),
        (("--yes", "init", "-o", "BUSY/precious.txt"), "got a file: choose another path"),
        (("init", "--train", "\udcff"), "texts that UTF-8 can write"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(words: tuple[str, ...], text: str, run: Run, work: Path) -> None:
    Path("IDS").write_text("digits/none\n")
    Path("EMPTY").write_text("\n\n")
    some = json.loads((work / "record.json").read_text())
    assert some["project"]["config"]["data"]["name"] == "digits"
    Path("TWICE").write_text("digits/5\ndigits/5\n")
    Path("BUSY").mkdir()
    Path("BUSY/precious.txt").write_text("precious")
    before = sorted(p.name for p in work.iterdir())
    code, out, err = run(*(str(work) if w == "WORK" else w for w in words))
    assert code == 2, (out, err)
    assert text in sentence(err)
    assert Path("BUSY/precious.txt").read_text() == "precious"
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["BUSY", "EMPTY", "IDS", "TWICE"]
    assert sorted(p.name for p in work.iterdir()) == before


@pytest.mark.parametrize(
    "words", [("forget", "--no-such-option"), ("nonsense",), ("demo", "--seeds", "0"), ("forget", "--start", "a\0b")]
)
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
    assert str(copy) in sentence(err) or "weights the state belongs to" in sentence(err)
    assert not Path("new").exists()
