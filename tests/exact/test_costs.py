"""Costs of SISA against requests acted out, and the published numbers on training and storage."""

import itertools
import math

import numpy as np
import pytest

from expunge.errors import UserError
from expunge.exact.costs import (
    sharding_cost,
    sharding_cost_batch,
    sisa_epochs,
    slicing_cost,
    slicing_cost_batch,
    storage,
    storage_checkpoints,
    work,
    work_printed,
)


def test_the_sharding_costs_of_the_example():
    assert sharding_cost(1000, 5, 5) == pytest.approx(993.0)
    assert sharding_cost_batch(1000, 5, 5) == pytest.approx(667.3, abs=0.05)


def test_sharding_costs_are_those_of_requests_acted_out():
    rng, runs = np.random.default_rng(0), 4000
    one_by_one, together = np.zeros(runs), np.zeros(runs)
    for run in range(runs):
        left = np.full(5, 200)
        hit = rng.integers(0, 5, 5)
        for shard in hit:
            left[shard] -= 1
            one_by_one[run] += left[shard]
        together[run] = left[np.unique(hit)].sum()
    for found, formula in ((one_by_one, sharding_cost(1000, 5, 5)), (together, sharding_cost_batch(1000, 5, 5))):
        assert abs(found.mean() - formula) <= 4 * found.std(ddof=1) / math.sqrt(runs)


@pytest.mark.parametrize("slices", [1, 2, 4, 7])
@pytest.mark.parametrize("requests", [1, 2, 3])
def test_slicing_costs_are_means_over_all_places_of_requests(slices, requests):
    """Step i trains on the slices 1..i for e/L epochs; the lowest slice hit is the first to be done again."""
    size, epochs = 60, 3.0
    each = sisa_epochs(epochs, slices) / slices
    costs = [
        sum(each * i * size for i in range(min(hit), slices + 1))
        for hit in itertools.product(range(1, slices + 1), repeat=requests)
    ]
    assert slicing_cost_batch(size * slices, slices, requests, epochs) == pytest.approx(np.mean(costs))
    if requests == 1:
        assert slicing_cost(size * slices, slices, epochs) == pytest.approx(np.mean(costs))


def test_the_slicing_factor_and_the_epochs():
    assert slicing_cost(1, 4) == pytest.approx(0.75)
    assert slicing_cost(1, 10**6) == pytest.approx(2 / 3, abs=1e-6)
    # Σ_i (e/L)·i/L of all samples is e' again
    assert sum(sisa_epochs(3, 4) / 4 * i / 4 for i in range(1, 5)) == pytest.approx(3)


def test_the_work_of_a_sequence():
    assert work_printed(4, 4) == pytest.approx(2.5)
    assert work(4) == pytest.approx(2.19, abs=5e-3)
    assert work(6) == pytest.approx(3.01, abs=5e-3)
    assert work(4, cached=True) == pytest.approx(1.88, abs=5.1e-3)
    assert work(6, cached=True) == pytest.approx(2.53, abs=5e-3)
    assert work(1) == work(1, equal="samples") == 1.0


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("slices", [2, 4, 6])
def test_the_work_is_that_of_its_stages_added_up(slices, share):
    blocks = 12
    forward = sum(i / slices for i in range(1, slices + 1))
    backward = sum(i / slices * share * i / slices for i in range(1, slices + 1))
    whole = blocks * (1 + share)
    assert work(slices, share=share) == pytest.approx(blocks * (forward + backward) / whole)
    assert work(slices, share=share, cached=True) == pytest.approx(blocks * 2 * backward / whole)
    samples = sum(i / slices for i in range(1, slices + 1))  # of stages of an epoch each, in epochs of all
    assert work(slices, share=share, equal="samples") == pytest.approx(work(slices, share=share) / samples)
    assert work(slices, share=share, equal="samples") <= 1.0


def test_the_storage_of_the_published_table():
    """ViT-large, m = 5, L = 6: 6.29 MB of adapters, 0.82 MB of head."""
    sizes = {"adapters": 6.29e6, "head": 0.82e6}
    assert storage_checkpoints(5, 6, 1, **sizes) / 1e9 == pytest.approx(0.213, abs=5e-4)
    assert storage(5, 6, 1, **sizes) / 1e9 == pytest.approx(0.056, abs=5e-4)
    assert storage(5, 6, 4, **sizes) == 4 * storage(5, 6, 1, **sizes)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: sharding_cost(4, 2, 5), "no more requests, and no more shards, than samples, got 5 requests"),
        (lambda: sharding_cost_batch(4, 5, 1), "no more requests, and no more shards, than samples"),
        (lambda: slicing_cost(10, 0), "slices, a whole number of at least 1, got 0"),
        (lambda: slicing_cost_batch(10, 0, 1), "slices, a whole number of at least 1, got 0"),
        (lambda: slicing_cost_batch(10, 2, 0), "requests, a whole number of at least 1, got 0"),
        (lambda: sisa_epochs(1, 0), "slices, a whole number of at least 1, got 0"),
        (lambda: work(0), "slices, a whole number of at least 1, got 0"),
        (lambda: work(4, share=0), "a share of blocks with adapters above 0 and at most 1, got 0"),
        (lambda: work(4, equal="steps"), "what is equal to the model in comparison, got 'steps'"),
        (lambda: work_printed(4, 0), "a budget of sequences"),
        (lambda: storage(5, 6, 0, adapters=1), "a budget of sequences"),
        (lambda: storage(5, 6, 1, adapters=-1), "bytes of at least 0, got -1"),
        (lambda: storage_checkpoints(5, 0, 1, adapters=1), "slices, a whole number of at least 1, got 0"),
    ],
)
def test_bad_sizes_are_refused_in_a_sentence(call, match):
    with pytest.raises(UserError, match=match):
        call()
