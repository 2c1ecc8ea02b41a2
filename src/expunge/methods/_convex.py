"""Convex heads in float64: the noisy fit, the Newton removal of rows, bounds on what it leaves, and their budget."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.errors import UserError

Kind = Literal["logistic", "squared"]
LIPSCHITZ = {"logistic": 0.25, "squared": 0.0}  # γ of ℓ″ in the score
STEEPEST = 1.0  # the largest gradient of the logistic loss of a row of norm 1
RESIDUAL = 1e-10  # of the gradient at which a fit is done
STEPS, HALVINGS = 200, 50  # of Newton, and of one of its steps


@dataclass(frozen=True, eq=False)
class Rows:
    """What K linear heads are fitted to: Σ_i u_i·ℓ(w_kᵀx_i + o_k, y_ik) for each head k.

    ℓ(η, y) = ln(1 + e^{−yη}) with y of −1 or 1 (``logistic``), or ½(η − y)² (``squared``).

    Args:
        x: rows (n, d) with ‖x_i‖ ≤ 1, float64.
        y: targets (n, K), float64.
        weight: u of each row (n,), float64.
        offset: o of each head (K,), float64.
        kind: the loss.
    """

    x: Tensor
    y: Tensor
    weight: Tensor
    offset: Tensor
    kind: Kind

    def __len__(self) -> int:
        return len(self.x)

    def take(self, at: Tensor | slice) -> Rows:
        """Return the rows at these positions."""
        return replace(self, x=self.x[at], y=self.y[at], weight=self.weight[at])

    def joined(self, other: Rows) -> Rows:
        """Return these rows and those of another set after them."""
        x, y, weight = (
            torch.cat([a, b]) for a, b in ((self.x, other.x), (self.y, other.y), (self.weight, other.weight))
        )
        return replace(self, x=x, y=y, weight=weight)

    def scores(self, w: Tensor) -> Tensor:
        """Return η = Xwᵀ + o, (n, K), of heads w (K, d)."""
        return self.x @ w.T + self.offset

    def losses(self, w: Tensor) -> Tensor:
        """Return Σ_i u_i·ℓ of each head, (K,)."""
        scores = self.scores(w)
        each = F.softplus(-self.y * scores) if self.kind == "logistic" else 0.5 * (scores - self.y).square()
        return self.weight @ each

    def gradients(self, w: Tensor) -> Tensor:
        """Return Σ_i u_i·∇ℓ of each head, (K, d)."""
        scores = self.scores(w)
        slope = -self.y * torch.sigmoid(-self.y * scores) if self.kind == "logistic" else scores - self.y
        return (self.weight[:, None] * slope).T @ self.x

    def curvature(self, w: Tensor, head: int) -> Tensor:
        """Return Σ_i u_i·∇²ℓ of one head, (d, d)."""
        bend = self.weight
        if self.kind == "logistic":
            p = torch.sigmoid(self.x @ w[head] + self.offset[head])
            bend = bend * p * (1 - p)
        return self.x.T @ (bend[:, None] * self.x)


@dataclass(frozen=True, eq=False)
class Objective:
    """J_k(w) = Σ_i u_i·ℓ(w_kᵀx_i + o_k, y_ik) + (λn/2)‖w_k‖² + b_kᵀw_k, for each of K heads.

    Args:
        rows: the n rows.
        lam: λ.
        noise: b (K, d), or zeros.
    """

    rows: Rows
    lam: float
    noise: Tensor

    @property
    def ridge(self) -> float:
        """λn."""
        return self.lam * len(self.rows)

    def values(self, w: Tensor) -> Tensor:
        """Return J of each head, (K,)."""
        found: Tensor = self.rows.losses(w) + 0.5 * self.ridge * w.square().sum(1) + (self.noise * w).sum(1)
        return found

    def gradients(self, w: Tensor) -> Tensor:
        """Return ∇J of each head, (K, d)."""
        return self.rows.gradients(w) + self.ridge * w + self.noise

    def residual(self, w: Tensor) -> float:
        """Return ‖∇J‖₂ over all heads together."""
        return float(torch.linalg.vector_norm(self.gradients(w)))

    def hessian(self, w: Tensor, head: int) -> Tensor:
        """Return ∇²J of one head, (d, d)."""
        found = self.rows.curvature(w, head)
        found.diagonal().add_(self.ridge)
        return found


def fitted(objective: Objective, start: Tensor | None = None) -> Tensor:
    """Return the heads that minimise the objective, (K, d): Newton steps, halved where they do not descend.

    The objective is strictly convex, so there is one minimum, whatever the start. A fit ends at ‖∇J_k‖ ≤ 1e-10, or
    where rounding lets no step lower it further; `Objective.residual` says what was reached.

    Args:
        objective: what to minimise.
        start: where to begin, (K, d); at 0 by default.
    """
    w = torch.zeros_like(objective.noise) if start is None else start.clone()
    for head in range(len(w)):
        one = replace(
            objective,
            rows=replace(
                objective.rows, y=objective.rows.y[:, head : head + 1], offset=objective.rows.offset[head : head + 1]
            ),
            noise=objective.noise[head : head + 1],
        )
        w[head] = _minimum(one, w[head : head + 1])[0]
    return w


def _minimum(objective: Objective, w: Tensor) -> Tensor:
    for _ in range(STEPS):
        gradient = objective.gradients(w)
        size = float(gradient.norm())
        if size <= RESIDUAL:
            break
        step = solved(objective.hessian(w, 0), gradient[0])[None]
        further = _descended(objective, w, step, gradient, size)
        if further is None:
            break
        w = further
    return w


def _descended(objective: Objective, w: Tensor, step: Tensor, gradient: Tensor, size: float) -> Tensor | None:
    """Return where a step down leads; None where rounding hides the way down."""
    full = w - step
    if float(objective.gradients(full).norm()) <= 0.5 * size:
        return full
    value, fall = float(objective.values(w)), float((gradient * step).sum())
    share = 1.0
    for _ in range(HALVINGS):
        found = w - share * step
        if float(objective.values(found)) < value - 1e-4 * share * fall:
            return found
        share /= 2
    return full if float(objective.gradients(full).norm()) < size else None


def solved(hessian: Tensor, gradient: Tensor) -> Tensor:
    """Return H⁻¹g by Cholesky.

    Args:
        hessian: H (d, d), positive definite.
        gradient: g (d,).

    Raises:
        UserError: rounding leaves H without one.
    """
    factor, failed = torch.linalg.cholesky_ex(hessian)
    if int(failed):
        raise UserError("a Hessian that is positive definite", "one that rounding makes singular", "raise lam")
    return torch.cholesky_solve(gradient[:, None], factor)[:, 0]


def norm(x: Tensor) -> float:
    """Return the spectral norm of rows (n, d), from all eigenvalues of the smaller Gram matrix.

    Power iteration comes to it from below, and would make every bound too small.
    """
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(gram)[-1]))) if len(gram) else 0.0


@dataclass(frozen=True, eq=False)
class Removed:
    """One Newton step that removes rows.

    Args:
        w: the heads after it, (K, d).
        step: H⁻¹Δ of each head, (K, d).
        change: Δ = mλw + Σ u·∇ℓ over the m removed rows, (K, d).
        bound: on ‖∇J(w⁻) − ∇J(w) + Δ‖ over all heads, from the data: γ·‖X‖₂·‖s‖·‖u∘Xs‖ of each, X the rows that stay.
        simple: the same without them: γ·n·‖s‖² of each; never below ``bound`` but for rounding.
    """

    w: Tensor
    step: Tensor
    change: Tensor
    bound: float
    simple: float


def removed(gone: Rows, rest: Rows, w: Tensor, lam: float, largest: float | None = None) -> Removed:
    """Take rows out of the minimum of an objective: w⁻ = w + H⁻¹Δ, H the Hessian at w on the rows that stay.

    Args:
        gone: the m rows to remove.
        rest: the n rows that stay.
        w: heads (K, d) at the minimum on all of them, or near.
        lam: λ.
        largest: an upper bound on ‖X‖₂ of the rows that stay; by default it is worked out.

    Returns:
        The heads, and bounds on what is left of the gradient on the rows that stay, the solver's own error included.

    Raises:
        UserError: the Hessian is singular in rounding.

    References:
        Certified Data Removal from Machine Learning Models, C. Guo, T. Goldstein, A. Hannun, L. van der Maaten, 2020,
        https://arxiv.org/abs/1911.03030
    """
    change = len(gone) * lam * w + gone.gradients(w)
    objective = Objective(rest, lam, torch.zeros_like(w))
    step, errors = torch.empty_like(w), torch.zeros(len(w), dtype=w.dtype)
    for head in range(len(w)):
        hessian = objective.hessian(w, head)
        step[head] = solved(hessian, change[head])
        errors[head] = (hessian @ step[head] - change[head]).norm().cpu()
    gamma = LIPSCHITZ[rest.kind]
    lengths = step.norm(dim=1).cpu()
    moved = (rest.weight[:, None] * (rest.x @ step.T)).norm(dim=0).cpu()
    top = 0.0 if gamma == 0 else norm(rest.x) if largest is None else largest
    heaviest = math.sqrt(len(rest)) * float(rest.weight.norm())
    bound, simple = gamma * top * lengths * moved + errors, gamma * heaviest * lengths.square() + errors
    return Removed(w + step, step, change, float(bound.norm()), float(simple.norm()))


def worst_case(lam: float, n: int) -> float:
    """Return 4γC²/(λ²(n − 1)), the bound of a logistic removal that no data exceeds; rows of norm 1 and weight 1.

    Args:
        lam: λ.
        n: rows before the removal, 2 or more.

    >>> round(worst_case(0.1, 6), 9)
    20.0
    """
    return 4 * LIPSCHITZ["logistic"] * STEEPEST**2 / (lam**2 * (n - 1))


def constant(delta: float) -> float:
    """Return c = √(2 ln(1.5/δ)).

    >>> round(constant(1e-4), 7)
    4.3853861
    """
    return math.sqrt(2 * math.log(1.5 / delta))


def budget(sigma: float, epsilon: float, delta: float) -> float:
    """Return σε/c, the residual up to which (ε, δ) holds.

    >>> round(budget(10, 1, 1e-4), 7)
    2.2803009
    """
    return sigma * epsilon / constant(delta)


def spent(beta: float, sigma: float, delta: float) -> float:
    """Return ε(β) = cβ/σ, what a residual of β has spent.

    >>> round(spent(0.1879809, 1, 1e-4), 6)
    0.824369
    """
    return constant(delta) * beta / sigma


def holds(epsilon: float, delta: float) -> bool:
    """Return whether noise of σ = c hides a shift of ε at (ε, δ): the Gaussian's exact δ is no larger.

    δ(ε) = Φ(r/2 − ε/r) − e^ε·Φ(−r/2 − ε/r) with r = ε/c. It fails where ε is large: c comes from a tail bound.

    >>> holds(1, 1e-4), holds(10, 1e-4)
    (True, False)
    """
    r = epsilon / constant(delta)
    low, high = r / 2 - epsilon / r, -r / 2 - epsilon / r
    log_high = float(torch.special.log_ndtr(torch.tensor(high, dtype=torch.float64)))
    exact = 0.5 * math.erfc(-low / math.sqrt(2)) - math.exp(min(700.0, epsilon + log_high))
    return exact <= delta
