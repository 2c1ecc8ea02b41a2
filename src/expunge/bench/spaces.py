"""Where a method's fields are searched: as they declare it, or as a command line says.

Fields of the method that a composition runs are named with a dot, as ``method.lr``; they are searched like its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args, get_type_hints

import numpy as np

from expunge import methods
from expunge.errors import UserError, suggest
from expunge.files import canonical
from expunge.method import Method, Search


def space(method: str, fixed: Mapping[str, Any], ranges: Sequence[str] = ()) -> dict[str, Search]:
    """Return where the fields of a method are searched, and those of the method that it is told to run.

    Args:
        method: its name.
        fixed: fields that keep a value, and so are not searched; of a composition's method those it names.
        ranges: ``FIELD=LOW:HIGH``, with ``:log`` or ``:linear`` behind it, or ``FIELD=A,B,C``; each takes the place of
            what the field declares, or adds a field that declares nothing.

    Returns:
        By field, in the order of the method's fields.

    Raises:
        UserError: an unknown field, one that is fixed and searched, a range that is none, or nothing to search.
    """
    known = _fields(methods.build({"name": method, **fixed}), fixed)
    asked: dict[str, Search] = {}
    for text in ranges:
        name, sign, value = (part.strip() for part in text.partition("="))
        if not sign or name in asked:
            raise UserError("ranges FIELD=LOW:HIGH or FIELD=A,B,C, each field once", repr(text), "write alpha=0.1:100")
        if name not in known:
            raise UserError(f"a field of {method}", repr(name), _known_instead(name, known))
        if known[name].fixed:
            raise UserError(f"{name} either fixed or searched", "both", "leave out --set or --range")
        asked[name] = _range(text, value, known[name].search or Search(whole=known[name].whole))
    own = {n: one.search for n, one in known.items() if one.search is not None and not one.fixed}
    found = {n: asked.get(n) or own[n] for n in known if n in asked or n in own}
    if not found:
        every = any(one.search for one in known.values())
        got = f"{method}, " + ("whose are all fixed" if every else "which declares none")
        remedy = "name one with --range FIELD=LOW:HIGH" if known else "take another method: it has no fields at all"
        raise UserError("a method with fields to search", got, remedy)
    for name, search in found.items():
        for value in ends(search):
            methods.build({"name": method, **merged(fixed, {name: value})})
    return found


@dataclass(frozen=True)
class _Field:
    """A field of a method, or of the method that it runs.

    Args:
        search: where it declares to be searched, or None.
        whole: whether its numbers are whole ones.
        fixed: whether it keeps a value.
        runs: whether it names a method to run.
    """

    search: Search | None
    whole: bool
    fixed: bool
    runs: bool


def _fields(method: Method, fixed: Mapping[str, Any]) -> dict[str, _Field]:
    """Return the fields by name; those of a method that a fixed field names follow it, a dot between."""
    hints, found = get_type_hints(type(method)), dict[str, _Field]()
    for f in fields(method):
        options = get_args(hints[f.name]) or (hints[f.name],)
        whole = int in options and float not in options
        found[f.name] = _Field(f.metadata.get("search"), whole, f.name in fixed, Method in options)
        inner, said = getattr(method, f.name), fixed.get(f.name)
        if isinstance(inner, Method) and said is not None:
            below = _fields(inner, said if isinstance(said, Mapping) else {})
            found |= {f"{f.name}.{name}": one for name, one in below.items()}
    return found


def _known_instead(name: str, known: Mapping[str, _Field]) -> str:
    """Return what to write instead of a field that is not known."""
    head, dot, _ = name.rpartition(".")
    if dot and head in known and known[head].runs and not known[head].fixed:
        return f"name the method that it runs first, as in --set {head}.name=finetune"
    return suggest(name, known) if known else "it has none"


def ends(search: Search) -> tuple[Any, ...]:
    """Return the choices of a search, or its lower and upper end."""
    return search.choices or tuple(int(end) if search.whole else end for end in (search.low, search.high))


def merged(fixed: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return fixed fields with chosen ones, those of a composition's method among that method's.

    >>> merged({"method": {"name": "finetune", "epochs": 2}}, {"method.lr": 0.1, "sparsity": 0.9})
    {'method': {'name': 'finetune', 'epochs': 2, 'lr': 0.1}, 'sparsity': 0.9}
    """
    found = dict(fixed)
    for name, value in chosen.items():
        head, dot, rest = name.partition(".")
        if dot:
            inner = found[head]
            found[head] = merged(inner if isinstance(inner, Mapping) else {"name": inner}, {rest: value})
        else:
            found[head] = value
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
