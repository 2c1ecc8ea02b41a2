"""``expunge requests``: receive deletion requests, see where they are, decide on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from expunge.cli import _requests_fulfil as fulfil
from expunge.cli._app import app
from expunge.cli._requests import Id, Operator, Space, ask, place
from expunge.cli._show import emit, options

requests = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Receive deletion requests, fulfil them in time on the model that is served, keep a record for auditors.\n\n"
    "[bold]add[/bold] each request as it comes, look at [bold]list[/bold], run [bold]process[/bold] every day, "
    "[bold]export[/bold] the record of one, [bold]verify[/bold] all of it, keep what [bold]anchor[/bold] prints "
    "elsewhere. The policy stands in \\[requests] of the project file.",
)
app.add_typer(requests, name="requests")


def add(
    context: typer.Context,
    request: Annotated[
        str | None, typer.Argument(metavar="REQUEST", help="Its id, kept in clear for ever; default one is made.")
    ] = None,
    ids: Annotated[Path | None, typer.Option(help="Text file, one sample id a line.")] = None,
    id: Annotated[list[str] | None, typer.Option("--id", help="A sample id, repeatable.")] = None,
    subject: Annotated[str | None, typer.Option(help="A person or customer: a value of the subject column.")] = None,
    label: Annotated[str | None, typer.Option("--class", help="A whole class, by number or name.")] = None,
    file: Annotated[Path | None, typer.Option("--from", help="CSV or JSONL of many requests, all or none.")] = None,
    received: Annotated[str | None, typer.Option(help="Day it came in, as 2025-01-31; default today.")] = None,
    days: Annotated[int | None, typer.Option(min=0, max=36500, help="Until it is due; default the project's.")] = None,
    route: Annotated[
        Literal["edit", "retrain", "edit-then-retrain"] | None,
        typer.Option(help="edit, retrain or edit-then-retrain; default the policy's."),
    ] = None,
    note: Annotated[str, typer.Option(help="Kept with it, encrypted.")] = "",
    unchecked: Annotated[bool, typer.Option("--unchecked", help="Do not look it up in the training data.")] = False,
    workspace: Space = None,
    operator: Operator = None,
) -> None:
    """Receive a request: who is to be forgotten, until when. What it names is encrypted under a key of its own.

    The same request again changes nothing; another one under its id is refused. Columns of [bold]--from[/bold]:
    request (an id, or empty), one of id, ids (divided by semicolons; in JSONL a list), subject and class; received,
    days, route, note. A line that is wrong is named by its number, and nothing is added. Where the training data is at
    hand, what is named is looked up in it, and what is not there is refused.

    Raises:
        UserError: not exactly one way to name who is to be forgotten, or what is named is unknown or not allowed.
    """
    from expunge.cli import _requests_input as forms
    from expunge.cli._requests_lookup import look_up
    from expunge.ledger import Ledger
    from expunge.ledger.database import refuse_network

    chosen = options(context)
    where = place(chosen, workspace)
    if where.file is None and not unchecked:
        where.project(chosen)
    base = forms.base(received, where.days if days is None else days, route, note)
    drafts = forms.drafts(base, request, file, ids=ids, id=id, subject=subject, label=label)
    refuse_network(where.folder)
    found, missing = (None, []) if unchecked else look_up(where, chosen, drafts)
    with Ledger.open(where.folder, create=True, actor=operator) as ledger:
        kept, new = forms.receive(ledger, drafts)
        past = [len(ledger.remembered(sorted({i for m in f.matched.values() for i in m}))) for f in found or ()]
    rows = [
        {
            "request": made.id,
            "new": made.id in new,
            **made.public(),
            "samples": None if found is None else found[at].samples,
            "forgotten_before": None if found is None else past[at],
        }
        for at, made in enumerate(kept)
    ]
    body = {"requests": rows, "added": len(new), "looked_up": found is not None, "not_at_hand": missing}
    emit(chosen, body, *_added(rows, where, unchecked, missing))


def _added(rows: list[dict[str, Any]], where: Any, unchecked: bool, missing: list[str]) -> list[str]:
    from expunge.cli._requests_words import asked

    lines = []
    for row in rows[:MOST]:
        said = f"{asked(row['kind'], row['count'])}, due {row['due']}"
        if row["samples"] is not None:
            before = f", {row['forgotten_before']:,} of them forgotten before" if row["forgotten_before"] else ""
            said += f"; {row['samples']:,} training {_matches(row['samples'])}{before}"
        lines.append(f"{'Received' if row['new'] else 'Was there already:'} {row['request']}: {said}.")
    if len(rows) > MOST:
        lines.append(f"And {len(rows) - MOST:,} more: expunge requests list.")
    if rows[0]["samples"] is None:
        why = "as --unchecked says" if unchecked else "the training data is not at hand"
        lines.append(f"Not looked up: {why}.")
    elif missing:
        lines.append(f"Not looked up for {', '.join(missing)}: the training data is not at hand.")
    approve = "expunge requests approve REQUEST, by another operator; then " if where.approval else ""
    return [*lines, f"Next: {approve}expunge requests process"]


def _matches(n: int) -> str:
    return "sample matches" if n == 1 else "samples match"


MOST = 20  # requests told one by one


def list_requests(
    context: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="Closed and refused ones too.")] = False,
    file: Annotated[Path | None, typer.Option("--csv", help="Write a file for spreadsheets, instead.")] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="Requests to show; --json and --csv hold all.")] = 100,
    workspace: Space = None,
) -> None:
    """List open requests by due day, overdue ones in red; nobody is named.

    Raises:
        UserError: there is no ledger.
    """
    from expunge.cli import _requests_words as words
    from expunge.files import write_text
    from expunge.ledger import Ledger

    chosen = options(context)
    where = place(chosen, workspace)
    with Ledger.open(where.folder, readonly=True) as ledger:
        found = sorted(ledger.all(), key=lambda s: (s.due, s.request)) if every else list(ledger.open_requests())
    rows = [words.row(status, where) for status in found]
    body: dict[str, Any] = {"requests": rows, "counts": words.counts(rows), "overdue": sum(r["overdue"] for r in rows)}
    if file is not None:
        from expunge.cli._jobs import free

        free(chosen, file, suffix=file.suffix or ".csv")
        write_text(file, words.sheet(rows))
        emit(chosen, body | {"file": str(file)}, words.counted(rows, every), f"Table: {file}")
        return
    more = [f"And {len(rows) - most:,} more: --most {len(rows)}, or --csv FILE."] if len(rows) > most else []
    emit(chosen, body, *([words.listed(rows, most)] if rows else []), *more, words.counted(rows, every))


def show(
    context: typer.Context,
    request: Id,
    reveal: Annotated[bool, typer.Option("--reveal", help="Print the ids, subject or class that it names.")] = False,
    workspace: Space = None,
) -> None:
    """Tell the story of one request: every event, what came of it on each model, what is next.

    Raises:
        UserError: no such request.
    """
    from expunge.cli import _requests_words as words
    from expunge.ledger import Ledger
    from expunge.ledger.account import account

    chosen = options(context)
    where = place(chosen, workspace)
    with Ledger.open(where.folder, readonly=True) as ledger:
        told, status = account(ledger.history(request)), ledger.status(request)
        named = words.revealed(ledger.request(request)) if reveal else {}
    body = {**words.row(status, where), **told, "next": words.following(status, where), **named}
    lines = words.told(told, status, where)
    if reveal:
        lines.append(f"It names: {words.quoted(named['values'])}.")
        lines += [f"Note: {named['note']}"] if named["note"] else []
    emit(chosen, body, *lines)


Reason = Annotated[str, typer.Option(help="Why, in words that name nobody: they stay for ever.")]


def hold(
    context: typer.Context, request: Id, reason: Reason, workspace: Space = None, operator: Operator = None
) -> None:
    """Stop work on a request, and keep older versions of the model from being destroyed, until it is released.

    Raises:
        UserError: no such request, or it is held or erased.
    """
    _record(context, request, "held", {"reason": reason}, workspace, operator)


def release(context: typer.Context, request: Id, workspace: Space = None, operator: Operator = None) -> None:
    """End a hold: the request can go on.

    Raises:
        UserError: no such request, or it is not held.
    """
    _record(context, request, "released", {}, workspace, operator)


def approve(context: typer.Context, request: Id, workspace: Space = None, operator: Operator = None) -> None:
    """Approve a request, where the policy asks for a second operator: another than who received it.

    Raises:
        UserError: no such request, the same operator, or work on it has begun.
    """
    _record(context, request, "approved", {}, workspace, operator)


def refuse(
    context: typer.Context, request: Id, reason: Reason, workspace: Space = None, operator: Operator = None
) -> None:
    """Refuse a request for good, such as for a legal exemption; nothing may have been fulfilled of it.

    Raises:
        UserError: no such request, or it is fulfilled on a model.
    """
    _record(context, request, "refused", {"reason": reason}, workspace, operator)


def _record(
    context: typer.Context, request: str, step: Any, body: dict[str, Any], workspace: Path | None, operator: str | None
) -> None:
    """Record a step of a request, and say what is next."""
    from expunge.cli._requests_words import following
    from expunge.ledger import Ledger

    chosen = options(context)
    where = place(chosen, workspace)
    with Ledger.open(where.folder, actor=operator) as ledger:
        event = ledger.record(request, step, body)
        status = ledger.status(request)
    said = {"request": request, "step": event.step, "seq": event.seq, "at": event.at, "actor": event.actor}
    following_step = following(status, where)
    emit(chosen, said | {"next": following_step}, f"{request}: {step} by {event.actor}.", f"Next: {following_step}")


def erase(
    context: typer.Context,
    request: Id,
    reason: Annotated[str, typer.Option(help="Why, naming nobody.")] = "what it named is needed no longer",
    workspace: Space = None,
    operator: Operator = None,
) -> None:
    """Destroy what a closed or refused request named, by its key; that it was there, and what was done, stays.

    It cannot be undone, so it asks, or takes [bold]--yes[/bold] before the command. The forgotten ids are still known
    again by keyed marks, so that no training learns them anew; a rollback of an erased request is refused.

    Raises:
        UserError: no such request, it is open or held, or nobody confirmed.
    """
    from expunge.ledger import Ledger

    chosen = options(context)
    where = place(chosen, workspace)
    with Ledger.open(where.folder, actor=operator) as ledger:
        before = ledger.status(request)
        if not before.erased:
            remedy = f"run expunge --yes requests erase {request}"
            ask(chosen, f"Destroy what {request} names? It cannot be undone.", remedy)
            ledger.erase(request, reason)
    said = "was erased before" if before.erased else "what it named is destroyed; its events stay"
    backup = "A backup of the ledger's folder made before still holds it."
    emit(chosen, {"request": request, "erased": True, "new": not before.erased}, f"{request}: {said}.", backup)


def anchor(
    context: typer.Context,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write it to, on another disk.")] = None,
    workspace: Space = None,
) -> None:
    """Print the end of the chain, NUMBER:DIGEST, to be kept where nobody who can write the ledger can change it.

    Later [bold]verify --head[/bold] with it notices a tail that was removed, or a ledger that was written anew.

    Raises:
        UserError: there is no ledger.
    """
    from expunge.files import write_text
    from expunge.ledger import Ledger

    chosen = options(context)
    where = place(chosen, workspace)
    with Ledger.open(where.folder, readonly=True) as ledger:
        head = ledger.head()
    if output is not None:
        from expunge.cli._jobs import free

        free(chosen, output, suffix=output.suffix)
        write_text(output, f"{head}\n")
    emit(chosen, {"head": str(head), "seq": head.seq, "digest": head.digest}, str(head))


COMMANDS: dict[str, Callable[..., None]] = {
    "add": add, "list": list_requests, "show": show, "process": fulfil.process, "verify": fulfil.verify,
    "export": fulfil.export, "hold": hold, "release": release, "approve": approve, "refuse": refuse, "erase": erase,
    "rollback": fulfil.rollback, "purge": fulfil.purge, "anchor": anchor,
}  # fmt: skip
for _name, _command in COMMANDS.items():
    requests.command(_name)(_command)
