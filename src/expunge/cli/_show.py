"""What commands print: text and tables for people, one JSON document for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from expunge.cli._app import Options
from expunge.files import jsonable

WIDTH = 120  # of tables that go to a file or a pipe


def options(context: typer.Context) -> Options:
    """Return the root options."""
    found = context.obj
    return found if isinstance(found, Options) else Options()


def emit(chosen: Options, body: Any, *shown: Any) -> None:
    """Print the body as JSON with ``--json``, else what is to be shown."""
    if chosen.json:
        typer.echo(json.dumps(jsonable(body), indent=1))
        return
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    for item in shown:
        console.print(item, soft_wrap=isinstance(item, str), highlight=False, markup=False)


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[[int, int | None, str], None]]:
    """Show a progress bar where errors go to a terminal, and nothing elsewhere.

    Args:
        what: is shown at first.
        total: steps in all, None where that is not known yet.

    Yields:
        The function to call with the steps done, of how many, and what is at work.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)
    with bar:
        shows = bar.add_task(what, total=total)

        def told(done: int, of: int | None, now: str) -> None:
            bar.update(shows, completed=done, total=of, description=now)

        yield told
