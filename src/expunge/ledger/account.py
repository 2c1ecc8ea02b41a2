"""What the events of one request say, put in order: the part of its record that anybody can compute from the chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from expunge.ledger.events import Event
from expunge.ledger.steps import Status, advance

HIDDEN = frozenset({"commitment", "key"})  # of the ledger's own use: they tell a reader nothing
SAID = ("how", "version", "reason", "route", "until")  # of a body, what the timeline repeats


def account(events: Sequence[Event]) -> dict[str, Any]:
    """Return the account of a request from its events alone, so that it can be computed again and compared.

    Args:
        events: all events of one request, in their order; the first is `received`.

    Returns:
        ``request`` (id, kind, count, route, received, due), ``status`` (word, open, held, approved_by, refused,
        closed, erased), ``days`` (in_time: whether it was closed by its due day, None while it is not closed; closed:
        that day where it was closed, or in UTC; left: days between closing and the due day, negative where late),
        ``timeline`` (an entry an event) and ``models``: by name the step it is at, how it is freed of the samples, and
        its attempts, each with the bodies of its events by step.

    Raises:
        UserError: a step that is not allowed.
    """
    status: Status | None = None
    for event in events:
        status = advance(status, event)
    if status is None:
        return {}
    names = ("word", "open", "held", "approved_by", "refused", "closed", "erased")
    asked = ("request", "kind", "count", "route", "received", "due")
    return {
        "request": {("id" if name == "request" else name): getattr(status, name) for name in asked},
        "status": {name: getattr(status, name) for name in names},
        "days": _days(status, events),
        "timeline": [_entry(event) for event in events],
        "models": {name: _model(status, name, events) for name in status.models},
    }


def _days(status: Status, events: Sequence[Event]) -> dict[str, Any]:
    end = next((e for e in reversed(events) if e.step == "closed"), None) if status.closed else None
    last = None if end is None else str(end.body.get("day", end.at[:10]))
    try:
        left = None if last is None else (date.fromisoformat(status.due) - date.fromisoformat(last)).days
    except ValueError:  # a day that is none: nothing is said of it
        left = None
    return {"closed": last, "left": left, "in_time": None if left is None else left >= 0}


def _entry(event: Event) -> dict[str, Any]:
    said = {name: event.body[name] for name in SAID if event.body.get(name) is not None}
    return {"seq": event.seq, "at": event.at, "step": event.step, "model": event.model, "actor": event.actor, **said}


def _model(status: Status, name: str, events: Sequence[Event]) -> dict[str, Any]:
    found = status.models[name]
    attempts: list[dict[str, Any]] = []
    for event in (e for e in events if e.model == name):
        waits = bool(attempts) and attempts[-1].keys() <= {"seq", "at", "scheduled"}  # for what now begins
        if not attempts or (event.step in ("started", "absent", "scheduled") and not waits):
            attempts.append({"seq": event.seq, "at": event.at})
        attempts[-1][event.step] = {"at": event.at, "seq": event.seq, **_shown(event.body)}
    how = {"step": found.step, "version": found.version, "done": sorted(found.done), "freed": found.freed}
    return {**how, "undo": found.undo, "attempts": attempts}


def _shown(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in HIDDEN}
