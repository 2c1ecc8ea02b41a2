"""What commands print: text and tables for people, one JSON document for programs."""

from __future__ import annotations

import json
import sys
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
