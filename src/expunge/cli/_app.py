"""The command's root: its options, and the app that the commands register themselves on."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from expunge import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dataclass(frozen=True)
class Options:
    """The root options.

    Args:
        json: print one JSON document instead of text.
        device: torch device, or auto.
        project: the project file named, or None.
        data_dir: folder of named data sets, or None.
        yes: answer yes to every question.
    """

    json: bool = False
    device: str = "auto"
    project: Path | None = None
    data_dir: Path | None = None
    yes: bool = False


def _version(value: bool) -> None:
    if value:
        typer.echo(f"expunge {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ... or auto.")] = "auto",
    project: Annotated[
        Path | None, typer.Option(help="Project file; default expunge.toml here, if there is one.")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="EXPUNGE_DATA", help="Folder of named data sets: NAME/train-*.parquet, NAME/test-*.parquet."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Replace what is at an output path without asking.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is being done.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Remove training data from a trained PyTorch model, measure what is left, keep the record.

    Start with [bold]expunge demo[/bold]. A job of your own: [bold]init[/bold] writes the project file,
    [bold]prepare[/bold] once while the training data is at hand, [bold]forget[/bold] at each request,
    [bold]audit[/bold] against a model truly retrained without the forgotten data.

    Exit codes: 0 done, 1 failed, 2 bad usage or input, 3 done, but a bound of the project's policy was missed or no
    parameter was changed.
    """
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)
    context.obj = Options(json=json, device=device, project=project, data_dir=data_dir, yes=yes)
