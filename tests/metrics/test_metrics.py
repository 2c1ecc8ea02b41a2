"""Metrics on evidence made by hand, and on models that do what they are planted to do."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats as distributions
from torch import Tensor, nn
from torch.nn import functional as F

from cases import blobs, deep
from expunge.data import Data
from expunge.evaluate import evaluate
from expunge.evidence import Outputs, collect
from expunge.methods import load as load_method
from expunge.metric import SPLITS, Audit, Goal, Metric, Unavailable, Value
from expunge.metrics import load, names
from expunge.metrics.membership import Membership
from expunge.metrics.probe import Probe
from expunge.runtime import Runtime
from expunge.scenario import Scenario, forget_class, forget_random
from expunge.task import Classification, Regression, Task
from expunge.train import Recipe, fit
from expunge.unlearn import unlearn

TASK = Classification()


def judged(logits: Tensor, target: Tensor | None = None, **more: Any) -> Outputs:
    loss = None if target is None else F.cross_entropy(logits.double(), target, reduction="none")
    return Outputs(logits.double(), logits.argmax(dim=1), target, loss, **more)


def audit(task: Task = TASK, kind: str = "ids", target: Any = None, **more: Any) -> Audit:
    splits = {k: more.pop(k) for k in SPLITS if k in more}
    scenario = Scenario(train=("a", "b"), forget=("a",), kind=kind, target=target)
    given = {"models": {}} | more
    return Audit(evidence={("model", s): o for s, o in splits.items()}, task=task, scenario=scenario, **given)


def right_and_wrong(right: int, n: int) -> tuple[Tensor, Tensor]:
    """Return one-hot inputs and labels of which an identity model gets the first ``right`` right."""
    labels = torch.arange(n) % 3
    return 5.0 * F.one_hot(torch.where(torch.arange(n) < right, labels, (labels + 1) % 3), 3), labels


@pytest.mark.parametrize("size", [1, 64, 100])
def test_accuracy_is_over_samples_not_batches(size: int):
    """52 of the first 64 and 29 of the last 36: 81 %, where the mean over two batches says 80.9 %."""
    (x1, y1), (x2, y2) = right_and_wrong(52, 64), right_and_wrong(29, 36)
    data = Data.from_arrays(torch.cat([x1, x2]), torch.cat([y1, y2]))
    found = collect(nn.Identity(), TASK, data, runtime=Runtime(batch_size=size, progress=False))
    value = load("accuracy")()(audit(test=found))["accuracy/test"]
    assert value.x == pytest.approx(0.81, abs=1e-12)
    assert value.n == 100
    interval = distributions.binomtest(81, 100).proportion_ci(method="wilson")
    assert (value.low, value.high) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_accuracy_and_loss_are_unavailable_with_a_reason():
    labelled, bare = judged(torch.eye(3), torch.arange(3)), judged(torch.eye(3))
    found = load("accuracy")()(
        audit(forget=labelled, retain=bare, holdout=labelled.take(torch.tensor([], dtype=torch.long)))
    )
    assert found.keys() == {f"accuracy/{s}" for s in SPLITS} | {"accuracy/forget_clean"}
    assert found["accuracy/forget"].x == 1
    assert found["accuracy/retain"] == Unavailable("retain has no labels")
    assert found["accuracy/test"] == Unavailable("there are no samples in test")
    assert found["accuracy/holdout"] == Unavailable("there are no samples in holdout")
    losses = load("loss")()(audit(forget=labelled, retain=bare))
    assert losses["loss/retain"] == Unavailable("retain has no labels")
    assert losses["loss/test"] == Unavailable("there are no samples in test")
    assert set(load("accuracy")()(audit(Regression(), forget=labelled)).values()) == {
        Unavailable("the task has no classes")
    }


def test_loss_is_the_sample_mean_with_a_t_interval():
    generator = torch.Generator().manual_seed(0)
    outputs = judged(torch.randn(30, 4, generator=generator), torch.arange(30) % 4)
    value = load("loss")()(audit(test=outputs))["loss/test"]
    loss = outputs.loss.numpy()
    low, high = distributions.t.interval(0.95, 29, loss.mean(), distributions.sem(loss))
    assert (value.x, value.low, value.high) == pytest.approx((loss.mean(), low, high), abs=1e-12)
    assert (value.n, value.unit) == (30, "nats")
    one = load("loss")()(audit(test=outputs.take(torch.tensor([3]))))["loss/test"]
    assert (one.low, one.high) == (-math.inf, math.inf)
    squared = Outputs(torch.zeros(2, 1), torch.zeros(2, 1), torch.ones(2, 1), torch.tensor([1.0, 3.0]))
    found = load("loss")()(audit(Regression(), test=squared))["loss/test"]
    assert (found.x, found.unit) == (2.0, "loss")


def noisy(n: int, margin: float, seed: int) -> Outputs:
    """Return outputs that give the true of three classes this margin, with noise."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(n) % 3
    return judged(torch.randn(n, 3, generator=generator) + margin * F.one_hot(target, 3), target)


