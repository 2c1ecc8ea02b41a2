"""RMIA: likelihood ratios beside those of unseen samples, against a slow reference and where the truth is known."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest
import torch

from attacks.test_lira import World, auc, measured, spoken, world
from expunge.attacks.rmia import RMIA
from expunge.errors import UserError
from expunge.evidence import Outputs, Shadow
from expunge.metric import Audit, Unavailable
from expunge.metrics.membership import Membership
from expunge.shadows import draw
from pairs import noise

AUC = "membership/rmia/auc"


def probability(outputs: Outputs) -> list[float]:
    return outputs.logits.softmax(dim=1)[:, 0].tolist()


def population(own: Audit) -> list[int]:
    """Return the unseen samples of the random half."""
    ids = own.said("test").ids
    assert ids is not None
    return [i for i, half in enumerate(draw(ids, 1, own.seed)[0]) if half]


def slowly(at: World, split: str, others: list[int], where: str, a: float, gamma: float) -> list[float]:
    """Return the scores one pair at a time."""

    def ratio(side: str, i: int) -> float:
        outside = [
            probability(s["model", side])[i]
            for s, own in zip(at.shadows, at.trained, strict=True)
            if f"{side}/{i}" not in own
        ]
        return probability(at.audit.said(side))[i] / (((1 + a) * fmean(outside) + 1 - a) / 2)

    beside = [ratio(where, z) for z in others]
    own = [ratio(split, i) for i in range(len(at.audit.said(split)))]
    return [fmean(float(x / z > gamma) for z in beside) for x in own]


@pytest.mark.parametrize(("a", "gamma"), [(0.3, 1.0), (0.8, 1.2)])
def test_scores_are_shares_of_a_half_of_the_unseen_one_pair_at_a_time(a: float, gamma: float) -> None:
    at = world(1.0, count=4, n=14)
    fitted = RMIA(a=a, gamma=gamma).fit(at.audit, at.shadows)
    others = population(at.audit)
    assert len(others) == 7
    for split in ("forget", "test"):
        want = slowly(at, split, others, "test", a, gamma)
        assert fitted.score(at.audit.said(split)).tolist() == pytest.approx(want, abs=1e-12)
        assert len(set(want)) > 3
    order = torch.tensor([3, 0, 9])
    part = at.audit.said("forget").take(order)
    assert torch.equal(fitted.score(part), fitted.score(at.audit.said("forget"))[order])


def test_the_order_of_samples_changes_no_score() -> None:
    at = world(1.0, count=4, n=14)
    turned = torch.arange(13, -1, -1)
    evidence = {key: said.take(turned) for key, said in at.audit.evidence.items()}
    mixed = RMIA().fit(replace(at.audit, evidence=evidence), at.shadows)
    plain = RMIA().fit(at.audit, at.shadows)
    assert torch.equal(mixed.score(at.audit.said("forget")), plain.score(at.audit.said("forget")))


def held_out(at: World, n: int, known: bool = True) -> World:
    """Return the world with a holdout set, which the shadow models were run on too or not."""
    own = {**at.audit.evidence, ("model", "holdout"): spoken({"holdout": noise(n, seed=5)})["holdout"]}
    shadows = [
        Shadow({**s.outputs, **(spoken({"holdout": noise(n, seed=50 + t)}) if known else {})}, s.trained)
        for t, s in enumerate(at.shadows)
    ]
    return replace(at, audit=replace(at.audit, evidence=own), shadows=shadows)


def test_a_larger_holdout_set_is_the_population_unless_the_forgotten_are_of_a_kind() -> None:
    plain = world(1.0, count=4, n=14)
    at = held_out(plain, 9)
    fitted, before = RMIA().fit(at.audit, at.shadows), RMIA().fit(plain.audit, plain.shadows)
    forget = at.audit.said("forget")
    want = slowly(at, "forget", list(range(9)), "holdout", 0.3, 1.0)
    assert fitted.score(forget).tolist() == pytest.approx(want, abs=1e-12)
    assert not torch.equal(fitted.score(forget), before.score(forget))
    for other in (held_out(plain, 6), held_out(plain, 9, known=False)):  # too few, or unknown to the shadow models
        assert torch.equal(RMIA().fit(other.audit, other.shadows).score(forget), before.score(forget))
    test = at.audit.said("test")
    kind = {("model", "test_forget"): test, ("model", "test_retain"): test.take(torch.arange(0))}
    like = replace(at.audit, evidence={**at.audit.evidence, **kind})
    assert torch.equal(RMIA().fit(like, at.shadows).score(forget), before.score(forget))


def test_planted_memory_is_seen_and_nothing_where_there_is_nothing() -> None:
    """Of samples from hard to easy the confidence alone says little; one shadow model will do."""
    many = measured(world(2.0, n=150), "confidence", "rmia")
    assert auc(many, AUC).low > auc(many, "membership/confidence/auc").high
    assert auc(many, AUC).low > 0.7
    one = world(2.0, n=150, count=2)
    alone = Shadow(one.shadows[0].outputs, ())
    assert auc(Membership(names=("rmia",), shadows=[alone])(one.audit), AUC).x > 0.6
    several = [auc(measured(world(0.0, n=150, seed=s), "rmia"), AUC) for s in range(1, 9)]
    assert several[0].low < 0.5 < several[0].high
    assert abs(fmean(v.x for v in several) - 0.5) < 0.04


def test_samples_in_the_population_are_ranked_like_others() -> None:
    """Members and unseen samples of one world: being in the population moves the AUC by no more than a tie each."""
    at = world(0.0, n=150)
    fitted = RMIA().fit(at.audit, at.shadows)
    scores = fitted.score(at.audit.said("test"))
    inside = torch.zeros(150, dtype=torch.bool)
    inside[population(at.audit)] = True
    assert sorted(scores[inside].tolist()) == pytest.approx([i / 75 for i in range(75)])
    assert float(scores[~inside].min()) >= 0
    assert len(set(scores.tolist())) <= 76


def test_what_does_not_fit_is_refused() -> None:
    at = world(1.0, count=4, n=12)
    everything = [Shadow(s.outputs, {*s.trained, *(f"test/{i}" for i in range(12))}) for s in at.shadows]
    with pytest.raises(UserError, match="unseen samples that no shadow model was trained on, for RMIA, got none of 6"):
        RMIA().fit(at.audit, everything)
    with pytest.raises(UserError, match="shadow models for RMIA, got none: pass evidence of them as shadows"):
        RMIA().fit(at.audit)
    with pytest.raises(UserError, match="a fitted attack, got an unfitted one: call fit first"):
        RMIA().score(at.audit.said("forget"))
    seen = [Shadow(s.outputs, {"forget/3"}) for s in at.shadows]
    with pytest.raises(UserError, match="a reference for each sample that was not trained on it, got 1 samples"):
        RMIA().fit(at.audit, seen).score(at.audit.said("forget"))
    with pytest.raises(UserError, match=r"a in \[0, 1\] and gamma above 0, got a = 2"):
        RMIA(a=2).fit(at.audit, at.shadows).score(at.audit.said("forget"))
    named = replace(at.audit.said("forget"), ids=tuple(f"other/{i}" for i in range(12)))
    with pytest.raises(UserError, match="enough shadow models were run on, for RMIA, got also other/0"):
        RMIA().fit(replace(at.audit, evidence={**at.audit.evidence, ("model", "forget"): named}), at.shadows)
    fitted = RMIA().fit(at.audit, at.shadows)
    with pytest.raises(UserError, match="outputs with the ids of their samples, for RMIA, got none"):
        fitted.score(replace(named, ids=None))
    with pytest.raises(UserError, match="labelled samples for the RMIA, got none"):
        fitted.score(replace(at.audit.said("forget"), target=None))


def test_reasons() -> None:
    at = world(1.0, count=2, n=12)
    assert Membership(names=("rmia",))(at.audit)[AUC] == Unavailable("needs shadow models: 0 given, at least 1")
    for n in (0, 1):
        few = {**at.audit.evidence, ("model", "test_forget"): at.audit.said("test").take(torch.arange(n))}
        found = Membership(names=("rmia",), shadows=at.shadows)(replace(at.audit, evidence=few))
        assert found[AUC] == Unavailable(f"needs 2 unseen samples of the forgotten kind, has {n}")
