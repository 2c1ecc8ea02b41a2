"""The registry of metrics is this folder: a family's name is its file's name."""

from __future__ import annotations

import importlib
import pkgutil

from expunge.errors import UserError, suggest
from expunge.metric import Metric

__all__ = ["load", "names"]


def names() -> list[str]:
    """Return the names of all metric families.

    >>> {"accuracy", "loss", "membership"} <= set(names())
    True
    """
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def load(name: str) -> type[Metric]:
    """Return the class of a metric family.

    Raises:
        UserError: no such family.
    """
    if name not in names():
        raise UserError("a known metric", repr(name), suggest(name, names()))
    found: type[Metric] = importlib.import_module(f"{__name__}.{name}").METRIC
    return found
