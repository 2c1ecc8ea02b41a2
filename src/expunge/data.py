"""Samples with stable ids: what every part of the package reads training data through."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.errors import UserError, listing
from expunge.sources import ArraySource, HFSource, Inputs, Relabelled, Source, TorchSource


@dataclass(frozen=True)
class Batch:
    """Some samples of one `Data`.

    Args:
        inputs: tensor (B, ...) or a dict of them, as the model's forward takes them.
        target: tensor (B, ...), or None where labels are not given or not shown.
        weight: tensor (B,) of sample weights, or None for ones.
        index: tensor (B,) int64, positions in its `Data`.
    """

    inputs: Inputs
    target: Tensor | None
    weight: Tensor | None
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def part(self, at: slice) -> Batch:
        """Return some of the samples."""
        inputs = {k: v[at] for k, v in self.inputs.items()} if isinstance(self.inputs, dict) else self.inputs[at]
        target = None if self.target is None else self.target[at]
        return Batch(inputs, target, None if self.weight is None else self.weight[at], self.index[at])

    def to(self, device: str | torch.device) -> Batch:
        """Return the batch on another device."""
        moved = {k: v.to(device) for k, v in self.inputs.items()} if isinstance(self.inputs, dict) else None
        inputs = moved if moved is not None else self.inputs.to(device)  # type: ignore[union-attr]
        target = None if self.target is None else self.target.to(device)
        weight = None if self.weight is None else self.weight.to(device)
        return Batch(inputs, target, weight, self.index)


@dataclass(eq=False)
class Reads:
    """Which samples of a `Data` had their inputs read."""

    flags: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Data:
    """Samples with ids, inputs, targets and columns; immutable, cheap to subset.

    Build one with `from_arrays`, `from_torch` or `from_hf`.

    Args:
        source: where samples are read.
        positions: (N,) int64, this data's samples in the source.
        all_ids: ids of the source's samples.
        all_columns: per-sample values by name, of the source.
        all_weights: (n,) sample weights of the source, or None.
        name: what messages call it.
        shows_inputs: whether batches may be read.
        shows_labels: whether targets and columns are given.
        reads: record of what was read, when watched.
    """

    source: Source
    positions: NDArray[np.int64]
    all_ids: NDArray[np.object_]
    all_columns: Mapping[str, NDArray[Any]]
    all_weights: Tensor | None = None
    name: str = "train"
    shows_inputs: bool = True
    shows_labels: bool = True
    reads: Reads | None = field(default=None, repr=False)

    @classmethod
    def _of(cls, source: Source, ids: Any, columns: Any, weight: Any, name: str) -> Data:
        n = len(source)
        if ids is None:
            keys = [f"{name}/{i}" for i in range(n)]
        else:
            keys = id_texts(ids)
        if len(keys) != n:
            raise UserError(f"{n} ids for {n} samples", f"{len(keys)}", "pass one id a sample")
        _unique(keys, f"ids of {name}")
        cols = {k: np.asarray(v, dtype=object) for k, v in (columns or {}).items()}
        short = [k for k, v in cols.items() if len(v) != n]
        if short:
            raise UserError(f"{n} values in every column", f"another number in {listing(short)}", "pass one a sample")
        weights = None if weight is None else _weights(weight, keys)
        return cls(source, np.arange(n), np.asarray(keys, dtype=object), cols, weights, name)

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any = None,
        *,
        ids: Iterable[object] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        transform: Callable[[Any], Any] | None = None,
        weight: Any = None,
        name: str = "train",
    ) -> Data:
        """Build from tensors or arrays in memory.

        Args:
            x: (N, ...) tensor or array, or a dict of them.
            y: (N, ...) targets, or None for unlabelled data.
            ids: unique, stable; kept as str; default ``name/0``, ``name/1``, ...
            columns: further per-sample values by name: subject, superclass, date ...
            transform: applied to each batch of inputs; must treat samples one by one and be deterministic.
            weight: (N,) sample weights that multiply the loss, 0 or more, not all 0.
            name: what messages and default ids call it.

        Returns:
            The data.

        >>> data = Data.from_arrays(torch.zeros(3, 2), [0, 1, 0], ids=["a", "b", "c"])
        >>> len(data), data.without(["b"]).ids
        (3, ['a', 'c'])
        """
        return cls._of(ArraySource(x, y, transform), ids, columns, weight, name)

    @classmethod
    def from_torch(
        cls,
        dataset: Any,
        *,
        ids: Iterable[object] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        target: str | None = None,
        weight: Any = None,
        name: str = "train",
    ) -> Data:
        """Build from a map-style dataset that yields ``(x, y)`` or a dict of tensors.

        Args:
            dataset: has ``len`` and ``[i]``; deterministic (augmentation belongs to the `Recipe`).
            ids: as in `from_arrays`.
            columns: as in `from_arrays`.
            target: the dict's target key; default the first of labels, label, target that is there.
            weight: as in `from_arrays`.
            name: as in `from_arrays`.

        Returns:
            The data.
        """
        return cls._of(TorchSource(dataset, target), ids, columns, weight, name)

    @classmethod
    def from_hf(
        cls,
        dataset: Any,
        *,
        inputs: Sequence[str] = ("pixel_values",),
        target: str | None = "labels",
        id_column: str | None = None,
        columns: Sequence[str] = (),
        name: str = "train",
    ) -> Data:
        """Build from a Hugging Face ``datasets.Dataset``; inputs become a dict of tensors.

        Args:
            dataset: columns of numbers, padded to one shape.
            inputs: columns handed to the model as keyword arguments.
            target: label column, or None.
            id_column: column of unique ids.
            columns: further columns to keep: subject, superclass ...
            name: what messages and default ids call it.

        Returns:
            The data.

        Raises:
            UserError: a column does not exist.
        """
        source = HFSource(dataset, inputs, target)
        unknown = [c for c in [*columns, *([id_column] if id_column else [])] if c not in dataset.column_names]
        if unknown:
            raise UserError(f"columns among {listing(dataset.column_names, 20)}", listing(unknown), "name others")
        ids = dataset[id_column] if id_column else None
        return cls._of(source, ids, {c: list(dataset[c]) for c in columns}, None, name)

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def ids(self) -> list[str]:
        """Ids in order."""
        return list(self.all_ids[self.positions])

    @property
    def columns(self) -> dict[str, NDArray[Any]]:
        """Column values in order; empty where labels are not shown."""
        return {k: v[self.positions] for k, v in self.all_columns.items()} if self.shows_labels else {}

    def column(self, name: str) -> NDArray[Any]:
        """Return one column's values.

        Raises:
            UserError: no such column.
        """
        columns = self.columns
        if name not in columns:
            have = listing(columns, 20) or "no columns"
            raise UserError(f"a column '{name}' in {self.name}", have, "name one that exists, or add it to the data")
        return columns[name]

    def _at(self, ids: Iterable[object]) -> NDArray[np.int64]:
        wanted = id_texts(ids)
        _unique(wanted, "ids")
        where = {key: at for at, key in enumerate(self.ids)}
        unknown = [i for i in wanted if i not in where]
        if unknown:
            raise UserError(f"ids of {self.name}", f"unknown {listing(unknown)}", "take ids from data.ids")
        return np.asarray([where[i] for i in wanted], dtype=np.int64)

    def subset(self, ids: Iterable[object]) -> Data:
        """Return the samples with these ids, in this order.

        Raises:
            UserError: an id is unknown or stands twice.
        """
        return replace(self, positions=self.positions[self._at(ids)])

    def without(self, ids: Iterable[object]) -> Data:
        """Return the samples without these ids, in the data's order.

        Raises:
            UserError: an id is unknown or stands twice.
        """
        return replace(self, positions=np.delete(self.positions, self._at(ids)))

    def unlabelled(self) -> Data:
        """Return the data with targets, weights and columns hidden."""
        return replace(self, shows_labels=False)

    def only_ids(self) -> Data:
        """Return the data with nothing but its ids shown."""
        return replace(self, shows_labels=False, shows_inputs=False)

    def watched(self) -> Data:
        """Return the data with a fresh record of what is read, kept in ``reads``."""
        return replace(self, reads=Reads(np.zeros(len(self.source), dtype=np.bool_)))

    @property
    def labelled(self) -> bool:
        """Whether targets are there and shown."""
        if not self.shows_labels or len(self) == 0:
            return False
        return self._targets_at(self.positions[:1]) is not None

    def _targets_at(self, positions: NDArray[np.int64]) -> Tensor | None:
        """Return targets by position in the source, without its inputs where the source can."""
        alone = getattr(self.source, "targets_at", None)
        return alone(positions) if callable(alone) else self.source.read(positions, raw=True)[1]

    @property
    def unread(self) -> list[str]:
        """Ids whose inputs were not read since `watched`."""
        if self.reads is None:
            return self.ids
        return list(self.all_ids[self.positions[~self.reads.flags[self.positions]]])

    def read(self, index: Sequence[int] | NDArray[np.int64] | Tensor) -> Batch:
        """Return the samples at these positions of this data as one batch.

        Raises:
            UserError: the data shows ids only.
        """
        if not self.shows_inputs:
            raise UserError(f"data with inputs in {self.name}", "ids only", "declare INPUTS or LABELLED")
        at = np.asarray(index, dtype=np.int64)
        positions = self.positions[at]
        if self.reads is not None:
            self.reads.flags[positions] = True
        inputs, target = self.source.read(positions, raw=False)
        weight = None if self.all_weights is None or not self.shows_labels else self.all_weights[positions]
        return Batch(inputs, target if self.shows_labels else None, weight, torch.from_numpy(at))

    def batches(self, size: int, order: Sequence[int] | NDArray[np.int64] | Tensor | None = None) -> Iterator[Batch]:
        """Yield batches of ``size`` samples, the last one smaller, in the given order of positions."""
        at = np.arange(len(self)) if order is None else np.asarray(order, dtype=np.int64)
        for start in range(0, len(at), size):
            yield self.read(at[start : start + size])

    def targets(self) -> Tensor:
        """Return all targets, (N, ...).

        Raises:
            UserError: the data has none, or does not show them.
        """
        if not self.shows_labels:
            raise UserError(f"labels in {self.name}", "none shown", "declare LABELLED")
        parts = [self._targets_at(self.positions[i : i + 1024]) for i in range(0, len(self), 1024)]
        if not parts or any(p is None for p in parts):
            raise UserError(f"labels in {self.name}", "none", "give targets when building the data")
        return torch.cat([p for p in parts if p is not None])

    def fingerprints(self, key: bytes, labelled: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return two keyed 8-byte hashes a sample: of its id, and of its id with its content.

        Args:
            key: at most 64 secret bytes; hashes under different keys cannot be matched.
            labelled: whether the target counts as content.

        Returns:
            Two arrays (N,).
        """
        ids = np.asarray([_hash(key, i.encode()) for i in self.ids], dtype=np.int64)
        names = [i.encode() for i in self.ids]
        content = [_hash(key, name, *row) for name, row in zip(names, self._pieces(labelled), strict=True)]
        return ids, np.asarray(content, dtype=np.int64)

    def contents(self, key: bytes = b"") -> NDArray[np.int64]:
        """Return a keyed 8-byte hash of each sample's raw inputs alone, (N,): equal inputs hash alike."""
        return np.asarray([_hash(key, *row) for row in self._pieces(labelled=False)], dtype=np.int64)

    def _pieces(self, labelled: bool) -> Iterator[list[Any]]:
        """Yield what makes up each sample's raw content: names, types, shapes and bytes of its tensors."""
        for start in range(0, len(self), 256):
            inputs, target = self.source.read(self.positions[start : start + 256], raw=True)
            parts = sorted(inputs.items()) if isinstance(inputs, dict) else [("x", inputs)]
            if labelled and target is not None:  # the width of class indices is no content
                parts.append(("target", target if target.is_floating_point() else target.long()))
            arrays = [(f"{k}{t.dtype}{tuple(t.shape[1:])}".encode(), _bytes(t)) for k, t in parts]
            for row in range(min(256, len(self) - start)):
                yield [piece for head, rows in arrays for piece in (head, rows[row])]


