"""Pools of shadow models: what they refuse, how many more models would do, and halves that are balanced."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from expunge.errors import UserError
from expunge.shadows import Pool, draw, half, more

IDS = ("a", "b", "c")


def pool(seen: list[list[int]]) -> Pool:
    mask = np.array(seen, dtype=bool)
    return Pool(np.arange(mask.size, dtype=float).reshape(mask.shape), mask, tuple("abcdefgh"[: mask.shape[1]]))


def short_by_sum(m: int, needs: list[tuple[int, int]]) -> float:
    """Return the union bound from exact binomial counts."""
    ways = [math.comb(m, k) for k in range(m + 1)]
    return float(sum((sum(ways[: max(0, i)]) + sum(ways[: max(0, o)])) / 2**m for i, o in needs))


def test_counts_and_parts() -> None:
    p = pool([[1, 0, 1], [1, 1, 0], [0, 0, 1], [1, 0, 0]])
    assert (p.inside.tolist(), p.outside.tolist()) == ([3, 1, 2], [1, 3, 2])
    less = p.without(1)
    assert (less.inside.tolist(), len(less.seen)) == ([2, 0, 2], 3)
    assert less.margins[:, 0].tolist() == [0, 6, 9]
    assert p.without(0, 3).margins.tolist() == p.margins[1:3].tolist()
    some = p.of(["c", "a"])
    assert some.ids == ("c", "a")
    assert some.margins[0].tolist() == [2, 0]
    assert some.seen[0].tolist() == [True, True]
    assert some.inside.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("margins", "seen", "ids", "match"),
    [
        (np.zeros((2, 3)), np.zeros((2, 3)), IDS, "bool mask of shape .* got float64"),
        (np.zeros((2, 3)), np.zeros((3, 2), bool), IDS, "bool mask of shape"),
        (np.zeros((2, 3)), np.zeros((2, 3), bool), ("a", "b"), "Expected 3 ids, got 2"),
        (np.zeros((2, 3)), np.zeros((2, 3), bool), ("a", "b", "a"), "distinct ids, got a more than once"),
        (np.full((2, 3), np.inf), np.zeros((2, 3), bool), IDS, "finite numbers of models, got 6 that are not"),
        (np.zeros(3), np.zeros(3, bool), IDS, r"models by samples, got shape \(3,\)"),
        (np.zeros((0, 3)), np.zeros((0, 3), bool), IDS, r"got shape \(0, 3\)"),
    ],
)
def test_what_is_no_pool(margins: Any, seen: Any, ids: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        Pool(margins, seen, ids)


def test_parts_that_are_not_there() -> None:
    p = pool([[1, 0], [0, 1]])
    with pytest.raises(UserError, match="models from 0 to 1, got 2"):
        p.without(2)
    with pytest.raises(UserError, match="beside those left out, got a pool of 1"):
        p.without(0).without(0)
    with pytest.raises(UserError, match="got also z: collect"):
        p.of(["a", "z"])
    with pytest.raises(UserError, match="distinct ids"):
        p.of(["a", "a"])


def test_too_few_models_says_how_many_more() -> None:
    p = pool([[1, 0, 1], [1, 1, 0], [0, 0, 1], [1, 0, 0]])  # inside 3 1 2, outside 1 3 2
    p.require(inside=1, outside=1)
    needs = [(0, 2), (2, 0), (1, 1)]
    m = next(m for m in range(200) if short_by_sum(m, needs) <= 0.01)
    text = rf"at least 3 .* and 3 not, got as few as 1 and 1 among 3 samples: train {m} more .*99%.*or 4 more on halves"
    with pytest.raises(UserError, match=text):
        p.require(inside=3, outside=3)
    with pytest.raises(UserError, match="at least 0 .* and 2 not"):
        p.require(outside=2)


def test_four_more_on_drawn_halves_are_enough_as_the_message_says() -> None:
    p = pool([[1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1]])
    with pytest.raises(UserError, match="got as few as 1 and 1 among 4 samples: .* or 4 more on halves"):
        p.require(inside=3, outside=3)
    for seed in range(20):
        both = Pool(np.zeros((8, 4)), np.concatenate([p.seen, draw(p.ids, 4, seed)]), p.ids)
        both.require(inside=3, outside=3)
        assert both.inside.min() >= 3
        assert both.outside.min() >= 3
        fewer = Pool(np.zeros((6, 4)), np.concatenate([p.seen, draw(p.ids, 2, seed)]), p.ids)
        assert fewer.inside.min() == fewer.outside.min() == 2


@pytest.mark.parametrize("needs", [[(1, 1)], [(8, 8)] * 40, [(3, 0), (-2, 5), (1, 1)], [(0, 0), (-1, 0)]])
@pytest.mark.parametrize("chance", [0.01, 0.3])
def test_more_is_the_smallest_number_under_the_bound(needs: list[tuple[int, int]], chance: float) -> None:
    inside, outside = zip(*needs, strict=True)
    wanted = next(m for m in itertools.count() if short_by_sum(m, needs) <= chance)
    assert more(inside, outside, chance=chance) == wanted


def test_random_halves_of_that_number_are_seldom_short() -> None:
    m = more([4] * 50, [4] * 50)
    rng = np.random.default_rng(0)
    inside = (rng.random((2000, m, 50)) < 0.5).sum(axis=1)
    short = ((inside < 4) | (m - inside < 4)).any(axis=1).mean()
    fewer = (rng.random((2000, m // 2, 50)) < 0.5).sum(axis=1)
    assert short < 0.02
    assert ((fewer < 4) | (m // 2 - fewer < 4)).any(axis=1).mean() > 0.5  # or the number would be too large


def test_more_refuses() -> None:
    with pytest.raises(UserError, match="got 1 and 2 samples, chance 0.01"):
        more([1], [1, 2])
    with pytest.raises(UserError, match="chance 0"):
        more([1], [1], chance=0)


@pytest.mark.parametrize(("n", "models"), [(10, 8), (11, 8), (10, 7), (11, 7), (2, 1), (7, 2), (40, 3)])
def test_halves_are_balanced_on_both_sides(n: int, models: int) -> None:
    for seed in range(5):
        seen = draw([f"s{i}" for i in range(n)], models, seed)
        assert seen.shape == (models, n)
        assert set(seen.sum(axis=1)) <= {n // 2, (n + 1) // 2}
        assert set(seen.sum(axis=0)) <= {models // 2, (models + 1) // 2}


def test_halves_depend_on_the_seed_and_not_on_the_order() -> None:
    ids = [f"s{i}" for i in range(30)]
    first = draw(ids, 8, 0)
    assert (first == draw(ids, 8, 0)).all()
    assert (first != draw(ids, 8, 1)).any()
    order = np.random.default_rng(0).permutation(30)
    assert (draw([ids[i] for i in order], 8, 0) == first[:, order]).all()


def test_halves_come_with_complements_and_are_else_independent() -> None:
    ids = [f"s{i:03}" for i in range(400)]
    found = np.stack([draw(ids, 6, seed) for seed in range(40)])
    assert (found[:, ::2] != found[:, 1::2]).all()
    assert np.abs(found.mean(axis=0) - 0.5).max() < 0.45  # no sample is bound to a model
    signs = np.where(found, 1.0, -1.0)
    together = np.einsum("rtn,run->tu", signs, signs)[::2, ::2] / (40 * 400)
    assert np.abs(together - np.eye(3)).max() < 0.05


def test_more_models_add_to_those_of_fewer() -> None:
    ids = [f"s{i}" for i in range(30)]
    assert (draw(ids, 8, 0)[:5] == draw(ids, 5, 0)).all()


def test_a_model_and_its_partner_left_out_leave_equal_counts() -> None:
    ids = tuple(f"s{i}" for i in range(31))
    pool = Pool(np.zeros((8, 31)), draw(ids, 8, 0), ids)
    for t in range(8):
        rest = pool.without(t, t ^ 1)
        assert (rest.inside == 3).all()
        assert (rest.outside == 3).all()
    assert ((pool.without(5).inside == 3) == pool.seen[5]).all()  # or the counts give the target's half away


def test_draw_refuses() -> None:
    with pytest.raises(UserError, match="at least 2 samples, got 1"):
        draw(["a"], 4, 0)
    with pytest.raises(UserError, match="at least 1 model, got 0"):
        draw(["a", "b"], 0, 0)
    with pytest.raises(UserError, match="distinct ids"):
        draw(["a", "a"], 2, 0)


@pytest.mark.parametrize("n", [2, 7, 30])
def test_a_half_is_a_row_of_the_draw(n: int) -> None:
    ids = [f"s{i}" for i in np.random.default_rng(n).permutation(n)]  # s10 stands before s2
    for seed in (0, 3):
        seen = draw(ids, 9, seed)
        for t in range(9):
            own = half(ids, t, seed)
            assert own.dtype == np.bool_
            assert own.tolist() == seen[t].tolist()
            assert (half(ids, t ^ 1, seed) == ~own).all()


def test_a_half_of_many_models_is_drawn_without_the_others() -> None:
    ids = [f"s{i}" for i in range(30)]
    assert half(ids, 10**6, 0).sum() == 15
    assert (half(ids, 10**6, 0) != half(ids, 10**6 + 2, 0)).any()


def test_half_refuses() -> None:
    with pytest.raises(UserError, match="a model from 0, got -1: count from 0"):
        half(["a", "b"], -1, 0)
    with pytest.raises(UserError, match="at least 2 samples, got 1: draw halves of the training set"):
        half(["a"], 0, 0)
    with pytest.raises(UserError, match="distinct ids, got a more than once"):
        half(["a", "b", "a"], 0, 0)
