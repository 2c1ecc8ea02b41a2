"""Evidence packs: a folder on one request that others can check without a network, the ledger or a model.

A pack holds the events of its request whole and of every other event only the digest of its content, which is all that
the chain needs: it is computed from its first link to its head, and nothing of other requests is shown.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from expunge import __version__
from expunge.errors import CorruptArtefact, UserError
from expunge.files import atomic, canonical, check_free, digest, there
from expunge.ledger import signing
from expunge.ledger.account import account
from expunge.ledger.events import Event, Head, Problem, first, linked

KIND, SCHEMA = "expunge.evidence", 1
CHAIN = "expunge.evidence.events"
MANIFEST, EVENTS, RECORD, SIGNATURE = "manifest.json", "events.json", "record.json", "signature.json"
OWN = frozenset({MANIFEST, EVENTS, SIGNATURE})
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_HEX = re.compile(r"[0-9a-f]{64}")
_TYPES: Mapping[str, Any] = {
    "seq": int, "request": str, "model": str | None, "step": str, "at": str, "actor": str, "body": dict,
    "previous": str, "digest": str, "salt": str, "earlier": int,
}  # fmt: skip


def write(
    folder: Path,
    *,
    request: str,
    ledger: str,
    events: Iterable[Event],
    files: Mapping[str, bytes | str],
    sign: Path | None = None,
    overwrite: bool = False,
) -> Head:
    """Write the evidence pack of one request, whole or not at all.

    Args:
        folder: to write.
        request: whose events are shown; of all others only a digest is.
        ledger: the ledger's own random identity, which the chain begins with.
        events: all events of the ledger, from the first.
        files: what else is in the pack, by plain name, ``record.json`` among them.
        sign: file of an Ed25519 private key to sign the manifest with.
        overwrite: replace a pack that is there.

    Returns:
        The head of the chain that the pack holds.

    Raises:
        UserError: the folder is taken, a name is not plain, there is no event of the request, or the key is unusable.
        CorruptArtefact: the events are no unbroken chain.
    """
    stray = [name for name in files if name in OWN or not _NAME.fullmatch(name)]
    if stray or RECORD not in files:
        got = repr(stray[0]) if stray else "none"
        raise UserError(f"files of plain names, {RECORD} among them", got, "rename or add it")
    check_free(folder, overwrite)
    key = None if sign is None else signing.load_private(sign)
    chain, head = _chain(events, request, ledger)
    content = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
    content[EVENTS] = _listed(chain, request, ledger)
    manifest = _manifest(request, ledger, head, {name: sha256(content[name]).hexdigest() for name in sorted(content)})
    content[MANIFEST] = manifest
    if key is not None:
        content[SIGNATURE] = signing.sign(manifest, key)
    with atomic(folder) as room:
        room.mkdir()
        for name, parts in content.items():
            (room / name).write_bytes(parts)
    return head


def _chain(events: Iterable[Event], request: str, ledger: str) -> tuple[list[dict[str, Any]], Head]:
    """Return the chain as a pack lists it: events of the request, and runs of the digests of others."""
    items: list[dict[str, Any]] = []
    head, mine = Head(0, first(ledger)), False
    for event in events:
        inner = event.inner
        if (event.seq, event.previous) != (head.seq + 1, head.digest) or not event.sound:
            remedy = "run expunge requests verify, and restore the ledger from a copy"
            raise CorruptArtefact(f"event {head.seq + 1} to follow the one before it", f"event {event.seq}", remedy)
        head = event.head
        if event.request == request:
            items.append(event.document())
            mine = True
        elif items and "from" in items[-1]:
            items[-1]["inner"].append(inner)
        else:
            items.append({"from": event.seq, "inner": [inner]})
    if not mine:
        raise UserError(f"a request '{request}' in the ledger", "no event of it", "see expunge requests list")
    return items, head


def _listed(chain: list[dict[str, Any]], request: str, ledger: str) -> bytes:
    """Return the text of ``events.json``, an event or a run of others a line."""
    body = {"kind": CHAIN, "schema": SCHEMA, "ledger": ledger, "request": request}
    lines = ",\n".join(canonical(item) for item in chain)
    return f'{canonical(body)[:-1]},"chain":[\n{lines}\n]}}\n'.encode()


def _manifest(request: str, ledger: str, head: Head, files: Mapping[str, str]) -> bytes:
    now = datetime.now(UTC).replace(microsecond=0).isoformat()
    body = {"kind": KIND, "schema": SCHEMA, "expunge": __version__, "written": now}
    return _sealed({**body, "request": request, "ledger": ledger, "head": str(head), "files": dict(files)})


def _sealed(body: Mapping[str, Any]) -> bytes:
    """Return the text of a manifest with the digest of all else in it."""
    return (json.dumps({**body, "digest": digest(body)}, indent=1) + "\n").encode()


def verify(folder: Path, key: Path | None = None, head: Head | None = None) -> list[Problem]:
    """Check an evidence pack, and name every file or event in it that is not as it was written.

    The manifest holds a digest of every file and of itself; the chain of events is computed from its first link to the
    head that the manifest names; the steps of the request are folded again; the account of the request in
    ``record.json`` is computed again from its events. What `standing` says is how far that goes.

    Args:
        folder: the pack.
        key: file of the Ed25519 public key that it must be signed with.
        head: one that was kept elsewhere, which must be in the chain.

    Returns:
        What is wrong, nothing for a pack in order.

    Raises:
        UserError: there is no such folder, or the key is unusable.
    """
    if there(folder) != "a folder":
        raise UserError(f"an evidence pack, a folder, at {folder}", there(folder) or "nothing there", "check the path")
    public = None if key is None else signing.load_public(key)
    manifest = _read_manifest(folder)
    if isinstance(manifest, Problem):  # nothing that it says of other files could be relied on
        return [manifest]
    found = [*_files(folder, manifest["files"]), *_events(folder, manifest, head)]
    content = _content(folder / SIGNATURE)
    if content is not None:
        flaw = signing.flaw(content, (folder / MANIFEST).read_bytes(), public)
        found += [] if flaw is None else [Problem("signature", SIGNATURE, flaw)]
    elif public is not None:
        found.append(Problem("signature", SIGNATURE, "there is none, though a key was given to check it with"))
    return found


def standing(folder: Path, key: Path | None = None, head: Head | None = None) -> str:
    """Return in a sentence what a pack in which `verify` found nothing wrong can be taken to show.

    Args:
        folder: the pack.
        key: as given to `verify`.
        head: as given to `verify`.
    """
    signed = _content(folder / SIGNATURE) is not None
    if signed and key is not None:
        return "Signed with the key that was given: nothing was changed since its owner signed it."
    said = (
        "Signed with a key whose owner this check does not know: give the signer's public key to learn whether it is "
        "the signer's." if signed else "Not signed."
    )  # fmt: skip
    if head is not None:
        return (
            f"{said} The head kept elsewhere is in the chain: the events up to it are those of the ledger, and the "
            "account in record.json follows from the events shown, between which none of the request is left out. "
            "Whether later ones are, the ledger alone can tell: they would look like those of others. What stands "
            "around the account (references, decay, limits, the page) is held by digests only, which whoever can "
            "rewrite the pack can rewrite."
        )
    return (
        f"{said} No head that was kept elsewhere was given. This shows only that nothing was changed by accident: "
        "whoever can rewrite the pack can rewrite its digests."
    )


def _content(path: Path) -> bytes | None:
    """Return the bytes of a plain file, None where there is none that can be read."""
    try:
        return None if path.is_symlink() or not path.is_file() else path.read_bytes()
    except OSError:
        return None


def _read(content: bytes) -> Any:
    """Return a JSON value that has one reading only: no key twice, no number that is none.

    Raises:
        ValueError: it is not such a value.
    """
    try:
        found = json.loads(content, object_pairs_hook=_pairs)
        canonical(found)
    except (ValueError, RecursionError, UserError) as error:
        raise ValueError(str(error)) from error
    return found


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key twice")
    return found


def _read_manifest(folder: Path) -> dict[str, Any] | Problem:
    """Return the manifest, or what is wrong with it; each byte of it is held to the one form it is written in."""
    content = _content(folder / MANIFEST)
    if content is None:
        return Problem("file", MANIFEST, "it is missing, or no plain file that can be read")
    try:
        body = _read(content)
        seal = body.pop("digest")
        if body["kind"] == KIND and isinstance(body["schema"], int) and body["schema"] > SCHEMA:
            return Problem("file", MANIFEST, f"of schema {body['schema']}, which takes a newer expunge to check")
        same = seal == digest(body) and content == _sealed(body)
        if same and body["kind"] == KIND and body["schema"] == SCHEMA:
            Head.parse(body["head"])
            names = body["files"]
            plain = all(
                _NAME.fullmatch(n) and n not in (MANIFEST, SIGNATURE) and _HEX.fullmatch(names[n]) for n in names
            )
            if plain and {EVENTS, RECORD} <= names.keys() and isinstance(body["request"], str):
                return dict(body)
    except (ValueError, TypeError, KeyError, AttributeError, UserError):
        pass
    return Problem("file", MANIFEST, "it was altered: what it says of the pack cannot be relied on")


def _files(folder: Path, wanted: Mapping[str, str]) -> list[Problem]:
    """Return the files that are missing, altered, or not the pack's."""
    found = []
    for name, hashed in wanted.items():
        content = _content(folder / name)
        if content is None:
            found.append(Problem("file", name, "it is missing, or no plain file that can be read"))
        elif sha256(content).hexdigest() != hashed:
            found.append(Problem("file", name, "it was altered: its digest is not the one in the manifest"))
    extra = sorted(set(os.listdir(folder)) - wanted.keys() - {MANIFEST, SIGNATURE})
    return [*found, *(Problem("file", name, "it is not one of the pack's files") for name in extra)]


