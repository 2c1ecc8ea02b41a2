"""Labels drawn at random in place of the true ones, from uniform numbers that know nothing of the classes."""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.errors import UserError


def uniform(samples: int) -> Tensor:
    """Return numbers uniform in [0, 1), one a sample, (N,) float64 on the CPU, from torch's generator."""
    return torch.rand(samples, dtype=torch.float64)


def drawn_labels(draws: Tensor, labels: Tensor, classes: int, *, exclude_true: bool = True) -> Tensor:
    """Return a class a sample, uniform over the classes other than its own, or over all of them.

    With u uniform in [0, 1) the label is j = ⌊u·(K−1)⌋, and j + 1 from the true class on; over all of them ⌊u·K⌋.

    Args:
        draws: u, (B,) float64.
        labels: true classes, (B,) integers in 0..K−1.
        classes: K, the number of classes.
        exclude_true: whether the true class is never drawn.

    Returns:
        Classes, (B,) int64 on the labels' device.

    Raises:
        UserError: a single class, which has no wrong label.

    >>> drawn_labels(torch.tensor([0.1, 0.5, 0.9]), torch.tensor([1, 1, 1]), 3).tolist()
    [0, 2, 2]
    """
    if exclude_true and classes < 2:
        raise UserError("two classes or more to draw a wrong label from", str(classes), "take another method")
    drawn = (draws.to(labels.device) * (classes - exclude_true)).long()
    return drawn + (drawn >= labels).long() if exclude_true else drawn
