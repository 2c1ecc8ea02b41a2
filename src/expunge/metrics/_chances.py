"""What measures of a decision between two classes share: the predicted chance of the second one, and its bins."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from expunge.errors import UserError
from expunge.metric import Audit, Unavailable, missing

Array = NDArray[np.float64]
A_BIN = 5  # samples of a bin below which nothing is said of its share
NOT_TWO = "the task has not two classes"
TOO_FEW = "too few samples to fill"


def chances(audit: Audit, split: str, role: str = "model") -> Array | Unavailable:
    """Return the predicted probability of class 1 of each sample, (N,), or why there is none."""
    reason = missing(frozenset({split, "classes", *({role} - {"model"})}), audit)
    if reason:
        return Unavailable(reason)
    logits = audit.said(split, role).logits
    if logits.shape[1] != 2:
        return Unavailable(NOT_TWO)
    found: Array = logits.double().softmax(dim=1)[:, 1].numpy()
    return found


def check_bins(name: str, bins: int) -> None:
    """Refuse fewer than two bins.

    Raises:
        UserError: names the setting.
    """
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 2:
        raise UserError(f"{name} of 2 or more", repr(bins), "give a whole number, such as 10")


def too_few(n: int, bins: int) -> Unavailable | None:
    """Return why so few samples cannot fill the bins, or None."""
    return Unavailable(f"{TOO_FEW} {bins} bins: {n} instead of {A_BIN * bins}") if n < A_BIN * bins else None


def cells(values: Array, like: Array, bins: int) -> NDArray[np.int64]:
    """Return the cell of each value, (N,), in cells that hold equally many of ``like``; equal values share theirs."""
    edges = np.unique(np.sort(like)[np.arange(1, bins) * len(like) // bins])
    found: NDArray[np.int64] = np.searchsorted(edges, values, side="right")
    return found
