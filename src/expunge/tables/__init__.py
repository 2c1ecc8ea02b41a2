"""From tables of files to `Data`: which column is what, found from the columns themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
        inputs: what the network is given: one of images, one of texts, one or several of numbers, or of lists.
        target: labels, or None for unlabelled data.
        id: unique, stable ids, whole numbers or texts; None numbers the rows.
        keep: further columns: subject, superclass, date ...
        classes: names of the classes in the order of the network's outputs, where labels are names; see
            `class_names`.
        image: how images become tensors.
        text: from N texts to a dict of tensors (N, L), such as `hashed_words` or a tokenizer.
        real: whether targets are real numbers, for regression, and no classes.
    """

    inputs: tuple[str, ...]
    target: str | None = None
    id: str | None = None
    keep: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    image: Image = Image()
    text: Callable[[list[str]], dict[str, Tensor]] | None = None
    real: bool = False


def to_data(table: datasets.Dataset, columns: Columns, *, name: str = "train") -> Data:
    """Return the samples of a table.

    Images stay bytes in memory, (N, C, H, W) uint8, and become floats by the batch. One text column becomes the dict
    that ``columns.text`` returns; columns of numbers are stacked, (N, F) float32 in the order given; a column of
    lists becomes (N, ...), several a dict by column name. Where labels are names, or have declared names, the names
    stand in a data column of the target's own name; kept columns hold names of classes and dates as ISO text.

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
    targets = None
    if columns.target is not None:
        feature, values = features[columns.target], rows.column(columns.target)
        if columns.real:
            targets = of.real_targets(values, feature, columns.target)
        else:
            targets = of.class_targets(values, feature, columns.target, columns.classes)
            if of.names_of(values, feature, columns.target) is not None:
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
    if columns.target is None or columns.real:
        raise UserError("a column of classes", "real targets" if columns.real else "no target", "name one as target")
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
    single = [c for c in (columns.target, columns.id) if c is not None]
    for column in (*columns.inputs, *single, *columns.keep):
        if column not in table.column_names:
            raise UserError(f"a column of {name}", repr(column), suggest(column, table.column_names))
    if not columns.inputs:
        raise UserError("at least one input column", "none", f"choose from {listing(table.column_names, 20)}")
    if columns.target in columns.inputs:
        raise UserError("inputs without the target", f"'{columns.target}' as both", "take it out of the inputs")
    if len(table) == 0:
        raise UserError(f"samples in {name}", "an empty table", "check the files")
    return table.with_format("arrow")[:]


def _inputs(rows: pa.Table, columns: Columns) -> tuple[Tensor | dict[str, Tensor], Image | None]:
    kinds = {c: _kind(rows.column(c).type, c) for c in columns.inputs}
    first = columns.inputs[0]
    if len(set(kinds.values())) > 1 or (len(kinds) > 1 and kinds[first] in ("an image", "a text")):
        got = ", ".join(f"{kind} in '{c}'" for c, kind in kinds.items())
        remedy = "encode texts and categories as numbers, or name fewer inputs"
        raise UserError("one image, one text, numbers, or lists of numbers as inputs", got, remedy)
    if kinds[first] == "an image":
        return decoded(rows.column(first), columns.image, first), columns.image
    if kinds[first] == "a text":
        return _tokens(of.texts(rows.column(first), first), columns.text, first), None
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


def _tokens(values: list[str], text: Callable[[list[str]], dict[str, Tensor]] | None, name: str) -> dict[str, Tensor]:
    if text is None:
        remedy = "set a tokeniser: vocabulary in [data.text], or Columns.text to hashed_words(128, 8192)"
        raise UserError(f"a way to turn the texts of '{name}' into numbers", "none", remedy)
    found = dict(text(values))
    if not found or any(not isinstance(t, Tensor) or len(t) != len(values) for t in found.values()):
        got = listing(f"{k} {tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__}" for k, t in found.items())
        remedy = "pad and return them as tensors"
        raise UserError(f"tensors of {len(values)} rows from Columns.text", got or "nothing", remedy)
    return found
