"""The registry is this folder, a method's name its file's name; third parties use entry points ``expunge.methods``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from expunge.errors import UserError
from expunge.method import Method
from expunge.registry import Registry

__all__ = ["build", "load", "names", "parse"]
_METHODS = Registry(__name__, __path__, Method, word="method", held="METHOD", group="expunge.methods")  # type: ignore[type-abstract]


def names(*, controls: bool = False) -> list[str]:
    """Return the names of all methods; with ``controls`` also those that only serve as controls.

    >>> "ssd" in names(), "no_op" in names(), "no_op" in names(controls=True)
    (True, False, True)
    """
    found = _METHODS.names()
    return found if controls else [n for n in found if not load(n).control]


def load(name: str) -> type[Method]:
    """Return the class of a method.

    >>> load("ssd")(alpha=5.0).settings()["alpha"]
    5.0

    Raises:
        UserError: no such method, or its module or entry point does not hold one.
    """
    return _METHODS.load(name)


def build(config: Mapping[str, Any]) -> Method:
    """Return a method from plain values, compositions too: a field may itself be such a mapping.

    Args:
        config: ``{"name": method, field: value, ...}``.

    Returns:
        The instance, its fields checked against their types.

    Raises:
        UserError: no name, an unknown field, or a value of another type or range.

    >>> build({"name": "ssd", "alpha": 5}).alpha
    5.0
    """
    return _METHODS.build(config)


def parse(settings: list[str]) -> dict[str, Any]:
    """Turn ``KEY=VALUE`` settings into a mapping; values are read as JSON where they are, else as text.

    Returns:
        The mapping, nested where keys hold dots.

    >>> parse(["alpha=5", "method.name=ssd"])
    {'alpha': 5, 'method': {'name': 'ssd'}}

    Raises:
        UserError: a setting without ``=``, or one that stands twice.
    """
    out: dict[str, Any] = {}
    for setting in settings:
        key, sign, text = setting.partition("=")
        *path, last = key.strip().split(".")
        if not sign or not last:
            raise UserError("settings of the form KEY=VALUE", repr(setting), "write for example alpha=5")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):  # no JSON, or numbers and brackets beyond its reader
            value = text
        inner = out
        for depth, part in enumerate(path):
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                twice = ".".join(path[: depth + 1])
                raise UserError("each setting once", f"{twice} twice", "keep one of them")
        if last in inner:
            raise UserError("each setting once", f"{key} twice", "keep one of them")
        inner[last] = value
    return out
