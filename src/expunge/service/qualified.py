"""What a qualification of the method says of an edit, recorded when the edit is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.folders import Folder
from expunge.project import Project
from expunge.qualify.record import Cited, Qualification, data_digest, uncovered
from expunge.service.site import Site
from expunge.service.targets import Target, classes
from expunge.stamp import unchanged


def load(place: Project) -> Qualification | None:
    """Return the record that the project file names, None where it names none.

    Raises:
        UserError: the file is not there.
        CorruptArtefact: it is no whole record.
        Incompatible: it is another document, or of a newer version.
    """
    named = place.config.requests.qualification
    return Qualification.load(place.folder / named) if named else None


def cite(
    site: Site, folder: Folder, settings: Mapping[str, Any], batch: Sequence[Target], samples: int, first: str
) -> dict[str, Any] | None:
    """Return what is recorded with an edit; nobody is named in it.

    Args:
        site: the model, with the record that `load` returned before work began.
        folder: the version that is edited.
        settings: of the method.
        batch: requests that the edit fulfils together.
        samples: that it makes the model forget.
        first: digest of the weights that the first edit since the training started from.

    Returns:
        ``digest``, ``made``, ``covers``, ``expired`` (reasons), ``text`` and ``officer``; None where the project names
        no record.
    """
    record = site.qualification
    if record is None:
        return None
    expired = record.expired(model=first, same_data=_same_data(site, folder, record, first), method=settings)
    found = _cited(record, folder.project, batch, samples, site.counters(folder)["edits"] + 1)
    text, officer = found.text, found.officer
    if expired:
        text = officer = f"The qualification of {record.body['made'][:10]} has expired: {'; '.join(expired)}."
    return {
        "digest": record.digest,
        "made": record.body["made"],
        "covers": found.covers and not expired,
        "expired": list(expired),
        "text": text,
        "officer": officer,
    }


def _cited(record: Qualification, place: Project, batch: Sequence[Target], samples: int, in_row: int) -> Cited:
    """Return what stands for the requests of one edit; those named one by one are one request for all their samples."""
    first = batch[0].request
    if all(t.request.kind == "ids" for t in batch):
        return record.cited(kind="random", n=samples, in_row=in_row)
    if len(batch) > 1 or len(set(first.values)) > 1:
        return uncovered("several people or classes, or some with other samples, were not simulated in one edit")
    return record.cited(kind=first.kind, n=samples, in_row=in_row, target=next(iter(classes(batch, place)), None))


def _same_data(site: Site, folder: Folder, record: Qualification, first: str) -> bool:
    """Return whether the model was trained on the data that was qualified.

    It was where the data at hand is that data, or is but for samples that came in since. It was, too, where the edit
    before was held to the same record, and of what the model has not forgotten nothing is missing or other than when
    the method was prepared: fulfilled requests may be taken out of the data.
    """
    if first not in site.same:  # later in a run there is the same data, less what was forgotten
        site.same[first] = _compared(site, folder, record)
    return site.same[first]


def _compared(site: Site, folder: Folder, record: Qualification) -> bool:
    held, train, wanted = site.holding(folder), folder.project.train, record.body["data"]
    if site.counters(folder)["qualified"] == record.digest and not held.missing and unchanged(folder.state, held.left):
        return True
    if data_digest(train) == wanted:
        return True
    old = [i for i in train.ids if i in held.trained or i in held.gone]
    return 0 < len(old) < len(train) and data_digest(train.subset(old)) == wanted
