"""Networks by name; those of transformers are imported when one is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from expunge.errors import UserError, suggest
from expunge.extras import imported

BASE = "vit-base-patch16-224"
BASE_SHAPE = (3, 224, 224)


class Tokens(NamedTuple):
    """The shape of texts as tokens.

    Args:
        length: tokens of a text.
        vocabulary: indices in all.
    """

    length: int
    vocabulary: int


class MLP(nn.Module):
    """Two hidden layers of 64 units with ReLU.

    Args:
        shape: of one input.
        outputs: classes, or targets.
    """

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(shape), 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()
        )
        self.head = nn.Linear(64, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, K)."""
        return self.head(self.body(x))  # type: ignore[no-any-return]


class ConvNet(nn.Module):
    """Three 3×3 convolutions with BatchNorm and ReLU (16, 32, 32 channels, the second of stride 2), a linear head.

    Args:
        shape: (C, H, W) of one image.
        outputs: classes, or targets.
    """

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        widths, layers = [shape[0], 16, 32, 32], []
        for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
            convolution = nn.Conv2d(a, b, 3, stride=2 if i == 1 else 1, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(b), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(4 * widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, K)."""
        return self.head(self.body(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Two 3×3 convolutions with BatchNorm, added to the input or to its 1×1 projection with BatchNorm.

    Args:
        before: channels of the input.
        after: channels of the output.
        stride: of the first convolution.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output (B, C, H, W)."""
        return (self.body(x) + self.shortcut(x)).relu()  # type: ignore[no-any-return]


class ResNet18(nn.Module):
    """ResNet-18 for small images: a 3×3 stem of stride 1 without pooling, widths 64 to 512, 11.2 million parameters.

    Args:
        shape: (C, H, W) of one image.
        outputs: classes, or targets.

    References:
        K. He et al., "Deep residual learning for image recognition", 2016, https://arxiv.org/abs/1512.03385.
    """

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(shape[0], 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        widths = [64, 64, 128, 256, 512]
        blocks = []
        for i, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
            blocks += [Block(before, after, 1 if i == 0 else 2), Block(after, after, 1)]
        self.stages = nn.Sequential(*blocks)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, K)."""
        return self.head(self.pool(self.stages(self.stem(x))))  # type: ignore[no-any-return]


NETWORKS: Mapping[str, type[MLP] | type[ConvNet] | type[ResNet18]] = {
    "mlp": MLP,
    "convnet": ConvNet,
    "resnet18": ResNet18,
}
TRANSFORMERS = ("text", "vit", BASE)


def names() -> list[str]:
    """Return the names of the networks.

    >>> names()
    ['convnet', 'mlp', 'resnet18', 'text', 'vit', 'vit-base-patch16-224']
    """
    return sorted([*NETWORKS, *TRANSFORMERS])


def fits(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a network takes inputs of a shape: `Tokens` for ``text``, images for all others but ``mlp``."""
    if isinstance(shape, Tokens) or name == "text":
        return isinstance(shape, Tokens) and name == "text"
    if name == BASE:
        return tuple(shape) == BASE_SHAPE
    return name == "mlp" or len(shape) == 3


def build(name: str, shape: tuple[int, ...], outputs: int, models: Path | None = None) -> nn.Module:
    """Return the network before training, drawn from torch's random state; arguments as of `factory`."""
    if name in NETWORKS:
        return NETWORKS[name](shape, outputs)
    found = _transformer()
    if name == BASE:
        return found.vit_base(shape, outputs, models)  # type: ignore[no-any-return]
    return (found.text if name == "text" else found.vit)(shape, outputs)  # type: ignore[no-any-return]


def _transformer() -> Any:
    return imported("expunge.zoo.transformer", package="transformers", extra="hf")


def factory(name: str, shape: tuple[int, ...], outputs: int, *, models: Path | None = None) -> Callable[[], nn.Module]:
    """Return a function that builds the network before training; it can be sent to other processes.

    Args:
        name: see `names`.
        shape: of one input: (C, H, W), (F,), or `Tokens`.
        outputs: classes, or targets.
        models: folder of pretrained checkpoints.

    Returns:
        The function, without arguments.

    Raises:
        UserError: an unknown name, or a network for inputs of another shape.
    """
    check(name, shape)
    if name in TRANSFORMERS:
        _transformer()  # says at once what is not installed
    return partial(build, name, shape, outputs, models)


def check(name: str, shape: tuple[int, ...]) -> None:
    """Refuse an unknown network, or one for inputs of another shape.

    Raises:
        UserError: it is one of these.
    """
    if name not in names():
        raise UserError("a known network", repr(name), suggest(name, names()))
    if not fits(name, shape):
        known = {"text": "texts", "mlp": "numbers", BASE: f"images of shape {BASE_SHAPE}"}
        want = known.get(name, "inputs of 3 dimensions")
        got = f"texts of {shape.length} tokens" if isinstance(shape, Tokens) else f"shape {tuple(shape)}"
        others = ", ".join(n for n in names() if fits(n, shape))
        raise UserError(f"{want} for {name}", got, f"take another network: {others}")
