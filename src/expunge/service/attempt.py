"""One attempt for a batch of requests on one model: every step is in the ledger before the next begins.

started → (a version is made and written whole) → unlearned → (measured) → verified → (``current`` is switched) →
deployed; or failed, whereupon the new version is destroyed and the one that is served stays. A process that is killed
leaves an attempt without an end: `recover` switches to what was verified, and fails the rest.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from expunge import folders
from expunge.errors import ExpungeError, UserError
from expunge.files import digest
from expunge.folders import Folder
from expunge.ledger import Entry, Status
from expunge.ledger.steps import How
from expunge.service import facts
from expunge.service.lineage import lineage
from expunge.service.made import Made
from expunge.service.measure import Measured, measure
from expunge.service.outcome import Outcome
from expunge.service.site import Site
from expunge.service.targets import Target
from expunge.service.workspace import check_files, digests

log = logging.getLogger(__name__)
INTERRUPTED = "the process that worked on it was interrupted"
REMEDY = "Take other settings of the method in [method], or the route retrain; the served model is as it was."


def attempt(
    site: Site,
    folder: Folder,
    how: How,
    batch: Sequence[Target],
    work: Callable[[Site, Folder, Sequence[Target]], Made],
) -> Outcome:
    """Fulfil a batch on one model, or leave everything as it was.

    Args:
        site: the model.
        folder: the version that is served.
        how: ``edit`` or ``retrain``.
        batch: requests, each with samples to forget.
        work: makes the new version.

    Returns:
        What came of it.

    Raises:
        UserError: a request may not be started, as one that is held since.
    """
    ids = [t.request.id for t in batch]
    version = f"v{site.ledger.head().seq + 1:06d}"  # above that of every attempt before
    start = {"how": how, "version": version, "batch": len(batch)}
    _record(site, ids, "started", [start | {"samples": len(t.ids) + len(t.gone)} for t in batch])
    try:
        made = work(site, folder, batch)
        if made.idle:
            return fail(site, ids, how, version, made.idle, {"changed": 0.0})
        _write(site, version, made, batch, how)
        found = _measure(site, made, set().union(*(t.texts for t in batch)))
        if found.missed:
            sentence = " ".join(found.missed)
            return fail(site, ids, how, version, sentence, {"bounds": found.body["bounds"], "remedy": REMEDY})
        so_far = made.body["so_far"]
        _record(site, ids, "verified", {"how": how, "version": version, **found.body, "so_far": so_far})
    except Exception as error:
        failed = fail(site, ids, how, version, str(error), {"error": type(error).__name__}, kept(error, batch))
        if not isinstance(error, ExpungeError):
            raise
        return failed
    return deploy(site, ids, how, version)


def _record(site: Site, ids: Sequence[str], step: Any, bodies: dict[str, Any] | list[dict[str, Any]]) -> None:
    each = bodies if isinstance(bodies, list) else [bodies] * len(ids)
    site.ledger.record_all([Entry(i, step, body, site.name) for i, body in zip(ids, each, strict=True)])


def _write(site: Site, version: str, made: Made, batch: Sequence[Target], how: How) -> None:
    """Keep the new version whole, remember what it forgot, and record both."""
    path = site.space.version(site.name, version)
    record = made.record | {"requests": [t.request.id for t in batch], "version": version}
    folders.write(path, made.place, made.model, made.state, record, {}, overwrite=False)
    site.space.clear_work(site.name)
    body = made.body | {"how": how, "version": version, "environment": facts.environment(), "files": digests(path)}
    body |= {"requests": len(batch), "note": made.record.get("note", "")}
    body |= {"first": digest(site.space.begun(site.name)["files"])}
    marks = [site.remember(t) for t in batch]
    own = [{"samples": len(t.ids) + len(t.gone), "not_at_hand": len(t.gone) or t.unknown} for t in batch]
    each = [body | mine | {"marks": mark} for mine, mark in zip(own, marks, strict=True)]
    _record(site, [t.request.id for t in batch], "unlearned", each)


def _measure(site: Site, made: Made, secret: Collection[str]) -> Measured:
    return measure(
        made.place,
        made.before,
        made.after,
        made.name,
        train=made.train,
        scenario=made.scenario,
        runtime=site.runtime,
        seed=site.seed,
        secret=secret,
        classes=made.classes,
    )


def fail(
    site: Site,
    ids: Sequence[str],
    how: How,
    version: str,
    sentence: str,
    body: dict[str, Any],
    reason: str = "",
) -> Outcome:
    """End an attempt that came to nothing: its version is destroyed, its marks are taken back.

    Args:
        site: the model.
        ids: of the requests.
        how: of the attempt.
        version: of the attempt.
        sentence: why, for the operator.
        body: what else is recorded.
        reason: what the ledger keeps instead of a sentence that may name samples.

    Returns:
        The outcome.
    """
    if site.space.current(site.name) == version:  # switched to, and then damaged before that was recorded
        site.space.switch(site.name, lineage(site.ledger, site.name).served)
    site.space.destroy(site.name, version)
    site.space.clear_work(site.name)
    _record(site, ids, "failed", {"how": how, "version": version, "reason": reason or sentence, **body})
    remedy = body.get("remedy", "")
    return Outcome(site.name, tuple(ids), "failed", how=how, text=f"{sentence} {remedy}".strip())


def kept(error: Exception, batch: Sequence[Target]) -> str:
    """Return what the ledger keeps of an error: what was expected and what to do, for what was got may name samples."""
    name = type(error).__name__
    if not isinstance(error, UserError):
        return f"{name}: its sentence may name samples, and is not kept"
    text = f"Expected {error.expected}: {error.remedy}."
    texts = (t for target in batch for t in target.texts if t in text)
    if any(re.search(rf"(?<!\w){re.escape(t)}(?!\w)", text) for t in texts):
        return f"{name}: its sentence names samples, and is not kept"
    return text


def deploy(site: Site, ids: Sequence[str], how: How, version: str) -> Outcome:
    """Serve a verified version, and record that."""
    old = site.space.current(site.name)
    site.space.switch(site.name, version)
    record = Folder.open(site.space.served(site.name), site.place.file, site.place.data_dir).record
    body = {"how": how, "version": version, "weights": record["weights"], "replaced": old if old != version else None}
    _record(site, ids, "deployed", body)
    what = "retrained" if how == "retrain" else "edited"
    return Outcome(site.name, tuple(ids), "deployed", how=how, version=version, text=f"{what}: {version} is served")


def recover(site: Site) -> list[Outcome]:
    """End what a killed process left: serve what was verified, fail every other attempt; call it under the lock.

    Afterwards ``current`` names the version that the ledger says is served.

    Returns:
        An outcome for each attempt.

    Raises:
        CorruptArtefact: that version is not there.
    """
    site.space.tidy(site.name)
    left: dict[str, list[Status]] = {}
    for status in site.ledger.open_requests():
        model = status.models.get(site.name)
        if model is not None and model.running:
            left.setdefault(str(model.version), []).append(status)
    ended = [_ended(site, version, found) for version, found in left.items()]
    site.space.switch(site.name, lineage(site.ledger, site.name).served)
    return ended


def _ended(site: Site, version: str, found: Sequence[Status]) -> Outcome:
    ids, model = [s.request for s in found], found[0].models[site.name]
    how: How = model.how or "edit"
    if model.step == "verified":
        written = [e for e in site.ledger.history(ids[0]) if e.model == site.name and e.step == "unlearned"][-1]
        with contextlib.suppress(UserError):  # a version that was damaged meanwhile is made again
            check_files(site.space.version(site.name, version), written.body["files"])
            return deploy(site, ids, how, version)
    log.info("An attempt on %s was interrupted (%s): it is made again.", site.name, version)
    return fail(site, ids, how, version, INTERRUPTED, {"interrupted": True})


def interrupted(site: Site, status: Status) -> bool:
    """Return whether the last attempt of a request failed for no fault of its own."""
    last = next((e for e in reversed(site.ledger.history(status.request)) if e.model == site.name), None)
    return last is not None and last.step == "failed" and last.body.get("interrupted") is True
