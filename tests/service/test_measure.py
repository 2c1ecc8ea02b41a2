"""What is measured of a model before and after where none of the forgotten samples is at hand, by kind of task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expunge.project import Project
from expunge.service.measure import Measured, measure
from projects import csv, toml

NETWORKS = """\
from torch import nn


def one():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def three():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
"""


def bank(folder: Path, kind: str) -> Project:
    """Return a project of loans: their amount, whether they came back late, and where they were asked for."""
    (folder / "shop.py").write_text(NETWORKS)
    for name, (n, seed) in {"train": (80, 0), "test": (60, 1)}.items():
        x = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
        numbers = {"amount": x[:, 0] + x[:, 1], "late": (x[:, 0] > 0.4).astype(int)}
        branch = ["north" if v > 0 else "south" for v in x[:, 2]]
        keys = [f"{name}-{i}" for i in range(n)]
        csv(folder / f"{name}.csv", {**dict(zip("abc", x.T, strict=True)), **numbers, "branch": branch, "key": keys})
    target = "late" if kind == "binary" else "amount"
    base = {
        "model": {"network": f"shop:{'three' if kind == 'quantile' else 'one'}", "weights": "train"},
        "data": {"train": "train.csv", "test": "test.csv", "inputs": list("abc"), "id": "key", "target": target},
        "task": {"kind": kind},
        "recipe": {"epochs": 5, "batch_size": 16, "lr": 0.05},
    }
    base["data"]["columns"] = ["branch"]
    (folder / "expunge.toml").write_text(toml({}, base))
    return Project.open(folder / "expunge.toml")


def measured(place: Project, name: str) -> Measured:
    runtime = place.runtime("cpu", {})
    before, after = place.trained(runtime, 0), place.trained(runtime, 0)
    with torch.no_grad():
        for value in after.parameters():
            value += 0.3
    return measure(place, before, after, name, train=place.train, scenario=None, runtime=runtime, seed=0)


ERRORS = {f"error/{kind}/test" for kind in ("mae", "rmse", "mae_constant", "rmse_constant")}
LOSSES = {"loss/retain", "loss/test"}
WANTED: dict[str, set[str]] = {
    "regression": ERRORS | LOSSES | {"segments/score_change"},
    "quantile": ERRORS
    | LOSSES
    | {"error/pinball_constant/test", "coverage/test", "coverage/width/test", "segments/score_change"},
    "binary": LOSSES
    | {f"accuracy/{split}" for split in ("retain", "test")}
    | {f"flips/{way}/{split}" for way in ("gained", "lost") for split in ("retain", "test")}
    | {f"decisions/{kind}/test" for kind in ("auc", "ks", "calibration", "rate")}
    | {"decisions/flipped/original", "stability/original/test", "segments/score_change", "segments/rate_change"}
    | {"subgroups/spread", "subgroups/worst_change"},
}


@pytest.mark.parametrize("kind", WANTED)
def test_numbers_on_what_stays_are_measured_of_every_task(kind: str, tmp_path: Path) -> None:
    found: dict[str, Any] = measured(bank(tmp_path, kind), "ssd").body
    assert set(found["metrics"]["after"]) == WANTED[kind]
    assert "gaps" not in found
    for name in ("segments/score_change", "decisions/flipped/original", "stability/original/test"):
        if name in WANTED[kind]:
            assert found["metrics"]["before"][name]["x"] == 0
            assert found["metrics"]["after"][name]["x"] > 0


@pytest.mark.parametrize("kind", WANTED)
def test_gaps_to_a_retrained_model_are_those_of_what_stays(kind: str, tmp_path: Path) -> None:
    found = measured(bank(tmp_path, kind), "retrained").body["gaps"]
    assert "loss/test" in found
    assert [name for name in found if "forget" in name] == []
