"""Records of requests: everything that was recorded, what is not recorded said so, and nobody's data."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import records
from expunge.errors import UserError
from expunge.ledger import Ledger, pack
from expunge.service import limits, record
from services import Shop

CANARY = "Zyxwvut-Canary-7781"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with records.story(tmp_path / "ledger") as found:
        yield found


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Ledger]:
    with records.opened(tmp_path / "fresh", records.Clock()) as found:
        yield found


def shown(text: str) -> str:
    """Return the words of a page."""
    return html.unescape(re.sub(r"<(style|svg).*?</\1>|<[^>]+>", " ", text, flags=re.DOTALL))


def decoded(run: str) -> list[str]:
    """Return what a run of base64 letters may stand for, from each of four places on."""
    parts = [run[at : at + (len(run) - at) // 4 * 4] for at in range(4)]
    return [base64.b64decode(part).decode("latin-1") for part in parts]


def test_a_record_tells_the_whole_story(ledger: Ledger) -> None:
    found = record.record_of(ledger, "req-7")
    assert found["kind"] == "expunge.request"
    assert found["head"] == str(ledger.head())
    assert found["account"]["request"] == {
        "id": "req-7", "kind": "ids", "count": 3, "route": "edit-then-retrain", "received": "2025-01-31",
        "due": "2025-03-02",
    }  # fmt: skip
    assert found["account"]["days"] == {"closed": "2025-02-22", "left": 8, "in_time": True}
    assert not found["overdue"]
    model, absent = found["models"]["model"], found["models"]["ranker"]
    assert [a["result"] for a in model["attempts"]] == ["failed", "replaced", "deployed"]
    assert [a["nature"] for a in model["attempts"]] == ["approximate", "approximate", "exact"]
    assert "Bound missed" in model["attempts"][0]["reason"]
    last = model["attempts"][2]
    assert (last["before"], last["after"], last["seed"]) == ("b" * 64, "a" * 64, 7)
    assert last["papers"][0]["link"] == "https://arxiv.org/abs/2308.07707"
    assert last["proof"]["excluded"] == 12
    assert last["numbers"][0]["label"] == "accuracy, forget set"
    assert last["numbers"][1]["after"] == records.number(0.928)
    assert last["groups"]["label"][2]["change"] == {"x": -0.06, "low": -0.09, "high": -0.03, "n": 80, "unit": "1"}
    assert model["outcome"] == "The model was trained anew without the samples (exact), verified, and is served."
    assert "nothing was to be done" in absent["outcome"]
    assert found["destroyed"][0]["what"]["destroyed"] == ["v000007"]
    assert limits.NO_QUALIFICATION in found["limits"]
    assert [said.partition(":")[0] for said in found["limits"][:2]] == ["ssd is approximate", "retrain is exact"]
    assert json.loads(json.dumps(found)) == found


def test_decay_counts_requests_and_leaves_out_who_asked_and_what_was_rolled_back(ledger: Ledger) -> None:
    found = record.record_of(ledger, "req-7")
    course = found["decay"]["model"]
    points = course["curves"]["accuracy/test"]["points"]
    assert [p["at"] for p in points] == [1, 2, 3, 4, 5, 6, 7]
    assert [p["x"] for p in points] == pytest.approx([0.93, 0.926, 0.922, 0.918, 0.914, 0.912, 0.928])
    assert course["retrained"] == [7]
    assert course["bounds"][0]["left"] == pytest.approx(0.028)
    assert "other-" not in json.dumps(found)
    ledger.receive(records.asked("later", "train/9"))
    records.edited(ledger, "later", "v000009", test=0.901)
    near = record.record_of(ledger, "later")["decay"]["model"]
    assert near["fulfilled"] == 8
    assert "retrain" in near["advice"][0]
    ledger.record("later", "rolled_back", {"version": "v000008"}, model="model")
    assert record.record_of(ledger, "later")["decay"]["model"] == course
    assert "rolled back" in record.record_of(ledger, "later")["models"]["model"]["outcome"]


def test_a_missing_entry_reads_not_recorded(fresh: Ledger, tmp_path: Path) -> None:
    fresh.receive(records.asked("bare"))
    fresh.record("bare", "started", {"how": "edit"}, model="m")
    for step in ("unlearned", "verified", "deployed"):
        fresh.record("bare", step, {}, model="m")  # type: ignore[arg-type]
    found = record.record_of(fresh, "bare")
    attempt = found["models"]["m"]["attempts"][0]
    assert attempt["result"] == "deployed"
    assert attempt["numbers"] == []
    assert found["models"]["m"]["nature"] is None
    assert found["models"]["m"]["shows"]["text"] == "How many samples the request had is not recorded."
    assert "take it for approximate" in " ".join(found["limits"])
    record.export(tmp_path / "pack", fresh, "bare")
    assert pack.verify(tmp_path / "pack", head=fresh.head()) == []
    assert shown((tmp_path / "pack" / "record.html").read_text()).count("not recorded") > 8


@pytest.mark.parametrize("steps", [[], ["held"], ["held", "released"], ["refused"], ["refused", "erased"]])
def test_a_request_that_was_not_worked_on_has_a_record(fresh: Ledger, tmp_path: Path, steps: list[Any]) -> None:
    fresh.receive(records.asked("r"))
    for step in steps:
        if step == "erased":
            fresh.erase("r", "asked for")
        else:
            fresh.record("r", step, {"reason": "a court says so"} if step != "released" else {})
    record.export(tmp_path / "pack", fresh, "r")
    assert pack.verify(tmp_path / "pack") == []
    found = record.record_of(fresh, "r")
    assert found["models"] == {}
    assert found["overdue"] == ("refused" not in steps)
    assert len(found["destroyed"]) == steps.count("erased")


@pytest.mark.parametrize(
    ("nature", "level", "word", "says"),
    [
        ("approximate edit", None, "approximate", "Nothing proves that no trace"),
        ("output suppression", None, "output suppression", "the weights still hold"),
        ("exact", None, "exact", "trained without the samples"),
        ("exact", "E0", "exact at level E0", "no number that is served was computed from the samples"),
        ("exact", "E1", "exact at level E1", "gives the same bits"),
        (None, None, "approximate", "Nothing proves"),  # looked up from the method
    ],
)
def test_the_nature_of_a_method_is_said_in_plain_words(
    fresh: Ledger, nature: Any, level: Any, word: str, says: str
) -> None:
    fresh.receive(records.asked("r"))
    made = records.unlearned("v000002", nature=nature, level=level)
    if nature is None:
        del made["citation"]
    records.edited(fresh, "r", "v000002", made=made)
    found = record.record_of(fresh, "r")
    assert found["models"]["model"]["nature"] == word
    assert says in " ".join(found["limits"])
    assert f"({word})" in found["models"]["model"]["outcome"]
    assert found["models"]["model"]["attempts"][0]["papers"][0]["link"] == "https://arxiv.org/abs/2308.07707"


def test_papers_of_a_composition_are_those_of_its_parts(fresh: Ledger) -> None:
    fresh.receive(records.asked("r"))
    made = records.unlearned("v000002", method={"name": "pruned", "method": {"name": "ssd"}})
    del made["citation"]
    records.edited(fresh, "r", "v000002", made=made)
    papers = record.record_of(fresh, "r")["models"]["model"]["attempts"][0]["papers"]
    assert {p["link"] for p in papers} == {"https://arxiv.org/abs/2304.04934", "https://arxiv.org/abs/2308.07707"}


def test_no_page_promises_what_an_approximate_method_cannot_keep(ledger: Ledger, tmp_path: Path) -> None:
    record.export(tmp_path / "pack", ledger, "req-7")
    for file in (tmp_path / "pack").iterdir():
        words = shown(file.read_text()).lower()
        assert not re.search(r"\bdeleted\b|guarantee|removed completely|irreversibl", words), file.name
    text = shown((tmp_path / "pack" / "record.html").read_text())
    assert "approximate" in text
    assert "not covered" in text


@pytest.mark.parametrize("kind", ["ids", "subject", "class"])
def test_no_forgotten_value_is_in_a_pack(fresh: Ledger, tmp_path: Path, kind: Any) -> None:
    fresh.receive(records.asked("r", CANARY, kind=kind, note=f"about {CANARY}"))
    fresh.receive(records.asked("other", f"{CANARY}-2", kind=kind))
    records.edited(fresh, "r", "v000003")
    fresh.remember("model", [CANARY], "r")
    records.edited(fresh, "other", "v000007")
    record.export(tmp_path / "pack", fresh, "r")
    for file in (tmp_path / "pack").iterdir():
        text = file.read_text()
        texts = [text, html.unescape(text), json.dumps(text)]
        texts += [part for run in re.findall(r"[A-Za-z0-9+/]{16,}", text) for part in decoded(run)]
        assert not [t for t in texts if CANARY.lower() in t.lower()], file.name
        assert '"other"' not in text


def test_hostile_names_stay_text(fresh: Ledger, tmp_path: Path) -> None:
    fresh.receive(records.asked("r"))
    fresh.record("r", "held", {"reason": "<script>alert(1)</script><img src=x onerror=alert(2)>"})
    record.export(tmp_path / "pack", fresh, "r")
    page = (tmp_path / "pack" / "record.html").read_text()
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_qualification_is_referred_to(fresh: Ledger) -> None:
    fresh.receive(records.asked("r"))
    text = "Qualified on 2025-01-02: 3 of 200 simulated requests failed."
    found = record.record_of(fresh, "r", qualification={"text": text})
    assert text in found["limits"]
    assert limits.NO_QUALIFICATION not in found["limits"]


def test_exports_are_of_one_state_and_can_be_signed(ledger: Ledger, tmp_path: Path) -> None:
    public = pack.signing.generate_key(tmp_path / "key")
    head = record.export(tmp_path / "pack", ledger, "req-7", sign=tmp_path / "key")
    assert head == ledger.head()
    ledger.receive(records.asked("new", "train/77"))
    assert pack.verify(tmp_path / "pack", public, head) == []
    with pytest.raises(UserError, match="a path that is free"):
        record.export(tmp_path / "pack", ledger, "req-7")
    with pytest.raises(UserError, match="the id of a request"):
        record.record_of(ledger, "nobody")


@pytest.mark.parametrize(("n", "share", "auc"), [(1, 0.975, 0.5), (3, 0.7076, 0.3267), (1000, 0.0037, 0.0179)])
def test_what_samples_could_show(n: int, share: float, auc: float) -> None:
    found = limits.could_show(n)
    assert found["share"] == pytest.approx(share, abs=1e-4)
    assert found["auc"] == pytest.approx(auc, abs=1e-4)
    assert found["text"].startswith(f"{n:,} sample")


@pytest.mark.parametrize("n", [None, 0, -1, "3", True])
def test_an_unknown_number_of_samples_is_said(n: Any) -> None:
    assert limits.could_show(n)["text"] == "How many samples the request had is not recorded."


@pytest.mark.parametrize(("kind", "value"), [("subject", "dora"), ("class", "cat")])
def test_the_record_of_what_the_service_did_is_whole_and_names_nobody(
    pets: Any, tmp_path: Path, kind: Any, value: str
) -> None:
    shop: Shop = pets({"policy.bounds": ["accuracy/test >= 0.01"], "policy.largest_share": 0.9})
    shop.ask("first", "100", "101")
    shop.process()
    shop.ask("r", value, kind=kind, route="edit-then-retrain")
    shop.process()
    shop.process(how="retrain")
    with shop.ledger() as ledger:
        found = record.record_of(ledger, "r")
        record.export(tmp_path / "pack", ledger, "r")
        assert pack.verify(tmp_path / "pack", head=ledger.head()) == []
    attempts = found["models"]["model"]["attempts"]
    assert [(a["how"], a["nature"], a["result"]) for a in attempts] == [
        ("edit", "approximate", "replaced"), ("retrain", "exact", "deployed"),
    ]  # fmt: skip
    assert found["account"]["status"]["closed"]
    for attempt in attempts:
        known = ("version", "before", "after", "files", "method", "papers", "seed", "seconds", "samples", "data")
        names = (*known, "environment", "numbers", "bounds")
        assert [name for name in names if attempt[name] in (None, [], {})] == []
        assert [number["name"] for number in attempt["numbers"] if number["label"] == number["name"]] == []
    assert attempts[1]["proof"]["trained"]["read"] == attempts[1]["data"]["samples"]
    assert found["decay"]["model"]["fulfilled"] == 3
    assert found["decay"]["model"]["retrained"] == [3]
    assert found["models"]["model"]["shows"]["n"] == attempts[0]["samples"]
    for file in (tmp_path / "pack").iterdir():
        assert not re.search(rf"\b{value}\b", html.unescape(file.read_text())), file.name
