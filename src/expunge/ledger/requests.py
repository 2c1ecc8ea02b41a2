"""A deletion request: who or what is to be forgotten, until when."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal, get_args

from expunge.errors import UserError, suggest
from expunge.files import canonical
from expunge.ledger.steps import ROUTES, Route

Kind = Literal["ids", "subject", "class"]
KINDS: tuple[str, ...] = get_args(Kind)
MOST = 10 * 2**20  # bytes of UTF-8 in all values and the note of one request
_NAME = re.compile(r"[A-Za-z0-9_:@+][A-Za-z0-9._:@+-]{0,199}")


class Erased(UserError):
    """What a request named is no longer in the ledger."""


def check_name(name: str, what: str) -> None:
    """Refuse a name that could be mistaken for a path or an option.

    Args:
        name: 1 to 200 of ``A-Z a-z 0-9 . _ : @ + -``, not starting with ``.`` or ``-``.
        what: it names, for the message.

    Raises:
        UserError: it is anything else.
    """
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        shown = repr(name) if len(repr(name)) <= 80 else f"{repr(name)[:77]}..."
        expected = f"{what} of 1 to 200 letters, digits and . _ : @ + -, not starting with . or -"
        raise UserError(expected, shown, "choose another")


@dataclass(frozen=True)
class Request:
    """A demand to forget samples.

    Args:
        id: its name, unique in a ledger, kept in clear for ever: no personal data. As `check_name` says.
        kind: whether ``values`` are sample ids, subjects or classes.
        values: texts, kept as they are, quotes, line breaks and null bytes included; at most 10 MiB together.
        received: the day it came in.
        due: the last day to fulfil it.
        route: how to fulfil it; None leaves that to the policy.
        note: anything to keep with it, encrypted as the values are.

    Raises:
        UserError: a field is not what is said here.
    """

    id: str
    kind: Kind
    values: tuple[str, ...]
    route: Route | None = None
    received: date = field(kw_only=True)
    due: date = field(kw_only=True)
    note: str = ""

    def __post_init__(self) -> None:
        check_name(self.id, "a request id")
        if self.kind not in KINDS:
            raise UserError(f"a kind for request '{self.id}'", repr(self.kind), suggest(self.kind, KINDS))
        if self.route is not None and self.route not in ROUTES:
            raise UserError(f"a route for request '{self.id}'", repr(self.route), suggest(self.route, ROUTES))
        if type(self.received) is not date or type(self.due) is not date:
            got = f"{self.received!r} and {self.due!r}"
            raise UserError(f"two days in request '{self.id}'", got, "give each as a datetime.date")
        if self.due < self.received:
            got = f"{self.due} after {self.received}"
            raise UserError(f"request '{self.id}' due on the day it was received or later", got, "check the two dates")
        if isinstance(self.values, str) or not all(isinstance(v, str) for v in (*self.values, self.note)):
            raise UserError(f"texts in request '{self.id}'", "another type", "give a tuple of str")
        object.__setattr__(self, "values", tuple(self.values))
        self._check_values()

    def _check_values(self) -> None:
        if not self.values:
            raise UserError(f"at least one value in request '{self.id}'", "none", "name what is to be forgotten")
        if len(set(self.values)) < len(self.values):
            twice = next(value for value, count in Counter(self.values).items() if count > 1)
            shown = repr(twice[:60]) + ("..." if len(twice) > 60 else "")
            raise UserError(f"each value once in request '{self.id}'", f"{shown} twice", "remove one")
        size = sum(len(v.encode("utf-8", "surrogatepass")) for v in (*self.values, self.note))
        if size > MOST:
            expected = f"at most {MOST:,} bytes of values and note in request '{self.id}'"
            raise UserError(expected, f"{size:,}", "split it into several requests")

    def payload(self) -> bytes:
        """Return what is personal, as canonical JSON: kind, values, note."""
        return canonical({"kind": self.kind, "values": list(self.values), "note": self.note}).encode()

    def public(self) -> dict[str, Any]:
        """Return what is not personal, as the `received` event keeps it: kind, count, route and the two days."""
        days = {"received": self.received.isoformat(), "due": self.due.isoformat()}
        return {"kind": self.kind, "count": len(self.values), "route": self.route, **days}

    @classmethod
    def read(cls, id: str, public: Mapping[str, Any], payload: bytes) -> Request:
        """Return the request of which `public` and `payload` gave the parts."""
        found = json.loads(payload)
        days = {name: date.fromisoformat(public[name]) for name in ("received", "due")}
        return cls(id, found["kind"], tuple(found["values"]), public["route"], note=found["note"], **days)

    def same(self, other: Request) -> bool:
        """Whether another asks for the same: kind, values in any order, route and note; the days may differ."""
        mine, its = ((r.id, r.kind, set(r.values), r.route, r.note) for r in (self, other))
        return mine == its
