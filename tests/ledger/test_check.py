"""Tampering, each kind named: what is changed, removed, written anew, or does not fit what it was."""

import contextlib
import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from expunge.errors import CorruptArtefact, UserError
from expunge.files import canonical
from expunge.ledger import Entry, Event, Head, Ledger
from expunge.ledger.book import COLUMNS
from expunge.ledger.database import SCHEMA
from expunge.ledger.events import first, linked
from expunge.ledger.keys import seal
from expunge.ledger.payloads import about

TRIGGERS = [line.split()[2] for line in SCHEMA.splitlines() if line.startswith("CREATE TRIGGER")]


@pytest.fixture
def filled(ledger, ask, fulfil, folder):
    """Return the folder of a ledger with three requests and nine events, and its head."""
    ledger.receive_all([ask("a"), ask("b"), ask("c")])
    fulfil(ledger, "a")
    ledger.record("b", "held", {"reason": "a court asks"})
    head = ledger.head()
    ledger.close()
    return folder, head


def tamper(folder, *statements, triggers=True, file="ledger.sqlite3"):
    """Change a file as someone would who knows SQLite, and put the triggers back."""
    with closing(sqlite3.connect(folder / file, isolation_level=None)) as db:
        had = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in had:
            db.execute(f"DROP TRIGGER {name}")
        for statement, *values in statements:
            db.execute(statement, values)
        for _, sql in had if triggers else []:
            db.execute(sql)


def problems(folder, head=None):
    with Ledger.open(folder, readonly=True) as ledger:
        return ledger.check(head)


def chained(folder, change):
    """Write the whole chain anew after a change of its list of events, as one would who knows the code."""
    with Ledger.open(folder, readonly=True) as ledger:
        identity, events = ledger.identity, change(list(ledger.events()))
    previous, statements = first(identity), [("DELETE FROM events",)]
    for seq, e in enumerate(events, 1):
        digest = linked(seq, previous, e.inner)
        row = (seq, e.request, e.model, e.step, e.at, e.actor, canonical(e.body), previous, digest, e.salt, e.earlier)
        statements.append((f"INSERT INTO events ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?)", *row))
        previous = digest
    tamper(folder, *statements)


def event(request, step, **fields):
    body = fields.pop("body", {})
    return Event(0, request, fields.get("model"), step, "2025-03-01T12:00:00.000000+00:00", "eve", body, "", "")


def test_a_sound_ledger_has_no_problem(filled):
    folder, head = filled
    assert problems(folder) == []
    assert problems(folder, head) == []
    with Ledger.open(folder, readonly=True) as ledger:
        early = ledger.history("b")[0]
    assert problems(folder, early.head) == []
    assert problems(folder, Head(0, first(ledger.identity))) == []


@pytest.mark.parametrize("statement", ["UPDATE events SET actor = 'eve'", "DELETE FROM events WHERE seq = 9",
                                       "UPDATE meta SET value = 'x'", "DELETE FROM meta",
                                       "REPLACE INTO meta VALUES ('identity', 'x')",
                                       "REPLACE INTO events SELECT * FROM events WHERE seq = 4",
                                       f"INSERT INTO events ({COLUMNS}) SELECT 11, request, model, step, at, actor,"
                                       " body, previous, digest, salt, earlier FROM events WHERE seq = 9"])  # fmt: skip
def test_triggers_refuse_to_change_or_delete(filled, statement):
    with (
        closing(sqlite3.connect(filled[0] / "ledger.sqlite3", isolation_level=None)) as db,
        pytest.raises(sqlite3.IntegrityError, match=r"(is never (changed|deleted)|is only added at the end)"),
    ):
        db.execute(statement)


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_a_trigger_that_was_dropped_is_named(filled, trigger):
    folder, _ = filled
    with closing(sqlite3.connect(folder / "ledger.sqlite3")) as db:
        db.execute(f"DROP TRIGGER {trigger}")
    assert [str(p) for p in problems(folder)] == [f"trigger {trigger}: missing"]


def test_what_does_not_belong_into_the_file_is_named(filled):
    folder, _ = filled
    tamper(folder, ("CREATE TABLE extra (x)",), triggers=False)
    found = [str(p) for p in problems(folder)]
    assert found == ["table extra: not expunge's", *(f"trigger {t}: missing" for t in sorted(TRIGGERS))]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("request", "b"), ("model", "other"), ("model", None), ("step", "failed"), ("actor", "eve"),
        ("at", "2025-03-01T12:00:00.000001+00:00"), ("body", '{"how":"retrain"}'), ("body", '{"how": "edit"}'),
        ("body", '{"how":"edit","how":"edit"}'), ("body", "nonsense"), ("body", "[]"), ("body", b"\xff\xfe"),
        ("digest", "0" * 64),
    ],
)  # fmt: skip
def test_an_event_of_which_any_field_was_changed_is_named(filled, column, value):
    folder, _ = filled
    tamper(folder, (f"UPDATE events SET {column} = ? WHERE seq = 4", value))
    found = problems(folder)
    assert found[0].what == "event"
    assert found[0].where.startswith("event 4 (")
    assert "its content" in found[0].got


