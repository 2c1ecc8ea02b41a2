"""Passes over data that survive a shortage of memory: the batch is halved and the pass goes on where it was."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from numpy.typing import NDArray
from torch import Tensor

from expunge.data import Batch, Data
from expunge.errors import UserError
from expunge.runtime import Runtime

log = logging.getLogger(__name__)
T = TypeVar("T")
SMALLER = "free memory, take a smaller model or precision='bf16', or another device"


def out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out, on a GPU or in the CPU's allocator."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(error)


def check_data(data: Data, what: str = "data") -> None:
    """Refuse what is no `Data`.

    Raises:
        UserError: says what it is.
    """
    if not isinstance(data, Data):
        remedy = "build it with Data.from_arrays, from_torch or from_hf"
        raise UserError(f"{what} as expunge.data.Data", type(data).__name__, remedy)


@contextmanager
def whole(what: str, remedy: str) -> Iterator[None]:
    """Make a sentence of a shortage of memory where the batch decides the result and so is not halved.

    Args:
        what: the memory was wanted for.
        remedy: what to do about it.

    Raises:
        UserError: memory ran out in the block.
    """
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise UserError(f"memory for {what}", "too little", remedy) from error


class Passes:
    """Reads data in batches of ``runtime.batch_size``, fewer once memory has run out; said once.

    Results that are sums or rows by sample do not depend on it.

    Args:
        runtime: gives the size to begin with.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.size, self._asked, self._said = runtime.batch_size, runtime.batch_size, False

    def over(
        self, data: Data, work: Callable[[Batch], T], order: Sequence[int] | NDArray[np.int64] | Tensor | None = None
    ) -> Iterator[T]:
        """Yield what ``work`` returns for each batch.

        A batch for which memory runs out is given up and read again at half its size, so ``work`` must keep nothing
        of it but what it returns.

        Args:
            data: the samples.
            work: called with each batch.
            order: positions in the data, all in order by default.

        Yields:
            One value a batch.

        Raises:
            UserError: memory does not suffice for one sample.
        """
        at = np.arange(len(data)) if order is None else np.asarray(order, dtype=np.int64)
        start = 0
        while start < len(at):
            now = at[start : start + self.size]
            found = _tried(data, work, now)
            if found:
                start += len(now)
                self._say()
                yield found[0]
                continue
            if len(now) == 1:
                raise UserError(f"memory for one sample of {data.name}", "too little", SMALLER)
            self.size = len(now) // 2
            gc.collect()  # outside the handler: its traceback held the failed batch
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _say(self) -> None:
        if self.size < self._asked and not self._said:
            log.warning("memory ran out at %d samples a pass: going on with %d", self._asked, self.size)
            self._said = True


def _tried(data: Data, work: Callable[[Batch], T], at: NDArray[np.int64]) -> list[T]:
    """Return what the work gives for these samples, alone in a list; an empty one where memory ran out."""
    try:
        return [work(data.read(at))]
    except Exception as error:
        if not out_of_memory(error):
            raise
        return []
