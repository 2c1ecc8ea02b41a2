"""Verdicts from simulated requests with planted truth."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy import stats as distributions

from expunge.errors import UserError
from expunge.qualify import rejections
from expunge.qualify.judge import Judged, Smallest, _more, farness, judge, least_models, margins_of, thirds
from expunge.qualify.trials import Said, Trials
from expunge.stats import clopper_pearson
from qualify import worlds

KNOWN = Smallest(rank=3.0, kernel=1.0, calls=0.6, share=0.1)
WHY = {"head_mask": "it masks one class"}
EQUIVALENCES = {
    "score of forgotten samples",
    "accuracy on forgotten samples",
    "accuracy on retained samples",
    "accuracy on test samples",
}


def judged(trials: Trials, **settings: Any) -> Judged:
    controls: Any = {"no_op": trials.original, "retrained": trials.retrained}
    every: dict[str, Any] = {"declined": WHY, "smallest": KNOWN, "permutations": 499, **settings}
    return judge(trials, controls, **every)


def p_of(found: Judged, name: str, control: str | None = None) -> float:
    findings = found.findings if control is None else found.controls[control]
    return next(f.p for f in findings if f.name == name)


def test_thirds_keep_pairs_together_and_share_no_row() -> None:
    for models in (6, 8, 10, 30, 64):
        t = thirds(models)
        rows = [t.asked, t.beside, t.margin]
        assert sorted(np.concatenate(rows)) == list(range(models))
        assert all(set(third // 2 * 2) | set(third // 2 * 2 + 1) == set(third) for third in rows)
        assert len(t.asked) >= len(t.beside) >= len(t.margin) >= len(t.asked) - 2
        assert list(t.pairs) == list(t.margin[::2])


def test_thirty_models_are_the_fewest_that_decide() -> None:
    t = thirds(30)
    assert (len(t.asked), len(t.beside), len(t.pairs), len(t.others)) == (10, 10, 5, 20)
    assert least_models() == 30
    assert len(thirds(28).others) == 18  # below the 19 of a rank
    assert len(thirds(least_models(0.01)).others) >= 99 > len(thirds(least_models(0.01) - 2).others)


@pytest.mark.parametrize("models", [2, 4, 7])
def test_too_few_models_say_how_many_are_missing(models: int) -> None:
    missing = {2: "got 2: train 4 more", 4: "got 4: train 2 more", 7: "halves"}[models]
    if models == 7:
        assert len(thirds(7).asked) == 3
    else:
        with pytest.raises(UserError, match=missing):
            thirds(models)


def test_models_that_forgot_pass_and_controls_come_out_right() -> None:
    found = judged(worlds.trials(models=64, seed=3))
    assert found.verdict.value == "indistinguishable within margin"
    assert set(rejections(found.controls["no_op"])) >= {"score of forgotten samples", "samples far out"}
    assert not rejections(found.controls["retrained"])
    assert found.verdict.n == 22
    assert found.verdict.k == 42
    assert set(found.verdict.margin) == EQUIVALENCES
    assert p_of(found, "nearer than the original") <= 0.05 < p_of(found, "nearer than the original", "no_op")


def test_models_that_forgot_are_seldom_found_distinguishable() -> None:
    found = [judge(worlds.trials(models=30, samples=200, unseen=30, seed=s), {}, smallest=KNOWN, permutations=199)
             for s in range(100)]  # fmt: skip
    wrong = sum(bool(rejections(f.findings)) for f in found)
    assert wrong <= 10  # a level of 5 % has more with a chance of 1 %


@pytest.mark.parametrize("models", [30, 36])
def test_models_left_as_they_were_are_distinguishable(models: int) -> None:
    found = judged(worlds.trials(models=models, left=1.0, seed=models))
    assert found.verdict.value == "distinguishable"
    told = set(rejections(found.findings))
    assert {"score of forgotten samples", "farther than other retrained models", "samples far out"} <= told
    assert "told from retrained, sample by sample" in told
    own = [(f.name, f.p, f.within) for f in found.findings]
    assert own == [(f.name, f.p, f.within) for f in found.controls["no_op"]]  # the same models through the same tests


def test_damage_counts_as_a_trace_does() -> None:
    found = judged(worlds.trials(models=30, left=-1.0))
    assert found.verdict.value == "distinguishable"
    assert "score of forgotten samples" in rejections(found.findings)


def test_half_of_what_was_remembered_is_found_with_more_models() -> None:
    found = judged(worlds.trials(models=64, left=0.5, memory=3.0))
    assert found.verdict.value == "distinguishable"


def test_few_models_are_insufficient_and_the_text_says_how_many_are_needed() -> None:
    trials = worlds.trials(models=12, left=1.0)
    found = judged(trials)
    assert found.verdict.value == "insufficient evidence"
    assert "12 models are too few for a verdict, 30 are needed, 18 more" in found.verdict.text
    assert len(found.verdict.reasons) == 1
    assert "150 are needed, 138 more" in judged(trials, level=0.01).verdict.text
    assert judged(worlds.trials(models=8)).verdict.value == "insufficient evidence"


def test_a_method_blind_to_its_own_original_gives_insufficient_evidence() -> None:
    found = judged(worlds.trials(models=30, memory=0.0, seed=2))
    assert found.verdict.value == "insufficient evidence"
    assert "Control no_op failed" in found.verdict.text
    assert found.verdict.declined == WHY


def test_few_samples_that_were_skipped_are_found_where_means_are_within_the_margin() -> None:
    trials = worlds.trials(models=48, samples=1200, unseen=30, skipped=0.05, memory=3.0)
    found = judged(trials, smallest=None, margins={"score of forgotten samples": 0.5})
    score, tail = found.findings[0], found.findings[-1]
    assert score.within is not None
    assert score.within < 0.001
    assert tail.name == "samples far out"
    assert tail.p <= 0.005
    assert tail.smallest <= 0.05
    assert tail.unit.startswith("of a request's samples")
    assert "samples far out" in rejections(found.findings)
    assert not rejections(found.findings).keys() & EQUIVALENCES
    assert p_of(found, "samples far out", "retrained") > 0.05


def test_the_stated_share_is_found_with_about_the_stated_power() -> None:
    world: dict[str, Any] = {"models": 30, "samples": 400, "unseen": 20, "memory": 4.0}
    share = judge(worlds.trials(**world), {}, power=0.8).findings[-1].smallest
    assert 0.01 < share < 0.5
    seen = [judge(worlds.trials(**world, skipped=share, seed=s), {}, smallest=KNOWN, permutations=199).findings[-1].p
            for s in range(1, 31)]  # fmt: skip
    assert sum(p <= 0.05 for p in seen) >= 18  # of 30 at 80 % fewer have a chance of 1 %


def test_numbers_are_those_of_a_welch_test_on_plain_loops() -> None:
    trials = worlds.trials(models=30, left=0.2)
    margin = 0.4
    found = judged(trials, margins={"score of forgotten samples": margin}).findings[0]

    def gap(said: Said, t: int) -> float:
        values = []
        for x in np.flatnonzero(trials.forget[t]):
            models = [r for r in range(30) if r // 2 != t // 2 and not trials.reference.kept[r, x]]
            values.append(said.train[t, x] - np.mean([trials.reference.train[r, x] for r in models]))
        return float(np.mean(values))

    ours = np.array([gap(trials.unlearned, t) for t in range(30) if t // 2 % 3 == 0])
    theirs = np.array([gap(trials.retrained, t) for t in range(30) if t // 2 % 3 == 1])
    sides = [
        distributions.ttest_ind(ours + margin, theirs, equal_var=False, alternative="greater").pvalue,
        distributions.ttest_ind(ours - margin, theirs, equal_var=False, alternative="less").pvalue,
    ]
    assert found.within == pytest.approx(max(sides), rel=1e-9)
    assert (found.margin, found.why, found.n, found.unit) == (margin, "as given", 10, "nats")
    apart = sorted(abs(gap(trials.retrained, t) - gap(trials.retrained, t + 1)) for t in (4, 10, 16, 22, 28))
    delta, why = margins_of(trials)["score of forgotten samples"]
    assert delta == pytest.approx(apart[-1])  # of 5 pairs the largest bounds the median with 95 %
    assert "5 pairs" in why


def test_margins_do_not_depend_on_models_that_are_tested() -> None:
    trials = worlds.trials(models=30)
    third = np.arange(30) // 2 % 3 == 2
    others = trials.retrained
    moved = replace(others, train=others.train + 5.0 * ~third[:, None])
    found = margins_of(replace(trials, retrained=moved, unlearned=trials.original))
    assert found == margins_of(trials)


def test_accuracies_that_never_differ_get_the_worth_of_one_sample() -> None:
    trials = worlds.trials(models=30, unseen=40)
    every = {
        name: replace(getattr(trials, name), right_test=np.ones((30, 40), dtype=bool))
        for name in ("original", "unlearned", "retrained", "reference")
    }
    found = judged(replace(trials, **every))
    test = next(f for f in found.findings if f.name == "accuracy on test samples")
    assert test.margin == 1 / 40
    assert "one sample of 40" in test.why
    assert test.within is not None
    assert test.within <= 0.05


def test_tasks_without_classes_are_held_to_scores() -> None:
    trials = worlds.trials(models=30, left=1.0)
    bare = {
        name: replace(getattr(trials, name), right=None, right_test=None)
        for name in ("original", "unlearned", "retrained", "reference")
    }
    found = judged(replace(trials, **bare))
    scores = [f for f in found.findings if f.kind == "equivalence"]
    assert [f.name for f in scores] == [f"score of {part} samples" for part in ("forgotten", "retained", "test")]
    assert {f.unit for f in scores} == {"loss"}
    assert found.verdict.value == "distinguishable"


def test_the_tail_counts_every_relabelling_of_whole_rows() -> None:
    values = np.random.default_rng(4).random(7)
    p, floor = _more(values[None], 3, 999, 0)
    every = [values[list(rows)].sum() for rows in combinations(range(7), 3)]
    assert p[0] == pytest.approx(np.mean([total >= values[:3].sum() - 1e-12 for total in every]))
    assert floor == pytest.approx(1 / 35)


def test_farness_by_hand() -> None:
    z = np.array([[1.9, -3.0, 50.0, np.nan], [0.0, np.nan, 2.5, -2.0]])
    assert farness(z) == pytest.approx([(0 + 1 + 8) / 3, 0.5 / 3])


def test_the_tail_keeps_its_level_where_rows_have_spreads_of_their_own() -> None:
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(400):
        z = rng.standard_t(3, size=(30, 12)) * rng.lognormal(0, 0.5, size=(30, 1))
        wrong += int(_more(farness(z)[None], 10, 199, 1)[0][0] <= 0.05)
    assert clopper_pearson(wrong, 400, 0.99).low <= 0.05


def test_the_record_is_plain() -> None:
    found = judged(worlds.trials(models=30, left=1.0), smallest=replace(KNOWN, share=float("inf")))
    body = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert set(body) == {"verdict", "controls"}
    assert set(body["controls"]) == {"no_op", "retrained"}
    verdict = body["verdict"]
    assert {"value", "text", "officer", "reasons", "n", "k", "level", "chance", "findings", "declined"} == set(verdict)
    assert verdict["officer"] != verdict["text"]
    assert "do not treat the request as fulfilled" in verdict["officer"]
    wanted = {"name", "kind", "p", "within", "margin", "smallest", "unit", "n", "k", "needed"}
    assert all(wanted <= set(f) for f in verdict["findings"])
    assert verdict["findings"][-1]["smallest"] is None


def test_the_same_seed_gives_the_same_verdict() -> None:
    trials = worlds.trials(models=30, left=0.3)
    assert judged(trials).to_json() == judged(trials).to_json()


def test_what_judge_refuses() -> None:
    trials = worlds.trials(models=30)
    with pytest.raises(UserError, match="margins of numbers that are tested.*accuracy on forgoten"):
        judged(trials, margins={"accuracy on forgoten samples": 0.1})
    unknown: Any = {"nothing": trials.original}
    with pytest.raises(UserError, match="a control, got 'nothing'"):
        judge(trials, unknown, smallest=KNOWN)
    empty = replace(trials.original, kept=np.zeros_like(trials.forget))
    with pytest.raises(UserError, match="samples of every part under control no_op, got none in 30 of 30 rows"):
        judge(trials, {"no_op": empty}, smallest=KNOWN)


def moved(said: Said, by: float, seed: int) -> Said:
    """Return models of another batch size: every score of theirs higher, with noise of its own."""
    noise = np.random.default_rng(seed).normal(by, 0.2, said.train.shape)
    other = np.random.default_rng(seed + 1).normal(by, 0.2, said.test.shape)
    train, test = said.train + noise, said.test + other
    return Said(train, test, said.kept, train > 0, test > 0)


def test_models_retrained_otherwise_pass_where_they_count_as_retrained_and_nothing_else_does() -> None:
    t = worlds.trials(models=60, memory=3.0, seed=2)
    kind = moved(t.retrained, 1.5, 0)
    asked = t.instead(kind)  # rows in question are of another third than those it is held to
    assert judged(asked).verdict.value == "distinguishable"
    with_kind = judged(asked, legitimate={"batch size 32": kind})
    assert with_kind.verdict.value != "distinguishable"
    assert not rejections(with_kind.findings)
    by_name = {f.name: f for f in with_kind.findings}
    alone = {f.name: f for f in judged(asked).findings}
    for name, found in by_name.items():
        if found.kind in ("rank", "farther", "attack"):
            assert found.p >= alone[name].p  # the largest over both kinds
    score = by_name["score of forgotten samples"]
    assert score.within is not None
    assert score.within <= 0.05
    usual = judged(t, legitimate={"batch size 32": kind})
    assert not rejections(usual.findings)  # retrained from another seed passes as before
    assert rejections(usual.controls["no_op"])
    assert not rejections(usual.controls["retrained"])
    nothing = judged(t.instead(t.original), legitimate={"batch size 32": kind})
    assert nothing.verdict.value == "distinguishable"
