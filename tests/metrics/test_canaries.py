"""Canaries: known AUCs by hand, the known truth of a model trained without them, and why there is no number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from expunge import zoo
from expunge.canaries import Canaries, plant
from expunge.data import Data
from expunge.errors import UserError
from expunge.evaluate import evaluate
from expunge.evidence import Outputs
from expunge.methods import load as method
from expunge.metric import Audit, Unavailable, Value
from expunge.metrics import load
from expunge.scenario import Scenario, forget_class, forget_ids, forget_range, forget_subject
from expunge.scores import Scores
from expunge.summary import section
from expunge.task import Classification, Regression, Task
from expunge.train import Recipe, fit
from expunge.unlearn import unlearn
from worlds import QUIET

FORGOTTEN, KEPT = "canaries/forgotten", "canaries/kept"
PLANT = Unavailable(
    "canaries must be planted before training: train with Recipe(canaries=N) and pass the manifest that fit wrote"
)


def losing(losses: list[float], labels: list[int] | None = None) -> Outputs:
    """Return outputs with these losses; nothing else of them is read."""
    target = torch.tensor(labels or [0] * len(losses))
    outputs = torch.zeros(len(losses), 3, dtype=torch.float64)
    return Outputs(outputs, outputs.argmax(dim=1), target, torch.tensor(losses, dtype=torch.float64))


def audit(task: Task | None = None, scenario: Scenario | None = None, **splits: Outputs) -> Audit:
    evidence = {("model", split): outputs for split, outputs in splits.items()}
    case = scenario or Scenario(train=("a", "b"), forget=("a",))
    return Audit(evidence=evidence, models={}, task=task or Classification(), scenario=case)


def test_aucs_by_hand() -> None:
    """Forgotten {1, 4} against {2, 3, 4}: 1 is below all three, 4 ties with one: (3 + 0.5)/6."""
    unseen = losing([2, 3, 4])
    given = audit(canary=losing([1, 4]), canary_kept=losing([0.1, 0.2]), canary_unseen=unseen)
    found = load("canaries")()(given)
    assert found[FORGOTTEN].x == pytest.approx(3.5 / 6)
    assert found[FORGOTTEN].n == 5
    assert found[FORGOTTEN].low < 0.5 < found[FORGOTTEN].high
    assert found[KEPT].x == 1.0
    assert given.kept.samples["score/canaries/members"].tolist() == [-1, -4]
    assert given.kept.samples["score/canaries/others"].tolist() == [-2, -3, -4]
    declared = load("canaries")().numbers
    assert (declared[FORGOTTEN].target, declared[KEPT].target) == (0.5, None)
    squared = load("canaries")()(audit(Regression(), canary=losing([1, 4]), canary_unseen=unseen))
    assert squared[FORGOTTEN].x == pytest.approx(3.5 / 6)


def test_of_a_class_the_unseen_ones_under_that_label_are_taken() -> None:
    """A model without class 1 has a high loss on its label, planted or not."""
    parts = {
        "canary": losing([9.1, 9.3], [1, 1]),
        "canary_kept": losing([0.1, 0.2, 0.3], [0, 2, 2]),
        "canary_unseen": losing([9.0, 9.2, 9.4, 2.0, 3.0], [1, 1, 1, 0, 2]),
    }
    whole = load("canaries")()(audit(**parts))
    assert whole[FORGOTTEN].x == pytest.approx(3 / 10)
    case = Scenario(train=("a", "b"), forget=("a",), kind="class", target=1)
    found = load("canaries")()(audit(scenario=case, **parts))
    assert found[FORGOTTEN].x == pytest.approx(3 / 6)
    assert (found[KEPT].x, found[KEPT].n) == (1.0, 5)
    span = Scenario(train=("a", "b"), forget=("a",), kind="range", target={"column": None, "low": 1, "high": 2})
    assert load("canaries")()(audit(scenario=span, **parts)) == found
    part = losing([0.1, 9.2, 0.3], [0, 1, 2])  # a share of the class was asked for: some of it stay
    assert load("canaries")()(audit(scenario=case, **(parts | {"canary_kept": part})))[KEPT].n == 8


def test_without_a_number_there_is_a_reason() -> None:
    some, unseen = losing([1, 2]), losing([3, 4])

    def found(**parts: Any) -> list[str]:
        return [getattr(v, "reason", "") for v in load("canaries")()(audit(**parts)).values()]

    assert set(load("canaries")()(audit(forget=some)).values()) == {PLANT}
    assert set(load("canaries")()(audit(canary_unseen=unseen)).values()) == {PLANT}
    assert found(canary_kept=some, canary_unseen=unseen) == ["no planted canary is in the forget set", ""]
    assert found(canary=some, canary_unseen=unseen) == ["", "every planted canary is in the forget set"]
    one = "needs 2 samples on each side, has 2 and 1"
    assert found(canary=some, canary_unseen=losing([3]))[0] == one
    assert found(canary=losing([3, 3]), canary_unseen=losing([3, 3]))[0] == "all scores are equal"
    endless = "a loss of a canary is infinite or not a number"
    assert found(canary=some, canary_unseen=losing([3, float("inf")])) == [endless, endless]
    bare = Outputs(some.outputs, some.prediction)
    assert found(canary=bare, canary_unseen=unseen) == ["the canaries have no labels"] * 2
    column = Scenario(train=("a", "b"), forget=("a",), kind="subject", target={"column": "who", "value": "x"})
    why = "the forget set was chosen by a column: unseen canaries are not like the forgotten ones"
    assert found(scenario=column, canary=some, canary_kept=some, canary_unseen=unseen) == [why, ""]


@pytest.mark.parametrize("build", ["class", "range", "subject"])
def test_the_scenarios_own_targets_are_read(build: str) -> None:
    labels = [0.0, 1.0, 2.0] if build == "range" else [0, 1, 2]
    data = Data.from_arrays(torch.zeros(3, 1), labels, columns={"who": ["x", "y", "z"]})
    case = {
        "class": lambda: forget_class(data, 1),
        "range": lambda: forget_range(data, 0.5, 1.5),
        "subject": lambda: forget_subject(data, "y", column="who"),
    }[build]()
    parts = {"canary": losing([1, 2], [1, 1]), "canary_unseen": losing([3, 4, 5, 6], [0, 1, 1, 2])}
    value = load("canaries")()(audit(scenario=case, **parts))[FORGOTTEN]
    if build == "subject":
        assert isinstance(value, Unavailable)
    else:
        assert value.n == 4


def test_models_without_the_canaries_give_one_half_on_average() -> None:
    """A constant rule on inputs knows nothing of who was planted: over 200 draws the AUC is 0.5, intervals cover it."""
    random = np.random.default_rng(0)
    full = Data.from_arrays(torch.from_numpy(random.normal(size=(400, 5))).float(), random.integers(0, 4, 400))
    rule = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    found = []
    for seed in range(200):
        parts = plant(full, 20, seed=seed)[1].samples(full)
        gone, unseen = (_collected(part, rule) for part in parts)
        found.append(load("canaries")()(audit(canary=gone, canary_unseen=unseen))[FORGOTTEN])
    assert abs(np.mean([v.x for v in found]) - 0.5) < 0.02
    assert sum(v.low <= 0.5 <= v.high for v in found) >= 186


def _collected(data: Data, rule: Tensor) -> Outputs:
    batch = data.read(range(len(data)))
    logits = batch.inputs.double() @ rule.double()
    return Outputs(logits, logits.argmax(dim=1), batch.target, Classification().loss(logits, batch.target))


def test_planted_forgotten_and_measured(tmp_path: Path) -> None:
    problem = zoo.load("digits")
    full = problem.train.subset(problem.train.ids[:400])
    recipe = Recipe(epochs=40, batch_size=16, lr=0.15, weight_decay=0.0, canaries=40)

    def new() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))

    torch.manual_seed(0)
    original = fit(new(), problem.task, full, recipe, runtime=replace(QUIET, workdir=tmp_path))
    manifest = Canaries.load(tmp_path / "canaries.json")
    train = manifest.applied(full)
    gone = list(manifest.planted)[::2]
    retain = train.without(gone)
    sets = {"forget": gone, "retain": retain, "recipe": recipe, "new_model": new, "runtime": QUIET}
    done = unlearn(method("retrain")(), original, problem.task, **sets)

    def measured(case: Scenario) -> Scores:
        return evaluate(
            {"original": original, "retrained": done},
            problem.task,
            train=train,
            test=problem.test,
            scenario=case,
            metrics=["canaries"],
            runtime=QUIET,
            canaries=manifest.samples(full),
        )

    case = forget_ids(train, gone)
    scores = measured(case)
    assert scores["no_op"][FORGOTTEN].x > 0.95
    assert scores["no_op"][FORGOTTEN].low > 0.8
    assert scores["retrained"][FORGOTTEN].low < 0.5 < scores["retrained"][FORGOTTEN].high
    assert abs(scores["retrained"][FORGOTTEN].x - 0.5) < 0.2
    for name in ("no_op", "retrained"):
        assert scores[name][KEPT].x > 0.95
    gap = scores.gaps["no_op"][FORGOTTEN]
    assert gap.x == pytest.approx(scores["no_op"][FORGOTTEN].x - 0.5)
    assert gap.low > 0.3
    part = section(scores, name="canaries", text="Canaries.", counts={"train": len(train)})
    assert set(part["curves"]["roc"]["canaries"]) == {"original", "no_op", "retrained"}
    others = measured(forget_ids(train, retain.without(list(manifest.planted)[1::2]).ids[:30]))
    assert others["original"][FORGOTTEN] == Unavailable("no planted canary is in the forget set")
    assert isinstance(others["original"][KEPT], Value)


def test_canaries_of_an_earlier_request_do_not_count_as_kept_and_trained_ones_not_as_unseen() -> None:
    x = torch.arange(40.0)[:, None]
    full = Data.from_arrays(x, [0, 1] * 20)
    train, manifest = plant(full, 6)
    earlier, now = list(manifest.planted)[:2], list(manifest.planted)[2:4]
    given: dict[str, Any] = {"train": train.without(earlier), "metrics": ["canaries"], "runtime": QUIET}
    case = forget_ids(given["train"], now)
    given |= {"scenario": case, "canaries": manifest.samples(full)}
    scores = evaluate({"mine": nn.Linear(1, 2)}, Classification(), **given)
    assert scores["mine"][FORGOTTEN].n == 2 + 6
    assert scores["mine"][KEPT].n == 2 + 6
    whole = given | {"train": full, "scenario": forget_ids(full, now)}
    with pytest.raises(UserError, match="unseen canaries outside the training set, got .* in it: pass as train"):
        evaluate({"mine": nn.Linear(1, 2)}, Classification(), **whole)
