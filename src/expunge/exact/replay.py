"""Exactness checked, not claimed: what is kept is held to the manifest, and stages are trained again from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge import methods, tensors
from expunge.data import Data, id_hashes
from expunge.errors import CorruptArtefact, Incompatible, UserError, listing
from expunge.exact.assign import taught
from expunge.exact.book import TENSORS, Book, ExactnessBroken, Stage, samples_digest, tensors_digest
from expunge.exact.store import Store, queued, reached, recorded, stage_tensors
from expunge.method import Session, State
from expunge.methods._sharded import Sharded
from expunge.runtime import Runtime
from expunge.task import Task
from expunge.train import Recipe


@dataclass(frozen=True, kw_only=True)
class Audited:
    """What an audit found.

    Args:
        live: stages that may be served.
        served: stages that are, with those they were made from.
        reached: samples that any of these read.
        deleted: samples deleted so far.
        depths: of each shard, leading stages that are served.
        faults: a sentence for each thing that is not as the manifest says.
    """

    live: int
    served: int
    reached: int
    deleted: int
    depths: tuple[int, ...]
    faults: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether there is no fault."""
        return not self.faults


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """How a stage that was trained again compares with the one that is kept.

    Args:
        stage: its name.
        n: samples it read.
        differs: names of tensors that are not the same to the bit.
        largest: absolute difference of two of their numbers, at most.
    """

    stage: str
    n: int
    differs: tuple[str, ...]
    largest: float

    @property
    def same(self) -> bool:
        """Whether every tensor is the same to the bit."""
        return not self.differs


def audit(kept: State | Store, base: nn.Module | None = None) -> Audited:
    """Hold what is kept of a sharded model to its record and manifest; no data is read and nothing is trained.

    The samples that anything served has read, through all it was made from, are held against the deleted ones; so
    are the table of deletions and the manifest's requests, the tensors of every live stage and their digests, and it
    is looked for tensors or files of revoked stages. That the manifest's chain is whole is checked on opening.

    Args:
        kept: a state of ``sisa`` or ``s3t``, or a store.
        base: the network before any stage, where it is at hand: it is then held to the record as well.

    Returns:
        What was found.

    Raises:
        UserError: the state is another method's.
        CorruptArtefact: the record is not whole, the manifest's chain is broken, or the two tell different stories.
    """
    book = kept.book if isinstance(kept, Store) else recorded(kept)
    served, mask, faults = _served(book)
    faults += _told(book)
    if base is not None and tensors.weights_digest(base) != book.config["base"]:
        faults.append("The weights of the network before any stage are not those that training began from.")
    if isinstance(kept, Store):
        faults += [f"The weights of stage {name} cannot be read: {why}" for name, why in _unread(kept)]
        faults += [f"{path} belongs to no stage that is live." for path in kept.left()]
        lines = queued(kept.folder)
        ended = {line["request"] for line in lines if line["step"] == "done"}
        waiting = {line["request"] for line in lines if line["step"] == "asked"} - ended
        if waiting:
            faults.append(f"Requests {listing(sorted(waiting))} are in the queue and not fulfilled.")
    else:
        faults += _tensors(book, kept)
    return Audited(
        live=sum(s.live for s in book.stages.values()),
        served=len(served),
        reached=int(mask.sum()),
        deleted=int((book.gone > 0).sum()),
        depths=tuple(0 if one is None else one[1] for one in book.plan()),
        faults=tuple(faults),
    )


def _told(book: Book) -> list[str]:
    """Return where the table or the settings are not what the manifest says."""
    found = []
    asked = {int(e["request"]): e for e in book.manifest if e["entry"] == "request"}
    if sorted(asked) != list(range(1, book.requests + 1)) or int(book.gone.max(initial=0)) > book.requests:
        found.append(f"The table tells of {int(book.gone.max(initial=0))} requests, the manifest of {len(asked)}.")
    for number, entry in asked.items():
        gone = book.id[book.gone == number]
        if samples_digest(gone) != entry["samples"] or len(gone) != entry["n"]:
            found.append(f"Request {number} deleted other samples than the table marks for it.")
    trained = {e["config"] for e in book.manifest if "config" in e}
    if trained - {book.digest}:
        found.append("The settings of training are not those that the manifest says were trained with.")
    return found


def _served(book: Book) -> tuple[set[str], NDArray[np.bool_], list[str]]:
    """Return the stages that are served, the samples that they read, and what is wrong with them."""
    try:
        names, mask = reached(book, _method(book).served(book))
    except ExactnessBroken as error:
        return set(), np.zeros(len(book.id), dtype=np.bool_), [str(error)]
    deleted = int((mask & (book.gone > 0)).sum())
    return names, mask, [f"What is served was trained on {deleted} deleted samples."] if deleted else []


def _method(book: Book) -> Sharded:
    return cast(Sharded, methods.build(book.config["settings"]))


def _unread(store: Store) -> list[tuple[str, str]]:
    found = []
    for stage in store.book.stages.values():
        if stage.live:
            try:
                store.read(stage.name)
            except CorruptArtefact as error:
                found.append((stage.name, str(error)))
    return found


