"""The population stability index: by hand, against a loop, its noise, and controls."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from expunge import stats
from expunge.errors import UserError
from expunge.metric import Unavailable, Value
from expunge.metrics.stability import Stability, psi
from expunge.task import Classification
from pairs import audit, said

ORIGINAL, RETRAINED = "stability/original/test", "stability/retrained/test"


def slow(reference: np.ndarray, scores: np.ndarray, bins: int, floor: float) -> float:
    """Walk through cells that hold equally many of the reference, one score at a time."""
    ordered = sorted(reference.tolist())
    edges = sorted({ordered[k * len(ordered) // bins] for k in range(1, bins)})
    total = 0.0
    for b in range(len(edges) + 1):
        low = -math.inf if b == 0 else edges[b - 1]
        high = math.inf if b == len(edges) else edges[b]
        p, q = (max(floor, sum(low <= s < high for s in side) / len(side)) for side in (reference, scores))
        total += (q - p) * math.log(q / p)
    return total


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_slow_index_ties_and_empty_cells_included(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference, scores = rng.beta(2, 5, 300), rng.beta(2.5, 4, 300)
    if seed > 1:
        reference, scores = reference.round(1), scores.round(1)
    if seed == 3:
        scores = np.full(300, 0.95)
    assert psi(reference, scores, 10, 1e-4).mean() == pytest.approx(slow(reference, scores, 10, 1e-4))


def test_an_unchanged_model_has_none_and_the_order_of_samples_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    a, b, order = rng.random(100), rng.random(100), rng.permutation(100)
    np.testing.assert_array_equal(psi(a, a, 10, 1e-4), np.zeros(100))
    np.testing.assert_allclose(psi(a, b, 10, 1e-4)[order], psi(a[order], b[order], 10, 1e-4))


def test_the_interval_covers_the_index_of_the_whole_population() -> None:
    """Scores shift by 0.15 of their range; pairs share most of their noise, as two models on one sample do."""
    rng = np.random.default_rng(1)

    def pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
        level = rng.normal(size=n)
        return level + 0.4 * rng.normal(size=n), level + 0.4 * rng.normal(size=n) + 0.8

    truth = psi(*pairs(400_000), 5, 1e-4).mean()
    inside = 0
    for _ in range(300):
        found = stats.mean_t(psi(*pairs(500), 5, 1e-4))
        inside += found.low <= truth <= found.high
    assert 0.90 <= inside / 300 <= 0.98


def outputs(p: np.ndarray) -> Any:
    chance = torch.from_numpy(p)
    return said(torch.stack([(1 - chance).log(), chance.log()], dim=1), torch.zeros(len(p), dtype=torch.long))


def found(model: np.ndarray, retrained: np.ndarray, original: np.ndarray) -> dict[str, Any]:
    sides = [{"test": outputs(p)} for p in (model, retrained, original)]
    return Stability()(audit(*sides, task=Classification()))


def test_no_op_and_a_mask_stand_apart_from_retrained_and_a_second_retrained_model_does_not() -> None:
    rng = np.random.default_rng(2)
    z = rng.normal(size=2000)

    def scores(shift: float, seed: int) -> np.ndarray:
        noisy = z + shift + 0.2 * np.random.default_rng(seed).normal(size=2000)
        return np.asarray(1 / (1 + np.exp(-noisy)))

    original, retrained, second = scores(0, 10), scores(0.6, 11), scores(0.6, 12)
    no_op, again = found(original, retrained, original), found(second, retrained, original)
    assert no_op[ORIGINAL].x == 0
    assert no_op[RETRAINED].low > 0.2
    assert again[RETRAINED].x < 0.02
    assert again[ORIGINAL].x == pytest.approx(found(retrained, second, original)[ORIGINAL].x, abs=0.1)
    masked = found(1e-6 * original, retrained, original)
    assert masked[RETRAINED].low > 3


def test_without_a_number_there_is_a_reason() -> None:
    p = np.linspace(0.1, 0.9, 30)
    assert found(p, p, p)[ORIGINAL] == Unavailable("too few samples to fill 10 bins: 30 instead of 50")
    alone = Stability()(audit({"test": outputs(np.linspace(0.1, 0.9, 60))}))
    assert alone[ORIGINAL] == Unavailable("there is no original model to compare with")
    assert alone["stability/original/forget"] == Unavailable("there are no samples in forget")
    flat = found(np.full(60, 0.3), np.full(60, 0.3), np.full(60, 0.3))
    assert flat[ORIGINAL] == Value(0.0, 0.0, 0.0, 60, "")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"bins": 1}, "stability.bins of 2 or more, got 1"),
        ({"floor": 0.1}, "stability.floor above 0 and below 1/bins, got 0.1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        Stability(**settings)
