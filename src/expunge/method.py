"""The protocol of an unlearning method: declared needs, a session that hands over no more, explicit state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from expunge import tensors
from expunge.copies import private
from expunge.data import Data
from expunge.errors import ExpungeError, MissingNeed, UndeclaredNeed
from expunge.files import digest, jsonable
from expunge.masks import Masks
from expunge.part import Part, Reference, Search, option
from expunge.runtime import Runtime
from expunge.scenario import Scenario
from expunge.task import Task
from expunge.train import Recipe, fresh

__all__ = [
    "SETS",
    "Method",
    "MethodFault",
    "Nature",
    "Needs",
    "Reference",
    "Search",
    "See",
    "Session",
    "State",
    "needs_given",
    "option",
    "see",
]
SETS = ("train", "holdout", "forget", "retain")


class Nature(StrEnum):
    """What a method does to the forgotten samples' trace, in the words of reports."""

    EDIT = "approximate edit"
    EXACT = "exact"
    SUPPRESSION = "output suppression"
    NOTHING = "nothing removed"


class See(IntEnum):
    """How much of a set of samples a method sees."""

    NONE = 0
    IDS = 1
    INPUTS = 2
    LABELLED = 3


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What one phase of a method reads; what is not declared is not handed over.

    Args:
        train: sight of the training set (prepare only).
        holdout: sight of the validation set.
        forget: sight of the samples to forget (unlearn only).
        retain: sight of the samples that stay (unlearn only).
        optional: names of declared needs that may be absent; they then read as None.
        recipe: the original's training recipe.
        fresh: the network before training.
        scenario: what kind of set is forgotten, with its target and ids.
    """

    train: See = See.NONE
    holdout: See = See.NONE
    forget: See = See.NONE
    retain: See = See.NONE
    optional: frozenset[str] = frozenset()
    recipe: bool = False
    fresh: bool = False
    scenario: bool = False

    def __or__(self, other: Needs) -> Needs:
        """Return what two methods need together; optional is what neither of them must have."""
        both = {n: max(getattr(self, n), getattr(other, n)) for n in SETS}
        both |= {n: getattr(self, n) or getattr(other, n) for n in ("recipe", "fresh", "scenario")}
        must = {*self.required(), *other.required()}
        return Needs(**both, optional=(self.optional | other.optional) - must)

    def declared(self, name: str) -> bool:
        """Return whether the need of this name is declared."""
        return bool(getattr(self, name))

    def required(self) -> list[str]:
        """Return the names of needs that must be given."""
        names = [f.name for f in fields(self) if f.name != "optional" and self.declared(f.name)]
        return [name for name in names if name not in self.optional]

    def words(self) -> str:
        """Return the needs in words for tables, ``-`` for none."""
        shown = {See.IDS: " ids", See.INPUTS: " inputs", See.LABELLED: " with labels"}
        parts = []
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name != "optional" and value:
                plain = "untrained network" if f.name == "fresh" else f.name
                text = f"{f.name}{shown[value]}" if isinstance(value, See) else plain
                parts.append(text + (" (optional)" if f.name in self.optional else ""))
        return ", ".join(parts) or "-"


@dataclass(frozen=True)
class State:
    """What `prepare` leaves behind, and each request leaves to the next: tensors and JSON, nothing else.

    Args:
        tensors: by name; read from disk when asked for, after `load`.
        meta: JSON values.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write to one ``.safetensors`` file, or to a folder of content-named files with a manifest; whole or not."""
        tensors.save(Path(path), self.tensors, self.meta, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> State:
        """Open what `save` wrote; each tensor is checked against its digest when read."""
        return cls(*tensors.load(Path(path)))

    def drop(self, keys: Iterable[str]) -> State:
        """Return the state without these tensors."""
        gone = set(keys)
        return State({k: self.tensors[k] for k in self.tensors if k not in gone}, self.meta)


@dataclass(frozen=True, kw_only=True, eq=False)
class Session:
    """What a method is handed in one phase; undeclared needs raise `UndeclaredNeed`.

    Args:
        task: outputs, loss, predictions.
        runtime: device, batch size, memory, precision, progress, workdir.
        seed: of everything random; torch, numpy and `random` are seeded with it already.
        method: the running method's name.
        phase: ``prepare`` or ``unlearn``.
        needs: the declared needs of this phase.
        source: the caller's model; methods work on `model` or `original`, which are copies.
        given: data, recipe and scenario by name.
        factory: builds the network before training, or None.
        log: what `record` wrote.
        masks: which weights may move, where a composition holds the others; a method that steps must respect them.
    """

    task: Task
    runtime: Runtime
    seed: int
    method: str
    phase: str
    needs: Needs
    source: nn.Module = field(repr=False)
    given: Mapping[str, Any] = field(repr=False)
    factory: Callable[[], nn.Module] | None = None
    log: dict[str, Any] = field(default_factory=dict)
    masks: Masks | None = None
    _made: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    def _copy(self) -> nn.Module:
        made = private(self.source).to(self.runtime.torch_device)
        made.eval()
        return made

    @property
    def model(self) -> nn.Module:
        """A private copy of the model in eval mode, made on first use; edit it in place or return another."""
        if "model" not in self._made:
            self._made["model"] = self._copy()
        return self._made["model"]

    @property
    def original(self) -> nn.Module:
        """A frozen copy in eval mode that must not be edited; the driver checks its digest."""
        if "original" not in self._made:
            self._made["original"] = self._copy().requires_grad_(False)
        return self._made["original"]

    def new_model(self) -> nn.Module:
        """Return the network before training, in train mode, initialised from the session's seed."""
        if not self.needs.fresh:
            raise UndeclaredNeed("new_model", self.method, self.phase)
        return fresh(self.source, new_model=self.factory, seed=self.seed).to(self.runtime.torch_device)

    def _get(self, name: str) -> Any:
        if not self.needs.declared(name):
            raise UndeclaredNeed(name, self.method, self.phase)
        return self.given.get(name)

    @property
    def train(self) -> Data:
        """The training set at the declared sight; None where optional and not given."""
        return self._get("train")  # type: ignore[no-any-return]

    @property
    def holdout(self) -> Data:
        """The validation set at the declared sight; None where optional and not given."""
        return self._get("holdout")  # type: ignore[no-any-return]

    @property
    def forget(self) -> Data:
        """The samples to forget at the declared sight; None where optional and not given."""
        return self._get("forget")  # type: ignore[no-any-return]

    @property
    def retain(self) -> Data:
        """The samples that stay at the declared sight; None where optional and not given."""
        return self._get("retain")  # type: ignore[no-any-return]

    @property
    def recipe(self) -> Recipe:
        """The original's training recipe; None where optional and not given."""
        return self._get("recipe")  # type: ignore[no-any-return]

    @property
    def scenario(self) -> Scenario:
        """What kind of set is forgotten; None where optional and not given."""
        return self._get("scenario")  # type: ignore[no-any-return]

    def require(self, *names: str, why: str) -> None:
        """Ask for optional needs that this request turns out to need.

        Raises:
            MissingNeed: one of them was not given.
        """
        need(self.method, {n: self._get(n) for n in names}, why)

    def record(self, name: str, value: Any, step: int | None = None) -> None:
        """Keep a value in ``done.log``: with a step appended as [step, value], without one set.

        The name ``note`` is for the reader: notes are joined into ``done.note``.
        """
        plain = jsonable(value)
        if name == "note":
            self.log.setdefault("note", []).append(plain)
        elif step is None:
            self.log[name] = plain
        else:
            self.log.setdefault(name, []).append([step, plain])

    def checkpoint(self, key: str) -> Path | None:
        """Return a path in ``runtime.workdir`` for this piece of work, None without a workdir.

        The name depends on method, phase, weights and seed, so work of another request is never resumed.
        """
        if self.runtime.workdir is None:
            return None
        parts = [self.method, self.phase, key, self.seed, tensors.weights_digest(self.source)]
        parts += [{n: d.ids for n, d in self.given.items() if isinstance(d, Data)}]
        return Path(self.runtime.workdir) / f"{self.method}-{self.phase}-{key}-{digest(parts)[:16]}"

    def nested(self, method: Method, model: nn.Module | None = None, masks: Masks | None = None) -> Session:
        """Return the session for a method inside a composition, working on ``model`` where given.

        The inner method's needs must be among those that the composition declares. Masks add to those there are.
        """
        needs = method.prepares if self.phase == "prepare" else method.unlearns
        given = {n: (see(self._get(n), getattr(needs, n)) if n in SETS else self._get(n)) for n in needs_given(needs)}
        return replace(
            self,
            method=method.name,
            needs=needs,
            source=self.source if model is None else model,
            given=given,
            masks=self.masks if masks is None else masks.both(self.masks),
            _made={},
        )

    def edited(self) -> bool:
        """Return whether `original` was handed out and differs from the caller's model now."""
        made = self._made.get("original")
        return made is not None and tensors.weights_digest(made) != tensors.weights_digest(self.source)


