"""Where a method's fields are searched: as they declare it, or as a command line says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import numpy as np

from expunge import methods
from expunge.errors import UserError, suggest
from expunge.files import canonical
from expunge.method import Search


def space(method: str, fixed: Mapping[str, Any], ranges: Sequence[str] = ()) -> dict[str, Search]:
    """Return where the fields of a method are searched.

    Args:
        method: its name.
        fixed: fields that keep a value, and so are not searched.
        ranges: ``FIELD=LOW:HIGH``, with ``:log`` or ``:linear`` behind it, or ``FIELD=A,B,C``; each takes the place of
            what the field declares, or adds a field that declares nothing.

    Returns:
        By field, in the order of the method's fields.

    Raises:
        UserError: an unknown field, one that is fixed and searched, a range that is none, or nothing to search.
    """
    cls = methods.load(method)
    known = {f.name: f.metadata.get("search") for f in fields(cls)}
    hints = get_type_hints(cls)
    asked: dict[str, Search] = {}
    for text in ranges:
        name, sign, value = (part.strip() for part in text.partition("="))
        if not sign or name in asked:
            raise UserError("ranges FIELD=LOW:HIGH or FIELD=A,B,C, each field once", repr(text), "write alpha=0.1:100")
        if name not in known:
            raise UserError(f"a field of {method}", repr(name), suggest(name, known) if known else "it has none")
        if name in fixed:
            raise UserError(f"{name} either fixed or searched", "both", "leave out --set or --range")
        whole = int in (options := get_args(hints[name]) or (hints[name],)) and float not in options
        asked[name] = _range(text, value, known[name] or Search(whole=whole))
    own = {n: search for n, search in known.items() if isinstance(search, Search) and n not in fixed}
    found = {n: asked.get(n) or own[n] for n in known if n in asked or n in own}
    if not found:
        got = f"{method}, " + ("whose are all fixed" if any(known.values()) else "which declares none")
        remedy = "name one with --range FIELD=LOW:HIGH" if known else "take another method: it has no fields at all"
        raise UserError("a method with fields to search", got, remedy)
    for name, search in found.items():
        for value in search.choices or (search.low, search.high):
            methods.build({"name": method, **fixed, name: int(value) if search.whole else value})
    return found


def limits(search: Search) -> dict[str, Any]:
    """Return where a field is searched, as plain values."""
    if search.choices:
        return {"choices": list(search.choices)}
    return {"low": search.low, "high": search.high, "log": search.log, "whole": search.whole}


def _range(text: str, value: str, own: Search) -> Search:
    """Return where a field is to be searched, in the way of what it declares itself where nothing else is said."""
    low, colon, rest = value.partition(":")
    if not colon:
        choices = tuple(methods.parse([f"value={part.strip()}"])["value"] for part in value.split(","))
        if len(choices) < 2 or len({canonical(c) for c in choices}) < len(choices):
            raise UserError(
                "a range LOW:HIGH, or two choices or more A,B", repr(text), "write for example alpha=0.1:100"
            )
        return Search(choices=choices)
    high, _, way = rest.partition(":")
    if way not in ("", "log", "linear"):
        raise UserError("'log' or 'linear' behind a range", repr(way), "write for example alpha=0.1:100:log")
    try:
        ends = float(low), float(high)
    except ValueError as error:
        raise UserError("numbers LOW:HIGH", repr(text), "write for example alpha=0.1:100") from error
    log = own.log and not own.choices if not way else way == "log"
    if not (np.isfinite(ends).all() and ends[0] < ends[1] and (ends[0] > 0 or not log)):
        raise UserError(f"finite LOW < HIGH{', both above 0' if log else ''}", repr(text), "turn or narrow the range")
    if own.whole and not all(end.is_integer() for end in ends):
        raise UserError("whole numbers LOW:HIGH", repr(text), "write for example epochs=1:10")
    return Search(*ends, log=log, whole=own.whole)
