"""The logical record of sharded training: which sample is in which slice, which stage read which slices, what is live.

No weights are kept here. A *stage* is the training at one position of a sequence of slices; it is named by its shard
and the ordered slices up to that position, its *prefix*, so that sequences with a common beginning share stages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge import __version__
from expunge.data import id_hashes
from expunge.errors import CorruptArtefact, ExpungeError, UserError, listing
from expunge.exact.manifest import FIRST, checked, entry
from expunge.files import digest, jsonable
from expunge.tensors import tensor_digest

LIVE, REVOKED, PURGED = "live", "revoked", "purged"
BASE = "base"  # the parent of every first stage: the network before any training on the samples
TENSORS = "stage"  # what the names of stages' tensors in a state begin with
_TABLE = ("id", "at", "gone", "content", "twin")
_REMEDY = "restore the state from a copy, or prepare anew"

Sequences = tuple[tuple[tuple[int, ...], ...], ...]  # by shard: orders of slices
Served = tuple[tuple[int, ...], int]  # an order of slices, and how many of its leading stages are served
Plan = tuple[Served | None, ...]  # by shard


class ExactnessBroken(ExpungeError):
    """What would be served was trained on a deleted sample, or is no longer the record's."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The training at one position of a sequence.

    Args:
        shard: from 0.
        prefix: slices read, in the order they came in; the last one is new in this stage.
        parents: names of what it read besides: `BASE` and the stage before.
        samples: digest of the keyed hashes of the ids it read; see `samples_digest`.
        n: number of samples.
        steps: optimiser steps; 0 where it was left untrained, with too few samples.
        seed: of its training; of the run's seed, shard and prefix alone.
        layers: names of what was trained.
        tensors: digest of the trained tensors; see `tensors_digest`.
        born: requests fulfilled before it was trained: what was deleted in them it did not read.
        status: ``live``, ``revoked`` (a sample it read was deleted) or ``purged`` (and its tensors are dropped).
    """

    shard: int
    prefix: tuple[int, ...]
    parents: tuple[str, ...]
    samples: str
    n: int
    steps: int
    seed: int
    layers: tuple[str, ...]
    tensors: str
    born: int = 0
    status: str = LIVE

    @property
    def name(self) -> str:
        """``shard/prefix``, as in ``1/0-2-1``."""
        return stage_name(self.shard, self.prefix)

    @property
    def live(self) -> bool:
        """Whether it may be served."""
        return self.status == LIVE


def stage_name(shard: int, prefix: Sequence[int]) -> str:
    """Return a stage's name.

    >>> stage_name(1, (0, 2, 1))
    '1/0-2-1'
    """
    return f"{shard}/{'-'.join(map(str, prefix))}"


def tensor_name(stage: str, name: str) -> str:
    """Return what a stage's tensor is called in a state.

    >>> tensor_name("1/0-2", "head.weight")
    'stage/1/0-2/head.weight'
    """
    return f"{TENSORS}/{stage}/{name}"


def samples_digest(hashes: NDArray[np.int64]) -> str:
    """Return the digest of a set of samples, from the keyed hashes of their ids (n,) in any order."""
    return digest(np.sort(hashes).astype("<i8").tobytes())


def tensors_digest(values: Mapping[str, Tensor]) -> str:
    """Return the digest of a stage's tensors by name, in any order."""
    return digest({name: tensor_digest(values[name]) for name in sorted(values)})


