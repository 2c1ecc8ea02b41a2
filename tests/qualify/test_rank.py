import math

import numpy as np
import pytest
from scipy import stats as distributions

from expunge.errors import UserError
from expunge.qualify.power import auc_samples
from expunge.qualify.rank import certified, least, left_out, rank_distance, rank_number, require, tail
from expunge.stats import auc, clopper_pearson


@pytest.mark.parametrize(("level", "side", "want"), [(0.05, "upper", 19), (0.05, "both", 39), (0.01, "lower", 99)])
def test_fewest_models_that_can_reject(level, side, want):
    assert least(level, side) == want
    others = np.arange(float(want))
    far = {"upper": 1e6, "lower": -1e6, "both": 1e6}[side]
    enough, short = (rank_number(far, o, side=side, level=level) for o in (others, others[1:]))
    assert enough.able
    assert enough.rejects
    assert enough.p == pytest.approx(level)
    assert not short.able
    assert not short.rejects
    require(want, level, side)
    with pytest.raises(UserError, match=f"at least {want} retrained models for the level {level:g}, got 5: train"):
        require(5, level, side)


def test_rank_counts_ties_as_extreme():
    others = [1.0, 2.0, 2.0, 3.0]
    upper, lower = (rank_number(2.0, others, side=s) for s in ("upper", "lower"))
    assert (upper.p, upper.extreme, upper.k) == (4 / 5, 3, 4)
    assert (lower.p, lower.extreme) == (4 / 5, 3)
    assert rank_number(2.0, others).p == 1.0
    assert rank_number(0.0, others).p == 2 / 5
    assert rank_number(0.0, others, side="upper").p == 1.0


@pytest.mark.parametrize("side", ["upper", "lower", "both"])
@pytest.mark.parametrize("ties", [False, True])
def test_conformal_p_is_uniform_or_larger(side, ties):
    k, trials = 19, 800
    z = np.random.default_rng(7).standard_cauchy((trials, k + 1))
    z = np.round(z) if ties else z
    p = np.array([rank_number(row[0], row[1:], side=side).p for row in z])
    for alpha in (0.05, 0.1, 0.25, 0.5):
        bounds = clopper_pearson(int((p <= alpha + 1e-9).sum()), trials, 0.999)
        assert bounds.low <= alpha
        if not ties and round(alpha * (k + 1)) % (2 if side == "both" else 1) == 0:
            assert bounds.high >= alpha  # without ties it is uniform on its grid, not only conservative


def slow_scores(z):
    return [math.dist(z[i], np.mean([z[j] for j in range(len(z)) if j != i], axis=0)) for i in range(len(z))]


def test_distances_leave_each_model_out_of_its_own_centre():
    z = np.random.default_rng(1).normal(size=(9, 4))
    assert left_out(z[None])[0] == pytest.approx(slow_scores(z))
    scores = slow_scores(z)
    found = rank_distance(z[0], z[1:])
    assert found.p == (1 + sum(s >= scores[0] for s in scores[1:])) / 9
    assert found.side == "upper"
    scaled = z * np.array([1, 1e3, 1, 1])
    plain = slow_scores((scaled - scaled.mean(axis=0)) / scaled.std(axis=0))
    assert rank_distance(scaled[0], scaled[1:], standardise=True).p == (
        1 + sum(s >= plain[0] for s in plain[1:])
    ) / 9  # fmt: skip
    flat = np.c_[z, np.full(9, 0.1)]
    assert rank_distance(flat[0], flat[1:], standardise=True).p == rank_distance(z[0], z[1:], standardise=True).p


def test_distance_ranks_hold_their_level_where_the_plain_distance_to_the_centre_does_not():
    k, trials, d = 19, 500, 40
    z = np.random.default_rng(2).normal(size=(trials, k + 1, d))
    own = sum(rank_distance(g[0], g[1:]).rejects for g in z)
    assert clopper_pearson(own, trials, 0.999).low <= 0.05 <= clopper_pearson(own, trials, 0.999).high
    naive = 0
    for g in z:
        away = np.linalg.norm(g - g[1:].mean(axis=0), axis=1)
        naive += bool((away[1:] < away[0]).all())
    assert clopper_pearson(naive, trials, 0.999).low > 0.05


