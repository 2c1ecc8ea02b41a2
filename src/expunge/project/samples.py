"""The samples that a project file names, as `Data`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from expunge.data import Data
from expunge.errors import ExpungeError, UserError, listing, suggest
from expunge.files import there
from expunge.project.config import DataSection
from expunge.project.entry import call, is_entry
from expunge.project.pretrained import Checkpoint, Pictures
from expunge.tables import (
    Columns,
    Image,
    class_names,
    hashed_words,
    is_image,
    is_text,
    read_csv,
    read_images,
    read_parquet,
    to_data,
)

BLANK = "expunge: no inputs"  # a column in the place of images that a checkpoint's processor reads
PARQUET = (".parquet", ".pq", ".parq", "")  # endings of files that are read as parquet without being told


@dataclass(frozen=True)
class Samples:
    """Reads the splits of one project.

    Args:
        section: ``[data]`` of the project file.
        folder: that relative paths start from.
        task: kind of ``[task]``: what targets are.
        checkpoint: whose tokenizer or image processor prepares the inputs, or None.
    """

    section: DataSection
    folder: Path
    task: str
    checkpoint: Checkpoint | None = None

    @property
    def real(self) -> bool:
        """Whether targets are real numbers."""
        return self.task in ("regression", "quantile")

    @property
    def labels(self) -> bool:
        """Whether targets are 0 or 1."""
        return self.task in ("binary", "multilabel")

    @property
    def tokens(self) -> bool:
        """Whether targets are token ids."""
        return self.task == "causal_lm"

    @property
    def targets(self) -> tuple[str, ...]:
        """The columns of labels that ``[data]`` names."""
        named = self.section.target
        return (named,) if isinstance(named, str) else tuple(named or ())

    @property
    def _target(self) -> str | tuple[str, ...] | None:
        named = self.section.target
        return named if isinstance(named, str) else tuple(named) if named else None

    def _one(self, place: str) -> str | None:
        """Return the one column of labels, which samples that are no table have."""
        if isinstance(self._target, tuple):
            remedy = "return a datasets.Dataset, or samples with all labels in one target"
            raise UserError(f"one [data] target for '{place}'", listing(self._target), remedy)
        return self._target

    def split(self, name: str) -> Data | None:
        """Return ``train``, ``holdout`` or ``test``; None where the project file names none."""
        place = getattr(self.section, name)
        return None if place is None else self.read(place, name)

    def read(self, place: str, name: str) -> Data:
        """Return the samples at a place that is written as ``train`` is in the project file.

        Args:
            place: file, pattern, folder, or function.
            name: of the data.

        Returns:
            The samples.

        Raises:
            UserError: nothing is there, or it is not what the project file says of it.
        """
        kind = self._kind(place, name)
        if kind == "python":
            return self._returned(call(place, self.folder), place, name)
        return self._data(self._table(kind, place, name), name, kind)

    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes where labels are texts: given, the checkpoint's, or those of train."""
        if self.section.classes or self.real or self.tokens:
            return tuple(self.section.classes)
        place = self.section.train
        kind = None if place is None else self._kind(place, "train")
        if place is None or kind is None or kind == "python":
            return ()
        table = self._table(kind, place, "train")
        columns = self._columns(table, kind)
        if not isinstance(columns.target, str) or not _named(table, columns.target):
            return ()
        found = class_names(table, columns)
        if all(name.isascii() and name.isdigit() for name in found):  # "10" comes after "9"
            found = tuple(sorted(found, key=int))
        if self.checkpoint is not None:
            known = self.checkpoint.config.id2label
            own = tuple(str(known[i]) for i in range(len(known)))
            if set(found) <= set(own):
                return own
        return found

    def _kind(self, place: str, name: str) -> str:
        if self.section.format != "auto":
            return self.section.format
        path = self.folder / place
        found = there(path)
        if is_entry(place) and found is None:
            return "python"
        suffix = path.suffix.lower()
        if suffix == ".csv":
            return "csv"
        if found == "a folder":
            if any(path.glob("*.parquet")):
                return "parquet"
            nested = any(p.is_dir() and not p.name.startswith(".") for p in path.iterdir())
            return "csv" if any(path.glob("*.csv")) and not nested else "images"
        if found == "a file" and suffix not in PARQUET:
            want = f"parquet, CSV, a folder of images or a function in [data] {name}"
            raise UserError(want, f"{path}", "convert it, or set format in [data]")
        return "parquet"

    def _table(self, kind: str, place: str, name: str) -> datasets.Dataset:
        path = self.folder / place
        if kind == "images":
            return read_images(path)
        if there(path) == "a folder":
            files = sorted(path.glob(f"{name}*.{kind}")) or sorted(path.glob(f"*.{kind}"))
        elif there(path) is None and any(c in place for c in "*?["):
            files = matches(self.folder, place)
        else:
            files = [path]
        if not files:
            raise UserError(f"files that match {path}", "none", f"check [data] {name}")
        return read_csv(files) if kind == "csv" else read_parquet(files)

    def _known(self, table: datasets.Dataset, inputs: Sequence[str], name: str) -> None:
        """Refuse columns that the table does not have, by the key that names them."""
        s = self.section
        named: dict[str, Sequence[str | None]] = {"inputs": inputs, "target": self.targets}
        if name not in ("holdout", "test"):
            named |= {"id": [s.id], "subject": [s.subject], "subclass": [s.subclass], "columns": s.columns}
        for key, names in named.items():
            for column in names:
                if column is not None and column not in table.column_names:
                    remedy = suggest(column, table.column_names)
                    raise UserError(f"the column that [data] {key} names in {name}", f"none called '{column}'", remedy)

    def _columns(self, table: datasets.Dataset, kind: str, name: str = "train") -> Columns:
        s = self.section
        inputs = s.inputs or (["image"] if kind == "images" else [])
        self._known(table, inputs, name)
        if not inputs:
            got = f"none, with columns {listing(table.column_names, 20)}"
            raise UserError("[data] inputs, the columns that the network is given", got, "set inputs = [...]")
        keep = dict.fromkeys([*s.columns, *(c for c in (s.subject, s.subclass) if c)])
        own = s.id or ("file" if kind == "images" else None)
        if name in ("holdout", "test"):  # nobody in them is forgotten: they may do without
            keep = {c: None for c in keep if c in table.column_names}
            own = s.id if s.id in table.column_names else None  # folders of images share their files' names
        image = Image(
            size=None if s.image.size is None else (s.image.size[0], s.image.size[1]),
            mean=tuple(s.image.mean),
            std=tuple(s.image.std),
            channels=s.image.channels,
        )
        return Columns(
            inputs=tuple(inputs),
            target=self._target or ("label" if kind == "images" else None),
            id=own,
            keep=tuple(keep),
            classes=tuple(s.classes),
            image=image,
            text=self._tokens(table, inputs),
            real=self.real,
            labels=self.labels,
            tokens=self.tokens,
        )

    def _tokens(self, table: datasets.Dataset, inputs: Sequence[str]) -> Any:
        if not any(c in table.column_names and is_text(table, c) for c in inputs):
            return None
        if self.section.text.vocabulary is not None:
            return hashed_words(self.section.text.length, self.section.text.vocabulary)
        return None if self.checkpoint is None else self.checkpoint.tokens(self.section.text.length)

    def _data(self, table: datasets.Dataset, name: str, kind: str) -> Data:
        columns = self._columns(table, kind, name)
        own = self.section.image.size is not None or bool(self.section.image.mean)
        first = columns.inputs[0]
        if self.checkpoint is None or own or not _holds_images(table, first):
            return to_data(table, columns, name=name)
        # ids, targets and columns come from the table; pixels from the checkpoint's own processor
        plain = to_data(table.remove_columns([first]).add_column(BLANK, [0.0] * len(table)), _blind(columns), name=name)
        mode = "L" if getattr(self.checkpoint.config, "num_channels", 3) == 1 else "RGB"
        labels = plain.targets() if columns.target else None
        source = Pictures(table, first, self.checkpoint.pixels(), labels, mode)
        return Data(source, np.arange(len(table)), plain.all_ids, plain.all_columns, None, name)

    def _returned(self, found: Any, place: str, name: str) -> Data:
        s = self.section
        if isinstance(found, Data):
            keep = [*s.columns, *(c for c in (s.subject, s.subclass) if c)]
            lost = [c for c in keep if c not in found.columns]
            if lost:
                got = f"none called {listing(map(repr, lost))}"
                raise UserError(f"the columns that [data] names in '{place}'", got, "pass them to it as columns=")
            return _filled(found, place)
        if isinstance(found, datasets.DatasetDict):
            got = f"a DatasetDict of {listing(found)}"
            raise UserError(f"samples from '{place}'", got, "return one split of it")
        if isinstance(found, datasets.Dataset):
            return self._data(found, name, "python")
        wants = [k for k in ("id", "subject", "subclass") if getattr(s, k)] + (["columns"] if s.columns else [])
        if wants:
            got = f"{type(found).__name__}, which carries none"
            remedy = "return expunge.data.Data with ids= and columns=, or a datasets.Dataset"
            raise UserError(f"data with {listing(wants)} from '{place}'", got, remedy)
        try:
            return _filled(Data.from_torch(found, target=self._one(place), name=name), place)
        except ExpungeError as error:
            if hasattr(found, "__getitem__") and hasattr(found, "__len__"):
                raise
            remedy = "return a Data, a map-style dataset of (x, y), or a datasets.Dataset"
            raise UserError(f"samples from '{place}'", type(found).__name__, remedy) from error


