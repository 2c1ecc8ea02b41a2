"""What an interrupted training needs to go on: weights, optimiser and counters after an epoch, in one named file."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge import tensors
from expunge.data import Data
from expunge.files import digest
from expunge.identity import built, content, described
from expunge.masks import Masks
from expunge.recipe import Recipe
from expunge.runtime import Runtime

log = logging.getLogger(__name__)
PREFIX = "fit-"


@dataclass
class Progressed:
    """How far a training has come.

    Args:
        epoch: epochs done.
        best: lowest mean loss on holdout so far.
        waited: epochs since then.
        kept: the weights of that epoch.
    """

    epoch: int = 0
    best: float = math.inf
    waited: int = 0
    kept: dict[str, Tensor] = field(default_factory=dict)


class Checkpoint:
    """One file under a name made of everything that decides the result; process 0 writes and reads it for all.

    It is written when ``runtime.checkpoint_every`` seconds have passed since the training began or the last one was
    written. Its name takes reading all data once, so it is made only where a file may be found, or is to be written.

    Args:
        runtime: folder, seconds between two writes, and the processes that train together.
        model: the network that training starts from; left as it is while it trains.
        task: outputs and per-sample loss.
        data: training data.
        holdout: data that decides when to stop, or None.
        recipe: how.
        seed: of order, augmentation and dropout.
        masks: which weights may move, or None.
    """

    def __init__(
        self,
        runtime: Runtime,
        model: nn.Module,
        task: object,
        data: Data,
        holdout: Data | None,
        recipe: Recipe,
        seed: int,
        masks: Masks | None = None,
    ) -> None:
        self.runtime, self.recipe, self.seed, self.masks = runtime, recipe, seed, masks
        self.folder = None if runtime.workdir is None else Path(runtime.workdir)
        self._start, self._task, self._data = model, task, (data, holdout)
        self._last = time.monotonic()

    @cached_property
    def path(self) -> Path:
        """The file."""
        settings = {**self.recipe.to_json(), "penalties": described(self.recipe.penalties)}
        parts: list[Any] = [
            settings,
            self.seed,
            tensors.weights_digest(self._start),
            built(self._start),
            described(self._task),
            self.runtime.precision,
        ]
        if self.runtime.count > 1:
            parts.append(self.runtime.count)
        if self.masks is not None:
            parts.append(described(self.masks))
        for part in self._data:
            if part is not None:
                parts += content(part)
        return Path(str(self.folder)) / f"{PREFIX}{digest(parts)[:24]}.safetensors"

    def store(self, model: nn.Module, optimizer: torch.optim.Optimizer, now: Progressed) -> None:
        """Write the state of the training after an epoch, if it is time."""
        if self.folder is not None:
            self.runtime.on_main(lambda: self._store(model, optimizer, now))

    def _store(self, model: nn.Module, optimizer: torch.optim.Optimizer, now: Progressed) -> None:
        if time.monotonic() - self._last >= self.runtime.checkpoint_every:
            _write(self.path, model, optimizer, now)
            self._last = time.monotonic()

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progressed:
        """Fill model and optimiser with what was stored, and return how far it had come."""
        if self.folder is None:
            return Progressed()
        found, meta = self.runtime.on_main(lambda: _read(self.path) if self._any else ({}, {}))
        if not found:
            return Progressed()
        model.load_state_dict({k.removeprefix("model/"): v for k, v in found.items() if k.startswith("model/")})
        state: dict[int, dict[str, Any]] = {}
        plain = {f"optimizer/{name}": value for name, value in meta["slots"].items()}
        for name, value in {**found, **plain}.items():
            if name.startswith("optimizer/"):
                _, number, slot = name.split("/")
                state.setdefault(int(number), {})[slot] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        kept = {k.removeprefix("best/"): v for k, v in found.items() if k.startswith("best/")}
        best = math.inf if meta["best"] is None else float(meta["best"])
        log.info("resuming training after epoch %d", meta["epoch"])
        return Progressed(int(meta["epoch"]), best, int(meta["waited"]), kept)

    def clear(self) -> None:
        """Remove the file, once the training has ended."""
        if self.folder is not None:
            self.runtime.on_main(lambda: self.path.unlink(missing_ok=True) if self._any else None)

    @property
    def _any(self) -> bool:
        """Whether there is the checkpoint of any training."""
        return any(Path(str(self.folder)).glob(f"{PREFIX}*"))


def _write(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, now: Progressed) -> None:
    values = {f"model/{k}": v for k, v in model.state_dict().items()}
    values |= {f"best/{k}": v for k, v in now.kept.items()}
    plain: dict[str, Any] = {}
    for number, slots in optimizer.state_dict()["state"].items():
        for slot, value in slots.items():
            if isinstance(value, Tensor):
                values[f"optimizer/{number}/{slot}"] = value
            elif value is not None:
                plain[f"{number}/{slot}"] = value
    best = now.best if math.isfinite(now.best) else None
    meta = {"epoch": now.epoch, "best": best, "waited": now.waited, "slots": plain}
    tensors.save(path, values, meta, overwrite=True)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.exists():
        return {}, {}
    found, meta = tensors.load(path)
    return {name: found[name] for name in found}, meta
