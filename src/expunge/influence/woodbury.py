"""Solve with the empirical Fisher information by its low rank: the exact dual form, and what published code does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy import linalg
from torch import Tensor

from expunge.errors import UserError
from expunge.influence.gram import Gradients
from expunge.influence.products import Operator
from expunge.influence.solvers import Damping, Solution, closed


class LowRank:
    """C = c·GᵀG of per-sample gradients G (N, p); c = 1/N gives the empirical Fisher information.

    Args:
        rows: G.
        weight: c; None for 1/N.
    """

    def __init__(self, rows: Gradients, weight: float | None = None) -> None:
        self.rows, self.weight = rows, 1 / len(rows) if weight is None else weight

    @property
    def size(self) -> int:
        """The number p of scalars."""
        return self.rows.size

    def products(self, columns: Tensor) -> Tensor:
        """Return C·v of each row."""
        return torch.stack([self.weight * self.rows.combine(self.rows.apply(v)) for v in columns])


def _low(operator: Operator, solver: str) -> LowRank:
    if not isinstance(operator, LowRank):
        remedy = "take the curvature fisher, or another solver"
        raise UserError(f"per-sample gradients for the solver {solver}", f"{type(operator).__name__} curvature", remedy)
    return operator


@dataclass(frozen=True)
class Woodbury:
    """The dual form: x = D⁻¹[v − Gᵀ(I/c + G·D⁻¹·Gᵀ)⁻¹·G·D⁻¹v], exact, an N×N solve.

    With D = δI and c = 1/N it is δ⁻¹[v − Gᵀ(NδI + GGᵀ)⁻¹Gv], the inverse of F = δI + (1/N)·Σ g_i·g_iᵀ.

    References:
        S. P. Singh, D. Alistarh, "WoodFisher: Efficient Second-Order Approximation for Neural Network Compression",
        2020, https://arxiv.org/abs/2004.14340.
    """

    def solve(self, operator: Operator, v: Tensor, damping: Damping = 0.0) -> Solution:
        """Return the exact solution.

        Raises:
            UserError: damping that is not above 0 or too small for the numbers' range, or curvature that is no
                `LowRank`.
        """
        low = _low(operator, "woodbury")
        d = damping if isinstance(damping, Tensor) else torch.full_like(v, damping)
        if not bool((d > 0).all()):
            got = f"{float(d.min()):g}"
            raise UserError("damping above 0 for the solver woodbury", got, "give some: F alone has no inverse")
        inner = low.rows.gram(1 / d).cpu()
        inner.diagonal().add_(1 / low.weight)
        right = low.rows.apply(v / d).cpu()
        try:
            a = linalg.cho_solve(linalg.cho_factor(inner.numpy(), lower=True), right.numpy())
        except (linalg.LinAlgError, ValueError) as error:  # rounding leaves it indefinite, or 1/D overflows
            want, got = "damping that rounding does not swallow, for the solver woodbury", f"{float(d.min()):g}"
            raise UserError(want, got, "raise it") from error
        x = (v - low.rows.combine(torch.from_numpy(a).to(v))) / d
        return closed(operator, v, damping, x, 1)


@dataclass(frozen=True)
class Compat:
    """What published code computes in place of F⁻¹v, to reproduce it: v − κ·g₁, g₁ the gradient of the first sample.

    That code keeps one running vector o instead of all: o = g₁, and with each later gradient g, q = oᵀg,
    k ← k − o·(kᵀg)/(N + q), o ← o − o·q/(N + q), from k = v. As o is only ever rescaled it stays parallel to g₁, so all
    that the other gradients decide is the number κ. No damping enters, and the residual is that of no inverse.

    Args:
        divisor: N; published, 1,000, whatever number of samples is read.

    References:
        J. Jia et al., "Model Sparsity Can Simplify Machine Unlearning", 2023, https://arxiv.org/abs/2304.04934 (its
        released code).
    """

    divisor: int = 1000

    def solve(self, operator: Operator, v: Tensor, damping: Damping = 0.0) -> Solution:
        """Return v − κ·g₁; the residual is of (C + D)·x = v, which it does not solve.

        Raises:
            UserError: curvature that is no `LowRank`.
        """
        low = _low(operator, "compat")
        unit = torch.zeros(len(low.rows), dtype=torch.float64, device=v.device)
        unit[0] = 1
        first = low.rows.combine(unit)
        with_v, with_first = low.rows.apply(v).tolist(), low.rows.apply(first).tolist()
        kappa, c = 0.0, 1.0  # k = v − κ·g₁, o = c·g₁
        for dot_v, dot_first in zip(with_v[1:], with_first[1:], strict=True):
            q = c * dot_first
            kappa += c * (dot_v - kappa * dot_first) / (self.divisor + q)
            c -= c * q / (self.divisor + q)
        return closed(operator, v, damping, v - kappa * first, len(low.rows), done=False)