@dataclass(frozen=True, eq=False)
class Book:
    """An immutable record: what was prepared, what is deleted, which stages are live, and how it came to that.

    Args:
        config: ``kind``, ``shards``, ``slices``, ``sequences``, ``seed``, ``failure`` and whatever else decides the
            training, as JSON values.
        key: of the hashes of ids.
        id: (N,) int64 keyed hashes of the prepared ids.
        at: (N,) int32, shard·L + slice of each.
        gone: (N,) int32, the number of the request that deleted it, from 1; 0 for those that stay.
        content: (N,) int64 keyed hashes of id and content, 0 once deleted or where not kept.
        twin: (N,) int32, the number of the group of equal inputs it belongs to, −1 for none.
        stages: by name.
        manifest: entries, each with the hash of the one before it.
        requests: fulfilled so far.
    """

    config: Mapping[str, Any]
    key: bytes
    id: NDArray[np.int64]
    at: NDArray[np.int32]
    gone: NDArray[np.int32]
    content: NDArray[np.int64]
    twin: NDArray[np.int32]
    stages: Mapping[str, Stage] = field(default_factory=dict)
    manifest: tuple[Mapping[str, Any], ...] = ()
    requests: int = 0

    @classmethod
    def opened(
        cls,
        config: Mapping[str, Any],
        key: bytes,
        ids: Sequence[str],
        at: NDArray[np.int32],
        content: NDArray[np.int64] | None = None,
        twin: NDArray[np.int32] | None = None,
    ) -> Book:
        """Return the record of samples in slices, before any training.

        Args:
            config: as of the class; sequences as tuples of tuples.
            key: of the hashes of ids.
            ids: of the samples.
            at: (N,) shard·L + slice of each.
            content: (N,) hashes of id and content, or None.
            twin: (N,) numbers of groups of equal inputs, or None.
        """
        hashes = id_hashes(key, ids)
        order = np.argsort(hashes, kind="stable")
        none = np.zeros(len(hashes), np.int32)
        return cls(
            config=jsonable(config),
            key=key,
            id=hashes[order],
            at=at[order].astype(np.int32),
            gone=none,
            content=none.astype(np.int64) if content is None else content[order].astype(np.int64),
            twin=none - 1 if twin is None else twin[order].astype(np.int32),
        )

    @property
    def shards(self) -> int:
        """Shards, m."""
        return int(self.config["shards"])

    @property
    def slices(self) -> int:
        """Slices of each shard, L."""
        return int(self.config["slices"])

    @property
    def sequences(self) -> Sequences:
        """By shard, its orders of slices."""
        return tuple(tuple(tuple(map(int, order)) for order in orders) for orders in self.config["sequences"])

    @property
    def digest(self) -> str:
        """Of everything that decides the training."""
        return digest(dict(self.config))

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return where ids stand in the table.

        Raises:
            UserError: an id is unknown.
            CorruptArtefact: an id stands in several slices.
        """
        hashes = id_hashes(self.key, ids)
        low, high = (np.searchsorted(self.id, hashes, side=side) for side in ("left", "right"))
        unknown = [i for i, some in zip(ids, high > low, strict=True) if not some]
        if unknown:
            raise UserError("ids that were prepared", f"unknown {listing(unknown)}", "take ids that were trained on")
        twice = [i for i, many in zip(ids, high - low > 1, strict=True) if many]
        if twice:
            raise CorruptArtefact("each id in one slice", f"{listing(twice)} in several", _REMEDY)
        return low.astype(np.int64)

    def place(self, ids: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return shard and slice of samples that stay, (n,) each.

        Raises:
            UserError: an id is unknown or already deleted.
            CorruptArtefact: an id stands in several slices.
        """
        rows = self.rows(ids)
        gone = [i for i, request in zip(ids, self.gone[rows], strict=True) if request]
        if gone:
            raise UserError("ids that are still to be deleted", f"already deleted {listing(gone)}", "leave them out")
        at = self.at[rows].astype(np.int64)
        return at // self.slices, at % self.slices

    def inside(self, shard: int, prefix: Iterable[int], after: int | None = None) -> NDArray[np.bool_]:
        """Return which samples of some slices of a shard stay, (N,).

        Args:
            shard: from 0.
            prefix: slices.
            after: requests after which to look; by default all that were fulfilled.
        """
        member = np.isin(self.at, [shard * self.slices + s for s in prefix])
        before = (self.gone > 0) & (self.gone <= (self.requests if after is None else after))
        return member & ~before

    def depth(self, shard: int, order: Sequence[int]) -> int:
        """Return how many leading stages of a sequence are live."""
        for k in range(len(order)):
            stage = self.stages.get(stage_name(shard, order[: k + 1]))
            if stage is None or not stage.live:
                return k
        return len(order)

    def live(self, shard: int) -> list[Served]:
        """Return a shard's sequences with a live stage, the deepest first, equally deep ones in their fixed order.

        A stage that was left untrained, with no sample to read or too few to train on, does not count.
        """
        found = [(order, self.depth(shard, order)) for order in self.sequences[shard]]
        taught = [(o, k) for o, k in found if k and self.stages[stage_name(shard, o[:k])].steps]
        return sorted(taught, key=lambda one: -one[1])

    def plan(self) -> Plan:
        """Return what each shard serves: its deepest live sequence; None where none is left."""
        return tuple(next(iter(self.live(shard)), None) for shard in range(self.shards))

    def dead(self) -> list[int]:
        """Return the shards with samples that stay and nothing left to serve, which training anew could bring back."""
        empty = [shard for shard, served in enumerate(self.plan()) if served is None]
        lost = [shard for shard in empty if any(self.depth(shard, o) < len(o) for o in self.sequences[shard])]
        return [shard for shard in lost if self.inside(shard, range(self.slices)).any()]

    @property
    def failed(self) -> bool:
        """Whether the failure rule asks for retraining: ``all`` shards dead, or the ``first`` of them."""
        return not any(self.plan()) if self.config["failure"] == "all" else bool(self.dead())

    def missing(self, shards: Iterable[int]) -> list[tuple[int, tuple[int, ...]]]:
        """Return the stages of some shards that are not live, each once, by shard and prefix."""
        every = {(n, order[:k]): None for n in shards for order in self.sequences[n] for k in range(1, len(order) + 1)}
        names = {stage: stage_name(*stage) for stage in every}
        return [stage for stage, name in names.items() if name not in self.stages or not self.stages[name].live]

    def after(self, ids: Sequence[str]) -> Book:
        """Return the record after a request: samples deleted, and every stage revoked that read their slices.

        Raises:
            UserError: an id is unknown, already deleted, or stands twice.
            CorruptArtefact: an id stands in several slices.
        """
        if len(set(ids)) != len(ids):
            raise UserError("each id once", "one or more twice", "name each sample once")
        self.place(ids)
        return self.without(self.rows(ids))

    def without(self, rows: NDArray[np.int64]) -> Book:
        """Return the record after a request for the samples in some rows of the table, which are not deleted yet."""
        shards, slices = self.at[rows] // self.slices, self.at[rows] % self.slices
        request = self.requests + 1
        gone, content, twin = self.gone.copy(), self.content.copy(), self.twin.copy()
        gone[rows], content[rows], twin[rows] = request, 0, -1
        hit = set(zip(shards.tolist(), slices.tolist(), strict=True))
        lost = [s for s in self.stages.values() if s.live and any((s.shard, part) in hit for part in s.prefix)]
        stages = {**self.stages, **{s.name: replace(s, status=REVOKED) for s in lost}}
        made = replace(self, gone=gone, content=content, twin=twin, stages=stages, requests=request)
        made = made.noted("request", request=request, samples=samples_digest(self.id[rows]), n=len(rows))
        for stage in lost:
            made = made.noted("revoked", stage=stage.name, request=request, tensors=stage.tensors)
        return made

    def purged(self) -> tuple[Book, list[str]]:
        """Return the record with every revoked stage marked as dropped, and their names."""
        lost = [s for s in self.stages.values() if s.status == REVOKED]
        made = replace(self, stages={**self.stages, **{s.name: replace(s, status=PURGED) for s in lost}})
        for stage in lost:
            made = made.noted("purged", stage=stage.name, request=self.requests)
        return made, [s.name for s in lost]

    def trained(self, stage: Stage) -> Book:
        """Return the record with a stage that was just trained, anew where it was there before.

        Raises:
            ExactnessBroken: it read other samples than those of its slices that stay.
        """
        stage = replace(stage, born=self.requests, status=LIVE)
        reads = self.inside(stage.shard, stage.prefix)
        if stage.n != int(reads.sum()) or stage.samples != samples_digest(self.id[reads]):
            raise ExactnessBroken(f"Stage {stage.name} read other samples than those of its slices that stay.")
        kind = "retrained" if stage.name in self.stages else "trained"
        body = {k: v for k, v in vars(stage).items() if k != "status"}
        versions = {"expunge": __version__, "torch": str(torch.__version__)}
        made = replace(self, stages={**self.stages, stage.name: stage})
        return made.noted(kind, stage=stage.name, **body, config=self.digest, versions=versions)

    def noted(self, kind: str, **body: Any) -> Book:
        """Return the record with one more entry in its manifest."""
        last = self.manifest[-1]["hash"] if self.manifest else FIRST
        return replace(self, manifest=(*self.manifest, entry(last, len(self.manifest), kind, body)))

    def reached(self, plan: Plan) -> list[str]:
        """Return the names of all stages that a plan serves, their parents included, parents first.

        Raises:
            ExactnessBroken: a parent is not in the record.
        """
        found: dict[str, None] = {}
        for shard, served in enumerate(plan):
            if served is not None and served[1]:
                for name in self.line(stage_name(shard, served[0][: served[1]])):
                    found.setdefault(name)
        return list(found)

    def line(self, name: str) -> Iterator[str]:
        """Yield a stage and what it was made from, the first stage first.

        Raises:
            ExactnessBroken: one of them is not in the record.
        """
        if name not in self.stages:
            raise ExactnessBroken(f"Stage {name} is served, and the record does not hold it.")
        for parent in self.stages[name].parents:
            if parent != BASE:
                yield from self.line(parent)
        yield name

    def closure(self, plan: Plan) -> NDArray[np.bool_]:
        """Return which samples any served tensor was trained on, through all its parents, (N,)."""
        found = np.zeros(len(self.id), dtype=np.bool_)
        for name in self.reached(plan):
            stage = self.stages[name]
            found |= self.inside(stage.shard, stage.prefix, after=stage.born)
        return found

    def check(self, plan: Plan | None = None) -> None:
        """Hold what is served to the record.

        Args:
            plan: what is served; by default `plan`.

        Raises:
            ExactnessBroken: a served tensor, or one it was made from, was trained on a deleted sample, is revoked, or
                read other samples than the table says.
        """
        plan = self.plan() if plan is None else plan
        for name in self.reached(plan):
            stage = self.stages[name]
            if not stage.live:
                raise ExactnessBroken(f"Stage {name} is served, and it is {stage.status}.")
            reads = self.inside(stage.shard, stage.prefix, after=stage.born)
            if stage.n != int(reads.sum()) or stage.samples != samples_digest(self.id[reads]):
                raise ExactnessBroken(f"Stage {name} read other samples than the table says.")
        deleted = int((self.closure(plan) & (self.gone > 0)).sum())
        if deleted:
            raise ExactnessBroken(f"What is served was trained on {deleted} deleted samples.")

    def tensors(self) -> dict[str, Tensor]:
        """Return the table as tensors of a state."""
        return {f"slices/{name}": torch.from_numpy(getattr(self, name)) for name in _TABLE}

    def to_json(self) -> dict[str, Any]:
        """Return everything but the table and the manifest as JSON values."""
        stages = [vars(stage) for stage in self.stages.values()]
        body = {"config": self.config, "key": self.key.hex(), "stages": stages, "requests": self.requests}
        plain: dict[str, Any] = jsonable(body)
        return plain

    @classmethod
    def from_json(
        cls, body: Mapping[str, Any], manifest: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]
    ) -> Book:
        """Return what `to_json`, `manifest` and `tensors` say.

        Raises:
            CorruptArtefact: something is missing or of another kind, or the manifest's chain is broken.
        """
        try:
            table: dict[str, Any] = {name: tensors[f"slices/{name}"].numpy() for name in _TABLE}
            rows = [{**s, **{n: tuple(s[n]) for n in ("prefix", "parents", "layers")}} for s in body["stages"]]
            stages = {s.name: s for s in (Stage(**row) for row in rows)}
            key, requests = bytes.fromhex(body["key"]), int(body["requests"])
            made = cls(dict(body["config"]), key, **table, stages=stages, requests=requests)
            checks = (made.shards, made.slices, made.sequences, made.digest)
        except (KeyError, TypeError, ValueError) as error:
            got = f"something else ({type(error).__name__}: {error})"
            raise CorruptArtefact("a whole record of slices and stages", got, _REMEDY) from error
        lengths = {len(column) for column in table.values()}
        if len(lengths) > 1 or len(checks[2]) != made.shards or not bool((np.diff(made.id) >= 0).all()):
            raise CorruptArtefact("a whole table of slices", "columns that do not belong together", _REMEDY)
        made = replace(made, manifest=checked(manifest))
        made._agree()
        return made

    def _agree(self) -> None:
        """Refuse stages that are not those of the manifest: neither may be ahead of the other.

        Raises:
            CorruptArtefact: names the stage.
        """
        found: dict[str, tuple[str, str]] = {}
        for line in self.manifest:
            kind, name = line["entry"], line.get("stage", "")
            if kind in ("trained", "retrained"):
                found[name] = (LIVE, line["tensors"])
            elif kind in (REVOKED, PURGED):
                found[name] = (kind, found.get(name, ("", ""))[1])
        own = {name: (s.status, s.tensors) for name, s in self.stages.items()}
        odd = sorted(name for name in {*found, *own} if found.get(name) != own.get(name))
        if odd:
            raise CorruptArtefact("stages as the manifest tells of them", f"others under {listing(odd)}", _REMEDY)
