"""A shop with deletion requests: what comes in, what is done, and what can be seen of it."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import torch

from expunge.folders import Folder
from expunge.ledger import Event, Ledger, Request, Status
from expunge.project import Project
from expunge.service import Outcomes, Workspace, process

SETTINGS: dict[str, Any] = {"method.alpha": 0.003, "method.dampening": 0.003}
START = datetime(2030, 1, 1, 12, tzinfo=UTC)


class Shop:
    """A project folder with a workspace.

    Args:
        folder: with the project file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.time = folder, START
        self.space = Workspace.of(self.project)
        self.space.folder.mkdir(exist_ok=True)
        with Ledger.open(self.space.folder, create=True, now=self.now):
            pass

    @property
    def project(self) -> Project:
        """The project as its file says now."""
        return Project.open(self.folder / "expunge.toml")

    def now(self) -> datetime:
        return self.time

    def later(self, days: float) -> None:
        self.time += timedelta(days=days)

    def ledger(self) -> Ledger:
        return Ledger.open(self.space.folder, now=self.now, actor="ada")

    def ask(self, id: str, *values: str, kind: Any = "ids", route: Any = None) -> None:
        """Receive a request."""
        day = date(2030, 1, 1)
        with self.ledger() as ledger:
            ledger.receive(Request(id, kind, values, route, received=day, due=day + timedelta(days=30)))

    def process(self, **given: Any) -> Outcomes:
        return process(self.project, now=self.now, actor="ada", **given)

    def status(self, id: str) -> Status:
        with self.ledger() as ledger:
            return ledger.status(id)

    def steps(self, id: str, name: str = "model") -> list[str]:
        """Return the steps of a request on one model."""
        with self.ledger() as ledger:
            return [e.step for e in ledger.history(id) if e.model == name]

    def event(self, id: str, step: str, name: str = "model") -> Event:
        """Return the last event of that step."""
        with self.ledger() as ledger:
            return [e for e in ledger.history(id) if e.model == name and e.step == step][-1]

    def remembered(self, name: str = "model") -> list[str]:
        """Return the ids of the training data that a model has forgotten."""
        with self.ledger() as ledger:
            return ledger.remembered(self.project.train.ids, name)

    def served(self, name: str = "model") -> Folder:
        return Folder.open(self.space.served(name), self.folder / "expunge.toml")

    def start(self) -> Folder:
        return Folder.open(self.folder / "expunge-work", self.folder / "expunge.toml")

    def sound(self) -> None:
        """Hold the ledger to its chain, and the served version to what was recorded of it."""
        with self.ledger() as ledger:
            assert ledger.check() == []


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
