import math
from dataclasses import replace
from itertools import chain, combinations, product

import numpy as np
import pytest

from expunge.errors import UserError
from expunge.qualify.equivalence import margin_from_floor, tost
from expunge.qualify.finding import Finding, least_rows, of_equivalence, of_rank, of_relative
from expunge.qualify.nearer import relative
from expunge.qualify.power import smallest_difference, smallest_margin, smallest_shift
from expunge.qualify.rank import least, rank_number
from expunge.qualify.verdict import decide, family, rejections, words
from expunge.stats import clopper_pearson

GOOD, BAD, UNSURE = "indistinguishable within margin", "distinguishable", "insufficient evidence"
FORBIDDEN = ("deleted", "erased", "guarantee", "proved")


def equivalence(within, p, n=12, **more):
    return Finding(
        name="accuracy", kind="equivalence", p=p, within=within, n=n, margin=0.03, smallest=0.045, passable=0.02,
        needed=31, unit="share", **more,
    )  # fmt: skip


def rank(p, k):
    return Finding(name="loss", kind="rank", p=p, k=k, n=1, floor=1 / (k + 1), needed=19, smallest=3.7, unit="sd")


def other(kind, p, floor=0.001):
    return Finding(name=kind, kind=kind, p=p, n=20, floor=floor, smallest=1.5, needed=3)


EQUIVALENCE = {
    "pass": equivalence(0.01, 1.0),
    "fail": equivalence(0.3, 0.5),
    "beyond": equivalence(1.0, 1e-6),
    "few": equivalence(0.001, 1.0, n=5),
    "one": equivalence(1.0, 1.0, n=1, floor=1.0),
    "absent": None,
}
RANK = {"pass": rank(0.4, 99), "alone": rank(0.04, 99), "reject": rank(0.01, 99), "few": rank(1 / 6, 5), "absent": None}
FARTHER = {
    "pass": other("farther", 0.5),
    "alone": other("farther", 0.03),
    "reject": other("farther", 0.001),
    "few": other("farther", 0.1, floor=0.1),
    "absent": None,
}
NEARER = {"pass": other("nearer", 0.001), "fail": other("nearer", 0.4), "absent": None}
ATTACK = {"pass": other("attack", 0.2), "alone": other("attack", 0.03), "reject": other("attack", 1e-4), "absent": None}
CONTROL = ("right", "wrong", "missing")
WHY = "it masks one class, and the forget set is of kind 'random'"
EXPECTED = {"no_op": True, "head_mask": True, "retrained": False}


def controls(findings, states=("right",) * 3):
    """Return controls put through the same tests, each found distinguishable or not as its state says."""
    found = {}
    for (name, expected), state in zip(EXPECTED.items(), states, strict=True):
        if state not in ("missing", "declined"):
            p = 1e-9 if expected == (state == "right") else 1.0
            found[name] = [replace(f, p=p, floor=min(f.floor, p)) for f in findings]
    return found


def rejected(findings):
    """Return whether any test rejects, by closed testing over every subset of those that can."""
    tests = [f for f in findings if f.kind != "nearer"]
    fit = [s for m in range(len(tests) + 1) for s in combinations(tests, m) if all(f.floor * m <= 0.05 for f in s)]
    able = [f.p for f in max(fit, key=len)]
    for i in range(len(able)):
        rest = able[:i] + able[i + 1 :]
        sets = chain.from_iterable(combinations(rest, r) for r in range(len(able)))
        if all(min(able[i], *s) * (len(s) + 1) <= 0.05 if s else able[i] <= 0.05 for s in sets):
            return True
    return False


def rule(choice, findings, states):
    """Return the verdict by the rules as the module's head states them."""
    if any(f.kind != "nearer" for f in findings):
        wrong = [s == "wrong" for s in states]
    else:  # without a test that can reject nothing is found distinguishable
        wrong = [s not in ("missing", "declined") and e for s, e in zip(states, EXPECTED.values(), strict=True)]
    if any(wrong):
        return UNSURE
    if rejected(findings):
        return BAD
    passed = choice["equivalence"] == choice["rank"] == choice["farther"] == "pass" and choice["nearer"] != "fail"
    passed = passed and choice["attack"] != "alone"
    return GOOD if passed and states[::2] == ("right",) * 2 and states[1] in ("right", "declined") else UNSURE


def cases():
    tables = {"equivalence": EQUIVALENCE, "rank": RANK, "farther": FARTHER, "nearer": NEARER, "attack": ATTACK}
    for states in product(CONTROL, (*CONTROL, "declined"), CONTROL):
        short = {"nearer": ["absent"], "attack": ["absent"]}
        yield from ((dict(zip(tables, c, strict=True)), states) for c in product(*({**tables, **short}.values())))
    for c in product(*tables.values()):
        yield dict(zip(tables, c, strict=True)), ("right",) * 3


