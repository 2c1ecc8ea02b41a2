"""IAU: the numbers of one step, sums that no batch changes, what stays, and what the record says."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import Tied, blobs, deep, frozen_first, gap
from expunge.data import Batch, Data
from expunge.errors import MissingNeed, NotFinite, UserError
from expunge.influence import Space, gradient
from expunge.masks import Masks
from expunge.method import See, Session, State
from expunge.methods import load
from expunge.methods._gradients import SummedGradient
from expunge.methods.iau import _Watched
from expunge.passes import Passes
from expunge.runtime import Runtime
from expunge.task import Binary, Classification, MultiLabel, Quantile, Regression, Task
from expunge.tensors import parameters, weights_digest
from expunge.unlearn import Unlearned, unlearn

D = torch.float64
TASK = Classification()
QUIET = Runtime(progress=False, device="cpu", batch_size=7)
IAU = load("iau")
X = torch.tensor([[1, 0], [1, 1], [1, 2], [1, 3]], dtype=D)
Y = torch.tensor([1, 2, 2, 5], dtype=D)


class Half(Regression):
    """Half the squared error."""

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return 0.5 * super().loss(outputs, target)


class Summed(Regression):
    """A task whose loss of a sample is the sum of its outputs."""

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return outputs.sum(dim=1)


class Scaled(nn.Module):
    """Outputs x ⊙ θ, so that the gradient of a sample's summed outputs is the sample."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(values, dtype=D))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.theta


def line(*values: float) -> nn.Module:
    model = nn.Linear(2, 1, bias=False, dtype=D)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([values], dtype=D))
    return model


def forgotten(
    model: nn.Module, data: Data, ids: list[str], task: Task = TASK, runtime: Runtime = QUIET, **fields: Any
) -> Unlearned:
    """Return what iau makes of a model on a request for some ids."""
    method = IAU(**fields)
    retain = data.without(ids) if method.correction else None
    return unlearn(method, model, task, forget=data.subset(ids), retain=retain, runtime=runtime)


def stepped(*start: float, **fields: Any) -> list[float]:
    """Return the weights of the line after forgetting its last row."""
    data = Data.from_arrays(X, Y, name="train")
    return forgotten(line(*start), data, ["train/3"], Half(), **fields).model.weight.flatten().tolist()  # type: ignore[union-attr]


def weighted(n: int = 23, dtype: torch.dtype = D) -> Data:
    """Return blobs with weights of samples, in batches of 7 with a shorter last one."""
    batch = blobs(n, dtype=dtype).read(range(n))
    return Data.from_arrays(batch.inputs, batch.target, weight=torch.linspace(0.3, 1.8, n), name="train")


def slow(model: nn.Module, data: Data, reduction: str = "sum") -> dict[str, Tensor]:
    """Return S or ḡ of a data set, a sample at a time."""
    weights, work = parameters(model), model.eval()
    total = {name: torch.zeros_like(p) for name, p in weights.items()}
    for at in range(len(data)):
        batch = data.read([at])
        assert batch.target is not None
        loss = TASK.loss(work(batch.inputs), batch.target).sum()
        loss = loss if batch.weight is None else loss * batch.weight[0]
        for name, g in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            total[name] += g
    return {name: g / (len(data) if reduction == "mean" else 1) for name, g in total.items()}


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({"update": "sgd", "reduction": "sum", "correction": False}, [0.592, 1.176]),
        ({"update": "sgd", "reduction": "sum"}, [0.588, 1.158]),
        ({"update": "sgd", "reduction": "mean"}, [0.5906666667, 1.17]),
        ({"update": "adam_sign"}, [0.59, 1.19]),
    ],
)
def test_a_step_by_hand(fields: dict[str, Any], want: list[float]) -> None:
    assert stepped(0.6, 1.2, lr=0.01, **fields) == pytest.approx(want, abs=1e-9 if fields["update"] == "sgd" else 1e-6)


