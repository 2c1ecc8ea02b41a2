"""Errors of predictions and of the best constant, against numpy and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyRegressor
from sklearn.metrics import mean_absolute_error, root_mean_squared_error
from torch import Tensor

from expunge import stats
from expunge.evidence import Outputs
from expunge.metric import Audit, Unavailable, Value
from expunge.metrics.error import Error
from expunge.task import Classification, MultiLabel, Quantile, Regression
from pairs import audit, noise, said

SPLITS = ("forget", "retain", "test", "test_forget", "test_retain")
SIZES = dict(zip(SPLITS, (20, 31, 40, 15, 25), strict=True))
TASKS = (Regression(), Regression(error="absolute"), Quantile())


def parts(task: Regression | Quantile, steps: int, seed: int = 0) -> dict[str, Outputs]:
    """Return noisy predictions of skewed targets of so many numbers a sample."""
    found = {}
    for i, (split, n) in enumerate(SIZES.items()):
        target = noise(n, steps, seed=i).exp()
        shape = (n, steps, 3) if isinstance(task, Quantile) else (n, steps)
        outputs = target.reshape(n, steps, *(1,) * (len(shape) - 2)) + noise(*shape, seed=10 * seed + i + 50)
        found[split] = Outputs(outputs, task.predictions(outputs), target, task.loss(outputs, target))
    return found


def number(found: dict[str, Value | Unavailable], name: str) -> Value:
    value = found[name]
    assert isinstance(value, Value)
    return value


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("task", TASKS)
def test_errors_are_scikit_learns(task: Regression | Quantile, steps: int) -> None:
    given = parts(task, steps)
    found = Error()(audit(given, task=task))
    for split in ("forget", "test", "test_forget", "test_retain"):
        own = given[split]
        assert own.target is not None
        y, f = own.target.numpy(), own.prediction.numpy()
        assert number(found, f"error/mae/{split}").x == pytest.approx(mean_absolute_error(y, f))
        mean_square = np.mean((y - f) ** 2)
        assert number(found, f"error/rmse/{split}").x == pytest.approx(math.sqrt(mean_square))
        if steps == 1:
            assert number(found, f"error/rmse/{split}").x == pytest.approx(root_mean_squared_error(y, f))
        assert {v.n for k, v in found.items() if k.endswith(f"/{split}") and isinstance(v, Value)} == {len(own)}
    units = {k.startswith("error/pinball"): v.unit for k, v in found.items() if isinstance(v, Value)}
    assert units == {False: "target units"} | ({True: "loss"} if isinstance(task, Quantile) else {})


@pytest.mark.parametrize("steps", [1, 3])
def test_the_constant_is_the_best_of_the_retain_set_and_the_same_for_every_model(steps: int) -> None:
    one, other = (parts(Regression(), steps, seed) for seed in (0, 1))
    found, again = (Error()(audit(given, task=Regression())) for given in (one, other))
    rest = one["retain"].target
    assert rest is not None
    for split in ("forget", "test_forget"):
        y = one[split].target
        assert y is not None
        for kind, strategy in (("mae", "median"), ("rmse", "mean")):
            dummy = DummyRegressor(strategy=strategy).fit(np.zeros((len(rest), 1)), rest.numpy())
            away = dummy.predict(np.zeros((len(y), 1))).reshape(len(y), -1) - y.numpy()
            want = np.abs(away).mean() if kind == "mae" else math.sqrt((away**2).mean())
            assert number(found, f"error/{kind}_constant/{split}").x == pytest.approx(want)
            assert found[f"error/{kind}_constant/{split}"] == again[f"error/{kind}_constant/{split}"]
            assert found[f"error/{kind}/{split}"] != again[f"error/{kind}/{split}"]


def test_no_constant_does_better_on_the_retain_set() -> None:
    retain = parts(Regression(), 1)["retain"]
    found = Error()(audit({"retain": retain, "test": retain}, task=Regression()))
    assert retain.target is not None
    y = retain.target.numpy()
    for c in np.linspace(y.min(), y.max(), 200):
        assert number(found, "error/mae_constant/test").x <= np.abs(y - c).mean() + 1e-12
        assert number(found, "error/rmse_constant/test").x <= math.sqrt(((y - c) ** 2).mean()) + 1e-12


@pytest.mark.parametrize("steps", [1, 3])
def test_always_saying_the_quantiles_is_the_best_of_all_constants_of_the_pinball_loss(steps: int) -> None:
    task = Quantile(quantiles=(0.2, 0.5, 0.9))
    given = parts(task, steps)
    given["test"] = given["retain"]
    found = Error()(audit(given, task=task))
    retain = given["retain"]
    assert retain.target is not None
    y = retain.target.numpy()
    want = 0.0
    for q in task.quantiles:
        for step in y.T:
            away = step[:, None] - np.unique(step)[None]  # among the targets is a best constant
            want += np.maximum(q * away, (q - 1) * away).mean(axis=0).min() / steps
    assert number(found, "error/pinball_constant/test").x == pytest.approx(want)
    assert number(found, "error/pinball_constant/forget").n == SIZES["forget"]
    none = Error()(audit(parts(Regression(), steps), task=Regression()))
    assert none["error/pinball_constant/test"] == Unavailable("the task predicts no quantiles")


def test_the_gap_is_paired_by_sample_and_intervals_stay_above_zero() -> None:
    own, other = parts(Regression(), 2), parts(Regression(), 2, seed=1)
    given = audit(own, other, task=Regression())
    found = Error()(given)
    sizes = [(o["forget"].prediction - o["forget"].target).abs().mean(dim=1).numpy() for o in (own, other)]
    assert given.kept.gaps["error/mae/forget"] == Value.of(stats.paired(*sizes), "target units")
    rmse = number(found, "error/rmse/forget")
    square = stats.mean_t((own["forget"].prediction - own["forget"].target).square().mean(dim=1).numpy())
    assert (rmse.low, rmse.high) == pytest.approx((math.sqrt(max(0.0, square.low)), math.sqrt(square.high)))
    few = Error()(audit({"test": own["test"].take(torch.tensor([0, 1]))}, task=Regression()))
    assert number(few, "error/rmse/test").low >= 0
    single = Error()(audit({"test": own["test"].take(torch.tensor([0]))}, task=Regression()))
    assert (number(single, "error/rmse/test").low, number(single, "error/mae/test").high) == (-math.inf, math.inf)


def test_of_samples_with_one_number_the_shape_does_not_matter() -> None:
    outputs, target = noise(12, 1), noise(12, seed=1)

    def given(y: Tensor) -> Audit:
        return audit({"test": Outputs(outputs, outputs, y, noise(12).abs())}, task=Regression())

    assert Error()(given(target)) == Error()(given(target[:, None]))


def test_without_a_number_there_is_a_reason() -> None:
    given = parts(Regression(), 1)
    bare = Error()(audit({k: v for k, v in given.items() if k != "retain"}, task=Regression()))
    assert bare["error/mae_constant/test"] == Unavailable("there are no samples in retain")
    assert isinstance(bare["error/mae/test"], Value)
    for task in (Classification(), MultiLabel()):
        other = Error()(audit({"test": said(noise(9, 3), torch.arange(9) % 3)}, task=task))
        assert set(other.values()) == {Unavailable("the task has no real targets")}
    blind = Error()(audit({"test": Outputs(noise(9, 1), noise(9, 1))}, task=Regression()))
    assert blind["error/mae/test"] == Unavailable("test has no labels")
