import math
import statistics
import warnings
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats as distributions
from sklearn.metrics import roc_auc_score

from expunge import stats
from expunge.errors import UserError
from expunge.stats import (
    Interval,
    auc,
    benjamini_hochberg,
    bootstrap,
    clopper_pearson,
    difference,
    half_sum,
    holm,
    mcnemar,
    mean_t,
    midranks,
    paired,
    paired_proportions,
    t_test,
    wilson,
)

KINDS = ["percentile", "basic", "bca"]
P_VALUES = st.lists(st.floats(0, 1), max_size=12)
VALUES = st.lists(st.integers(-50, 50).map(float), min_size=2, max_size=12)


def pairs(f, g, n):
    """Return answers of two sides to n samples: f right in the first alone, g in the second, the rest in both."""
    rest = [True] * (n - f - g)
    return [True] * f + [False] * g + rest, [False] * f + [True] * g + rest


def brute(members, others):
    """Return AUC and DeLong's variance by all pairs, O(nm)."""
    wins = np.array([[1.0 if a > b else 0.5 if a == b else 0.0 for b in others] for a in members])
    rows, columns = wins.mean(axis=1), wins.mean(axis=0)
    return wins.mean(), rows.var(ddof=1) / len(rows) + columns.var(ddof=1) / len(columns)


def test_mean_t_at_the_published_numbers():
    found = mean_t([72.1, 72.9, 73.4, 72.5, 73.25])
    assert found.x == pytest.approx(72.83)
    assert found.high - found.x == pytest.approx(0.6652, abs=5e-5)
    assert found.x - found.low == pytest.approx(found.high - found.x)
    assert found.n == 5


def test_mean_t_agrees_with_scipy_at_another_level():
    values = [1.0, 4.0, 2.0, 8.0]
    want = distributions.t.interval(0.9, 3, loc=np.mean(values), scale=distributions.sem(values))
    found = mean_t(values, level=0.9)
    assert (found.low, found.high) == pytest.approx(want)


def test_one_value_has_no_spread():
    assert mean_t([3.0]) == Interval(3.0, -math.inf, math.inf, 1)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 0.0]])
def test_mean_t_refuses_what_has_no_mean(values):
    with pytest.raises(UserError, match=f"finite values to average, got {len(values)} values"):
        mean_t(values)


def test_mean_t_covers_at_its_level():
    x = np.random.default_rng(0).normal(5, 2, (2000, 5))
    found = [mean_t(row) for row in x]
    assert np.mean([i.low <= 5 <= i.high for i in found]) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"), [(11, 500, 0.01233, 0.03896), (0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0)]
)
def test_wilson_at_known_points(k, n, low, high):
    found = wilson(k, n)
    assert (found.x, found.n) == (k / n, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-6)


def test_wilson_is_symmetric_and_covers():
    a, b = wilson(3, 17), wilson(14, 17)
    assert (a.low, a.high) == pytest.approx((1 - b.high, 1 - b.low))
    k = np.arange(61)
    inside = [(i := wilson(int(v), 60)).low <= 0.2 <= i.high for v in k]
    assert distributions.binom.pmf(k, 60, 0.2)[inside].sum() == pytest.approx(0.95, abs=0.02)  # exact coverage


@pytest.mark.parametrize(("k", "n"), [(0, 0), (5, 4), (-1, 4)])
def test_wilson_refuses_impossible_counts(k, n):
    with pytest.raises(UserError, match=rf"got {k} of {n}: count the trials again"):
        wilson(k, n)


def test_half_sum_recovers_the_variance_of_the_mean_of_two_parts():
    a, b = Interval(0.4, 0.3, 0.6, 10), Interval(0.8, 0.5, 0.9, 20)
    found = half_sum(a, b)
    assert found.x == pytest.approx(0.6)
    assert found.x - found.low == pytest.approx(math.sqrt(0.1**2 + 0.3**2) / 2)
    assert found.high - found.x == pytest.approx(math.sqrt(0.2**2 + 0.1**2) / 2)
    assert found.n == 30
    assert half_sum(Interval(1.0, 0.2, 1.0, 3), Interval(1.0, 0.2, 1.0, 3)).high == 1.0


