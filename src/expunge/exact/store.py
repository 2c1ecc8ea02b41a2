"""A prepared sharded model on disk: a file of weights for each stage, the table, and a manifest that only grows.

One file, ``book.json``, says what holds: it names the table's file and how many lines of the manifest count, and it is
replaced in one step. What a kill left beside it is cleared away when the store is opened, so the manifest is never
ahead of the weights or behind them.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
from numpy.typing import NDArray
from torch import Tensor

from expunge import tensors
from expunge.errors import CorruptArtefact, UserError
from expunge.exact import journal
from expunge.exact.book import REVOKED, TENSORS, Book, Served, Stage, stage_name, tensor_name, tensors_digest
from expunge.exact.lora import HEAD, OWN
from expunge.exact.manifest import FIRST
from expunge.files import (
    atomic,
    canonical,
    check_free,
    digest,
    private,
    read_document,
    sync_one,
    there,
    writable,
    write_text,
)
from expunge.method import State

log = logging.getLogger(__name__)
KIND, SCHEMA = "expunge.exact", 1
BOOK, MANIFEST, QUEUE, LOCK = "book.json", "manifest.jsonl", "queue.jsonl", ".lock"
ADAPTER, CONFIG, WEIGHTS = "adapter_model.safetensors", "adapter_config.json", "model.safetensors"
HEADS = "head.safetensors"
RECORDED, ENTRIES = "book", "manifest"  # keys of a state's meta
_PEFT = "base_model.model."  # what PEFT puts before the names in an adapter's file
_REMEDY = "restore the folder from a copy, or write it again from a state"
_QUEUED: Mapping[str, Mapping[str, type]] = {  # by step, what a line of the queue holds besides its request
    "asked": {"at": str, "samples": list, "marks": list},
    "done": {"receipt": dict},
}


@dataclass(frozen=True, eq=False)
class Store:
    """A sharded model's stages, record and manifest in one folder.

    Args:
        folder: where it is.
        book: the record, as committed.
        meta: what the state's meta holds besides the record.
        table: tensors that belong to no stage.
        damaged: by stage, what is wrong with its file.
    """

    folder: Path
    book: Book
    meta: Mapping[str, Any]
    table: Mapping[str, Tensor]
    damaged: Mapping[str, str]

    @classmethod
    def create(cls, folder: str | Path, state: State, *, overwrite: bool = False) -> Store:
        """Write a state that ``sisa`` or ``s3t`` left; whole or not at all.

        Args:
            folder: to write.
            state: from `expunge.unlearn.prepare` or `unlearn`.
            overwrite: replace what is there.

        Returns:
            The store.

        Raises:
            UserError: the path is taken, or the state is another method's, or a server has what is to be replaced.
            CorruptArtefact: a stage's tensors are not those of the record.
        """
        folder = Path(folder)
        check_free(folder, overwrite)
        if there(folder / BOOK) is not None:
            os.close(hold(folder))  # what serves it would go on writing into the new one
        book = recorded(state)
        meta = {k: v for k, v in state.meta.items() if k not in (RECORDED, ENTRIES)}
        rest = {n: state.tensors[n] for n in state.tensors if not n.startswith(f"{TENSORS}/")}
        table = {n: t for n, t in rest.items() if not n.startswith("slices/")}
        with atomic(folder) as room:
            room.mkdir()
            with private(room):
                made = cls(room, book, meta, table, {})
                for stage in book.stages.values():
                    if stage.live:
                        made.write(stage, stage_tensors(state.tensors, stage.name))
                journal.append(room / MANIFEST, book.manifest)
                made._write_book()
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path, *, check: bool = True) -> Store:
        """Read a store, and check every live stage's file against the record; nothing on the disk is changed.

        Args:
            folder: written by `create`.
            check: whether to read the stages' files; one that is missing or altered is named in `damaged` and the log.

        Returns:
            The store.

        Raises:
            UserError: no store there.
            CorruptArtefact: the record, the table or the manifest is altered.
            Incompatible: written by a newer version.
        """
        folder = Path(folder)
        if there(folder) != "a folder" or there(folder / BOOK) != "a file":
            got = there(folder) or "nothing there"
            remedy = "write one with Store.create(folder, state), or name the folder where one is"
            raise UserError(f"a folder that Store.create wrote at {folder}", got, remedy)
        body = read_document(folder / BOOK, KIND, SCHEMA)
        try:
            sealed, lines, name = body.pop("digest"), int(body["manifest"]["lines"]), str(body["table"])
            last, meta, record = body["manifest"]["hash"], dict(body["meta"]), dict(body["book"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptArtefact(f"a whole record in {folder / BOOK}", f"none ({error})", _REMEDY) from error
        if digest(body) != sealed:
            raise CorruptArtefact(f"an intact file {folder / BOOK}", "other bytes", _REMEDY)
        entries = journal.read(folder / MANIFEST)[:lines]
        if len(entries) < lines or (entries[-1].get("hash") if entries else FIRST) != last:
            got = f"{len(entries)} of them or others"
            raise CorruptArtefact(f"{lines} entries in {folder / MANIFEST} as committed", got, _REMEDY)
        if there(folder / name) != "a file":
            raise CorruptArtefact(f"the table {folder / name}", "none", _REMEDY)
        table = tensors.load(folder / name)[0].whole()
        book = Book.from_json(record, entries, table)
        rest = {n: t for n, t in table.items() if not n.startswith("slices/")}
        made = cls(folder, book, meta, rest, {})
        found = dict(made._looked()) if check else {}
        for stage, why in found.items():
            log.warning("stage %s cannot be read: %s", stage, why)
        return replace(made, damaged=found)

    def _looked(self) -> Iterator[tuple[str, str]]:
        for stage in self.book.stages.values():
            if stage.live:
                try:
                    self.read(stage.name)
                except CorruptArtefact as error:
                    yield stage.name, str(error)

    def path(self, stage: Stage) -> Path:
        """Return a stage's folder."""
        return self.folder / f"shard{stage.shard}" / stage.name.partition("/")[2]

    def write(self, stage: Stage, values: Mapping[str, Tensor]) -> None:
        """Write a stage's tensors, each file whole or not at all.

        Raises:
            CorruptArtefact: they are not those of the record.
        """
        if tensors_digest(values) != stage.tensors:
            raise CorruptArtefact(f"the tensors of stage {stage.name}", "others than the record's", _REMEDY)
        place = self.path(stage)
        with writable(place):
            place.mkdir(parents=True, exist_ok=True)
        for name, part in _files(self.book.config["kind"], values).items():
            with atomic(place / name) as temporary:
                safetensors.torch.save_file(part, temporary, metadata={"format": "pt"})
        if self.book.config["kind"] == "s3t":
            write_text(place / CONFIG, canonical(_peft(self.book.config, stage)))

    def read(self, name: str) -> dict[str, Tensor]:
        """Return a stage's tensors by their names in it.

        Raises:
            CorruptArtefact: a file is missing or altered; says which.
        """
        stage = self.book.stages[name]
        found: dict[str, Tensor] = {}
        place = self.path(stage)
        for file in (ADAPTER, HEADS, WEIGHTS):
            if (place / file).exists():
                try:
                    found |= {_inside(file, key): t for key, t in safetensors.torch.load_file(place / file).items()}
                except (OSError, safetensors.SafetensorError) as error:
                    raise CorruptArtefact(f"an intact file {place / file}", str(error), _REMEDY) from error
        if tensors_digest(found) != stage.tensors:
            got = "other bytes" if found else "no file"
            raise CorruptArtefact(f"the weights of stage {name} in {place}", got, _REMEDY)
        return found

    def state(self) -> State:
        """Return the state, as of the last request; its weights' digest is that of the last stamp.

        Stages whose files are damaged, and those behind them, are given up in it, which its manifest says.
        """
        book, _ = given_up(self.book, self.damaged).purged()
        live = [s.name for s in book.stages.values() if s.live]
        values = {tensor_name(name, key): t for name in live for key, t in self.read(name).items()}
        meta = {**self.meta, RECORDED: book.to_json(), ENTRIES: list(book.manifest)}
        return State({**values, **book.tensors(), **self.table}, meta)

    def commit(
        self, book: Book, meta: Mapping[str, Any] | None = None, table: Mapping[str, Tensor] | None = None
    ) -> Store:
        """Make a record the one that holds: first the manifest's new lines and the table, then ``book.json``.

        Args:
            book: whose manifest goes on where the committed one ends.
            meta: what else the state's meta holds; as before where None.
            table: the tensors of no stage; as before where None.

        Returns:
            The store as it is now.

        Raises:
            CorruptArtefact: the record does not go on from the committed one.
            Unwritable: the disk is full or the folder cannot be written.
        """
        kept, length = self.book.manifest, len(self.book.manifest)
        if [line["hash"] for line in book.manifest[:length]] != [line["hash"] for line in kept]:
            raise CorruptArtefact("a record that goes on from the committed one", "another", _REMEDY)
        made = replace(
            self,
            book=book,
            meta=self.meta if meta is None else meta,
            table=self.table if table is None else table,
            damaged={n: why for n, why in self.damaged.items() if book.stages[n].live},
        )
        path = self.folder / MANIFEST
        there = journal.read(path)  # what a commit wrote that did not end, perhaps
        if [line.get("hash") for line in there] != [line["hash"] for line in book.manifest]:
            journal.cut(path, length)
            journal.append(path, book.manifest[length:])
        made._write_book()
        return made

    def _write_book(self) -> None:
        values = {**self.book.tensors(), **self.table}
        name = f"table-{tensors_digest(values)[:24]}.safetensors"
        if not (self.folder / name).exists():
            tensors.save(self.folder / name, values, {})
        last = self.book.manifest[-1]["hash"] if self.book.manifest else FIRST
        body = {
            "table": name,
            "manifest": {"lines": len(self.book.manifest), "hash": last},
            "meta": dict(self.meta),
            "book": self.book.to_json(),
        }
        document = {"kind": KIND, "schema": SCHEMA, **body}
        # on one line: a request writes it twice, and indenting takes longer than all the rest of it
        write_text(self.folder / BOOK, canonical({**document, "digest": digest(document)}) + "\n")
        self._sweep(name)

    def _sweep(self, table: str) -> None:
        with writable(self.folder):
            for other in self.folder.glob("table-*.safetensors"):
                if other.name != table:
                    other.unlink()

    def tidy(self) -> None:
        """Clear away what a kill left: lines behind the committed manifest, temporary files, tables of no record."""
        journal.cut(self.folder / MANIFEST, len(self.book.manifest))
        for path in [p for p in self.folder.rglob(".*.*") if p.is_dir()]:
            remove(path)
        self._sweep(read_document(self.folder / BOOK, KIND, SCHEMA)["table"])

    def purge(self) -> list[str]:
        """Remove the files of every stage that is not live, and make that outlast a loss of power.

        Returns:
            The stages whose files were there.
        """
        found = [s for s in self.book.stages.values() if not s.live and self.path(s).exists()]
        for stage in found:
            remove(self.path(stage))
        for place in sorted({self.path(stage).parent for stage in found}):
            with writable(place):
                sync_one(place)  # once for all stages of a shard
        return [s.name for s in found]

    def left(self) -> list[str]:
        """Return the files and folders of stages that are not live, or of no stage at all."""
        live = {self.path(s) for s in self.book.stages.values() if s.live}
        return [str(p) for p in sorted(self.folder.glob("shard*/*")) if p not in live]