def test_an_event_that_follows_another_than_it_says_is_named(filled):
    folder, _ = filled
    tamper(folder, ("UPDATE events SET previous = ? WHERE seq = 5", "0" * 64))
    where = "event 5 (unlearned, request a, model model)"
    assert {str(p) for p in problems(folder)} == {
        f"{where}: does not follow the event before it",
        f"{where}: its content does not fit its digest",
    }


@pytest.mark.parametrize(("gone", "named"), [([5], "event 5"), ([5, 6], "events 5 to 6"), ([1], "event 1")])
def test_rows_removed_in_the_middle_are_named(filled, gone, named):
    folder, _ = filled
    tamper(folder, *(("DELETE FROM events WHERE seq = ?", seq) for seq in gone))
    assert [str(p) for p in problems(folder) if p.what == "gap"] == [f"{named}: removed, or never written"]


def test_a_row_removed_in_the_middle_and_the_rest_renumbered_is_noticed(filled):
    folder, _ = filled
    tamper(
        folder,
        ("DELETE FROM events WHERE seq = 5",),
        *(("UPDATE events SET seq = ? WHERE seq = ?", n - 1, n) for n in (6, 7, 8, 9)),
    )
    found = problems(folder)
    assert str(found[0]) == "event 5 (verified, request a, model model): does not follow the event before it"


@pytest.mark.parametrize(("kept", "named"), [(8, "event 9"), (3, "events 4 to 9"), (0, "events 1 to 9")])
def test_a_removed_tail_is_noticed_with_the_head(filled, kept, named):
    folder, head = filled
    tamper(
        folder,
        ("DELETE FROM events WHERE seq > ?", kept),
        ("DELETE FROM latest",),
        ("DELETE FROM payloads WHERE key > ?", kept),
        *([] if kept == 8 else [("DELETE FROM remembered",)]),
    )
    assert [p for p in problems(folder) if p.what != "status"] == []
    removed = f"{named}: removed from the end: the head that was kept is of event 9"
    assert [str(p) for p in problems(folder, head) if p.what == "head"] == [removed]


def test_a_removed_tail_is_noticed_by_the_statuses_that_it_left(filled):
    folder, _ = filled
    tamper(folder, ("DELETE FROM events WHERE seq = 9",))
    assert [str(p) for p in problems(folder)] == ["the current status of request b: not what the events say"]


def test_a_chain_written_anew_is_noticed_with_the_head(filled):
    folder, head = filled

    def change(events):
        return [*events[:8], event("b", "held", body={"reason": "another reason"})]

    chained(folder, change)
    assert {p.what for p in problems(folder)} == {"status"}
    found = [str(p) for p in problems(folder, head) if p.what == "head"]
    named = "event 9 (held, request b): is not the event whose head was kept: the ledger was rewritten"
    assert found == [named]


def test_another_ledger_is_noticed_with_the_head_of_an_empty_one(filled):
    assert [p.what for p in problems(filled[0], Head(0, "0" * 64))] == ["head"]


@pytest.mark.parametrize(
    ("inserted", "message"),
    [
        (
            event("c", "verified", model="model"),
            "event 10 (verified, request c, model model): Expected one of the steps",
        ),
        (event("a", "closed"), "event 10 (closed, request a): Expected one of the steps held, erased"),
        (event("d", "held", body={"reason": "r"}), "event 10 (held, request d): Expected one of the steps received"),
        (event("c", "received"), "event 10 (received, request c): Expected one of the steps held, approved, refused"),
        (event("c", "deleted"), "event 10 (deleted, request c): Expected a step for request 'c', got 'deleted'"),
    ],
)
def test_a_step_that_is_not_allowed_is_named_though_its_chain_is_right(filled, inserted, message):
    folder, head = filled
    chained(folder, lambda events: [*events, inserted])
    found = problems(folder, head)
    assert [p.what for p in found] == ["step"]
    assert str(found[0]).startswith(message)


