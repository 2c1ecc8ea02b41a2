"""What is personal in a request: encrypted under a key of its own, apart from the chain, which holds a commitment."""

from __future__ import annotations

from typing import Any

from expunge.errors import CorruptArtefact
from expunge.files import canonical
from expunge.ledger.book import Book
from expunge.ledger.events import Event
from expunge.ledger.keys import Keys, commitment, opened, seal
from expunge.ledger.requests import Request


def about(identity: str, request: str, number: int) -> bytes:
    """Return what a sealed payload belongs to: the ledger, the request and the number of its key."""
    return canonical([identity, request, number]).encode()


def store(book: Book, keys: Keys, request: Request) -> dict[str, Any]:
    """Seal a request's payload under the next free key, within the ledger's transaction.

    Args:
        book: the ledger's file.
        keys: its keys; more are made where none is left, before the ledger's transaction ends.
        request: the request.

    Returns:
        The body of its `received` event: what is public, the number of the key, the commitment.
    """
    row = book.db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'payloads'").fetchone()
    number, payload = (row[0] if row else 0) + 1, request.payload()
    while (key := keys.take(number)) is None:
        if number <= keys.made:  # destroyed: the ledger's file is an older copy than the keys'
            number += 1
        else:
            keys.more(number)
    sealed = seal(key, payload, about(book.identity, request.id, number))
    book.db.execute("INSERT INTO payloads (key, sealed) VALUES (?, ?)", [number, sealed])
    return {**request.public(), "key": number, "commitment": commitment(key, payload)}


def load(book: Book, keys: Keys, received: Event) -> Request:
    """Return a request from its `received` event and its sealed payload, held to the commitment.

    Raises:
        CorruptArtefact: payload or key is missing, or the payload is not what was received.
    """
    number, remedy = received.body["key"], "restore the folder from a copy"
    sealed, key = book.rows("SELECT sealed FROM payloads WHERE key = ?", [number]), keys.take(number)
    if not sealed or key is None:
        what = "payload" if not sealed else "key"
        raise CorruptArtefact(f"the {what} of request '{received.request}', which was not erased", "none", remedy)
    payload = opened(key, sealed[0][0], about(book.identity, received.request, number))
    if commitment(key, payload) != received.body["commitment"]:
        raise CorruptArtefact(f"the payload that request '{received.request}' was received with", "another", remedy)
    return Request.read(received.request, received.body, payload)


def erase(book: Book, received: Event) -> None:
    """Remove a payload within the transaction that records the erasure; `finish` then destroys the key."""
    number = received.body["key"]
    book.db.execute("DELETE FROM payloads WHERE key = ?", [number])
    book.db.execute("INSERT OR IGNORE INTO erasing VALUES (?)", [number])


def finish(book: Book, keys: Keys) -> bool:
    """Destroy the keys of what was erased and empty the write-ahead log, also after a process that was killed.

    Returns:
        Whether the log could be emptied; if a reader prevents it, it still holds encrypted bytes without a key.
    """
    numbers = book.rows("SELECT key FROM erasing")
    if not numbers:
        return True
    for (number,) in numbers:
        keys.destroy(number)
    if book.rows("PRAGMA wal_checkpoint(TRUNCATE)")[0][0]:
        return False
    with book.writing():
        book.db.executemany("DELETE FROM erasing WHERE key = ?", numbers)
    return True
