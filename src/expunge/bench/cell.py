"""What the benchmark computes: cells of plain values, and the stages that cells share.

A cell is one method on one request, network, data set and seed. Its stages nest, each named by the digest of all that
decides its result: *trained* (the original), *drawn* (who is forgotten), *retrained*, *reference* (what is measured of
original, retrained models and controls), *prepared*, *unlearned*, *measured*; and *answered*, what one of its models
says of every sample, for studies of many models. Two cells that agree on a stage's values share its folder, so one
trained and one retrained model serve every method, and no name of a method enters the seed or the key of what it does
not decide.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

from expunge import methods
from expunge.files import canonical, digest
from expunge.method import Method
from expunge.trial import Request

Stage = Literal["trained", "drawn", "retrained", "reference", "prepared", "unlearned", "measured", "answered"]
STAGES: tuple[Stage, ...] = (
    "trained",
    "drawn",
    "retrained",
    "reference",
    "prepared",
    "unlearned",
    "measured",
    "answered",
)
FORMAT = 1  # of the values below; another one computes anew what it changes
HARDNESS = 2  # of the score that tells the hardest samples; another one draws them anew
LENGTH = 20  # hexadecimal digits of a key


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one request, network, data set and seed, as plain values.

    Args:
        data: ``{"name": ..., "limit": ...}`` of a named data set, or ``{"project": ..., "digest": ...}``; beside it
            ``"half": {"model": t, "seed": s}`` for row t of `expunge.shadows.draw` of its training samples alone.
        network: its name.
        recipe: how it is trained, in full; see `expunge.train.Recipe.to_json`.
        request: who is forgotten; see `expunge.trial.Request.to_json`.
        seed: of training, of draws, and of everything random.
        precision: of all work, ``full`` or ``bf16``.
        method: the method's settings with its ``name``; empty for what all methods share.
        measures: what is measured: ``metrics`` and ``attacks`` by name, the ``settings`` of metrics that differ from
            their defaults, and the number of ``retrained`` models.
    """

    data: Mapping[str, Any]
    network: str
    recipe: Mapping[str, Any]
    request: Mapping[str, Any]
    seed: int
    precision: str = "full"
    method: Mapping[str, Any] = field(default_factory=dict)
    measures: Mapping[str, Any] = field(default_factory=dict)

    def __reduce__(self) -> Any:
        return _cell, (vars_of(self),)

    @cached_property
    def asked(self) -> Request:
        """The request."""
        return _request(canonical(self.request))

    @cached_property
    def made(self) -> Method:
        """The method."""
        return _method(canonical(self.method))

    @cached_property
    def unmeasured(self) -> Cell:
        """The cell of the method whatever is measured."""
        return replace(self, measures={}) if self.measures else self

    @cached_property
    def shared(self) -> Cell:
        """The cell of what all methods share."""
        return replace(self, method={}) if self.method else self

    @cached_property
    def bare(self) -> Cell:
        """The cell of what all methods share, whatever is measured."""
        return self.unmeasured.shared

    def with_method(self, method: Mapping[str, Any]) -> Cell:
        """Return a method's cell that shares this one's tasks: what all methods need gets its keys once."""
        found, own = replace(self, method=method), replace(self.unmeasured, method=method)
        vars(own)["shared"] = self.bare
        vars(found).update(shared=self, unmeasured=own)
        return found

    @cached_property
    def _tasks(self) -> dict[tuple[Stage, int, int], Task]:
        return {}

    def task(self, stage: Stage, step: int = 0, again: int = 0) -> Task:
        """Return a task of the cell, the same object each time: its key is worked out once."""
        key = (stage, step, again)
        if key not in self._tasks:
            self._tasks[key] = Task(stage, self, step, again)
        return self._tasks[key]

    @property
    def retrained(self) -> int:
        """How many models are retrained: the first is the reference, each further one gives the floor."""
        return int(self.measures.get("retrained", 2))

    def key(self) -> str:
        """Return the name of the cell's last result."""
        return self.results()[-1].key

    def results(self) -> list[Task]:
        """Return the last task of each measured step, in order."""
        return [self.task("measured" if self.method else "reference", step) for step in self.asked.measured]


