"""One verdict of three from tests whose errors are known, and the verdict in words; no torch.

- ``distinguishable`` as soon as one test rejects after Holm's correction over the tests that can reject: a model that
  is one more retrained one, with every number within its margin, gets it with a chance of at most the level.
- ``indistinguishable within margin`` only where every two one-sided tests pass, over ten replicates or more; no rank
  among retrained models and no attack rejects, even uncorrected; the unlearned models are not found farther from the
  retrained than other retrained ones are, even uncorrected, and, where that was asked, are found nearer than the
  originals; and the controls, put through the same tests, come out right: ``no_op`` and ``head_mask`` distinguishable,
  a second retrained model not. A model of which one number is at its margin or beyond gets it with a chance of at most
  the level.
- ``insufficient evidence`` otherwise, with what is missing. A control that comes out wrong always gives it: tests that
  miss the model that was left as it was, or find fault with a retrained one, say nothing about a third. ``head_mask``
  masks a class: where a request is for none it is declined, not missing, and the text says why it does not apply. The
  other two controls apply to every request.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from expunge.errors import UserError, listing, suggest
from expunge.qualify.finding import FORBIDDEN, REPLICATES, Finding, least_rows
from expunge.qualify.power import check_power
from expunge.qualify.rank import least
from expunge.stats import holm

Value = Literal["indistinguishable within margin", "distinguishable", "insufficient evidence"]
Control = Literal["no_op", "head_mask", "retrained"]
Reader = Literal["engineer", "officer"]
INDISTINGUISHABLE: Value = "indistinguishable within margin"
DISTINGUISHABLE: Value = "distinguishable"
INSUFFICIENT: Value = "insufficient evidence"
CONTROLS: Mapping[Control, tuple[bool, str]] = {  # whether it is to be found distinguishable, and what it is
    "no_op": (True, "the model left as it was"),
    "head_mask": (True, "the model with its outputs masked alone"),
    "retrained": (False, "a second retrained model"),
}
ALWAYS: tuple[Control, ...] = ("no_op", "retrained")  # that apply to every request
ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether an unlearned model can be told from retrained ones.

    Args:
        value: one of three.
        reasons: why, one sentence each; of insufficient evidence what is missing, and how much of it.
        power: the smallest effect that could have been seen, by test.
        margin: the margin, by number.
        text: the verdict in words, for an engineer.
        findings: the tests that it rests on.
        n: replicates of the test with the fewest; 0 without any.
        k: retrained models of the rank with the fewest; 0 without any.
        level: chance of a false verdict that is not insufficient, each way.
        chance: power of the smallest effects.
        declined: why a control does not apply to this kind of request, by control.
    """

    value: Value
    reasons: tuple[str, ...]
    power: Mapping[str, float]
    margin: Mapping[str, float]
    text: str
    findings: tuple[Finding, ...]
    n: int
    k: int
    level: float
    chance: float
    declined: Mapping[Control, str] = field(default_factory=dict)


def family(findings: Sequence[Finding], level: float = 0.05) -> list[Finding]:
    """Return the tests that can reject: of m in the family, each has a smallest p of at most level/m.

    Who belongs to it is known from numbers of models alone, before any result: a test that so few models keep from
    rejecting does not cost the others their power, and does not speak. Of such families it is the largest that leaves
    out none with a smallest p as small as that of another.

    Args:
        findings: tests of one method; those of ``nearer`` do not reject it.
        level: chance of any false rejection.
    """
    tests = [f for f in findings if f.kind != "nearer"]
    for most in sorted({f.floor for f in tests}, reverse=True):
        able = [f for f in tests if f.floor <= most]
        if most * len(able) <= level + ROUNDING:
            return able
    return []


def rejections(findings: Sequence[Finding], level: float = 0.05) -> dict[str, float]:
    """Return the tests that find the model distinguishable, by name, with Holm's p over those that can reject.

    Args:
        findings: tests of one method.
        level: chance of any false rejection.
    """
    tests = family(findings, level)
    adjusted = zip(tests, holm([f.p for f in tests]), strict=True)
    return {f.name: p for f, p in adjusted if p <= level + ROUNDING}


