"""The membership attack of regression: errors that tell, errors that do not, and what trained models leave."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from expunge.data import Data
from expunge.evaluate import evaluate
from expunge.evidence import Outputs
from expunge.metric import Audit, Unavailable, Value
from expunge.metrics.error_attack import ErrorAttack
from expunge.metrics.membership import Membership
from expunge.scenario import forget_random
from expunge.task import Classification, Quantile, Regression
from expunge.train import Recipe, fit, fresh
from pairs import audit, noise, said
from worlds import QUIET

AUC, MEMBERS = "error_attack/auc", "error_attack/members"
TASK = Regression()


def off_by(error: Tensor) -> Outputs:
    outputs = error[:, None].double()
    target = torch.zeros(len(error), dtype=torch.float64)
    return Outputs(outputs, outputs, target, TASK.loss(outputs, target))


def found(audit: Audit) -> tuple[Value, Value]:
    values = ErrorAttack()(audit)
    auc, members = values[AUC], values[MEMBERS]
    assert isinstance(auc, Value)
    assert isinstance(members, Value)
    return auc, members


def test_errors_that_tell_are_told_on_the_half_that_was_held_back() -> None:
    small, large = 0.1 * noise(300).abs(), 1 + noise(300, seed=1).abs()
    forget = torch.cat([small[:30], large[:10]])
    auc, members = found(audit({"retain": off_by(small), "test": off_by(large), "forget": off_by(forget)}, task=TASK))
    assert auc.x == 1.0
    assert auc.n == 300
    assert (members.x, members.n) == (0.75, 40)
    assert 0 < members.low < 0.75 < members.high < 1


def test_errors_that_tell_nothing_leave_the_area_near_one_half() -> None:
    """By its own fitting points the published attack looks better than chance."""
    areas = []
    for seed in range(20):
        sides = {s: off_by(noise(200, seed=10 * seed + i)) for i, s in enumerate(("retain", "test", "forget"))}
        auc, _ = found(audit(sides, task=TASK, seed=seed))
        areas.append(auc.x)
    assert sum(areas) / 20 == pytest.approx(0.5, abs=0.04)


def test_it_is_what_the_attack_svc_does_not_call_unseen() -> None:
    sides = {s: off_by(noise(60, seed=i)) for i, s in enumerate(("retain", "test", "forget"))}
    given = audit(sides, task=TASK)
    _, members = found(given)
    unseen = Membership(names=("svc",))(given)["membership/svc"]
    assert isinstance(unseen, Value)
    assert members.x == pytest.approx(1 - unseen.x)


def test_without_a_number_there_is_a_reason() -> None:
    sides = {s: off_by(noise(9, seed=i)) for i, s in enumerate(("retain", "test", "forget"))}
    classes = {s: said(noise(9, 3), torch.arange(9) % 3) for s in sides}
    why = {Unavailable("it is an attack on regression")}
    assert set(ErrorAttack()(audit(classes, task=Classification())).values()) == why
    few = ErrorAttack()(audit(sides | {"retain": off_by(noise(3))}, task=TASK))
    need = "needs 4 retained and 4 unseen samples of the kinds that stay, has 3 and 9"
    assert set(few.values()) == {Unavailable(need)}
    bare = ErrorAttack()(audit({k: o for k, o in sides.items() if k != "retain"}, task=TASK))
    assert set(bare.values()) == {Unavailable("there are no samples in retain")}


@pytest.mark.parametrize("task", [TASK, Quantile()])
def test_what_was_learned_by_heart_is_called_member_of_the_original_and_not_of_retrained(task: Any) -> None:
    outputs = 3 if isinstance(task, Quantile) else 1

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, outputs))

    def draw(n: int, seed: int, name: str) -> Data:
        x = noise(n, 8, seed=seed).float()
        return Data.from_arrays(x, x[:, 0] + 2 * noise(n, seed=seed + 50).float(), name=name)

    train, test = draw(120, 0, "train"), draw(200, 1, "test")
    case = forget_random(train, 40, seed=0)
    recipe = Recipe(epochs=60, batch_size=30, lr=0.01, optimizer="adamw", weight_decay=0.0)
    quiet = replace(QUIET, batch_size=200)

    def trained(data: Data, seed: int) -> nn.Module:
        return fit(fresh(network(), new_model=network, seed=seed), task, data, recipe, runtime=quiet, seed=seed)

    retain = train.without(case.forget)
    models = {"original": trained(train, 0), "retrained": [trained(retain, 1), trained(retain, 2)]}
    names = ["error_attack", "error"]
    scores = evaluate(models, task, train=train, test=test, scenario=case, metrics=names, runtime=quiet)
    floor = "retrained (other seed)"
    assert scores["original"][AUC].x > 0.6  # type: ignore[union-attr]
    assert scores["original"][MEMBERS].x > scores["retrained"][MEMBERS].x + 0.2  # type: ignore[union-attr]
    for name in (MEMBERS, "error/mae/forget"):
        assert scores.distances["no_op"][name] > 1.5 * scores.distances[floor][name], name
