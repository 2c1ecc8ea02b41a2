"""Serving a sharded model while samples are deleted from it: one backbone, an immutable plan, one reference to it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge import methods, stamp, tensors
from expunge.data import Batch, id_hashes, id_texts
from expunge.errors import CorruptArtefact, Incompatible, UserError
from expunge.exact import journal
from expunge.exact.book import LIVE, REVOKED, Book, ExactnessBroken, Served
from expunge.exact.ensemble import Ensemble
from expunge.exact.receipt import CAVEATS, LEVELS, Receipt, depths, residues
from expunge.exact.store import QUEUE, Store, fallen, hold, needed, queued, reached
from expunge.method import State
from expunge.methods._sharded import Line, Sharded, line_of
from expunge.task import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Plan:
    """What answers; never changed once it is served.

    Args:
        book: the record, without stages whose files are damaged.
        served: by member, its sequence and how many leading stages of it.
        reads: (N,) samples of the table that any member was trained on, through all it was made from.
        module: the members as one network; None where nothing is left.
        readers: one mark for each prediction under way.
    """

    book: Book
    served: Mapping[str, Served]
    reads: NDArray[np.bool_]
    module: Ensemble | None
    readers: set[object] = field(default_factory=set, repr=False)


class Server:
    """A sharded model that answers all the while samples are deleted from it.

    One process alone serves a folder. A request that a kill interrupted is fulfilled when the folder is opened again,
    before the first prediction. No training data is read, at any time.

    Args:
        folder: written by `Store.create`.
        base: the network before any stage, ``method.served_from(ready.model)``. It is taken over: frozen, in eval mode.
        task: what the outputs mean.
        patience: seconds that a deletion waits for the last answers of the old members.

    Raises:
        UserError: no store there, or another process serves it.
        Incompatible: the base is another one.
        CorruptArtefact: record, table or manifest are altered. That the file of a stage is damaged is no error: it is
            named in the log and in `damaged`, and its shard falls back to the deepest stage that is intact.
    """

    def __init__(self, folder: str | Path, base: nn.Module, task: Task, *, patience: float = 60.0) -> None:
        self._changing, self._lock = threading.RLock(), threading.Condition()
        self._base, self._task, self._patience = base.requires_grad_(False).eval(), task, patience
        self._held: int | None = hold(Store.open(folder, check=False).folder)
        try:
            self._store = Store.open(folder)
            self._method = _method(self._store, base)
            self._store.tidy()
            self._purge()
            lines = queued(self._store.folder)
            journal.cut(self._store.folder / QUEUE, len(lines))
            ended = {line["request"] for line in lines if line["step"] == "done"}
            self._asked = [line for line in lines if line["step"] == "asked" and line["request"] not in ended]
            self._old: list[Plan] = []
            self._plan = self._made(self._store.book, None)
            self.finished = self.finish()
        except BaseException:
            self.close()
            raise

    @property
    def book(self) -> Book:
        """The record of what is served."""
        return self._plan.book

    @property
    def served(self) -> dict[str, Served]:
        """Of each member, its sequence and how many leading stages of it answer."""
        return dict(self._plan.served)

    @property
    def module(self) -> nn.Module:
        """The network that answers now; the next deletion puts another in its place.

        Raises:
            UserError: no shard has anything left to serve.
        """
        return _answering(self._plan)

    @property
    def damaged(self) -> dict[str, str]:
        """By stage, what is wrong with its file."""
        return dict(self._store.damaged)

    def predict(self, inputs: Any) -> Tensor:
        """Return the outputs for a batch, all of them by one plan, whatever is deleted meanwhile.

        Args:
            inputs: tensor (B, ...) or a dict of them, as the network's forward takes them.

        Returns:
            Outputs (B, ...), which mean what one network's outputs mean.

        Raises:
            UserError: no shard has anything left to serve.
        """
        with self._reading() as plan, torch.no_grad():
            module = _answering(plan)
            size = len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)
            batch = Batch(dict(inputs) if isinstance(inputs, Mapping) else inputs, None, None, torch.arange(size))
            home = next(self._base.parameters()).device
            return self._task.forward(module, batch.to(home))[0]

    @contextmanager
    def _reading(self) -> Iterator[Plan]:
        mark = object()
        with self._lock:
            plan = self._plan
            plan.readers.add(mark)
        try:
            yield plan
        finally:
            with self._lock:
                plan.readers.discard(mark)
                self._lock.notify_all()

    def delete(self, ids: Sequence[object]) -> Receipt:
        """Fulfil a request: when this returns, nothing that was trained on the samples is served or on the disk.

        Args:
            ids: of the samples.

        Returns:
            The receipt.

        Raises:
            UserError: no id, or one that is unknown, deleted already or named twice: nothing is changed. Or an answer
                of the old members does not end in time: the request stays in the queue, and `finish` ends it.
            Unwritable: the disk is full; where the request is in the queue already, `finish` ends it.
        """
        with self._changing:
            if self._held is None:
                raise UserError("a server that is open", "one that was closed", "open the folder again")
            self.finish()
            names, book = id_texts(ids), self._store.book
            if not names:
                raise UserError("at least one sample to delete", "no id", "name ids that were prepared")
            book.after(names)
            line = {"step": "asked", "request": book.requests + 1, "at": _now(), "samples": _plain(book.key, names)}
            key = stamp.key(self._store.meta)
            line["marks"] = [] if key is None else _plain(key, names)
            journal.append(self._store.folder / QUEUE, [line])
            self._asked.append(line)
            return self.finish()[-1]

    def finish(self) -> list[Receipt]:
        """Fulfil what is in the queue: of a process that was killed, or where the disk was full.

        Returns:
            The receipts, in the order of the requests.
        """
        with self._changing:
            found = []
            while self._asked:
                found.append(self._fulfilled(self._asked[0]))
                del self._asked[0]
            return found

    def receipts(self) -> list[Receipt]:
        """Return the receipts of all requests that this folder has fulfilled."""
        lines = queued(self._store.folder)
        return [Receipt.from_json(line["receipt"]) for line in lines if line["step"] == "done"]

    def state(self) -> State:
        """Return the state for `expunge.unlearn.unlearn`; it belongs to ``method.serve(base, state)``.

        That is `module`, unless files are damaged: their stages, and those behind them, are given up in the state.

        Raises:
            UserError: no shard has anything left to serve.
            Incompatible: the store was made from a state without the stamp of `prepare`.
        """
        with self._changing:
            found = self._store.state()
            return stamp.again(found, self._method.serve(self._base, stamp.bare(found)))

    def close(self) -> None:
        """Let another process serve the folder; this one goes on answering, and deletes no more."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fulfilled(self, line: Mapping[str, Any]) -> Receipt:
        """Bring one request from wherever it is to its receipt; each step can be taken again after a kill."""
        request, switched = int(line["request"]), None
        rows = _rows(self._store.book, line["samples"])
        if self._store.book.requests < request:
            book = self._store.book.without(rows)
            plan = self._made(book, self._plan)
            meta, table = stamp.erased(self._store.meta, self._store.table, line["marks"])
            self._store = self._store.commit(book, meta, table)
            with self._lock:
                self._old.append(self._plan)
                self._plan = plan
            switched = _now()
        self._drain()
        self._purge()
        receipt = self._receipt(line, switched)
        body = {"step": "done", "request": request, "receipt": receipt.to_json()}
        journal.append(self._store.folder / QUEUE, [body])
        return receipt

    def _purge(self) -> None:
        self._store.purge()
        if any(stage.status == REVOKED for stage in self._store.book.stages.values()):
            self._store = self._store.commit(self._store.book.purged()[0])

    def _made(self, book: Book, now: Plan | None) -> Plan:
        """Return the plan of a record; members that stay as they are now are those of now.

        Where a file turns out to be damaged, its shard falls back further.
        """
        while True:
            view = fallen(book, self._store.damaged, self._method.served)
            served = self._method.served(view)
            _, reads = reached(view, served)
            members = self._members(view, served, now)
            if members is not None:
                how = str(self._store.meta["rule"])
                module = Ensemble(self._base, members, how) if members else None
                return Plan(view, served, reads, module)

    def _members(self, book: Book, served: Mapping[str, Served], now: Plan | None) -> dict[str, nn.Module] | None:
        """Return the members, those that stay as they are taken over; None where a file was found to be damaged."""
        found: dict[str, nn.Module] = {}
        standing: dict[Line, nn.Module] = {}
        if now is not None and now.module is not None:
            standing = {_line(now.book, n, one): now.module.members[n] for n, one in now.served.items()}
        for name, one in served.items():
            same = standing.get(_line(book, name, one))
            if same is not None:
                found[name] = same
                continue
            stages = []
            for stage in needed(book, name, one):
                try:
                    stages.append(self._store.read(stage))
                except CorruptArtefact as error:
                    log.warning("stage %s cannot be read: %s", stage, error)
                    self._store = replace(self._store, damaged={**self._store.damaged, stage: str(error)})
                    return None
            found[name] = self._method.member(self._base, book.config, stages).requires_grad_(False)
        return found

    def _drain(self) -> None:
        """Wait until no prediction uses members of an old plan, and let go of them."""
        end = time.monotonic() + self._patience
        with self._lock:
            while any(plan.readers for plan in self._old):
                if not self._lock.wait(end - time.monotonic()) and time.monotonic() >= end:
                    got = f"{sum(len(plan.readers) for plan in self._old)} that go on"
                    remedy = "end them, and call finish()"
                    raise UserError(f"answers of the old members to end within {self._patience:g} s", got, remedy)
            self._old.clear()

    def _receipt(self, line: Mapping[str, Any], switched: str | None) -> Receipt:
        """Hold what is served and what is on the disk to the record, and say so."""
        book, view, request = self._store.book, self._plan.book, int(line["request"])
        entries = [e for e in book.manifest if e.get("request") == request]
        revoked = tuple(e["stage"] for e in entries if e["entry"] == "revoked")
        asked = next(e for e in entries if e["entry"] == "request")
        left = self._store.left()
        if left:
            raise ExactnessBroken(f"Files of stages that are not live are still there: {left}.")
        was = fallen(_before(book, revoked), set(self._store.damaged), self._method.served)
        mask = self._plan.reads
        both = int((mask & (book.gone > 0)).sum())
        if both:
            raise ExactnessBroken(f"What is served was trained on {both} deleted samples.")
        audit = {
            "samples reached from what is served": int(mask.sum()),
            "deleted samples so far": int((book.gone > 0).sum()),
            "in both": both,
            "files of revoked stages left": 0,
            "damaged stages": sorted(self._store.damaged),
        }
        return Receipt(
            request=request,
            samples=int(asked["n"]),
            digest=str(asked["samples"]),
            asked=str(line["at"]),
            switched=switched,
            done=_now(),
            revoked=revoked,
            depths=tuple(zip(depths(was), depths(view), strict=True)),
            lost=tuple(view.dead()),
            retrain=view.failed,
            audit=audit,
            residues=residues(book, revoked),
            levels=LEVELS,
            caveats=CAVEATS,
            manifest=str(book.manifest[-1]["hash"]),
        )


