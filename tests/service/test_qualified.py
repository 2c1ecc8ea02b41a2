"""Edits cite the qualification that the project names: what covers them, what expired, what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from expunge.errors import CorruptArtefact, UserError
from expunge.ledger import Ledger
from expunge.qualify.record import Qualification, data_digest
from expunge.service.limits import NO_QUALIFICATION
from expunge.service.record import record_of
from expunge.tensors import weights_digest
from qualify.test_record import record, size
from services import Shop


def qualified(shop: Shop, **more: Any) -> None:
    """Name in the project file a record that is right for it, but for what is given."""
    place, folder = shop.project, shop.start()
    body = {
        "model": weights_digest(folder.model()),
        "data": data_digest(place.train),
        "method": place.method("ssd", folder.settings()).settings(),
        **more,
    }
    record(**body).save(shop.folder / "q.json")
    file = shop.folder / "expunge.toml"
    text = file.read_text()
    assert "[requests]" not in text
    file.write_text(text + '\n[requests]\nqualification = "q.json"\n')


def told(shop: Shop, id: str) -> dict[str, Any]:
    found: dict[str, Any] = shop.event(id, "unlearned").body["qualification"]
    return found


def limits(shop: Shop, id: str) -> list[str]:
    with Ledger.open(shop.space.folder) as ledger:
        said: list[str] = record_of(ledger, id)["limits"]
        return said


def test_an_edit_cites_it_in_event_outcome_and_record(pets: Any) -> None:
    shop: Shop = pets()
    qualified(shop)
    shop.ask("r1", *map(str, range(100, 110)))
    (outcome,) = shop.process()
    found = told(shop, "r1")
    assert (found["covers"], found["expired"]) == (True, [])
    assert found["digest"] == Qualification.load(shop.folder / "q.json").digest
    assert "64 simulated requests of 10" in found["text"]
    assert found["text"] in outcome.advice
    said = limits(shop, "r1")
    assert found["text"] in said
    assert found["officer"] in said
    assert NO_QUALIFICATION not in said
    shop.sound()


def test_edits_in_a_row_are_counted_from_the_weights_that_were_qualified(pets: Any) -> None:
    shop: Shop = pets()
    qualified(shop)
    for n in range(5):
        shop.ask(f"r{n}", *map(str, range(100 + 10 * n, 110 + 10 * n)))
        shop.process()
    assert [told(shop, f"r{n}")["covers"] for n in range(5)] == [True, True, True, True, False]
    assert "request 5 on this model" in told(shop, "r4")["text"]
    assert told(shop, "r4")["expired"] == []  # the weights are edited ones of those qualified


def test_after_a_retraining_it_has_expired(pets: Any) -> None:
    shop: Shop = pets()
    qualified(shop)
    shop.ask("r1", "100", "101", route="retrain")
    shop.process(how="retrain")
    shop.ask("r2", *map(str, range(110, 120)))
    shop.process()
    found = told(shop, "r2")
    assert not found["covers"]
    assert "trained anew" in found["text"]
    assert found["text"] in limits(shop, "r2")


@pytest.mark.parametrize(
    ("more", "word"), [({"data": "other"}, "training data"), ({"method": {"name": "lfssd"}}, "ssd instead of lfssd")]
)
def test_one_of_other_data_or_another_method_is_said_to_have_expired(pets: Any, more: Any, word: str) -> None:
    shop: Shop = pets()
    qualified(shop, **more)
    shop.ask("r1", *map(str, range(100, 110)))
    (outcome,) = shop.process()
    assert outcome.step == "deployed"  # it is evidence, and stands in no way
    assert not told(shop, "r1")["covers"]
    assert word in told(shop, "r1")["text"]
    assert "has expired" in outcome.advice[0]


def test_without_one_the_record_says_so(pets: Any) -> None:
    shop: Shop = pets()
    shop.ask("r1", "100")
    shop.process()
    assert "qualification" not in shop.event("r1", "unlearned").body
    assert NO_QUALIFICATION in limits(shop, "r1")


def test_one_that_is_missing_or_broken_is_told_before_work_begins(pets: Any) -> None:
    shop: Shop = pets()
    qualified(shop)
    shop.ask("r1", "100")
    whole = (shop.folder / "q.json").read_text()
    Path(shop.folder / "q.json").write_text(whole[:50])
    with pytest.raises(CorruptArtefact, match="JSON document"):
        shop.process()
    (shop.folder / "q.json").unlink()
    with pytest.raises(UserError, match="none there"):
        shop.process()
    assert shop.steps("r1") == []


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("sure", [False, True])
def test_few_samples_are_insufficient_evidence_without_one_and_have_a_bound_with_one(
    pets: Any, n: int, sure: bool
) -> None:
    shop: Shop = pets()
    if sure:
        qualified(shop, kinds=[{**record().body["kinds"][0], "sizes": [size(n)]}])
    shop.ask("r1", *map(str, range(100, 100 + n)))
    shop.process()
    said = " ".join(limits(shop, "r1"))
    if not sure:
        assert "Verdict on this edit by itself: insufficient evidence" in said
        assert "takes 257" in said
        return
    assert "by itself" not in said
    assert "with 95% confidence at least 90% of such requests end within 0.4 nats of retraining" in said


def test_a_small_request_is_said_to_be_too_small(pets: Any) -> None:
    shop: Shop = pets()
    kinds = record().body["kinds"]
    qualified(shop, kinds=[{**kinds[0], "sizes": [size(10)]}])
    shop.ask("r1", "100")
    shop.process()
    assert "that small" in told(shop, "r1")["text"]
