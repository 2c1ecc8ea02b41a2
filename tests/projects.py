"""Small projects on disk, as a user has them: a network of their own, weights, tables, images, checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

Copy = Callable[..., Path]  # of a project, with dotted keys of its file changed
FEATURES = ("height", "weight", "age")
KINDS = ("bird", "cat", "dog")
PEOPLE = ("ann", "bob", "cem", "dora", "eve")
SOURCE = '''\
"""A network that the package has never seen."""

import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, features=3, kinds=3):
        super().__init__()
        self.hidden = nn.Linear(features, 8)
        self.head = nn.Linear(8, kinds)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(x)))


def build():
    return Small()
'''
BASE: dict[str, dict[str, Any]] = {
    "model": {"network": "shop:build", "weights": "model.safetensors"},
    "data": {
        "train": "train.parquet",
        "test": "test.parquet",
        "inputs": list(FEATURES),
        "target": "kind",
        "id": "key",
        "subject": "owner",
    },
    "recipe": {"epochs": 2, "batch_size": 16, "lr": 0.1},
    "method": {"name": "ssd", "alpha": 1.0},
}


class Small(nn.Module):
    """The network of `SOURCE`, for the tests themselves."""

    def __init__(self, features: int = 3, kinds: int = 3) -> None:
        super().__init__()
        self.hidden = nn.Linear(features, 8)
        self.head = nn.Linear(8, kinds)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(x)))


def rows(n: int, seed: int = 0, first: int = 100) -> dict[str, Any]:
    """Return columns of n pets: three numbers, a kind by name, an owner and a unique whole number."""
    draw = np.random.default_rng(seed)
    kind = np.arange(n) % len(KINDS)
    x = 2 * np.eye(3)[kind] + draw.normal(size=(n, 3))
    return {
        **{name: x[:, at].astype(np.float32) for at, name in enumerate(FEATURES)},
        "kind": [KINDS[k] for k in kind],
        "owner": [PEOPLE[i % 5] for i in range(n)],
        "key": list(range(first, first + n)),
    }


def parquet(path: Path, columns: dict[str, Any]) -> None:
    pq.write_table(pa.table(columns), path)


def csv(path: Path, columns: dict[str, Any]) -> None:
    pyarrow.csv.write_csv(pa.table(columns), path)


def trained(columns: dict[str, Any], steps: int = 60) -> Small:
    """Return the network fitted to the rows."""
    x = torch.stack([torch.as_tensor(columns[f]) for f in FEATURES], dim=1)
    y = torch.tensor([KINDS.index(k) for k in columns["kind"]])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def toml(changes: dict[str, Any] | None = None, base: dict[str, dict[str, Any]] | None = None) -> str:
    """Return a project file: ``base`` with the dotted keys of ``changes`` set, or left out where they are None."""
    body = {table: dict(keys) for table, keys in (BASE if base is None else base).items()}
    for dotted, value in (changes or {}).items():
        table, _, key = dotted.rpartition(".")
        if value is None:
            body.get(table, {}).pop(key, None)
        else:
            body.setdefault(table, {})[key] = value
    lines = []
    for table, keys in body.items():
        if not keys:
            continue
        lines += [f"[{table}]", *(f"{k} = {json.dumps(v)}" for k, v in keys.items()), ""]
    return "\n".join(lines)


def shop(folder: Path, changes: dict[str, Any] | None = None, n: int = 60) -> Path:
    """Write a project of pets: network in shop.py, model.safetensors, train and test parquet, expunge.toml."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shop.py").write_text(SOURCE)
    columns = rows(n)
    parquet(folder / "train.parquet", columns)
    parquet(folder / "test.parquet", rows(30, seed=1, first=1000))
    save_file(dict(trained(columns).state_dict()), folder / "model.safetensors")
    (folder / "expunge.toml").write_text(toml(changes))
    return folder


def pictures(folder: Path, n: int = 24, size: int = 8, channels: int = 3) -> list[Path]:
    """Write a folder with one folder of PNG files a class."""
    draw = np.random.default_rng(0)
    found = []
    for at in range(n):
        kind = KINDS[at % 2]
        pixels = draw.integers(0, 128, (size, size, channels)) + 127 * (at % 2)
        path = folder / kind / f"{at:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8).squeeze()).save(path)
        found.append(path)
    return found