def test_a_time_before_the_last_is_named_though_its_chain_is_right(filled):
    folder, _ = filled
    late = event("c", "held", body={"reason": "r"})
    chained(folder, lambda events: [*events, Event(**{**late.document(), "at": "2024-01-01T00:00:00.000000+00:00"})])
    assert "its time, 2024-01-01T00:00:00.000000+00:00, is before the last event's" in str(problems(folder)[0])


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE latest SET open = 1 WHERE request = 'a'",
        "UPDATE latest SET due = '2030-01-01' WHERE request = 'a'",
        "UPDATE latest SET seq = 3 WHERE request = 'a'",
        """UPDATE latest SET status = replace(status, '"closed":true', '"closed":false') WHERE request = 'a'""",
    ],
)
def test_a_status_that_was_changed_is_named(filled, statement):
    folder, _ = filled
    tamper(folder, (statement,))
    assert [str(p) for p in problems(folder)] == ["the current status of request a: not what the events say"]


def test_a_status_that_is_missing_or_of_nobody_is_named(filled):
    folder, _ = filled
    tamper(folder, ("UPDATE latest SET request = 'x' WHERE request = 'a'",))
    assert [str(p) for p in problems(folder)] == [
        "the current status of request a: missing",
        "the current status of request x: not what the events say",
    ]


def test_a_status_that_was_changed_decides_nothing(filled):
    folder, _ = filled
    with Ledger.open(folder, readonly=True) as ledger:
        status = ledger.status("c").document()
    status["models"] = {"model": {"step": "verified", "how": "edit", "version": None, "done": [], "undo": False,
                                  "attempt": 4, "seq": 6}}  # fmt: skip
    tamper(folder, ("UPDATE latest SET status = ? WHERE request = 'c'", json.dumps(status)))
    with Ledger.open(folder) as ledger, pytest.raises(UserError, match="one of the steps scheduled, started, absent"):
        ledger.record("c", "deployed", model="model")
    tamper(folder, ("UPDATE latest SET status = '{}' WHERE request = 'c'",))
    with Ledger.open(folder) as ledger, pytest.raises(CorruptArtefact, match="the status of a request in"):
        list(ledger.open_requests())


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE payloads SET sealed = (SELECT sealed FROM payloads WHERE key = 2) WHERE key = 1",
        "UPDATE payloads SET sealed = zeroblob(64) WHERE key = 1",
        "UPDATE payloads SET sealed = x'00' WHERE key = 1",
        "UPDATE payloads SET sealed = 'text' WHERE key = 1",
        "DELETE FROM payloads WHERE key = 1",
    ],
)
def test_a_payload_that_is_not_what_was_received_is_named(filled, statement):
    folder, _ = filled
    tamper(folder, (statement,))
    found = problems(folder)
    assert [(p.what, p.where) for p in found] == [("payload", "the payload of request a")]
    with Ledger.open(folder) as ledger, pytest.raises(CorruptArtefact, match="restore the folder from a copy"):
        ledger.request("a")


def test_a_payload_sealed_anew_does_not_fit_its_commitment(filled, ask):
    from_other = ask("a", "somebody else").payload()
    folder, _ = filled
    with Ledger.open(folder) as ledger:
        sealed = seal(ledger.keys.take(1), from_other, about(ledger.identity, "a", 1))
    tamper(folder, ("UPDATE payloads SET sealed = ? WHERE key = 1", sealed))
    assert "the payload that request 'a' was received with, got another" in str(problems(folder)[0])


def test_a_payload_of_no_request_is_named(filled):
    folder, _ = filled
    tamper(folder, ("INSERT INTO payloads VALUES (99, x'00')",))
    assert [str(p) for p in problems(folder)] == ["payload 99: belongs to no request"]


def test_a_key_that_is_gone_without_an_erasure_is_named(filled):
    folder, _ = filled
    with Ledger.open(folder) as ledger:
        ledger.keys.destroy(2)
    found = problems(folder)
    assert [(p.what, p.where) for p in found] == [("payload", "the payload of request b")]
    assert "the key of request 'b', which was not erased, got none" in found[0].got


def test_a_payload_or_key_that_outlives_its_erasure_is_named(filled):
    folder, _ = filled
    with Ledger.open(folder) as ledger:
        key = ledger.keys.take(3)
        sealed = ledger._book.rows("SELECT sealed FROM payloads WHERE key = 3")[0][0]
        ledger.record("c", "refused", {"reason": "sent twice"})
        ledger.erase("c", "asked for")
    tamper(folder, ("INSERT INTO payloads VALUES (3, ?)", sealed))
    tamper(folder, ("UPDATE keys SET value = ? WHERE number = 3", key), file="keys.sqlite3")
    assert [p.what for p in problems(folder)] == ["payload", "key"]
    assert all("still there, though it was erased" in p.got for p in problems(folder))


