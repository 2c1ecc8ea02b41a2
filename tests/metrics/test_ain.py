"""The anamnesis index on unseen samples: P7, closed forms, a slow reference, and the mutation it must not repeat."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from expunge.data import Data
from expunge.errors import UserError
from expunge.evaluate import evaluate
from expunge.evidence import collect
from expunge.metric import Audit, Unavailable, Value
from expunge.metrics import _tune
from expunge.metrics.ain import Anamnesis, _whole, index
from expunge.scenario import Scenario, forget_ids, forget_range
from expunge.task import Classification, Quantile, Regression, Task
from expunge.tensors import weights_digest
from expunge.train import Recipe, fit, fresh
from worlds import QUIET

D = torch.float64
PLAIN = Recipe(batch_size=5, lr=0.05, momentum=0.0, weight_decay=0.0, schedule="constant")


def test_the_index_of_the_specification() -> None:
    assert index(3, 12, 100) == Value.single(0.25, "ratio")
    assert index(3, 0, 100) == Unavailable("undefined: retrained is at the target before any step")
    assert index(0, 12, 100) == Value.single(0.0, "ratio")
    assert index(100, 50, 100) == Value(2.0, 2.0, math.inf, 1, "ratio")
    capped = Unavailable("capped: 100 steps are not enough for retrained to relearn the forgotten range")
    assert index(3, 100, 100) == index(100, 100, 100) == capped


def at(weight: float) -> nn.Module:
    """Return f(x) = w·x."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, weight)
    return model.eval()


def ones(n: int, target: float, name: str) -> Data:
    x = torch.ones(n, 1, dtype=D)
    return Data.from_arrays(x, target * x, name=name)


def audit(models: dict[str, nn.Module], data: dict[str, Data], task: Task, **more: Any) -> Audit:
    evidence = {(r, s): collect(m, task, d, runtime=QUIET) for r, m in models.items() for s, d in data.items()}
    case = Scenario(train=(*data["forget"].ids, *data["retain"].ids), forget=tuple(data["forget"].ids))
    given: dict[str, Any] = {"recipe": PLAIN, "seed": 0} | more
    return Audit(evidence=evidence, models=models, task=task, scenario=case, data=data, runtime=QUIET, **given)


def line(model: float, retrained: float, original: float = 2.2, **settings: Any) -> tuple[dict[str, Any], Audit]:
    """Return what is found of lines w·x; all samples say y = 2 at x = 1, so that any batch has the same gradient."""
    data = {"forget": ones(4, 2.0, "f"), "retain": ones(7, 2.0, "r"), "test_forget": ones(6, 2.0, "t")}
    models = {"model": at(model), "retrained": at(retrained), "original": at(original)}
    given = audit(models, data, Regression())
    return Anamnesis(**settings)(given), given


def steps(start: float, original: float = 2.2, lr: float = 0.05) -> int:
    """Return the steps in which (w − 2)², shrinking by (1 − 2·lr)², comes to 1.05 times the original's."""
    bar, now, count = 1.05 * (original - 2) ** 2, (start - 2) ** 2, 0
    while now > bar:
        now, count = now * (1 - 2 * lr) ** 2, count + 1
    return count


def test_steps_follow_the_closed_form_of_gradient_descent() -> None:
    found, _ = line(0.0, 0.5)
    assert found["ain/steps"] == Value.single(steps(0.0), "steps")
    assert found["ain/index"] == Value.single(steps(0.0) / steps(0.5), "ratio")
    assert (steps(0.0), steps(0.5)) == (22, 19)
    faster, _ = line(0.0, 0.5, lr=0.1)
    assert faster["ain/steps"].x == steps(0.0, lr=0.1)


def test_a_model_that_still_knows_needs_no_step_and_the_count_starts_at_zero() -> None:
    found, _ = line(2.2, 0.5)
    assert found["ain/steps"].x == found["ain/index"].x == 0.0
    none, _ = line(0.0, 2.1)
    assert none["ain/steps"].x == 22
    assert none["ain/index"] == Unavailable("undefined: retrained is at the target before any step")


def test_a_count_that_reaches_the_cap_is_a_bound() -> None:
    found, _ = line(0.0, 0.5, cap=20)
    assert found["ain/steps"] == Value(20, 20, math.inf, 1, "steps")
    assert found["ain/index"] == Value(20 / 19, 20 / 19, math.inf, 1, "ratio")
    other, _ = line(0.5, 0.0, cap=20)
    assert other["ain/steps"].x == 19
    assert other["ain/index"] == Unavailable(
        "capped: 20 steps are not enough for retrained to relearn the forgotten range"
    )


def test_asking_twice_on_the_same_objects_gives_the_same_answer_and_moves_no_weight() -> None:
    """The published code trains the retrained model in place: asked again, it needs fewer steps."""
    first, given = line(0.0, 0.5)
    before = {role: weights_digest(model) for role, model in given.models.items()}
    assert Anamnesis()(given) == first
    fourth = copy.deepcopy(given.models["retrained"])
    swapped = replace(given, models={**given.models, "retrained": fourth})
    assert Anamnesis()(swapped) == first
    assert {role: weights_digest(model) for role, model in given.models.items()} == before


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 1)).double()


def waves(n: int, seed: int, name: str) -> Data:
    x = torch.randn(n, 3, dtype=D, generator=torch.Generator().manual_seed(seed))
    return Data.from_arrays(x, torch.sin(2 * x[:, 0]) + 0.5 * x[:, 1], name=name)


