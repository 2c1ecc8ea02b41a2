"""Relearning against closed forms and a slow reference; controls that must stand apart and a copy that must not."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cases import CASES
from expunge.data import Data
from expunge.errors import UserError
from expunge.evaluate import evaluate
from expunge.evidence import collect
from expunge.metric import Audit, Found, Unavailable, Value
from expunge.metrics import _tune
from expunge.metrics.relearn import Relearn
from expunge.metrics.robustness import Robustness
from expunge.runtime import Runtime
from expunge.scenario import Scenario, forget_class, forget_ids
from expunge.scores import FLOOR, Scores
from expunge.task import Classification, Regression, Task
from expunge.tensors import weights_digest
from expunge.train import Recipe, fit
from expunge.zoo.embedded import diabetes, digits, mislabelled
from expunge.zoo.networks import MLP, ConvNet
from worlds import QUIET, World, world

LR, TARGET = 0.05, 2.0


def audit(
    models: dict[str, nn.Module], forget: Data, retain: Data, task: Task, runtime: Runtime = QUIET, seed: int = 0
) -> Audit:
    """Return an audit of modules by role on two sets, the outputs being collected."""
    data = {"forget": forget, "retain": retain}
    evidence = {(r, s): collect(m, task, d, runtime=runtime) for r, m in models.items() for s, d in data.items()}
    case = Scenario(train=(*forget.ids, *retain.ids), forget=tuple(forget.ids))
    return Audit(evidence=evidence, models=models, task=task, scenario=case, data=data, runtime=runtime, seed=seed)


def at(weight: float) -> nn.Module:
    """Return f(x) = w·x."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, weight)
    return model.eval()


def ones(n: int, target: float, name: str) -> Data:
    """Return samples x = 1 of one target: any batch of them has the loss (w − y)² and the gradient 2(w − y)."""
    x = torch.ones(n, 1, dtype=torch.float64)
    return Data.from_arrays(x, target * x, name=name)


def line(weight: float, original: float, **settings: Any) -> tuple[Found, Audit]:
    given = audit(
        {"model": at(weight), "original": at(original)}, ones(9, TARGET, "f"), ones(5, -1.0, "r"), Regression()
    )
    return Relearn(lr=LR, mix=0.0, **settings)(given), given


def test_steps_follow_the_closed_form_of_gradient_descent() -> None:
    """w − y shrinks by 1 − 2·lr a step, the loss by its square, from 4 until it is 1.05·0.04 or less."""
    found, _ = line(0.0, 2.2)
    want = math.ceil(math.log(1.05 * 0.04 / 4.0) / (2 * math.log(1 - 2 * LR)))
    assert found["relearn/steps"] == Value(want, -math.inf, math.inf, 1, "steps")
    assert want == 22


def test_few_follow_the_closed_form_and_the_curve_is_kept() -> None:
    found, given = line(0.0, 2.2)
    value = found["relearn/few"]
    assert isinstance(value, Value)
    assert (value.x, value.n, value.unit) == (pytest.approx(4 * (1 - 2 * LR) ** 20), 8, "loss")
    curve = {step: v.x for step, v in given.kept.series["relearn/curve"].items() if isinstance(v, Value)}
    assert curve == pytest.approx({s: 4 * (1 - 2 * LR) ** (2 * s) for s in (0, 1, 2, 5, 10, 20)})


def test_retain_samples_take_their_share_of_a_batch() -> None:
    """Three quarters at y = 2 and one at −1 pull towards 1.25: at 10 steps the loss on the rest is known."""
    given = audit({"model": at(0.0), "original": at(2.0)}, ones(9, TARGET, "f"), ones(5, -1.0, "r"), Regression())
    found = Relearn(lr=LR, mix=0.25)(given)["relearn/few"]
    assert isinstance(found, Value)
    assert found.x == pytest.approx((1.25 * (1 - (1 - 2 * LR) ** 10) - TARGET) ** 2)


