"""Distances between what two networks say of a sample, and how sure one is."""

from __future__ import annotations

import torch
from torch import Tensor


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """Return T²·KL(softmax(teacher/T) ‖ softmax(student/T)) of each sample (B,), in nats.

    Args:
        teacher: logits (B, K); no gradient flows into them.
        student: logits (B, K).
        temperature: T above 0.

    Computed in float32 or wider, whatever the logits are in.
    """
    wide = torch.promote_types(student.dtype, torch.float32)  # what is left of two bf16 logarithms is mostly rounding
    target = (teacher.detach().to(wide) / temperature).log_softmax(dim=1)
    found = (student.to(wide) / temperature).log_softmax(dim=1)
    return temperature**2 * (target.exp() * (target - found)).sum(dim=1)


def negative_entropy(logits: Tensor) -> Tensor:
    """Return Σ_k p_k·ln p_k of each sample (B,), in nats, p = softmax of logits (B, K); in float32 or wider."""
    logs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=1)
    return (logs.exp() * logs).sum(dim=1)
