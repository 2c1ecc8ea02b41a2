"""The ledger of deletion requests: events that are only added, chained by digests, in one SQLite file.

What a request names is encrypted in the same file, its key is in another: destroyed, the person is gone from the
ledger, and the chain still holds. Many processes on one machine may read and write; each opens its own `Ledger`.
"""

from __future__ import annotations

import getpass
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from expunge.errors import Incompatible, UserError
from expunge.files import there
from expunge.ledger import marks, payloads
from expunge.ledger.book import Book, Entry
from expunge.ledger.check import Check
from expunge.ledger.database import KEYS, LEDGER, refuse_network, sweep
from expunge.ledger.events import Event, Head, Problem
from expunge.ledger.keys import Keys, commitment
from expunge.ledger.requests import Erased, Request
from expunge.ledger.steps import ModelStatus, Route, Status, Step

__all__ = [
    "Entry", "Erased", "Event", "Head", "Ledger", "ModelStatus", "Problem", "Request", "Route", "Status", "Step",
    "utcnow",
]  # fmt: skip
log = logging.getLogger(__name__)
PATIENCE = 5.0  # seconds that an erasure tries to empty the log for, while others read it


def utcnow() -> datetime:
    """Return the time of this machine."""
    return datetime.now(UTC)


class Ledger:
    """A folder with the events of deletion requests and the keys of what is personal in them.

    What a method that writes has returned from outlasts a killed process and a loss of power. A `Ledger` belongs to
    the thread that opened it.

    Args:
        folder: where ``ledger.sqlite3`` and ``keys.sqlite3`` are.
        create: make it where there is none.
        readonly: never write, not even to finish an erasure that was interrupted; the keys may be missing.
        now: tells the time; events are never before those already there.
        actor: who writes; None for the user of the operating system.

    Raises:
        UserError: there is no ledger, it is on a network disk, or the keys are missing.
        Incompatible: it is another program's, of a newer version, or the keys are another ledger's.
        CorruptArtefact: it is damaged.
        Unwritable: it cannot be made or written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        create: bool = False,
        readonly: bool = False,
        now: Callable[[], datetime] = utcnow,
        actor: str | None = None,
    ) -> None:
        self.folder, self.readonly, self._now = Path(folder), readonly, now
        self.actor = _actor(actor)
        self._keys: Keys | None = None
        refuse_network(self.folder)
        book, keys = self.folder / LEDGER, self.folder / KEYS
        if create and not readonly:
            sweep(self.folder)
        if create and not readonly and there(book) is None:
            with_keys = Keys.create(keys)
            Book.create(book, lambda identity: commitment(with_keys.secret, identity.encode()))
            with_keys.close()
        self._book = Book(book, readonly=readonly)
        try:
            self._keys = None if readonly and there(keys) is None else Keys(keys, readonly=readonly)
            if not readonly:
                self._ready()
        except BaseException:
            self.close()
            raise

    def _ready(self) -> None:
        if commitment(self.keys.secret, self.identity.encode()) != self._book.secret:
            remedy = f"restore {KEYS} from a copy"
            raise Incompatible(f"the keys of {self._book.path} in {self.keys.path}", "those of another ledger", remedy)
        payloads.finish(self._book, self.keys, wait=0)

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        create: bool = False,
        readonly: bool = False,
        now: Callable[[], datetime] = utcnow,
        actor: str | None = None,
    ) -> Ledger:
        """Open a ledger, to be closed by ``with`` or `close`; the arguments are the class's."""
        return cls(folder, create=create, readonly=readonly, now=now, actor=actor)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._book.db.close()
        if self._keys is not None:
            self._keys.close()

    @property
    def identity(self) -> str:
        """What tells this ledger from any other: 32 random hexadecimal digits."""
        return self._book.identity

    @property
    def keys(self) -> Keys:
        """The keys; others than those of requests have names.

        Raises:
            UserError: their file is not there.
        """
        if self._keys is None:
            raise UserError(f"the keys in {self.folder / KEYS}", "no such file", "restore it from a copy")
        return self._keys

    def receive(self, request: Request) -> bool:
        """Keep a request.

        Args:
            request: the request.

        Returns:
            Whether it is new; False where the same is there already, whose days then stand.

        Raises:
            UserError: another content is there under its id, or it was erased.
        """
        return self.receive_all([request]) == 1

    def receive_all(self, requests: Iterable[Request]) -> int:
        """Keep several requests, all or none.

        Args:
            requests: the requests.

        Returns:
            How many are new.

        Raises:
            UserError: as `receive` says.
        """
        new, entries = dict[str, Request](), list[Entry]()
        some = list(requests)  # before the file is locked for others
        with self._book.writing():
            for request in some:
                there_is = new.get(request.id) or self._known(request.id)
                if there_is is None:
                    new[request.id] = request
                    body = payloads.store(self._book, self.keys, request, len(some))
                    entries.append(Entry(request.id, "received", body))
                elif not there_is.same(request):
                    expected = f"a new id, or the same content as before under '{request.id}'"
                    raise UserError(expected, "another content", "choose another id")
            self._append(entries)
        return len(entries)

    def _known(self, id: str) -> Request | None:
        if not self._book.history(id):
            return None
        try:
            return self.request(id)
        except Erased as error:
            got = f"'{id}', of which all that it named was erased"
            raise UserError("the id of a new request", got, "choose another id") from error

    def record(
        self, request: str, step: Step, body: Mapping[str, Any] | None = None, *, model: str | None = None
    ) -> Event:
        """Record that something happened.

        Args:
            request: the id of the request.
            step: what happened; ``received`` and ``erased`` have methods of their own.
            body: what else is known, a JSON object; nothing personal, it stays for ever.
            model: the name of the model, for a step of a model.

        Returns:
            The event.

        Raises:
            UserError: the request is not known, the step is not allowed now, or the clock went back.
        """
        return self.record_all([Entry(request, step, body or {}, model)])[0]

    def record_all(self, entries: Sequence[Entry]) -> list[Event]:
        """Record several things that happened, all or none.

        What a model has failed to forget, or learned again by a rollback, is remembered no longer. Where marks stay,
        the event says which, as ``marks``, so that `check` notices one that was added or removed.

        Args:
            entries: what happened, in order.

        Returns:
            The events.

        Raises:
            UserError: as `record` says.
        """
        own = {"received": "receive", "erased": "erase"}
        for entry in entries:
            if entry.step in own:
                raise UserError("a step to record", f"'{entry.step}'", f"call {own[entry.step]}")
        with self._book.writing():
            events = self._append([self._marked(entry) for entry in entries])
            for event in events:
                if event.step in ("failed", "rolled_back") and not self._keeps(event.request, event.model):
                    marks.forget(self._book, str(event.model), event.request)
        return events

    def _marked(self, entry: Entry) -> Entry:
        """Return an entry that says which marks its request leaves for the model, where nothing else says it."""
        if entry.model is None or entry.step not in ("absent", "failed", "rolled_back"):
            return entry
        found = self.status(entry.request).models.get(entry.model, ModelStatus(entry.step))
        if entry.step != "absent" and not (found.done if entry.step == "failed" else found.left):
            return entry
        return replace(entry, body={**entry.body, "marks": marks.fingerprint(self._book, entry.model, entry.request)})

    def _keeps(self, request: str, model: str | None) -> bool:
        return bool(self.status(request).models[str(model)].done)

    def _append(self, entries: Sequence[Entry]) -> list[Event]:
        return self._book.append(entries, self._now(), self.actor)

    def request(self, id: str) -> Request:
        """Return a request with what it names.

        Args:
            id: of the request.

        Returns:
            The request, held to the commitment in the chain.

        Raises:
            Erased: what it named is gone.
            UserError: no such request.
            CorruptArtefact: the payload is damaged or its key is missing.
        """
        history = self.history(id)
        if any(event.step == "erased" for event in history):
            raise Erased(f"what request '{id}' named", "that it was erased", "see its history for when and why")
        return payloads.load(self._book, self.keys, history[0])

    def status(self, id: str) -> Status:
        """Return where a request is, folded from its events.

        Args:
            id: of the request.

        Returns:
            The status.

        Raises:
            UserError: no such request.
        """
        found = self._book.status(id)
        if found is None:
            raise self._unknown(id)
        return found

    def open_requests(self) -> Iterator[Status]:
        """Yield where each open request is, by due date."""
        return self._book.open_statuses()

    def all(self) -> Iterator[Status]:
        """Yield where each request is, by id."""
        return self._book.statuses()

    def history(self, id: str) -> list[Event]:
        """Return the events of a request.

        Args:
            id: of the request.

        Returns:
            The events, in order.

        Raises:
            UserError: no such request.
        """
        found = self._book.history(id)
        if not found:
            raise self._unknown(id)
        return found

    def _unknown(self, id: str) -> UserError:
        shown = repr(id) if len(id) <= 80 else f"{id[:77]!r}..."
        return UserError(f"the id of a request in {self.folder}", shown, "see expunge requests list for the ids")

    def events(self, start: int = 1, steps: Sequence[Step] = ()) -> Iterator[Event]:
        """Yield all events from a number on; of some steps alone where they are named."""
        return self._book.events(start, steps)

    def head(self) -> Head:
        """Return the end of the chain, to be kept apart from the ledger."""
        return self._book.head()

    def erase(self, id: str, reason: str) -> None:
        """Destroy what a request named; that it was there, and what was done, stays. A second time changes nothing.

        The marks of ids that models have forgotten stay too: without an id to compare, they tell nothing.

        Args:
            id: of the request.
            reason: why.

        Raises:
            UserError: no such request, or it is neither closed nor refused, or held.
        """
        with self._book.writing():
            if not self.status(id).erased:
                self._append([Entry(id, "erased", {"reason": reason})])
                payloads.erase(self._book, self.history(id)[0])
        if not payloads.finish(self._book, self.keys, wait=PATIENCE):
            log.warning(
                "The log of %s still holds encrypted bytes of an erased request, whose key is destroyed, because "
                "another process reads it: open the ledger again later.",
                self._book.path,
            )

    def remember(self, model: str, ids: Iterable[str], request: str) -> str:
        """Remember that a model has forgotten samples, by keyed marks, so that they are not learned again.

        Args:
            model: its name.
            ids: of the samples.
            request: the id of the request.

        Returns:
            A digest of the request's marks for the model; as ``marks`` in the body of the ``unlearned`` event it lets
            `check` notice a mark that was removed.
        """
        self.status(request)
        with self._book.writing():
            marks.remember(self._book, self.keys.secret, model, ids, request)
            return marks.fingerprint(self._book, model, request)

    def remembered(self, ids: Sequence[str], model: str | None = None, *, over: bool = False) -> list[str]:
        """Return which ids were forgotten.

        Args:
            ids: of samples.
            model: by which model; None for any.
            over: for requests alone that are no longer open.

        Returns:
            Those of the ids, in their order.
        """
        return marks.known(self._book, self.keys.secret, ids, model, over)

    def check(self, head: Head | None = None) -> list[Problem]:
        """Look for whatever is wrong: file, chain, steps, statuses, payloads, keys, marks.

        Args:
            head: of the chain at an earlier time, kept apart; without it, a tail that was removed, and a chain that
                was written anew from some event on, cannot be told from a true one.

        Returns:
            The problems, none where all is well.
        """
        return Check(self._book, self._keys, head).run()


def _actor(name: str | None) -> str:
    try:
        name = getpass.getuser() if name is None else name
    except (OSError, KeyError) as error:
        raise UserError("a name for who writes", "no user name on this system", "give --operator") from error
    if not name.strip() or len(name) > 200 or not name.isprintable():
        raise UserError("a name for who writes, of 1 to 200 printable characters", repr(name[:60]), "give another")
    return name
