"""From tables of files to `Data`: which column is what, found from the columns themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow as pa
import torch
from torch import Tensor

from expunge.data import Data
from expunge.errors import UserError, listing, suggest
from expunge.tables import columns as of
from expunge.tables.images import Image, decoded, holds_images
from expunge.tables.read import read_csv, read_hub, read_images, read_parquet
from expunge.tables.words import hashed_words

__all__ = [
    "Columns",
    "Image",
    "class_names",
    "hashed_words",
    "is_image",
    "is_text",
    "read_csv",
    "read_hub",
    "read_images",
    "read_parquet",
    "to_data",
]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What the columns of a table mean.

    Args:
        inputs: what the network is given: one of images, one of texts or a pair of them, one or several of numbers, or
            of lists.
        target: labels, in one column or in several of numbers side by side, or None for unlabelled data.
        id: unique, stable ids, whole numbers or texts; None numbers the rows.
        keep: further columns: subject, superclass, date ...
        classes: names of the classes in the order of the network's outputs, where labels are names; see
            `class_names`.
        image: how images become tensors.
        text: from N texts, or from N first and N second texts of pairs, to a dict of tensors (N, L), such as
            `hashed_words` or a tokenizer.
        real: whether targets are real numbers, for regression, and no classes.
        labels: whether targets are 0 or 1, for one label a sample or several; names of two classes do too.
        tokens: whether targets are token ids in lists of one length, -100 where they count for nothing.
    """

    inputs: tuple[str, ...]
    target: str | tuple[str, ...] | None = None
    id: str | None = None
    keep: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    image: Image = Image()
    text: Callable[..., dict[str, Tensor]] | None = None
    real: bool = False
    labels: bool = False
    tokens: bool = False

    @property
    def targets(self) -> tuple[str, ...]:
        """The columns of labels."""
        return (self.target,) if isinstance(self.target, str) else self.target or ()


def to_data(table: datasets.Dataset, columns: Columns, *, name: str = "train") -> Data:
    """Return the samples of a table.

    Images stay bytes in memory, (N, C, H, W) uint8, and become floats by the batch. A text column, or a pair of them,
    becomes the dict that ``columns.text`` returns; columns of numbers are stacked, (N, F) float32 in the order given;
    a column of lists becomes (N, ...), several a dict by column name. Where labels are names, or have declared names,
    the names stand in a data column of the target's own name; several columns of labels are stacked, (N, K). Kept
    columns hold names of classes and dates as ISO text.

    Args:
        table: from `read_parquet` and the like, or any other.
        columns: what its columns mean.
        name: what messages and default ids call the data.

    Returns:
        The data.

    Raises:
        UserError: a column is unknown, of a kind that does not fit its use, or has missing values; the message names
            the first rows.
    """
    rows = _checked(table, columns, name)
    features = table.features
    kept = {c: of.plain_values(rows.column(c), features[c], c) for c in columns.keep}
    targets = _targets(rows, features, columns) if columns.targets else None
    if isinstance(columns.target, str) and not columns.real and not columns.tokens:
        feature, values = features[columns.target], rows.column(columns.target)
        if not _bare(values.type, feature, columns) and of.names_of(values, feature, columns.target) is not None:
            kept[columns.target] = of.plain_values(values, feature, columns.target)
    ids = None if columns.id is None else of.id_values(rows.column(columns.id), columns.id)
    inputs, transform = _inputs(rows, columns)
    return Data.from_arrays(inputs, targets, ids=ids, columns=kept, transform=transform, name=name)


def class_names(table: datasets.Dataset, columns: Columns) -> tuple[str, ...]:
    """Return the names of the classes in the order of their indices.

    Settle them on the training table and give them to the others' `Columns`, so that one index is one class
    everywhere; a table whose declared classes stand in another order is looked up by name.

    Args:
        table: the training table.
        columns: with a class target.

    Returns:
        ``columns.classes`` where given, the declared names, the sorted texts, or numbers from 0 to the largest class.

    Raises:
        UserError: no target, real targets, or one that is no class.
    """
    if not isinstance(columns.target, str) or columns.real or columns.tokens:
        got = "real targets" if columns.real else "several" if columns.targets else "no target"
        got = "token ids" if columns.tokens else got
        raise UserError("a column of classes", got, "name one as target")
    rows = _checked(table, columns, "the table")
    if columns.classes:
        return columns.classes
    values, feature = rows.column(columns.target), table.features[columns.target]
    own = of.names_of(values, feature, columns.target)
    if own is not None:
        return tuple(own)
    largest = int(of.class_targets(values, feature, columns.target, ()).max())
    return tuple(str(i) for i in range(largest + 1))


def is_image(table: datasets.Dataset, column: str) -> bool:
    """Return whether a column holds images."""
    return holds_images(table.data.schema.field(column).type)


