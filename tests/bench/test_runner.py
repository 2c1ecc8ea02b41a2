"""What is done when, by whom, and what becomes of the rest: scheduling without work, then with."""

from __future__ import annotations

import logging
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from benches import fill, numbers, results, tiny
from expunge.bench import runner
from expunge.bench.runner import InProcess, Plan, Report, one_by_one, plan, run
from expunge.bench.stages import Setting
from expunge.bench.store import Store


@dataclass(frozen=True)
class Fake:
    """A task that is nothing but a name and what it reads."""

    key: str
    reads: tuple[Fake, ...] = ()
    stage: str = "s"

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.key}"


@dataclass
class Memory:
    """A store without folders."""

    states: dict[str, str] = field(default_factory=dict)
    claims: set[str] = field(default_factory=set)
    said: dict[str, str] = field(default_factory=dict)

    def status(self, task: Any) -> str:
        state = self.states.get(task.name, "missing")
        return "running" if state in ("missing", "failed") and task.name in self.claims else state

    def sweep(self) -> None:
        pass

    def forget(self, task: Any) -> None:
        del self.states[task.name]

    def fail(self, task: Any, message: str, trace: str, usage: bool) -> None:
        self.states[task.name], self.said[task.name] = "failed", message

    @contextmanager
    def claimed(self, task: Any) -> Iterator[bool]:
        yield task.name not in self.claims


class Hand:
    """An executor that takes so many tasks at once and ends each as it is told to, in the order they came."""

    def __init__(self, store: Memory, count: int = 1, **reports: list[Report]) -> None:
        self.store, self.count, self.reports = store, count, reports
        self.taken: list[Any] = []
        self.order: list[str] = []
        self.most, self.closed, self.waits = 0, 0, 0

    @property
    def room(self) -> int:
        return self.count - len(self.taken)

    def submit(self, task: Any) -> None:
        assert self.room > 0
        assert all(self.store.states.get(n.name) == "done" for n in task.reads)
        self.taken.append(task)
        self.order.append(task.key)
        self.most = max(self.most, len(self.taken))

    def wait(self, seconds: float) -> list[tuple[Any, Report]]:
        self.waits += 1
        if not self.taken:
            return []
        task = self.taken.pop(0)
        left = self.reports.get(task.key, [])
        report = left.pop(0) if left else "done"
        if report not in ("lost", "busy"):
            self.store.states[task.name] = report
        return [(task, report)]

    def close(self) -> None:
        self.closed += 1


def chain(*names: str) -> list[Fake]:
    """Return tasks of which each reads the one before."""
    found: list[Fake] = []
    for name in names:
        found.append(Fake(name, tuple(found[-1:])))
    return found


def go(
    tasks: list[Fake], store: Memory | None = None, hand: Hand | None = None, **options: Any
) -> tuple[Any, Any, Any]:
    store = store or Memory()
    hand = hand or Hand(store)
    told: list[tuple[str, str, int, int]] = []
    found = plan(tasks, store, **options)  # type: ignore[arg-type]
    summary = run(found, store, hand, told=lambda t, o, a, b: told.append((t.key, o, a, b)))  # type: ignore[arg-type]
    assert hand.closed == 1
    return summary, hand, told


def test_each_task_waits_for_what_it_reads_and_the_plans_order_is_kept() -> None:
    a, b = Fake("a"), Fake("b")
    c, d = Fake("c", (a,)), Fake("d", (b, a))
    summary, hand, told = go([c, d], hand=Hand(store := Memory(), 1), store=store)
    assert hand.order == ["a", "c", "b", "d"]
    assert summary.counts == {"done": 4}
    assert told == [("a", "done", 1, 4), ("c", "done", 2, 4), ("b", "done", 3, 4), ("d", "done", 4, 4)]


def test_no_more_are_handed_over_than_there_is_room() -> None:
    store = Memory()
    _, hand, _ = go([Fake(str(n)) for n in range(9)], store, Hand(store, 3))
    assert hand.most == 3
    assert hand.order == [str(n) for n in range(9)]


def test_what_reads_a_failed_one_is_blocked_and_the_rest_is_done() -> None:
    a, b, c = chain("a", "b", "c")
    store = Memory()
    summary, hand, told = go([c, Fake("d", (a,))], store, Hand(store, b=["failed"]))
    assert hand.order == ["a", "b", "d"]
    assert [t.key for t in summary.failed] == ["b"]
    assert [t.key for t in summary.blocked] == ["c"]
    assert summary.counts == {"done": 2, "failed": 1, "blocked": 1}
    assert ("c", "blocked", 3, 4) in told


