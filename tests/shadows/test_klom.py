"""KL divergence of margins: a slow histogram beside the fast one, and its floor by chance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from expunge.errors import UserError
from expunge.shadows import Klom
from expunge.shadows.pool import Floats

ALL = {"all": np.arange(200)}


def slow(a: Floats, b: Floats, klom: Klom) -> float:
    """Return the divergence of one sample from counts bin by bin."""
    a, b = np.clip(a, klom.low, klom.high), np.clip(b, klom.low, klom.high)
    edges = np.linspace(min(a.min(), b.min()), max(a.max(), b.max()), klom.bins + 1)
    p, q = (np.histogram(side, edges)[0] / len(side) for side in (a, b))
    q = np.maximum(q, klom.smoothing)
    q = q / q.sum()
    return sum(x * math.log(x / y) for x, y in zip(p, q, strict=True) if x > 0)


@pytest.mark.parametrize("klom", [Klom(), Klom(bins=5, smoothing=1e-2, low=-1, high=2)])
def test_divergence_agrees_with_a_histogram_per_sample(klom: Klom) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 2, (30, 25)), rng.normal(0, 1, (17, 25))
    found = klom.divergence(a, b)
    assert found == pytest.approx([slow(a[:, i], b[:, i], klom) for i in range(25)], rel=1e-9)
    order = rng.permutation(25)
    assert klom.divergence(a[::-1][:, order], b[::-1][:, order]) == pytest.approx(found[order])


def test_by_hand() -> None:
    klom = Klom(bins=2, smoothing=0.1)
    a, b = np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([[0.0], [1.0], [1.0], [1.0]])
    assert klom.divergence(a, b)[0] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    q = 0.1 / 1.1  # the retrained never fall in the lower bin
    assert klom.divergence(a, b * 0 + 1)[0] == pytest.approx(0.5 * math.log(0.5 / q) + 0.5 * math.log(0.5 / (1 - q)))


def test_ends() -> None:
    same = np.full((6, 2), 3.0)
    none = math.log(1 + 19e-5)  # what smoothing takes from the one bin in use
    assert Klom().divergence(same, same) == pytest.approx([none, none], abs=1e-12)
    apart = Klom().divergence(same + 50, same)
    assert apart == pytest.approx([-math.log(1e-5)] * 2, abs=1e-3)
    beyond = Klom().divergence(np.array([[200.0], [300.0]]), np.array([[101.0], [500.0]]))
    assert beyond[0] == pytest.approx(none, abs=1e-12)  # all of them clipped to 100


def test_percentile_by_split() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 20, 40))
    values = Klom().divergence(a, b)
    mask = np.arange(40) % 3 == 0
    found = Klom(percentile=80).measure(a, b, {"forget": [1, 4, 5, 9], "retain": mask})
    assert found["forget"].mean == pytest.approx(np.percentile(values[[1, 4, 5, 9]], 80))
    assert found["retain"].mean == pytest.approx(np.percentile(values[mask], 80))
    assert (found["retain"].low, found["retain"].size) == (found["retain"].high, 20)


def test_alike_ensembles_reach_the_floor_and_a_shifted_one_exceeds_it() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 3, 200)
    klom = Klom()
    retrained = base + rng.standard_normal((64, 200))
    floor = klom.floor(retrained, ALL, size=32)["all"]
    alike = klom.measure(base + rng.standard_normal((32, 200)), retrained, ALL, size=32)["all"]
    shifted = klom.measure(base + 1.5 + rng.standard_normal((32, 200)), retrained, ALL, size=32)["all"]
    assert floor.low <= alike.mean <= floor.high
    assert shifted.low > floor.high
    assert floor.mean > 1  # and far from 0: a value alone says nothing
    assert (floor.size, len(floor.values)) == (32, 20)


def test_small_ensembles_inflate_the_floor() -> None:
    rng = np.random.default_rng(0)
    retrained = rng.standard_normal((512, 200))
    means = [Klom().floor(retrained, ALL, size=n, repeats=3)["all"].mean for n in (8, 64, 256)]
    assert means[0] > 7 > 2 > means[1] > 0.8 > 0.4 > means[2] > 0.05
    whole = Klom().floor(retrained, ALL, repeats=3)["all"]
    assert (whole.size, whole.mean) == (256, means[2])


def test_groups_of_a_floor_share_no_model() -> None:
    values = np.arange(20.0)[:, None]  # a bin each
    found = Klom().floor(values, {"x": [0]}, repeats=10)["x"]
    assert found.values == pytest.approx([math.log(0.1e5 * (1 + 10e-5))] * 10)  # a model in both would share its bin


def test_draws_depend_on_the_seed_alone() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 20, 200))
    for call in (lambda s: Klom().floor(b, ALL, seed=s), lambda s: Klom().measure(a, b, ALL, size=8, seed=s)):
        first, again, other = call(0)["all"], call(0)["all"], call(1)["all"]
        assert (first.values == again.values).all()
        assert (first.values != other.values).any()
        assert first.low <= first.mean <= first.high


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"bins": 1}, "at least 2 bins and a range, got 1 bins"),
        ({"low": 3.0, "high": 3.0}, "20 bins in .3, 3."),
        ({"smoothing": 0.0}, "smoothing in .0, 1/bins. and a percentile, got 0 and 95"),
        ({"smoothing": 0.05}, "got 0.05 and 95"),
        ({"percentile": 101.0}, "got 1e-05 and 101"),
    ],
)
def test_fields_out_of_range(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        Klom(**fields)


@pytest.mark.parametrize("split", [[], [5], [-1], [0.5], [[1]], [True, False], [False] * 5])
def test_splits_that_do_not_fit(split: Any) -> None:
    a = np.zeros((4, 5))
    with pytest.raises(UserError, match="columns below 5 or a mask of 5 for the split test"):
        Klom().measure(a, a, {"test": split})


def test_what_is_refused() -> None:
    a = np.zeros((4, 5))
    with pytest.raises(UserError, match="same samples on both sides, got 5 and 4"):
        Klom().divergence(a, a[:, 1:])
    with pytest.raises(UserError, match="got 5 of 4 and 4, 20 repeats"):
        Klom().measure(a, a, {"x": [0]}, size=5)
    with pytest.raises(
        UserError, match="twice as many retrained models as compared and a repeat, got 4 for groups of 3"
    ):
        Klom().floor(a, {"x": [0]}, size=3)
    with pytest.raises(UserError, match="0 repeats"):
        Klom().floor(a, {"x": [0]}, repeats=0)