def _method(store: Store, base: nn.Module) -> Sharded:
    """Return the method that left the store, the network before any stage held to the record."""
    config = store.book.config
    if tensors.weights_digest(base) != config["base"]:
        remedy = "pass method.served_from(model) of the model that was prepared"
        raise Incompatible("the network that training began from", "another", remedy)
    return cast(Sharded, methods.build(config["settings"]))


def _line(book: Book, member: str, one: Served) -> Line:
    return line_of(book, int(member.partition("-")[0]), one[0][: one[1]])


def _answering(plan: Plan) -> Ensemble:
    if plan.module is None:
        remedy = "prepare anew on the samples that stay"
        raise UserError("a shard with something left to serve", "none after the deletions", remedy)
    return plan.module


def _rows(book: Book, hashes: Sequence[int]) -> np.ndarray:
    """Return where the samples of a request in the queue stand in the table."""
    wanted = np.asarray(hashes, dtype=np.int64)
    rows = np.clip(np.searchsorted(book.id, wanted), 0, len(book.id) - 1)
    if not len(wanted) or bool((book.id[rows] != wanted).any()):
        raise CorruptArtefact(f"samples of the table in {QUEUE}", "others", "restore the folder from a copy")
    return rows


def _before(book: Book, revoked: Sequence[str]) -> Book:
    """Return the record with stages live that a request revoked."""
    return replace(book, stages={**book.stages, **{n: replace(book.stages[n], status=LIVE) for n in revoked}})


def _plain(key: bytes, ids: Sequence[str]) -> list[int]:
    return sorted(int(h) for h in id_hashes(key, ids))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