def decide(
    findings: Sequence[Finding],
    controls: Mapping[Control, Sequence[Finding]],
    *,
    declined: Mapping[Control, str] | None = None,
    level: float = 0.05,
    power: float = 0.95,
) -> Verdict:
    """Return the verdict on one unlearning method, by the rules at the head of this module.

    Args:
        findings: one of each test, named differently; equivalences at the same level.
        controls: for ``no_op``, ``head_mask`` and ``retrained`` the findings of the same tests by the same names; one
            that was not run may be left out, and is then missing.
        declined: why a control that was not run cannot be, as its method says it, such as ``it masks one class``; of
            ``head_mask`` alone.
        level: chance of a false verdict, each way.
        power: of the findings' smallest effects, for the words.

    Raises:
        UserError: names that come twice, an unknown control, a control put through other tests, one declined that
            applies to every request, was run as well or has no reason, a level outside (0, 0.5), or a power outside
            [0.5, 1).
    """
    check_power(power, level)
    declined = declined or {}
    _check(findings, controls, declined)
    declined = _declined(declined, controls)
    wrong = _wrong(controls, level)
    rejected = rejections(findings, level)
    missing = [
        *_absent(findings, {*controls, *declined}, level),
        *(r for f in findings for r in _short(f, findings, level)),
    ]
    if wrong:
        value, reasons = INSUFFICIENT, [*wrong, *missing]
    elif rejected:
        value, reasons = DISTINGUISHABLE, _told(rejected, len(family(findings, level)), level)
    elif missing:
        value, reasons = INSUFFICIENT, missing
    else:
        value, reasons = INDISTINGUISHABLE, _passed(findings, controls)
    numbers = [f for f in findings if f.kind == "equivalence"]
    found = Verdict(
        value=value,
        reasons=tuple(reasons),
        power={f.name: f.smallest for f in findings},
        margin={f.name: f.margin for f in numbers if f.margin is not None},
        text="",
        findings=tuple(findings),
        n=min((f.n for f in numbers or [f for f in findings if f.kind in ("farther", "nearer")]), default=0),
        k=min((f.k for f in findings if f.kind == "rank"), default=0),
        level=level,
        chance=power,
        declined=declined,
    )
    return replace(found, text=words(found))


def _check(
    findings: Sequence[Finding], controls: Mapping[Control, Sequence[Finding]], declined: Collection[Control]
) -> None:
    tests = {f.name: f.kind for f in findings}
    if len(tests) != len(findings):
        raise UserError("findings of different names", f"{len(findings)} with {len(tests)} names", "rename one")
    for name in (*controls, *declined):
        if name not in CONTROLS:
            raise UserError("a control", repr(name), suggest(name, CONTROLS))
    for name, own in controls.items():
        if {f.name: f.kind for f in own} != tests or len(own) != len(tests):
            got = f"other tests of {name}"
            raise UserError("controls put through the same tests", got, "run every test on every control")


def _declined(declined: Mapping[Control, str], run: Collection[Control]) -> dict[Control, str]:
    """Return the reasons without a full stop, refusing controls that cannot be declined."""
    for name, why in declined.items():
        if name in ALWAYS:
            raise UserError(f"{listing(ALWAYS)} on every request", f"{name} declined", "run it: it always applies")
        if name in run:
            raise UserError("a control either run or declined", f"{name} as both", "leave one out")
        if not why.strip(" ."):
            raise UserError(f"the reason why {name} does not apply", repr(why), "say it as its method does")
        if word := next((w for w in FORBIDDEN if w in why.lower()), None):
            raise UserError("words that a test can bear out", f"'{word}' in '{why}'", "name what the control needs")
    return {name: why.strip().rstrip(".") for name, why in declined.items()}


def _wrong(controls: Mapping[Control, Sequence[Finding]], level: float) -> list[str]:
    """Return a sentence for each control that came out wrong."""
    found = []
    for name, (expected, what) in CONTROLS.items():
        if name not in controls:
            continue
        by = rejections(controls[name], level)
        if expected and not by:
            able = len(family(controls[name], level))
            by_none = (
                f"passed all {able} tests that could have rejected it" if able else "met no test that could reject"
            )
            found.append(f"Control {name} failed: {what} {by_none}.")
        if by and not expected:
            found.append(f"Control {name} failed: {what} was found distinguishable by {_list(by)}.")
    return found


def _absent(findings: Sequence[Finding], settled: Collection[Control], level: float) -> list[str]:
    """Return a sentence for each kind of test that was not run, and each control neither run nor declined."""
    kinds = {f.kind for f in findings}
    need = {
        "equivalence": f"No number was held against a margin: {REPLICATES} replicates or more are missing.",
        "rank": f"No rank among retrained models: {least(level)} retrained models or more are missing.",
        "farther": f"No comparison with other retrained models: {least_rows(level)} or more of each kind are missing.",
    }
    tests = f"{len(findings)} test{'' if len(findings) == 1 else 's'}"
    return [text for kind, text in need.items() if kind not in kinds] + [
        f"Control {name} is missing: put {what} through the same {tests}."
        for name, (_, what) in CONTROLS.items()
        if name not in settled
    ]


