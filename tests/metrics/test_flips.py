"""Flips: counted by hand, and their difference is the change of accuracy."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from expunge import stats
from expunge.evidence import Outputs
from expunge.metric import Unavailable, Value
from expunge.metrics import load
from expunge.task import Regression
from pairs import audit, noise, said, taken

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
# By sample, who is right:            original  1 1 1 1 1 0 0 0
BEFORE, NOW, AGAIN = "11111000", "10111110", "11011011"


def answers(right: str) -> Outputs:
    wrong = torch.tensor([c == "0" for c in right]).long()
    return said(F.one_hot((LABELS + wrong) % 3, 3).double(), LABELS)


def both(right: str) -> dict[str, Outputs]:
    return {"retain": answers(right), "test": answers(right)}


def test_known_answers_and_gaps_paired_by_sample() -> None:
    given = audit(both(NOW), both(AGAIN), both(BEFORE))
    found = load("flips")()(given)
    for split in ("retain", "test"):
        lost, gained = found[f"flips/lost/{split}"], found[f"flips/gained/{split}"]
        assert lost == Value.of(stats.wilson(1, 8))
        assert gained == Value.of(stats.wilson(2, 8))
        gap = given.kept.gaps[f"flips/lost/{split}"]
        assert gap == Value.of(stats.paired_proportions([0, 1] + [0] * 6, [0, 0, 1] + [0] * 5))
        assert gap.x == 0.0
        assert gap.low < 0 < gap.high
        assert given.kept.gaps[f"flips/gained/{split}"].x == 0.0  # other samples, as many


def test_gained_minus_lost_is_the_change_of_accuracy() -> None:
    labels = torch.arange(60) % 4
    before, now = ({"test": said(noise(60, 4, seed=s), labels)} for s in (0, 1))
    given = audit(now, None, before)
    found = load("flips")()(given)
    change = [float((o["test"].prediction == labels).double().mean()) for o in (now, before)]
    assert found["flips/gained/test"].x - found["flips/lost/test"].x == pytest.approx(change[0] - change[1])
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    moved = load("flips")()(audit(taken(now, order), None, taken(before, order)))
    assert moved == found
    assert given.kept.gaps == {}


def test_the_original_flips_nothing_against_itself() -> None:
    found = load("flips")()(audit(both(BEFORE), None, both(BEFORE)))
    assert {v.x for v in found.values()} == {0.0}
    assert found["flips/lost/test"].high > 0.2  # none of eight is no proof of none


def test_why_there_is_no_number() -> None:
    alone = load("flips")()(audit(both(NOW)))
    assert set(alone.values()) == {Unavailable("there is no original model to compare with")}
    bare = {"test": said(noise(8, 3))}
    found = load("flips")()(audit(bare, None, bare))
    assert found["flips/lost/test"] == Unavailable("test has no labels")
    assert found["flips/lost/retain"] == Unavailable("there are no samples in retain")
    regression = load("flips")()(audit(both(NOW), None, both(BEFORE), task=Regression()))
    assert set(regression.values()) == {Unavailable("the task has no classes")}
    other = {"test": said(noise(8, 5), LABELS)}
    found = load("flips")()(audit({"test": answers(NOW)}, None, other))
    assert found["flips/gained/test"] == Unavailable("original has other outputs: (5,) instead of (3,) a sample")
