"""TOML files with sections: keys and values checked before anything is opened, faults named with their line."""

from __future__ import annotations

import datetime
import math
import re
import tomllib
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from expunge.errors import CorruptArtefact, UserError, listing, suggest
from expunge.files import there

LARGEST = 2**63 - 1  # of whole numbers, as TOML has them


def _worded(value: str) -> str:
    if not value.strip() or "\0" in value:
        raise ValueError("a text that is not empty, without null bytes, was expected")
    return value


def _once(value: list[str]) -> list[str]:
    twice = sorted({v for v in value if value.count(v) > 1})
    if twice:
        raise ValueError(f"{listing(map(repr, twice))} more than once")
    return value


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse values that a method or recipe cannot keep: dates and times, NaN and infinity."""
    for name, leaf in _leaves(value):
        if isinstance(leaf, datetime.date | datetime.time):
            raise ValueError(f"{name} holds a date or time; write a number or a text")
        if isinstance(leaf, float) and not math.isfinite(leaf):
            raise ValueError(f"{name} holds {leaf}; write a finite number")
        if isinstance(leaf, int) and abs(leaf) > LARGEST:
            raise ValueError(f"{name} holds a number beyond 64 bits")
    return value


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, name)
    else:
        yield name, value


Word = Annotated[str, AfterValidator(_worded)]
Words = Annotated[list[Word], AfterValidator(_once)]
Free = Annotated[dict[str, Any], AfterValidator(_plain)]
Count = Annotated[int, Field(ge=1, le=LARGEST)]
Pixels = Annotated[int, Field(ge=1, le=2**14)]


class Section(BaseModel):
    """A table of the file; keys it does not know are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


def read(path: Path, model: type[S], *, what: str, missing: str) -> tuple[S, str]:
    """Read and check a file.

    Args:
        path: of the file.
        model: what it may hold.
        what: the kind of file, in words.
        missing: what to do where there is none.

    Returns:
        What it says, and its text, for `place`.

    Raises:
        UserError: no such file, an unknown key, or a value of another kind; names the line.
        CorruptArtefact: not TOML.
    """
    found = there(path)
    if found != "a file":
        raise UserError(f"{what} {path}", found or "nothing there", missing)
    try:
        text = path.read_text(encoding="utf-8-sig")
        body = tomllib.loads(text)
    except OSError as error:
        raise UserError(f"a readable file {path}", error.strerror or str(error), "check its permissions") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptArtefact(f"TOML in {path}", _first(error), "mend that place") from error
    except ValueError as error:  # a whole number of thousands of digits
        raise CorruptArtefact(f"TOML in {path}", _first(error), "mend that value") from error
    try:
        return model.model_validate(body), text
    except ValidationError as error:
        raise UserError(*_refusal(path, text, error, model)) from error


def _refusal(path: Path, text: str, error: ValidationError, model: type[Section]) -> tuple[str, str, str]:
    """Return a fault with its line as the parts of a sentence: an unknown key, with a suggestion, or the first."""
    found = error.errors()
    first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])  # a misspelt key lacks elsewhere
    where = [part for part in first["loc"] if isinstance(part, str)]
    *tables, key = where
    nth = next((part for part in first["loc"][1:2] if isinstance(part, int)), None)
    at, name = place(path, text, tables, key, nth), ".".join(where)
    if first["type"] == "missing":
        return f"{name} in {at}", "none", "add it"
    if first["type"] == "extra_forbidden":
        known = _known(model, tables)
        return f"known keys in {at}", f"'{name}'", suggest(key, known)
    value = repr(first["input"])
    shown = value if len(value) <= 60 else value[:57] + "..."
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("model_type", "dict_type"):
        message = f"should be a table, [{name}]"
    want = message[:1].lower() + message[1:]
    want = want.removeprefix("input ")
    return f"{name} in {at} to be right", f"{shown} ({want})", "mend the value"


def _first(error: Exception) -> str:
    lines = str(error).splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def _known(model: Any, tables: list[str]) -> list[str]:
    """Return the keys of a table inside nested sections, or of the sections under free keys."""
    for table in tables:
        fields = getattr(model, "model_fields", None)
        if fields is not None and table not in fields:  # the name of a variant in a union
            continue
        model = _section(model if fields is None else fields[table].annotation)
    return list(getattr(model, "model_fields", {}))


def _section(annotation: Any) -> Any:
    """Return the section in an annotation: itself, an item or a value of a container, or one of a union."""
    if get_origin(annotation) in (Union, types.UnionType, list, dict, Annotated):
        inside = [_section(a) for a in get_args(annotation)]
        return next((s for s in inside if hasattr(s, "model_fields")), annotation)
    return annotation


def place(path: Path, text: str, tables: list[str], key: str, nth: int | None = None) -> str:
    """Return where a key stands, as ``line 3 of grid.toml``; the file alone where no line sets it.

    Args:
        path: of the file.
        text: what it says.
        tables: names of the tables that the key is in, from the outermost.
        key: its name.
        nth: of several tables ``[[name]]``, which one, from 0.

    Returns:
        The place; of a key within an inline table, or under a dotted key, that of what it is in.
    """
    names = [*tables, key]
    lines = (_line(text, names[:n], nth) for n in range(len(names), 0, -1))
    line = next((found for found in lines if found is not None), None)
    return f"line {line} of {path.name}" if line else path.name


def _line(text: str, names: list[str], nth: int | None) -> int | None:
    """Return the number of the line that sets a key, the last of the names, looking inside its table."""
    *tables, key = (_bare(name) for name in names)
    head = ".".join([*tables, key])
    inside, before = not tables, -1
    for number, line in enumerate(text.splitlines(), start=1):
        table = re.match(r"\s*(\[+)\s*([^\]]+?)\s*\]+", line)
        if table:
            name = _bare(table[2])
            before += table[1] == "[[" and name == head.partition(".")[0]
            here = nth is None or before == nth
            if here and (name == head or name.startswith(f"{head}.")):
                return number
            inside = here and name == ".".join(tables)
        elif inside and re.match(rf"\s*[\"']?{re.escape(names[-1])}[\"']?\s*[=.]", line):
            return number
    return None


def _bare(name: str) -> str:
    return re.sub(r"[\s\"']", "", name)
