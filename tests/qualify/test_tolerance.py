import math

import numpy as np
import pytest
from scipy import stats as distributions

from expunge.errors import UserError
from expunge.qualify import equivalence
from expunge.qualify.tolerance import least_pairs, tolerance
from expunge.stats import clopper_pearson


def by_hand(x, share, confidence):
    """Return the smallest value with a chance of confidence or more that no fewer of n fall below the quantile."""
    n = len(x)
    for j in range(1, n + 1):
        chance = sum(math.comb(n, i) * share**i * (1 - share) ** (n - i) for i in range(j))
        if chance >= confidence:
            return sorted(x)[j - 1]
    return None


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9, 0.97])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_it_is_the_order_statistic_of_the_binomial_or_there_is_none(share, confidence):
    rng = np.random.default_rng(1)
    found = []
    for n in (1, 2, 5, 14, 28, 29, 46, 59, 64, 120):
        x = rng.normal(size=n)
        found.append(tolerance(x, share, confidence))
        assert found[-1] == by_hand(x.tolist(), share, confidence), n
        assert (found[-1] is None) == (n < least_pairs(share, confidence))
    assert found[0] is None or (share, confidence) == (0.5, 0.5)
    assert found[-1] is not None or (share, confidence) == (0.97, 0.99)


def test_each_further_rank_from_the_top_needs_as_many_values_as_the_tables_say():
    for from_top, n in enumerate([29, 46, 61, 76, 89, 103, 116, 129]):  # 90 % at 95 % confidence
        x = np.random.default_rng(n).permutation(n) + 1
        assert tolerance(x) == n - from_top
        assert tolerance(x[x < n]) == (n - from_top if from_top else None)  # one fewer: one rank higher


@pytest.mark.parametrize("name", ["normal", "exponential", "cauchy"])
def test_it_holds_for_its_share_at_its_confidence_and_the_quantile_itself_does_not(name):
    law = {"normal": distributions.halfnorm, "exponential": distributions.expon, "cauchy": distributions.halfcauchy}
    drawn = law[name].rvs(size=(1000, 64), random_state=np.random.default_rng(5))
    truth = law[name].ppf(0.9)
    covered = sum(tolerance(row) >= truth for row in drawn)
    assert clopper_pearson(covered, 1000, 0.999).high >= 0.95
    exact = distributions.binom.cdf(61, 64, 0.9)  # of x₍₆₂₎: 0.9506
    assert clopper_pearson(covered, 1000, 0.999).low <= exact <= clopper_pearson(covered, 1000, 0.999).high
    short = sum(np.quantile(row, 0.9) >= truth for row in drawn)
    assert clopper_pearson(int(short), 1000, 0.999).high < 0.95


def test_ties_and_order_change_nothing():
    x = np.repeat([0.0, 1.0, 2.0], [40, 20, 4])
    assert tolerance(x) == tolerance(x[::-1]) == by_hand(x.tolist(), 0.9, 0.95) == 2.0
    assert tolerance(np.zeros(29)) == 0.0


def test_rounding_at_the_edge_never_gives_the_smallest_value():
    assert least_pairs(0.5, 1 - 0.5**5) == 5
    assert tolerance([1, 2, 3, 4, 5], 0.5, 1 - 0.5**5) == 5.0
    barely = 1 - 0.5**5 * (1 - 5e-10)  # five values miss it by less than what `least_pairs` forgives
    assert least_pairs(0.5, barely) == 5
    assert tolerance([1, 2, 3, 4, 5], 0.5, barely) == 5.0


@pytest.mark.parametrize(("quantile", "level"), [(0.5, 0.95), (0.8, 0.95), (0.95, 0.95), (0.9, 0.5), (0.9, 0.99)])
def test_fewest_is_what_the_margin_takes(quantile, level):
    n = least_pairs(quantile, level)
    assert quantile**n <= 1 - level < quantile ** (n - 1)
    d = np.random.default_rng(n).normal(size=n + 40)
    margin = equivalence.margin_from_floor(d, quantile=quantile, level=level)
    assert margin.delta == tolerance(np.abs(d), quantile, level)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: tolerance([]), "finite values to bound, got none"),
        (lambda: tolerance([1.0, math.nan]), "finite values to bound, got some not finite"),
        (lambda: tolerance([1.0], 1.0), "a share between 0 and 1, got 1.0"),
        (lambda: tolerance([1.0], 0.9, 0.0), "a confidence between 0 and 1, got 0.0"),
        (lambda: least_pairs(0.0), "a quantile between 0 and 1, got 0.0"),
        (lambda: least_pairs(0.9, 1.5), "a level between 0 and 1, got 1.5: write 95 % as 0.95"),
    ],
)
def test_errors(call, match):
    with pytest.raises(UserError, match=match):
        call()
