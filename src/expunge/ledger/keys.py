"""The keys of what is personal in a ledger: one a request, in a file of their own; destroyed, it cannot be read again.

A key is overwritten in place with zeros, in a file where SQLite never moves it, so that no second copy stays in the
file. What the disk, the file system, a snapshot or a backup keep of older blocks is beyond this program.
"""

from __future__ import annotations

import hmac
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from expunge.errors import CorruptArtefact, UserError
from expunge.files import there
from expunge.ledger.database import check_kind, connect, make, transaction, translated

SIZE = 32  # bytes of a key
POOL = 64  # keys that are made at a time, since each time waits for the disk
VERSION = 1
MARK = 0x4558504B  # EXPK
GONE = bytes(SIZE)
_NONCE = 12
_SCHEMA = """
CREATE TABLE keys (number INTEGER PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE named (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, value BLOB NOT NULL);
"""


class Keys:
    """The file of keys: number 0 is the ledger's own secret, each other the key of one request; some have names.

    Args:
        path: of the file.
        readonly: whether it is only read.
    """

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        self.path = path
        self._db = connect(path, "ro" if readonly else "rw")
        try:
            check_kind(self._db, path, VERSION, MARK)
            secret = self.take(0)
        except BaseException:
            self._db.close()
            raise
        if secret is None:
            self._db.close()
            raise CorruptArtefact(f"the ledger's own secret in {path}", "none", "restore it from a copy")
        self.secret = secret

    @classmethod
    def create(cls, path: Path) -> Keys:
        """Make the file with a new secret, or open the one that is there."""

        def fill(db: sqlite3.Connection) -> None:
            db.executescript(_SCHEMA)
            db.execute("INSERT INTO keys VALUES (0, ?)", [secrets.token_bytes(SIZE)])

        if there(path) is None:
            make(path, fill, version=VERSION, mark=MARK)
        return cls(path)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @property
    def made(self) -> int:
        """The highest number of which a key was made."""
        with translated(self.path):
            return int(self._db.execute("SELECT max(number) FROM keys").fetchone()[0])

    def take(self, number: int) -> bytes | None:
        """Return a key, None where it was destroyed or never made."""
        with translated(self.path):
            row = self._db.execute("SELECT value FROM keys WHERE number = ?", [number]).fetchone()
        return _usable(row)

    def more(self, start: int, count: int = POOL) -> None:
        """Make keys from a number on, `POOL` at least; those that are there stay, also as destroyed."""
        new = ((number, secrets.token_bytes(SIZE)) for number in range(start, start + max(count, POOL)))
        with self._writing():
            self._db.executemany("INSERT OR IGNORE INTO keys VALUES (?, ?)", new)

    def destroy(self, number: int) -> None:
        """Overwrite the key of a request; what it sealed cannot be read again."""
        with self._writing():
            self._db.execute("UPDATE keys SET value = ? WHERE number = ? AND number > 0", [GONE, number])

    def named(self, name: str) -> bytes:
        """Return the key of a name, which is made the first time.

        Raises:
            UserError: it was destroyed.
        """
        with self._writing():
            value = secrets.token_bytes(SIZE)
            self._db.execute("INSERT INTO named (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING", [name, value])
        found = self.find(name)
        if found is None:
            raise UserError(f"a key '{name}' that is there", "one that was destroyed", "choose another name")
        return found

    def find(self, name: str) -> bytes | None:
        """Return the key of a name, None where it was destroyed or never made."""
        with translated(self.path):
            row = self._db.execute("SELECT value FROM named WHERE name = ?", [name]).fetchone()
        return _usable(row)

    def live(self, start: str) -> list[str]:
        """Return the names, of those that begin so, whose keys were not destroyed."""
        with translated(self.path):
            statement = "SELECT name FROM named WHERE substr(name, 1, ?) = ? AND value != ? ORDER BY name"
            return [name for (name,) in self._db.execute(statement, [len(start), start, GONE])]

    def destroy_named(self, name: str) -> None:
        """Overwrite the key of a name; what it sealed cannot be read again."""
        with self._writing():
            self._db.execute("UPDATE named SET value = ? WHERE name = ?", [GONE, name])

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with translated(self.path), transaction(self._db):
            yield


def _usable(row: tuple[bytes] | None) -> bytes | None:
    value = row[0] if row else None
    return value if isinstance(value, bytes) and len(value) == SIZE and value != GONE else None


def _subkey(key: bytes, purpose: bytes) -> bytes:
    return HKDF(SHA256(), SIZE, salt=None, info=b"expunge ledger " + purpose).derive(key)


def seal(key: bytes, payload: bytes, about: bytes) -> bytes:
    """Encrypt with AES-256-GCM under a key derived by HKDF.

    Args:
        key: of `SIZE` bytes.
        payload: what is hidden.
        about: what is not hidden but must be the same when it is opened.

    Returns:
        A random nonce of 12 bytes, then the encrypted text with its tag.
    """
    nonce = secrets.token_bytes(_NONCE)
    return nonce + AESGCM(_subkey(key, b"seal")).encrypt(nonce, payload, about)


def opened(key: bytes, sealed: bytes, about: bytes) -> bytes:
    """Return what `seal` hid.

    Raises:
        CorruptArtefact: another key, other bytes, or about something else.
    """
    try:
        return AESGCM(_subkey(key, b"seal")).decrypt(sealed[:_NONCE], sealed[_NONCE:], about)
    except (InvalidTag, ValueError) as error:
        remedy = "restore the folder from a copy"
        raise CorruptArtefact("sealed bytes that open with their key", "others, or another key", remedy) from error


def commitment(key: bytes, payload: bytes) -> str:
    """Return an HMAC-SHA256 of a payload, which says nothing of it once the key is destroyed."""
    return hmac.digest(_subkey(key, b"commitment"), payload, "sha256").hex()


def marks(secret: bytes, ids: Iterable[str]) -> list[bytes]:
    """Return 16 bytes an id by which a forgotten one is known again: the start of an HMAC-SHA256.

    Args:
        secret: the ledger's own; without it, nothing can be told from a mark.
        ids: sample ids.
    """
    key = _subkey(secret, b"mark")
    return [hmac.digest(key, i.encode("utf-8", "surrogatepass"), "sha256")[:16] for i in ids]
