"""What ``expunge requests process --plan`` prints: which requests, how, in which batches, and what waits for what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from expunge.cli._requests_words import names
from expunge.errors import UserError
from expunge.ledger import Ledger, Status, utcnow
from expunge.project import Project
from expunge.runtime import Runtime
from expunge.service import Workspace, places, qualified
from expunge.service.site import Site


def planned(
    place: Project, space: Workspace, only: Sequence[str], how: Any, runtime: Runtime, seed: int
) -> list[dict[str, Any]]:
    """Return what would be done on each model, as JSON values: a row a batch, and a row for what waits.

    Samples are not looked up: a batch may be divided further by ``largest_share``, and requests of which a model
    holds nothing are not among its edits.

    Args:
        place: the project.
        space: the workspace.
        only: ids of requests, empty for all.
        how: as the operator asks.
        runtime: device and batch size.
        seed: of everything random.

    Raises:
        UserError: there is no ledger, an id is unknown, or nothing can be started on any model.
    """
    found, problems = [], list[UserError]()
    with Ledger.open(space.folder, readonly=True) as ledger:
        wanted = {ledger.status(request).request for request in only}
        pending = [s for s in ledger.open_requests() if not wanted or s.request in wanted]
        every = places(place)
        for name, own in every.items():
            site = Site(name, own, place.config.requests, space, ledger, runtime, seed, utcnow)
            try:
                qualified.load(own)  # a record that is not there stops the work on this model
                found += _model(site, pending, how)
            except UserError as error:
                problems.append(error)
                found.append(_row(site, [s.request for s in pending], None, f"refused: {error}"))
        if problems and len(problems) == len(every):
            raise problems[0]
    return found


def _model(site: Site, pending: Sequence[Status], how: Any) -> list[dict[str, Any]]:
    by = {what: [s for s in pending if site.wants(s, how) == what] for what in ("edit", "retrain", None)}
    method = site.place.config.method.get("name", "ssd")
    rows = [_row(site, batch, "edit", f"now, by {method}") for batch in _batches(by["edit"], site.policy.batch)]
    if by["retrain"]:
        when = _when(site) if how is None else "now"
        rows.append(_row(site, [s.request for s in by["retrain"]], "retrain", when))
    waiting: dict[str, list[str]] = {}
    for status in by[None]:
        waiting.setdefault(_why(site, status, how), []).append(status.request)
    return rows + [_row(site, ids, None, why) for why, ids in waiting.items()]


def _batches(pending: Sequence[Status], most: int) -> list[list[str]]:
    """Return the ids that are edited together: a class goes alone, and so does what failed before."""
    found, batch = list[list[str]](), list[str]()
    for status in pending:
        alone = status.kind == "class" or any(model.step == "failed" for model in status.models.values())
        if batch and (alone or len(batch) == most):
            found.append(batch)
            batch = []
        batch = [*batch, status.request]
        if alone:
            found.append(batch)
            batch = []
    return [*found, batch] if batch else found


def _when(site: Site) -> str:
    """Return when a retraining is due."""
    try:
        due = site.due(site.folder())
    except UserError:  # no version yet, or no data to look into: the cadence counts from the first run
        return f"{site.policy.cadence} days after the first run"
    return "now, it is due" if due <= utcnow() else f"with the cadence, from {due.date()} on"


def _why(site: Site, status: Status, how: Any) -> str:
    model = status.models.get(site.name)
    if status.held is not None:
        return f"held: {status.held}"
    if site.policy.approval and status.approved_by is None and not status.begun:
        return "waits for approval by another operator"
    if model is not None and model.step == "absent":
        return "nothing to do: the model holds none of its samples"
    if model is not None and model.done and site.wants(status, None) is None:
        return "nothing to do: it is fulfilled on this model"
    return f"left out by --how {how}"


def _row(site: Site, requests: list[str], how: str | None, when: str) -> dict[str, Any]:
    return {"model": site.name, "requests": requests, "how": how, "when": when}


def shown(rows: list[dict[str, Any]]) -> list[Any]:
    """Return the plan for `expunge.cli._show.emit`: the JSON values, then what people read."""
    table = Table("model", "requests", "how", "when, or why not", title="Plan: nothing is written.")
    for row in rows:
        said = f"{len(row['requests'])}: {names(row['requests'])}"
        table.add_row(*(Text(cell) for cell in (row["model"], said, row["how"] or "wait", row["when"])))
    return [{"plan": rows}, table if rows else "Nothing is pending."]
