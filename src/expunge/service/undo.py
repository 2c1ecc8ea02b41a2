"""Replaced versions over time: kept encrypted for a rollback, then destroyed with what else is left."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from expunge.errors import UserError, listing
from expunge.files import there
from expunge.ledger import Entry, Ledger, utcnow
from expunge.ledger.steps import allowed
from expunge.service.archives import archive, archived, drop, exists, keys_of, restore, until
from expunge.service.leftovers import SEALED, Leftover, destroy, inside
from expunge.service.lineage import Line, lineage
from expunge.service.rollback import PROCESS, RolledBack, check_model, finish, rollback
from expunge.service.workspace import Workspace

__all__ = [
    "Kept", "Purged", "RolledBack", "archive", "archived", "finish", "purge", "put_away", "restore", "rollback",
    "sweep", "until",
]  # fmt: skip
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """Something that was not destroyed.

    Args:
        model: its name.
        what: a version, or what else.
        why: a sentence.
    """

    model: str
    what: str
    why: str


@dataclass(frozen=True)
class Purged:
    """What a purge did.

    Args:
        versions: model and version of each that was destroyed.
        requests: ids of requests that can no longer be rolled back.
        removed: what else was destroyed.
        kept: what was not, and why.
    """

    versions: tuple[tuple[str, str], ...] = ()
    requests: tuple[str, ...] = ()
    removed: tuple[Leftover, ...] = ()
    kept: tuple[Kept, ...] = ()

    def __add__(self, other: Purged) -> Purged:
        return Purged(
            self.versions + other.versions,
            self.requests + other.requests,
            self.removed + other.removed,
            self.kept + other.kept,
        )


def put_away(space: Workspace, ledger: Ledger, name: str, days: int, *, now: datetime) -> Purged:
    """Keep every replaced version that still stands in the clear encrypted, or keep none; call it under the lock.

    Args:
        space: where versions are.
        ledger: the requests.
        name: of the model.
        days: for which they are kept; 0 destroys them at once.
        now: the time.

    Returns:
        What was destroyed instead.
    """
    line, found = lineage(ledger, name), Purged()
    for version in line.versions[:-1]:
        if there(space.version(name, version)) is None:
            continue
        if days == 0:
            found += _purge(space, ledger, name, line, [version], "the policy keeps no replaced version")
        else:
            archive(space, ledger, name, version, now + timedelta(days=days))
    return found


def purge(
    space: Workspace,
    ledger: Ledger,
    model: str | None = None,
    *,
    expired_only: bool = False,
    now: Callable[[], datetime] = utcnow,
) -> Purged:
    """Destroy replaced versions, keys first, and what else in the workspace holds what was forgotten.

    A version is kept while a request that was fulfilled after it is held.

    Args:
        space: where versions are.
        ledger: the requests.
        model: its name; default all.
        expired_only: only versions whose time is over; nothing else is touched.
        now: tells the time.

    Returns:
        What was destroyed, and what was not and why.

    Raises:
        UserError: no such model.
    """
    if model is not None:
        check_model(space, model)
    found = Purged()
    for name in space.models if model is None else [model]:
        with space.locked(name):
            finish(space, ledger, name)
            found += sweep(space, ledger, name, expired_only=expired_only, now=now())
    return found


def sweep(space: Workspace, ledger: Ledger, name: str, *, expired_only: bool, now: datetime) -> Purged:
    """Do what `purge` says for one model; call it under its lock."""
    line = lineage(ledger, name)
    older = [v for v in line.versions[:-1] if v not in line.purged or exists(space, name, v)]
    if expired_only:
        chosen = [v for v in older if v in line.purged or _expired(space, ledger, name, v, now)]
        return _purge(space, ledger, name, line, chosen, "its time is over")
    return _purge(space, ledger, name, line, older, "asked for") + _rest(space, ledger, name, line)


def _purge(space: Workspace, ledger: Ledger, name: str, line: Line, versions: list[str], why: str) -> Purged:
    """Record that versions are destroyed, then destroy them; what a held request needs is kept."""
    reasons = _reasons(ledger, name, line, [v for v in versions if v not in line.purged])
    kept = [Kept(name, version, reason) for version, reason in reasons.items()]
    gone = [v for v in versions if v not in reasons]
    entries = _entries(ledger, name, line, gone, why)
    if entries:
        ledger.record_all(entries)
    there_were = [v for v in gone if exists(space, name, v)]
    for version in gone:
        drop(space, ledger, name, version)
        space.destroy(name, version)
    return Purged(tuple((name, v) for v in there_were), tuple(e.request for e in entries), (), tuple(kept))


def _reasons(ledger: Ledger, name: str, line: Line, versions: list[str]) -> dict[str, str]:
    """Return why versions may not be destroyed now: a request that was fulfilled after one is held, or worked on."""
    found, reason, wanted = dict[str, str](), "", set(versions)
    for version in reversed(line.versions):
        if not wanted:
            break
        if version in wanted and reason:
            found[version] = reason
        wanted.discard(version)
        for request in line.requests.get(version, ()):
            reason = reason or _obstacle(ledger, name, request)
    return dict(sorted(found.items()))


def _obstacle(ledger: Ledger, name: str, request: str) -> str:
    status = ledger.status(request)
    if status.held is not None:
        return f"request '{request}' is held ({status.held}): release it first"
    if status.models[name].running:
        return f"request '{request}' is worked on, or its work was interrupted: {PROCESS}"
    return ""


def _entries(ledger: Ledger, name: str, line: Line, gone: list[str], why: str) -> list[Entry]:
    """Return the events of a purge: one for each request that could be rolled back and now cannot."""
    lost = dict[str, list[str]]()
    for version in (v for v in gone if v not in line.purged):
        for request in line.requests.get(line.after(version)[0], ()):
            lost.setdefault(request, []).append(version)
    return [
        Entry(request, "purged", _body(versions, why), name)
        for request, versions in lost.items()
        if "purged" in allowed(ledger.status(request), name)
    ]


def _body(versions: list[str], why: str) -> dict[str, Any]:
    what = f"the weights and state from before, and their key: {listing(versions)}"
    return {"destroyed": versions, "what": what, "reason": why}


def _rest(space: Workspace, ledger: Ledger, name: str, line: Line) -> Purged:
    """Destroy what else of a model holds what was forgotten, unless a request is held."""
    found = [leftover for leftover in inside(space, ledger, name) if leftover.destroyed]
    for status in ledger.all() if found else ():
        if status.held is not None and (name in status.models or not status.models):
            why = f"request '{status.request}' is held ({status.held}): release it first"
            return Purged(kept=tuple(Kept(name, str(leftover.path), why) for leftover in found))
    kept = {path for v in line.versions[:-1] for path in (space.version(name, v), archived(space, name, v))}
    removed = [leftover for leftover in found if leftover.path not in kept]  # of those, `_purge` said why
    for leftover in removed:
        match = SEALED.fullmatch(leftover.path.name)
        if match:
            drop(space, ledger, match[1], match[2])
        destroy(leftover)
    for label in ledger.keys.live(keys_of(name)):  # of a file that was never finished
        if there(archived(space, name, label.split("/")[2])) is None:
            ledger.keys.destroy_named(label)
    return Purged(removed=tuple(removed))


def _expired(space: Workspace, ledger: Ledger, name: str, version: str, now: datetime) -> bool:
    try:
        return there(archived(space, name, version)) is not None and now >= until(space, ledger, name, version)
    except UserError as error:
        log.warning("Whether %s is to be destroyed cannot be told. %s", version, error)
        return False
