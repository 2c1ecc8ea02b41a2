"""What a rollback opens again is fulfilled again, whatever was found absent because of what is undone."""

from __future__ import annotations

from typing import Any

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
