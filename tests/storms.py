"""Many processes that work on one workspace and are killed at random moments, and what must hold whatever they hit.

Some receive requests, some fulfil them, by the commands of the shell; one looks at the served version all the time and
is never killed. Each says in shared memory what it does, so that a kill is counted where it fell.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import wraps
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from threading import Timer
from typing import Any

from safetensors.torch import load

from benches import FORK
from expunge import folders
from expunge.cli import _requests_lookup as lookup
from expunge.ledger import Head, Ledger, Request
from expunge.service import Workspace, attempt, undo, workspace
from expunge.service.workspace import FIRST
from expunge.tensors import weights_digest
from projects import Small
from services import Shop
from shell import expunge

SETTINGS: dict[str, Any] = {
    "method.name": "finetune",
    "method.alpha": None,
    "method.epochs": 1,
    "requests.batch": 8,
    "requests.cadence": 0,
}
ROWS = 800
EACH = 6  # new requests of one process that receives, before it repeats them
DAY = date(2025, 3, 1)
ADDERS, PROCESSORS = 3, 2
SOON = 0.004  # seconds
ELSEWHERE = "elsewhere"  # as opening project, data and ledger
process = import_module("expunge.service.process")  # the package has a function of this name
WAITING = "waiting for the lock"
# What a process does, and where: the innermost is what it says.
PROCESS: dict[str, list[tuple[Any, str]]] = {
    WAITING: [(workspace.fcntl, "flock")],
    "recovering": [(process, "recover")],
    "looking up": [(process, "target")],
    "editing": [(process, "edit")],
    "retraining": [(process, "retrain")],
    "writing the version": [(folders, "write")],
    "remembering": [(Ledger, "remember")],
    "measuring": [(attempt, "measure")],
    "switching current": [(Workspace, "switch")],
    "putting away": [(undo, "archive")],
    "closing": [(process, "_close")],
}
ADD: dict[str, list[tuple[Any, str]]] = {
    "looking up": [(lookup, "look_up")],
    "receiving": [(Ledger, "receive"), (Ledger, "receive_all")],
}
STEPS = ("started", "unlearned", "verified", "deployed", "failed", "absent", "closed")
WORDS = [
    *(f"add: {word}" for word in (ELSEWHERE, *ADD)),
    *(f"process: {word}" for word in (ELSEWHERE, *PROCESS)),
    *(f"process: recording {step}" for step in STEPS),
]
AIMS = [word for word in WORDS if word.startswith("process: ") and ELSEWHERE not in word and WAITING not in word]


@dataclass
class Telltale:
    """Shared memory in which a process says what it does, and is told in what to die; it outlasts the process."""

    at: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 2))

    def say(self, word: str) -> None:
        self.at[0] = WORDS.index(word)

    @property
    def said(self) -> str:
        return WORDS[self.at[0]]

    def aim(self, word: str | None) -> None:
        self.at[1] = WORDS.index(word) if word else 0

    @contextmanager
    def doing(self, word: str) -> Iterator[None]:
        before = self.at[0]
        self.say(word)
        if self.at[1] and self.at[1] == self.at[0]:
            self.at[1] = 0
            Timer(SOON * Random().random() ** 2, os.kill, (os.getpid(), signal.SIGKILL)).start()
        try:
            yield
        finally:
            self.at[0] = before

    def watch(self, what: str, places: dict[str, list[tuple[Any, str]]]) -> None:
        """Let functions say that they are at work; to be called in the process that is to be watched."""
        for word, homes in places.items():
            for home, name in homes:
                setattr(home, name, self._telling(f"{what}: {word}", getattr(home, name)))

    def watch_steps(self) -> None:
        """Let what records a step say which."""
        record = Ledger.record_all

        def telling(ledger: Ledger, entries: Any) -> Any:
            with self.doing(f"process: recording {entries[0].step}"):
                return record(ledger, entries)

        Ledger.record_all = telling  # type: ignore[method-assign]

    def _telling(self, word: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(work)
        def telling(*given: Any, **more: Any) -> Any:
            with self.doing(word):
                return work(*given, **more)

        return telling


@dataclass
class Storm:
    """Processes on one workspace, killed one after the other.

    Args:
        shop: the project.
        random: draws who is killed, and when.
    """

    shop: Shop
    random: Random
    hit: Counter[str] = field(default_factory=Counter)
    heads: list[Head] = field(default_factory=list)
    born: int = 0
    running: dict[BaseProcess, tuple[Telltale, str]] = field(default_factory=dict)

    @property
    def said(self) -> list[dict[str, str]]:
        """Requests that were acknowledged."""
        file = self.shop.folder / "said.txt"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def rage(self, kills: int) -> dict[str, int]:
        """Kill so many processes, each at a random moment, and return what the one that looks has seen."""
        stop, told = mmap.mmap(-1, 1), self.shop.folder / "looked.json"
        reader = FORK.Process(target=look, args=(self.shop, stop, told))
        reader.start()
        try:
            for _ in range(ADDERS):
                self._start("add")
            for _ in range(PROCESSORS):
                self._start("process")
            for _ in range(kills):
                time.sleep(self.random.random() * 0.15)
                child = self.random.choice(list(self.running))
                if self.running[child][1] == "process" and self.random.random() < 0.7:  # much is over in no time
                    child = self._aimed() or child
                self._start(self._kill(child))
        finally:
            for child in list(self.running):
                self._kill(child, counted=False)
            stop[0] = 1
            reader.join(60)
        assert reader.exitcode == 0, "who looked at the served version found it wrong"
        return dict(json.loads(told.read_text()))

    def _aimed(self) -> BaseProcess | None:
        """Let the next process that does something that is drawn die soon after it begins; return it, if one does."""
        word, end = self.random.choice(AIMS), time.monotonic() + 1
        workers = {child: telltale for child, (telltale, what) in self.running.items() if what == "process"}
        for telltale in workers.values():
            telltale.aim(word)
        dead: list[BaseProcess] = []
        while not dead and time.monotonic() < end:
            time.sleep(0.005)
            dead = [child for child in workers if child.exitcode is not None]
        for telltale in workers.values():
            telltale.aim(None)
        return dead[0] if dead else None

    def _start(self, what: str) -> None:
        telltale = Telltale()
        telltale.say(f"{what}: {ELSEWHERE}")
        work = {"add": adding, "process": processing}[what]
        child = FORK.Process(target=work, args=(self.shop, telltale, self.born))
        child.start()
        self.running[child] = (telltale, what)
        self.born += 1

    def _kill(self, child: BaseProcess, counted: bool = True) -> str:
        child.kill()
        child.join()
        telltale, what = self.running.pop(child)
        assert child.exitcode == -signal.SIGKILL, f"{what} ended by itself: {telltale.said}"
        if counted:
            self.hit[telltale.said] += 1
            with self.shop.ledger() as ledger:
                self.heads.append(ledger.head())
        return what


def adding(shop: Shop, telltale: Telltale, number: int) -> None:
    """Receive requests until killed: every second process by the command, the others by an open ledger.

    Every third request names the sample of the one before; one in four asks to be retrained for after the edit. All of
    them are sent again and again, which changes nothing.
    """
    telltale.watch("add", ADD)
    asked = [{"request": f"a{number}.{n}", "id": str(100 + number * EACH + n - (n % 3 == 2))} for n in range(EACH)]
    routes = ["edit-then-retrain" if n % 4 == 3 else "edit" for n in range(EACH)]
    new = True
    while True:
        for mine, route in zip(asked, routes, strict=True):
            if number % 2:
                code, _, err = expunge(
                    "requests", "add", mine["request"], "--id", mine["id"], "--route", route, cwd=shop.folder
                )
                assert code == 0, err
            else:
                request = Request(
                    mine["request"], "ids", (mine["id"],), route, received=DAY, due=DAY + timedelta(days=30)
                )  # type: ignore[arg-type]
                with Ledger.open(shop.space.folder) as ledger:
                    ledger.receive(request)
                    assert not ledger.receive(request)
            if new:
                _say(shop.folder / "said.txt", json.dumps(mine | {"route": route}))
        new = False


def _say(file: Path, line: str) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)  # in one piece, whoever else writes
    os.write(handle, f"{line}\n".encode())
    os.close(handle)


def processing(shop: Shop, telltale: Telltale, number: int) -> None:
    """Fulfil what is pending, until killed."""
    telltale.watch("process", PROCESS)
    telltale.watch_steps()
    while True:
        code, _, err = expunge("requests", "process", cwd=shop.folder)
        assert code == 0, err


def look(shop: Shop, stop: mmap.mmap, told: Path) -> None:
    """Read the served version again and again, as what serves it does, and hold it to the ledger."""
    looks, seen = 0, dict[str, dict[str, str]]()
    while not stop[0]:
        looks += _looked(shop, seen)
    told.write_text(json.dumps({"looks": looks, "versions": len(seen)}))


def _looked(shop: Shop, seen: dict[str, dict[str, str]]) -> bool:
    """Hold the served version to being whole, loadable, and the first or verified; False where it was replaced."""
    link = shop.space.home("model") / "current"
    version = Path(os.readlink(link)).name
    folder = link.parent / "versions" / version
    try:
        raw = {p.name: p.read_bytes() for p in sorted(folder.iterdir())}
    except FileNotFoundError:
        assert Path(os.readlink(link)).name != version, f"{version} is served, and not whole"
        return False
    if not {"record.json", "model.safetensors", "state.safetensors"} <= raw.keys():
        assert Path(os.readlink(link)).name != version, f"{version} is served without all its files"
        return False
    model = Small()
    model.load_state_dict(load(raw["model.safetensors"]))
    load(raw["state.safetensors"])
    assert weights_digest(model) == json.loads(raw["record.json"])["weights"]
    if version not in seen:
        seen[version] = _files(shop, version)
    assert {name: hashlib.sha256(each).hexdigest() for name, each in raw.items()} == seen[version]
    return True


def _files(shop: Shop, version: str) -> dict[str, str]:
    """Return the digests of a version's files, having held it to being the first or verified."""
    if version == FIRST:
        return dict(shop.space.begun("model")["files"])
    with Ledger.open(shop.space.folder, readonly=True) as ledger:
        events = [e for e in ledger.events(steps=("unlearned", "verified")) if e.body["version"] == version]
    assert {e.step for e in events} == {"unlearned", "verified"}, f"{version} is served, and was not verified"
    return dict(events[0].body["files"])


