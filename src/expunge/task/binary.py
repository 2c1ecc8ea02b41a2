"""One of two classes, told by a single logit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.data import Batch
from expunge.errors import Misfit
from expunge.task._base import as_columns, check_zero_one, run


@dataclass(frozen=True)
class Binary:
    """One of two classes: outputs are one logit z (B, 1), targets 0 or 1 (B,), loss −ln σ(±z) in nats.

    Targets may be integers, bools or floats 0.0 and 1.0. The class logits are (0, z), so that the softmax of them
    is (1 − σ(z), σ(z)) and the loss is their cross-entropy: a two-class classification in the other form.
    """

    def forward(self, model: nn.Module, batch: Batch, taps: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits (B, 1) and taps; (B,) becomes (B, 1)."""
        outputs, found = run(model, batch, taps)
        return as_columns(outputs), found

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the binary cross-entropy of each sample, (B,), in nats."""
        logit = outputs.flatten()
        return F.binary_cross_entropy_with_logits(logit, target.flatten().to(logit.dtype), reduction="none")

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return the class of the larger probability, (B,); 0 where both are one half."""
        return (outputs.flatten() > 0).long()

    def class_logits(self, outputs: Tensor) -> Tensor:
        """Return the logits (0, z) of the two classes, (B, 2)."""
        logit = outputs.reshape(-1, 1)
        return torch.cat([torch.zeros_like(logit), logit], dim=1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probabilities (1 − σ(z), σ(z)), (B, 2), in float64."""
        return self.class_logits(outputs.double()).softmax(dim=1)

    def sample_target(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a class from the probabilities of each sample, (B,)."""
        p = outputs.detach().double().flatten().sigmoid().cpu()
        return torch.bernoulli(p, generator=generator).long().to(outputs.device)

    def check(self, outputs: Tensor, target: Tensor) -> None:
        """Refuse outputs that are not one logit a sample, and targets that are not one 0 or 1 a sample.

        Raises:
            Misfit: says which of the two.
        """
        if outputs.dim() not in (1, 2) or outputs.shape[1:] not in ((), (1,)):
            remedy = "end the network in one unit, or use Classification for one logit a class"
            raise Misfit("one logit a sample, (B,) or (B, 1)", str(tuple(outputs.shape)), remedy)
        if target.shape != outputs.shape[:1]:
            got = f"{tuple(target.shape)} for {len(outputs)} samples"
            raise Misfit("one target a sample, of shape (B,)", got, "pass one column of 0 and 1")
        check_zero_one(target)
