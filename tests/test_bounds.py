"""Bounds: how they read, when they hold, and whether the remedy points the right way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge import attacks, metrics
from expunge.bounds import Bound, checked
from expunge.errors import UserError
from expunge.metric import Found, Goal, Number, Unavailable, Value
from expunge.scenario import Scenario
from expunge.scores import Scores, pooled, with_gaps

WORD = "accuracy/test"
GENTLER, STRONGER, EITHER = "edit less", "edit more", "try another strength"


def scored(targets: dict[str, float] | None = None, flaws: dict[str, str] | None = None, **models: Found) -> Scores:
    names = {name for found in models.values() for name in found}
    numbers = {n: Number(n, Goal.AS_RETRAINED, (0.0, 1.0), (targets or {}).get(n)) for n in names}
    given: dict[str, Any] = {k: {} for k in ("distances", "floor", "declined", "notes", "settings", "changed")}
    asked = Scenario(train=("a", "b"), forget=("a",)).asked
    gaps: dict[str, dict[str, Value]] = {m: {} for m in models}
    samples: dict[str, dict[str, np.ndarray]] = {m: {} for m in models}
    return with_gaps(Scores(models, gaps, numbers=numbers, samples=samples, asked=asked, flaws=flaws or {}, **given))


def share(x: float, half: float = 0.01) -> Value:
    return Value(x, x - half, x + half, 100)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("accuracy/test >= 0.9", Bound(WORD, ">=", 0.9)),
        ("accuracy/test>=.9", Bound(WORD, ">=", 0.9)),
        ("  accuracy/test  <\t1e-3 ", Bound(WORD, "<", 0.001)),
        ("gap accuracy/test <= 0.05", Bound(WORD, "<=", 0.05, gap=True)),
        ("gap   accuracy/test<=0.05", Bound(WORD, "<=", 0.05, gap=True)),
        ("weights/layer 1.weight > -2", Bound("weights/layer 1.weight", ">", -2.0)),
        ("gap my own number > 2", Bound("my own number", ">", 2.0, gap=True)),
        ("gapless/x > 2", Bound("gapless/x", ">", 2.0)),
        ("membership/loss/tpr_at_fpr_0.01 <= 0.1", Bound("membership/loss/tpr_at_fpr_0.01", "<=", 0.1)),
    ],
)
def test_a_bound_is_read(text: str, want: Bound) -> None:
    assert Bound.parse(text) == want
    assert Bound.parse(str(want)) == want


@given(
    st.sampled_from([WORD, "a b/c", "x/y-z"]),
    st.sampled_from([">=", "<=", ">", "<"]),
    st.floats(-1e12, 1e12, allow_nan=False).map(lambda v: float(f"{v:.9g}")),
    st.booleans(),
)
def test_what_is_written_is_read_again(name: str, sign: str, number: float, gap: bool) -> None:
    assert Bound.parse(str(Bound(name, sign, number, gap))) == Bound(name, sign, number, gap)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("accuracy/test", "a bound NAME OP NUMBER with OP one of >= <= > <, got 'accuracy/test'"),
        ("accuracy/test = 0.9", "a bound NAME OP NUMBER"),
        ("accuracy/test => 0.9", "a bound NAME OP NUMBER"),
        ("", "a bound NAME OP NUMBER with OP one of >= <= > <, got ''"),
        (">= 0.9", "a bound NAME OP NUMBER"),
        ("a >= >= 0.9", "a bound NAME OP NUMBER"),
        ("a >= 0.9 <= 1", "a bound NAME OP NUMBER"),
        ("accuracy/test >= 90%", "a number in the bound 'accuracy/test >= 90%', got '90%'"),
        ("accuracy/test >= nan", "a finite number in the bound 'accuracy/test >= nan', got nan"),
        ("accuracy/test <= inf", "a finite number in the bound"),
        (
            "acuracy/test >= 0.9",
            "a bound on a number that is measured, got 'acuracy/test': did you mean 'accuracy/test'",
        ),
        ("accuracy/test >= 90", r"a bound from 0 to 1 on accuracy/test, got 90: write shares in \[0, 1\], such as 0.9"),
        ("gap probe/x <= 3", "a bound from 0 to 2 on the gap of probe/x, got 3"),
        ("gap accuracy/test >= -0.1", "a bound from 0 to 1 on the gap of accuracy/test"),
    ],
)
def test_what_is_no_bound_says_so(text: str, said: str) -> None:
    known = {WORD: Number("a", Goal.MAX, (0.0, 1.0)), "probe/x": Number("b", Goal.MAX, (-1.0, 1.0))}
    with pytest.raises(UserError, match=said):
        Bound.parse(text, known)


def test_names_alone_have_no_range() -> None:
    assert Bound.parse("accuracy/test >= 90", [WORD]).number == 90
    free = {"loss/test": Number("a", Goal.AS_RETRAINED, (0.0, math.inf))}
    assert Bound.parse("gap loss/test <= 7", free).number == 7


@pytest.mark.parametrize(
    ("bound", "value", "met", "sure"),
    [
        ("accuracy/test >= 0.9", share(0.95), True, True),
        ("accuracy/test >= 0.9", share(0.905), True, False),
        ("accuracy/test >= 0.9", share(0.9), True, False),
        ("accuracy/test > 0.9", share(0.9), False, False),
        ("accuracy/test >= 0.9", share(0.895), False, False),
        ("accuracy/test <= 0.9", share(0.85), True, True),
        ("accuracy/test <= 0.9", share(0.895), True, False),
        ("accuracy/test < 0.9", share(0.9), False, False),
        ("accuracy/test >= 0.9", Value.single(0.99), True, False),
        ("accuracy/test <= 0.9", Value.single(0.1), True, False),
        ("accuracy/test <= 0.9", Value(0.1, -math.inf, 0.2, 3), True, True),
    ],
)
def test_it_holds_or_not_and_is_sure_or_not(bound: str, value: Value, met: bool, sure: bool) -> None:
    found = Bound.parse(bound).check(scored(ssd={WORD: value}), "ssd")
    assert (found.met, found.sure, found.value) == (met, sure, value)


def test_sentences() -> None:
    scores = scored(
        ssd={WORD: share(0.95)}, near={WORD: share(0.905)}, one={WORD: Value.single(0.95)}, low={WORD: share(0.5)}
    )
    bound = Bound.parse("accuracy/test >= 0.9")
    assert bound.check(scores, "ssd").sentence() == "Bound met: accuracy/test >= 0.9, got 0.95."
    near = "Bound met: accuracy/test >= 0.9, got 0.905; its 95 % interval does not settle it."
    assert bound.check(scores, "near").sentence() == near
    one = "Bound met: accuracy/test >= 0.9, got 0.95; what was measured does not settle it."
    assert bound.check(scores, "one").sentence() == one
    low = bound.check(scores, "low")
    assert low.sentence() == (
        "Bound missed: accuracy/test >= 0.9, got 0.5, off by 0.4: edit less (for ssd a larger alpha or dampening), or "
        "repair afterwards with finetune on retain data."
    )
    assert low.to_json() == {
        "bound": "accuracy/test >= 0.9",
        "x": 0.5,
        "met": False,
        "sure": False,
        "text": low.sentence(),
    }
    assert [o.met for o in checked([bound, Bound(WORD, "<=", 0.9)], scores, "ssd")] == [True, False]


def test_where_retrained_misses_too_no_strength_of_the_edit_is_advised() -> None:
    scores = scored(retrained={WORD: share(0.86)}, ssd={WORD: share(0.85)})
    assert Bound.parse("accuracy/test >= 0.9").check(scores, "ssd").sentence() == (
        "Bound missed: accuracy/test >= 0.9, got 0.85, off by 0.05: bound 'gap accuracy/test' instead, for retrained "
        "misses this one too, at 0.86."
    )
    assert GENTLER in Bound.parse("accuracy/test >= 0.855").check(scores, "ssd").remedy
    costly = scored(retrained={"cost/changed": share(0.9)}, ssd={"cost/changed": share(0.5)})
    assert "instead" not in Bound.parse("cost/changed <= 0.1").check(costly, "ssd").remedy


def test_what_was_not_measured_misses_with_its_reason() -> None:
    scores = scored(ssd={WORD: Unavailable("there are no samples in test")})
    found = Bound.parse("accuracy/test >= 0.9").check(scores, "ssd")
    assert not found.met
    assert found.to_json()["x"] is None
    assert found.sentence() == (
        "Bound missed: accuracy/test >= 0.9 could not be measured: there are no samples in test."
    )
    other = Bound.parse("probe/x >= 0").check(scores, "ssd")
    assert other.reason == "no metric that was run measures it"
    with pytest.raises(UserError, match="an evaluated model, got 'sdd'"):
        Bound.parse("accuracy/test >= 0.9").check(scores, "sdd")


def test_gaps_are_held_by_their_size() -> None:
    scores = scored(retrained={WORD: share(0.9)}, more={WORD: share(0.97)}, less={WORD: share(0.83)})
    for model in ("more", "less"):
        found = Bound.parse("gap accuracy/test <= 0.05").check(scores, model)
        assert found.value is not None
        assert found.value.x == pytest.approx(0.07)
        assert not found.met
        wide = Bound.parse("gap accuracy/test <= 0.1").check(scores, model)
        assert wide.met
        assert not wide.sure  # nothing pairs the two: one difference of two numbers


@pytest.mark.parametrize(
    ("low", "high", "want"),
    [
        (-0.02, 0.04, (0.0, 0.04)),
        (-0.06, 0.04, (0.0, 0.06)),
        (0.01, 0.04, (0.01, 0.04)),
        (-0.04, -0.01, (0.01, 0.04)),
        (-math.inf, math.inf, (0.0, math.inf)),
        (-math.inf, -0.01, (0.01, math.inf)),
        (0.0, 0.04, (0.0, 0.04)),
    ],
)
def test_the_interval_of_a_size(low: float, high: float, want: tuple[float, float]) -> None:
    middle = (low + high) / 2 if math.isfinite(high - low) else -0.02
    scores = scored(targets={"divergence/js": 0.0}, ssd={"divergence/js": Value(middle, low, high, 9)})
    found = Bound.parse("gap divergence/js <= 0.05").check(scores, "ssd").value
    assert found == Value(abs(middle), *want, 9)


def test_gaps_of_either_sign_do_not_cancel_over_seeds() -> None:
    runs = [scored(retrained={WORD: share(0.5)}, ssd={WORD: share(x)}) for x in (0.8, 0.2)]
    found = Bound.parse("gap accuracy/test <= 0.1").check(pooled(runs), "ssd")
    assert found.value is not None
    assert found.value.x == pytest.approx(0.3)
    assert (found.value.low, found.value.high) == (0.0, math.inf)
    assert not found.met
    same = [scored(retrained={WORD: share(0.5)}, ssd={WORD: share(x)}) for x in (0.52, 0.53, 0.54)]
    near = Bound.parse("gap accuracy/test <= 0.1").check(pooled(same), "ssd")
    assert near.met
    assert near.sure
    assert near.value is not None
    assert near.value.x == pytest.approx(0.03)
    assert near.value.high == pytest.approx(0.03 + 4.3027 * 0.01 / math.sqrt(3), rel=1e-4)


@pytest.mark.parametrize(
    ("models", "flaws", "said"),
    [
        ({}, {}, "there is no retrained model to compare with"),
        ({"retrained": Unavailable("there are no samples in test")}, {}, "retrained: there are no samples in test"),
        ({"retrained": share(0.5)}, {"retrained": "it holds NaN"}, "retrained: it holds NaN"),
    ],
)
def test_a_gap_that_is_not_there_says_why(models: dict[str, Any], flaws: dict[str, str], said: str) -> None:
    rows = {name: {WORD: value} for name, value in models.items()}
    scores = scored(flaws=flaws, ssd={WORD: share(0.9)}, **rows)
    assert Bound.parse("gap accuracy/test <= 0.1").check(scores, "ssd").reason == said


def test_the_reference_has_no_gap_to_itself() -> None:
    scores = scored(retrained={WORD: share(0.5)})
    assert Bound.parse("gap accuracy/test <= 1").check(scores, "retrained").reason == "it is the reference itself"


@pytest.mark.parametrize(
    ("bound", "way"),
    [
        ("accuracy/test >= 1", GENTLER),
        ("accuracy/test_retain >= 1", GENTLER),
        ("accuracy/test <= 0", STRONGER),
        ("accuracy/forget <= 0", STRONGER),
        ("accuracy/test_forget <= 0", STRONGER),
        ("accuracy/forget >= 1", GENTLER),
        ("loss/test <= 0", GENTLER),
        ("loss/forget >= 1", STRONGER),
        ("loss/forget <= 0", GENTLER),
        ("membership/loss/auc <= 0", STRONGER),
        ("membership/loss/auc >= 1", GENTLER),
        ("membership/entropy_lr <= 0", STRONGER),
        ("probe/one_shot <= 0", STRONGER),
        ("canaries/forgotten <= 0", STRONGER),
        ("canaries/kept >= 1", GENTLER),
        ("subgroups/worst_change >= 1", GENTLER),
        ("subgroups/spread <= 0", GENTLER),
        ("cost/changed <= 0", GENTLER),
        ("cost/seconds <= 0", "larger runtime.batch_size"),
        ("cost/peak_memory <= 0", "larger runtime.batch_size"),
        ("divergence/js/forget <= 0", EITHER),
        ("membership/svc >= 1", STRONGER),
        ("membership/neighbours <= 0", GENTLER),
        ("membership/paired/auc <= 0", STRONGER),
        ("flips/lost/test <= 0", GENTLER),
        ("paired/shift <= 0", STRONGER),
        ("paired/excess >= 1", GENTLER),
        ("paired/gap <= 0", EITHER),
        ("relearn/steps >= 1", STRONGER),
        ("relearn/ain <= 0", GENTLER),
        ("relearn/few <= 0", STRONGER),
        ("robustness/int8 <= 0", STRONGER),
        ("weights/to_original <= 0", GENTLER),
        ("weights/to_retrained <= 0", EITHER),
        ("zrf/forget >= 1", STRONGER),
        ("tow/tow >= 1", EITHER),
        ("similarity/cka/test >= 1", EITHER),
        ("activation/l2/test <= 0", EITHER),
    ],
)
def test_remedies_point_the_right_way(bound: str, way: str) -> None:
    held = Bound.parse(bound)
    found = held.check(scored(ssd={held.name: share(0.5)}), "ssd")
    assert not found.met
    assert way in found.remedy


@pytest.mark.parametrize(
    ("name", "more", "way"),
    [
        ("accuracy/forget", True, STRONGER),
        ("accuracy/forget", False, GENTLER),
        ("accuracy/test_retain", True, STRONGER),
        ("accuracy/test_retain", False, GENTLER),
        ("loss/forget", True, GENTLER),
        ("loss/forget", False, STRONGER),
        ("membership/loss/auc", True, STRONGER),
        ("membership/loss/auc", False, GENTLER),
        ("divergence/js/forget", True, EITHER),
    ],
)
def test_remedies_of_gaps_lead_to_retrained_from_either_side(name: str, more: bool, way: str) -> None:
    scores = scored(retrained={name: share(0.5)}, ssd={name: share(0.8 if more else 0.2)})
    found = Bound(name, "<=", 0.1, gap=True).check(scores, "ssd")
    assert not found.met
    assert way in found.remedy


def test_losses_in_place_of_answers_point_the_other_way() -> None:
    for name in ("robustness/noise", "relearn/few"):
        found = Bound(name, ">=", 0.9).check(scored(ssd={name: Value(0.5, 0.4, 0.6, 9, "loss")}), "ssd")
        assert STRONGER in found.remedy


def test_attacks_that_count_the_unseen_point_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[str, Any] = {"efficacy": type("Efficacy", (), {"counts": "unseen"}), "loss": attacks.load("loss")}
    monkeypatch.setattr(attacks, "names", lambda: list(counts))
    monkeypatch.setattr(attacks, "load", counts.__getitem__)
    name = "membership/efficacy"
    found = Bound(name, ">=", 0.9).check(scored(ssd={name: share(0.5)}), "ssd")
    assert STRONGER in found.remedy


def test_every_number_there_is_can_be_bound() -> None:
    for family in metrics.names():
        numbers = metrics.load(family)().numbers
        for name, number in numbers.items():
            edge = number.range[0] if math.isfinite(number.range[0]) else 0.0
            bound = Bound.parse(f"{name} >= {edge}", numbers)
            assert bound.name == name
            found = Bound(name, "<", edge).check(scored(ssd={name: Value.single(edge)}), "ssd")
            assert found.remedy
