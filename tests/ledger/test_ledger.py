"""The ledger as its callers see it: what is received is kept, what is recorded is chained, nothing twice."""

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime

import pytest

from expunge.errors import Incompatible, NotFinite, UserError
from expunge.ledger import Entry, Erased, Head, Ledger
from expunge.ledger.book import COLUMNS, OPEN, PAGE
from expunge.ledger.events import Event, first, linked


def count(ledger, table):
    return ledger._book.rows(f"SELECT count(*) FROM {table}")[0][0]


def test_torch_is_not_imported():
    code = "import sys, expunge.ledger; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_request_comes_back_as_it_was_received(ledger, ask):
    request = ask("r", "a'b", "c\nd\0e", note="n", route="edit")
    assert ledger.receive(request)
    assert ledger.request("r") == request
    status = ledger.status("r")
    assert (status.word, status.count, status.route, status.due) == ("received", 2, "edit", "2025-03-31")
    assert status.opened_by == "ann"


def test_the_same_request_again_changes_nothing(ledger, ask):
    assert ledger.receive(ask("r", "a", "b"))
    head = ledger.head()
    assert not ledger.receive(ask("r", "b", "a"))
    assert not ledger.receive(ask("r", "a", "b", due=date(2025, 5, 1)))
    assert ledger.head() == head
    assert ledger.status("r").due == "2025-03-31"


@pytest.mark.parametrize(
    "other", [{"values": ("a",)}, {"note": "n"}, {"kind": "subject"}, {"route": "retrain"}], ids=lambda o: next(iter(o))
)
def test_another_content_under_the_same_id_is_refused(ledger, ask, other):
    ledger.receive(ask("r", "a", "b"))
    with pytest.raises(UserError, match="a new id, or the same content as before under 'r', got another content"):
        ledger.receive(replace(ask("r", "a", "b"), **other))
    assert ledger.head().seq == 1


def test_many_are_received_all_or_none(ledger, ask):
    assert ledger.receive_all([ask("a"), ask("b"), ask("a")]) == 2
    head = ledger.head()
    with pytest.raises(UserError, match="a new id"):
        ledger.receive_all([ask("c"), ask("a", "other")])
    with pytest.raises(UserError, match="a new id"):
        ledger.receive_all([ask("d"), ask("d", "other")])
    assert ledger.head() == head
    assert count(ledger, "payloads") == 2
    assert [s.request for s in ledger.all()] == ["a", "b"]
    assert ledger.receive_all([]) == 0


def test_several_things_are_recorded_all_or_none(ledger, ask):
    ledger.receive_all([ask("a"), ask("b")])
    start = [Entry(i, "started", {"how": "edit"}, "model") for i in ("a", "b")]
    found = ledger.record_all(start)
    assert [e.seq for e in found] == [3, 4]
    with pytest.raises(UserError, match="one of the steps verified, failed for request 'b'"):
        ledger.record_all(
            [Entry(i, s, {}, "model") for i, s in [("a", "unlearned"), ("b", "unlearned"), ("b", "deployed")]]
        )
    assert ledger.head().seq == 4
    assert ledger.status("a").word == "started"


def test_the_chain_is_what_its_definition_says(ledger, ask, fulfil):
    ledger.receive(ask("r"))
    fulfil(ledger, "r")
    previous = first(ledger.identity)
    for seq, event in enumerate(ledger.events(), 1):
        assert (event.seq, event.previous, event.sound) == (seq, previous, True)
        assert event.digest == linked(seq, previous, event.link()["inner"])
        assert Event(**event.document()) == event
        previous = event.digest
    assert ledger.head() == Head(6, previous)
    assert Head.parse(f" {ledger.head()}\n") == ledger.head()
    assert [e.step for e in ledger.history("r")] == [
        "received",
        "started",
        "unlearned",
        "verified",
        "deployed",
        "closed",
    ]


def test_the_head_of_an_empty_ledger_is_its_own(ledger, tmp_path):
    with Ledger.open(tmp_path / "other", create=True) as other:
        assert other.head().seq == ledger.head().seq == 0
        assert other.head() != ledger.head()


@pytest.mark.parametrize("text", ["", "12", "x:" + "a" * 64, "1:" + "A" * 64, "01:" + "a" * 64, "1:" + "a" * 63])
def test_a_head_of_another_form_is_refused(text):
    with pytest.raises(UserError, match="a head of the form NUMBER:64 hexadecimal digits"):
        Head.parse(text)