def test_membership_exposes_a_memoriser_and_clears_an_innocent():
    seen = {"retain": noisy(300, 8.0, 0), "test": noisy(200, 0.0, 1)}
    guilty = Membership(names=("entropy_lr", "loss"))(audit(forget=noisy(100, 8.0, 2), **seen))
    clean = Membership(names=("entropy_lr", "loss"))(audit(forget=noisy(100, 0.0, 3), **seen))
    assert guilty.keys() == {
        "membership/entropy_lr",
        *(f"membership/loss/{n}" for n in ("auc", "balanced_accuracy", "tpr_at_fpr_0.01", "tpr_at_fpr_0.001")),
    }
    assert guilty["membership/entropy_lr"].x > 0.9
    assert clean["membership/entropy_lr"].x < 0.3
    assert guilty["membership/loss/auc"].low > 0.95
    assert clean["membership/loss/auc"].low < 0.5 < clean["membership/loss/auc"].high
    assert guilty["membership/loss/balanced_accuracy"].low > 0.9
    assert clean["membership/loss/balanced_accuracy"].low < 0.5
    assert guilty["membership/loss/tpr_at_fpr_0.01"].x > 0.5
    assert clean["membership/loss/tpr_at_fpr_0.01"].x < 0.1


def test_membership_compares_with_unseen_samples_of_the_same_kind():
    """Against the whole test set the forgotten class looks like a non-member by class shift alone."""
    hard, easy = noisy(150, -3.0, 0), noisy(150, 4.0, 1)
    whole = Outputs(
        *(torch.cat([getattr(hard, k), getattr(easy, k)]) for k in ("outputs", "prediction", "target", "loss"))
    )
    given = {"forget": noisy(150, -3.0, 2), "retain": noisy(100, 4.0, 3), "test": whole}
    name = "membership/loss/auc"
    metric = load("membership")(names=("loss",))
    assert metric(audit(**given))[name].x < 0.35
    assert abs(metric(audit(**given, test_forget=hard))[name].x - 0.5) < 0.08
    none = whole.take(torch.tensor([], dtype=torch.long))
    assert metric(audit(**given, test_forget=none))[name] == Unavailable("no unseen sample of the forgotten kind")


def test_membership_says_why_it_has_no_number():
    some = noisy(30, 1.0, 0)
    found = Membership(names=("entropy_lr", "loss"))(audit(forget=some, test=some))
    assert found["membership/entropy_lr"] == Unavailable("there are no samples in retain")
    assert isinstance(found["membership/loss/auc"], Value)
    assert "needs 100 unseen samples, there are 30" in found["membership/loss/tpr_at_fpr_0.01"].reason
    bare = replace(some, target=None, loss=None)
    found = Membership(names=("entropy_lr", "loss"))(audit(forget=bare, test=some, retain=some))
    assert found["membership/loss/auc"] == Unavailable("forget has no labels")
    assert isinstance(found["membership/entropy_lr"], Value)  # entropy needs no label
    found = Membership(names=("entropy_lr", "loss"))(audit(Regression(), forget=some, test=some, retain=some))
    assert found["membership/entropy_lr"] == Unavailable("the task has no classes")


def test_cost_reports_the_edit_and_the_share_of_parameters_changed():
    original = deep()
    edited = deep()
    with torch.no_grad():
        edited[1].bias += 1  # 3 of 133 scalars
    total = sum(p.numel() for p in original.parameters())
    edit = {"seconds": 0.5, "total_seconds": 0.75, "peak_memory": 1024}
    found = load("cost")()(audit(models={"original": original, "model": edited}, edit=edit))
    assert {k: (v.x, v.unit) for k, v in found.items()} == {
        "cost/seconds": (0.5, "s"),
        "cost/total_seconds": (0.75, "s"),
        "cost/peak_memory": (1024.0, "bytes"),
        "cost/changed": (3 / total, "1"),
    }
    bare = load("cost")()(audit(models={"original": original, "model": original}))
    assert bare["cost/changed"].x == 0
    assert bare["cost/seconds"] == Unavailable("a bare module was given, not an unlearn result")
    other = load("cost")()(audit(models={"original": original, "model": nn.Linear(4, 3)}))
    assert other["cost/changed"] == Unavailable("it is another network than the original")


