"""Whose scores and decisions moved: by hand, by simulation, and through an evaluation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from expunge import stats
from expunge.data import Data
from expunge.errors import UserError
from expunge.evaluate import evaluate
from expunge.evidence import Outputs
from expunge.metric import Audit, Unavailable, Value
from expunge.metrics.segments import Segments
from expunge.scenario import forget_ids
from expunge.task import Binary, Classification, MultiLabel, Quantile, Regression
from pairs import audit, noise, said
from worlds import QUIET

SCORE, RATE = "segments/score_change", "segments/rate_change"
TASK = Binary()


def binary(chance: np.ndarray, y: list[int]) -> Outputs:
    z = torch.from_numpy(np.log(chance / (1 - chance)))[:, None]
    target = torch.tensor(y)
    return Outputs(z, TASK.predictions(z), target, TASK.loss(z, target), classes=TASK.class_logits(z))


def given(now: Outputs, before: Outputs, columns: dict[str, list[Any]], task: Any = TASK) -> Audit:
    n = len(now)
    data = {"test": Data.from_arrays(torch.zeros(n, 1), torch.zeros(n), columns=columns, name="test")}
    return audit({"test": now}, original={"test": before}, task=task, data=data)


PLACES = ["north"] * 20 + ["south"] * 30 + ["west"] * 5
LABELS = [0, 1] * 27 + [0]


def test_changes_by_hand() -> None:
    """The north falls by 0.1 on average, the south rises by 0.05; the west has too few to say."""
    before = np.concatenate([np.full(20, 0.55), np.full(30, 0.4), np.full(5, 0.1)])
    step = np.concatenate([np.tile([-0.08, -0.12], 10), np.tile([0.04, 0.06], 15), np.full(5, 0.8)])
    audited = given(binary(before + step, LABELS), binary(before, LABELS), {"place": PLACES})
    found, series = Segments()(audited), audited.kept.series
    assert set(series) == {
        "segments/label",
        "segments/label/rate",
        "segments/place",
        "segments/place/rate",
    }
    places, rates = series["segments/place"], series["segments/place/rate"]
    assert {at: v.x for at, v in places.items() if isinstance(v, Value)} == pytest.approx(
        {"north": -0.1, "south": 0.05}
    )
    assert {at: v.x for at, v in rates.items() if isinstance(v, Value)} == pytest.approx({"north": -1.0, "south": 0.0})
    assert places["west"] == rates["west"] == Unavailable("fewer than 10 samples: 5")
    score, rate = found[SCORE], found[RATE]
    assert isinstance(score, Value)
    assert isinstance(rate, Value)
    assert (score.x, score.n, score.unit) == (pytest.approx(0.1), 20, "1")
    north = stats.mean_t(step[:20], level=1 - 0.05 / 4)  # two places and two classes
    assert score.low == pytest.approx(-north.high)
    classes = [stats.mean_t(step[at::2], level=1 - 0.05 / 4) for at in (0, 1)]
    assert score.high == pytest.approx(max(-north.low, *(max(-i.low, i.high) for i in classes)))
    assert (rate.x, rate.n) == (1.0, 20)


def test_of_a_regression_the_mean_prediction_is_the_score() -> None:
    before, step = noise(55, 2), torch.tensor(np.where(np.asarray(PLACES) == "south", 3.0, 0.5))[:, None]
    task: Regression | Quantile
    for task in (Regression(), Quantile()):
        if isinstance(task, Quantile):
            sides = [torch.stack([v - 1, v, v + 1], dim=2) for v in (before + step, before)]
        else:
            sides = [before + step, before]
        own, was = (Outputs(v, task.predictions(v)) for v in sides)
        found = Segments()(given(own, was, {"place": PLACES}, task))
        score = found[SCORE]
        assert isinstance(score, Value)
        assert (score.x, score.n, score.unit) == (pytest.approx(3.0), 30, "target units")
        assert found[RATE] == Unavailable("the task has not two classes")


@pytest.mark.parametrize("harm", [0.0, 0.2])
def test_the_interval_covers_the_largest_change_of_many_segments(harm: float) -> None:
    random, missed, ordinary = np.random.default_rng(5), 0, 0
    places = [f"g{i % 12}" for i in range(360)]
    harmed = np.asarray([p == "g3" for p in places])
    for _ in range(200):
        before = random.uniform(0.5, 0.7, 360)
        now = before + random.normal(0, 0.05, 360) - harm * harmed
        audited = given(binary(now, [0] * 360), binary(before, [0] * 360), {"place": places})
        value = Segments()(audited)[SCORE]
        assert isinstance(value, Value)
        missed += not value.low <= harm <= value.high
        one = max(audited.kept.series["segments/place"].values(), key=lambda v: abs(v.x))  # type: ignore[union-attr]
        ordinary += not one.low <= -harm <= one.high  # type: ignore[union-attr]
    assert missed <= 0.05 * 200
    if harm == 0:
        assert ordinary > 0.15 * 200


def test_without_a_number_there_is_a_reason() -> None:
    own = binary(np.full(55, 0.4), LABELS)
    alone = Segments()(audit({"test": own}, task=TASK))
    assert set(alone.values()) == {Unavailable("there is no original model to compare with")}
    few = own.take(torch.arange(9))
    small = Segments()(given(few, few, {"place": PLACES[:9]}))
    assert set(small.values()) == {Unavailable("no segment has 10 samples")}
    wide = said(noise(55, 3), torch.arange(55) % 3)
    assert set(Segments()(given(wide, wide, {}, Classification())).values()) == {
        Unavailable("the task has not two classes")
    }
    many = Outputs(noise(55, 3), (noise(55, 3) > 0).long())
    assert set(Segments()(given(many, many, {"place": PLACES}, MultiLabel())).values()) == {
        Unavailable("the task has neither two classes nor real targets")
    }
    none = replace(given(own, own, {}), evidence={})
    assert set(Segments()(none).values()) == {Unavailable("there are no samples in test")}
    with pytest.raises(UserError, match=r"segments.threshold in \[0, 1\), got -1"):
        Segments(threshold=-1)


class Lower(nn.Module):
    """A score of the first number, lowered where the second is above 0."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[2.0]]))
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] * self.weight - self.by * (x[:, 1:2] > 0)