def test_midranks_share_ties():
    assert midranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_auc_equals_all_pairs_and_sklearn(seed, ties):
    rng = np.random.default_rng(seed)
    members, others = rng.normal(0.6, 1, 23), rng.normal(0, 1, 31)
    if ties:
        members, others = members.round(), others.round()
    found = auc(members, others)
    x, variance = brute(members, others)
    assert found.x == pytest.approx(x, abs=1e-12)
    labels = [1] * 23 + [0] * 31
    assert found.x == pytest.approx(roc_auc_score(labels, np.concatenate([members, others])), abs=1e-12)
    half = 2.073873 * math.sqrt(variance) / (x * (1 - x))  # t with 22 degrees of freedom
    centre = math.log(x / (1 - x))
    ends = [1 / (1 + math.exp(-(centre + s * half))) for s in (-1, 1)]
    assert [found.low, found.high] == pytest.approx(ends, abs=1e-6)
    assert found.n == 54


def test_auc_turns_round_with_its_groups():
    a, b = [0.1, 0.5, 0.5, 2.0], [0.5, -1.0, 0.2]
    forward, back = auc(a, b), auc(b, a)
    assert (forward.x, forward.low, forward.high) == pytest.approx((1 - back.x, 1 - back.high, 1 - back.low))


def test_auc_depends_on_order_alone():
    a, b = np.array([0.1, 0.7, 0.9]), np.array([0.2, 0.3, 0.8, 0.1])
    assert auc(a, b) == auc(np.exp(5 * a), np.exp(5 * b))
    assert auc([np.inf, 1.0], [0.0, 1.0]).x == 0.875


def test_a_perfect_auc_keeps_a_one_sided_bound():
    slack = 1 - 0.05 ** (1 / 3)
    assert auc([4.0, 5.0, 6.0], [1.0, 2.0, 3.0, 0.0]) == Interval(1.0, 1 - slack, 1.0, 7)
    assert auc([1.0, 2.0, 3.0, 0.0], [4.0, 5.0, 6.0]) == Interval(0.0, 0.0, slack, 7)


def test_one_sample_in_a_group_is_no_certainty():
    found = auc([1.0], [1.0])
    assert found.high - found.low > 0.9
    found = auc([0.5], np.arange(10) / 10)
    assert found.high - found.low > 0.9


def test_auc_covers_at_its_level():
    rng = np.random.default_rng(1)
    truth = distributions.norm.cdf(1 / math.sqrt(2))
    found = [auc(rng.normal(1, 1, 40), rng.normal(0, 1, 40)) for _ in range(600)]
    assert np.mean([i.low <= truth <= i.high for i in found]) == pytest.approx(0.95, abs=0.025)


@pytest.mark.parametrize(("a", "b"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0]), ([1.0], [0.0, math.nan])])
def test_auc_refuses_empty_groups_and_nan(a, b):
    with pytest.raises(UserError, match=f"without NaN, got {len(a)} and {len(b)}: check the splits"):
        auc(a, b)


@pytest.mark.parametrize(
    "call",
    [
        lambda level: mean_t([1.0, 2.0], level),
        lambda level: wilson(1, 2, level),
        lambda level: clopper_pearson(1, 2, level),
        lambda level: bootstrap([1.0, 2.0], level=level),
        lambda level: paired([1.0, 2.0], [1.0, 3.0], level),
        lambda level: paired_proportions([1, 0], [1, 1], level),
        lambda level: auc([1.0], [2.0], level),
    ],
)
@pytest.mark.parametrize("level", [0.0, 1.0, 95, math.nan])
def test_a_level_is_a_probability(call, level):
    with pytest.raises(UserError, match=f"a level between 0 and 1, got {level}: write 95 % as 0.95"):
        call(level)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
@pytest.mark.parametrize(("k", "n"), [(11, 500), (0, 10), (10, 10), (3, 17), (0, 1), (1, 1)])
def test_clopper_pearson_agrees_with_scipy(k, n, level):
    want = distributions.binomtest(k, n).proportion_ci(level, method="exact")
    found = clopper_pearson(k, n, level)
    assert (found.low, found.high) == pytest.approx((want.low, want.high), abs=1e-12)
    assert (found.x, found.n) == (k / n, n)


def test_clopper_pearson_never_covers_below_its_level():
    k = np.arange(31)
    found = [clopper_pearson(int(v), 30) for v in k]
    for truth in np.linspace(0.01, 0.99, 99):
        inside = [i.low <= truth <= i.high for i in found]
        assert distributions.binom.pmf(k, 30, truth)[inside].sum() >= 0.95


@pytest.mark.parametrize(("k", "n"), [(0, 0), (5, 4), (-1, 4)])
def test_clopper_pearson_refuses_impossible_counts(k, n):
    with pytest.raises(UserError, match=rf"got {k} of {n}: count the trials again"):
        clopper_pearson(k, n)


