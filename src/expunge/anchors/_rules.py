"""The elementwise rules of a Gaussian over weights: how σ is learned, and how a step forgets near a prior.

σ is held as its logarithm. All rules are in place, on any float tensors of one shape, and make temporaries of that
shape alone; they are called on small pieces of the vectors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FARTHEST = 1e9  # |x| whose asinh is taken: float32 holds its square
STEEPEST = 5.0  # |½·σ·e| of one step at most: σ changes by a factor of 10 or less


def learned(log_sigma: Tensor, e: Tensor) -> int:
    """Take one step of Bayesian gradient descent on σ: ln σ ← ln σ − asinh(½·σ·e).

    The σ that minimises KL(N(μ, σ²) ‖ N(m, s²)) + E[L] to first order solves σ² + s²·e·σ − s² = 0, that is
    σ = s·(√(1 + x²) − x) with x = ½·s·e, and √(1 + x²) − x = exp(−asinh x): always positive, odd in e, exact where
    the root cancels.

    Args:
        log_sigma: ln σ, edited.
        e: E[(∂L/∂θ)·ε] of the loss summed over the batch, at θ = μ + σ·ε.

    Returns:
        How many |½·σ·e| were cut to 5.

    References:
        Chen Zeno, Itay Golan, Elad Hoffer, Daniel Soudry, "Task Agnostic Continual Learning Using Online Variational
        Bayes", 2018, https://arxiv.org/abs/1803.10123.
    """
    return narrowed(log_sigma, log_sigma.exp().mul_(e).mul_(0.5))


def narrowed(log_sigma: Tensor, x: Tensor) -> int:
    """Take the step of `learned` where x = ½·σ·e is known: ln σ ← ln σ − asinh(x).

    Args:
        log_sigma: ln σ, edited.
        x: spoilt.

    Returns:
        How many |x| were cut to 5.
    """
    far = x.abs()
    cut = int(torch.count_nonzero(far > STEEPEST)) if x.numel() and float(far.max()) > STEEPEST else 0
    if cut:
        x.clamp_(-STEEPEST, STEEPEST)
    log_sigma.sub_(asinh_(x))
    return cut


def asinh_(x: Tensor) -> Tensor:
    """Return asinh of a tensor, in place: torch's own on a GPU; a tenth of its time on a CPU, and as exact.

    asinh(x) = sign(x)·ln(1 + |x| + x²/(1 + √(1 + x²))).
    """
    if x.is_cuda:
        return x.asinh_()
    square = x.square()
    square.div_(square.add(1).sqrt_().add_(1))
    return x.copy_(square.add_(x.abs()).log1p_().copysign_(x))


def descended(mu: Tensor, log_sigma: Tensor, g: Tensor, rate: float = 1.0) -> None:
    """Take the step of Bayesian gradient descent on μ: μ ← μ − η·σ²·ḡ, σ before its own step.

    Args:
        mu: edited.
        log_sigma: ln σ.
        g: E[∂L/∂θ] of the loss summed over the batch.
        rate: η.
    """
    mu.addcmul_((2 * log_sigma).exp_(), g, value=-rate)


def proximal(
    mu: Tensor,
    log_sigma: Tensor,
    mu_p: Tensor,
    log_p: Tensor,
    g: Tensor,
    s: Tensor | None,
    *,
    weight: float,
    lam: float,
    rate: float,
) -> None:
    """Minimise KL(q' ‖ q)/η + w·U + λ·KL(q' ‖ p) for each scalar, U to first order at q, in closed form.

    With A = 1/(η·σ²) + λ/σ_p², b = w·e, c = 1/η + λ: μ' = (μ/(η·σ²) + λ·μ_p/σ_p² − w·ḡ)/A, and σ' is the positive root
    of A·σ'² + b·σ' − c = 0. So, with k = A·σ² = 1/η + λ·σ²/σ_p²,
    μ' = μ + (λ·σ²/σ_p²·(μ_p − μ) − w·σ²·ḡ)/k and ln σ' = ln σ + ½·ln(c/k) − asinh(½·w·s/√(c·k)), which takes no
    difference of large numbers, and stands still at p. With λ = 0 and η = 1 it is Bayesian gradient descent; 1/σ_p²
    sets no limit to the step.

    Args:
        mu: μ of q, edited.
        log_sigma: ln σ of q, edited unless ``s`` is None.
        mu_p: μ of the prior p.
        log_p: ln σ of the prior p.
        g: ḡ = E[∂U/∂θ].
        s: σ·e = E[(∂U/∂θ)·σ·ε], the gradient of U by ln σ; None leaves σ as it is.
        weight: w of U.
        lam: λ of the KL, 0 or more.
        rate: η above 0.
    """
    pull = (2 * (log_sigma - log_p)).exp_().mul_(lam)
    k = pull + 1 / rate
    mu.add_(pull.mul_(mu_p - mu).addcmul_((2 * log_sigma).exp_(), g, value=-weight).div_(k))
    if s is not None:
        k.div_(1 / rate + lam)
        x = k.sqrt().reciprocal_().mul_(s).mul_(weight / (2 * (1 / rate + lam)))
        log_sigma.sub_(k.log_(), alpha=0.5).sub_(asinh_(x.clamp_(-FARTHEST, FARTHEST)))


def explicit(
    mu: Tensor,
    log_sigma: Tensor,
    mu_p: Tensor,
    log_p: Tensor,
    g: Tensor,
    s: Tensor | None,
    *,
    weight: float,
    lam: float,
    rate: float,
) -> None:
    """Take one step of Bayesian gradient descent on w·U + λ·KL(q ‖ p).

    G = w·ḡ + λ·(μ − μ_p)/σ_p², S = w·e + λ·(σ/σ_p² − 1/σ); μ' = μ − η·σ²·G, ln σ' = ln σ − asinh(½·σ·S). Needs
    η·λ·σ²/σ_p² below 2.

    Args:
        mu: μ of q, edited.
        log_sigma: ln σ of q, edited unless ``s`` is None.
        mu_p: μ of the prior p.
        log_p: ln σ of the prior p.
        g: ḡ = E[∂U/∂θ].
        s: σ·e = E[(∂U/∂θ)·σ·ε], the gradient of U by ln σ; None leaves σ as it is.
        weight: w of U.
        lam: λ of the KL, 0 or more.
        rate: η above 0.
    """
    down, slope = gradients(mu, log_sigma, mu_p, log_p, g, s, weight=weight, lam=lam)
    descended(mu, log_sigma, down, rate)
    if slope is not None:  # σ·S: the gradient by ln σ
        log_sigma.sub_(asinh_(slope.mul_(0.5).clamp_(-STEEPEST, STEEPEST)))


def gradients(
    mu: Tensor,
    log_sigma: Tensor,
    mu_p: Tensor,
    log_p: Tensor,
    g: Tensor,
    s: Tensor | None,
    *,
    weight: float,
    lam: float,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of w·U + λ·KL(q ‖ p) by μ and by ln σ.

    ∂KL/∂μ = (μ − μ_p)/σ_p², ∂KL/∂ln σ = σ²/σ_p² − 1.

    Args:
        mu: μ of q.
        log_sigma: ln σ of q.
        mu_p: μ of the prior p.
        log_p: ln σ of the prior p.
        g: ḡ = E[∂U/∂θ].
        s: σ·e = E[(∂U/∂θ)·σ·ε], the gradient of U by ln σ; None gives no gradient by ln σ.
        weight: w of U.
        lam: λ of the KL.
    """
    by_mu = (-2 * log_p).exp_().mul_(mu - mu_p).mul_(lam).add_(g, alpha=weight)
    if s is None:
        return by_mu, None
    return by_mu, (2 * (log_sigma - log_p)).expm1_().mul_(lam).add_(s, alpha=weight)


