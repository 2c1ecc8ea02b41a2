"""A provenance manifest: entries that only grow in number, each with the hash of the one before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.errors import CorruptArtefact
from expunge.files import digest, jsonable

FIRST = "0" * 64  # the hash that the first entry follows
_REMEDY = "restore the state from a copy, or prepare anew"


def entry(last: str, number: int, kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry.

    Args:
        last: hash of the entry before it, or `FIRST`.
        number: of entries before it.
        kind: what happened: ``trained``, ``retrained``, ``request``, ``revoked``, ``purged`` ...
        body: what it says, JSON values.
    """
    plain = {"number": number, "entry": kind, **jsonable(dict(body)), "previous": last}
    return {**plain, "hash": digest(plain)}


def checked(entries: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Return entries whose chain is whole.

    Raises:
        CorruptArtefact: one was changed, taken out or put in; says which.
    """
    last = FIRST
    for number, line in enumerate(entries):
        whole = isinstance(line, Mapping) and line.get("number") == number and line.get("previous") == last
        if not whole or digest({k: v for k, v in line.items() if k != "hash"}) != line.get("hash"):
            raise CorruptArtefact("a manifest whose entries follow each other", f"a break at {number}", _REMEDY)
        last = str(line["hash"])
    return tuple(entries)
