"""The registry of forgetting objectives is this folder: an objective's name is its file's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.objectives._base import Context, Level, Objective
from expunge.registry import Registry

__all__ = ["Context", "Level", "Objective", "build", "load", "names"]
_OBJECTIVES = Registry(__name__, __path__, Objective, word="objective", held="OBJECTIVE", group="expunge.objectives")  # type: ignore[type-abstract]


def names() -> list[str]:
    """Return the names of all objectives.

    >>> {"entropy", "tau_hinge"} <= set(names())
    True
    """
    return _OBJECTIVES.names()


def load(name: str) -> type[Objective]:
    """Return the class of an objective.

    Raises:
        UserError: no such objective, or its module or entry point does not hold one.
    """
    return _OBJECTIVES.load(name)


def build(config: Mapping[str, Any] | str | Objective) -> Objective:
    """Return an objective from its name, or from plain values.

    Args:
        config: ``{"name": objective, field: value, ...}``, or the name.

    Raises:
        UserError: no name, an unknown field, or a value of another type or range.

    >>> build({"name": "scrub", "temperature": 2}).temperature
    2.0
    """
    return _OBJECTIVES.given("objective", config)
