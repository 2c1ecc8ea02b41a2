"""Filling a grid: the tasks that are missing, in an order in which each has what it needs, on any executor."""

from __future__ import annotations

import heapq
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, Protocol

import torch
from threadpoolctl import ThreadpoolController

from expunge.bench.cell import Task, walked
from expunge.bench.stages import Setting, perform
from expunge.bench.store import Status, Store
from expunge.runtime import Progress

log = logging.getLogger(__name__)
FINISHED: tuple[Status, ...] = ("done", "declined")
POLL = 0.5  # seconds between two looks at tasks that another run works on
DEATHS = 2  # workers that may die over one task in a run before it counts as failed
THREADS = 1  # of processor arithmetic: sums over more of them differ in the last bits from machine to machine
Report = Literal["done", "declined", "failed", "busy", "lost"]
Told = Callable[[Task, str, int, int], None]


class Executor(Protocol):
    """Where tasks are done."""

    @property
    def room(self) -> int:
        """How many more tasks can be taken now."""
        ...

    def submit(self, task: Task) -> None:
        """Take a task."""
        ...

    def wait(self, seconds: float) -> list[tuple[Task, Report]]:
        """Return tasks that ended, ``lost`` where the worker died; none when so many seconds have passed."""
        ...

    def close(self) -> None:
        """End all work."""
        ...


@contextmanager
def one_by_one(threads: int = THREADS) -> Iterator[None]:
    """Let arithmetic on the processor use so many threads: the same number on every executor gives the same bits."""
    before = torch.get_num_threads()
    with _pools().limit(limits=threads):
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@cache
def _pools() -> ThreadpoolController:
    return ThreadpoolController()


@dataclass
class InProcess:
    """Does one task after another in this process, on one thread; more processor cores are used by `Workers`.

    Args:
        setting: where results are.
        progress: receives the progress of long passes.
    """

    setting: Setting
    progress: Callable[[Progress], None] | bool | None = False
    waiting: list[Task] = field(default_factory=list)

    @property
    def room(self) -> int:
        """One task at a time."""
        return 1 - len(self.waiting)

    def submit(self, task: Task) -> None:
        """Keep the task for `wait`."""
        self.waiting.append(task)

    def wait(self, seconds: float) -> list[tuple[Task, Report]]:
        """Do what was kept."""
        if not self.waiting:
            time.sleep(seconds)
            return []
        with one_by_one():
            return [(task, perform(task, self.setting, self.progress)) for task in [self.waiting.pop()]]

    def close(self) -> None:
        """Nothing to end."""


