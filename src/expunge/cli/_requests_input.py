"""Requests as they come in: by options, or many of them in a CSV or JSONL file, each line held to one form."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from expunge.cli._requests import day, today
from expunge.errors import UserError, suggest
from expunge.files import there
from expunge.ledger import Ledger, Request

COLUMNS = ("request", "ids", "id", "subject", "class", "received", "days", "route", "note")
WHO = ("ids", "id", "subject", "class")
TRIES = 20  # ids to make for one request while others make the same
LONGEST = 2**31 - 1  # characters of a field of CSV; what a request may hold is less


@dataclass(frozen=True)
class Draft:
    """A request before it has an id.

    Args:
        id: as given, None where one is to be made.
        kind: ``ids``, ``subject`` or ``class``.
        values: what is named.
        received: the day.
        days: until it is due.
        route: how to fulfil it, None for the policy's.
        note: kept with it, encrypted.
        where: the line it stands on, empty for the command's own options.
    """

    id: str | None
    kind: Any
    values: tuple[str, ...]
    received: date
    days: int
    route: Any = None
    note: str = ""
    where: str = ""

    def request(self, id: str | None = None) -> Request:
        """Return the request.

        Args:
            id: for one that was given none.

        Raises:
            UserError: something is not as a request must be; names the line.
        """
        due = self.received + timedelta(days=self.days)
        name = self.id if self.id is not None else id or "unnamed"
        with _placed(self.where):
            return Request(name, self.kind, self.values, self.route, received=self.received, due=due, note=self.note)


@contextmanager
def _placed(where: str) -> Iterator[None]:
    """Say what is refused within with the line it is about, where there is one."""
    try:
        yield
    except UserError as error:
        if not where:
            raise
        raise UserError(f"in {where}, {error.expected}", error.got, error.remedy) from error


def named(drafts: Sequence[Draft], ledger: Ledger) -> list[Request]:
    """Return the requests, those without an id with the next free ones of their day: ``r-20250131-0001``."""
    taken, last, found = {d.id for d in drafts}, dict[str, int](), list[Request]()
    for draft in drafts:
        stem = f"r-{draft.received:%Y%m%d}-"
        if draft.id is None and stem not in last:
            last[stem] = _last(ledger, stem)
        name = draft.id
        while name is None:
            last[stem] += 1
            name = f"{stem}{last[stem]:04}"
            name = None if name in taken or _known(ledger, name) else name
        found.append(draft.request(name))
    return found


def _known(ledger: Ledger, id: str) -> bool:
    try:
        ledger.status(id)
    except UserError:
        return False
    return True


def _last(ledger: Ledger, stem: str) -> int:
    """Return a number that is taken, or 0, whose next is free: found by doubling, then by halves."""
    low, high = 0, 1
    while _known(ledger, f"{stem}{high:04}"):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _known(ledger, f"{stem}{middle:04}") else (low, middle)
    return low


def texts(path: Path) -> tuple[str, ...]:
    """Return the ids of a text file, one a line, spaces at both ends left out.

    Raises:
        UserError: it cannot be read, or holds none.
    """
    text = _text(path, f"a text file with one id a line at {path}")
    found = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    ids = tuple(line for line in found if line)
    if not ids:
        raise UserError(f"ids in {path}, one a line", "none", "write the ids that are to be forgotten")
    return ids


def _text(path: Path, what: str) -> str:
    if there(path) != "a file":
        raise UserError(what, there(path) or "nothing there", "check the path")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(what, f"bytes that are no UTF-8 text ({error.reason})", "save it as UTF-8") from error
    except OSError as error:
        raise UserError(what, error.strerror or str(error), "check its permissions") from error


def many(path: Path, base: Draft) -> list[Draft]:
    """Return the requests of a file.

    Args:
        path: CSV with a header, or JSONL, an object a line, by its ending ``.csv`` or ``.jsonl``. Columns: ``request``
            (made where it is empty), one of ``id`` (as it stands), ``ids`` (in CSV several divided by semicolons, in
            JSONL a list), ``subject`` and ``class``; ``received``, ``days``, ``route``, ``note`` where they differ.
        base: what holds where a line says nothing.

    Raises:
        UserError: names the first line that is not so, or an id that stands twice.
    """
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".ndjson": _json_rows}
    if path.suffix.lower() not in readers:
        raise UserError("a file of requests that ends with .csv or .jsonl", f"{path.name!r:.80}", "rename it")
    text = _text(path, f"a file of requests at {path}")
    drafts, seen = list[Draft](), dict[str, str]()
    for line, row in readers[path.suffix.lower()](text, path):
        where = f"line {line} of {path.name}"
        with _placed(where):
            draft = _draft(row, base, where)
        draft.request()  # a line that is wrong is told before anything is looked up
        if draft.id is not None and draft.id in seen:
            remedy = "name all of its ids on one line"
            raise UserError(
                f"each request once in {path.name}", f"'{draft.id}' on {where} and {seen[draft.id]}", remedy
            )
        if draft.id is not None:
            seen[draft.id] = where
        drafts.append(draft)
    if not drafts:
        raise UserError(f"requests in {path}, one a line", "none", "see expunge requests add --help for its form")
    return drafts


def _csv_rows(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a CSV file with the line each begins on; a quoted field may hold line breaks."""
    before = csv.field_size_limit(LONGEST)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header: list[str] | None = None
        start = 1
        for fields in reader:
            line, start = start, reader.line_num + 1
            if not any(fields):
                continue
            if header is None:
                header = [name.strip() for name in fields]
                _check_columns(header, f"line {line} of {path.name}")
                continue
            if len(fields) != len(header):
                got, remedy = f"{len(fields)} in line {line} of {path.name}", "quote fields that hold a comma"
                raise UserError(f"{len(header)} fields a line, as the header has", got, remedy)
            row: dict[str, Any] = {name: value for name, value in zip(header, fields, strict=True) if value}
            if "ids" in row:
                row["ids"] = [part.strip() for part in row["ids"].split(";") if part.strip()]
            yield line, row
    except csv.Error as error:
        where = f"line {reader.line_num} of {path.name}"
        raise UserError(f"CSV in {where}", str(error), "close its quotes, or write JSONL instead") from error
    finally:
        csv.field_size_limit(before)


