"""Folders of finished work by key, which many workers on one folder fill without a server.

A task's folder is moved into place whole, with ``done.json`` that names its values, versions and the digest of each
file; it counts only while that document and the sizes of the files are right. A JSON file is held to its digest when
it is read; safetensors files hold their own. ``failed.json`` keeps the traceback of a task that raised.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import torch

from expunge import __version__
from expunge.bench.cell import Task
from expunge.bench.claims import Claims, Owner, exclusive
from expunge.errors import CorruptArtefact, UserError
from expunge.files import digest, private, read_document, sync, sync_one, there, writable, write_document

log = logging.getLogger(__name__)
STORE, FAILED, SCHEMA = "expunge.store", "expunge.failure", 1
DONE, BROKEN, HEAD = "done.json", "failed.json", "store.json"
PLACE = "--store"  # what to choose where this one cannot be written
DAY = 86400.0  # seconds after which what a process on another machine left half written is removed
Status = Literal["done", "declined", "failed", "corrupt", "running", "missing"]
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)  # of a folder moved to where something is
_PART = re.compile(r".+\.([0-9a-f]+)-([0-9]+)-([0-9]+)-([0-9a-f]+)")  # task, then its `Owner`


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
        head = path / HEAD
        if there(head) is None:
            found = there(path)
            names = [p.name for p in path.iterdir()] if found == "a folder" else []
            others = [name for name in names if not name.startswith(f".{HEAD}.")]  # another process may be making it
            if found == "a file" or (others and not head.is_file()):
                got = "a file" if found == "a file" else "another folder, not empty"
                raise UserError(f"a store, or a free path, at {path}", got, "choose another --store")
            with writable(path, other=PLACE):
                path.mkdir(parents=True, exist_ok=True)
                body = {"kind": STORE, "schema": SCHEMA, "expunge": __version__, "id": uuid4().hex}
                exclusive(head, json.dumps(body, indent=1) + "\n")  # of two that make it, one does
        read_document(head, STORE, SCHEMA)
        return cls(path)

    @property
    def identity(self) -> str | None:
        """What tells this store from any other; None where there is none."""
        head = self.path / HEAD
        return str(read_document(head, STORE, SCHEMA).get("id", "")) if head.is_file() else None

    def folder(self, task: Task) -> Path:
        """Return where a task's result is, or will be."""
        return self.path / task.stage / task.key

    def workdir(self, task: Task) -> Path:
        """Return the folder for checkpoints of an unfinished task."""
        return self.path / "work" / task.stage / task.key

    def status(self, task: Task) -> Status:
        """Return how far a task is; a folder with anything wrong is ``corrupt``, never ``done``."""
        try:
            done = self.done(task)
            if done is not None:
                return "declined" if done["outcome"] == "declined" else "done"
            failed = self.failure(task) is not None
        except UserError:
            return "corrupt"
        return "running" if self.claims.alive(_name(task)) else "failed" if failed else "missing"

    def done(self, task: Task) -> dict[str, Any] | None:
        """Return a finished task's document, None where it is not finished.

        Raises:
            CorruptArtefact: a file is missing, of another length, or the document is not what was written.
        """
        folder = self.folder(task)
        try:
            text = (folder / DONE).read_text(encoding="utf-8")
        except FileNotFoundError:
            if folder.exists() and not (folder / BROKEN).is_file():
                raise CorruptArtefact(*_corrupt(folder, f"no {DONE}")) from None
            return None
        except (OSError, ValueError) as error:
            raise CorruptArtefact(*_corrupt(folder, f"{error} in {DONE}")) from error
        return _checked(folder, text, task)

    def finished(self, task: Task) -> dict[str, Any]:
        """Return a finished task's document.

        Raises:
            CorruptArtefact: it is not finished, or not what was written.
        """
        found = self.done(task)
        if found is None:
            raise CorruptArtefact(*_corrupt(self.folder(task), "not finished"))
        return found

    def read(self, task: Task, name: str) -> dict[str, Any]:
        """Return a JSON file of a finished task.

        Raises:
            CorruptArtefact: it is not what was written.
        """
        return self.parsed(self.folder(task), self.finished(task), name)

    def parsed(self, folder: Path, found: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Return a JSON file, held to its digest in the folder's document.

        Raises:
            CorruptArtefact: it is not what was written.
        """
        try:
            raw, want = (folder / name).read_bytes(), found["files"][name]["digest"]
        except (OSError, KeyError) as error:
            raise CorruptArtefact(*_corrupt(folder, f"no {name}")) from error
        if digest(raw) != want:
            raise CorruptArtefact(*_corrupt(folder, f"other bytes in {name}"))
        body: dict[str, Any] = json.loads(raw)
        return body

    def failure(self, task: Task) -> dict[str, Any] | None:
        """Return what is known of a task that raised: message, traceback, versions.

        Raises:
            CorruptArtefact: it is not what was written.
        """
        file = self.folder(task) / BROKEN
        return read_document(file, FAILED, SCHEMA) if file.is_file() else None

    def mean_seconds(self, stage: str, most: int = 50) -> float | None:
        """Return how long finished tasks of a stage took on average, None where there are none."""
        found = list[float]()
        for file in islice((self.path / stage).glob(f"*/{DONE}"), most):
            with suppress(OSError, ValueError, KeyError, TypeError):  # corrupt ones are told elsewhere
                found.append(float(json.loads(file.read_text(encoding="utf-8"))["seconds"]))
        return sum(found) / len(found) if found else None

    @contextmanager
    def writing(self, task: Task, outcome: str = "done", reason: str = "") -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield a folder to write files into and a mapping for the document; both are there whole at the end, or not.

        Args:
            task: whose result it is; one that is finished already stays as it is.
            outcome: ``done`` or ``declined``.
            reason: why it was declined.
        """
        extra: dict[str, Any] = {}
        with writable(self.folder(task), other=PLACE), self._part(task) as room:
            with private(room):
                yield room, extra
            files = {p.name: {"digest": digest(p.read_bytes()), "size": p.stat().st_size} for p in room.iterdir()}
            body = {"stage": task.stage, "key": task.key, "spec": task.spec, "outcome": outcome, "reason": reason}
            body |= {"files": files, "versions": versions(), **extra}
            write_plain(room / DONE, {**body, "digest": digest(body)})
            self._place(room, task)

    def fail(self, task: Task, message: str, trace: str, usage: bool) -> None:
        """Keep what is known of a task that raised.

        Args:
            task: the task.
            message: one sentence.
            trace: the traceback.
            usage: whether the input was at fault, not the program.
        """
        body = {"spec": task.spec, "message": message, "traceback": trace, "usage": usage, "versions": versions()}
        with writable(self.folder(task), other=PLACE), self._part(task) as room:
            with private(room):
                write_document(room / BROKEN, FAILED, SCHEMA, body)
            self._place(room, task)

    def forget(self, task: Task) -> None:
        """Remove a task's folder, in one step for whoever looks."""
        with self._part(task) as room, suppress(FileNotFoundError):
            self.folder(task).rename(room / "forgotten")

    def claimed(self, task: Task) -> AbstractContextManager[bool]:
        """Yield whether this process may work on a task; while it does, nobody else may."""
        return self.claims.held(_name(task))

    @property
    def claims(self) -> Claims:
        """Who works on what."""
        return Claims(self.path / "claims")

    def sweep(self) -> None:
        """Remove what killed processes left: claims, folders half written, checkpoints of what was finished since."""
        self.claims.sweep()
        for room in [*self._parts.glob("*")]:
            found = _PART.fullmatch(room.name)
            owner = Owner(found[1], int(found[2]), int(found[3]), found[4]) if found else None
            if self.claims.age(room) > DAY if owner is None or not owner.near else not owner.runs:
                shutil.rmtree(room, ignore_errors=True)
        for room in [*(self.path / "work").glob("*/*")]:
            if (self.path / room.parent.name / room.name / DONE).is_file():
                shutil.rmtree(room, ignore_errors=True)

    @property
    def _parts(self) -> Path:
        return self.path / "parts"

    @contextmanager
    def _part(self, task: Task) -> Iterator[Path]:
        """Yield a folder beside the results, named by its owner so that others know when it is left over."""
        own = Owner.here()
        room = self._parts / f"{_name(task)}.{own.host}-{own.pid}-{own.began}-{own.token}"
        room.mkdir(parents=True)
        try:
            yield room
        finally:
            shutil.rmtree(room, ignore_errors=True)

    def _place(self, room: Path, task: Task) -> None:
        """Move a folder to where the task's result belongs; one that is finished there stays.

        It is whole for every process at once. That it outlasts a loss of power is seen to beside the next task's work:
        what is lost in between has other sizes or digests than its document says.

        Raises:
            OSError: it cannot be moved there.
        """
        folder = self.folder(task)
        folder.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                room.rename(folder)
                break
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
            if self.status(task) in ("done", "declined"):
                return
            self.forget(task)
        threading.Thread(target=_sync, args=(folder,)).start()


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
            size = os.stat(os.path.join(folder, name)).st_size  # ten times as fast as pathlib, for 10,000 cells
        except OSError as error:
            raise CorruptArtefact(*_corrupt(folder, f"no {name}")) from error
        if size != file["size"]:
            raise CorruptArtefact(*_corrupt(folder, f"{size} bytes in {name} instead of {file['size']}"))
    return dict(body)


def _corrupt(folder: Path, got: str) -> tuple[str, str, str]:
    return f"a finished cell in {folder}", got, "compute it anew with expunge bench run --recompute"


def _sync(folder: Path) -> None:
    try:
        sync(folder)
        sync_one(folder.parent)
    except FileNotFoundError:
        pass  # removed by now
    except OSError as error:
        log.warning("%s would not outlast a loss of power: %s", folder, error)


def _name(task: Task) -> str:
    return f"{task.stage}-{task.key}"
