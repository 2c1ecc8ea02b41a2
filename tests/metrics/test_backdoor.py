"""The success of a trigger: known shares, gaps paired by sample, and a network that was taught to obey it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from expunge.data import Data
from expunge.evaluate import evaluate
from expunge.metric import Unavailable, Value
from expunge.metrics import load
from expunge.poison import Backdoor
from expunge.scenario import forget_ids
from expunge.task import Classification, Regression
from expunge.train import Recipe, fit
from pairs import audit, said
from worlds import QUIET, images

SUCCESS, CLEAN = "backdoor/success", "accuracy/forget_clean"


def taken_for(*labels: int) -> torch.Tensor:
    return 5.0 * torch.eye(3)[list(labels)]


def test_the_share_that_obeys_and_its_paired_gap() -> None:
    target = torch.full((8,), 2)
    own, other = said(taken_for(2, 2, 2, 2, 2, 2, 0, 1), target), said(taken_for(0, 1, 0, 1, 0, 1, 2, 2), target)
    given = audit({"triggered": own}, {"triggered": other})
    found = load("backdoor")()(given)[SUCCESS]
    assert isinstance(found, Value)
    assert (found.x, found.n) == (0.75, 8)
    assert found.low < 0.75 < found.high
    gap = given.kept.gaps[SUCCESS]
    assert isinstance(gap, Value)
    assert gap.x == pytest.approx(0.5)


def test_without_a_number_there_is_a_reason() -> None:
    def reason(given: object) -> str:
        return getattr(load("backdoor")()(given)[SUCCESS], "reason", "")  # type: ignore[arg-type]

    own = said(taken_for(2, 2), torch.tensor([2, 2]))
    assert reason(audit({"test": own})).startswith("no trigger was planted: poison the training data with")
    assert reason(audit({"triggered": said(taken_for(2))})) == "the triggered samples have no labels"
    assert reason(audit({"triggered": own}, task=Regression())) == "the task has no classes"


def test_true_labels_are_counted_where_they_are_known() -> None:
    def found(columns: dict[str, list[object]] | None) -> Value | Unavailable:
        data = Data.from_arrays(torch.zeros(4, 1), [0, 1, 2, 0], columns=columns, name="forget")
        own = said(taken_for(1, 1, 0, 2), torch.tensor([0, 1, 2, 0]))
        return load("accuracy")()(audit({"forget": own}, data={"forget": data}))[CLEAN]

    value = found({"clean": [1, 1, 1, 1]})
    assert isinstance(value, Value)
    assert (value.x, value.n) == (0.5, 4)
    assert found(None) == Unavailable("the forget set has no column 'clean' with the labels before they were flipped")
    assert found({"clean": [1, 1, "cat", 1]}) == Unavailable("the column 'clean' holds no class index in some rows")


def test_a_network_obeys_until_it_is_retrained() -> None:
    """The original obeys, a model trained without the poisoned samples does not; the untouched original is caught."""
    train, test = (
        Data.from_arrays(*images(n, seed), name=name) for n, seed, name in ((300, 0, "train"), (120, 1, "test"))
    )
    door = Backdoor.on(train, target=2, value=8.0)
    poisoned, ids = door.plant(train, 0.1, seed=0)
    recipe = Recipe(epochs=12, batch_size=16, lr=0.05)

    def new() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))

    torch.manual_seed(0)
    start, task = new(), Classification()
    models = {
        "original": fit(start, task, poisoned, recipe, runtime=QUIET),
        "retrained": fit(start, task, poisoned.without(ids), recipe, runtime=QUIET),
    }
    scores = evaluate(
        models,
        task,
        train=poisoned,
        test=test,
        scenario=forget_ids(poisoned, ids),
        metrics=["backdoor", "accuracy"],
        triggered=door.triggered(test),
        runtime=QUIET,
    )
    found = {name: (scores[name][SUCCESS], scores[name][CLEAN]) for name in ("original", "retrained", "no_op")}
    obeys, right = found["original"]
    assert obeys.low > 0.8
    assert right.high < 0.5
    assert found["no_op"] == found["original"]
    obeys, right = found["retrained"]
    assert obeys.high < 0.5
    assert right.low > 0.5
    assert scores.gaps["no_op"][SUCCESS].low > 0.3
    assert scores.gaps["no_op"][CLEAN].high < -0.3
    assert scores["original"]["accuracy/test"].x == pytest.approx(scores["retrained"]["accuracy/test"].x, abs=0.1)
