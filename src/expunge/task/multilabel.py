"""Several labels a sample, each of them there or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.data import Batch
from expunge.errors import Misfit
from expunge.task._base import check_zero_one, run


@dataclass(frozen=True)
class MultiLabel:
    """K labels, each there or not: outputs are logits (B, K), targets 0 or 1 (B, K), loss the mean over the labels.

    The loss of a sample is 1/K Σ_k −ln σ(±z_k) in nats a label. The labels exclude nothing, so there are no classes.
    """

    def forward(self, model: nn.Module, batch: Batch, taps: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits (B, K) and taps."""
        return run(model, batch, taps)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean binary cross-entropy over the labels of each sample, (B,), in nats."""
        return F.binary_cross_entropy_with_logits(outputs, target.to(outputs.dtype), reduction="none").mean(dim=1)

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return 1 for every label of a probability above one half, else 0, (B, K)."""
        return (outputs > 0).long()

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probability of every label, (B, K), in float64; rows do not sum to one."""
        return outputs.double().sigmoid()

    def sample_target(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Draw every label by itself with its probability, (B, K)."""
        p = outputs.detach().double().sigmoid().cpu()
        return torch.bernoulli(p, generator=generator).long().to(outputs.device)

    def check(self, outputs: Tensor, target: Tensor) -> None:
        """Refuse outputs that are not (B, K), and targets that are not a 0 or 1 for every one of the K labels.

        Raises:
            Misfit: says which of the two.
        """
        if outputs.dim() != 2:
            raise Misfit("logits of shape (B, K)", str(tuple(outputs.shape)), "wrap the model so that it returns them")
        if target.shape != outputs.shape:
            got = f"{tuple(target.shape)} for logits {tuple(outputs.shape)}"
            raise Misfit("one 0 or 1 for every label, of shape (B, K)", got, "make labels and the last layer agree")
        check_zero_one(target)