def test_a_count_that_reaches_the_cap_is_a_bound_and_gives_no_index() -> None:
    models = {"model": at(0.0), "original": at(2.2), "retrained": at(0.5)}
    given = audit(models, ones(9, TARGET, "f"), ones(5, -1.0, "r"), Regression())
    found = Relearn(lr=LR, mix=0.0, cap=22)(given)
    assert found["relearn/steps"] == Value(22, 22, math.inf, 1, "steps")
    assert found["relearn/ain"] == Unavailable("22 steps are not enough for the model to relearn the forget set")
    swapped = replace(given, models={**models, "model": models["retrained"], "retrained": models["model"]})
    assert Relearn(lr=LR, mix=0.0, cap=22)(swapped)["relearn/ain"] == Unavailable(
        "22 steps are not enough for retrained to relearn the forget set"
    )
    index = Relearn(lr=LR, mix=0.0)(given)["relearn/ain"]
    assert isinstance(index, Value)
    assert (index.x, index.unit) == (22 / 19, "ratio")


def test_without_a_step_of_retrained_the_index_is_undefined() -> None:
    models = {"model": at(0.0), "original": at(2.2), "retrained": at(2.1)}
    given = audit(models, ones(9, TARGET, "f"), ones(5, -1.0, "r"), Regression())
    why = Unavailable("undefined: retrained is at the target before any step")
    assert Relearn()(given)["relearn/ain"] == why


@pytest.fixture(scope="module")
def tiny() -> World:
    return world("class", n=60)


def blank(w: World, seed: int = 4) -> nn.Module:
    """Return a network that was trained on without the forget set."""
    torch.manual_seed(seed)
    return fit(w.new_model(), w.task, w.retain, w.recipe, runtime=QUIET, seed=seed)


def scored(w: World, models: dict[str, Any], *metrics: Any, **more: Any) -> Scores:
    given = {"train": w.train, "test": w.test, "scenario": w.scenario, "runtime": QUIET}
    return evaluate(models, w.task, metrics=metrics or ["relearn"], **(given | more))


def slow_steps(model: nn.Module, w: World, metric: Relearn, known: float) -> int:
    """Count steps with the whole forget set asked each time and each batch in one piece."""
    model = copy.deepcopy(model).eval()
    sets = []
    for data, part, size in ((w.forget, "forget", 24), (w.retain, "retain", 8)):
        ordered = data.subset(sorted(data.ids))
        batch = ordered.read(range(len(ordered)))
        order = _tune.Part(ordered, np.arange(len(ordered))).order(size, "relearn", 0, part)
        sets.append((batch.inputs, batch.target, order))
    (x, y, _), _ = sets
    optimizer = torch.optim.SGD(model.parameters(), lr=metric.lr)
    for step in range(metric.cap):
        if float((model(x).argmax(1) == y).double().mean()) >= 0.95 * known:
            return step
        pick = [(inputs, target, torch.from_numpy(next(order))) for inputs, target, order in sets]
        inputs = torch.cat([i[rows] for i, _, rows in pick])
        target = torch.cat([t[rows] for _, t, rows in pick])
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), target).backward()
        optimizer.step()
    return metric.cap


def test_steps_of_a_classifier_are_those_of_a_slow_reference(tiny: World) -> None:
    model = blank(tiny)
    batch = tiny.forget.read(range(len(tiny.forget)))
    known = float((tiny.model(batch.inputs).argmax(1) == batch.target).double().mean())
    found = scored(tiny, {"original": tiny.model, "mine": model})["mine"]["relearn/steps"]
    assert isinstance(found, Value)
    assert found.x == slow_steps(model, tiny, Relearn(), known)
    assert 0 < found.x < Relearn().cap