def test_the_gradients_by_hand() -> None:
    data = Data.from_arrays(X, Y, name="train")
    for rows, want in (([0, 1, 2], [0.4, 1.8]), ([3], [-0.8, -2.4])):
        found = SummedGradient(line(0.6, 1.2), Half(), QUIET)
        found.add(data, rows)
        assert found.close("train")["weight"].flatten().tolist() == pytest.approx(want, abs=1e-12)


def test_the_sums_are_those_that_influence_takes() -> None:
    model, data = deep().eval(), weighted()
    model[1].bias.requires_grad_(False)
    found = SummedGradient(model, TASK, QUIET)
    found.add(data)
    space = Space(model)
    assert list(found.close("train")) == list(space.params)
    assert torch.equal(space.filled(found.values), gradient(space, TASK, data, QUIET))


def test_from_an_optimum_sums_go_twice_as_far_as_ascent_alone() -> None:
    start = torch.linalg.lstsq(X, Y[:, None]).solution.flatten()
    assert start.tolist() == pytest.approx([0.7, 1.2], abs=1e-12)
    both = stepped(*start.tolist(), lr=0.01, update="sgd", reduction="sum")
    assert both == pytest.approx([0.686, 1.158], abs=1e-9)
    alone = stepped(*start.tolist(), lr=0.02, update="sgd", reduction="sum", correction=False)
    assert both == pytest.approx(alone, abs=1e-12)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_sign_step_is_a_fresh_adams(reduction: str) -> None:
    model = Scaled(1.0, 1.0, 1.0)
    data = Data.from_arrays(
        torch.tensor([[-10, 1e-3, 0], [0, 0, 0]], dtype=D), torch.zeros(2, 3, dtype=D), name="train"
    )
    done = forgotten(model, data, ["train/0"], Summed(), lr=1e-3, reduction=reduction, correction=False)
    assert (done.model.theta - 1).tolist() == pytest.approx([-0.001, 0.00099999, 0], abs=1e-12)  # type: ignore[operator]
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.theta.grad = torch.tensor([10, -1e-3, 0], dtype=D)
    adam.step()
    assert torch.allclose(done.model.theta, model.theta, rtol=0, atol=1e-14)  # type: ignore[arg-type]


@pytest.mark.parametrize("update", ["sgd", "adam_sign"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("correction", [True, False])
def test_steps_are_those_of_torch_on_gradients_of_single_samples(update: str, reduction: str, correction: bool) -> None:
    data, lr = weighted(), 0.02
    ids = data.ids[:5]
    model = deep().eval()
    fields = {"lr": lr, "update": update, "reduction": reduction, "correction": correction, "steps": 2}
    done = forgotten(model, data, ids, **fields)
    for _ in range(2):
        make = torch.optim.SGD if update == "sgd" else torch.optim.Adam
        optimizer = make(model.parameters(), lr=lr)  # a new one: nothing is carried from step to step
        up, down = slow(model, data.subset(ids), reduction), slow(model, data.without(ids), reduction)
        for name, p in parameters(model).items():
            p.grad = (down[name] if correction else 0) - up[name]
        optimizer.step()
    assert gap(done.model.state_dict(), model.state_dict()) < 1e-9


@pytest.mark.parametrize("size", [1, 3, 8, 64])
@pytest.mark.parametrize("update", ["sgd", "adam_sign"])
def test_no_batch_size_changes_it(size: int, update: str) -> None:
    data = weighted()
    some = [
        forgotten(deep(), data, data.ids[:5], runtime=replace(QUIET, batch_size=s), update=update, lr=0.1).model
        for s in (size, 7)
    ]
    assert gap(some[0].state_dict(), some[1].state_dict()) < 1e-11


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(23)), st.integers(0, 22))
def test_no_order_and_no_division_changes_the_sums(order: list[int], cut: int) -> None:
    model, data = deep().eval(), weighted()
    found = SummedGradient(model, TASK, QUIET)
    found.add(data, order[:cut])
    found.add(data.subset([data.ids[i] for i in order[cut:]]))
    assert gap(found.close("train"), slow(model, data)) < 1e-11


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(23)), st.floats(1e-6, 1e-1), st.sampled_from(["sum", "mean"]))
def test_no_order_of_the_samples_changes_the_step(order: list[int], lr: float, reduction: str) -> None:
    data = weighted()
    mixed = data.subset([data.ids[i] for i in order])
    some = [forgotten(deep(), d, data.ids[:5], lr=lr, update="sgd", reduction=reduction).model for d in (data, mixed)]
    assert gap(some[0].state_dict(), some[1].state_dict()) < 1e-11


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["sgd", "adam_sign"]), st.sampled_from(["sum", "mean"]), st.floats(-12, -3))
def test_the_shorter_the_step_the_less_it_changes(update: str, reduction: str, power: float) -> None:
    data, model = weighted(), deep()
    done = forgotten(model, data, data.ids[:5], lr=10**power, update=update, reduction=reduction)
    moved = max(
        float((a - b).detach().abs().max()) for a, b in zip(done.model.parameters(), model.parameters(), strict=True)
    )
    most = 1.0 if update == "adam_sign" else done.log["forget_gradient"][0][1] + done.log["retain_gradient"][0][1]
    assert 0 < moved <= 10**power * most * (1 + 1e-6) + 1e-15


