"""Folders of one step each: weights, state and record, written together."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from expunge import __version__
from expunge.canaries import FILE as CANARIES
from expunge.canaries import Canaries
from expunge.errors import CorruptArtefact, Incompatible, UserError
from expunge.evidence import collect
from expunge.files import atomic, check_free, read_document, there, write_document
from expunge.method import Method, Nature, State
from expunge.methods import build
from expunge.project import Project
from expunge.runtime import Runtime
from expunge.scenario import Scenario
from expunge.task import Classes
from expunge.tensors import changed, weights_digest
from expunge.unlearn import Unlearned, serve

RECORD, SCHEMA = "expunge.record", 2
STATE, NOTE = "state.safetensors", "record.json"
ADVICE = "Optimiser and averaged (EMA) states of the old weights still carry the forgotten data: destroy them."


class Named(BaseModel):
    """The method in a record, by name, with its fields."""

    model_config = ConfigDict(extra="allow", strict=True)
    name: str


class Record(BaseModel):
    """What every ``record.json`` holds; further keys are left alone."""

    model_config = ConfigDict(extra="allow", strict=True)
    step: Literal["prepare", "forget"]
    project: dict[str, Any]
    method: Named
    weights: str
    seed: int
    canaries: str | None = None
    forgotten: list[str] = []
    stale: list[str] = []


class Forgotten(Record):
    """What the record of a request holds besides."""

    before: str
    scenario: dict[str, Any] | None
    seconds: float
    total_seconds: float
    peak_memory: int
    note: str
    log: dict[str, Any]


@dataclass(frozen=True)
class Folder:
    """A step on disk.

    Args:
        path: the folder.
        record: what was done, as JSON values.
        project: model and data it was done on.
    """

    path: Path
    record: Mapping[str, Any]
    project: Project

    @classmethod
    def open(cls, path: Path, file: Path | None = None, data_dir: Path | None = None) -> Folder:
        """Read a folder's record, with its project file as it is now, where there is one.

        Args:
            path: the folder.
            file: the project file, instead of the one recorded.
            data_dir: folder of named data sets.

        Returns:
            The step.

        Raises:
            UserError: no folder, or none that prepare or forget wrote.
            CorruptArtefact: a record with something missing.
            Incompatible: a project file with another model or other columns, or canaries of another training.
        """
        found = there(path)
        if found != "a folder" or there(path / NOTE) != "a file":
            got = "a folder without record.json" if found == "a folder" else found or "nothing there"
            raise UserError(f"a folder written by prepare or forget at {path}", got, "run one of them first")
        record = read_document(path / NOTE, RECORD, SCHEMA)
        remedy = "restore the folder from a copy"
        try:
            (Forgotten if record.get("step") == "forget" else Record).model_validate(record)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            got = f"none ({name})" if first["type"] == "missing" else f"{first['input']!r:.60} ({name})"
            raise CorruptArtefact(f"a whole record in {path / NOTE}", got, remedy) from error
        try:
            then = Project.from_json(record["project"], data_dir)
        except (KeyError, TypeError, ValueError) as error:
            got = f"another value ({type(error).__name__})"
            raise CorruptArtefact(f"a project in {path / NOTE}", got, remedy) from error
        near = Path(os.path.normpath(path / str(record["project"].get("near", ""))))
        place = _now(then, near, file, data_dir)
        if place.planted:
            place = replace(place, drawn=Canaries.load(path / CANARIES))
        if (None if place.drawn is None else place.drawn.digest()) != record.get("canaries"):
            raise Incompatible(f"the canaries of {path / NOTE}", "others", remedy)
        return cls(path, record, place)

    def model(self) -> nn.Module:
        """Return the network with this folder's weights, served by its method where that wraps it.

        Raises:
            Incompatible: the weights are not those that the record names.
        """
        network = self.project.network.load(self.path)
        plain = type(self.method).served_from is Method.served_from
        if plain:  # what is stored is what is recorded, before a method wraps it
            self._hold(network)
        model = serve(self.method, network, self.state)
        if not plain:
            self._hold(model)
        return model

    def _hold(self, model: nn.Module) -> None:
        if weights_digest(model) != self.record["weights"]:
            raise Incompatible(f"the weights of {self.path / NOTE}", "others", "restore the folder from a copy")

    @cached_property
    def method(self) -> Method:
        """The method that left this folder."""
        return build(self.record["method"])

    def settings(self) -> dict[str, Any]:
        """Return the method's fields as prepared, with what the project file says otherwise since then."""
        then = self.record["project"]["config"].get("method", {})
        now = self.project.config.method
        same = now.get("name") == self.record["method"]["name"]
        later = {k: v for k, v in now.items() if same and (k not in then or then[k] != v)}
        return {k: v for k, v in {**self.record["method"], **later}.items() if k != "name"}

    def unlearned(self, before: nn.Module) -> Unlearned:
        """Return the result that forget wrote here, with its times and notes."""
        model = self.model()
        return Unlearned(
            model=model,
            state=self.state,
            log=self.record["log"],
            note=self.record["note"],
            seconds=self.record["seconds"],
            total_seconds=self.record["total_seconds"],
            changed=changed(before, model),
            peak_memory=self.record["peak_memory"],
            method=self.record["method"],
        )

    @cached_property
    def state(self) -> State:
        """This folder's state."""
        return State.load(self.path / STATE)

    @property
    def scenario(self) -> Scenario:
        """Who was forgotten in this step.

        Raises:
            UserError: nobody was, or the training data was not at hand.
            CorruptArtefact: the record holds another value.
        """
        if self.record["step"] != "forget":
            raise UserError(f"a folder written by forget at {self.path}", "one of prepare", "name another folder")
        if not self.record.get("scenario"):
            remedy = "audit where the training data is"
            raise UserError(f"a request made with the training data at {self.path}", "one by --samples", remedy)
        try:
            return Scenario.from_json(self.record["scenario"])
        except TypeError as error:
            remedy = "restore the folder from a copy"
            raise CorruptArtefact(f"a scenario in {self.path / NOTE}", "another value", remedy) from error


