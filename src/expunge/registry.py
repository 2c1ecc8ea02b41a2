"""Registries of parts: a folder is one, a part's name is its file's name; other packages add theirs by entry points."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import entry_points
from typing import Any, ClassVar, Generic, TypeVar, get_args, get_type_hints

import pydantic

from expunge.errors import UserError, suggest
from expunge.part import Part

P = TypeVar("P", bound=Part)


class Registry(Generic[P]):
    """The parts of one kind; a field typed by the kind's class is built from its mapping, or from its name alone.

    Args:
        package: name of the package whose modules they are; those that begin with an underscore are none.
        path: the package's ``__path__``.
        kind: their base class.
        word: what one is called, ``method``.
        held: the name that a module gives its class, ``METHOD``.
        group: entry points of other packages, or None for none.
    """

    every: ClassVar[dict[type[Part], Registry[Any]]] = {}

    def __init__(
        self, package: str, path: list[str], kind: type[P], *, word: str, held: str, group: str | None = None
    ) -> None:
        self.package, self.path, self.kind = package, path, kind
        self.word, self.held, self.group = word, held, group
        self.every[kind] = self

    @property
    def article(self) -> str:
        """The word with its article."""
        return f"{'an' if self.word[0] in 'aeiou' else 'a'} {self.word}"

    def _own(self) -> list[str]:
        return [m.name for m in pkgutil.iter_modules(self.path) if not m.name.startswith("_")]

    def _others(self) -> dict[str, Any]:
        return {} if self.group is None else {e.name: e for e in entry_points(group=self.group)}

    def names(self) -> list[str]:
        """Return the names of all parts."""
        return sorted({*self._own(), *self._others()})

    def load(self, name: str) -> type[P]:
        """Return the class of a part; its own folder wins over another package's.

        Raises:
            UserError: there is none of that name, or its module or entry point does not hold one.
        """
        own = self._own()
        if name in own:
            found = getattr(importlib.import_module(f"{self.package}.{name}"), self.held, None)
        else:  # looked up last: it takes a hundred times as long
            others = self._others()
            if name not in others:
                raise UserError(f"a known {self.word}", repr(name), suggest(name, [*own, *others]))
            found = others[name].load()
        if not (isinstance(found, type) and issubclass(found, self.kind)):
            want = f"{self.article.partition(' ')[0]} {self.kind.__name__} class as '{name}'"
            raise UserError(want, type(found).__name__, f"set {self.held} to the class in its file")
        return found

    def build(self, config: Mapping[str, Any]) -> P:
        """Return a part from plain values; a field may itself be such a mapping.

        Args:
            config: ``{"name": part, field: value, ...}``.

        Returns:
            The instance, its fields checked against their types.

        Raises:
            UserError: no name, an unknown field, or a value of another type or range.
        """
        values = dict(config)
        if not isinstance(values.get("name"), str):
            raise UserError(f"a mapping with the {self.word}'s name under 'name'", repr(config), "add one")
        return self._instance(self.load(values.pop("name")), values)

    def _instance(self, cls: type[P], values: dict[str, Any]) -> P:
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        hints = get_type_hints(cls)
        for field, value in values.items():
            if field not in known:
                raise UserError(
                    f"a field of {cls.name}", repr(field), suggest(field, known) if known else "it has none"
                )
            inner = _registry_of(hints[field])
            if inner is not None and (value is not None or hints[field] is inner.kind):
                values[field] = inner.given(f"{cls.name}.{field}", value)
            else:
                values[field] = self._plain(cls, field, hints[field], value)
        return cls(**values)

    def given(self, field: str, value: Any) -> P:
        """Return the part that a field of another one is given: an instance, its mapping, or its name alone.

        Args:
            field: the field, for messages.
            value: what it is given.

        Raises:
            UserError: it is none of these.
        """
        if isinstance(value, str):
            value = {"name": value}
        if isinstance(value, Mapping) and "name" in value:
            return self.build(value)
        if not isinstance(value, self.kind):
            remedy = f"write its name, or {{name = ..., FIELD = ...}}; see expunge {self.word}s"
            raise UserError(f"{self.article} as {field}", f"{value!r:.80}", remedy)
        return value

    def _plain(self, cls: type[P], field: str, hint: Any, value: Any) -> Any:
        """Return a plain value as a field's type has it."""
        try:
            kind: Any = pydantic.TypeAdapter(hint, config={"arbitrary_types_allowed": True})
            found = kind.validate_python(value)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "tuple_type" and isinstance(value, str | int | float):
                write = f"write a list, such as {field}={json.dumps([value])}"
                raise UserError(f"a list for {cls.name}.{field}", repr(value)[:80], write) from None
            text, why = f"a value that fits {cls.name}.{field}", first["msg"].lower()
            raise UserError(text, f"{value!r:.80} ({why})", f"see expunge {self.word}s {cls.name}") from None
        if _counted(value, found):
            got = f"{value!r:.80} (a yes or no is no number)"
            raise UserError(f"a value that fits {cls.name}.{field}", got, f"see expunge {self.word}s {cls.name}")
        return found


def _registry_of(hint: Any) -> Registry[Any] | None:
    """Return the registry of the parts that a field of this type holds, or None where it holds plain values."""
    kinds = [k for k in (hint, *get_args(hint)) if isinstance(k, type) and k in Registry.every]
    return Registry.every[kinds[0]] if kinds else None


def _counted(value: Any, found: Any) -> bool:
    """Return whether a truth value, or one in a list, was taken for a number."""
    if isinstance(value, bool):
        return isinstance(found, int | float) and not isinstance(found, bool)
    both = isinstance(value, list | tuple) and isinstance(found, list | tuple)
    return both and any(map(_counted, value, found))
