"""What is wrong in a ledger: its chain, its steps, its statuses, its payloads and keys, each problem named."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from expunge.errors import ExpungeError, UserError
from expunge.files import digest
from expunge.ledger.book import COLUMNS, Book, event_of, row_of
from expunge.ledger.database import SCHEMA
from expunge.ledger.events import Event, Head, Problem, first
from expunge.ledger.keys import Keys, commitment
from expunge.ledger.marks import fingerprints
from expunge.ledger.payloads import load
from expunge.ledger.steps import Status, advance

REMOVED = "removed, or never written"
NONE = digest()  # the fingerprint of no marks


class Check:
    """One reading of a ledger from its first event to its last.

    Args:
        book: the ledger's file.
        keys: its keys, None where their file is not there.
        head: what was kept apart from the ledger, None where nothing was.
    """

    def __init__(self, book: Book, keys: Keys | None, head: Head | None) -> None:
        self.book, self.keys, self.head = book, keys, head
        self.problems: list[Problem] = []
        self.received: dict[str, Event] = {}
        self.marked: dict[tuple[str, str], str] = {}
        self.statuses: dict[str, Status] = {}
        self.last = 0

    def run(self) -> list[Problem]:
        """Return what is wrong."""
        try:
            with self.book.reading():
                sound = self._sound()
                if sound:
                    self._schema()
                    self._chain()
                    self._cache()
                    self._marks()
            if sound:
                self._payloads()
        except (ExpungeError, sqlite3.Error) as error:
            self._add("database", str(self.book.path.parent), f"cannot be read to its end: {error}")
        return self.problems

    def _add(self, what: str, where: str, got: str) -> None:
        self.problems.append(Problem(what, where, got))

    def _sound(self) -> bool:
        """Look through the pages of the file, which a disk may have damaged."""
        found = [row[0] for row in self.book.db.execute("PRAGMA integrity_check(10)")]
        for line in found if found != ["ok"] else []:
            self._add("database", str(self.book.path), f"damaged: {line}")
        return found == ["ok"]

    def _schema(self) -> None:
        with closing(sqlite3.connect(":memory:")) as fresh:
            fresh.executescript(SCHEMA)
            want = _schema(fresh)
        have = _schema(self.book.db)
        for kind, name in sorted(want.keys() | have.keys()):
            if want.get((kind, name)) != have.get((kind, name)):
                got = "missing" if (kind, name) not in have else "changed" if (kind, name) in want else "not expunge's"
                self._add("schema", f"{kind} {name}", got)

    def _chain(self) -> None:
        seq, previous = 0, first(self.book.identity)
        time = ""
        for row in self.book.db.execute(f"SELECT {COLUMNS} FROM events ORDER BY seq"):
            where, number = _where(row), row[0]
            if number > seq + 1:
                gone = f"event {seq + 1}" if number == seq + 2 else f"events {seq + 1} to {number - 1}"
                self._add("gap", gone, REMOVED)
            elif row[7] != previous:
                self._add("chain", where, "does not follow the event before it")
            event = self._event(row, where)
            if event is not None:
                if event.at < time:
                    self._add("event", where, f"its time, {event.at}, is before the last event's, {time}")
                time = event.at
                self._step(event, where)
            if self.head is not None and number == self.head.seq and row[8] != self.head.digest:
                self._add("head", where, "is not the event whose head was kept: the ledger was rewritten")
            seq, previous = number, row[8]
        self.last = seq
        self._end(seq)

    def _end(self, seq: int) -> None:
        if self.head is None:
            return
        if self.head.seq > seq:
            gone = f"events {seq + 1} to {self.head.seq}" if self.head.seq > seq + 1 else f"event {self.head.seq}"
            self._add("head", gone, f"removed from the end: the head that was kept is of event {self.head.seq}")
        if self.head.seq == 0 and self.head.digest != first(self.book.identity):
            self._add("head", "the ledger", "is another than that whose head was kept")

    def _event(self, row: tuple[Any, ...], where: str) -> Event | None:
        try:
            event = event_of(row)
            sound = event.sound
        except (ValueError, TypeError, AttributeError) as error:
            self._add("event", where, f"its content is not what was written: {error}")
            return None
        if not sound:
            self._add("event", where, "its content does not fit its digest")
        return event

    def _step(self, event: Event, where: str) -> None:
        try:
            status = advance(self.statuses.get(event.request), event)
        except (UserError, TypeError) as error:
            self._add("step", where, str(error))
            return
        self.statuses[event.request] = status
        if event.step == "received":
            self.received[event.request] = event
        if event.model is not None:
            self._mark((event.model, event.request), event)

    def _mark(self, place: tuple[str, str], event: Event) -> None:
        if event.step in ("unlearned", "absent", "failed", "rolled_back") and isinstance(event.body.get("marks"), str):
            self.marked[place] = event.body["marks"]
        elif event.step in ("failed", "rolled_back"):
            self.marked.pop(place, None)

    def _cache(self) -> None:
        have = {row[0]: row[1:] for row in self.book.db.execute("SELECT request, seq, open, due, status FROM latest")}
        for request in sorted(self.statuses.keys() | have.keys(), key=str):
            status = self.statuses.get(request)
            if have.get(request) != (row_of(status)[1:] if status else None):
                got = "missing" if request not in have else "not what the events say"
                self._add("status", f"the current status of request {request}", got)

    def _marks(self) -> None:
        have = {(model, request): found for model, request, found in fingerprints(self.book)}
        for place in sorted(self.marked.keys() | have.keys(), key=str):
            if have.get(place, NONE) == self.marked.get(place, NONE) or self._under_way(*place):
                continue
            model, request = place
            got = f"not those that were remembered for model {model}"
            if place not in self.marked:
                got = f"no event says that model {model} has forgotten what they are of"
            self._add("marks", f"the marks of request {request}", got)

    def _under_way(self, model: str, request: str) -> bool:
        """Return whether an event that says which marks there are may still come: they are written before it."""
        status = self.statuses.get(request)
        if status is None or status.closed:
            return False
        found = status.models.get(model)
        return found is None or found.step == "started" or ((model, request) not in self.marked and not found.freed)

    def _payloads(self) -> None:
        """Hold every payload to its commitment; after the reading, so that it keeps nobody from erasing."""
        if self.keys is None:
            self._add("key", "the file of keys", "not there, so no payload could be checked")
            return
        if commitment(self.keys.secret, self.book.identity.encode()) != self.book.secret:
            self._add("key", str(self.keys.path), "the keys of another ledger")
            return
        for request, event in self.received.items():
            self.problems.extend(self._payload(request, event, self.keys))
        there = {number for (number,) in self.book.rows("SELECT key FROM payloads")}
        new = self.book.events(self.last + 1, ("received",))  # since the reading began
        for number in sorted(there - {e.body.get("key") for e in (*self.received.values(), *new)}):
            self._add("payload", f"payload {number}", "belongs to no request")

    def _payload(self, request: str, event: Event, keys: Keys) -> Iterator[Problem]:
        number, status = event.body["key"], self.statuses[request]
        if not status.erased:
            try:
                found = load(self.book, keys, event)
                if found.public() != {name: event.body.get(name) for name in found.public()}:
                    yield Problem("payload", f"the payload of request {request}", "not of the kind and count received")
                return
            except (UserError, ValueError, KeyError, TypeError) as error:
                erased = "SELECT 1 FROM events WHERE request = ? AND step = 'erased'"
                if not self.book.rows(erased, [request]):  # else it was erased since the reading began
                    yield Problem("payload", f"the payload of request {request}", str(error))
                return
        if self.book.rows("SELECT 1 FROM payloads WHERE key = ?", [number]):
            yield Problem("payload", f"the payload of request {request}", "still there, though it was erased")
        if keys.take(number) is not None:
            got = "still there, though it was erased: the erasure is under way, or open the ledger to finish it"
            yield Problem("key", f"the key of request {request}", got)


def _schema(db: sqlite3.Connection) -> dict[tuple[str, str], str]:
    rows = db.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'")
    return {(kind, name): sql for kind, name, sql in rows}


def _where(row: tuple[Any, ...]) -> str:
    model = f", model {row[2]}" if row[2] is not None else ""
    return f"event {row[0]} ({row[3]}, request {row[1]}{model})"
