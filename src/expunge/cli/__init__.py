"""The ``expunge`` command: each subcommand imports what it needs when it runs, so that ``--help`` is instant."""

from __future__ import annotations

import sys
from inspect import cleandoc

import typer

from expunge.cli import about, audit, bench, demo, exact, forget, init, parts, prepare, qualify, requests, tune
from expunge.cli._app import app
from expunge.errors import ExpungeError, UserError

_groups = [group.typer_instance for group in app.registered_groups if group.typer_instance is not None]
for _command in (command for each in (app, *_groups) for command in each.registered_commands):
    # What a function raises is for its callers; a shell sees one sentence.
    _command.help = cleandoc((_command.callback and _command.callback.__doc__) or "").partition("\n\nRaises:")[0]

__all__ = [
    "about",
    "app",
    "audit",
    "bench",
    "demo",
    "exact",
    "forget",
    "init",
    "main",
    "parts",
    "prepare",
    "qualify",
    "requests",
    "tune",
]


def main() -> None:
    """Run the command line: exit 0 done, 1 failed, 2 bad usage or input, 130 interrupted."""
    try:
        app()
    except UserError as error:
        _fail(str(error), 2)
    except ExpungeError as error:
        _fail(str(error), 1)
    except OSError as error:  # a path or disk that no command looked at before
        what = f"to read or write {str(error.filename)[:80]}" if error.filename else "files to be read and written"
        got = error.strerror or type(error).__name__
        _fail(str(UserError(what, got, "check the path, its permissions and the space left")), 2)


def _fail(message: str, code: int) -> None:
    typer.echo(message, err=True)
    sys.exit(code)
