"""Where a forgotten class goes: the classes that its unseen samples are taken for, beside those under retrained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from expunge import stats
from expunge.evidence import Outputs
from expunge.metric import Audit, Found, Goal, Metric, Number, Unavailable, Value, missing
from expunge.metrics._distance import within
from expunge.metrics._groups import level_of
from expunge.stats import Interval

_SPLIT = "test_forget"
_NO_CLASS = "it asks where a class goes, and the forget set is of kind"
_ALONE = "the forgotten class is the only one"


def distance(own: NDArray[np.int64], other: NDArray[np.int64], classes: int) -> Interval:
    """Return the total variation distance ½ Σ_c |p_c − q_c| of two sets of answers on the same samples.

    Its interval is Student's of the mean of ½ (s[own_i] − s[other_i]) over samples, whose mean is the distance, with
    the sign s_c of each difference held: the spread to first order. Of few samples the distance is too large on
    average, by about the noise of the shares.

    Args:
        own: answers of one model, (N,).
        other: answers of the other one, (N,).
        classes: number of classes.

    >>> i = distance(np.array([9, 9, 9, 9]), np.array([9, 9, 1, 2]), 10)
    >>> i.x
    0.5
    """
    counts = (np.bincount(said, minlength=classes) for said in (own, other))
    sign = np.sign(np.subtract(*counts)).astype(np.float64)
    return within(stats.mean_t((sign[own] - sign[other]) / 2), (0.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class Predictions(Metric):
    """Classes that unseen samples of the forgotten class are taken for, and how far that is from retrained's answers.

    With p_c the share of those samples that the model takes for class c, q_c the same of retrained, and k the
    forgotten class:

    - ``predictions/one_class`` = max_{c≠k} p_c. A network that never saw a class spreads its samples over the classes
      that look alike. An edit that trains them towards one class sends all of them there, which gives it away; so
      retrained's value is the goal. The largest of several shares is large by accident too, so each share is taken at
      the level 1 − 0.05/(K − 1) (Bonferroni, Wilson's intervals), and the true largest lies between the largest of
      the lower and the largest of the upper ends.
    - ``predictions/distance`` = ½ Σ_c |p_c − q_c|, the total variation distance, see `distance`; 0 is ideal, and a
      second retrained model is the floor.

    The series ``predictions/classes`` holds every p_c with Wilson's interval of one share chosen beforehand.

    References:
        The remedy for many intervals: O. J. Dunn, "Multiple comparisons among means", 1961,
        https://doi.org/10.1080/01621459.1961.10482090. The giveaway as such is our own reading of edits that relabel.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs: ClassVar[frozenset[str]] = frozenset({"classes", _SPLIT})
    wants: ClassVar[frozenset[str]] = frozenset({"retrained"})
    undefined: ClassVar[tuple[str, ...]] = (_NO_CLASS, _ALONE)

    @property
    def numbers(self) -> dict[str, Number]:
        """``predictions/one_class`` and ``predictions/distance``."""
        return {
            "predictions/one_class": self.number("unseen samples of the class that go to one other class"),
            "predictions/distance": self.number(
                "distance of the answers on the class to retrained's", goal=Goal.MIN, target=0.0
            ),
        }

    def measure(self, audit: Audit) -> Found:
        """Keep the share of every class, and return the largest and the distance to retrained."""
        scenario, outputs = audit.scenario, audit.said(_SPLIT)
        if scenario.kind != "class":
            return self.none(f"{_NO_CLASS} '{scenario.kind}'")
        classes, forgotten = outputs.logits.shape[1], int(scenario.target)
        if classes < 2:
            return self.none(_ALONE)
        counts = np.bincount(_answers(outputs), minlength=classes)
        for at, count in enumerate(counts.tolist()):
            audit.record("predictions/classes", at, Value.of(stats.wilson(count, len(outputs))))
        others = [count for at, count in enumerate(counts.tolist()) if at != forgotten]
        found: Found = {"predictions/one_class": _largest(others, len(outputs))}
        reason = missing(frozenset({_SPLIT, "retrained"}), audit)
        if reason:
            return found | {"predictions/distance": Unavailable(reason)}
        other = audit.said(_SPLIT, "retrained")
        away = distance(_answers(outputs), _answers(other), classes)
        return found | {"predictions/distance": Value.of(away)}


def _answers(outputs: Outputs) -> NDArray[np.int64]:
    found: NDArray[np.int64] = outputs.prediction.long().flatten().numpy()
    return found


def _largest(counts: Sequence[int], n: int) -> Value:
    """Return the largest share, between the largest of the ends of all of them."""
    shares = [stats.wilson(count, n, level=level_of(len(counts))) for count in counts]
    return Value(max(s.x for s in shares), max(s.low for s in shares), max(s.high for s in shares), n)


METRIC = Predictions
