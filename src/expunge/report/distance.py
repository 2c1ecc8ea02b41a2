"""How far from retrained a gap is: its yardstick, the class of its length, and whether chance alone explains it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scipy import special

from expunge import stats
from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report.document import Entry, Section

# A gap of class i is at most BOUNDS[i] yardsticks long; the last class is everything beyond.
BOUNDS = (1, 2, 4, 8)
FORGOTTEN = "accuracy/forget"
ERRORS = ("error/mae/forget", "error/rmse/forget")  # of real targets in its place: the larger, the less is known
FEW = 2
ALPHA = 0.05
UNCOUNTED = ("cost", "weights")  # groups in which a distance to retrained shows no trace: every edit starts elsewhere
CHANCE = 0.5


@dataclass(frozen=True)
class Told:
    """On how many quantities a model is told from retrained.

    Args:
        beyond: quantities whose gap is longer than its yardstick.
        measured: quantities whose gap has a yardstick.
        sure: quantities on which chance alone does not explain the gap, corrected for as many tests by Holm.
        tested: quantities that allow the test.
        farthest: the quantity with the longest gap in yardsticks, or None where no gap has a length.
        times: that length.
    """

    beyond: int
    measured: int
    sure: int
    tested: int
    farthest: Mapping[str, Any] | None = None
    times: float = 0.0


def yardstick(section: Section, model: str, metric: str) -> tuple[float, str] | None:
    """Return the length that a gap is measured in and what it is, or None where nothing was measured.

    It is the floor, the mean difference of two retrained models; while that rests on one or two differences, half the
    interval of the gap, or else of the value, where that is longer. Where the floor is missing, or too small for the
    printed digits to show (all retrained models may agree on a forgotten class), it is half the interval of the gap
    or of the value, at least one printed digit.

    Args:
        section: a section of the document.
        model: name of the model.
        metric: name of the metric.

    Returns:
        The length in the unit of the metric with its name, or None.
    """
    gap = doc.found(section, "gaps", model, metric)
    value, floor = doc.found(section, "values", model, metric), doc.floor(section, metric)
    step = fmt.resolution(str((gap or {}).get("unit", "")))
    spread = next((s for s in (fmt.half(e) for e in (gap, value) if e is not None) if s), None)
    if floor is not None and floor["x"] > 0 and floor["x"] >= step:
        if floor["n"] <= FEW and spread and spread > floor["x"]:
            return spread, "half interval"
        return float(floor["x"]), "floor"
    if spread:
        return max(spread, step), "half interval"
    return (step, "printed digit") if floor is not None and step else None


def length(section: Section, model: Mapping[str, Any], metric: Mapping[str, Any]) -> float | None:
    """Return how many yardsticks long a model's gap is; None for costs, for the reference, and without a yardstick."""
    if metric["group"] == "cost" or model["role"] == "retrained":
        return None
    gap = doc.found(section, "gaps", model["name"], metric["name"])
    unit = None if gap is None else yardstick(section, model["name"], metric["name"])
    return None if gap is None or unit is None else fmt.size(gap) / unit[0]


def distance_class(times: float) -> int:
    """Return the class, 0 to 4, of a gap that is ``times`` yardsticks long.

    Args:
        times: size of the gap over that of its yardstick.

    Returns:
        0 within the yardstick, 4 beyond the last bound.

    >>> [distance_class(x) for x in (0.3, 1.5, 3, 8, 9)]
    [0, 1, 2, 3, 4]
    """
    # A hair of slack: 0.02 over 0.01 must not depend on the last bit.
    return sum(times > bound * (1 + 1e-9) for bound in BOUNDS)


def told(section: Section, model: Mapping[str, Any]) -> Told:
    """Count the quantities on which a model is told from retrained, by the yardstick and by tests."""
    metrics = [m for m in section["metrics"] if m["group"] not in UNCOUNTED and not doc.is_constant(m)]
    lengths = [(times, m) for m in metrics if (times := length(section, model, m)) is not None]
    chances = [p for m in metrics if (p := chance(section, model, m)) is not None]
    times, farthest = max(lengths, key=lambda pair: pair[0], default=(0.0, None))
    beyond = sum(distance_class(times) > 0 for times, _ in lengths)
    return Told(beyond, len(lengths), sum(p <= ALPHA for p in stats.holm(chances)), len(chances), farthest, times)


def alarms(section: Section) -> Told | None:
    """Return on how many quantities a second retrained model is told from the first, the most where there are more."""
    found = [told(section, m) for m in doc.of_role(section, "floor")]
    return max(found, key=lambda t: (t.sure, t.beyond), default=None)


