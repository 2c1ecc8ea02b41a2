"""Simulated requests against closed forms, and vectorised runs against streams acted out one request at a time."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import UserError
from expunge.exact.arrivals import Independent, Owners, Samples, hits, tops
from expunge.exact.orders import cyclic
from expunge.exact.rates import deletion_rate, deletion_variance, first_lost, renewals, retention, served_depth
from expunge.exact.sequences import best, choose
from expunge.exact.simulate import Summary, _restarted, levels, lifetime, plans, restarts, simulate

FOUR = (0.4, 0.3, 0.2, 0.1)
DIGITS = Samples(sizes=[[172, 207, 156], [176, 190, 179]])
SYSTEMS = [
    (Independent(shards=3, slices=4), plans(3, 4, 1)),
    (Independent(shards=5, slices=4), plans(5, 4, 2)),
    (Independent(shards=5, slices=6), plans(5, 6, 6)),
    (Independent(shards=5, slices=4), plans(5, 4, 3, select="random", own=True)),
    (Independent(shards=5, slices=4, prior=FOUR), plans(5, 4, 2, FOUR, "bms")),
    (Independent(shards=5, slices=4, prior=FOUR), plans(5, 4, 3, FOUR, "sorted")),
    (Independent(shards=2, slices=32), plans(2, 32, 8)),
    (Samples(sizes=[[20] * 4] * 3), plans(3, 4, 1)),
    (Samples(sizes=[[20] * 4] * 3), plans(3, 4, 4)),
    (Samples(sizes=[[60] * 4] * 5), plans(5, 4, 4)),
    (Samples(sizes=[[2500] * 4] * 5), plans(5, 4, 4)),
    (DIGITS, plans(2, 3, 1)),
    (DIGITS, plans(2, 3, 3)),
    (Samples(sizes=[[1, 5, 2], [9, 1, 3]]), plans(2, 3, 2)),
    (Owners(weights=[1.0] * 40, places=[i % 8 for i in range(40)], shards=2, slices=4), plans(2, 4, 4)),
]


def agrees(found, expected):
    return abs(found.mean - expected) <= 4 * found.se


@pytest.mark.parametrize(("requests", "plan"), SYSTEMS)
@pytest.mark.parametrize("failure", ["all", "first"])
def test_simulated_lifetimes_agree_with_the_closed_form(requests, plan, failure):
    found = lifetime(requests, plan, runs=4000, seed=1)
    assert agrees(getattr(found, failure), requests.expected(plan, failure))


@pytest.mark.slow
@pytest.mark.parametrize(("requests", "plan"), SYSTEMS)
def test_a_hundred_thousand_simulated_lifetimes_agree_with_the_closed_form(requests, plan):
    found = lifetime(requests, plan, runs=100_000, seed=2)
    for failure in ("all", "first"):
        assert agrees(getattr(found, failure), requests.expected(plan, failure))


@pytest.mark.parametrize("budget", [1, 2, 4])
def test_simulated_lifetimes_have_the_spread_of_the_closed_form(budget):
    found = lifetime(Independent(shards=5, slices=4), plans(5, 4, budget), runs=8000).all
    assert found.sd == pytest.approx(math.sqrt(deletion_variance(5, 4, budget)), rel=0.05)
    assert found.se == found.sd / math.sqrt(8000)
    assert agrees(found, deletion_rate(5, 4, budget))


def test_the_expected_lifetimes_are_those_of_the_rates():
    even = Independent(shards=5, slices=4)
    assert even.expected(plans(5, 4, 4)) == pytest.approx(71.9548, abs=1e-4)
    assert even.expected(plans(5, 4, 4), "first") == first_lost(5, 4, 4)
    assert DIGITS.expected(plans(2, 3, 3)) == pytest.approx(14.768, abs=5e-4)
    assert Samples(sizes=[[2500] * 4] * 5).expected(plans(5, 4, 4)) == pytest.approx(71.898, abs=5e-4)


def test_the_deletion_rate_depends_on_the_top_slices_alone():
    """Sequences that all have the same slice on top differ below it in vain."""
    alike = [(0, *[1 + j for j in order]) for order in cyclic(3, 3)]
    requests = Independent(shards=5, slices=4)
    assert requests.expected([alike] * 5) == pytest.approx(deletion_rate(5, 4, 1))
    assert lifetime(requests, [alike] * 5) == lifetime(requests, plans(5, 4, 1))
    assert lifetime(requests, plans(5, 4, 8)) == lifetime(requests, plans(5, 4, 4))


def test_systems_of_one_seed_answer_the_same_requests():
    """So more sequences never fail sooner, in any run; another seed gives other runs."""
    requests = Samples(sizes=[[30] * 4] * 3)
    ends = [levels(requests.first(np.random.default_rng(3), 500), plans(3, 4, b)) for b in (1, 2, 4, 8, 24)]
    for few, more in itertools.pairwise(ends):
        assert (more >= few).all()
    assert lifetime(requests, plans(3, 4, 2)) == lifetime(requests, plans(3, 4, 2))
    assert lifetime(requests, plans(3, 4, 2)) != lifetime(requests, plans(3, 4, 2), seed=1)


@pytest.mark.parametrize(
    "requests",
    [
        Independent(shards=2, slices=3),
        Independent(shards=2, slices=3, prior=(0.6, 0.3, 0.1)),
        Samples(sizes=[[1, 5, 2], [9, 1, 3]]),
        Owners(weights=[1, 2, 3, 4, 5, 6, 7, 8], places=[0, 1, 2, 3, 4, 5, 0, 5], shards=2, slices=3),
    ],
)
def test_first_hits_drawn_at_once_have_the_law_of_those_of_streams(requests):
    """Compared in the mean of each slice, and of the last of all slices."""
    runs, length = 20_000, requests.most or 250
    fast = requests.first(np.random.default_rng(0), runs)
    slow = hits(requests.stream(np.random.default_rng(1), runs, length), 6)
    assert fast.shape == slow.shape == (runs, 6)
    assert fast.min() == slow.min() == 1
    assert (np.sort(fast, axis=1)[:, 1:] > np.sort(fast, axis=1)[:, :-1]).all()  # one request hits one slice
    fast, slow = (np.c_[t, t.max(axis=1), np.sort(t, axis=1)[:, 2]] for t in (fast, slow))
    error = np.sqrt((fast.var(axis=0) + slow.var(axis=0)) / runs)
    assert (abs(fast.mean(axis=0) - slow.mean(axis=0)) <= 4 * error + 1e-12).all()


def test_eager_owners_ask_first():
    """Three owners: all six orders, by their chances."""
    requests = Owners(weights=[1.0, 2.0, 5.0], places=[0, 1, 1], shards=2, slices=1)
    plan = [[(0,)], [(0,)]]
    expected = 0.0
    for order in itertools.permutations(range(3)):
        left, chance = 8.0, 1.0
        for owner in order:
            chance *= requests.weights[owner] / left
            left -= requests.weights[owner]
        expected += chance * max(1 + order.index(0), 1 + min(order.index(1), order.index(2)))
    assert agrees(lifetime(requests, plan).all, expected)
    with pytest.raises(UserError, match="owners of equal weight for a closed form, got unequal ones: simulate them"):
        requests.expected(plan)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 4).flatmap(
        lambda n: st.tuples(
            st.lists(st.lists(st.permutations(range(n)), min_size=1, max_size=4), min_size=1, max_size=3),
            st.randoms(use_true_random=False),
        )
    )
)
def test_levels_are_the_depths_of_requests_acted_out(drawn):
    plan, random = drawn
    shards, slices = len(plan), len(plan[0][0])
    stream = np.array([[random.randrange(shards * slices) for _ in range(12)] for _ in range(3)])
    ends = levels(hits(stream, shards * slices), plan)
    for run, t in itertools.product(range(3), range(13)):
        hit = {divmod(int(j), slices) for j in stream[run, :t]}
        for s in range(shards):
            found = best(plan[s], {j for shard, j in hit if shard == s})
            assert (ends[run, s] > t).sum() == (found.depth if found else 0)


@pytest.mark.parametrize("budget", [1, 2, 4])
def test_simulated_depths_agree_with_the_exact_ones(budget):
    after = (0, 1, 5, 10, 20, 40, 60)
    plan = plans(5, 4, budget)
    found = simulate(Independent(shards=5, slices=4), plan, after=after)
    assert found.lifetime == lifetime(Independent(shards=5, slices=4), plan)
    for r, expected in zip(after, served_depth(plan[0], after, shards=5), strict=True):
        assert abs(found.depth[r].mean - expected) <= 4 * found.depth[r].se + 1e-12
    assert found.quality == {}


def test_simulated_depths_under_a_prior():
    requests = Independent(shards=2, slices=4, prior=FOUR)
    plan = plans(2, 4, 2, FOUR, "bms")
    after = list(range(30))
    found = simulate(requests, plan, after=after, runs=2000)
    for r, expected in zip(after, served_depth(plan[0], after, FOUR, 2), strict=True):
        assert abs(found.depth[r].mean - expected) <= 4 * found.depth[r].se + 1e-12


def test_the_depth_over_a_life_by_all_orders():
    """Three samples in three slices, one sequence: depths after each request until the top slice is hit."""
    lives = []
    for order in itertools.permutations(range(3)):
        last = order.index(0) + 1
        lives.append(np.mean([min(order[:t]) for t in range(1, last + 1)]))
    found = simulate(Samples(sizes=[[1, 1, 1]]), plans(1, 3, 1), runs=4000).served
    assert agrees(found, np.mean(lives))
    assert (found.quantiles[0.05], found.quantiles[0.95]) == (min(lives), max(lives))


def test_quality_is_that_of_each_shard_at_its_depth():
    requests, plan = Independent(shards=5, slices=4), plans(5, 4, 4)
    found = simulate(requests, plan, after=(0, 7, 300), quality=[0.5, 0.6, 0.7, 0.8, 0.9])
    assert found.quality[0].mean == pytest.approx(0.9)
    for r in (7, 300):
        assert found.quality[r].mean == pytest.approx(0.5 + 0.1 * found.depth[r].mean)
    assert found.quality[300].mean == pytest.approx(0.5, abs=1e-3)
    curved = simulate(requests, plan, after=(7,), quality=[0, 0, 0, 0, 1]).quality[7]
    assert agrees(curved, retention(plan[0], [7], shards=5)[0, 4])


@pytest.mark.parametrize("budget", [1, 4])
def test_restarts_agree_with_the_renewal_theorem(budget):
    found = restarts(Independent(shards=5, slices=4), plans(5, 4, budget), horizon=1000, runs=800)
    expected = renewals(1000, deletion_rate(5, 4, budget), deletion_variance(5, 4, budget))
    assert agrees(found.scratch, expected)
    assert found.rebuilt.mean == 0


def acted(stream, plan, wait):
    """Return restarts and rebuilt shards of one stream, request by request."""
    slices = len(plan[0][0])
    hit = [set() for _ in plan]
    due = {}
    scratch = rebuilt = 0
    for t, place in enumerate(stream):
        shard, slice_ = divmod(int(place), slices)
        hit[shard].add(slice_)
        lost = [s for s in range(len(plan)) if best(plan[s], hit[s]) is None]
        if len(lost) == len(plan):
            scratch, due, hit = scratch + 1, {}, [set() for _ in plan]
        elif wait is not None:
            due |= {s: t + wait for s in lost if s not in due}
            for s in [s for s in due if due[s] == t]:
                rebuilt, hit[s] = rebuilt + 1, set()
                del due[s]
    return scratch, rebuilt


@pytest.mark.parametrize("wait", [None, 0, 1, 3, 10])
@pytest.mark.parametrize("budget", [1, 2, 3])
def test_restarts_are_those_of_requests_acted_out(budget, wait):
    stream = np.random.default_rng(budget).integers(0, 6, (20, 150))
    plan = [choose(3, budget, select="random", seed=s) for s in (0, 1)]
    found = np.stack(_restarted(stream, plan, wait), axis=1)
    assert found.tolist() == [list(acted(row, plan, wait)) for row in stream]


def test_healing_saves_restarts():
    requests, plan = Independent(shards=3, slices=3), plans(3, 3, 1)
    found = [restarts(requests, plan, horizon=200, heal=h, runs=200).scratch.mean for h in (None, 20, 3, 0)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[1] > found[2] > found[3] == 0


def test_restarts_over_samples_that_run_out():
    """Every sample is deleted in the end; slices of one sample are hit once and never again."""
    found = restarts(Samples(sizes=[[1, 1], [1, 1]]), plans(2, 2, 2), horizon=4, runs=50)
    assert found.scratch.mean == 1
    assert found.scratch.sd == 0


def test_own_sequences_of_each_shard():
    own = plans(4, 5, 3, select="random", own=True)
    assert len({tuple(shard) for shard in own}) == 4
    assert len({tuple(shard) for shard in plans(4, 5, 3, select="random")}) == 1
    assert plans(4, 5, 3, select="random", own=True) == own
    assert tops([[(2, 0, 1), (2, 1, 0)], [(0, 1, 2), (1, 0, 2)]]) == [[2], [0, 1]]


def test_a_summary_is_that_of_its_values():
    found = Summary.of(np.arange(101.0))
    assert (found.n, found.mean) == (101, 50)
    assert found.sd == pytest.approx(np.std(np.arange(101), ddof=1))
    assert found.quantiles == {0.05: 5, 0.25: 25, 0.5: 50, 0.75: 75, 0.95: 95}


EVEN = Independent(shards=2, slices=3)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Independent(shards=0, slices=3), "shards, a whole number of at least 1, got 0"),
        (lambda: Independent(shards=2, slices=3, prior=(1, 1)), "a prior of 3 weights, one a slice, got 2"),
        (lambda: Independent(shards=2, slices=3, prior=(1, 0, 1)), "a prior above 0 for each slice, got one of 0"),
        (lambda: Samples(sizes=[]), "a size for each slice, as many slices in each shard"),
        (lambda: Samples(sizes=[[1, 2], [1]]), "a size for each slice, as many slices in each shard"),
        (lambda: Samples(sizes=[[1, 0]]), "samples in each slice, a whole number of at least 1, got 0"),
        (lambda: Owners(weights=[1], places=[0, 1], shards=1, slices=2), "a weight and a slice for each owner"),
        (lambda: Owners(weights=[1, 0], places=[0, 1], shards=1, slices=2), "finite weights above 0, got 0"),
        (lambda: Owners(weights=[1, 1], places=[0, 0], shards=1, slices=2), r"owners in each of the slices 0\.\.1"),
        (lambda: Owners(weights=[1, 1], places=[0, 2], shards=1, slices=2), r"owners in each of the slices 0\.\.1"),
        (lambda: lifetime(EVEN, plans(2, 3, 1), runs=1), "runs, a whole number of at least 2, got 1"),
        (lambda: lifetime(EVEN, plans(3, 3, 1)), "the sequences of 2 shards, got those of 3: give"),
        (lambda: lifetime(EVEN, plans(2, 4, 1)), r"each of the slices 0\.\.2 once in a sequence"),
        (lambda: lifetime(EVEN, [[(0, 1, 2)], []]), "at least one sequence, got none"),
        (lambda: simulate(EVEN, plans(2, 3, 1), after=[-1]), "requests, a whole number of at least 0, got -1"),
        (lambda: simulate(EVEN, plans(2, 3, 1), quality=[0, 1]), r"a quality for each depth 0\.\.3, got 2 values"),
        (lambda: simulate(EVEN, plans(2, 3, 1), quality=[0, 1, 1, math.nan]), "a quality for each depth"),
        (
            lambda: simulate(EVEN, plans(2, 3, 1), quality=[0, 1, 1, 1]),
            "requests after which quality is wanted, got none",
        ),
        (lambda: restarts(EVEN, plans(2, 3, 1), horizon=0), "requests, a whole number of at least 1, got 0"),
        (lambda: restarts(EVEN, plans(2, 3, 1), heal=-1), "requests of a rebuild, a whole number of at least 0"),
        (lambda: restarts(DIGITS, plans(2, 3, 1), horizon=1081), "at most 1080 requests, each sample or owner once"),
        (lambda: plans(2, 3, 1, own=True), "the rule random for own sequences of each shard, got cyclic"),
    ],
)
def test_bad_simulations_are_refused_in_a_sentence(call, match):
    with pytest.raises(UserError, match=match):
        call()
