"""What the benchmark computes: cells of plain values, and the stages that cells share.

A cell is one method on one request, network, data set and seed. Its stages nest, each named by the digest of all that
decides its result: *trained* (the original), *drawn* (who is forgotten), *retrained*, *reference* (what is measured of
original, retrained models and controls), *prepared*, *unlearned*, *measured*. Two cells that agree on a stage's values
share its folder, so one trained and one retrained model serve every method, and no name of a method enters the seed or
the key of what it does not decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from expunge import methods
from expunge.files import digest
from expunge.method import Method
from expunge.trial import Request

Stage = Literal["trained", "drawn", "retrained", "reference", "prepared", "unlearned", "measured"]
STAGES: tuple[Stage, ...] = ("trained", "drawn", "retrained", "reference", "prepared", "unlearned", "measured")
FORMAT = 1  # of the values below; another one computes anew what it changes
LENGTH = 20  # hexadecimal digits of a key


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one request, network, data set and seed, as plain values.

    Args:
        data: ``{"name": ..., "limit": ...}`` of a named data set, or ``{"project": ..., "digest": ...}``.
        network: its name.
        recipe: how it is trained, in full; see `expunge.train.Recipe.to_json`.
        request: who is forgotten; see `expunge.trial.Request.to_json`.
        seed: of training, of draws, and of everything random.
        method: the method's settings with its ``name``; empty for what all methods share.
        measures: what is measured: ``metrics`` and ``attacks`` by name, and the number of ``retrained`` models.
    """

    data: Mapping[str, Any]
    network: str
    recipe: Mapping[str, Any]
    request: Mapping[str, Any]
    seed: int
    method: Mapping[str, Any] = field(default_factory=dict)
    measures: Mapping[str, Any] = field(default_factory=dict)

    def __reduce__(self) -> Any:
        return _cell, (vars_of(self),)

    @cached_property
    def asked(self) -> Request:
        """The request."""
        return Request.from_json(dict(self.request))

    @cached_property
    def made(self) -> Method:
        """The method."""
        return methods.build(self.method)

    @property
    def retrained(self) -> int:
        """How many models are retrained: the first is the reference, each further one gives the floor."""
        return int(self.measures.get("retrained", 2))

    def key(self) -> str:
        """Return the name of the cell's last result."""
        return self.results()[-1].key

    def results(self) -> list[Task]:
        """Return the last task of each measured step, in order."""
        return [Task("measured" if self.method else "reference", self, step) for step in self.asked.measured]


@dataclass(frozen=True)
class Task:
    """One stage of a cell: what is computed at once, by one process, into one folder.

    Args:
        stage: which.
        cell: of which cell.
        step: requests fulfilled so far, where several follow each other; 0 where the stage does not depend on it.
        again: which retrained model; 0 is the reference.
    """

    stage: Stage
    cell: Cell
    step: int = 0
    again: int = 0

    def __reduce__(self) -> Any:
        return Task, (self.stage, self.cell, self.step, self.again)

    @cached_property
    def key(self) -> str:
        """Digest of everything that decides the result."""
        return digest(self.spec)[:LENGTH]

    @property
    def name(self) -> str:
        """The folder: stage and key."""
        return f"{self.stage}/{self.key}"

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Everything that decides the result, as plain values; earlier stages by their keys."""
        cell = self.cell
        needs = {str(n.stage): n.key for n in self.needs if n.stage != "retrained"}
        own: dict[str, Any] = {"stage": self.stage, "format": FORMAT, "seed": cell.seed} | needs
        if self.stage == "trained":
            changed = cell.request if cell.asked.changes_data else None
            return own | {
                "data": dict(cell.data),
                "network": cell.network,
                "recipe": dict(cell.recipe),
                "change": changed,
            }
        if self.stage == "drawn":
            return own | {"data": dict(cell.data), "request": dict(cell.request)}
        if self.stage == "retrained":
            return own | {"step": self.step, "again": self.again}
        if self.stage == "reference":
            again = [n.key for n in self.needs if n.stage == "retrained"]
            return own | {"step": self.step, "retrained": again, **self._measures}
        if self.stage == "prepared":
            return own | {"method": self._prepared_by}
        if self.stage == "unlearned":
            return own | {"step": self.step, "method": dict(cell.method)}
        return own | {"step": self.step, **self._measures}

    @cached_property
    def needs(self) -> tuple[Task, ...]:
        """What must be there first."""
        cell = self.cell
        bare = Cell(data=cell.data, network=cell.network, recipe=cell.recipe, request=cell.request, seed=cell.seed)
        trained, drawn = Task("trained", bare), Task("drawn", bare)
        if self.stage == "trained":
            return ()
        if self.stage == "drawn":
            return (trained,) if cell.asked.needs_original else ()
        if self.stage == "retrained":
            return trained, drawn
        if self.stage == "reference":
            models = tuple(Task("retrained", bare, self.step, k) for k in range(cell.retrained))
            return trained, drawn, *models
        if self.stage == "prepared":
            return (trained, drawn) if cell.made.prepares.scenario else (trained,)
        unmeasured = Cell(**{**vars_of(bare), "method": cell.method})
        if self.stage == "unlearned":
            before = Task("unlearned", unmeasured, self.step - 1) if self.step > 1 else Task("prepared", unmeasured)
            return trained, drawn, before
        shared = Cell(**{**vars_of(bare), "measures": cell.measures})
        return Task("unlearned", unmeasured, self.step), Task("reference", shared, self.step)

    @property
    def _measures(self) -> dict[str, Any]:
        return {k: v for k, v in self.cell.measures.items() if k != "retrained"}

    @property
    def _prepared_by(self) -> dict[str, Any]:
        """Settings that decide what `prepare` leaves, so that settings of the edit alone share it."""
        names = self.cell.made.prepared_by
        settings = self.cell.made.settings()
        return {k: v for k, v in settings.items() if k == "name" or names is None or k in names}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


def _cell(values: dict[str, Any]) -> Cell:
    return Cell(**values)


def vars_of(cell: Cell) -> dict[str, Any]:
    """Return the fields of a cell by name."""
    return {name: getattr(cell, name) for name in Cell.__dataclass_fields__}


def ordered(cells: list[Cell]) -> list[Task]:
    """Return all tasks of the cells, each once and after what it needs."""
    found: dict[str, Task] = {}

    def add(task: Task) -> None:
        if task.name not in found:
            for need in task.needs:
                add(need)
            found[task.name] = task

    for cell in cells:
        for task in cell.results():
            add(task)
    return list(found.values())
