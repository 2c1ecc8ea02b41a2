"""Groups of samples by class and by user column: what measures of who paid share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.metric import Audit, Place
from expunge.task import Classes

LEAST = 10  # samples of a group below which nothing is said of it
MOST = 50  # groups of a column above which it is taken for an id or a measured quantity
LEVEL = 0.95

Groups = dict[Place, NDArray[np.int64]]


def staying(audit: Audit) -> str | None:
    """Return the set to look at; None where all that is known is of the forgotten kind."""
    told = audit.outputs("test_retain") is not None
    names = ["test_retain" if told else "test", "retain"]
    there = [n for n in names if len(audit.outputs(n) or ())]
    return there[0] if there else None if told else "test"


def columns(audit: Audit, split: str) -> Iterator[tuple[str, Groups]]:
    """Yield the groups of every column with 2 to 50 of them, not all different; first the classes, where there are."""
    said = audit.said(split)
    if isinstance(audit.task, Classes) and said.target is not None:
        yield "label", _groups(said.target.tolist())
    data = audit.data.get(split)
    if data is None or len(data) != len(said):
        return
    for name, values in data.columns.items():
        groups = _groups(values.tolist())
        if 2 <= len(groups) <= MOST and len(groups) < len(said):
            yield "label (column)" if name == "label" else name, groups


def _groups(values: list[Any]) -> Groups:
    """Return the positions of each value, in order of the values."""
    where: dict[Place, list[int]] = {}
    for i, value in enumerate(values):
        where.setdefault(_place(value), []).append(i)
    order = sorted(where, key=lambda v: (isinstance(v, str), v))
    return {at: np.asarray(where[at]) for at in order}


def _place(value: Any) -> Place:
    """Return a column's value as a place: numbers as they are, all else, no value included, as text."""
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, bool) or not isinstance(plain, int | float):
        return str(plain)
    return plain if math.isfinite(plain) else str(plain)


def level_of(groups: int) -> float:
    """Return the level at which each of so many intervals is taken, so that all hold together at 95 %."""
    return 1 - (1 - LEVEL) / groups
