"""Densities of representations: a small variational autoencoder, and a diagonal Gaussian behind the same interface."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from expunge.errors import Incompatible, NotFinite
from expunge.seeds import seed as named_seed
from expunge.tensors import check_finite, isolated_rng
from expunge.train import batch_orders

LAYERS = (128, 32)  # widths of the encoder's hidden layers; the decoder has them the other way round
INSIDE = 1e-8  # what the published code adds to a variance inside its logarithm
WIDEST = 20.0  # log σ² at most
FLOOR = 0.01  # of the root mean square deviation: a dimension that hardly varies is not blown up to unit variance


class Coded(NamedTuple):
    """What an autoencoder makes of representations.

    Args:
        rebuilt: ê, (N, d).
        mean: μ of the code, (N, q).
        log_variance: log σ² of the code, (N, q).
    """

    rebuilt: Tensor
    mean: Tensor
    log_variance: Tensor


class GaussianVAE(nn.Module):
    """A variational autoencoder with a Gaussian code: d → 128 → 32 → (μ, log σ²) in R^q, and q → 32 → 128 → d.

    Args:
        d: dimensions of a representation.
        q: dimensions of the code.
        hidden: widths of the encoder's hidden layers.
        out: of the decoder; ``sigmoid`` gives numbers from 0 to 1 and cannot fit others.
    """

    def __init__(
        self, d: int, q: int, hidden: tuple[int, ...] = LAYERS, out: Literal["linear", "sigmoid"] = "linear"
    ) -> None:
        super().__init__()
        self.encoder = _layers(d, *hidden, 2 * q)
        self.decoder = _layers(q, *reversed(hidden), d)
        if out == "sigmoid":
            self.decoder.append(nn.Sigmoid())

    def forward(self, e: Tensor, noise: Tensor) -> Coded:
        """Return ê = dec(μ + σ ⊙ ε) with the moments of the code.

        Far from what it was fitted to, log σ² may grow until its exponential overflows: it is held to at most 20.

        Args:
            e: representations (N, d).
            noise: ε, standard normal, (N, q).
        """
        mean, log_variance = self.encoder(e).chunk(2, dim=1)
        log_variance = log_variance.clamp(max=WIDEST)
        return Coded(self.decoder(mean + (log_variance / 2).exp() * noise), mean, log_variance)


def _layers(*widths: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for a, b in pairwise(widths):
        parts += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def divergences(mean: Tensor, log_variance: Tensor, inside: float = 0.0) -> Tensor:
    """Return KL(N(μ, σ²) ‖ N(0, I)) of each sample: −1/2 Σ_j (1 + log(σ_j² + inside) − μ_j² − σ_j²).

    Args:
        mean: μ, (N, q).
        log_variance: log σ², (N, q).
        inside: added to the variance in the logarithm; 1e-8 in the published code.

    Returns:
        Nats, (N,).

    >>> round(float(divergences(torch.tensor([[0.5, -1.0]]), torch.tensor([[0.0, -math.log(2)]]))), 4)
    0.7216
    """
    variance = log_variance.exp()
    log = (variance + inside).log() if inside else log_variance
    return -(1 + log - mean.square() - variance).sum(dim=1) / 2


def vae_loss(e: Tensor, coded: Coded, beta: float, inside: float = 0.0) -> Tensor:
    """Return the loss of a batch: 1/B Σ_i ‖ê_i − e_i‖² + β · 1/B Σ_i KL_i.

    Args:
        e: representations (B, d).
        coded: what the autoencoder makes of them.
        beta: weight of the divergence.
        inside: see `divergences`.

    Returns:
        A scalar.
    """
    errors = (coded.rebuilt - e).square().sum(dim=1)
    return errors.mean() + beta * divergences(coded.mean, coded.log_variance, inside).mean()


@dataclass(frozen=True, eq=False)
class Scale:
    """How representations are standardised, dimension by dimension: (e − shift) / width.

    Args:
        shift: (d,).
        width: (d,), above 0.
    """

    shift: Tensor
    width: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Scale:
        """Return mean and deviation of representations (N, d).

        A deviation below 1 % of the root mean square of all is taken for that: a dimension that is always the same
        would otherwise weigh without bound as soon as it moves.
        """
        width = rows.std(dim=0, correction=0)
        typical = float(width.square().mean().sqrt())
        return cls(rows.mean(dim=0), width.clamp_min(FLOOR * typical if typical else 1.0))

    @classmethod
    def none(cls, rows: Tensor) -> Scale:
        """Return the scale that changes nothing of representations (N, d)."""
        return cls(torch.zeros_like(rows[0]), torch.ones_like(rows[0]))

    def __call__(self, e: Tensor) -> Tensor:
        """Return representations (N, d) standardised."""
        return (e - self.shift) / self.width

    def to(self, like: Tensor) -> Scale:
        """Return it on a tensor's device, in its type."""
        return Scale(self.shift.to(like), self.width.to(like))