def _short(f: Finding, findings: Sequence[Finding], level: float) -> list[str]:
    """Return why a finding does not let its model pass, and how much more would decide; nothing where it does."""
    of = "retrained models" if f.kind == "rank" else "replicates"
    so_many = f"{f.have} {of}"
    if f.kind == "equivalence":
        few = f.n < REPLICATES
        if f.within is not None and f.within <= level + ROUNDING and not few:
            return []
        state = f"{f.name}: " + (f"{so_many} are too few" if few else f"not shown within ±{_n(f.margin)}{_unit(f)}")
        passable = f.passable is not None and math.isfinite(f.passable)
        rest = f"; a margin of {_n(f.passable)} could have been passed" if passable else ""
        return [f"{state} (p = {_n(f.within)}){rest}; {_more(f, of)}."]
    if f.floor > level + ROUNDING:
        return [f"{f.name}: {so_many} cannot reject at level {level:g} (smallest p {_n(f.floor)}); {_more(f, of)}."]
    if f.kind == "nearer":
        return (
            [] if f.p <= level + ROUNDING else [f"{f.name}: not shown (p = {_n(f.p)}) with {so_many}; {_more(f, of)}."]
        )
    if f.p > level + ROUNDING:
        return []
    m = sum(g.kind != "nearer" for g in findings)
    if f.kind == "rank":  # twice as many for a rank on both sides, whose smallest p is 2/(K + 1)
        enough = math.ceil(round(f.floor * (f.k + 1)) * m / level - 1e-9) - 1
    else:
        enough = least_rows(level / m)
    more = f"{enough} {of} would let it reject alone among {m} tests, {max(0, enough - f.have)} more"
    return [f"{f.name}: rejects on its own (p = {_n(f.p)}) but not after correction for {m} tests; {more}."]


def _more(f: Finding, of: str) -> str:
    if f.needed is None:
        return f"no number of {of} would do if the effect is as estimated"
    return f"{f.needed} {of} are needed, {max(0, f.needed - f.have)} more"


def _told(rejected: Mapping[str, float], m: int, level: float) -> list[str]:
    corrected = f"corrected for {m} test{'' if m == 1 else 's'}"
    return [f"{name}: p = {_n(p)}, {corrected}, is at most the level {level:g}." for name, p in rejected.items()]


def _passed(findings: Sequence[Finding], controls: Collection[Control]) -> list[str]:
    """Return a sentence for each condition of the verdict that is met."""
    numbers = [f for f in findings if f.kind == "equivalence"]
    worst = max(numbers, key=lambda f: f.within or 0.0)
    first = f"All {len(numbers)} numbers are within their margins: largest p = {_n(worst.within)} ({worst.name})."
    if len(numbers) == 1:
        first = f"{worst.name} is within its margin: p = {_n(worst.within)}."
    rest = [
        f"{f.name}: p = {_n(f.p)}, " + ("shown." if f.kind == "nearer" else "does not reject.")
        for f in findings
        if f.kind != "equivalence"
    ]
    return [first, *rest, "Controls came out right: " + ", ".join(name for name in CONTROLS if name in controls) + "."]


def _n(x: float | None) -> str:
    return "none" if x is None or math.isinf(x) else f"{x:.3g}"


def _unit(f: Finding) -> str:
    return f" {f.unit}" if f.unit else ""


def _list(names: Mapping[str, float]) -> str:
    return ", ".join(names)


OFFICER: Mapping[str, str] = {
    INDISTINGUISHABLE: "In these tests the model after unlearning could not be told from models trained without the "
    "data, within the margins stated below. An effect within the margins, or of a kind that no test looked for, would "
    "not have been seen.",
    DISTINGUISHABLE: "These tests tell the model after unlearning from models trained without the data. Whether what "
    "they see is a trace of the data or damage, do not treat the request as fulfilled by this method.",
    INSUFFICIENT: "These tests cannot decide: neither that the model can be told from models trained without the data, "
    "nor that it cannot. What is missing or went wrong stands below.",
}


def words(verdict: Verdict, reader: Reader = "engineer") -> str:
    """Return the verdict as plain text with n, K, margins, level and the smallest effects that could have been seen.

    Args:
        verdict: from `decide`.
        reader: ``engineer``, with tests and p-values; ``officer``, of data protection, with what follows from them.

    Raises:
        UserError: an unknown reader.
    """
    if reader not in get_args(Reader):
        raise UserError("a reader", repr(reader), suggest(reader, get_args(Reader)))
    lines = [f"Verdict: {verdict.value}."]
    if reader == "officer":
        lines.append(OFFICER[verdict.value])
    if reader == "engineer" or verdict.value == INSUFFICIENT:
        lines += [f"- {reason}" for reason in verdict.reasons]
    lines += [f"Control {name} does not apply: {why}." for name, why in verdict.declined.items()]
    lines.append(
        f"It rests on n = {verdict.n} replicates (each its own original and retrained model) and K = {verdict.k} "
        f"retrained models to rank among, at level {verdict.level:g}, the largest chance of a false verdict."
    )
    margins = [f"±{_n(f.margin)}{_unit(f)} of {f.name}{f' ({f.why})' if f.why else ''}" for f in _numbers(verdict)]
    lines.append(f"Margin: {'; '.join(margins) or 'none was stated'}.")
    seen = [
        f"{f.name}: " + ("none with so few" if math.isinf(f.smallest) else f"{_n(f.smallest)}{_unit(f)}")
        for f in verdict.findings
    ]
    effects = "; ".join(seen) or "none, for no test was run"
    lines.append(f"The smallest effect that would have been seen with a chance of {verdict.chance:.0%}: {effects}.")
    return "\n".join(lines)


def _numbers(verdict: Verdict) -> list[Finding]:
    return [f for f in verdict.findings if f.kind == "equivalence"]
