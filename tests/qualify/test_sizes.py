import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import stats as distributions

from expunge.errors import UserError
from expunge.files import canonical
from expunge.qualify.sizes import InRow, Size, in_row, size_of
from expunge.qualify.trials import Said, Trials
from expunge.stats import Interval, clopper_pearson
from qualify.worlds import said, trials

world = cache(trials)


def by_hand(w, models):
    """Return the mean of φ − μ over each request's forgotten samples, one sum after another."""
    found = []
    for t in range(len(w)):
        away = []
        for i in np.flatnonzero(w.forget[t]):
            others = [
                w.reference.train[r, i]
                for r in range(len(w.reference))
                if r not in (t, t ^ 1) and not w.reference.kept[r, i]
            ]
            away.append(models.train[t, i] - sum(others) / len(others))
        found.append(sum(away) / len(away))
    return found


def at_most(k, n, p):
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))


def root(f):
    """Return where a falling function on (0, 1) is 0."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) > 0 else (low, middle)
    return low


def upper(k, n, chance):
    """Return the rate at which k or fewer come with no more than a chance."""
    return 1.0 if k == n else root(lambda p: at_most(k, n, p) - chance)


def lower(k, n, chance):
    """Return the rate at which k or more come with no more than a chance."""
    return 0.0 if k == 0 else root(lambda p: at_most(k - 1, n, p) - (1 - chance))


def row(numbers, left, *, size=6, memory=2.0, models=64, seed=0, samples=300):
    """Return trials after each number of requests; ``left`` is the share of memory left at each."""
    w = world(models=models, samples=samples, size=size * max(numbers), memory=memory, seed=seed)
    found = []
    for number, share in zip(numbers, left, strict=True):
        forget = w.forget & (np.cumsum(w.forget, axis=1) <= number * size)
        train = np.where(forget, w.original.train + memory * (share - 1), w.original.train)
        after = said(train, w.original.test, w.original.kept & ~forget)
        found.append(Trials(w.ids, forget, w.original, after, w.retrained, w.reference))
    return found


@pytest.mark.parametrize(("size", "left", "models"), [(10, 0.3, 24), (None, 0.1, 32), (3, 0.6, 64), (1, 0.0, 12)])
def test_numbers_are_those_of_sums_by_hand(size, left, models):
    w = world(models=models, size=size, left=left, samples=120, seed=3)
    g, floors, before = (by_hand(w, m) for m in (w.unlearned, w.retrained, w.original))
    found = size_of(w)
    floor = max(abs(x) for x in floors)
    assert found.floor == pytest.approx(floor, rel=1e-9)
    assert found.requests == models
    assert found.n == (size or round(float(np.median([row.sum() for row in w.forget]))))
    assert (found.failed, found.failed_original) == tuple(sum(abs(x) > floor for x in xs) for xs in (g, before))
    half = distributions.t.ppf(0.975, models - 1) * distributions.sem(g)
    assert (found.gap.x, found.gap.low, found.gap.high, found.gap.n) == pytest.approx(
        (np.mean(g), np.mean(g) - half, np.mean(g) + half, models)
    )
    ends = lower(found.failed, models, 0.025), upper(found.failed, models, 0.025)
    assert (found.rate.x, found.rate.low, found.rate.high) == pytest.approx((found.failed / models, *ends), abs=1e-9)
    assert found.caught == pytest.approx(lower(found.failed_original, models, 0.05), abs=1e-9)
    assert found.by_chance == 1 / (models + 1)


@pytest.mark.parametrize(("models", "share", "confidence"), [(28, 0.9, 0.95), (30, 0.9, 0.95), (64, 0.9, 0.9)])
def test_bounds_are_order_statistics_or_say_how_many_requests_they_need(models, share, confidence):
    w = world(models=models, size=5, left=0.4, samples=100)
    found = size_of(w, share=share, confidence=confidence)
    j = next((j for j in range(1, models + 1) if at_most(j - 1, models, share) >= confidence), None)
    for bound, group in ((found.bound, w.unlearned), (found.bound_retrained, w.retrained)):
        want = None if j is None else sorted(abs(x) for x in by_hand(w, group))[j - 1]
        assert bound == (None if want is None else pytest.approx(want, rel=1e-9))
    assert (found.needed, j is None) == ((29, True) if models == 28 else (None, False))


def test_accuracy_is_that_of_each_models_own_original():
    w = world(models=12, size=10, samples=120)
    rng = np.random.default_rng(2)
    after = Said(
        w.unlearned.train, w.unlearned.test, w.unlearned.kept,
        w.original.right & (rng.random(w.forget.shape) < 0.9),
        w.original.right_test & (rng.random((12, 60)) < 0.8),
    )  # fmt: skip
    found = size_of(w.instead(after))
    stay = [np.flatnonzero(w.original.kept[t] & ~w.forget[t]) for t in range(12)]
    retain = [sum(int(after.right[t, i]) - int(w.original.right[t, i]) for i in s) / 50 for t, s in enumerate(stay)]
    test = [(after.right_test[t].sum() - w.original.right_test[t].sum()) / 60 for t in range(12)]
    assert {len(s) for s in stay} == {50}
    for interval, values in ((found.retain, retain), (found.test, test)):
        half = distributions.t.ppf(0.975, 11) * distributions.sem(values)
        assert (interval.x, interval.low, interval.high) == pytest.approx(
            (np.mean(values), np.mean(values) - half, np.mean(values) + half)
        )
        assert interval.x < -0.03
    without = [replace_right(m) for m in (w.original, w.unlearned, w.retrained, w.reference)]
    plain = size_of(Trials(w.ids, w.forget, *without))
    assert (plain.test, plain.retain) == (None, None)
    assert plain.failed == size_of(w).failed


def replace_right(models):
    return replace(models, right=None, right_test=None)


def test_what_is_forgotten_well_fails_seldom_and_what_was_not_touched_always():
    clean, none = size_of(world(models=64, size=10)), size_of(world(models=64, size=10, left=1.0))
    assert clean.failed <= 5
    assert clean.bound is not None
    assert clean.bound <= 1.3 * clean.floor
    assert abs(clean.gap.x) < 0.2
    assert none.failed == none.failed_original == clean.failed_original == 64
    assert none.floor == clean.floor
    assert none.bound > 2
    assert none.gap.low > 1.8
    assert not clean.blind
    assert not none.blind
    again = world(models=64, size=10)
    assert size_of(again.instead(again.retrained)).failed == 0  # nobody is above the largest of the same models


def test_a_gap_below_the_retrained_fails_as_well():
    w = world(models=32, size=10, left=-1.0)  # as far below as the original is above
    found = size_of(w)
    assert found.gap.high < -1.8
    assert found.failed == 32
    assert found.bound == pytest.approx(max(abs(x) for x in by_hand(w, w.unlearned)), rel=1e-9)  # of 32 the largest


def test_a_size_at_which_the_untouched_model_is_not_seen_is_blind():
    small = size_of(world(models=64, size=1, memory=0.5, left=1.0))
    assert small.blind
    assert small.failed_original == small.failed < 16  # so that few failures say nothing
    assert small.rate.high < 0.4
    assert not size_of(world(models=64, size=20, memory=2.0)).blind
    for n, k, blind in ((5, 5, False), (4, 4, True), (64, 40, False), (64, 39, True)):
        found = replace(small, caught=clopper_pearson(k, n, 0.9).low)
        assert found.blind == (lower(k, n, 0.05) <= 0.5) == blind, (n, k)


def drawn(count, requests, left, *, size=10, shift=0.0, seed=0):
    """Return failures and the true rate given the floor, of gaps drawn as `worlds` plants them, (count,) each.

    ``shift`` is the deviation of a noise that all samples of a model share, the unlearned with its original.
    """
    rng = np.random.default_rng(seed)
    models = rng.normal(0, shift, (count, requests))
    noise = math.sqrt((1 + 1 / (requests / 2 - 1)) / size)
    g = models + 2 * left + rng.normal(0, noise, (count, requests))
    floor = np.abs(models[:, np.arange(requests) ^ 1] + rng.normal(0, noise, (count, requests))).max(axis=1)
    law = distributions.norm(2 * left, math.hypot(shift, noise))
    return (np.abs(g) > floor[:, None]).sum(axis=1), law.sf(floor) + law.cdf(-floor)


@pytest.mark.parametrize("shift", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("left", [0.0, 0.15, 0.3])
def test_the_interval_covers_the_rate_given_the_floor(left, shift):
    for requests in (24, 64):
        failed, truth = drawn(1000, requests, left, shift=shift, seed=int(100 * left))
        ends = {k: clopper_pearson(k, requests) for k in range(requests + 1)}
        one = {k: clopper_pearson(k, requests, 0.9).high for k in range(requests + 1)}
        covered = sum(ends[k].low <= p <= ends[k].high for k, p in zip(failed, truth, strict=True))
        assert clopper_pearson(int(covered), 1000, 0.999).high >= 0.95
        above = sum(p <= one[k] for k, p in zip(failed, truth, strict=True))
        assert clopper_pearson(int(above), 1000, 0.999).high >= 0.95


def test_planted_worlds_fail_as_often_as_the_numbers_drawn():
    """The simulation above stands for `size_of`: same rate at partial memory, and chance alone at none."""
    for left in (0.0, 0.3):
        rates = [size_of(trials(size=10, left=left, samples=80, unseen=2, seed=s)).rate.x for s in range(150)]
        failed, _ = drawn(4000, 24, left)
        error = math.hypot(np.std(rates) / math.sqrt(150), np.std(failed / 24) / math.sqrt(4000))
        assert abs(np.mean(rates) - np.mean(failed / 24)) < 3.5 * error
    failed, truth = drawn(20_000, 64, 0.0)
    assert truth.mean() == pytest.approx(1 / 65, rel=0.03)
    assert failed.mean() / 64 == pytest.approx(1 / 65, rel=0.03)
    for k in range(4):  # none with a chance of a half, and each further one with half of that
        assert (failed == k).mean() == pytest.approx(0.5 ** (k + 1), abs=0.02)
    kept, _ = drawn(20_000, 64, 0.0, shift=3.0)
    assert kept.mean() / 64 < 0.75 / 65  # where a model's noise stays with it, fewer


def test_the_tolerance_bound_of_requests_covers_the_share():
    held, short = 0, 0
    law = distributions.norm(0.6, math.sqrt((1 + 1 / 15) / 10))  # of G: 0.3 of 2 left, and 15 others of a sample
    for seed in range(200):
        w = trials(models=32, size=10, left=0.3, samples=80, unseen=2, seed=seed)
        bound = size_of(w).bound
        held += law.cdf(bound) - law.cdf(-bound) >= 0.9
        plain = np.quantile(np.abs(w.unlearned_gaps.mean("forget")), 0.9)
        short += law.cdf(plain) - law.cdf(-plain) >= 0.9
    want = 1 - 0.9**32  # the largest of 32 is above the quantile
    assert clopper_pearson(held, 200, 0.999).low <= want <= clopper_pearson(held, 200, 0.999).high
    assert clopper_pearson(short, 200, 0.999).high < 0.9


def test_a_row_is_judged_by_the_floor_of_each_number():
    steps = row([1, 2, 4, 8], [0.0, 0.1, 0.15, 0.5])
    found = in_row(steps, [1, 2, 4, 8])
    assert found.tried == (1, 2, 4, 8)
    assert (found.n, found.requests) == (6, 64)
    for i, step in enumerate(steps):
        floor = max(abs(x) for x in by_hand(step, step.retrained))
        failed = sum(abs(x) > floor for x in by_hand(step, step.unlearned))
        before = sum(abs(x) > floor for x in by_hand(step, step.original))
        assert found.failed[i] == failed
        assert found.rates[i] == clopper_pearson(failed, 64)
        assert found.bounds[i] == pytest.approx(upper(failed, 64, 0.05), abs=1e-9)
        assert found.caught[i] == pytest.approx(lower(before, 64, 0.05), abs=1e-9)
    assert found.failed[0] <= 2 < found.failed[3]


@pytest.mark.parametrize(
    ("left", "longest"), [([0, 0, 0, 0], 8), ([0, 0, 0, 1], 4), ([0, 1, 0, 0], 1), ([1, 0, 0, 0], 0), ([1] * 4, 0)]
)
def test_longest_is_the_last_number_before_the_first_that_fails(left, longest):
    found = in_row(row([1, 2, 4, 8], left, seed=1), [1, 2, 4, 8])
    assert all(bound <= 0.1 for share, bound in zip(left, found.bounds, strict=True) if share == 0)
    assert all(bound > 0.9 for share, bound in zip(left, found.bounds, strict=True) if share == 1)
    assert found.longest == longest
    if longest == 8:
        assert found.text == (
            "After 8 requests of 6 samples in a row at most 10 % of models are farther from retrained than every "
            "retrained one, with 95 % confidence."
        )
    elif longest:
        assert found.text.endswith(
            f" After {2 * longest} requests of 6 samples in a row 64 of 64 models were farther, which leaves a rate of "
            "100 % possible."
        )
        assert found.text.startswith(f"After {longest} request")
    else:
        assert found.text.startswith("Nothing can be claimed of requests of 6 samples in a row. After 1 request of 6 ")


def test_an_untouched_model_is_never_claimed_where_it_is_not_seen():
    numbers = [1, 2, 20]
    faint = row(numbers, [1, 1, 1], size=1, memory=0.4)  # nothing was done at all
    found = in_row(faint[:2], numbers[:2], floor_tolerance=0.3)
    assert found.bounds[0] <= 0.3
    assert found.longest == 0
    assert "Untouched models are not shown to be any farther from retrained" in found.text
    clean = in_row(row([1, 2, 16], [0, 0, 0], size=1, memory=2.0, seed=3), [1, 2, 16])
    assert clean.caught[0] <= 0.5 < clean.caught[2]
    assert max(clean.bounds) <= 0.1
    assert clean.longest == 16  # numbers at which nothing is seen are no evidence against it


def test_what_broke_the_row_is_said_beside_what_was_not_seen():
    faint = row([1, 2, 60], [1, 1, 1], size=1, memory=0.9)
    found = in_row(faint, [1, 2, 60], floor_tolerance=0.4)
    assert found.bounds[1] <= 0.4 < found.bounds[2]
    assert found.longest == 0
    assert found.text == (
        "Nothing can be claimed of requests of 1 sample in a row. Untouched models are not shown to be any farther "
        f"from retrained: the requests are too small. After 60 requests of 1 sample in a row {found.failed[2]} of 64 "
        f"models were farther, which leaves a rate of {100 * upper(found.failed[2], 64, 0.05):.3g} % possible."
    )


@pytest.mark.parametrize(("models", "longest"), [(28, 0), (30, 2)])
def test_too_few_requests_claim_nothing_and_say_how_many_do(models, longest):
    seeds = (
        s for s in range(20) if in_row(row([1, 2], [0, 0], size=10, models=models, seed=s), [1, 2]).failed == (0, 0)
    )
    found = in_row(row([1, 2], [0, 0], size=10, models=models, seed=next(seeds)), [1, 2])
    assert found.longest == longest
    assert found.needed == 29
    assert ("takes 29 simulated requests or more with 95 % confidence" in found.text) == (models == 28)
    assert found.bounds[0] == pytest.approx(1 - 0.05 ** (1 / models))
    assert replace(found, tolerance=0.05).needed == 59


def test_no_number_is_claimed_too_often_where_one_has_a_higher_rate():
    """Two numbers hold and the third fails a little more often than allowed: a claim of it is an error."""
    rng = np.random.default_rng(0)
    highs = np.array([clopper_pearson(k, 64, 0.9).high for k in range(65)])
    failed = rng.binomial(64, [0.01, 0.02, 0.101, 0.15], (20_000, 4))
    held = np.logical_and.accumulate(highs[failed] <= 0.1, axis=1)
    assert 0.02 < held[:, 2].mean() < 0.05


def test_plain_values():
    found = size_of(world(models=24, size=3, samples=80))
    body = json.loads(canonical(found.to_json()))
    assert set(body) == {
        "n", "requests", "gap", "floor", "bound", "bound_retrained", "needed", "failed", "rate", "by_chance",
        "failed_original", "caught", "blind", "test", "test_retrained", "retain",
    }  # fmt: skip
    assert body["gap"] == {"x": found.gap.x, "low": found.gap.low, "high": found.gap.high, "n": 24}
    assert (body["bound"], body["needed"], body["blind"]) == (None, 29, found.blind)
    assert isinstance(found, Size)
    bare = replace(found, test=None, gap=Interval(0.5, -math.inf, math.inf, 1)).to_json()
    assert bare["test"] is None
    assert bare["gap"] == {"x": 0.5, "low": None, "high": None, "n": 1}

    several = in_row(row([1, 2], [0, 0]), [1, 2])
    body = json.loads(canonical(several.to_json()))
    assert isinstance(several, InRow)
    assert set(body) == {
        "n", "requests", "tried", "failed", "rates", "bounds", "caught", "longest", "tolerance", "confidence", "text",
    }  # fmt: skip
    assert body["tried"] == [1, 2]
    assert body["rates"][1] == vars(several.rates[1])
    assert body["text"] == several.text


def spoiled(value, group="unlearned"):
    w = world(models=12, size=3, samples=60)
    models = getattr(w, group)
    train = models.train.copy()
    t, i = np.argwhere(w.forget)[0]
    train[t, i] = value
    return replace(w, **{group: replace(models, train=train)})


def same():
    w = world(models=12, size=3, samples=60)
    constant = replace(w.reference, train=np.zeros_like(w.reference.train))
    return replace(w, reference=constant, retrained=constant)


STEPS = row([1, 2], [0, 0])
OTHER = row([1, 2], [0, 0], models=24)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: size_of(STEPS[0], share=0.5), "a share of requests between 0.5 and 1, got 0.5"),
        (lambda: size_of(STEPS[0], share=90), "a share of requests between 0.5 and 1, got 90: write 90 % as 0.9"),
        (lambda: size_of(STEPS[0], confidence=0.05), "a confidence between 0.5 and 1, got 0.05"),
        (lambda: size_of(spoiled(math.nan)), "finite scores of all models, got 1 rows with others: leave out models"),
        (lambda: size_of(spoiled(math.inf, "original")), "finite scores of all models"),
        (lambda: size_of(spoiled(math.nan, "retrained")), "finite scores of all models"),
        (lambda: size_of(same()), "retrained models that differ, got gaps of 0"),
        (lambda: in_row([], []), "ascending numbers of requests from 1, got none"),
        (lambda: in_row(STEPS, [2, 1]), "ascending numbers of requests from 1, got 2, 1"),
        (lambda: in_row(STEPS, [0, 1]), "ascending numbers of requests from 1, got 0, 1"),
        (lambda: in_row(STEPS, [1, 1.5]), "ascending numbers of requests from 1, got 1, 1.5"),
        (lambda: in_row(STEPS, [1, 2, 4]), "trials of each of 3 numbers, got 2"),
        (lambda: in_row([STEPS[0], OTHER[1]], [1, 2]), "the same samples and originals at each number, got others"),
        (
            lambda: in_row(STEPS[::-1], [1, 2]),
            "all samples so far forgotten at each number, got a number at which fewer",
        ),
        (lambda: in_row(STEPS, [1, 2], floor_tolerance=0.5), "a tolerance between 0 and 0.5, got 0.5"),
        (lambda: in_row(STEPS, [1, 2], confidence=1.0), "a confidence between 0.5 and 1, got 1.0"),
    ],
)
def test_errors(call, match):
    with pytest.raises(UserError, match=match):
        call()


def test_what_retrained_models_lose_on_test_samples_stands_beside() -> None:
    t = trials(models=12, left=1.0, seed=3)
    assert t.retrained.right_test is not None
    assert t.original.right_test is not None
    change = t.retrained.right_test.mean(axis=1) - t.original.right_test.mean(axis=1)
    found = size_of(t)
    assert found.test_retrained is not None
    assert found.test is not None
    assert found.test_retrained.x == pytest.approx(change.mean())
    assert found.test.x == 0  # nothing was done to the unlearned ones
    assert found.to_json()["test_retrained"]["x"] == found.test_retrained.x
