"""What is kept over what is forgotten along a setting of a grid's methods, as one plane a place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from expunge import stats
from expunge.bench.collect import Group
from expunge.bench.shown import STATUS, Made, Shown, noted
from expunge.bench.sweeps import Sweep
from expunge.errors import UserError, listing, suggest
from expunge.metric import Value
from expunge.report import frontiers
from expunge.report.frontiers import REFERENCES, Axis, Family, Plane, Spot
from expunge.report.pareto import FORGET, KEPT
from expunge.stats import Interval


def frontier(shown: Shown) -> Made:
    """Return two numbers along a setting.

    Args:
        shown: methods and places.

    Returns:
        The figure: a plane for each place, with a line for each family of methods that differ in the setting alone,
        other methods as single marks, and the original and the retrained model.

    Raises:
        UserError: no setting to go along, not two numbers, or ones that were not measured of two such methods.
    """
    across, up = _numbers(shown)
    sweep = shown.sweep(list(shown.methods), needed=True)
    assert sweep is not None  # it is needed
    whole = _Frontier(shown, sweep, across, up)
    return whole.made()


@dataclass(frozen=True)
class _Frontier:
    """A frontier while it is made."""

    shown: Shown
    sweep: Sweep
    across: str
    up: str

    def made(self) -> Made:
        """Return the figure."""
        shown, sweep = self.shown, self.sweep
        every = [Plane(shown.head(group), tuple(self._families(group))) for group in shown.places]
        planes = [plane for plane in every if any(len(family.spots) > 1 for family in plane.families)]
        if not planes:
            want = f"two finished methods that differ in {sweep.setting} alone, with {self.across} and {self.up}"
            raise UserError(want, "none", STATUS)
        missing = shown.missing(list(shown.methods)) + self._unmeasured()
        missing += [f"{plane.head}: no two points along {sweep.setting} yet." for plane in every if plane not in planes]
        seeds = max(spot.x.n for plane in planes for family in plane.families for spot in family.spots)
        many = f"Means over {seeds} seeds with their 95% t intervals, cut at the frame."
        text = ["One seed: no intervals." if seeds == 1 else many]
        text.append(f"Larger marks: larger {sweep.symbol}. Dotted lines: the retrained model.")
        chart = frontiers.Chart(
            planes=tuple(planes),
            across=self._axis(self.across),
            up=self._axis(self.up),
            setting=sweep.symbol,
            note=" ".join([*shown.scope(), *text, *noted(missing)]),
        )
        return Made(chart, shown.grid.title, tuple(missing))

    def _axis(self, name: str) -> Axis:
        scores = [group.scores for group in self.shown.places if group.scores is not None]
        found = (v for each in scores for row in each.values.values() if isinstance(v := row.get(name), Value))
        return Axis(next(each.numbers[name].label for each in scores if name in each.numbers), next(found).unit)

    def _families(self, group: Group) -> list[Family]:
        """Return the lines of a place, then single methods, then original and retrained."""
        sweep = self.sweep
        members = {f: [(f"{sweep.values[m]:g}", m) for m in ms] for f, ms in sweep.ordered().items()}
        for name in (*(m for m in self.shown.methods if m not in sweep.values), *REFERENCES):
            members[f"{name} (alone)" if name in members else name] = [("", name)]
        found = []
        for family, methods in members.items():
            ends = [(label, _mean(group, m, self.across), _mean(group, m, self.up)) for label, m in methods]
            some = [(label, x, y) for label, x, y in ends if x is not None and y is not None]
            spots = [Spot(label if len(some) > 1 else "", x, y) for label, x, y in some]
            found += [Family(family, tuple(spots))] if spots else []
        return found

    def _unmeasured(self) -> list[str]:
        """Return which finished models lack a number."""
        found = []
        for group in self.shown.places:
            values = group.scores.values if group.scores is not None else {}
            there = [m for m in (*self.shown.methods, *REFERENCES) if m in values]
            for name in (self.across, self.up):
                lost = [m for m in there if _mean(group, m, name) is None]
                found += [f"No {name} at {self.shown.short(group)}: {listing(lost, 8)}."] if lost else []
        return found


def _mean(group: Group, model: str, name: str) -> Interval | None:
    """Return a model's mean over seeds with its t interval, inside the number's range; None where a seed lacks it."""
    found = [scores.values[model].get(name) for scores in group.runs.values() if model in scores.values]
    values = [value.x for value in found if isinstance(value, Value)]
    if not values or len(values) < len(found):
        return None
    mean, (low, high) = stats.mean_t(values), next(iter(group.runs.values())).numbers[name].range
    if math.isinf(mean.low):
        return mean
    return Interval(mean.x, max(mean.low, low), min(mean.high, high), mean.n)


def _numbers(shown: Shown) -> tuple[str, str]:
    """Return the names of the two numbers: those that are asked for, or what is forgotten and what is kept.

    Raises:
        UserError: not two are named, or one was not measured.
    """
    there = [set(_measured(group)) for group in shown.places if group.runs]
    every, asked = set.union(*there), shown.wanted.show
    if not asked:
        common = sorted(set.intersection(*there))
        forget, kept = (_first(common, patterns) for patterns in (FORGET, KEPT))
        if forget is None or kept is None:
            remedy = f"name two numbers, as in --show {','.join(sorted(every)[:2])}"
            raise UserError("accuracy or loss on the forget set and on the rest", "not measured", remedy)
        return forget, kept
    if len(asked) > 1 or len(asked[0]) != 2:
        got = " and ".join(",".join(row) for row in asked)
        raise UserError("two numbers for a frontier", got, "write them as in --show accuracy/forget,accuracy/test")
    for name in asked[0]:
        if name not in every:
            raise UserError("a number that the grid measured", repr(name), suggest(name, every))
    return asked[0][0], asked[0][1]


def _measured(group: Group) -> list[str]:
    rows = [row for scores in group.runs.values() for row in scores.values.values()]
    return list(dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, Value)))


def _first(names: Sequence[str], patterns: Sequence[str]) -> str | None:
    return next((name for pattern in patterns for name in names if fnmatchcase(name, pattern)), None)
