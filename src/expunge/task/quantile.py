"""Quantiles of a real target, as forecasts give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from expunge.data import Batch
from expunge.errors import Misfit, UserError
from expunge.task._base import as_columns, check_real, run

TINY = 2**-60  # in place of a uniform number that is exactly 0


@dataclass(frozen=True)
class Quantile:
    """Quantiles of a real target: outputs (B, Q), or (B, T, Q) for T steps; targets (B,) or (B, T).

    The loss of a sample is the pinball loss summed over the quantiles, mean over the steps:
    1/T Σ_t Σ_q max(q·(y_t − f_tq), (q − 1)·(y_t − f_tq)), in target units.

    Args:
        quantiles: the Q levels, each between 0 and 1, rising.

    Raises:
        UserError: no levels, or levels that are not between 0 and 1 and rising.

    Source:
        Roger Koenker and Gilbert Bassett, Regression Quantiles, 1978, https://doi.org/10.2307/1913643.
    """

    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)

    def __post_init__(self) -> None:
        remedy = "write for example 0.1, 0.5, 0.9"
        try:
            levels = tuple(float(q) for q in self.quantiles)
        except (TypeError, ValueError) as error:
            raise UserError("quantiles as several numbers", repr(self.quantiles), remedy) from error
        object.__setattr__(self, "quantiles", levels)
        if not levels or not all(0 < q < 1 for q in levels) or any(a >= b for a, b in pairwise(levels)):
            raise UserError("quantiles between 0 and 1, rising", str(list(levels)), remedy)

    @property
    def middle(self) -> int:
        """Return the place of the level nearest to one half, the lower of two."""
        return min(range(len(self.quantiles)), key=lambda n: round(abs(self.quantiles[n] - 0.5), 12))

    def forward(self, model: nn.Module, batch: Batch, taps: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the quantiles (B, Q) or (B, T, Q) and taps; (B,) becomes (B, 1)."""
        outputs, found = run(model, batch, taps)
        return as_columns(outputs), found

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the pinball loss of each sample, (B,), in target units."""
        gap = target.reshape(outputs.shape[:-1]).to(outputs.dtype).unsqueeze(-1) - outputs
        levels = outputs.new_tensor(self.quantiles)
        return torch.maximum(levels * gap, (levels - 1) * gap).sum(dim=-1).reshape(len(outputs), -1).mean(dim=1)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return the quantile nearest to the median, (B,) or (B, T)."""
        return outputs[..., self.middle]

    def sample_target(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Draw targets whose quantiles are the predicted ones, by the inverse of their distribution function.

        Between two levels the inverse is linear; beyond the first and the last level it goes on with the slope of the
        nearest piece. Quantiles that cross are sorted first. A single level q has no spread: there the draw is from
        the density whose negative logarithm is the loss times T, up to a constant, an asymmetric Laplace around f.

        Returns:
            Targets of shape (B,) or (B, T).
        """
        values = outputs.detach().double().cpu().sort(dim=-1).values
        u = torch.rand(values.shape[:-1], generator=generator, dtype=torch.float64)
        if len(self.quantiles) == 1:
            q = self.quantiles[0]
            below, above = (u.clamp_min(TINY) / q).log() / (1 - q), -((1 - u) / (1 - q)).log() / q
            return (values[..., 0] + torch.where(u < q, below, above)).to(outputs)
        levels = torch.tensor(self.quantiles, dtype=torch.float64)
        piece = torch.bucketize(u, levels[1:-1])
        low, high = (values.gather(-1, (piece + n).unsqueeze(-1)).squeeze(-1) for n in (0, 1))
        share = (u - levels[piece]) / (levels[piece + 1] - levels[piece])
        return (low + share * (high - low)).to(outputs)

    def check(self, outputs: Tensor, target: Tensor) -> None:
        """Refuse outputs that do not end in one column a level, and targets that are not finite real numbers.

        Raises:
            Misfit: says which of the two.
        """
        count = len(self.quantiles)
        if outputs.dim() not in (2, 3) or outputs.shape[-1] != count:
            remedy = "end the network in one unit a quantile, or change quantiles"
            raise Misfit(f"outputs (B, {count}) or (B, T, {count})", str(tuple(outputs.shape)), remedy)
        check_real(tuple(outputs.shape[:-1]), target)
