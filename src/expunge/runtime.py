"""Where and how work runs: device, batch size, memory, precision, progress, checkpoints, processes."""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch
from accelerate import PartialState
from rich import progress as bars
from rich.console import Console
from rich.errors import LiveError
from torch import nn

from expunge.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """One step of a long piece of work, as a progress callback receives it.

    Args:
        what: the work's name.
        done: samples done so far.
        total: samples in all.
    """

    what: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Settings of execution that change no result beyond rounding.

    Args:
        device: ``auto`` (CUDA, else CPU) or a torch device name.
        batch_size: samples per forward pass outside training; training's is in its `Recipe`.
        memory: bytes that per-sample gradients may use at once; None takes a quarter of what is free.
        precision: ``full`` (the model's own dtype) or ``bf16`` (autocast; sums stay in float32 and wider).
        progress: a callable receiving `Progress`; False for silence; None for a bar if stderr is a terminal.
        workdir: folder for checkpoints of interrupted work; None keeps none.
        processes: number of processes the caller expects; None takes what the launcher started.

    Raises:
        UserError: an unknown device or precision, a non-positive size, another number of processes.
    """

    device: str = "auto"
    batch_size: int = 256
    memory: int | None = None
    precision: Literal["full", "bf16"] = "full"
    progress: Callable[[Progress], None] | bool | None = None
    workdir: Path | None = None
    processes: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError("batch_size of 1 or more", str(self.batch_size), "give a positive number")
        if self.memory is not None and self.memory < 1:
            raise UserError("memory in bytes, 1 or more", str(self.memory), "give a positive number or None")
        if self.precision not in ("full", "bf16"):
            raise UserError("precision 'full' or 'bf16'", repr(self.precision), "choose one of them")
        try:
            kind = torch.device(self.torch_device).type
        except RuntimeError as error:
            raise UserError("a torch device", repr(self.device), "try cpu, cuda or auto") from error
        if kind not in ("cpu", "cuda"):
            raise UserError("device cpu or cuda", repr(self.device), "use one of them, or auto")
        if kind == "cuda" and not torch.cuda.is_available():
            raise UserError("a CUDA device", "none on this machine", "use device cpu or auto")
        found = PartialState(cpu=kind == "cpu").num_processes
        if self.processes not in (None, found):
            remedy = f"start with accelerate launch --num_processes {self.processes}"
            raise UserError(f"{self.processes} processes", f"{found}", remedy)
        if found > 1:
            raise UserError("one process", f"{found} from the launcher", "start without accelerate launch")

    @property
    def torch_device(self) -> str:
        """The device's torch name, ``auto`` resolved."""
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which forward passes run."""
        if self.precision == "full":
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.torch_device).type, dtype=torch.bfloat16)

    def placed(self, model: nn.Module) -> nn.Module:
        """Return the model where work runs: itself if it is there already, else a copy; never moves the caller's."""
        here, wanted = next((p.device for p in model.parameters()), None), torch.device(self.torch_device)
        if here is None or (here.type, here.index or 0) == (wanted.type, wanted.index or 0):
            return model
        return copy.deepcopy(model).to(wanted)

    def budget(self) -> int:
        """Return the bytes that per-sample gradients may use at once."""
        if self.memory is not None:
            return self.memory
        if torch.device(self.torch_device).type == "cuda":
            return torch.cuda.mem_get_info(self.torch_device)[0] // 4
        return int(psutil.virtual_memory().available) // 4

    @contextlib.contextmanager
    def tracking(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Yield a function to call with the number of samples just done."""
        done = 0
        if callable(self.progress):
            report = self.progress

            def advance(n: int) -> None:
                nonlocal done
                done += n
                report(Progress(what, done, total))

            yield advance
        elif self.progress is False or not sys.stderr.isatty():
            yield lambda n: None
        else:
            with contextlib.ExitStack() as stack:
                bar = bars.Progress(
                    bars.TextColumn("{task.description}"),
                    bars.BarColumn(),
                    bars.MofNCompleteColumn(),
                    bars.TextColumn("{task.fields[rate]}"),
                    bars.TimeRemainingColumn(),
                    console=Console(stderr=True),
                    transient=True,
                )
                with contextlib.suppress(LiveError):  # another bar is on screen already: stay silent
                    stack.enter_context(bar)
                task = bar.add_task(what, total=total, rate="")

                def draw(n: int) -> None:
                    bar.advance(task, n)
                    speed = bar.tasks[0].speed
                    bar.update(task, rate=f"{speed:,.0f} samples/s" if speed else "")

                yield draw


@contextlib.contextmanager
def peak_memory(device: str) -> Iterator[list[int]]:
    """Yield a list whose one entry becomes the bytes the block held at its peak beyond those held before it.

    On CUDA from the allocator; elsewhere the resident memory of the process, sampled every 5 ms.
    """
    found = [0]
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found[0] = max(0, torch.cuda.max_memory_allocated(device) - before)
        return
    process, stop = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def sample() -> None:
        while True:
            found[0] = max(found[0], process.memory_info().rss - before)
            if stop.wait(0.005):
                return

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
