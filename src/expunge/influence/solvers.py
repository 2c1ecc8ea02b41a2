"""Solve (C + D)·x = v for a symmetric C known by its products and a diagonal D of damping; all told alike."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg
from torch import Tensor

from expunge.errors import NotFinite, UserError
from expunge.influence.products import Operator

MOST = 5000  # scalars for which a matrix is formed
COLUMNS = 64  # of it that are taken from one pass
POWER = 20  # iterations for the largest eigenvalue
GROWN = 1e3  # times ‖v‖, at which a LiSSA step says that the iteration diverges
REMEDY = "raise the damping, or take the curvature gauss_newton, which is never indefinite"
Damping = float | Tensor


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Args:
        x: (p,) float64.
        residual: ‖(C + D)·x − v‖, computed anew at the end.
        iterations: taken.
        done: whether what was asked for is reached; False where the iterations ran out before.
    """

    x: Tensor = field(repr=False)
    residual: float
    iterations: int
    done: bool = True


class Solver(Protocol):
    """Solves (C + D)·x = v."""

    def solve(self, operator: Operator, v: Tensor, damping: Damping = 0.0) -> Solution:
        """Return x, its residual and the iterations taken.

        Args:
            operator: C.
            v: (p,) float64.
            damping: D ≥ 0, one number or one for each entry, (p,).
        """
        ...


@runtime_checkable
class Sampled(Protocol):
    """A matrix that is a sum over samples, and can be estimated from some of them."""

    @property
    def count(self) -> int:
        """Samples."""

    def estimate(self, vector: Tensor, at: NDArray[np.int64]) -> Tensor:
        """Return C·v as the samples at these positions have it."""
        ...


def times(operator: Operator, v: Tensor, damping: Damping) -> Tensor:
    """Return (C + D)·v."""
    return operator.products(v[None])[0] + damping * v


def closed(operator: Operator, v: Tensor, damping: Damping, x: Tensor, iterations: int, done: bool = True) -> Solution:
    """Return a solution with its residual."""
    gap = float(torch.linalg.vector_norm(times(operator, x, damping) - v))
    if not math.isfinite(gap):
        raise NotFinite("a finite solution", "NaN or infinity", "raise the damping, and check data and weights")
    return Solution(x, gap, iterations, done)


@dataclass(frozen=True)
class Direct:
    """Form C + D column by column and factor it (Cholesky): exact, and the oracle of the others.

    Args:
        most: the largest p; beyond it memory is p² and the work p³.
    """

    most: int = MOST

    def solve(self, operator: Operator, v: Tensor, damping: Damping = 0.0) -> Solution:
        """Return the exact solution.

        Raises:
            UserError: too many parameters, or C + D is not positive definite.
        """
        p = operator.size
        if p > self.most:
            remedy = "name fewer layers, or take the solver cg"
            raise UserError(f"at most {self.most:,} parameters for the solver direct", f"{p:,}", remedy)
        rows = []
        for start in range(0, p, COLUMNS):
            some = torch.arange(start, min(start + COLUMNS, p), device=v.device)
            unit = torch.zeros(len(some), p, dtype=torch.float64, device=v.device)
            unit[torch.arange(len(some)), some] = 1
            rows.append(operator.products(unit).cpu())
        matrix = torch.cat(rows)
        matrix = (matrix + matrix.T) / 2
        matrix.diagonal().add_(damping.cpu() if isinstance(damping, Tensor) else damping)
        try:
            factor = linalg.cho_factor(matrix.numpy(), lower=True)
        except linalg.LinAlgError as error:
            raise UserError("curvature that is positive definite", "one that is not", REMEDY) from error
        x = torch.from_numpy(linalg.cho_solve(factor, v.cpu().numpy())).to(v)
        return closed(operator, v, damping, x, 1)