def test_the_original_needs_no_step_and_a_copy_of_retrained_is_as_retrained(tiny: World) -> None:
    retrained = blank(tiny)
    models = {"original": tiny.model, "retrained": retrained, "same": copy.deepcopy(retrained)}
    scores = scored(tiny, models, "relearn", "robustness")
    assert scores["original"]["relearn/steps"] == scores["no_op"]["relearn/steps"] == Value.single(0.0, "steps")
    index = scores["no_op"]["relearn/ain"]
    assert isinstance(index, Value)
    assert index.x == 0.0
    for name, value in scores["retrained"].items():
        if name != "relearn/ain":
            assert scores["same"][name] == value
            assert scores.gaps["same"][name].x == 0.0
    assert scores["same"]["relearn/ain"] == Value.single(1.0, "ratio")
    assert scores["retrained"]["relearn/ain"] == Unavailable("it is the reference itself")
    masked = scores["head_mask"]["relearn/steps"]
    assert isinstance(masked, Value)
    assert (masked.x, masked.low, masked.high) == (250.0, 250.0, math.inf)
    assert scores.gaps["no_op"]["relearn/few"].n == len(tiny.forget) - 1  # paired by sample


def test_retrained_is_trained_once_for_all_that_are_compared_with_it(
    tiny: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    retrained, made = blank(tiny), list[nn.Module]()
    before = _tune.copied

    def counted(audit: Audit, role: str = "model") -> nn.Module:
        made.append(audit.models[role])
        return before(audit, role)

    monkeypatch.setattr(_tune, "copied", counted)
    models = {"original": tiny.model, "retrained": retrained, "a": blank(tiny, 5), "b": blank(tiny, 6)}
    scored(tiny, models, Relearn(cap=40))
    assert sum(m is retrained for m in made) == 2  # the count, and the few
    with torch.no_grad():
        next(retrained.parameters()).add_(1.0)  # other weights are another model
    scored(tiny, models, Relearn(cap=40))
    assert sum(m is retrained for m in made) == 4


def test_order_of_the_samples_and_batches_change_nothing(tiny: World) -> None:
    order = torch.randperm(len(tiny.train), generator=torch.Generator().manual_seed(3))
    shuffled = tiny.train.subset([tiny.train.ids[int(i)] for i in order])
    case = replace(tiny.scenario, train=tuple(shuffled.ids))
    models = {"original": tiny.model, "retrained": blank(tiny), "mine": blank(tiny, 5)}

    def numbers(**more: Any) -> dict[str, float]:
        found = scored(tiny, models, Relearn(cap=40), "robustness", **more)["mine"]
        return {k: v.x for k, v in found.items() if isinstance(v, Value)}

    want = numbers()
    assert len(want) == 6
    assert numbers(train=shuffled, scenario=case) == pytest.approx(want, abs=1e-5)
    assert numbers(runtime=replace(QUIET, batch_size=100)) == pytest.approx(want, abs=1e-5)
    assert numbers() == want


def test_the_caller_sees_nothing_move(tiny: World) -> None:
    model = tiny.model.train()
    model[1].eval()
    model[4].bias.requires_grad_(False)
    retrained = blank(tiny)
    before = (weights_digest(model), [m.training for m in model.modules()], torch.get_rng_state())
    states = random.getstate(), np.random.get_state()[1].copy()
    with torch.no_grad():
        scored(tiny, {"original": model, "retrained": retrained}, Relearn(cap=9), "robustness")
        assert not torch.is_grad_enabled()
    after = (weights_digest(model), [m.training for m in model.modules()], torch.get_rng_state())
    assert after[:2] == before[:2]
    assert torch.equal(after[2], before[2])
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())
    model[4].bias.requires_grad_(True)
    model.eval()


def test_frozen_parameters_and_statistics_stay(tiny: World) -> None:
    model = blank(tiny)
    model[0].weight.requires_grad_(False)
    given = audit({"model": model}, tiny.forget, tiny.retain, tiny.task)
    work = _tune.copied(given)
    part = _tune.some(given, "forget", 100)
    for step in _tune.training(work, tiny.task, [(part, part.order(8, 0))], 0.1, QUIET):
        if step == 3:
            break
    assert torch.equal(work[0].weight, model[0].weight)
    assert torch.equal(work[1].running_mean, model[1].running_mean)
    assert torch.equal(work[1].num_batches_tracked, model[1].num_batches_tracked)
    assert not torch.equal(work[4].weight, model[4].weight)


