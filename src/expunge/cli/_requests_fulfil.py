"""The commands of ``expunge requests`` that work on models and records: process, verify, export, rollback, purge."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from expunge.cli._app import Options
from expunge.cli._requests import MISSED, WRONG, Id, Operator, Place, Space, ask, place
from expunge.cli._show import emit, options

INTERRUPTED = 130  # exit code
Model = Annotated[str | None, typer.Option(help="Name of the model; default all of the workspace.")]


def process(
    context: typer.Context,
    only: Annotated[list[str] | None, typer.Argument(metavar="REQUEST", help="Ids; default all that may go.")] = None,
    how: Annotated[
        Literal["edit", "retrain"] | None, typer.Option(help="Edits alone, or retrain for all now; default by route.")
    ] = None,
    purge: Annotated[
        bool, typer.Option("--purge", help="Destroy replaced versions and leftovers afterwards: no rollback then.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Dry run: which requests, how, in which batches, what waits for what.")
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="runtime.KEY=VALUE, repeatable: runtime.batch_size=64.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    workspace: Space = None,
    operator: Operator = None,
) -> None:
    r"""Fulfil what is pending on every model: unlearn or retrain, measure, then serve the new version in one step.

    The method, its settings and the bounds are the project file's. A new version is written beside the old one and
    served only if it was measured within the bounds ([bold]accuracy_drop[/bold] and [bold]bounds[/bold] in
    \[policy]). Interrupted or killed, the same command goes on or undoes what was begun. Exit code 3: a bound was
    missed, or a request could not be fulfilled: the old version is still served, the request is still open, and the
    table says what to do. Read the model from [bold]WORKSPACE/models/NAME/current[/bold].

    Raises:
        Exit: with 3 where something is left to be done by hand.
        UserError: no ledger, no project, an unknown id, or no model that could be started.
    """
    from expunge import service
    from expunge.cli._settings import settings as read
    from expunge.errors import UserError
    from expunge.ledger import Ledger

    chosen = options(context)
    where = place(chosen, workspace)
    project, space = where.project(chosen), service.Workspace(where.folder)
    fields, runs = read(settings)
    if fields:
        raise UserError("settings of the runtime, runtime.KEY=VALUE", ", ".join(fields), "set the method's in [method]")
    runtime = project.runtime(chosen.device, runs)
    if plan:
        from expunge.cli import _requests_plan as plans

        emit(chosen, *plans.shown(plans.planned(project, space, only or [], how, runtime, seed)))
        return
    with _waiting(), _stopped():
        found = service.process(project, space, only=only or [], how=how, runtime=runtime, seed=seed, actor=operator)
    if not runtime.main:
        return
    with Ledger.open(where.folder, readonly=True) as ledger:
        left = list(ledger.open_requests())
    body = {"outcomes": [vars(outcome) for outcome in found], "missed": found.missed, "open": len(left)}
    lines = [*_outcomes(found), *_unbounded(service.places(project), found), *_waits(left, where)]
    if purge:
        gone = _purged(where, None, expired=False, operator=operator)
        body["purged"] = gone[0]
        lines += gone[1]
    emit(chosen, body, *lines)
    if found.missed:
        raise typer.Exit(MISSED)


@contextmanager
def _waiting() -> Iterator[None]:
    """Say it where another process is waited for, without ``--verbose`` too."""
    log = logging.getLogger("expunge.service.workspace")
    before = log.level
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def _stopped() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("Interrupted: nothing is served that was not measured; the same command goes on.", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _outcomes(found: Any) -> list[Any]:
    from rich.table import Table
    from rich.text import Text

    from expunge.cli._requests_words import names

    if not found:
        return ["Nothing to do."]
    table = Table("model", "requests", "how", "outcome", "what came of it")
    for one in found:
        style = "red" if one.missed else ""
        cells = (one.model, names(one.requests), one.how or "", one.step, one.text)
        table.add_row(*(Text(cell, style) for cell in cells))
    advice = dict.fromkeys(f"{one.model}: {line}" for one in found for line in one.advice)
    lines: list[Any] = [table, *advice]
    if found.missed:
        lines.append(
            "Not fulfilled everywhere: the version served before is still served, and the requests are open. Change "
            "[method] or a bound in [policy] and process again, or expunge requests process REQUEST --how retrain."
        )
    return lines


def _unbounded(every: Any, found: Any) -> list[str]:
    """Return a line for each model whose new version was served without a bound that it was held to."""
    served = dict.fromkeys(one.model for one in found if one.step == "deployed")
    policies = {name: every[name].config.policy for name in served if name in every}
    free = [name for name, policy in policies.items() if policy.accuracy_drop is None and not policy.bounds]
    remedy = "Set accuracy_drop or bounds in [policy]; expunge requests show REQUEST tells what was measured."
    return [f"{name}: the new version was held to no bound. {remedy}" for name in free]


def _waits(left: Any, where: Place) -> list[str]:
    """Return what of the open requests waits, and for what."""
    from collections import Counter

    from expunge.cli._requests_words import waits

    held = sum(status.held is not None for status in left)
    approval = sum(status.held is None and waits(status, where) for status in left)
    steps = Counter(status.word for status in left if status.held is None and not waits(status, where))
    parts = [f"{held:,} held"] if held else []
    parts += [f"{approval:,} waiting for approval"] if approval else []
    parts += [f"{n:,} {step}" for step, n in steps.items()]
    return [f"Still open: {', '.join(parts)}."] if parts else []


def verify(
    context: typer.Context,
    pack: Annotated[
        Path | None, typer.Argument(metavar="PACK", help="Folder of export; default the ledger and all artefacts.")
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="NUMBER:DIGEST that anchor printed before, or the file it wrote.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="With PACK: the signer's public key, PEM.")] = None,
    workspace: Space = None,
) -> None:
    """Check the ledger, its keys and the stored versions; or an exported pack, offline, without ledger or project.

    Every altered event, removed row, swapped or truncated file is named on a line. A tail that was removed, or a
    ledger written anew as a whole, is noticed only with a [bold]--head[/bold] kept elsewhere. Exit code 0: in order;
    1: something is wrong; 2: it could not be checked.

    Raises:
        Exit: with 1 where something is wrong.
        UserError: nothing to check there, or a key or head that cannot be read.
    """
    from expunge.cli._requests_words import plain
    from expunge.errors import UserError

    chosen = options(context)
    kept = None if head is None else _head(head)
    if pack is not None and workspace is not None:
        raise UserError("a PACK or --workspace", "both", "check one after the other")
    if pack is None and key is not None:
        raise UserError("--key with a PACK, which it may have signed", "no PACK", "name the folder of export")
    what, problems, said = _pack(pack, key, kept) if pack is not None else _ledger(place(chosen, workspace), kept)
    body = {
        "checked": what,
        "problems": [{"what": p.what, "where": p.where, "got": p.got} for p in problems],
        "said": said,
    }
    lines = [plain(str(problem)) for problem in problems]
    emit(chosen, body, *lines, f"{what}: {_several(len(problems), 'problem')}.", *([said] if said else []))
    if problems:
        raise typer.Exit(WRONG)


def _several(n: int, name: str) -> str:
    first, _, rest = name.partition(" ")
    return f"{n:,} {first}{'' if n == 1 else 's'}" + (f" {rest}" if rest else "")


def _head(text: str) -> Any:
    """Read a head, or the file that anchor wrote it to."""
    from expunge.ledger.events import Head

    file = Path(text)
    if ":" not in text and file.is_file():
        text = file.read_bytes()[:200].decode("utf-8", "replace")
    return Head.parse(text)


def _pack(folder: Path, key: Path | None, head: Any) -> tuple[str, list[Any], str]:
    from expunge.ledger import pack

    problems = pack.verify(folder, key, head)
    return f"Checked the pack {folder}", problems, "" if problems else pack.standing(folder, key, head)


def _ledger(where: Place, head: Any) -> tuple[str, list[Any], str]:
    """Check a ledger, and the artefacts of the models that it is about."""
    from expunge.errors import UserError
    from expunge.ledger import Ledger, Problem
    from expunge.service import Workspace
    from expunge.service.artefacts import check

    space, events = Workspace(where.folder), 0
    with Ledger.open(where.folder, readonly=True) as ledger:
        problems = ledger.check(head)
        try:
            problems += check(space, ledger)
            events = ledger.head().seq
        except UserError as error:  # what is damaged was named; the versions cannot be held to it
            problems.append(Problem("versions", f"the versions of {where.folder}", str(error)))
    models = space.models
    versions = sum(len(space.versions(name)) for name in models)
    counts = [(events, "event"), (len(models), "model"), (versions, "version in the clear")]
    what = f"Checked {', '.join(_several(n, name) for n, name in counts)}"
    said = "" if head is not None else "No --head was given: a tail that was removed would not be noticed."
    return what, problems, said


def export(
    context: typer.Context,
    request: Id,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write: the evidence pack.")],
    sign: Annotated[
        Path | None, typer.Option(help="Ed25519 private key, PEM: openssl genpkey -algorithm ed25519 -out KEY.pem")
    ] = None,
    workspace: Space = None,
) -> None:
    """Write the record of one request, as JSON and as a page, with the chain it stands in: an evidence pack.

    Whoever gets the folder checks it offline by [bold]expunge requests verify FOLDER[/bold]. It names nobody: not the
    samples, the subject or other requests. Hand the public half of the key, and the head of
    [bold]expunge requests anchor[/bold], over by another way.

    Raises:
        UserError: no such request, the folder is taken, or the key is unusable.
    """
    from expunge.cli import _jobs
    from expunge.ledger import Ledger
    from expunge.service import record

    chosen = options(context)
    where = place(chosen, workspace)
    with Ledger.open(where.folder, readonly=True) as ledger:
        ledger.status(request)
        replace = _jobs.free(chosen, output)
        head = record.export(output, ledger, request, sign=sign, overwrite=replace)
    lines = [f"Evidence pack of {request}: {output} (record.html to read, record.json, events.json, manifest.json)"]
    lines.append("Signed." if sign is not None else "Not signed: pass --sign KEY.pem to sign it.")
    lines.append(f"Check it anywhere: expunge requests verify {output}")
    emit(chosen, {"request": request, "folder": str(output), "head": str(head), "signed": sign is not None}, *lines)


def rollback(
    context: typer.Context,
    model: Model = None,
    to: Annotated[str | None, typer.Option(help="Version to serve again; default the one before.")] = None,
    workspace: Space = None,
    operator: Operator = None,
) -> None:
    """Serve the version before again, bit for bit; the requests it was made without are open again.

    It works for [bold]undo_days[/bold] after a version was replaced, unless it was purged. What an open request
    names is then to be forgotten again: the model served has learned it.

    Raises:
        UserError: no older version, its time is over, or a request since was erased.
    """
    from expunge.errors import UserError
    from expunge.ledger import Ledger
    from expunge.service import Workspace
    from expunge.service.rollback import rollback as back

    chosen = options(context)
    where = place(chosen, workspace)
    space = Workspace(where.folder)
    with Ledger.open(where.folder, actor=operator) as ledger, _waiting():
        names = [model] if model is not None else space.models
        if len(names) != 1:
            remedy = "name one with --model" if names else "run expunge requests process first"
            raise UserError(f"one model in {where.folder}", ", ".join(names) or "none", remedy)
        done = back(space, ledger, names[0], to)
    lines = [f"{done.model}: {done.version} is served" + (" already." if not done.undone else " again.")]
    lines += [f"Gone: {', '.join(done.undone)}."] if done.undone else []
    if done.requests:
        lines.append(f"Open again: {', '.join(done.requests)}. The model that is served holds what they name.")
    emit(chosen, vars(done), *lines)


def purge(
    context: typer.Context,
    model: Model = None,
    expired: Annotated[bool, typer.Option("--expired", help="Only replaced versions whose time is over.")] = False,
    workspace: Space = None,
    operator: Operator = None,
) -> None:
    """Destroy what still holds forgotten data: replaced versions, their keys first, and leftovers in the workspace.

    After it nothing can be rolled back, so it asks, or takes [bold]--yes[/bold] before the command; with
    [bold]--expired[/bold] it does not. What a held request needs is kept. What stands outside the workspace, such as
    the folder of prepare, is listed and left to you; backups and copies cannot be seen from here.

    Raises:
        UserError: no such model, or nobody confirmed.
    """
    chosen = options(context)
    where = place(chosen, workspace)
    if not expired:
        remedy = "run expunge --yes requests purge, or pass --expired to destroy only what is past its time"
        ask(chosen, "Destroy all replaced versions? Nothing can be rolled back then.", remedy)
    body, lines = _purged(where, model, expired=expired, operator=operator)
    rest, more = _outside(chosen, where, model)
    emit(chosen, body | {"outside": rest}, *lines, *more)


def _purged(
    where: Place, model: str | None, *, expired: bool, operator: str | None
) -> tuple[dict[str, Any], list[str]]:
    from expunge.ledger import Ledger
    from expunge.service import Workspace
    from expunge.service.undo import purge as destroy

    with Ledger.open(where.folder, actor=operator) as ledger, _waiting():
        done = destroy(Workspace(where.folder), ledger, model, expired_only=expired)
    body = {
        "versions": [list(each) for each in done.versions],
        "requests": list(done.requests),
        "removed": [str(each.path) for each in done.removed],
        "kept": [vars(each) for each in done.kept],
    }
    lines = [f"Destroyed: {name} {version}." for name, version in done.versions]
    lines += [f"Destroyed: {each.path} ({each.kind})." for each in done.removed]
    lines += [f"Kept: {each.model} {each.what}: {each.why}." for each in done.kept]
    return body, lines or ["Nothing to destroy."]


def _outside(chosen: Options, where: Place, model: str | None) -> tuple[list[str], list[str]]:
    """Return what is left to the operator, where a project file says where to look."""
    from expunge.ledger import Ledger
    from expunge.service import Workspace, places
    from expunge.service.leftovers import leftovers

    if where.file is None:
        return [], []
    space = Workspace(where.folder)
    found: dict[Path, str] = {}
    with Ledger.open(where.folder, readonly=True) as ledger:
        for name, own in places(where.project(chosen)).items():
            if model in (None, name):
                left = leftovers(space, ledger, own, name)
                found |= {each.path: each.why for each in left if not each.destroyed}
    return [str(path) for path in found], [f"Left to you: {path}: {why}" for path, why in found.items()]