def recorded(state: State) -> Book:
    """Return the record in a state.

    Raises:
        UserError: the state is none of a sharded method.
        CorruptArtefact: the record is not whole.
    """
    if RECORDED not in state.meta or ENTRIES not in state.meta:
        raise UserError("a state that sisa or s3t prepared", "another", "prepare one of them, and pass ready.state")
    return Book.from_json(state.meta[RECORDED], state.meta[ENTRIES], state.tensors)


def stage_tensors(values: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors of a stage in a state, by their names in it."""
    start = tensor_name(name, "")
    return {key.removeprefix(start): values[key] for key in values if key.startswith(start)}


def _files(kind: str, values: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return a stage's tensors by file and by their names in the file: those of an adapter are called as PEFT does."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in values.items():
        plain = tensor.detach().cpu().contiguous().clone()  # a file's tensors share no storage
        if kind != "s3t":
            found.setdefault(WEIGHTS, {})[name] = plain
        elif name.startswith(OWN):
            found.setdefault(ADAPTER, {})[_PEFT + name.removeprefix(OWN)] = plain
        else:
            found.setdefault(HEADS, {})[name.removeprefix(HEAD)] = plain
    return found


def _peft(config: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    """Return the settings beside a stage's adapter, with which PEFT reads it as one of its own."""
    said = config["lora"]
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": said["rank"],
        "lora_alpha": said["alpha"],
        "use_rslora": said["rslora"],
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(said["targets"]),
        "layers_to_transform": sorted(said["groups"][len(stage.prefix) - 1]),
        "layers_pattern": re.escape(said["blocks"]),
    }


