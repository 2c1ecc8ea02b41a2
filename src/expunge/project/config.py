"""What a project file says: sections, keys and values, checked before anything is opened."""

from __future__ import annotations

import datetime
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from expunge.errors import CorruptArtefact, UserError, listing, suggest
from expunge.files import there
from expunge.recipe import Recipe

NAME = "expunge.toml"
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


class ModelSection(Section):
    """Which network, which weights.

    Args:
        network: ``package.module:function``, ``hf:folder``, or a named network.
        weights: file of trained weights; ``train`` trains the network by the recipe; none where the function returns
            the trained network.
        base: the network before training: ``package.module:function``, ``hf:folder``, or ``random``.
    """

    network: str = ""
    weights: Word | None = None
    base: Word | None = None


class ImageSection(Section):
    """How images become tensors.

    Args:
        size: height and width to resize to.
        mean: by channel, of pixels in [0, 1].
        std: by channel, of pixels in [0, 1].
        channels: 1 or 3, to convert to.
    """

    size: list[Pixels] | None = Field(default=None, min_length=2, max_length=2)
    mean: list[float] = []
    std: list[float] = []
    channels: Literal[1, 3] | None = None


class TextSection(Section):
    """How texts become tensors.

    Args:
        length: tokens kept of a text.
        vocabulary: entries of the hashing tokeniser, for networks that bring no tokeniser of their own.
    """

    length: int = Field(default=128, ge=2, le=2**20)
    vocabulary: int | None = Field(default=None, ge=3, le=2**31)


class DataSection(Section):
    """Where samples are and what their columns mean.

    Args:
        name: a named data set, instead of files.
        limit: of a named data set, a class-balanced part of so many training samples.
        format: of the files; ``auto`` goes by their names.
        train: training samples: file, pattern, folder, or ``package.module:function``.
        holdout: validation samples.
        test: test samples.
        inputs: columns that the network is given.
        target: column of labels.
        id: column of unique, stable ids.
        subject: column that names the person or customer.
        subclass: column of finer classes.
        columns: further columns to keep.
        classes: names of the classes in the order of the network's outputs, where labels are texts.
        canaries: manifest of the canaries that the weights were trained with, as `expunge.train.fit` leaves it.
        image: how images become tensors.
        text: how texts become tensors.
    """

    name: Word | None = None
    limit: int | None = Field(default=None, ge=10, le=LARGEST)
    format: Literal["auto", "parquet", "csv", "images", "python"] = "auto"
    train: Word | None = None
    holdout: Word | None = None
    test: Word | None = None
    inputs: Words = []
    target: Word | None = None
    id: Word | None = None
    subject: Word | None = None
    subclass: Word | None = None
    columns: Words = []
    classes: Words = []
    canaries: Word | None = None
    image: ImageSection = ImageSection()
    text: TextSection = TextSection()


class TaskSection(Section):
    """What the network predicts.

    Args:
        kind: ``classification`` or ``regression``.
        error: of regression, ``squared`` or ``absolute``.
    """

    kind: Literal["classification", "regression"] = "classification"
    error: Literal["squared", "absolute"] = "squared"


class RuntimeSection(Section):
    """How work runs; changes no result beyond rounding.

    Args:
        batch_size: samples a forward pass outside training.
        precision: ``full`` or ``bf16``.
        memory: bytes that per-sample gradients may use at once.
        workdir: folder for checkpoints of interrupted work.
        checkpoint_every: seconds between two checkpoints of a long pass; 0 after every window of samples.
    """

    batch_size: Count = 256
    precision: Literal["full", "bf16"] = "full"
    memory: Count | None = None
    workdir: Word | None = None
    checkpoint_every: Annotated[float, Field(ge=0)] = 60.0


class PolicySection(Section):
    """What a request may do.

    Args:
        methods: methods that may be used; empty for all.
        largest_share: most of the training samples that one request may forget, in (0, 1).
        accuracy_drop: most that test accuracy may fall by a request, in [0, 1]; beyond it the exit code is 3.
        bounds: on numbers of the audit, ``NAME OP NUMBER`` each; where one is missed the exit code is 3.
    """

    methods: Words = []
    largest_share: float = Field(default=0.5, gt=0, lt=1)
    accuracy_drop: float | None = Field(default=None, ge=0, le=1)
    bounds: Words = []


class Config(Section):
    """A project file.

    Args:
        model: network and weights.
        data: samples and columns.
        task: what is predicted.
        recipe: how the network was trained, fields of `expunge.train.Recipe`; for retraining.
        method: name and fields of the method.
        runtime: how work runs.
        policy: what a request may do.
    """

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    task: TaskSection = TaskSection()
    recipe: Free | None = None
    method: Free = {"name": "ssd"}
    runtime: RuntimeSection = RuntimeSection()
    policy: PolicySection = PolicySection()


def read(path: Path) -> Config:
    """Read and check a project file.

    Returns:
        What it says.

    Raises:
        UserError: no such file, an unknown key, or a value of another kind; names the line.
        CorruptArtefact: not TOML.
    """
    found = there(path)
    if found != "a file":
        remedy = "write one with expunge init, or name it by --project"
        raise UserError(f"a project file {path}", found or "nothing there", remedy)
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
        config = Config.model_validate(body)
    except ValidationError as error:
        raise UserError(*_refusal(path, text, error)) from error
    known = [f.name for f in fields(Recipe) if f.name != "penalties"]
    for key in config.recipe or {}:
        if key not in known:
            raise UserError(
                f"known keys in {_place(path, text, ['recipe'], key)}", f"'recipe.{key}'", suggest(key, known)
            )
    return config


def _refusal(path: Path, text: str, error: ValidationError) -> tuple[str, str, str]:
    """Return the first fault with its line as the parts of a sentence, and a suggestion for an unknown key."""
    first = error.errors()[0]
    where = [part for part in first["loc"] if isinstance(part, str)]
    *tables, key = where
    place, name = _place(path, text, tables, key), ".".join(where)
    if first["type"] == "extra_forbidden":
        known = _known(tables)
        return f"known keys in {place}", f"'{name}'", suggest(key, known)
    value = repr(first["input"])
    shown = value if len(value) <= 60 else value[:57] + "..."
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("model_type", "dict_type"):
        message = f"should be a table, [{name}]"
    want = message[:1].lower() + message[1:]
    want = want.removeprefix("input ")
    return f"{name} in {place} to be right", f"{shown} ({want})", "mend the value"


def _first(error: Exception) -> str:
    lines = str(error).splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def _known(tables: list[str]) -> list[str]:
    section: Any = Config
    for table in tables:
        section = section.model_fields[table].annotation
    return list(section.model_fields)


def _place(path: Path, text: str, tables: list[str], key: str) -> str:
    line = _line(text, tables, key)
    if line is None and tables:  # within an inline table, or under a dotted key
        line = _line(text, tables[:-1], tables[-1])
    return f"line {line} of {path.name}" if line else path.name


def _line(text: str, tables: list[str], key: str) -> int | None:
    """Return the number of the line that sets a key, looking inside its table."""
    inside = not tables
    head = ".".join([*tables, key])
    for number, line in enumerate(text.splitlines(), start=1):
        table = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
        if table:
            name = re.sub(r"[\s\"']", "", table[1])
            if name == head or name.startswith(f"{head}."):
                return number
            inside = name == ".".join(tables)
        elif inside and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]", line):
            return number
    return None