def chance(section: Section, model: Mapping[str, Any], metric: Mapping[str, Any]) -> float | None:
    """Return the two-sided p-value that a model's gap is none, read off its 95 % interval.

    With half the interval h = t·s, t the 0.975 quantile of Student's distribution of n − 1 degrees, it is
    2·P(T > |gap|·t/h): at most 0.05 exactly where the interval leaves 0 out. h is that of the side towards 0, and at
    least one printed digit, since runs that agree to the last sample prove no spread of zero. Where the gap of one
    seed has no interval, it is that of two independent estimates, too long for two models seen on the same samples.
    A number that is a distance by definition is never below its ideal, not even between two retrained models: its gap
    is tested against that of a second retrained model.

    Args:
        section: a section of the document.
        model: an entry of its models.
        metric: an entry of its metrics.

    Returns:
        The p-value; None for costs, for the reference, and where there is no interval to tell.
    """
    name, key = model["name"], metric["name"]
    gap = doc.found(section, "gaps", name, key)
    if gap is None or metric["group"] == "cost" or model["role"] == "retrained":
        return None
    step, ends, n = fmt.resolution(str(gap["unit"])), _ends(gap), int(gap["n"])
    if one_sided(metric):
        again = [doc.found(section, "gaps", m["name"], key) for m in doc.of_role(section, "floor")]
        other = _ends(again[0]) if again and again[0] else None
        if model["role"] == "floor" or other is None or ends is None:
            return None
        ends, n = stats.difference(ends, other), min(n, other.n)
    elif ends is None:
        found = (doc.found(section, "values", each, key) for each in (name, _reference(section)))
        own, base = (None if value is None else _ends(value) for value in found)
        if section["seeds"] > 1 or own is None or base is None:
            return None
        ends, n = stats.difference(own, base), min(own.n, base.n)
    return p_value(ends.x, ends.low, ends.high, n, step)


def p_value(x: float, low: float, high: float, n: int, step: float) -> float:
    """Return the two-sided p-value that belongs to a 95 % interval of n observations.

    >>> round(p_value(0.3, 0.0, 0.6, 50, 0.001), 6)
    0.05

    Args:
        x: the estimate.
        low: lower end.
        high: upper end.
        n: observations, at least 2.
        step: least half of the interval.

    Returns:
        At most 0.05 exactly where the interval leaves 0 out.
    """
    side = max(x - low if x > 0 else high - x, step)
    if x == 0 or side == 0:
        return 1.0 if x == 0 else 0.0
    return float(2 * special.stdtr(n - 1, -abs(x) * special.stdtrit(n - 1, 1 - ALPHA / 2) / side))


def one_sided(metric: Mapping[str, Any]) -> bool:
    """Return whether a number's ideal is an end of its range, as 0 is of a distance."""
    return metric["target"] is not None and metric["target"] in (metric.get("range") or (0, 1))


def _ends(entry: Entry) -> stats.Interval | None:
    if fmt.half(entry) is None or not all(math.isfinite(entry[end]) for end in ("low", "high")):
        return None
    return stats.Interval(entry["x"], entry["low"], entry["high"], int(entry["n"]))


def _reference(section: Section) -> str:
    return next((str(m["name"]) for m in doc.of_role(section, "retrained")), "")


def overforgets(section: Section, model: str, metric: str = FORGOTTEN) -> bool:
    """Return whether a model forgets more than retraining does, by more than the yardstick and the intervals.

    On the accuracy of the forget set: fewer are right than retrained gets right. On its error: it is larger than
    retrained's. On the AUC of an attack: the forgotten samples look less like members than unseen ones do (below one
    half), and than they do to retrained.

    Args:
        section: a section of the document.
        model: name of the model.
        metric: name of the metric; others than these three kinds are never over-forgetting.

    Returns:
        Whether it does; without a yardstick, or with an interval that reaches back, no. Nor where the original knows
        less than retrained itself, as it may on wrong labels: there a number below is memory, not its loss.
    """
    gap, unit = doc.found(section, "gaps", model, metric), yardstick(section, model, metric)
    less = 1 if metric in ERRORS else -1  # the sign of a gap of what knows less
    if gap is None or unit is None or not less * gap["x"] > unit[0]:
        return False
    before = [doc.found(section, "gaps", m["name"], metric) for m in doc.of_role(section, "original")]
    if any(b is not None and less * b["x"] > unit[0] for b in before):
        return False
    if metric == FORGOTTEN:
        return True
    if metric in ERRORS:
        return fmt.half(gap) is None or gap["low"] > 0
    if not is_auc(metric):
        return False
    value = doc.found(section, "values", model, metric)
    highs = (fmt.half(e) is not None and e["high"] for e in (value, gap) if e is not None)
    below = value is not None and value["x"] < CHANCE
    return below and all(high is False or high < limit for high, limit in zip(highs, (CHANCE, 0.0), strict=True))


def is_auc(metric: str) -> bool:
    """Return whether a metric is an attack's AUC."""
    return metric == "canaries/forgotten" or (metric.startswith("membership/") and metric.endswith("/auc"))