def _inside(file: str, key: str) -> str:
    """Return what a tensor of a file is called in its stage."""
    if file == ADAPTER:
        return OWN + key.removeprefix(_PEFT)
    return HEAD + key if file == HEADS else key


def given_up(book: Book, names: Iterable[str]) -> Book:
    """Return the record with stages revoked whose files are damaged, and all stages behind them."""
    for name in sorted(names):
        first = book.stages[name]
        behind = [
            s
            for s in book.stages.values()
            if s.live and s.shard == first.shard and s.prefix[: len(first.prefix)] == first.prefix
        ]
        book = replace(book, stages={**book.stages, **{s.name: replace(s, status=REVOKED) for s in behind}})
        for stage in behind:
            facts = {"stage": stage.name, "request": book.requests, "tensors": stage.tensors}
            book = book.noted("revoked", **facts, cause="damaged")
    return book


def fallen(book: Book, damaged: Iterable[str], served: Callable[[Book], Mapping[str, Served]]) -> Book:
    """Return the record as it can be served: stages given up of those with damaged files, as long as one is needed.

    Args:
        book: the record.
        damaged: names of stages.
        served: says which sequences are served, as `expunge.methods._sharded.Sharded.served` does.
    """
    bad = set(damaged)
    while True:
        hit = {stage for name, one in served(book).items() for stage in needed(book, name, one)} & bad
        if not hit:
            return book
        book = given_up(book, hit)