def test_a_step_lost_in_rounding_changes_nothing_and_says_so() -> None:
    data = weighted()
    model = deep()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    done = forgotten(model, data, data.ids[:5], lr=1e-30)
    assert weights_digest(done.model) == weights_digest(model)
    assert "No weight moved: the gradients cancel or are 0" in done.note


def test_what_is_frozen_or_tied_or_no_parameter_stays() -> None:
    torch.manual_seed(0)
    model = frozen_first()
    data = Data.from_arrays(torch.randn(9, 4), torch.arange(9) % 3, name="train")
    done = forgotten(model, data, data.ids[:3], lr=0.1)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen
    now = dict(done.model.named_parameters())
    assert all(torch.equal(now[name], dict(model.named_parameters())[name]) for name in frozen)
    assert any(not torch.equal(now[n], p) for n, p in model.named_parameters() if n not in frozen)
    tied = Tied()
    words = Data.from_arrays(torch.arange(18).reshape(9, 2) % 5, torch.arange(9) % 5, name="train")
    after = forgotten(tied, words, words.ids[:3], lr=0.1, update="sgd", correction=False).model
    assert after.head.weight is after.embedding.weight  # type: ignore[union-attr]
    batch = words.read(range(3))
    loss = TASK.loss(tied(batch.inputs), batch.target).mean()  # type: ignore[arg-type]
    g = torch.autograd.grad(loss, tied.head.weight)[0]
    assert torch.allclose(after.head.weight, tied.head.weight + 0.1 * g, atol=1e-6)  # type: ignore[union-attr,arg-type]


def test_tables_give_the_same_step_with_sparse_gradients_and_are_refused_where_batches_scale_them() -> None:
    words = Data.from_arrays(torch.arange(18).reshape(9, 2) % 5, torch.arange(9) % 3, name="train")

    def made(**fields: Any) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(5, 4, **fields), nn.Flatten(), nn.Linear(8, 3))

    one, two = (forgotten(made(sparse=s), words, words.ids[:3], lr=0.1).model for s in (False, True))
    assert weights_digest(one) == weights_digest(two)
    text = (
        "gradients that are sums over samples, got some scaled by frequencies in a batch, of 0: set scale_grad_by_freq"
    )
    with pytest.raises(UserError, match=text):
        forgotten(made(scale_grad_by_freq=True), words, words.ids[:3])


