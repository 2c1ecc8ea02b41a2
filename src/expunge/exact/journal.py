"""Files of JSON lines that only grow: each line is on the disk before the next thing happens, a torn one is no line."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.errors import CorruptArtefact
from expunge.files import canonical, sync_one, writable


def append(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Add lines at the end of a file and make them outlast a loss of power.

    Args:
        path: of the file; it is made where there is none.
        lines: JSON objects.

    Raises:
        Unwritable: the disk is full or the folder cannot be written; the file is as it was.
    """
    text = "".join(f"{canonical(dict(line))}\n" for line in lines).encode()
    with writable(path):
        new = not path.exists()
        with path.open("ab", buffering=0) as file:
            start, left = file.seek(0, os.SEEK_END), text
            try:
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
                start += len(text)
            finally:
                with contextlib.suppress(OSError):  # half a line would join the next one
                    os.ftruncate(file.fileno(), start)
        if new:
            sync_one(path.parent)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file; a last one that a kill cut short never was written.

    Returns:
        The objects in order; none where there is no file.

    Raises:
        CorruptArtefact: a line before the last is no JSON object.
    """
    if not path.exists():
        return []
    body = path.read_bytes()
    whole = body[: body.rfind(b"\n") + 1].decode(errors="replace").split("\n")[:-1]
    found: list[dict[str, Any]] = []
    for number, line in enumerate(whole, start=1):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise CorruptArtefact(f"a JSON object in line {number} of {path}", f"{line:.40}", "restore it from a copy")
        found.append(value)
    return found


def cut(path: Path, lines: int) -> None:
    """Keep the first lines of a file alone; what stands behind them was written by a step that never ended.

    Args:
        path: of the file.
        lines: how many to keep.

    Raises:
        Unwritable: the folder cannot be written.
    """
    if not path.exists():
        return
    body = path.read_bytes()
    whole = body.split(b"\n")[:-1]
    kept = b"".join(part + b"\n" for part in whole[:lines])
    if kept != body:
        with writable(path), path.open("r+b") as file:
            file.truncate(len(kept))
            os.fsync(file.fileno())