def settle(storm: Storm) -> Counter[str]:
    """Process to the end without a kill, and hold what came of it to what was acknowledged; return deployed events."""
    shop = storm.shop
    code, out, err = expunge("requests", "process", cwd=shop.folder)
    assert code == 0, err
    assert "Still open" not in out
    assert expunge("requests", "process", cwd=shop.folder)[:2] == (0, "Nothing to do.\n")
    code, out, _ = expunge("requests", "verify", cwd=shop.folder)
    assert code == 0, out
    with shop.ledger() as ledger:
        events = list(ledger.events())
        assert {e.seq: e.digest for e in events}.items() >= {(h.seq, h.digest) for h in storm.heads if h.seq}
        statuses = {s.request: s for s in ledger.all()}
        asked = {r: ledger.request(r).values for r in statuses}
    for mine in storm.said:
        assert asked[mine["request"]] == (mine["id"],), "an acknowledged request was lost"
    assert {s.word for s in statuses.values()} == {"closed"}
    _hold_fulfilled(events, statuses, asked)
    assert set(shop.remembered()) == {value for values in asked.values() for value in values}
    assert [p.name for p in (shop.space.folder / "models").rglob(".*")] == []
    assert shop.space.versions("model") == [shop.space.current("model")]
    _looked(shop, {})
    return Counter(e.body["how"] for e in events if e.step == "deployed")


def _hold_fulfilled(events: list[Any], statuses: dict[str, Any], asked: dict[str, tuple[str, ...]]) -> None:
    """Hold each request to being fulfilled once, and the versions to being made each from the one before."""
    done = Counter((e.request, e.body["how"]) for e in events if e.step == "deployed")
    ended = Counter((e.request, e.step) for e in events if e.step in ("received", "absent", "closed"))
    assert [each for each, count in (done | ended).items() if count > 1] == []
    for request, status in statuses.items():
        want = "retrain" if status.route == "edit-then-retrain" else "edit"
        assert done[request, want] + ended[request, "absent"] == 1, request
    made = {e.body["version"]: e.body for e in events if e.step == "unlearned"}
    served = list(dict.fromkeys(e.body["version"] for e in events if e.step == "deployed"))
    for older, newer in zip(served, served[1:], strict=False):
        assert made[newer]["before"] == made[older]["after"]
    edited = [made[version]["batch_samples"] for version in served if made[version]["how"] == "edit"]
    samples = {i for e in events if e.step == "deployed" and e.body["how"] == "edit" for i in asked[e.request]}
    assert sum(edited) == len(samples), "a sample was unlearned twice"
