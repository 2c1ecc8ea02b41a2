"""What a rollback opens again is fulfilled again, whatever was found absent because of what is undone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from expunge.ledger import Ledger, Status
from expunge.ledger.account import account
from expunge.service.rollback import rollback
from projects import toml
from services import SETTINGS, Shop


def back(shop: Shop) -> None:
    with shop.ledger() as ledger:
        rollback(shop.space, ledger, "model", now=shop.now)


def steps(shop: Shop) -> list[tuple[tuple[str, ...], str]]:
    return [(o.requests, o.step) for o in shop.process()]


def test_what_was_absent_because_of_an_undone_version_is_forgotten_again(pets: Any) -> None:
    shop = pets()
    shop.ask("r1", "101")
    assert steps(shop) == [(("r1",), "deployed")]
    shop.ask("r2", "101")
    assert steps(shop) == [(("r2",), "absent")]
    back(shop)
    assert shop.remembered() == []
    assert steps(shop) == [(("r1", "r2"), "deployed")]
    assert shop.remembered() == ["101"]
    assert shop.status("r1").closed
    assert shop.status("r2").closed
    shop.sound()


def test_what_another_request_forgot_meanwhile_is_absent_after_a_rollback(pets: Any) -> None:
    shop = pets()
    shop.ask("r1", "101", "102")
    shop.ask("r2", "101")
    assert steps(shop) == [(("r1", "r2"), "deployed")]
    back(shop)
    (shop.folder / "expunge.toml").write_text(toml(SETTINGS | {"requests.batch": 1}))
    assert steps(shop) == [(("r1",), "deployed"), (("r2",), "absent")]
    assert shop.status("r2").closed
    shop.sound()


def test_a_hold_that_comes_just_before_closing_leaves_it_open_and_the_run_goes_on(
    pets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = pets()
    shop.ask("r1", "101")
    shop.ask("r2", "102")
    listed = Ledger.open_requests

    def held(ledger: Ledger) -> Iterator[Status]:
        found = list(listed(ledger))
        if all(s.held is None and s.models and s.models["model"].step == "deployed" for s in found):
            ledger.record("r1", "held", {"reason": "a lawsuit"})
        return iter(found)

    monkeypatch.setattr(Ledger, "open_requests", held)
    shop.process()
    monkeypatch.undo()
    assert [shop.status(id).word for id in ("r1", "r2")] == ["held", "closed"]
    shop.sound()


def test_the_day_of_closing_is_that_of_the_machine(pets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is closed in the evening of the day it is due is not late because it is the next day in UTC."""
    shop = pets()
    shop.ask("r1", "101")
    shop.time = datetime(2030, 2, 1, 3, tzinfo=UTC)
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        shop.process()
    finally:
        monkeypatch.undo()
        time.tzset()
    with shop.ledger() as ledger:
        assert account(ledger.history("r1"))["days"] == {"closed": "2030-01-31", "left": 0, "in_time": True}
