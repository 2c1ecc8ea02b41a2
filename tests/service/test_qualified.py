"""Edits cite the qualification that the project names: what covers them, what expired, what is missing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from expunge.errors import CorruptArtefact, UserError
from expunge.ledger import Ledger
from expunge.qualify.record import Qualification, data_digest
from expunge.service.limits import NO_QUALIFICATION
from expunge.service.record import record_of
from expunge.tensors import weights_digest
from projects import FEATURES, rows
from qualify.test_record import record, size
from services import Shop

PROCESS = sys.modules["expunge.service.process"]  # the package's function of that name hides it


def qualified(shop: Shop, **more: Any) -> None:
    """Name in the project file a record that is right for it, but for what is given."""
    place, folder = shop.project, shop.start()
    body = {
        "model": weights_digest(folder.model()),
        "data": data_digest(place.train),
        "method": more.get("method") or place.method("ssd", folder.settings()).settings(),
        **more,
    }
    record(**body).save(shop.folder / "q.json")
    file = shop.folder / "expunge.toml"
    text, head = file.read_text(), "[requests]\n"
    assert text.count("[requests]") == text.count(head)
    named = head + 'qualification = "q.json"\n'
    file.write_text(text.replace(head, named) if head in text else f"{text}\n{named}")


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
    assert "edit 5 on this model" in told(shop, "r4")["text"]
    assert told(shop, "r4")["expired"] == []  # the weights are edited ones of those qualified


def test_an_edit_for_several_requests_is_one_in_a_row(pets: Any) -> None:
    shop: Shop = pets()
    qualified(shop)
    for n in range(5):  # as many requests as would end the row, were each an edit
        shop.ask(f"r{n}", *map(str, range(100 + 2 * n, 102 + 2 * n)))
    shop.process()
    shop.ask("later", *map(str, range(120, 130)))
    shop.process()
    assert "64 simulated requests of 10 (random samples)" in told(shop, "r0")["text"]
    assert told(shop, "later")["covers"]
    assert "this is edit 2 since the training" in told(shop, "later")["text"]


@pytest.mark.parametrize("asked", [[("ann",), ("bob",)], [("ann", "bob")]], ids=["two requests", "one of two people"])
def test_several_people_in_one_edit_are_not_random_samples(pets: Any, asked: list[tuple[str, ...]]) -> None:
    shop: Shop = pets({"policy.largest_share": 0.9})
    qualified(shop)
    for n, values in enumerate(asked):
        shop.ask(f"r{n}", *values, kind="subject")
    (outcome,) = shop.process()
    assert outcome.step == "deployed"
    assert not told(shop, "r0")["covers"]
    assert "were not simulated in one edit" in told(shop, "r0")["text"]


def test_a_person_is_covered_by_one_of_that_size(pets: Any) -> None:
    shop: Shop = pets({"policy.largest_share": 0.9})
    qualified(shop)
    shop.ask("r1", "ann", kind="subject")  # 12 samples; the simulated had 8 in half of the data
    shop.process()
    assert told(shop, "r1")["covers"]
    assert "requests of 8 (all samples of one person)" in told(shop, "r1")["text"]


def test_the_class_that_a_request_is_about_is_not_told(pets: Any) -> None:
    shop: Shop = pets({"policy.largest_share": 0.9})
    own = record().body["kinds"][1]
    kind = own | {"words": "A whole class (class 1)", "target": {"value": 1}, "sizes": [size(10)]}
    qualified(shop, kinds=[kind])
    shop.ask("r1", "cat", kind="class")
    shop.process()
    found = told(shop, "r1")
    assert found["covers"]
    assert "(a whole class)" in found["text"]
    assert "class 1" not in found["text"] + found["officer"]


def test_each_model_cites_its_own_and_one_without_is_said_to_have_none(pets: Any) -> None:
    pets(name="other")
    shop: Shop = pets()
    qualified(shop)
    file = shop.folder / "expunge.toml"
    file.write_text(f'{file.read_text()}\n[requests.models]\na = "expunge.toml"\nb = "../other/expunge.toml"\n')
    shop.ask("r1", *map(str, range(100, 110)))
    assert [(o.model, o.step) for o in shop.process()] == [("a", "deployed"), ("b", "deployed")]
    said = limits(shop, "r1")
    assert f"a: {shop.event('r1', 'unlearned', 'a').body['qualification']['text']}" in said
    assert f"b: {NO_QUALIFICATION}" in said


def test_one_removed_while_work_goes_on_stops_no_edit(pets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shop: Shop = pets()
    qualified(shop)
    shop.ask("r1", *map(str, range(100, 110)))
    real = PROCESS.edit

    def removed(*given: Any) -> Any:
        (shop.folder / "q.json").unlink()
        return real(*given)

    monkeypatch.setattr(PROCESS, "edit", removed)
    assert [o.step for o in shop.process()] == ["deployed"]
    assert told(shop, "r1")["covers"]


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


def keep(shop: Shop, stays: Callable[[int], bool], changed: Mapping[int, float] | None = None, more: int = 0) -> None:
    """Write the training data anew: with some of its rows, other values in the first input, further rows."""
    path = shop.folder / "train.parquet"
    table = pd.read_parquet(path)
    for id, value in (changed or {}).items():
        table.loc[table["key"] == id, FEATURES[0]] = value
    new = pd.DataFrame(rows(more, seed=7, first=500)) if more else table.iloc[:0]
    pd.concat([table[table["key"].map(stays)], new.astype(table.dtypes)]).to_parquet(path)


def in_a_row(shop: Shop, between: Callable[[], None], count: int = 2) -> list[dict[str, Any]]:
    """Return what requests of ten samples cite; between two the data changes."""
    for n in range(count):
        shop.ask(f"r{n}", *map(str, range(100 + 10 * n, 110 + 10 * n)))
        assert [o.step for o in shop.process()] == ["deployed"]
        between()
    return [told(shop, f"r{n}") for n in range(count)]


def test_fulfilled_requests_may_be_taken_out_of_the_training_data(pets: Any) -> None:
    shop: Shop = pets()
    qualified(shop)
    found = in_a_row(shop, lambda: keep(shop, lambda i: str(i) not in shop.remembered()), 3)
    assert [(f["covers"], f["expired"]) for f in found] == [(True, [])] * 3
    assert "this is edit 3 since the training" in found[2]["text"]


def test_a_state_prepared_anew_goes_on_where_the_old_one_ended(pets: Any) -> None:
    shop: Shop = pets({"requests.refresh_every": 1})
    qualified(shop)
    found = in_a_row(shop, lambda: keep(shop, lambda i: str(i) not in shop.remembered()), 3)
    assert "prepared" in shop.event("r2", "unlearned").body
    assert [f["covers"] for f in found] == [True] * 3


def test_they_may_under_a_method_that_keeps_nothing_of_the_data_itself(pets: Any) -> None:
    shop: Shop = pets({"method.name": "finetune", "method.alpha": None, "method.dampening": None})
    qualified(shop, method=shop.project.method().settings())
    found = in_a_row(shop, lambda: keep(shop, lambda i: str(i) not in shop.remembered()))
    assert [f["expired"] for f in found] == [[], []]


def test_new_samples_may_come_in(pets: Any) -> None:
    shop: Shop = pets()
    qualified(shop)
    keep(shop, lambda i: True, more=4)
    found = in_a_row(shop, lambda: keep(shop, lambda i: str(i) not in shop.remembered()))
    assert [f["covers"] for f in found] == [True, True]


@pytest.mark.parametrize(
    ("stays", "changed"), [(lambda i: i not in (*range(100, 110), 150), None), (lambda i: i > 109, {150: 9.0})]
)
def test_once_other_samples_go_or_change_it_has_expired_for_good(
    pets: Any, stays: Callable[[int], bool], changed: Mapping[int, float] | None
) -> None:
    shop: Shop = pets()
    qualified(shop)
    found = in_a_row(shop, lambda: keep(shop, stays, changed), 3)
    assert [f["expired"] for f in found] == [[], *[["the training data is not what it was"]] * 2]


def test_samples_gone_before_the_first_edit_are_not_taken_for_forgotten_ones(pets: Any) -> None:
    shop: Shop = pets()
    qualified(shop)
    keep(shop, lambda i: i != 150)
    assert in_a_row(shop, lambda: None, 1)[0]["expired"] == ["the training data is not what it was"]


def test_another_record_is_not_held_to_what_an_edit_said_of_the_first(pets: Any) -> None:
    shop: Shop = pets()
    qualified(shop)
    file = shop.folder / "q.json"

    def other() -> None:
        keep(shop, lambda i: i > 109)
        body = json.loads(file.read_text())
        file.write_text(json.dumps(body | {"data": "d1"}))

    assert [f["expired"] for f in in_a_row(shop, other)] == [[], ["the training data is not what it was"]]


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
    body = json.loads(whole)
    body["kinds"][0]["sizes"][0]["rate"] = None
    Path(shop.folder / "q.json").write_text(json.dumps(body))
    with pytest.raises(CorruptArtefact, match=r"no usable kinds\.0\.sizes\.0\.rate"):
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
