"""Answers that the edit turned: right under the original and wrong now, and the reverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from expunge import stats
from expunge.evidence import Outputs
from expunge.metric import SPLITS, Audit, Found, Goal, Metric, Number, Unavailable, Value, missing

_SPLITS = ("retain", "test")
_LABELS = {"lost": "right before, wrong now", "gained": "wrong before, right now"}


@dataclass(frozen=True, kw_only=True)
class Flips(Metric):
    """Share of all samples that the original gets right and the model wrong (lost), and the reverse (gained).

    Gained minus lost is the change of accuracy, which hides how many single answers moved to give it. Retraining
    flips answers as well, so its own share is the goal. Wilson's intervals; the gap to retrained is paired by sample.

    References:
        Lost answers as negative flips: S. Yan, Y. Xiong, K. Kundu, S. Yang, S. Deng, M. Wang, W. Xia, S. Soatto,
        "Positive-Congruent Training: Towards Regression-Free Model Updates", 2021, https://arxiv.org/abs/2011.09161.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs: ClassVar[frozenset[str]] = frozenset({"classes", "original"})

    @property
    def numbers(self) -> dict[str, Number]:
        """``flips/lost/<split>`` and ``flips/gained/<split>`` of retain and test."""
        return {
            f"flips/{way}/{split}": self.number(f"{label}, {SPLITS[split]}")
            for way, label in _LABELS.items()
            for split in _SPLITS
        }

    def measure(self, audit: Audit) -> Found:
        """Return both shares on each split that has labelled samples."""
        found: Found = {}
        for split in _SPLITS:
            for way, value in _turned(audit, split).items():
                found[f"flips/{way}/{split}"] = value
        return found


def _turned(audit: Audit, split: str) -> Found:
    needs = frozenset({split, "labels", "original"})
    reason = missing(needs, audit)
    if reason:
        return dict.fromkeys(_LABELS, Unavailable(reason))
    before, now = _right(audit.said(split, "original")), _right(audit.said(split))
    found: Found = {}
    for way, turned in _ways(before, now).items():
        found[way] = Value.of(stats.wilson(int(turned.sum()), len(turned)))
    if missing(needs | {"retrained"}, audit) is None:
        again = _ways(before, _right(audit.said(split, "retrained")))
        for way, turned in _ways(before, now).items():
            audit.kept.gaps[f"flips/{way}/{split}"] = Value.of(stats.paired_proportions(turned, again[way]))
    return found


def _ways(before: NDArray[np.bool_], now: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    return {"lost": before & ~now, "gained": ~before & now}


def _right(outputs: Outputs) -> NDArray[np.bool_]:
    assert outputs.target is not None
    found: NDArray[np.bool_] = outputs.prediction.eq(outputs.target).numpy()
    return found


METRIC = Flips