def slow(model: nn.Module, given: Audit, recipe: Recipe, bar: float, cap: int) -> int:
    """Count steps with all samples in one table, sorted by id, forget before retain."""
    model = copy.deepcopy(model)
    tables = [given.data[s].subset(sorted(given.data[s].ids)) for s in ("forget", "retain")]
    read = [d.read(range(len(d))) for d in tables]
    x, y = torch.cat([b.inputs for b in read]), torch.cat([b.target for b in read])
    order = _tune.endless(len(x), recipe.batch_size, "ain", 0)
    unseen = given.data["test_forget"]
    asked = unseen.read(range(len(unseen)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    for step in range(cap):
        with torch.no_grad():
            if float((model(asked.inputs)[:, 0] - asked.target).square().mean()) <= bar:
                return step
        rows = torch.from_numpy(next(order))
        optimizer.zero_grad()
        (model(x[rows])[:, 0] - y[rows]).square().mean().backward()
        optimizer.step()
    return cap


def test_steps_are_those_of_a_slow_reference_on_the_whole_training_set() -> None:
    data = {"forget": waves(13, 1, "f"), "retain": waves(34, 2, "r"), "test_forget": waves(21, 3, "t")}
    torch.manual_seed(0)
    recipe = Recipe(batch_size=8, lr=0.01, optimizer="adamw", weight_decay=0.01)
    models = {"model": net(), "original": net()}
    longer = replace(recipe, epochs=12, schedule="constant")
    models["original"] = fit(models["original"], Regression(), data["test_forget"], longer, runtime=QUIET)
    given = audit(models, data, Regression(), recipe=recipe)
    said = given.said("test_forget", "original").loss
    assert said is not None
    bar = 1.05 * float(said.mean())
    want = slow(models["model"], given, recipe, bar, 300)
    found = Anamnesis(cap=300)(given)["ain/steps"]
    assert isinstance(found, Value)
    assert found.x == want
    assert 5 < want < 300


def test_every_batch_is_taken_from_both_sets_under_one_order() -> None:
    sizes = {"forget": 3, "retain": 11, "test_forget": 4}
    data = {name: waves(n, n, name) for name, n in sizes.items()}
    from_forget, from_retain = _whole(audit({"model": net()}, data, Regression()), 5)
    seen = [(next(from_forget[1]), next(from_retain[1])) for _ in range(14)]
    assert {len(a) + len(b) for a, b in seen} == {5}
    counts = np.bincount(np.concatenate([np.concatenate([a, b + 3]) for a, b in seen]), minlength=14)
    assert counts.tolist() == [5] * 14


class Frozen(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach() + 1.0


def test_without_a_number_there_is_a_reason() -> None:
    _, given = line(0.0, 0.5)
    assert set(Anamnesis()(replace(given, recipe=None)).values()) == {Unavailable("there is no training recipe")}
    classes = replace(given, task=Classification())
    why = Unavailable("the task has classes, of which relearn counts the right answers")
    assert set(Anamnesis()(classes).values()) == {why}
    alone = {k: v for k, v in given.evidence.items() if k[0] != "retrained"}
    models = {k: v for k, v in given.models.items() if k != "retrained"}
    found = Anamnesis()(replace(given, evidence=alone, models=models))
    assert isinstance(found["ain/steps"], Value)
    assert found["ain/index"] == Unavailable("there is no retrained model to compare with")
    nobody = {k: v for k, v in given.evidence.items() if k[1] != "test_forget"}
    assert set(Anamnesis()(replace(given, evidence=nobody)).values()) == {
        Unavailable("there are no samples in test_forget")
    }
    aside = replace(given, models={**given.models, "model": Frozen(1, 1).double()})
    assert Anamnesis()(aside)["ain/steps"] == Unavailable("its outputs do not depend on a trainable parameter")
    wild = replace(given, recipe=replace(PLAIN, lr=1e200))
    assert Anamnesis()(wild)["ain/steps"].reason.startswith("fine-tuning diverged")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"cap": 0}, "ain.cap of 1 or more, got 0"),
        ({"alpha": -0.1}, "ain.alpha of 0 or more, got -0.1"),
        ({"lr": 0.0}, "ain.lr above 0, got 0.0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        Anamnesis(**settings)


@pytest.mark.parametrize("task", [Regression(), Quantile()])
def test_the_original_knows_and_a_second_retrained_model_is_near_one(task: Task) -> None:
    """Of a range that the inputs tell, the original is there at once; two retrained models need about as long."""
    outputs = 3 if isinstance(task, Quantile) else 1

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, outputs)).double()

    train, test = waves(160, 5, "train"), waves(120, 6, "test")
    case, recipe = forget_range(train, 0.6, 9.0), Recipe(epochs=40, batch_size=16, lr=0.02, weight_decay=0.0)

    def trained(data: Data, seed: int) -> nn.Module:
        return fit(fresh(network(), new_model=network, seed=seed), task, data, recipe, runtime=QUIET, seed=seed)

    retain = train.without(case.forget)
    models = {"original": trained(train, 0), "retrained": [trained(retain, 1), trained(retain, 2)]}
    given: dict[str, Any] = {"train": train, "test": test, "scenario": case, "recipe": recipe, "runtime": QUIET}
    scores = evaluate(models, task, metrics=["ain"], **given)
    assert scores["no_op"]["ain/steps"].x == 0.0  # type: ignore[union-attr]
    second = scores["retrained (other seed)"]["ain/index"]
    assert isinstance(second, Value)
    assert 0.3 < second.x < 3.0
    assert scores.distances["no_op"]["ain/index"] > scores.distances["retrained (other seed)"]["ain/index"]
    ids = {**given, "scenario": forget_ids(train, train.ids[:9])}
    no_kind = evaluate({"original": models["original"]}, task, metrics=["ain"], **ids)
    assert no_kind["original"]["ain/index"] == Unavailable("there are no samples in test_forget")