@pytest.mark.parametrize("kind", KINDS)
def test_bootstrap_is_scipys_on_the_sorted_values(kind):
    x = np.random.default_rng(3).exponential(size=25)
    options = {"n_resamples": 500, "confidence_level": 0.9, "random_state": np.random.default_rng(7)}
    want = distributions.bootstrap((np.sort(x),), np.median, method=kind, **options).confidence_interval
    found = bootstrap(x, np.median, kind=kind, level=0.9, resamples=500, seed=7)
    assert (found.x, found.low, found.high, found.n) == pytest.approx((np.median(x), want.low, want.high, 25))


def test_the_three_kinds_differ_where_values_are_skewed():
    x = np.random.default_rng(3).exponential(size=25)
    percentile, basic, bca = (bootstrap(x, kind=kind) for kind in KINDS)
    assert basic.low == pytest.approx(2 * basic.x - percentile.high)
    assert basic.high == pytest.approx(2 * basic.x - percentile.low)
    assert bca.low > percentile.low  # a long right tail moves both ends up
    assert bca.high > percentile.high
    assert bca == bootstrap(x)


@pytest.mark.parametrize("kind", KINDS)
def test_bootstrap_covers_near_its_level(kind):
    x = np.random.default_rng(2).normal(5, 2, (1500, 40))
    found = [bootstrap(row, kind=kind, resamples=400, seed=i) for i, row in enumerate(x)]
    want = distributions.t.cdf(1.96 * math.sqrt(39 / 40), 39) * 2 - 1  # 0.940: no kind knows of Student's t
    assert np.mean([i.low <= 5 <= i.high for i in found]) == pytest.approx(want, abs=0.02)


def test_bootstrap_takes_a_statistic_of_one_array_alone():
    x = [1.0, 2.0, 4.0, 9.0, 16.0, 23.0]
    one = bootstrap(x, lambda v: statistics.fmean(v), resamples=200)
    many = bootstrap(x, np.mean, resamples=200)
    assert (one.x, one.low, one.high) == pytest.approx((many.x, many.low, many.high))


@pytest.mark.parametrize(("level", "least"), [(0.95, 40), (0.9, 20), (0.99, 200)])
def test_bootstrap_needs_a_resample_beyond_each_end(level, least):
    assert bootstrap([1.0, 2.0, 4.0], level=level, resamples=least).n == 3
    with pytest.raises(UserError, match=f"at least {least} resamples for the level {level}, got {least - 1}"):
        bootstrap([1.0, 2.0, 4.0], level=level, resamples=least - 1)


def test_bootstrap_in_parts_is_the_bootstrap_at_once(monkeypatch):
    x = np.random.default_rng(0).normal(size=9)
    whole = bootstrap(x)
    monkeypatch.setattr(stats, "AT_ONCE", 30)
    assert bootstrap(x) == whole


@given(VALUES, st.sampled_from(KINDS), st.randoms(use_true_random=False))
def test_bootstrap_knows_no_order_and_no_nan(values, kind, random):
    shuffled = random.sample(values, len(values))
    found = bootstrap(values, kind=kind, resamples=40)
    assert found == bootstrap(shuffled, kind=kind, resamples=40)
    assert found.low <= found.high  # false of NaN


@pytest.mark.parametrize("kind", KINDS)
def test_bootstrap_of_values_without_spread(kind):
    assert bootstrap([3.0], kind=kind) == Interval(3.0, -math.inf, math.inf, 1)
    assert bootstrap([3.0] * 4, kind=kind) == Interval(3.0, 3.0, 3.0, 4)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "finite values to resample, got 0 values: drop undefined ones first"),
        ([1.0, math.nan], {}, "finite values to resample, got 2 values, some not finite"),
        ([1.0, 2.0], {"kind": "percent"}, "a kind of bootstrap interval, got 'percent': did you mean 'percentile'"),
        ([1.0, 2.0], {"resamples": 39}, "at least 40 resamples for the level 0.95, got 39: take 2000 or more"),
        ([1.0], {"statistic": lambda v: math.nan}, "a statistic that is finite on the values, got nan"),
        ([1.0] * 5 + [9.0], {"statistic": np.median}, 'with a bca interval, got an undefined one: take kind="perc'),
        (
            [1.0, 2.0],
            {"statistic": lambda v: math.nan if v[0] == v[1] else 1.0, "kind": "percentile"},
            "with a percentile interval, got an undefined one: choose a statistic defined on every resample",
        ),
    ],
)
def test_bootstrap_refuses_in_a_sentence_and_warns_of_nothing(values, options, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=message):
            bootstrap(values, **options)


