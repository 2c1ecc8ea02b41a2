"""Where and how work runs: device, batch size, memory, precision, progress, checkpoints, processes."""

from __future__ import annotations

import contextlib
import logging
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import psutil
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from rich import progress as bars
from rich.console import Console
from rich.errors import LiveError
from torch import Tensor, nn

from expunge import copies, processes
from expunge.errors import UserError, listing

log = logging.getLogger(__name__)
T = TypeVar("T")


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

    Under ``accelerate launch --multi_gpu``, which without a GPU starts processes on the CPU, every process runs the
    same script and calls the same functions with the same arguments; the work is divided, and each process ends with
    the same result. A call that only some processes make needs ``processes=1``, or it waits for the others.

    Args:
        device: ``auto`` (CUDA, else CPU) or a torch device name; with several processes each takes its own GPU.
        batch_size: samples per forward pass outside training; training's is in its `Recipe`.
        memory: bytes that per-sample gradients may use at once; None takes a quarter of what is free.
        precision: ``full`` (the model's own dtype) or ``bf16`` (autocast; sums stay in float32 and wider).
        progress: a callable receiving `Progress`; False for silence; None for a bar if stderr is a terminal.
            Of processes that work together the first alone reports, for all of them.
        workdir: folder for checkpoints of interrupted work; None keeps none.
        processes: None works with all processes that the launcher started; 1 works alone, whatever was started; any
            other number must be the number started.
        checkpoint_every: seconds after which a training or a long pass writes what it has to ``workdir``, to go on
            from there if it is interrupted; 0 after every epoch, and every window of samples.

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
    checkpoint_every: float = 60.0

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("memory", self.memory), ("processes", self.processes)):
            if name != "batch_size" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                what = "memory in bytes," if name == "memory" else f"{name} of"
                remedy = "give a positive number" + ("" if name == "batch_size" else " or None")
                raise UserError(f"{what} 1 or more", repr(value), remedy)
        if not isinstance(self.checkpoint_every, int | float) or not self.checkpoint_every >= 0:
            raise UserError("checkpoint_every of 0 seconds or more", repr(self.checkpoint_every), "give a number")
        if self.precision not in ("full", "bf16"):
            raise UserError("precision 'full' or 'bf16'", repr(self.precision), "choose one of them")
        try:
            device = torch.device(self._named)
        except (RuntimeError, TypeError) as error:
            raise UserError("a torch device", repr(self.device), "try cpu, cuda or auto") from error
        if device.type not in ("cpu", "cuda"):
            raise UserError("device cpu or cuda", repr(self.device), "use one of them, or auto")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError("a CUDA device", "none on this machine", "use device cpu or auto")
        found = processes.launch(cpu=device.type == "cpu").num_processes
        if self.processes not in (None, 1, found):
            remedy = f"start with accelerate launch --num_processes {self.processes} --multi_gpu, also without a GPU"
            raise UserError(f"{self.processes} processes", f"{found}", remedy)
        if self.count > 1 and self.device != "auto" and device.index is not None:
            remedy = "use device auto, cuda or cpu: each process takes its own GPU"
            raise UserError("no device number with several processes", repr(self.device), remedy)

    @property
    def _named(self) -> str:
        return self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def count(self) -> int:
        """Number of processes that work together."""
        return int(PartialState().num_processes) if self.processes is None else self.processes

    @property
    def rank(self) -> int:
        """This process's place among them, from 0."""
        return int(PartialState().process_index) if self.count > 1 else 0

    @property
    def main(self) -> bool:
        """Whether this process is the first of those that work together."""
        return self.rank == 0

    def alone(self) -> Runtime:
        """Return the settings for work that this process does by itself."""
        return replace(self, processes=1)

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            processes.agree(None)

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return each tensor summed over processes; themselves where this one works alone."""
        return processes.summed(tensors) if self.count > 1 else list(tensors)

    def shared(self, value: T) -> T:
        """Return process 0's picklable value."""
        return processes.shared(value) if self.count > 1 else value

    def gathered(self, value: T) -> list[T]:
        """Return the picklable value of every process, in their order."""
        return processes.gathered(value) if self.count > 1 else [value]

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        """Run a block on every process; where it raises on one, raise that on all, so that none waits for another.

        The block itself must not exchange anything between processes.
        """
        if self.count == 1:
            yield
            return
        failure = None
        try:
            yield
        except Exception as error:
            failure = error
        processes.agree(failure)

    def on_main(self, work: Callable[[], T]) -> T:
        """Return what ``work`` gives on process 0, where alone it runs; what it raises is raised on all.

        Args:
            work: exchanges nothing between processes; returns a value that pickles, for it travels between the
                processes of this launch (never to disk).

        Returns:
            The value itself on process 0, a copy of it elsewhere.
        """
        if self.count == 1:
            return work()
        made: list[T] = []
        body = b""
        with self.agreed():
            if self.main:
                made.append(work())
                body = pickle.dumps(made[0])
        body = self.shared(body)
        with self.agreed():
            if not self.main:
                made.append(pickle.loads(body))
        return made[0]

    def same(self, **digests: str) -> None:
        """Refuse to go on where the processes were given different things.

        Args:
            digests: of what must be the same, by what a message calls it.

        Raises:
            UserError: names what differs and on which process.
        """
        found = self.gathered(digests)
        odd = {name: [at for at, other in enumerate(found) if other[name] != found[0][name]] for name in digests}
        for name, places in odd.items():
            if places:
                remedy = "load the same files and use the same seeds in each process, or set Runtime.processes=1"
                got = f"others on process {listing(places)} than on process 0"
                raise UserError(f"the same {name} on every process", got, remedy)

    def part(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return this process's share of a pass: every count-th batch of ``batch_size``, the batches kept whole."""
        if self.count == 1:
            return order
        starts = range(self.rank * self.batch_size, len(order), self.count * self.batch_size)
        return np.concatenate([order[:0], *(order[s : s + self.batch_size] for s in starts)])

    @property
    def torch_device(self) -> str:
        """The device's torch name, ``auto`` resolved; of several processes each has its own GPU."""
        state = PartialState()
        if self._named == "cuda" and state.num_processes > 1:
            return f"cuda:{state.local_process_index % torch.cuda.device_count()}"
        return self._named

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
        return copies.private(model).to(wanted)

    def budget(self) -> int:
        """Return the bytes that per-sample gradients may use at once."""
        if self.memory is not None:
            return self.memory
        if torch.device(self.torch_device).type == "cuda":
            return torch.cuda.mem_get_info(self.torch_device)[0] // 4
        return int(psutil.virtual_memory().available) // 4

    @contextlib.contextmanager
    def tracking(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Yield a function to call with the number of samples just done, by all processes together."""
        done = 0
        if not self.main:
            yield lambda n: None
        elif callable(self.progress):
            report = self.progress

            def advance(n: int) -> None:
                nonlocal done
                done = min(total, done + n)
                report(Progress(what, done, total))

            yield advance
        elif self.progress is False or not sys.stderr.isatty() or PartialState().process_index > 0:
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
                    bar.advance(task, min(n, total - bar.tasks[0].completed))
                    speed = bar.tasks[0].speed
                    bar.update(task, rate=f"{speed:,.0f} samples/s" if speed else "")

                yield draw


@contextlib.contextmanager
def peak_memory(device: str) -> Iterator[list[int]]:
    """Yield a list whose one entry becomes the bytes the block held at its peak beyond those held before it.

    On CUDA from the allocator. Elsewhere the resident memory of the process: its high-water mark where the system
    lets it be set back (Linux), and samples every 5 ms, which alone serve on other systems and miss what is held for
    a shorter time. A block inside another sets the mark back: the outer one then has the samples and the rest of it.
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
    marked = _set_back_high_water_mark()

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
        if marked:
            found[0] = max(found[0], _high_water_mark() - before)


def _set_back_high_water_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _high_water_mark() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
