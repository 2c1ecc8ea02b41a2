"""Loss-free, label-free selective synaptic dampening."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from expunge.fisher import Quantity
from expunge.method import Reference
from expunge.methods._dampen import Dampening


@dataclass(frozen=True, kw_only=True)
class LFSSD(Dampening):
    """Dampen weights as SSD does, with Ω_i = mean over samples of |∂‖f(x)‖²/∂θ_i| as importance; no labels anywhere.

    f are the raw outputs. Ω is first-power, so an α tuned for SSD's squares does not carry over.
    """

    distributed: ClassVar[bool] = True
    reference: ClassVar[Reference] = Reference(
        "Loss-Free Machine Unlearning",
        "Jack Foster and Stefan Schoepf and Alexandra Brintrup",
        2024,
        "https://arxiv.org/abs/2402.19308",
        "ICLR Tiny Papers",
    )
    example: ClassVar[dict[str, object]] = {"alpha": 1.2}

    @property
    def of(self) -> Quantity:
        """The squared norm of the outputs."""
        return "output_norm"


METHOD = LFSSD
