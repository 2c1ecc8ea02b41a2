import math

import numpy as np
import pytest
from scipy import stats as distributions

from expunge.errors import UserError
from expunge.qualify.equivalence import tost
from expunge.qualify.nearer import relative
from expunge.qualify.planted import distance_shift, kernel_shift
from expunge.qualify.power import (
    auc_samples,
    auc_width,
    rank_power,
    replicates,
    smallest_difference,
    smallest_margin,
    smallest_share,
    smallest_shift,
    tost_power,
)
from expunge.qualify.rank import rank_distance, rank_number
from expunge.stats import clopper_pearson


def near(count, trials, want):
    """Return whether a chance agrees with how often something happened."""
    bounds = clopper_pearson(int(count), trials, 0.999)
    return bounds.low <= want <= bounds.high


def simulated(n, spread, margin, truth, level, paired, trials=40_000):
    """Return how often the tests pass, written out without the library."""
    rng = np.random.default_rng(n)
    if paired:
        d = rng.normal(truth, spread, (trials, n))
        mean, error, df = d.mean(axis=1), d.std(axis=1, ddof=1) / math.sqrt(n), n - 1
    else:
        a, b = rng.normal(truth, spread, (trials, n)), rng.normal(0, spread, (trials, n))
        mean, df = a.mean(axis=1) - b.mean(axis=1), 2 * n - 2
        error = np.sqrt((a.var(axis=1, ddof=1) + b.var(axis=1, ddof=1)) / n)
    t = distributions.t.ppf(1 - level, df)
    return int(((mean - t * error > -margin) & (mean + t * error < margin)).sum()), trials


@pytest.mark.parametrize(
    ("n", "margin", "truth", "level", "paired"),
    [(2, 3.0, 0.0, 0.05, True), (5, 1.0, 0.3, 0.05, True), (20, 0.8, 0.0, 0.05, True), (20, 0.8, 0.8, 0.05, True),
     (12, 0.9, -0.2, 0.01, True), (10, 1.2, 0.1, 0.05, False), (4, 0.5, 0.0, 0.1, True)],
)  # fmt: skip
def test_tost_power_agrees_with_simulation(n, margin, truth, level, paired):
    count, trials = simulated(n, 1.0, margin, truth, level, paired)
    assert near(count, trials, tost_power(n, 1.0, margin, truth=truth, level=level, paired=paired))


def test_tost_power_agrees_with_the_normal_limit_and_scales():
    n, margin = 4000, 0.06
    z = distributions.norm.ppf(0.95)
    want = 2 * distributions.norm.cdf(margin * math.sqrt(n) - z) - 1
    assert tost_power(n, 1.0, margin) == pytest.approx(want, abs=2e-4)
    assert tost_power(20, 3.0, 2.4) == pytest.approx(tost_power(20, 1.0, 0.8))
    assert tost_power(20, 1.0, 0.8, truth=0.3) == pytest.approx(tost_power(20, 1.0, 0.8, truth=-0.3))


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("truth", [0.0, 0.4])
@pytest.mark.parametrize("n", [2, 6, 20])
def test_smallest_margin_is_passed_with_the_power_and_a_smaller_one_is_not(n, truth, paired):
    margin = smallest_margin(n, 0.7, truth=truth, paired=paired)
    assert tost_power(n, 0.7, margin, truth=truth, paired=paired) == pytest.approx(0.95, abs=1e-6)
    assert tost_power(n, 0.7, 0.95 * margin, truth=truth, paired=paired) < 0.949
    rng = np.random.default_rng(n)
    a, b = rng.normal(truth, 0.7, (400, n)), np.zeros((400, n)) if paired else rng.normal(0, 0.7, (400, n))
    count = sum(tost(x, y, margin, paired=paired).passes for x, y in zip(a, b, strict=True))
    if paired or n > 2:
        assert near(count, 400, 0.95)
    else:
        assert count < 0.9 * 400  # of two replicates Welch's test loses degrees of freedom, as the docs say


