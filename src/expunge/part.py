"""What methods, objectives and anchors are made of: frozen fields with unit and help, a name, a source, checks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from expunge.errors import UserError
from expunge.files import jsonable


@dataclass(frozen=True)
class Reference:
    """The source of a method.

    Args:
        title: of the paper.
        authors: as "First Last and First Last".
        year: of publication.
        link: address of the paper.
        venue: journal or conference.
    """

    title: str
    authors: str
    year: int
    link: str
    venue: str = ""

    def bibtex(self, key: str) -> str:
        """Return a BibTeX entry."""
        rows = {"title": f"{{{self.title}}}", "author": self.authors, "year": self.year, "url": self.link}
        if self.venue:
            rows["booktitle"] = self.venue
        body = ",\n".join(f"  {k} = {{{v}}}" for k, v in rows.items())
        return f"@{'inproceedings' if self.venue else 'misc'}{{{key},\n{body}\n}}"


@dataclass(frozen=True)
class Search:
    """Where a hyper-parameter is looked for by `expunge tune`.

    Args:
        low: lower end.
        high: upper end.
        log: whether equal ratios count alike.
        whole: whether it is a whole number.
        choices: the values, instead of a range.
    """

    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()


def option(default: Any, *, symbol: str = "", unit: str = "", text: str, search: Search | None = None) -> Any:
    """Declare a hyper-parameter: a dataclass field with the paper's symbol, its unit and one line of help.

    Args:
        default: its value where none is given.
        symbol: in the paper.
        unit: of its values.
        text: one line of help.
        search: where `expunge tune` looks for it; None leaves it at its value.

    Returns:
        The field.
    """
    return field(default=default, metadata={"symbol": symbol, "unit": unit, "text": text, "search": search})


class Part:
    """What is built from plain values, and can be written as such: its name is that of its file.

    A subclass is a frozen dataclass whose fields are keyword-only.
    """

    name: ClassVar[str]

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "name" not in cls.__dict__:
            cls.name = cls.__module__.rpartition(".")[2]

    def settings(self) -> dict[str, Any]:
        """Return it as JSON that its registry builds it from, parts inside it too."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {"name": self.name} | {
            k: v.settings() if isinstance(v, Part) else jsonable(v) for k, v in values.items()
        }


class Checks(Part):
    """Checks of fields in ``__post_init__``, each one sentence; None is left alone where it is a field's default."""

    def one_of(self, field: str, *known: str) -> None:
        """Refuse a field that is none of the known words.

        Raises:
            UserError: names the field and the words.
        """
        if getattr(self, field) not in known:
            want = f"{self.name}.{field} {' or '.join(known)}"
            raise UserError(want, repr(getattr(self, field)), "choose one of them")

    def flag(self, field: str) -> None:
        """Refuse a field that is neither True nor False.

        Raises:
            UserError: names the field.
        """
        value = getattr(self, field)
        if not isinstance(value, bool):
            raise UserError(f"{self.name}.{field} True or False", repr(value), "choose one of them")

    def count(self, field: str, least: int, unit: str = "") -> None:
        """Refuse a field that is no whole number of at least ``least``.

        Args:
            field: its name.
            least: the lowest number.
            unit: what is counted, for the message.

        Raises:
            UserError: names the field.
        """
        value = getattr(self, field)
        if self._unset(field):
            return
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            want = f"{self.name}.{field} of {least} or more {unit}".rstrip()
            raise UserError(want, repr(value), "give a whole number")

    def positive(self, *names: str, zero: bool = False, word: str | None = None) -> None:
        """Refuse fields that are not finite numbers above 0, or below 0 where 0 is allowed.

        Args:
            names: of the fields.
            zero: whether 0 is allowed.
            word: what they may be instead of a number.

        Raises:
            UserError: names the field.
        """
        for name in names:
            value = getattr(self, name)
            if self._unset(name) or (isinstance(value, str) and value == word):
                continue
            good = isinstance(value, int | float) and math.isfinite(value) and (value > 0 or (zero and value == 0))
            if not good or isinstance(value, bool):
                other = "" if word is None else f", or {word!r}"
                want = f"{self.name}.{name} {'of 0 or more' if zero else 'above 0'}{other}"
                raise UserError(want, repr(value), "give a finite number in that range")

    def inside(self, name: str, low: float, high: float, *, ends: bool = False) -> None:
        """Refuse a field that is not a number between two bounds.

        Args:
            name: of the field.
            low: lower bound.
            high: upper bound.
            ends: whether the bounds themselves are allowed.

        Raises:
            UserError: names the field.
        """
        value = getattr(self, name)
        if self._unset(name):
            return
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not (low <= value <= high if ends else low < value < high):
            want = f"{self.name}.{name} {'from' if ends else 'above'} {low:g} {'to' if ends else 'and below'} {high:g}"
            raise UserError(want, repr(value), "give a number in that range")

    def _unset(self, field: str) -> bool:
        return getattr(self, field) is None and type(self).__dataclass_fields__[field].default is None  # type: ignore[attr-defined]
