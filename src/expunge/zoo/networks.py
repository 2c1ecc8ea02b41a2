"""Small networks by name."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from expunge.errors import UserError, suggest


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


NETWORKS: dict[str, tuple[type[MLP] | type[ConvNet], int | None]] = {"mlp": (MLP, None), "convnet": (ConvNet, 3)}


def names() -> list[str]:
    """Return the names of the networks.

    >>> names()
    ['convnet', 'mlp']
    """
    return sorted(NETWORKS)


def factory(name: str, shape: tuple[int, ...], outputs: int) -> Callable[[], nn.Module]:
    """Return a function that builds the network before training.

    Raises:
        UserError: an unknown name, or a network for inputs of another shape.
    """
    if name not in NETWORKS:
        raise UserError("a known network", repr(name), suggest(name, NETWORKS))
    network, dims = NETWORKS[name]
    if dims is not None and len(shape) != dims:
        raise UserError(f"inputs of {dims} dimensions for {name}", f"shape {shape}", "take another network: mlp")
    return lambda: network(shape, outputs)
