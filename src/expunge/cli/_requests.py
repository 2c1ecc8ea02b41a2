"""What all commands of ``expunge requests`` share: where the ledger is, what the policy says of it, who works."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli._app import Options
from expunge.errors import UserError

PROJECT = "expunge.toml"
KINDS: Mapping[str, type] = {
    "workspace": str, "start": str, "route": str, "days": int, "batch": int, "cadence": int, "approval": bool,
    "undo_days": int, "refresh_every": int, "qualification": str, "models": dict,
}  # fmt: skip
DEFAULTS: Mapping[str, Any] = {"workspace": "expunge-requests", "route": "edit", "days": 30, "approval": False}
ROUTES = ("edit", "retrain", "edit-then-retrain")
MISSED = 3  # exit code: done, but a bound was missed, or something is left to be done by hand
WRONG = 1  # exit code: what was checked is not in order

Space = Annotated[Path | None, typer.Option("--workspace", "-w", help="Folder of the ledger; default the project's.")]
Operator = Annotated[str | None, typer.Option(help="Who does this; default the name you are logged in by.")]
Id = Annotated[str, typer.Argument(metavar="REQUEST", help="Id of a request; expunge requests list shows them.")]


@dataclass(frozen=True)
class Place:
    """Where requests are kept, and what the project file says of them; read without opening model or data.

    Args:
        folder: of the ledger.
        file: the project file, None where only the folder was named.
        days: from receipt to the day a request is due.
        route: of requests that name none.
        approval: whether a second operator must approve a request.
        body: all tables of the project file.
    """

    folder: Path
    file: Path | None = None
    days: int = 30
    route: str = "edit"
    approval: bool = False
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def project(self, chosen: Options) -> Any:
        """Return the project.

        Raises:
            UserError: there is no project file.
        """
        from expunge.project import Project

        if self.file is None:
            remedy = "write one with expunge init"
            raise UserError(f"a project: a file {PROJECT} here, or --project before the command", "none", remedy)
        return Project.open(self.file, chosen.data_dir)


def place(chosen: Options, workspace: Path | None) -> Place:
    """Return where requests are kept: as ``--workspace`` says, else as the project file does.

    Args:
        chosen: root options.
        workspace: the folder named, or None.

    Raises:
        UserError: neither is there, or the project file cannot be read.
    """
    file = chosen.project or Path(PROJECT)
    if chosen.project is None and not file.exists():
        if workspace is not None:
            return Place(workspace)
        expected = f"a project: a file {PROJECT} here, --project before the command, or --workspace after it"
        raise UserError(expected, "none", "write one with expunge init, or name the folder of the ledger")
    body = _tables(file)
    section = {**DEFAULTS, **body.get("requests", {})}
    folder = workspace if workspace is not None else file.parent / section["workspace"]
    return Place(folder, file, section["days"], section["route"], section["approval"], body)


def _tables(file: Path) -> dict[str, Any]:
    """Return the tables of a project file; what looks wrong is left to its reader, which says it in a sentence.

    That reader checks the whole file and takes seconds to load, which a ledger of many requests should not wait for.
    """
    try:
        body = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        body = {"requests": None}
    section = body.get("requests", {})
    plain = isinstance(section, dict) and all(type(value) is KINDS.get(key) for key, value in section.items())
    if plain and section.get("route", "edit") in ROUTES and 1 <= section.get("days", 30) <= 36500:
        return body
    from expunge.project.config import read

    return read(file).model_dump(mode="json")


def day(text: str, option: str) -> date:
    """Return the day that a text names.

    Args:
        text: ``2025-01-31``.
        option: what it was given by, for the message.

    Raises:
        UserError: it is no such day, or one to come.
    """
    try:
        found = datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError as error:
        raise UserError(f"a day for {option}, as 2025-01-31", f"{text!r:.40}", "write it so") from error
    if found > today():
        raise UserError(f"a day for {option} that has come", f"{found}, and today is {today()}", "check the year")
    return found


def today() -> date:
    """Return the day where this machine stands."""
    return datetime.now().astimezone().date()


def ask(chosen: Options, question: str, remedy: str) -> None:
    """Ask before what cannot be undone; without somebody to answer, refuse.

    Args:
        chosen: root options.
        question: what is asked.
        remedy: what to do where nobody can answer.

    Raises:
        UserError: nobody said yes.
    """
    import sys

    if chosen.yes:
        return
    if sys.stdin.isatty() and not chosen.json:
        if typer.confirm(question, err=True):
            return
        raise UserError("yes, to go on", "no", "nothing was done; answer yes, or leave it")
    raise UserError("somebody to confirm what cannot be undone", "no terminal", remedy)