def test_a_model_off_the_centre_is_found():
    z = np.random.default_rng(5).normal(size=(20, 10))
    z[0] += 4
    assert rank_distance(z[0], z[1:]).rejects
    assert rank_distance(z[1], z[1:]).p > 0.05


def test_an_edit_that_is_bad_on_one_in_twenty_samples_is_found_by_enough_of_them():
    trials, found = 120, {"tail": 0, "mean": 0, "auc": 0, "few": 0, "null": 0}
    n = auc_samples(0.0125)  # half of the 0.025 by which the AUC of 5 % of samples is off
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        bad = np.where(rng.random(1000) < 0.05, 3.0, 0.0) + rng.normal(size=1000)
        good, unseen = rng.normal(size=(2, 1000))
        found["tail"] += tail(bad, unseen).p <= 0.05
        found["null"] += tail(good, unseen).p <= 0.05
        found["few"] += tail(bad[:30], unseen[:30]).p <= 0.05
        found["mean"] += abs(bad.mean() - unseen.mean()) > 0.3  # a margin of a third of a spread lets it through
        if seed < 25:
            many, others = rng.normal(size=(2, n))
            many[rng.random(n) < 0.05] += 6.0
            found["auc"] += auc(many, others).low > 0.5
    assert clopper_pearson(found["tail"], trials, 0.999).high >= 0.95
    assert found["tail"] >= 0.95 * trials
    assert found["auc"] >= 24
    assert clopper_pearson(found["null"], trials, 0.999).low <= 0.05
    assert found["few"] < trials / 2
    assert found["mean"] == 0


def test_tail_is_the_hypergeometric_test_of_a_table():
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.5, 1, 40), rng.normal(0, 1, 60)
    found = tail(a, b, share=0.1)
    last = sorted([*a, *b])[-10]
    table = [[int((a >= last).sum()), int((a < last).sum())], [int((b >= last).sum()), int((b < last).sum())]]
    assert found.p == pytest.approx(distributions.fisher_exact(table, alternative="greater").pvalue)
    assert (found.count, found.highest, found.n) == (table[0][0], 10, 40)
    assert tail(np.arange(40.0) + 100, b, share=0.1).p == pytest.approx(tail(a, b, share=0.1).floor)
    assert tail([1.0] * 5, [1.0] * 5).p == 1.0  # all tie, all are the highest


@pytest.mark.parametrize(
    ("passes", "trials", "level", "right"), [(16, 500, 0.05, True), (17, 500, 0.05, False), (0, 58, 0.05, False),
     (0, 59, 0.05, True), (2, 500, 0.01, False), (1, 500, 0.01, True)]
)  # fmt: skip
def test_certified(passes, trials, level, right):
    assert certified(passes, trials, level) == right
    assert (distributions.binom.cdf(passes, trials, level) <= 0.05) == right  # the test whose bound this is


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: rank_number(1.0, []), "finite numbers of retrained models, got none"),
        (lambda: rank_number(math.nan, [1.0]), "finite numbers of the unlearned model"),
        (lambda: rank_number(1.0, [1.0], side="uper"), "a side of the rank, got 'uper': did you mean 'upper'"),
        (lambda: least(0.0), "a level between 0 and 0.5, got 0.0"),
        (lambda: rank_distance([1.0], [[1.0, 2.0]]), r"rows of its width, got \(1,\) and \(1, 2\)"),
        (lambda: rank_distance([math.inf], [[1.0]]), "finite vectors"),
        (lambda: tail([1.0], [2.0], share=1.0), "a share between 0 and 1, got 1.0"),
        (lambda: certified(5, 4), "0 <= successes <= n"),
    ],
)
def test_errors(call, match):
    with pytest.raises(UserError, match=match):
        call()
