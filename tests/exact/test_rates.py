"""Closed forms of deletion rates and retention, to the digits that were computed elsewhere, and against each other."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import UserError
from expunge.exact.orders import cyclic
from expunge.exact.priors import ascending, bms
from expunge.exact.rates import (
    deletion_rate,
    deletion_rate_finite,
    deletion_rate_prior,
    deletion_rate_sizes,
    deletion_variance,
    first_lost,
    gain,
    harmonic,
    renewals,
    retention,
    retention_printed,
    retention_random,
    retention_sisa,
    served_depth,
    thinned,
)
from expunge.exact.sequences import best, cover

FOUR = (0.4, 0.3, 0.2, 0.1)
ZIPF = np.array([1 / i for i in range(1, 9)]) / sum(1 / i for i in range(1, 9))
RATES = [  # m, L, B, δ, sd, first shard lost
    (3, 4, 1, 22.00, 13.19, 4.00),
    (3, 4, 2, 29.40, 13.61, 8.40),
    (3, 4, 4, 37.24, 13.72, 14.40),
    (5, 4, 1, 45.67, 23.23, 4.00),
    (5, 4, 2, 58.58, 23.69, 10.13),
    (5, 4, 3, 66.36, 23.79, 15.17),
    (5, 4, 4, 71.95, 23.80, 19.29),
    (5, 6, 1, 68.50, 35.34, 6.00),
    (5, 6, 2, 87.87, 36.15, 15.19),
    (5, 6, 3, 99.55, 36.37, 22.76),
    (5, 6, 4, 107.93, 36.45, 28.93),
    (5, 6, 5, 114.48, 36.48, 34.10),
    (5, 6, 6, 119.85, 36.48, 38.53),
    (10, 8, 1, 234.32, 98.41, 8.00),
    (10, 8, 8, 397.24, 100.25, 101.28),
]
MANY = [  # with coarser digits
    (5, 32, 1, 365.33, 32.0),
    (5, 32, 8, 684.57, 244.4),
    (5, 32, 32, 904.88, 449.8),
    (5, 64, 1, 730.67, 64.0),
    (5, 64, 64, 2031.07, 1115.7),
    (10, 32, 1, 937.27, 32.0),
    (10, 32, 8, 1588.95, 405.1),
    (10, 32, 32, 2031.07, 806.8),
]


@pytest.mark.parametrize(("m", "slices", "budget", "rate", "sd", "first"), RATES)
def test_deletion_rates_under_uniform_requests(m, slices, budget, rate, sd, first):
    assert deletion_rate(m, slices, budget) == pytest.approx(rate, abs=5.1e-3)
    assert math.sqrt(deletion_variance(m, slices, budget)) == pytest.approx(sd, abs=5.1e-3)
    assert first_lost(m, slices, budget) == pytest.approx(first, abs=5.1e-3)


@pytest.mark.parametrize(("m", "slices", "budget", "rate", "first"), MANY)
def test_deletion_rates_of_many_slices(m, slices, budget, rate, first):
    assert deletion_rate(m, slices, budget) == pytest.approx(rate, abs=5.1e-3)
    assert first_lost(m, slices, budget) == pytest.approx(first, abs=0.051)
    low, high = {(5, 32): (193, 203), (5, 64): (386, 408), (10, 32): (397, 408)}[m, slices]
    assert low - 0.5 <= math.sqrt(deletion_variance(m, slices, budget)) <= high + 0.5


def test_the_published_table_of_budgets_lies_within_its_error():
    """Reported are means of 100 streams."""
    for budget, reported in enumerate((66.4, 86.9, 100.8, 107.8, 110.1, 124.1), start=1):
        error = math.sqrt(deletion_variance(5, 6, budget) / 100)
        assert abs(reported - deletion_rate(5, 6, budget)) < 4 * error


def test_the_gain_saturates_at_as_many_sequences_as_slices():
    assert gain(5, 32, 8) == pytest.approx(684.57 / 365.33, abs=1e-4)
    assert gain(5, 32, 32) == pytest.approx(904.88 / 365.33, abs=1e-4)
    assert gain(5, 4, 24) == gain(5, 4, 4) > gain(5, 4, 3)
    assert harmonic(4) == pytest.approx(25 / 12)


@pytest.mark.parametrize(
    ("samples", "m", "slices", "budget", "rate"),
    [
        (240, 3, 4, 1, 20.745),
        (240, 3, 4, 4, 34.243),
        (1200, 5, 4, 1, 44.613),
        (1200, 5, 4, 4, 69.649),
        (50000, 5, 4, 4, 71.898),
    ],
)
def test_deletion_rates_of_finitely_many_samples(samples, m, slices, budget, rate):
    assert deletion_rate_finite(samples, m, slices, budget) == pytest.approx(rate, abs=5e-4)
    sizes = [[samples // (m * slices)] * min(budget, slices)] * m
    assert deletion_rate_sizes(samples, sizes) == pytest.approx(deletion_rate_finite(samples, m, slices, budget))


def test_deletion_rates_of_unequal_slices():
    assert deletion_rate_sizes(1080, [[172], [176]]) == pytest.approx(9.258, abs=5e-4)
    assert deletion_rate_sizes(1080, [[172, 207, 156], [176, 190, 179]]) == pytest.approx(14.768, abs=5e-4)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=3), st.integers(0, 20))
def test_the_integral_of_sizes_is_the_alternating_sum(tops, others):
    sizes = [s for shard in tops for s in shard]
    samples = sum(sizes) + others
    terms = (
        (-1) ** (n + 1) * (samples + 1) / (1 + sum(chosen))
        for n in range(1, len(sizes) + 1)
        for chosen in itertools.combinations(sizes, n)
    )
    assert deletion_rate_sizes(samples, tops) == pytest.approx(math.fsum(terms), rel=1e-9)


def test_the_first_shard_lost_of_few_samples_by_all_orders():
    """Five samples in slices of 1, 2, 2: shard 0 has the first two on top, shard 1 the third."""
    slices, total, runs = (0, 1, 1, 2, 2), 0, 0
    for order in itertools.permutations(slices):
        first = {j: order.index(j) + 1 for j in range(3)}
        total += min(max(first[0], first[1]), first[2])
        runs += 1
    assert deletion_rate_sizes(5, [[1, 2], [2]], "first") == pytest.approx(total / runs, rel=1e-12)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 14))
def test_the_integral_of_probabilities_is_the_harmonic_number(m, slices, budget):
    tops = [[1 / (m * slices)] * min(budget, slices)] * m
    assert deletion_rate_prior(tops) == pytest.approx(deletion_rate(m, slices, budget), rel=1e-12)
    if budget == 1:
        assert first_lost(m, slices) == pytest.approx(slices, rel=1e-12)


def test_the_integral_holds_over_six_orders_of_magnitude():
    """Two slices: E max = 1/p + 1/q − 1/(p + q)."""
    p, q = 0.9, 1e-6
    assert deletion_rate_prior([[p], [q]]) == pytest.approx(1 / p + 1 / q - 1 / (p + q), rel=1e-12)
    assert deletion_rate_prior([[p, q]]) == deletion_rate_prior([[p], [q]])
    assert deletion_rate_prior([[p], [q]], "first") == pytest.approx(1 / (p + q), rel=1e-12)


def test_a_slice_that_is_never_hit_keeps_its_shard():
    assert deletion_rate_prior([[0.5, 0.0], [0.1]]) == math.inf
    assert deletion_rate_prior([[0.5, 0.0], [0.1]], "first") == pytest.approx(10)
    assert deletion_rate_prior([[0.0], [0.1, 0.0]], "first") == math.inf


PRIORS = [  # B, most-likely-first rotation, sorted rotation, matching
    (FOUR, 1, 28.54, 114.17, 114.17),
    (FOUR, 2, 114.62, 114.62, 119.28),
    (FOUR, 3, 119.50, 115.82, 120.07),
    (FOUR, 4, 120.24, 120.24, 120.24),
    (ZIPF, 1, 31.03, 248.23, 248.23),
    (ZIPF, 2, 248.28, 248.28, 299.59),
    (ZIPF, 4, 319.74, 253.24, 327.64),
    (ZIPF, 8, 330.73, 330.73, 330.73),
]


@pytest.mark.parametrize(("prior", "budget", "plain", "rising", "matched"), PRIORS)
def test_deletion_rates_under_a_prior(prior, budget, plain, rising, matched):
    size = len(prior)
    for sequences, rate in (
        (cyclic(size, budget), plain),
        (ascending(prior, size, budget), rising),
        (bms(prior, size, budget), matched),
    ):
        tops = [[prior[j] / 5 for j in {order[0] for order in sequences}]] * 5
        assert deletion_rate_prior(tops) == pytest.approx(rate, abs=5.1e-3)


def test_restarts_over_a_thousand_requests():
    for budget, restarts in ((1, 21.5), (4, 13.5)):
        found = renewals(1000, deletion_rate(5, 4, budget), deletion_variance(5, 4, budget))
        assert found == pytest.approx(restarts, abs=0.051)


def test_renewals_are_exact_where_waits_are_geometric():
    assert renewals(100, 4, 12) == pytest.approx(25)


KEPT = [  # k, r, SISA, lemma 2, 4 random, 4 rotations, all 24
    (1, 1, 0.7500, 0.9961, 0.9961, 1, 1),
    (1, 3, 0.4219, 0.8883, 0.8459, 1, 1),
    (1, 6, 0.1780, 0.5434, 0.4466, 0.6191, 0.6191),
    (2, 2, 0.2500, 0.6836, 0.6227, 0.7500, 1),
    (2, 3, 0.1250, 0.4138, 0.3498, 0.4375, 0.6250),
    (2, 6, 0.0156, 0.0611, 0.0479, 0.0615, 0.0918),
    (3, 2, 0.0625, 0.2275, 0.1709, 0.2500, 0.2500),
]


@pytest.mark.parametrize(("k", "r", "sisa", "printed", "random", "rotations", "every"), KEPT)
def test_retention_of_a_shard_of_four_slices(k, r, sisa, printed, random, rotations, every):
    assert retention_sisa(4, k, r) == pytest.approx(sisa, abs=5.1e-5)
    assert retention_printed(4, k, r, 4) == pytest.approx(printed, abs=5.1e-5)
    assert retention_random(4, k, r, 4) == pytest.approx(random, abs=5.1e-5)
    assert retention(cyclic(4, 4), [r])[0, k] == pytest.approx(rotations, abs=5.1e-5)
    assert retention(cyclic(4, 24), [r])[0, k] == pytest.approx(every, abs=5.1e-5)
    assert retention(cover(4, 6), [r])[0, k] == pytest.approx(every, abs=5.1e-5)


def test_the_printed_cap_on_the_budget():
    """L!/(L − k)! ordered beginnings, though C(L, k) sets are all there is to keep."""
    assert retention_printed(4, 1, 3, 24) == retention_printed(4, 1, 3, 4)
    assert retention_printed(4, 2, 3, 24) == retention_printed(4, 2, 3, 12) > retention_printed(4, 2, 3, 6)


SERVED = [
    (cyclic(4, 1), [3.5, 2.136, 1.252, 0.530, 0.145, 0.048]),
    (cyclic(4, 2), [3.65, 2.582, 1.743, 0.877, 0.273, 0.094]),
    (cyclic(4, 4), [3.8, 3.034, 2.270, 1.323, 0.490, 0.181]),
    (cyclic(4, 8), [3.8, 3.034, 2.270, 1.323, 0.490, 0.181]),
    (cover(4, 6), [3.8, 3.095, 2.395, 1.434, 0.514, 0.184]),
    (cyclic(4, 24), [3.8, 3.095, 2.395, 1.434, 0.514, 0.184]),
]


@pytest.mark.parametrize(("sequences", "mean"), SERVED)
def test_mean_served_depths(sequences, mean):
    assert served_depth(sequences, (1, 5, 10, 20, 40, 60), shards=5) == pytest.approx(mean, abs=5.1e-4)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 4).flatmap(lambda n: st.lists(st.permutations(range(n)), min_size=1, max_size=4)),
    st.integers(0, 4),
    st.integers(1, 3),
    st.booleans(),
)
def test_retention_is_that_of_all_streams_of_requests(sequences, requests, shards, skewed):
    orders = [tuple(s) for s in sequences]
    size = len(orders[0])
    prior = [1.0 + 2 * j for j in range(size)] if skewed else None
    p = np.ones(size) / size if prior is None else np.array(prior) / sum(prior)
    expected = np.zeros(size + 1)
    for stream in itertools.product(range(size + 1), repeat=requests):  # the last stands for another shard
        chance = math.prod(p[j] / shards if j < size else 1 - 1 / shards for j in stream)
        found = best(orders, {j for j in stream if j < size})
        expected[: (found.depth if found else 0) + 1] += chance
    np.testing.assert_allclose(retention(orders, [requests], prior, shards)[0], expected, atol=1e-12)


def test_rows_of_retention_stand_in_the_order_asked():
    found = retention(cyclic(4, 2), [6, 0, 3, 6])
    assert found.shape == (4, 5)
    np.testing.assert_array_equal(found[0], found[3])
    np.testing.assert_array_equal(found[1], 1.0)
    np.testing.assert_array_equal(found[2], retention(cyclic(4, 2), [3])[0])
    assert retention(cyclic(4, 2), []).shape == (0, 5)


@pytest.mark.parametrize("requests", [0, 1, 10])
def test_thinning_agrees_with_requests_that_go_elsewhere(requests):
    ours = retention(cyclic(4, 4), [requests], shards=5)[0]
    for k in range(5):
        there = thinned(lambda r, k=k: retention(cyclic(4, 4), [r])[0, k], requests, 5)
        assert ours[k] == pytest.approx(there, abs=1e-12)


def test_random_retention_is_the_mean_over_all_sets_of_sequences():
    """Two sequences of three slices, all 36 pairs."""
    every = list(itertools.permutations(range(3)))
    for k, r in itertools.product(range(4), (0, 1, 3)):
        found = [retention([a, b], [r])[0, k] for a, b in itertools.product(every, repeat=2)]
        assert retention_random(3, k, r, 2) == pytest.approx(np.mean(found), abs=1e-12)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: deletion_rate(0, 4), "shards, a whole number of at least 1, got 0"),
        (lambda: deletion_rate(5, 4, 0), "a budget of sequences, a whole number of at least 1, got 0"),
        (lambda: deletion_rate_finite(241, 3, 4), "samples that divide into 12 slices of equal size, got 241"),
        (lambda: deletion_rate_prior([[0.5, 0.6]]), "top slices that sum to at most 1, got 1.1: divide"),
        (lambda: deletion_rate_prior([[0.5], []]), "top slices of each shard, got a shard without any"),
        (lambda: deletion_rate_prior([[-0.5]]), "finite probabilities of at least 0, got -0.5"),
        (lambda: deletion_rate_prior([[0.5]], "any"), "a rule of failure, got 'any'"),
        (lambda: deletion_rate_sizes(10, [[0, 3]]), "top slices with samples, got an empty one"),
        (lambda: deletion_rate_sizes(10, [[6], [5]]), "at most 10 samples in the top slices, got 11"),
        (lambda: retention_sisa(4, 5, 1), "a depth of at most the 4 slices, got 5"),
        (lambda: retention_random(4, 1, -1, 2), "requests, a whole number of at least 0, got -1"),
        (lambda: retention_printed(4, 1, 1, 0), "a budget of sequences"),
        (lambda: retention([(0, 1), (1, 1)], [1]), r"each of the slices 0\.\.1 once in a sequence"),
        (lambda: retention([(0, 1)], [1], [1, 2, 3]), "a prior of 2 weights, one a slice, got 3"),
        (lambda: retention([(0, 1)], [-1]), "requests, a whole number of at least 0, got -1"),
        (lambda: retention([tuple(range(17))], [1]), "at most 16 slices to go through all sets"),
        (lambda: thinned(lambda r: r, -1, 2), "requests, a whole number of at least 0"),
    ],
)
def test_bad_systems_are_refused_in_a_sentence(call, match):
    with pytest.raises(UserError, match=match):
        call()
