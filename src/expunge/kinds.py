"""Kinds of requests: how each is written, and what its value may be."""

from __future__ import annotations

import re
from collections import Counter
from datetime import time
from numbers import Integral
from typing import Any, Literal, get_args

from expunge.data import id_texts
from expunge.errors import UserError, listing, suggest
from expunge.scenario import moment

Kind = Literal[
    "class",
    "classes",
    "subclass",
    "subject",
    "range",
    "dates",
    "random",
    "hardest",
    "mislabelled",
    "poison",
    "noised",
    "single",
    "sequential",
    "ids",
]
ANY = "*"  # a subject drawn for each seed
COLUMN = ("subclass", "subject")
SPANS = ("range", "dates")
BETWEEN = ".."  # from the lower end, which belongs to a range, to the upper, which does so of dates alone
OPTIONS: dict[str, tuple[str, ...]] = {
    "fraction": ("class", "classes", "subclass"),
    "times": ("sequential",),
    "target": ("poison",),
    "patch": ("poison",),
    "deviation": ("noised",),
}
PLANTED = {"mislabelled": "labels to flip", "poison": "samples to poison", "noised": "samples to put noise on"}
"""Kinds that change the training data, and what a share of it is called."""
EXAMPLES = {
    "class": "class=3",
    "classes": "classes=5+6+7,fraction=0.4",
    "subclass": "subclass:fine_name=ship",
    "subject": "subject:who=s3",
    "range": "range=0..2 or range:age=20..30",
    "dates": "dates=2016-08-01..2016-08-31",
    "random": "random=0.05",
    "hardest": "hardest=100",
    "mislabelled": "mislabelled=0.05",
    "poison": "poison=0.05,target=0",
    "noised": "noised=0.05",
    "single": "single=10",
    "sequential": "sequential=20,times=5 or sequential:class=3+5+7",
    "ids": "ids=train/3+train/8",
}


def read(text: str) -> dict[str, Any]:
    """Return the parts of ``KIND=VALUE`` or ``KIND:COLUMN=VALUE``, with ``,OPTION=VALUE`` behind it.

    Args:
        text: as `expunge.draws.Request.parse` takes it.

    Returns:
        The fields of a request by name.

    Raises:
        UserError: it reads otherwise.
    """
    found = re.fullmatch(r"(\w+)(?::(\w+))?=(.+?)((?:,\s*\w+=[^,=]*)*)", text.strip())
    if found is None or found[1] not in get_args(Kind):
        remedy = suggest(found[1], get_args(Kind)) if found else "write for example class=3 or random=0.05"
        raise UserError("a request KIND=VALUE or KIND:COLUMN=VALUE", repr(text), remedy)
    kind, column, value = found[1], found[2], found[3].strip()
    options: dict[str, Any] = {}
    known = [name for name, kinds in OPTIONS.items() if kind in kinds]
    for name, _, given in (part.strip().partition("=") for part in found[4].split(",")[1:]):
        if name not in known or name in options:
            remedy = "write it once" if name in options else suggest(name, known) if known else "leave it out"
            raise UserError(f"options of {called(kind)}, each once", f"'{name}' in {text!r}", remedy)
        options[name] = _number(given, kind)
    if kind == "classes" or (kind == "sequential" and column == "class"):
        given = {} if kind == "sequential" else {"column": column}
        return {"kind": kind, "value": tuple(_number(part, kind) for part in value.split("+")), **given, **options}
    if kind == "ids":
        return {"kind": kind, "value": tuple(part.strip() for part in value.split("+")), "column": column}
    texts = column is not None or kind in (*COLUMN, *SPANS)
    return {"kind": kind, "value": value if texts else _number(value, kind), "column": column, **options}