def test_fewest_replicates():
    for margin, truth in ((1.0, 0.0), (0.5, 0.2), (3.0, 0.0)):
        n = replicates(1.0, margin, truth=truth)
        assert tost_power(n, 1.0, margin, truth=truth) >= 0.95
        assert n == 2 or tost_power(n - 1, 1.0, margin, truth=truth) < 0.95
    assert replicates(1.0, 1.0, truth=1.0) is None
    assert replicates(1.0, 1e-9) is None  # more than anybody trains
    assert replicates(0.0, 1.0) == 5  # equal differences: the sign test


@pytest.mark.parametrize(("n", "margin", "level"), [(2, 0.0, 0.05), (5, 0.3, 0.05), (20, 0.0, 0.01), (40, 1.0, 0.05)])
def test_smallest_difference_agrees_with_the_noncentral_t(n, margin, level):
    found = smallest_difference(n, 2.0, margin=margin, level=level)
    ncp = (found - margin) * math.sqrt(n) / 2.0
    want = distributions.nct.sf(distributions.t.ppf(1 - level / 2, n - 1), n - 1, ncp)
    assert want == pytest.approx(0.95, abs=1e-6)
    d = np.random.default_rng(n).normal(found, 2.0, (300, n))
    seen = sum(tost(row, np.zeros(n), margin or 1e-9, level=level).beyond <= level for row in d)
    assert near(seen, 300, 0.95)


def test_one_replicate_and_no_spread():
    assert (tost_power(1, 1.0, 9.0), smallest_margin(1, 1.0), smallest_difference(1, 1.0)) == (0.0, math.inf, math.inf)
    assert (smallest_margin(4, 0.0), smallest_margin(5, 0.0)) == (math.inf, 0.0)
    assert (smallest_difference(5, 0.0), smallest_difference(6, 0.0, margin=0.2)) == (math.inf, 0.2)
    assert (tost_power(4, 0.0, 1.0), tost_power(5, 0.0, 1.0), tost_power(5, 0.0, 1.0, truth=1.0)) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize(("k", "level", "side"), [(19, 0.05, "upper"), (39, 0.05, "both"), (99, 0.05, "lower")])
def test_rank_power_agrees_with_simulation_and_the_smallest_shift_is_seen(k, level, side):
    shift = smallest_shift(k, 2.0, level=level, side=side) / 2
    assert rank_power(k, shift, level=level, side=side) == pytest.approx(0.95)
    rng = np.random.default_rng(k)
    for s in (shift, shift / 2):
        x, others = rng.normal(-s if side == "lower" else s, 1, 600), rng.normal(size=(600, k))
        count = sum(rank_number(a, b, side=side, level=level).rejects for a, b in zip(x, others, strict=True))
        assert near(count, 600, rank_power(k, s, level=level, side=side))


@pytest.mark.parametrize("k", [19, 59, 199])
def test_smallest_share_needs_no_distribution(k):
    share = smallest_share(k)
    c = (k + 1) // 20 - 1
    assert distributions.binom.cdf(c, k, share) == pytest.approx(0.95)
    x = distributions.expon.isf(share)  # a model with that share of retrained ones beyond it
    others = np.random.default_rng(k).exponential(size=(500, k))
    assert near(sum(rank_number(x, o, side="upper").rejects for o in others), 500, 0.95)


def test_too_few_models_see_nothing():
    assert (smallest_shift(18, side="upper"), smallest_shift(38), smallest_share(18)) == (math.inf, math.inf, 0.0)
    assert smallest_shift(19, side="upper") < math.inf


ROWS = np.random.default_rng(0).normal(0, [3.0, 1.0, 0.2, 0.0], (15, 4)) @ np.linalg.qr(np.eye(4) + 0.3)[0] + 7


def plant(shift, sizes, seed):
    """Draw models like ROWS, the first sample shifted, through the full covariance matrix."""
    rng = np.random.default_rng([seed, 99])
    cov = np.cov(ROWS.T)
    v = rng.multivariate_normal(np.zeros(4), cov)
    v *= shift * math.sqrt(np.trace(cov)) / np.linalg.norm(v)
    u, *rest = (rng.multivariate_normal(ROWS.mean(axis=0), cov, n) for n in sizes)
    return [u + v, *rest]