def picked(choice):
    tables = {"equivalence": EQUIVALENCE, "rank": RANK, "farther": FARTHER, "nearer": NEARER, "attack": ATTACK}
    return [f for name, state in choice.items() if (f := tables[name][state]) is not None]


def test_every_combination_has_the_verdict_of_the_rules_and_says_what_it_must():
    seen, texts = {GOOD: 0, BAD: 0, UNSURE: 0}, 0
    for choice, states in cases():
        findings = picked(choice)
        declined = {"head_mask": WHY} if "declined" in states else {}
        found = decide(findings, controls(findings, states), declined=declined)
        assert found.value == rule(choice, findings, states), (choice, states)
        assert found.reasons
        seen[found.value] += 1
        for reader in ("engineer", "officer"):
            text = words(found, reader)
            assert not any(word in text.lower() for word in FORBIDDEN)
            assert f"n = {found.n} " in text
            assert f"K = {found.k} " in text
            assert "level 0.05" in text
            assert "smallest effect" in text
            assert ("±0.03 share" if found.margin else "Margin: none was stated") in text
            assert all(f"{f.name}: {f.smallest:.3g}" in text for f in findings)
            assert "nan" not in text
            assert " inf" not in text
            assert text.count(f"Control head_mask does not apply: {WHY}.") == len(declined)
            assert "Control head_mask is missing" not in text or not declined
            texts += 1
    # attack passes or is absent; nearer passes or is absent; one is seen twice; a control is declined
    assert seen[GOOD] == 6
    assert seen[BAD] > 500
    assert seen[UNSURE] > 500
    assert texts == 2 * sum(seen.values())


ALL = [EQUIVALENCE["pass"], RANK["pass"], FARTHER["pass"]]


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("state", ["wrong", "missing"])
def test_a_control_that_is_wrong_or_missing_is_named(name, state):
    states = [state if n == name else "right" for n in EXPECTED]
    found = decide(ALL, controls(ALL, states))
    assert found.value == UNSURE
    want = f"Control {name} " + ("failed" if state == "wrong" else "is missing")
    assert [want in r for r in found.reasons] == [True]
    worse = [EQUIVALENCE["beyond"], *ALL[1:]]
    assert decide(worse, controls(worse, states)).value == (UNSURE if state == "wrong" else BAD)


def test_a_control_that_does_not_apply_is_not_missing_and_the_text_says_so_once():
    own = controls(ALL, ("right", "declined", "right"))
    found = decide(ALL, own, declined={"head_mask": WHY})
    assert decide(ALL, own).value == UNSURE
    assert (found.value, found.declined) == (GOOD, {"head_mask": WHY})
    assert found.reasons[-1] == "Controls came out right: no_op, retrained."
    assert decide(ALL, own, declined={"head_mask": f" {WHY}."}) == found  # a sentence of its own says the same
    full = decide(ALL, controls(ALL))
    assert (full.declined, full.reasons[-1]) == ({}, "Controls came out right: no_op, head_mask, retrained.")
    for verdict, times in ((found, 1), (full, 0)):
        for reader in ("engineer", "officer"):
            assert words(verdict, reader).split("\n").count(f"Control head_mask does not apply: {WHY}.") == times
    rest = decide(ALL, controls(ALL, ("missing", "declined", "wrong")), declined={"head_mask": WHY})
    assert rest.value == UNSURE
    assert [r.split(":")[0] for r in rest.reasons] == ["Control retrained failed", "Control no_op is missing"]


@pytest.mark.parametrize(
    ("table", "state", "want"),
    [
        (EQUIVALENCE, "fail", r"accuracy: not shown within ±0.03 share \(p = 0.3\); a margin of 0.02 could .* 31 "
         "replicates are needed, 19 more"),
        (EQUIVALENCE, "few", "accuracy: 5 replicates are too few .* 31 replicates are needed, 26 more"),
        (EQUIVALENCE, "absent", "No number was held against a margin: 10 replicates or more"),
        (RANK, "few", r"loss: 5 retrained models cannot reject at level 0.05 \(smallest p 0.167\); 19 .* 14 more"),
        (RANK, "alone", r"loss: rejects on its own \(p = 0.04\) but not after correction for 3 tests; 59 retrained"),
        (RANK, "absent", "No rank among retrained models: 19 retrained models or more are missing"),
        (FARTHER, "few", "farther: 20 replicates cannot reject"),
        (FARTHER, "alone", "farther: rejects on its own .* 4 replicates would let it reject alone among 3 tests, 0 m"),
        (FARTHER, "absent", "No comparison with other retrained models: 3 or more of each kind are missing"),
        (NEARER, "fail", r"nearer: not shown \(p = 0.4\) with 20 replicates"),
    ],
)  # fmt: skip
def test_insufficient_evidence_names_what_is_missing_and_how_much(table, state, want):
    tables = [EQUIVALENCE, RANK, FARTHER] + ([NEARER] if table is NEARER else [])
    findings = [f for t in tables if (f := t[state if t is table else "pass"]) is not None]
    found = decide(findings, controls(findings))
    assert found.value == UNSURE
    with pytest.raises(AssertionError, match=want):
        raise AssertionError(found.reasons[0])
    assert len(found.reasons) == 1
    assert found.reasons[0] in words(found)
    assert found.reasons[0] in words(found, "officer")


