"""Replaced versions: kept encrypted for a stated time, given back bit for bit, destroyed for good.

A replaced version holds the influence of what was forgotten since, and with the served one it is the pair that
reconstruction attacks need. So its folder becomes one file under a key of its own in the ledger's file of keys, and
to destroy the key is to destroy every copy of that file, wherever it went.

What removal means: a folder in the clear is unlinked, not overwritten, because copy-on-write file systems, snapshots,
journals and the wear levelling of flash disks write elsewhere than where the old bytes are. Until the system uses
those blocks again, who reads the raw disk may find them; full-disk encryption is the remedy. A key is overwritten in
place in a small file, to which the same holds in principle.
"""

from __future__ import annotations

import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path

from expunge.errors import CorruptArtefact, Incompatible, UserError
from expunge.files import atomic, sync_one, there, writable
from expunge.ledger import Ledger
from expunge.service import sealed
from expunge.service.workspace import FIRST, Workspace, check_files


def archived(space: Workspace, name: str, version: str) -> Path:
    """Return the file of a version that is kept encrypted, whether or not it is there."""
    return space.undo / f"{name}-{version}.sealed"


def archive(space: Workspace, ledger: Ledger, name: str, version: str, until: datetime) -> None:
    """Keep a replaced version encrypted: the clear folder goes only when the file was synced and read back.

    Call it under the model's lock. A second call, after a process that was killed, ends the work of the first.

    Args:
        space: where versions are.
        ledger: whose file of keys gets the key.
        name: of the model.
        version: that is not served.
        until: when it is to be destroyed.

    Raises:
        UserError: it is served, or not there.
        CorruptArtefact: its files are not those that were recorded of it.
        Unwritable: the disk is full; the clear folder is as it was.
    """
    folder, path = space.version(name, version), archived(space, name, version)
    if version == space.current(name):
        raise UserError(f"a version of {name} that is not served", version, "serve another one first")
    _remove(space, _halves(space, path))
    if there(folder) is None:
        if there(path) is None:
            raise UserError(f"version {version} of {name} in {space.folder}", "none", "see what is there")
        return
    files = recorded(space, ledger, name, version)
    check_files(folder, files)
    if not _whole(ledger, path):
        drop(space, ledger, name, version)
        label = f"{keys_of(name, version)}{secrets.token_hex(8)}"
        about = {"ledger": ledger.identity, "model": name, "version": version, "key": label}
        about |= {"until": until.astimezone(UTC).isoformat(timespec="seconds")}
        sealed.seal(folder, path, ledger.keys.named(label), about=about, files=files)
    space.destroy(name, version)


def restore(space: Workspace, ledger: Ledger, name: str, version: str) -> None:
    """Give a version that was kept encrypted back, bit for bit; the encrypted file stays.

    Call it under the model's lock.

    Args:
        space: where versions are.
        ledger: whose file of keys has the key.
        name: of the model.
        version: to give back.

    Raises:
        UserError: it is not kept, or its key is gone.
        CorruptArtefact: it was cut or altered, or its files are not those that were recorded; nothing is written.
        Unwritable: the disk is full; the encrypted file is as it was.
    """
    files, folder = recorded(space, ledger, name, version), space.version(name, version)
    if there(folder) is not None:
        check_files(folder, files)
        return
    path = archived(space, name, version)
    key = _key(ledger, path, _header(ledger, path, name, version))
    with atomic(folder) as room:
        room.mkdir()
        sealed.unseal(path, key, room)
        check_files(room, files)


def until(space: Workspace, ledger: Ledger, name: str, version: str) -> datetime:
    """Return when a version that is kept encrypted is to be destroyed.

    Raises:
        UserError: it is not kept, or by another ledger.
        CorruptArtefact: the file says nothing of it.
    """
    path = archived(space, name, version)
    try:
        return datetime.fromisoformat(_header(ledger, path, name, version).about["until"]).astimezone(UTC)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptArtefact(f"a time in {path}", "none", sealed.REMEDY) from error


def recorded(space: Workspace, ledger: Ledger, name: str, version: str) -> dict[str, str]:
    """Return the digests of a version's files, as they were recorded when it was made.

    Raises:
        Incompatible: the ledger knows no such version.
    """
    if version == FIRST:
        return dict(space.begun(name)["files"])
    for event in ledger.events(int(version[1:]), ("unlearned",)):
        if event.model == name and event.body.get("version") == version:
            return dict(event.body["files"])
    raise Incompatible(f"version {version} of {name} in the ledger", "none", "restore the ledger from a copy")


def keys_of(name: str, version: str = "") -> str:
    """Return what the names of the keys of a model, or of one of its versions, begin with."""
    return f"undo/{name}/{version}/" if version else f"undo/{name}/"


def _header(ledger: Ledger, path: Path, name: str, version: str) -> sealed.Header:
    if there(path) is None:
        raise UserError(f"version {version} of {name} in {path}", "no such file", "restore it from a copy")
    found = sealed.header(path)
    want = {"ledger": ledger.identity, "model": name, "version": version}
    if want != {key: found.about.get(key) for key in want}:
        remedy = "restore it from a copy"
        raise Incompatible(
            f"version {version} of {name} in {path}", "another version, or one of another ledger", remedy
        )
    return found


def _key(ledger: Ledger, path: Path, found: sealed.Header) -> bytes:
    key = ledger.keys.find(str(found.about.get("key")))
    if key is None:
        remedy = f"restore {ledger.keys.path.name} from a copy where it was not; the served version is not touched"
        raise CorruptArtefact(f"the key of {path} in {ledger.keys.path}", "none: it was destroyed or lost", remedy)
    return key


def _whole(ledger: Ledger, path: Path) -> bool:
    """Return whether an encrypted version is there and opens, as after a process killed before the last step."""
    if there(path) is None:
        return False
    try:
        sealed.check(path, _key(ledger, path, sealed.header(path)))
    except CorruptArtefact:
        return False
    return True


def exists(space: Workspace, name: str, version: str) -> bool:
    """Return whether a version is there, encrypted or in the clear."""
    return any(there(path) is not None for path in (archived(space, name, version), space.version(name, version)))


def drop(space: Workspace, ledger: Ledger, name: str, version: str) -> None:
    """Destroy the keys of a version that is kept encrypted, then the file, half-written ones included."""
    for label in ledger.keys.live(keys_of(name, version)):
        ledger.keys.destroy_named(label)
    path = archived(space, name, version)
    _remove(space, [*_halves(space, path), *([path] if there(path) else [])])


def _halves(space: Workspace, path: Path) -> list[Path]:
    """Return what a killed process left of an encrypted file, as `expunge.files.atomic` names it."""
    return list(space.undo.glob(f".{path.name}.*")) if space.undo.is_dir() else []


def _remove(space: Workspace, found: list[Path]) -> None:
    with writable(space.undo):
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if found:
            sync_one(space.undo)
