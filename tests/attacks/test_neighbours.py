"""The neighbour-class attack: where a removed class's samples fall, and for whom it declines."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge import zoo
from expunge.attacks.neighbours import Neighbours
from expunge.data import Data
from expunge.errors import UserError
from expunge.evaluate import evaluate
from expunge.evidence import Outputs
from expunge.metric import Unavailable
from expunge.metrics.membership import Membership
from expunge.scenario import forget_class
from expunge.scores import FLOOR
from expunge.train import fit, fresh
from pairs import audit, noise, said, taken
from worlds import QUIET

GONE, NEAR, FAR, K = 2, 1, 0, 4


def stays(n: int, seed: int) -> Outputs:
    """Return sure and right answers on the classes that stay."""
    labels = torch.tensor([0, 1, 3])[torch.arange(n) % 3]
    return said(noise(n, K, seed=seed) + 8 * torch.eye(K)[labels], labels)


def falls(n: int, on: dict[int, float], seed: int, gone: float = -8.0) -> Outputs:
    """Return answers on the removed class: each sample sure of one class, drawn by these shares."""
    classes = torch.tensor(list(on))
    cuts = torch.tensor(list(on.values())).cumsum(0)
    at = classes[torch.searchsorted(cuts, (torch.arange(n) + 0.5) / n)]
    logits = noise(n, K, seed=seed) + 8 * torch.eye(K)[at]
    logits[:, GONE] += gone
    return said(logits, torch.full((n,), GONE))


def splits(forget: Outputs, unseen: Outputs) -> dict[str, Outputs]:
    rest = stays(120, 5)
    whole = said(torch.cat([rest.outputs, unseen.outputs]), torch.cat([rest.target, unseen.target]))
    return {"forget": forget, "retain": stays(90, 6), "test": whole, "test_forget": unseen, "test_retain": rest}


NATURAL = {NEAR: 0.6, FAR: 0.3, 3: 0.1}
RETRAINED = splits(falls(100, NATURAL, 0), falls(40, NATURAL, 1))


def found(model: dict[str, Outputs], retrained: dict[str, Outputs] | None = RETRAINED, **more: Any) -> Any:
    given = {"kind": "class", "target": GONE} | more
    return Membership(names=("neighbours",))(audit(model, retrained, **given))["membership/neighbours"]


@pytest.mark.parametrize(
    ("on", "gone", "expected"),
    [
        (NATURAL, -8.0, 0.6),
        ({FAR: 0.1, 3: 0.2, NEAR: 0.7}, -8.0, 0.7),
        ({NEAR: 1.0}, 30.0, 0.0),  # still known: little is left for any other class
        ({FAR: 1.0}, -8.0, 0.0),  # pushed onto one class that is not the nearest
        ({NEAR: 1.0}, -8.0, 1.0),  # or onto the nearest alone
    ],
)
def test_the_share_on_the_nearest_class(on: dict[int, float], gone: float, expected: float) -> None:
    value = found(splits(falls(100, on, 3, gone), falls(40, on, 4, gone)))
    assert value.x == pytest.approx(expected, abs=0.02)
    assert value.n == 100


def test_the_nearest_class_is_retraineds_and_else_the_models_own(caplog: pytest.LogCaptureFixture) -> None:
    far = splits(falls(100, {FAR: 1.0}, 3), falls(40, {FAR: 1.0}, 4))
    with caplog.at_level(logging.INFO, "expunge"):
        assert found(far).x == pytest.approx(0.0, abs=0.02)
        assert found(far, None).x == pytest.approx(1.0, abs=0.02)
        assert found(far, flaws={"retrained": "NaN"}).x == pytest.approx(1.0, abs=0.02)
    nearest = [int(record.args[0]) for record in caplog.records]
    assert nearest == [NEAR, FAR, FAR]
    none = {k: v if k != "test_forget" else v.take(torch.tensor([], dtype=torch.long)) for k, v in far.items()}
    assert found(none, None).x == pytest.approx(1.0, abs=0.02)  # the forget set then says which is nearest
    assert "unseen" in Membership(names=("neighbours",)).numbers["membership/neighbours"].label


def test_order_and_batches_do_not_matter() -> None:
    model = splits(falls(100, NATURAL, 7), falls(40, NATURAL, 8))
    given = {"kind": "class", "target": GONE}
    fitted = Neighbours().fit(audit(model, RETRAINED, **given))
    whole = fitted.score(model["forget"])
    parts = torch.cat([fitted.score(model["forget"].take(torch.arange(i, i + 20))) for i in range(0, 100, 20)])
    torch.testing.assert_close(parts, whole)
    mixed = {k: o.take(torch.randperm(len(o), generator=torch.Generator().manual_seed(0))) for k, o in model.items()}
    again = Neighbours().fit(audit(mixed, taken(RETRAINED, torch.arange(40).flip(0)), **given))
    torch.testing.assert_close(again.score(model["forget"]), whole, atol=1e-6, rtol=0)


def test_what_it_cannot_do_says_why() -> None:
    model = splits(falls(30, NATURAL, 3), falls(20, NATURAL, 4))
    kept = model | {"retain": falls(30, NATURAL, 9)}
    few = model | {"test": model["test_forget"]}
    assert found(model, kind="random", target=30) == Unavailable(
        "it attacks a removed class, and the forget set is of kind 'random'"
    )
    assert found(kept) == Unavailable("samples of the class stay in training")
    assert found(few) == Unavailable(
        "2 unseen samples of the nearest class and of others are needed, there are 0 and 0"
    )
    assert found({k: v for k, v in model.items() if k != "test"}) == Unavailable("there are no samples in test")
    with pytest.raises(UserError, match="a fitted attack, got an unfitted one"):
        Neighbours().score(model["forget"])


def test_retrained_stands_apart_from_no_op_and_from_a_class_pushed_off_by_force() -> None:
    problem = zoo.load("digits")
    case = forget_class(problem.train, 1)
    forget, retain = problem.train.subset(case.forget), problem.train.without(case.forget)

    def trained(data: Data, seed: int) -> Any:
        start = fresh(problem.new_model(), new_model=problem.new_model, seed=seed)
        recipe = replace(problem.recipe, epochs=10)
        return fit(start, problem.task, data, recipe, runtime=replace(QUIET, batch_size=256), seed=seed)

    inputs, labels = (torch.cat([a, b]) for a, b in zip(_read(forget), _read(retain), strict=True))
    onto = torch.where(labels == 1, 2, labels)
    models = {
        "original": trained(problem.train, 0),
        "retrained": [trained(retain, 10), trained(retain, 11)],
        "crude": trained(Data.from_arrays(inputs, onto), 0),
    }
    splits = {"train": problem.train, "test": problem.test, "scenario": case}
    scores = evaluate(
        models,
        problem.task,
        metrics=["membership"],
        attacks=["neighbours"],
        runtime=replace(QUIET, batch_size=256),
        **splits,
    )
    name = "membership/neighbours"
    assert scores["retrained"][name].x > 0.3
    for crude in ("no_op", "original", "crude"):
        assert scores.gaps[crude][name].x < -0.3
    assert abs(scores.gaps[FLOOR][name].x) < 0.25


def _read(data: Data) -> tuple[Tensor, Tensor]:
    batch = data.read(range(len(data)))
    assert isinstance(batch.inputs, Tensor)
    assert batch.target is not None
    return batch.inputs, batch.target
