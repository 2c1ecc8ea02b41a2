"""SQLite files that lose nothing: opened, made whole or not at all, and their errors as sentences.

The ledger's file is in write-ahead mode and synced at every commit (``synchronous=FULL``), so that what a commit
acknowledged outlasts a killed process and a loss of power, as far as the disk keeps what it says it has written.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil

from expunge.errors import CorruptArtefact, Incompatible, Unwritable, UserError
from expunge.files import sync_one, there, writable

LEDGER, KEYS = "ledger.sqlite3", "keys.sqlite3"
PATIENCE = 60.0  # seconds to wait for another process that writes
AGE = 3600.0  # seconds after which a file that was not finished belongs to nobody
VERSION = 1
MARK = 0x45585047  # the application's id in the file's header: EXPG
NETWORK = {
    "9p", "afpfs", "afs", "beegfs", "ceph", "cifs", "davfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs3",
    "nfs4", "smb", "smb2", "smb3", "smbfs", "webdav", "fuse.ceph", "fuse.cephfs", "fuse.davfs", "fuse.davfs2",
    "fuse.gcsfuse", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs",
}  # fmt: skip
SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE events (
  seq INTEGER PRIMARY KEY, request TEXT NOT NULL, model TEXT, step TEXT NOT NULL, at TEXT NOT NULL,
  actor TEXT NOT NULL, body TEXT NOT NULL, previous TEXT NOT NULL, digest TEXT NOT NULL, salt TEXT NOT NULL,
  earlier INTEGER NOT NULL);
CREATE INDEX events_request ON events (request);
CREATE TABLE latest (
  request TEXT PRIMARY KEY, seq INTEGER NOT NULL, open INTEGER NOT NULL, due TEXT NOT NULL, status TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX latest_open ON latest (due, request) WHERE open = 1;
CREATE TABLE payloads (key INTEGER PRIMARY KEY AUTOINCREMENT, sealed BLOB NOT NULL);
CREATE TABLE erasing (key INTEGER PRIMARY KEY);
CREATE TABLE remembered (
  mark BLOB NOT NULL, model TEXT NOT NULL, request TEXT NOT NULL, PRIMARY KEY (mark, model, request)
) WITHOUT ROWID;
CREATE INDEX remembered_request ON remembered (model, request);
CREATE TRIGGER events_insert BEFORE INSERT ON events
  WHEN NEW.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM events)
  BEGIN SELECT RAISE(ABORT, 'an event is only added at the end'); END;
CREATE TRIGGER events_update BEFORE UPDATE ON events
  BEGIN SELECT RAISE(ABORT, 'an event is never changed'); END;
CREATE TRIGGER events_delete BEFORE DELETE ON events
  BEGIN SELECT RAISE(ABORT, 'an event is never deleted'); END;
CREATE TRIGGER meta_insert BEFORE INSERT ON meta
  WHEN EXISTS (SELECT 1 FROM meta WHERE name = NEW.name)
  BEGIN SELECT RAISE(ABORT, 'what tells the ledger from others is never changed'); END;
CREATE TRIGGER meta_update BEFORE UPDATE ON meta
  BEGIN SELECT RAISE(ABORT, 'what tells the ledger from others is never changed'); END;
CREATE TRIGGER meta_delete BEFORE DELETE ON meta
  BEGIN SELECT RAISE(ABORT, 'what tells the ledger from others is never deleted'); END;
"""


def connect(path: Path, mode: str = "rw") -> sqlite3.Connection:
    """Open an SQLite file that exists, in autocommit mode.

    Args:
        path: of the file.
        mode: ``rw``, or ``ro`` to read only.

    Returns:
        The connection: deleted content is overwritten, and a commit waits until the disk has it.

    Raises:
        UserError: there is no file; with its subclasses, what `translated` says.
    """
    if there(path) != "a file":
        found = there(path) or "none"
        raise UserError(f"a file {path}", found, "check --workspace, or add a first request to make it")
    frozen = mode == "ro" and not os.access(path.parent, os.W_OK) and not _waiting(path)
    with translated(path):
        uri = f"{path.absolute().as_uri()}?mode={mode}{'&immutable=1' if frozen else ''}"
        db = sqlite3.connect(uri, uri=True, timeout=PATIENCE, isolation_level=None)
        db.text_factory = _text
        try:
            for pragma in ("synchronous=FULL", "fullfsync=ON", "foreign_keys=ON", "secure_delete=ON"):
                db.execute(f"PRAGMA {pragma}")
            db.execute("PRAGMA trusted_schema=OFF")
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # reads the header
        except BaseException:
            db.close()
            raise
    return db


def _waiting(path: Path) -> bool:
    """Return whether a log beside the file holds what the file does not have yet."""
    log = path.with_name(f"{path.name}-wal")
    return log.exists() and log.stat().st_size > 0