def needed(book: Book, member: str, one: Served) -> list[str]:
    """Return the stages whose files a member is made from: all of them for LoRA, the last for whole networks."""
    shard, (order, depth) = int(member.partition("-")[0]), one
    names = [stage_name(shard, order[:k]) for k in range(1, depth + 1)]
    return names if book.config["kind"] == "s3t" else names[-1:]


def reached(book: Book, served: Mapping[str, Served]) -> tuple[set[str], NDArray[np.bool_]]:
    """Return the stages that members are made from, and which samples these read, (N,), each member held to the record.

    Args:
        book: the record.
        served: of each member, its sequence and how many leading stages of it.

    Raises:
        ExactnessBroken: a stage is not in the record or not live, or one of them read a deleted sample, or others than
            the table says.
    """
    names, mask = set[str](), np.zeros(len(book.id), dtype=np.bool_)
    for member, one in served.items():
        plan: list[Served | None] = [None] * book.shards
        plan[int(member.partition("-")[0])] = one
        book.check(tuple(plan))
        names |= set(book.reached(tuple(plan)))
        mask |= book.closure(tuple(plan))
    return names, mask


def hold(folder: Path) -> int:
    """Take the folder's lock, which ends with the process.

    Returns:
        The open file that holds it.

    Raises:
        UserError: another process has it.
        Unwritable: the folder cannot be written.
    """
    with writable(folder / LOCK):
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        remedy = "close it, or copy the folder and delete in both"
        raise UserError(f"a folder {folder} that no other server has open", "one that does", remedy) from error
    return handle


def queued(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the queue of requests: each was asked for, and is done where it has its receipt.

    Raises:
        CorruptArtefact: a line is no such line; says which.
    """
    lines = journal.read(folder / QUEUE)
    for number, line in enumerate(lines, start=1):
        kinds = _QUEUED.get(str(line.get("step")))
        if kinds is None or not all(isinstance(line.get(k), kind) for k, kind in {"request": int, **kinds}.items()):
            got = f"another in line {number}"
            raise CorruptArtefact(f"requests and receipts alone in {folder / QUEUE}", got, _REMEDY)
    return lines


def remove(path: Path) -> None:
    """Remove a folder with all that is in it, file by file; syncing the folder it was in is the caller's."""
    with writable(path):
        for part in sorted(path.rglob("*"), key=lambda p: -len(p.parts)):
            part.rmdir() if part.is_dir() else part.unlink()
        path.rmdir()
