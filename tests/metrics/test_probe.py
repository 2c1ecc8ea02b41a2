"""Probes on features planted by hand: labels read out, members told from unseen, recall by shots."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor
from torch.nn import functional as F

from expunge.data import Data
from expunge.evaluate import evaluate
from expunge.evidence import Outputs
from expunge.metric import SPLITS, Audit, Unavailable, Value
from expunge.metrics.probe import Probe, _logistic, ridge
from expunge.scenario import Scenario, forget_ids
from expunge.task import Classification, Regression
from expunge.train import Recipe, fit
from expunge.zoo.embedded import diabetes
from worlds import QUIET, world

TAP = "head:input"


def judged(features: Tensor, target: Tensor) -> Outputs:
    zeros = torch.zeros(len(target), 5, dtype=torch.float64)
    return Outputs(zeros, zeros.argmax(1), target, F.cross_entropy(zeros, target, reduction="none"), {TAP: features})


def clusters(places: Tensor, labels: Tensor | None = None, *, spread: float = 0.1, seed: int = 0) -> Outputs:
    """Return features around one axis a place, labelled by place or otherwise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(places), 16, generator=generator, dtype=torch.float64)
    return judged(F.one_hot(places, 16) + spread * noise, places if labels is None else labels)


def audit(kind: str = "ids", target: Any = None, task: Any = None, **parts: Any) -> Audit:
    evidence = {("model", s): parts.pop(s) for s in SPLITS if s in parts}
    scenario = Scenario(train=("a", "b"), forget=("a",), kind=kind, target=target)
    more = {"models": {}, "tap": TAP} | parts
    return Audit(evidence=evidence, task=task or Classification(), scenario=scenario, **more)


def places(n: int, classes: int = 3) -> Tensor:
    return torch.arange(n) % classes


def test_label_reads_out_wrong_labels_where_the_features_lie_by_them() -> None:
    wrong = (places(30) + 1) % 3
    retain = clusters(places(60))
    memorised = Probe()(audit(forget=clusters(wrong, seed=1), retain=retain))["probe/label"]
    clean = Probe()(audit(forget=clusters(places(30), wrong, seed=1), retain=retain))["probe/label"]
    assert isinstance(memorised, Value)
    assert isinstance(clean, Value)
    assert (memorised.x, memorised.n) == (1.0, 30)
    assert memorised.high == pytest.approx(1.0)
    assert memorised.low == pytest.approx(0.88648, abs=1e-4)
    assert (clean.x, clean.low) == (0.0, 0.0)


def test_label_averages_over_draws_and_its_gap_is_paired_by_sample() -> None:
    half = torch.cat([torch.zeros(20, dtype=torch.long), torch.ones(20, dtype=torch.long)])
    forget = clusters(half, torch.zeros(40, dtype=torch.long), seed=1)
    other = clusters(half, torch.zeros(40, dtype=torch.long), seed=2)
    retain = clusters(places(60))
    given = audit(forget=forget, retain=retain)
    evidence = {**given.evidence, ("retrained", "forget"): other, ("retrained", "retain"): retain}
    both = replace(given, evidence=evidence)
    found = Probe()(both)["probe/label"]
    assert isinstance(found, Value)
    assert found.x == 0.5
    gap = both.kept.gaps["probe/label"]
    assert isinstance(gap, Value)
    assert (gap.x, gap.n) == (0.0, 40)


def test_label_leaves_out_what_no_retained_sample_is_labelled() -> None:
    labels = torch.tensor([0, 1, 2, 3, 3])
    found = Probe()(audit(forget=clusters(labels, seed=1), retain=clusters(places(60))))["probe/label"]
    assert isinstance(found, Value)
    assert (found.x, found.n) == (1.0, 3)
    stray = Probe()(audit(forget=clusters(labels[3:], seed=1), retain=clusters(places(60))))
    assert stray["probe/label"] == Unavailable("no forget sample is of a class that is retained")
    one = Probe()(audit(forget=clusters(places(9, 1)), retain=clusters(places(9, 1))))["probe/label"]
    assert one == Unavailable("there is one class only")


def test_membership_tells_members_that_lie_apart_and_no_others() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(200, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    target = torch.zeros(200, dtype=torch.long)
    apart = Probe()(audit(forget=judged(a + 2, target), test=judged(b, target)))["probe/membership"]
    alike = Probe()(audit(forget=judged(a, target), test=judged(b, target)))["probe/membership"]
    assert isinstance(apart, Value)
    assert isinstance(alike, Value)
    assert apart.low > 0.97
    assert alike.low < 0.5 < alike.high
    assert alike.n == 400
    scaled = Probe()(audit(forget=judged(1e3 * a + 7, target), test=judged(1e3 * b + 7, target)))["probe/membership"]
    assert isinstance(scaled, Value)
    assert scaled.x == pytest.approx(alike.x, abs=1e-4)  # features are standardised
    few = Probe(limit=40)(audit(forget=judged(a, target), test=judged(b, target)))["probe/membership"]
    assert isinstance(few, Value)
    assert few.n == 80


def test_membership_is_against_unseen_samples_of_the_forgotten_kind_where_there_are_some() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 8, generator=generator, dtype=torch.float64)
    target = torch.zeros(100, dtype=torch.long)
    own, like, other = (judged(r, target) for r in (rows[:100], rows[100:200], rows[200:] + 5))
    with_kind = Probe()(audit(forget=own, test=other, test_forget=like))["probe/membership"]
    without = Probe()(audit(forget=own, test=other))["probe/membership"]
    assert isinstance(with_kind, Value)
    assert isinstance(without, Value)
    assert with_kind.low < 0.5 < with_kind.high
    assert without.x > 0.99


