"""Filling a grid: the tasks that are missing, in an order in which each has what it needs, on any executor."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from expunge.bench.cell import Task
from expunge.bench.stages import Outcome, Setting, perform
from expunge.bench.store import Status, Store
from expunge.runtime import Progress

log = logging.getLogger(__name__)
FINISHED: tuple[Status, ...] = ("done", "declined")
POLL = 0.5  # seconds between two looks at tasks that another run works on
Report = Literal["done", "declined", "failed", "busy", "lost"]


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


@dataclass
class InProcess:
    """Does one task after another in this process.

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
        ended: list[tuple[Task, Report]] = [(t, perform(t, self.setting, self.progress)) for t in self.waiting]
        self.waiting.clear()
        return ended

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
        failed: those that failed before and are not to be tried again.
        corrupt: those whose folder is not what was written and are not to be computed anew.
        blocked: those that need one of these.
    """

    tasks: list[Task] = field(default_factory=list)
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
    found, seen = Plan(), dict[str, str]()

    def visit(task: Task) -> str:
        if task.name in seen:
            return seen[task.name]
        status: str = store.status(task)
        if status in FINISHED:
            seen[task.name] = status
        elif status == "failed" and not retry:
            found.failed.append(task)
            seen[task.name] = "failed"
        elif status == "corrupt" and not recompute:
            found.corrupt.append(task)
            seen[task.name] = "corrupt"
        else:
            needs = [visit(need) for need in task.needs]
            stuck = any(s in ("failed", "corrupt", "blocked") for s in needs)
            gone = "declined" in needs
            seen[task.name] = "blocked" if stuck else "declined" if gone else "missing"
            if stuck:
                found.blocked.append(task)
            elif not gone:
                found.tasks.append(task)
        return seen[task.name]

    for task in results:
        visit(task)
    return found


def run(
    work: Plan,
    store: Store,
    executor: Executor,
    *,
    told: Callable[[Task, str, int, int], None] | None = None,
) -> Summary:
    """Do all tasks of a plan; several runs on one store share the work.

    Args:
        work: from `plan`.
        store: where results are.
        executor: does them; closed at the end.
        told: called with each task that ended, its outcome, and how many of how many have.

    Returns:
        What it came to.
    """
    begun, summary = time.perf_counter(), Summary(failed=work.failed, corrupt=work.corrupt, blocked=work.blocked)
    state = _State(store, {task.name: task for task in work.tasks})
    for task in work.tasks:  # what somebody is to try again must not look finished to others
        if store.status(task) in ("failed", "corrupt"):
            store.forget(task)
    try:
        while state.waiting or state.running:
            state.look()
            for task in state.ready(executor.room):
                executor.submit(task)
                state.running[task.name] = task
            for task, report in executor.wait(POLL):
                outcome = state.ended(task, report)
                if outcome is not None and told is not None:
                    told(task, outcome, len(state.over), len(work.tasks))
    finally:
        executor.close()
    summary.counts.update(state.over.values())
    summary.failed += [t for t in work.tasks if state.over.get(t.name) == "failed"]
    summary.blocked += [t for t in work.tasks if state.over.get(t.name) == "blocked"]
    summary.seconds = time.perf_counter() - begun
    return summary


class _State:
    """Which tasks wait, run, and are over."""

    def __init__(self, store: Store, tasks: dict[str, Task]) -> None:
        self.store, self.tasks = store, tasks
        self.waiting = dict(tasks)
        self.running: dict[str, Task] = {}
        self.elsewhere: dict[str, float] = {}  # claimed by another run, with the time of the next look
        self.over: dict[str, str] = {}

    def ready(self, most: int) -> Sequence[Task]:
        """Return tasks whose needs are all done, and take them from those that wait."""
        found: list[Task] = []
        for name, task in list(self.waiting.items()):
            if len(found) >= most:
                break
            if name in self.elsewhere:
                continue
            needs = [self.over.get(n.name, "waiting") if n.name in self.tasks else "done" for n in task.needs]
            if any(n in ("failed", "blocked") for n in needs):
                self._close(name, "blocked")
            elif "declined" in needs:
                self._close(name, "declined")
            elif all(n == "done" for n in needs):
                found.append(self.waiting.pop(name))
        return found

    def look(self) -> None:
        """See what other runs have finished, or given up."""
        now = time.monotonic()
        for name, when in list(self.elsewhere.items()):
            if now >= when:
                status = self.store.status(self.tasks[name])
                if status in (*FINISHED, "failed"):
                    self._close(name, status)
                if status != "running":
                    del self.elsewhere[name]
                else:
                    self.elsewhere[name] = now + POLL

    def ended(self, task: Task, report: Report) -> Outcome | None:
        """Note what became of a task; one that others work on, or whose worker died, waits again."""
        del self.running[task.name]
        if report == "lost":
            log.warning("a worker died over %s: it will be done again", task.name)
        if report == "busy" or report == "lost":
            self.waiting[task.name] = task
            if report == "busy":
                self.elsewhere[task.name] = time.monotonic() + POLL
            return None
        self.over[task.name] = report
        return report

    def _close(self, name: str, outcome: str) -> None:
        self.waiting.pop(name, None)
        self.over[name] = outcome
