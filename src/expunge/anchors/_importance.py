"""Other accounts of σ than Bayesian gradient descent: from the Fisher information, or one σ for all weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from expunge.anchors._flat import Flat
from expunge.anchors._settings import Importance
from expunge.fisher import Quantity, diagonal
from expunge.fisher.quantities import expects
from expunge.method import Session
from expunge.runtime import Runtime
from expunge.task import Task


def quantity(importance: Importance, task: Task) -> Quantity:
    """Return what the Fisher information is taken of: the expectation over the model's own labels, or the true ones.

    Over real targets the expectation is no finite sum: there one target a sample is drawn from the model.
    """
    if importance == "fisher_emp":
        return "loss"
    return "true" if expects(task) else "sampled_loss"


def measured(importance: Importance, session: Session, runtime: Runtime) -> Mapping[str, Tensor]:
    """Return F by parameter: the mean over the training set of squared per-sample gradients.

    ``fisher_model``: F = mean over x of Σ_y p_y(x)·(∂ln p_y(x)/∂θ)²; without classes one y drawn from the model.
    ``fisher_emp``: the same of the loss of the true labels; near 0 for a model that fits its training data.

    Args:
        importance: one of the two.
        session: model, task, training data, seed.
        runtime: where it runs.
    """
    of = quantity(importance, session.task)
    found = diagonal(session.model, session.task, session.train, of=of, runtime=runtime, seed=session.seed)
    return found.values


def narrowed_by(fisher: Mapping[str, Tensor], flat: Flat, sigma0: float, samples: float, sigma_min: float) -> Tensor:
    """Return ln σ of 1/σ² = 1/σ0² + n_eff·F, (length,); weights that may not move keep σ0.

    σ is never above σ0, and no lower than σ_min; there is no upper bound to set.

    Args:
        fisher: F by parameter.
        flat: the weights.
        sigma0: σ0.
        samples: n_eff.
        sigma_min: σ_min.
    """
    start = math.log(sigma0)
    found = {name: f.double().mul(samples).add_(sigma0**-2).log_().mul_(-0.5) for name, f in fisher.items()}
    log_sigma = flat.filled(found, start).clamp_(min=math.log(sigma_min))
    return log_sigma if flat.free is None else log_sigma.masked_fill_(~flat.free, start)


def geometric(flat: Flat, log_sigma: Tensor) -> float:
    """Return the geometric mean of σ over the weights that may move."""
    return math.exp(float(flat.scalars(log_sigma).mean(dtype=torch.float64)))


def rescaled(flat: Flat, log_sigma: Tensor, scale: float) -> None:
    """Multiply σ by one factor, in place, so that its geometric mean over the weights that may move is ``scale``."""
    factor = math.log(scale) - math.log(geometric(flat, log_sigma))
    log_sigma.add_(factor if flat.free is None else flat.free.to(log_sigma) * factor)
