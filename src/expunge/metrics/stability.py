"""Population stability index: how far the distribution of scores moved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from expunge import stats
from expunge.errors import UserError
from expunge.metric import SPLITS, Audit, Found, Goal, Metric, Number, Unavailable, Value
from expunge.metrics._chances import NOT_TWO, TOO_FEW, Array, cells, chances, check_bins, too_few
from expunge.metrics._distance import within

_SPLITS = ("forget", "test")
_ROLES = {"original": Goal.AS_RETRAINED, "retrained": Goal.MIN}


def psi(reference: Array, scores: Array, bins: int, floor: float) -> Array:
    """Return each sample's part of the population stability index, (N,); their mean is the index.

    PSI = Σ_b (q_b − p_b) ln(q_b/p_b), p and q the shares of the reference's and the other scores in cells that hold
    equally many of the reference's; a share below the floor counts as the floor. The parts are PSI plus the influence
    of the sample's two scores on it, the cells being held, so that their spread is that of the index to first order.

    Args:
        reference: scores that set the cells, (N,).
        scores: the other scores of the same samples, (N,).
        bins: cells.
        floor: least share.
    """
    was, now = cells(reference, reference, bins), cells(scores, reference, bins)
    p, q = (np.maximum(np.bincount(at, minlength=bins) / len(at), floor) for at in (was, now))
    by_q = np.where(q > floor, np.log(q / p) + 1 - p / q, 0.0)
    by_p = np.where(p > floor, np.log(p / q) + 1 - q / p, 0.0)
    influence = by_q[now] + by_p[was]
    found: Array = float(((q - p) * np.log(q / p)).sum()) + influence - influence.mean()
    return found


@dataclass(frozen=True, kw_only=True)
class Stability(Metric):
    """Population stability index of the score of a two-class model against the original's and retrained's.

    PSI = Σ_b (q_b − p_b) ln(q_b/p_b) with p_b the share of the compared model's predicted chances of class 1 in cell b
    of ``bins`` that hold equally many of them, q_b that of the audited model's; a share below ``floor`` counts as the
    floor, so that an empty cell stays finite. Custom takes less than 0.1 for stable and more than 0.25 for moved.

    ``stability/original/<split>``: retraining moves scores as well, and its index is the goal.
    ``stability/retrained/<split>``: 0 is ideal, a second retrained model the floor. t intervals over samples (see
    `psi`); where nothing but noise sets two models apart the index is above 0 by that noise.

    Args:
        bins: cells.
        floor: least share of a cell, in (0, 1/bins).

    Raises:
        UserError: fewer than two bins, or a floor outside its range.

    References:
        B. Yurdakul, J. Naranjo, "Statistical Properties of the Population Stability Index", 2020,
        https://doi.org/10.21314/JRMV.2020.227.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    needs: ClassVar[frozenset[str]] = frozenset({"classes"})
    wants: ClassVar[frozenset[str]] = frozenset({*_SPLITS, *_ROLES})
    undefined: ClassVar[tuple[str, ...]] = (NOT_TWO, TOO_FEW)

    bins: int = 10
    floor: float = 1e-4

    def __post_init__(self) -> None:
        check_bins("stability.bins", self.bins)
        if not 0 < self.floor < 1 / self.bins:
            raise UserError("stability.floor above 0 and below 1/bins", str(self.floor), "give a small share")

    @property
    def numbers(self) -> dict[str, Number]:
        """``stability/<role>/<split>`` of the original and retrained, forget and test."""
        return {
            f"stability/{role}/{split}": self.number(
                f"PSI of scores to {'the original' if role == 'original' else role}'s, {SPLITS[split]}",
                goal=goal,
                target=0.0 if role == "retrained" else None,
            )
            for role, goal in _ROLES.items()
            for split in _SPLITS
        }

    def measure(self, audit: Audit) -> Found:
        """Return the index against both models on each split."""
        return {f"stability/{role}/{split}": self._one(audit, role, split) for role in _ROLES for split in _SPLITS}

    def _one(self, audit: Audit, role: str, split: str) -> Value | Unavailable:
        own, reference = chances(audit, split), chances(audit, split, role)
        if isinstance(own, Unavailable):
            return own
        if isinstance(reference, Unavailable):
            return reference
        few = too_few(len(own), self.bins)
        if few is not None:
            return few
        parts = psi(reference, own, self.bins, self.floor)
        return Value.of(within(stats.mean_t(parts), self.range), "")


METRIC = Stability
