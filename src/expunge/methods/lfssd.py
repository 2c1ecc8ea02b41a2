"""Loss-free, label-free selective synaptic dampening."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from expunge.fisher import Quantity
from expunge.method import Reference
from expunge.methods._dampen import Dampening, Importance


@dataclass(frozen=True, kw_only=True)
class LFSSD(Dampening):
    """Dampen weights as SSD does, with Ω_i = mean over samples of |∂‖f(x)‖²/∂θ_i| as importance; no labels anywhere.

    f are the raw outputs. Ω is first-power, so an α tuned for SSD's squares does not carry over. With
    ``importance="batch_mean"`` it is |∂ mean ‖f‖² /∂θ_i| of each batch, averaged over batches: signs cancel inside a
    batch, as in the published recipe. Its ``order="label"`` reads labels, for the order of the samples alone.
    """

    quantities: ClassVar[Mapping[Importance, Quantity]] = {"exact": "output_norm", "batch_mean": "batch_mean_norm"}
    distributed: ClassVar[bool] = True
    reference: ClassVar[Reference] = Reference(
        "Loss-Free Machine Unlearning",
        "Jack Foster and Stefan Schoepf and Alexandra Brintrup",
        2024,
        "https://arxiv.org/abs/2402.19308",
        "ICLR Tiny Papers",
    )
    example: ClassVar[dict[str, object]] = {"alpha": 1.2}


METHOD = LFSSD
