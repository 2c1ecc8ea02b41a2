"""How far from retrained a gap is: the yardstick it is measured with, and the class of its length."""

from __future__ import annotations

from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report.document import Section

# A gap of class i is at most BOUNDS[i] yardsticks long; the last class is everything beyond.
BOUNDS = (1, 2, 4, 8)
FORGOTTEN = "accuracy/forget"
FEW = 2


def yardstick(section: Section, model: str, metric: str) -> tuple[float, str] | None:
    """Return the length that a gap is measured in and what it is, or None where nothing was measured.

    It is the floor, the mean difference of two retrained models; while that rests on one or two differences, half the
    interval of the value where that is longer. Where the floor is missing, or too small for the
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
    if floor is not None and floor["x"] > 0 and floor["x"] >= step:
        spread = fmt.half(value) if floor["n"] <= FEW and value is not None else None
        if spread and spread > floor["x"]:
            return spread, "half interval"
        return float(floor["x"]), "floor"
    for entry in (gap, value):
        spread = None if entry is None else fmt.half(entry)
        if spread:
            return max(spread, step), "half interval"
    return (step, "printed digit") if floor is not None and step else None


def overforgets(section: Section, model: str) -> bool:
    """Return whether a model gets fewer forgotten samples right than retrained does, by more than the yardstick."""
    gap, unit = doc.found(section, "gaps", model, FORGOTTEN), yardstick(section, model, FORGOTTEN)
    return gap is not None and unit is not None and gap["x"] < -unit[0]


def distance_class(length: float) -> int:
    """Return the class, 0 to 4, of a gap that is ``length`` yardsticks long.

    Args:
        length: size of the gap over that of its yardstick.

    Returns:
        0 within the yardstick, 4 beyond the last bound.

    >>> [distance_class(x) for x in (0.3, 1.5, 3, 8, 9)]
    [0, 1, 2, 3, 4]
    """
    # A hair of slack: 0.02 over 0.01 must not depend on the last bit.
    return sum(length > bound * (1 + 1e-9) for bound in BOUNDS)
