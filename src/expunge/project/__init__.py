"""One's own model and data: what a project file names, opened and checked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import nn

from expunge import metrics as families
from expunge import zoo as named_data
from expunge.canaries import Canaries, plant
from expunge.data import Data
from expunge.errors import ExpungeError, UserError, listing, suggest
from expunge.files import jsonable, there
from expunge.method import Method
from expunge.methods import build
from expunge.metric import Metric
from expunge.project.config import NAME, Config, DataSection, ModelSection, RuntimeSection, TaskSection, read
from expunge.project.entry import is_entry
from expunge.project.measures import measures
from expunge.project.networks import WEIGHTS, Built, Network, Pretrained, open_network
from expunge.project.samples import Samples, matches
from expunge.project.template import template
from expunge.recipe import fields_of
from expunge.runtime import Runtime
from expunge.task import (
    Binary,
    CausalLM,
    Classification,
    MultiLabel,
    Quantile,
    Regression,
    Task,
    check_targets,
    class_count,
)
from expunge.tensors import eval_mode
from expunge.train import Recipe, fit, fresh
from expunge.zoo import Problem

__all__ = ["NAME", "WEIGHTS", "Config", "Project", "template", "Built"]

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Project:
    """A model and its data, as a project file or the command line names them; parts are opened when asked for.

    Args:
        config: what the file says.
        folder: that relative paths start from.
        file: the project file, or None where the command line named data and network.
        data_dir: folder of named data sets.
        drawn: the canaries as they were planted when the project was prepared, where there were some.
    """

    config: Config
    folder: Path
    file: Path | None = None
    data_dir: Path | None = field(default=None, compare=False)
    drawn: Canaries | None = field(default=None, compare=False)

    @classmethod
    def open(cls, file: Path, data_dir: Path | None = None) -> Project:
        """Read a project file.

        Args:
            file: the project file.
            data_dir: folder of named data sets.

        Returns:
            The project.
        """
        return cls(read(file), file.absolute().parent, file.absolute(), data_dir)

    @classmethod
    def named(cls, data: str, network: str | None, weights: Path | None, data_dir: Path | None = None) -> Project:
        """Return the project of a named data set and network, without a file.

        Args:
            data: see `expunge.zoo.datasets`.
            network: see `expunge.zoo.networks.names`; default the data set's own.
            weights: file of trained weights; None trains the network.
            data_dir: folder of named data sets.

        Returns:
            The project.
        """
        place = "train" if weights is None else str(weights.absolute())
        config = Config(data=DataSection(name=data), model=ModelSection(network=network or "", weights=place))
        return cls(config, Path.cwd(), None, data_dir)

    @classmethod
    def from_json(cls, body: dict[str, Any], data_dir: Path | None = None) -> Project:
        """Return the project that `to_json` gave."""
        file = None if body["file"] is None else Path(body["file"])
        return cls(Config.model_validate(body["config"]), Path(body["folder"]), file, data_dir)

    def to_json(self) -> dict[str, Any]:
        """Return the project as JSON values, its classes named."""
        config = self.config.model_dump(mode="json")
        if self.config.data.name is None:
            config["data"]["classes"] = list(self.classes)
        return {"config": config, "folder": str(self.folder), "file": None if self.file is None else str(self.file)}

    @property
    def name(self) -> str:
        """What messages and reports call it."""
        return self.config.data.name or (self.file.parent.name if self.file else "project")

    @cached_property
    def zoo(self) -> Problem | None:
        """The named data set with its network; None where the project has files of its own."""
        section = self.config.data
        if section.name is None:
            return None
        extra = [k for k in ("train", "holdout", "test", "inputs", "target", "id") if getattr(section, k)]
        if extra:
            raise UserError("[data] name alone, or files", f"name and {', '.join(extra)}", "take one of the two out")
        network = self.config.model.network
        own = ":" in network
        return named_data.load(
            section.name, None if own else network or None, data_dir=self.data_dir, limit=section.limit
        )

    @cached_property
    def network(self) -> Network:
        """The network of ``[model]``."""
        named = None if self.zoo is None or ":" in self.config.model.network else self.zoo.new_model
        return open_network(self.config.model, self.folder, named)

    @cached_property
    def samples(self) -> Samples:
        """The reader of the project's own files."""
        checkpoint = self.network.checkpoint if isinstance(self.network, Pretrained) else None
        section = self.config.data
        return Samples(section, self.folder, self.config.task.kind, checkpoint)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes where labels are texts."""
        return () if self.zoo is not None else self.samples.classes()

    @cached_property
    def _named_samples(self) -> Samples:
        section = self.config.data.model_copy(update={"classes": list(self.classes)})
        return Samples(section, self.folder, self.samples.task, self.samples.checkpoint)

    @cached_property
    def full_train(self) -> Data:
        """The training data as it is kept: no canaries planted, none left out.

        Raises:
            UserError: the project names none, or it is not there.
        """
        found = self._split("train")
        if found is None:
            remedy = "set train = ... or name = ... in [data], or pass --data"
            raise UserError("training data in the project", "none", remedy)
        return found

    @property
    def train(self) -> Data:
        """The training data as the network is trained on it, canaries planted where the project has some.

        Raises:
            UserError: the project names none, it is not there, or canaries cannot be planted in it.
        """
        return self._planting[0]

    @property
    def canaries(self) -> Canaries | None:
        """The manifest of the canaries in `train`, bound to `full_train` as it is now; None where there are none."""
        return self._planting[1] if self.planted else None

    @property
    def manifest(self) -> Canaries | None:
        """The canaries as they were planted, to be kept beside weights trained with them; None where there are none."""
        return self.canaries if self.drawn is None else self.drawn

    @cached_property
    def _planting(self) -> tuple[Data, Canaries | None]:
        if self.drawn is not None:  # before samples were deleted, which would change the draw
            return self.drawn.left(self.full_train)
        if not self.planted:
            return self.full_train, None
        place = self.config.data.canaries
        if place is None:
            assert self._written is not None
            return plant(self.full_train, self._written.canaries)
        found = Canaries.load(self.folder / place)
        return found.applied(self.full_train), found

    @cached_property
    def planted(self) -> bool:
        """Whether the network is trained with canaries.

        Raises:
            UserError: the project names canaries in two ways, or would plant them in what is trained elsewhere.
        """
        given = self.config.data.canaries is not None
        if self._written is None or self._written.canaries == 0:
            return given
        if given:
            remedy = "keep the one in [recipe] where the network is trained here, the one in [data] where it was before"
            raise UserError("canaries in [recipe] or in [data]", "both", remedy)
        if not self.trains:
            remedy = (
                "train by fit with Recipe(canaries=...), and name the canaries.json it leaves by canaries in [data]"
            )
            raise UserError('weights = "train" in [model], for canaries in [recipe]', "trained weights", remedy)
        return True

    @cached_property
    def holdout(self) -> Data | None:
        """The validation data, or None."""
        return self._split("holdout")

    @cached_property
    def test(self) -> Data | None:
        """The test data, or None."""
        return self._split("test")

    def _split(self, name: str) -> Data | None:
        return getattr(self.zoo, name) if self.zoo is not None else self._named_samples.split(name)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, where anybody gave them."""
        return self.zoo.classes if self.zoo is not None else self.classes

    def given(self, place: str) -> Data:
        """Return samples that come with a request, read as the training data is."""
        if self.zoo is not None:
            raise UserError("samples of a project with files", f"the named data set {self.name}", "name ids instead")
        found = self._named_samples.read(place, "samples")
        return found if self.drawn is None else self.drawn.as_trained(found)

    @property
    def train_is_here(self) -> bool:
        """Whether the training data is at hand: False where a file or folder that is named does not exist."""
        section = self.config.data
        if section.name is not None or section.train is None:
            return section.name is not None
        if there(self.folder / section.train) is not None or is_entry(section.train):
            return True
        return any(c in section.train for c in "*?[") and bool(matches(self.folder, section.train))

    @cached_property
    def task(self) -> Task:
        """What is predicted."""
        if self.zoo is not None:
            return self.zoo.task
        return task_of(self.config.task)

    @property
    def recipe(self) -> Recipe | None:
        """How the network was trained on `train`, which holds its canaries; None where nobody said."""
        return None if self._written is None else self._written.again()

    @cached_property
    def _written(self) -> Recipe | None:
        given = self.config.recipe
        if given is None:
            return None if self.zoo is None else self.zoo.recipe
        return Recipe(**fields_of(given))

    @property
    def new_model(self) -> Callable[[], nn.Module] | None:
        """The factory of the network before training; None where it can be drawn anew from its modules."""
        return self.network.untrained()

    def problem(self) -> Problem:
        """Return data, network before training and recipe together, for work that trains the network itself."""
        common: dict[str, Any] = {"recipe": self.recipe, "new_model": self.new_model}
        if self.zoo is not None:
            return replace(self.zoo, train=self.train, **common)
        sets: dict[str, Any] = {"train": self.train, "holdout": self.holdout, "test": self.test, "task": self.task}
        network = self.config.model.network
        return Problem(name=self.name, network=network, classes=self.classes, **sets, **common)

    def method(self, name: str | None = None, settings: dict[str, Any] | None = None) -> Method:
        """Return the method: the project's, or another by name, with fields of its own.

        Raises:
            UserError: the policy does not allow it, or a field is not one of the method's.
        """
        chosen = dict(self.config.method)
        if name is not None and name != chosen.get("name"):
            chosen = {"name": name}
        made = build(jsonable(chosen) | (settings or {}))
        allowed = self.config.policy.methods
        if allowed and made.name not in allowed:
            remedy = "use one of them, or change methods in [policy]"
            raise UserError(f"a method that the policy allows: {', '.join(allowed)}", repr(made.name), remedy)
        return made

    def metrics(self, names: Iterable[str] | None = None) -> list[Metric]:
        """Return families of metrics, set as ``[metrics]`` says; all by default.

        Raises:
            UserError: no such family, or a setting that is none of its own.
        """
        return measures(families.names() if names is None else names, self.config.metrics)

    def runtime(self, device: str = "auto", settings: dict[str, Any] | None = None) -> Runtime:
        """Return the runtime: the project's settings, with others on top.

        Raises:
            UserError: an unknown setting, or a value out of range.
        """
        values = self.config.runtime.model_dump() | (settings or {})
        known = list(RuntimeSection.model_fields)
        for key in values:
            if key not in known:
                raise UserError("known keys in [runtime]", f"'{key}'", suggest(key, known))
        try:
            RuntimeSection.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            got = f"{first['input']!r:.60} ({first['msg'].lower()})"
            raise UserError(f"runtime.{first['loc'][0]} to be right", got, "mend the value") from error
        workdir = values.pop("workdir")
        return Runtime(device=device, workdir=None if workdir is None else self.folder / str(workdir), **values)

    def trained(self, runtime: Runtime, seed: int) -> nn.Module:
        """Return the trained network: with its weights, or trained here where ``[model] weights`` says so.

        Raises:
            UserError: it is to be trained and there is no recipe.
        """
        if not self.trains:
            return self.network.original()
        if self.recipe is None:
            raise UserError("a [recipe] to train by", "none", "add one, or name trained weights in [model]")
        make = self.new_model
        start = fresh(self.blank(), new_model=make, seed=seed)
        return fit(start, self.task, self.train, self.recipe, holdout=self.holdout, runtime=runtime, seed=seed)

    def blank(self) -> nn.Module:
        """Return the network with weights of no meaning, torch's random state left as it was."""
        with torch.random.fork_rng():
            return self.network.original()

    @property
    def trains(self) -> bool:
        """Whether the network is trained here."""
        weights = self.config.model.weights
        return weights == "train" or (weights is None and self.zoo is not None and ":" not in self.config.model.network)

    def check(self, model: nn.Module, data: Data) -> None:
        """Run the network on two samples and hold its outputs to the task.

        Raises:
            UserError: it cannot be run on them, or outputs and targets do not go together.
        """
        some = range(min(2, len(data)))
        batch = _tried(lambda: data.read(some), f"to read samples of {data.name}")
        shape = batch.inputs.shape[1:] if isinstance(batch.inputs, torch.Tensor) else sorted(batch.inputs)
        with eval_mode(model), torch.no_grad():
            run = f"the network to run on inputs {tuple(shape)} of {data.name}"
            outputs, _ = _tried(lambda: self.task.forward(model, batch), run)
        self._check_names(outputs)
        if batch.target is not None and data.labelled:
            check_targets(self.task, outputs, batch.target)
            every = data.targets()
            check_targets(self.task, outputs[:1].expand(len(every), *outputs.shape[1:]), every)

    def check_splits(self, model: nn.Module) -> None:
        """Hold training, validation and test data to the network, and their ids to each other.

        What a request or an audit would trip over later is told while the training data is at hand.

        Raises:
            UserError: one cannot be read, does not fit, or shares ids with another.
        """
        seen: dict[str, str] = {}
        for name in ("train", "holdout", "test"):
            data: Data | None = getattr(self, name)
            if data is not None:
                self.check(model, data)
                ids = self.full_train.ids if name == "train" else data.ids
                both = [i for i in ids if i in seen]
                if both:
                    got = f"{listing(both)} in {seen[both[0]]}, too"
                    raise UserError(f"ids of {data.name} that are its own", got, "number its rows differently")
                seen |= dict.fromkeys(ids, data.name)

    def _check_names(self, outputs: torch.Tensor) -> None:
        """Refuse class names that are not one an output: labels would be taken for other classes without a word."""
        names, count = self.class_names, class_count(self.task, outputs) if outputs.dim() == 2 else 0
        if names and count and count != len(names):
            got = f"{len(names)} names: {listing(names)}"
            if isinstance(self.task, Binary):
                raise UserError("names of two classes for a task of kind binary", got, "set kind to classification")
            remedy = "list them in [data] classes, in the order of the outputs"
            raise UserError(f"a class name for each of the network's {count} outputs", got, remedy)

    def like(self, other: Project) -> str | None:
        """Return what differs between two projects that must agree on model and task, or None."""
        mine, theirs = self.config, other.config
        for key in ("network", "weights", "base"):
            here, there = getattr(mine.model, key), getattr(theirs.model, key)
            if here != there and not (key == "base" and None in (here, there)):  # it may be said later
                return f"model.{key}"
        if mine.task != theirs.task:
            return "task"
        for key in ("name", "limit", "inputs", "target", "id", "image", "text"):
            if getattr(mine.data, key) != getattr(theirs.data, key):
                return f"data.{key}"
        if mine.data.classes and theirs.data.classes and mine.data.classes != theirs.data.classes:
            return "data.classes"
        if (mine.data.canaries is None) != (theirs.data.canaries is None):
            return "data.canaries"
        if (mine.recipe or {}).get("canaries", 0) != (theirs.recipe or {}).get("canaries", 0):
            return "recipe.canaries"
        return None


def task_of(section: TaskSection) -> Task:
    """Return the task that ``[task]`` of a project file says.

    Raises:
        UserError: it sets a key of another kind of task.
    """
    for key, kind in (("error", "regression"), ("quantiles", "quantile")):
        if key in section.model_fields_set and section.kind != kind:
            want, got = f"kind = '{kind}' in [task] beside {key}", f"kind = '{section.kind}'"
            raise UserError(want, got, f"take {key} out, or change the kind")
    if section.kind == "quantile":
        return Quantile(quantiles=tuple(section.quantiles))
    if section.kind == "regression":
        return Regression(error=section.error)
    plain: dict[str, type[Task]] = {
        "classification": Classification,
        "binary": Binary,
        "multilabel": MultiLabel,
        "causal_lm": CausalLM,
    }
    return plain[section.kind]()


def _tried(work: Callable[[], T], expected: str) -> T:
    """Return what the user's own network or data gives; what it raises becomes a sentence."""
    try:
        return work()
    except (ExpungeError, MemoryError):
        raise
    except Exception as error:
        got = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(expected, got, "check [model] network and [data] inputs") from error
