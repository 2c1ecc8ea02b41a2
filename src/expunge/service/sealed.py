"""A folder as one encrypted file: written in pieces, so that it never stands in memory, and read back before it counts.

The file is a header in the clear, then the bytes of all files one after another, in pieces that are each encrypted
and authenticated with AES-256-GCM. A piece's nonce is its position and whether it is the last; what it is bound to
besides is the digest of the header, in which 32 random bytes stand for this one file. A piece that was cut off, changed
places, came from another file or was altered in one bit does not open. The construction is STREAM: Online
Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance, V. T. Hoang, R. Reyhanitabar, P. Rogaway, D. Vizar,
2015, https://eprint.iacr.org/2015/189
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from expunge.errors import CorruptArtefact
from expunge.files import atomic, canonical, sync_one

MAGIC = b"expunge sealed folder 1\n"
PIECE = 4 * 2**20  # bytes of a piece before encryption
TAG = 16
LARGEST = 2**26  # bytes of a header
REMEDY = "restore it from a copy; the served version is not touched"


@dataclass(frozen=True)
class Header:
    """What stands in the clear at the start of a sealed file.

    Args:
        about: whose it is, JSON values.
        files: SHA-256 of each file, by its path within the folder.
        sizes: bytes of each file.
        salt: random, of this file alone, hexadecimal.
    """

    about: Mapping[str, Any]
    files: Mapping[str, str]
    sizes: Mapping[str, int]
    salt: str = field(default_factory=lambda: secrets.token_hex(32))

    def document(self) -> bytes:
        """Return the header as it is written: mark, length, canonical JSON."""
        text = canonical({k: dict(v) if isinstance(v, Mapping) else v for k, v in vars(self).items()}).encode()
        return MAGIC + len(text).to_bytes(8, "big") + text


def seal(folder: Path, path: Path, key: bytes, *, about: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Write a folder as a sealed file, which gets its name only after it was synced and read back.

    Args:
        folder: of the files; it stays as it is.
        path: of the sealed file.
        key: 32 random bytes.
        about: JSON values that stand in the clear.
        files: SHA-256 of each file, by its path within the folder; no others are taken.

    Raises:
        CorruptArtefact: a file is not what its digest says, or what was written cannot be read back.
        Unwritable: the disk is full or the folder cannot be written.
    """
    header = Header(about, files, {name: (folder / name).stat().st_size for name in files})
    with atomic(path) as part:
        with part.open("wb") as out:
            out.write(header.document())
            _encrypt(out, _Cipher(header, key), _content(folder, header))
        sync_one(part)
        _leave_memory(part)
        check(part, key)


def header(path: Path) -> Header:
    """Read the header of a sealed file; whether it is true, only the key can tell.

    Returns:
        The header.

    Raises:
        CorruptArtefact: there is none.
    """
    try:
        with path.open("rb") as file:
            return _header(file, path)
    except OSError as error:
        raise CorruptArtefact(f"a readable file {path}", error.strerror or str(error), REMEDY) from error


def unseal(path: Path, key: bytes, folder: Path) -> None:
    """Write the files of a sealed file into a folder, each held to its digest.

    Args:
        path: of the sealed file.
        key: that it was sealed with.
        folder: where the files go, an empty folder.

    Raises:
        CorruptArtefact: another key, or any bit that is not as it was written.
    """
    _read(path, key, folder)


def check(path: Path, key: bytes) -> None:
    """Read a sealed file to its end and hold all that is in it to its tags and digests; nothing is written.

    Raises:
        CorruptArtefact: another key, or any bit that is not as it was written.
    """
    _read(path, key, None)


def _read(path: Path, key: bytes, folder: Path | None) -> None:
    with path.open("rb") as file:
        found = _header(file, path)
        content = _Reader(_decrypt(file, _Cipher(found, key), path))
        for name, want in found.files.items():
            sha = hashlib.sha256()
            with _target(folder, name) as out:
                for piece in content.take(found.sizes[name]):
                    sha.update(piece)
                    if out is not None:
                        out.write(piece)
            if sha.hexdigest() != want:
                raise CorruptArtefact(f"the file {name} as it was in {path}", "other bytes", REMEDY)
        if content.more():
            raise CorruptArtefact(f"the end of {path}", "further bytes", REMEDY)


