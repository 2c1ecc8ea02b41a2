"""What ``expunge requests`` says of requests: a list by due day, one request's story, what is next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Any

from rich.table import Table
from rich.text import Text

from expunge.cli._requests import Place, today
from expunge.ledger import Request, Status

LINES = ("request", "kind", "count", "route", "received", "due", "days_left", "overdue", "step", "held", "models")
SHOWN = 5  # requests named in a line


def row(status: Status, place: Place) -> dict[str, Any]:
    """Return a line of the list as JSON values."""
    left = (date.fromisoformat(status.due) - today()).days
    return {
        "request": status.request,
        "kind": status.kind,
        "count": status.count,
        "route": status.route or place.route,
        "received": status.received,
        "due": status.due,
        "days_left": left if status.open else None,
        "overdue": status.open and left < 0,
        "step": status.word,
        "waits": waits(status, place),
        "held": status.held,
        "models": {name: model.step for name, model in status.models.items()},
    }


def waits(status: Status, place: Place) -> bool:
    """Return whether a request waits for an approval."""
    return place.approval and status.open and status.approved_by is None and not status.begun


def listed(rows: Sequence[Mapping[str, Any]], most: int) -> Table:
    """Return the first rows as a table, those overdue in red."""
    table = Table("request", "asks for", "route", "received", "due", "days left", "step", "models")
    for each in rows[:most]:
        style = "red" if each["overdue"] else ""
        step = f"{each['step']} (approval)" if each["waits"] and each["step"] == "received" else each["step"]
        models = _steps(each["models"])
        cells = (each["request"], asked(each["kind"], each["count"]), each["route"], each["received"], each["due"])
        table.add_row(*(Text(cell, style) for cell in (*cells, left(each), step, models)))
    return table


def _steps(models: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {step}" for name, step in models.items())


def left(each: Mapping[str, Any]) -> str:
    """Return how many days are left, in words."""
    if each["days_left"] is None:
        return ""
    return f"{-each['days_left']} overdue" if each["overdue"] else str(each["days_left"])


def asked(kind: str, count: int) -> str:
    """Return what a request names, without naming it: ``3 ids``."""
    one = {"ids": "id", "subject": "subject", "class": "class"}[kind]
    many = {"ids": "ids", "subject": "subjects", "class": "classes"}[kind]
    return f"{count:,} {one if count == 1 else many}"


def counts(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many requests are at each step."""
    return dict(Counter(str(each["step"]) for each in rows))


def counted(rows: Sequence[Mapping[str, Any]], every: bool) -> str:
    """Return the counts in a sentence."""
    said = ", ".join(f"{n:,} {step}" for step, n in counts(rows).items())
    late = sum(bool(each["overdue"]) for each in rows)
    what = "request" if every else "open request"
    total = f"{len(rows):,} {what}{'' if len(rows) == 1 else 's'}"
    return f"{total}: {said or 'none'}." + (f" {late:,} overdue." if late else "")


def sheet(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the rows as CSV, in which no cell is taken for a formula."""
    from expunge.report import requestcsv  # with it comes what draws reports, which takes seconds

    return requestcsv.table(({**each, "models": _steps(each["models"])} for each in rows), LINES)


def told(account: Mapping[str, Any], status: Status, place: Place) -> list[Any]:
    """Return the story of a request: what is asked, what happened, what came of it on each model, what is next."""
    each = row(status, place)
    due = f"due {status.due}" + (f", {left(each)}{'' if each['overdue'] else ' days left'}" if status.open else "")
    head = f"{status.request}: {asked(status.kind, status.count)}, route {each['route']}, received {status.received}"
    lines: list[Any] = [Text(f"{head}, {due}. {status.word.capitalize()}.", "red" if each["overdue"] else "")]
    table = Table("event", "when (UTC)", "step", "model", "by", "said")
    for entry in account["timeline"]:
        said = ", ".join(f"{k} {v}" for k, v in entry.items() if k not in ("seq", "at", "step", "model", "actor"))
        cells = (str(entry["seq"]), entry["at"][:19].replace("T", " "), entry["step"], entry["model"] or "")
        table.add_row(*(Text(plain(cell)) for cell in (*cells, entry["actor"], said)))
    lines.append(table)
    for name, found in account["models"].items():
        lines.append(_outcome(name, found))
    return [*lines, f"Next: {following(status, place)}"]


def _outcome(name: str, found: Mapping[str, Any]) -> str:
    done = " and ".join({"edit": "edited", "retrain": "retrained"}[how] for how in found["done"])
    state = "holds none of its samples" if found["step"] == "absent" else done or "not done"
    said = f"{name}: {state}; last step {found['step']}"
    last = found["attempts"][-1] if found["attempts"] else {}
    if found["step"] == "failed":
        said += f": {last.get('failed', {}).get('reason', '')}"
    elif found["done"] and "unlearned" in last:
        body = last["unlearned"]
        said += f", version {found['version']} by {body.get('method', {}).get('name', 'a method')}"
        test = last.get("verified", {}).get("test_accuracy") or {}
        if test.get("before") is not None and test.get("after") is not None:
            said += (
                f"; right on {100 * test['before']:.1f} % of the test data before, {100 * test['after']:.1f} % after"
            )
    return plain(f"{said.removesuffix('.')}.")


def following(status: Status, place: Place) -> str:
    """Return what is next for a request, with the command for it."""
    me, run = status.request, "expunge requests"
    erase = f" What it named can be destroyed: {run} erase {me}." if not status.erased else ""
    if status.held is not None:
        return f"it is held ({plain(status.held)}); {run} release {me} ends that."
    if status.refused is not None:
        return f"nothing, it was refused ({plain(status.refused)}).{erase}"
    if status.closed:
        return f"nothing. Its record: {run} export {me} -o FOLDER.{erase}"
    if status.erased:
        return "nothing can be done again: what it named was erased, and it was rolled back."
    if waits(status, place):
        return f"somebody other than {status.opened_by} approves: {run} approve {me}."
    named = place.body.get("requests", {}).get("models")
    gone = [name for name, model in status.models.items() if named and name not in named and not model.freed]
    if gone:
        them = " and ".join(gone)
        return f"it waits for {them}, which [requests.models] names no longer: put it back, then {run} process {me}."
    steps = {model.step for model in status.models.values()}
    if "failed" in steps:
        return f"mend what the last attempt failed for, then {run} process {me}; or {run} process {me} --how retrain."
    if steps & {"started", "unlearned", "verified"}:
        return f"an attempt is under way, or was interrupted: {run} process goes on."
    route = status.route or place.route
    if "scheduled" in steps or (route != "edit" and any(model.done for model in status.models.values())):
        return f"the retraining, by {run} process once it is due, or now by {run} process {me} --how retrain."
    return f"{run} process."


def revealed(request: Request) -> dict[str, Any]:
    """Return what a request names, as JSON values."""
    return {"values": list(request.values), "note": request.note}


def names(ids: Sequence[str]) -> str:
    """Return ids of requests for a line."""
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(ids[:SHOWN]) + more


def plain(text: str) -> str:
    """Return a text on one line without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text)


def quoted(values: Sequence[str]) -> str:
    """Return what a request names for a terminal: values that it would not show as they are, quoted."""
    return ", ".join(v if v.isprintable() and v.strip() == v != "" else repr(v) for v in values)
