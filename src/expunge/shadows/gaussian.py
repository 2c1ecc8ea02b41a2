"""Gaussian canaries: does the loss still fall along noise that was added to training inputs?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_ndtr, ndtri

from expunge.errors import UserError
from expunge.shadows.pool import Floats
from expunge.stats import Interval, mean_t

LEVEL = 0.05
POWER = 0.95
SLACK = 0.05  # by how much the noise's deviation may be off, as a share


@dataclass(frozen=True, eq=False)
class GaussianScores:
    """Scores of noisy canaries, N(0, 1) each where the model never saw the noise.

    Args:
        scores: of each canary, (n,).
        mean: with its 95 % t interval.
        z: mean · √n, N(0, 1) where the noise left no trace.
        p: two-sided p-value of z.
        least: size of the mean that n canaries show at 5 % with a power of 95 %: below it, a test that finds nothing
            says nothing.
    """

    scores: Floats
    mean: Interval
    z: float
    p: float
    least: float


def gaussian_scores(gradients: ArrayLike, noise: ArrayLike, deviation: float) -> GaussianScores:
    """Return how far a model's input gradients point along the noise of its canaries.

    A canary is a training sample x_i to which noise ξ_i ~ N(0, ε²·I) was added before training. Its score is
    ⟨∇ₓ loss(x_i), ξ_i⟩ / (ε·‖∇ₓ loss(x_i)‖), the gradient taken at x_i without the noise. Given a gradient that does
    not depend on ξ_i this is N(0, 1), exactly, whatever the model and for any number of inputs: no retrained model is
    needed. In a model that learned the sample with its noise it does depend on it. The test is two-sided: the loss may
    fall towards the noise, or, where unlearning overshoots, rise.

    The noise must be what was added: clipping inputs to a range afterwards, or rounding them, changes it.

    Args:
        gradients: ∇ₓ loss of each canary without its noise, (n, ...), under the audited model.
        noise: ξ of each, of the same shape.
        deviation: ε, in the unit of the inputs.

    Returns:
        Scores, their mean, a z test and its power.

    Raises:
        UserError: shapes that differ, fewer than 2 canaries, a number that is not finite, a gradient that is 0, a
            deviation not above 0, or noise of another deviation.

    References:
        M. Pawelczyk, J. Z. Di, Y. Lu, G. Kamath, A. Sekhari, S. Neel, "Machine Unlearning Fails to Remove Data
        Poisoning Attacks", 2024, https://arxiv.org/abs/2406.17216.
    """
    g, xi = _checked(gradients, noise, deviation)
    size = np.abs(g).max(axis=1, keepdims=True)  # scaled first: squares of small gradients would vanish
    if float(size.min()) == 0:
        got = f"{int((size == 0).sum())} of {len(g)} that are 0"
        raise UserError("gradients that point somewhere", got, "leave these canaries out, or work in float64")
    g = g / size
    scores = (g * xi).sum(axis=1) / (deviation * np.linalg.norm(g, axis=1))
    z = float(scores.mean()) * math.sqrt(len(scores))
    p = min(1.0, 2 * math.exp(float(log_ndtr(-abs(z)))))
    return GaussianScores(scores, mean_t(scores), z, p, least_mean(len(scores)))


def least_mean(n: int) -> float:
    """Return the smallest mean score that n canaries show at 5 %, two-sided, with a power of 95 %: 3.605/√n.

    It is (z_{0.975} + z_{0.95})/√n for scores of deviation 1; the chance to reject on the wrong side is below 1e-7.

    >>> round(least_mean(100), 4)
    0.3605

    Raises:
        UserError: no canary.
    """
    if n < 1:
        raise UserError("at least 1 canary", str(n), "plant canaries before training")
    return float(ndtri(1 - LEVEL / 2) + ndtri(POWER)) / math.sqrt(n)


def _checked(gradients: ArrayLike, noise: ArrayLike, deviation: float) -> tuple[Floats, Floats]:
    g, xi = np.asarray(gradients, dtype=np.float64), np.asarray(noise, dtype=np.float64)
    if g.shape != xi.shape or g.ndim < 2 or len(g) < 2 or g[0].size == 0:
        got = f"shapes {g.shape} and {xi.shape}"
        raise UserError("a gradient and noise of the same shape for at least 2 canaries", got, "stack one row each")
    if not (np.isfinite(g).all() and np.isfinite(xi).all()):
        raise UserError("finite gradients and noise", "some that are not", "check the model")
    if not (math.isfinite(deviation) and deviation > 0):
        raise UserError("a deviation above 0", str(deviation), "give that of the noise, in the unit of the inputs")
    found = math.sqrt(float(np.square(xi).mean()))
    if abs(found / deviation - 1) > max(SLACK, 6 / math.sqrt(2 * xi.size)):
        remedy = "give noise and deviation in one unit, and noise as it was added, not clipped"
        raise UserError(f"noise of deviation {deviation:g}", f"noise of deviation {found:.3g}", remedy)
    return g.reshape(len(g), -1), xi.reshape(len(xi), -1)
