"""What the person who asked is told: when a request was fulfilled, what it removed, what was checked, what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from expunge.exact.book import Book
from expunge.files import jsonable

PURGED, NONE, OUTSIDE = "purged", "not applicable", "outside our control"
LEVELS = {
    "E0, provenance": (
        "holds for what is served: no served number is a function of a deleted sample, by the manifest; the audit of "
        "this receipt checked it"
    ),
    "E1, replay": (
        "can be checked: training a served stage again without the deleted samples, with the same slices and seeds, "
        "gives the same bits on a CPU with the same versions of the libraries"
    ),
    "E2, distribution": (
        "holds against the procedure 'train without the sample, then withhold its slice and those behind it', for "
        "requests that do not depend on the published models: the shorter depth itself shows that a deletion hit "
        "the slice"
    ),
}
CAVEATS = (
    "Of the public weights that training began from nothing is removed: a deleted sample that was in their training "
    "data still is.",
    "Whoever holds both the model before and the model after can look for the difference: destroy every copy of the "
    "weights before.",
)


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The receipt of one request.

    Args:
        request: its number, from 1.
        samples: how many were deleted.
        digest: of the keyed hashes of their ids, as in the manifest.
        asked: when it was on the disk, UTC.
        switched: when the first prediction could be answered without them; None after a kill, which ends all answers.
        done: when their weights were gone from the disk.
        revoked: stages that read one of their slices, and were removed.
        depths: of each shard, leading stages served before and after.
        lost: shards that have nothing left to serve.
        retrain: whether the failure rule asks for training anew.
        audit: what was checked, and what came out.
        residues: by kind of trace, whether it is purged, not applicable or outside our control, and why.
        levels: what holds, by level of guarantee.
        caveats: what does not follow from it.
        manifest: hash of the manifest's last entry.
    """

    request: int
    samples: int
    digest: str
    asked: str
    switched: str | None
    done: str
    revoked: tuple[str, ...]
    depths: tuple[tuple[int, int], ...]
    lost: tuple[int, ...]
    retrain: bool
    audit: Mapping[str, Any]
    residues: Mapping[str, str]
    levels: Mapping[str, str]
    caveats: tuple[str, ...]
    manifest: str

    def to_json(self) -> dict[str, Any]:
        """Return the receipt as JSON values."""
        return jsonable(asdict(self))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Receipt:
        """Return what `to_json` gave."""
        pairs = tuple((int(a), int(b)) for a, b in body["depths"])
        lists = {name: tuple(body[name]) for name in ("revoked", "lost", "caveats")}
        return cls(**{**body, **lists, "depths": pairs})


def depths(book: Book) -> tuple[int, ...]:
    """Return how many leading stages each shard serves, 0 where none is left."""
    return tuple(0 if served is None else served[1] for served in book.plan())


def residues(book: Book, revoked: Sequence[str]) -> dict[str, str]:
    """Return what became of each place where a deleted sample may have left a trace.

    Args:
        book: the record.
        revoked: stages that the request removed.
    """
    lora, many = book.config["kind"] == "s3t", f"{PURGED}: the files of {len(revoked)} stages"
    files = many if revoked else f"{NONE}: no stage that was live had read their slices"
    nothing, whole = f"{NONE}: this server keeps none", f"{NONE}: stages are whole networks"
    return {
        "adapters": files if lora else whole,
        "heads": (files if book.config.get("head") != "frozen" else f"{NONE}: the head is frozen") if lora else whole,
        "whole networks": f"{NONE}: the backbone is not trained" if lora else files,
        "optimiser states": nothing,
        "prediction caches": nothing,
        "features kept of samples": nothing,
        "answers under way": f"{PURGED}: the last one by the old members had ended before this receipt",
        "hashes of content": f"{PURGED}: set to 0 in the table; keyed hashes of the ids stay, to refuse them later",
        "states the store was made from": f"{OUTSIDE}: destroy the state and weights that prepare wrote",
        "backups": f"{OUTSIDE}: destroy the copies of this folder from before",
        "other replicas": f"{OUTSIDE}: delete in each folder that is served elsewhere",
        "data sets and their caches": f"{OUTSIDE}: this server holds no training data",
        "logs and experiment trackers": f"{OUTSIDE}: this server writes no sample to them",
        "models distilled from the answers": OUTSIDE,
    }