def divergence(mu: Tensor, log_sigma: Tensor, mu_p: Tensor, log_p: Tensor) -> Tensor:
    """Return KL(q ‖ p) of each scalar, ½·((μ_p − μ)²/σ_p² + σ²/σ_p² − 1 + ln(σ_p²/σ²)), in nats.

    Args:
        mu: μ of q.
        log_sigma: ln σ of q.
        mu_p: μ of the prior p.
        log_p: ln σ of the prior p.
    """
    far = (mu - mu_p).square_().mul_((-2 * log_p).exp_())
    wide = 2 * (log_sigma - log_p)
    return far.add_(torch.expm1(wide)).sub_(wide).mul_(0.5)


def literal(lam: float, samples: float) -> float:
    """Return the weight λ of the KL in (1−λ)·U + λ·KL that a size-free λ_n stands for.

    λ = r/(1 + r) with r = λ_n/((1 − λ_n)·n_eff).

    Args:
        lam: λ_n in (0, 1): (1 − λ_n)·U + λ_n·KL/n_eff.
        samples: n_eff, the samples behind σ.

    >>> round(literal(0.9, 50_000), 12)
    0.000179967606
    """
    r = lam / ((1 - lam) * samples)
    return r / (1 + r)


def size_free(lam: float, samples: float) -> float:
    """Return the size-free λ_n that a literal weight λ of the KL stands for; the inverse of `literal`.

    Args:
        lam: λ in (0, 1).
        samples: n_eff, the samples behind σ.

    >>> round(size_free(literal(0.9, 50_000), 50_000), 9)
    0.9
    """
    r = lam / (1 - lam) * samples
    return r / (1 + r)


def settling(rate: float, lam: float) -> int:
    """Return how many steps take three times the time constant of the pull to the prior: ⌈3/(η·λ)⌉."""
    return math.ceil(3 / (rate * lam))
