"""Folders of prepare and forget that somebody damaged or mixed up: each one sentence, and nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from projects import SOURCE, Copy, parquet, rows
from shell import expunge, listing, refused, sentence

SUBJECT = ("forget", "--subject", "ann")


def put(place: Path, *path: str, value: Any = None, gone: bool = False) -> None:
    file = place / "expunge-work" / "record.json"
    body = json.loads(file.read_text())
    inner = body
    for key in path[:-1]:
        inner = inner[key]
    if gone:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    file.write_text(json.dumps(body))


@pytest.mark.parametrize("key", ["step", "project", "method", "weights", "seed"])
def test_a_record_without_a_key(key: str, ready: Copy) -> None:
    place = ready()
    put(place, key, gone=True)
    text = f"a whole record in expunge-work/record.json, got none ({key}): restore the folder from a copy"
    assert text in refused(place, *SUBJECT)


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("project",), 3, "got 3 (project)"),
        (("project",), {}, "a project in expunge-work/record.json, got another value (KeyError)"),
        (("project", "config"), {"modle": {}}, "a project in expunge-work/record.json, got another value"),
        (("project", "folder"), 3, "a project in expunge-work/record.json, got another value (TypeError)"),
        (("project", "file"), 3, "a project in expunge-work/record.json, got another value (TypeError)"),
        (("method",), 3, "got 3 (method)"),
        (("method",), {}, "got none (method.name)"),
        (("method", "name"), "sdd", "a known method, got 'sdd': did you mean 'ssd'"),
        (("method", "alpha"), "much", "a value that fits ssd.alpha, got 'much'"),
        (("weights",), "0" * 64, "the weights of expunge-work/record.json, got others"),
        (("weights",), None, "got None (weights)"),
        (("step",), "x", "got 'x' (step)"),
        (("seed",), "x", "got 'x' (seed)"),
        (("forgotten",), 3, "got 3 (forgotten)"),
        (("forgotten",), [3], "got 3 (forgotten.0)"),
        (("stale",), "optimizer", "got 'optimizer' (stale)"),
        (("kind",), "letter", "a document of kind 'expunge.record'"),
        (("schema",), 99, "schema 2 or older in expunge-work/record.json, got 99: update expunge"),
        (("schema",), "2", "schema 2 or older"),
    ],
)
def test_a_record_with_another_value(path: tuple[str, ...], value: Any, text: str, ready: Copy) -> None:
    place = ready()
    put(place, *path, value=value)
    assert text in refused(place, *SUBJECT)


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        ("record.json", b"[]", "a document of kind 'expunge.record'"),
        ("record.json", b"\xff\xfe", "a JSON document in expunge-work/record.json, got 'utf-8' codec"),
        ("record.json", b"[" * 100_000, "a JSON document in expunge-work/record.json, got maximum recursion depth"),
        ("record.json", b"9" * 5000, "a JSON document in expunge-work/record.json, got Exceeds the limit"),
        ("record.json", b"", "a JSON document in expunge-work/record.json"),
        ("state.safetensors", b"text", "an intact file expunge-work/state.safetensors"),
        ("state.safetensors", None, "a file or folder expunge-work/state.safetensors, got nothing there"),
        ("model.safetensors", b"", "an intact file expunge-work/model.safetensors"),
        ("model.safetensors", None, "a file or folder expunge-work/model.safetensors, got nothing there"),
    ],
)
def test_damaged_files(file: str, content: bytes | None, text: str, ready: Copy) -> None:
    place = ready()
    if content is None:
        (place / "expunge-work" / file).unlink()
    else:
        (place / "expunge-work" / file).write_bytes(content)
    assert text in refused(place, *SUBJECT)


def test_a_state_of_other_kinds(ready: Copy) -> None:
    place = ready()
    work = place / "expunge-work"
    shutil.copy(work / "model.safetensors", work / "state.safetensors")
    assert "a state made by prepare or unlearn, got one without their stamp" in refused(place, *SUBJECT)
    shutil.copy(place / "model.safetensors", work / "state.safetensors")
    assert "an intact file expunge-work/state.safetensors" in refused(place, *SUBJECT)


def test_other_code_under_the_same_name(ready: Copy) -> None:
    place = ready()
    # Another length: bytecode is told from stale by whole seconds and by size.
    (place / "shop.py").write_text(SOURCE.replace(", 8)", ", 10)").replace("(8,", "(10,"))
    assert "shaped differently: hidden.weight (8, 3) for (10, 3)" in refused(place, *SUBJECT)
    (place / "shop.py").unlink()
    assert "no module shop: put it on PYTHONPATH or into" in refused(place, *SUBJECT)


def test_training_data_that_changed_since_prepare(ready: Copy) -> None:
    place = ready()
    parquet(place / "train.parquet", rows(60) | {"age": rows(60)["age"] + 1})
    text = "the content that was prepared under each id, got other content under 100, 105, 110, 115, 120 and 7 more"
    assert text in refused(place, *SUBJECT)


def test_an_audit_of_folders_that_do_not_belong_together(ready: Copy) -> None:
    place = ready()
    assert expunge(*SUBJECT, "-o", "one", cwd=place)[0] == 0
    assert expunge("forget", "--start", "one", "--subject", "bob", "-o", "two", cwd=place)[0] == 0
    before = listing(place)
    code, _, err = expunge("audit", "--unlearned", "two", cwd=place)
    assert code == 2
    assert "the folder that two started from, got expunge-work: name it with --original" in sentence(err)
    assert listing(place) == before
