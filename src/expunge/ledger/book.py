"""The file of events: each is added at the end of the chain, and the current status is kept with it at once."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from expunge.errors import CorruptArtefact, UserError
from expunge.files import canonical
from expunge.ledger.database import MARK, SCHEMA, VERSION, check_kind, connect, make, transaction, translated
from expunge.ledger.events import Event, Head, first, linked
from expunge.ledger.requests import check_name
from expunge.ledger.steps import Status, Step, advance

BACK = timedelta(seconds=60)  # that the clock may go back, as it does where it is set by a server
PAGE = 500  # rows that are read at a time, so that no reader keeps the log from being emptied
COLUMNS = "seq, request, model, step, at, actor, body, previous, digest, salt, earlier"
OPEN = f"""SELECT due, request, status FROM latest
  WHERE open = 1 AND (due, request) > (?, ?) ORDER BY due, request LIMIT {PAGE}"""


@dataclass(frozen=True)
class Entry:
    """Something to be recorded.

    Args:
        request: the id of the request.
        step: what happened.
        body: what else is known, a JSON object without anything personal: it stays for ever.
        model: the name of the model, for a step of a model.
    """

    request: str
    step: Step
    body: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None


class Book:
    """Events, statuses and sealed payloads in one SQLite file.

    Args:
        path: of the file.
        readonly: whether it is only read.
    """

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        self.path = path
        self.db = connect(path, "ro" if readonly else "rw")
        try:
            check_kind(self.db, path, VERSION, MARK)
            with translated(path):
                meta: dict[str, str] = dict(self.db.execute("SELECT name, value FROM meta"))
                logged = readonly or self.db.execute("PRAGMA journal_mode=WAL").fetchone()[0] == "wal"
            if not logged:
                remedy = "choose another folder"
                raise UserError(f"a disk on which {path} can have a write-ahead log", "one where it cannot", remedy)
            if not all(isinstance(meta.get(name), str) for name in ("identity", "secret")):
                raise CorruptArtefact(f"the identity of the ledger in {path}", "none", "restore it from a copy")
        except BaseException:
            self.db.close()
            raise
        self.identity, self.secret = meta["identity"], meta["secret"]

    @staticmethod
    def create(path: Path, secret: Callable[[str], str]) -> None:
        """Make the file.

        Args:
            path: of the file.
            secret: returns, of the ledger's identity, a commitment to its secret.
        """

        def fill(db: sqlite3.Connection) -> None:
            identity = secrets.token_hex(16)
            db.execute("PRAGMA journal_mode=WAL")
            db.executescript(SCHEMA)
            db.executemany("INSERT INTO meta VALUES (?, ?)", {"identity": identity, "secret": secret(identity)}.items())

        make(path, fill, version=VERSION, mark=MARK)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write all that is within, or nothing; no other process writes meanwhile."""
        with translated(self.path), transaction(self.db):
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read one state of the file, whatever others write meanwhile."""
        with translated(self.path):
            self.db.execute("BEGIN")
            try:
                yield
            finally:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return what a statement finds."""
        with translated(self.path):
            return self.db.execute(statement, values).fetchall()

    def head(self) -> Head:
        """Return the end of the chain."""
        found = self.rows("SELECT seq, digest FROM events ORDER BY seq DESC LIMIT 1")
        return Head(*found[0]) if found else Head(0, first(self.identity))

    def events(self, start: int = 1, steps: Sequence[str] = ()) -> Iterator[Event]:
        """Yield the events from a number on; of some steps alone where they are named."""
        only = f" AND step IN ({','.join('?' * len(steps))})" if steps else ""
        statement = f"SELECT {COLUMNS} FROM events WHERE seq >= ?{only} ORDER BY seq LIMIT {PAGE}"
        while True:
            found = self.rows(statement, [start, *steps])
            yield from (self.event(row) for row in found)
            if len(found) < PAGE:
                return
            start = found[-1][0] + 1

    def history(self, request: str) -> list[Event]:
        """Return the events of a request, none where it is not known."""
        found = self.rows(f"SELECT {COLUMNS} FROM events WHERE request = ? ORDER BY seq", [request])
        return [self.event(row) for row in found]

    def event(self, row: Sequence[Any]) -> Event:
        """Return an event from its row.

        Raises:
            CorruptArtefact: its body is not what was written.
        """
        try:
            return event_of(row)
        except ValueError as error:
            remedy = "see expunge requests verify for all that is damaged"
            raise CorruptArtefact(f"a JSON object in event {row[0]} of {self.path}", str(error), remedy) from error

    def status(self, request: str) -> Status | None:
        """Return where a request is, folded from its events; None where it is not known."""
        status = None
        for event in self.history(request):
            status = advance(status, event)
        return status

    def open_statuses(self) -> Iterator[Status]:
        """Yield the statuses of open requests by due date, from the index of these."""
        due, request = "", ""
        while True:
            found = self.rows(OPEN, [due, request])
            yield from (self._status(text) for _, _, text in found)
            if len(found) < PAGE:
                return
            due, request, _ = found[-1]

    def statuses(self) -> Iterator[Status]:
        """Yield the statuses of all requests by id."""
        request = ""
        while True:
            found = self.rows(
                f"SELECT request, status FROM latest WHERE request > ? ORDER BY 1 LIMIT {PAGE}", [request]
            )
            yield from (self._status(text) for _, text in found)
            if len(found) < PAGE:
                return
            request, _ = found[-1]

    def _status(self, text: str) -> Status:
        try:
            return Status.read(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            remedy = "see expunge requests verify for all that is damaged"
            raise CorruptArtefact(f"the status of a request in {self.path}", f"{error}", remedy) from error

    def append(self, entries: Sequence[Entry], now: datetime, actor: str) -> list[Event]:
        """Add events at the end, within `writing`.

        Args:
            entries: what happened.
            now: the time.
            actor: who writes.

        Returns:
            The events.

        Raises:
            UserError: a step is not allowed, or the clock went back.
        """
        head, statuses, found = self.head(), dict[str, Status | None](), list[Event]()
        at = self._time(now, head)
        for entry in entries:
            head, event = self._add(entry, head, at, actor, statuses)
            found.append(event)
        rows = [row_of(status) for status in statuses.values() if status is not None]
        self.db.executemany("INSERT OR REPLACE INTO latest VALUES (?, ?, ?, ?, ?)", rows)
        return found

    def _add(
        self, entry: Entry, head: Head, at: str, actor: str, statuses: dict[str, Status | None]
    ) -> tuple[Head, Event]:
        check_name(entry.request, "a request id")
        if entry.model is not None:
            check_name(entry.model, "a model's name")
        if entry.request not in statuses:
            statuses[entry.request] = self.status(entry.request)
        text = canonical(dict(entry.body))
        body = json.loads(text)
        place = (head.seq + 1, entry.request, entry.model, entry.step, at, actor)
        before = statuses[entry.request]
        earlier = 0 if before is None else before.seq_last
        event = Event(*place, body, head.digest, "", secrets.token_hex(16), earlier)
        event = replace(event, digest=linked(event.seq, head.digest, event.inner))
        statuses[entry.request] = advance(before, event)
        row = (*place, text, event.previous, event.digest, event.salt, earlier)
        self.db.execute(f"INSERT INTO events ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        return event.head, event

    def _time(self, now: datetime, head: Head) -> str:
        """Return the time of an event that follows another, never before it."""
        text = now.astimezone(UTC).isoformat(timespec="microseconds")
        last = self.rows("SELECT at FROM events WHERE seq = ?", [head.seq])
        if not last or text >= last[0][0]:
            return text
        if datetime.fromisoformat(last[0][0]) - now.astimezone(UTC) <= BACK:
            return str(last[0][0])
        expected = f"a time that is not before the last event's, {last[0][0]}"
        raise UserError(expected, f"{text}, the clock went back", "set this machine's clock; nothing was written")


def row_of(status: Status) -> tuple[str, int, int, str, str]:
    """Return the row in which a status is kept."""
    return status.request, status.seq_last, int(status.open), status.due, canonical(status.document())


def event_of(row: Sequence[Any]) -> Event:
    """Return an event from its row.

    Raises:
        ValueError: its body is not the canonical JSON of an object, or another column is not a text.
    """
    seq, request, model, step, at, actor, text, previous, digest, salt, earlier = row
    if not all(isinstance(v, str) for v in (request, model or "", step, at, actor, text, previous, digest)):
        raise ValueError("bytes instead of a text")
    if not isinstance(earlier, int):
        raise ValueError("no number of the request's event before it")
    try:
        body = json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON too deep to read") from error
    if not isinstance(body, dict) or canonical(body) != text:
        raise ValueError("another text than was written")
    return Event(seq, request, model, step, at, actor, body, previous, digest, salt, earlier)
