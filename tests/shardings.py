"""Tiny sharded models: prepared once a test session, written to a folder of its own for each test."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from expunge.data import Data
from expunge.exact.server import Server
from expunge.exact.store import Store
from expunge.methods import load
from expunge.methods._sharded import Sharded
from expunge.runtime import Runtime
from expunge.task import Classification
from expunge.train import Recipe
from expunge.unlearn import Prepared, prepare

QUIET = Runtime(progress=False, device="cpu")
TASK = Classification()
N = 60


@dataclass(frozen=True)
class Case:
    """A sharded model and all it was made from."""

    method: Sharded
    train: Data
    recipe: Recipe
    new_model: Callable[[], nn.Module]
    ready: Prepared

    @property
    def base(self) -> nn.Module:
        """The network before any stage, another object each time."""
        made = self.new_model()
        made.load_state_dict(self.method.served_from(self.ready.model).state_dict())
        return made.eval()

    @property
    def inputs(self) -> Any:
        return self.train.read(range(N)).inputs

    def store(self, folder: Path) -> Store:
        return Store.create(folder, self.ready.state)

    def server(self, folder: Path) -> Server:
        """Return a server of a folder that is written where there is none."""
        if not folder.exists():
            self.store(folder)
        return Server(folder, self.base, TASK)

    def slice_of(self, shard: int, part: int) -> list[str]:
        """Return the ids in a slice."""
        book = self.method.book(self.ready.state)
        shards, slices = book.place(self.train.ids)
        return [i for i, s, p in zip(self.train.ids, shards, slices, strict=True) if (s, p) == (shard, part)]


def normed(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def vit(seed: int = 0) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification  # takes seconds, which other processes can do without

    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8, image_size=4, patch_size=2,
        num_channels=1, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return ViTForImageClassification(config)


def network(name: str) -> nn.Module:
    """Return a network of a case, with other weights."""
    return normed(5) if name == "sisa" else vit(5)


def data(*shape: int) -> Data:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(N, *shape, generator=draw)
    y = (x.flatten(1) @ torch.randn(x[0].numel(), 3, generator=draw)).argmax(1)
    return Data.from_arrays(x, y, ids=[f"patient-{n}" for n in range(N)])


@cache
def case(name: str) -> Case:
    """Return ``sisa`` (three slices in one order) or ``s3t`` (in three orders; ``s3t_all`` serves all), two shards."""
    kind = name.partition("_")[0]
    build, train = (normed, data(5)) if kind == "sisa" else (vit, data(1, 4, 4))
    own: dict[str, Any] = {} if kind == "sisa" else {"rank": 2, "alpha": 4.0}
    method = load(kind)(shards=2, slices=3, stage_epochs=1, **own, **({"serving": "all"} if "_all" in name else {}))
    recipe = Recipe(epochs=2, batch_size=8, **({} if kind == "sisa" else {"lr": 0.05, "optimizer": "adamw"}))
    ready = prepare(method, build(1).eval(), TASK, train=train, recipe=recipe, new_model=build, runtime=QUIET)
    return Case(method, train, recipe, build, ready)


def forked(work: Callable[[], None]) -> int:
    """Run something in a process of its own, and return how that ended: −9 where it was killed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def die() -> None:
    """Be killed."""
    os.kill(os.getpid(), signal.SIGKILL)
