"""Where the service keeps things: the ledger's folder, versions of each model, and which of them is served."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from expunge.errors import CorruptArtefact, UserError, listing
from expunge.files import atomic, read_document, sync_one, there, writable, write_document
from expunge.ledger.database import LEDGER
from expunge.project import Project

log = logging.getLogger(__name__)
FIRST = "v000000"
BEGUN, SCHEMA = "expunge.begun", 1
_VERSION = re.compile(r"v[0-9]{6,}")


class Workspace:
    """A folder with a ledger and, for each model, its versions.

    ``models/NAME/versions/VERSION`` holds a version whole or is absent; ``models/NAME/current`` is a link to the one
    that is served, replaced in one step; ``models/NAME/begun.json`` says when the first was copied and what was in
    it. ``work/NAME`` holds checkpoints of work that goes on. What a killed process leaves half written begins with a
    dot, and `tidy` removes it.

    Args:
        folder: where.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).absolute()

    @classmethod
    def of(cls, place: Project) -> Workspace:
        """Return the workspace that a project file names."""
        return cls(place.folder / place.config.requests.workspace)

    @property
    def undo(self) -> Path:
        """Folder of replaced versions, encrypted."""
        return self.folder / "undo"

    @property
    def received(self) -> bool:
        """Whether there is a ledger."""
        return there(self.folder / LEDGER) is not None

    @property
    def models(self) -> list[str]:
        """Names of the models that have a folder."""
        return _names(self.folder / "models")

    def home(self, name: str) -> Path:
        """Return a model's folder."""
        return self.folder / "models" / name

    def work(self, name: str) -> Path:
        """Return the folder of a model's checkpoints."""
        return self.folder / "work" / name

    def version(self, name: str, version: str) -> Path:
        """Return a version's folder, whether or not it is there."""
        return self.home(name) / "versions" / version

    def versions(self, name: str) -> list[str]:
        """Return the versions of a model that are there, oldest first."""
        found = [v for v in _names(self.home(name) / "versions") if _VERSION.fullmatch(v)]
        return sorted(found, key=lambda v: int(v[1:]))

    def current(self, name: str) -> str | None:
        """Return the version that the link names, None before the first.

        Raises:
            CorruptArtefact: something else than a link is there, or one to elsewhere.
        """
        link = self.home(name) / "current"
        if not link.is_symlink():
            if there(link) is not None:
                raise CorruptArtefact(f"a link at {link}", "something else", "remove it, and process again")
            return None
        target = Path(os.readlink(link))
        if target != Path("versions") / target.name:
            raise CorruptArtefact(f"a link to a version at {link}", f"one to {target}", "process again")
        return target.name

    def served(self, name: str) -> Path:
        """Return the folder of the version that is served.

        Raises:
            UserError: there is none yet.
            CorruptArtefact: its folder is not there.
        """
        version = self.current(name)
        if version is None:
            raise UserError(f"a served version of {name} in {self.folder}", "none", "run expunge requests process")
        folder = self.version(name, version)
        if there(folder) != "a folder":
            raise CorruptArtefact(f"the served version of {name} in {folder}", "none", "restore it from a copy")
        return folder

    def switch(self, name: str, version: str) -> None:
        """Serve a version from now on: the link is replaced in one step, which outlasts a loss of power."""
        link = self.home(name) / "current"
        if there(self.version(name, version)) != "a folder":
            folder = self.version(name, version)
            raise CorruptArtefact(f"version {version} of {name} in {folder}", "none", "restore it from a copy")
        target = Path("versions") / version
        if not link.is_symlink():
            self.current(name)  # refuses what is no link
        elif Path(os.readlink(link)) == target:
            return
        new = self.home(name) / f".current.{secrets.token_hex(4)}"
        with writable(link):
            new.symlink_to(target)
            os.replace(new, link)
            sync_one(link.parent)

    def destroy(self, name: str, version: str) -> None:
        """Remove a version that is not served, in one step for whoever looks.

        Raises:
            UserError: it is served.
        """
        if version == self.current(name):
            raise UserError(f"a version of {name} that is not served", version, "serve another one first")
        folder = self.version(name, version)
        if there(folder) is None:
            return
        gone = folder.with_name(f".{version}.{secrets.token_hex(4)}")
        with writable(folder):
            folder.rename(gone)
            sync_one(gone.parent)
            shutil.rmtree(gone)

    def tidy(self, name: str) -> None:
        """Remove what a killed process left half written or half removed; call it under the model's lock."""
        for folder in (self.home(name), self.home(name) / "versions"):
            for path in folder.glob(".*") if folder.is_dir() else ():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def clear_work(self, name: str) -> None:
        """Remove a model's checkpoints, which may hold what is to be forgotten."""
        shutil.rmtree(self.work(name), ignore_errors=True)

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Keep all other processes from working on a model; a killed one's lock is freed by the system.

        Waits for a process that has it.
        """
        home = self.home(name)
        with writable(home):
            home.mkdir(parents=True, exist_ok=True)
        with _lock(home / "lock", f"the model {name}"):
            yield

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Let one process at a time close requests."""
        with _lock(self.folder / "lock", "the requests"):
            yield

    def begin(self, name: str, start: Path, now: datetime) -> None:
        """Copy the first version, unless that is done: the folder that prepare wrote.

        Args:
            name: of the model.
            start: that folder.
            now: the time.

        Raises:
            CorruptArtefact: the copy differs from its source.
        """
        note, first = self.home(name) / "begun.json", self.version(name, FIRST)
        if there(note) is not None:
            return
        if self.current(name) is None:
            self.destroy(name, FIRST)
        if there(first) is None:
            with atomic(first) as room:
                shutil.copytree(start, room)
        files = digests(first)
        if files != digests(start):
            raise CorruptArtefact(f"a copy of {start} in {first}", "other bytes", "remove it, and process again")
        self.switch(name, FIRST)
        begun = now.isoformat(timespec="seconds")
        write_document(note, BEGUN, SCHEMA, {"begun": begun, "version": FIRST, "files": files})

    def has_begun(self, name: str) -> bool:
        """Return whether the first version of a model was copied."""
        return there(self.home(name) / "begun.json") is not None

    def begun(self, name: str) -> dict[str, Any]:
        """Return when the first version was copied (``begun``) and what was in it (``files``)."""
        return read_document(self.home(name) / "begun.json", BEGUN, SCHEMA)


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, by its path within.

    Raises:
        CorruptArtefact: a file cannot be read.
    """
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            remedy = "restore it from a copy"
            raise CorruptArtefact(f"a readable file {path}", error.strerror or str(error), remedy) from error
    return found


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Hold the files of a version to the digests that were recorded of them.

    Raises:
        CorruptArtefact: names those that are missing, new or of other bytes.
    """
    now = digests(folder)
    odd = sorted({*now, *files} - {n for n in now if files.get(n) == now[n]})
    if odd:
        remedy = "restore the folder from a copy"
        raise CorruptArtefact(f"the files of {folder} as they were written", f"others: {listing(odd)}", remedy)


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".") if folder.is_dir() else []


@contextlib.contextmanager
def _lock(path: Path, what: str) -> Iterator[None]:
    with writable(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:  # the system frees it where the process is killed; its number in the file is for others to read
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 20, 0).decode("ascii", "replace")
            log.info("Waiting for process %s, which works on %s.", holder or "of unknown number", what)
            fcntl.flock(handle, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):  # a full disk: others then wait for they do not know whom
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)
