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
from expunge.zoo.forecast import LinearForecast, LSTMForecast, Window
from expunge.zoo.tabular import Table, Tabular

BASE = "vit-base-patch16-224"
BASE_SHAPE = (3, 224, 224)
MINILM = "minilm"
PUBLIC = "vit_public"
LENET = 12  # pixels a side at least, so that something is left after two convolutions and poolings


class Tokens(NamedTuple):
    """The shape of texts as tokens.

    Args:
        length: tokens of a text.
        vocabulary: indices in all.
    """

    length: int
    vocabulary: int


class Pair(NamedTuple):
    """The shape of pairs of texts as tokens, one text after the other.

    Args:
        length: tokens of each text.
        vocabulary: indices in all.
    """

    length: int
    vocabulary: int


MINILM_SHAPE = Tokens(length=64, vocabulary=30_522)  # in the checkpoint's own words


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


class LeNet(nn.Module):
    """Two 5×5 convolutions with ReLU and pooling (6, 16 channels), two hidden layers (120, 84 units), a linear head.

    Images are padded by two pixels first, so that those of 28×28 give 16·5·5 features; no BatchNorm, no dropout.

    Args:
        shape: (C, H, W) of one image, of 12 pixels a side or more.
        outputs: classes, or targets.

    References:
        Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition", 1998,
        https://doi.org/10.1109/5.726791.
    """

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        features = 16 * math.prod((side // 2 - 4) // 2 for side in shape[1:])
        self.body = nn.Sequential(
            nn.Conv2d(shape[0], 6, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(features, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
        )
        self.head = nn.Linear(84, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, K)."""
        return self.head(self.body(x))  # type: ignore[no-any-return]


class ConvNet4(nn.Module):
    """Four 3×3 convolutions with BatchNorm and ReLU (16, 32, 32, 64 channels, the second and last of stride 2).

    Then the mean over the image, and a linear head. The modules ``block1`` to ``block4`` are the activations to tap.

    Args:
        shape: (C, H, W) of one image.
        outputs: classes, or targets.
    """

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        before = shape[0]
        for at, (after, stride) in enumerate(((16, 1), (32, 2), (32, 1), (64, 2)), start=1):
            convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
            self.add_module(f"block{at}", nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU()))
            before = after
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(before, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (B, K)."""
        for at in range(1, 5):
            x = self.get_submodule(f"block{at}")(x)
        return self.head(self.pool(x))  # type: ignore[no-any-return]


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


NETWORKS: Mapping[str, Callable[[Any, Any], nn.Module]] = {
    "mlp": MLP,
    "convnet": ConvNet,
    "convnet4": ConvNet4,
    "lenet": LeNet,
    "resnet18": ResNet18,
    "linear_forecast": LinearForecast,
    "lstm_forecast": LSTMForecast,
    "tabular": Tabular,
}
TRANSFORMERS = ("text", "text_pair", "vit", BASE, MINILM, PUBLIC)
PRETRAINED: Mapping[str, tuple[str, str]] = {  # module and function of networks that read a checkpoint
    BASE: ("transformer", "vit_base"),
    MINILM: ("minilm", "minilm"),
    PUBLIC: ("public", "vit_public"),
}
OWN: Mapping[type, tuple[str, ...]] = {  # networks that take inputs of one kind alone
    Tokens: ("text", MINILM),
    Pair: ("text_pair",),
    Window: ("linear_forecast", "lstm_forecast"),
    Table: ("tabular",),
}
WANTS = {
    "text": "texts",
    "text_pair": "pairs of texts",
    "mlp": "numbers",
    "lenet": f"images of {LENET} pixels a side or more",
    "tabular": "rows of a table",
    BASE: f"images of shape {BASE_SHAPE}",
    MINILM: "texts in its own words",
    PUBLIC: "images",
    **dict.fromkeys(OWN[Window], "windows of series"),
}


def names() -> list[str]:
    """Return the names of the networks.

    >>> names()[:4]
    ['convnet', 'convnet4', 'lenet', 'linear_forecast']
    """
    return sorted([*NETWORKS, *TRANSFORMERS])


def fits(name: str, shape: tuple[Any, ...]) -> bool:
    """Return whether a network takes inputs of a shape: those of `OWN` theirs alone, others images, ``mlp`` numbers."""
    if type(shape) in OWN or any(name in own for own in OWN.values()):
        own = name in OWN.get(type(shape), ())
        return own and (shape == MINILM_SHAPE) == (name == MINILM)  # no other network reads its words
    if name == BASE:
        return tuple(shape) == BASE_SHAPE
    if name == "lenet" and len(shape) == 3:
        return bool(min(shape[1:]) >= LENET)
    return name == "mlp" or len(shape) == 3


def said(shape: tuple[Any, ...]) -> str:
    """Return the shape of inputs in words."""
    if isinstance(shape, Tokens | Pair):
        return f"{'texts' if isinstance(shape, Tokens) else 'pairs of texts'} of {shape.length} tokens"
    if isinstance(shape, Window):
        return f"windows of {shape.steps} steps of {shape.series} series"
    if isinstance(shape, Table):
        return f"rows of {shape.real} real and {len(shape.sizes)} categorical columns"
    return f"shape {tuple(shape)}"


def build(name: str, shape: tuple[Any, ...], outputs: int | tuple[int, ...], models: Path | None = None) -> nn.Module:
    """Return the network before training, drawn from torch's random state; arguments as of `factory`."""
    if name in NETWORKS:
        return NETWORKS[name](shape, outputs)
    if name in PRETRAINED:
        module, function = PRETRAINED[name]
        return getattr(_transformer(module), function)(shape, outputs, models)  # type: ignore[no-any-return]
    return getattr(_transformer(), name)(shape, outputs)  # type: ignore[no-any-return]


def _transformer(module: str = "transformer") -> Any:
    return imported(f"expunge.zoo.{module}", package="transformers", extra="hf")


def factory(
    name: str, shape: tuple[Any, ...], outputs: int | tuple[int, ...], *, models: Path | None = None
) -> Callable[[], nn.Module]:
    """Return a function that builds the network before training; it can be sent to other processes.

    Args:
        name: see `names`.
        shape: of one input: (C, H, W), (F,), `Tokens`, `Pair`, `Window`, or `Table`.
        outputs: classes, or targets; of forecasts (T,), or (T, Q) with Q quantiles a step.
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


def check(name: str, shape: tuple[Any, ...]) -> None:
    """Refuse an unknown network, or one for inputs of another shape.

    Raises:
        UserError: it is one of these.
    """
    if name not in names():
        raise UserError("a known network", repr(name), suggest(name, names()))
    if not fits(name, shape):
        others = ", ".join(n for n in names() if fits(n, shape))
        want = f"{WANTS.get(name, 'inputs of 3 dimensions')} for {name}"
        raise UserError(want, said(shape), f"take another network: {others}")
