"""LiRA and U-LiRA: numbers by hand, slow loops beside the fast form, and simulations where the truth is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from expunge import stats
from expunge.errors import UserError
from expunge.shadows import Pool, draw, lira, u_lira, u_lira_rates
from expunge.shadows.pool import Floats

IN, OUT, TARGET = [0.99, 0.97, 0.995, 0.98], [0.6, 0.8, 0.7, 0.9], 0.95


def logit(p: Any) -> Floats:
    return np.log(np.asarray(p)) - np.log1p(-np.asarray(p))


def by_hand() -> tuple[Floats, Pool]:
    margins = logit([*IN, *OUT])[:, None]
    return np.array([logit(TARGET)]), Pool(margins, np.arange(8)[:, None] < 4, ("x",))


@pytest.mark.parametrize(
    ("ddof", "ratio", "p", "offline"), [(0, 1.3832329, 0.7995097, 0.9953134), (1, 1.0283831, 0.7366023, 0.9877771)]
)
def test_published_numbers(ddof: int, ratio: float, p: float, offline: float) -> None:
    x, pool = by_hand()
    assert x[0] == pytest.approx(2.9444390, abs=1e-7)
    assert lira(x, pool, variance="own", ddof=ddof)[0] == pytest.approx(ratio, abs=1e-6)
    assert lira(x, pool, variance="own", online=False, ddof=ddof)[0] == pytest.approx(offline, abs=1e-6)
    assert u_lira(x, pool.margins[:4], pool.margins[4:], ddof)[0] == pytest.approx(p, abs=1e-6)


def world(n: int = 12, models: int = 20, seed: int = 0) -> tuple[Floats, Pool]:
    rng = np.random.default_rng(seed)
    ids = tuple(f"s{i}" for i in range(n))
    seen = draw(ids, models, seed)
    margins = rng.normal(0, 2, n) + 1.5 * seen + rng.standard_normal((models, n)) * rng.uniform(0.3, 2, n)
    return margins[0], Pool(margins, seen, ids).without(0)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("variance", ["own", "shared"])
def test_scores_agree_with_a_loop(variance: Any, ddof: int) -> None:
    x, pool = world()
    sides = [[pool.margins[mask[:, i], i] for i in range(12)] for mask in (pool.seen, ~pool.seen)]
    wanted, tail = [], []
    for i in range(12):
        fits = []
        for side in sides:
            squares = sum(float(((v - v.mean()) ** 2).sum()) for v in side)
            pooled = math.sqrt(squares / sum(len(v) - ddof for v in side))
            fits.append(norm(side[i].mean(), side[i].std(ddof=ddof) if variance == "own" else pooled))
        wanted.append(fits[0].logpdf(x[i]) - fits[1].logpdf(x[i]))
        tail.append(fits[1].cdf(x[i]))
    assert lira(x, pool, variance=variance, ddof=ddof) == pytest.approx(np.array(wanted), rel=1e-9)
    assert lira(x, pool, variance=variance, ddof=ddof, online=False) == pytest.approx(np.array(tail), rel=1e-9)


def test_auto_shares_below_64_on_the_smaller_side_and_not_from_there() -> None:
    rng = np.random.default_rng(0)
    for inside, outside, online, kind in [
        (64, 64, True, "own"),
        (63, 64, True, "shared"),
        (64, 63, True, "shared"),
        (2, 64, False, "own"),
        (64, 63, False, "shared"),
    ]:
        seen = np.repeat([[True], [False]], [inside, outside], axis=0) & np.ones((1, 3), bool)
        pool = Pool(rng.standard_normal(seen.shape) * [1, 2, 3], seen, ("a", "b", "c"))
        x = rng.standard_normal(3)
        assert (lira(x, pool, online=online) == lira(x, pool, online=online, variance=kind)).all()  # type: ignore[arg-type]
        other: Any = "own" if kind == "shared" else "shared"
        assert (lira(x, pool, online=online) != lira(x, pool, online=online, variance=other)).all()


def test_order_of_samples_and_models_has_no_effect() -> None:
    x, pool = world()
    rng = np.random.default_rng(1)
    columns, rows = rng.permutation(12), rng.permutation(len(pool.seen))
    mixed = Pool(pool.margins[rows], pool.seen[rows], pool.ids).of([pool.ids[i] for i in columns])
    for options in ({}, {"variance": "own"}, {"online": False}):
        scores = lira(x, pool, **options)  # type: ignore[arg-type]
        assert lira(x[columns], mixed, **options) == pytest.approx(scores[columns], rel=1e-10)  # type: ignore[arg-type]


def test_a_degenerate_fit_is_floored() -> None:
    seen = np.repeat([[True], [False]], 4, axis=0)
    pool = Pool(np.where(seen, 2.0, 1.0), seen, ("x",))
    for at, wanted in ((2.0, 1 / 1e-6 / 2), (1.5, 0.0), (1.0, -1 / 1e-6 / 2)):
        assert lira([at], pool, variance="own")[0] == pytest.approx(wanted, rel=1e-9)
        assert lira([at], pool, variance="shared")[0] == pytest.approx(wanted, rel=1e-9)
    found = u_lira([2.0], np.full((4, 1), 2.0), np.full((4, 1), 2.0))
    assert found[0] == 0.5  # the same model on both sides: nothing to tell


def test_memorised_samples_are_found_where_hard_and_easy_ones_differ() -> None:
    rng = np.random.default_rng(0)
    n, models = 400, 33
    ids = tuple(f"s{i}" for i in range(n))
    seen = draw(ids, models, 0)
    hard = np.arange(n) % 2 == 0
    base, gain = np.where(hard, -1.0, 6.0), np.where(hard, 2.5, 1.0)
    margins = base + rng.normal(0, 0.5, n) + gain * seen + rng.standard_normal((models, n)) * 0.8
    pool, member, x = Pool(margins, seen, ids).without(0), seen[0], margins[0]
    plain = stats.auc(x[member], x[~member])
    for online in (True, False):
        scores = lira(x, pool, online=online)
        found = stats.auc(scores[member], scores[~member])
        assert found.low > 0.8
        assert found.low > plain.high  # the plain threshold ranks every easy sample above every hard one


def test_a_target_that_was_never_trained_gives_nothing_away() -> None:
    rng = np.random.default_rng(3)
    n, models = 600, 24
    ids = tuple(f"s{i}" for i in range(n))
    seen = draw(ids, models, 3)
    base = rng.normal(0, 3, n)
    pool = Pool(base + 2 * seen + rng.standard_normal((models, n)), seen, ids)
    x, member = base + rng.standard_normal(n), rng.random(n) < 0.5
    for options in ({}, {"variance": "own"}, {"online": False}):
        scores = lira(x, pool, **options)  # type: ignore[arg-type]
        found = stats.auc(scores[member], scores[~member])
        assert found.low < 0.5 < found.high


def test_where_nothing_is_to_tell_leaving_out_the_partner_too_keeps_the_auc_at_a_half() -> None:
    rng = np.random.default_rng(0)
    n, found = 1500, []
    ids = tuple(f"s{i}" for i in range(n))
    for seed in range(12):
        pool = Pool(rng.standard_normal((8, n)), draw(ids, 8, seed), ids)
        for t in range(2):
            pair = (pool.without(t, t ^ 1), pool.without(t))
            scores = [lira(pool.margins[t], p, variance="own") for p in pair]
            found.append([stats.auc(s[pool.seen[t]], s[~pool.seen[t]]).x for s in scores])
    both, alone = (stats.mean_t(np.array(found)[:, i]) for i in (0, 1))
    assert both.low < 0.5 < both.high
    assert alone.high < 0.45


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"variance": "shard"}, "kind of variance, got 'shard': did you mean 'shared'"),
        ({"ddof": 2}, "ddof of 0 or 1, got 2"),
    ],
)
def test_unknown_settings(options: dict[str, Any], match: str) -> None:
    x, pool = world()
    with pytest.raises(UserError, match=match):
        lira(x, pool, **options)


def test_what_lira_refuses() -> None:
    x, pool = world()
    with pytest.raises(UserError, match=r"margins of the target of shape \(12,\), got shape \(11,\)"):
        lira(x[1:], pool)
    with pytest.raises(UserError, match="finite margins of the target"):
        lira(np.full(12, np.nan), pool)
    one = Pool(pool.margins[:2], np.array([[True] * 12, [False] * 12]), pool.ids)
    with pytest.raises(UserError, match="at least 2 models trained on it and 2 not"):
        lira(x, one, variance="own")
    with pytest.raises(UserError, match="2 models on a side, got 1 of each sample"):
        lira(x, one, variance="shared")
    none = Pool(pool.margins[:2], np.ones((2, 12), bool), pool.ids)
    with pytest.raises(UserError, match="at least 0 models trained on it and 1 not"):
        lira(x, none, online=False)


def slow_calls(a: Floats, b: Floats, ddof: int) -> tuple[Floats, Floats, Floats]:
    """Return shares caught and cleared and mean p_member by sample, with a fit per value."""
    caught, cleared, p = [], [], []
    for i in range(a.shape[1]):
        ours = [(a[k, i], np.delete(a[:, i], k), np.delete(b[:, i], k % len(b))) for k in range(len(a))]
        theirs = [(b[k, i], np.delete(a[:, i], k % len(a)), np.delete(b[:, i], k)) for k in range(len(b))]
        chance = [[float(u_lira([o], x[:, None], y[:, None], ddof)[0]) for o, x, y in side] for side in (ours, theirs)]
        caught.append(np.mean([c > 0.5 for c in chance[0]]))
        cleared.append(np.mean([c <= 0.5 for c in chance[1]]))
        p.append(np.mean(chance[0]))
    return np.array(caught), np.array(cleared), np.array(p)


@pytest.mark.parametrize(("a", "b", "ddof"), [(6, 6, 0), (5, 8, 1), (9, 4, 0)])
def test_rates_agree_with_a_fit_per_value(a: int, b: int, ddof: int) -> None:
    rng = np.random.default_rng(a)
    ours, theirs = rng.normal(50.8, 1, (a, 31)), rng.normal(50, 1.3, (b, 31))  # far from 0: sums of squares cancel
    rates = u_lira_rates(ours, theirs, ddof)
    caught, cleared, p = slow_calls(ours, theirs, ddof)
    assert rates.accuracy == pytest.approx((caught + cleared) / 2, abs=1e-12)
    assert rates.p_member == pytest.approx(p, abs=1e-9)
    assert rates.overall.x == pytest.approx((caught + cleared).mean() / 2)
    assert rates.p_overall.x == pytest.approx(p.mean())
    assert len(rates.worst) == 4
    assert rates.accuracy[rates.worst].min() >= np.delete(rates.accuracy, rates.worst).max()
    assert rates.worst_mean == pytest.approx(np.sort(rates.accuracy)[-4:].mean())
    for at, low, high in zip(rates.worst, rates.low, rates.high, strict=True):
        wanted = stats.half_sum(stats.wilson(round(caught[at] * a), a), stats.wilson(round(cleared[at] * b), b))
        assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_interval_is_that_of_samples_and_of_refits_without_each_pair_of_rows() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0.7, 1, (5, 20)), rng.normal(0, 1, (5, 20))
    rates = u_lira_rates(ours, theirs)
    without = [np.mean(slow_calls(np.delete(ours, k, axis=0), np.delete(theirs, k, axis=0), 0)[:2]) for k in range(5)]
    variance = rates.accuracy.var(ddof=1) / 20 + 4 / 5 * np.square(np.array(without) - np.mean(without)).sum()
    half = 2.7764451 * math.sqrt(variance)  # t of 4 degrees of freedom
    assert rates.overall.high - rates.overall.x == pytest.approx(half, rel=1e-6)


def test_interval_of_unequal_numbers_keeps_the_pairs_that_are_left() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0.7, 1, (6, 20)), rng.normal(0, 1, (4, 20))
    gone = [([0, 1], 0), ([2, 3], 1), ([4], 2), ([5], 3)]  # six rows in four groups, beside four

    def partner(k: int, n: int, out: list[int]) -> int:
        return next(j % n for j in range(k % n, 2 * n) if j % n not in out)

    means = []
    for rows, row in gone:
        here, there = [k for k in range(6) if k not in rows], [k for k in range(4) if k != row]
        calls: list[list[float]] = [[], []]
        for i in range(20):
            for k in here:
                x = ours[[j for j in here if j != k], i], theirs[[j for j in there if j != partner(k, 4, [row])], i]
                calls[0].append(u_lira([ours[k, i]], x[0][:, None], x[1][:, None])[0] > 0.5)
            for k in there:
                x = ours[[j for j in here if j != partner(k, 6, rows)], i], theirs[[j for j in there if j != k], i]
                calls[1].append(u_lira([theirs[k, i]], x[0][:, None], x[1][:, None])[0] <= 0.5)
        means.append((np.mean(calls[0]) + np.mean(calls[1])) / 2)
    rates = u_lira_rates(ours, theirs)
    variance = rates.accuracy.var(ddof=1) / 20 + 3 / 4 * np.square(np.array(means) - np.mean(means)).sum()
    half = 3.1824463 * math.sqrt(variance)  # t of 3 degrees of freedom
    assert rates.overall.high - rates.overall.x == pytest.approx(min(half, 1 - rates.overall.x), rel=1e-6)
    assert half < 1 - rates.overall.x


def test_groups_of_rows_beyond_32() -> None:
    rng = np.random.default_rng(0)
    rates = u_lira_rates(rng.standard_normal((70, 40)), rng.standard_normal((40, 40)))
    assert rates.overall.low < 0.5 < rates.overall.high
    assert rates.overall.high - rates.overall.low < 0.2


@pytest.mark.parametrize(("a", "b"), [(4, 4), (4, 9), (12, 12)])
def test_alike_ensembles_are_told_apart_half_the_time(a: int, b: int) -> None:
    rng = np.random.default_rng(a + b)
    rates = u_lira_rates(rng.standard_normal((a, 6000)), rng.standard_normal((b, 6000)))
    error = rates.accuracy.std() / math.sqrt(6000)
    assert abs(rates.overall.x - 0.5) < 4 * error < 0.02  # without equal fits it is 0.466 of four and four
    assert rates.worst_mean == pytest.approx(rates.worst_by_chance, abs=0.02)
    assert rates.worst_mean > 0.6  # picked as the worst, they look bad


def test_interval_covers_where_models_are_off_everywhere_and_one_over_samples_alone_does_not() -> None:
    rng = np.random.default_rng(0)
    covered, naive = 0, 0
    for _ in range(60):
        ours, theirs = (rng.standard_normal((8, 100)) + rng.standard_normal((8, 1)) for _ in range(2))
        rates = u_lira_rates(ours, theirs)
        alone = stats.mean_t(rates.accuracy)
        covered += rates.overall.low <= 0.5 <= rates.overall.high
        naive += alone.low <= 0.5 <= alone.high
    assert covered >= 54
    assert naive < 40


def test_a_trace_is_seen_and_its_worst_samples_named() -> None:
    rng = np.random.default_rng(0)
    shift = np.where(np.arange(200) < 20, 6.0, 0.3)
    rates = u_lira_rates(rng.standard_normal((16, 200)) + shift, rng.standard_normal((16, 200)))
    assert set(rates.worst) == set(range(20))
    assert rates.worst_mean > 0.95 > rates.worst_by_chance
    assert rates.low.min() > 0.75
    assert rates.overall.low > 0.5
    assert rates.p_overall.low > 0.5


def test_order_of_samples_has_no_effect_on_rates_nor_has_one_order_of_all_rows() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.standard_normal((2, 7, 30))
    rates, columns, rows = u_lira_rates(ours, theirs), rng.permutation(30), rng.permutation(7)
    mixed = u_lira_rates(ours[rows][:, columns], theirs[rows][:, columns])
    assert mixed.accuracy == pytest.approx(rates.accuracy[columns], abs=1e-12)
    assert mixed.p_member == pytest.approx(rates.p_member[columns], abs=1e-9)
    assert mixed.overall.low == pytest.approx(rates.overall.low)


def test_a_deterministic_copy_is_told_from_retrained_models() -> None:
    rng = np.random.default_rng(0)
    rates = u_lira_rates(np.full((8, 50), 0.1), rng.standard_normal((8, 50)))
    assert rates.overall.x > 0.9


@pytest.mark.parametrize(
    ("ours", "theirs", "match"),
    [
        (np.zeros((4, 3)), np.zeros((4, 2)), "same samples on both sides, got 3 and 2"),
        (np.zeros((3, 3)), np.zeros((9, 3)), "at least 4 models on either side, got 3 and 9"),
        (np.full((4, 3), np.nan), np.zeros((4, 3)), "finite numbers of unlearned models, got 12"),
        (np.zeros(4), np.zeros((4, 3)), "unlearned models by samples"),
    ],
)
def test_what_the_rates_refuse(ours: Any, theirs: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        u_lira_rates(ours, theirs)


def test_what_u_lira_refuses() -> None:
    with pytest.raises(UserError, match="at least 2 models on either side, got 1 and 4"):
        u_lira([0.0], np.zeros((1, 1)), np.zeros((4, 1)))
    with pytest.raises(UserError, match=r"audited model of shape \(1,\)"):
        u_lira([0.0, 1.0], np.zeros((4, 1)), np.zeros((4, 1)))
    with pytest.raises(UserError, match="ddof of 0 or 1"):
        u_lira([0.0], np.zeros((4, 1)), np.zeros((4, 1)), 3)
