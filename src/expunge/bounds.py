"""Bounds on measured numbers: ``accuracy/test >= 0.9``, ``gap membership/loss/auc <= 0.05``."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from expunge.errors import UserError, suggest
from expunge.metric import Unavailable, Value
from expunge.scores import Scores

_HOLDS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_FORM = re.compile(r"\s*(gap\s+)?(\S+)\s*(>=|<=|>|<)\s*(\S+)\s*")

_GENTLER = "edit less (for ssd a larger alpha or dampening), or repair afterwards with finetune on retain data"
_STRONGER = "edit more (for ssd a smaller alpha or dampening), try another method, or retrain"
_COSTS = "take a larger runtime.batch_size, or a method that reads less data"


@dataclass(frozen=True)
class Bound:
    """One bound on one number of the unlearned model.

    Args:
        name: of the number, such as ``accuracy/test``.
        sign: ``>=``, ``<=``, ``>`` or ``<``.
        number: what it is held to, in the number's unit; shares in [0, 1].
        gap: whether the size of the gap to retrained is held, instead of the value.
    """

    name: str
    sign: str
    number: float
    gap: bool = False

    @classmethod
    def parse(cls, text: str, known: Iterable[str] | None = None) -> Bound:
        """Read ``NAME OP NUMBER`` or ``gap NAME OP NUMBER``.

        Args:
            text: the bound.
            known: names there are; None accepts any.

        Returns:
            The bound.

        Raises:
            UserError: it reads otherwise, or no number has that name.

        >>> Bound.parse("gap membership/loss/auc <= 0.05")
        Bound(name='membership/loss/auc', sign='<=', number=0.05, gap=True)
        """
        found = _FORM.fullmatch(text)
        remedy = "write for example 'accuracy/test >= 0.9' or 'gap membership/loss/auc <= 0.05'"
        if found is None:
            raise UserError("a bound NAME OP NUMBER with OP one of >= <= > <", repr(text), remedy)
        try:
            number = float(found[4])
        except ValueError as error:
            raise UserError(f"a number in the bound {text.strip()!r}", repr(found[4]), remedy) from error
        if not math.isfinite(number):
            raise UserError(f"a finite number in the bound {text.strip()!r}", found[4], remedy)
        names = None if known is None else list(known)
        if names is not None and found[2] not in names:
            raise UserError("a bound on a number that is measured", repr(found[2]), suggest(found[2], names))
        return cls(found[2], found[3], number, found[1] is not None)

    def __str__(self) -> str:
        return f"{'gap ' if self.gap else ''}{self.name} {self.sign} {self.number:g}"

    def check(self, scores: Scores, model: str) -> Outcome:
        """Hold one model's number to the bound.

        Args:
            scores: of one seed, or pooled.
            model: whose number.

        Returns:
            Whether it is met, by how much it is missed, and what to try; a number that could not be measured misses.
        """
        value = scores.values[model].get(self.name, Unavailable("no metric that was run measures it"))
        if self.gap and isinstance(value, Value):
            gap = scores.gaps.get(model, {}).get(self.name)
            value = Unavailable("there is no retrained model to compare with") if gap is None else _size(gap)
        if isinstance(value, Unavailable):
            return Outcome(self, None, met=False, sure=False, reason=value.reason, remedy="see the reason")
        holds = _HOLDS[self.sign]
        met = holds(value.x, self.number)
        worst = value.low if self.sign[0] == ">" else value.high
        return Outcome(self, value, met=met, sure=met and holds(worst, self.number), remedy=self._remedy(scores, model))

    def _remedy(self, scores: Scores, model: str) -> str:
        family, _, rest = self.name.partition("/")
        if family == "cost":
            return _COSTS
        gap = scores.gaps.get(model, {}).get(self.name)
        wants_less = self.sign[0] == "<"
        if self.gap:
            if gap is None:
                return _STRONGER
            keeps = family == "accuracy" and not rest.endswith("forget")
            wants_less = gap.x > 0 if not keeps else False
        if family == "accuracy" and not rest.endswith("forget"):
            return _STRONGER if wants_less and not self.gap else _GENTLER
        return _STRONGER if wants_less else _GENTLER


@dataclass(frozen=True)
class Outcome:
    """What became of a bound.

    Args:
        bound: the bound.
        value: what was measured, or None.
        met: whether the estimate meets it.
        sure: whether the whole 95 % interval does.
        reason: why nothing was measured.
        remedy: what to try, an imperative.
    """

    bound: Bound
    value: Value | None
    met: bool
    sure: bool
    reason: str = ""
    remedy: str = ""

    def sentence(self) -> str:
        """Return one sentence: met or missed, by how much, and what to try."""
        if self.value is None:
            return f"Bound missed: {self.bound} could not be measured: {self.reason}."
        by = abs(self.value.x - self.bound.number)
        if not self.met:
            return f"Bound missed: {self.bound}, got {self.value.x:.4g}, off by {by:.3g}: {self.remedy}."
        unsure = "" if self.sure else "; its 95 % interval does not settle it"
        return f"Bound met: {self.bound}, got {self.value.x:.4g}{unsure}."

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as JSON values."""
        x = None if self.value is None else self.value.x
        return {"bound": str(self.bound), "x": x, "met": self.met, "sure": self.sure, "text": self.sentence()}


def _size(gap: Value) -> Value:
    """Return the size of a signed gap, with the interval of that size."""
    ends = sorted((abs(gap.low), abs(gap.high)))
    low = 0.0 if gap.low <= 0 <= gap.high else ends[0]
    return Value(abs(gap.x), low, ends[1], gap.n, gap.unit)


def checked(bounds: Iterable[Bound], scores: Scores, model: str) -> list[Outcome]:
    """Return the outcome of each bound for one model."""
    return [bound.check(scores, model) for bound in bounds]
