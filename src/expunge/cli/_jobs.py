"""What prepare, forget and audit share: the project, the folders they read, the paths they may write."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from expunge.cli._app import Options
from expunge.errors import UserError
from expunge.files import check_free, there

if TYPE_CHECKING:
    from expunge.data import Data
    from expunge.folders import Folder
    from expunge.project import Project

NAME = "expunge.toml"


def project(chosen: Options, data: str | None, network: str | None, weights: Path | None) -> Project:
    """Return the project: of a named data set, of the file named by --project, or of expunge.toml here.

    Raises:
        UserError: none of the three, or two of them.
    """
    from expunge.project import Project

    if data is not None and chosen.project is not None:
        raise UserError("--project or --data", "both", "leave one out")
    if data is not None:
        return Project.named(data, network, weights, chosen.data_dir)
    file = chosen.project or Path(NAME)
    if chosen.project is None and not file.exists():
        remedy = "write one with expunge init, or name a data set: --data digits"
        raise UserError(f"a project: a file {NAME} here, or --project", "none", remedy)
    given = [n for n, v in (("--network", network), ("--weights", weights)) if v is not None]
    if given:
        remedy = "set them in [model] of the project file, or name a data set with --data"
        raise UserError("--network and --weights with --data", f"{' and '.join(given)} with {file}", remedy)
    return Project.open(file, chosen.data_dir)


def opened(path: Path, chosen: Options) -> Folder:
    """Return a folder that prepare or forget wrote, with the project file as it is now."""
    from expunge.folders import Folder

    return Folder.open(path, chosen.project, chosen.data_dir)


def free(chosen: Options, path: Path, suffix: str = "") -> bool:
    """Return whether a path may be replaced, asking where somebody can answer.

    Args:
        chosen: root options.
        path: of a folder to be written.
        suffix: of a file to be written, instead.

    Returns:
        Whether something is there that is to be replaced.

    Raises:
        UserError: it exists and nobody said yes.
    """
    found = there(path)
    if found == "a file" and (not suffix or path.suffix != suffix):
        raise UserError(f"a path that is free to write, {path}", "a file", "choose another path")
    if found is None or chosen.yes:
        check_free(path, chosen.yes)
        return chosen.yes
    if sys.stdin.isatty() and not chosen.json:
        check_free(path, overwrite=True)
        if typer.confirm(f"{path} is there already. Replace it?", err=True):
            return True
    check_free(path, overwrite=False, remedy="choose another path, or pass --yes before the command to replace it")
    return False


def apart(output: Path, *inputs: Path) -> None:
    """Refuse an output that is, or holds, a folder that is read.

    Raises:
        UserError: it does.
    """
    for path in inputs:
        if path.resolve().is_relative_to(output.resolve()):
            raise UserError("an output apart from what is read", f"{output}", "choose another --output")


def refuse_deleted(place: Project, data: Data | None = None) -> None:
    """Refuse, before anything is trained, data with samples that the project's ledger of requests says were deleted.

    Args:
        place: the project.
        data: what would be trained on; default the training data.

    Raises:
        UserError: says how many of the samples.
    """
    from expunge import service

    if place.file is not None and service.Workspace.of(place).received:
        service.refuse_deleted(place, place.train if data is None else data)


def refuse_deleted_of(files: Iterable[Path], chosen: Options) -> None:
    """Do what `refuse_deleted` says for each of several project files."""
    from expunge.project import Project

    for file in files:
        refuse_deleted(Project.open(file, chosen.data_dir))


def command() -> str:
    """Return the command as it was typed."""
    return shlex.join(["expunge", *sys.argv[1:]])