def test_what_reads_a_declined_one_is_declined_and_not_handed_over() -> None:
    a, b, c = chain("a", "b", "c")
    store = Memory()
    summary, hand, _ = go([c], store, Hand(store, b=["declined"]))
    assert hand.order == ["a", "b"]
    assert summary.counts == {"done": 1, "declined": 2}
    assert go([c], store)[1].order == []


def test_a_worker_that_died_costs_its_task_only_and_a_second_death_fails_it(caplog: pytest.LogCaptureFixture) -> None:
    a, b, c = chain("a", "b", "c")
    store = Memory()
    summary, hand, _ = go([c], store, Hand(store, b=["lost"]))
    assert hand.order == ["a", "b", "b", "c"]
    assert summary.counts == {"done": 3}
    assert "a worker died over s/b, 1 of 2 times" in caplog.text
    store = Memory()
    summary, hand, _ = go([c, Fake("d")], store, Hand(store, b=["lost", "lost", "lost"]))
    assert hand.order == ["a", "b", "b", "d"]
    assert summary.counts == {"done": 2, "failed": 1, "blocked": 1}
    assert store.said["s/b"] == "2 workers died over it, the last without a word: too little memory?"


def test_deaths_are_of_one_run_those_of_a_run_that_was_itself_ended_are_not_counted() -> None:
    for _ in range(3):
        store = Memory()
        summary, *_ = go([Fake("a")], store, Hand(store, a=["lost"]))
        assert summary.counts == {"done": 1}


class Later(Hand):
    """Another run works on a task, and after some looks its claim goes and the state is what it left."""

    def __init__(self, store: Memory, name: str, state: str, looks: int = 3, **reports: list[Report]) -> None:
        super().__init__(store, **reports)
        self.name, self.state, self.looks = name, state, looks
        store.claims.add(name)

    def wait(self, seconds: float) -> list[tuple[Any, Report]]:
        if self.waits == self.looks:
            self.store.claims.discard(self.name)
            if self.state != "missing":
                self.store.states[self.name] = self.state
        return super().wait(seconds)


@pytest.mark.parametrize(
    ("state", "order", "counts"),
    [
        ("done", ["a", "d", "b"], {"done": 3}),
        ("missing", ["a", "d", "a", "b"], {"done": 3}),
        ("failed", ["a", "d"], {"done": 1, "failed": 1, "blocked": 1}),
        ("declined", ["a", "d"], {"done": 1, "declined": 2}),
    ],
)
def test_what_another_run_works_on_is_waited_for(
    state: str, order: list[str], counts: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "POLL", 0.0)
    a, b = chain("a", "b")
    store = Memory()
    summary, hand, told = go([b, Fake("d")], store, Later(store, "s/a", state, a=["busy"]))
    assert hand.order == order
    assert summary.counts == counts
    assert hand.waits > 3
    assert len(told) == 3


def test_a_task_that_killed_workers_is_not_failed_while_another_run_works_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "POLL", 0.0)
    store = Memory()
    summary, hand, _ = go([Fake("a")], store, Later(store, "s/a", "done", a=["lost", "lost"]))
    assert hand.order == ["a", "a"]
    assert summary.counts == {"done": 1}
    assert store.said == {}


def test_failed_and_corrupt_ones_are_left_alone_unless_asked_for() -> None:
    a, b, c = chain("a", "b", "c")
    states = {"s/a": "done", "s/b": "failed", "s/e": "corrupt"}
    tasks = [c, Fake("e"), Fake("f")]

    def kept() -> Memory:
        return Memory(dict(states))

    summary, hand, _ = go(tasks, kept())
    assert hand.order == ["f"]
    assert ([t.key for t in summary.failed], [t.key for t in summary.corrupt]) == (["b"], ["e"])
    assert [t.key for t in summary.blocked] == ["c"]
    assert go(tasks, kept(), retry=True)[1].order == ["b", "c", "f"]
    assert go(tasks, kept(), recompute=True)[1].order == ["e", "f"]
    assert go(tasks, kept(), retry=True, recompute=True)[0].counts == {"done": 4}


