"""Worker processes on this machine: each does one task at a time; one that dies costs its task only."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from expunge.bench.cell import Task
from expunge.bench.runner import Report, one_by_one
from expunge.bench.stages import Setting, perform

_SPAWN = get_context("spawn")  # a fork would copy torch's threads and locks as they happen to be
GRACE = 10.0  # seconds that a worker has to free its claim when it is told to end


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    task: Task | None = None


@dataclass
class Workers:
    """Worker processes, each on one thread of the processor.

    Args:
        setting: where results are.
        count: how many.
        busy: those at work.
        idle: those that wait.
    """

    setting: Setting
    count: int
    busy: list[_Worker] = field(default_factory=list)
    idle: list[_Worker] = field(default_factory=list)

    @property
    def room(self) -> int:
        """Workers without a task."""
        return self.count - len(self.busy)

    def submit(self, task: Task) -> None:
        """Hand a task to an idle worker, started now if there is none."""
        worker = self.idle.pop() if self.idle else self._started()
        try:
            worker.pipe.send(task)
        except OSError:  # it died while idle
            _end([worker])
            worker = self._started()
            worker.pipe.send(task)
        worker.task = task
        self.busy.append(worker)

    def wait(self, seconds: float) -> list[tuple[Task, Report]]:
        """Return what ended; a worker that died is replaced when it is needed.

        Raises:
            Exception: what a worker could not keep as a task's failure, as a full disk.
        """
        ready = connection.wait([w.pipe for w in self.busy], seconds)
        ended: list[tuple[Task, Report]] = []
        for worker in [w for w in self.busy if w.pipe in ready]:
            task = worker.task
            assert task is not None
            self.busy.remove(worker)
            try:
                said = worker.pipe.recv()
            except (EOFError, OSError):
                _end([worker])
                said = "lost"
            else:
                self.idle.append(worker)
            if isinstance(said, Exception):
                raise said
            ended.append((task, said))
        return ended

    def close(self) -> None:
        """End every worker; those at work free their claims."""
        _end([*self.busy, *self.idle])
        self.busy, self.idle = [], []

    def _started(self) -> _Worker:
        here, there = _SPAWN.Pipe()
        process = _SPAWN.Process(target=_serve, args=(there, self.setting), daemon=True)
        process.start()
        there.close()
        return _Worker(process, here)


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(GRACE)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()


def _serve(pipe: Connection, setting: Setting) -> None:
    """Do tasks until the pipe is closed; Ctrl-C is the main process's to handle, which then ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):  # the main process is gone
            return
        said: Report | Exception
        try:
            with one_by_one():
                said = perform(task, setting)
        except Exception as error:  # not the task's own: the main process raises it
            said = error
        with suppress(OSError):
            pipe.send(said)


def _leave(number: int, frame: Any) -> None:
    """Let every block end as it should, claims freed, folders half written removed."""
    sys.exit(128 + number)
