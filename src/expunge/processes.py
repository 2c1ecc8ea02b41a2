"""What the processes of one launch tell each other: thin over accelerate's state and collectives."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import reduce as fold
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from torch import Tensor

from expunge.errors import ExpungeError, UserError

PATIENCE = timedelta(hours=12)
"""How long a process waits for the others: one that edits alone may take hours. A process that dies ends the wait."""

EXCHANGE = 2**24
"""Numbers that travel in one exchange, or one tensor if that has more."""


def launch(cpu: bool) -> PartialState:
    """Join the other processes of the launch, once, and return what the launcher started.

    Args:
        cpu: talk through gloo; else through the GPUs' own backend where there are any.

    Returns:
        accelerate's state: number of processes, this one's place, the backend's device.
    """
    return PartialState(cpu=cpu, timeout=PATIENCE)


@contextmanager
def _together() -> Iterator[None]:
    """Make a sentence of a collective that another process left."""
    try:
        yield
    except RuntimeError as error:
        remedy = "read that process's own message above, then start all of them again"
        count = PartialState().num_processes
        raise UserError(f"all {count} processes to go on", "one that ended or waited too long", remedy) from error


def summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return each tensor summed over processes; at least in float32, back in its own dtype.

    Small tensors share an exchange; large ones go one by one, so that no second copy of a large model is made.
    """
    found: list[Tensor] = []
    some: list[Tensor] = []
    for tensor in tensors:
        if some and sum(t.numel() for t in some) + tensor.numel() > EXCHANGE:
            found += _exchanged(some)
            some = []
        some.append(tensor)
    return found + (_exchanged(some) if some else [])


def _exchanged(tensors: Sequence[Tensor]) -> list[Tensor]:
    wide = fold(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    flat = torch.cat([t.detach().reshape(-1).to(PartialState().device, wide) for t in tensors])
    with _together():
        flat = reduce(flat, "sum")
    parts = flat.split([t.numel() for t in tensors])
    return [part.reshape(t.shape).to(t) for part, t in zip(parts, tensors, strict=True)]


def shared(value: Any) -> Any:
    """Return process 0's picklable value on every process."""
    with _together():
        return broadcast_object_list([value])[0]


def gathered(value: Any) -> list[Any]:
    """Return the picklable values of all processes, in their order."""
    with _together():
        return list(gather_object([value]))


def agree(failure: Exception | None) -> None:
    """Raise on every process where one has failed: its own failure, or the first other process's.

    Args:
        failure: of this process, or None.

    Raises:
        Exception: that failure.
    """
    (failed,) = summed([torch.tensor([float(failure is not None)])])
    if float(failed) == 0:
        return
    found = gathered(None if failure is None else _portable(failure))
    if failure is None:
        failure = next(_rebuilt(place, *one) for place, one in enumerate(found) if one is not None)
    raise failure


def _portable(failure: Exception) -> tuple[type[Exception], tuple[Any, ...]]:
    """Return the type and arguments of an exception; those that cannot travel as their text."""
    try:
        pickle.dumps((type(failure), failure.args))
    except Exception:  # whatever an argument's own pickling raises
        return ExpungeError, (f"{type(failure).__name__}: {failure}",)
    return type(failure), failure.args


def _rebuilt(place: int, kind: type[Exception], args: tuple[Any, ...]) -> Exception:
    made = kind.__new__(kind, *args)  # our own build their message from other arguments than they keep
    made.add_note(f"Raised on process {place}.")
    return made