def _target(folder: Path | None, name: str) -> AbstractContextManager[BinaryIO | None]:
    if folder is None:
        return nullcontext()
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("xb")


def _header(file: BinaryIO, path: Path) -> Header:
    wrong = CorruptArtefact(f"a sealed folder in {path}", "a file without a whole header", REMEDY)
    start = file.read(len(MAGIC) + 8)
    size = int.from_bytes(start[len(MAGIC) :], "big")
    if len(start) != len(MAGIC) + 8 or not start.startswith(MAGIC) or size > LARGEST:
        raise wrong
    try:
        text = file.read(size)
        found = Header(**json.loads(text))
        names = [PurePosixPath(name) for name in found.files]
        fine = found.files.keys() == found.sizes.keys() and all(int(n) >= 0 for n in found.sizes.values())
        fine = fine and len(bytes.fromhex(found.salt)) == 32 and found.document() == start + text
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise wrong from error
    if not fine or any(n.is_absolute() or ".." in n.parts for n in names) or not isinstance(found.about, dict):
        raise wrong
    return found


class _Cipher:
    """The pieces of one file: a key of their own, drawn from the given one and the file's random bytes."""

    def __init__(self, found: Header, key: bytes) -> None:
        salt = bytes.fromhex(found.salt)
        self._aes = AESGCM(HKDF(SHA256(), 32, salt=salt, info=b"expunge sealed folder").derive(key))
        self._about = hashlib.sha256(found.document()).digest()

    def encrypt(self, piece: bytes, position: int, last: bool) -> bytes:
        return self._aes.encrypt(_nonce(position, last), piece, self._about)

    def decrypt(self, piece: bytes, position: int, last: bool) -> bytes:
        return self._aes.decrypt(_nonce(position, last), piece, self._about)


def _nonce(position: int, last: bool) -> bytes:
    return position.to_bytes(11, "big") + bytes([last])


def _content(folder: Path, found: Header) -> Iterator[bytes]:
    """Yield the bytes of all files, each held to its digest and size."""
    for name, want in found.files.items():
        sha, size = hashlib.sha256(), 0
        with (folder / name).open("rb") as file:
            while piece := file.read(PIECE):
                sha.update(piece)
                size += len(piece)
                yield piece
        if sha.hexdigest() != want or size != found.sizes[name]:
            raise CorruptArtefact(f"the file {folder / name} as it was recorded", "other bytes", REMEDY)


def _encrypt(out: BinaryIO, cipher: _Cipher, content: Iterator[bytes]) -> None:
    rest, position = bytearray(), 0
    for piece in content:
        rest += piece
        while len(rest) > PIECE:
            out.write(cipher.encrypt(bytes(rest[:PIECE]), position, False))
            del rest[:PIECE]
            position += 1
    out.write(cipher.encrypt(bytes(rest), position, True))


def _decrypt(file: BinaryIO, cipher: _Cipher, path: Path) -> Iterator[bytes]:
    position, piece = 0, file.read(PIECE + TAG)
    while True:
        following = file.read(PIECE + TAG)
        try:
            yield cipher.decrypt(piece, position, not following)
        except (InvalidTag, ValueError) as error:
            got = f"a file that was cut, altered or sealed with another key (piece {position + 1})"
            raise CorruptArtefact(f"{path} as it was sealed", got, REMEDY) from error
        if not following:
            return
        position, piece = position + 1, following


class _Reader:
    """Bytes that come in pieces, taken in other pieces."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def take(self, size: int) -> Iterator[bytes]:
        """Yield the next bytes, fewer where there are no more."""
        while size and self.more():
            piece, self._rest = self._rest[:size], self._rest[size:]
            size -= len(piece)
            yield piece

    def more(self) -> bool:
        """Return whether a byte is left; the last piece is held to its tag by asking."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return False
            self._rest = piece
        return True


def _leave_memory(path: Path) -> None:
    """Ask the system to forget what it has of a file in memory, so that it is read back from the disk."""
    if hasattr(os, "posix_fadvise"):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