def test_a_paired_difference_is_the_interval_of_the_differences():
    a, b = [72.1, 72.9, 73.4, 72.5, 73.25], [71.0, 72.0, 72.2, 71.9, 72.0]
    want = distributions.ttest_rel(a, b)
    ends = want.confidence_interval(0.9)
    found = paired(a, b, level=0.9)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
    assert (found.x, found.n) == (pytest.approx(np.mean(a) - np.mean(b)), 5)
    assert t_test(np.subtract(a, b)) == pytest.approx(want.pvalue)
    assert paired([2.0], [1.5]) == Interval(0.5, -math.inf, math.inf, 1)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1.0, 2.0], [1.0], "as many values on both sides, got 2 and 1: pair values of one seed or sample"),
        ([], [], "finite values to average, got 0 values"),
        ([math.inf, 1.0], [math.inf, 2.0], "finite values to average, got 2 values, some not finite"),
    ],
)
def test_paired_refuses_what_is_no_pair(a, b, message):
    with pytest.raises(UserError, match=message):
        paired(a, b)


def test_paired_proportions_at_the_authors_numbers():
    # statpsych, the package of D. G. Bonett: ci.prop.ps(.05, 12, 4, 26, 6) is 0.2548067 to 0.6251933
    found = paired_proportions(*pairs(26, 4, 48))
    assert (found.low, found.high) == pytest.approx((0.2548067, 0.6251933), abs=5e-8)
    assert (found.x, found.n) == (pytest.approx(22 / 48), 48)


@cache
def every_outcome(n):
    counts = [(f, g, n - f - g) for f in range(n + 1) for g in range(n + 1 - f)]
    return np.array(counts), [paired_proportions(*pairs(f, g, n)) for f, g, _ in counts]


@pytest.mark.parametrize("n", [12, 40])
def test_paired_proportions_cover_at_their_level(n):
    counts, found = every_outcome(n)
    low, high = np.array([i.low for i in found]), np.array([i.high for i in found])
    shares = [(f / 20, g / 20) for f in range(1, 19) for g in range(1, 20 - f)]
    covered = []
    for f, g in shares:  # exactly: the chance of every outcome, summed over those whose interval holds the truth
        chance = distributions.multinomial.pmf(counts, n, [f, g, 1 - f - g])
        covered.append(chance[(low <= f - g) & (f - g <= high)].sum())
    assert min(covered) > 0.92
    assert 0.95 < np.mean(covered) < 0.975


@pytest.mark.parametrize("n", [12, 40])
def test_paired_proportions_have_a_width_and_hold_their_estimate(n):
    _, found = every_outcome(n)
    assert min(i.high - i.low for i in found) > 2.7 / (n + 2)  # 2·z·√2 of it at no discordant pair, cut in half at 1
    assert all(-1 <= i.low <= i.x <= i.high <= 1 for i in found)
    above, below = (paired_proportions(*pairs(f, n - f, n), level=0.1) for f in (n, 0))
    assert above.low < above.x == above.high == 1
    assert below.high > below.x == below.low == -1


def test_paired_proportions_turn_round_with_their_sides():
    a, b = pairs(5, 2, 20)
    forward, back = paired_proportions(a, b), paired_proportions(b, a)
    assert (forward.x, forward.low, forward.high) == pytest.approx((-back.x, -back.high, -back.low))
    assert paired_proportions(np.array(a), np.array(b, dtype=float)) == forward


@pytest.mark.parametrize("compare", [paired_proportions, mcnemar])
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1, 0], [1], "an answer of each side for every sample, got 2 and 1: pair the same samples"),
        ([], [], "an answer of each side for every sample, got 0 and 0"),
        ([2, 0], [1, 0], "answers that are true or false, got other values: compare predictions with labels first"),
        ([1, 0], [0.5, 0], "answers that are true or false"),
        ([1, math.nan], [1, 0], "answers that are true or false"),
    ],
)
def test_answers_are_paired_and_true_or_false(compare, a, b, message):
    with pytest.raises(UserError, match=message):
        compare(a, b)


@pytest.mark.parametrize(
    ("a", "b", "low", "high"),  # R. G. Newcombe, 1998, table II, method 10
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_a_difference_of_wilsons_intervals_is_newcombes(a, b, low, high):
    found = difference(wilson(*a), wilson(*b))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5.1e-5)
    assert (found.x, found.n) == (pytest.approx(a[0] / a[1] - b[0] / b[1]), a[1] + b[1])