def _now(then: Project, near: Path, file: Path | None, data_dir: Path | None) -> Project:
    """Return the project with today's file, which may have moved data, another policy or method.

    Args:
        then: as recorded.
        near: where the file stood, seen from the folder: a project that was moved or copied as a whole finds its own.
        file: the project file to take instead, or None.
        data_dir: folder of named data sets.

    Returns:
        The project.

    Raises:
        Incompatible: another model, task, or meaning of columns.
    """
    places = [p for p in (near, then.file) if then.file is not None and p is not None and there(p) == "a file"]
    if file is None and not places:
        return then
    file = file or places[0]
    now = Project.open(file, data_dir)
    if not now.config.data.classes:
        section = now.config.data.model_copy(update={"classes": then.config.data.classes})
        now = Project(now.config.model_copy(update={"data": section}), now.folder, now.file, now.data_dir)
    other = now.like(then)
    if other:
        remedy = f"put [{other.partition('.')[0]}] back as it was, or prepare anew"
        raise Incompatible(f"the project that was prepared in {file}", f"another {other}", remedy)
    return now


def write(
    path: Path,
    place: Project,
    model: nn.Module,
    state: State,
    record: Mapping[str, Any],
    extra: Mapping[str, str],
    overwrite: bool,
) -> None:
    """Write a folder whole or not at all: weights, state, record, canaries, and further text files by name.

    The weights are those that the record's method stores beside its state.
    """
    check_free(path, overwrite)
    if place.file is not None:
        near = os.path.relpath(place.file, path.absolute())
        record = {**record, "project": {**record["project"], "near": near}}
    with atomic(path) as room:
        room.mkdir()
        place.network.save(room, build(record["method"]).served_from(model))
        state.save(room / STATE)
        for name, text in extra.items():
            (room / name).write_text(text, encoding="utf-8")
        if place.manifest is not None:
            place.manifest.save(room / CANARIES)
        write_document(room / NOTE, RECORD, SCHEMA, record)


def record(step: str, place: Project, seed: int, method: Any) -> dict[str, Any]:
    """Return what every record begins with."""
    now = datetime.now(UTC).replace(microsecond=0).isoformat()
    return {
        "step": step,
        "created": now,
        "expunge": __version__,
        "project": place.to_json(),
        "seed": seed,
        "method": method,
        **({} if place.manifest is None else {"canaries": place.manifest.digest()}),
    }


def accuracy(model: nn.Module, place: Project, runtime: Runtime, but: Collection[int] = frozenset()) -> float | None:
    """Return the share of labelled test data that a classifier is right on, in [0, 1]; None where there is none.

    Args:
        model: the network.
        place: model and data.
        runtime: device, batch size.
        but: classes that are forgotten as a whole: a model that has forgotten them is to be wrong on their samples,
            which are left out.
    """
    if place.test is None or not isinstance(place.task, Classes):
        return None
    said = collect(model, place.task, place.test, runtime=runtime)
    if said.target is None:
        return None
    stays = ~np.isin(said.target.cpu().numpy(), sorted(but))
    right = (said.prediction == said.target).cpu().numpy()[stays]
    return float(right.mean()) if len(right) else None


def tested(but: Collection[int]) -> str:
    """Return what `accuracy` is the accuracy of, in words."""
    return "test accuracy on the other classes" if but else "test accuracy"


def outcome(done: Unlearned, place: Project, seed: int, scenario: Scenario | None) -> dict[str, Any]:
    """Return what the record of a fulfilled request says of the edit.

    Args:
        done: what `expunge.unlearn.unlearn` returned.
        place: model and data.
        seed: of everything random.
        scenario: who is forgotten, or None where the record names nobody.
    """
    return record("forget", place, seed, done.method) | {
        "weights": weights_digest(done.model),
        "scenario": None if scenario is None else scenario.to_json(),
        "seconds": done.seconds,
        "total_seconds": done.total_seconds,
        "peak_memory": done.peak_memory,
        "changed": None if done.changed is None else done.changed.share,
        "outcome": "nothing changed" if idle(done) else "edited",
        "note": done.note,
        "log": done.log,
        "advice": ADVICE,
    }


def idle(done: Unlearned) -> bool:
    """Return whether an edit left every parameter as it was, and so forgot nothing.

    Where the method is exact, no served weight had been trained on the samples then, and the state forgets them.
    """
    same = done.changed is not None and done.changed.count == 0
    return same and build(done.method).nature is not Nature.EXACT