@dataclass(frozen=True)
class _Links:
    """A chain as far as it could be computed."""

    own: tuple[Event, ...]
    digests: Mapping[int, str]
    problems: tuple[Problem, ...]


def _events(folder: Path, manifest: Mapping[str, Any], anchor: Head | None) -> list[Problem]:
    """Return what is wrong with the chain, with the steps of the request, and with the account made of them."""
    content = _content(folder / EVENTS)
    if content is None:
        return []  # it was named as missing
    try:
        body = _read(content)
        named = (body["kind"], body["schema"], body["ledger"], body["request"])
        if named != (CHAIN, SCHEMA, manifest["ledger"], manifest["request"]):
            return [Problem("chain", EVENTS, "of another ledger, request or kind than the manifest says")]
        links = _computed(body["chain"], body["ledger"], body["request"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return [Problem("chain", EVENTS, "it holds no chain of events")]
    found = list(links.problems)
    head, last = Head.parse(manifest["head"]), max(links.digests)
    if (head.seq, head.digest) != (last, links.digests[last]):
        end = Head(last, links.digests[last])
        found.append(Problem("head", EVENTS, f"the chain ends with {end}, not with the head in the manifest, {head}"))
    if anchor is not None:
        found += _anchored(links.digests, anchor)
    return found or _folded(folder, links.own)


def _computed(chain: Any, ledger: str, request: str) -> _Links:
    """Follow a chain from its first link; an event whose own digests differ from what is computed is named."""
    digests, seq = {0: first(ledger)}, 0
    own, found = list[Event](), list[Problem]()
    for item in chain:
        if "from" in item:
            if item["from"] != seq + 1 or set(item) != {"from", "inner"}:
                raise ValueError("a gap")
            for inner in item["inner"]:
                if not _HEX.fullmatch(inner):
                    raise ValueError("no digest")
                digests[seq + 1] = linked(seq + 1, digests[seq], inner)
                seq += 1
            continue
        event = _event(item)
        where = f"{EVENTS}, event {event.seq}"
        if event.seq != seq + 1:
            found.append(Problem("chain", where, f"it follows event {seq}: events between them are missing"))
            return _Links(tuple(own), digests, tuple(found))
        seq = event.seq
        digests[seq] = linked(seq, digests[seq - 1], event.inner)
        if event.request != request:
            found.append(Problem("event", where, f"of another request, '{event.request}'"))
        elif event.previous != digests[seq - 1]:
            found.append(Problem("chain", where, "the chain before it was altered: it follows another digest"))
        elif event.digest != digests[seq]:
            found.append(
                Problem("event", where, f"it was altered: its digest is not that of its content ({event.step})")
            )
        digests[seq] = event.digest  # so that one alteration is named once
        own.append(event)
    return _Links(tuple(own), digests, tuple(found))


def _event(item: Mapping[str, Any]) -> Event:
    if set(item) != {f.name for f in fields(Event)}:
        raise ValueError("another form")
    if not all(isinstance(item[name], kind) for name, kind in _TYPES.items()) or isinstance(item["seq"], bool):
        raise ValueError("another type")
    return Event(**item)


def _anchored(digests: Mapping[int, str], anchor: Head) -> list[Problem]:
    last = max(digests)
    if anchor.seq > last:
        got = (
            f"the chain ends with event {last}, before event {anchor.seq} of the head that was kept: events are missing"
        )
        return [Problem("head", EVENTS, got)]
    if digests[anchor.seq] != anchor.digest:
        got = f"event {anchor.seq} is not the one of the head that was kept: another chain, or one that was rewritten"
        return [Problem("head", EVENTS, got)]
    return []


def _folded(folder: Path, own: tuple[Event, ...]) -> list[Problem]:
    """Follow the request's own events, fold its steps again, and hold the record's account to them."""
    before = 0
    for event in own:
        if event.earlier != before:
            got = f"event {event.earlier} of the same request, which it follows, is not shown"
            return [Problem("chain", f"{EVENTS}, event {event.seq}", got)]
        before = event.seq
    try:
        told = account(own)
    except UserError as error:
        return [Problem("step", EVENTS, str(error))]
    content = _content(folder / RECORD)
    if content is None:
        return []  # it was named as missing
    try:
        record = _read(content)
        said = record["account"]
    except (ValueError, TypeError, KeyError):
        said = None
    if said is None or canonical(said) != canonical(told):
        return [Problem("record", RECORD, "its account is not the one that follows from the events")]
    return []