def need(method: str, given: Mapping[str, Any], why: str) -> None:
    """Ask for optional needs that a request turns out to need; `Session.require` and a dry run say the same.

    Args:
        method: name of the method.
        given: what was given of them, None where it was not, by name.
        why: why they are needed.

    Raises:
        MissingNeed: one of them was not given.
    """
    missing = [n for n, value in given.items() if value is None]
    if missing:
        remedy = "pass " + " and ".join(f"{n}=" for n in missing)
        raise MissingNeed(f"{' and '.join(missing)} for {method}, because {why}", "none", remedy)


def needs_given(needs: Needs) -> list[str]:
    """Return the names of declared needs that are handed over as values."""
    return [n for n in (*SETS, "recipe", "scenario") if needs.declared(n)]


def see(data: Data | None, sight: See) -> Data | None:
    """Return data at a sight: everything, inputs without labels, or ids alone."""
    if data is None or sight == See.NONE:
        return None
    return {See.IDS: data.only_ids, See.INPUTS: data.unlabelled, See.LABELLED: lambda: data}[sight]()


@dataclass(frozen=True, kw_only=True)
class Method(Part, ABC):
    """An unlearning method: (model, state) → (model, state), settings in frozen fields.

    Only `expunge.unlearn` calls a method: it checks, copies, seeds, times and verifies. A method's name is the
    name of its file. Inside, raise `expunge.errors` and never touch anything outside the session.
    """

    reference: ClassVar[Reference]
    example: ClassVar[dict[str, Any]] = {}
    distributed: ClassVar[bool] = False
    control: ClassVar[bool] = False
    prepared_by: ClassVar[frozenset[str] | None] = None  # fields that decide what prepare leaves; None for all
    nature: ClassVar[Nature] = Nature.EDIT
    refits: ClassVar[bool] = False  # whether prepare gives the model other weights without a recipe
    whole: ClassVar[bool] = False  # whether it trains, and takes all of a set or none: a dry run trains on a part

    @property
    def prepares(self) -> Needs:
        """What `prepare` reads; nothing by default."""
        return Needs()

    @property
    @abstractmethod
    def unlearns(self) -> Needs:
        """What `unlearn` reads."""

    def prepare(self, session: Session) -> tuple[nn.Module, State]:
        """Do the one-off pass before any request is known; default: the model unchanged and an empty state."""
        return session.model, State()

    @abstractmethod
    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """Forget, and return the model with the state for the next request."""

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return how often a phase reads each set, by set; default: once each set whose inputs it sees."""
        needs = self.prepares if phase == "prepare" else self.unlearns
        return {name: 1.0 for name in SETS if getattr(needs, name) >= See.INPUTS}

    def foreseen(self, phase: str, given: Mapping[str, Any], seed: int) -> dict[str, float]:
        """Return how often one call reads each set, before it; by default what `passes` tells of any call.

        Args:
            phase: ``prepare`` or ``unlearn``.
            given: the call's arguments by keyword, its state without the driver's stamp.
            seed: of the call.

        Raises:
            UserError: the call would be refused for what its data or state hold.
        """
        return self.passes(phase, given.get("recipe"))

    def work(self, phase: str, recipe: Recipe | None, classes: int) -> dict[str, float]:
        """Return what the passes cost, by set, in passes of plain training: as many where a sample is run once a read.

        Args:
            phase: ``prepare`` or ``unlearn``.
            recipe: the original's training recipe, or None.
            classes: of the task.
        """
        return self.passes(phase, recipe)

    def declines(self, task: Task, scenario: Scenario | None, model: nn.Module) -> str | None:
        """Return the reason why this method does not apply, or None."""
        return None

    def served_from(self, model: nn.Module) -> nn.Module:
        """Return the network whose weights are written beside the state, of which `serve` makes the model again.

        By default the model itself.
        """
        return model

    def serve(self, model: nn.Module, state: State) -> nn.Module:
        """Return the module that answers requests, from the stored weights and state; default: the model."""
        return model

    def preparation(self) -> dict[str, Any]:
        """Return the settings that decide what `prepare` leaves, so that settings of the edit alone share it."""
        names = self.prepared_by
        return {k: v for k, v in self.settings().items() if k == "name" or names is None or k in names}


class MethodFault(ExpungeError):
    """A method broke the protocol: edited the original, skipped forget samples, returned something else."""
