"""Worker processes on this machine: each does one task at a time; one that dies costs its task only."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch

from expunge.bench.cell import Task
from expunge.bench.runner import Report
from expunge.bench.stages import Setting, perform

_SPAWN = get_context("spawn")  # a fork would copy torch's threads and locks as they happen to be


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    task: Task | None = None


@dataclass
class Workers:
    """Worker processes.

    Args:
        setting: where results are.
        count: how many.
        threads: of torch in each.
    """

    setting: Setting
    count: int
    threads: int = 1
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
            worker = self._started()
            worker.pipe.send(task)
        worker.task = task
        self.busy.append(worker)

    def wait(self, seconds: float) -> list[tuple[Task, Report]]:
        """Return what ended; a worker that died is replaced when it is needed."""
        connection.wait([w.pipe for w in self.busy] or [], seconds)
        ended: list[tuple[Task, Report]] = []
        for worker in list(self.busy):
            task = worker.task
            if task is None or not (worker.pipe.poll() or not worker.process.is_alive()):
                continue
            self.busy.remove(worker)
            try:
                ended.append((task, worker.pipe.recv()))
                self.idle.append(worker)
            except (EOFError, OSError):
                worker.process.join()
                ended.append((task, "lost"))
        return ended

    def close(self) -> None:
        """End every worker at once."""
        for worker in [*self.busy, *self.idle]:
            worker.process.terminate()
        for worker in [*self.busy, *self.idle]:
            worker.process.join()
            worker.pipe.close()
        self.busy, self.idle = [], []

    def _started(self) -> _Worker:
        here, there = _SPAWN.Pipe()
        process = _SPAWN.Process(target=_serve, args=(there, self.setting, self.threads), daemon=True)
        process.start()
        there.close()
        return _Worker(process, here)


def _serve(pipe: Connection, setting: Setting, threads: int) -> None:
    """Do tasks until the pipe is closed; Ctrl-C is the main process's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        pipe.send(perform(task, setting))
