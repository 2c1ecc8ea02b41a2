"""Worker processes: the same numbers, one that is killed costs its task only, all end with the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from benches import FORK, fill, leftovers, numbers, results, tiny
from expunge.bench import stages, workers
from expunge.bench.cell import Task
from expunge.bench.runner import plan, run
from expunge.bench.stages import Setting
from expunge.bench.store import Store
from expunge.bench.workers import Workers
from expunge.errors import UserError

LONG = "{epochs = 5000, batch_size = 50}"  # longer than any test


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are copies of this process, with what a test replaced in it."""
    monkeypatch.setattr(workers, "_SPAWN", FORK)


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    assert true()


def at_work(tmp_path: Path, count: int = 1) -> tuple[Store, Workers, list[Task]]:
    """Return workers in the midst of long tasks."""
    grid = tiny(tmp_path, recipe=LONG, seeds=str(count))
    store = Store.open(tmp_path / "store")
    tasks = [t for t in plan(results(grid), store).tasks if t.stage == "trained"]
    executor = Workers(Setting(store.path), count)
    for task in tasks:
        executor.submit(task)
    until(lambda: all(store.status(task) == "running" for task in tasks))
    return store, executor, tasks


def test_numbers_are_those_of_one_process_and_a_killed_worker_costs_its_task_only(
    forks: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grid = tiny(tmp_path)
    fill(grid, tmp_path / "here")
    executor: list[Workers] = []
    killed: list[int] = []

    class Watched(Workers):
        def wait(self, seconds: float) -> Any:
            for claim in (self.setting.store / "claims").glob("retrained-*.json"):
                if not killed:
                    killed.append(json.loads(claim.read_text())["pid"])
                    os.kill(killed[0], signal.SIGKILL)
            return super().wait(0.001)

    def two(setting: Setting) -> Workers:
        executor.append(Watched(setting, 2))
        return executor[0]

    summary = fill(grid, tmp_path / "there", two)
    assert killed[0] != os.getpid()
    assert summary.counts == {"done": 11}
    assert numbers(tmp_path / "there") == numbers(tmp_path / "here")
    assert leftovers(tmp_path / "there") == []
    assert executor[0].idle == executor[0].busy == []
    assert "a worker died over retrained/" in caplog.text


def test_workers_end_when_the_main_process_is_killed(tmp_path: Path) -> None:
    grid, path = tiny(tmp_path, recipe="{epochs = 20, batch_size = 50}"), tmp_path / "store"
    script = (
        "import sys; from pathlib import Path; from expunge.bench.workers import Workers; from benches import fill;"
        "from expunge.bench.grid import load\n"
        "if __name__ == '__main__': fill(load(Path(sys.argv[1])), Path(sys.argv[2]), lambda s: Workers(s, 2))"
    )
    (tmp_path / "script.py").write_text(script)
    words = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "tiny.toml"), str(path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(words, env=environment)
    until(lambda: [*(path / "claims").glob("retrained-*.json")])
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    summary = fill(grid, path)  # waits for what the orphans finish
    assert summary.failed == []
    assert psutil.wait_procs(children, timeout=60)[1] == []
    fill(grid, tmp_path / "whole")
    assert numbers(path) == numbers(tmp_path / "whole")


def test_a_task_over_which_two_workers_die_is_failed_and_the_rest_is_done(
    forks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deadly(work: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    grid = tiny(tmp_path)
    with monkeypatch.context() as patch:
        patch.setitem(stages._STAGES, "prepared", deadly)
        summary = fill(grid, tmp_path / "store", lambda setting: Workers(setting, 2))
    assert {task.stage for task in summary.failed} == {"prepared"}
    assert summary.counts == {"done": 5, "failed": 2, "blocked": 4}
    store = Store.open(tmp_path / "store")
    assert "2 workers died over it" in (store.failure(summary.failed[0]) or {})["message"]
    assert leftovers(store.path) == []
    assert fill(grid, store.path).counts == {}
    assert fill(grid, store.path, lambda setting: Workers(setting, 2), retry=True).counts == {"done": 6}


def test_a_task_that_raises_is_failed_with_its_traceback_and_the_worker_goes_on(
    forks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(work: Any) -> Any:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setitem(stages._STAGES, "reference", broken)
    summary = fill(tiny(tmp_path), tmp_path / "store", lambda setting: Workers(setting, 1))
    (failed,) = summary.failed
    found = Store.open(tmp_path / "store").failure(failed) or {}
    assert found["message"] == "ZeroDivisionError: by nothing"
    assert "in broken" in found["traceback"]
    assert summary.counts == {"done": 8, "failed": 1, "blocked": 2}


def test_what_no_task_is_to_blame_for_ends_the_run(
    forks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> Any:
        raise UserError("to write the store", "No space left on device", "free the space")

    monkeypatch.setattr(workers, "perform", full)
    executor: list[Workers] = []

    def one(setting: Setting) -> Workers:
        executor.append(Workers(setting, 1))
        return executor[0]

    with pytest.raises(UserError, match="to write the store, got No space left on device: free the space"):
        fill(tiny(tmp_path), tmp_path / "store", one)
    assert executor[0].idle == executor[0].busy == []


def test_ending_workers_frees_their_claims_and_no_process_is_left(forks: None, tmp_path: Path) -> None:
    store, executor, tasks = at_work(tmp_path, 2)
    assert executor.room == 0
    pids = [worker.process.pid for worker in executor.busy]
    executor.close()
    assert [store.status(task) for task in tasks] == ["missing", "missing"]
    assert leftovers(store.path) == []
    assert not any(psutil.pid_exists(pid) for pid in pids if pid is not None)


def test_a_worker_that_does_not_end_when_it_is_told_to_is_killed(
    forks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "GRACE", 0.1)
    monkeypatch.setattr(workers, "_leave", signal.SIG_IGN)
    store, executor, tasks = at_work(tmp_path)
    executor.close()
    assert store.status(tasks[0]) == "missing"  # its claim is a dead process's
    store.sweep()
    assert leftovers(store.path) == []


def test_an_interruption_ends_workers_and_frees_claims(
    forks: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grid = tiny(tmp_path)
    store = Store.open(tmp_path / "store")
    executor = Workers(Setting(store.path), 2)

    def stop(task: Task, *said: Any) -> None:
        if task.stage == "drawn":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan(results(grid), store), store, executor, told=stop)
    assert executor.busy == executor.idle == []
    assert leftovers(store.path) == []
    assert "of 11 tasks are done, the same command does the rest" in caplog.text
    assert fill(grid, store.path).failed == []


def test_a_worker_that_died_while_idle_is_replaced(forks: None, tmp_path: Path) -> None:
    grid = tiny(tmp_path)
    store = Store.open(tmp_path / "store")
    first, second, *_ = plan(results(grid), store).tasks
    executor = Workers(Setting(store.path), 1)
    executor.submit(first)
    assert executor.wait(60) == [(first, "done")]
    (worker,) = executor.idle
    worker.process.kill()
    worker.process.join()
    executor.submit(second)
    ended = executor.wait(60)
    executor.close()
    assert ended == [(second, "done")]


def test_ctrl_c_of_the_terminal_is_left_to_the_main_process(forks: None, tmp_path: Path) -> None:
    store, executor, tasks = at_work(tmp_path)
    (worker,) = executor.busy
    assert worker.process.pid is not None
    os.kill(worker.process.pid, signal.SIGINT)
    assert executor.wait(0.3) == []
    assert worker.process.is_alive()
    assert store.status(tasks[0]) == "running"
    executor.close()
