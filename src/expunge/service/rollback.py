"""Serve the version before again: what was forgotten since is open again, and no longer remembered as forgotten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from expunge.errors import UserError, listing, suggest
from expunge.files import read_document, sync_one, there, writable, write_document
from expunge.ledger import Entry, Ledger, utcnow
from expunge.ledger.steps import allowed
from expunge.service.archives import archived, drop, restore, until
from expunge.service.lineage import Line, lineage
from expunge.service.workspace import Workspace

PLAN, PLANNED, SCHEMA = "rollback.json", "expunge.rollback", 1
PROCESS = "run expunge requests process, which ends it"


@dataclass(frozen=True)
class RolledBack:
    """What a rollback did.

    Args:
        model: its name.
        undone: versions that are gone, oldest first; none where the wanted one was served already.
        version: that is served now.
        requests: ids of those that are open again, also of those of which the model held nothing because an undone
            version had forgotten it before.
    """

    model: str
    undone: tuple[str, ...]
    version: str
    requests: tuple[str, ...] = ()


def rollback(
    space: Workspace,
    ledger: Ledger,
    name: str,
    to: str | None = None,
    *,
    now: Callable[[], datetime] = utcnow,
) -> RolledBack:
    """Serve the version before again; what was forgotten since is open again and no longer remembered as forgotten.

    A process that is killed leaves a plan, which the next call ends, whatever it asks for. With `to`, a call that is
    repeated changes nothing; without, one that is repeated after all was done goes back one version more. A hold
    forbids none of it.

    Args:
        space: where versions are.
        ledger: the requests.
        name: of the model.
        to: the version to serve, one that was served before; default the last before the served one.
        now: tells the time.

    Returns:
        What was done.

    Raises:
        UserError: no older version, its time is over, it was destroyed, or a request of it was erased or is worked on.
        CorruptArtefact: the kept version was cut or altered, or its key is gone; the served one stays.
    """
    check_model(space, name)
    with space.locked(name):
        space.tidy(name)
        ended = finish(space, ledger, name)
        if ended is not None:
            return ended
        line = lineage(ledger, name)
        if space.current(name) != line.served:
            raise UserError(f"{line.served} of {name} to be served", str(space.current(name)), PROCESS)
        if to == line.served:
            return RolledBack(name, (), line.served)
        target = _target(line, name, to)
        undone = line.after(target)
        _check_window(space, ledger, name, target, line, now())
        _check_requests(ledger, name, line, undone)
        entries = [[request, version] for version, request in reversed(list(line.made_for(undone)))]
        entries += [[request, undone[0]] for request in _absent(ledger, name, undone[0])]
        body = {"version": target, "undone": undone, "requests": entries}
        write_document(space.home(name) / PLAN, PLANNED, SCHEMA, body)
        return _carry_out(space, ledger, name, body)


def finish(space: Workspace, ledger: Ledger, name: str) -> RolledBack | None:
    """End a rollback that a killed process left; call it under the model's lock, before anything else.

    Returns:
        What was done, None where there was nothing to end.
    """
    plan = space.home(name) / PLAN
    return _carry_out(space, ledger, name, read_document(plan, PLANNED, SCHEMA)) if there(plan) else None


def _carry_out(space: Workspace, ledger: Ledger, name: str, plan: dict[str, Any]) -> RolledBack:
    """Do what a rollback planned, from wherever a killed process left it: the ledger first, then what is served."""
    target, undone, path = plan["version"], plan["undone"], space.home(name) / PLAN
    if lineage(ledger, name).served != target:
        try:
            restore(space, ledger, name, target)
            bodies = [(request, {"version": target, "undone": version}) for request, version in plan["requests"]]
            ledger.record_all([Entry(request, "rolled_back", body, name) for request, body in bodies])
        except UserError:  # nothing was done yet
            path.unlink()
            if there(archived(space, name, target)) is not None:
                space.destroy(name, target)
            raise
    space.switch(name, target)
    for version in undone:
        drop(space, ledger, name, version)
        space.destroy(name, version)
    drop(space, ledger, name, target)
    with writable(path):
        path.unlink()
        sync_one(path.parent)
    requests = tuple(dict.fromkeys(request for request, _ in plan["requests"] if ledger.status(request).open))
    return RolledBack(name, tuple(undone), target, requests)


def check_model(space: Workspace, name: str) -> None:
    """Refuse the name of a model that is not in the workspace."""
    if name not in space.models:
        raise UserError(f"a model of {space.folder}", f"'{name}'", suggest(name, space.models))


def _target(line: Line, name: str, to: str | None) -> str:
    if to is None:
        target = line.before(line.served)
        if target is None:
            remedy = "there is nothing to roll back"
            raise UserError(f"a version of {name} before {line.served}", "none", remedy)
        return target
    if to not in line.versions:
        known = suggest(to, line.versions)
        raise UserError(f"a version of {name} that was served before {line.served}", f"'{to}'", known)
    return to


def _check_window(space: Workspace, ledger: Ledger, name: str, target: str, line: Line, now: datetime) -> None:
    remedy = "the served version stays; take the route retrain for an exact model"
    if there(space.version(name, target)) is not None:
        return
    if target in line.purged or there(archived(space, name, target)) is None:
        got = "one that was destroyed" if target in line.purged else f"no {archived(space, name, target)}"
        raise UserError(f"version {target} of {name} to be kept", got, remedy)
    end = until(space, ledger, name, target)
    if now >= end:
        got = f"{now.isoformat(timespec='seconds')}, and it was kept until {end.isoformat(timespec='seconds')}"
        raise UserError(f"a time within the undo window of version {target} of {name}", got, remedy)


def _check_requests(ledger: Ledger, name: str, line: Line, undone: list[str]) -> None:
    """Refuse what the ledger would refuse, before anything is done."""
    seen = set[str]()
    for request in [*(r for _, r in line.made_for(undone)), *_absent(ledger, name, undone[0])]:
        status = ledger.status(request)
        if request in seen:
            got = f"request '{request}', fulfilled by several of them"
            remedy = f"roll back to {line.before(line.served)}"
            raise UserError(f"requests fulfilled by one of the versions {listing(undone)} of {name}", got, remedy)
        if status.models[name].running:
            got = f"request '{request}', worked on or interrupted"
            raise UserError(f"no attempt under way on {name}", got, PROCESS)
        if "rolled_back" not in allowed(status, name):
            got = "one that was erased" if status.erased else "one whose older version was given up"
            remedy = "the served version stays; take the route retrain for an exact model"
            raise UserError(f"request '{request}' to be one that can be opened again on {name}", got, remedy)
        seen.add(request)


def _absent(ledger: Ledger, name: str, first: str) -> list[str]:
    """Return requests that found nothing to forget since a version was begun, where that is why, last one first."""
    found = (e for e in ledger.events(int(first[1:]), ("absent",)) if e.model == name)
    ids = dict.fromkeys(e.request for e in found if e.body.get("forgotten_before", 1))
    return [i for i in reversed(ids) if ledger.status(i).models[name].step == "absent"]
