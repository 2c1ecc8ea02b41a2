"""LiRA: margins beside those under shadow models, against slow references and where the truth is known."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from expunge import attacks
from expunge.attacks.lira import LiRA
from expunge.data import Data
from expunge.errors import UserError
from expunge.evaluate import evaluate
from expunge.evidence import Evidence, Outputs, Shadow
from expunge.metric import Audit, Found, Unavailable, Value
from expunge.metrics.membership import Membership
from expunge.runtime import Runtime
from expunge.scenario import forget_ids
from expunge.shadows import Pool, draw, lira
from expunge.task import Classification
from expunge.train import Recipe, fit, fresh
from pairs import audit, noise, said

AUC = "membership/lira/auc"
Margins = dict[str, Tensor]


def spoken(margins: Margins) -> dict[str, Outputs]:
    """Return two-class outputs of label 0 with these margins by split, ids being split/0, split/1, ..."""
    found = {}
    for split, m in margins.items():
        logits = torch.stack([m.double(), torch.zeros(len(m), dtype=torch.float64)], dim=1)
        named = tuple(f"{split}/{i}" for i in range(len(m)))
        found[split] = replace(said(logits, torch.zeros(len(m), dtype=torch.long)), ids=named)
    return found


@dataclass(frozen=True)
class World:
    """Samples of very unequal difficulty under a model and shadow models; a model knows its own samples better."""

    audit: Audit
    shadows: list[Shadow]
    margins: list[Margins]
    trained: list[frozenset[str]]


def world(
    known: float, *, count: int = 8, n: int = 80, seen: float = 2.0, unseen_too: bool = False, seed: int = 0
) -> World:
    """Return a model whose margins of forget samples are larger by ``known``, beside shadows that saw halves."""
    hard = {"forget": 4 * noise(n, seed=10**6 * seed + 9001), "test": 4 * noise(n, seed=10**6 * seed + 9002)}
    ids = [f"{split}/{i}" for split in (("forget", "test") if unseen_too else ("forget",)) for i in range(n)]
    halves = draw(ids, count, 0)
    trained = [frozenset(name for name, own in zip(ids, row, strict=True) if own) for row in halves]
    shadows, margins = [], []
    for t, own in enumerate(trained):
        of = {
            split: h
            + 0.5 * noise(n, seed=10**6 * seed + 100 * t + at)
            + seen * torch.tensor([f"{split}/{i}" in own for i in range(n)]).double()
            for at, (split, h) in enumerate(hard.items())
        }
        margins.append(of)
        shadows.append(Shadow(spoken(of), own))
    own_margins = {s: h + 0.5 * noise(n, seed=10**6 * seed + 7000 + at) for at, (s, h) in enumerate(hard.items())}
    own_margins["forget"] = own_margins["forget"] + known
    return World(audit(spoken(own_margins)), shadows, margins, trained)


def auc(found: Found, name: str = AUC) -> Value:
    value = found[name]
    assert isinstance(value, Value), value
    return value


def measured(at: World, *names: str) -> Found:
    return Membership(names=names, shadows=at.shadows)(at.audit)


def sides(at: World, split: str, i: int) -> tuple[list[float], list[float]]:
    """Return the margins of a sample under the models that saw it and under the others."""
    into: tuple[list[float], list[float]] = [], []
    for of, own in zip(at.margins, at.trained, strict=True):
        into[f"{split}/{i}" not in own].append(float(of[split][i]))
    return into


def deviation(at: World, side: int) -> float:
    """Return the deviation that all samples share, one by one."""
    values = [sides(at, split, i)[side] for split in ("forget", "test") for i in range(len(at.margins[0][split]))]
    squares = [(x - fmean(v)) ** 2 for v in values for x in v]
    return math.sqrt(sum(squares) / sum(len(v) for v in values))


def test_offline_scores_are_tail_probabilities_one_by_one() -> None:
    at = world(1.0, count=6, n=12)
    fitted = LiRA().fit(at.audit, at.shadows)
    assert fitted.online is False
    sigma = deviation(at, 1)
    for split in ("forget", "test"):
        own = at.audit.said(split)
        phi = own.outputs[:, 0].tolist()
        want = [norm.cdf((phi[i] - fmean(sides(at, split, i)[1])) / sigma) for i in range(12)]
        assert fitted.score(own).tolist() == pytest.approx(want, abs=1e-9)
    assert {len(sides(at, "forget", 0)[1]), len(sides(at, "test", 0)[1])} == {3, 6}


def test_online_scores_are_likelihood_ratios_one_by_one_and_those_of_lira() -> None:
    at = world(1.0, count=8, n=12, unseen_too=True)
    fitted = LiRA().fit(at.audit, at.shadows)
    assert fitted.online is True
    inside, outside = deviation(at, 0), deviation(at, 1)
    own = at.audit.said("test")
    phi = own.outputs[:, 0].tolist()
    want = []
    for i in range(12):
        a, b = sides(at, "test", i)
        want.append(norm.logpdf(phi[i], fmean(a), inside) - norm.logpdf(phi[i], fmean(b), outside))
    assert fitted.score(own).tolist() == pytest.approx(want, abs=1e-9)
    table = np.array([torch.cat([of["forget"], of["test"]]).tolist() for of in at.margins])
    ids = tuple(f"{split}/{i}" for split in ("forget", "test") for i in range(12))
    seen = np.array([[i in own for i in ids] for own in at.trained])
    whole = [m for split in ("forget", "test") for m in at.audit.said(split).outputs[:, 0].tolist()]
    for variance in ("auto", "own", "shared"):
        expected = lira(whole, Pool(table, seen, ids), variance=variance, ddof=1)
        fitted = LiRA(variance=variance, ddof=1).fit(at.audit, at.shadows)
        got = torch.cat([fitted.score(at.audit.said(s)) for s in ("forget", "test")])
        assert got.tolist() == pytest.approx(expected.tolist(), abs=1e-9)
    offline = LiRA(online=False).fit(at.audit, at.shadows).score(at.audit.said("test"))
    assert offline.tolist() == pytest.approx(lira(whole, Pool(table, seen, ids), online=False)[12:].tolist(), abs=1e-9)


def test_samples_are_found_by_their_ids_in_any_order_and_part() -> None:
    at = world(1.0, n=12)
    fitted = LiRA().fit(at.audit, at.shadows)
    order = torch.tensor([7, 2, 11])
    part = at.audit.said("test").take(order)
    assert part.ids == ("test/7", "test/2", "test/11")
    assert torch.equal(fitted.score(part), fitted.score(at.audit.said("test"))[order])
    turned = torch.arange(11, -1, -1)
    mixed = [
        Shadow({split: at.shadows[t]["model", split].take(turned) for split in ("forget", "test")}, at.trained[t])
        for t in range(8)
    ]
    for shadows in (mixed, [at.shadows[0], *mixed[1:]]):
        again = LiRA().fit(at.audit, shadows)
        assert again.score(part).tolist() == pytest.approx(fitted.score(part).tolist(), abs=1e-12)


def test_other_splits_are_scored_where_the_shadows_have_them() -> None:
    at = world(1.0, n=12)
    stay = {f"retain/{i}" for i in range(3)}
    shadows = [
        Shadow({**s.outputs, **spoken({"retain": noise(3, seed=t)})}, s.trained | stay)
        for t, s in enumerate(at.shadows)
    ]
    fitted = LiRA().fit(at.audit, shadows)
    retain = spoken({"retain": noise(3)})["retain"]
    with pytest.raises(UserError, match="samples that enough shadow models were run on, for LiRA, got also retain/0"):
        fitted.score(retain)  # all eight saw them
    shadows = [Shadow(s.outputs, s.trained - stay) for s in shadows]
    assert len(LiRA().fit(at.audit, shadows).score(retain)) == 3


def test_planted_memory_is_seen_where_a_threshold_on_the_confidence_sees_little() -> None:
    found = measured(world(2.0, n=150), "confidence", "lira")
    plain, own = auc(found, "membership/confidence/auc"), auc(found)
    assert own.low > 0.95
    assert plain.high < 0.75
    tpr = auc(found, "membership/lira/tpr_at_fpr_0.01")
    assert tpr.x > 0.5


def test_nothing_is_found_where_there_is_nothing() -> None:
    for unseen_too in (False, True):
        several = [auc(measured(world(0.0, n=150, unseen_too=unseen_too, seed=s), "lira")) for s in range(1, 9)]
        assert several[0].low < 0.5 < several[0].high
        assert several[0].high - several[0].low < 0.15
        assert abs(fmean(v.x for v in several) - 0.5) < 0.04
    less = auc(measured(world(-2.0, n=150), "lira"))
    assert less.high < 0.1  # forgotten too well stands out as well


def test_plain_evidence_is_of_a_model_that_saw_none_of_the_samples() -> None:
    at = world(1.0, n=12, seen=0.0)
    plain: list[Evidence] = [dict(s.items()) for s in at.shadows]
    one = LiRA().fit(at.audit, plain).score(at.audit.said("forget"))
    other = LiRA().fit(at.audit, [Shadow(s.outputs, ()) for s in at.shadows]).score(at.audit.said("forget"))
    assert torch.equal(one, other)
    assert not torch.allclose(one, LiRA().fit(at.audit, at.shadows).score(at.audit.said("forget")))


def test_too_few_shadow_models_are_a_reason_and_all_means_those_that_can_run() -> None:
    at = world(1.0, n=12)
    for shadows in ([], at.shadows[:1]):
        found = Membership(names=("lira", "loss"), shadows=shadows)(at.audit)
        assert found[AUC] == Unavailable(f"needs shadow models: {len(shadows)} given, at least 2")
        assert isinstance(found["membership/loss/auc"], Value)
    needy = {"lira", "rmia"}
    assert set(attacks.names()) - set(attacks.alone()) == needy
    named = {name.split("/")[1] for name in Membership().numbers}
    assert named == set(attacks.names()) - needy
    assert {name.split("/")[1] for name in Membership(shadows=at.shadows).numbers} == set(attacks.names())


def strayed(at: World, **change: Any) -> list[Evidence]:
    """Return the shadows, the outputs of the second on the forget set being changed."""
    bad = {**at.shadows[1].outputs, "forget": replace(at.shadows[1].outputs["forget"], **change)}
    return [at.shadows[0], Shadow(bad, at.trained[1]), *at.shadows[2:]]


@pytest.mark.parametrize(
    ("shadows", "words"),
    [
        (lambda at: [], "shadow models for LiRA, got none: pass evidence of them as shadows"),
        (lambda at: [Shadow(s.outputs, {f"forget/{i}" for i in range(12)}) for s in at.shadows], "at least 0 models"),
        (lambda at: strayed(at, ids=None), "outputs with the ids of their samples, for LiRA, got none"),
        (lambda at: strayed(at, target=None), "labelled samples for the LiRA, got none"),
        (
            lambda at: strayed(at, ids=tuple(f"forget/{i}" for i in range(1, 13))),
            "the same samples under every shadow model, for LiRA, got forget/0, forget/12 under some only",
        ),
        (
            lambda at: [Shadow({"forget": s.outputs["forget"]}, s.trained) for s in at.shadows],
            "samples that enough shadow models were run on, for LiRA, got also test/0",
        ),
        (lambda at: [at.shadows[0], {}], "a split that all shadow models were run on, for LiRA, got none"),
        (
            lambda at: [
                Shadow({"forget": s.outputs["forget"], "test": s.outputs["forget"]}, s.trained) for s in at.shadows
            ],
            "ids that name one sample each, for LiRA, got forget/0, .* in test and in other data",
        ),
    ],
)
def test_what_does_not_fit_is_refused(shadows: Any, words: str) -> None:
    at = world(1.0, n=12)
    with pytest.raises(UserError, match=words):
        LiRA().fit(at.audit, shadows(at))


def test_an_id_of_another_source_is_no_match() -> None:
    """Test samples under ids of retained ones, of which alone the shadow models spoke."""
    at = world(1.0, n=12)
    named = replace(at.audit.said("test"), ids=tuple(f"retain/{i}" for i in range(12)))
    own = replace(at.audit, evidence={**at.audit.evidence, ("model", "test"): named})
    shadows = [
        Shadow({"forget": s.outputs["forget"], "retain": replace(s.outputs["test"], ids=named.ids)}, s.trained)
        for s in at.shadows
    ]
    with pytest.raises(UserError, match="samples that enough shadow models were run on, for LiRA, got also retain/0"):
        LiRA().fit(own, shadows)


def test_scores_of_two_kinds_are_never_mixed_and_fitting_comes_first() -> None:
    at = world(1.0, n=12)
    with pytest.raises(UserError, match="at least 2 models trained on it and 2 not, got as few as 0 and 4"):
        LiRA(online=True).fit(at.audit, at.shadows)
    with pytest.raises(UserError, match="a fitted attack, got an unfitted one: call fit first"):
        LiRA().score(at.audit.said("forget"))
    fitted = LiRA().fit(at.audit, at.shadows)
    with pytest.raises(UserError, match="outputs with the ids of their samples, for LiRA, got none"):
        fitted.score(replace(at.audit.said("forget"), ids=None))
    with pytest.raises(UserError, match="labelled samples for the LiRA, got none"):
        fitted.score(replace(at.audit.said("forget"), target=None))


QUIET = Runtime(progress=False, batch_size=64, device="cpu")
RECIPE = Recipe(epochs=40, batch_size=20, lr=0.5, momentum=0.0, weight_decay=0.0)


def trained(data: Data, ids: Collection[str], seed: int) -> nn.Module:
    def new() -> nn.Module:
        return nn.Linear(40, 3)

    own = data.subset([i for i in data.ids if i in ids])
    return fit(fresh(new(), new_model=new, seed=seed), Classification(), own, RECIPE, runtime=QUIET, seed=seed)


def test_an_evaluation_with_shadow_models_from_end_to_end() -> None:
    """Random labels in many dimensions: what is known of a sample was learnt from it."""

    def drawn(n: int, name: str, seed: int) -> Data:
        labels = torch.randint(3, (n,), generator=torch.Generator().manual_seed(seed))
        return Data.from_arrays(noise(n, 40, seed=seed).float(), labels, name=name)

    train, test = drawn(80, "train", 1), drawn(60, "test", 2)
    case = forget_ids(train, train.ids[:40])
    splits = {"forget": train.subset(case.forget), "test": test}
    halves = draw(train.ids, 8, 0)
    shadows = []
    for t, row in enumerate(halves):
        ids = [i for i, own in zip(train.ids, row, strict=True) if own]
        shadows.append(Shadow.of(trained(train, ids, t), Classification(), splits, ids, QUIET))
    models = {"original": trained(train, train.ids, 50), "retrained": trained(train, case.retain, 51)}

    def scored(given: Sequence[Evidence], **more: Any) -> Any:
        return evaluate(
            models,
            Classification(),
            train=train,
            test=test,
            scenario=case,
            shadows=given,
            runtime=QUIET,
            **{"metrics": ["membership"], **more},
        )

    found, plain = scored(shadows), scored(())
    assert auc(found["original"]).low > auc(found["original"], "membership/confidence/auc").x > 0.7
    assert auc(found["retrained"]).low < 0.5 < auc(found["retrained"]).high
    assert auc(found["original"], "membership/rmia/auc").low > 0.7
    fair = auc(found["retrained"], "membership/rmia/auc")
    assert fair.low < 0.5 < fair.high
    assert set(found["original"]) - set(plain["original"]) == {
        f"membership/{name}/{key}"
        for name in ("lira", "rmia")
        for key in ("auc", "balanced_accuracy", "tpr_at_fpr_0.01", "tpr_at_fpr_0.001")
    }
    assert {k: v for k, v in found["original"].items() if k in plain["original"]} == plain["original"]
    again = scored(shadows, metrics=[Membership(names=("lira",))])
    assert again["original"][AUC] == found["original"][AUC]
