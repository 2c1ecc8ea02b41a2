"""Tasks on a Ray cluster: one Ray task a stage, results by the store that all its machines share.

A worker that is killed, or a machine that is lost, costs its task only, which is done again.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import expunge
from expunge.bench.cell import Task
from expunge.bench.runner import Report, one_by_one
from expunge.bench.stages import Setting, perform
from expunge.bench.store import Store
from expunge.errors import Incompatible, UserError
from expunge.extras import imported
from expunge.zoo import named

log = logging.getLogger(__name__)
AHEAD = 4  # tasks handed over beyond those that fit at once, so that no worker waits for this process
GRACE = 10.0  # seconds that workers have to free their claims when they are told to end
MEMORY = 100 * 2**20  # bytes of Ray's object store where it is started here: results go by files
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": "."}  # reports nothing, prints nothing
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # listens to this machine alone
LOST = ("WorkerCrashedError", "NodeDiedError", "ObjectLostError", "OutOfMemoryError", "LocalRayletDiedError")


@dataclass
class OnRay:
    """Does tasks on a Ray cluster, each on one thread of a processor.

    Args:
        setting: where results are: a folder that every machine of the cluster sees under the same path.
        cpus: processor cores that a task takes.
        gpus: graphics processors that a task takes; without, work is done on the processor.
        address: of the cluster; None for that of ``RAY_ADDRESS`` or of ``ray start`` on this machine, and where there
            is none, as for ``local``, one that is started here and ended at the end.
        local: tasks at once where the cluster is started here.
        running: tasks that were handed over.

    Raises:
        MissingExtra: Ray is not installed.
        UserError: no cluster answers, or the one started here lacks what a task takes.
    """

    setting: Setting
    cpus: float = 1.0
    gpus: float = 0.0
    address: str | None = None
    local: int = 2
    running: dict[Any, Task] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.gpus == 0 and self.setting.device.startswith("cuda"):
            raise UserError("gpus above 0 in [resources] for device cuda", "0", "set gpus, for example to 0.5")
        store = Store.open(self.setting.store)
        data = named.folder_of(self.setting.data_dir)
        self.setting = replace(
            self.setting,
            store=self.setting.store.resolve(),
            data_dir=None if data is None else data.resolve(),
            projects={mark: file.resolve() for mark, file in self.setting.projects.items()},
            device=self.setting.device if self.gpus else "cpu",
        )
        os.environ.update(QUIET)
        known = self.address or os.environ.get("RAY_ADDRESS") or _started()
        here = known in (None, "local")
        os.environ.update(ALONE if here else {})
        self._ray = imported("ray", package="ray", extra="cluster")
        self._mine = not self._ray.is_initialized()
        if self._mine:
            self._connect(None if here else known)
        self._check_room(here and self._mine)
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": 0, "max_calls": 0}
        self._work = self._ray.remote(**options)(_work)
        self._given = (self.setting, store.identity, expunge.__version__)

    @property
    def room(self) -> int:
        """What the cluster has room for now, and a few more."""
        return self._places() + AHEAD - len(self.running)

    def submit(self, task: Task) -> None:
        """Hand a task to the cluster."""
        self.running[self._work.options(name=task.name).remote(task, *self._given)] = task

    def wait(self, seconds: float) -> list[tuple[Task, Report]]:
        """Return what ended, ``lost`` where a worker or its machine died.

        Raises:
            UserError: a machine has another store or another version of expunge, or the cluster refuses the work.
        """
        if not self.running:
            time.sleep(seconds)
            return []
        self._ray.wait(list(self.running), num_returns=1, timeout=seconds)
        ready, _ = self._ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
        return [(self.running.pop(one), self._report(one)) for one in ready]

    def close(self) -> None:
        """End what runs, its claims freed, and the cluster if it was started here."""
        left = list(self.running)
        for force in (False, False, True):  # an interruption is lost where it falls into a finaliser
            for one in left:
                self._ray.cancel(one, force=force)
            if left:
                _, left = self._ray.wait(left, num_returns=len(left), timeout=GRACE / 2)
        self.running.clear()
        if self._mine:
            self._ray.shutdown()

    def _connect(self, address: str | None) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
        try:
            if address is None:
                log.warning("no Ray cluster is named: one is started on this machine, for %d tasks at once", self.local)
                cores = math.ceil(self.local * self.cpus)
                own = {"address": "local", "include_dashboard": False, "object_store_memory": MEMORY}
                self._ray.init(**own, num_cpus=cores, **quiet)
            else:
                self._ray.init(address=address, runtime_env={"env_vars": _environment()}, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            remedy = "start it with ray start, name another --address, or --address local"
            raise UserError(f"a Ray cluster at {address or 'this machine'}", _line(error), remedy) from error

    def _check_room(self, here: bool) -> None:
        """Refuse, or say, that no machine has what a task takes."""
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        if any(all(machine.get(k, 0) >= n for k, n in wanted.items()) for machine in machines):
            return
        text = f"a machine with {self.cpus:g} processor cores and {self.gpus:g} graphics processors"
        if here:
            raise UserError(f"{text} for [resources]", "less on this machine", "ask for less, or name a cluster")
        log.warning("the Ray cluster has not now %s: tasks wait until one joins", text)

    def _places(self) -> int:
        """Return how many tasks the cluster can do at once."""
        there = self._ray.cluster_resources()
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        return min(int(there.get(kind, 0) / n) for kind, n in wanted.items() if n > 0)

    def _report(self, one: Any) -> Report:
        errors = self._ray.exceptions
        try:
            report: Report = self._ray.get(one)
        except errors.RayTaskError as error:  # what a worker could not keep as a task's failure
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        except errors.RayError as error:
            if type(error).__name__ in LOST:
                return "lost"
            raise UserError("work done by the Ray cluster", _line(error), "look at the cluster's own logs") from error
        return report


def _work(task: Task, setting: Setting, mark: str, version: str) -> Report:
    """Do a task where Ray put it.

    Returns:
        What became of it.

    Raises:
        Incompatible: expunge is of another version there.
        UserError: the store is not the one the run was started with.
    """
    here = socket.gethostname()
    if version != expunge.__version__:
        remedy = "install the same version on every machine of the cluster"
        raise Incompatible(f"expunge {version} on {here}", expunge.__version__, remedy)
    if Store(setting.store).identity != mark:
        remedy = "put it into a folder that every machine of the cluster sees under the same path"
        raise UserError(f"the run's own store at {setting.store} on {here}", "none, or another", remedy)
    with one_by_one():
        try:
            return perform(task, setting)
        finally:
            if torch.cuda.is_initialized():  # the next worker on this device may need it
                torch.cuda.empty_cache()


def _started() -> str | None:
    """Return ``auto`` where ``ray start`` left the address of a cluster on this machine."""
    folder = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray"
    return "auto" if (folder / "ray_current_cluster").is_file() else None


def _environment() -> dict[str, str]:
    """Return what workers need to import this very expunge where it runs from a source tree that they see too."""
    source = Path(expunge.__file__).resolve().parents[1]
    if source.name in ("site-packages", "dist-packages"):
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH", "")]))}


def _line(error: Exception) -> str:
    """Return the first line of an error."""
    with suppress(IndexError):
        return str(error).strip().splitlines()[0].rstrip(".")
    return type(error).__name__
