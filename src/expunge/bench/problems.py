"""What a cell is about: its data, network and recipe, half of its data, and what tells data of one name apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from expunge import zoo
from expunge.bench.cell import Cell
from expunge.data import Data
from expunge.errors import UserError
from expunge.files import digest, there
from expunge.project import Project
from expunge.recipe import Recipe, fields_of
from expunge.shadows import half
from expunge.zoo import Problem

LOOKED = 64  # samples whose content tells data sets of one name apart


def problem(cell: Cell, data_dir: Path | None, projects: Mapping[str, Path]) -> Problem:
    """Return data, network and recipe of a cell, with all training data.

    Args:
        cell: on all of its data.
        data_dir: folder of named data sets.
        projects: project files by the digest of what they say.

    Raises:
        UserError: the data is not to be had, or the project is not among those of the grid.
    """
    recipe, entry = Recipe(**fields_of(cell.recipe)), dict(cell.data)
    if "project" not in entry:
        found = zoo.load(entry["name"], cell.network, data_dir=data_dir, limit=entry.get("limit"))
        return replace(found, recipe=recipe)
    file = projects.get(entry["digest"])
    if file is None:
        raise UserError(f"the project file of {entry['project']}", "none", "run the grid that names it")
    return replace(Project.open(file, data_dir).problem(), recipe=recipe)


def named(file: Path, project: Project) -> dict[str, str]:
    """Return what names a project's data in a cell: the file's name, and the digest of all that decides the data.

    Args:
        file: the project file.
        project: opened from it.
    """
    config = project.config
    body: dict[str, Any] = {p: getattr(config, p).model_dump(mode="json") for p in ("model", "data", "task")}
    parts = [config.data.train, config.data.holdout, config.data.test, config.model.network, config.model.base]
    body["content"] = [_content(file.parent, part) for part in parts if part]
    return {"project": file.stem, "digest": digest(body)}


def half_of(train: Data, part: Mapping[str, Any]) -> Data:
    """Return the half of the training data that a model of a pool sees, see `expunge.shadows.draw`."""
    ids = np.asarray(train.ids, dtype=object)
    return train.subset(ids[half(train.ids, part["model"], part["seed"])].tolist())


def fingerprint(sets: Sequence[Data | None]) -> str:
    """Return what tells data sets of one name apart: ids and targets, and the content of some samples."""
    parts: list[Any] = []
    for data in sets:
        if data is not None:
            ids = data.ids
            some = data.subset(ids[:: max(1, len(ids) // LOOKED)][:LOOKED])
            parts += [ids, some.fingerprints(b"", labelled=data.labelled)[1].tolist()]
            parts += [digest(data.targets().numpy().tobytes())] if data.labelled else []
    return digest(parts)


def _content(folder: Path, text: str) -> list[Any]:
    """Return what files a project's entry names, each with its digest: two projects may read alike and differ here."""
    module = text.partition(":")[0].replace(".", "/")
    place, inside = folder / text.removeprefix("hf:"), folder / f"{module}.py"
    if there(place) == "a folder":
        files = sorted(p for p in place.rglob("*") if p.is_file())
    elif there(place) == "a file":
        files = [place]
    else:  # a pattern, a function, or a name that is no file
        files = sorted(p for p in folder.glob(text) if p.is_file()) if not place.is_absolute() else []
        files += [inside] if ":" in text and inside.is_file() else []
    return [[str(p.relative_to(folder)) if p.is_relative_to(folder) else p.name, _sha(p)] for p in files]


def _sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
