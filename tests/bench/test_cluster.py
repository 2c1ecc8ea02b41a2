"""Tasks on a local Ray cluster of two workers, one of which is killed while it works."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import expunge
from benches import STAGES, fill, leftovers, numbers, results, tiny
from expunge.bench import cluster
from expunge.bench.cell import Task
from expunge.bench.cluster import OnRay
from expunge.bench.runner import plan, run
from expunge.bench.stages import Setting
from expunge.bench.store import Store
from expunge.errors import Incompatible, UserError

os.environ.update(cluster.QUIET | cluster.ALONE)  # Ray reads them when it is imported
ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def two() -> Iterator[None]:
    """A cluster of two workers on this machine, for all tests: starting one takes many seconds."""
    quiet = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=cluster.MEMORY, **quiet)
    yield
    ray.shutdown()


class Killer(threading.Thread):
    """Kills the first worker that claims a task of a stage, once."""

    def __init__(self, store: Path, stage: str) -> None:
        super().__init__(daemon=True)
        self.store, self.stage, self.killed = store, stage, 0

    def run(self) -> None:
        end = time.monotonic() + 100
        while not self.killed and time.monotonic() < end:
            for claim in (self.store / "claims").glob(f"{self.stage}-*.json"):
                try:
                    self.killed = json.loads(claim.read_text())["pid"]
                    os.kill(self.killed, signal.SIGKILL)
                except (OSError, ValueError):
                    self.killed = 0
            time.sleep(0.002)


def test_a_killed_worker_costs_its_task_only_and_the_numbers_are_those_of_one_process(
    two: None, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    grid = tiny(tmp_path)
    fill(grid, tmp_path / "here")
    killer = Killer(tmp_path / "there", "retrained")
    killer.start()
    summary = fill(grid, tmp_path / "there", lambda setting: OnRay(setting))
    killer.join()
    assert killer.killed not in (0, os.getpid())
    assert "a worker died over retrained/" in caplog.text
    assert summary.counts == {"done": 11}
    assert numbers(tmp_path / "there") == numbers(tmp_path / "here")
    assert leftovers(tmp_path / "there") == []
    assert ray.is_initialized()  # the caller's cluster is the caller's to end
    out, err = capfd.readouterr()
    assert out + err == ""


def test_a_task_over_which_workers_die_is_failed_and_the_rest_is_done(
    two: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = tiny(tmp_path)

    def deadly(task: Task, *given: Any) -> Any:
        if task.stage == "unlearned" and task.cell.method["name"] == "ssd":
            os.kill(os.getpid(), signal.SIGKILL)
        return WORK(task, *given)

    monkeypatch.setattr(cluster, "_work", deadly)
    summary = fill(grid, tmp_path / "store", lambda setting: OnRay(setting))
    (failed,) = summary.failed
    assert (failed.stage, failed.cell.method["name"]) == ("unlearned", "ssd")
    assert "2 workers died over it" in (Store.open(tmp_path / "store").failure(failed) or {})["message"]
    assert summary.counts == {"done": 9, "failed": 1, "blocked": 1}
    monkeypatch.undo()
    again = fill(grid, tmp_path / "store", lambda setting: OnRay(setting), retry=True)
    assert again.counts == {"done": 2}


WORK = cluster._work


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"mark": "x"}, UserError, "the run's own store at .* on .*, got none, or another: put it into a folder that"),
        ({"version": "0"}, Incompatible, r"expunge 0 on .*: install the same version on every machine"),
    ],
)
def test_a_machine_with_another_store_or_version_is_refused_and_nothing_counts_as_failed(
    given: dict[str, str], error: type[UserError], said: str, two: None, tmp_path: Path
) -> None:
    grid = tiny(tmp_path)
    store = Store.open(tmp_path / "store")
    executor = OnRay(Setting(store.path))
    setting, mark, version = executor._given
    executor._given = (setting, given.get("mark", mark), given.get("version", version))
    with pytest.raises(error, match=said):
        run(plan(results(grid), store), store, executor)
    assert not any((store.path / stage).exists() for stage in STAGES)


def test_what_no_machine_has_is_said_and_a_device_without_gpus_refused(
    two: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    OnRay(Setting(tmp_path / "store"), cpus=64)
    assert "has not now a machine with 64 processor cores and 0 graphics processors" in caplog.text
    with pytest.raises(UserError, match="gpus above 0 in .resources. for device cuda, got 0: set gpus"):
        OnRay(Setting(tmp_path / "store", device="cuda"))


def test_room_follows_the_resources_of_the_cluster(two: None, tmp_path: Path) -> None:
    setting = Setting(tmp_path / "store")
    assert OnRay(setting).room == 2 + cluster.AHEAD
    assert OnRay(setting, cpus=0.5).room == 4 + cluster.AHEAD


def test_places_are_the_same_on_every_machine(two: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXPUNGE_DATA", "data")
    setting = OnRay(Setting(Path("store"), {"a": Path("p.toml")})).setting
    assert setting == replace(
        setting, store=tmp_path / "store", data_dir=tmp_path / "data", projects={"a": tmp_path / "p.toml"}, device="cpu"
    )


def test_ending_a_run_frees_the_claims_of_what_was_at_work(two: None, tmp_path: Path) -> None:
    grid = tiny(tmp_path, recipe="{epochs = 2000, batch_size = 50}")
    store = Store.open(tmp_path / "store")
    executor = OnRay(Setting(store.path))
    (first, *_) = plan(results(grid), store).tasks
    executor.submit(first)
    end = time.monotonic() + 60
    while store.status(first) != "running" and time.monotonic() < end:
        time.sleep(0.05)
    assert store.status(first) == "running"
    executor.close()
    assert store.status(first) == "missing"
    assert leftovers(store.path) == []


def test_without_a_cluster_one_is_named_or_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert cluster._started() is None
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:6379")
    assert cluster._started() == "auto"


def test_workers_elsewhere_are_told_where_a_source_tree_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert cluster._environment() == {"PYTHONPATH": str(Path(expunge.__file__).parents[1])}
    monkeypatch.setattr(expunge, "__file__", "/lib/site-packages/expunge/__init__.py")
    assert cluster._environment() == {}
