"""A ledger to try things on, its clock in the test's hands, and requests to put into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from expunge.ledger import Ledger, Request


@dataclass
class Clock:
    """A clock that stands still until it is moved."""

    at: datetime = datetime(2025, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at

    def move(self, **by: float) -> None:
        self.at += timedelta(**by)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "requests"


@pytest.fixture
def ledger(folder: Path, clock: Clock) -> Iterator[Ledger]:
    with Ledger.open(folder, create=True, now=clock, actor="ann") as found:
        yield found


@pytest.fixture
def ask() -> Callable[..., Request]:
    """Return what makes a request of an id and the fields that matter to a test."""

    def request(id: str, *values: str, **fields: object) -> Request:
        days = {"received": date(2025, 3, 1), "due": date(2025, 3, 31)}
        return Request(id, fields.pop("kind", "ids"), values or (f"train/{id}",), **{**days, **fields})

    return request


@pytest.fixture
def fulfil() -> Callable[..., None]:
    """Return what takes a request of a ledger through an edit of one model, to its end."""

    def through(ledger: Ledger, id: str, model: str = "model", close: bool = True) -> None:
        ledger.record(id, "started", {"how": "edit"}, model=model)
        marks = ledger.remember(model, [f"train/{id}"], id)
        ledger.record(id, "unlearned", {"version": "v000002", "marks": marks}, model=model)
        ledger.record(id, "verified", model=model)
        ledger.record(id, "deployed", model=model)
        if close:
            ledger.record(id, "closed")

    return through