@dataclass(frozen=True)
class Task:
    """One stage of a cell: what is computed at once, by one process, into one folder.

    Args:
        stage: which.
        cell: of which cell.
        step: requests fulfilled so far, where several follow each other; 0 where the stage does not depend on it, and
            of *answered* for the original.
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
        if self.stage == "unlearned":  # a long row of requests from its start, so that none waits for all before it
            for step in range(1, self.step):
                _ = self.cell.task("unlearned", step).key
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
        if self.stage == "answered":
            return {"stage": self.stage, "format": FORMAT, "of": [str(self.needs[0].stage), self.needs[0].key]}
        if self.stage == "trained":
            changed = cell.request if cell.asked.changes_data else None
            return own | {
                "data": dict(cell.data),
                "network": cell.network,
                "recipe": dict(cell.recipe),
                "change": changed,
                **({} if cell.precision == "full" else {"precision": cell.precision}),
            }
        if self.stage == "drawn":
            scored = {"hardness": HARDNESS} if cell.asked.needs_original else {}
            return own | {"data": dict(cell.data), "request": dict(cell.request)} | scored
        if self.stage == "retrained":
            return own | {"step": self.step, "again": self.again}
        if self.stage == "reference":
            again = [n.key for n in self.needs if n.stage == "retrained"]
            return own | {"step": self.step, "retrained": again, **self._measures}
        if self.stage == "prepared":
            return own | {"method": cell.made.preparation()}
        if self.stage == "unlearned":
            return own | {"step": self.step, "method": dict(cell.method)}
        summed = {"times": "of all edits"} if self.step > 1 else {}
        return own | {"step": self.step, **self._measures} | summed

    @cached_property
    def needs(self) -> tuple[Task, ...]:
        """What must be there first, and decides the result."""
        cell, bare, own = self.cell, self.cell.bare, self.cell.unmeasured
        trained, drawn = bare.task("trained"), bare.task("drawn")
        if self.stage == "trained":
            return ()
        if self.stage == "drawn":
            return (trained,) if cell.asked.needs_original else ()
        if self.stage == "retrained":
            return trained, drawn
        if self.stage == "reference":
            models = tuple(bare.task("retrained", self.step, k) for k in range(cell.retrained))
            return trained, drawn, *models
        if self.stage == "answered":
            if cell.method:
                return (own.task("unlearned", self.step),)
            return (bare.task("retrained", self.step, self.again) if self.step else trained,)
        if self.stage == "prepared":
            return (trained, drawn) if cell.made.prepares.scenario else (trained,)
        if self.stage == "unlearned":
            before = own.task("unlearned", self.step - 1) if self.step > 1 else own.task("prepared")
            return trained, drawn, before
        return own.task("unlearned", self.step), cell.shared.task("reference", self.step)

    @property
    def reads(self) -> tuple[Task, ...]:
        """All whose folders are read: what is needed, and what the needed was made from."""
        if self.stage != "measured":
            return self.needs
        bare = self.cell.bare
        return *self.needs, bare.task("trained"), bare.task("drawn"), bare.task("retrained", self.step)

    @property
    def _measures(self) -> dict[str, Any]:
        return {k: v for k, v in self.cell.measures.items() if k != "retrained"}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


@lru_cache(maxsize=4096)
def _request(text: str) -> Request:
    return Request.from_json(json.loads(text))


@lru_cache(maxsize=4096)
def _method(text: str) -> Method:
    return methods.build(json.loads(text))


def _cell(values: dict[str, Any]) -> Cell:
    return Cell(**values)


def vars_of(cell: Cell) -> dict[str, Any]:
    """Return the fields of a cell by name."""
    return {name: getattr(cell, name) for name in Cell.__dataclass_fields__}


def ordered(cells: Iterable[Cell]) -> list[Task]:
    """Return all tasks of the cells, each once and after what it needs."""
    return list(walked((task for cell in cells for task in cell.results()), lambda task: True))


def walked(tasks: Iterable[Task], wanted: Callable[[Task], bool]) -> Iterator[Task]:
    """Yield tasks and all that they read, each once and after what it reads.

    Args:
        tasks: to start from.
        wanted: asked once of each task: whether what it reads is of interest too.
    """
    seen, opened = set[str](), set[str]()
    for start in tasks:
        stack = [start]
        while stack:
            task = stack[-1]
            if task.name not in seen and task.name not in opened and wanted(task):
                stack += [need for need in reversed(task.reads) if need.name not in seen]
            else:
                stack.pop()
                if task.name not in seen:
                    yield task
                seen.add(task.name)
            opened.add(task.name)