VALUES = [b"\xff\x00", "", 2**62, 0.5, "[" * 10_000]


@pytest.mark.parametrize(
    ("table", "column"),
    [
        *(("events", c) for c in COLUMNS.split(", ")),
        *(("latest", c) for c in ("request", "seq", "open", "due", "status")),
        *(("payloads", c) for c in ("key", "sealed")),
        *(("remembered", c) for c in ("mark", "model", "request")),
        ("meta", "value"),
        ("sqlite_sequence", "seq"),
    ],
)
def test_whatever_a_cell_is_changed_to_is_a_problem_and_no_traceback(filled, tmp_path, table, column):
    folder, head = filled
    rows = {"events": "seq = 5", "latest": "request = 'b'", "payloads": "key = 2", "meta": "name = 'identity'"}
    for number, value in enumerate(VALUES):
        copy = shutil.copytree(folder, tmp_path / str(number))
        try:
            tamper(copy, (f"UPDATE {table} SET {column} = ? WHERE {rows.get(table, '1')}", value))
        except sqlite3.IntegrityError:
            continue  # a number's column takes no text
        try:
            found = problems(copy, head)
        except UserError as error:  # already told on opening
            found = [error]
        assert found or table == "sqlite_sequence"
        assert all(str(p) for p in found)
        with contextlib.suppress(UserError), Ledger.open(copy) as ledger:
            list(ledger.open_requests())
        with contextlib.suppress(UserError), Ledger.open(copy) as ledger:
            ledger.record("b", "released")
        with contextlib.suppress(UserError), Ledger.open(copy) as ledger:
            ledger.receive(replace(ledger.request("c"), id="d"))


def test_marks_that_were_removed_are_named(filled):
    folder, _ = filled
    tamper(folder, ("DELETE FROM remembered",))
    assert [str(p) for p in problems(folder)] == [
        "the marks of request a: not those that were remembered for model model"
    ]


def test_marks_that_a_rollback_took_back_are_no_problem(filled):
    folder, _ = filled
    with Ledger.open(folder) as ledger:
        ledger.record("a", "rolled_back", model="model")
        assert ledger.remembered(["train/a"]) == []
    assert problems(folder) == []


def test_marks_that_were_added_are_named_whatever_came_of_a_request(filled, ask):
    """Else somebody who adds one has a request taken for absent that the model has learned."""
    folder, _ = filled
    with Ledger.open(folder) as ledger:
        ledger.receive(ask("n"))
        ledger.remember("model", ["train/n"], "n")
        assert problems(folder) == []  # the event that says so may still come
        ledger.record("n", "absent", model="model")
        ledger.record("n", "closed")
        assert problems(folder) == []
        ledger.remember("model", ["train/other"], "n")
        ledger.remember("another", ["train/other"], "n")
    assert [str(p) for p in problems(folder)] == [
        "the marks of request n: no event says that model another has forgotten what they are of",
        "the marks of request n: not those that were remembered for model model",
    ]


def test_marks_stay_known_through_a_further_attempt_and_its_rollback(ledger, folder, ask, fulfil):
    ledger.receive(ask("r", route="edit-then-retrain"))
    fulfil(ledger, "r", close=False)
    retrain = {"how": "retrain"}
    for end in ("failed", "rolled_back"):
        ledger.record("r", "started", retrain, model="model")
        marks = ledger.remember("model", ["train/r", "train/r/2"], "r")
        if end == "rolled_back":
            ledger.record("r", "unlearned", {"marks": marks}, model="model")
            for step in ("verified", "deployed"):
                ledger.record("r", step, model="model")
        event = ledger.record("r", end, {"reason": "it may be"}, model="model")
        assert event.body["marks"] == marks
        assert problems(folder) == []
        assert ledger.remembered(["train/r/2"]) == ["train/r/2"]
    tamper(folder, ("DELETE FROM remembered",))
    assert [p.what for p in problems(folder)] == ["marks"]
    ledger.record("r", "rolled_back", model="model")
    assert problems(folder) == []


def test_what_others_write_during_a_check_is_no_problem(filled, ask, monkeypatch):
    """A request is erased after the check has read the events and before it reads the payloads."""
    folder, head = filled
    with Ledger.open(folder, readonly=True) as reader, Ledger.open(folder) as writer:
        writer.record_all([Entry("c", "refused", {"reason": "sent twice"})])
        take = reader.keys.take
        done = []

        def late(number):
            if not done:
                done.append(writer.erase("c", "asked for"))
            return take(number)

        monkeypatch.setattr(reader.keys, "take", late)
        assert reader.check(head) == []
        assert writer.status("c").erased
