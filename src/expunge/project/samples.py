"""The samples that a project file names, as `Data`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from expunge.data import Data
from expunge.errors import ExpungeError, UserError, listing
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


@dataclass(frozen=True)
class Samples:
    """Reads the splits of one project.

    Args:
        section: ``[data]`` of the project file.
        folder: that relative paths start from.
        real: whether targets are real numbers.
        checkpoint: whose tokenizer or image processor prepares the inputs, or None.
    """

    section: DataSection
    folder: Path
    real: bool
    checkpoint: Checkpoint | None = None

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
        kind = self.section.format if self.section.format != "auto" else self._kind(place)
        if kind == "python":
            return self._returned(call(place, self.folder), place, name)
        table = read_images(self.folder / place) if kind == "images" else self._table(kind, place, name)
        return self._data(table, name, kind)

    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes where labels are texts: given, the checkpoint's, or those of train."""
        if self.section.classes or self.real:
            return tuple(self.section.classes)
        place, target = self.section.train, self.section.target
        if place is None or is_entry(place):
            return ()
        kind = self.section.format if self.section.format != "auto" else self._kind(place)
        table = read_images(self.folder / place) if kind == "images" else self._table(kind, place, "train")
        found = class_names(table, self._columns(table, kind)) if target or kind == "images" else ()
        if self.checkpoint is not None and found:
            known = self.checkpoint.config.id2label
            own = tuple(str(known[i]) for i in range(len(known)))
            if set(found) <= set(own):
                return own
        return found

    def _kind(self, place: str) -> str:
        path = self.folder / place
        if is_entry(place) and not path.exists():
            return "python"
        if path.suffix.lower() in (".csv", ".tsv"):
            return "csv"
        if path.is_dir() and not list(path.glob("*.parquet")):
            return "images"
        return "parquet"

    def _table(self, kind: str, place: str, name: str) -> datasets.Dataset:
        path = self.folder / place
        if path.is_dir():
            files = sorted(path.glob(f"{name}*.parquet")) or sorted(path.glob("*.parquet"))
        elif any(c in place for c in "*?["):
            files = sorted(self.folder.glob(place)) if not Path(place).is_absolute() else _absolute(place)
        else:
            files = [path]
        if not files:
            raise UserError(f"files that match {path}", "none", f"check [data] {name}")
        return read_csv(files) if kind == "csv" else read_parquet(files)

    def _columns(self, table: datasets.Dataset, kind: str) -> Columns:
        s = self.section
        inputs = s.inputs or (["image"] if kind == "images" else [])
        if not inputs:
            got = f"none, with columns {listing(table.column_names, 20)}"
            raise UserError("[data] inputs, the columns that the network is given", got, "set inputs = [...]")
        keep = dict.fromkeys([*s.columns, *(c for c in (s.subject, s.subclass) if c)])
        image = Image(
            size=None if s.image.size is None else (s.image.size[0], s.image.size[1]),
            mean=tuple(s.image.mean),
            std=tuple(s.image.std),
            channels=s.image.channels,
        )
        return Columns(
            inputs=tuple(inputs),
            target=s.target or ("label" if kind == "images" else None),
            id=s.id or ("file" if kind == "images" else None),
            keep=tuple(keep),
            classes=tuple(s.classes),
            image=image,
            text=self._tokens(table, inputs),
            real=self.real,
        )

    def _tokens(self, table: datasets.Dataset, inputs: Sequence[str]) -> Any:
        if not any(c in table.column_names and is_text(table, c) for c in inputs):
            return None
        if self.section.text.vocabulary is not None:
            return hashed_words(self.section.text.length, self.section.text.vocabulary)
        return None if self.checkpoint is None else self.checkpoint.tokens(self.section.text.length)

    def _data(self, table: datasets.Dataset, name: str, kind: str) -> Data:
        columns = self._columns(table, kind)
        own = self.section.image.size is not None or bool(self.section.image.mean)
        first = columns.inputs[0]
        if self.checkpoint is None or own or not _holds_images(table, first):
            return to_data(table, columns, name=name)
        # ids, targets and columns come from the table; pixels from the checkpoint's own processor
        plain = to_data(table.remove_columns([first]).add_column("\0", [0.0] * len(table)), _blind(columns), name=name)
        mode = "L" if getattr(self.checkpoint.config, "num_channels", 3) == 1 else "RGB"
        labels = plain.targets() if columns.target else None
        source = Pictures(table, first, self.checkpoint.pixels(), labels, mode)
        return Data(source, np.arange(len(table)), plain.all_ids, plain.all_columns, None, name)

    def _returned(self, found: Any, place: str, name: str) -> Data:
        if isinstance(found, Data):
            return found
        s = self.section
        if isinstance(found, datasets.Dataset):
            return self._data(found, name, "python")
        wants = [k for k in ("id", "subject", "subclass") if getattr(s, k)] + (["columns"] if s.columns else [])
        if wants:
            got = f"{type(found).__name__}, which carries none"
            remedy = "return expunge.data.Data with ids= and columns=, or a datasets.Dataset"
            raise UserError(f"data with {listing(wants)} from '{place}'", got, remedy)
        try:
            return Data.from_torch(found, target=s.target, name=name)
        except ExpungeError as error:
            remedy = "return a Data, a map-style dataset of (x, y), or a datasets.Dataset"
            raise UserError(f"samples from '{place}'", type(found).__name__, remedy) from error


def _blind(columns: Columns) -> Columns:
    return Columns(inputs=("\0",), target=columns.target, id=columns.id, keep=columns.keep, classes=columns.classes)


def _absolute(place: str) -> list[Path]:
    path = Path(place)
    root = next(p for p in path.parents if not any(c in str(p) for c in "*?["))
    return sorted(root.glob(str(path.relative_to(root))))


def _holds_images(table: datasets.Dataset, column: str) -> bool:
    return column in table.column_names and is_image(table, column)
