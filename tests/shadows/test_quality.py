"""Forgetting quality: published numbers, every threshold by a loop, and the trap of identical models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from expunge.errors import UserError
from expunge.shadows import bins, epsilon, epsilons, forgetting_quality, points, resolved
from expunge.shadows.pool import Floats
from expunge.shadows.quality import Quality

LISTED = [0.1, 0.49, 0.5, 1.2, 2.3, 6.9, 7.0, 50]


def test_published_epsilons() -> None:
    found = epsilon([0.1, 0.5, 0.01], [0.2, 0.5, 0.3])
    assert found == pytest.approx([2.0794290, 0.0, 4.2484810], abs=1e-6)


def test_epsilon_at_the_ends() -> None:
    found = epsilon([0, 0, 0.2, 1, 1, 0.3], [0, 0.2, 0, 0.5, 1, 1])
    assert found[0] == math.inf
    assert np.isnan(found[1:3]).all()
    assert found[3:].tolist() == [0, 0, 0]
    larger = max(math.log((1 - 0.3 - 0.1) / 0.2), math.log((1 - 0.3 - 0.2) / 0.1))
    assert epsilon([0.1], [0.2], delta=0.3)[0] == pytest.approx(larger)


def test_published_quality() -> None:
    earned = points(LISTED, 512)
    assert earned.tolist() == [1, 1, 0.5, 0.25, 2**-4, 2**-13, 0, 0]
    assert earned.mean() == pytest.approx(0.3515778, abs=1e-7)
    final = Quality(float(earned.mean()), np.array(LISTED), earned, 14).final(retain=(0.98, 0.99), test=(0.90, 0.92))
    assert final == pytest.approx(0.3404607, abs=1e-7)


@pytest.mark.parametrize("models", [3, 8, 16, 64, 512])
def test_bins_that_models_resolve(models: int) -> None:
    paid = [b for b in range(40) if (b + 1) / 2 <= math.ceil(math.log(models - 1))]
    assert bins(models) == len(paid)
    rates = np.arange(1, models) / models
    largest = max(float(epsilon([f], [m])[0]) for f in rates for m in rates if models <= 64 or min(f, m) < 0.01)
    assert resolved(models) == int(largest / 0.5) + 1
    assert (points([largest], models) > 0).all()


def slow(a: Floats, b: Floats) -> float:
    """Return ε of one sample by comparing every value with every threshold and interval."""
    narrow, wide = sorted((a, b), key=np.ptp)
    if np.ptp(narrow) < 0.01 * np.ptp(wide):
        return 50.0
    up, down = (a, b) if np.median(a) >= np.median(b) else (b, a)
    both = np.concatenate([a, b])
    cuts = np.linspace(both.min(), both.max(), math.ceil(np.ptp(both) * 100))
    right = np.linspace(narrow.max() - 2, narrow.max() + 2, 400)[:, None]
    left = right - np.ptp(narrow) + np.linspace(-2, 2, 400)
    within = [np.mean([(left <= v) & (v <= right) for v in side], axis=0) for side in (wide, narrow)]
    above = [np.mean([v >= cuts for v in side], axis=0) for side in (down, up)]
    found = [epsilon(fpr, 1 - tpr) for fpr, tpr in (within, above)]
    return max(float(np.nan_to_num(f, nan=0.0, posinf=50.0).max()) for f in found)


def test_epsilon_agrees_with_every_threshold_and_interval() -> None:
    rng = np.random.default_rng(0)
    means, deviations = np.array([0, 2, -1, 0, 0.0]), np.array([1, 1, 0.4, 3, 0.2])
    unlearned, retrained = rng.normal(means, deviations, (8, 5)), rng.normal(0, 1, (16, 5))
    found = epsilons(unlearned, retrained)
    assert found == pytest.approx([slow(unlearned[:, i], retrained[:, i]) for i in range(5)])
    assert len(set(found.round(6))) > 2
    assert epsilons(retrained, unlearned) == pytest.approx(found)
    assert epsilons(unlearned[::-1, ::-1], retrained[::-1, ::-1]) == pytest.approx(found[::-1])


def test_an_interval_finds_what_one_threshold_cannot() -> None:
    retrained = np.concatenate([np.linspace(-3, -2, 20), np.linspace(2, 3, 20)])[:, None]
    unlearned = np.linspace(-0.5, 0.5, 40)[:, None]
    assert epsilons(unlearned, retrained)[0] == 50.0
    single = max(float(np.nan_to_num(epsilon([f], [m])[0])) for f, m in ((0.5, 0.5), (0.5, 0.025)))
    assert single < 4


def test_one_threshold_finds_what_an_interval_cannot() -> None:
    narrow = np.repeat([0.0, 10.0], [15, 6])
    wide = np.concatenate([[5.0, 7.0], np.linspace(11, 16.5, 19)])  # an interval has no end between 5 and 7
    for side in (1, -1):
        found = epsilons(side * narrow[:, None], side * wide[:, None])[0]
        assert found == pytest.approx(slow(side * narrow, side * wide))
        assert found == pytest.approx(math.log((1 - 1e-5 - 6 / 21) * 21))


def test_identical_models_of_a_deterministic_method_score_0() -> None:
    rng = np.random.default_rng(0)
    retrained = rng.standard_normal((16, 30))
    one = np.median(retrained, axis=0)  # at the very middle of what retraining gives
    found = forgetting_quality(np.tile(one, (16, 1)), retrained)
    assert (found.epsilon == 50).all()
    assert found.score == 0
    assert found.bins == 6
    varied = forgetting_quality(rng.standard_normal((16, 30)), retrained)
    assert varied.score > 0.05


def test_range_of_a_hundredth_is_the_boundary() -> None:
    wide = np.linspace(0, 10, 9)[:, None]
    assert epsilons(5 + wide * 0.0099, wide)[0] == 50
    assert epsilons(5 + wide * 0.5, wide)[0] < 50


def test_values_without_any_range() -> None:
    one = np.ones((4, 1))
    assert epsilons(one, one)[0] == 0
    assert epsilons(one, 2 * one)[0] == 50


def test_quality_falls_with_a_shift_and_alike_ensembles_do_not_score_1() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = 2 * rng.standard_normal((2, 32, 40))
    scores = [forgetting_quality(ours + shift, theirs).score for shift in (0.0, 3.0, 40.0)]
    assert 0.1 < scores[0] < 0.3
    assert scores[0] > scores[1] > scores[2] == 0


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: epsilon([0.1], [1.2]), "pairs of rates in"),
        (lambda: epsilon([0.1], [0.1, 0.2]), r"shapes \(1,\) and \(2,\)"),
        (lambda: epsilon([0.1], [0.1], 1.0), "delta in .0, 1., got 1.0"),
        (lambda: bins(2), "at least 3 models on either side, got 2"),
        (lambda: resolved(1), "at least 3 models"),
        (lambda: points([-0.1], 8), "epsilon of 0 or more"),
        (lambda: points([math.nan], 8), "epsilon of 0 or more"),
        (lambda: epsilons(np.zeros((4, 2)), np.zeros((4, 3))), "same samples on both sides, got 2 and 3"),
        (lambda: epsilons(np.zeros((1, 2)), np.zeros((4, 2))), "at least 2 models on either side, got 1 and 4"),
        (lambda: forgetting_quality(np.eye(2), np.eye(2)), "at least 3 models on either side, got 2"),
        (
            lambda: Quality(0.5, np.zeros(1), np.zeros(1), 4).final(retain=(0.9, 0.0), test=(0.9, 0.9)),
            "accuracies, those of retrained models above 0",
        ),
    ],
)
def test_what_is_refused(call: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        call()
