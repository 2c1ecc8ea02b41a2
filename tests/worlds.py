"""Tiny trained worlds, of which each method fits one: images of three classes or values, BatchNorm or blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from expunge.data import Data
from expunge.runtime import Runtime
from expunge.scenario import Scenario, forget_class, forget_random, forget_range
from expunge.task import CausalLM, Classification, Regression, Task
from expunge.train import Recipe, fit, fresh

QUIET = Runtime(progress=False, batch_size=7, device="cpu")
CLASSES = 3
TOKENS = 9


def network(outputs: int = CLASSES) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, outputs),
    )


def images(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noisy images of three patterns and their classes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (n,), generator=generator)
    patterns = torch.randn(CLASSES, 1, 4, 4, generator=torch.Generator().manual_seed(99))
    return 2 * patterns[y] + torch.randn(n, 1, 4, 4, generator=generator), y


def measured(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return such images and a number each, (n,), around that of its class from −1 to 1."""
    x, y = images(n, seed)
    return x, y - 1 + x.flatten(1).mean(dim=1)


def one_number() -> nn.Module:
    return network(1)


class Body(nn.Module):
    """A ViT of two blocks that gives three numbers an image."""

    def __init__(self) -> None:
        super().__init__()
        size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
        self.net = ViTForImageClassification(
            ViTConfig(**size, image_size=4, patch_size=2, num_channels=1, num_labels=3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).logits


def blocks() -> nn.Module:
    return nn.Sequential(Body(), nn.Identity(), nn.ReLU(), nn.Flatten(), nn.Linear(3, CLASSES))


class Said(nn.Module):
    """The mean of what stands before and at each place, through a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.cumsum(dim=1) / torch.arange(1, x.shape[1] + 1)[:, None])


def language() -> nn.Module:
    return nn.Sequential(nn.Embedding(TOKENS, 8), nn.Identity(), Said(), nn.ReLU(), nn.Linear(8, TOKENS))


def questions(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return questions of two tokens with answers of two and an end, (n, 5), and targets that count the answers."""
    ids = torch.randint(2, TOKENS, (n, 5), generator=torch.Generator().manual_seed(seed))
    ids[:, 4] = 1
    target = ids.clone()
    target[:, :2] = -100
    return ids, target


@dataclass(frozen=True)
class World:
    model: nn.Module
    train: Data
    holdout: Data
    test: Data
    recipe: Recipe
    scenario: Scenario
    task: Task
    new_model: Callable[[], nn.Module]

    @property
    def forget(self) -> Data:
        return self.train.subset(self.scenario.forget)

    @property
    def retain(self) -> Data:
        return self.train.without(self.scenario.forget)


def world(kind: str = "class", n: int = 39) -> World:
    """Return a world of classes with a request for a class or random samples, or of numbers with one for a range.

    The kind ``blocks`` is a request for a class, and a network of transformer blocks; ``tokens`` one for random
    questions, and a network that tells the next token.
    """
    drawn, build, task = images, blocks if kind == "blocks" else network, Classification()
    if kind == "range":
        drawn, build, task = measured, one_number, Regression()
    elif kind == "tokens":
        drawn, build, task = questions, language, CausalLM()
    train, holdout, test = (
        Data.from_arrays(*drawn(size, seed), name=name)
        for seed, (name, size) in enumerate([("train", n), ("holdout", 12), ("test", 120)])
    )
    recipe = Recipe(epochs=4, batch_size=8, lr=0.05)
    start = fresh(build(), new_model=build, seed=1)
    model = fit(start, task, train, recipe, runtime=QUIET, seed=1)
    rest = {"holdout": holdout, "test": test}
    if kind == "range":
        case = forget_range(train, 0.5, 9.0, **rest)
    else:
        case = forget_class(train, 1, **rest) if kind in ("class", "blocks") else forget_random(train, 5, **rest)
    return World(model, train, holdout, test, recipe, case, task, build)
