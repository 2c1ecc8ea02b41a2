"""How a class's logit moves along a concept: derivatives, the share that rises, and whether that is chance."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.stats import distributions
from torch import Tensor, nn

from expunge.concepts.attribution import class_logit, filled, labels_of, places_of, tail
from expunge.data import Batch, Data
from expunge.errors import UserError
from expunge.passes import Passes
from expunge.runtime import Runtime
from expunge.task import Task
from expunge.tensors import check_finite, eval_mode


def directional(gradients: Tensor, vectors: Tensor) -> Tensor:
    """Return how much a logit rises along each concept: g·c/‖c‖.

    Args:
        gradients: of a logit with respect to the representation, (N, d).
        vectors: of concepts, (m, d), not 0.

    Returns:
        (N, m), logits per unit of the representation.
    """
    units = vectors / vectors.norm(dim=1, keepdim=True)
    found: Tensor = gradients @ units.to(gradients).T
    return found


def sign_count(derivatives: Tensor) -> Tensor:
    """Return the share of samples whose logit rises along each concept, from derivatives (N, ...).

    >>> float(sign_count(torch.tensor([2.0, -1.0, 3.0, -2.0])))
    0.5

    Reference: Interpretability beyond feature attribution: quantitative testing with concept activation vectors,
    Kim et al., 2018, https://arxiv.org/abs/1711.11279
    """
    return (derivatives > 0).double().mean(dim=0)


def magnitude(derivatives: Tensor) -> Tensor:
    """Return the rising derivatives' share of all by size: Σ max(0, D) / Σ |D|, from derivatives (N, ...).

    Captum calls this magnitude too but works out the mean of D. Where every derivative is 0 none rises: 0.

    >>> float(magnitude(torch.tensor([2.0, -1.0, 3.0, -2.0])))
    0.625
    """
    whole = derivatives.abs().sum(dim=0).double()
    rising = derivatives.clamp_min(0).sum(dim=0).double()
    return torch.where(whole > 0, rising / whole.where(whole > 0, torch.ones_like(whole)), torch.zeros_like(whole))


def by_chance(own: ArrayLike, random: ArrayLike) -> float:
    """Return the two-sided p-value of Welch's t-test that two sets of sign counts have one mean.

    Where neither set varies, means that differ give 0, equal ones 1.

    Args:
        own: of a concept's vectors, each fitted against other negatives; two or more.
        random: of vectors between two random sets; two or more.

    Raises:
        UserError: fewer than two of either.
    """
    a, b = np.asarray(own, dtype=np.float64), np.asarray(random, dtype=np.float64)
    if a.size < 2 or b.size < 2:
        raise UserError("two sign counts or more of either kind", f"{a.size} and {b.size}", "fit more vectors")
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        return 1.0 if a[0] == b[0] else 0.0
    parts = a.var(ddof=1) / a.size, b.var(ddof=1) / b.size
    t = (a.mean() - b.mean()) / math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (a.size - 1) + parts[1] ** 2 / (b.size - 1))
    return float(2 * distributions.t.sf(abs(t), freedom))


def class_gradients(
    model: nn.Module, task: Task, data: Data, tap: str, *, runtime: Runtime | None = None
) -> dict[int, Tensor]:
    """Return the gradient of each sample's own logit with respect to its representation, by class.

    Of a representation with positions the gradients of all positions are added up: the derivative with respect to one
    vector added at every position.

    Args:
        model: the network; run in eval mode, left as it is.
        task: of exclusive classes.
        data: labelled.
        tap: of the representation.
        runtime: device, batch size.

    Returns:
        (n, d) for each class that occurs, on the CPU.

    Raises:
        UserError: no samples, no labels, or a task without classes.
        NotFinite: a gradient is NaN or infinite.
    """
    filled(data)
    runtime = runtime or Runtime()
    model = runtime.placed(model)

    def work(batch: Batch) -> tuple[Tensor, Tensor]:
        batch = batch.to(runtime.torch_device)
        target = labels_of(batch, data)
        rest, e = tail(model, task, batch, tap)
        with torch.enable_grad():
            e = e.detach().requires_grad_(True)
            own = class_logit(task, rest(e), target)
            (found,) = torch.autograd.grad(own.sum(), e)
        return places_of(found).sum(dim=1).cpu(), target.cpu()

    with eval_mode(model):
        parts = list(Passes(runtime).over(data, work))
    rows, target = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    check_finite({tap: rows}, f"gradients on {data.name}", "check the weights and inputs")
    return {k: rows[target == k] for k in sorted(set(target.tolist()))}