def _json_rows(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, words in enumerate(text.split("\n"), 1):
        if not words.strip():
            continue
        where = f"line {line} of {path.name}"
        try:
            row = json.loads(words)
        except (ValueError, RecursionError) as error:
            raise UserError(f"a JSON object on {where}", f"{error}", "mend the line") from error
        if not isinstance(row, dict):
            raise UserError(f"a JSON object on {where}", type(row).__name__, "mend the line")
        _check_columns(list(row), where)
        yield line, {name: value for name, value in row.items() if value is not None and value != ""}


def _check_columns(names: Sequence[str], where: str) -> None:
    for name in names:
        if name not in COLUMNS:
            raise UserError(f"known columns on {where}", f"{name!r:.60}", suggest(name, COLUMNS))
    twice = [name for name in names if list(names).count(name) > 1]
    if twice:
        raise UserError(f"each column once on {where}", f"'{twice[0]}' twice", "leave one out")


def _draft(row: Mapping[str, Any], base: Draft, where: str) -> Draft:
    given = [name for name in WHO if name in row]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise UserError(f"exactly one of {', '.join(WHO)}", got, "say who is to be forgotten")
    kind = given[0]
    named = row[kind] if kind == "ids" and isinstance(row[kind], list) else [row[kind]]
    route = row.get("route", base.route)
    return Draft(
        id=None if "request" not in row else _word(row["request"], "request"),
        kind="ids" if kind == "id" else kind,
        values=tuple(_word(value, kind) for value in named),
        received=day(str(row["received"]), "received") if "received" in row else base.received,
        days=_number(row["days"]) if "days" in row else base.days,
        route=route,
        note=_word(row.get("note", base.note), "note"),
        where=where,
    )


def _word(value: Any, name: str) -> str:
    """Return a text; JSON's whole numbers, which ids often are, become their digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"a text for {name}", f"{value!r:.60}", "quote it")
    return value


def _number(value: Any) -> int:
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdecimal() or not 0 <= int(text[:9]) <= 36500 or len(text) > 9:
        raise UserError("a whole number of days from 0 to 36500", f"{value!r:.40}", "write for example 30")
    return int(text)


def base(received: str | None, days: int, route: str | None, note: str) -> Draft:
    """Return what holds for every request of one command.

    Args:
        received: the day, None for today.
        days: until it is due.
        route: as given, None for the policy's.
        note: kept with it.
    """
    came = today() if received is None else day(received, "--received")
    return Draft(None, "ids", (), came, days, route, note)


def drafts(
    base: Draft,
    request: str | None,
    file: Path | None,
    *,
    ids: Path | None,
    id: Sequence[str] | None,
    subject: str | None,
    label: str | None,
) -> list[Draft]:
    """Return the requests that a command names, each as a request must be.

    Args:
        base: what holds for every one.
        request: the id of a single one, None where it is to be made.
        file: with many of them.
        ids: text file, one id a line.
        id: single ids.
        subject: of the subject column.
        label: a class.

    Raises:
        UserError: none or several ways to name who is to be forgotten, or a value that no request may have.
    """
    ways: dict[str, Any] = {"--ids": ids, "--id": id or None, "--subject": subject, "--class": label, "--from": file}
    given = [option for option, value in ways.items() if value is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise UserError(f"exactly one of {', '.join(ways)}", got, "say who is to be forgotten")
    if file is not None:
        if request is not None:
            raise UserError("no REQUEST with --from", f"{request!r:.80}", "name each in the column request")
        return many(file, base)
    kind = {"--subject": "subject", "--class": "class"}.get(given[0], "ids")
    single = subject if subject is not None else label
    values = texts(ids) if ids is not None else tuple(id or ()) if single is None else (single,)
    draft = replace(base, id=request, kind=kind, values=values)
    draft.request()
    return [draft]


def receive(ledger: Ledger, drafts: Sequence[Draft]) -> tuple[list[Request], set[str]]:
    """Keep the requests, all or none; one whose made id another process took meanwhile gets the next.

    Returns:
        The requests with their ids, and the ids of those that are new.

    Raises:
        UserError: another content is there under an id.
    """
    for _ in range(TRIES):
        made = named(drafts, ledger)
        new = {request.id for request in made if not _known(ledger, request.id)}
        try:
            ledger.receive_all(made)
        except UserError:
            theirs = {draft.id for draft in drafts}
            if not any(_known(ledger, request.id) for request in made if request.id not in theirs):
                raise
        else:
            return made, new
    raise UserError("a free id for a request", f"others that took {TRIES} in turn", "name it yourself")