def test_tests_that_cannot_reject_cost_the_others_nothing():
    ranks = [replace(rank(0.05, 19), name=f"loss {i}") for i in range(6)]
    attack = other("attack", 0.03)
    assert family([attack, *ranks]) == [attack]
    assert rejections([attack, *ranks]) == {"attack": 0.03}
    assert rejections(ranks) == {}
    more = [attack, replace(attack, name="second", p=0.9)]
    assert rejections(more) == {}
    assert family([other("nearer", 0.001)]) == []
    assert least(0.05 / 6) == 119
    assert len(rejections([replace(rank(1 / 120, 119), name=str(i)) for i in range(6)])) == 6
    sides = replace(rank(0.04, 99), floor=0.02)
    text = " ".join(decide([sides, other("attack", 0.5)], {}).reasons)
    assert "79 retrained models would let it reject alone among 2 tests, 0 more" in text
    single = rank(0.05, 19)
    assert rejections([single]) == {"loss": pytest.approx(0.05)}


def test_the_verdict_carries_its_numbers():
    found = decide([replace(EQUIVALENCE["pass"], why="Pairs differ by 0.03."), *ALL[1:]], controls(ALL))
    assert (found.value, found.n, found.k, found.level, found.chance) == (GOOD, 12, 99, 0.05, 0.95)
    assert found.margin == {"accuracy": 0.03}
    assert found.power == {"accuracy": 0.045, "loss": 3.7, "farther": 1.5}
    assert found.text == words(found)
    assert "accuracy (Pairs differ by 0.03.)" in found.text
    assert "could not be told" in words(found, "officer")
    assert "p = " in found.text
    assert "p = " not in words(found, "officer")
    nothing = decide([], {})
    assert (nothing.value, nothing.n, nothing.k) == (UNSURE, 0, 0)
    assert len(nothing.reasons) == 6


def test_findings_carry_the_numbers_of_their_tests():
    a = np.random.default_rng(0).normal(0, 0.5, 12)
    result = tost(a, np.zeros(12), 1.0, name="gap")
    found = of_equivalence(result, unit="nats")
    assert (found.p, found.within, found.n, found.margin) == (result.beyond, result.p, 12, 1.0)
    assert found.smallest == pytest.approx(smallest_difference(12, a.std(ddof=1), margin=1.0))
    assert found.passable == pytest.approx(smallest_margin(12, a.std(ddof=1)))
    assert found.needed == 10
    assert of_equivalence(tost(a, np.zeros(12), 0.1)).needed is None or found.passable > 0.1
    far = of_equivalence(tost(a + 5, np.zeros(12), 1.0))
    assert far.needed is None
    one = of_equivalence(tost([1.0], [1.0], 1.0))
    assert (one.floor, one.smallest, one.passable, one.needed) == (1.0, math.inf, math.inf, 10)
    ranked = of_rank(rank_number(1.0, np.arange(25.0)))
    assert (ranked.k, ranked.needed, ranked.smallest) == (25, 39, smallest_shift(25))
    assert of_rank(rank_number(1.0, np.arange(25.0)), smallest=2.0, unit="x").smallest == 2.0
    u, w, r = np.random.default_rng(1).normal(size=(3, 5, 2))
    for side in ("farther", "nearer"):
        test = relative(u, w, r, side=side)
        of = of_relative(test, smallest=1.25)
        assert (of.kind, of.p, of.floor, of.n, of.needed, of.smallest) == (side, test.p, 1 / 252, 5, 3, 1.25)


@pytest.mark.parametrize("level", [0.05, 0.01, 0.001])
def test_fewest_rows_that_can_reject(level):
    n = least_rows(level)
    assert 1 / math.comb(2 * n, n) <= level + 1e-12
    assert n == 2 or 1 / math.comb(2 * n - 2, n - 1) > level


def world(seed, gap=0.0, n=20, k=59, d=4):
    """Return findings of planted truth: a method off by ``gap`` in accuracy, and by as much in every vector."""
    rng = np.random.default_rng(seed)
    unlearned, retrained = rng.normal(0.8 + gap, 0.01, n), rng.normal(0.8, 0.01, n)
    found = [of_equivalence(tost(unlearned, retrained, 0.02, name="accuracy"))]
    found.append(of_rank(rank_number(rng.normal(50 * gap), rng.normal(size=k), side="upper")))
    if n > 1:
        u, w, r = (rng.normal(100 * g, 1, (n, d)) for g in (gap, 0, 0))
        found.append(of_relative(relative(u, w, r, side="farther", permutations=199, seed=seed), smallest=1.0))
    return found


