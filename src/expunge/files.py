"""Files that are whole or absent: canonical JSON, digests, atomic writes, versioned documents."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from expunge.errors import CorruptArtefact, Incompatible, NotFinite, Unwritable, UserError

MARKS = ("record.json", "manifest.json", "audit.json", "book.json")  # of folders that may be replaced
_PRIVATE: ContextVar[Path | None] = ContextVar("private", default=None)
JSON = None | bool | int | float | str | list[Any] | dict[str, Any]


def canonical(value: Any) -> str:
    """Return the one JSON text of ``value``: keys sorted, no spaces, ASCII, no NaN.

    >>> canonical({"b": 1, "a": [True, None]})
    '{"a":[true,null],"b":1}'

    Raises:
        NotFinite: a float is NaN or infinite, which JSON cannot hold.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise NotFinite("finite numbers in a JSON document", "NaN or infinity", "find where it arose") from error


def digest(*parts: Any) -> str:
    """Return the SHA-256 of the parts as hex; bytes count as they are, anything else as canonical JSON.

    >>> digest({"a": 1})[:12]
    '015abd7f5cc5'
    """
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part if isinstance(part, bytes | bytearray | memoryview) else canonical(part).encode())
    return sha.hexdigest()


def there(path: Path) -> str | None:
    """Return ``a file``, ``a folder`` or None, for what is at a path.

    Raises:
        UserError: the path cannot be looked at, as one with a name of more than 255 bytes.
    """
    try:  # one look: a folder that is made between two looks would pass for a file
        return "a folder" if stat.S_ISDIR(path.stat().st_mode) else "a file"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        shown = str(path) if len(str(path)) <= 80 else f"{str(path)[:77]}..."
        raise UserError(f"a usable path, {shown}", error.strerror or str(error), "check the path") from error


def check_free(path: Path, overwrite: bool, remedy: str = "choose another path, or pass overwrite=True") -> None:
    """Refuse ``path`` if something is there already and may not be replaced.

    Raises:
        UserError: the path exists and ``overwrite`` is false, or its parent is not a writable folder.
    """
    found = there(path)
    if overwrite and found == "a folder" and any(path.iterdir()) and not any((path / m).is_file() for m in MARKS):
        raise UserError(f"a folder that expunge wrote at {path}", "another one, not empty", "choose another path")
    if found is not None and not overwrite:
        raise UserError(f"a path that is free to write, {path}", "an existing file or folder", remedy)
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"a folder to write {path.name} in", f"{parent}, not writable", "choose another folder")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and move it there, synced, only if the block ends well.

    What stood at ``path`` stays as it was when the block raises. A folder that is replaced is moved aside first and
    removed last: a process killed between the two renames leaves it in a hidden folder beside ``path``.

    Raises:
        Unwritable: the disk is full or the folder cannot be written.
    """
    path, mine = Path(path), _PRIVATE.get()
    if mine is not None and path.is_relative_to(mine):
        with writable(path):
            yield path
        return
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with writable(path):
            yield room / path.name
            _replace(room / path.name, path, room)
    finally:
        shutil.rmtree(room, ignore_errors=True)


@contextlib.contextmanager
def writable(path: Path, *, other: str = "folder") -> Iterator[None]:
    """Make a sentence of what the system says against writing.

    Args:
        path: what is written.
        other: what may be chosen instead.

    Raises:
        Unwritable: the disk is full or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        remedy = f"free the space or choose another {other}"
        raise Unwritable(f"to write {path}", error.strerror or str(error), remedy) from error


@contextlib.contextmanager
def private(folder: Path) -> Iterator[None]:
    """Write straight into a folder that nobody else looks into; the caller moves it as a whole, and calls `sync`."""
    token = _PRIVATE.set(folder)
    try:
        yield
    finally:
        _PRIVATE.reset(token)


def sync(path: Path) -> None:
    """Make a file, or all that is in a folder, outlast a loss of power."""
    for part in [path] if path.is_file() else [*(p for p in path.rglob("*") if p.is_file()), path]:
        sync_one(part)


def sync_one(path: Path) -> None:
    """Make a file, or the list of names in a folder, outlast a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(new: Path, path: Path, room: Path) -> None:
    sync(new)
    aside = room / "replaced"
    try:
        if path.is_dir():
            path.rename(aside)
        os.replace(new, path)
    except BaseException:
        if aside.exists() and not path.exists():
            aside.rename(path)
        raise
    sync_one(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_document(path: Path, kind: str, version: int, body: Mapping[str, Any]) -> None:
    """Write a JSON document with its kind and schema version, atomically."""
    canonical(body)  # refuses NaN before anything is written
    head = {"kind": kind, "schema": version}
    write_text(path, json.dumps(head | dict(body), indent=1, sort_keys=False, allow_nan=False) + "\n")


def read_document(path: Path, kind: str, version: int) -> dict[str, Any]:
    """Read a JSON document written by `write_document` and check its kind and version.

    Returns:
        The document.

    Raises:
        CorruptArtefact: not JSON, or not an object.
        Incompatible: another kind, or written by a newer version.
        UserError: no such file.
    """
    if not path.is_file():
        raise UserError(f"a file {path}", "none there", "check the path, or run the command that writes it")
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptArtefact(f"a JSON document in {path}", f"{error}", "restore or write it again") from error
    if not isinstance(body, dict) or body.get("kind") != kind:
        found = body.get("kind") if isinstance(body, dict) else type(body).__name__
        raise Incompatible(f"a document of kind '{kind}' in {path}", repr(found), "name the right file")
    if not isinstance(body.get("schema"), int) or body["schema"] > version:
        raise Incompatible(f"schema {version} or older in {path}", repr(body.get("schema")), "update expunge")
    return body


def jsonable(value: Any) -> Any:
    """Return ``value`` with mappings, sequences and numpy or torch scalars turned into plain JSON values.

    >>> jsonable({"a": (1, 2.5), 3: None})
    {'a': [1, 2.5], '3': None}
    """
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, set | frozenset):  # in one order, whatever the process hashes to
        return sorted((jsonable(v) for v in value), key=canonical)
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    return str(value)
