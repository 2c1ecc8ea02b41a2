"""Claims on work in progress: one file a piece of work, made exclusively, touched while its owner works; no server.

A claim of a process that is gone from this machine, or that was silent for longer than ``PATIENCE`` seconds on another,
is taken over: of several who try, one succeeds.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from uuid import uuid4

import psutil

from expunge.files import digest

BEAT, PATIENCE = 10.0, 60.0  # seconds between two signs of life; silence after which a claim from afar is dead
SUFFIX = ".json"


@dataclass(frozen=True)
class Owner:
    """A process that works.

    Args:
        host: what tells machines that share a folder apart.
        pid: its number there.
        began: when it started, hundredths of a second after the machine did; a number may be given out again.
        token: of this one piece of work.
    """

    host: str
    pid: int
    began: int
    token: str

    @classmethod
    def here(cls) -> Owner:
        """Return this process, with a new token."""
        return cls(host(), os.getpid(), _own(os.getpid()), uuid4().hex)

    @property
    def near(self) -> bool:
        """Whether it is on this machine."""
        return self.host == host()

    @property
    def runs(self) -> bool:
        """Whether it is still there; of a process on another machine nobody here knows."""
        return not self.near or _began(self.pid) == self.began


@dataclass(frozen=True)
class Claims:
    """A folder of claims.

    Args:
        path: of the folder.
    """

    path: Path

    @contextmanager
    def held(self, name: str) -> Iterator[bool]:
        """Yield whether this process may work on something; while it does, nobody else may.

        Args:
            name: of the work, fit for a file's name.
        """
        claim, own, stop = self.path / f"{name}{SUFFIX}", Owner.here(), threading.Event()
        try:  # from the very start: an interruption may come between the making of the claim and the work
            if not self._take(claim, own):
                yield False
                return
            threading.Thread(target=_beat, args=(claim, own, stop), daemon=True).start()
            yield True
        finally:
            stop.set()
            if _owner(claim) == own:  # somebody may have taken it over from a machine that slept
                claim.unlink(missing_ok=True)

    def alive(self, name: str) -> bool:
        """Return whether somebody works on it."""
        return self._alive(self.path / f"{name}{SUFFIX}")

    def sweep(self) -> None:
        """Remove the claims of those who are gone, and what a killed process left half made."""
        for file in [*self.path.glob(f"*{SUFFIX}")]:
            if not self._alive(file):
                with self.held(file.name.removesuffix(SUFFIX)):
                    pass
        for file in [*self.path.glob(".*"), *self.path.glob(f"*{SUFFIX}.*")]:
            if self.age(file) > PATIENCE:
                file.unlink(missing_ok=True)

    def age(self, path: Path) -> float:
        """Return the seconds since a file or folder changed, by the clock of the file system; 0 where it is gone."""
        probe = self.path / f".{uuid4().hex}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe.touch()
            now = probe.stat().st_mtime
            probe.unlink()
        except OSError:  # a folder that may only be read
            now = time.time()
        try:
            return now - path.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _take(self, claim: Path, own: Owner) -> bool:
        claim.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(3):  # its owner may end, or another inherit, between two looks
            if exclusive(claim, json.dumps(asdict(own))):
                return True
            holder = _owner(claim)
            if self._works(claim, holder):
                return False
            if self._inherit(claim, holder, own):
                return True
        return False

    def _inherit(self, claim: Path, dead: Owner | None, own: Owner) -> bool:
        """Take over a dead owner's claim: by a file that names its token, which one process alone can make."""
        heir = claim.with_name(f"{claim.name}.{dead.token if dead else 'unreadable'}")
        if not exclusive(heir, json.dumps(asdict(own))):
            if not self._alive(heir):
                heir.unlink(missing_ok=True)
            return False
        try:
            if not claim.exists() or _owner(claim) != dead:  # an heir was faster, and is done with its file
                return False
            os.utime(heir)
            os.replace(heir, claim)
            return True
        finally:
            heir.unlink(missing_ok=True)

    def _alive(self, claim: Path) -> bool:
        return self._works(claim, _owner(claim))

    def _works(self, claim: Path, owner: Owner | None) -> bool:
        """Return whether the owner of a claim still works: here by its process, elsewhere by its last sign of life."""
        if owner is not None and owner.near:
            return owner.runs
        return claim.exists() and self.age(claim) < PATIENCE


def exclusive(path: Path, text: str) -> bool:
    """Make a file whole, unless it is there: written aside and linked, so that nobody reads half of it.

    Returns:
        Whether it was made.
    """
    aside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        aside.write_text(text, encoding="utf-8")
        os.link(aside, path)
    except FileExistsError:
        return False
    finally:
        aside.unlink(missing_ok=True)
    return True


@cache
def host() -> str:
    """Return what tells machines of one shared folder apart; containers of one name differ in boot or processes."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    started = boot.read_text(encoding="utf-8") if boot.is_file() else str(round(psutil.boot_time(), -2))
    numbers = os.readlink(space) if space.is_symlink() else ""
    return digest(socket.gethostname(), started, numbers)[:16]


@cache
def _own(pid: int) -> int:
    return _began(pid) or 0


def _began(pid: int) -> int | None:
    """Return when a process started, hundredths of a second after the machine did; None where it is gone."""
    try:
        start = psutil.boot_time()  # setting the clock moves it and the process's alike
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return round(100 * float(process.create_time() - start))
    except psutil.NoSuchProcess:
        return None


def _owner(claim: Path) -> Owner | None:
    """Return who made a claim; None where it is gone or cannot be read."""
    try:
        found = Owner(**json.loads(claim.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return found if isinstance(found.pid, int) and isinstance(found.token, str) else None


def _beat(claim: Path, own: Owner, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with suppress(OSError):  # a folder on the network may be away for a moment
            if _owner(claim) == own:
                os.utime(claim)
