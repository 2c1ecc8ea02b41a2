import math
from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats as distributions

from expunge.errors import UserError
from expunge.qualify import kernels
from expunge.qualify.nearer import mmd2, relative, three_samples, two_sample
from expunge.stats import clopper_pearson


def k_of(a, b, sigma):
    return math.exp(-sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / (2 * sigma**2))


def slow(x, y, sigma):
    """Return the unbiased MMD² by loops over pairs."""
    n, m = len(x), len(y)
    xx = sum(k_of(x[i], x[j], sigma) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k_of(y[i], y[j], sigma) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k_of(a, b, sigma) for a in x for b in y) / (n * m)


def slow_p(statistic, u, w, paired=False):
    """Return the exact permutation p of every relabelling, by loops."""
    rows, n = [*u, *w], len(u)
    if paired:
        firsts = [[i + n * b for i, b in enumerate(bits)] for bits in product((0, 1), repeat=n)]
    else:
        firsts = list(combinations(range(len(rows)), n))
    found = []
    for first in firsts:
        rest = [i for i in range(len(rows)) if i not in first]
        if paired:
            rest = [(i + n) % (2 * n) for i in first]
        found.append(statistic([rows[i] for i in first], [rows[i] for i in rest]))
    return sum(t >= statistic(u, w) - 1e-12 for t in found) / len(found)


def rows(seed, *sizes, d=3, shift=0.0):
    rng = np.random.default_rng(seed)
    return [rng.normal(shift if i == 0 else 0.0, 1, (n, d)) for i, n in enumerate(sizes)]


@pytest.mark.parametrize("sizes", [(2, 2), (4, 7), (6, 3)])
@pytest.mark.parametrize("sigma", [None, 0.7])
def test_mmd_agrees_with_loops(sizes, sigma):
    x, y = rows(1, *sizes, shift=0.5)
    pooled = [*x, *y]
    middle = np.median([math.dist(a, b) for a, b in combinations(pooled, 2)])
    assert mmd2(x, y, sigma) == pytest.approx(slow(x, y, sigma or middle), abs=1e-12)


def test_mmd_is_unbiased():
    found = [mmd2(*rows(s, 5, 8), bandwidth=1.0) for s in range(400)]
    assert abs(np.mean(found)) < 3 * np.std(found) / math.sqrt(400)


def test_mmd_approaches_its_closed_form():
    x, y = (np.random.default_rng(0).normal(m, 1, (1500, 1)) for m in (0, 1))
    want = 2 * (1 / math.sqrt(3) - math.exp(-1 / 6) / math.sqrt(3))  # E k of normal differences, σ = 1
    assert mmd2(x, y, 1.0) == pytest.approx(want, abs=0.03)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("n", [3, 4])
def test_exact_p_of_two_samples_agrees_with_loops(n, paired):
    for seed in range(4):
        x, y = rows(seed, n, n, shift=0.7)
        found = two_sample(x, y, bandwidth=1.0, paired=paired)
        assert found.p == pytest.approx(slow_p(lambda a, b: slow(a, b, 1.0), x, y, paired))
        assert found.exact
        assert found.relabellings + 1 == (2**n if paired else math.comb(2 * n, n))
        assert found.mmd2 == pytest.approx(slow(x, y, 1.0), abs=1e-12)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("side", ["farther", "nearer"])
@pytest.mark.parametrize("m", [3, 4])
def test_exact_p_of_three_samples_agrees_with_loops(m, side, paired):
    u, w, r = rows(m, m if paired else 4, m, 5, shift=0.4)
    sign = 1 if side == "farther" else -1
    found = relative(u, w, r, side=side, bandwidth=1.3, paired=paired)
    want = slow_p(lambda a, b: sign * (slow(a, r, 1.3) - slow(b, r, 1.3)), list(u), list(w), paired)
    assert found.p == pytest.approx(want)
    assert (found.mmd2, found.other) == pytest.approx((slow(u, r, 1.3), slow(w, r, 1.3)), abs=1e-12)
    assert found.difference == pytest.approx(found.mmd2 - found.other)
    assert found.floor == 1 / (found.relabellings + 1)
    assert found.sizes == (len(u), m, 5)


