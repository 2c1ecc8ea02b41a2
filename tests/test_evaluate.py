"""The audit: controls that must fail, floors, pooling, and the document that reports read."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from expunge import zoo
from expunge.data import Data
from expunge.errors import UserError
from expunge.evaluate import evaluate
from expunge.evidence import head_tap
from expunge.files import canonical
from expunge.methods import load
from expunge.metric import Unavailable, Value
from expunge.metrics import names as families
from expunge.metrics.cost import Cost
from expunge.report import render
from expunge.scenario import Scenario, forget_class, forget_ids, forget_range, forget_subclass
from expunge.scores import FLOOR, Scores, pool, pooled
from expunge.summary import document, section
from expunge.task import Regression
from expunge.train import Recipe, fit, fresh
from expunge.unlearn import unlearn
from expunge.zoo.embedded import mislabelled
from worlds import QUIET, World, world

PROBLEM = zoo.load("digits")


def trained(data: Data, seed: int) -> nn.Module:
    start = fresh(PROBLEM.new_model(), new_model=PROBLEM.new_model, seed=seed)
    return fit(start, PROBLEM.task, data, PROBLEM.recipe, runtime=QUIET, seed=seed)


def digits(train: Data, case: Scenario, seed: int) -> Scores:
    retain = train.without(case.forget)
    models = {
        "original": trained(train, seed),
        "retrained": [trained(retain, seed), trained(retain, seed + 1000)],
    }
    chosen = ["accuracy", "membership", "probe"]
    return evaluate(models, PROBLEM.task, train=train, test=PROBLEM.test, scenario=case, metrics=chosen, runtime=QUIET)


@pytest.fixture(scope="module")
def wrong_labels() -> Scores:
    train, ids = mislabelled(PROBLEM.train, 0.05, classes=10, seed=0)
    return pooled([digits(train, forget_ids(train, ids), seed) for seed in range(2)])


@pytest.fixture(scope="module")
def one_class() -> Scores:
    return pooled([digits(PROBLEM.train, forget_class(PROBLEM.train, 3), seed) for seed in range(2)])


@pytest.fixture(scope="module")
def tiny() -> World:
    return world()


@pytest.mark.parametrize("metric", ["accuracy/forget", "membership/loss/auc", "membership/loss/balanced_accuracy"])
def test_no_op_fails_where_a_second_retrained_model_passes(metric: str, wrong_labels: Scores) -> None:
    gap, floor = abs(wrong_labels.gaps["no_op"][metric].x), wrong_labels.floor[metric].x
    assert gap > 0.05
    assert gap > 5 * floor
    assert abs(wrong_labels.gaps[FLOOR][metric].x) < 0.1


def test_head_mask_passes_class_accuracy_and_is_exposed_by_the_probe(one_class: Scores) -> None:
    for metric in ("accuracy/forget", "accuracy/test_forget", "accuracy/test_retain"):
        assert abs(one_class.gaps["head_mask"][metric].x) <= 0.02
    gap, floor = one_class.gaps["head_mask"]["probe/one_shot"].x, one_class.floor["probe/one_shot"].x
    assert gap > 0.15
    assert gap > floor
    assert abs(one_class.gaps[FLOOR]["probe/one_shot"].x) < gap / 2


def test_head_mask_declines_what_is_no_class(wrong_labels: Scores) -> None:
    assert "head_mask" not in wrong_labels.values
    assert "kind 'ids'" in wrong_labels.declined["head_mask"]


def test_outputs_are_collected_once_per_model_and_split(tiny: World) -> None:
    class Counts(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.samples = inner, 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.samples += len(x)
            return self.inner(x)  # type: ignore[no-any-return]

    model = Counts(tiny.model)
    splits = {"train": tiny.train, "test": tiny.test, "holdout": tiny.holdout}
    evaluate({"mine": model}, tiny.task, scenario=tiny.scenario, runtime=QUIET, **splits)
    assert model.samples == sum(len(d) for d in splits.values()) + 2  # two samples to find the features


def test_values_are_those_of_the_models_and_gaps_are_differences(tiny: World) -> None:
    done = unlearn(load("retrain")(), tiny.model, tiny.task, forget=tiny.forget, retain=tiny.retain, recipe=tiny.recipe)
    scores = evaluate(
        {"original": tiny.model, "retrained": done},
        tiny.task,
        train=tiny.train,
        test=tiny.test,
        scenario=tiny.scenario,
        runtime=QUIET,
    )
    batch = tiny.test.read(range(len(tiny.test)))
    want = (tiny.model(batch.inputs).argmax(1) == batch.target).double().mean()
    assert scores["original"]["accuracy/test"].x == pytest.approx(float(want))
    assert scores["no_op"]["accuracy/test"] == scores["original"]["accuracy/test"]
    gap = scores["original"]["accuracy/forget"].x - scores["retrained"]["accuracy/forget"].x
    assert scores.gaps["original"]["accuracy/forget"].x == pytest.approx(gap)
    assert scores["retrained"]["cost/seconds"].x == done.seconds
    assert isinstance(scores["original"]["cost/seconds"], Unavailable)
    assert scores["no_op"]["cost/changed"].x == 0.0
    assert scores.floor == {}


def test_what_is_undefined_says_why(tiny: World) -> None:
    scores = evaluate({"original": tiny.model}, tiny.task, train=tiny.train, scenario=tiny.scenario, runtime=QUIET)
    assert scores["original"]["accuracy/test"] == Unavailable("there are no samples in test")
    assert scores["original"]["membership/entropy_lr"] == Unavailable("there are no samples in test")
    few = evaluate(
        {"original": tiny.model}, tiny.task, train=tiny.train, scenario=tiny.scenario, test=tiny.test, runtime=QUIET
    )
    rate = few["original"]["membership/loss/tpr_at_fpr_0.01"]
    assert isinstance(rate, Unavailable)
    assert "needs 100 unseen samples" in rate.reason


def test_regression_runs_without_classes() -> None:
    problem = zoo.load("diabetes")
    model = fit(problem.new_model(), problem.task, problem.train, Recipe(epochs=2, lr=0.01), runtime=QUIET)
    case = forget_ids(problem.train, problem.train.ids[:9])
    splits = {"train": problem.train, "test": problem.test, "holdout": problem.holdout}
    scores = evaluate({"original": model}, problem.task, scenario=case, runtime=QUIET, **splits)
    assert isinstance(problem.task, Regression)
    assert scores["original"]["accuracy/test"] == Unavailable("the task has no classes")
    assert scores["original"]["membership/entropy_lr"] == Unavailable("the task has no classes")
    assert isinstance(scores["original"]["loss/test"], Value)
    assert isinstance(scores["original"]["membership/loss/auc"], Value)


def test_the_forgotten_kind_in_the_test_set_follows_the_scenario() -> None:
    case = forget_subclass(PROBLEM.train, "straight", column="superclass")
    model = PROBLEM.new_model().eval()
    scores = evaluate(
        {"original": model}, PROBLEM.task, train=PROBLEM.train, test=PROBLEM.test, scenario=case, runtime=QUIET
    )
    straight = int(np.isin(PROBLEM.test.targets().numpy(), [1, 4, 7]).sum())
    assert scores["original"]["accuracy/test_forget"].n == straight
    assert scores["original"]["accuracy/test_retain"].n == len(PROBLEM.test) - straight


def test_pooling_pairs_gaps_by_seed_and_never_invents_a_spread(tiny: World) -> None:
    def run(a: float, b: float) -> Scores:
        one = {"accuracy/forget": Value(a, a, a, 5)}
        two = {"accuracy/forget": Value(b, b, b, 5), "x": Unavailable("why")}
        gaps = {"ssd": {"accuracy/forget": Value(b - a, -math.inf, math.inf, 1)}}
        base = evaluate({"original": tiny.model}, tiny.task, train=tiny.train, scenario=tiny.scenario, metrics=["cost"])
        values = {"retrained": {**one, "x": Unavailable("why")}, "ssd": two}
        return replace(base, values=values, gaps=gaps, distances={"ssd": {"accuracy/forget": abs(b - a)}}, floor={})

    swings = pooled([run(0.1, 0.6), run(0.6, 0.1)])
    assert swings.gaps["ssd"]["accuracy/forget"].x == pytest.approx(0.0)
    assert swings.distances["ssd"]["accuracy/forget"] == pytest.approx(0.5)
    runs = [run(0.1, 0.3), run(0.2, 0.5)]
    found = pooled(runs)
    assert found.seeds == 2
    assert found["ssd"]["accuracy/forget"].x == pytest.approx(0.4)
    gap = found.gaps["ssd"]["accuracy/forget"]
    assert (gap.x, gap.n) == (pytest.approx(0.25), 2)
    assert gap.high - gap.x == pytest.approx(12.7062 * 0.0707107 / math.sqrt(2), rel=1e-4)
    assert found["ssd"]["x"] == Unavailable("why")
    alone = pooled(runs[:1]).gaps["ssd"]["accuracy/forget"]
    assert (alone.low, alone.high) == (-math.inf, math.inf)


def test_pooling_cuts_shares_to_their_range_and_changes_of_shares_not() -> None:
    def ends(*xs: float, half: float = 0.0) -> tuple[float, float, float]:
        found = pool([Value(x, x - half, x + half, 50) for x in xs])
        assert isinstance(found, Value)
        return found.low, found.x, found.high

    assert ends(0.0, 0.1)[0] == 0.0
    assert ends(0.9, 1.0)[2] == 1.0
    low, x, high = ends(-0.02, 0.0)
    assert low < x < high
    assert low == pytest.approx(-0.01 - 0.01 * 12.706, rel=1e-3)  # t with one degree of freedom
    assert ends(0.0, 0.02, half=0.01)[0] < 0  # a change whose intervals reach below zero
    assert ends(1.2, 1.3)[2] > 1.3


def test_what_is_said_of_some_seeds_is_not_said_of_all(tiny: World) -> None:
    one = evaluate(
        {"a": tiny.model}, tiny.task, train=tiny.train, scenario=tiny.scenario, metrics=["accuracy"], runtime=QUIET
    )
    runs = [replace(one, caveats=("Always.",)), replace(one, caveats=("Once.", "Always."))]
    assert pooled(runs).caveats == ("Always.", "On 1 of 2 seeds: Once.")


def test_only_like_runs_are_pooled(tiny: World) -> None:
    case = {"train": tiny.train, "scenario": tiny.scenario, "runtime": QUIET}
    runs = [evaluate({"a": tiny.model}, tiny.task, metrics=[m], **case) for m in ("accuracy", "loss")]
    with pytest.raises(
        UserError, match="runs of the same models and metrics, got a after a: evaluate every seed alike"
    ):
        pooled(runs)
    with pytest.raises(UserError, match="at least one run to pool, got none"):
        pooled([])


def test_a_list_of_results_is_pooled_under_one_name(tiny: World) -> None:
    both = [world("class").model, tiny.model]
    chosen = ["accuracy", "accuracy"]  # asked for twice, run once
    scores = evaluate({"mine": both}, tiny.task, train=tiny.train, scenario=tiny.scenario, metrics=chosen)
    assert list(scores.values) == ["mine"]
    assert scores["mine"]["accuracy/forget"].n == 2


@pytest.mark.parametrize(
    ("models", "more", "text"),
    [
        ({}, {}, "at least one model, got none"),
        ({"a": 3}, {}, "a module or unlearn result under 'a', got int"),
        ({FLOOR: "model", "retrained": "two"}, {}, "a name for each model, got 'retrained .other seed.' for two"),
        ({"a": "model"}, {"metrics": ["acuracy"]}, "a known metric, got 'acuracy': did you mean 'accuracy'"),
        ({"a": "model"}, {"attacks": ["los"]}, "a known attack, got 'los'"),
        ({"a": "model"}, {"metrics": ["cost"], "attacks": ["loss"]}, "'membership' among the metrics, .* got none"),
        ({"a": "model"}, {"metrics": ["cost", Cost()]}, "each number from one metric, got cost/seconds, .* several"),
    ],
)
def test_bad_calls_are_refused(models: dict[str, Any], more: dict[str, Any], text: str, tiny: World) -> None:
    known = {"model": tiny.model, "two": [tiny.model, tiny.model]}
    given = {k: known.get(v, v) for k, v in models.items()}
    with pytest.raises(UserError, match=text):
        evaluate(given, tiny.task, train=tiny.train, scenario=tiny.scenario, **more)
    with pytest.raises(UserError, match="an evaluated model, got 'sdd'"):
        evaluate({"ssd": tiny.model}, tiny.task, train=tiny.train, scenario=tiny.scenario, metrics=["cost"])["sdd"]


def test_the_document_is_plain_json_and_renders(tiny: World) -> None:
    again = world("class", n=45)
    models = {"original": tiny.model, "retrained": [tiny.model, again.model]}
    scores = evaluate(models, tiny.task, train=tiny.train, test=tiny.test, scenario=tiny.scenario, runtime=QUIET)
    part = section(scores, name="class 1", text="Class 1.", counts={"train": 39, "forget": 13})
    page = document([part], title="A test", lead="A lead.", command=None)
    assert json.loads(canonical(page)) == json.loads(json.dumps(page))
    assert {m["role"] for m in part["models"]} == {"original", "retrained", "floor", "control"}
    assert sum(part["curves"]["loss"]["densities"]["original"]["forget"]) == pytest.approx(1.0)
    assert part["values"]["no_op"]["cost/seconds"]["low"] is None
    assert "class 1" in render(page)


def test_unseen_samples_at_the_end_of_a_range_are_of_the_kind_that_the_forgotten_are() -> None:
    y = torch.tensor([0.1, 0.7, 0.9, 0.3, 0.7, 0.2])  # the nearest float32 is below 0.7
    sets = [Data.from_arrays(torch.zeros(6, 2), y, name=name) for name in ("train", "test")]
    for low, high in ((0.7, 1.0), (0.05, 0.7)):
        case = forget_range(sets[0], low, high)
        given = {"train": sets[0], "test": sets[1], "scenario": case, "metrics": ["loss"], "runtime": QUIET}
        found = evaluate({"mine": nn.Linear(2, 1)}, Regression(), **given)["mine"]  # type: ignore[arg-type]
        assert found["loss/test_forget"].n == len(case.forget)  # type: ignore[union-attr]


def test_the_tap_is_the_input_of_the_last_linear_layer(tiny: World) -> None:
    where = (tiny.task, tiny.train, QUIET)
    assert head_tap(tiny.model, *where) == "4:input"
    assert head_tap(nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten()), *where) is None
    late = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    late.unused = nn.ModuleList([nn.Linear(2, 2)])
    late.forward = lambda x: late[1](late[0](x))  # type: ignore[method-assign]
    assert head_tap(late, *where) == "1:input"
    assert "probe" in families()


def test_models_of_other_shapes_stand_side_by_side(tiny: World) -> None:
    class Prefixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = tiny.model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.module(x)  # type: ignore[no-any-return]

    other = nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten())
    models = {"original": tiny.model, "wrapped": Prefixed(), "other": other}
    scores = evaluate(models, tiny.task, train=tiny.train, test=tiny.test, scenario=tiny.scenario, runtime=QUIET)
    assert scores["wrapped"]["probe/one_shot"] == scores["original"]["probe/one_shot"]
    assert isinstance(scores["other"]["probe/one_shot"], Unavailable)
    assert isinstance(scores["other"]["cost/changed"], Unavailable)


def test_test_data_that_was_trained_on_is_refused(tiny: World) -> None:
    with pytest.raises(UserError, match="test data outside the training set, got train/0"):
        evaluate({"a": tiny.model}, tiny.task, train=tiny.train, test=tiny.train, scenario=tiny.scenario)


def test_retain_is_the_scenarios(tiny: World) -> None:
    some = tiny.train.subset(tiny.train.ids[:20])
    case = forget_ids(some, some.ids[:4])
    scores = evaluate(
        {"a": tiny.model}, tiny.task, train=tiny.train, scenario=case, metrics=["accuracy"], runtime=QUIET
    )
    assert scores["a"]["accuracy/retain"].n == 16


def test_replicates_and_several_retrained_models_reach_the_report(tiny: World) -> None:
    nets = [world("class", n=n).model for n in (42, 45, 48)]
    models = {"original": tiny.model, "retrained": nets, "mine": nets[:2], "mine #2": tiny.model}
    scores = evaluate(models, tiny.task, train=tiny.train, test=tiny.test, scenario=tiny.scenario, runtime=QUIET)
    assert scores["mine"]["accuracy/test"].n == 2
    assert scores["mine #2"]["accuracy/test"] == scores["original"]["accuracy/test"]
    x = [scores[n]["loss/test"].x for n in ("retrained", FLOOR, f"{FLOOR} 2")]
    want = np.mean([abs(x[0] - x[1]), abs(x[0] - x[2]), abs(x[1] - x[2])])
    assert scores.floor["loss/test"].x == pytest.approx(float(want))
    page = document([section(scores, name="a", text="b", counts={"train": 39})], title="t", lead="l", command=None)
    assert "mine #2" in render(page)


def test_counts_given_up_at_their_cap_pool_to_a_lower_bound() -> None:
    found = pool([Value(20, -math.inf, math.inf, 1, "steps"), Value(250, 250, math.inf, 1, "steps")])
    assert found == Value(135.0, 135.0, math.inf, 2, "steps")
    plain = pool([Value(20, -math.inf, math.inf, 1, "steps"), Value(24, -math.inf, math.inf, 1, "steps")])
    assert isinstance(plain, Value)
    assert math.isfinite(plain.high)


def test_groups_by_class_stand_under_the_names_of_classes(one_class: Scores) -> None:
    groups = {
        "no_op": {
            "subgroups/label": {0: Value.single(-0.5), 9: Value.single(0.1)},
            "subgroups/camera": {0: Value.single(0)},
        }
    }
    part = section(replace(one_class, series=groups), name="n", text="t", counts={}, classes=["zero", "one"])
    assert [p["at"] for p in part["series"]["no_op"]["subgroups/label"]] == ["zero", 9]
    assert [p["at"] for p in part["series"]["no_op"]["subgroups/camera"]] == [0]
