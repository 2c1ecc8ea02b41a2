"""Weight distance: by hand, by tensor, and not between other networks."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from expunge.metric import Audit, Unavailable, Value
from expunge.metrics import load
from expunge.metrics import weights as module
from expunge.metrics.weights import distances, norm
from expunge.scenario import Scenario
from expunge.task import Regression
from worlds import network

NEAR, SCALED, MOVED = "weights/to_retrained", "weights/to_retrained_normalised", "weights/to_original"


def vector(*values: float) -> nn.Module:
    made = nn.Linear(len(values), 1, bias=False)
    made.weight.data = torch.tensor([values], dtype=torch.float64)
    return made


def audit(**models: nn.Module) -> Audit:
    return Audit(evidence={}, models=models, task=Regression(), scenario=Scenario(train=("a", "b"), forget=("a",)))


def found(**models: nn.Module) -> dict[str, Any]:
    return load("weights")()(audit(**models))


def test_known_answers() -> None:
    values = found(model=vector(1, 2, 2), retrained=vector(1, 1, 0), original=vector(1, 2, 5))
    assert values[NEAR] == Value.single(math.sqrt(5), "L2")
    assert values[NEAR].x == pytest.approx(2.2360680, abs=1e-7)
    assert values[SCALED].x == pytest.approx(0.7453560, abs=1e-7)
    assert values[MOVED].x == 3.0


def test_the_norm_is_the_models_so_that_only_the_plain_distance_is_symmetric() -> None:
    there = found(model=vector(1, 2, 2), retrained=vector(1, 1, 0))
    back = found(model=vector(1, 1, 0), retrained=vector(1, 2, 2))
    assert there[NEAR] == back[NEAR]
    assert back[SCALED].x == pytest.approx(math.sqrt(5 / 2))


def test_tensors_add_up_in_squares_and_buffers_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    one, other = network(), network()
    one[1].running_mean += 3.0
    given = audit(model=one, retrained=other)
    total = load("weights")()(given)[NEAR].x
    want = {
        name: float((p.detach().double() - q.detach().double()).norm())
        for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True)
    }
    layers = given.kept.series["weights/layers"]
    assert {k: v.x for k, v in layers.items() if isinstance(v, Value)} == pytest.approx(want, rel=1e-12)
    assert total == pytest.approx(math.sqrt(sum(v * v for v in want.values())), rel=1e-12)
    assert given.kept.series["weights/buffers"]["1.running_mean"] == Value.single(6.0, "L2")
    assert "1.running_mean" not in layers
    monkeypatch.setattr(module, "BLOCK", 5)
    assert distances(one, other) == pytest.approx(want, rel=1e-12)
    assert norm(one) == pytest.approx(
        math.sqrt(sum(float(p.detach().double().square().sum()) for p in one.parameters()))
    )


def test_a_copy_is_at_no_distance_and_the_original_is_as_far_as_retraining_went() -> None:
    torch.manual_seed(0)
    retrained, original = network(), network()
    values = found(model=copy.deepcopy(retrained), retrained=retrained, original=original)
    assert values[NEAR].x == values[SCALED].x == 0.0
    reference = found(model=retrained, retrained=retrained, original=original)
    assert reference[NEAR] == reference[SCALED] == Unavailable("it is the reference itself")
    assert reference[MOVED] == values[MOVED]


def test_tied_weights_count_once_and_frozen_ones_count() -> None:
    class Tied(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
            self.a.weight.data = torch.eye(2) * scale
            self.b.weight = self.a.weight
            self.a.weight.requires_grad_(False)

    assert found(model=Tied(1.0), retrained=Tied(4.0))[NEAR].x == pytest.approx(math.sqrt(18))


def test_why_there_is_no_number() -> None:
    other = found(model=vector(1, 2), retrained=vector(1, 2, 3), original=nn.Linear(2, 2))
    assert other[NEAR] == other[SCALED] == Unavailable("it is another network than retrained")
    assert other[MOVED] == Unavailable("it is another network than the original")
    alone = found(model=vector(1, 2))
    assert alone[NEAR] == Unavailable("there is no retrained model to compare with")
    assert alone[MOVED] == Unavailable("there is no original model to compare with")
    zero = found(model=vector(0, 0), retrained=vector(3, 4))
    assert zero[NEAR].x == 5.0
    assert zero[SCALED] == Unavailable("all weights of the model are zero")
    for bad in (math.nan, math.inf):
        assert found(model=vector(1, bad), retrained=vector(1, 2))[NEAR] == Unavailable(
            "a weight is infinite or not a number"
        )
    assert found(model=nn.ReLU(), retrained=nn.ReLU())[NEAR] == Unavailable("the model has no parameters")
