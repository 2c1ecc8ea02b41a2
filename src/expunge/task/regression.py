"""Real targets, one or several a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.data import Batch
from expunge.errors import UserError
from expunge.task._base import as_columns, check_real, run

ERRORS = ("squared", "absolute")


@dataclass(frozen=True)
class Regression:
    """Real targets: outputs (B,) or (B, T), loss the mean over T of squared or absolute errors.

    Args:
        error: ``squared`` gives (f − y)², ``absolute`` |f − y|.

    Raises:
        UserError: another error.
    """

    error: Literal["squared", "absolute"] = "squared"

    def __post_init__(self) -> None:
        if self.error not in ERRORS:
            raise UserError(f"error as {' or '.join(ERRORS)}", repr(self.error), "name one of the two")

    def forward(self, model: nn.Module, batch: Batch, taps: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Return predictions (B, T) and taps; (B,) becomes (B, 1)."""
        outputs, found = run(model, batch, taps)
        return as_columns(outputs), found

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the error of each sample, (B,), in squared or plain target units."""
        gap = outputs - target.reshape(outputs.shape).to(outputs.dtype)
        each = gap.square() if self.error == "squared" else gap.abs()
        return each.unsqueeze(-1).flatten(1).mean(dim=1)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return the outputs, (B, T)."""
        return outputs

    def sample_target(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Draw targets from the density whose negative logarithm is the loss times T, up to a constant.

        Squared error: a normal with mean f and variance 1/2. Absolute error: a Laplace with location f, scale 1.

        Returns:
            Targets in the outputs' shape.
        """
        noise: Tensor
        shape = outputs.shape
        if self.error == "squared":
            noise = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.5**0.5
        else:
            u = torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5
            noise = -u.sign() * torch.log1p(-2 * u.abs())
        return outputs.detach() + noise.to(outputs)

    def check(self, outputs: Tensor, target: Tensor) -> None:
        """Refuse targets that are not finite real numbers of the outputs' shape.

        Raises:
            Misfit: says what they are.
        """
        check_real(tuple(outputs.shape), target)