CONTROLS = {"no_op": world(1, 0.2), "head_mask": world(2, 0.1), "retrained": world(4)}


def test_planted_worlds_are_judged_with_the_errors_stated():
    trials = 150
    right = [decide(world([10, s]), CONTROLS).value for s in range(trials)]
    assert clopper_pearson(right.count(BAD), trials, 0.999).low <= 0.05
    assert right.count(GOOD) > 0.75 * trials
    # 5 % each of rank and comparison are left unsure
    edge = [decide(world([11, s], 0.02), CONTROLS).value for s in range(60)]
    assert clopper_pearson(edge.count(GOOD), 60, 0.999).low <= 0.05
    wrong = [decide(world([12, s], 0.1), CONTROLS).value for s in range(20)]
    assert wrong == [BAD] * 20


@pytest.mark.parametrize("n", [1, 5])
def test_few_replicates_are_insufficient_evidence_however_good_they_look(n):
    for seed in range(10):
        findings = world([seed, n], n=n, k=n)
        found = decide(findings, {"retrained": world([seed, 9], n=n, k=n)})
        assert found.value == UNSURE
        text = " ".join(found.reasons)
        assert f"{n} retrained models cannot reject" in text
        assert f"{19 - n} more" in text
        assert f"{n} replicates are too few" in text
    own = world(3, n=n, k=n)
    unchanged = {"no_op": world(1, 0.2, n=n, k=n), "head_mask": world(2, 0.1, n=n, k=n), "retrained": own}
    assert decide(own, unchanged).value == UNSURE
    if n == 1:
        assert any("Control no_op failed" in r for r in decide(own, unchanged).reasons)
        assert decide(world(1, 0.2, n=1, k=1), {}).value == UNSURE  # one model far off is none the wiser


def test_a_margin_of_the_floor_and_its_reason_reach_the_words():
    floor = margin_from_floor(np.random.default_rng(0).normal(0, 0.01, 20))
    a, b = np.random.default_rng(1).normal(0.8, 0.003, (2, 20))
    found = of_equivalence(tost(a, b, floor.delta, name="accuracy"), why=floor.reason)
    text = decide([found, *ALL[1:]], controls([found, *ALL[1:]])).text
    assert floor.reason in text
    assert f"±{floor.delta:.3g} of accuracy" in text


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: decide([*ALL, ALL[0]], {}), "findings of different names, got 4 with 3 names"),
        (lambda: decide(ALL, {"noop": ALL}), "a control, got 'noop': did you mean 'no_op'"),
        (lambda: decide(ALL, {"no_op": ALL[:2]}), "controls put through the same tests, got other tests of no_op"),
        (lambda: decide(ALL, {}, declined={"masked": WHY}), "a control, got 'masked'"),
        (
            lambda: decide(ALL, {}, declined={"no_op": WHY}),
            "no_op, retrained on every request, got no_op declined: run",
        ),
        (lambda: decide(ALL, {}, declined={"retrained": WHY}), "on every request, got retrained declined: run it"),
        (
            lambda: decide(ALL, {"head_mask": ALL}, declined={"head_mask": WHY}),
            "a control either run or declined, got head_mask as both: leave one out",
        ),
        (
            lambda: decide(ALL, {}, declined={"head_mask": " ."}),
            "the reason why head_mask does not apply, got ' .': say",
        ),
        (lambda: decide(ALL, {}, declined={"head_mask": "All is Erased."}), "a test can bear out, got 'erased' in"),
        (lambda: decide(ALL, {}, level=0.6), "a level between 0 and 0.5"),
        (lambda: decide(ALL, {}, power=0.2), "a power from 0.5"),
        (lambda: words(decide([], {}), "lawyer"), "a reader, got 'lawyer'"),
        (lambda: replace(ALL[0], name="deleted rows"), "words that a test can bear out, got 'deleted'"),
        (lambda: replace(ALL[0], why="It is proved."), "got 'proved'"),
        (lambda: replace(ALL[0], kind="test"), "a kind of finding, got 'test'"),
        (lambda: replace(ALL[0], within=None), "a margin and its p with an equivalence alone"),
        (lambda: replace(ALL[1], within=0.5, margin=1.0), "a margin and its p with an equivalence alone"),
        (lambda: replace(ALL[1], p=1.5), "p-values of 'loss' between 0 and 1, got 1.5"),
        (lambda: least(0.7), "a level between 0 and 0.5"),
    ],
)
def test_errors(call, match):
    with pytest.raises(UserError, match=match):
        call()