def test_reasons() -> None:
    target = torch.zeros(4, dtype=torch.long)
    four = judged(torch.zeros(4, 8, dtype=torch.float64), target)
    found = Probe()(audit(forget=four, test=four))
    assert found["probe/membership"] == Unavailable("5 folds need 5 samples on each side, there are 4, 4")
    assert found["probe/label"] == Unavailable("there are no samples in retain")
    flat = judged(torch.ones(9, 8, dtype=torch.float64), torch.zeros(9, dtype=torch.long))
    assert Probe()(audit(forget=flat, test=flat))["probe/membership"] == Unavailable("all scores are equal")
    assert Probe()(audit(forget=flat))["probe/membership"] == Unavailable("there are no samples in test")
    classes = Probe()(audit("class", 1, forget=flat, retain=flat, test=flat))
    assert isinstance(classes["probe/label"], Unavailable)
    assert classes["probe/label"].reason.startswith("of a forgotten class there are no labels to read out")
    assert {v.reason for v in Probe()(audit(forget=flat, test=flat, tap=None)).values() if isinstance(v, Unavailable)}
    real = Probe()(audit(task=Regression(), forget=flat, retain=flat, test=flat))
    assert real["probe/label"] == Unavailable("the task has no classes")


def test_shots_are_kept_as_a_curve() -> None:
    parts = {
        "forget": clusters(torch.full((5,), 2), seed=1),
        "retain": clusters(places(40, 2)),
        "test_forget": clusters(torch.full((30,), 2), seed=3),
    }
    given = audit("class", 2, **parts)
    one = Probe()(given)["probe/one_shot"]
    curve = given.kept.series["probe/shots"]
    assert list(curve) == [1, 2, 5, 10]
    assert isinstance(one, Value)
    assert one.x > 0.99
    assert one.low <= 30 / (30 + 1.96**2) + 0.001  # all of 30 found, in every draw, is no certainty
    assert one.n == 30
    for shots in (1, 2, 5):
        point = curve[shots]
        assert isinstance(point, Value)
        assert point.x > 0.99
        assert (point.high, point.n) == (1.0, 30)
    assert curve[10] == Unavailable("10 shots of every class are needed, one has 5")


@pytest.mark.parametrize("shape", [(6, 20), (40, 7)], ids=["fewer samples than features", "more"])
def test_ridge_is_that_of_a_reference(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    x, there = generator.normal(size=shape), generator.normal(size=(50, shape[1]))
    labels = np.arange(shape[0]) % 3 + 4
    strength = float(np.square(x - x.mean(axis=0)).sum() / len(x))
    slow = Ridge(alpha=strength).fit(x, np.eye(3)[labels - 4]).predict(there)
    assert ridge(x, labels, there).tolist() == (slow.argmax(axis=1) + 4).tolist()
    assert set(ridge(np.ones(shape), labels, there)) <= {4, 5, 6}  # features that say nothing


def test_order_of_the_samples_and_batches_change_nothing() -> None:
    w = world("random", n=60)
    order = torch.randperm(len(w.train), generator=torch.Generator().manual_seed(3))
    shuffled = w.train.subset([w.train.ids[int(i)] for i in order])
    case = replace(w.scenario, train=tuple(shuffled.ids))
    tests = w.test.subset(list(reversed(w.test.ids)))

    def found(train: Data, test: Data, scenario: Scenario, size: int) -> dict[str, Any]:
        more = {"metrics": ["probe"], "runtime": replace(QUIET, batch_size=size)}
        scores = evaluate({"mine": w.model}, w.task, train=train, test=test, scenario=scenario, **more)
        return {k: v.x for k, v in scores["mine"].items() if isinstance(v, Value)}

    want = found(w.train, w.test, w.scenario, 7)
    assert want.keys() == {"probe/label", "probe/membership"}
    assert found(shuffled, tests, case, 7) == pytest.approx(want, abs=1e-6)
    assert found(w.train, w.test, w.scenario, 100) == pytest.approx(want, abs=1e-6)


def test_any_task_has_a_probe() -> None:
    problem = diabetes()
    model = fit(_network(), problem.task, problem.train, Recipe(epochs=1, lr=0.01), runtime=QUIET)
    case = forget_ids(problem.train, problem.train.ids[:20])
    more = {"metrics": ["probe"], "runtime": QUIET}
    scores = evaluate({"mine": model}, problem.task, train=problem.train, test=problem.test, scenario=case, **more)
    assert isinstance(scores["mine"]["probe/membership"], Value)
    assert scores["mine"]["probe/label"] == Unavailable("the task has no classes")


def _network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(10, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))


def test_one_shot_of_each_of_many_classes_is_fitted_in_silence(recwarn):
    x = np.eye(40)
    assert _logistic(x, np.arange(40), x).tolist() == list(range(40))
    assert [str(w.message) for w in recwarn] == []
