"""Adaptive selective synaptic dampening: SSD whose threshold follows from how much is forgotten."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.fisher import Diagonal, Quantity
from expunge.method import Reference, See, Session, option
from expunge.methods._dampen import Dampener, movable

BELOW = 1 - 1e-5
"""Ratios within this factor of the bound n/n_f are of weights that only the forget set moves, up to rounding."""


def percentile(forgotten: int, samples: int) -> float:
    """Return q = 100 − ln(1 + 100·n_f/n), the percentile of the ratios that α is set to.

    Args:
        forgotten: n_f.
        samples: n, the forgotten among them.

    >>> round(percentile(5, 100), 6)
    98.208241
    """
    return 100 - math.log1p(100 * forgotten / samples)


def ratios(forget: Diagonal, reference: Diagonal, free: Mapping[str, Tensor] | None = None) -> NDArray[np.float64]:
    """Return I_f/I_D of all weights that have one: not 0/0, and not x/0.

    Args:
        forget: the forget set's diagonal.
        reference: the training set's.
        free: by parameter a bool tensor, True where the weight may move; those without one are all free.

    Returns:
        The ratios, in float64, in no particular order; eight bytes a weight.
    """
    parts = []
    for name, total in reference.sums.items():
        above, below = forget.sums[name].cpu().double(), total.cpu().double()
        ratio = (above / below) * (reference.count / forget.count)
        there = torch.isfinite(ratio)
        if free is not None and name in free:
            there &= free[name].cpu()
        parts.append(ratio[there].numpy())
    return np.concatenate(parts)


def threshold(found: NDArray[np.float64], q: float, eps: float) -> float:
    """Return the q-th percentile by linear interpolation, just above it where rounding could select a tie.

    Args:
        found: the ratios; their order is changed. May be empty, which gives 0.
        q: percent.
        eps: relative rounding of the importances that are compared with it.

    Returns:
        α. Selection is strict: weights whose ratio equals α are not selected.
    """
    if not found.size:
        return 0.0
    return float(np.percentile(found, q, overwrite_input=True)) * (1 + 4 * eps)


@dataclass(frozen=True, kw_only=True)
class ASSD(Dampener):
    """Dampen as SSD does with λ = 1 and one α for all weights, the percentile of their ratios that n_f/n gives.

    α = the (100 − ln(1 + 100·n_f/n))-th percentile of all finite ratios I_f,i / I_D,i, by linear interpolation;
    θ_i ← min(I_D,i / I_f,i, 1)·θ_i where I_f,i > α·I_D,i.

    So the number of weights is set, not how extreme they are: 1.8 % of them where a twentieth is forgotten, 0.7 % for
    a hundredth. I is SSD's exact importance, the mean over samples of the squared per-sample gradient of the loss.
    Weights with I_D = 0 have no finite ratio: they do not count in the percentile, but are selected, and zeroed, where
    I_f > 0. Ties at α are not selected. There is one exception: weights that only the forget set moves all have the
    ratio n/n_f up to rounding, the largest there is. Where α would be that, all of these are selected, however many.

    Needs labels of the training set once, and of the forget set. Passes: the training set once to prepare, the forget
    set once to unlearn. Works for any task. The published code squares the mean gradient of batches of 1024 samples
    instead, which depends on their order, and takes the retain set for I_D: the order of the exact ratios is the same
    there, and so are the weights selected, but each is dampened more.
    """

    distributed: ClassVar[bool] = True
    prepared_by: ClassVar[frozenset[str] | None] = frozenset()  # the importance has no settings
    of: ClassVar[Quantity] = "loss"
    sight = See.LABELLED
    dampening = 1.0
    reference: ClassVar[Reference] = Reference(
        "Parameter-tuning-free data entry error unlearning with adaptive selective synaptic dampening",
        "Stefan Schoepf and Jack Foster and Alexandra Brintrup",
        2024,
        "https://arxiv.org/abs/2402.10098",
    )
    example: ClassVar[dict[str, object]] = {}

    unseen: Literal["zero", "skip"] = option(
        "zero", unit="-", text="what to do with weights of importance 0 on the training set: zero or skip"
    )
    refresh: bool = option(
        False, unit="-", text="recompute the stored importance after the edit from retain data, which it then needs"
    )

    def _alpha(self, session: Session, stored: Diagonal, forget: Diagonal) -> float:
        q = percentile(forget.count, stored.count)
        session.record("percentile", q)
        each = [s.dtype for one in (stored, forget) for s in one.sums.values()]
        alpha = threshold(ratios(forget, stored, movable(session)), q, max(torch.finfo(dtype).eps for dtype in each))
        bound = stored.count / forget.count * BELOW
        if stored.at != forget.at or alpha < bound:
            return alpha
        text = f"More than {100 - q:.3g} % of the weights matter for the forget set alone: all of them were dampened."
        session.record("note", text)
        return bound

    def _nothing(self, session: Session, stored: Diagonal, forget: Diagonal, alpha: float) -> str:
        return (
            f"No weight had an importance ratio above the percentile, α = {alpha:g}, which is also the largest: "
            "nothing was changed. SSD takes a threshold of your own."
        )


METHOD = ASSD