def relabelled(
    data: Data, targets: Tensor, columns: Mapping[str, NDArray[Any]] | None = None, *, why: str = ""
) -> Data:
    """Return the same samples under the same ids with other targets; inputs are read where they were.

    Args:
        data: shows its labels.
        targets: (N, ...), in the data's order.
        columns: further columns, (N,) each.
        why: what gave them other targets, kept with the source.

    Returns:
        New data, with the weights and columns of the old.
    """
    weights = None if data.all_weights is None else data.all_weights[torch.from_numpy(data.positions)]
    return Data(
        Relabelled(data.source, data.positions, targets, why),
        np.arange(len(data)),
        data.all_ids[data.positions],
        {**data.columns, **(columns or {})},
        weights,
        data.name,
    )


def id_text(value: object) -> str:
    """Return an id as it is kept: its str, that of the number for a numpy or torch scalar."""
    return str(value.item() if hasattr(value, "item") else value)


def id_texts(ids: Any) -> list[str]:
    """Return ids as they are kept.

    Raises:
        UserError: a bare text, which would be read letter by letter, or something without members.
    """
    if isinstance(ids, str | bytes) or not hasattr(ids, "__iter__"):
        raise UserError("a list of ids", repr(ids), "write [id] for a single one")
    return [id_text(i) for i in ids]