@dataclass(frozen=True)
class CG:
    """Conjugate gradients: one product with C an iteration, exact after p of them but for rounding.

    Stops once ‖r‖ ≤ max(rtol·‖v‖, atol).

    Args:
        rtol: of ‖v‖.
        atol: of itself.
        most: iterations; 10·p at most.

    References:
        M. R. Hestenes, E. Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952,
        https://doi.org/10.6028/jres.049.044.
    """

    rtol: float = 1e-4
    atol: float = 1e-6
    most: int = 1000

    def solve(self, operator: Operator, v: Tensor, damping: Damping = 0.0) -> Solution:
        """Return the solution, or where the iterations ended.

        Raises:
            UserError: a direction p of no or negative curvature, pᵀ(C + D)p ≤ 0.
            NotFinite: the curvature is NaN or infinite.
        """
        x, r, p = torch.zeros_like(v), v.clone(), v.clone()
        square = float(r @ r)
        goal = max(self.rtol * math.sqrt(square), self.atol) ** 2
        iterations = 0
        while square > goal and iterations < min(self.most, 10 * len(v)):
            along = times(operator, p, damping)
            bend = float(p @ along)
            if not math.isfinite(bend):
                raise NotFinite("finite curvature", f"{bend} in iteration {iterations + 1}", "check data and weights")
            if bend <= 0:
                got = f"pᵀCp = {bend / float(p @ p):.3g}·pᵀp in iteration {iterations + 1}"
                raise UserError("curvature above 0 in every direction, for the solver cg", got, REMEDY)
            rate = square / bend
            x += rate * p
            r -= rate * along
            before, square = square, float(r @ r)
            p = r + square / before * p
            iterations += 1
        return closed(operator, v, damping, x, iterations, square <= goal)


@dataclass(frozen=True)
class Lissa:
    """LiSSA: u₀ = v, u ← v + (1 − d)·u − (C + D)u/s, x = u/s, whose limit is (C + D + s·d·I)⁻¹v.

    Converges where every eigenvalue of (C + D)/s + d·I is between 0 and 2. With ``batch`` an iteration sees C as that
    many samples have it, drawn anew. Stops once the step, which is the residual, is ≤ rtol·‖v‖. The ``residual`` told
    is of C + D without s·d, by all samples.

    Args:
        depth: iterations at most.
        scale: s; None takes the largest eigenvalue of C + D, by twenty power iterations, and a tenth more.
        shrink: d.
        rtol: of ‖v‖.
        batch: samples an iteration; None for all.
        seed: of their draw.

    References:
        N. Agarwal, B. Bullins, E. Hazan, "Second-Order Stochastic Optimization for Machine Learning in Linear Time",
        2017, https://jmlr.org/papers/v18/16-491.html.
    """

    depth: int = 1000
    scale: float | None = None
    shrink: float = 0.0
    rtol: float = 1e-4
    batch: int | None = None
    seed: int = 0

    def solve(self, operator: Operator, v: Tensor, damping: Damping = 0.0) -> Solution:
        """Return where the iteration ended.

        Raises:
            UserError: it diverges.
        """
        size = float(torch.linalg.vector_norm(v))
        if size == 0:
            return closed(operator, v, damping, torch.zeros_like(v), 0)
        s = self.scale or 1.1 * largest(operator, damping, v, self.seed)
        if not s > 0:
            raise UserError("curvature above 0 for the solver lissa", f"{s:.3g} at the most", REMEDY)
        draw = np.random.default_rng(self.seed)
        u, now, iterations = v.clone(), math.inf, 0
        while now > self.rtol * size and iterations < self.depth:
            step = v - self.shrink * u - self._seen(operator, u, damping, draw) / s
            u += step
            iterations += 1
            now = float(torch.linalg.vector_norm(step))
            if not now <= GROWN * size:
                low = float(u @ times(operator, u, damping)) <= 0 if math.isfinite(now) else False
                remedy = REMEDY if low else f"raise the scale (now {s:.3g}) or the damping"
                got = f"one of {now / size:.3g}·‖v‖ in iteration {iterations}"
                raise UserError("steps of the solver lissa that shrink", got, remedy)
        return closed(operator, v, damping, u / s, iterations, now <= self.rtol * size)

    def _seen(self, operator: Operator, u: Tensor, damping: Damping, draw: np.random.Generator) -> Tensor:
        if self.batch is None or not isinstance(operator, Sampled) or self.batch >= operator.count:
            return times(operator, u, damping)
        at = np.sort(draw.choice(operator.count, self.batch, replace=False))
        return operator.estimate(u, at) + damping * u


def largest(operator: Operator, damping: Damping, like: Tensor, seed: int = 0) -> float:
    """Return the eigenvalue of C + D of largest size, from below, by power iterations from a drawn vector.

    Args:
        operator: C.
        damping: D.
        like: a vector, for size and device.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(len(like), generator=generator, dtype=torch.float64).to(like)
    found = 0.0
    for _ in range(POWER):
        q = q / torch.linalg.vector_norm(q)
        along = times(operator, q, damping)
        found = float(torch.linalg.vector_norm(along))
        if not found > 0:
            break
        q = along
    return found