class Density(ABC):
    """How well a representation fits the representations that this was fitted to."""

    kind: ClassVar[str]

    @abstractmethod
    def errors(self, e: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return m of each representation, (N,), 0 or more; gradients flow into ``e`` alone.

        Args:
            e: (N, d).
            noise: ε of the code, (N, q), for a density that has one.
        """

    @property
    @abstractmethod
    def code(self) -> int:
        """Dimensions q of the code that noise is drawn for; 0 without a code."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return what a state keeps, on the CPU."""

    @abstractmethod
    def to(self, like: Tensor) -> Density:
        """Return it on a tensor's device, in its type."""


class Autoencoded(Density):
    """m(e) = ‖e' − dec(z)‖², e' the standardised representation and z drawn from its code.

    Args:
        net: fitted; its weights are frozen.
        scale: of the representations.
    """

    kind: ClassVar[str] = "vae"

    def __init__(self, net: GaussianVAE, scale: Scale) -> None:
        self.net, self.scale = net.requires_grad_(False), scale

    @property
    def code(self) -> int:
        """Dimensions of the code."""
        first = self.net.decoder[0]
        assert isinstance(first, nn.Linear)
        return first.in_features

    def errors(self, e: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the squared error of each representation, rebuilt from a drawn code."""
        assert noise is not None
        at = self.scale(e)
        coded: Coded = self.net(at, noise)
        return (at - coded.rebuilt).square().sum(dim=1)

    def tensors(self) -> dict[str, Tensor]:
        """Return weights and scale."""
        weights = {name: value.detach().cpu().clone() for name, value in self.net.state_dict().items()}
        return weights | {"shift": self.scale.shift.cpu(), "width": self.scale.width.cpu()}

    def to(self, like: Tensor) -> Autoencoded:
        """Return it on a tensor's device, in its type."""
        return Autoencoded(self.net.to(like.device, like.dtype), self.scale.to(like))


class Gaussian(Density):
    """m(e) = Σ_j (e_j − μ_j)² / σ_j², the squared Mahalanobis distance to a Gaussian with independent dimensions.

    Args:
        scale: μ and σ of the representations.
    """

    kind: ClassVar[str] = "gaussian"
    code = 0

    def __init__(self, scale: Scale) -> None:
        self.scale = scale

    def errors(self, e: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the squared distance of each representation."""
        return self.scale(e).square().sum(dim=1)

    def tensors(self) -> dict[str, Tensor]:
        """Return μ and σ."""
        return {"shift": self.scale.shift.cpu(), "width": self.scale.width.cpu()}

    def to(self, like: Tensor) -> Gaussian:
        """Return it on a tensor's device, in its type."""
        return Gaussian(self.scale.to(like))


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a density is fitted.

    Args:
        kind: ``vae`` or ``gaussian``.
        q: dimensions of the code.
        beta: weight of the divergence.
        epochs: over the representations.
        lr: of Adam.
        size: representations a step.
        out: of the decoder.
        inside: see `divergences`.
        standardise: whether the autoencoder works on standardised representations.
    """

    kind: str = "vae"
    q: int = 8
    beta: float = 0.025
    epochs: int = 10
    lr: float = 1e-3
    size: int = 32
    out: Literal["linear", "sigmoid"] = "linear"
    inside: float = 0.0
    standardise: bool = True


def fitted(
    rows: Tensor,
    how: Fit,
    seed: int,
    *,
    scale: Scale | None = None,
    record: Callable[[float, int], None] | None = None,
) -> Density:
    """Fit a density to representations.

    The same rows, settings and seed give the same density, whatever was drawn before.

    Args:
        rows: (N, d), detached.
        how: the settings.
        seed: of the autoencoder's first weights, the order of its batches and its noise.
        scale: of the autoencoder's inputs, instead of the rows' own.
        record: called with the mean loss of each epoch and the number of steps so far.

    Returns:
        The density, on the rows' device and in their type.

    Raises:
        NotFinite: the loss is NaN or infinite.
    """
    if how.kind == "gaussian":
        return Gaussian(Scale.of(rows))
    scale = (Scale.of(rows) if how.standardise else Scale.none(rows)) if scale is None else scale.to(rows)
    with isolated_rng(named_seed("vae", seed)), torch.enable_grad():
        net = GaussianVAE(rows.shape[1], how.q, out=how.out).to(rows.dtype).to(rows.device)
        optimizer = torch.optim.Adam(net.parameters(), lr=how.lr, fused=True)
        at, steps = scale(rows), 0
        for _ in range(how.epochs):
            total = 0.0
            for index in batch_orders(how.size, torch.randperm(len(at))):
                e = at[torch.as_tensor(index, device=at.device)]
                loss = vae_loss(e, net(e, torch.randn(len(e), how.q, dtype=e.dtype).to(e.device)), how.beta, how.inside)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total, steps = total + float(loss.detach()) * len(e), steps + 1
            if not math.isfinite(total):
                remedy = "lower vae_lr, or look at the representations' size"
                raise NotFinite("a finite loss of the autoencoder", f"{total} after {steps} steps", remedy)
            if record is not None:
                record(total / len(at), steps)
        optimizer.zero_grad(set_to_none=True)
    return Autoencoded(net, scale)


def read(tensors: Mapping[str, Tensor], how: Fit) -> Density:
    """Return the density that a state keeps.

    Args:
        tensors: as `Density.tensors` gave them.
        how: the settings that it was fitted with.

    Raises:
        Incompatible: the tensors are of another density.
    """
    values: dict[str, Any] = {name: tensors[name] for name in tensors}
    if not {"shift", "width"} <= values.keys():
        raise Incompatible("a density of representations in the state", "none", "prepare anew")
    check_finite(values, "the density in the state", "prepare anew")
    scale = Scale(values.pop("shift"), values.pop("width"))
    if how.kind == "gaussian":
        return Gaussian(scale)
    net = GaussianVAE(len(scale.shift), how.q, out=how.out).to(scale.shift.dtype)
    try:
        net.load_state_dict(values)
    except RuntimeError as error:
        want = f"an autoencoder of {len(scale.shift)} and {how.q} dimensions in the state"
        raise Incompatible(want, "another", "prepare anew") from error
    return Autoencoded(net, scale)
