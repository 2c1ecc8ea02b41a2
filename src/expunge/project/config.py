"""What a project file says: sections, keys and values, checked before anything is opened."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter

from expunge.errors import UserError, suggest
from expunge.project import measures, sections
from expunge.project.sections import LARGEST, Count, Free, Pixels, Section, Word, Words
from expunge.recipe import KEYS
from expunge.task import Quantile

NAME = "expunge.toml"
_WORD: TypeAdapter[str] = TypeAdapter(Word)
_WORDS: TypeAdapter[list[str]] = TypeAdapter(Words)
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,59}")


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


def _columns(value: Any) -> str | list[str] | None:
    """Refuse what is neither the name of a column nor a list of some."""
    if value is None:
        return None
    if isinstance(value, str):
        return _WORD.validate_python(value)
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise ValueError("should be a column or a list of columns")
    return _WORDS.validate_python(value)


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
        target: column of labels; several stand side by side, of several labels or real targets a sample.
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
    target: Annotated[Any, AfterValidator(_columns)] = None
    id: Word | None = None
    subject: Word | None = None
    subclass: Word | None = None
    columns: Words = []
    classes: Words = []
    canaries: Word | None = None
    image: ImageSection = ImageSection()
    text: TextSection = TextSection()


def _levels(value: list[float]) -> list[float]:
    """Refuse levels that no quantiles have."""
    try:
        Quantile(quantiles=tuple(value))
    except UserError as error:
        raise ValueError(f"{error.expected} were expected") from error
    return value


class TaskSection(Section):
    """What the network predicts.

    Args:
        kind: ``classification``, ``binary``, ``multilabel``, ``regression``, ``quantile`` or ``causal_lm``.
        error: of regression, ``squared`` or ``absolute``.
        quantiles: of the kind quantile, the levels in the order of the network's outputs, rising.
    """

    kind: Literal["classification", "binary", "multilabel", "regression", "quantile", "causal_lm"] = "classification"
    error: Literal["squared", "absolute"] = "squared"
    quantiles: Annotated[list[float], AfterValidator(_levels)] = [0.1, 0.5, 0.9]


class RuntimeSection(Section):
    """How work runs; changes no result beyond rounding.

    Args:
        batch_size: samples a forward pass outside training.
        precision: ``full`` or ``bf16``.
        memory: bytes that per-sample gradients may use at once.
        workdir: folder for checkpoints of interrupted work.
        checkpoint_every: seconds between two checkpoints of a training or a long pass; 0 after every epoch or window.
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
        accuracy_drop: most that test accuracy may fall by a request, in [0, 1], for a class on the other classes;
            beyond it the exit code is 3.
        bounds: on numbers of the audit, ``NAME OP NUMBER`` each; where one is missed the exit code is 3.
    """

    methods: Words = []
    largest_share: float = Field(default=0.5, gt=0, lt=1)
    accuracy_drop: float | None = Field(default=None, ge=0, le=1)
    bounds: Words = []


def _folders(value: dict[str, str]) -> dict[str, str]:
    """Refuse names of models that are no plain names of folders."""
    for name in value:
        if _FOLDER.fullmatch(name) is None:
            raise ValueError(f"a name of 1 to 60 letters, digits and . _ - was expected, which {name!r:.70} is not")
    return value


class RequestsSection(Section):
    """How deletion requests are fulfilled; see `expunge.service`.

    Args:
        workspace: folder of the ledger and of the models' versions.
        start: folder of ``expunge prepare``, which the first version is copied from.
        route: ``edit`` (unlearn now), ``retrain`` (at the next cadence) or ``edit-then-retrain``, of requests that
            name none.
        days: from the receipt of a request to the day it is due.
        batch: most requests that one edit fulfils together.
        cadence: days between two retrainings.
        approval: whether a second operator must approve a request before it is fulfilled.
        undo_days: days for which a replaced version is kept, encrypted, to be rolled back to; 0 keeps none.
        refresh_every: requests after which an edit first prepares its state anew; 0 for never.
        qualification: file that ``expunge qualify`` wrote, which edits cite; empty for none.
        models: project files by model name, of several models that one request may touch; empty for this one alone.
    """

    workspace: Word = "expunge-requests"
    start: Word = "expunge-work"
    route: Literal["edit", "retrain", "edit-then-retrain"] = "edit"
    days: int = Field(default=30, ge=1, le=36500)
    batch: int = Field(default=100, ge=1, le=2**20)
    cadence: int = Field(default=30, ge=0, le=36500)
    approval: bool = False
    undo_days: int = Field(default=14, ge=0, le=36500)
    refresh_every: int = Field(default=0, ge=0, le=LARGEST)
    qualification: str = ""
    models: Annotated[dict[str, Word], AfterValidator(_folders)] = {}


class Config(Section):
    """A project file.

    Args:
        model: network and weights.
        data: samples and columns.
        task: what is predicted.
        recipe: how the network was trained, as `expunge.recipe.fields_of` reads it; for retraining.
        method: name and fields of the method.
        runtime: how work runs.
        policy: what a request may do.
        metrics: settings of families of metrics, by name, as `expunge.project.measures` reads them.
        requests: how deletion requests are fulfilled.
    """

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    task: TaskSection = TaskSection()
    recipe: Free | None = None
    method: Free = {"name": "ssd"}
    runtime: RuntimeSection = RuntimeSection()
    policy: PolicySection = PolicySection()
    metrics: dict[str, Free] = {}
    requests: RequestsSection = RequestsSection()


def read(path: Path) -> Config:
    """Read and check a project file.

    Returns:
        What it says.

    Raises:
        UserError: no such file, an unknown key, or a value of another kind; names the line.
        CorruptArtefact: not TOML.
    """
    missing = "write one with expunge init, or name it by --project"
    config, text = sections.read(path, Config, what="a project file", missing=missing)
    check_recipe(config.recipe or {}, path, text, ["recipe"])
    check_metrics(config.metrics, path, text)
    return config


def check_recipe(given: Free, path: Path, text: str, tables: list[str]) -> None:
    """Refuse keys of a recipe's table that `expunge.recipe.fields_of` does not know.

    Raises:
        UserError: one is not; names the line.
    """
    for key in given:
        if key not in KEYS:
            at = sections.place(path, text, tables, key)
            raise UserError(f"known keys in {at}", f"'{'.'.join([*tables, key])}'", suggest(key, KEYS))


def check_metrics(given: Mapping[str, Free], path: Path, text: str) -> None:
    """Refuse settings of metrics that do not exist, or are out of range.

    Raises:
        UserError: one is; names the line.
    """
    for name, table in given.items():
        try:
            measures.measure(name, table)
        except UserError as error:
            at = sections.place(path, text, ["metrics"], name)
            raise UserError(f"{error.expected} in {at}", error.got, error.remedy) from error
