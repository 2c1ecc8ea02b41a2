"""What events say of code, machine and data: versions and digests, nothing personal."""

from __future__ import annotations

import functools
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import expunge
from expunge import __version__
from expunge.data import Data
from expunge.files import digest
from expunge.ledger.keys import marks
from expunge.method import Method

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "safetensors", "cryptography")


@functools.cache
def environment() -> dict[str, Any]:
    """Return versions of Python, packages and system, the digest of the package's source, and of all these."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    found = {"python": platform.python_version(), "system": platform.system(), "machine": platform.machine()}
    root = Path(expunge.__file__).parent
    files = sorted(root.rglob("*.py"))
    code = digest(*(part for f in files for part in (str(f.relative_to(root)), f.read_bytes())))
    body: dict[str, Any] = {**found, **versions, "expunge": __version__, "code": code}
    return {**body, "digest": digest(body)}


def data(rest: Data, secret: bytes) -> dict[str, Any]:
    """Return how many training samples stay, and the SHA-256 of their sorted keyed marks.

    Who has the ledger's keys can compute it again from the data. Without them nobody can: who knows which ids there
    were could otherwise leave out one after another, until the digest fits what stays, and so find the forgotten one.
    """
    return {"samples": len(rest), "marks": _marked(rest.ids, secret)}


def excluded(ids: Sequence[str], secret: bytes) -> dict[str, Any]:
    """Return how many ids were left out of a training, and the SHA-256 of their sorted keyed marks."""
    return {"excluded": len(ids), "excluded_marks": _marked(ids, secret)}


def _marked(ids: Sequence[str], secret: bytes) -> str:
    return digest(b"".join(sorted(marks(secret, ids))))


def cited(method: Method) -> dict[str, Any]:
    """Return a method's settings, what it does to a trace, and where it comes from."""
    return {"method": method.settings(), "nature": str(method.nature), "citation": vars(method.reference)}
