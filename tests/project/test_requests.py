"""Requests on one's own project: ids, policy, what may change since prepare, records that somebody damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from expunge.errors import UserError
from expunge.project import Project
from expunge.selection import Who
from projects import KINDS, Copy, parquet, rows, toml
from shell import expunge, refused, sentence

SUBJECT = ("forget", "--subject", "ann")
IDS = ("forget", "--ids", "ids.txt")


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            b"100\nx1\nx2\nx3\nx4\nx5\nx6\n",
            "ids of the training data, got unknown x1, x2, x3, x4, x5 and 1 more: write",
        ),
        (b"x1\n", "write them as in the training data, whose ids look like 100, 101"),
        (b"100\n101\n100\n", "each id once in ids.txt, got 100 more than once: name each sample once"),
        (b"100.0\n", "unknown 100.0: did you mean '100'"),
        (b'"101",\n', "unknown \"101\",: did you mean '101'"),
        (b"00102\n", "unknown 00102: did you mean '102'"),
        (b"key\n100\n", "ids of the training data, got unknown key"),
        (b"100\x00\n", "unknown '100\\x00'"),
        (b"9" * 500, "unknown " + "9" * 57 + "...: write"),
        (b"\n \n\t\n", "ids in ids.txt, one a line, got none"),
        (b"", "ids in ids.txt, one a line, got none"),
        (b"\xff\xfe1\x000\x00", "a text file with one id a line at ids.txt, got bytes that are no UTF-8 text"),
        ("\n".join(map(str, range(100, 160))).encode(), "something to retain, got all 60 training samples to forget"),
        ("\n".join(map(str, range(100, 140))).encode(), "at most 50% of the training data, got 40 of 60 samples"),
    ],
)
def test_id_files(content: bytes, text: str, ready: Copy) -> None:
    place = ready()
    (place / "ids.txt").write_bytes(content)
    assert text in refused(place, *IDS)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nowhere.txt", "at nowhere.txt, got nothing there: check the path"),
        (".", "at ., got a folder: check the path"),
        ("train.parquet", "bytes that are no UTF-8 text"),
        ("a" * 300, "a usable path, aaaa"),
    ],
)
def test_paths_that_hold_no_ids(name: str, text: str, ready: Copy) -> None:
    assert text in refused(ready(), "forget", "--ids", name)


def test_ids_of_other_editors_are_read(ready: Copy) -> None:
    place = ready()
    (place / "ids.txt").write_bytes("\ufeff100\r\n101 \r\n\r\n".encode())
    code, out, err = expunge(*IDS, cwd=place)
    assert code in (0, 3), err  # so few samples may move no weight
    assert "2 of 60 samples" in out
    assert record(place / "expunge-forgotten")["scenario"]["forget"] == ["100", "101"]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=40),
        st.lists(st.one_of(st.integers(95, 165).map(str), st.text(max_size=4)), max_size=6).map(
            lambda ids: "\n".join(ids).encode("utf-8", "surrogatepass")
        ),
    )
)
def test_any_id_file_is_used_or_refused(prepared: Path, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "ids.txt"
    file.write_bytes(content)
    code, _, err = expunge("forget", "--ids", file, "-m", "no_op", "-o", tmp_path / "done", cwd=prepared)
    assert code in (2, 3)  # no_op changes nothing
    if code == 2:
        assert sentence(err).startswith("Expected ")
        assert not (tmp_path / "done").exists()
    else:
        assert set(record(tmp_path / "done")["scenario"]["forget"]) == {
            line.strip() for line in content.decode().split()
        }
        shutil.rmtree(tmp_path / "done")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--class", "fish"), "a class: a number, or one of bird, cat, dog, got fish: name one that exists"),
        (("--class", "7"), "a sample of class 7 in train, got no sample that matches: choose among 0, 1, 2"),
        (("--class", ""), "a class: a number, or one of bird, cat, dog, got ''"),
        (("--class", "9" * 5000), "9...: name one that exists"),
        (("--subject", "zoe"), "a subject of the column owner, got unknown zoe: check its spelling"),
        (("--subclass", "x"), "a column that names the subclass, got none: set subclass = 'column' in [data]"),
        (("--random", "60"), "1 to 59 samples to forget, got 60"),
        (("--samples", "nowhere.parquet"), "nowhere.parquet, got nothing there"),
        (("--samples", "shop:nothing"), "a function nothing in shop"),
        (
            ("--start", "nowhere", "--random", "1"),
            "a folder written by prepare or forget at nowhere, got nothing there",
        ),
        (("--start", "shop.py", "--random", "1"), "a folder written by prepare or forget at shop.py, got a file"),
        (("--start", ".", "--random", "1"), "got a folder without record.json: run one of them first"),
        (("--start", "a" * 300, "--random", "1"), "a usable path, aaaa"),
        (("--random", "1", "-o", "expunge-work"), "a path that is free to write, expunge-work"),
        (("--random", "1", "-m", "lfssd"), "the state that lfssd prepared, got none"),
    ],
)
def test_requests_for_what_is_not_there(words: tuple[str, ...], text: str, ready: Copy) -> None:
    assert text in refused(ready(), "forget", *words)


@pytest.mark.parametrize(
    ("columns", "n", "text"),
    [
        (
            {"age": rows(60)["age"] + 1},
            3,
            "the content that was prepared under each id, got other content under 100, 101",
        ),
        ({"key": list(range(900, 960))}, 3, "ids of the prepared training data, got unknown 900, 901, 902"),
        ({"kind": ["eel"] * 60}, 3, "known classes in 'kind', got 'eel': choose from bird, cat, dog"),
        ({"kind": ["cat"] * 60}, 3, "got other content under 100, 102"),
        ({}, 40, "a request for at most 50% of the training data, got 40 of 60 samples"),
    ],
)
def test_samples_that_come_with_a_request(columns: dict[str, Any], n: int, text: str, ready: Copy) -> None:
    place = ready()
    (place / "train.parquet").unlink()
    parquet(place / "gone.parquet", {k: v[:n] for k, v in (rows(60) | columns).items()})
    assert text in refused(place, "forget", "--samples", "gone.parquet")


def test_samples_without_the_training_data_keep_the_classes_of_prepare(ready: Copy) -> None:
    place = ready()
    dogs = [i for i, kind in enumerate(rows(60)["kind"]) if kind == "dog"][:4]
    parquet(place / "gone.parquet", {k: [v[i] for i in dogs] for k, v in rows(60).items()})
    code, out, err = expunge("forget", "--samples", "gone.parquet", "-o", "one", cwd=place)
    assert code == 0, err
    (place / "train.parquet").unlink()
    code, out, err = expunge("forget", "--samples", "gone.parquet", "-o", "two", cwd=place)
    assert code == 0, err
    assert "No report: it needs the training data, which --samples leaves unread." in out
    one, two = (load_file(place / n / "model.safetensors") for n in ("one", "two"))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert record(place / "two")["forgotten"] == [str(100 + i) for i in dogs]
    assert "already forgotten 102" in refused(place, "forget", "--start", "two", "--samples", "gone.parquet", "-o", "n")
    code, _, err = expunge("audit", "--unlearned", "two", cwd=place)
    assert code == 2
    assert "a request made with the training data at two, got one by --samples" in sentence(err)
    assert "none at train.parquet: restore it, or pass the samples" in refused(place, *SUBJECT)


def test_a_second_request_goes_on_from_the_first(ready: Copy) -> None:
    place = ready()
    assert expunge(*SUBJECT, "-o", "one", cwd=place)[0] == 0
    (place / "ids.txt").write_text("101\n105\n")
    text = "ids that are still to be forgotten, got already forgotten 105: leave them out"
    assert text in refused(place, *IDS, "--start", "one", "-o", "two")
    words = ("--json", "forget", "--start", "one", "--subject", "bob", "-o", "two")
    code, out, err = expunge(*words, cwd=place)
    assert code == 0, err
    done = json.loads(out)
    assert len(done["scenario"]["train"]) == 48
    assert len(done["forgotten"]) == 24
    assert done["before"] == record(place / "one")["weights"]
    parquet(
        place / "train.parquet",
        {k: [x for x, o in zip(v, rows(60)["owner"], strict=True) if o != "ann"] for k, v in rows(60).items()},
    )
    code, out, err = expunge(*words[1:-1], "three", cwd=place)  # the forgotten rows were deleted: nothing changes
    assert code == 0, err
    assert record(place / "three")["weights"] == done["weights"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model.network": "shop:Small"}, "got another model.network: put [model] back as it was, or prepare anew"),
        ({"model.weights": "other.safetensors"}, "got another model.weights"),
        ({"data.target": "owner"}, "got another data.target: put [data] back as it was"),
        ({"data.inputs": ["age", "weight", "height"]}, "got another data.inputs"),
        ({"data.id": "owner"}, "got another data.id"),
        ({"data.classes": ["dog", "cat", "bird"]}, "got another data.classes"),
        ({"task.kind": "regression"}, "got another task"),
        ({"data.subject": "ownr"}, "the column that [data] subject names in train, got none called 'ownr'"),
        ({"policy.methods": ["lfssd"]}, "a method that the policy allows: lfssd, got 'ssd'"),
        ({"policy.largest_share": 0.1}, "at most 10% of the training data, got 12 of 60 samples: split the request"),
    ],
)
def test_what_may_not_change_after_prepare(changes: dict[str, Any], text: str, ready: Copy) -> None:
    assert text in refused(ready(changes), *SUBJECT)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.base": "shop:build"},
        {"data.classes": list(KINDS)},
        {"data.train": "elsewhere/*.parquet"},
        {"policy.largest_share": 0.9},
        {"runtime.batch_size": 7},
    ],
)
def test_what_may_change_after_prepare(changes: dict[str, Any], ready: Copy) -> None:
    place = ready(changes)
    (place / "elsewhere").mkdir()
    shutil.copy(place / "train.parquet", place / "elsewhere" / "part-0.parquet")
    code, _, err = expunge(*SUBJECT, cwd=place)
    assert code == 0, err


def test_a_method_field_changed_after_prepare_counts_unless_the_command_says_otherwise(ready: Copy) -> None:
    place = ready({"method.alpha": 2.5})
    for more, alpha in (((), 2.5), (("--set", "alpha=4"), 4.0)):
        code, out, err = expunge("--json", *SUBJECT, *more, "-o", f"alpha{alpha}", cwd=place)
        assert code in (0, 3), err
        assert json.loads(out)["method"]["alpha"] == alpha


def test_a_field_set_at_prepare_stays_for_the_requests(fresh: Copy) -> None:
    place = fresh()
    assert expunge("prepare", "--set", "alpha=2.25", cwd=place)[0] == 0
    assert expunge(*SUBJECT, cwd=place)[0] in (0, 3)
    assert record(place / "expunge-forgotten")["method"]["alpha"] == 2.25


def test_a_project_that_moved_finds_itself_and_its_own_file(ready: Copy, tmp_path: Path) -> None:
    place = ready({"policy.largest_share": 0.1})
    moved = tmp_path / "moved" / "here"
    shutil.copytree(place, moved)
    (moved / "expunge.toml").write_text(toml())
    code, _, err = expunge(*SUBJECT, cwd=moved)
    assert code == 0, err
    shutil.rmtree(place)
    work = tmp_path / "work"
    shutil.move(moved / "expunge-work", work)
    words = ("forget", "--start", work, "--subject", "bob", "-o", tmp_path / "out")
    code, _, err = expunge("--project", moved / "expunge.toml", *words, cwd=tmp_path)
    assert code == 0, err


def test_the_policy_on_accuracy_gives_exit_code_3_and_the_result_all_the_same(ready: Copy) -> None:
    place = ready({"policy.accuracy_drop": 0.0, "method.alpha": 0.0, "method.dampening": 0.0})
    code, out, err = expunge("forget", "--class", "dog", cwd=place)
    assert code == 3, err
    assert "Policy missed: test accuracy on the other classes fell by 0." in out
    said = record(place / "expunge-forgotten")["policy"]
    assert not said["met"]
    assert said["accuracy_drop"] > said["bound"] == 0
    (place / "gone.parquet").write_bytes((place / "train.parquet").read_bytes())
    parquet(place / "gone.parquet", {k: v[:9] for k, v in rows(60).items()})
    (place / "train.parquet").unlink()
    code, out, _ = expunge("forget", "--samples", "gone.parquet", "-o", "samples", cwd=place)
    assert code == 3
    assert "Policy missed: test accuracy fell by 0." in out
    (place / "expunge.toml").write_text(toml({"policy.accuracy_drop": 1.0, "data.test": None}))
    code, out, _ = expunge("forget", "--samples", "gone.parquet", "-o", "untested", cwd=place)
    assert code == 3
    assert "could not be measured: name test data in [data] test." in out
    (place / "expunge.toml").write_text(toml({"policy.accuracy_drop": 1.0}))
    code, out, _ = expunge("forget", "--samples", "gone.parquet", "-o", "met", cwd=place)
    assert code == 0
    assert record(place / "met")["policy"]["met"]


def test_a_subject_is_refused_without_naming_others(ready: Copy) -> None:
    place = ready()
    said = refused(place, "forget", "--subject", "nobody")
    assert "a subject of the column" in said
    assert "got unknown nobody: check its spelling" in said
    assert "ann" not in said
    assert expunge(*SUBJECT, "-o", "one", cwd=place)[0] in (0, 3)
    assert "got samples of ann that are all already forgotten" in refused(
        place, *SUBJECT, "--start", "one", "-o", "two"
    )


def test_samples_gone_since_prepare_are_counted(ready: Copy) -> None:
    place = ready()
    left = [i for i, who in enumerate(rows(60)["owner"]) if who != "ann" or i > 20]
    parquet(place / "train.parquet", {k: [v[i] for i in left] for k, v in rows(60).items()})
    _, out, err = expunge(*SUBJECT, "-o", "one", cwd=place)
    assert f"{60 - len(left)} of the prepared samples are not in the training data any more" in out, err
    assert record(place / "one")["not_at_hand"] == 60 - len(left) > 0
    assert "On the forgotten samples: " in out


def test_a_class_is_refused_where_targets_are_numbers() -> None:
    place = Project.named("diabetes", None, None, None)
    with pytest.raises(UserError, match="a task with classes for --class, got targets that are numbers: name --ids"):
        Who(label="1").scenario(place, place.train, 0)
