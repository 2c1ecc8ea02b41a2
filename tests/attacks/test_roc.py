"""Curves and rates against scikit-learn and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from expunge.attacks import _roc
from expunge.attacks.loss import LossThreshold
from expunge.errors import UserError
from expunge.evidence import Outputs
from expunge.metric import Unavailable

SCORES = st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=40)  # many ties


def stacked(members: list[float], others: list[float]) -> tuple[np.ndarray, np.ndarray]:
    return np.r_[np.ones(len(members)), np.zeros(len(others))], np.r_[members, others]


@settings(max_examples=80, deadline=None)
@given(members=SCORES, others=SCORES)
def test_curve_equals_scikit_learn(members: list[float], others: list[float]):
    fpr, tpr = _roc.curve(np.array(members), np.array(others))
    x, y, _ = roc_curve(*stacked(members, others), drop_intermediate=False)
    np.testing.assert_allclose(fpr, x, atol=1e-12)
    np.testing.assert_allclose(tpr, y, atol=1e-12)
    area = _roc.auc(np.array(members), np.array(others))
    if len({*members, *others}) == 1:
        assert area == Unavailable("all scores are equal")
        return
    assert area.x == pytest.approx(roc_auc_score(*stacked(members, others)), abs=1e-12)
    assert area.low - 1e-12 <= area.x <= area.high + 1e-12


@settings(max_examples=60, deadline=None)
@given(
    members=st.lists(st.integers(0, 60).map(float), min_size=1, max_size=30),
    others=st.lists(st.integers(0, 60).map(float), min_size=20, max_size=60),
    rate=st.sampled_from([0.05, 0.1, 0.25]),
)
def test_rate_equals_a_search_over_all_thresholds(members: list[float], others: list[float], rate: float):
    a, b = np.array(members), np.array(others)
    best = max(
        [float((a >= cut).mean()) for cut in np.r_[a, b, np.inf] if (b >= cut).mean() <= rate + 1e-12], default=0.0
    )
    found = _roc.tpr_at(a, b, rate)
    if len({*members, *others}) == 1:
        assert found == Unavailable("all scores are equal")
        return
    assert found.x == pytest.approx(best, abs=1e-12)
    interval = binomtest(round(best * len(a)), len(a)).proportion_ci(method="wilson")
    assert found.low <= interval.low + 1e-9
    assert found.high >= interval.high - 1e-9
    assert found.n == len(a)


def test_the_interval_of_a_rate_holds_the_error_of_its_threshold():
    """Of 1000 others 4 to 17 lie above the true threshold: the members above the 4th and the 18th largest."""
    others = np.arange(1000.0)
    members = np.r_[np.full(20, 998.5), np.full(10, 995.5), np.full(30, 985.5), np.full(40, 0.5)]
    found = _roc.tpr_at(members, others, 0.01)
    own = binomtest(30, 100).proportion_ci(method="wilson")
    assert found.x == 0.3
    assert found.low == pytest.approx(0.3 - np.hypot(0.3 - own.low, 0.1))
    assert found.high == pytest.approx(0.3 + np.hypot(own.high - 0.3, 0.3))
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        found = _roc.tpr_at(rng.normal(2, 1, 300), rng.normal(0, 1, 1000), 0.01)
        held += found.low <= 0.3721 <= found.high  # 1 − Φ(Φ⁻¹(0.99) − 2)
    assert held / 300 > 0.93


@pytest.mark.parametrize(("others", "defined"), [(99, False), (100, True), (101, True)])
def test_one_percent_needs_a_hundred_unseen_samples(others: int, defined: bool):
    found = _roc.tpr_at(np.arange(10.0) + 1000, np.arange(float(others)), 0.01)
    if defined:
        assert found.x == 1
    else:
        assert found == Unavailable("a false positive rate of 0.01 needs 100 unseen samples, there are 99")


def test_one_false_positive_in_a_hundred_is_allowed():
    others = np.arange(100.0)
    members = np.array([98.5, 97.5, 99.5, 10.0])
    assert _roc.tpr_at(members, others, 0.01).x == 0.5  # threshold above 98: one of 100 others passes
    assert _roc.tpr_at(np.empty(0), others, 0.01) == Unavailable("there are no members")
    assert isinstance(_roc.auc(np.array([1.0]), others), Unavailable)


def test_balanced_accuracy_of_noise_is_chance_as_often_as_its_interval_says():
    rng = np.random.default_rng(5)
    found = [_roc.balanced_accuracy(rng.normal(size=50), rng.normal(size=50), seed) for seed in range(300)]
    assert np.mean([v.low <= 0.5 <= v.high for v in found]) > 0.91


def test_balanced_accuracy_finds_a_planted_signal_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    others = rng.normal(size=900)
    planted = _roc.balanced_accuracy(rng.normal(size=100) + 3, others, seed=0)
    assert planted.x == pytest.approx(0.933, abs=0.04)  # Φ(1.5)
    assert planted.low > 0.85
    assert planted.n == 1000
    noise = _roc.balanced_accuracy(rng.normal(size=100), others, seed=0)
    assert noise.low < 0.5 < noise.high
    flipped = _roc.balanced_accuracy(rng.normal(size=100) - 3, others, seed=0)
    assert flipped.x > 0.85  # the regression finds the sign
    assert _roc.balanced_accuracy(np.zeros(9), others, seed=0) == Unavailable(
        "10 folds need 10 samples on each side, there are 9, 900"
    )


def test_loss_attack_scores_low_loss_high():
    loss = torch.tensor([0.1, 3.0])
    outputs = Outputs(torch.zeros(2, 3), torch.zeros(2), torch.zeros(2), loss)
    assert LossThreshold().score(outputs).tolist() == (-loss).tolist()
    with pytest.raises(UserError, match="labelled samples for the loss attack"):
        LossThreshold().score(Outputs(torch.zeros(2, 3), torch.zeros(2)))


@pytest.mark.parametrize(
    ("members", "others", "shift"), [(40, 900, 1.0), (300, 300, 0.1), (500, 60, -3.0), (12, 10, 0)]
)
def test_balanced_accuracy_is_that_of_scikit_learn(members: int, others: int, shift: float):
    rng = np.random.default_rng(members)
    a, b = np.sort(rng.normal(shift, 1, members)), np.sort(rng.normal(0, 1, others))
    x = (2 * rankdata(np.r_[a, b]) / (members + others) - 1)[:, None]
    y = np.r_[np.ones(members), np.zeros(others)]
    folds = StratifiedKFold(10, shuffle=True, random_state=7)
    model = LogisticRegression(class_weight="balanced", tol=1e-10, max_iter=10_000)
    guess = cross_val_predict(model, x, y, cv=folds)
    expected = ((guess[y == 1] == 1).mean() + (guess[y == 0] == 0).mean()) / 2
    assert _roc.balanced_accuracy(a, b, seed=7).x == pytest.approx(expected, abs=1e-12)
    order = rng.permutation(members)
    assert _roc.balanced_accuracy(a[order], b[::-1], seed=7) == _roc.balanced_accuracy(a, b, seed=7)


@settings(max_examples=60, deadline=None)
@given(
    members=st.lists(st.integers(-9, 9), min_size=1, max_size=30),
    others=st.lists(st.integers(-9, 9), min_size=1, max_size=200),
    scale=st.sampled_from([0.01, 0.1, 1.0]),
)
def test_the_line_minimises_the_balanced_loss(members: list[int], others: list[int], scale: float):
    """Newton's line is scikit-learn's, for classes apart and sizes far from equal too; a start does not move it."""
    x, y = scale * np.r_[members, others], np.arange(len(members) + len(others)) < len(members)
    weight, bias = _roc.line(x, y)
    model = LogisticRegression(class_weight="balanced", tol=1e-12, max_iter=100_000).fit(x[:, None], y)
    assert (weight, bias) == pytest.approx((model.coef_[0, 0], model.intercept_[0]), abs=2e-5)
    assert _roc.line(x, y, (weight + 1, bias - 2)) == pytest.approx((weight, bias), abs=1e-6)


def test_no_signal_at_all_is_not_a_number():
    equal = np.full(20, 3.0)
    assert _roc.balanced_accuracy(equal, equal, seed=0) == Unavailable("all scores are equal")


@pytest.mark.parametrize(("others", "defined"), [(999, False), (1000, True), (3000, True)])
def test_one_in_a_thousand_needs_a_thousand_unseen_samples(others: int, defined: bool):
    found = _roc.tpr_at(
        np.array([others - 0.5, others - 1.5, others - 3.5, others - 4.5]), np.arange(float(others)), 0.001
    )
    if not defined:
        assert found == Unavailable("a false positive rate of 0.001 needs 1000 unseen samples, there are 999")
    else:  # one false positive of 1000, three of 3000
        assert found.x == {1000: 0.5, 3000: 0.75}[others]


def test_scores_that_are_all_equal_tell_nothing_at_any_rate():
    same = np.zeros(100)
    assert _roc.tpr_at(same, same, 0.01) == Unavailable("all scores are equal")
    assert _roc.balanced_accuracy(same, same, 0) == Unavailable("all scores are equal")
    assert _roc.tpr_at(np.r_[same, 1.0], same, 0.01).x == pytest.approx(1 / 101)
