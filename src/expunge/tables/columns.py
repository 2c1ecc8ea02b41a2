"""Columns of a table as tensors and plain values, each refused with its first bad rows."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from expunge.errors import UserError, listing, suggest


def filled(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Return the column, refused where a value is missing.

    Raises:
        UserError: names the first rows without one.
    """
    missing = np.flatnonzero(pc.is_null(column, nan_is_null=pa.types.is_floating(column.type)).to_numpy())
    if len(missing):
        got = f"none in row {listing(missing)}" if len(missing) == 1 else f"none in rows {listing(missing)}"
        raise UserError(f"a value in every row of the column '{name}'", got, "fill them in or drop those rows")
    return column


def is_text(kind: pa.DataType) -> bool:
    """Return whether values are texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_list(kind: pa.DataType) -> bool:
    """Return whether values are lists, arrays of the ``datasets`` library included."""
    kind = kind.storage_type if isinstance(kind, pa.ExtensionType) else kind
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_number(kind: pa.DataType) -> bool:
    """Return whether values are numbers or truth values."""
    return bool(pa.types.is_boolean(kind) or _is_count(kind) or _is_real(kind))


def _is_count(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind))


def _is_real(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def numbers(column: pa.ChunkedArray, name: str) -> Tensor:
    """Return a column of numbers as float32 (N,).

    Raises:
        UserError: a missing or infinite value.
    """
    kind = pa.uint8() if pa.types.is_boolean(column.type) else pa.float64()
    kind = pa.float32() if pa.types.is_float16(column.type) else kind
    values = filled(column, name).cast(kind, safe=False).to_numpy()  # long integers are rounded, as float32 rounds them
    return _finite(torch.from_numpy(np.array(values, dtype=np.float32)), name)


def arrays(column: pa.ChunkedArray, name: str) -> Tensor:
    """Return a column of equally long lists, nested or not, as (N, ...): int64 or float32.

    Raises:
        UserError: a missing or infinite value, lists of several lengths, or of something else than numbers.
    """
    values = filled(column, name).combine_chunks()
    shape = [len(values)]
    while is_list(values.type):
        values = values.storage if isinstance(values, pa.ExtensionArray) else values
        lengths = pc.unique(pc.list_value_length(values)).to_pylist()
        if values.null_count or len(lengths) != 1:
            remedy = "pad or cut them to one length first"
            raise UserError(f"lists of one length in '{name}'", f"lengths {listing(map(str, lengths))}", remedy)
        shape.append(lengths[0])
        values = values.flatten()
    if not is_number(values.type) or values.null_count:
        got = "missing values in them" if values.null_count else f"lists of {values.type}"
        raise UserError(f"lists of numbers in '{name}'", got, "encode them as numbers first")
    whole = _is_count(values.type) or pa.types.is_boolean(values.type)
    flat = np.array(values.to_numpy(zero_copy_only=False), dtype=np.int64 if whole else np.float32)
    return _finite(torch.from_numpy(flat.reshape(shape)), name)


def _finite(tensor: Tensor, name: str) -> Tensor:
    bad = (~torch.isfinite(tensor.reshape(len(tensor), -1)).all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise UserError(f"finite numbers in '{name}'", f"others in row {listing(bad)}", "repair or drop those rows")
    return tensor


def texts(column: pa.ChunkedArray, name: str) -> list[str]:
    """Return a column of texts."""
    return filled(column, name).to_pylist()  # type: ignore[no-any-return]


def id_values(column: pa.ChunkedArray, name: str) -> list[str]:
    """Return a column of ids as texts.

    Raises:
        UserError: neither whole numbers nor texts.
    """
    if not (_is_count(column.type) or is_text(column.type)):
        got = f"{column.type} in '{name}'"
        raise UserError("ids that are whole numbers or texts", got, "name another column, or convert this one")
    return [str(i) for i in filled(column, name).to_pylist()]


def plain_values(column: pa.ChunkedArray, feature: Any, name: str) -> list[Any]:
    """Return a column as JSON values: names of classes, dates as ISO text; None where a value is missing.

    Raises:
        UserError: lists, images or other compound values.
    """
    if is_list(column.type) or pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
        got = f"{column.type}"
        raise UserError(f"one number, text or date a row in '{name}'", got, "leave it out of the columns to keep")
    values = column.to_pylist()
    if _declared(column.type, feature):
        return _named(values, feature.names, name)
    return [_plain(v) for v in values]


def _declared(kind: pa.DataType, feature: Any) -> bool:
    """Return whether values are indices of declared classes; a schema may say so of others too."""
    return isinstance(feature, datasets.ClassLabel) and _is_count(kind)


def _named(values: list[int | None], names: Sequence[str], name: str) -> list[str | None]:
    beyond = [row for row, v in enumerate(values) if v is not None and v >= len(names)]
    if beyond:
        got = f"class {values[beyond[0]]} in row {listing(beyond)}"
        raise UserError(f"classes 0 to {len(names) - 1} in '{name}'", got, "correct or drop those rows")
    return [None if v is None or v < 0 else names[v] for v in values]  # -1: the library's mark of an unknown class


def _plain(value: Any) -> Any:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def real_targets(column: pa.ChunkedArray, feature: Any, name: str) -> Tensor:
    """Return real targets, float32 (N, 1), or (N, T) from lists.

    Raises:
        UserError: texts or classes.
    """
    if is_list(column.type):
        return arrays(column, name).float()
    if not is_number(column.type) or isinstance(feature, datasets.ClassLabel):
        got = "names of classes" if isinstance(feature, datasets.ClassLabel) else f"{column.type}"
        raise UserError(f"numbers as targets in '{name}'", got, "set the task to classification, or encode them")
    return numbers(column, name).unsqueeze(1)


def zero_one(column: pa.ChunkedArray, name: str) -> Tensor:
    """Return labels 0 and 1, int64 (N,), or (N, K) from lists.

    Raises:
        UserError: texts, a missing value, or another number; names the first rows.
    """
    if not is_list(column.type) and not is_number(column.type):
        raise UserError(f"labels 0 or 1 in '{name}'", f"{column.type}", "encode them as 0 and 1 first")
    found = arrays(column, name) if is_list(column.type) else numbers(column, name)
    bad = ((found != 0) & (found != 1)).reshape(len(found), -1).any(dim=1).nonzero().flatten().tolist()
    if bad:
        remedy = "correct or drop those rows, or set the kind of [task] to classification or regression"
        raise UserError(f"labels 0 or 1 in '{name}'", f"others in row {listing(bad)}", remedy)
    return found.long()


def token_ids(column: pa.ChunkedArray, name: str) -> Tensor:
    """Return token ids, int64 (N, T), from lists of one length.

    Raises:
        UserError: no lists, or lists of something else than whole numbers.
    """
    if not is_list(column.type):
        raise UserError(f"lists of token ids in '{name}'", f"{column.type}", "write the token ids of each sequence")
    found = arrays(column, name)
    if found.is_floating_point() or found.dim() != 2:
        got = "fractional numbers" if found.is_floating_point() else "lists of lists"
        raise UserError(f"lists of token ids in '{name}'", got, "write the token ids of each sequence")
    return found


def names_of(column: pa.ChunkedArray, feature: Any, name: str) -> list[str] | None:
    """Return the class names that a target column brings: declared or, of texts, sorted; None for whole numbers.

    Raises:
        UserError: targets of another kind.
    """
    if _declared(column.type, feature):
        return list(feature.names)
    if is_text(column.type):
        return sorted(pc.unique(filled(column, name)).to_pylist())
    if _is_count(column.type) or pa.types.is_boolean(column.type):
        return None
    got = f"{column.type} in '{name}'"
    if _is_real(column.type):
        remedy = "convert them to integers (3.0 to 3), or set the task to regression for real targets"
    else:
        remedy = "name another column, or convert this one"
    raise UserError("classes as integers or names", got, remedy)


def class_targets(column: pa.ChunkedArray, feature: Any, name: str, classes: Sequence[str]) -> Tensor:
    """Return class indices, int64 (N,): names are looked up in ``classes`` where given.

    Raises:
        UserError: a missing or negative class, a name that is not among the classes, or an index beyond them.
    """
    own = names_of(column, feature, name)
    column = filled(column, name)
    if is_text(column.type):
        return _lookup(column.to_pylist(), classes or own or [], name)
    values = np.array(column.cast(pa.int64(), safe=False).to_numpy(), dtype=np.int64)  # beyond it: below 0, refused
    limit = len(own or classes) or None
    bad = np.flatnonzero((values < 0) | (values >= limit if limit else False))
    if len(bad):
        want = f"classes 0 to {limit - 1}" if limit else "classes of 0 or more"
        got = f"class {values[bad[0]]} in row {listing(bad)}"
        raise UserError(f"{want} in '{name}'", got, "correct or drop those rows")
    if own is not None and classes and list(classes) != own:  # another table may count its classes otherwise
        return _lookup([own[v] for v in values], classes, name)
    return torch.from_numpy(values)


def _lookup(values: list[str], classes: Sequence[str], name: str) -> Tensor:
    where = {c: i for i, c in enumerate(classes)}
    unknown = [v for v in dict.fromkeys(values) if v not in where]
    if unknown:
        raise UserError(f"known classes in '{name}'", f"{unknown[0]!r}", suggest(unknown[0], classes))
    return torch.tensor([where[v] for v in values], dtype=torch.long)