def test_open_requests_come_by_due_date_and_closed_ones_not_at_all(ledger, ask, fulfil):
    for name, day in (("a", 20), ("b", 10), ("c", 10), ("d", 5)):
        ledger.receive(ask(name, due=date(2025, 3, day)))
    fulfil(ledger, "d")
    assert [s.request for s in ledger.open_requests()] == ["b", "c", "a"]
    assert [s.request for s in ledger.all()] == ["a", "b", "c", "d"]
    ledger.record("b", "refused", {"reason": "a legal duty"})
    assert [s.request for s in ledger.open_requests()] == ["c", "a"]


def test_more_than_a_page_of_requests_is_listed_whole(ledger, ask):
    names = {f"r{n}" for n in range(2 * PAGE + 1)}
    ledger.receive_all(ask(name) for name in names)
    assert {s.request for s in ledger.open_requests()} == {s.request for s in ledger.all()} == names
    assert [e.seq for e in ledger.events(2)] == list(range(2, len(names) + 1))


def test_events_of_some_steps_alone(ledger, ask, fulfil):
    ledger.receive_all([ask("a"), ask("b")])
    fulfil(ledger, "a")
    fulfil(ledger, "b")
    assert [(e.seq, e.step) for e in ledger.events(4, ("unlearned", "closed"))] == [
        (4, "unlearned"), (7, "closed"), (9, "unlearned"), (12, "closed"),
    ]  # fmt: skip


def test_what_is_listed_is_read_from_the_index(ledger):
    plan = [row[-1] for row in ledger._book.rows(f"EXPLAIN QUERY PLAN {OPEN}", ["", ""])]
    assert len(plan) == 1
    assert "USING INDEX latest_open" in plan[0]


@pytest.mark.parametrize(("step", "call"), [("received", "receive"), ("erased", "erase")])
def test_steps_with_methods_of_their_own_are_not_recorded_otherwise(ledger, ask, step, call):
    ledger.receive(ask("r"))
    with pytest.raises(UserError, match=f"a step to record, got '{step}': call {call}"):
        ledger.record("r", step)


@pytest.mark.parametrize("method", ["request", "status", "history"])
def test_an_unknown_request_is_named(ledger, method):
    with pytest.raises(UserError, match="the id of a request in .*, got 'nobody'"):
        getattr(ledger, method)("nobody")
    with pytest.raises(UserError, match="one of the steps received for request 'nobody', got 'held'"):
        ledger.record("nobody", "held", {"reason": "r"})


def test_names_that_could_be_paths_are_refused_as_models(ledger, ask):
    ledger.receive(ask("r"))
    with pytest.raises(UserError, match="a model's name of 1 to 200 letters"):
        ledger.record("r", "absent", model="../model")


def test_a_body_that_is_not_json_writes_nothing(ledger, ask):
    ledger.receive(ask("r"))
    with pytest.raises(NotFinite, match="finite numbers"):
        ledger.record("r", "held", {"reason": "r", "x": float("nan")})
    assert ledger.head().seq == 1
    ledger.record("r", "held", {"reason": "r"})


def test_a_clock_that_goes_back_a_little_waits_and_a_lot_is_refused(ledger, ask, clock):
    ledger.receive(ask("a"))
    clock.move(seconds=-60)
    ledger.receive(ask("b"))
    at = [e.at for e in ledger.events()]
    assert at == ["2025-03-01T12:00:00.000000+00:00"] * 2
    clock.move(seconds=-1)
    message = r"not before the last event's, 2025-03-01T12:00:00.000000\+00:00, got 2025-03-01T11:58:59"
    with pytest.raises(UserError, match=message):
        ledger.receive(ask("c"))
    assert (ledger.head().seq, count(ledger, "payloads")) == (2, 2)
    clock.move(hours=1)
    assert ledger.receive(ask("c"))


def test_times_are_utc_wherever_the_clock_is(folder, ask):
    east = datetime.fromisoformat("2025-03-01T12:00:00+05:00")
    with Ledger.open(folder, create=True, now=lambda: east) as ledger:
        ledger.receive(ask("r"))
        at = ledger.history("r")[0].at
    assert at == "2025-03-01T07:00:00.000000+00:00"
    assert datetime.fromisoformat(at).tzinfo == UTC