def test_the_segment_that_pays_is_named_through_evaluate() -> None:
    x = noise(400, 2).float()
    y = (x[:, 0] > 0).float()
    columns = {"category": ["online" if v > 0 else "shop" for v in x[:, 1].tolist()]}
    train, test = (
        Data.from_arrays(x[at], y[at], columns={k: v[at] for k, v in columns.items()}, name=name)
        for name, at in (("train", slice(0, 100)), ("test", slice(100, 400)))
    )
    models = {"original": Lower(0.0), "edited": Lower(1.5)}
    case = forget_ids(train, train.ids[:20])
    names = ["segments", "decisions", "stability", "subgroups"]
    scores = evaluate(models, TASK, train=train, test=test, scenario=case, metrics=names, runtime=QUIET)
    changes = scores.series["edited"]["segments/category"]
    assert changes["online"].high < -0.1  # type: ignore[union-attr]
    assert changes["shop"].x == 0  # type: ignore[union-attr]
    assert scores["edited"][SCORE].x == pytest.approx(-changes["online"].x)  # type: ignore[union-attr]
    assert scores["edited"][RATE].low > 0.05  # type: ignore[union-attr]
    assert scores["no_op"][SCORE].x == scores["no_op"][RATE].x == 0  # type: ignore[union-attr]
    assert scores["no_op"]["decisions/flipped/original"].x == 0  # type: ignore[union-attr]
    assert scores["edited"]["stability/original/test"].low > 0.02  # type: ignore[union-attr]
    assert scores["edited"]["subgroups/worst_change"].high < 0  # type: ignore[union-attr]
