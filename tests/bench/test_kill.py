"""kill -9 at every stage, two runs on one store: nothing lost, nothing half done, nothing twice, the same numbers."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benches import FORK, STAGES, fill, forked, leftovers, numbers, results, tiny
from expunge import checkpoints, train
from expunge.bench import runner, stages
from expunge.bench.cell import Task, ordered
from expunge.bench.grid import Grid
from expunge.bench.runner import plan
from expunge.bench.store import Store


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return tiny(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def whole(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The numbers of a run that nobody interrupted."""
    path = tmp_path_factory.mktemp("whole") / "store"
    fill(grid, path)
    return numbers(path)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Doomed:
    """Kills its own process at one moment of the first task of a stage."""

    def __init__(self, stage: str, moment: str) -> None:
        self.stage, self.moment = stage, moment

    def at(self, moment: str, task: Task) -> None:
        if moment == self.moment and task.stage == self.stage:
            die()

    def __call__(self, grid: Grid, path: Path) -> None:
        done, place = stages._done, Store._place
        made = dict(stages._STAGES)

        def begun(task: Task, *given: Any) -> Any:
            self.at("claimed", task)
            return done(task, *given)

        def worked(work: Any) -> Callable[[Path], None]:
            write = made[work.task.stage](work)

            def half(folder: Path) -> None:
                write(folder)
                self.at("half written", work.task)

            return half

        def placed(self_: Store, room: Path, task: Task) -> None:
            self.at("before the move", task)
            place(self_, room, task)
            self.at("after the move", task)

        stages._done, Store._place = begun, placed  # type: ignore[assignment,method-assign]
        stages._STAGES.update(dict.fromkeys(made, worked))
        fill(grid, path)
        os._exit(7)  # it lived


@pytest.mark.parametrize("moment", ["claimed", "half written", "before the move", "after the move"])
def test_killed_at_every_stage_and_run_again_each_time(
    moment: str, grid: Grid, whole: dict[str, bytes], tmp_path: Path
) -> None:
    path, tasks = tmp_path / "store", ordered(grid.cells())
    for stage in STAGES:
        assert forked(Doomed(stage, moment), grid, path) == -signal.SIGKILL
        left, room = Counter(stage for stage in STAGES for _ in (path / stage).glob("*")), Store.open(path)
        states = Counter(room.status(task) for task in tasks)
        assert set(states) <= {"done", "missing"}  # none half done, none claimed
        assert states["done"] == left.total()
        assert len(plan(results(grid), room).tasks) == states["missing"]
        assert len([*(path / "claims").glob("*.json")]) == 1
        assert len([*(path / "parts").glob("*")]) == (moment in ("half written", "before the move"))
        killed = next(task for task in tasks if task.stage == stage)
        assert (room.status(killed) == "done") is (moment == "after the move")
    summary = fill(grid, path)
    assert summary.counts == {"done": states["missing"]}
    assert numbers(path) == whole
    assert leftovers(path) == []


def _killed_in_training(grid: Grid, path: Path) -> None:
    runtime, write = stages.Setting.runtime, checkpoints._write

    def often(*given: Any) -> Any:
        return replace(runtime(*given), checkpoint_every=0)

    def once(*given: Any) -> None:
        write(*given)
        if given[3].epoch == 2:
            die()

    stages.Setting.runtime, checkpoints._write = often, once  # type: ignore[method-assign]
    fill(grid, path)
    os._exit(7)


def test_a_training_that_was_killed_goes_on_after_the_last_epoch_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = tiny(tmp_path, recipe="{epochs = 3, batch_size = 50}")
    fill(grid, tmp_path / "whole")
    path, epochs, epoch = tmp_path / "store", list[int](), train._epoch
    assert forked(_killed_in_training, grid, path) == -signal.SIGKILL
    assert len([*(path / "work").rglob("fit-*")]) == 1

    def counted(*given: Any) -> None:
        epochs.append(given[6])
        epoch(*given)

    monkeypatch.setattr(train, "_epoch", counted)
    fill(grid, path)
    assert epochs[:4] == [2, 0, 1, 2]  # the original's last epoch, then the first retrained model's all
    assert numbers(path) == numbers(tmp_path / "whole")
    assert [*(path / "work").rglob("fit-*")] == []
    assert leftovers(path) == []


def _killed_while_forgetting(path: Path, task: Task) -> None:
    rmtree = shutil.rmtree

    def kill(room: Path, **more: Any) -> None:
        if (Path(room) / "forgotten").exists():
            die()
        rmtree(room, **more)

    shutil.rmtree = kill  # type: ignore[assignment]
    Store.open(path).forget(task)
    os._exit(7)


def test_killed_while_an_old_folder_is_removed(grid: Grid, whole: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "store"
    fill(grid, path)
    last = results(grid)[-1]
    assert forked(_killed_while_forgetting, path, last) == -signal.SIGKILL
    assert Store.open(path).status(last) == "missing"
    assert len([*(path / "parts").iterdir()]) == 1
    assert fill(grid, path).counts == {"done": 1}
    assert numbers(path) == whole
    assert leftovers(path) == []


def _logged(grid: Grid, path: Path, start: Any) -> None:
    done = stages._done

    def noted(task: Task, *given: Any) -> Any:
        with (path.parent / "computed.txt").open("a", encoding="utf-8") as file:
            file.write(f"{task.name}\n")
        return done(task, *given)

    stages._done, runner.POLL = noted, 0.02
    start.wait()
    summary = fill(grid, path)
    os._exit(0 if summary.counts == {"done": len(ordered(grid.cells()))} else 1)


def test_two_runs_on_one_store_at_once_both_finish_and_nothing_is_computed_twice(
    grid: Grid, whole: dict[str, bytes], tmp_path: Path
) -> None:
    path, start = tmp_path / "store", FORK.Barrier(2)
    both = [FORK.Process(target=_logged, args=(grid, path, start)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(120)
    assert [one.exitcode for one in both] == [0, 0]
    computed = (tmp_path / "computed.txt").read_text().split()
    assert sorted(computed) == sorted(task.name for task in ordered(grid.cells()))
    assert numbers(path) == whole
    assert leftovers(path) == []


def test_one_of_two_runs_is_killed_and_the_other_does_its_work(
    grid: Grid, whole: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "store"
    doomed = FORK.Process(target=Doomed("retrained", "half written"), args=(grid, path))
    doomed.start()
    summary = fill(grid, path)
    doomed.join(120)
    assert doomed.exitcode in (-signal.SIGKILL, 7)
    assert summary.failed == []
    assert numbers(path) == whole