def test_forgotten_ids_are_known_again_and_not_kept(ledger, folder, ask):
    ledger.receive_all([ask("a"), ask("b")])
    ids = [f"train/{n}" for n in range(1200)]
    ledger.remember("one", ids[:1100], "a")
    ledger.remember("two", ids[1100:1101], "b")
    assert ledger.remembered(["new", *ids], "one") == ids[:1100]
    assert ledger.remembered(ids[1099:1103]) == ids[1099:1101]
    assert ledger.remembered(ids[:2], "three") == []
    stored = {row[0] for row in ledger._book.rows("SELECT mark FROM remembered")}
    assert {len(mark) for mark in stored} == {16}
    ledger.remember("one", ids[:1], "b")
    ledger.record("a", "started", {"how": "edit"}, model="one")
    ledger.record("a", "failed", {"reason": "a bound was missed"}, model="one")
    assert ledger.remembered(ids[:1101]) == [ids[0], ids[1100]]  # what another request asked for too stays
    with pytest.raises(UserError, match="the id of a request"):
        ledger.remember("one", ids, "nobody")


def test_marks_differ_between_ledgers(ledger, ask, tmp_path):
    with Ledger.open(tmp_path / "other", create=True) as other:
        for each in (ledger, other):
            each.receive(ask("r"))
            each.remember("m", ["train/1"], "r")
        mine, its = (each._book.rows("SELECT mark FROM remembered") for each in (ledger, other))
    assert mine != its


def test_what_is_read_only_writes_nothing(ledger, folder, ask):
    ledger.receive(ask("r"))
    with Ledger.open(folder, readonly=True) as reader:
        assert reader.request("r").values == ("train/r",)
        assert reader.check() == []
        with pytest.raises(UserError, match=r"to write .*ledger.sqlite3.*readonly"):
            reader.record("r", "held", {"reason": "r"})
        with pytest.raises(UserError, match=r"to write .*keys.sqlite3.*readonly"):
            reader.keys.destroy(1)
    assert ledger.head().seq == 1


def test_who_writes_is_named(folder, ask):
    for bad in ("", " ", "a\nb", "x" * 201):
        with pytest.raises(UserError, match="a name for who writes"):
            Ledger.open(folder, create=True, actor=bad)
    with Ledger.open(folder, create=True) as ledger:
        ledger.receive(ask("r"))
        assert ledger.history("r")[0].actor == ledger.actor != ""


def test_the_keys_of_another_ledger_are_refused(ledger, folder, ask, tmp_path):
    ledger.receive(ask("r"))
    with Ledger.open(tmp_path / "other", create=True):
        pass
    (tmp_path / "other" / "keys.sqlite3").replace(folder / "keys.sqlite3")
    with pytest.raises(Incompatible, match="those of another ledger: restore keys.sqlite3 from a copy"):
        Ledger.open(folder)
    with Ledger.open(folder, readonly=True) as reader:
        assert [p.what for p in reader.check()] == ["key"]


def test_without_keys_the_chain_can_still_be_read(ledger, folder, ask):
    ledger.receive(ask("r"))
    (folder / "keys.sqlite3").unlink()
    with pytest.raises(UserError, match=r"a file .*keys.sqlite3, got none"):
        Ledger.open(folder)
    with Ledger.open(folder, readonly=True) as reader:
        assert [e.step for e in reader.history("r")] == ["received"]
        assert [str(p) for p in reader.check()] == ["the file of keys: not there, so no payload could be checked"]
        with pytest.raises(UserError, match=r"the keys in .*got no such file"):
            reader.request("r")


def test_an_erased_id_is_not_received_again(ledger, ask):
    ledger.receive(ask("r"))
    ledger.record("r", "refused", {"reason": "sent twice"})
    ledger.erase("r", "asked for")
    with pytest.raises(UserError, match="the id of a new request, got 'r', of which all that it named was erased"):
        ledger.receive(ask("r"))
    with pytest.raises(Erased, match="what request 'r' named, got that it was erased"):
        ledger.request("r")


def test_columns_are_those_of_the_event():
    assert COLUMNS.split(", ") == list(Event.__dataclass_fields__)
