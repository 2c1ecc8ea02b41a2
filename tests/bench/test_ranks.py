"""Ranks by distance to retrained: known p-values, what is told apart, and when nothing is ranked."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as reference

from expunge import stats
from expunge.bench.ranks import Rank, needed, ranking

SEEDS = range(10)
NOISE = np.random.default_rng(0).normal(0, 0.01, (6, 10))


def sizes(mean: float, row: int, seeds: range = SEEDS) -> dict[int, float]:
    """Return |gap| by seed: a mean with noise of one point."""
    return {seed: mean + NOISE[row, seed] for seed in seeds}


def test_the_p_values_are_those_of_the_paired_t_test_corrected_by_holm() -> None:
    rows = {"a": sizes(0.1, 0), "b": sizes(0.11, 1), "c": sizes(0.3, 2)}
    found = ranking(rows, sizes(0.1, 3), least=10)
    every = rows | {"": sizes(0.1, 3)}
    assert [(p.a, p.b) for p in found.pairs] == [("a", "b"), ("a", "c"), ("a", ""), ("b", "c"), ("b", ""), ("c", "")]
    known = [reference.ttest_rel(list(every[p.a].values()), list(every[p.b].values())).pvalue for p in found.pairs]
    assert [p.p for p in found.pairs] == pytest.approx(known, rel=1e-9)
    assert [p.adjusted for p in found.pairs] == pytest.approx(stats.holm(known), rel=1e-9)
    assert [p.told for p in found.pairs] == [q <= 0.05 for q in stats.holm(known)]
    first = found.pairs[1].difference
    whole = reference.ttest_rel(list(every["a"].values()), list(every["c"].values())).confidence_interval(0.95)
    assert (first.low, first.high, first.n) == (pytest.approx(whole.low), pytest.approx(whole.high), 10)


def test_what_is_not_told_apart_shares_its_ranks() -> None:
    rows = {"far": sizes(0.5, 0), "near": sizes(0.1, 1), "also near": sizes(0.1, 2), "middle": sizes(0.3, 3)}
    found = ranking(rows, None, least=10)
    assert {row: str(rank) for row, rank in found.ranks.items()} == {
        "near": "1–2",
        "also near": "1–2",
        "middle": "3",
        "far": "4",
    }
    assert list(found.ranks)[2:] == ["middle", "far"]
    assert found.reason == ""


def test_sharing_ranks_need_not_be_transitive() -> None:
    rows = {"a": sizes(0.1, 0), "b": sizes(0.114, 1), "c": sizes(0.117, 2)}
    found = ranking(rows, None, least=10)
    assert {(p.a, p.b): p.told for p in found.pairs} == {("a", "b"): False, ("a", "c"): True, ("b", "c"): False}
    assert [str(found.ranks[row]) for row in "abc"] == ["1–2", "1–3", "2–3"]


def test_a_second_retrained_model_is_compared_and_not_ranked() -> None:
    floor = sizes(0.2, 0)
    found = ranking({"like": sizes(0.2, 1), "farther": sizes(0.4, 2), "nearer": sizes(0.02, 3)}, floor, least=10)
    assert {row: rank.floor for row, rank in found.ranks.items()} == {
        "like": "like",
        "farther": "farther",
        "nearer": "nearer",
    }
    assert {row: (rank.low, rank.high) for row, rank in found.ranks.items()} == {
        "nearer": (1, 1),
        "like": (2, 2),
        "farther": (3, 3),
    }
    assert {p.b for p in found.pairs} >= {""}


def test_without_a_floor_nothing_is_said_of_one() -> None:
    found = ranking({"a": sizes(0.1, 0), "b": sizes(0.5, 1)}, None, least=10)
    assert found.ranks["a"] == Rank(1, 1, "")
    few = ranking({"a": sizes(0.1, 0), "b": sizes(0.5, 1)}, sizes(0.1, 2, range(3)), least=10)
    assert few.ranks == found.ranks


@pytest.mark.parametrize(("seeds", "least"), [(9, 10), (4, 5), (1, 5)])
def test_few_seeds_rank_nothing(seeds: int, least: int) -> None:
    rows = {"a": sizes(0.0, 0, range(seeds)), "b": sizes(0.9, 1, range(seeds))}
    found = ranking(rows, None, least=least)
    assert not found.ranks
    assert not found.pairs
    verb = "ranks" if seeds == 1 else "rank"
    assert found.reason == f"{seeds} seed{'s' * (seeds > 1)} {verb} nothing here, it takes {least}"


def test_one_row_alone_is_not_ranked() -> None:
    assert ranking({"a": sizes(0.1, 0)}, None, least=10).reason == "nothing to compare"


def test_a_row_of_few_seeds_is_left_out_and_the_others_are_ranked() -> None:
    rows = {"a": sizes(0.1, 0), "b": sizes(0.5, 1), "few": sizes(0.9, 2, range(3))}
    found = ranking(rows, None, least=10)
    assert list(found.ranks) == ["a", "b"]


def test_pairs_are_compared_over_the_seeds_that_both_have() -> None:
    a, b = sizes(0.1, 0), {seed + 4: size for seed, size in sizes(0.12, 1).items()}
    found = ranking({"a": a, "b": b}, None, least=10)
    both = range(4, 10)
    known = reference.ttest_rel([a[s] for s in both], [b[s] for s in both]).pvalue
    assert (found.pairs[0].p, found.pairs[0].difference.n) == (pytest.approx(known, rel=1e-9), 6)
    apart = ranking({"a": a, "b": {s + 10: v for s, v in a.items()}}, None, least=10)
    assert (apart.pairs, {str(r) for r in apart.ranks.values()}) == ((), {"1–2"})


def test_the_order_of_rows_and_seeds_changes_nothing() -> None:
    rows = {name: sizes(0.1 * i, i) for i, name in enumerate("abcd")}
    mixed = {name: dict(reversed(rows[name].items())) for name in "cadb"}
    one, other = ranking(rows, sizes(0.1, 5), least=10), ranking(mixed, sizes(0.1, 5), least=10)
    assert list(one.ranks.items()) == list(other.ranks.items())
    of = {frozenset((p.a, p.b)): (p.p, p.adjusted) for p in other.pairs}
    for pair in one.pairs:
        assert of[frozenset((pair.a, pair.b))] == pytest.approx((pair.p, pair.adjusted), rel=1e-9)


@pytest.mark.parametrize(("apart", "told"), [(0.0, False), (0.0009, False), (0.02, True)])
def test_seeds_that_agree_to_the_last_sample_prove_no_spread_of_zero(apart: float, told: bool) -> None:
    rows = {"a": dict.fromkeys(SEEDS, 0.5), "b": dict.fromkeys(SEEDS, 0.5 + apart)}
    assert [p.told for p in ranking(rows, None, least=10, step=0.001).pairs] == [told]


def test_rows_that_are_alike_are_rarely_told_apart() -> None:
    draws = np.random.default_rng(1).normal(0, 1, (300, 6, 10))
    wrong = 0
    for draw in draws:
        rows = {str(i): dict(enumerate(row)) for i, row in enumerate(draw)}
        wrong += any(p.told for p in ranking(rows, None, least=10).pairs)
    assert 0 < wrong <= 0.05 * 300 + 2 * np.sqrt(300 * 0.05 * 0.95)


def test_small_networks_take_more_seeds() -> None:
    assert [needed(name) for name in ("resnet18", "vit-base-patch16-224", "mlp", "convnet", "mine:build")] == [
        5,
        5,
        10,
        10,
        10,
    ]
