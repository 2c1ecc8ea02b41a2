"""A workspace whose versions are made by hand, of a few small files, without any training."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import torch

from expunge import tensors
from expunge.ledger import Entry, Ledger, Request
from expunge.service.workspace import Workspace, digests

CANARY = bytes(range(7, 39)) * 2  # 64 bytes that stand in the weights of every version but the served one


@dataclass
class Clock:
    """A clock that stands still until it is moved."""

    at: datetime = datetime(2025, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at


@dataclass
class Hand:
    """A workspace, its ledger and a clock.

    Args:
        folder: where.
        name: of the model.
    """

    folder: Path
    name: str = "shop"
    clock: Clock = field(default_factory=Clock)

    @property
    def space(self) -> Workspace:
        return Workspace(self.folder)

    def ledger(self, actor: str = "ann") -> Ledger:
        return Ledger.open(self.folder, create=True, now=self.clock, actor=actor)

    def begin(self, start: Path) -> None:
        """Serve the first version."""
        fill(start, CANARY, {"step": "prepare"})
        with self.ledger():
            self.space.begin(self.name, start, self.clock())

    def fulfil(self, *requests: str, weights: bytes = b"new", how: str = "edit", steps: int = 5) -> str:
        """Take requests through a version made by hand, up to one of the steps; return the version."""
        with self.ledger() as ledger:
            for id in requests:
                ledger.receive(asked(id, *ids_of(id)))
            version = f"v{ledger.head().seq + 1:06d}"
            body: dict[str, Any] = {"how": how, "version": version}
            all_of(ledger, self.name, requests, "started", body)
            if steps > 1:
                folder = self.space.version(self.name, version)
                fill(folder, weights, {"step": "forget", "forgotten": []})
                marks = {id: ledger.remember(self.name, ids_of(id), id) for id in requests}
                files = {"files": digests(folder)}
                entries = [Entry(i, "unlearned", body | files | {"marks": marks[i]}, self.name) for i in requests]
                ledger.record_all(entries)
            if steps > 2:
                all_of(ledger, self.name, requests, "verified", body)
            if steps > 3:
                self.space.switch(self.name, version)
                all_of(ledger, self.name, requests, "deployed", body)
            if steps > 4:
                for id in requests:
                    if ledger.status(id).open:
                        ledger.record(id, "closed", {"route": "edit"})
        return version

    def later(self, **by: float) -> None:
        self.clock.at += timedelta(**by)


def asked(id: str, *values: str, kind: Any = "ids") -> Request:
    return Request(id, kind, values, route="edit", received=date(2025, 3, 1), due=date(2025, 3, 31))


def ids_of(request: str) -> tuple[str, ...]:
    return f"train/{request}-secret", f"train/{request}-hidden"


def all_of(ledger: Ledger, name: str, requests: Sequence[str], step: Any, body: dict[str, Any]) -> None:
    ledger.record_all([Entry(id, step, body, name) for id in requests])


def fill(folder: Path, weights: bytes, record: dict[str, Any]) -> None:
    """Write a folder of a record and weights that hold given bytes."""
    folder.mkdir(parents=True)
    values = torch.frombuffer(bytearray(weights * 4 + bytes(4096)), dtype=torch.uint8)
    tensors.save(folder / "model.safetensors", {"layer.weight": values}, {})
    (folder / "record.json").write_text(str(record))
    (folder / "more").mkdir()
    (folder / "more" / "empty.txt").write_text("")


def holding(folder: Path, *texts: bytes) -> list[str]:
    """Return the files below a folder in which one of some texts stands, by their raw bytes or their names."""
    found = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    names = [
        str(p.relative_to(folder)) for p in found if any(t in p.read_bytes() or t in os.fsencode(p) for t in texts)
    ]
    return sorted(names)


CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "shutil.rmtree"}


def killed_at(step: int, work: Callable[[], object], every: bool) -> bool:
    """Do some work in a process that ends hard before its n-th change of a file; return whether it was that long.

    Changes are those that Python tells its auditors of, files opened to be written, and every call to SQLite that
    writes, before and after it.

    Args:
        step: n.
        work: what to do.
        every: count changes within hidden folders too, which nobody looks into before they are moved.
    """
    child = os.fork()
    if child == 0:
        left = step

        def count() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(9)

        def audited(event: str, args: tuple[Any, ...]) -> None:
            writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            paths = [os.fspath(a) for a in args[:2] if isinstance(a, str | os.PathLike)]
            if (event in CHANGES or writes) and (every or not all("/." in path for path in paths)):
                count()

        try:
            _count_transactions(count)
            sys.addaudithook(audited)
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), f"the work itself failed after {step} changes"
    return code == 9


def _count_transactions(count: Callable[[], None]) -> None:
    from expunge.ledger.keys import Keys

    for kind, names in {Ledger: ("record_all",), Keys: ("named", "destroy_named")}.items():
        for name in names:
            setattr(kind, name, _counted(getattr(kind, name), count))


def _counted(call: Callable[..., Any], count: Callable[[], None]) -> Callable[..., Any]:
    def around(*args: Any, **options: Any) -> Any:
        count()
        found = call(*args, **options)
        count()
        return found

    return around
