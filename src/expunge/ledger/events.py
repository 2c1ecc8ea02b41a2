"""Events of a ledger: what each says, the chain of digests that holds them together, and the head of that chain.

An event's inner digest is of its content and of random bits; its digest is of its number, the digest before it and the
inner digest. So an event can be shown as a link of the chain without showing what it says, and without the random bits
who guesses what it says cannot find out whether the guess is right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from expunge.errors import UserError
from expunge.files import digest as hashed

_HEAD = re.compile(r"(0|[1-9][0-9]{0,17}):([0-9a-f]{64})")


def first(identity: str) -> str:
    """Return what the first event of a ledger follows.

    Args:
        identity: the ledger's own random identity.
    """
    return hashed(["expunge ledger", identity])


def linked(seq: int, previous: str, inner: str) -> str:
    """Return the digest of an event: SHA-256 of the canonical JSON of ``[seq, previous, inner]``.

    Args:
        seq: its number, from 1.
        previous: the digest of the event before it, or `first`.
        inner: the digest of its content.
    """
    return hashed([seq, previous, inner])


@dataclass(frozen=True)
class Event:
    """Something that happened to a request, as it stands in the ledger.

    Args:
        seq: its number in the ledger, from 1 without gaps.
        request: the id of the request.
        model: the name of the model it is about, None for an event of the request itself.
        step: what happened, a `Step`.
        at: when, in UTC: ``2025-01-31T12:00:00.000000+00:00``.
        actor: who wrote it.
        body: what else is known, a JSON object.
        previous: the digest of the event before it.
        digest: of this event, as `linked` says.
        salt: 32 random hexadecimal digits.
        earlier: the number of the event of the same request before it, 0 for the first: so that a pack cannot leave
            out one between two that it shows.
    """

    seq: int
    request: str
    model: str | None
    step: str
    at: str
    actor: str
    body: Mapping[str, Any]
    previous: str
    digest: str
    salt: str = ""
    earlier: int = 0

    @property
    def inner(self) -> str:
        """SHA-256 of the canonical JSON of ``[request, model, step, at, actor, body, salt, earlier]``."""
        content = [self.request, self.model, self.step, self.at, self.actor, self.body, self.salt, self.earlier]
        return hashed(content)

    @property
    def sound(self) -> bool:
        """Whether the digest is that of the content."""
        return self.digest == linked(self.seq, self.previous, self.inner)

    @property
    def head(self) -> Head:
        """The head of a chain that ends with this event."""
        return Head(self.seq, self.digest)

    def document(self) -> dict[str, Any]:
        """Return the event as a JSON object, without the inner digest, which follows from it."""
        return {**vars(self), "body": dict(self.body)}

    def link(self) -> dict[str, Any]:
        """Return what the chain needs of the event, without its content, as a JSON object."""
        return {"seq": self.seq, "previous": self.previous, "inner": self.inner, "digest": self.digest}


@dataclass(frozen=True)
class Head:
    """The end of a chain, to be kept apart from the ledger: with it, a missing tail or another chain is noticed.

    Args:
        seq: the number of the last event, 0 of an empty ledger.
        digest: the digest of the last event; of an empty ledger, `first`.

    >>> Head.parse("0:" + "a" * 64).seq
    0
    """

    seq: int
    digest: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.digest}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read a head as ``str`` writes it.

        Returns:
            The head.

        Raises:
            UserError: it is not of that form.
        """
        found = _HEAD.fullmatch(text.strip())
        if found is None:
            shown = text if len(text) <= 80 else f"{text[:77]}..."
            remedy = "give the line that expunge requests anchor printed"
            raise UserError("a head of the form NUMBER:64 hexadecimal digits", repr(shown), remedy)
        return cls(int(found[1]), found[2])


@dataclass(frozen=True)
class Problem:
    """Something that is wrong in a ledger or in what was exported from it.

    Args:
        what: its kind, one word: ``event``, ``chain``, ``step``, ``head`` ...
        where: the file, event or request.
        got: what was found there, and what was expected.
    """

    what: str
    where: str
    got: str

    def __str__(self) -> str:
        return f"{self.where}: {self.got}"
