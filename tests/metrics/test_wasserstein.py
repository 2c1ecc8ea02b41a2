"""W1 of predictions: numbers worked out by hand, the shares against scipy's distance, the interval by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from expunge.evidence import Outputs
from expunge.metric import Unavailable, Value
from expunge.metrics.paired import Paired
from expunge.metrics.wasserstein import Wasserstein, shares, w1
from expunge.task import Classification, Quantile, Regression
from pairs import audit, noise, said


def real(outputs: torch.Tensor) -> Outputs:
    target = torch.zeros(outputs.shape, dtype=torch.float64)
    return Outputs(outputs.double(), outputs.double(), target, outputs.double().abs().reshape(len(outputs), -1).mean(1))


@pytest.mark.parametrize(
    ("one", "other", "want"),
    [
        ([0, 1, 3], [5, 6, 8], 5.0),
        ([0, 1, 3], [2, 4], 5 / 3),
        ([20, 25, 30, 40], [22, 30, 35, 50], 5.5),
        ([1, 2], [2, 1], 0.0),
    ],
)
def test_distances_by_hand(one: list[float], other: list[float], want: float) -> None:
    assert w1(one, other) == pytest.approx(want, abs=1e-12)


def test_weights_and_vectors_by_hand() -> None:
    assert w1([1, 2], [1, 2], [3, 1], [1, 3]) == pytest.approx(0.5)
    assert w1([[0, 10], [1, 20]], [[5, 10], [6, 20]]) == pytest.approx(2.5)  # 5 of the first number, 0 of the second


@pytest.mark.parametrize("seed", range(4))
def test_shares_have_the_distance_for_their_mean_ties_included(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=200), rng.normal(0.3, 1.4, size=200)
    if seed % 2:
        a, b = a.round(1), b.round(1)
    assert shares(a, b).mean() == pytest.approx(wasserstein_distance(a, b), abs=1e-12)
    order = rng.permutation(200)
    assert shares(a, a[order]).mean() == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(shares(a, b)[order], shares(a[order], b[order]))
    np.testing.assert_allclose(shares(a, a), 0.0)


def test_the_interval_covers_the_true_distance() -> None:
    """Of two normal distributions 1 apart the distance is 1; pairs share half of their variance."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(400):
        shared = rng.normal(size=60)
        a, b = shared + rng.normal(size=60), shared + rng.normal(size=60) + 1
        value = Wasserstein()(
            audit(
                {"forget": real(torch.from_numpy(a)[:, None])},
                {"forget": real(torch.from_numpy(b)[:, None])},
                task=Regression(),
            )
        )["wasserstein/forget"]
        assert isinstance(value, Value)
        inside += value.low <= 1 <= value.high
    assert 0.92 <= inside / 400 <= 0.98


def test_predictions_that_change_places_leave_it_at_zero_and_move_the_paired_distance() -> None:
    own = real(noise(50, 2))
    given = audit({"forget": own}, {"forget": own.take(torch.arange(50).flip(0))}, task=Regression())
    found = Wasserstein()(given)["wasserstein/forget"]
    assert isinstance(found, Value)
    assert (found.x, found.n, found.unit) == (pytest.approx(0.0, abs=1e-12), 50, "target units")
    paired = Paired()(given)["paired/distance"]
    assert isinstance(paired, Value)
    assert paired.x == pytest.approx(float((own.outputs - own.outputs.flip(0)).abs().mean()))
    assert paired.x > 0.5


def test_of_quantiles_the_middle_one_is_compared() -> None:
    task, outputs = Quantile(), noise(40, 4, 3)
    own, other = (
        Outputs(o, task.predictions(o), torch.zeros(40, 4), torch.zeros(40, dtype=torch.float64))
        for o in (outputs, outputs + torch.tensor([9.0, 2.0, 9.0]))
    )
    given = audit({"forget": own}, {"forget": other}, task=task)
    found = Wasserstein()(given)["wasserstein/forget"]
    assert isinstance(found, Value)
    assert found.x == pytest.approx(2.0)
    distance = Paired()(given)["paired/distance"]
    assert isinstance(distance, Value)
    assert distance.x == pytest.approx(2.0)


def test_without_a_number_there_is_a_reason() -> None:
    own = {"forget": real(noise(9, 1))}
    alone = Wasserstein()(audit(own, task=Regression()))
    assert set(alone.values()) == {Unavailable("there is no retrained model to compare with")}
    assert Wasserstein()(audit(own, own, task=Regression()))["wasserstein/test"] == Unavailable(
        "there are no samples in test"
    )
    three = {"forget": said(noise(9, 3))}
    assert set(Wasserstein()(audit(three, three, task=Classification())).values()) == {
        Unavailable("it is a distance of regression")
    }
    one = {"forget": real(noise(1, 1))}
    single = Wasserstein()(audit(one, {"forget": real(noise(1, 1, seed=1))}, task=Regression()))["wasserstein/forget"]
    assert isinstance(single, Value)
    assert (single.low, single.high) == (-math.inf, math.inf)
