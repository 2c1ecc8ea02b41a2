"""A project of pets with a workspace, and the requests that come in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from expunge import metrics
from expunge.service import measure
from projects import shop, toml
from services import SETTINGS, Shop
from shell import _reports, expunge, own_modules, whole_reports

__all__ = ["_reports", "whole_reports"]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with own_modules():
        yield


@pytest.fixture(autouse=True)
def _few_metrics(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure four families of numbers, unless a test asks for all: they take a tenth of the time."""
    if "all_metrics" not in request.fixturenames:
        every = measure.families
        monkeypatch.setattr(
            measure, "families", lambda place: [m for m in every(place) if _family(m) in measure.UNTOUCHED]
        )


def _family(metric: metrics.Metric) -> str:
    return type(metric).__module__.rpartition(".")[2]


@pytest.fixture
def all_metrics() -> None:
    """Ask for every number."""


@pytest.fixture(scope="session")
def _prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shop(tmp_path_factory.mktemp("service") / "shop", SETTINGS)
    code, _, err = expunge("prepare", cwd=folder)
    assert code == 0, err
    return folder


@pytest.fixture
def pets(_prepared: Path, tmp_path: Path) -> Any:
    """Return a function that copies the prepared project, with dotted keys of its file changed, and opens it."""

    def copy(changes: dict[str, Any] | None = None, name: str = "shop") -> Shop:
        folder = tmp_path / name
        shutil.copytree(_prepared, folder, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "expunge.toml").write_text(toml(SETTINGS | (changes or {})))
        return Shop(folder)

    return copy
