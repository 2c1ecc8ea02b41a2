"""Where samples are read from: arrays in memory, map-style datasets, Hugging Face tables; labels put in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.errors import ExpungeError, UserError, listing

Inputs = Tensor | dict[str, Tensor]


class Source(Protocol):
    """Where samples come from, by position.

    A source that can give targets without reading inputs has ``targets_at(positions)`` too.
    """

    def __len__(self) -> int: ...

    def read(self, positions: NDArray[np.int64], raw: bool) -> tuple[Inputs, Tensor | None]:
        """Return inputs and targets, stacked; ``raw`` leaves out transforms that belong to the batch."""
        ...


def _tensor(values: Any, what: str) -> Tensor:
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(values[0]).__name__ if isinstance(values, Sequence) and len(values) else type(values).__name__
        raise UserError(f"numbers as {what}", f"values of type {kind}", "encode them as numbers first") from error
    return tensor


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200] or 'no message'}"


def _keys(item: Any) -> list[str]:
    return sorted(map(str, item)) if isinstance(item, Mapping) else [type(item).__name__]


class ArraySource:
    """Tensors or arrays in memory."""

    def __init__(self, x: Any, y: Any, transform: Callable[[Any], Any] | None) -> None:
        self.x = {k: _tensor(v, f"inputs '{k}'") for k, v in x.items()} if isinstance(x, Mapping) else _tensor(x, "x")
        self.y = None if y is None else _tensor(y, "targets")
        self.transform = transform
        parts = [*self.x.values()] if isinstance(self.x, dict) else [self.x]
        lengths = [len(t) for t in parts + ([] if self.y is None else [self.y])]
        if len(set(lengths)) != 1:
            raise UserError("inputs and targets of one length", f"lengths {lengths}", "pass as many of each")

    def __len__(self) -> int:
        return len(next(iter(self.x.values()))) if isinstance(self.x, dict) else len(self.x)

    def read(self, positions: NDArray[np.int64], raw: bool) -> tuple[Inputs, Tensor | None]:
        """Index the arrays; the transform runs on the batch of inputs."""
        at = torch.from_numpy(positions)
        x: Any = {k: v[at] for k, v in self.x.items()} if isinstance(self.x, dict) else self.x[at]
        if self.transform is not None and not raw:
            x = self.transform(x)
        return x, None if self.y is None else self.y[at]


class TorchSource:
    """A map-style dataset that yields ``(x, y)`` or a dict with one target key."""

    def __init__(self, dataset: Any, target: str | None) -> None:
        self.dataset, self.target = dataset, target
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            kind = type(dataset).__name__
            raise UserError("a map-style dataset with len() and [i]", kind, "wrap it so that it has both")
        try:
            self.length = len(dataset)
        except Exception as error:  # the user's own code
            remedy = "mend its __len__"
            raise UserError(f"the length of the dataset {type(dataset).__name__}", _said(error), remedy) from error

    def __len__(self) -> int:
        return self.length

    def read(self, positions: NDArray[np.int64], raw: bool) -> tuple[Inputs, Tensor | None]:
        """Read one by one and stack."""
        items = [self._item(self._got(int(i))) for i in positions]
        xs, ys = [x for x, _ in items], [y for _, y in items]
        bare = [int(i) for i, y in zip(positions, ys, strict=True) if y is None]
        if 0 < len(bare) < len(ys):
            raise UserError(
                "a label in every sample, or in none", f"none in {listing(bare)}", "give them, or drop those"
            )
        try:
            if isinstance(xs[0], Mapping):
                odd = [x for x in xs if _keys(x) != _keys(xs[0])]
                if odd:
                    got = f"{listing(_keys(xs[0]))} in one and {listing(_keys(odd[0]))} in another"
                    raise UserError("the same keys in every sample", got, "return them all in each")
                x: Any = {k: torch.stack([_tensor(v[k], f"inputs '{k}'") for v in xs]) for k in xs[0]}
            else:
                x = torch.stack([_tensor(v, "inputs") for v in xs])
        except RuntimeError as error:
            remedy = "pad or resize them to one shape in the dataset"
            raise UserError("samples of one shape", str(error).splitlines()[0], remedy) from error
        y = None if ys[0] is None else torch.stack([_tensor(v, "targets") for v in ys])
        return x, y

    def _got(self, position: int) -> Any:
        try:
            return self.dataset[position]
        except (ExpungeError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the user's own code
            what = f"sample {position} of the dataset {type(self.dataset).__name__}"
            raise UserError(what, _said(error), "mend its __getitem__, and try it in Python first") from error

    def _item(self, item: Any) -> tuple[Any, Any]:
        if isinstance(item, Mapping):
            if self.target is None:
                known = [k for k in ("labels", "label", "target") if k in item]
                return {k: v for k, v in item.items() if k not in known[:1]}, item[known[0]] if known else None
            if self.target not in item:
                got = listing(item)
                raise UserError(f"a key '{self.target}' in every sample", got, "name the target's key with target=")
            return {k: v for k, v in item.items() if k != self.target}, item[self.target]
        if isinstance(item, tuple | list) and len(item) == 2:
            return item[0], item[1]
        size = f" of {len(item)}" if isinstance(item, tuple | list) else ""
        got = f"{type(item).__name__}{size}"
        raise UserError("a dataset that yields (x, y) or a dict", got, "wrap the dataset so that it does")


class HFSource:
    """Columns of a Hugging Face dataset, as dict inputs."""

    def __init__(self, dataset: Any, inputs: Sequence[str], target: str | None) -> None:
        known = dataset.column_names
        unknown = [c for c in [*inputs, *([target] if target else [])] if c not in known]
        if unknown:
            raise UserError(f"columns among {listing(known, 20)}", listing(unknown), "name columns that exist")
        self.dataset, self.inputs, self.target = dataset.with_format("torch"), list(inputs), target

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, positions: NDArray[np.int64], raw: bool) -> tuple[Inputs, Tensor | None]:
        """Index the table."""
        rows = self.dataset[positions.tolist()]
        ragged = [c for c in self.inputs if not isinstance(rows[c], Tensor)]
        if ragged:
            remedy = "pad them to one length with dataset.map before"
            raise UserError("columns of one shape", f"rows of several shapes in {listing(ragged)}", remedy)
        return {c: rows[c] for c in self.inputs}, self._labels(rows)

    def targets_at(self, positions: NDArray[np.int64]) -> Tensor | None:
        """Return the targets, no other column being read."""
        if self.target is None:
            return None
        return self._labels(self.dataset.select_columns([self.target])[positions.tolist()])

    def _labels(self, rows: Any) -> Tensor | None:
        if self.target is None:
            return None
        labels = rows[self.target]
        if not isinstance(labels, Tensor):
            kind = type(labels[0]).__name__ if len(labels) else "nothing"
            raise UserError(
                f"numbers in the column '{self.target}'", kind, "encode classes with dataset.class_encode_column"
            )
        return labels


@dataclass(frozen=True, eq=False)
class Relabelled:
    """Samples of another source with targets of their own; a `Source`.

    Args:
        source: where inputs are read.
        positions: (N,) of the samples in it.
        targets: (N, ...) in their place.
        why: what gave them other targets.
    """

    source: Source
    positions: NDArray[np.int64]
    targets: Tensor
    why: str = ""

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, positions: NDArray[np.int64], raw: bool) -> tuple[Inputs, Tensor | None]:
        """Return the source's inputs and the new targets."""
        inputs, _ = self.source.read(self.positions[positions], raw)
        return inputs, self.targets_at(positions)

    def targets_at(self, positions: NDArray[np.int64]) -> Tensor:
        """Return the new targets."""
        return self.targets[torch.from_numpy(positions)]
