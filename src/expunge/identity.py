"""What tells two pieces of work apart: settings, tasks and samples as values to digest."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from expunge import tensors
from expunge.data import Data

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def content(data: Data) -> list[Any]:
    """Return ids, content with labels, and weights of every sample."""
    rows = [h.tolist() for h in data.fingerprints(b"", labelled=True)]
    weight = None if data.all_weights is None else data.all_weights[data.positions].tolist()
    return [data.ids, rows, weight]


def built(model: nn.Module) -> list[Any]:
    """Return how a network is built: its weights do not tell a rate of dropout, an activation or a frozen layer."""
    return [_ADDRESS.sub("", repr(model)), sorted(tensors.parameters(model))]


def described(value: Any, inside: tuple[int, ...] = ()) -> Any:
    """Return settings as JSON values that are the same in every process: an object as its type and its attributes.

    >>> described(nn.ReLU)
    'torch.nn.modules.activation.ReLU'

    Args:
        value: a task, a penalty, or what they hold; a tensor or module counts by its values.
        inside: ids of the objects that hold it; one of them again is named, not followed.

    Returns:
        JSON values.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Tensor):
        return tensors.tensor_digest(value)
    if id(value) in inside:
        return type(value).__qualname__
    inside = (*inside, id(value))
    if isinstance(value, Mapping):
        return sorted([str(k), described(v, inside)] for k, v in value.items())
    if isinstance(value, Sequence):
        return [described(v, inside) for v in value]
    if isinstance(value, set | frozenset):
        return sorted((described(v, inside) for v in value), key=str)
    if isinstance(value, partial):
        return ["partial", *(described(v, inside) for v in (value.func, value.args, value.keywords))]
    if isinstance(value, logging.Logger):
        return value.name
    if hasattr(value, "__qualname__"):  # a class or a function
        return f"{value.__module__}.{value.__qualname__}"
    head = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, nn.Module):
        return [head, tensors.weights_digest(value)]
    if hasattr(value, "tolist"):  # numpy
        return [head, described(value.tolist(), inside)]
    names = [*getattr(value, "__dict__", {}), *getattr(type(value), "__slots__", ())]
    return [head, sorted([n, described(getattr(value, n), inside)] for n in names if hasattr(value, n))]