def test_drawn_relabellings_agree_with_loops_and_with_all_of_them(monkeypatch):
    u, w, r = rows(8, 6, 5, 4, shift=0.8)
    found = relative(u, w, r, side="farther", bandwidth=1.0, permutations=200, seed=3)
    labels, exact = kernels.relabellings(6, 5, most=200, seed=3)
    pooled = np.concatenate([u, w])
    values = [slow(pooled[b], r, 1.0) - slow(pooled[~b], r, 1.0) for b in labels]
    assert not exact
    assert not found.exact
    assert labels.sum(axis=1).tolist() == [6] * 200
    assert found.p == (1 + sum(v >= found.difference - 1e-12 for v in values)) / 201
    monkeypatch.setattr(kernels, "AT_ONCE", 50)  # a few labellings at a time
    assert relative(u, w, r, side="farther", bandwidth=1.0, permutations=200, seed=3) == found
    every = relative(u, w, r, side="farther", bandwidth=1.0, permutations=461)
    assert every.exact
    assert found.p == pytest.approx(every.p, abs=4 * math.sqrt(every.p * (1 - every.p) / 200) + 0.005)


def test_relabellings_list_each_once_without_the_one_observed():
    for paired in (False, True):
        labels, exact = kernels.relabellings(4, 4, paired=paired)
        own = [True] * 4 + [False] * 4
        assert exact
        assert len({tuple(b) for b in labels.tolist()}) == len(labels) == (15 if paired else 69)
        assert own not in labels.tolist()
        assert (labels.sum(axis=1) == 4).all()
    drawn, exact = kernels.relabellings(12, 12, paired=True, most=500)
    assert not exact
    assert (drawn[:, :12] ^ drawn[:, 12:]).all()  # one of each pair


@pytest.mark.parametrize("n", [4, 6, 20])
@pytest.mark.parametrize("paired", [False, True])
def test_permutation_tests_hold_their_level_for_few_rows(n, paired):
    trials = 300
    count = {"two": 0, "farther": 0, "nearer": 0}
    for seed in range(trials):
        rng = np.random.default_rng([seed, n])
        common = rng.standard_t(2, (n, 3)) if paired else 0.0  # heavy tails, and replicates that share their original
        u, w, r = (common + rng.standard_t(2, (n, 3)) for _ in range(3))
        count["two"] += two_sample(u, w, paired=paired, permutations=99, seed=seed).p <= 0.05
        for side in ("farther", "nearer"):
            count[side] += relative(u, w, r, side=side, paired=paired, permutations=99, seed=seed).p <= 0.05
    assert all(clopper_pearson(c, trials, 0.999).low <= 0.05 for c in count.values()), count


def test_pairs_must_be_said_where_replicates_share_their_original():
    found = [0, 0]
    for seed in range(60):
        rng = np.random.default_rng(seed)
        common = rng.normal(0, 3, (8, 2))
        u, w = common + rng.normal(0.8, 0.3, (8, 2)), common + rng.normal(0, 0.3, (8, 2))
        for i, paired in enumerate((False, True)):
            found[i] += two_sample(u, w, paired=paired).p <= 0.05
    assert found[0] < 10
    assert found[1] > 40


def test_a_trace_of_the_original_is_found_and_another_retrained_model_is_not():
    rng = np.random.default_rng(4)
    retrained, others, good = (rng.normal(0, 1, (25, 5)) for _ in range(3))
    original, half = rng.normal(2, 1, (25, 5)), rng.normal(1, 1, (25, 5))
    right = three_samples(good, retrained, original, others)
    assert right.nearer.p <= 0.01
    assert right.farther is not None
    assert right.farther.p > 0.05
    partly = three_samples(half, retrained, original, others)
    assert partly.nearer.p <= 0.01
    assert partly.farther is not None
    assert partly.farther.p <= 0.01
    left = three_samples(rng.normal(2, 1, (25, 5)), retrained, original)
    assert left.nearer.p > 0.05
    assert left.farther is None


def test_bandwidth_is_taken_from_what_is_not_tested():
    u, w, r = rows(2, 5, 6, 7, shift=3.0)
    middle = np.median([math.dist(a, b) for a, b in combinations(r, 2)])
    assert relative(u, w, r, side="farther").bandwidth == pytest.approx(middle)
    same = relative(u, w, np.zeros((4, 3)), side="farther")
    pooled = [*u, *w, *np.zeros((4, 3))]
    assert same.bandwidth == pytest.approx(np.median([math.dist(a, b) for a, b in combinations(pooled, 2)]))
    there, back = relative(u, w, r, side="farther"), relative(w, u, r, side="nearer")
    assert there.p == pytest.approx(back.p)
    assert there.difference == pytest.approx(-back.difference)