def test_a_failure_that_another_run_tries_again_is_not_removed_under_its_hands() -> None:
    store = Memory({"s/a": "failed"})
    found = plan([Fake("a")], store, retry=True)  # type: ignore[arg-type]
    store.claims.add("s/a")
    runner._forget(store, Fake("a"))  # type: ignore[arg-type]
    assert store.states == {"s/a": "failed"}
    store.claims.clear()
    runner._forget(store, found.tasks[0])  # type: ignore[arg-type]
    assert store.states == {}


def test_a_finished_tasks_own_needs_are_not_looked_at() -> None:
    a, b, c = chain("a", "b", "c")
    asked: list[str] = []

    class Counted(Memory):
        def status(self, task: Any) -> str:
            asked.append(task.key)
            return super().status(task)

    found = plan([c, c, Fake("d", (b,))], Counted({"s/c": "done"}))  # type: ignore[arg-type]
    assert [t.key for t in found.tasks] == ["a", "b", "d"]
    assert asked == ["c", "d", "b", "a"]  # each once


def test_an_interruption_ends_the_work_and_says_how_far_it_came(caplog: pytest.LogCaptureFixture) -> None:
    store = Memory()
    hand = Hand(store)

    def stop(task: Any, outcome: str, over: int, of: int) -> None:
        if over == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Plan(chain("a", "b", "c")), store, hand, told=stop)  # type: ignore[arg-type]
    assert hand.closed == 1
    assert caplog.records[-1].levelno == logging.WARNING
    assert caplog.messages[-1] == "interrupted: 2 of 3 tasks are done, the same command does the rest"


def calls(count: int) -> int:
    """Return how many functions a run of so many tasks calls: every tenth shared, the last ones ready first."""
    shared = [Fake(f"x{n}") for n in range(count // 10)]
    tasks = [Fake(f"{n}", (shared[n % len(shared)],)) for n in range(count)]
    store, found = Memory(), 0
    work = Plan([*shared, *tasks])  # type: ignore[list-item]

    def counted(*event: Any) -> None:
        nonlocal found
        found += event[1] in ("call", "c_call")

    sys.setprofile(counted)
    try:
        run(work, store, Hand(store, 7))  # type: ignore[arg-type]
    finally:
        sys.setprofile(None)
    assert len(store.states) == count + len(shared)
    return found


def test_ten_times_the_tasks_take_ten_times_the_steps_not_a_hundred() -> None:
    assert calls(3000) < 13 * calls(300)


# With real work.


def test_in_process_work_is_on_one_thread_and_the_number_is_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen: list[int] = []
        executor = InProcess(Setting(tmp_path / "store"), progress=lambda p: seen.append(torch.get_num_threads()))
        store = Store.open(tmp_path / "store")
        (first, *_) = plan(results(tiny(tmp_path)), store).tasks
        executor.submit(first)
        assert executor.room == 0
        assert executor.wait(0.0) == [(first, "done")]
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
        with one_by_one():
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_second_run_computes_nothing_and_a_new_method_only_its_own_cells(tmp_path: Path) -> None:
    fill(tiny(tmp_path), tmp_path / "store")
    before = numbers(tmp_path / "store")
    assert fill(tiny(tmp_path), tmp_path / "store").counts == {}
    more = tiny(tmp_path, methods='["finetune", "lfssd", "ssd"]')
    told: list[str] = []
    assert fill(more, tmp_path / "store", told=lambda t, *_: told.append(t.stage)).counts == {"done": 3}
    assert told == ["prepared", "unlearned", "measured"]
    after = numbers(tmp_path / "store")
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2


def test_a_run_waits_for_a_task_that_a_living_process_has_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "POLL", 0.01)
    grid = tiny(tmp_path)
    fill(grid, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "store")
    store = Store.open(tmp_path / "store")
    last = results(grid)[-1]
    store.forget(last)
    looks: list[float] = []
    look = runner._State.look

    def looked(self: Any) -> None:
        looks.append(time.monotonic())
        look(self)

    monkeypatch.setattr(runner._State, "look", looked)
    found: list[Any] = []
    with store.claimed(last):
        thread = threading.Thread(target=lambda: found.append(fill(grid, store.path)))
        thread.start()
        while len(looks) < 10 and thread.is_alive():
            time.sleep(0.01)
        assert found == []
        assert store.status(last) == "running"
    thread.join()
    assert found[0].counts == {"done": 1}
    assert numbers(store.path) == numbers(tmp_path / "whole")
