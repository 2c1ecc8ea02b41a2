"""What a project file says: sections, keys and values, checked before anything is opened."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from expunge.errors import CorruptArtefact, UserError, suggest

NAME = "expunge.toml"


class Section(BaseModel):
    """A table of the file; keys it does not know are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSection(Section):
    """Which network, which weights.

    Args:
        network: ``package.module:function``, ``hf:folder``, or a named network.
        weights: file of trained weights; ``train`` trains the network by the recipe; none where the function returns
            the trained network.
        base: the network before training: ``package.module:function``, ``hf:folder``, or ``random``.
    """

    network: str = ""
    weights: str | None = None
    base: str | None = None


class ImageSection(Section):
    """How images become tensors.

    Args:
        size: height and width to resize to.
        mean: by channel, of pixels in [0, 1].
        std: by channel, of pixels in [0, 1].
        channels: 1 or 3, to convert to.
    """

    size: list[int] | None = Field(default=None, min_length=2, max_length=2)
    mean: list[float] = []
    std: list[float] = []
    channels: Literal[1, 3] | None = None


class TextSection(Section):
    """How texts become tensors.

    Args:
        length: tokens kept of a text.
        vocabulary: entries of the hashing tokeniser, for networks that bring no tokeniser of their own.
    """

    length: int = Field(default=128, ge=2)
    vocabulary: int | None = Field(default=None, ge=3)


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
        image: how images become tensors.
        text: how texts become tensors.
    """

    name: str | None = None
    limit: int | None = Field(default=None, ge=10)
    format: Literal["auto", "parquet", "csv", "images", "python"] = "auto"
    train: str | None = None
    holdout: str | None = None
    test: str | None = None
    inputs: list[str] = []
    target: str | None = None
    id: str | None = None
    subject: str | None = None
    subclass: str | None = None
    columns: list[str] = []
    classes: list[str] = []
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
    """

    batch_size: int = Field(default=256, ge=1)
    precision: Literal["full", "bf16"] = "full"
    memory: int | None = Field(default=None, ge=1)
    workdir: str | None = None


class PolicySection(Section):
    """What a request may do.

    Args:
        methods: methods that may be used; empty for all.
        largest_share: most of the training samples that one request may forget, in (0, 1).
        accuracy_drop: most that test accuracy may fall by a request, in [0, 1]; beyond it the exit code is 3.
    """

    methods: list[str] = []
    largest_share: float = Field(default=0.5, gt=0, lt=1)
    accuracy_drop: float | None = Field(default=None, ge=0, le=1)


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
    recipe: dict[str, Any] | None = None
    method: dict[str, Any] = {"name": "ssd"}
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
    if not path.is_file():
        raise UserError(f"a project file {path}", "none there", "write one with expunge init, or name it by --project")
    try:
        text = path.read_text(encoding="utf-8-sig")
        body = tomllib.loads(text)
    except OSError as error:
        raise UserError(f"a readable file {path}", error.strerror or str(error), "check its permissions") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptArtefact(f"TOML in {path}", str(error), "mend that place") from error
    try:
        return Config.model_validate(body)
    except ValidationError as error:
        raise UserError(*_refusal(path, text, error)) from error


def _refusal(path: Path, text: str, error: ValidationError) -> tuple[str, str, str]:
    """Return the first fault with its line as the parts of a sentence, and a suggestion for an unknown key."""
    first = error.errors()[0]
    where = [part for part in first["loc"] if isinstance(part, str)]
    *tables, key = where
    line = _line(text, tables, key)
    place = f"line {line} of {path.name}" if line else path.name
    name = ".".join(where)
    if first["type"] == "extra_forbidden":
        known = _known(tables)
        return f"known keys in {place}", f"'{name}'", suggest(key, known)
    value = repr(first["input"])
    shown = value if len(value) <= 60 else value[:57] + "..."
    want = first["msg"][0].lower() + first["msg"][1:]
    return f"{name} in {place} to be right", f"{shown} ({want})", "mend the value"


def _known(tables: list[str]) -> list[str]:
    section: type[BaseModel] = Config
    for table in tables:
        section = section.model_fields[table].annotation  # type: ignore[assignment]
    return list(section.model_fields)


def _line(text: str, tables: list[str], key: str) -> int | None:
    """Return the number of the line that sets a key, looking inside its table."""
    inside = not tables
    head = ".".join([*tables, key])
    for number, line in enumerate(text.splitlines(), start=1):
        table = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
        if table:
            name = re.sub(r"[\s\"']", "", table[1])
            if name == head:
                return number
            inside = name == ".".join(tables)
        elif inside and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]", line):
            return number
    return None
