"""Small projects of tables whose tasks are no classification of K classes, trained by their recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from projects import FEATURES, csv, parquet, toml
from shell import expunge

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
    (folder / "bank.py").write_text(NETWORKS)
    write = csv if kind == "csv" else parquet
    for name, (n, seed, first) in {"train": (60, 0, 100), "test": (40, 1, 1000)}.items():
        columns = table(n, seed, first)
        write(folder / f"{name}.{kind}", {k: v for k, v in columns.items() if kind != "csv" or k != "flags"})
    base = {
        "model": {"network": f"bank:{network}", "weights": "train"},
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
