"""Projects whose tasks are no classification of K classes, from init to audit by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from banks import done, place, table
from projects import csv
from shell import Run, _reports, expunge, run

__all__ = ["_reports", "run"]


def record(where: Path, folder: str) -> dict[str, Any]:
    return json.loads((where / folder / "record.json").read_text())


def test_a_binary_project_by_the_names_of_its_classes(tmp_path: Path) -> None:
    where = place(tmp_path / "bank", {"task.kind": "binary", "data.target": "default"}, "one")
    assert "Outputs taken for classes: 0 bad, 1 good." in done(where, "prepare")
    assert record(where, "expunge-work")["test_accuracy"] > 0.7
    out = done(where, "forget", "--class", "bad", "-o", "gone")
    assert "of 60 samples by ssd" in out
    assert record(where, "gone")["scenario"]["target"] == 0
    found = done(where, "audit", "--unlearned", "gone", "--metric", "accuracy", "--metric", "membership", "-o", "audit")
    assert "class bad" in found
    numbers = json.loads((where / "audit" / "audit.json").read_text())["sections"][0]["values"]
    assert 0 <= numbers["ssd"]["accuracy/test"]["x"] <= 1
    assert "x" in numbers["ssd"]["membership/loss/auc"]


def test_a_binary_project_of_zeros_and_ones(tmp_path: Path) -> None:
    where = place(tmp_path / "bank", {"task.kind": "binary", "data.target": "late"}, "one")
    done(where, "prepare")
    assert "Edited for 12 of 60 samples" in done(where, "forget", "--subject", "o1", "-o", "gone")
    code, _, err = expunge("forget", "--class", "2", "-o", "more", cwd=where)
    assert code == 2
    assert "a sample of class 2 in train, got no sample that matches: choose among 0, 1" in err


def test_a_project_of_several_label_columns(tmp_path: Path) -> None:
    where = place(tmp_path / "bank", {"task.kind": "multilabel", "data.target": ["late", "rich", "old"]}, "three")
    done(where, "prepare")
    assert "Edited for 12 of 60 samples" in done(where, "forget", "--subject", "o1", "-o", "gone")
    done(where, "audit", "--unlearned", "gone", "--metric", "loss", "--metric", "accuracy", "-o", "audit")
    numbers = json.loads((where / "audit" / "audit.json").read_text())["sections"][0]["values"]["ssd"]
    assert numbers["loss/test"]["x"] > 0
    assert numbers["accuracy/test"] == {"unavailable": "the task has no classes"}
    code, _, err = expunge("forget", "--class", "1", "-o", "more", cwd=where)
    assert code == 2


@pytest.mark.parametrize(
    ("kind", "target", "network", "what"),
    [
        ("regression", "value", "one", "Mean absolute error"),
        ("quantile", "value", "three", "Mean absolute error"),
        ("multilabel", ["late", "rich", "old"], "three", "Mean loss"),
    ],
)
def test_errors_before_and_after_are_printed_where_there_are_no_classes(
    kind: str, target: str | list[str], network: str, what: str, tmp_path: Path
) -> None:
    where = place(tmp_path / "bank", {"task.kind": kind, "data.target": target}, network)
    done(where, "prepare")
    out = done(where, "forget", "--subject", "o1", "-o", "gone")
    found = record(where, "gone")["errors"]
    assert found["measure"] == what.lower()
    for part, of in (("test", "the test data"), ("forget", "the forgotten samples")):
        row = found[part]
        same = f" (always saying the same: {row['constant']:.4g})" if kind != "multilabel" else ""
        assert f"{what} on {of}: {row['before']:.4g} before, {row['after']:.4g} after{same}." in out
        assert row["before"] != row["after"]
    assert "Right on" not in out
    gone = {name: column[1::5] for name, column in table(60, 0, 100).items() if name != "flags"}
    csv(where / "gone.csv", gone)
    again = done(where, "forget", "--samples", "gone.csv", "-o", "again")
    there = record(where, "again")["errors"]
    assert set(there) == {"measure", "test"}
    assert there["test"] == pytest.approx({at: found["test"][at] for at in ("before", "after")})
    assert f"{what} on the test data: {there['test']['before']:.4g} before" in again
    assert "always saying" not in again


def test_shares_alone_are_printed_of_a_binary_project(tmp_path: Path) -> None:
    where = place(tmp_path / "bank", {"task.kind": "binary", "data.target": "late"}, "one")
    done(where, "prepare")
    out = done(where, "forget", "--subject", "o1", "-o", "gone")
    assert "Right on" in out
    assert "On the forgotten samples: " in out
    assert "errors" not in record(where, "gone")


def test_a_project_of_a_list_of_labels(tmp_path: Path) -> None:
    where = place(tmp_path / "bank", {"task.kind": "multilabel", "data.target": "flags"}, "three", "parquet")
    done(where, "prepare")
    assert "Edited for 12 of 60 samples" in done(where, "forget", "--subject", "o1")


def test_a_project_of_quantiles_over_two_steps(tmp_path: Path) -> None:
    changes = {"task.kind": "quantile", "task.quantiles": [0.2, 0.5, 0.8], "data.target": ["value", "next"]}
    where = place(tmp_path / "bank", changes, "steps")
    done(where, "prepare")
    assert "Edited for 12 of 60 samples" in done(where, "forget", "--subject", "o1", "-o", "gone")
    done(where, "audit", "--unlearned", "gone", "--metric", "loss", "--metric", "paired", "-o", "audit")
    numbers = json.loads((where / "audit" / "audit.json").read_text())["sections"][0]["values"]["ssd"]
    assert numbers["loss/test"]["x"] > 0


@pytest.mark.parametrize(
    ("changes", "network", "said"),
    [
        ({"task.kind": "binary", "data.target": "late"}, "three", "one logit a sample, (B,) or (B, 1), got (2, 3)"),
        ({"task.kind": "binary", "data.target": "value"}, "one", "labels 0 or 1 in 'value', got others in row 0, 1"),
        (
            {"task.kind": "binary", "data.target": "owner"},
            "one",
            "names of two classes for a task of kind binary",
        ),
        (
            {"task.kind": "multilabel", "data.target": ["late", "default"]},
            "three",
            "labels 0 or 1 in 'default', got string",
        ),
        ({"task.kind": "multilabel", "data.target": ["late", "old"]}, "three", "for every label, of shape (B, K)"),
        ({"task.kind": "quantile", "data.target": "default"}, "three", "numbers as targets in 'default', got string"),
        ({"task.kind": "quantile", "data.target": "value", "task.quantiles": [0.5]}, "three", "outputs (B, 1)"),
        ({"task.kind": "binary", "task.quantiles": [0.5]}, "one", "kind = 'quantile' in [task] beside quantiles, got"),
        ({"task.kind": "quantile", "task.error": "squared"}, "one", "kind = 'regression' in [task] beside error, got"),
        ({"data.target": ["late", "old"]}, "three", "one column of classes"),
    ],
)
def test_what_does_not_fit_is_one_sentence(changes: dict[str, Any], network: str, said: str, tmp_path: Path) -> None:
    where = place(tmp_path / "bank", {"data.target": "late", **changes}, network)
    code, _, err = expunge("prepare", cwd=where)
    assert code == 2
    assert said in err


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (("--task", "binary"), ['kind = "binary"']),
        (("--task", "quantile"), ['kind = "quantile"', "quantiles = [0.1, 0.5, 0.9]"]),
        (("--task", "multilabel", "--target", "a, b"), ['kind = "multilabel"', 'target = ["a", "b"]']),
        (("--regression",), ['kind = "regression"', '# error = "squared"        # or "absolute"']),
        ((), ['kind = "classification"', 'target = "label"']),
    ],
)
def test_init_writes_the_kind_of_task(words: tuple[str, ...], lines: list[str], run: Run, tmp_path: Path) -> None:
    code, _, err = run("init", "-o", tmp_path / "expunge.toml", *words)
    assert code == 0, err
    text = (tmp_path / "expunge.toml").read_text().splitlines()
    assert all(line in text for line in lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--task", "binry"), "a kind of task, got 'binry': did you mean 'binary'"),
        (("--task", "binary", "--regression"), "one kind of task, got --task binary and --regression"),
        (("--target", ","), "a label column, got none"),
    ],
)
def test_init_refuses(words: tuple[str, ...], said: str, run: Run, tmp_path: Path) -> None:
    code, _, err = run("init", "-o", tmp_path / "expunge.toml", *words)
    assert code == 2
    assert said in err


def test_methods_are_told_by_the_kind_of_task(run: Run) -> None:
    for task, declined in (
        ("binary", "blindspot"),
        ("quantile", "scrub"),
        ("multilabel", "unsir"),
    ):
        code, out, _ = run("--json", "methods", "--task", task)
        found = json.loads(out)
        assert code == 0
        assert found["ssd"]["usable"]
        assert found[declined]["declined"]
    assert json.loads(run("--json", "methods", "--task", "binary")[1])["random_label"]["usable"]