def called(kind: str) -> str:
    """Return what a request of a kind is called in a message."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} request"


def checked(kind: Kind, value: Any) -> Any:
    """Return the value of a request as plain Python.

    Args:
        kind: the kind of request.
        value: what it was given.

    Returns:
        An int, a float, a text, or a tuple of class indices or of ids.

    Raises:
        UserError: it does not fit the kind.
    """
    if kind == "ids":
        return _named(value)
    value = value.item() if hasattr(value, "item") else value
    remedy = f"write for example {EXAMPLES[kind]}"
    if kind in COLUMN:
        return value
    if kind in SPANS:
        (dates if kind == "dates" else ends)(value)
        return value
    if kind == "classes" and not isinstance(value, list | tuple):
        raise UserError("two classes or more, each once", repr(value), remedy)
    if kind in ("classes", "sequential") and isinstance(value, list | tuple):
        if len(value) < 2 or not all(whole(v) for v in value) or len(set(value)) < len(value):
            raise UserError("two classes or more, each once", repr(value), remedy)
        return tuple(int(v) for v in value)
    if kind == "class" and not whole(value):
        raise UserError("a class index", repr(value), remedy)
    if kind in PLANTED:
        if not isinstance(value, int | float) or not 0 < value < 1:
            raise UserError(f"a share of {PLANTED[kind]} in (0, 1)", repr(value), remedy)
    elif kind == "single" and not (whole(value) and value >= 1):
        raise UserError("a number of requests of 1 or more", repr(value), remedy)
    elif kind in ("random", "hardest", "sequential"):
        share = isinstance(value, float) and 0 < value < 1
        if not share and not (whole(value) and value >= 1):
            raise UserError("a number of samples of 1 or more, or a share in (0, 1)", repr(value), remedy)
    return value


def ends(text: Any) -> tuple[Any, Any]:
    """Return the ends of a range ``LOW..HIGH``: two numbers, or else two texts, such as dates in ISO order.

    Args:
        text: LOW belongs to the range, HIGH does not.

    Raises:
        UserError: it reads otherwise, or LOW is not below HIGH.

    >>> ends("0..2.5"), ends("2016-08-01..2016-09-01")
    ((0.0, 2.5), ('2016-08-01', '2016-09-01'))
    """
    low, high = _both(text, "range")
    try:
        found: tuple[Any, Any] = (float(low), float(high))
    except ValueError:
        found = (low, high)
    if not found[0] < found[1]:
        raise UserError("a range LOW..HIGH with LOW below HIGH", text, "give the lower end first")
    return found


def dates(text: Any) -> tuple[str, str]:
    """Return the ends of a stretch of time ``FROM..TO``, as they are written.

    Args:
        text: dates or times; both belong to it, and a date alone is the whole day.

    Raises:
        UserError: it reads otherwise, holds no dates, or TO is before FROM.

    >>> dates("2016-08-01..2016-08-01"), dates("2016-08-01 18:00 .. 2016-08-01")
    (('2016-08-01', '2016-08-01'), ('2016-08-01 18:00', '2016-08-01'))
    """
    low, high = _both(text, "dates")
    first, last = moment(low, text, at=time.min), moment(high, text, at=time.max)
    if (first.tzinfo is None) != (last.tzinfo is None):
        raise UserError("dates both with a time zone, or none", text, "write them alike")
    if last < first:
        raise UserError("a stretch FROM..TO with TO not before FROM", text, "give the earlier end first")
    return low, high


def _named(value: Any) -> tuple[str, ...]:
    """Return ids as texts, in the order given."""
    expected = "ids of training samples, each once"
    if not isinstance(value, list | tuple):
        raise UserError(expected, repr(value), f"give a list or tuple, or write for example {EXAMPLES['ids']}")
    found = tuple(id_texts(value))
    if not all(found) or not found:
        raise UserError(expected, "an empty id" if found else "none", f"write for example {EXAMPLES['ids']}")
    if len(set(found)) < len(found):
        twice = listing(i for i, times in Counter(found).items() if times > 1)
        raise UserError(expected, f"{twice} more than once", "name each sample once")
    return found


def _both(text: Any, kind: str) -> tuple[str, str]:
    """Return the texts of the two ends of a range."""
    parts = [part.strip() for part in text.split(BETWEEN)] if isinstance(text, str) else []
    if len(parts) != 2 or not all(parts):
        raise UserError("a range LOW..HIGH", repr(text), f"write for example {EXAMPLES[kind]}")
    return parts[0], parts[1]


def whole(value: Any) -> bool:
    """Return whether something is a whole number."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _number(text: str, kind: str) -> int | float:
    """Read a whole number as int, another as float."""
    try:
        return int(text) if re.fullmatch(r"\s*[+-]?\d+\s*", text) else float(text)
    except ValueError as error:
        raise UserError(f"a number for {kind}", repr(text), f"write for example {EXAMPLES[kind]}") from error