class Sequences(nn.Module):
    """A recurrent layer with dropout between its two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.LSTM(2, 4, num_layers=2, dropout=0.5, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][:, -1])  # type: ignore[no-any-return]


def dictionary() -> tuple[nn.Module, Data, Task]:
    model, data = CASES["dict_inputs"].make(torch.float32)
    return model, data, Classification()


def sequences() -> tuple[nn.Module, Data, Task]:
    torch.manual_seed(1)
    return Sequences().eval(), Data.from_arrays(torch.randn(12, 5, 2), torch.arange(12) % 3), Classification()


def patients() -> tuple[nn.Module, Data, Task]:
    problem = diabetes()
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(10, 4), nn.ReLU(), nn.Linear(4, 1)).eval(), problem.train, problem.task


@pytest.mark.parametrize("build", [dictionary, sequences, patients])
def test_any_network_and_task_can_be_relearned_and_disturbed(build: Callable[[], tuple[nn.Module, Data, Task]]) -> None:
    model, data, task = build()
    forget, retain = data.subset(data.ids[:6]), data.without(data.ids[:6])
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.3)
    given = audit({"model": other, "original": model, "retrained": other}, forget, retain, task)
    assert (given.is_reference, weights_digest(other)) == (True, weights_digest(given.models["retrained"]))
    for metric in (Relearn(cap=9), Robustness()):
        values = [v for v in metric(given).values() if isinstance(v, Value)]
        assert len(values) + (metric.numbers.keys() >= {"relearn/ain"}) == 3
        assert metric(given) == metric(given)


def test_dropout_is_off_in_recurrent_layers_and_the_copy_answers_as_the_model() -> None:
    model, data, task = sequences()
    given = audit({"model": model}, data.subset(data.ids[:6]), data.without(data.ids[:6]), task)
    work = _tune.copied(given)
    inputs = data.read(range(4)).inputs
    assert torch.equal(work(inputs), model(inputs))
    assert torch.equal(work(inputs), work(inputs))


class Uncopied(nn.Linear):
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("no")


def reason(model: nn.Module, number: str = "relearn/few", **settings: Any) -> str:
    data = Data.from_arrays(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2)
    forget, retain = data.subset(data.ids[:10]), data.without(data.ids[:10])
    found = Relearn(**settings)(audit({"model": model}, forget, retain, Classification()))[number]
    assert isinstance(found, Unavailable)
    return found.reason


def test_what_cannot_be_relearned_says_why(tiny: World) -> None:
    frozen = nn.Linear(4, 2).requires_grad_(False)
    assert reason(frozen) == "the model has no trainable parameters"
    assert reason(Uncopied(4, 2)).startswith("no copy of the model can be made: Expected a model that can be copied")
    assert reason(nn.Sequential(nn.Linear(4, 2)), lr=1e38).startswith("fine-tuning diverged: a loss is NaN or infinite")
    assert reason(nn.Linear(4, 2), "relearn/steps") == "there is no original model to compare with"
    aside = nn.Linear(4, 2)
    aside.forward = lambda x: x[:, :2]  # type: ignore[method-assign]
    assert reason(aside) == "its outputs do not depend on a trainable parameter"

    one = forget_ids(tiny.train, tiny.train.ids[:1])
    found = scored(tiny, {"original": tiny.model}, scenario=one)["original"]
    assert found["relearn/few"] == Unavailable("one forget sample leaves no other to ask about")
    wrong = Data.from_arrays(tiny.forget.read(range(5)).inputs, torch.full((5,), 2), name="wrong")
    given = audit({"model": blank(tiny), "original": tiny.model}, wrong, tiny.retain, tiny.task)
    steps = Relearn()(given)["relearn/steps"]
    assert steps == Unavailable("the original has no forget sample right: there is nothing that could come back")
    bare = Relearn()(replace(given, data={}))
    assert set(bare.values()) == {Unavailable("the samples themselves were not given, only outputs")}
    outputs_only = Relearn()(replace(given, models={}))["relearn/few"]
    assert outputs_only == Unavailable("the model itself was not given, only its outputs")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"cap": 0}, "relearn.cap of 1 or more, got 0"),
        ({"mix": 1.0}, r"relearn.mix in \[0, 1\), got 1.0"),
        ({"lr": 0.0}, "relearn.lr above 0, got 0.0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        Relearn(**settings)


def test_a_large_forget_set_is_drawn_from_and_all_models_get_the_same_draw(tiny: World) -> None:
    given = audit({"model": tiny.model}, tiny.forget, tiny.retain, tiny.task)
    part, again = (_tune.some(given, "forget", 5, "x") for _ in range(2))
    assert len(part) == 5
    assert part.at.tolist() == again.at.tolist()
    assert part.data.ids == [tiny.forget.ids[int(i)] for i in part.at]
    assert part.at.tolist() != _tune.some(given, "forget", 5, "y").at.tolist()
    metric = Relearn(limit=5)
    found = metric(given)["relearn/few"]
    assert isinstance(found, Value)
    assert found.n == 4


def digit_models(
    train: Data, forget: tuple[str, ...], new_model: Callable[[], nn.Module], epochs: int
) -> dict[str, Any]:
    """Return a network that saw the forget set and two that did not."""
    recipe = Recipe(epochs=epochs, batch_size=64, lr=0.1, schedule="cosine")

    def trained(data: Data, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return fit(new_model(), Classification(), data, recipe, runtime=QUIET, seed=seed)

    retain = train.without(forget)
    return {"original": trained(train, 0), "retrained": [trained(retain, 1), trained(retain, 2)]}


def test_a_hidden_class_is_exposed_and_a_second_retrained_model_is_not() -> None:
    problem = digits()
    case = forget_class(problem.train, 3)
    more = {"train": problem.train, "test": problem.test, "scenario": case, "runtime": QUIET}
    models = digit_models(problem.train, case.forget, lambda: MLP((1, 8, 8), 10), epochs=10)
    scores = evaluate(models, problem.task, metrics=["probe", "relearn", "robustness"], **more)
    for name in ("probe/one_shot", "relearn/steps"):
        assert scores.distances["head_mask"][name] > 2 * scores.distances[FLOOR][name]
    for name in ("relearn/steps", "relearn/ain", "relearn/few", "robustness/int8", "robustness/noise"):
        assert scores.distances["no_op"][name] > 5 * scores.distances[FLOOR][name]
    assert 0.5 < scores[FLOOR]["relearn/ain"].x < 2.0  # type: ignore[union-attr]


def test_wrong_labels_come_back_from_who_learned_them_and_not_from_retrained() -> None:
    problem = digits()
    train, ids = mislabelled(problem.train, 0.05, classes=10, seed=0)
    case = forget_ids(train, ids)
    more = {"train": train, "test": problem.test, "scenario": case, "runtime": QUIET}
    models = digit_models(train, case.forget, lambda: ConvNet((1, 8, 8), 10), epochs=10)
    scores = evaluate(models, problem.task, metrics=["probe", "relearn", "robustness"], **more)
    for name in ("relearn/steps", "relearn/few", "robustness/finetune", "probe/label"):
        assert scores.distances["no_op"][name] > 3 * scores.distances[FLOOR][name]
    assert scores.gaps["no_op"]["relearn/few"].low > 0
    assert scores.gaps[FLOOR]["relearn/few"].low <= 0 <= scores.gaps[FLOOR]["relearn/few"].high