def _tensors(book: Book, state: State) -> list[str]:
    """Return which stages' tensors in a state are missing, altered, or there although they are revoked."""
    there = {"/".join(name.split("/")[1:3]) for name in state.tensors if name.startswith(f"{TENSORS}/")}
    live = {s.name for s in book.stages.values() if s.live}
    found = [f"The state still holds tensors of stage {name}, which is not live." for name in sorted(there - live)]
    for name in sorted(live):
        try:
            same = tensors_digest(stage_tensors(state.tensors, name)) == book.stages[name].tensors
        except CorruptArtefact:
            same = False
        if not same:
            found.append(f"The tensors of stage {name} are not those of the manifest.")
    return found


def replay(
    kept: State | Store,
    base: nn.Module,
    task: Task,
    *,
    train: Data,
    recipe: Recipe,
    stages: Iterable[str] | None = None,
    runtime: Runtime | None = None,
) -> list[Replayed]:
    """Train stages again from what the manifest says they read, and compare them with those that are kept, to the bit.

    Each begins from the kept tensors of the stages before it, so that all stages together replay a whole sequence.
    Bits are compared; they are the same on a CPU, with the same versions and the same number of threads.

    Args:
        kept: a state of ``sisa`` or ``s3t``, or a store.
        base: the network before any stage, ``method.served_from(ready.model)``.
        task: outputs and loss, as prepared with.
        train: the samples that stay, or more: what was deleted is not read.
        recipe: as prepared with.
        stages: names, such as ``0/0-1``; None for every live stage.
        runtime: precision and progress; work is done on the CPU.

    Returns:
        One comparison a stage, in the order of the record.

    Raises:
        UserError: a stage is unknown or not live, or samples are missing or have other content.
        Incompatible: another base, recipe, task or precision than was prepared with.
        CorruptArtefact: the record is not whole.
    """
    book = kept.book if isinstance(kept, Store) else recorded(kept)
    if tensors.weights_digest(base) != book.config["base"]:
        remedy = "pass method.served_from(model) of the model that was prepared"
        raise Incompatible("the network that training began from", "another", remedy)
    chosen = _chosen(book, stages)
    method = _method(book)
    session = Session(
        task=task,
        runtime=_plain(runtime),
        seed=int(book.config["seed"]),
        method=method.name,
        phase="prepare",
        needs=method.prepares,
        source=base,
        given={"train": train, "recipe": recipe.again()},
    )
    short = method.same_recipe(session, book)
    found = []
    for stage in chosen:
        part = _reads(book, stage, train)
        before = [_values(kept, name) for name in book.line(stage.name) if name != stage.name]
        with torch.enable_grad():
            made = method.stage(session, base, book.config, before, part, short, stage.seed)
        found.append(_compared(stage, _values(kept, stage.name), made))
    return found


def _plain(runtime: Runtime | None) -> Runtime:
    given = runtime or Runtime()
    return Runtime(device="cpu", precision=given.precision, progress=given.progress, processes=1)


def _chosen(book: Book, stages: Iterable[str] | None) -> list[Stage]:
    live = {s.name: s for s in book.stages.values() if s.live}
    names = list(live) if stages is None else list(stages)
    odd = [name for name in names if name not in live]
    if odd:
        raise UserError(f"stages among {listing(live, 12) or 'none that is live'}", listing(odd), "name others")
    return [live[name] for name in names]


def _reads(book: Book, stage: Stage, train: Data) -> Data:
    """Return the samples of a stage in the order of their ids, held to the record."""
    wanted = book.id[book.inside(stage.shard, stage.prefix, after=stage.born)]
    own = id_hashes(book.key, train.ids)
    ids = sorted(i for i, there in zip(train.ids, np.isin(own, wanted), strict=True) if there)
    if len(ids) < len(wanted):
        got = f"{len(wanted) - len(ids)} fewer"
        raise UserError(
            f"all {len(wanted)} samples that stage {stage.name} read", got, "pass the data it was trained on"
        )
    part = train.subset(ids)
    if len(book.content):
        now, then = taught(part, book.key), book.content[book.rows(ids)]
        odd = [i for i, same in zip(ids, now == then, strict=True) if not same]
        if odd:
            remedy = "pass the samples as they were trained on, untransformed, not augmented and with their weights"
            raise UserError(
                "the content that was prepared under each id", f"other content under {listing(odd)}", remedy
            )
    return part


def _values(kept: State | Store, name: str) -> dict[str, Tensor]:
    return kept.read(name) if isinstance(kept, Store) else stage_tensors(kept.tensors, name)


def _compared(stage: Stage, then: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> Replayed:
    odd = [n for n in sorted({*then, *now}) if n not in then or n not in now or not _equal(then[n], now[n])]
    gaps = [
        float((then[n].double() - now[n].double()).abs().max())
        for n in odd
        if n in then and n in now and then[n].shape == now[n].shape and then[n].numel()
    ]
    return Replayed(stage=stage.name, n=stage.n, differs=tuple(odd), largest=max(gaps, default=0.0))


def _equal(one: Tensor, other: Tensor) -> bool:
    return tensors.tensor_digest(one) == tensors.tensor_digest(other)