def id_hashes(key: bytes, ids: Iterable[str]) -> NDArray[np.int64]:
    """Return the keyed 8-byte hash of each id, as `Data.fingerprints` gives it."""
    return np.asarray([_hash(key, i.encode()) for i in ids], dtype=np.int64)


def _weights(given: Any, ids: Sequence[str]) -> Tensor:
    """Return sample weights, (N,) float32: a negative one would train its sample away without a word."""
    try:
        weights = torch.as_tensor(given, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError("a number as the weight of each sample", f"{error}", "pass one weight a sample") from error
    if weights.shape != (len(ids),):
        raise UserError(f"weights of shape ({len(ids)},)", str(tuple(weights.shape)), "pass one weight a sample")
    bad = (~(weights.isfinite() & (weights >= 0))).nonzero().flatten().tolist()
    if bad:
        got = f"{weights[bad[0]]:g} for {listing(ids[i] for i in bad)}"
        raise UserError("finite weights of 0 or more", got, "correct them, or drop those samples")
    if len(ids) and not bool(weights.any()):
        raise UserError("a weight above 0", "0 for every sample", "weigh those that count")
    return weights


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    flat = tensor.detach().cpu().contiguous()
    rows = len(flat)
    return flat.reshape(rows, -1).view(torch.uint8).numpy() if flat.dim() else flat.view(torch.uint8).numpy()


def _hash(key: bytes, *pieces: Any) -> int:
    state = hashlib.blake2b(digest_size=8, key=key)
    for piece in pieces:
        state.update(len(piece).to_bytes(8, "big"))
        state.update(piece)
    return int.from_bytes(state.digest(), "big", signed=True)


def _unique(keys: Sequence[str], what: str) -> None:
    if len(set(keys)) != len(keys):
        seen: set[str] = set()
        twice = [k for k in keys if k in seen or seen.add(k)]  # type: ignore[func-returns-value]
        raise UserError(f"unique {what}", f"{listing(sorted(set(twice)))} more than once", "name each sample once")