def _blind(columns: Columns) -> Columns:
    return replace(columns, inputs=(BLANK,), text=None)


def _filled(data: Data, place: str) -> Data:
    if len(data) == 0:
        raise UserError(f"samples from '{place}'", "none", "return some")
    return data


def _named(table: datasets.Dataset, target: str) -> bool:
    """Return whether a label column holds names, by text or by declaration, and not bare numbers."""
    feature = table.features[target]
    return isinstance(feature, datasets.ClassLabel) or is_text(table, target)


def matches(folder: Path, place: str) -> list[Path]:
    """Return the files that a pattern stands for, sorted.

    Args:
        folder: that a relative pattern starts from.
        place: the pattern.

    Returns:
        Existing files.

    Raises:
        UserError: not a pattern that can be looked up.
    """
    path, root = Path(place), folder
    if path.is_absolute():
        root = next(p for p in path.parents if not any(c in str(p) for c in "*?["))
        path = path.relative_to(root)
    try:
        return sorted(p for p in root.glob(str(path)) if p.is_file())
    except (ValueError, NotImplementedError, OSError) as error:
        raise UserError("a pattern of files", f"'{place}' ({error})", "write for example train-*.parquet") from error


def _holds_images(table: datasets.Dataset, column: str) -> bool:
    return column in table.column_names and is_image(table, column)
