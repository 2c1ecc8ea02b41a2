"""What an interrupted training needs to go on: weights, optimiser and counters after an epoch, in one named file."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge import tensors
from expunge.data import Data
from expunge.files import digest
from expunge.identity import built, content, described
from expunge.recipe import Recipe
from expunge.runtime import Runtime

log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Checkpoint:
    """One file under a name made of everything that decides the result; process 0 writes and reads it for all.

    Args:
        path: the file, or None to keep nothing.
        runtime: the processes that train together.
    """

    path: Path | None
    runtime: Runtime

    @classmethod
    def of(
        cls,
        runtime: Runtime,
        model: nn.Module,
        task: object,
        data: Data,
        holdout: Data | None,
        recipe: Recipe,
        seed: int,
    ) -> Checkpoint:
        """Return the checkpoint of a training; without ``runtime.workdir`` one that keeps nothing."""
        if runtime.workdir is None:
            return cls(None, runtime)
        settings = {**recipe.to_json(), "penalties": described(recipe.penalties)}
        parts: list[Any] = [
            settings,
            seed,
            tensors.weights_digest(model),
            built(model),
            described(task),
            runtime.precision,
        ]
        if runtime.count > 1:
            parts.append(runtime.count)
        for part in (data, holdout):
            if part is not None:
                parts += content(part)
        return cls(Path(runtime.workdir) / f"fit-{digest(parts)[:24]}.safetensors", runtime)

    def store(self, model: nn.Module, optimizer: torch.optim.Optimizer, now: Progressed) -> None:
        """Write the state of the training after an epoch."""
        if self.path is not None:
            path = self.path
            self.runtime.on_main(lambda: _write(path, model, optimizer, now))

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progressed:
        """Fill model and optimiser with what was stored, and return how far it had come."""
        path = self.path
        if path is None:
            return Progressed()
        found, meta = self.runtime.on_main(lambda: _read(path))
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
        log.info("resuming training after epoch %d from %s", meta["epoch"], path.name)
        return Progressed(int(meta["epoch"]), best, int(meta["waited"]), kept)

    def clear(self) -> None:
        """Remove the file, once the training has ended."""
        if self.path is not None:
            path = self.path
            self.runtime.on_main(lambda: path.unlink(missing_ok=True))


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
