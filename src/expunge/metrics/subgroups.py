"""Who paid: accuracy by class and by user column, before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from expunge import stats
from expunge.evidence import Outputs
from expunge.metric import Audit, Found, Goal, Metric, Number, Place, Unavailable, Value, missing
from expunge.metrics._groups import LEAST, columns, level_of, staying
from expunge.stats import Interval


@dataclass(frozen=True, kw_only=True)
class Subgroups(Metric):
    """Accuracy of each group of samples that are not of the forgotten kind, and its change against the original.

    Groups are the classes (column ``label``) and the values of every column with 2 to 50 of them, not all different.
    Samples are test samples, without those of the forgotten kind where that kind can be told of unseen samples;
    without test samples the retain set. With c_i and o_i in {0, 1} saying whether model and original are right on
    sample i, the accuracy of a group g is mean_{i∈g} c_i (Wilson's interval), its change mean_{i∈g} (c_i − o_i), paired
    by sample (Bonett and Price's interval). Both are kept as series, ``subgroups/<column>/accuracy`` and
    ``subgroups/<column>``: 95 % intervals of one group, right for a group chosen beforehand.

    ``subgroups/worst_change`` is min_g of the changes: who paid most, 0 where nobody did. Of many groups one looks bad
    by accident, so its interval is simultaneous: with m groups of all columns each interval is taken at the level
    1 − 0.05/m (Bonferroni, whatever their overlap); together they hold at 95 %, and the smallest true change then lies
    between the smallest of the lower and the smallest of the upper ends. The estimate itself is too low on average, all
    the more for small groups: hold it against that of retrained and of a second retrained model.

    ``subgroups/spread`` is max_g − min_g of the accuracies, from max(0, max_g low − min_g high) to max_g high − min_g
    low of simultaneous intervals of the same kind. n counts the samples of the groups that a number speaks of.

    References:
        O. J. Dunn, "Multiple comparisons among means", 1961, https://doi.org/10.1080/01621459.1961.10482090.
    """

    goal: ClassVar[Goal] = Goal.AS_RETRAINED
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    needs: ClassVar[frozenset[str]] = frozenset({"classes"})
    wants: ClassVar[frozenset[str]] = frozenset({"original"})
    undefined: ClassVar[tuple[str, ...]] = (
        "every test sample is of the forgotten kind",
        f"fewer than {LEAST} samples: ",
        f"no group has {LEAST} samples",
        f"needs two groups of {LEAST} samples",
    )

    @property
    def numbers(self) -> dict[str, Number]:
        """``subgroups/worst_change`` and ``subgroups/spread``."""
        return {
            "subgroups/worst_change": self.number("change of accuracy of the group that paid most"),
            "subgroups/spread": self.number("accuracy, best group minus worst", range=(0.0, 1.0)),
        }

    def measure(self, audit: Audit) -> Found:
        """Keep accuracy and change of every group, and return the worst change and the spread."""
        split = staying(audit)
        if split is None:
            return self.none("every test sample is of the forgotten kind")
        reason = missing(frozenset({split, "labels"}), audit)
        if reason:
            return self.none(reason)
        right = _right(audit.said(split))
        alone = missing(frozenset({split, "labels", "original"}), audit)
        before = None if alone else _right(audit.said(split, "original"))
        large = []
        for column, groups in columns(audit, split):
            for at, rows in groups.items():
                was = None if before is None else before[rows]
                _keep(audit, column, at, right[rows], was, alone or "")
                large += [rows] if len(rows) >= LEAST else []
        if not large:
            return self.none(f"no group has {LEAST} samples")
        change = Unavailable(alone or "") if before is None else _worst([(right[g], before[g]) for g in large])
        few = Unavailable(f"needs two groups of {LEAST} samples, there is one")
        spread = few if len(large) == 1 else _spread([right[g] for g in large])
        return {"subgroups/worst_change": change, "subgroups/spread": spread}


def _right(outputs: Outputs) -> NDArray[np.bool_]:
    assert outputs.target is not None
    found: NDArray[np.bool_] = outputs.prediction.eq(outputs.target).numpy()
    return found


def _keep(
    audit: Audit, column: str, at: Place, right: NDArray[np.bool_], before: NDArray[np.bool_] | None, alone: str
) -> None:
    name, n = f"subgroups/{column}", len(right)
    accuracy: Value | Unavailable
    change: Value | Unavailable
    if n < LEAST:
        accuracy = change = Unavailable(f"fewer than {LEAST} samples: {n}")
    else:
        accuracy = Value.of(stats.wilson(int(right.sum()), n))
        change = Unavailable(alone) if before is None else Value.of(stats.paired_proportions(right, before))
    audit.record(name, at, change)
    audit.record(f"{name}/accuracy", at, accuracy)


def _worst(pairs: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]) -> Value:
    found = [stats.paired_proportions(*pair, level=level_of(len(pairs))) for pair in pairs]
    worst = min(found, key=lambda i: i.x)
    return Value(worst.x, min(i.low for i in found), min(i.high for i in found), worst.n)


def _spread(groups: list[NDArray[np.bool_]]) -> Value:
    found = [stats.wilson(int(right.sum()), len(right), level_of(len(groups))) for right in groups]
    best, worst = max(found, key=_x), min(found, key=_x)
    low = max(i.low for i in found) - min(i.high for i in found)
    high = max(i.high for i in found) - min(i.low for i in found)
    return Value(best.x - worst.x, max(0.0, low), high, best.n + worst.n)


def _x(interval: Interval) -> float:
    return interval.x


METRIC = Subgroups
