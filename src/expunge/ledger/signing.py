"""Ed25519 keys and signatures over the bytes of a document, in forms that a flipped byte cannot pass."""

from __future__ import annotations

import json
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from expunge.errors import UserError
from expunge.files import atomic, check_free

KIND, SCHEMA, ALGORITHM = "expunge.signature", 1, "Ed25519"
LONGEST = 65536  # bytes of a key's file
MAKE = "make one with openssl genpkey -algorithm ed25519 -out KEY, or name the right file"


def generate_key(path: Path) -> Path:
    """Make a signing key: the private half at ``path``, for its owner's eyes alone, the public half beside it.

    Args:
        path: a free path; the file is PEM (PKCS #8, not encrypted), mode 0600.

    Returns:
        The path of the public half, ``path`` with ``.pub`` after it, to be handed to whoever checks.

    Raises:
        UserError: one of the two paths is taken, or the folder cannot be written.
    """
    path = Path(path)
    public = path.with_name(path.name + ".pub")
    for place in (path, public):
        check_free(place, False, "choose another path")
    key = Ed25519PrivateKey.generate()
    with atomic(path) as room:
        os.close(os.open(room, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        room.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with atomic(public) as room:
        room.write_text(_pem(key.public_key()), encoding="ascii")
    return public


def load_private(path: Path) -> Ed25519PrivateKey:
    """Return the private key of a PEM file.

    Raises:
        UserError: no such file, no private key in it, one with a passphrase, or one of another kind than Ed25519.
    """
    text = _read(path)
    if "PUBLIC KEY" in text:
        raise UserError(f"a private key in {path}", "a public one", "sign with the private half of the pair")
    try:
        key = load_pem_private_key(text.encode(), password=None)
    except TypeError as error:  # cryptography's word for a passphrase that is wanted
        remedy = f"decrypt it with openssl pkey -in {path} -out PLAIN, and name that file"
        raise UserError(f"a private key without a passphrase in {path}", "an encrypted one", remedy) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"an Ed25519 private key as PEM in {path}", "something else", MAKE) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"an Ed25519 private key in {path}", f"a key of another kind ({type(key).__name__})", MAKE)
    return key


def load_public(path: Path) -> Ed25519PublicKey:
    """Return the public key of a PEM file.

    Raises:
        UserError: no such file, no public key in it, a private one, or one of another kind than Ed25519.
    """
    text = _read(path)
    if "PRIVATE KEY" in text:
        remedy = "check with the public half, and keep the private one where it is"
        raise UserError(f"a public key in {path}", "a private one", remedy)
    try:
        return _public(text)
    except ValueError as error:
        remedy = "name the file that the signer handed over"
        raise UserError(f"an Ed25519 public key as PEM in {path}", "something else", remedy) from error


def sign(content: bytes, key: Ed25519PrivateKey) -> bytes:
    """Return the document that holds the signature over ``content`` and the public key it verifies with."""
    return _written(key.public_key(), key.sign(content))


def flaw(document: bytes, content: bytes, key: Ed25519PublicKey | None = None) -> str | None:
    """Return what is wrong with a signature, or None where it is good.

    The document is held to the one form that `sign` gives it, so that no byte of it can be another.

    Args:
        document: what `sign` returned.
        content: what was signed.
        key: that it must have been made with; None for the one it names, whose owner is then not known.
    """
    try:
        body = json.loads(document)
        named, signature = _public(body["key"]), bytes.fromhex(body["signature"])
        if document != _written(named, signature):
            return "it is not in the form that a signature is written in"
    except (ValueError, TypeError, KeyError, RecursionError):
        return "it holds no Ed25519 signature"
    if key is not None and _pem(key) != _pem(named):
        return "it was made with another key than the one given"
    try:
        named.verify(signature, content)
    except InvalidSignature:
        return "the signature does not fit what it signs"
    return None


def _written(key: Ed25519PublicKey, signature: bytes) -> bytes:
    body = {"kind": KIND, "schema": SCHEMA, "algorithm": ALGORITHM, "key": _pem(key), "signature": signature.hex()}
    return (json.dumps(body, indent=1) + "\n").encode()


def _pem(key: Ed25519PublicKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def _public(text: str) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(text.encode())
    except UnsupportedAlgorithm as error:
        raise ValueError("unsupported") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("another kind of key")
    return key


def _read(path: Path) -> str:
    try:
        with Path(path).open("rb") as file:
            content = file.read(LONGEST + 1)
    except OSError as error:
        raise UserError(f"a key file {path}", error.strerror or str(error), "check the path") from error
    if len(content) > LONGEST:
        raise UserError(f"a key file {path}", f"one of more than {LONGEST} bytes", "name the right file")
    return content.decode("utf-8", "replace")
