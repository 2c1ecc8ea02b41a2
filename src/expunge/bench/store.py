"""Folders of finished work by key, and claims on work in progress: many workers, one folder, no server.

A task's folder is moved into place whole, with ``done.json`` that names its values, versions and the digest of each
file; it counts only while that document and the sizes of the files are right. ``failed.json`` keeps the traceback of a
task that raised. A claim is a file made exclusively, touched while its owner works; the claim of a process that is
gone, or silent for longer than ``PATIENCE`` seconds, is taken over.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import psutil
import torch

from expunge import __version__
from expunge.bench.cell import Task
from expunge.errors import CorruptArtefact, UserError
from expunge.files import atomic, digest, read_document, there, write_document

STORE, CELL, FAILED, SCHEMA = "expunge.store", "expunge.cell", "expunge.failure", 1
DONE, BROKEN, HEAD = "done.json", "failed.json", "store.json"
BEAT, PATIENCE = 10.0, 60.0  # seconds between two signs of life; silence after which a claim from afar is dead
DEATHS = 2  # workers that may die over one task before it counts as failed
Status = Literal["done", "declined", "failed", "corrupt", "running", "missing"]


@dataclass(frozen=True)
class Store:
    """A folder that holds what was computed.

    Args:
        path: of the folder.
    """

    path: Path

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open a store, or make one.

        Returns:
            The store.

        Raises:
            UserError: something else is there, or it cannot be written.
            Incompatible: it was written by a newer version.
        """
        found = there(path)
        if found == "a file" or (found and any(path.iterdir()) and not (path / HEAD).is_file()):
            got = "a file" if found == "a file" else "another folder, not empty"
            raise UserError(f"a store, or a free path, at {path}", got, "choose another --store")
        if not (path / HEAD).is_file():
            write_document(path / HEAD, STORE, SCHEMA, {"expunge": __version__})
        read_document(path / HEAD, STORE, SCHEMA)
        return cls(path)

    def folder(self, task: Task) -> Path:
        """Return where a task's result is, or will be."""
        return self.path / task.stage / task.key

    def status(self, task: Task) -> Status:
        """Return how far a task is; a folder with anything wrong is ``corrupt``, never ``done``."""
        folder = self.folder(task)
        try:
            done = self.done(task)
        except UserError:
            return "corrupt"
        if done is not None:
            return "declined" if done["outcome"] == "declined" else "done"
        if (folder / BROKEN).is_file():
            return "failed"
        return "running" if self._alive(self._claim(task)) else "missing"

    def done(self, task: Task) -> dict[str, Any] | None:
        """Return a finished task's document, None where it is not finished.

        Raises:
            CorruptArtefact: a file is missing, of another length, or the document is not what was written.
            Incompatible: it was written by a newer version.
        """
        folder = self.folder(task)
        try:
            text = (folder / DONE).read_text(encoding="utf-8")
        except FileNotFoundError:
            if folder.is_dir() and not (folder / BROKEN).is_file():
                raise CorruptArtefact(*_corrupt(folder, f"no {DONE}")) from None
            return None
        except OSError as error:
            raise CorruptArtefact(*_corrupt(folder, error.strerror or str(error))) from error
        return _checked(folder, text, task)

    def read(self, task: Task, name: str) -> dict[str, Any]:
        """Return a JSON file of a finished task.

        Raises:
            CorruptArtefact: it is not what was written.
        """
        folder, found = self.folder(task), self.done(task)
        if found is None:
            raise CorruptArtefact(*_corrupt(folder, "not finished"))
        return self.parsed(folder, found, name)

    def parsed(self, folder: Path, found: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Return a JSON file, held to its digest in the folder's document.

        Raises:
            CorruptArtefact: it is not what was written.
        """
        raw = (folder / name).read_bytes()
        if digest(raw) != found["files"][name]["digest"]:
            raise CorruptArtefact(*_corrupt(folder, f"other bytes in {name}"))
        body: dict[str, Any] = json.loads(raw)
        return body

    def failure(self, task: Task) -> dict[str, Any] | None:
        """Return what is known of a task that raised: message, traceback, when."""
        file = self.folder(task) / BROKEN
        return read_document(file, FAILED, SCHEMA) if file.is_file() else None

    @contextmanager
    def writing(self, task: Task, outcome: str = "done", reason: str = "") -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield a folder to write files into and a mapping for the document; both are there whole at the end, or not.

        Args:
            task: whose result it is.
            outcome: ``done`` or ``declined``.
            reason: why it was declined.
        """
        folder = self.folder(task)
        if folder.exists():
            self.forget(task)
        extra: dict[str, Any] = {}
        with atomic(folder) as room:
            room.mkdir()
            yield room, extra
            files = {p.name: {"digest": digest(p.read_bytes()), "size": p.stat().st_size} for p in room.iterdir()}
            body = {"stage": task.stage, "key": task.key, "spec": task.spec, "outcome": outcome, "reason": reason}
            body |= {"files": files, "versions": versions(), **extra}
            write_plain(room / DONE, {**body, "digest": digest(body)})

    def fail(self, task: Task, message: str, trace: str, usage: bool) -> None:
        """Keep what is known of a task that raised.

        Args:
            task: the task.
            message: one sentence.
            trace: the traceback.
            usage: whether the input was at fault, not the program.
        """
        folder = self.folder(task)
        if folder.exists():
            self.forget(task)
        body = {"spec": task.spec, "message": message, "traceback": trace, "usage": usage, "versions": versions()}
        with atomic(folder) as room:
            room.mkdir()
            write_document(room / BROKEN, FAILED, SCHEMA, body)

    def forget(self, task: Task) -> None:
        """Remove a task's folder, in one step for whoever looks."""
        aside = self.path / f".gone-{uuid4().hex}"
        with suppress(FileNotFoundError):
            self.folder(task).rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def mean_seconds(self, stage: str, most: int = 50) -> float | None:
        """Return how long finished tasks of a stage took on average, None where there are none."""
        folders = sorted((self.path / stage).glob(f"*/{DONE}"))[:most]
        found = [float(json.loads(file.read_text(encoding="utf-8"))["seconds"]) for file in folders]
        return sum(found) / len(found) if found else None

    def workdir(self, task: Task) -> Path:
        """Return the folder for checkpoints of an unfinished task."""
        return self.path / "work" / task.stage / task.key

    @contextmanager
    def claimed(self, task: Task) -> Iterator[bool]:
        """Yield whether this process may work on a task; while it does, nobody else may.

        Raises:
            WorkersDied: too many workers died over it.
        """
        claim, token = self._claim(task), _token()
        if not self._take(claim, token, task):
            yield False
            return
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(claim, stop), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            stop.set()
            beat.join()
            with suppress(FileNotFoundError):
                claim.unlink()
            with suppress(FileNotFoundError):
                claim.with_suffix(".deaths").unlink()

    def deaths(self, task: Task) -> int:
        """Return how many workers died over a task since it was last tried from the start."""
        try:
            return len(self._claim(task).with_suffix(".deaths").read_text(encoding="utf-8").splitlines())
        except FileNotFoundError:
            return 0

    def _claim(self, task: Task) -> Path:
        return self.path / "claims" / f"{task.stage}-{task.key}.json"

    def _take(self, claim: Path, token: Mapping[str, Any], task: Task) -> bool:
        claim.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(3):
            if _exclusive(claim, token):
                return True
            if self._alive(claim):
                return False
            self._bury(claim)
        return False

    def _alive(self, claim: Path) -> bool:
        """Return whether the owner of a claim still works: here by its process, elsewhere by its last sign of life."""
        try:
            owner = json.loads(claim.read_text(encoding="utf-8"))
            age = time.time() - claim.stat().st_mtime
        except FileNotFoundError:
            return False
        except ValueError:  # being written, or cut off by a crash
            return claim.exists() and time.time() - claim.stat().st_mtime < PATIENCE
        if owner.get("host") == _host():
            return _running(int(owner["pid"]), float(owner["started"]))
        return age < PATIENCE

    def _bury(self, claim: Path) -> None:
        """Move a dead claim aside and note the death; of several who try, one succeeds."""
        aside = claim.with_name(f".{claim.name}.{uuid4().hex}")
        try:
            claim.rename(aside)
        except FileNotFoundError:
            return
        if self._alive(aside):  # somebody was faster, and this is a new claim: give it back
            with suppress(FileExistsError):
                os.link(aside, claim)
        else:
            with claim.with_suffix(".deaths").open("a", encoding="utf-8") as file:
                file.write(f"{aside.read_text(encoding='utf-8')}\n")
        aside.unlink()


def versions() -> dict[str, str]:
    """Return the versions that a result was made with."""
    return {"expunge": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}


def write_plain(path: Path, body: Mapping[str, Any]) -> None:
    """Write JSON without line breaks: these files are many and read by programs."""
    path.write_text(json.dumps(body, separators=(",", ":"), allow_nan=False), encoding="utf-8")


def _checked(folder: Path, text: str, task: Task) -> dict[str, Any]:
    """Return the document of a finished folder, held to its digest, its key and the sizes of its files."""
    try:
        body = json.loads(text)
        want = body.pop("digest")
        same = digest(body) == want
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptArtefact(*_corrupt(folder, f"{type(error).__name__} in {DONE}")) from error
    if not same or body.get("key") != task.key:
        raise CorruptArtefact(*_corrupt(folder, f"other values in {DONE}"))
    for name, file in body["files"].items():
        try:
            size = os.stat(folder / name).st_size
        except OSError as error:
            raise CorruptArtefact(*_corrupt(folder, f"no {name}")) from error
        if size != file["size"]:
            raise CorruptArtefact(*_corrupt(folder, f"{size} bytes in {name} instead of {file['size']}"))
    return dict(body)


def _corrupt(folder: Path, got: str) -> tuple[str, str, str]:
    return f"a finished cell in {folder}", got, "compute it anew with expunge bench run --recompute"


def _exclusive(path: Path, body: Mapping[str, Any]) -> bool:
    """Make a file whole, unless it is there: written aside and linked, so that nobody reads half of it."""
    aside = path.with_name(f".{path.name}.{uuid4().hex}")
    aside.write_text(json.dumps(body), encoding="utf-8")
    try:
        os.link(aside, path)
    except FileExistsError:
        return False
    finally:
        aside.unlink()
    return True


def _token() -> dict[str, Any]:
    own = psutil.Process()
    return {"host": _host(), "pid": own.pid, "started": own.create_time(), "token": uuid4().hex}


def _host() -> str:
    """Return what tells machines of one shared folder apart; containers of one name differ in their boot."""
    file = Path("/proc/sys/kernel/random/boot_id")
    boot = file.read_text(encoding="utf-8") if file.is_file() else str(round(psutil.boot_time(), -2))
    return digest(socket.gethostname(), boot)[:16]


def _running(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < 1
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _beat(claim: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with suppress(FileNotFoundError):
            os.utime(claim)
