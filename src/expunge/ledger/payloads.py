"""What is personal in a request: encrypted under a key of its own, apart from the chain, which holds a commitment."""

from __future__ import annotations

import time
from typing import Any

from expunge.errors import CorruptArtefact
from expunge.files import canonical
from expunge.ledger.book import Book
from expunge.ledger.database import PATIENCE
from expunge.ledger.events import Event
from expunge.ledger.keys import Keys, commitment, opened, seal
from expunge.ledger.requests import Request

PAUSE = 0.02  # seconds between two tries to empty the log


def about(identity: str, request: str, number: int) -> bytes:
    """Return what a sealed payload belongs to: the ledger, the request and the number of its key."""
    return canonical([identity, request, number]).encode()


def store(book: Book, keys: Keys, request: Request, most: int) -> dict[str, Any]:
    """Seal a request's payload under the next free key, within the ledger's transaction.

    Args:
        book: the ledger's file.
        keys: its keys; more are made where none is left, before the ledger's transaction ends.
        request: the request.
        most: how many keys may be wanted before that.

    Returns:
        The body of its `received` event: what is public, the number of the key, the commitment.
    """
    row = book.db.execute("SELECT CAST(seq AS INTEGER) FROM sqlite_sequence WHERE name = 'payloads'").fetchone()
    number, payload = (row[0] if row else 0) + 1, request.payload()
    while (key := keys.take(number)) is None:
        if number <= keys.made:  # destroyed: the ledger's file is an older copy than the keys'
            number += 1
        else:
            keys.more(number, most)
    sealed = seal(key, payload, about(book.identity, request.id, number))
    book.db.execute("INSERT INTO payloads (key, sealed) VALUES (?, ?)", [number, sealed])
    return {**request.public(), "key": number, "commitment": commitment(key, payload)}


def load(book: Book, keys: Keys, received: Event) -> Request:
    """Return a request from its `received` event and its sealed payload, held to the commitment.

    Raises:
        CorruptArtefact: payload or key is missing, or the payload is not what was received.
    """
    number, remedy = received.body["key"], "restore the folder from a copy"
    rows, key = book.rows("SELECT sealed FROM payloads WHERE key = ?", [number]), keys.take(number)
    sealed = rows[0][0] if rows and isinstance(rows[0][0], bytes) else None
    if sealed is None or key is None:
        what = "payload" if sealed is None else "key"
        raise CorruptArtefact(f"the {what} of request '{received.request}', which was not erased", "none", remedy)
    payload = opened(key, sealed, about(book.identity, received.request, number))
    if commitment(key, payload) != received.body["commitment"]:
        raise CorruptArtefact(f"the payload that request '{received.request}' was received with", "another", remedy)
    return Request.read(received.request, received.body, payload)


def erase(book: Book, received: Event) -> None:
    """Remove a payload within the transaction that records the erasure; `finish` then destroys the key."""
    number = received.body["key"]
    book.db.execute("DELETE FROM payloads WHERE key = ?", [number])
    book.db.execute("INSERT OR IGNORE INTO erasing VALUES (?)", [number])


def finish(book: Book, keys: Keys, wait: float) -> bool:
    """Destroy the keys of what was erased and empty the write-ahead log, also after a process that was killed.

    Args:
        book: the ledger's file.
        keys: its keys.
        wait: seconds to try for, where another process reads or empties the log.

    Returns:
        Whether the log could be emptied; if not, it still holds encrypted bytes without a key.
    """
    numbers = book.rows("SELECT key FROM erasing")
    for (number,) in numbers:
        keys.destroy(number)
    if numbers and not _emptied(book, wait):
        return False
    if numbers:
        with book.writing():
            book.db.executemany("DELETE FROM erasing WHERE key = ?", numbers)
    return True


def _emptied(book: Book, wait: float) -> bool:
    """Return whether the log could be emptied; SQLite itself does not wait for another process that empties it."""
    end = time.monotonic() + wait
    book.rows("PRAGMA busy_timeout=0")
    try:
        while book.rows("PRAGMA wal_checkpoint(TRUNCATE)")[0][0]:
            if time.monotonic() >= end:
                return False
            time.sleep(PAUSE)
        return True
    finally:
        book.rows(f"PRAGMA busy_timeout={round(PATIENCE * 1000)}")
