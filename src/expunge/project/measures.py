"""Metrics with settings, as a project file or a grid gives them: a table of fields by family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from expunge import metrics
from expunge.errors import UserError, suggest
from expunge.metric import Metric

CHOSEN = ("names", "shadows")  # fields of `membership` that attacks and shadow models are given by, and no file


def measure(name: str, settings: Mapping[str, Any] | None = None) -> Metric:
    """Return a family of metrics with these fields set.

    Args:
        name: see `expunge.metrics.names`.
        settings: values by field, as TOML or JSON has them.

    Returns:
        The instance.

    Raises:
        UserError: no such family or field, or a value of another kind or range.

    >>> measure("decisions", {"threshold": 0.1}).threshold
    0.1
    """
    cls = metrics.load(name)
    known = [f.name for f in fields(cls) if f.name not in CHOSEN]
    found: dict[str, Any] = {}
    for field, value in (settings or {}).items():
        if field not in known:
            remedy = suggest(field, known) if known else "it has none"
            raise UserError(f"a setting of the metric {name}", repr(field), remedy)
        given = tuple(value) if isinstance(value, list) else value
        try:
            found[field] = TypeAdapter(get_type_hints(cls)[field]).validate_python(given, strict=True)
        except ValidationError as error:
            why = error.errors()[0]["msg"].lower()
            text = f"a value that fits {name}.{field}"
            raise UserError(text, f"{value!r:.60} ({why})", f"see expunge measures {name}") from error
    return cls(**found)


def measures(names: Iterable[str], settings: Mapping[str, Mapping[str, Any]]) -> list[Metric]:
    """Return families by name, each with its settings where it has some.

    Args:
        names: of families.
        settings: fields by family; of those that are not named nothing is used.
    """
    return [measure(name, settings.get(name)) for name in names]


def changed(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the settings that differ from the defaults, so that writing a default down changes nothing.

    >>> changed({"decisions": {"threshold": 0.1, "bins": 10}, "stability": {"bins": 10}})
    {'decisions': {'threshold': 0.1}}
    """
    found: dict[str, dict[str, Any]] = {}
    for name, table in settings.items():
        own, plain = measure(name, table), metrics.load(name)()
        other = {f: v for f, v in table.items() if getattr(own, f) != getattr(plain, f)}
        if other:
            found[name] = other
    return found
