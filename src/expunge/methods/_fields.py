"""Checks of a method's fields, each one sentence, for methods made in Python as for those made from plain values."""

from __future__ import annotations

import math

from expunge.errors import UserError
from expunge.method import Method


class Checked(Method):
    """What methods have in common that check their fields in ``__post_init__``.

    None is left alone where it is a field's default, and refused elsewhere.
    """

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
        for field in names:
            value = getattr(self, field)
            if self._unset(field) or (isinstance(value, str) and value == word):
                continue
            good = isinstance(value, int | float) and math.isfinite(value) and (value > 0 or (zero and value == 0))
            if not good or isinstance(value, bool):
                other = "" if word is None else f", or {word!r}"
                want = f"{self.name}.{field} {'of 0 or more' if zero else 'above 0'}{other}"
                raise UserError(want, repr(value), "give a finite number in that range")

    def _unset(self, field: str) -> bool:
        return getattr(self, field) is None and type(self).__dataclass_fields__[field].default is None
