"""Robustness: is the forgotten still gone when a copy is quantised, disturbed or trained on with what stays?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from expunge.errors import UserError
from expunge.metric import Audit, Found, Goal, Metric, Number, Unavailable, Value
from expunge.metrics import _tune
from expunge.metrics._tune import Part, Stopped
from expunge.seeds import seed as named_seed
from expunge.tensors import isolated_rng

LEVELS = 127  # of a signed byte, the same on both sides of zero
_QUANTISED = (nn.Linear, _ConvNd, nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True, kw_only=True)
class Robustness(Metric):
    """Accuracy on the forget set after small changes to a private copy; without classes, the mean loss.

    Suppressed knowledge may come back by itself where a little noise undoes a narrow edit. The values are to be read
    beside those before the change, kept with them in the series ``robustness/change``: what matters is a rise where
    retrained, which has nothing to bring back, does not rise. Goal: retrained's value. A forget set of more than
    ``limit`` samples is represented by a seeded draw.

    ``robustness/int8``: dynamic quantisation to 8 bits, see `quantised`. ``robustness/noise``: to every parameter
    tensor w, Gaussian noise of standard deviation ``scale``·√mean(w²) is added; each sample's answer is averaged over
    ``draws`` of it, the same for all models of one shape. ``robustness/finetune``: ``steps`` steps of plain SGD on
    batches of retain samples alone, the same for all models, with BatchNorm statistics kept and dropout off.

    Args:
        scale: standard deviation of the noise, a share of each tensor's root mean square.
        draws: how often noise is drawn.
        lr: learning rate.
        batch: samples a step.
        steps: of fine-tuning.
        limit: samples of a set that are used at most.

    Raises:
        UserError: a setting outside its range.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    needs: ClassVar[frozenset[str]] = frozenset({"forget", "retain", "labels", "data"})
    undefined: ClassVar[tuple[str, ...]] = (
        "the model has no linear, convolution or recurrent layer",
        "the model has no parameters",
        *_tune.UNDEFINED,
    )
    trains: ClassVar[bool] = True

    scale: float = 0.02
    draws: int = 5
    lr: float = 0.01
    batch: int = 32
    steps: int = 20
    limit: int = 2000

    def __post_init__(self) -> None:
        for name in ("draws", "batch", "steps", "limit"):
            if getattr(self, name) < 1:
                raise UserError(f"robustness.{name} of 1 or more", str(getattr(self, name)), "give a larger number")
        for name in ("scale", "lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"robustness.{name} above 0", str(getattr(self, name)), "give a positive number")

    @property
    def numbers(self) -> dict[str, Number]:
        """``robustness/int8``, ``robustness/noise`` and ``robustness/finetune``."""
        return {
            "robustness/int8": self.number("forget set after quantisation to int8"),
            "robustness/noise": self.number("forget set after noise on the weights"),
            "robustness/finetune": self.number("forget set after fine-tuning on retain"),
        }

    def measure(self, audit: Audit) -> Found:
        """Change a copy in each way and ask it about the forget set."""
        forget = _tune.some(audit, "forget", self.limit, "robustness")
        audit.record("robustness/change", "before", _tune.value(_tune.before(audit, forget), audit.task))
        changes: dict[str, Callable[[Audit, str, Part], NDArray[np.float64]]] = {
            "int8": _int8,
            "noise": self._noise,
            "finetune": self._finetune,
        }
        with isolated_rng(named_seed("robustness", audit.seed)):
            found = {name: self._changed(audit, name, forget, change) for name, change in changes.items()}
        for name, value in found.items():
            audit.record("robustness/change", name, value)
        return {f"robustness/{name}": value for name, value in found.items()}

    def _changed(
        self, audit: Audit, name: str, forget: Part, change: Callable[[Audit, str, Part], NDArray[np.float64]]
    ) -> Value | Unavailable:
        def answers(role: str) -> NDArray[np.float64]:
            return _tune.once(audit, role, (repr(self), name), lambda who: change(audit, who, forget))

        own = _tune.tried(lambda: answers("model"))
        if isinstance(own, Unavailable):
            return own
        _tune.gap(audit, f"robustness/{name}", own, lambda: answers("retrained"))
        return _tune.value(own, audit.task)

    def _noise(self, audit: Audit, role: str, forget: Part) -> NDArray[np.float64]:
        total = np.zeros(len(forget))
        for draw in range(self.draws):
            model = _tune.copied(audit, role)
            _disturb(model, self.scale, named_seed("robustness", audit.seed, "noise", draw))
            total += _tune.ask(model, audit, forget)
        return total / self.draws

    def _finetune(self, audit: Audit, role: str, forget: Part) -> NDArray[np.float64]:
        model, retain = _tune.copied(audit, role), _tune.some(audit, "retain", self.limit, "robustness")
        sources = [(retain, retain.order(self.batch, "robustness", audit.seed, "finetune"))]
        for step in _tune.training(model, audit.task, sources, self.lr, audit.runtime.alone()):
            if step == self.steps:
                break
        return _tune.ask(model, audit, forget)


def _int8(audit: Audit, role: str, forget: Part) -> NDArray[np.float64]:
    return _tune.ask(quantised(_tune.copied(audit, role)), audit, forget)


def _disturb(model: nn.Module, scale: float, seed: int) -> None:
    """Add noise to every parameter in place, frozen ones included: what is on the disk is disturbed, not training."""
    generator = torch.Generator().manual_seed(seed)
    params = [p for p in model.parameters() if p.is_floating_point()]
    if not params:
        raise Stopped("the model has no parameters")
    with torch.no_grad():
        for p in params:
            size = p.double().square().mean().sqrt() * scale
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.add_((noise * float(size)).to(p))


def quantised(model: nn.Module) -> nn.Module:
    """Simulate dynamic quantisation to int8 in place, in floating point, so that it runs on every device.

    Weights of linear, convolution (transposed too) and recurrent layers: symmetric, one scale an output channel,
    w ← s·round(w/s) with s = max|w|/127. Inputs of these layers, when run: affine to 256 levels, one scale for what the
    layer treats as one thing: each row of a linear or recurrent layer, each sample of a convolution. (One scale for a
    whole tensor would make a sample's answer depend on those that share its batch; of samples served one by one, it is
    the same for rows and images.) Biases, normalisation and embeddings stay as they are, and so do the inputs of layers
    whose weights another module reads, as those of `torch.nn.MultiheadAttention`.

    Torch's own ``torch.ao.quantization.quantize_dynamic`` is deprecated, and leaves convolutions alone.

    Args:
        model: a private copy.

    Returns:
        The model.

    Raises:
        Stopped: it has no such layer.
    """
    layers = [module for module in model.modules() if isinstance(module, _QUANTISED)]
    if not layers:
        raise Stopped("the model has no linear, convolution or recurrent layer to quantise")
    for layer in layers:
        for name in [n for n in getattr(layer, "parametrizations", {}) if n.startswith("weight")]:
            parametrize.remove_parametrizations(layer, name)
        with torch.no_grad():
            for name, weight in layer.named_parameters(recurse=False):
                if name.startswith("weight"):
                    weight.copy_(_symmetric(weight, _channel(layer)))
        layer.register_forward_pre_hook(_quantise_input)
    return model


def _channel(layer: nn.Module) -> int:
    return 1 if isinstance(layer, _ConvTransposeNd) else 0  # with groups: one scale for the channel's place in each


def _symmetric(weight: Tensor, channel: int) -> Tensor:
    """Return a weight rounded to 255 levels, symmetric about zero, one scale a channel."""
    others = [d for d in range(weight.dim()) if d != channel]
    scale = weight.abs().amax(dim=others, keepdim=True) / LEVELS
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (weight / scale).round().clamp(-LEVELS, LEVELS) * scale


def _quantise_input(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Round the first input to 256 levels between its least and largest value, zero being one of them."""
    if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
        return None
    x = args[0]
    within = -1
    if isinstance(layer, _ConvNd):
        within = len(layer.kernel_size) + 1  # channels and space
    over = [-1] if within == -1 else list(range(-within, 0))
    low = x.amin(dim=over, keepdim=True).clamp(max=0)
    high = x.amax(dim=over, keepdim=True).clamp(min=0)
    scale = (high - low) / (2 * LEVELS + 1)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = (-low / scale).round()
    return ((((x / scale).round() + zero).clamp(0, 2 * LEVELS + 1) - zero) * scale, *args[1:])


METRIC = Robustness
