"""Forgotten ids are known again without being kept: a ledger holds 16 bytes of a keyed hash of each, by model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from expunge.files import digest
from expunge.ledger.book import Book
from expunge.ledger.keys import marks

_AT_A_TIME = 500


def remember(book: Book, secret: bytes, model: str, ids: Iterable[str], request: str) -> None:
    """Keep marks of ids, within the ledger's transaction."""
    rows = ((mark, model, request) for mark in marks(secret, ids))
    book.db.executemany("INSERT OR IGNORE INTO remembered VALUES (?, ?, ?)", rows)


def forget(book: Book, model: str, request: str) -> None:
    """Remember no longer what a request made a model forget, within the ledger's transaction."""
    book.db.execute("DELETE FROM remembered WHERE model = ? AND request = ?", [model, request])


def known(book: Book, secret: bytes, ids: Sequence[str], model: str | None, over: bool) -> list[str]:
    """Return which of the ids are remembered, in their order.

    Args:
        book: the ledger's file.
        secret: the ledger's own.
        ids: sample ids.
        model: one model, None for any.
        over: whether only requests that are no longer open count.
    """
    if not book.rows("SELECT 1 FROM remembered LIMIT 1"):
        return []
    found = set[bytes]()
    its = marks(secret, ids)
    only, value = (" AND model = ?", [model]) if model is not None else ("", [])
    only += " AND request IN (SELECT request FROM latest WHERE open = 0)" if over else ""
    for start in range(0, len(its), _AT_A_TIME):
        part = its[start : start + _AT_A_TIME]
        places = ",".join("?" * len(part))
        rows = book.rows(f"SELECT DISTINCT mark FROM remembered WHERE mark IN ({places}){only}", [*part, *value])
        found.update(row[0] for row in rows)
    return [i for i, mark in zip(ids, its, strict=True) if mark in found]


def fingerprint(book: Book, model: str, request: str) -> str:
    """Return a digest of the marks that a request left for a model."""
    rows = book.rows("SELECT mark FROM remembered WHERE model = ? AND request = ? ORDER BY mark", [model, request])
    return digest(*(mark for (mark,) in rows))


def fingerprints(book: Book) -> Iterator[tuple[str, str, str]]:
    """Yield model, request and fingerprint of all that is remembered, within `Book.reading`."""
    rows = book.db.execute("SELECT model, request, mark FROM remembered ORDER BY 1, 2, 3")
    for (model, request), part in groupby(rows, key=lambda row: row[:2]):
        yield model, request, digest(*(mark for _, _, mark in part))