def test_batch_norm_and_dropout_are_as_in_use() -> None:
    model = nn.Sequential(deep(), nn.Dropout(0.9)).train()
    data = weighted()
    done = forgotten(model, data, data.ids[:5], lr=0.1, update="sgd")
    other = forgotten(model[0], data, data.ids[:5], lr=0.1, update="sgd")
    assert gap(done.model[0].state_dict(), other.model.state_dict()) < 1e-12  # type: ignore[index]
    now = dict(done.model.named_buffers())
    assert all(torch.equal(now[name], b) for name, b in model.named_buffers())


@pytest.mark.parametrize("update", ["sgd", "adam_sign"])
def test_masked_weights_stay_to_the_bit(update: str) -> None:
    model, data = deep(), weighted()
    mask = torch.arange(18).reshape(3, 6) % 2 == 0
    given = {"forget": data.subset(data.ids[:5]), "retain": data.without(data.ids[:5])}
    method = IAU(update=update, lr=0.1, steps=2)
    session = Session(
        task=TASK,
        runtime=QUIET,
        seed=0,
        method="iau",
        phase="unlearn",
        needs=method.unlearns,
        source=model,
        given=given,
        masks=Masks({"1.weight": mask}),
    )
    made, _ = method.unlearn(session, State())
    start, now = model[1].weight, made[1].weight  # type: ignore[index]
    assert torch.equal(now[~mask], start[~mask])
    assert bool((now[mask] != start[mask]).any())
    assert session.log["step_norm"] == pytest.approx(
        math.sqrt(
            sum(
                float((a - b).detach().square().sum())
                for a, b in zip(made.parameters(), model.parameters(), strict=True)
            )
        )
    )


def test_it_runs_inside_salun() -> None:
    data = weighted()
    method = load("salun")(method=IAU(lr=0.1), density=0.3)
    model = deep()
    done = unlearn(
        method, model, TASK, forget=data.subset(data.ids[:5]), retain=data.without(data.ids[:5]), runtime=QUIET
    )
    assert done.changed is not None
    assert 0 < done.changed.share <= 0.3
    assert "were set back" not in done.note


TASKS: list[tuple[Task, int, Tensor]] = [
    (Classification(), 3, torch.arange(9) % 3),
    (Binary(), 1, torch.arange(9) % 2),
    (MultiLabel(), 2, torch.stack([torch.arange(9) % 2, torch.arange(9) % 3 > 0], dim=1).float()),
    (Regression(), 1, torch.linspace(-1, 1, 9)),
    (Regression(error="absolute"), 2, torch.linspace(-1, 1, 18).reshape(9, 2)),
    (Quantile(), 3, torch.linspace(-1, 1, 9)),
]


@pytest.mark.parametrize(("task", "width", "target"), TASKS, ids=[type(t[0]).__name__ for t in TASKS])
@pytest.mark.parametrize("update", ["sgd", "adam_sign"])
def test_every_task_with_a_loss(task: Task, width: int, target: Tensor, update: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, width)
    data = Data.from_arrays(torch.randn(9, 4), target, name="train")
    done = forgotten(model, data, data.ids[:3], task, lr=1e-3, update=update)

    def loss(made: nn.Module) -> float:
        batch = data.read(range(3))
        assert batch.target is not None
        return float(task.loss(task.forward(made, batch)[0], batch.target).detach().mean())

    alone = forgotten(model, data, data.ids[:3], task, lr=1e-3, update=update, correction=False)
    assert loss(alone.model) > loss(model)
    assert weights_digest(done.model) != weights_digest(model)
    assert done.log["forget_loss"] == [[1, pytest.approx(loss(model), rel=1e-5)]]


def test_what_it_reads() -> None:
    assert IAU().unlearns.retain == IAU().unlearns.forget == See.LABELLED
    assert IAU(correction=False).unlearns.retain == See.NONE
    assert IAU(steps=3).passes("unlearn", None) == {"forget": 3.0, "retain": 3.0}
    assert IAU(correction=False).passes("unlearn", None) == {"forget": 1.0}
    assert IAU().passes("prepare", None) == {}
    data = weighted()
    with pytest.raises(MissingNeed, match="retain for iau to unlearn, got none: pass retain="):
        unlearn(IAU(), deep(), TASK, forget=data.subset(data.ids[:5]), runtime=QUIET)


