"""Measures of real targets and of decisions, by ``expunge audit``: what its table, report and document say of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge import metrics
from expunge.report.layout import blocks
from projects import csv, toml
from shell import _reports, expunge

__all__ = ["_reports"]
SLOW = {"probe", "relearn", "robustness"}  # what is asked of the networks themselves is the same for every task
NETWORK = """\
from torch import nn


def one():
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))


def three():
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3))
"""


def bank(folder: Path, task: dict[str, Any], target: str, network: str) -> Path:
    """Write a project of loans: three numbers, an amount, whether it came back late, and where it was asked for."""
    folder.mkdir()
    (folder / "shop.py").write_text(NETWORK)
    for name, (n, seed) in {"train": (120, 0), "test": (90, 1)}.items():
        x = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
        columns = {
            **{k: x[:, i] for i, k in enumerate("abc")},
            "amount": np.sin(2 * x[:, 0]) + x[:, 1],
            "late": (x[:, 0] > 0.4).astype(int),
            "branch": ["north" if v > 0 else "south" for v in x[:, 2]],
            "key": [f"{name}-{i}" for i in range(n)],
        }
        csv(folder / f"{name}.csv", columns)
    base = {
        "model": {"network": f"shop:{network}", "weights": "train"},
        "data": {"train": "train.csv", "test": "test.csv", "inputs": list("abc"), "id": "key", "target": target},
        "task": task,
        "recipe": {"epochs": 25, "batch_size": 16, "lr": 0.05},
    }
    base["data"]["columns"] = ["branch"]
    (folder / "expunge.toml").write_text(toml({}, base))
    return folder


def done(where: Path, *words: object) -> str:
    code, out, err = expunge(*words, cwd=where)
    assert code == 0, err
    return out


def audited(where: Path, *who: str) -> tuple[str, dict[str, Any], str]:
    """Return the printed table, the section, and the words of the report's tables; without the slowest measures."""
    done(where, "prepare", "-m", "finetune")
    done(where, "forget", *who, "-m", "finetune", "-o", "gone")
    chosen = [word for name in metrics.names() if name not in SLOW for word in ("--metric", name)]
    out = done(where, "audit", "--unlearned", "gone", *chosen, "-o", "audit")
    section = json.loads((where / "audit" / "audit.json").read_text())["sections"][0]
    tables = [(b.title, b.text, *(h for part in b.parts for h in (part.title, *part.heads))) for b in blocks(section)]
    return " ".join(out.split()), section, "\n".join(text for table in tables for text in table)


def test_a_forgotten_range_of_a_regression(tmp_path: Path) -> None:
    where = bank(tmp_path / "bank", {"kind": "regression"}, "amount", "one")
    out, section, page = audited(where, "--class", "1.0..9.0")
    values, units = section["values"]["finetune"], {m["name"]: m["unit"] for m in section["metrics"]}
    for name in ("error/mae/test_forget", "error/rmse_constant/test_retain", "wasserstein/forget", "paired/distance"):
        assert units[name] == "target units"
        assert values[name]["x"] >= 0
    assert units["ain/steps"] == "steps"
    assert values["error_attack/members"]["unit"] == "1"
    baseline = "error/mae_constant/test_forget"
    assert values[baseline] == section["values"]["original"][baseline]
    assert values["accuracy/test"] == {"unavailable": "the task has no classes"}
    assert section["values"]["original"]["error/mae/test_forget"]["high"] < values[baseline]["low"]
    assert "MAE" in out
    assert "W1" in out
    assert "Distance of distributions" in page
    assert "mean absolute error of the retain median" in page


def test_decisions_of_a_binary_project(tmp_path: Path) -> None:
    where = bank(tmp_path / "bank", {"kind": "binary"}, "late", "one")
    _, section, page = audited(where, "--random", "20")
    values = section["values"]["finetune"]
    assert {"Decisions", "Stability", "Segments"} <= set(page.split("\n"))
    for name in ("decisions/auc/test", "decisions/flipped/original", "segments/score_change", "segments/rate_change"):
        assert values[name]["unit"] == "1"
    assert values["stability/original/test"]["unit"] == ""
    few = "too few samples to fill 10 bins: 20 instead of 50"
    assert values["stability/original/forget"] == {"unavailable": few}
    assert values["error/mae/test"] == {"unavailable": "the task has no real targets"}
    assert {p["at"] for p in section["series"]["finetune"]["segments/branch"]} == {"north", "south"}
    assert "AUC of the decision score" in page


def test_coverage_of_a_quantile_project(tmp_path: Path) -> None:
    where = bank(tmp_path / "bank", {"kind": "quantile", "quantiles": [0.2, 0.5, 0.8]}, "amount", "three")
    _, section, _ = audited(where, "--random", "20")
    values = section["values"]["finetune"]
    assert values["coverage/test"]["unit"] == "1"
    assert values["coverage/width/test"]["unit"] == values["error/mae/test"]["unit"] == "target units"
    assert values["ain/index"] == {"unavailable": "there are no samples in test_forget"}


@pytest.mark.parametrize("name", ["error", "error_attack", "ain", "decisions", "stability", "segments", "coverage"])
def test_each_family_says_what_it_is(name: str, tmp_path: Path) -> None:
    out = done(tmp_path, "measures", name)
    assert all(number in out for number in metrics.load(name)().numbers)
