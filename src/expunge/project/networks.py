"""The network that a project file names: built, filled with its weights, before training, and written again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from expunge.errors import UserError
from expunge.project import weights
from expunge.project.config import ModelSection
from expunge.project.entry import call, is_entry, load
from expunge.project.pretrained import Checkpoint
from expunge.tensors import load_weights, save_weights

WEIGHTS = "model.safetensors"


class Network(Protocol):
    """A network by name, on disk and in memory."""

    def original(self) -> nn.Module:
        """Return the trained network in eval mode."""
        ...

    def untrained(self) -> Callable[[], nn.Module] | None:
        """Return the factory of the network before training, or None where it can be drawn anew from its modules."""
        ...

    def load(self, folder: Path) -> nn.Module:
        """Return the network with the weights that `save` wrote into a folder."""
        ...

    def save(self, folder: Path, model: nn.Module) -> None:
        """Write the weights into a folder that exists."""
        ...

    @property
    def stale(self) -> list[str]:
        """Names of optimiser and averaged states beside the weights, known once they were read."""
        ...


class Built:
    """A network that a function builds, with weights in a file, if any.

    Args:
        build: returns the network.
        file: of trained weights, or None where the function returns the trained network.
        base: builds the network before training, or None.
        name: in messages.
    """

    def __init__(
        self, build: Callable[[], Any], file: Path | None, base: Callable[[], nn.Module] | None, name: str
    ) -> None:
        self.build, self.file, self.base, self.name = build, file, base, name
        self.stale: list[str] = []

    def original(self) -> nn.Module:
        """Return the trained network in eval mode."""
        model = _module(self.build(), self.name)
        if self.file is not None:
            found = weights.read(self.file)
            weights.fill(self.file, model, found)
            self.stale = found.stale
        return model.eval()

    def untrained(self) -> Callable[[], nn.Module] | None:
        """Return the factory of the network before training."""
        return self.base

    def load(self, folder: Path) -> nn.Module:
        """Return the network with the weights in a folder."""
        model = _module(self.build(), self.name)
        load_weights(folder / WEIGHTS, model)
        return model.eval()

    def save(self, folder: Path, model: nn.Module) -> None:
        """Write ``model.safetensors``."""
        save_weights(folder / WEIGHTS, model, {})


class Pretrained:
    """A network in a transformers checkpoint folder.

    Args:
        checkpoint: the folder of the trained network.
        base: checkpoint that training started from, ``random`` for a drawn one, or None where nobody said.
    """

    def __init__(self, checkpoint: Checkpoint, base: Checkpoint | Callable[[], nn.Module] | str | None) -> None:
        self.checkpoint, self.base = checkpoint, base
        self.stale = sorted(p.name for p in checkpoint.path.glob("*") if p.stem in ("optimizer", "scheduler", "scaler"))

    def original(self) -> nn.Module:
        """Return the trained network in eval mode."""
        return self.checkpoint.model()

    def untrained(self) -> Callable[[], nn.Module] | None:
        """Return the factory of the network before training; it raises where the project file does not say."""
        if callable(self.base):
            return self.base
        if isinstance(self.base, Checkpoint):
            return partial(self.base.untrained, self.checkpoint.config, self.checkpoint.architecture)
        return self.checkpoint.blank if self.base == "random" else _unsaid

    def load(self, folder: Path) -> nn.Module:
        """Return the network with the weights in a folder."""
        return self.checkpoint.model(folder)

    def save(self, folder: Path, model: nn.Module) -> None:
        """Write config, weights, tokenizer and processor."""
        self.checkpoint.save(folder, model)


def _unsaid() -> nn.Module:
    remedy = "set base = 'hf:folder' of the public model it was fine-tuned from, or base = 'random'"
    raise UserError("the network before training in [model] base", "none", remedy)


def _module(found: Any, name: str) -> nn.Module:
    if not isinstance(found, nn.Module):
        raise UserError(f"a torch.nn.Module from '{name}'", type(found).__name__, "return the network")
    return found


def _function(name: str, folder: Path) -> nn.Module:
    return _module(call(name, folder), name)


def open_network(section: ModelSection, folder: Path, named: Callable[[], nn.Module] | None) -> Network:
    """Return the network of ``[model]``; no weights are read.

    Args:
        section: of the project file.
        folder: that relative paths start from.
        named: builds the named network, where ``network`` is one.

    Returns:
        The network.

    Raises:
        UserError: a name that is none of the three kinds, or weights where there can be none.
    """
    name = section.network
    if name.startswith("hf:"):
        if section.weights is not None:
            raise UserError(
                "no [model] weights with 'hf:'", repr(section.weights), "the folder holds them: leave it out"
            )
        return Pretrained(Checkpoint.of(name.removeprefix("hf:"), folder), _base(section, folder))
    file = None if section.weights in (None, "train") else folder / str(section.weights)
    if named is not None:
        return Built(named, file, named, name)
    if not is_entry(name):
        remedy = "name a function (package.module:function), a checkpoint (hf:folder), or a named network and data set"
        raise UserError("a network in [model] network", repr(name), remedy)
    build = partial(_function, name, folder)
    base = _base(section, folder)
    if isinstance(base, Checkpoint):
        raise UserError("a function or nothing in [model] base", repr(section.base), "an hf: base is for hf: networks")
    fresh = base if callable(base) else build if section.weights is not None else None
    return Built(build, file, None if section.base == "random" else fresh, name)


def _base(section: ModelSection, folder: Path) -> Checkpoint | Callable[[], nn.Module] | str | None:
    base = section.base
    if base is None or base == "random":
        return base
    if base.startswith("hf:"):
        return Checkpoint.of(base.removeprefix("hf:"), folder)
    if not is_entry(base):
        raise UserError("[model] base as 'package.module:function', 'hf:folder' or 'random'", repr(base), "mend it")
    load(base, folder)  # a name that does not import is told now, not when a request needs it
    return partial(_function, base, folder)