def test_each_sample_is_run_once_and_no_more_than_a_few_again(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [0]
    data = blobs(400)
    forward = Classification.forward

    def counted(self: Classification, model: nn.Module, batch: Batch, *more: Any) -> Any:
        runs[0] += len(batch)
        return forward(self, model, batch, *more)

    monkeypatch.setattr(Classification, "forward", counted)
    forgotten(deep(), data, data.ids[:40], lr=1e-2)
    assert 400 <= runs[0] <= 400 + 2 * 16  # the few retained ones that are looked at, there and mirrored


def test_memory_that_runs_out_halves_the_batch() -> None:
    class Hungry(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much")
            return super().forward(x)

    data, plain = weighted(), deep()
    done = forgotten(Hungry(plain), data, data.ids[:5], lr=0.1)
    other = forgotten(plain, data, data.ids[:5], lr=0.1)
    assert gap(done.model[0].state_dict(), other.model.state_dict()) < 1e-11  # type: ignore[index]


def test_bf16_gives_about_the_same_step() -> None:
    data = weighted(dtype=torch.float32)
    half, full = (
        forgotten(deep(torch.float32), data, data.ids[:5], runtime=replace(QUIET, precision=p), lr=0.1, update="sgd")
        for p in ("bf16", "full")
    )
    moved = full.log["step_norm"]
    apart = math.sqrt(
        sum(
            float((a - b).detach().square().sum())
            for a, b in zip(half.model.parameters(), full.model.parameters(), strict=True)
        )
    )
    assert apart < 0.05 * moved


def test_the_record_says_how_far_it_went_and_how_curved_the_loss_is() -> None:
    """The loss of the line is a parabola: its curvature along the step is δᵀXᵀXδ/‖δ‖², over the three retained rows."""
    data = Data.from_arrays(X, Y, name="train")
    for reduction, many in (("sum", 3), ("mean", 1)):
        done = forgotten(line(0.6, 1.2), data, ["train/3"], Half(), lr=0.01, update="sgd", reduction=reduction)
        step = done.model.weight.detach().flatten() - torch.tensor([0.6, 1.2], dtype=D)  # type: ignore[union-attr,operator]
        curvature = float((X[:3] @ step).square().sum() / 3 / step.square().sum())
        assert done.log["step_norm"] == pytest.approx(float(step.norm()))
        assert done.log["relative_step"] == pytest.approx(float(step.norm()) / math.hypot(0.6, 1.2))
        assert done.log["curvature"] == pytest.approx(curvature)
        assert done.log["lr_bound"] == pytest.approx(1 / curvature / many)
        assert done.log["watched"] == 3
        residuals = X[:3] @ done.model.weight.detach().flatten() - Y[:3]  # type: ignore[union-attr,operator]
        assert done.log["retain_loss_after"] == pytest.approx(float(0.5 * residuals.square().mean()))
        assert (
            done.log["retain_loss_before"]
            == done.log["retain_loss"][0][1]
            == pytest.approx(0.5 * (0.16 + 0.04 + 1) / 3)
        )
        assert done.note == ""
    assert done.log["forget_gradient"] == [[1, pytest.approx(math.hypot(0.8, 2.4))]]
    assert done.log["retain_gradient"] == [[1, pytest.approx(math.hypot(0.4, 1.8) / 3)]]
    both = 0.4 * -0.8 + 1.8 * -2.4
    assert done.log["alignment"] == [[1, pytest.approx(both / math.hypot(0.8, 2.4) / math.hypot(0.4, 1.8))]]


def test_too_long_a_step_is_noted() -> None:
    data = Data.from_arrays(X, Y, name="train")
    done = forgotten(line(0.6, 1.2), data, ["train/3"], Half(), lr=5.0, update="sgd")
    bound = f"{done.log['lr_bound']:.3g}"
    assert f"iau.lr 5 is above {bound}, one over the curvature of the retain loss along the step" in done.note
    assert "The mean loss on 3 retained samples rose from 0.2 to " in done.note
    assert "lower iau.lr (now 5) if that is not meant." in done.note


def test_a_step_that_overflows_is_refused() -> None:
    data = Data.from_arrays(X.float(), Y.float(), name="train")
    with pytest.raises(NotFinite, match=r"a finite loss on retain after iau, got inf: lower iau.lr \(now 1e\+30\)"):
        forgotten(line(0.6, 1.2).float(), data, ["train/3"], Half(), lr=1e30, update="sgd")


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    class Root(Regression):
        def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
            return outputs.flatten().abs().sqrt()

    data = Data.from_arrays(torch.zeros(3, 2, dtype=D), torch.zeros(3, dtype=D), name="train")
    text = "a finite gradient of the loss on train, got NaN or infinity in weight: check the weights and that data"
    with pytest.raises(NotFinite, match=text):
        forgotten(line(0.6, 1.2), data, ["train/2"], Root())


def test_a_loss_without_a_gradient_moves_nothing() -> None:
    class Flat(Regression):
        def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
            return torch.ones(len(outputs))

    data = Data.from_arrays(X, Y, name="train")
    done = forgotten(line(0.6, 1.2), data, ["train/3"], Flat())
    assert "No weight moved" in done.note
    with pytest.raises(UserError, match="a model with trainable parameters, got frozen ones only"):
        forgotten(line(0.6, 1.2).requires_grad_(False), data, ["train/3"], Half())


def test_the_retained_samples_looked_at_are_spread_over_the_set() -> None:
    watched = _Watched(None, None)  # type: ignore[arg-type]
    assert watched.positions(5).tolist() == [0, 1, 2, 3, 4]
    assert watched.positions(100).tolist() == np.linspace(0, 99, 16).round().astype(int).tolist()
    for n in (16, 17, 31, 33, 1000, 1601):
        found = watched.positions(n)
        assert len(set(found.tolist())) == max(16, n // 40)
        assert found[-1] == n - 1


def test_the_callers_model_is_as_it_was() -> None:
    data, model = weighted(), deep().train()
    before, passes = weights_digest(model), copy.deepcopy(model.state_dict())
    done = forgotten(model, data, data.ids[:5], lr=0.1)
    assert weights_digest(model) == before
    assert all(torch.equal(v, passes[k]) for k, v in model.state_dict().items())
    assert done.model.training
    assert all(p.grad is None for p in (*model.parameters(), *done.model.parameters()))
    assert Passes(QUIET).size == 7


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"lr": 0}, "iau.lr above 0, got 0: give a finite number in that range"),
        ({"lr": math.inf}, "iau.lr above 0, got inf"),
        ({"update": "adam"}, "iau.update sgd or adam_sign, got 'adam': choose one of them"),
        ({"reduction": "max"}, "iau.reduction sum or mean, got 'max': choose one of them"),
        ({"correction": 1}, "iau.correction True or False, got 1: choose one of them"),
        ({"steps": 0}, "iau.steps of 1 or more, got 0: give a whole number"),
    ],
)
def test_settings_that_are_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        IAU(**fields)


def test_the_code_on_its_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "iau.md").read_text()
    step, recipe = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    scope: dict[str, Any] = {}
    exec(step, scope)
    assert scope["done"].log["step_norm"] > 0
    assert str(scope["done"].log["relative_step"]) in capsys.readouterr().out
    exec(recipe, scope)
    assert scope["recipe"].to_json()["gradient_norm"] == {"alpha": 0.005, "form": "global"}


def test_the_defaults_are_those_of_the_published_code() -> None:
    assert IAU().settings() == {
        "name": "iau",
        "lr": 1e-3,
        "update": "adam_sign",
        "reduction": "mean",
        "correction": True,
        "steps": 1,
    }
