"""The registry is this folder, a method's name its file's name; third parties use entry points ``expunge.methods``."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import entry_points
from typing import Any, get_args, get_type_hints

import pydantic

from expunge.errors import UserError, suggest
from expunge.method import Method

__all__ = ["build", "load", "names", "parse"]


def names(*, controls: bool = False) -> list[str]:
    """Return the names of all methods; with ``controls`` also those that only serve as controls.

    >>> "ssd" in names(), "no_op" in names(), "no_op" in names(controls=True)
    (True, False, True)
    """
    own = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    found = sorted({*own, *(e.name for e in entry_points(group="expunge.methods"))})
    return found if controls else [n for n in found if not load(n).control]


def load(name: str) -> type[Method]:
    """Return the class of a method.

    >>> load("ssd")(alpha=5.0).settings()["alpha"]
    5.0

    Raises:
        UserError: no such method, or its module or entry point does not hold one.
    """
    own = [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]
    if name in own:
        found = getattr(importlib.import_module(f"{__name__}.{name}"), "METHOD", None)
    else:  # looked up last: it takes a hundred times as long
        others = {e.name: e for e in entry_points(group="expunge.methods")}
        if name not in others:
            raise UserError("a known method", repr(name), suggest(name, [*own, *others]))
        found = others[name].load()
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"a Method class as '{name}'", type(found).__name__, "set METHOD to the class in its file")
    return found


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
    values = dict(config)
    if not isinstance(values.get("name"), str):
        raise UserError("a mapping with the method's name under 'name'", repr(config), "add one")
    return _instance(load(values.pop("name")), values)


def _instance(cls: type[Method], values: dict[str, Any]) -> Method:
    known = {f.name for f in fields(cls)}
    hints = get_type_hints(cls)
    for field, value in values.items():
        if field not in known:
            raise UserError(f"a field of {cls.name}", repr(field), suggest(field, known) if known else "it has none")
        if hints[field] is Method or (Method in get_args(hints[field]) and value is not None):
            values[field] = _inner(f"{cls.name}.{field}", value)
            continue
        if isinstance(value, Mapping) and "name" in value:
            value = build(value)
        try:
            kind: Any = pydantic.TypeAdapter(hints[field], config={"arbitrary_types_allowed": True})
            values[field] = kind.validate_python(value)
            if _counted(value, values[field]):
                got = f"{value!r:.80} (a yes or no is no number)"
                raise UserError(f"a value that fits {cls.name}.{field}", got, f"see expunge methods {cls.name}")
        except pydantic.ValidationError as error:
            why = error.errors()[0]["msg"].lower()
            text = f"a value that fits {cls.name}.{field}"
            raise UserError(text, f"{value!r:.80} ({why})", f"see expunge methods {cls.name}") from None
    return cls(**values)


def _counted(value: Any, found: Any) -> bool:
    """Return whether a truth value, or one in a list, was taken for a number."""
    if isinstance(value, bool):
        return isinstance(found, int | float) and not isinstance(found, bool)
    both = isinstance(value, list | tuple) and isinstance(found, list | tuple)
    return both and any(map(_counted, value, found))


def _inner(field: str, value: Any) -> Method:
    """Return the method that another one is given: built from its mapping, or from its name alone."""
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, Mapping) and "name" in value:
        return build(value)
    if not isinstance(value, Method):
        remedy = "write its name, or {name = ..., FIELD = ...}; see expunge methods"
        raise UserError(f"a method as {field}", f"{value!r:.80}", remedy)
    return value


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
