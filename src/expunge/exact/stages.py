"""The tensors of stages: read from a state and held to the record, and kept through a kill while more are trained."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from expunge import tensors
from expunge.errors import CorruptArtefact, Incompatible
from expunge.exact.book import TENSORS, Book, tensor_name, tensors_digest
from expunge.files import digest, jsonable
from expunge.identity import built
from expunge.method import Session
from expunge.train import Recipe, batch_orders

log = logging.getLogger(__name__)
Values = Mapping[str, Tensor]


def of_stages(values: Iterable[str]) -> list[str]:
    """Return which of a state's tensors belong to stages."""
    return [name for name in values if name.startswith(f"{TENSORS}/")]


def stage_of(name: str) -> str:
    """Return the stage that a tensor of a state belongs to.

    >>> stage_of("stage/1/0-2/head.weight")
    '1/0-2'
    """
    return "/".join(name.split("/")[1:3])


def checked(book: Book, name: str, values: Values) -> dict[str, Tensor]:
    """Return the tensors of a stage by their own names, held to the record.

    Args:
        book: the record.
        name: of the stage.
        values: tensors of a state.

    Raises:
        CorruptArtefact: they are not those of the record; names the stage.
    """
    start = tensor_name(name, "")
    found = {k.removeprefix(start): values[k] for k in values if k.startswith(start)}
    if tensors_digest(found) != book.stages[name].tensors:
        got = "others than were trained"
        raise CorruptArtefact(f"the tensors of stage {name}", got, "restore the state from a copy, or prepare anew")
    return found


class Work:
    """The stages of one phase: each is written to the folder of checkpoints once it is trained, and found again there.

    Args:
        session: names the files.
        base: the network before any stage.
        recipe: of one stage.
    """

    def __init__(self, session: Session, base: nn.Module, recipe: Recipe) -> None:
        self.session, self.recipe = session, recipe
        self.names: list[str] = []
        self.processed = 0
        self._paths: list[Path] = []
        self._built = built(base)

    def steps(self, n: int) -> int:
        """Return the optimiser steps of a stage on n samples, which it counts as processed."""
        self.processed += n * self.recipe.epochs
        batches = sum(1 for _ in batch_orders(self.recipe.batch_size, range(n))) if n else 0
        return self.recipe.epochs * batches

    def found(self, name: str, told: Sequence[Any]) -> Values | None:
        """Return what a killed process left of this stage, if that is whole and of the same making."""
        self.names.append(name)
        path = self._path(name, told)
        if path is None or not path.exists():
            return None
        try:
            values, meta = tensors.load(path)
            whole = values.whole()
        except (CorruptArtefact, Incompatible) as error:
            log.warning("stage %s is trained again: %s", name, error)
            return None
        return whole if meta.get("told") == digest(jsonable(told)) else None

    def keep(self, name: str, told: Sequence[Any], values: Values) -> None:
        """Write a stage that was just trained."""
        path = self._path(name, told)
        if path is not None:
            tensors.save(path, values, {"told": digest(jsonable(told))}, overwrite=True)

    def clear(self) -> None:
        """Remove what was written."""
        for path in self._paths:
            path.unlink(missing_ok=True)

    def _path(self, name: str, told: Sequence[Any]) -> Path | None:
        code = digest(jsonable(told), self._built)[:12]
        path = self.session.checkpoint(f"stage-{name.replace('/', '-')}-{code}")
        if path is None:
            return None
        path = path.with_suffix(".safetensors")
        self._paths.append(path)
        return path
