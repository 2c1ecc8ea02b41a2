"""Sequences of slices: distinct, far apart, chosen by a prior, and how deep they serve."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import UserError
from expunge.exact.orders import checked, cyclic, distance_bound, hamming, mean_distance
from expunge.exact.priors import ascending, bms, conditional, score
from expunge.exact.sequences import Live, best, choose, cover, depth, depths, stages

FOUR = (0.4, 0.3, 0.2, 0.1)
ZIPF = [1 / i for i in range(1, 9)]
WEIGHTS = st.lists(st.floats(0.01, 1), min_size=2, max_size=9)
SIZES = st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, min(math.factorial(n), 60))))


def words(sequences):
    return " ".join("".join(map(str, order)) for order in sequences)


def test_the_generator_gives_rotations_then_suffixes_rotated():
    assert words(cyclic(4, 8)) == "0123 3012 2301 1230 0312 3201 2130 1023"


@settings(deadline=None)
@given(SIZES)
def test_sequences_of_the_generator_are_distinct_permutations(size):
    slices, budget = size
    found = cyclic(slices, budget)
    assert len(set(found)) == budget
    assert all(sorted(order) == list(range(slices)) for order in found)
    assert cyclic(slices, budget)[: budget - 1] == cyclic(slices, max(1, budget - 1))[: budget - 1]


@pytest.mark.parametrize("slices", range(1, 7))
def test_the_generator_reaches_all_permutations(slices):
    assert len(set(cyclic(slices, math.factorial(slices)))) == math.factorial(slices)


@pytest.mark.parametrize(
    ("slices", "budget", "distance"),
    [
        (4, 5, 3.6),
        (4, 8, 3.4286),
        (4, 13, 3.2308),
        (4, 24, 3.1304),
        (5, 5, 5.0),
        (5, 10, 4.4444),
        (5, 20, 4.2105),
        (5, 120, 4.0336),
        (6, 12, 5.4545),
        (6, 120, 5.0420),
    ],
)
def test_mean_distances_of_the_generator(slices, budget, distance):
    assert mean_distance(cyclic(slices, budget)) == pytest.approx(distance, abs=5e-5)
    assert distance_bound(slices, budget) == pytest.approx(distance, abs=5e-5)


@pytest.mark.parametrize("slices", [3, 4, 5])
def test_the_generator_is_as_diverse_as_can_be_at_every_budget(slices):
    orders = cyclic(slices, math.factorial(slices))
    for budget in range(2, len(orders) + 1):
        assert mean_distance(orders[:budget]) == pytest.approx(distance_bound(slices, budget), abs=1e-12)


@given(st.integers(2, 5).flatmap(lambda n: st.lists(st.permutations(range(n)), min_size=2, max_size=8)))
def test_the_mean_distance_is_that_of_all_pairs_and_below_the_bound(sequences):
    pairs = [hamming(a, b) for a, b in itertools.combinations(sequences, 2)]
    assert mean_distance([tuple(s) for s in sequences]) == pytest.approx(np.mean(pairs), abs=1e-12)
    if len(sequences) <= math.factorial(len(sequences[0])):
        assert np.mean(pairs) <= distance_bound(len(sequences[0]), len(sequences)) + 1e-12


def test_random_sequences_differ_at_about_all_but_one_position():
    assert mean_distance(conditional(6, 120, seed=3)) == pytest.approx(5.0, abs=0.1)


def test_the_covering_set_of_four_slices():
    assert words(cover(4, 6)) == "0123 3012 2301 1230 0213 1302"


@pytest.mark.parametrize(("slices", "enough"), [(2, 2), (3, 3), (4, 6), (5, 10), (6, 20)])
def test_few_covering_sequences_serve_as_deep_as_all(slices, enough):
    every = depths(cyclic(slices, math.factorial(slices)))
    assert enough == math.comb(slices, slices // 2)
    np.testing.assert_array_equal(depths(cover(slices, enough)), every)
    assert (depths(cover(slices, enough - 1)) != every).any()


def test_the_second_rotations_serve_no_deeper_than_the_first():
    np.testing.assert_array_equal(depths(cyclic(4, 8)), depths(cyclic(4, 4)))


@pytest.mark.parametrize("budget", [1, 3, 4, 5, 6, 7, 23, 24])
def test_covering_sequences_are_distinct_beyond_what_they_cover(budget):
    found = cover(4, budget)
    assert len(set(found)) == budget
    assert found[:4] == cyclic(4, min(4, budget))


@pytest.mark.parametrize(
    ("requests", "matched", "rotated"),
    [(1, 10.0, 10.0), (2, 5.52, 5.36), (5, 1.885, 1.669), (10, 0.60369, 0.55109)],
)
def test_total_printed_scores_of_the_matching_and_of_sorted_rotation(requests, matched, rotated):
    ours = [score(o, FOUR, requests, "printed") for o in bms(FOUR, 4, 4, requests=requests, kind="printed")]
    theirs = [score(o, FOUR, requests, "printed") for o in ascending(FOUR, 4, 4)]
    digits = 5e-6 if requests == 10 else 5e-4
    assert sum(ours) == pytest.approx(matched, abs=digits)
    assert sum(theirs) == pytest.approx(rotated, abs=digits)


def test_the_printed_score_is_no_expectation_and_the_other_is():
    assert score((3, 2, 1, 0), FOUR, 2, "printed") == pytest.approx(2.27)
    every = [
        math.prod(FOUR[j] for j in drawn) * depth((3, 2, 1, 0), set(drawn))
        for drawn in itertools.product(range(4), repeat=2)
    ]
    assert score((3, 2, 1, 0), FOUR, 2) == pytest.approx(sum(every)) == pytest.approx(1.46)


def test_the_matching_at_a_hundred_requests_pairs_the_likely_with_the_likely():
    found = bms(FOUR, 4, 4, requests=100)
    assert [set(order[:2]) for order in found] == [{2, 3}, {2, 3}, {0, 1}, {0, 1}]
    assert [order[0] for order in found] == [3, 2, 1, 0]
    published = [(0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0)]
    totals = [sum(score(o, FOUR, 100, "printed") for o in orders) for orders in (found, published)]
    assert totals[0] == pytest.approx(totals[1], rel=1e-12)


@settings(deadline=None)
@given(WEIGHTS, st.sampled_from([1, 2, 10, 100]), st.sampled_from(["expected", "printed"]))
def test_the_matching_returns_a_latin_square_highest_score_first(weights, requests, kind):
    size = len(weights)
    found = bms(weights, size, size, requests=requests, kind=kind)
    for column in zip(*found, strict=True):
        assert sorted(column) == list(range(size))
    assert all(sorted(order) == list(range(size)) for order in found)
    scores = [score(o, weights, requests, kind) for o in found]
    assert scores == sorted(scores, reverse=True)
    if size > 1:
        assert mean_distance(found) == size
    least = max(1, size // 2)
    assert bms(weights, size, least, requests=requests, kind=kind) == found[:least]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=4), st.sampled_from([2, 10, 100]))
def test_the_matching_is_never_below_sorted_rotation_and_is_a_best_latin_set_of_three(weights, requests):
    size = len(weights)
    total = sum(score(o, weights, requests) for o in bms(weights, size, size, requests=requests))
    rotated = sum(score(o, weights, requests) for o in ascending(weights, size, size))
    assert total >= rotated * (1 - 1e-9)
    if size == 3:
        assert total == pytest.approx(rotated)


@pytest.mark.parametrize("weights", [FOUR, (0.35, 0.34, 0.30, 0.01)])
def test_the_matching_tells_tiny_scores_apart(weights):
    """At 5,000 requests all scores beyond the first positions are 0 as numbers."""
    for prior in itertools.permutations(weights):
        found = bms(prior, 4, 4, requests=5000)
        rising = sorted(range(4), key=lambda j, prior=prior: prior[j])
        assert [order[0] for order in found] == rising
        assert [set(order[:2]) for order in found] == [set(rising[:2])] * 2 + [set(rising[2:])] * 2


@pytest.mark.parametrize(("budget", "tops"), [(1, [3]), (2, [0, 3]), (3, [0, 1, 3])])
def test_sorted_rotation_has_the_likeliest_slice_on_top_second(budget, tops):
    assert sorted(order[0] for order in ascending(FOUR, 4, budget)) == tops


@pytest.mark.parametrize(("budget", "tops"), [(1, [3]), (2, [2, 3]), (3, [1, 2, 3])])
def test_the_matching_keeps_the_likeliest_slice_from_the_top(budget, tops):
    assert sorted(order[0] for order in bms(FOUR, 4, budget)) == tops


def test_conditional_draws_follow_their_weights():
    """Of three slices with weights 0.5, 0.8 and 0.7, the first sequence of many seeds."""
    prior, draws = (0.5, 0.2, 0.3), 3000
    found = Counter(conditional(3, 1, prior, seed=s)[0] for s in range(draws))
    weight = [1 - p for p in prior]
    for order in itertools.permutations(range(3)):
        a, b, c = (weight[j] for j in order)
        chance = a / (a + b + c) * b / (b + c)
        assert abs(found[order] / draws - chance) <= 4 * math.sqrt(chance * (1 - chance) / draws)


def test_conditional_draws_of_many_slices_follow_their_weights():
    prior, draws = np.r_[np.full(9, 0.05), 0.55], 1500
    tops = Counter(conditional(10, 1, prior, seed=s)[0][0] for s in range(draws))
    chance = 0.45 / (9 * 0.95 + 0.45)
    assert abs(tops[9] / draws - chance) <= 4 * math.sqrt(chance * (1 - chance) / draws)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(0, 2**40), st.booleans())
def test_conditional_draws_are_distinct_and_those_of_their_seed(slices, seed, skewed):
    budget = min(math.factorial(slices), 30)
    prior = [1.0 + 5 * (j == 0) for j in range(slices)] if skewed else None
    found = conditional(slices, budget, prior, seed=seed)
    assert len(set(found)) == budget
    assert checked(found, slices).shape == (budget, slices)
    assert conditional(slices, budget, prior, seed=seed) == found


def test_a_slice_that_alone_is_hit_comes_last():
    found = conditional(4, 6, (0, 0, 1, 0))
    assert len(set(found)) == 6
    assert {order[-1] for order in found} == {2}
    assert {order[-1] for order in conditional(9, 50, np.eye(9)[4])} == {4}
    with pytest.raises(UserError, match=r"at most 6 sequences to draw of these slices, got a budget of 7: ask for 6"):
        conditional(4, 7, (0, 0, 1, 0))


@pytest.mark.parametrize("select", ["cyclic", "cover", "random"])
@pytest.mark.parametrize("budget", [1, 4, 9, 24])
def test_each_rule_gives_as_many_sequences_as_asked(select, budget):
    found = choose(4, budget, select=select)
    assert len(set(found)) == budget
    assert choose(4, budget, select=select) == found


@pytest.mark.parametrize("select", ["bms", "sorted", "random"])
@pytest.mark.parametrize("budget", [1, 4, 9, 24])
def test_each_rule_with_a_prior_gives_as_many_sequences_as_asked(select, budget):
    found = choose(4, budget, FOUR, select)
    assert len(set(found)) == budget
    assert choose(4, budget, [7 * p for p in FOUR], select) == found


def test_beyond_the_matching_the_rest_is_drawn():
    found = choose(4, 8, FOUR, "bms", 5)
    assert found[:4] == bms(FOUR, 4, 4)
    assert found[4:] == conditional(4, 4, FOUR, seed=5, taken=found[:4])
    assert choose(4, 8, FOUR, "bms", 6)[4:] != found[4:]
    assert len(set(choose(4, 8, (0, 0, 0, 1), "bms"))) == 8


def test_the_score_decides_which_rows_of_the_matching_stay():
    """Rows are matched alike; only their order may differ, and with it which are kept."""
    weights = [0.30, 0.02, 0.28, 0.40]
    kinds = [choose(4, 4, weights, "bms", requests=2, kind=k) for k in ("expected", "printed")]
    assert sorted(kinds[0]) == sorted(kinds[1])


@pytest.mark.parametrize(
    ("given_", "match"),
    [
        ({"slices": 0, "budget": 1}, "slices, a whole number of at least 1, got 0"),
        ({"slices": 4, "budget": 0}, "a budget of sequences, a whole number of at least 1, got 0"),
        ({"slices": 4, "budget": True}, "a budget of sequences, a whole number of at least 1, got True"),
        ({"slices": 4.0, "budget": 1}, "slices, a whole number"),
        ({"slices": 3, "budget": 7}, "at most 6 sequences of 3 slices, all there are, got a budget of 7: ask for 6"),
        ({"slices": 3, "budget": 1, "select": "bsm"}, "a rule to choose sequences by, got 'bsm': did you mean 'bms'"),
        ({"slices": 3, "budget": 1, "select": "bms"}, "a prior for the rule bms, got none: give one weight a slice"),
        ({"slices": 3, "budget": 1, "prior": [1, 1, 1]}, "no prior for the rule cyclic, which knows none, got one"),
        ({"slices": 3, "budget": 1, "prior": [1, 1], "select": "bms"}, "a prior of 3 weights, one a slice, got 2"),
        ({"slices": 3, "budget": 1, "prior": [[1, 1, 1]], "select": "bms"}, r"got 3 in the shape \(1, 3\)"),
        ({"slices": 3, "budget": 1, "prior": [1, -1, 1], "select": "bms"}, "prior weights of at least 0, got -1"),
        ({"slices": 3, "budget": 1, "prior": [1, math.nan, 1], "select": "sorted"}, "at least 0, got nan"),
        ({"slices": 3, "budget": 1, "prior": [0, 0, 0], "select": "random"}, "a weight above 0, got zeros alone"),
        ({"slices": 3, "budget": 1, "prior": ["a", "b", "c"], "select": "random"}, "a prior of numbers"),
        ({"slices": 17, "budget": 1, "select": "cover"}, "at most 16 slices to cover all their sets, got 17 slices"),
        (
            {"slices": 3, "budget": 1, "prior": [1, 1, 1], "select": "bms", "requests": 0},
            "a number of requests above 0 to score sequences by, got 0",
        ),
        (
            {"slices": 3, "budget": 1, "prior": [1, 1, 1], "select": "bms", "kind": "true"},
            "a score of sequences, got 'true'",
        ),
        ({"slices": 9, "budget": 30000, "select": "random"}, "at most 20160 sequences to draw of these slices"),
    ],
)
def test_what_cannot_be_chosen_is_refused_in_a_sentence(given_, match):
    with pytest.raises(UserError, match=match):
        choose(**given_)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: bms(FOUR, 4, 5), "at most 4 sequences from a matching, one a slice, got a budget of 5"),
        (lambda: score((0, 0), FOUR), r"slices 0\.\.3 in a sequence, each at most once, got \(0, 0\)"),
        (lambda: score((4,), FOUR), r"slices 0\.\.3 in a sequence"),
        (lambda: mean_distance([(0, 1)]), "at least two sequences to compare, got 1"),
        (lambda: distance_bound(4, 1), "a whole number of at least 2, got 1"),
        (lambda: hamming((0, 1), (0,)), "sequences of the same length, got 2 and 1 slices"),
        (lambda: checked([]), "at least one sequence, got none"),
        (lambda: checked([(0, 1), (0, 2)]), r"each of the slices 0\.\.1 once in a sequence, got \(0, 2\)"),
        (lambda: checked([(0, 1)], 3), r"each of the slices 0\.\.2 once in a sequence, got \(0, 1\)"),
        (lambda: depths([tuple(range(17))]), "at most 16 slices to go through all sets that can be hit"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(call, match):
    with pytest.raises(UserError, match=match):
        call()


def test_the_printed_example_of_deletions():
    """Slices counted from 1 there: delete in slice 1, then in slice 2."""
    sequences = [tuple(j - 1 for j in order) for order in [(1, 2, 3, 4), (4, 1, 2, 3), (3, 4, 1, 2), (2, 3, 4, 1)]]
    assert [depth(order, {0}) for order in sequences] == [0, 1, 2, 3]
    assert best(sequences, {0}) == Live(3, 3)
    assert [depth(order, {0, 1}) for order in sequences] == [0, 1, 2, 0]
    assert best(sequences, {0, 1}) == Live(2, 2)
    assert best(sequences, set()) == Live(0, 4)
    assert best(sequences, {0, 1, 2, 3}) is None


@given(st.permutations(range(6)), st.lists(st.integers(0, 5), max_size=8), st.randoms())
def test_deletions_commute_and_repeats_change_nothing(order, requests, random):
    shuffled = list(requests)
    random.shuffle(shuffled)
    one_by_one = min((depth(order, {j}) for j in requests), default=6)
    assert depth(order, set(requests)) == depth(order, shuffled + requests) == one_by_one


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.permutations(range(n)), min_size=1, max_size=5)))
def test_the_table_of_depths_is_that_of_the_best_sequence(sequences):
    orders = [tuple(s) for s in sequences]
    size = len(orders[0])
    table = depths(orders)
    for mask in range(2**size):
        found = best(orders, {j for j in range(size) if mask >> j & 1})
        assert table[mask] == (found.depth if found else 0)
        if found:
            assert found.which == min(i for i, o in enumerate(orders) if depth(o, {*_bits(mask)}) == found.depth)


def _bits(mask):
    return [j for j in range(mask.bit_length()) if mask >> j & 1]


def test_sequences_share_the_stages_of_a_common_beginning():
    assert stages(cyclic(4, 4)) == 16
    assert stages(cyclic(4, 8)) == 16 + 4 * 3
    assert stages(cyclic(3, 6)) == 3 + 6 + 6
