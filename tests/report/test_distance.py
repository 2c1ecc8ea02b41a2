"""Yardsticks, tests, and forgetting too much."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from expunge import stats
from expunge.report import distance, findings
from expunge.report.distance import alarms, chance, overforgets, told, yardstick


def model(section, name):
    return next(m for m in section["models"] if m["name"] == name)


def metric(section, name):
    return next(m for m in section["metrics"] if m["name"] == name)


def p(section, name, key):
    return chance(section, model(section, name), metric(section, key))


def test_a_floor_of_one_difference_gives_way_to_a_longer_interval(document):
    section = document["sections"][0]
    section["floor"]["accuracy/test"] = {"x": 0.001, "low": None, "high": None, "n": 1, "unit": "1"}
    length, name = yardstick(section, "ssd", "accuracy/test")
    assert name == "half interval"
    assert length > 0.001


def test_a_floor_of_zero_gives_way_to_the_interval(document):
    section = document["sections"][0]
    gap = {"x": 0.03, "low": 0.01, "high": 0.05, "n": 5, "unit": "1"}
    section["gaps"]["ssd"]["accuracy/forget"] = gap
    assert section["floor"]["accuracy/forget"]["x"] == 0
    length, name = yardstick(section, "ssd", "accuracy/forget")
    assert (round(length, 6), name) == (0.02, "half interval")
    section["gaps"]["ssd"]["accuracy/forget"] = gap | {"n": 1}
    section["values"]["ssd"]["accuracy/forget"] |= {"n": 1}
    assert yardstick(section, "ssd", "accuracy/forget") == (0.001, "printed digit")


def test_a_paired_interval_of_the_gap_is_the_yardstick_before_that_of_the_value(wide):
    section = wide["sections"][0]
    section["gaps"]["ssd"]["accuracy/test"] |= {"x": -0.02, "low": -0.03, "high": -0.01}
    length, name = yardstick(section, "ssd", "accuracy/test")
    assert (round(length, 6), name) == (0.01, "half interval")


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.6), (0.02, 0.6), (-0.1, 0.7)])
def test_p_is_below_five_percent_exactly_where_the_interval_leaves_out_0(low, high):
    found = distance.p_value(0.3, low, high, 8, 0.001)
    assert (found <= 0.05 + 1e-12) == (low >= 0)
    t = scipy_stats.t.ppf(0.975, 7)
    assert found == pytest.approx(2 * scipy_stats.t.sf(0.3 * t / (0.3 - low), 7))


def test_runs_that_agree_to_the_last_sample_prove_no_spread_of_zero():
    t = scipy_stats.t.ppf(0.975, 2)
    assert distance.p_value(0.002, 0.002, 0.002, 3, 0.001) == pytest.approx(2 * scipy_stats.t.sf(2 * t, 2))
    assert distance.p_value(0.0, 0.0, 0.0, 3, 0.001) == 1.0
    assert distance.p_value(0.1, 0.1, 0.1, 3, 0.0) == 0.0


def test_pooled_gaps_are_tested_over_seeds(document):
    section = document["sections"][0]
    section["gaps"]["ssd"]["accuracy/test"] = {"x": -0.02, "low": -0.03, "high": -0.01, "n": 5, "unit": "1"}
    t = scipy_stats.t.ppf(0.975, 4)
    assert p(section, "ssd", "accuracy/test") == pytest.approx(2 * scipy_stats.t.sf(2 * t, 4))


def test_a_gap_without_interval_is_that_of_two_independent_estimates_on_one_seed_only(wide):
    section = wide["sections"][0]
    key = "membership/loss/auc"
    assert section["gaps"]["finetune"][key]["low"] is None
    own, base = (section["values"][m][key] for m in ("finetune", "retrained"))
    apart = stats.difference(*(stats.Interval(v["x"], v["low"], v["high"], v["n"]) for v in (own, base)))
    expected = distance.p_value(apart.x, apart.low, apart.high, 103, 0.001)
    assert p(section, "finetune", key) == pytest.approx(expected)
    section["seeds"] = 3
    assert p(section, "finetune", key) is None


def test_a_distance_is_tested_against_that_of_a_second_retrained_model(wide):
    section = wide["sections"][0]
    key = "divergence/js/forget"
    for name, x in (("finetune", 0.5), ("ssd", 0.011), ("retrained (other seed)", 0.01)):
        section["gaps"][name][key] = {"x": x, "low": x - 0.005, "high": x + 0.005, "n": 103, "unit": "nats"}
    assert p(section, "finetune", key) < 1e-6
    assert p(section, "ssd", key) > 0.5  # though its own interval leaves out 0
    assert p(section, "retrained (other seed)", key) is None
    section["models"] = [m for m in section["models"] if m["role"] != "floor"]
    assert p(section, "finetune", key) is None


@pytest.mark.parametrize(
    ("target", "ends", "found"),
    [
        (None, [0, 1], False), (0, [0, None], True), (1, [-1, 1], True), (0.5, [0, 1], False), (0, [None, None], False),
        (1, [0, None], False), (0, None, True), (0.5, None, False),
    ],
)  # fmt: skip
def test_an_ideal_at_an_end_of_the_range_can_be_missed_on_one_side_only(target, ends, found):
    assert distance.one_sided({"target": target, "range": ends}) is found


def test_costs_and_the_reference_are_not_tested(wide):
    section = wide["sections"][0]
    assert p(section, "retrained", "accuracy/test") is None
    assert p(section, "ssd", "cost/changed") is None


def test_told_counts_with_holms_correction(document):
    section = document["sections"][0]
    section["metrics"] = [m for m in section["metrics"] if m["group"] == "accuracy"]
    found = [0.0008, 0.011, 0.02, 0.04, 0.6]  # Holm: 0.004, 0.044, 0.06, 0.08, 0.6
    t = scipy_stats.t.ppf(0.975, 4)
    for m, chance_ in zip(section["metrics"], found, strict=True):
        half = 0.3 * t / scipy_stats.t.ppf(1 - chance_ / 2, 4)
        gap = {"x": 0.3, "low": 0.3 - half, "high": 0.3 + half, "n": 5, "unit": "1"}
        section["gaps"]["ssd"][m["name"]] = gap
    there = told(section, model(section, "ssd"))
    assert (there.sure, there.tested) == (2, 5)


def test_a_second_retrained_model_seldom_raises_an_alarm(document):
    """The chance of any false alarm in a family of 40 numbers over 5 seeds stays near five percent."""
    section = document["sections"][0]
    metrics = [dict(section["metrics"][0], name=f"accuracy/{i}") for i in range(40)]
    section |= {"metrics": metrics, "floor": {}}
    rng, any_, runs = np.random.default_rng(0), 0, 300
    for _ in range(runs):
        gaps = {}
        for m in metrics:
            mean = stats.mean_t(rng.normal(0, 0.05, 5))
            gaps[m["name"]] = {"x": mean.x, "low": mean.low, "high": mean.high, "n": 5, "unit": "1"}
        section["gaps"] = {"retrained (other seed)": gaps}
        any_ += alarms(section).sure > 0
    assert any_ / runs < 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_costs_and_weights_are_not_counted(wide):
    section = wide["sections"][0]
    there = told(section, model(section, "ssd"))
    section["metrics"] = [m for m in section["metrics"] if m["group"] not in ("weights", "cost")]
    assert told(section, model(section, "ssd")) == there


def test_told_names_the_farthest(document):
    section = document["sections"][0]
    there = told(section, model(section, "no_op"))
    assert (there.beyond, there.measured) == (10, 12)
    lengths = [distance.length(section, model(section, "no_op"), m) for m in section["metrics"]]
    assert there.times == max(v for v in lengths if v is not None)
    assert distance.length(section, model(section, "no_op"), there.farthest) == there.times


AUC = "membership/loss/auc"


def auc(section, x, half=0.02, retrained=0.5, original=0.6):
    def entry(x, half):
        return {"x": x, "low": x - half, "high": x + half, "n": 103, "unit": "1"}

    section["values"]["ssd"][AUC] = entry(x, half)
    section["gaps"]["ssd"][AUC] = entry(x - retrained, half)
    section["gaps"]["original"][AUC] = entry(original - retrained, half)
    section["floor"][AUC] = {"x": 0.01, "low": None, "high": None, "n": 5, "unit": "1"}
    return overforgets(section, "ssd", AUC)


@pytest.mark.parametrize(
    ("numbers", "over"),
    [
        ({"x": 0.4}, True),
        ({"x": 0.6}, False),
        ({"x": 0.495, "half": 0.002}, False),  # within the floor
        ({"x": 0.48, "half": 0.03}, False),  # its interval reaches a half
        ({"x": 0.4, "retrained": 0.39}, False),  # retrained lies there too
        ({"x": 0.55, "retrained": 0.7}, False),  # less than retrained, and still more like members than unseen ones
        ({"x": 0.4, "original": 0.3}, False),  # the original lies there: memory shows by lower scores here
    ],
)
def test_over_forgetting_is_below_a_half_and_below_retrained_by_more_than_the_intervals(wide, numbers, over):
    assert auc(wide["sections"][0], **numbers) is over


def off(section, key, x, half=0.1, original=-1.0):
    def entry(x, half):
        return {"x": x, "low": x - half, "high": x + half, "n": 103, "unit": "target units"}

    for model, gap in (("ssd", x), ("original", original)):
        section["values"][model][key], section["gaps"][model][key] = entry(gap + 2, half), entry(gap, half)
    section["floor"][key] = {"x": 0.3, "low": None, "high": None, "n": 5, "unit": "target units"}
    return overforgets(section, "ssd", key)


@pytest.mark.parametrize("key", ["error/mae/forget", "error/rmse/forget"])
@pytest.mark.parametrize(
    ("numbers", "over"),
    [
        ({"x": 0.5}, True),
        ({"x": -0.5}, False),  # closer than retrained: not forgotten
        ({"x": 0.2}, False),  # within the floor
        ({"x": 0.5, "half": 0.6}, False),  # its interval reaches 0
        ({"x": 0.5, "original": 0.6}, False),  # the original is off by as much: no loss of memory
    ],
)
def test_an_error_above_retrained_on_the_forgotten_samples_is_over_forgetting(wide, key, numbers, over):
    section = wide["sections"][0]
    assert off(section, key, **numbers) is over
    said = "farther off on the forgotten samples than a model that never saw them" in findings.over(section, "ssd")
    assert said is over
    assert not off(section, "error/mae/test_forget", **numbers)


def test_other_metrics_are_never_over_forgetting(wide):
    section = wide["sections"][0]
    section["gaps"]["ssd"]["accuracy/test"] |= {"x": -0.5, "low": -0.6, "high": -0.4}
    assert not overforgets(section, "ssd", "accuracy/test")