def test_a_shift_that_the_kernel_test_is_said_to_see_is_seen():
    sizes = (10, 10, 10)
    found = kernel_shift(ROWS, sizes, shifts=(0.1, 2.0, 4.0), trials=100, permutations=99)
    assert found.smallest in (2.0, 4.0)
    assert found.found[0] < 40
    assert list(found.shifts) == [0.1, 2.0, 4.0]
    tests = [
        relative(*plant(found.smallest, sizes, s), side="farther", permutations=99, seed=s).p <= 0.05
        for s in range(100)
    ]
    assert clopper_pearson(sum(tests), 100, 0.999).high >= 0.95
    assert sum(tests) >= 92
    again = kernel_shift(ROWS, sizes, shifts=(4.0, 0.1, 2.0), trials=100, permutations=99)
    assert again == found


def test_a_shift_that_the_rank_of_distances_is_said_to_see_is_seen():
    found = distance_shift(ROWS, 39, shifts=(0.5, 1.0, 2.0, 3.0, 4.0, 6.0))
    assert 2.0 <= found.smallest <= 6.0
    assert list(found.found) == sorted(found.found)
    tests = []
    for s in range(200):
        u, others = plant(found.smallest, (1, 39), s)
        tests.append(rank_distance(u[0], others).rejects)
    assert clopper_pearson(sum(tests), 200, 0.999).high >= 0.95
    assert distance_shift(ROWS, 18, shifts=(100.0,)).smallest == math.inf  # 18 models never reject
    assert kernel_shift(ROWS, (2, 2, 5), shifts=(50.0,), trials=60).smallest == math.inf  # nor do 6 relabellings


@pytest.mark.parametrize(("n", "m"), [(257, 257), (40, 200), (1, 7)])
def test_auc_width_is_the_variance_of_the_rank_sum(n, m):
    w = auc_width(n, m)
    q = 1 / 3  # Hanley and McNeil's Q1 = A/(2 − A) and Q2 = 2A²/(1 + A) at A = 1/2
    var = (0.25 + (n - 1) * (q - 0.25) + (m - 1) * (q - 0.25)) / (n * m)
    assert w == pytest.approx(distributions.norm.ppf(0.975) * math.sqrt(var))
    rng = np.random.default_rng(n)
    z = rng.normal(size=(1500, n + m)).argsort(axis=1).argsort(axis=1)
    found = (z[:, :n].sum(axis=1) - n * (n - 1) / 2) / (n * m)
    assert found.std() == pytest.approx(math.sqrt(var), rel=0.08)


@pytest.mark.parametrize("width", [0.2, 0.05, 0.02, 0.01])
@pytest.mark.parametrize("ratio", [1.0, 4.0])
def test_auc_samples_invert_the_width(width, ratio):
    n = auc_samples(width, ratio=ratio)
    assert auc_width(n, math.ceil(ratio * n)) <= width
    assert auc_width(n - 1, math.floor(ratio * (n - 1))) > width


def test_about_260_samples_resolve_an_auc_to_a_twentieth():
    assert 250 <= auc_samples(0.05) <= 265


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: tost_power(0, 1.0, 1.0), "at least one replicate and a finite spread, got 0 and 1.0"),
        (lambda: tost_power(5, -1.0, 1.0), "got 5 and -1.0"),
        (lambda: tost_power(5, 1.0, 0.0), "a margin above 0, got 0.0"),
        (lambda: smallest_margin(5, 1.0, power=1.0), "a power from 0.5 to below 1, got 1.0"),
        (lambda: smallest_shift(19, level=0.7), "a level between 0 and 0.5, got 0.7"),
        (lambda: rank_power(19, 1.0, side="up"), "a side of the rank, got 'up'"),
        (lambda: auc_width(0, 5), "samples of both kinds"),
        (lambda: auc_samples(0.6), "a width below 0.5"),
        (lambda: kernel_shift(ROWS, (4, 4, 4), shifts=()), "shifts above 0 and at least 59 trials"),
        (lambda: kernel_shift(ROWS, (4, 4, 4), trials=58), "at least 59 trials, got .* and 58"),
        (lambda: distance_shift(np.ones((5, 2)), 19), r"two or more finite rows that differ, got \(5, 2\)"),
    ],
)
def test_errors(call, match):
    with pytest.raises(UserError, match=match):
        call()
