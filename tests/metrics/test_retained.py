"""Those who stay: known as members, and the drop that tells who was deleted."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from expunge.evidence import Outputs
from expunge.metric import Found, Unavailable, Value
from expunge.metrics.retained import Retained
from expunge.task import Regression
from pairs import audit, noise, said


def margins(m: torch.Tensor) -> Outputs:
    logits = torch.stack([m.double(), torch.zeros(len(m), dtype=torch.float64)], dim=1)
    return said(logits, torch.zeros(len(m), dtype=torch.long))


def splits(seed: int, n: int = 200, gone: float = 0.0, kept: float = 0.0) -> dict[str, Outputs]:
    """Return margins of a model that knows forgotten samples worse by ``gone``, retained ones better by ``kept``."""
    hard = {split: 2 * noise(n, seed=900 + at) for at, split in enumerate(("forget", "retain", "test"))}
    moved = {"forget": -gone, "retain": kept, "test": 0.0}
    return {s: margins(h + moved[s] + 0.3 * noise(n, seed=seed + at)) for at, (s, h) in enumerate(hard.items())}


def value(found: Found, name: str) -> Value:
    got = found[name]
    assert isinstance(got, Value), got
    return got


def slow(members: list[float], others: list[float]) -> float:
    return sum((a > b) + (a == b) / 2 for a, b in product(members, others)) / len(members) / len(others)


def test_both_are_shares_of_pairs() -> None:
    own, before = splits(0, n=30, gone=1.0, kept=0.5), splits(50, n=30)
    found = Retained()(audit(own, original=before))
    p = {s: o.logits.softmax(dim=1)[:, 0].tolist() for s, o in own.items()}
    assert value(found, "retained/auc").x == pytest.approx(slow(p["retain"], p["test"]), abs=1e-12)
    drop = {s: (before[s].logits[:, 0] - own[s].logits[:, 0]).tolist() for s in ("forget", "retain")}
    assert value(found, "retained/drop_auc").x == pytest.approx(slow(drop["forget"], drop["retain"]), abs=1e-12)
    assert value(found, "retained/drop_auc").n == 60


def test_who_was_deleted_stands_out_by_the_drop_and_those_who_stay_by_their_confidence() -> None:
    before = splits(50)
    plain = Retained()(audit(splits(0), original=before))
    for name in ("retained/auc", "retained/drop_auc"):
        assert value(plain, name).low < 0.5 < value(plain, name).high
    found = Retained()(audit(splits(0, gone=2.0), original=before))
    assert value(found, "retained/drop_auc").low > 0.95
    assert found["retained/auc"] == plain["retained/auc"]  # of the retained nothing changed
    found = Retained()(audit(splits(0, kept=2.0), original=before))
    assert value(found, "retained/auc").low > 0.65
    rise = Retained()(audit(splits(0, gone=-2.0), original=before))
    assert value(rise, "retained/drop_auc").high < 0.05  # not folded


def test_unseen_samples_are_of_the_kinds_that_stay() -> None:
    own = splits(0, n=40)
    kind = {"test_forget": own["test"].take(torch.arange(20)), "test_retain": own["test"].take(torch.arange(20, 40))}
    given = audit({**own, **kind}, kind="class", target=1)  # whose retained samples are of class 0
    p = {s: o.logits.softmax(dim=1)[:, 0].tolist() for s, o in {**own, **kind}.items()}
    found = value(Retained()(given), "retained/auc").x
    assert found == pytest.approx(slow(p["retain"], p["test_retain"]), abs=1e-12)
    assert found != pytest.approx(slow(p["retain"], p["test"]), abs=1e-3)


def test_reasons() -> None:
    own = splits(0, n=10)
    found = Retained()(audit(own))
    assert found["retained/drop_auc"] == Unavailable("there is no original model to compare with")
    assert isinstance(found["retained/auc"], Value)
    found = Retained()(audit(own, original=own))
    assert found["retained/drop_auc"] == Unavailable("all scores are equal")
    found = Retained()(audit({s: o for s, o in own.items() if s != "test"}, original=splits(50, n=10)))
    assert found["retained/auc"] == Unavailable("there are no samples in test")
    assert isinstance(found["retained/drop_auc"], Value)
    bare = replace(own["retain"], target=None, loss=None)
    assert set(Retained()(audit({**own, "retain": bare})).values()) == {Unavailable("retain has no labels")}
    real = audit(own, task=Regression())
    assert set(Retained()(real).values()) == {Unavailable("the task has no classes")}
    few = {**own, "retain": own["retain"].take(torch.arange(1))}
    assert Retained()(audit(few))["retained/auc"] == Unavailable("needs 2 samples on each side, has 1 and 10")
