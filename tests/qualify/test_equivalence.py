import math

import numpy as np
import pytest
from scipy import stats as distributions

from expunge.errors import UserError
from expunge.qualify.equivalence import every, least_pairs, margin_from_floor, tost
from expunge.qualify.rank import certified
from expunge.stats import clopper_pearson, t_test

RNG = np.random.default_rng(11)
A, B = RNG.normal(0.8, 0.02, 12), RNG.normal(0.79, 0.02, 12)


def passes(truth, n, trials, *, paired=True, seed=0, margin=1.0, spread=0.5):
    """Return in how many trials a true mean difference passes; originals and retrained models both vary."""
    rng = np.random.default_rng(seed)
    b = rng.normal(3, spread / math.sqrt(2), (trials, n))
    a = rng.normal(3 + truth, spread / math.sqrt(2), (trials, n))
    return sum(tost(x, y, margin, paired=paired).passes for x, y in zip(a, b, strict=True))


def test_paired_agrees_with_two_t_tests_of_scipy():
    found = tost(A, B, 0.02)
    p = [distributions.ttest_1samp(A - B, s * 0.02, alternative=w).pvalue for s, w in ((-1, "greater"), (1, "less"))]
    assert found.p == pytest.approx(max(p), rel=1e-10)
    want = distributions.t.interval(0.9, 11, loc=(A - B).mean(), scale=distributions.sem(A - B))
    assert (found.interval.low, found.interval.high) == pytest.approx(want)
    assert (found.n, found.df, found.estimate) == (12, 11, pytest.approx((A - B).mean()))
    assert found.spread == pytest.approx((A - B).std(ddof=1))


def test_unpaired_agrees_with_welch_of_scipy():
    b = B[:7]
    found = tost(A, b, 0.02, paired=False)
    low = distributions.ttest_ind(A, b - 0.02, equal_var=False, alternative="greater")
    high = distributions.ttest_ind(A, b + 0.02, equal_var=False, alternative="less")
    assert found.p == pytest.approx(max(low.pvalue, high.pvalue), rel=1e-10)
    assert (found.df, found.n) == (pytest.approx(low.df), 7)
    spread = math.sqrt((A.var(ddof=1) + B.var(ddof=1)) / 2)
    assert tost(A, B, 0.02, paired=False).spread == pytest.approx(spread)  # of one number, as power takes it
    want = distributions.ttest_ind(A, b, equal_var=False).confidence_interval(0.9)
    assert (found.interval.low, found.interval.high) == pytest.approx((want.low, want.high))


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("margin", [0.002, 0.01, 0.02, 0.03])
def test_it_passes_exactly_where_the_interval_is_inside_and_is_never_beyond_as_well(margin, paired):
    for shift in np.linspace(-0.05, 0.05, 21):
        found = tost(A + shift, B, margin, paired=paired)
        assert found.passes == (-margin < found.interval.low and found.interval.high < margin)
        assert not (found.passes and found.beyond <= found.level)


def test_beyond_is_the_two_sided_t_test_of_a_vanishing_margin_and_grows_with_the_margin():
    assert tost(A, B, 1e-12).beyond == pytest.approx(t_test(A - B), rel=1e-6)
    grown = [tost(A + 0.05, B, m).beyond for m in (0.01, 0.03, 0.05)]
    assert grown == sorted(grown)
    one_sided = distributions.ttest_1samp(A + 0.05 - B, 0.03, alternative="greater").pvalue
    assert grown[1] == pytest.approx(2 * one_sided, rel=1e-10)


@pytest.mark.parametrize("paired", [True, False])
def test_one_replicate_shows_nothing(paired):
    found = tost([0.8], [0.8], 0.5, paired=paired)
    assert (found.p, found.beyond, found.passes) == (1.0, 1.0, False)
    assert (found.interval.low, found.interval.high, found.n) == (-math.inf, math.inf, 1)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(("n", "through"), [(4, False), (5, True), (20, True)])
def test_equal_differences_are_left_to_the_sign_test(n, through, paired):
    found = tost([0.9] * n, [0.7] * n, 0.3, paired=paired)
    assert (found.p, found.passes, found.beyond) == (0.5**n, through, 1.0)
    assert math.isfinite(found.interval.high) == through
    far = tost([0.9] * n, [0.5] * n, 0.3, paired=paired)
    assert (far.p, far.beyond) == (1.0, 2 * 0.5**n)
    rounded = tost(np.arange(n) + 0.1, np.arange(n), 0.3)  # 0.1 up to rounding, which is no spread
    assert (rounded.p, rounded.error) == (0.5**n, 0.0)


@pytest.mark.parametrize(("n", "paired"), [(3, True), (10, True), (12, False)])
def test_a_difference_at_the_margin_passes_at_the_level(n, paired):
    trials = 600
    count = sum(passes(s, n, trials, paired=paired, seed=n) for s in (-1.0, 1.0))
    bounds = clopper_pearson(count, 2 * trials, 0.999)
    assert bounds.low <= 0.05 <= bounds.high, count


