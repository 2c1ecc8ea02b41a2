"""What each test found, in the one form that the verdict reads; no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from expunge.errors import UserError, suggest
from expunge.qualify.equivalence import Equivalence, check_level
from expunge.qualify.nearer import Relative
from expunge.qualify.power import check_power, replicates, smallest_difference, smallest_margin, smallest_shift
from expunge.qualify.rank import Rank, least

Kind = Literal["equivalence", "rank", "farther", "nearer", "attack"]
REPLICATES = 10  # fewer show neither their spread nor whether it is normal
FORBIDDEN = ("deleted", "erased", "guarantee", "proved")  # no test of an approximate method says so


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One test of one unlearning method, as the verdict reads it.

    Args:
        name: of the test, as in a report.
        kind: ``equivalence`` (two one-sided tests of a number), ``rank`` (of one model among retrained ones),
            ``farther`` (than other retrained models), ``nearer`` (than the original), or ``attack`` and any other
            test that rejects.
        p: of the hypothesis that nothing is wrong: the difference is within the margin, or the model is one more
            retrained one. Of ``nearer``, that the unlearned model is no nearer than the original.
        floor: the smallest p that could have come out with so many models.
        n: replicates, or samples of an attack.
        needed: as many as decide with the stated power, of models where it is a rank; None where no number does.
        smallest: the smallest effect that so many would have shown with the power, in the unit; infinite for none.
        unit: of margin and effect.
        k: retrained models of a rank.
        within: p of two one-sided tests; of ``equivalence`` only.
        margin: of two one-sided tests; of ``equivalence`` only.
        passable: the smallest margin that so many would have passed with the power; of ``equivalence`` only.
        why: the reason for the margin, one sentence.

    Raises:
        UserError: an unknown kind, a p outside [0, 1], what an equivalence needs is missing, or a text that says
            more than a test can.
    """

    name: str
    kind: Kind
    p: float
    n: int
    smallest: float
    floor: float = 0.0
    needed: int | None = None
    unit: str = ""
    k: int = 0
    within: float | None = None
    margin: float | None = None
    passable: float | None = None
    why: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UserError("a kind of finding", repr(self.kind), suggest(self.kind, get_args(Kind)))
        for p in (self.p, self.floor, 0.0 if self.within is None else self.within):
            if not 0 <= p <= 1:
                raise UserError(f"p-values of '{self.name}' between 0 and 1", str(p), "leave out tests that have none")
        if (self.kind == "equivalence") != (self.within is not None and self.margin is not None):
            raise UserError("a margin and its p with an equivalence alone", f"'{self.name}'", "take of_equivalence")
        said = " ".join((self.name, self.unit, self.why)).lower()
        if word := next((w for w in FORBIDDEN if w in said), None):
            raise UserError("words that a test can bear out", f"'{word}' in '{said}'", "name what was measured")

    @property
    def have(self) -> int:
        """What the finding rests on: retrained models of a rank, else replicates or samples."""
        return self.k if self.kind == "rank" else self.n


def of_equivalence(result: Equivalence, *, power: float = 0.95, unit: str = "", why: str = "") -> Finding:
    """Return the finding of two one-sided tests, with what so many replicates would have seen and passed.

    The number needed is that with which a true difference of the estimate passes with the power; None where it does
    not lie within the margin.

    Args:
        result: of `equivalence.tost`.
        power: chance that the smallest difference beyond the margin is found, and that a difference of 0 passes.
        unit: of the number.
        why: the reason for the margin.

    Raises:
        UserError: a power outside [0.5, 1).
    """
    check_power(power, result.level)
    known, n, spread, level, paired = result.n > 1, result.n, result.spread, result.level, result.paired
    seen = passable = math.inf
    needed: int | None = REPLICATES
    if known:
        seen = smallest_difference(n, spread, margin=result.margin, power=power, level=level, paired=paired)
        passable = smallest_margin(n, spread, power=power, level=level, paired=paired)
        needed = replicates(
            spread, result.margin, power=power, truth=result.estimate, level=level, paired=paired
        )  # fmt: skip
    return Finding(
        name=result.name,
        kind="equivalence",
        p=result.beyond,
        within=result.p,
        floor=0.0 if known else 1.0,
        n=n,
        needed=None if needed is None else max(needed, REPLICATES),
        smallest=seen,
        passable=passable,
        unit=unit,
        margin=result.margin,
        why=why,
    )


def of_rank(
    result: Rank,
    *,
    name: str = "rank among retrained models",
    power: float = 0.95,
    smallest: float | None = None,
    unit: str = "standard deviations of a retrained model",
) -> Finding:
    """Return the finding of a rank; by default its smallest effect is that of a normal number.

    Args:
        result: of `rank.rank_number` or `rank.rank_distance`.
        name: of the test.
        power: chance that the smallest effect is found.
        smallest: the smallest effect in the unit, as `planted.distance_shift` returns it for distances.
        unit: of the smallest effect.

    Raises:
        UserError: a power outside [0.5, 1).
    """
    effect = smallest_shift(result.k, power=power, level=result.level, side=result.side)
    return Finding(
        name=name,
        kind="rank",
        p=result.p,
        floor=result.floor,
        n=1,
        k=result.k,
        needed=least(result.level, result.side),
        smallest=effect if smallest is None else smallest,
        unit=unit,
    )


def of_relative(
    result: Relative,
    *,
    smallest: float,
    name: str = "",
    level: float = 0.05,
    unit: str = "mean distances of a retrained model from their mean",
) -> Finding:
    """Return the finding of a test of relative distance, ``farther`` or ``nearer`` by its side.

    Args:
        result: of `nearer.relative`.
        smallest: the smallest effect in the unit, as `planted.kernel_shift` returns it.
        name: of the test; by default what it asks.
        level: of the verdict, for the number of models needed.
        unit: of the smallest effect.

    Raises:
        UserError: a level outside (0, 0.5).
    """
    asked = "farther than other retrained models" if result.side == "farther" else "nearer than the original"
    return Finding(
        name=name or asked,
        kind=result.side,
        p=result.p,
        floor=result.floor,
        n=min(result.sizes),
        needed=least_rows(level),
        smallest=smallest,
        unit=unit,
    )


def least_rows(level: float) -> int:
    """Return the fewest rows in either of two samples of which some relabelling can reject.

    >>> least_rows(0.05), least_rows(0.01)
    (3, 5)

    Raises:
        UserError: a level outside (0, 0.5).
    """
    check_level(level)
    n = 2
    while math.comb(2 * n, n) * level < 1 - 1e-12:
        n += 1
    return n
