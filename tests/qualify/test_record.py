"""The qualification record: kept whole, what it covers, when it expires."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge import __version__
from expunge.data import Data
from expunge.errors import CorruptArtefact, Incompatible, UserError
from expunge.qualify.finding import FORBIDDEN
from expunge.qualify.record import Qualification, data_digest

METHOD = {"name": "ssd", "alpha": 5.0, "dampening": 1.0}


def size(n: int, **more: Any) -> dict[str, Any]:
    rate = {"x": 0.03, "low": 0.004, "high": 0.11, "n": 64}
    return {"n": n, "requests": 64, "bound": 0.4, "failed": 2, "rate": rate, "blind": False, **more}


def record(**more: Any) -> Qualification:
    verdict = {"value": "insufficient evidence"}
    kinds = [
        {
            "kind": "random", "words": "Random samples", "verdict": verdict,
            "sizes": [size(10), size(1, blind=True), size(100, bound=None)],
            "in_row": {"n": 10, "longest": 4, "tolerance": 0.1},
        },
        {"kind": "class", "words": "A whole class (class 3)", "verdict": verdict, "target": {"value": 3},
         "sizes": [size(50)], "in_row": None},
        {"kind": "subject", "words": "All samples of one person", "verdict": verdict, "target": None,
         "sizes": [size(8)], "in_row": None},
    ]  # fmt: skip
    body = {
        "made": "2026-11-22T23:00:00+00:00", "expunge": __version__, "model": "w0", "data": "d0", "method": METHOD,
        "share": 0.9, "confidence": 0.95, "unit": "nats", "kinds": kinds, "excludes": [], "samples": 1000,
        "pool": {"samples": 500},
    }  # fmt: skip
    return Qualification(body | more)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    record().save(tmp_path / "q.json")
    found = Qualification.load(tmp_path / "q.json")
    assert found == record()
    assert found.digest == record().digest != record(made="later").digest


def test_what_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "q.json"
    with pytest.raises(UserError, match="none there"):
        Qualification.load(file)
    record().save(file)
    body = json.loads(file.read_text())

    def of(**more: Any) -> dict[str, Any]:
        return {**body, "kinds": [body["kinds"][0] | more]}

    for broken, error, match in [
        ({**body, "kind": "expunge.pool"}, Incompatible, "kind 'expunge.qualification'"),
        ({**body, "schema": 2}, Incompatible, "schema 1 or older"),
        ({k: v for k, v in body.items() if k != "data"}, CorruptArtefact, "no usable data:"),
        ({**body, "kinds": []}, CorruptArtefact, "no usable kinds:"),
        ({**body, "made": 5}, CorruptArtefact, "no usable made:"),
        ({**body, "method": "ssd"}, CorruptArtefact, "no usable method:"),
        ({**body, "share": None}, CorruptArtefact, "no usable share:"),
        ({k: v for k, v in body.items() if k != "model"}, CorruptArtefact, "no usable model:"),
        ({**body, "pool": {"samples": 0}}, CorruptArtefact, "no usable pool.samples:"),
        (of(sizes=[3]), CorruptArtefact, "no usable kinds.0.sizes.0:"),
        (of(sizes=5), CorruptArtefact, "no usable kinds.0.sizes:"),
        (of(sizes=[size(10, rate=None)]), CorruptArtefact, "no usable kinds.0.sizes.0.rate:"),
        (of(sizes=[size(10, bound="x")]), CorruptArtefact, "no usable kinds.0.sizes.0.bound:"),
        (of(sizes=[size(10, bound=float("nan"))]), CorruptArtefact, "no usable kinds.0.sizes.0.bound:"),
        (of(verdict="x"), CorruptArtefact, "no usable kinds.0.verdict:"),
        (of(in_row=[1]), CorruptArtefact, "no usable kinds.0.in_row:"),
    ]:
        file.write_text(json.dumps(broken))
        with pytest.raises(error, match=match):
            Qualification.load(file)


def test_it_holds_until_model_data_method_or_version_change() -> None:
    same: dict[str, Any] = {"model": "w0", "same_data": True, "method": METHOD}
    assert record().expired(**same) == ()
    assert record(model=None).expired(**same | {"model": "any"}) == ()
    assert "trained anew" in record().expired(**same | {"model": "w1"})[0]
    assert "data" in record().expired(**same | {"same_data": False})[0]
    assert record().expired(**same | {"method": METHOD | {"alpha": 10.0}}) == (
        "alpha of the method is 10.0 instead of 5.0",
    )
    assert record().expired(**same | {"method": {"name": "lfssd"}}) == ("the method is lfssd instead of ssd",)
    assert "expunge 9.9.1" in record(expunge="9.9.1").expired(**same)[0]
    assert len(record(expunge="9.9.1").expired(model="w1", same_data=False, method={"name": "x"})) == 4


@pytest.mark.parametrize(
    ("asked", "n"),
    [({"n": 1}, 1), ({"n": 9}, 1), ({"n": 10}, 10), ({"n": 99, "in_row": 4}, 10), ({"n": 100}, 100)],
)
def test_the_largest_size_no_larger_than_the_request_stands_for_it(asked: dict[str, Any], n: int) -> None:
    found = record().cited(kind="random", **asked)
    assert found.covers
    assert found.entry is not None
    assert found.entry["n"] == n
    assert f"64 simulated requests of {n:,} " in found.text
    assert ("too small to be told" in found.text) == (n == 1)
    assert ("too few for a bound" in found.text) == (n == 100)
    assert ("95% confidence at least 90%" in found.text) == (n != 100)
    assert "insufficient evidence" in found.officer
    assert not any(word in (found.text + found.officer).lower() for word in FORBIDDEN)


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"kind": "random", "n": 101}, "that large: the largest had 100, this one 101"),
        ({"kind": "random", "n": 10, "in_row": 5}, "edit 5 on this model .* 4 in a row"),
        ({"kind": "subject", "n": 7}, "that small: the smallest had 8, this one 7"),
        ({"kind": "subject", "n": 18}, "that large: the largest had 17, this one 18"),
        ({"kind": "class", "n": 49, "target": 3}, "that small: the smallest had 50, this one 49"),
        ({"kind": "class", "n": 50, "target": 4}, "this class were not simulated"),
        ({"kind": "class", "n": 50, "target": 3, "in_row": 2}, "1 in a row"),
        ({"kind": "subclass", "n": 5}, "kind subclass were not simulated \\(class, random, subject were\\)"),
    ],
)
def test_what_it_does_not_cover(asked: dict[str, Any], match: str) -> None:
    import re

    found = record().cited(**asked)
    assert not found.covers
    assert re.search(match, found.text)


def test_a_class_stands_for_itself_and_a_person_for_others() -> None:
    assert record().cited(kind="class", n=50, target=3).covers
    assert record().cited(kind="class", n=50, target="3").covers
    assert record().cited(kind="class", n=100, target=3).covers  # halves of the data held 50 of it
    assert record().cited(kind="subject", n=8, target="s9").covers
    assert record().cited(kind="subject", n=16, target="s9").covers


def test_a_class_is_not_named() -> None:
    found = record().cited(kind="class", n=50, target=3)
    assert "(a whole class)" in found.text
    assert "3)" not in found.text


def test_several_people_of_which_the_largest_that_fits_stands_for_a_request() -> None:
    kinds = [
        {"kind": "subject", "words": "All samples of one person", "verdict": {"value": value}, "target": None,
         "sizes": [size(n)], "in_row": None}
        for n, value in ((20, "distinguishable"), (5, "insufficient evidence"))
    ]  # fmt: skip
    for n, at, value in ((5, 5, "insufficient"), (19, 5, "insufficient"), (20, 20, "distinguishable")):
        found = record(kinds=kinds).cited(kind="subject", n=n)
        assert found.entry is not None
        assert found.entry["n"] == at
        assert value in found.text


def test_the_rate_of_failures_has_its_interval_and_what_is_not_excluded_is_said() -> None:
    found = record(confidence=0.99).cited(kind="random", n=10)
    assert "2 of them (3.0%, 99% interval 0.4% to 11.0%) ended farther away than every retrained model" in found.text
    assert "with 99% confidence at least 90%" in found.text
    assert "does not exclude that this request came out worse, that single samples of it stand out" in found.text
    assert "does not exclude that single samples are still known" in found.officer
    open_rate = {"x": 0.0, "low": None, "high": None, "n": 0}
    kinds = [record().body["kinds"][0] | {"sizes": [size(10, rate=open_rate)]}]
    assert "interval 0.0% to 100.0%" in record(kinds=kinds).cited(kind="random", n=10).text


def test_a_later_edit_says_that_its_numbers_are_of_a_first_one() -> None:
    assert "since the training" not in record().cited(kind="random", n=10).text
    found = record().cited(kind="random", n=10, in_row=3).text
    assert "this is edit 3 since the training: up to 4 in a row of 10 each, at most 10% fail." in found


def test_data_is_told_apart_by_content_labels_and_ids() -> None:
    x, y = np.arange(6, dtype=np.float32).reshape(3, 2), np.array([0, 1, 0])
    own = data_digest(Data.from_arrays(x, y, name="a"))
    assert own == data_digest(Data.from_arrays(x.copy(), y.copy(), name="a"))
    assert own != data_digest(Data.from_arrays(x + 1, y, name="a"))
    assert own != data_digest(Data.from_arrays(x, 1 - y, name="a"))
    assert own != data_digest(Data.from_arrays(x, y, ids=["p", "q", "r"], name="a"))