def _text(raw: bytes) -> str:
    """Read a text of the file, damaged or not: what is not UTF-8 then differs from what was written."""
    return raw.decode("utf-8", "surrogateescape")


def make(path: Path, fill: Callable[[sqlite3.Connection], None], *, version: int, mark: int) -> None:
    """Make an SQLite file that is there whole or not at all; where one is there already, it stays.

    Args:
        path: of the file, which only its owner will be able to read; its folder is made.
        fill: writes the first content.
        version: of the schema.
        mark: what tells the file from those of other programs.

    Raises:
        CorruptArtefact: the file is missing, and what SQLite keeps beside it is there.
    """
    refuse_network(path.parent)
    rest = [p for p in (path.with_name(f"{path.name}{end}") for end in ("-wal", "-journal")) if p.exists()]
    if rest and not path.exists():
        remedy = f"restore {path.name} from a copy, or choose another folder"
        raise CorruptArtefact(f"{path.name} beside {rest[0].name} in {path.parent}", "none", remedy)
    with writable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    part = Path(name)
    try:
        with translated(path), closing(sqlite3.connect(part, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous=OFF")  # synced as a whole before it gets its name
            fill(db)
            db.execute(f"PRAGMA application_id={mark}")
            db.execute(f"PRAGMA user_version={version}")
        with writable(path):
            sync_one(part)
            with suppress(FileExistsError):  # of two that make it, one does
                os.link(part, path)
            sync_one(path.parent)
    finally:
        for end in ("", "-wal", "-shm", "-journal"):
            Path(f"{part}{end}").unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what processes that were killed while they made a file left half made."""
    for part in (p for name in (LEDGER, KEYS) for p in folder.glob(f".{name}.*")):
        with suppress(FileNotFoundError):  # its own process may have ended meanwhile
            if time.time() - part.stat().st_mtime > AGE:
                part.unlink()


def check_kind(db: sqlite3.Connection, path: Path, version: int, mark: int) -> None:
    """Refuse a database of another program or of a newer version.

    Raises:
        Incompatible: it is one.
    """
    with translated(path):
        found, its = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if found != mark:
        raise Incompatible(f"a ledger of expunge in {path}", "another program's database", "name the right folder")
    if its != version:
        remedy = "update expunge" if its > version else "restore it from a copy"
        raise Incompatible(f"schema {version} in {path}", str(its), remedy)


def file_system(folder: Path) -> str:
    """Return the type of the file system that a folder is on or will be made on, empty where it is not known."""
    place = folder.resolve()
    mounts = [p for p in psutil.disk_partitions(all=True) if place.is_relative_to(p.mountpoint)]
    return max(mounts, key=lambda p: len(Path(p.mountpoint).parts)).fstype.lower() if mounts else ""


def refuse_network(folder: Path) -> None:
    """Refuse a folder on a network disk, where SQLite's write-ahead log does not work.

    Raises:
        UserError: it is on one.
    """
    kind = file_system(folder)
    if kind in NETWORK:
        expected = "a folder on a disk of this machine for the ledger (SQLite's WAL does not work on a network disk)"
        raise UserError(expected, f"{folder} on {kind}", "choose a local folder")


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Do all that is within or nothing; no other process writes meanwhile."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # SQLite may have undone it already
            db.execute("ROLLBACK")
        raise


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Make sentences of what SQLite and the system say.

    Args:
        path: of the database.

    Raises:
        Unwritable: the disk is full, the folder or file cannot be written, reading or writing failed.
        CorruptArtefact: it is damaged or no database.
        UserError: another process keeps it locked.
        DatabaseError: anything else, a fault of this program.
    """
    with writable(path):
        try:
            yield
        except sqlite3.DatabaseError as error:
            said = _sentence(path, error)
            if said is None:
                raise
            raise said from error


def _sentence(path: Path, error: sqlite3.DatabaseError) -> UserError | None:
    name, text = getattr(error, "sqlite_errorname", ""), str(error)
    kind = "_".join(name.split("_")[:2])  # SQLITE_IOERR_WRITE is an SQLITE_IOERR
    if kind in ("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_PERM"):
        remedy = "free the space or make the folder writable, then do it again; a step is kept whole or not at all"
        return Unwritable(f"to write {path}", f"{text} ({name})", remedy)
    if kind in ("SQLITE_BUSY", "SQLITE_LOCKED"):
        remedy = "end the process that holds it, then do it again"
        return UserError(f"{path} to be free within {PATIENCE:.0f} s", "another process that keeps it locked", remedy)
    if kind in ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_CONSTRAINT") or text.startswith("no such "):
        remedy = "restore the folder from a copy, and compare its head with the one you kept"
        return CorruptArtefact(f"a sound database {path}", text, remedy)
    return None
