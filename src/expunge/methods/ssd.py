"""Selective synaptic dampening, with the exact per-sample importance or the published mean over batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from expunge.fisher import Quantity
from expunge.method import Reference
from expunge.methods._dampen import Dampening, Importance


@dataclass(frozen=True, kw_only=True)
class SSD(Dampening):
    """Dampen weights by their loss importance: θ_i ← min(λ·I_D,i / I_f,i, 1)·θ_i where I_f,i > α·I_D,i.

    I is the mean over samples of the squared per-sample gradient of the loss, in eval mode. I_D is taken once, by
    `prepare`; the training data may then be thrown away. No ratio exceeds n/n_f, so an α at or above it selects
    nothing. The published code squares the mean gradient of each batch instead, which is ``importance="batch_mean"``;
    its α does not transfer. See `expunge.methods._dampen.Dampening` for the order of the batches.
    """

    quantities: ClassVar[Mapping[Importance, Quantity]] = {"exact": "loss", "batch_mean": "batch_mean"}
    distributed: ClassVar[bool] = True
    reference: ClassVar[Reference] = Reference(
        "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening",
        "Jack Foster and Stefan Schoepf and Alexandra Brintrup",
        2024,
        "https://arxiv.org/abs/2308.07707",
        "AAAI",
    )
    example: ClassVar[dict[str, object]] = {"alpha": 1.5}


METHOD = SSD
