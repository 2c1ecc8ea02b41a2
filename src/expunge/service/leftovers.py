"""What still holds what was forgotten: replaced versions, checkpoints, half-written folders, older outputs.

What is in the workspace, a purge destroys. What is outside is somebody else's to decide on: it is listed with a
sentence. Backups, copies and weights that were handed out before cannot be seen from here.
"""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from expunge.errors import UserError
from expunge.files import there, writable
from expunge.folders import NOTE
from expunge.ledger import Ledger
from expunge.ledger.database import KEYS, LEDGER
from expunge.ledger.pack import EVENTS
from expunge.project import Project
from expunge.service.lineage import lineage
from expunge.service.workspace import Workspace
from expunge.zoo import hub

DEPTH = 3  # folders below the project's that are looked into
HALF = re.compile(r"\.(.+)\.[a-z0-9_]{8}")  # what `expunge.files.atomic` names the folder it writes in
OWN = {"models", "undo", "work", "lock"}
HOME = {"versions", "current", "lock", "begun.json", "rollback.json"}
WEIGHTS = {".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".npy", ".npz", ".pkl", ".h5", ".onnx"}
VERSION = re.compile(r"v[0-9]{6,}")
PAGES = {".json", ".html", ".txt", ".csv", ".jsonl", ".md"}
LARGEST = 2**26  # bytes of a file that is searched for names
SHORTEST = 6  # characters of a name for which an unknown file in the workspace is destroyed
BREAK = re.compile(r"[\s\"'<>,;()\[\]{}|\\\x00]+")  # what stands between words of documents and pages
SEALED = re.compile(r"(.+)-(v[0-9]{6,})\.sealed")


@dataclass(frozen=True)
class Leftover:
    """Something that holds, or may hold, what was forgotten.

    Args:
        path: the file or folder.
        kind: ``version``, ``archive``, ``checkpoint``, ``half-written``, ``original``, ``weights``, ``state``,
            ``prepared``, ``forgotten``, ``audit``, ``benchmark``, ``cache``, ``named``, ``served`` or ``unknown``.
        why: a sentence for the operator.
        inside: whether it is in the workspace.
    """

    path: Path
    kind: str
    why: str
    inside: bool

    @property
    def destroyed(self) -> bool:
        """Whether a purge destroys it: it is in the workspace, and nobody else's."""
        return self.inside and self.kind not in ("unknown", "served")


def leftovers(space: Workspace, ledger: Ledger, place: Project, name: str) -> list[Leftover]:
    """Return what holds or may hold what was forgotten, in the workspace and beside it.

    Args:
        space: the workspace.
        ledger: the requests.
        place: the model's project.
        name: of the model.

    Returns:
        What was found: first what a purge destroys, then what is left to the operator.
    """
    return [*inside(space, ledger, name), *outside(space, ledger, place)]


def inside(space: Workspace, ledger: Ledger, name: str) -> list[Leftover]:
    """Return what is in the workspace, without the served version and the one that is being made.

    Call it under the model's lock: what another process is writing would pass for half-written.

    Args:
        space: the workspace.
        ledger: the requests.
        name: of the model.

    Returns:
        What was found; what stands at the top of a folder that holds a project, too, is nobody's to destroy.
    """
    found = [*_versions(space, ledger, name), *_undo(space, name), *_hidden(space, name), *_work(space, name)]
    return [*found, *_strays(space, ledger, name)]


def destroy(leftover: Leftover) -> None:
    """Remove what is in the workspace; see `expunge.service.undo` for what removal means.

    Raises:
        UserError: it is outside, or nobody knows what it is.
        Unwritable: it cannot be removed.
    """
    if not leftover.destroyed:
        raise UserError("something that the service wrote in its workspace", str(leftover.path), "remove it yourself")
    with writable(leftover.path):
        if leftover.path.is_dir() and not leftover.path.is_symlink():
            shutil.rmtree(leftover.path)
        else:
            leftover.path.unlink(missing_ok=True)


def _versions(space: Workspace, ledger: Ledger, name: str) -> Iterator[Leftover]:
    used = {lineage(ledger, name).served, space.current(name)}
    for status in ledger.open_requests():
        model = status.models.get(name)
        if model is not None and model.running and model.version is not None:
            used.add(model.version)
    current = space.current(name)
    if current is not None and _Names(ledger, SHORTEST).stands_in(space.version(name, current)):
        why = "The served version names a sample or subject of a request in the clear, in its record or canaries."
        yield Leftover(space.version(name, current), "served", why, True)
    for version in space.versions(name):
        if version not in used:
            why = "A version that is not served, in the clear: its weights were learned from what was forgotten."
            yield Leftover(space.version(name, version), "version", why, True)


def _undo(space: Workspace, name: str) -> Iterator[Leftover]:
    for path in _entries(space.undo):
        match = SEALED.fullmatch(path.name)
        if match and _mine(space, name, match[1]):
            why = "A replaced version, encrypted, that a rollback can still bring back."
            yield Leftover(path, "archive", why, True)


def _hidden(space: Workspace, name: str) -> Iterator[Leftover]:
    """Yield what a killed process left half written or half removed."""
    why = "Left half written or half removed by a process that was killed."
    for folder in (space.home(name), space.home(name) / "versions"):
        yield from (Leftover(p, "half-written", why, True) for p in _entries(folder) if p.name[0] == ".")
    for path in _entries(space.undo):
        match = HALF.fullmatch(path.name)
        ours = SEALED.fullmatch(match[1]) if match else None
        if ours and _mine(space, name, ours[1]):
            yield Leftover(path, "half-written", why, True)


def _work(space: Workspace, name: str) -> Iterator[Leftover]:
    why = "Checkpoints of unfinished work: weights and optimiser states learned from what was forgotten, and caches."
    for path in _entries(space.folder / "work"):
        if _mine(space, name, path.name) and (path.is_file() or any(_entries(path))):
            yield Leftover(path, "checkpoint", why, True)


def _mine(space: Workspace, name: str, owner: str) -> bool:
    """Return whether something is of a model, or of one that is no longer there."""
    return owner == name or owner not in space.models


def _strays(space: Workspace, ledger: Ledger, name: str) -> Iterator[Leftover]:
    """Yield what stands in the workspace and is neither the service's own nor an evidence pack."""
    home, root = space.home(name), space.folder
    shared = any(p.suffix in (".toml", ".py") or p.name == ".git" for p in _entries(root))
    places = [p for p in _entries(home) if p.name not in HOME]
    places += [p for p in _entries(home / "versions") if not VERSION.fullmatch(p.name)]
    places += [p for p in _entries(space.undo) if not SEALED.fullmatch(p.name)]
    top = [p for p in _entries(root) if p.name not in OWN and not p.name.startswith((LEDGER, KEYS))]
    places = [p for p in [*places, *top] if p.name[0] != "." or (p in top and _half(p))]
    named = _Names(ledger, SHORTEST) if places else None
    for path in places:
        kind = _kind(path) or ("named" if named is not None and named.stands_in(path) else None)
        if kind is None or (shared and path in top):
            why = "Not written by the service: look into it, and remove it where it holds what was forgotten."
            yield Leftover(path, "unknown", why, True)
        elif kind != "pack":
            yield Leftover(path, kind, f"{KINDS[kind]} It stands in the workspace.", True)


KINDS = {
    "half-written": "Left half written by a process that was killed.",
    "prepared": "Written by expunge prepare: weights and state from before any request.",
    "forgotten": "Written by expunge forget: weights and state of another line of requests, and a record.",
    "audit": "Written by expunge audit: a report that names who was forgotten, or shows samples.",
    "benchmark": "A store of experiments: models and outputs of samples, also of those that were forgotten.",
    "state": "A state of a method: sums or tensors computed from the training data.",
    "original": "The trained weights that the project file names: they were learned from what was forgotten.",
    "weights": "Weights, masks or arrays: what they were computed from cannot be told.",
    "checkpoint": "Checkpoints of unfinished work: weights and optimiser states.",
    "cache": "Copies of the data set that the datasets library keeps for the whole machine.",
    "named": "It names a sample or subject of a request in the clear.",
}


def _kind(path: Path, weights: bool = True) -> str | None:
    """Return what a file or folder is, by what stands in it; with ``weights``, tensors of any kind below it count."""
    if path.is_file():
        return "weights" if weights and path.suffix.lower() in WEIGHTS else None
    if _half(path):
        return "half-written"
    if (path / EVENTS).is_file():
        return "pack"
    if (path / NOTE).is_file() and (step := _document(path / NOTE).get("step")) in ("prepare", "forget"):
        return "prepared" if step == "prepare" else "forgotten"
    for mark, key, kind in (("store.json", "schema", "benchmark"), ("audit.json", "", "audit")):
        if (path / mark).is_file() and (not key or key in _document(path / mark)):
            return kind
    if {"digests", "digest"} <= _document(path / "manifest.json").keys():
        return "state"
    found = weights and any(p.suffix.lower() in WEIGHTS for p in path.rglob("*") if p.is_file())
    return "weights" if found else None


def _half(path: Path) -> bool:
    """Return whether something is a folder that `expunge.files.atomic` writes in."""
    match = HALF.fullmatch(path.name)
    return match is not None and path.is_dir() and {p.name for p in _entries(path)} <= {match[1], "replaced"}


def _document(path: Path) -> dict[str, Any]:
    """Return a JSON object, an empty one where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def outside(space: Workspace, ledger: Ledger, place: Project) -> list[Leftover]:
    """Return what is beside the workspace: outputs and weights of the project, its checkpoints, caches.

    The project's folder is looked through `DEPTH` folders deep.

    Args:
        space: the workspace.
        ledger: the requests, whose ids and subjects are looked for in records and reports.
        place: the model's project.

    Returns:
        What was found, by path.
    """
    found = {p.resolve(): Leftover(p, kind, f"{KINDS[kind]} {_decide(kind)}", False) for p, kind in _named(place)}
    names = _Names(ledger)
    for path in _walk(place.folder, space.folder, DEPTH):
        kind = _kind(path, weights=False)
        if kind in (None, "pack", "state") or path.resolve() in found:
            continue
        known = names.stands_in(path)
        if kind is not None and (known or kind != "audit"):
            says = f" {KINDS['named']}" if known else ""
            found[path.resolve()] = Leftover(path, kind, f"{KINDS[kind]}{says} {_decide(kind)}", False)
    return sorted(found.values(), key=lambda leftover: str(leftover.path))


def _decide(kind: str) -> str:
    after = {
        "original": "after the model in service replaced it everywhere",
        "prepared": "unless you start anew from it",
    }
    return (
        f"It is outside the workspace and stays: destroy it yourself {after.get(kind, 'when you need it no longer')}."
    )


def _named(place: Project) -> Iterator[tuple[Path, str]]:
    """Yield what the project file names."""
    config = place.config
    named: list[tuple[str | None, str]] = [
        (config.requests.start, "prepared"), (config.runtime.workdir, "checkpoint"), (config.model.weights, "original"),
    ]  # fmt: skip
    for text, kind in named:
        path = None if text in (None, "train") else place.folder / str(text)
        if path is not None and there(path) is not None and (path.is_file() or any(_entries(path))):
            yield path, kind
    named_hub = hub(config.data.name or "")
    cache = Path(datasets.config.HF_DATASETS_CACHE) / named_hub.replace("/", "___") if named_hub else None
    if cache is not None and cache.is_dir():
        yield cache, "cache"


def _walk(folder: Path, skip: Path, depth: int) -> Iterator[Path]:
    """Yield the folders below a folder, not those below one that is something by itself."""
    for path in _entries(folder):
        if path.is_symlink() or not path.is_dir() or path.resolve() == skip.resolve():
            continue
        if path.name[0] == "." and not _half(path):
            continue
        yield path
        if depth > 1 and _kind(path, weights=False) is None:
            yield from _walk(path, skip, depth - 1)


class _Names:
    """What requests name samples and subjects by, looked for in files.

    Args:
        ledger: the requests; of those that were erased, ids are known by their marks alone.
        least: characters of a name that is looked for.
    """

    def __init__(self, ledger: Ledger, least: int = 1) -> None:
        self._ledger, self._least = ledger, least
        asked = (ledger.request(s.request) for s in ledger.all() if not s.erased and s.kind != "class")
        found = {value for request in asked for value in request.values if len(value) >= least}
        self._words = {value for value in found if not BREAK.search(value)}
        self._texts = found - self._words

    def stands_in(self, path: Path) -> bool:
        """Return whether a file, or a document or page in a folder, holds a name in the clear."""
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.suffix in PAGES and p.is_file()]
        return any(self._in(file) for file in files if file.stat().st_size <= LARGEST)

    def _in(self, file: Path) -> bool:
        text = html.unescape(file.read_bytes().decode("utf-8", "replace"))
        whole = _strings(text) if file.suffix == ".json" else []
        words = {*whole, *(word.strip(".:") for word in BREAK.split(text))}
        if not words.isdisjoint(self._words) or any(t in text or t in whole for t in self._texts):
            return True
        return bool(self._ledger.remembered([word for word in sorted(words) if len(word) >= self._least]))


def _strings(text: str) -> list[str]:
    """Return all texts of a JSON document, keys included; none where it is not one."""
    try:
        rest, found = [json.loads(text)], list[str]()
    except (ValueError, RecursionError):
        return []
    while rest:
        value = rest.pop()
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, dict):
            rest.extend((*value, *value.values()))
        elif isinstance(value, list):
            rest.extend(value)
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError:  # a folder of another user: nothing of it can be said
        return []
