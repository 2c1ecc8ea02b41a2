"""Coverage and width of predicted intervals, by hand and by loops; steps, ends and crossing quantiles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from expunge import stats
from expunge.evidence import Outputs
from expunge.metric import Unavailable, Value
from expunge.metrics.coverage import Coverage
from expunge.task import Quantile, Regression
from pairs import audit, noise

TASK = Quantile()


def forecast(outputs: Tensor, target: Tensor, task: Quantile = TASK) -> Outputs:
    return Outputs(outputs, task.predictions(outputs), target, task.loss(outputs, target))


def number(outputs: Outputs, name: str = "coverage/test", task: Quantile = TASK) -> Value:
    value = Coverage()(audit({"test": outputs}, task=task))[name]
    assert isinstance(value, Value)
    return value


def test_ends_count_and_one_step_is_a_share() -> None:
    outputs = torch.tensor([[0.0, 1, 2]] * 4, dtype=torch.float64)
    value = number(forecast(outputs, torch.tensor([0.0, 2.0, 2.001, -0.001], dtype=torch.float64)))
    assert value == Value.of(stats.wilson(2, 4))


def test_of_several_steps_each_counts_by_itself() -> None:
    outputs, target = noise(30, 5, 3).sort(dim=2).values, noise(30, 5, seed=1)
    inside = [sum(outputs[i, t, 0] <= target[i, t] <= outputs[i, t, 2] for t in range(5)) / 5 for i in range(30)]
    value, width = number(forecast(outputs, target)), number(forecast(outputs, target), "coverage/width/test")
    want = stats.mean_t([float(v) for v in inside])
    assert (value.x, value.n) == (pytest.approx(want.x), 30)
    assert value.low == pytest.approx(max(0.0, want.low))
    assert width.x == pytest.approx(float((outputs[..., 2] - outputs[..., 0]).mean()))
    assert width.unit == "target units"


def test_true_quantiles_cover_what_they_say_and_crossing_ones_nothing() -> None:
    target = noise(4000)
    levels = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor([0.1, 0.5, 0.9])).double()
    right = forecast(levels.expand(4000, 3), target)
    value = number(right)
    assert value.low < 0.8 < value.high
    crossed = forecast(levels.flip(0).expand(4000, 3), target)
    assert number(crossed).x == 0
    assert number(crossed, "coverage/width/test").x == pytest.approx(-number(right, "coverage/width/test").x)


def test_the_gap_to_retrained_is_paired() -> None:
    outputs, target = noise(50, 3).sort(dim=1).values, noise(50, seed=2)
    own, other = forecast(outputs, target), forecast(3 * outputs, target)
    given = audit({"test": own}, {"test": other}, task=TASK)
    Coverage()(given)
    hits = [(((o.outputs[:, 0] <= target) & (target <= o.outputs[:, 2])).numpy()) for o in (own, other)]
    assert given.kept.gaps["coverage/test"] == Value.of(stats.paired_proportions(*hits))
    width = given.kept.gaps["coverage/width/test"]
    assert isinstance(width, Value)
    assert width.x == pytest.approx(-2 * float((outputs[:, 2] - outputs[:, 0]).mean()))


def test_without_a_number_there_is_a_reason() -> None:
    one = Quantile(quantiles=(0.5,))
    single = Coverage()(audit({"test": forecast(noise(9, 1), noise(9), one)}, task=one))
    assert set(single.values()) == {Unavailable("one quantile bounds no interval")}
    real = Coverage()(audit({"test": Outputs(noise(9, 1), noise(9, 1))}, task=Regression()))
    assert set(real.values()) == {Unavailable("the task predicts no quantiles")}
    blind = Coverage()(audit({"test": Outputs(noise(9, 3), noise(9))}, task=TASK))
    assert blind["coverage/test"] == Unavailable("test has no labels")