def test_a_difference_beyond_the_margin_is_certified_to_pass_at_most_one_in_twenty():
    count = passes(1.2, 10, 500, seed=5)
    assert count <= 16
    assert certified(count, 500)
    assert not certified(passes(0.0, 10, 500, seed=5), 500)


def test_all_numbers_must_pass_and_the_level_needs_no_correction():
    rng = np.random.default_rng(3)
    joint = []
    for _ in range(500):
        good, bad = rng.normal(0, 0.1, (2, 8, 2)), rng.normal([0, 1], [0.1, 0.5], (8, 2))
        one = tost(bad[:, 1], np.zeros(8), 1.0, name="bad")
        joint.append(every([one, *(tost(g[:, 0], g[:, 1], 1.0) for g in good)]))
    count = sum(j.passes for j in joint)
    assert clopper_pearson(count, 500, 0.999).low <= 0.05 <= clopper_pearson(count, 500, 0.999).high
    assert {j.worst for j in joint if not j.passes} == {"bad"}


def test_the_largest_p_decides():
    results = [tost(A, B, m, name=str(m)) for m in (0.05, 0.012, 0.03)]
    assert every(results).p == max(r.p for r in results)
    assert every(results).worst == "0.012"
    with pytest.raises(UserError, match="tests of one level, got no test"):
        every([])
    with pytest.raises(UserError, match=r"levels \[0.01, 0.05\]"):
        every([results[0], tost(A, B, 0.02, level=0.01)])


def brute_bound(x, quantile, level):
    """Return the smallest order statistic that no more than 1 − level of all samples have below the quantile."""
    for j in range(1, len(x) + 1):
        below = sum(math.comb(len(x), i) * quantile**i * (1 - quantile) ** (len(x) - i) for i in range(j))
        if below >= level:
            return sorted(x)[j - 1]
    return None


@pytest.mark.parametrize(("n", "quantile", "level"), [(14, 0.8, 0.95), (20, 0.8, 0.95), (60, 0.9, 0.9), (9, 0.5, 0.95)])
def test_margin_is_the_order_statistic_of_the_binomial(n, quantile, level):
    d = np.random.default_rng(n).normal(size=n)
    found = margin_from_floor(d, quantile=quantile, level=level, factor=1.5)
    assert found.bound.high == brute_bound(np.abs(d), quantile, level)
    assert found.delta == 1.5 * found.bound.high
    assert f"{n} pairs, times 1.5" in found.reason
    assert f"{level:.0%} confidence" in found.reason


def test_margin_covers_the_quantile_at_its_level():
    d = np.random.default_rng(0).normal(size=(1000, 20))
    truth = distributions.norm.ppf(0.9)  # the 0.8 quantile of an absolute normal value
    covered = sum(margin_from_floor(row).delta >= truth for row in d)
    assert clopper_pearson(covered, 1000, 0.999).high >= 0.95
    too_few = sum(np.quantile(np.abs(row), 0.8) >= truth for row in d)  # the estimate itself does not
    assert clopper_pearson(too_few, 1000, 0.999).high < 0.95


@pytest.mark.parametrize(("quantile", "level"), [(0.5, 0.95), (0.8, 0.95), (0.95, 0.95), (0.9, 0.5)])
def test_fewest_pairs(quantile, level):
    n = least_pairs(quantile, level)
    assert quantile**n <= 1 - level < quantile ** (n - 1)
    d = np.arange(1.0, n + 1)
    assert margin_from_floor(d, quantile=quantile, level=level).delta == brute_bound(d, quantile, level)
    with pytest.raises(UserError, match=rf"at least {n} pairs .* got {n - 1}: retrain 1 more pairs"):
        margin_from_floor(d[1:], quantile=quantile, level=level)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: tost([1.0, 2.0], [1.0], 0.1), "as many retrained as unlearned, got 1 and 2"),
        (lambda: tost([], [], 0.1), "finite numbers of unlearned models, got none"),
        (lambda: tost([1.0], [math.nan], 0.1), "finite numbers of retrained models, got some not finite"),
        (lambda: tost(A, B, 0.0), "a margin above 0, got 0.0"),
        (lambda: tost(A, B, 0.1, level=0.95), "a level between 0 and 0.5, got 0.95"),
        (lambda: margin_from_floor([0.0] * 20), "retrained models that differ, got differences of 0"),
        (lambda: margin_from_floor(range(20), factor=0.0), "a factor above 0, got 0.0"),
        (lambda: margin_from_floor(range(20), quantile=1.0), "a quantile between 0 and 1, got 1.0"),
    ],
)
def test_errors(call, match):
    with pytest.raises(UserError, match=match):
        call()
