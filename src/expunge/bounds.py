"""Bounds on measured numbers: ``accuracy/test >= 0.9``, ``gap membership/loss/auc <= 0.05``."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from expunge import attacks
from expunge.errors import UserError, suggest
from expunge.metric import Number, Unavailable, Value
from expunge.scores import REFERENCE, Scores

_HOLDS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_FORM = re.compile(r"\s*(gap\s+)?([^\s<>=][^<>=]*?)\s*(>=|<=|>|<)\s*(\S+)\s*")

_GENTLER = "edit less (for ssd a larger alpha or dampening), or repair afterwards with finetune on retain data"
_STRONGER = "edit more (for ssd a smaller alpha or dampening), try another method, or retrain"
_EITHER = "try another strength of the edit (for ssd alpha and dampening) or another method, or retrain"
_COSTS = "take a larger runtime.batch_size, or a method that reads less data"
# Whether a number rises (1) or falls (-1) as the edit gets gentler, by the beginning of its name; of others, such as
# distances to retrained, that depends on where the model stands.
_GENTLE = {
    "accuracy/forget_clean": -1,
    "accuracy/": 1,
    "backdoor/": 1,
    "loss/": -1,
    "membership/": 1,
    "probe/": 1,
    "canaries/": 1,
    "gaussian/": -1,
    "subgroups/worst_change": 1,
    "subgroups/spread": -1,
    "cost/changed": -1,
    "flips/": -1,
    "paired/shift": 1,
    "paired/excess": 1,
    "error/mae_constant/": 0,
    "error/rmse_constant/": 0,
    "error/pinball_constant/": 0,
    "error/": -1,
    "error_attack/": 1,
    "ain/": -1,
    "decisions/flipped/original": -1,
    "stability/original": -1,
    "segments/": -1,
    "relearn/steps": -1,
    "relearn/ain": -1,
    "relearn/few": 1,
    "robustness/": 1,
    "weights/to_original": -1,
    "zrf/": -1,
}
_ANSWERS = ("relearn/few", "robustness/")  # shares of right answers; without classes losses, which go the other way


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
            known: names there are, or the declared numbers by name, whose ranges are then held to; None accepts any.

        Returns:
            The bound.

        Raises:
            UserError: it reads otherwise, no number has that name, or it lies outside the range of that number.

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
        bound = cls(found[2], found[3], number, found[1] is not None)
        if isinstance(known, Mapping) and isinstance(known[bound.name], Number):
            low, high = known[bound.name].range
            low, high = (0.0, high - low) if bound.gap else (low, high)
            if not low <= number <= high:
                want = f"a bound from {low:g} to {high:g} on {'the gap of ' if bound.gap else ''}{bound.name}"
                raise UserError(want, found[4], "write shares in [0, 1], such as 0.9 for 90 %")
        return bound

    def __str__(self) -> str:
        return f"{'gap ' if self.gap else ''}{self.name} {self.sign} {self.number:.12g}"

    def check(self, scores: Scores, model: str) -> Outcome:
        """Hold one model's number to the bound.

        Args:
            scores: of one seed, or pooled.
            model: whose number.

        Returns:
            Whether it is met, by how much it is missed, and what to try; a number that could not be measured misses.
        """
        value = scores[model].get(self.name, Unavailable("no metric that was run measures it"))
        if self.gap and isinstance(value, Value):
            value = _size(scores, model, self.name)
        if isinstance(value, Unavailable):
            return Outcome(self, None, met=False, sure=False, reason=value.reason, remedy="see the reason")
        holds = _HOLDS[self.sign]
        met = holds(value.x, self.number)
        worst = value.low if self.sign[0] == ">" else value.high
        return Outcome(self, value, met=met, sure=met and holds(worst, self.number), remedy=self._remedy(scores, model))

    def _remedy(self, scores: Scores, model: str) -> str:
        if self.name.startswith("cost/") and self.name != "cost/changed":
            return _COSTS
        goal = scores.values.get(REFERENCE, {}).get(self.name)
        held = not self.gap and not self.name.startswith("cost/") and model != REFERENCE
        if held and isinstance(goal, Value) and not _HOLDS[self.sign](goal.x, self.number):
            # Nothing that is as good as retraining meets it: an edit in either direction would leave the goal.
            return f"bound 'gap {self.name}' instead, for {REFERENCE} misses this one too, at {goal.x:.4g}"
        rises = self.sign[0] == ">"  # what the number must do
        if self.gap:  # a size shrinks towards retrained's value, from whichever side
            gap = scores.gaps[model][self.name].x
            rises = rises == (gap > 0)
            if gap == 0:
                return _EITHER
        way = _gentle(self.name, scores, model)
        return _EITHER if way == 0 else _GENTLER if rises == (way > 0) else _STRONGER


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
        if self.sure:
            return f"Bound met: {self.bound}, got {self.value.x:.4g}."
        what = "its 95 % interval" if math.isfinite(self.value.high - self.value.low) else "what was measured"
        return f"Bound met: {self.bound}, got {self.value.x:.4g}; {what} does not settle it."

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as JSON values."""
        x = None if self.value is None else self.value.x
        return {"bound": str(self.bound), "x": x, "met": self.met, "sure": self.sure, "text": self.sentence()}


def _gentle(name: str, scores: Scores, model: str) -> int:
    """Return 1 where a number rises as the edit gets gentler, -1 where it falls, 0 where that cannot be said."""
    found = next((way for start, way in _GENTLE.items() if name.startswith(start)), 0)
    parts = name.split("/")
    if parts[0] == "membership" and parts[1] in attacks.names() and attacks.load(parts[1]).counts == "unseen":
        return -found
    value = scores[model].get(name)
    if name.startswith(_ANSWERS) and isinstance(value, Value) and value.unit == "loss":
        return -found
    return found


def _size(scores: Scores, model: str, name: str) -> Value | Unavailable:
    """Return the size of a signed gap, averaged over seeds after the sign is dropped, with what is known of it.

    Gaps of either sign cancel in the mean over seeds. Where they did, the interval of that mean bounds the size from
    below only.
    """
    gap = scores.gaps.get(model, {}).get(name)
    if gap is None:
        return Unavailable(_no_gap(scores, model, name))
    ends = sorted((abs(gap.low), abs(gap.high)))
    low = 0.0 if gap.low <= 0 <= gap.high else ends[0]
    size = scores.distances.get(model, {}).get(name, abs(gap.x))
    cancelled = not math.isclose(size, abs(gap.x), rel_tol=1e-9, abs_tol=1e-12)
    return Value(size, low, math.inf if cancelled else ends[1], gap.n, gap.unit)


def _no_gap(scores: Scores, model: str, name: str) -> str:
    if model == REFERENCE:
        return "it is the reference itself"
    if REFERENCE not in scores.values:
        return "there is no retrained model to compare with"
    there = scores.values[REFERENCE].get(name)
    why = scores.flaws.get(REFERENCE) or getattr(there, "reason", "")
    return f"{REFERENCE}: {why}" if why else "its gap to retrained is not known on every seed"


def checked(bounds: Iterable[Bound], scores: Scores, model: str) -> list[Outcome]:
    """Return the outcome of each bound for one model."""
    return [bound.check(scores, model) for bound in bounds]
