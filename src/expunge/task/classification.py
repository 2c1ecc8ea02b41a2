"""One of K exclusive classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.data import Batch
from expunge.errors import Misfit
from expunge.task._base import run


@dataclass(frozen=True)
class Classification:
    """One of K classes: outputs are logits (B, K), targets class indices (B,), loss −ln softmax(f)_y in nats."""

    def forward(self, model: nn.Module, batch: Batch, taps: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits (B, K) and taps."""
        return run(model, batch, taps)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy of each sample, (B,), in nats."""
        return F.cross_entropy(outputs, target.long(), reduction="none")

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return the class of the largest logit, (B,)."""
        return outputs.argmax(dim=1)

    def class_logits(self, outputs: Tensor) -> Tensor:
        """Return the outputs, (B, K)."""
        return outputs

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return softmax probabilities (B, K) in float64."""
        return outputs.double().softmax(dim=1)

    def sample_target(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a class from the softmax of each sample's logits, (B,)."""
        p = outputs.detach().double().softmax(dim=1).cpu()
        return torch.multinomial(p, 1, generator=generator).squeeze(1).to(outputs.device)

    def check(self, outputs: Tensor, target: Tensor) -> None:
        """Refuse outputs that are not (B, K) and targets that are not class indices in range.

        Raises:
            Misfit: says which of the two.
        """
        if outputs.dim() != 2:
            raise Misfit("logits of shape (B, K)", str(tuple(outputs.shape)), "wrap the model so that it returns them")
        if target.dim() != 1 or target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            got = f"{target.dtype} of shape {tuple(target.shape)}"
            raise Misfit("class indices as integers of shape (B,)", got, "encode classes as 0..K-1")
        low, high, k = int(target.min()), int(target.max()), outputs.shape[1]
        if low < 0 or high >= k:
            bad = low if low < 0 else high
            raise Misfit(f"classes 0 to {k - 1}", f"class {bad}", "check the labels and the model's last layer")
