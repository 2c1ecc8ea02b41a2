"""Where a forgotten class goes: shares counted by hand, and the distance of two sets of answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from expunge import stats
from expunge.evidence import Outputs
from expunge.metric import Unavailable, Value
from expunge.metrics import load
from expunge.metrics.predictions import distance
from expunge.summary import _series
from expunge.task import Regression
from pairs import audit, said

SPREAD, ONE = [1, 1, 2, 2, 2, 5, 5, 7, 8, 9], [9] * 10


def answers(labels: list[int], forgotten: int = 3) -> dict[str, Outputs]:
    """Return ten logits a sample that say these classes, of unseen samples of the forgotten class."""
    there = said(F.one_hot(torch.tensor(labels), 10).double(), torch.full((len(labels),), forgotten))
    return {"test_forget": there}


def test_all_to_one_class_is_told_from_answers_that_spread() -> None:
    given = audit(answers(ONE), answers(SPREAD), kind="class", target=3)
    found = load("predictions")()(given)
    assert found["predictions/one_class"].x == 1.0
    assert found["predictions/distance"].x == pytest.approx(0.9)
    assert given.kept.series["predictions/classes"][9] == Value.of(stats.wilson(10, 10))
    assert given.kept.series["predictions/classes"][3] == Value.of(stats.wilson(0, 10))
    again = load("predictions")()(audit(answers(SPREAD), answers(ONE), kind="class", target=3))
    assert again["predictions/one_class"].x == pytest.approx(0.3)
    assert again["predictions/distance"].x == pytest.approx(0.9)


def test_a_model_that_never_forgot_sends_its_class_nowhere() -> None:
    found = load("predictions")()(audit(answers([3] * 9 + [5]), answers(SPREAD), kind="class", target=3))
    assert found["predictions/one_class"].x == pytest.approx(0.1)
    assert found["predictions/distance"].x == pytest.approx(0.9)  # 0.9 of class 3 against none, 0.1 of 5 against 0.2


def test_the_interval_of_the_largest_holds_for_all_shares_together() -> None:
    found = load("predictions")()(audit(answers(SPREAD), kind="class", target=3))["predictions/one_class"]
    alone = stats.wilson(3, 10)
    assert found.low < alone.low < alone.high < found.high
    together = stats.wilson(3, 10, level=1 - 0.05 / 9)
    assert (found.low, found.high) == (together.low, together.high)


@pytest.mark.parametrize("seed", range(4))
def test_the_distance_is_half_the_sum_of_the_differences_of_the_shares(seed: int) -> None:
    draw = np.random.default_rng(seed)
    own, other = draw.integers(0, 7, 83), draw.integers(0, 5, 83)
    shares = [np.bincount(said, minlength=7) / 83 for said in (own, other)]
    found = distance(own, other, 7)
    assert found.x == pytest.approx(np.abs(shares[0] - shares[1]).sum() / 2)
    assert 0 <= found.low < found.x < found.high <= 1
    assert distance(own, own[draw.permutation(83)], 7).x == 0.0
    assert distance(other, own, 7).x == pytest.approx(found.x)


def test_why_there_is_no_number() -> None:
    alone = load("predictions")()(audit(answers(ONE), kind="class", target=3))
    assert alone["predictions/distance"] == Unavailable("there is no retrained model to compare with")
    assert alone["predictions/one_class"].x == 1.0
    other = load("predictions")()(audit(answers(ONE), answers(ONE), kind="subclass", target=None))
    assert set(other.values()) == {
        Unavailable("it asks where a class goes, and the forget set is of kind 'subclass'"),
    }
    unlike = load("predictions")()(audit({}, kind="class", target=3))
    assert set(unlike.values()) == {Unavailable("there are no samples in test_forget")}
    real = load("predictions")()(audit(answers(ONE), task=Regression(), kind="class", target=3))
    assert set(real.values()) == {Unavailable("the task has no classes")}


def test_classes_of_the_series_have_their_names_or_are_told_to_be_classes() -> None:
    given = audit(answers(ONE), kind="class", target=3)
    load("predictions")()(given)
    named = _series(given.kept.series, [f"digit {c}" for c in range(10)])["predictions/classes"]
    assert [point["at"] for point in named] == [f"digit {c}" for c in range(10)]
    assert [p["at"] for p in _series(given.kept.series, [])["predictions/classes"]][:2] == ["class 0", "class 1"]
