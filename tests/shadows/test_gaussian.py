"""Gaussian canaries: scores by hand, N(0, 1) without a trace, and the power that is claimed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest, norm

from expunge.errors import UserError
from expunge.shadows import gaussian_scores, least_mean

RNG = np.random.default_rng


def test_by_hand() -> None:
    gradients = np.array([[3.0, 4.0], [0.0, -2.0]])
    noise = np.array([[1.0, -0.5], [0.4, 0.8]])
    found = gaussian_scores(gradients, noise, 0.7)
    wanted = [(3 * 1 - 4 * 0.5) / (0.7 * 5), -2 * 0.8 / (0.7 * 2)]
    assert found.scores == pytest.approx(wanted)
    assert found.mean.x == pytest.approx(sum(wanted) / 2)
    assert found.z == pytest.approx(sum(wanted) / math.sqrt(2))
    assert found.p == pytest.approx(2 * norm.sf(abs(found.z)))


def test_scores_are_standard_normal_without_a_trace_whatever_the_gradients() -> None:
    rng = RNG(0)
    gradients = rng.standard_cauchy((2000, 3, 2, 2)) * np.exp(rng.normal(0, 30, (2000, 1, 1, 1)))
    found = gaussian_scores(gradients, rng.normal(0, 0.25, gradients.shape), 0.25)
    assert kstest(found.scores, "norm").pvalue > 0.01
    assert found.mean.low < 0 < found.mean.high
    assert found.p > 0.01


def test_tiny_and_huge_gradients_have_scores() -> None:
    rng = RNG(1)
    g, xi = rng.standard_normal((40, 5)), rng.standard_normal((40, 5))
    plain = gaussian_scores(g, xi, 1.0).scores
    for size in (1e-250, 1e250):
        assert gaussian_scores(g * size, xi, 1.0).scores == pytest.approx(plain)


def test_a_linear_model_that_learned_the_noise_is_found_and_one_that_did_not_is_not() -> None:
    rng = RNG(0)
    x, y, xi = rng.standard_normal((40, 200)), rng.choice([-1.0, 1.0], 40), rng.normal(0, 0.5, (40, 200))
    found = {}
    for name, inputs in (("learned", x + xi), ("clean", x)):
        w = np.linalg.lstsq(inputs, y, rcond=None)[0]
        residual = x @ w - y + 1e-9  # of the loss (w·x − y)²/2 at the input without noise
        found[name] = gaussian_scores(residual[:, None] * w, xi, 0.5)
    assert found["learned"].p < 1e-3
    assert found["clean"].p > 0.01


def test_p_values_are_uniform_without_a_trace_and_power_is_what_is_claimed() -> None:
    rng, n = RNG(0), 50
    missed, p = 0, []
    for _ in range(600):
        xi = rng.standard_normal((n, 6))
        g = rng.standard_normal((n, 6))
        p.append(gaussian_scores(g, xi, 1.0).p)
        along = g / np.linalg.norm(g, axis=1, keepdims=True)
        missed += gaussian_scores(g, xi + least_mean(n) * along, 1.0).p > 0.05
    assert kstest(p, "uniform").pvalue > 0.01
    assert 0.02 < missed / 600 < 0.08


def test_least_mean() -> None:
    assert least_mean(100) == pytest.approx((1.9599640 + 1.6448536) / 10)
    rng = RNG(0)
    assert gaussian_scores(rng.standard_normal((25, 4)), rng.standard_normal((25, 4)), 1.0).least == least_mean(25)


def test_order_has_no_effect() -> None:
    rng = RNG(0)
    g, xi = rng.standard_normal((2, 30, 4))
    order = rng.permutation(30)
    one, two = gaussian_scores(g, xi, 1.0), gaussian_scores(g[order], xi[order], 1.0)
    assert two.scores == pytest.approx(one.scores[order])
    assert two.z == pytest.approx(one.z)


def test_a_huge_trace_has_a_small_p_and_not_a_broken_one() -> None:
    rng = RNG(0)
    xi = rng.standard_normal((400, 30))
    found = gaussian_scores(xi, xi, 1.0)
    assert found.p < 1e-100
    assert found.mean.x == pytest.approx(math.sqrt(30), rel=0.05)


GOOD = RNG(0).standard_normal((30, 4))


@pytest.mark.parametrize(
    ("gradients", "noise", "deviation", "match"),
    [
        (GOOD, GOOD[1:], 1.0, r"same shape .* got shapes \(30, 4\) and \(29, 4\)"),
        (GOOD[:1], GOOD[:1], 1.0, "at least 2 canaries"),
        (GOOD[:, 0], GOOD[:, 0], 1.0, "at least 2 canaries"),
        (GOOD * np.inf, GOOD, 1.0, "finite gradients and noise"),
        (GOOD * (np.arange(30) > 2)[:, None], GOOD, 1.0, "point somewhere, got 3 of 30 that are 0"),
        (GOOD, GOOD, 0.0, "deviation above 0, got 0.0"),
        (GOOD, GOOD, 255.0, "noise of deviation 255, got noise of deviation"),
        (GOOD, np.clip(GOOD, -0.5, 0.5), 1.0, "noise as it was added, not clipped"),
    ],
)
def test_what_is_refused(gradients: Any, noise: Any, deviation: float, match: str) -> None:
    with pytest.raises(UserError, match=match):
        gaussian_scores(gradients, noise, deviation)


def test_least_mean_of_none() -> None:
    with pytest.raises(UserError, match="at least 1 canary, got 0"):
        least_mean(0)
