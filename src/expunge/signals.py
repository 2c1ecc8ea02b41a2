"""What attacks and distances read off logits: per-sample numbers, computed a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 2**16  # numbers of logits worked on at once: what comes in between stays in the cache
TINY = 1e-45  # floor of a probability before its logarithm


@dataclass(frozen=True)
class Signals:
    """Per-sample numbers of a classifier's logits (N, K), each (N,) in float64 on the CPU.

    Args:
        entropy: H = −Σ_c p_c ln p_c of the softmax p, nats.
        confidence: p_y of the label, or None without labels.
        correct: 1 where the largest logit is the label's, else 0; None without labels.
        modified_entropy: −(1 − p_y) ln p_y − Σ_{c≠y} p_c ln(1 − p_c), nats; None without labels.
        margin: φ = ln p_y − ln Σ_{c≠y} p_c, the logit of the confidence; None without labels.
    """

    entropy: Tensor
    confidence: Tensor | None = None
    correct: Tensor | None = None
    modified_entropy: Tensor | None = None
    margin: Tensor | None = None


def by_rows(function: Callable[..., Tensor], *parts: Tensor) -> Tensor:
    """Return a row-wise function of tensors of equal length, worked out a block of rows at a time.

    Args:
        function: takes blocks of rows of each tensor and returns as many rows.
        parts: (N, ...) each.

    Returns:
        The rows of all blocks, (N, ...).
    """
    n = len(parts[0])
    step = max(1, BLOCK // max(1, parts[0][:1].numel()))
    if n <= step:
        return function(*parts)
    return torch.cat([function(*(p[i : i + step] for p in parts)) for i in range(0, n, step)])


def signals(logits: Tensor, target: Tensor | None = None) -> Signals:
    """Return what attacks read off logits.

    Args:
        logits: (N, K), finite.
        target: (N,) class indices, or None.

    Returns:
        Entropy, and with labels confidence, correctness, modified entropy and margin.

    References:
        Modified entropy: L. Song, P. Mittal, "Systematic Evaluation of Privacy Risks of Machine Learning Models",
        2021, https://arxiv.org/abs/2003.10595. Margin: N. Carlini, S. Chien, M. Nasr, S. Song, A. Terzis, F. Tramèr,
        "Membership Inference Attacks From First Principles", 2022, https://arxiv.org/abs/2112.03570.
    """
    if target is None:
        return Signals(by_rows(_entropy, logits))
    rows = by_rows(_signals, logits, target.long())
    return Signals(*(rows[:, i].contiguous() for i in range(5)))


def _entropy(logits: Tensor) -> Tensor:
    p = logits.double().softmax(dim=1)
    return -torch.xlogy(p, p).sum(dim=1)


def _signals(logits: Tensor, target: Tensor) -> Tensor:
    """Return (N, 5): entropy, confidence, correctness, modified entropy, margin."""
    z = logits.double()
    log_p = z.log_softmax(dim=1)
    p = log_p.exp()
    at = target[:, None]
    entropy = -torch.xlogy(p, p).sum(dim=1)
    own_log, own = log_p.gather(1, at)[:, 0], p.gather(1, at)[:, 0]
    rest = p.scatter(1, at, 0.0)
    left = rest.sum(dim=1)  # 1 − p_y without cancellation
    own_part = -left * own_log.clamp(min=-1e3)  # an own probability of exactly 0 costs a finite amount
    modified = own_part - (rest * torch.log1p(-rest.clamp(max=1 - 1e-16))).sum(dim=1)
    margin = own_log.clamp(min=-1e3) - left.clamp(min=TINY).log()
    correct = (z.argmax(dim=1) == target).double()
    return torch.stack([entropy, own, correct, modified, margin], dim=1)


def is_probabilities(outputs: Tensor) -> bool:
    """Return whether outputs (N, K) look like probabilities: none negative, each row summing to 1 within 0.005.

    Probabilities in bfloat16 are each off by up to 2⁻⁹ of their size, and so is their sum.
    """
    if outputs.dim() != 2 or outputs.shape[1] < 2 or len(outputs) == 0:
        return False
    return bool((outputs >= 0).all()) and bool(((outputs.sum(dim=1) - 1).abs() < 5e-3).all())


def is_chance(outputs: Tensor, target: Tensor | None) -> bool:
    """Return whether outputs of one number a sample look like the probability of class 1, and not like its logit.

    All lie in [0, 1], and as probabilities they fit the labels much better than as logits: their cross-entropy is
    below two thirds of what it is after a sigmoid. Logits of a trained model are on both sides of 0.

    Args:
        outputs: (N,) or (N, 1).
        target: (N,) of 0 and 1, or None.
    """
    z = outputs.double().flatten()
    if target is None or len(z) == 0 or not bool(((z >= 0) & (z <= 1)).all()):
        return False
    y = target.double().flatten()
    as_chance = functional.binary_cross_entropy(z, y)
    return bool(as_chance < functional.binary_cross_entropy_with_logits(z, y) * 2 / 3)
