import math

import numpy as np
import pytest
from scipy import stats as distributions
from sklearn.metrics import roc_auc_score

from expunge.errors import UserError
from expunge.stats import Interval, auc, half_sum, mean_t, midranks, wilson


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