def is_text(table: datasets.Dataset, column: str) -> bool:
    """Return whether a column holds texts."""
    return of.is_text(table.data.schema.field(column).type)


def _checked(table: datasets.Dataset, columns: Columns, name: str) -> pa.Table:
    """Return the table's rows, all named columns being there."""
    single = [*columns.targets, *([] if columns.id is None else [columns.id])]
    for column in (*columns.inputs, *single, *columns.keep):
        if column not in table.column_names:
            raise UserError(f"a column of {name}", repr(column), suggest(column, table.column_names))
    if not columns.inputs:
        raise UserError("at least one input column", "none", f"choose from {listing(table.column_names, 20)}")
    if both := [c for c in columns.targets if c in columns.inputs]:
        raise UserError("inputs without the target", f"'{both[0]}' as both", "take it out of the inputs")
    if len(table) == 0:
        raise UserError(f"samples in {name}", "an empty table", "check the files")
    return table.with_format("arrow")[:]


def _targets(rows: pa.Table, features: datasets.Features, columns: Columns) -> Tensor:
    """Return the labels, (N,), or (N, K) of lists or of several columns.

    Raises:
        UserError: several columns of classes, or of token ids.
    """
    names = columns.targets
    values = [rows.column(c) for c in names]
    if columns.tokens:
        if not isinstance(columns.target, str):
            raise UserError("one column of token ids", listing([f"'{c}'" for c in names]), "name one target")
        return of.token_ids(values[0], columns.target)
    if columns.real:
        return torch.cat([of.real_targets(v, features[c], c) for v, c in zip(values, names, strict=True)], dim=1)
    if not isinstance(columns.target, str):
        if not columns.labels:
            got, remedy = listing([f"'{c}'" for c in names]), "set kind in [task] to multilabel, or name one target"
            raise UserError("one column of classes", got, remedy)
        return torch.stack([of.zero_one(v, c) for v, c in zip(values, names, strict=True)], dim=1)
    if _bare(values[0].type, features[columns.target], columns):
        return of.zero_one(values[0], columns.target)
    return of.class_targets(values[0], features[columns.target], columns.target, columns.classes)


def _bare(kind: pa.DataType, feature: Any, columns: Columns) -> bool:
    """Return whether a column of labels 0 or 1 holds them as numbers or lists of numbers, and no names of classes."""
    return columns.labels and not of.is_text(kind) and not isinstance(feature, datasets.ClassLabel)


def _inputs(rows: pa.Table, columns: Columns) -> tuple[Tensor | dict[str, Tensor], Image | None]:
    kinds = {c: _kind(rows.column(c).type, c) for c in columns.inputs}
    first = columns.inputs[0]
    most = {"an image": 1, "a text": 2}.get(kinds[first], len(kinds))
    if len(set(kinds.values())) > 1 or len(kinds) > most:
        got = ", ".join(f"{kind} in '{c}'" for c, kind in kinds.items())
        remedy = "encode texts and categories as numbers, or name fewer inputs"
        raise UserError("one image, one text or two, numbers, or lists of numbers as inputs", got, remedy)
    if kinds[first] == "an image":
        return decoded(rows.column(first), columns.image, first), columns.image
    if kinds[first] == "a text":
        return _tokens([of.texts(rows.column(c), c) for c in columns.inputs], columns.text, columns.inputs), None
    if kinds[first] == "a number":
        return torch.stack([of.numbers(rows.column(c), c) for c in columns.inputs], dim=1), None
    found = {c: of.arrays(rows.column(c), c) for c in columns.inputs}
    return (found if len(found) > 1 else found[first]), None


def _kind(kind: pa.DataType, name: str) -> str:
    if holds_images(kind):
        return "an image"
    if of.is_text(kind):
        return "a text"
    if of.is_number(kind):
        return "a number"
    if of.is_list(kind):
        return "a list"
    raise UserError(f"images, texts or numbers in '{name}'", str(kind), "convert the column or leave it out")


def _tokens(
    values: list[list[str]], text: Callable[..., dict[str, Tensor]] | None, names: tuple[str, ...]
) -> dict[str, Tensor]:
    """Return the tensors of one column of texts, or of the first and second texts of pairs."""
    if text is None:
        remedy = "set a tokeniser: vocabulary in [data.text], or Columns.text to hashed_words(128, 8192)"
        where = listing([f"'{name}'" for name in names])
        raise UserError(f"a way to turn the texts of {where} into numbers", "none", remedy)
    found, rows = dict(text(*values)), len(values[0])
    if not found or any(not isinstance(t, Tensor) or len(t) != rows for t in found.values()):
        got = listing(f"{k} {tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__}" for k, t in found.items())
        remedy = "pad and return them as tensors"
        raise UserError(f"tensors of {rows} rows from Columns.text", got or "nothing", remedy)
    return found
