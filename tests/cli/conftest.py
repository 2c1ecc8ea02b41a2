"""Folders that prepare and forget wrote on a named data set, for all tests of a module."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shell import _reports, expunge, run, whole_reports

__all__ = ["_reports", "forgotten", "run", "whole_reports", "work"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that prepare wrote."""
    path = tmp_path_factory.mktemp("cli") / "work"
    words = ("prepare", "--data", "digits", "-m", "ssd", "--network", "mlp", "--output", path)
    code, out, err = expunge(*words, cwd=path.parent)
    assert code == 0, err
    assert "Prepared ssd on 1168 samples" in out
    right = json.loads((path / "record.json").read_text())["test_accuracy"]
    assert right > 0.9
    assert f"right on {100 * right:.1f} % of the test data" in out
    return path


@pytest.fixture(scope="module")
def forgotten(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "forgotten"
    code, out, err = expunge("forget", "--start", work, "--class", "3", "-o", path, cwd=work.parent)
    assert code == 0, err
    assert "Edited for 103 of 1168 samples by ssd" in out
    test = json.loads((path / "record.json").read_text())["test_accuracy"]
    assert test["before"] - test["after"] > 0.05
    assert f"Right on {100 * test['before']:.1f} % of the test data before, {100 * test['after']:.1f} % after" in out
    return path
