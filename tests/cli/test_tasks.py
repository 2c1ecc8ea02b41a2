"""Projects whose tasks are no classification of K classes, from init to audit by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from projects import FEATURES, csv, parquet, toml
from shell import Run, _reports, expunge, run

__all__ = ["_reports", "run"]
NETWORKS = """\
import torch
from torch import nn


def one():
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))


def three():
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3))


def steps():
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.Unflatten(1, (2, 3)))
"""


def table(n: int, seed: int, first: int) -> dict[str, Any]:
    """Return columns of n loans: three numbers, labels of several kinds, an owner and an id."""
    x = np.random.default_rng(seed).normal(size=(n, 3))
    return {
        **{name: x[:, at].astype(np.float32) for at, name in enumerate(FEATURES)},
        "default": ["bad" if row[0] > 0.5 else "good" for row in x],
        "late": (x[:, 0] > 0.5).astype(float),
        "rich": x[:, 1] > 0,
        "old": (x[:, 2] > 0).astype(int),
        "flags": [[int(v > 0) for v in row] for row in x],
        "value": x[:, 0] + x[:, 1],
        "next": x[:, 0] - x[:, 1],
        "owner": [f"o{i % 5}" for i in range(n)],
        "key": list(range(first, first + n)),
    }


def place(folder: Path, changes: dict[str, Any], network: str, kind: str = "csv") -> Path:
    """Write a project that is trained by its recipe."""
    folder.mkdir()
    (folder / "shop.py").write_text(NETWORKS)
    write = csv if kind == "csv" else parquet
    for name, (n, seed, first) in {"train": (60, 0, 100), "test": (40, 1, 1000)}.items():
        columns = table(n, seed, first)
        write(folder / f"{name}.{kind}", {k: v for k, v in columns.items() if kind != "csv" or k != "flags"})
    base = {
        "model": {"network": f"shop:{network}", "weights": "train"},
        "data": {"train": f"train.{kind}", "test": f"test.{kind}", "inputs": list(FEATURES), "id": "key"},
        "recipe": {"epochs": 8, "batch_size": 16, "lr": 0.1},
        "method": {"name": "ssd", "alpha": 1.0},
    }
    (folder / "expunge.toml").write_text(toml({"data.subject": "owner", **changes}, base))
    return folder


def done(where: Path, *words: object) -> str:
    code, out, err = expunge(*words, cwd=where)
    assert code == 0, err
    return out


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
