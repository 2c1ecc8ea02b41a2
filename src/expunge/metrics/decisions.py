"""How good the decisions between two classes are, and how many of them the edit turned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from expunge import stats
from expunge.attacks import _roc
from expunge.errors import UserError
from expunge.metric import SPLITS, Audit, Found, Goal, Metric, Number, Unavailable, Value, missing
from expunge.metrics._chances import NOT_TWO, TOO_FEW, Array, cells, chances, check_bins, too_few
from expunge.metrics._distance import within
from expunge.stats import Interval

_SPLITS = ("forget", "test")
_KINDS = {
    "auc": "AUC of the decision score",
    "ks": "Kolmogorov-Smirnov distance of the two classes' scores",
    "calibration": "calibration error",
    "rate": "share decided for class 1",
}
_ROLES = {"original": Goal.AS_RETRAINED, "retrained": Goal.MIN}


def separation(ones: Array, zeros: Array) -> Interval:
    """Return the Kolmogorov-Smirnov distance max_t |F₁(t) − F₀(t)| of the scores of two classes.

    Its interval is that of a difference of two shares at the threshold t where it is reached, which the data chose:
    the distance is too large on average, by about the noise of few samples.

    Args:
        ones: scores of class 1, (N,).
        zeros: scores of class 0, (M,).

    References:
        F. J. Massey, "The Kolmogorov-Smirnov Test for Goodness of Fit", 1951,
        https://doi.org/10.1080/01621459.1951.10500769.
    """
    found = ks_2samp(ones, zeros, method="asymp")
    below = [stats.wilson(int((side <= found.statistic_location).sum()), len(side)) for side in (ones, zeros)]
    apart = stats.difference(*(below if found.statistic_sign > 0 else below[::-1]))
    spread = within(apart, (0.0, 1.0))
    return Interval(float(found.statistic), spread.low, spread.high, spread.n)


def calibration(p: Array, y: Array, bins: int) -> Array:
    """Return what each sample adds to the calibration error, (N,); their mean is the error.

    ECE = Σ_b n_b/n |mean_{i∈b} p_i − mean_{i∈b} y_i| over cells of equally many scores; the cells and the sign of
    each difference are held, so that the spread of the parts is that of the error to first order.

    Args:
        p: predicted chances of class 1, (N,).
        y: 1 for class 1, else 0, (N,).
        bins: cells.
    """
    at = cells(p, p, bins)
    sign = np.sign(np.bincount(at, p - y))
    found: Array = sign[at] * (p - y)
    return found


@dataclass(frozen=True, kw_only=True)
class Decisions(Metric):
    """Quality of the score of a two-class model, and the share of test samples that are decided otherwise than before.

    With p_i the predicted probability of class 1, and class 1 decided where p_i > ``threshold``, on forget and test:

    - ``decisions/auc`` = the chance that a sample of class 1 scores above one of class 0 (DeLong's interval);
    - ``decisions/ks`` = max_t |F₁(t) − F₀(t)| of the two classes' scores, see `separation`;
    - ``decisions/calibration`` = Σ_b n_b/n |mean p − mean y| over ``bins`` cells of equally many scores, see
      `calibration`; of a well calibrated model it is above 0 by noise, about 0.4 √(bins/n) for chances near one half;
    - ``decisions/rate`` = the share decided for class 1 (Wilson's interval).

    ``decisions/flipped/original`` is the share of the test samples decided otherwise than by the original, a repaired
    decision as much as a spoilt one; retraining flips some as well, and its share is the goal. Of
    ``decisions/flipped/retrained`` 0 is ideal, and a second retrained model is the floor.

    Args:
        threshold: probability above which class 1 is decided.
        bins: cells of the calibration error.

    Raises:
        UserError: a threshold outside [0, 1), or fewer than two bins.

    References:
        AUC: E. R. DeLong, D. M. DeLong, D. L. Clarke-Pearson, "Comparing the Areas under Two or More Correlated
        Receiver Operating Characteristic Curves", 1988, https://doi.org/10.2307/2531595. Cells of equal mass:
        K. Nguyen, B. O'Connor, "Posterior calibration and exploratory analysis for natural language processing
        models", 2015, https://arxiv.org/abs/1508.05154.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs: ClassVar[frozenset[str]] = frozenset({"classes"})
    wants: ClassVar[frozenset[str]] = frozenset({*_SPLITS, "labels", *_ROLES})
    undefined: ClassVar[tuple[str, ...]] = (
        NOT_TWO,
        "needs 2 samples of each class",
        "all scores are equal",
        TOO_FEW,
    )

    threshold: float = 0.5
    bins: int = 10

    def __post_init__(self) -> None:
        check_bins("decisions.bins", self.bins)
        if not 0 <= self.threshold < 1:
            raise UserError("decisions.threshold in [0, 1)", str(self.threshold), "give a probability")

    @property
    def numbers(self) -> dict[str, Number]:
        """``decisions/<kind>/<split>`` of forget and test, and ``decisions/flipped/<role>``."""
        own = {
            f"decisions/{k}/{split}": self.number(f"{text}, {SPLITS[split]}")
            for k, text in _KINDS.items()
            for split in _SPLITS
        }
        flipped = {
            f"decisions/flipped/{role}": self.number(
                f"decided otherwise than by {'the original' if role == 'original' else role}, test set",
                goal=goal,
                target=0.0 if role == "retrained" else None,
            )
            for role, goal in _ROLES.items()
        }
        return own | flipped

    def measure(self, audit: Audit) -> Found:
        """Return the four numbers on each split, and both shares of flipped decisions."""
        found: Found = {}
        for split in _SPLITS:
            reason = missing(frozenset({split, "labels"}), audit)
            p = Unavailable(reason) if reason else chances(audit, split)
            numbers = dict.fromkeys(_KINDS, p) if isinstance(p, Unavailable) else self._numbers(audit, split, p)
            found |= {f"decisions/{kind}/{split}": value for kind, value in numbers.items()}
        return found | {f"decisions/flipped/{role}": self._flipped(audit, role) for role in _ROLES}

    def _numbers(self, audit: Audit, split: str, p: Array) -> Found:
        target = audit.said(split).target
        assert target is not None
        y = target.reshape(-1).double().numpy()
        ones, zeros = p[y == 1], p[y != 1]
        few = None
        if min(len(ones), len(zeros)) < 2:
            few = Unavailable(f"needs 2 samples of each class, has {len(ones)} and {len(zeros)}")
        parts = too_few(len(p), self.bins) or calibration(p, y, self.bins)
        decided = self._decided(p)
        other = chances(audit, split, "retrained")
        if not isinstance(other, Unavailable):
            again = self._decided(other)
            audit.kept.gaps[f"decisions/rate/{split}"] = Value.of(stats.paired_proportions(decided, again))
        ece = parts if isinstance(parts, Unavailable) else Value.of(within(stats.mean_t(parts), self.range))
        return {
            "auc": few or _roc.auc(ones, zeros),
            "ks": few or Value.of(separation(ones, zeros)),
            "calibration": ece,
            "rate": Value.of(stats.wilson(int(decided.sum()), len(decided))),
        }

    def _decided(self, p: Array) -> NDArray[np.bool_]:
        return p > self.threshold

    def _flipped(self, audit: Audit, role: str) -> Value | Unavailable:
        own, other = chances(audit, "test"), chances(audit, "test", role)
        if isinstance(own, Unavailable):
            return own
        if isinstance(other, Unavailable):
            return other
        turned = self._decided(own) != self._decided(other)
        again = chances(audit, "test", "retrained")
        if role == "original" and not isinstance(again, Unavailable):
            goal = self._decided(again) != self._decided(other)
            audit.kept.gaps["decisions/flipped/original"] = Value.of(stats.paired_proportions(turned, goal))
        return Value.of(stats.wilson(int(turned.sum()), len(turned)))


METRIC = Decisions
