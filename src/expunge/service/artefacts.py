"""What is wrong with the stored versions of models: files held to the digests in the ledger, links to its events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from expunge.errors import CorruptArtefact, UserError
from expunge.files import digest, there
from expunge.ledger import Ledger, Problem
from expunge.service import sealed
from expunge.service.archives import archived
from expunge.service.lineage import Line, lineage
from expunge.service.workspace import FIRST, Workspace, digests

TRIES = 3  # readings, while other processes write


def check(space: Workspace, ledger: Ledger) -> list[Problem]:
    """Hold every stored version, encrypted ones included, to what the ledger says of it.

    It takes no lock, and looks again where the ledger grew meanwhile.

    Args:
        space: where versions are.
        ledger: the requests.

    Returns:
        The problems: a file that is missing, altered or not the version's; a served version that is not the ledger's;
        a replaced one that is neither kept nor recorded as destroyed, or that does not open.
    """
    for _ in range(TRIES):
        head = ledger.head()
        models = {event.model for event in ledger.events() if event.step == "unlearned" and event.model is not None}
        found = [problem for name in sorted(models | {*space.models}) for problem in _model(space, ledger, name)]
        if not found or ledger.head() == head:
            break
    return found


def _model(space: Workspace, ledger: Ledger, name: str) -> Iterator[Problem]:
    if there(space.home(name)) is None:
        yield Problem("model", f"the folder of model {name}", "missing")
        return
    line = lineage(ledger, name)
    if _first(ledger, name) is None and not line.requests and not space.has_begun(name):
        return  # the first version is being copied, or was when a process was killed
    try:
        recorded = _recorded(space, ledger, name)
    except UserError as error:
        yield Problem("model", f"model {name}", str(error))
        return
    if _first(ledger, name) not in (None, digest(recorded.get(FIRST))):
        yield Problem("file", f"models/{name}/begun.json", "altered: it names other files than the events do")
    yield from _served(space, ledger, name, line)
    for version in space.versions(name):
        yield from _version(space, ledger, name, version, recorded)
    for version in line.versions[:-1]:
        yield from _kept(space, ledger, name, version, line, recorded.get(version, {}))


def _recorded(space: Workspace, ledger: Ledger, name: str) -> dict[str, dict[str, str]]:
    """Return the digests of the files of each version, as they were recorded when it was made."""
    found = {FIRST: dict(space.begun(name)["files"])} if there(space.home(name) / "begun.json") else {}
    for event in ledger.events():
        files = event.body.get("files")
        if event.model == name and event.step == "unlearned" and isinstance(files, dict):
            found[str(event.body.get("version"))] = files
    return found


def _first(ledger: Ledger, name: str) -> str | None:
    """Return the digest of the first version's files by name, as the events have it; None before the first of them."""
    made = (event for event in ledger.events(1, ("unlearned",)) if event.model == name)
    return next((str(event.body["first"]) for event in made if "first" in event.body), None)


def _served(space: Workspace, ledger: Ledger, name: str, line: Line) -> Iterator[Problem]:
    where = f"the link models/{name}/current"
    try:
        current = space.current(name)
    except CorruptArtefact as error:
        yield Problem("current", where, str(error))
        return
    if current != line.served and current not in _running(ledger, name):
        yield Problem("current", where, f"names {current}, and the ledger says that {line.served} is served")
    if current is not None and there(space.version(name, current)) != "a folder":
        yield Problem("version", f"models/{name}/versions/{current}", "missing, and it is the one that is served")


def _running(ledger: Ledger, name: str) -> set[str]:
    """Return the versions that are being made, or were when a process was killed."""
    found = (status.models.get(name) for status in ledger.open_requests())
    return {str(model.version) for model in found if model is not None and model.running}


def _version(
    space: Workspace, ledger: Ledger, name: str, version: str, recorded: Mapping[str, Mapping[str, str]]
) -> Iterator[Problem]:
    place = f"models/{name}/versions/{version}"
    if version not in recorded:
        if version not in _running(ledger, name):
            yield Problem("version", place, "no event says that it was made")
        return
    now, files = digests(space.version(name, version)), recorded[version]
    for file in sorted({*now, *files}):
        if now.get(file) != files.get(file):
            got = "missing" if file not in now else "altered" if file in files else "not one of the version's files"
            yield Problem("file", f"{place}/{file}", got)


def _kept(
    space: Workspace, ledger: Ledger, name: str, version: str, line: Line, files: Mapping[str, str]
) -> Iterator[Problem]:
    """Yield what is wrong with a replaced version."""
    path = archived(space, name, version)
    where = f"undo/{path.name}"
    if there(path) is None:
        if there(space.version(name, version)) is None and version not in line.purged:
            yield Problem("archive", where, "missing, and no event says that it was destroyed")
        return
    try:
        found = sealed.header(path)
        key = ledger.keys.find(str(found.about.get("key")))
        if key is None:
            yield Problem("archive", where, "its key is gone")
        elif found.about.get("version") != version or found.about.get("model") != name or found.files != files:
            yield Problem("archive", where, "of another version than its name says")
        else:
            sealed.check(path, key)
    except (UserError, OSError) as error:
        yield Problem("archive", where, str(error))
