"""What waits for an approval, and for a retraining, when the policy or the order of work changes on the way."""

from __future__ import annotations

from typing import Any

from services import Shop


def test_what_was_begun_before_approvals_were_asked_for_goes_on(pets: Any) -> None:
    shop: Shop = pets({"requests.route": "edit-then-retrain"})
    shop.ask("begun", "100")
    shop.process()
    assert shop.status("begun").word == "scheduled"
    file = shop.folder / "expunge.toml"
    file.write_text(file.read_text().replace("[requests]", "[requests]\napproval = true"))
    shop.ask("new", "101")
    shop.later(31)
    assert [(o.requests, o.how) for o in shop.process()] == [(("begun",), "retrain")]
    assert (shop.status("begun").word, shop.status("new").word) == ("closed", "received")


def test_a_retraining_for_one_fulfils_all_that_wait_for_one(pets: Any) -> None:
    shop: Shop = pets()
    shop.ask("waits", "100", "101", route="edit-then-retrain")
    shop.ask("later", "102", route="retrain")
    shop.process()
    shop.ask("now", "103")
    found = shop.process(only=["now"], how="retrain")
    assert [(set(o.requests), o.step) for o in found] == [({"now", "waits", "later"}, "deployed")]
    assert {shop.status(id).word for id in ("now", "waits", "later")} == {"closed"}
    assert set(shop.remembered()) == {"100", "101", "102", "103"}
    shop.sound()


def test_nothing_is_retrained_where_what_is_asked_for_was_retrained_before(pets: Any) -> None:
    shop: Shop = pets()
    shop.ask("done", "100")
    shop.process(how="retrain")
    shop.ask("waits", "101", route="edit-then-retrain")
    shop.process()
    assert shop.process(only=["done"], how="retrain") == []
    assert shop.status("waits").word == "scheduled"


def test_what_a_retraining_left_out_for_others_needs_no_retraining_of_its_own(pets: Any) -> None:
    shop: Shop = pets()
    shop.ask("first", "100", "101")
    shop.process(how="retrain")
    shop.ask("again", "100")
    assert [(o.requests, o.step) for o in shop.process(how="retrain")] == [(("again",), "absent")]
    assert shop.status("again").word == "closed"
    shop.ask("edited", "102")
    shop.process()
    shop.ask("exactly", "102", route="retrain")
    assert [(o.requests, o.step) for o in shop.process(how="retrain")] == [(("exactly",), "deployed")]
