"""A project of pets, as it came and prepared, to be copied by each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from projects import Copy, shop, toml
from shell import _reports, expunge, own_modules, whole_reports

__all__ = ["_reports", "fresh", "pets", "prepared", "ready", "whole_reports"]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    """Forget what a test imported by opening a project itself: the next one has another module of that name."""
    with own_modules():
        yield


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shop(tmp_path_factory.mktemp("pets") / "shop")


@pytest.fixture(scope="session")
def prepared(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "shop"
    shutil.copytree(pets, folder)
    code, _, err = expunge("prepare", cwd=folder)
    assert code == 0, err
    return folder


def _copy(source: Path, folder: Path) -> Copy:
    def copy(changes: dict[str, Any] | None = None) -> Path:
        """Copy the project, with dotted keys of its file changed."""
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
        if changes is not None:
            (folder / "expunge.toml").write_text(toml(changes))
        return folder

    return copy


@pytest.fixture
def fresh(pets: Path, tmp_path: Path) -> Copy:
    """Return a function that copies the project before anything was run in it."""
    return _copy(pets, tmp_path / "shop")


@pytest.fixture
def ready(prepared: Path, tmp_path: Path) -> Copy:
    """Return a function that copies the project after prepare."""
    return _copy(prepared, tmp_path / "shop")
