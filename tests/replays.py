"""What a method did step by step, for a slow hand-written loop to do again: what it read and trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from expunge.data import Batch, Data
from expunge.method import Method
from expunge.task import Classification


def reads(monkeypatch: pytest.MonkeyPatch, method: type[Method]) -> list[list[str]]:
    """Return a list that will hold the ids of each read within the method's ``unlearn``."""
    found: list[list[str]] = []
    read, work, on = Data.read, method.unlearn, [False]

    def noted(data: Data, index: Sequence[int]) -> Batch:
        if on[0]:
            found.append([data.ids[i] for i in index])
        return read(data, index)

    def watched(self: Method, *given: Any) -> Any:
        on[0] = True
        try:
            return work(self, *given)
        finally:
            on[0] = False

    monkeypatch.setattr(Data, "read", noted)
    monkeypatch.setattr(method, "unlearn", watched)
    return found


@dataclass(frozen=True)
class Noting(Classification):
    """A task that keeps the targets of each call of its loss."""

    targets: list[list[int]] = field(default_factory=list, compare=False)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        self.targets.append(target.tolist())
        return super().loss(outputs, target)


def held_out(targets: np.ndarray, seed: int, share: float = 0.1) -> np.ndarray:
    """Return the positions that the sparsity paper's code keeps for validation: a share of each class in turn."""
    random = np.random.RandomState(seed)
    classes = [np.flatnonzero(targets == c) for c in range(targets.max() + 1)]
    return np.concatenate([random.choice(at, int(share * len(at)), replace=False) for at in classes])


def samples(data: Data, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of some ids, in their order."""
    place = {sample: i for i, sample in enumerate(data.ids)}
    batch = data.read([place[i] for i in ids])
    return batch.inputs, batch.target


def sgd(
    model: nn.Module, losses: Sequence[Callable[[nn.Module], Tensor]], *, lr: float, momentum: float, decay: float
) -> nn.Module:
    """Take a step down each loss in turn: v ← μv + g + wd·θ, θ ← θ − ηv."""
    speed = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for loss in losses:
        model.zero_grad()
        loss(model).backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                speed[name] = momentum * speed[name] + p.grad + decay * p
                p -= lr * speed[name]
    model.zero_grad()
    return model


def rows(*logits: Sequence[float]) -> nn.Linear:
    """Return a network whose logits for the i-th unit vector are the i-th row: its weight's gradient is theirs."""
    weight = torch.tensor(logits, dtype=torch.float64).T.contiguous()
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(weight)
    return model


def close(a: nn.Module, b: nn.Module, tolerance: float = 1e-12) -> bool:
    """Return whether weights and buffers of two networks agree."""
    one, other = a.state_dict(), b.state_dict()
    return all(torch.allclose(one[k].double(), other[k].double(), rtol=tolerance, atol=tolerance) for k in one)