@pytest.mark.parametrize("paired", [False, True])
def test_standard_error_and_level_of_the_normal_test_where_both_are_equally_far(paired):
    trials, n, differences, errors, ps = 250, 60, [], [], []
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        common = rng.normal(0, 0.7, (n, 2)) if paired else 0.0
        u, w, r = (common + rng.normal([m, 0], 1, (n, 2)) for m in (1.0, -1.0, 0.0))
        found = relative(u, w, r, side="farther", bandwidth=2.0, paired=paired, permutations=1)
        differences.append(found.difference)
        errors.append(found.error)
        ps.append(found.normal)
    assert np.mean(errors) == pytest.approx(np.std(differences), rel=0.13)
    assert clopper_pearson(sum(p <= 0.05 for p in ps), trials, 0.999).low <= 0.05
    assert clopper_pearson(sum(p <= 0.05 for p in ps), trials, 0.999).high >= 0.05
    z = found.difference / found.error
    assert found.normal == pytest.approx(distributions.norm.sf(z))


def jackknife(u, w, r, groups):
    """Return the standard error of the difference of two MMD² from leaving rows of groups out, one row of each."""
    samples, total = {"u": u, "w": w, "r": r}, 0.0
    for group in groups:
        n = len(samples[group[0]])
        found = []
        for i in range(n):
            a, b, c = (np.delete(x, i, axis=0) if name in group else x for name, x in samples.items())
            found.append(mmd2(a, c, 2.0) - mmd2(b, c, 2.0))
        total += (n - 1) * np.var(found)
    return math.sqrt(total)


@pytest.mark.parametrize(
    ("sizes", "paired", "groups"),
    [((60, 15, 40), False, "u w r"), ((15, 60, 40), False, "u w r"), ((50, 50, 12), False, "u w r"),
     ((40, 40, 40), True, "uwr"), ((40, 40, 15), True, "uw r")],
)  # fmt: skip
def test_standard_error_agrees_with_the_jackknife(sizes, paired, groups):
    rng = np.random.default_rng(6)
    common = rng.normal(0, 1.5, (60, 2))
    u, w, r = (common[:n] * paired + rng.normal([m, 0], 1, (n, 2)) for m, n in zip((2.0, 1.0, 0.0), sizes, strict=True))
    found = relative(u, w, r, side="farther", bandwidth=2.0, paired=paired, permutations=1)
    assert found.error == pytest.approx(jackknife(u, w, r, groups.split()), rel=0.08)


def test_rows_that_are_all_equal_tell_nothing_apart():
    same = np.ones((4, 2))
    assert two_sample(same, same).p == 1.0
    found = relative(same, same, same, side="farther")
    assert (found.p, found.normal, found.error) == (1.0, None, 0.0)


def test_smallest_p_is_reached_by_samples_that_lie_apart():
    x, y = np.arange(4.0)[:, None], np.arange(4.0)[:, None] + 100
    found = two_sample(x, y)
    assert found.p == found.floor == 2 / 70
    away = relative(y, x, x + 0.5, side="farther", bandwidth=1.0)
    assert away.p == away.floor == 1 / 70


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: mmd2([[1.0]], [[1.0], [2.0]]), r"at least two rows of one width, got \(1, 1\), \(2, 1\)"),
        (lambda: mmd2(np.ones((3, 2)), np.ones((3, 1))), "rows of one width"),
        (lambda: mmd2([1.0, 2.0], [1.0, 2.0]), "rows of one width"),
        (lambda: mmd2([[1.0], [math.nan]], [[1.0], [2.0]]), "finite rows"),
        (lambda: mmd2([[1.0], [2.0]], [[1.0], [2.0]], 0.0), "a bandwidth above 0, got 0.0"),
        (lambda: mmd2(np.ones((9000, 1)), np.ones((1001, 1))), "at most 10000 rows together, got 10001"),
        (lambda: two_sample(np.ones((3, 1)), np.ones((2, 1)), paired=True), "pairs of rows .* got 3 and 2 rows"),
        (lambda: two_sample(np.ones((3, 1)), np.ones((2, 1)), permutations=0), "got 0 permutations"),
    ],
)
def test_errors(call, match):
    with pytest.raises(UserError, match=match):
        call()