@dataclass
class Summary:
    """What a run came to.

    Args:
        counts: tasks by outcome, of this run alone.
        failed: tasks that raised, now or before.
        corrupt: folders that are not what was written.
        blocked: tasks that need one of those.
        seconds: of the run.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failed: list[Task] = field(default_factory=list)
    corrupt: list[Task] = field(default_factory=list)
    blocked: list[Task] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Plan:
    """What is to be done.

    Args:
        tasks: missing ones, each after what it needs.
        again: those of them that failed before, or whose folder is corrupt.
        failed: those that failed before and are not to be tried again.
        corrupt: those whose folder is not what was written and are not to be computed anew.
        blocked: those that need one of these.
    """

    tasks: list[Task] = field(default_factory=list)
    again: list[Task] = field(default_factory=list)
    failed: list[Task] = field(default_factory=list)
    corrupt: list[Task] = field(default_factory=list)
    blocked: list[Task] = field(default_factory=list)


def plan(results: Iterable[Task], store: Store, *, retry: bool = False, recompute: bool = False) -> Plan:
    """Return what is missing for these results; a finished task's own needs are not asked for.

    Args:
        results: the last tasks of cells.
        store: what is there.
        retry: try failed ones again.
        recompute: compute corrupt ones anew.

    Returns:
        Tasks in an order in which each stands after what it needs.
    """
    found, seen, becomes = Plan(), dict[str, Status](), dict[str, str]()
    lists = {"missing": found.tasks, "failed": found.failed, "corrupt": found.corrupt, "blocked": found.blocked}
    closed = {*FINISHED, *(() if retry else ("failed",)), *(() if recompute else ("corrupt",))}

    def missing(task: Task) -> bool:
        seen[task.name] = store.status(task)
        return seen[task.name] not in closed

    for task in walked(results, missing):
        became: str = seen[task.name]
        if became not in closed:
            became = _through(becomes[need.name] for need in task.reads) or "missing"
        becomes[task.name] = became
        if became in lists:
            lists[became].append(task)
        if became == "missing" and seen[task.name] in ("failed", "corrupt"):
            found.again.append(task)
    return found


def _through(needs: Iterable[str]) -> Literal["blocked", "declined"] | None:
    """Return what becomes of a task through what it needs; None where nothing stands in its way."""
    found = set(needs)
    if found & {"failed", "corrupt", "blocked"}:
        return "blocked"
    return "declined" if "declined" in found else None


def run(work: Plan, store: Store, executor: Executor, *, told: Told | None = None) -> Summary:
    """Do all tasks of a plan; several runs on one store share the work.

    Args:
        work: from `plan`.
        store: where results are.
        executor: does them; closed at the end.
        told: called with each task that ended, its outcome, and how many of how many have.

    Returns:
        What it came to.

    Raises:
        KeyboardInterrupt: the run was interrupted; work under way has ended, its claims are free.
    """
    begun, summary = time.perf_counter(), Summary(failed=work.failed, corrupt=work.corrupt, blocked=work.blocked)
    state = _State(store, work.tasks, told or (lambda task, outcome, over, of: None))
    try:
        store.sweep()
        for task in work.again:
            _forget(store, task)
        while state.left:
            state.look()
            for task in state.ready(executor.room):
                executor.submit(task)
            if state.left:
                for task, report in executor.wait(POLL):
                    state.ended(task, report)
    except KeyboardInterrupt:
        log.warning("interrupted: %d of %d tasks are done, the same command does the rest", *state.so_far)
        raise
    finally:
        executor.close()
    summary.counts.update(state.over.values())
    summary.failed += [t for t in work.tasks if state.over[t.name] == "failed"]
    summary.blocked += [t for t in work.tasks if state.over[t.name] == "blocked"]
    summary.seconds = time.perf_counter() - begun
    return summary


def _forget(store: Store, task: Task) -> None:
    """Remove what is to be done again, so that it does not look finished to others; unless others are at it."""
    if store.status(task) in ("failed", "corrupt"):
        with store.claimed(task) as mine:
            if mine and store.status(task) not in FINISHED:
                store.forget(task)


class _State:
    """Which tasks wait, run, and are over.

    Args:
        store: where results are.
        tasks: each after what it needs.
        told: called with each that is over.
    """

    def __init__(self, store: Store, tasks: list[Task], told: Told) -> None:
        self.store, self.told, self.tasks = store, told, {task.name: task for task in tasks}
        self.place = {name: n for n, name in enumerate(self.tasks)}
        self.needs = {name: [n.name for n in t.reads if n.name in self.tasks] for name, t in self.tasks.items()}
        self.missing = {name: len(needs) for name, needs in self.needs.items()}
        self.needed_by = defaultdict[str, list[str]](list)
        for name, needs in self.needs.items():
            for need in needs:
                self.needed_by[need].append(name)
        self.queue = [(self.place[name], name) for name, missing in self.missing.items() if missing == 0]
        self.elsewhere: dict[str, float] = {}  # claimed by another run, with the time of the next look
        self.deaths: Counter[str] = Counter()
        self.over: dict[str, str] = {}

    @property
    def left(self) -> int:
        """How many tasks are not over."""
        return len(self.tasks) - len(self.over)

    @property
    def so_far(self) -> tuple[int, int]:
        """How many are over, of how many."""
        return len(self.over), len(self.tasks)

    def ready(self, most: int) -> Iterator[Task]:
        """Yield tasks whose needs are all done, in the plan's order, and take them from those that wait."""
        while most > 0 and self.queue:
            _, name = heapq.heappop(self.queue)
            if self.deaths[name] < DEATHS:
                most -= 1
                yield self.tasks[name]
            else:
                self._give_up(name)

    def look(self) -> None:
        """See what other runs have finished, or given up."""
        now = time.monotonic()
        for name in [n for n, when in self.elsewhere.items() if when <= now]:
            status = self.store.status(self.tasks[name])
            if status == "running":
                self.elsewhere[name] = now + POLL
                continue
            del self.elsewhere[name]
            if status in (*FINISHED, "failed"):
                self._close(name, status)
            else:
                heapq.heappush(self.queue, (self.place[name], name))

    def ended(self, task: Task, report: Report) -> None:
        """Note what became of a task; one that others work on, or whose worker died, waits again."""
        if report == "busy":
            self.elsewhere[task.name] = time.monotonic() + POLL
        elif report == "lost":
            self.deaths[task.name] += 1
            log.warning("a worker died over %s, %d of %d times", task.name, self.deaths[task.name], DEATHS)
            heapq.heappush(self.queue, (self.place[task.name], task.name))
        else:
            self._close(task.name, report)

    def _give_up(self, name: str) -> None:
        task = self.tasks[name]
        with self.store.claimed(task) as mine:
            if not mine:
                self.elsewhere[name] = time.monotonic() + POLL
                return
            status = self.store.status(task)
            if status not in FINISHED:
                said = f"{DEATHS} workers died over it, the last without a word: too little memory?"
                self.store.fail(task, said, "", usage=False)
                status = "failed"
        self._close(name, status)

    def _close(self, name: str, outcome: str) -> None:
        """Note that a task is over, and so are those that can no longer be done; others may now have all they need."""
        closing = [(name, outcome)]
        while closing:
            name, outcome = closing.pop()
            if name in self.over:
                continue
            self.over[name] = outcome
            self.told(self.tasks[name], outcome, *self.so_far)
            for other in self.needed_by[name]:
                self.missing[other] -= 1
                through = _through(self.over[n] for n in self.needs[other] if n in self.over)
                if through is not None:
                    closing.append((other, through))
                elif self.missing[other] == 0:
                    heapq.heappush(self.queue, (self.place[other], other))