def test_a_difference_has_the_infinite_ends_of_its_sides():
    a, unknown = Interval(0.4, 0.3, 0.6, 10), Interval(0.1, -math.inf, math.inf, 1)
    bounded_above = Interval(0.1, -math.inf, 0.2, 3)
    assert difference(a, unknown) == Interval(pytest.approx(0.3), -math.inf, math.inf, 11)
    found = difference(a, bounded_above)
    assert (found.low, found.high) == (pytest.approx(0.3 - math.hypot(0.1, 0.1)), math.inf)
    assert difference(bounded_above, a).low == -math.inf
    assert math.isfinite(difference(bounded_above, a).high)


@pytest.mark.parametrize("bad", [Interval(math.inf, 0, math.inf, 2), Interval(0.0, math.nan, 1.0, 2)])
def test_a_difference_of_what_is_undefined_is_refused(bad):
    for a, b in [(bad, wilson(1, 2)), (wilson(1, 2), bad)]:
        with pytest.raises(UserError, match="finite estimates to subtract, got Interval"):
            difference(a, b)


@given(VALUES)
def test_the_t_test_rejects_where_the_interval_leaves_0_out(values):
    p, i = t_test(values), mean_t(values)
    assume(abs(p - 0.05) > 1e-9)
    assert (p < 0.05) == (not i.low <= 0 <= i.high)


def test_the_t_test_without_spread():
    assert t_test([5.0]) == 1.0
    assert t_test([0.0, 0.0]) == 1.0
    assert t_test([2.0, 2.0, 2.0]) == 0.0
    with pytest.raises(UserError, match="finite values to average, got 0 values"):
        t_test([])


@pytest.mark.parametrize(("f", "g"), [(0, 0), (1, 0), (5, 0), (3, 3), (2, 9), (30, 12), (0, 40)])
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(f, g):
    want = distributions.binomtest(f, f + g).pvalue if f + g else 1.0
    assert mcnemar(*pairs(f, g, 50)) == pytest.approx(want)


def test_holm_by_hand():
    # sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, never falling
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_benjamini_hochberg_by_hand():
    # sorted .005 .02 .03 .04, times 4/1 4/2 4/3 4/4: .02 .04 .04 .04
    assert benjamini_hochberg([0.02, 0.04, 0.03, 0.005]) == pytest.approx([0.04, 0.04, 0.04, 0.02])
    # sorted .01 .25 .3 .9, times 4/1 4/2 4/3 4/4: .04 .5 .4 .9, never above a later one
    assert benjamini_hochberg([0.3, 0.01, 0.9, 0.25]) == pytest.approx([0.4, 0.04, 0.9, 0.4])


@given(P_VALUES)
def test_benjamini_hochberg_is_scipys(p):
    want = distributions.false_discovery_control(p) if p else []
    assert benjamini_hochberg(p) == pytest.approx(list(want))


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
@given(p=P_VALUES, random=st.randoms(use_true_random=False))
def test_laws_of_adjusted_p_values(adjust, p, random):
    found = adjust(p)
    assert len(found) == len(p)
    assert all(a <= b <= 1 for a, b in zip(p, found, strict=True))
    order = sorted(range(len(p)), key=p.__getitem__)
    assert all(found[i] <= found[j] for i, j in zip(order, order[1:], strict=False))
    places = random.sample(range(len(p)), len(p))
    assert adjust([p[i] for i in places]) == [found[i] for i in places]


@given(P_VALUES)
def test_the_chance_of_any_error_costs_more_than_a_share(p):
    assert all(b <= h * (1 + 1e-12) for b, h in zip(benjamini_hochberg(p), holm(p), strict=True))


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.5, math.inf])
def test_adjusting_refuses_what_is_no_probability(adjust, bad):
    assert adjust([]) == []
    with pytest.raises(UserError, match=f"p-values between 0 and 1, got {bad}: leave out tests that have none"):
        adjust([0.5, bad])


@pytest.mark.parametrize("level", [0.5, 0.95, 0.9999])
def test_wilsons_interval_holds_its_estimate_at_the_ends(level: float):
    for n in range(1, 400):
        assert stats.wilson(0, n, level).low == 0.0 < stats.wilson(0, n, level).high
        assert stats.wilson(n, n, level).high == 1.0 > stats.wilson(n, n, level).low
