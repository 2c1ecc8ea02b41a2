"""Every metric and attack on tasks of other targets: a number or a reason, and no class is sought among real ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from expunge import metrics
from expunge.data import Data
from expunge.evaluate import evaluate
from expunge.metric import Metric, Unavailable, Value
from expunge.metrics.ain import Anamnesis
from expunge.metrics.relearn import Relearn
from expunge.metrics.robustness import Robustness
from expunge.scenario import forget_ids, forget_range
from expunge.scores import Scores
from expunge.task import Binary, MultiLabel, Quantile, Regression, Task
from expunge.train import Recipe, fit, fresh
from pairs import noise
from worlds import QUIET

FLOOR = "retrained (other seed)"


@dataclass(frozen=True)
class Problem:
    """A task, how many outputs it takes, what the targets are, and the range that is forgotten, or None for ids."""

    task: Task
    outputs: int
    target: Callable[[Tensor], Tensor]
    low: float | None = None


def line(x: Tensor) -> Tensor:
    return torch.sin(2 * x[:, 0]) + x[:, 1] + 0.1 * x[:, 2]


PROBLEMS = {
    "regression": Problem(Regression(), 1, line, 0.8),
    "absolute, ids": Problem(Regression(error="absolute"), 1, lambda x: line(x)[:, None]),
    "several numbers": Problem(Regression(), 2, lambda x: torch.stack([line(x), x[:, 0]], dim=1)),
    "quantiles": Problem(Quantile(), 3, line, 0.8),
    "one logit": Problem(Binary(), 1, lambda x: (line(x) > 0).float()),
    "several labels": Problem(MultiLabel(), 2, lambda x: torch.stack([line(x) > 0, x[:, 0] > 0], dim=1).float()),
}


def chosen() -> list[Metric]:
    quick = {"relearn": Relearn(cap=20), "ain": Anamnesis(cap=60), "robustness": Robustness(draws=2, steps=3)}
    return [quick.get(name) or metrics.load(name)() for name in metrics.names()]


@cache
def measured(name: str) -> Scores:
    """Return all numbers of an original and two retrained models."""
    problem = PROBLEMS[name]

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 24), nn.Tanh(), nn.Linear(24, problem.outputs))

    def draw(n: int, seed: int, part: str) -> Data:
        x = noise(n, 4, seed=seed).float()
        columns = {"category": ["a" if v > 0 else "b" for v in x[:, 3].tolist()]}
        return Data.from_arrays(x, problem.target(x), columns=columns, name=part)

    train, test, holdout = draw(160, 0, "train"), draw(150, 1, "test"), draw(40, 2, "holdout")
    case = forget_ids(train, train.ids[:60]) if problem.low is None else forget_range(train, problem.low, 99.0)
    recipe = Recipe(epochs=30, batch_size=20, lr=0.01, optimizer="adamw", weight_decay=0.0)
    quiet = replace(QUIET, batch_size=64)

    def trained(data: Data, seed: int) -> nn.Module:
        start = fresh(network(), new_model=network, seed=seed)
        return fit(start, problem.task, data, recipe, runtime=quiet, seed=seed)

    retain = train.without(case.forget)
    models: dict[str, Any] = {"original": trained(train, 0), "retrained": [trained(retain, 1), trained(retain, 2)]}
    given: dict[str, Any] = {"holdout": holdout, "recipe": recipe, "new_model": network, "runtime": quiet}
    return evaluate(models, problem.task, train=train, test=test, scenario=case, metrics=chosen(), **given)


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_number_of_every_model_is_a_value_or_a_reason(name: str) -> None:
    scores = measured(name)
    declared = {number for metric in chosen() for number in metric.numbers}
    assert {"original", "retrained", FLOOR, "no_op"} <= set(scores.values)
    for model, found in scores.values.items():
        assert found.keys() == declared, model
        reasons = {v.reason for v in found.values() if isinstance(v, Unavailable)}
        assert all(reason.strip() for reason in reasons)
        assert sum(isinstance(v, Value) for v in found.values()) > 10, (model, reasons)


@pytest.mark.parametrize("name", ["several numbers", "quantiles"])
def test_on_real_targets_no_class_is_sought(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **more: Any) -> Tensor:
        raise AssertionError("a class was sought among real numbers")

    for owner in (torch, torch.Tensor):
        monkeypatch.setattr(owner, "argmax", refused)
        monkeypatch.setattr(owner, "softmax", refused)
    found = measured.__wrapped__(name)["no_op"]
    classes = ("accuracy/", "flips/", "subgroups/", "decisions/", "stability/", "zrf/", "divergence/", "activation/")
    assert {v for k, v in found.items() if k.startswith(classes)} == {Unavailable("the task has no classes")}


@pytest.mark.parametrize("name", ["regression", "quantiles"])
def test_of_a_forgotten_range_no_op_stands_apart_and_a_second_retrained_model_does_not(name: str) -> None:
    scores = measured(name)
    for number in ("wasserstein/forget", "paired/distance", "error/mae/forget", "error/mae/test_forget", "ain/index"):
        assert scores.distances["no_op"][number] > 1.5 * scores.distances[FLOOR][number], number
    known, unknown = (scores[m]["error/mae/test_forget"] for m in ("original", "retrained"))
    constant = scores["original"]["error/mae_constant/test_forget"]
    assert known.high < unknown.low  # type: ignore[union-attr]
    assert known.high < constant.low  # type: ignore[union-attr]
    assert constant == scores["retrained"]["error/mae_constant/test_forget"]
    assert scores.gaps["no_op"]["error/mae_constant/forget"].x == 0
    if name == "quantiles":
        assert scores["original"]["coverage/test_forget"].low > scores["retrained"]["coverage/test_forget"].high  # type: ignore[union-attr]


def test_of_one_logit_what_classes_have_is_measured() -> None:
    found = measured("one logit")["no_op"]
    for number in (
        "accuracy/test",
        "flips/lost/test",
        "divergence/js/forget",
        "membership/entropy/auc",
        "membership/svc",
        "probe/membership",
        "subgroups/worst_change",
        "decisions/auc/test",
        "decisions/calibration/test",
        "stability/retrained/forget",
        "segments/rate_change",
        "tow/tow",
    ):
        assert isinstance(found[number], Value), (number, found[number])
    assert measured("one logit").distances["no_op"]["decisions/flipped/original"] > 0