def featured(n: int, labels: list[int], spread: float, seed: int) -> Outputs:
    """Return features around one axis a class: apart for a small spread, noise for a large one."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.tensor((labels * n)[:n])
    features = F.one_hot(target, 16).double() + spread * torch.randn(n, 16, generator=generator, dtype=torch.float64)
    return judged(torch.zeros(n, 5), target, features={"head:input": features})


@pytest.mark.parametrize("shots", [1, 5])
def test_probe_finds_a_class_laid_out_in_the_features_and_not_in_noise(shots: int):
    def recall(spread: float) -> Value:
        parts = {
            "forget": featured(40, [2], spread, 0),
            "retain": featured(160, [0, 1, 3, 4], spread, 1),
            "test_forget": featured(60, [2], spread, 2),
        }
        return Probe(shots=shots)(audit(kind="class", target=2, tap="head:input", **parts))[
            "probe/one_shot" if shots == 1 else "probe/5_shot"
        ]

    planted, noise = recall(0.1), recall(30.0)
    assert planted.low > 0.93  # all of 60 in every draw: Wilson's
    assert planted.n == 60
    assert abs(noise.x - 0.2) < 0.15  # one class of five
    assert recall(0.1) == planted


def test_probe_says_why_it_has_no_number():
    parts = {
        "forget": featured(4, [2], 1, 0),
        "retain": featured(40, [0, 1], 1, 1),
        "test_forget": featured(5, [2], 1, 2),
    }
    given = {"kind": "class", "target": 2, "tap": "head:input"}

    def why(**changes: Any) -> str:
        return load("probe")()(audit(**(given | parts | changes)))["probe/one_shot"].reason

    assert "of kind 'random'" in why(kind="random", target=4)
    assert "no linear head" in why(tap=None)
    assert "no unseen samples" in why(test_forget=parts["test_forget"].take(torch.tensor([], dtype=torch.long)))
    few = Probe(shots=6)(audit(**given, **parts))["probe/6_shot"]
    assert few == Unavailable("6 shots of every class are needed, one has 4")


def test_registry_holds_every_family_with_goal_and_range():
    for name in names():
        metric = load(name)
        assert issubclass(metric, Metric)
        assert isinstance(metric.goal, Goal)
        assert metric.range[0] < metric.range[1]
    assert load("cost").goal is Goal.MIN
    assert load("accuracy").goal is load("membership").goal is Goal.AS_RETRAINED


def test_evaluate_pairs_every_number_with_its_gap_and_adds_the_controls():
    data, test = blobs(90), blobs(60, seed=1)
    recipe = Recipe(epochs=6, lr=0.05)
    original = fit(deep(), TASK, data, recipe)
    case = forget_class(data, 1)
    ids = list(case.forget)
    retrained = [
        unlearn(load_method("retrain")(), original, TASK, forget=ids, retain=data.without(ids), recipe=recipe, seed=s)
        for s in (0, 1)
    ]
    scores = evaluate({"original": original, "retrained": retrained}, TASK, train=data, test=test, scenario=case)
    assert scores["no_op"]["accuracy/forget"].x > 0.9
    assert scores["head_mask"]["accuracy/forget"].x == 0 == scores["retrained"]["accuracy/forget"].x
    assert scores["no_op"]["cost/changed"].x == scores["head_mask"]["cost/changed"].x == 0
    for name in ("accuracy/forget", "loss/test_retain"):
        gap = scores["no_op"][name].x - scores["retrained"][name].x
        assert scores.gaps["no_op"][name].x == pytest.approx(gap)
    second = scores["retrained (other seed)"]["loss/test"].x - scores["retrained"]["loss/test"].x
    assert scores.floor["loss/test"].x == pytest.approx(abs(second)) != 0
    part = evaluate({"original": original}, TASK, train=data, scenario=forget_random(data, 5), metrics=["accuracy"])
    assert "masks one class" in part.declined["head_mask"]
    assert np.isfinite(part["original"]["accuracy/forget"].x)
