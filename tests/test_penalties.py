"""Gradient restriction: the numbers of both forms, its gradient, training with it, files that spell it."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import Attention, blobs, deep, gap
from expunge.data import Batch, Data
from expunge.errors import UserError
from expunge.files import digest
from expunge.identity import described
from expunge.masks import Masks
from expunge.methods import load
from expunge.methods._pruning import part
from expunge.penalties import GradientNorm, without_cudnn
from expunge.recipe import Joint, Penalty, Recipe, fields_of
from expunge.runtime import Runtime
from expunge.task import Classification, Regression
from expunge.tensors import parameters
from expunge.train import fit, fresh
from expunge.unlearn import unlearn

D = torch.float64
TASK = Classification()
QUIET = Runtime(progress=False, device="cpu", batch_size=16)
FORMS = ("global", "per_tensor")
RECIPE = Recipe(epochs=2, batch_size=8, lr=0.1)


class Half(Regression):
    """Half the squared error."""

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return 0.5 * super().loss(outputs, target)


def three() -> tuple[nn.Module, Batch]:
    """Return the linear model of the specification with its three samples."""
    model = nn.Linear(2, 1, dtype=D)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))
        model.bias.fill_(0.5)
    x = torch.tensor([[1, 0], [2, 1], [0, 3]], dtype=D)
    return model, Batch(x, torch.tensor([1, 0, -4], dtype=D), None, torch.arange(3))


def losses_of(model: nn.Module, batch: Batch, task: Any = TASK) -> tuple[Tensor, Tensor]:
    outputs, _ = task.forward(model, batch)
    return outputs, task.loss(outputs, batch.target)


def whole(data: Data) -> Batch:
    return data.read(range(len(data)))


def trained(*penalties: Penalty, model: nn.Module | None = None, data: Data | None = None, **more: Any) -> nn.Module:
    recipe = replace(RECIPE, penalties=penalties, **more)
    return fit(deep() if model is None else model, TASK, data or blobs(23), recipe, runtime=QUIET, seed=3)


@pytest.mark.parametrize(("form", "want"), [("global", 0.4655019377), ("per_tensor", 0.4662866698)])
def test_both_forms_by_hand(form: Any, want: float) -> None:
    model, batch = three()
    outputs, losses = losses_of(model, batch, Half())
    assert losses.mean().item() == pytest.approx(0.4583333333, abs=1e-10)
    weight, bias = GradientNorm().part(model, batch, losses)
    assert weight.flatten().tolist() == pytest.approx([0.5, -1.3333333333], abs=1e-10)
    assert bias.item() == pytest.approx(-0.1666666667, abs=1e-10)
    norm = {"global": 1.4337208778, "per_tensor": 1.5906672909}[form]
    assert GradientNorm(alpha=1, form=form)(model, batch, outputs, losses).item() == pytest.approx(norm, abs=1e-9)
    found = losses.mean() + GradientNorm(form=form)(model, batch, outputs, losses)
    assert found.item() == pytest.approx(want, abs=1e-9)


def test_the_gradient_of_the_restricted_loss_by_hand() -> None:
    model, batch = three()
    outputs, losses = losses_of(model, batch, Half())
    (losses.mean() + GradientNorm(alpha=0.5)(model, batch, outputs, losses)).backward()
    assert model.weight.grad is not None
    assert model.bias.grad is not None
    assert model.weight.grad.flatten().tolist() == pytest.approx([0.4225015742, -2.8445526370], abs=1e-9)
    assert model.bias.grad.item() == pytest.approx(-0.6704064346, abs=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_its_gradient_is_that_of_finite_differences_with_weights_of_samples(form: Any) -> None:
    model, penalty = deep(), GradientNorm(alpha=0.3, form=form)
    data = blobs(11)
    batch = replace(whole(data), weight=torch.linspace(0.2, 2, 11, dtype=D))

    def value() -> Tensor:
        return penalty(model, batch, *losses_of(model, batch))

    names = parameters(model)
    found = torch.autograd.grad(value(), list(names.values()))
    for p, g in zip(names.values(), found, strict=True):
        flat = p.detach().view(-1)
        for at in {0, flat.numel() // 2, flat.numel() - 1}:
            start, ends = flat[at].item(), list[float]()
            for h in (1e-5, -1e-5):
                flat[at] = start + h
                ends.append(value().item())
            flat[at] = start
            assert g.flatten()[at].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_where_the_gradient_is_zero_so_is_the_penaltys(form: Any) -> None:
    model, batch = three()
    still = replace(batch, target=model(batch.inputs).detach().flatten())
    outputs, losses = losses_of(model, still, Half())
    value = GradientNorm(form=form)(model, still, outputs, losses)
    value.backward()
    assert value.item() < 1e-7
    assert all(p.grad is not None and bool((p.grad == 0).all()) for p in model.parameters())


@pytest.mark.parametrize("form", FORMS)
def test_training_with_it_is_a_slow_loop_with_it(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last batch is one sample short; samples have weights; the form is written out anew."""
    alpha, x = 0.2, blobs(23)
    weight = torch.linspace(0.5, 1.5, 23)
    data = Data.from_arrays(whole(x).inputs, whole(x).target, weight=weight, name="train")
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(D)
    recipe = Recipe(epochs=1, batch_size=8, lr=0.1, penalties=(GradientNorm(alpha, form),))
    orders, read = list[Any](), Data.read

    def noted(self: Data, index: Any) -> Batch:
        orders.append(list(index))
        return read(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(Data, "read", noted)
        done = fit(model, TASK, data, recipe, runtime=QUIET, seed=3)
    slow = copy.deepcopy(model)
    optimizer = torch.optim.SGD(slow.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    assert [len(at) for at in orders] == [8, 8, 7]
    for at in orders:
        batch = data.read(at)
        assert batch.weight is not None
        loss = (F.cross_entropy(slow(batch.inputs), batch.target, reduction="none") * batch.weight).sum() / len(at)  # type: ignore[arg-type]
        squares = [g.square().sum() for g in torch.autograd.grad(loss, list(slow.parameters()), create_graph=True)]
        norm = sum(squares) ** 0.5 if form == "global" else sum(s**0.5 for s in squares)  # type: ignore[operator]
        optimizer.zero_grad()
        (loss + alpha * norm).backward()
        optimizer.step()
    assert gap(done.state_dict(), slow.state_dict()) < 1e-9


def test_a_restricted_model_has_the_smaller_gradient() -> None:
    def size(model: nn.Module) -> float:
        batch = whole(blobs(23))
        return GradientNorm(alpha=1)(model, batch, *losses_of(model, batch)).item()

    assert size(trained(GradientNorm(1.0), epochs=20)) < 0.7 * size(trained(epochs=20))


@pytest.mark.parametrize("form", FORMS)
def test_shares_of_a_batch_add_up_to_the_gradient_of_the_whole(form: Any) -> None:
    """Two processes, one after another: parts of 4 and 3 samples, the exchange in between."""
    model, penalty = deep().eval(), GradientNorm(alpha=0.3, form=form)
    data = blobs(7)
    weights = list(parameters(model).values())
    batch = whole(data)
    want = torch.autograd.grad(penalty(model, batch, *losses_of(model, batch)), weights)
    shares = [data.read(range(4)), data.read(range(4, 7))]
    parts = [penalty.part(model, one, losses_of(model, one)[1]) for one in shares]
    total = [sum(len(b) / 7 * g.detach() for b, g in zip(shares, two, strict=True)) for two in zip(*parts, strict=True)]
    found = [
        torch.autograd.grad(penalty.joined(mine, total) * len(b) / 7, weights)  # type: ignore[arg-type]
        for b, mine in zip(shares, parts, strict=True)
    ]
    for one, other, g in zip(*found, want, strict=True):
        assert torch.allclose(one + other, g, rtol=1e-9, atol=1e-12)


def test_it_is_part_of_retraining_and_of_training_on() -> None:
    data, recipe = blobs(23), replace(RECIPE, penalties=(GradientNorm(0.5),))
    model, gone = fit(deep(), TASK, data, recipe, runtime=QUIET), data.ids[:5]
    for name, fields in (("retrain", {}), ("finetune", {"epochs": 1})):
        found = [
            unlearn(
                load(name)(**fields),
                model,
                TASK,
                forget=gone,
                retain=data.without(gone),
                recipe=given,
                new_model=deep,
                runtime=QUIET,
            ).model
            for given in (recipe, RECIPE)
        ]
        assert gap(found[0].state_dict(), found[1].state_dict()) > 1e-4, name
    again = fit(fresh(model, new_model=deep), TASK, data.without(gone), recipe, runtime=QUIET)
    retrained = unlearn(
        load("retrain")(),
        model,
        TASK,
        forget=gone,
        retain=data.without(gone),
        recipe=recipe,
        new_model=deep,
        runtime=QUIET,
    )
    assert gap(retrained.model.state_dict(), again.state_dict()) == 0
    assert part(replace(recipe, epochs=5), 1, 3).penalties == recipe.penalties


def test_pruned_weights_stay_pruned() -> None:
    model = deep()
    masks = Masks({"1.weight": torch.arange(18).reshape(3, 6) % 2 == 0})
    masks.prune(model)
    recipe = replace(RECIPE, penalties=(GradientNorm(0.5),))
    done = fit(model, TASK, blobs(23), recipe, runtime=QUIET, masks=masks)
    assert masks.strays(done) == 0


def test_under_bf16_it_is_taken_at_full_precision() -> None:
    kinds = list[torch.dtype]()

    class Noted(GradientNorm):
        def part(self, model: nn.Module, batch: Batch, losses: Tensor) -> list[Tensor]:
            found = super().part(model, batch, losses)
            kinds.extend(g.dtype for g in found)
            return found

    data = blobs(23, dtype=torch.float32)
    half, full = (
        fit(
            deep(torch.float32),
            TASK,
            data,
            replace(RECIPE, penalties=(Noted(0.1),)),
            runtime=replace(QUIET, precision=precision),
        )
        for precision in ("bf16", "full")
    )
    assert set(kinds) == {torch.float32}
    assert gap(half.state_dict(), full.state_dict()) < 0.2


class Recurrent(nn.Module):
    """The last state of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x)[0][:, -1])


@pytest.mark.parametrize("build", [Attention, Recurrent], ids=lambda b: b.__name__)
def test_attention_and_recurrent_layers_train_with_it(build: Any) -> None:
    torch.manual_seed(0)
    model = build()
    x = torch.randn(9, 5, 4, generator=torch.Generator().manual_seed(1))
    data = Data.from_arrays(x, torch.arange(9) % 3, name="train")
    done = trained(GradientNorm(0.1), model=model, data=data)
    assert gap(done.state_dict(), model.state_dict()) > 1e-4


def test_recurrent_layers_on_a_gpu_run_without_cudnn() -> None:
    model: Any = SimpleNamespace(modules=lambda: [nn.LSTM(2, 2)], parameters=lambda: [SimpleNamespace(is_cuda=True)])
    before = torch.backends.cudnn.enabled
    with without_cudnn(model):
        assert not torch.backends.cudnn.enabled
    assert torch.backends.cudnn.enabled == before
    with without_cudnn(nn.LSTM(2, 2)):  # on the CPU
        assert torch.backends.cudnn.enabled == before


class Fused(nn.Module):
    """Attention by torch's fused kernel, whose backward pass has no derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.inner(x).reshape(len(x), 1, 2, 2)
        return self.head(F.scaled_dot_product_attention(rows, rows, rows).flatten(1))


def test_fused_attention_runs_by_the_plain_kernel() -> None:
    data = blobs(9, dtype=torch.float32)
    model = Fused()
    outputs, losses = losses_of(model, whole(data))
    with pytest.raises(RuntimeError, match="derivative for"):
        GradientNorm()(model, whole(data), outputs, losses).backward()
    done = trained(GradientNorm(0.1), model=model, data=data)
    assert gap(done.state_dict(), model.state_dict()) > 1e-4


class Bags(nn.Module):
    """A layer that PyTorch cannot differentiate twice."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bag(x)


class Broken(nn.Module):
    """A network with a fault of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("the roof is on fire")


def test_what_has_no_second_derivative_is_named() -> None:
    data = Data.from_arrays(torch.arange(18).reshape(9, 2) % 6, torch.arange(9) % 3, name="train")
    text = (
        "a network and a loss that can be differentiated twice, for GradientNorm, got _embedding_bag_backward: write "
        r"that operation out in plain ones, or train without the penalty \(gradient_norm\)"
    )
    with pytest.raises(UserError, match=text):
        trained(GradientNorm(), model=Bags(), data=data)
    trained(model=Bags(), data=data)
    with pytest.raises(RuntimeError, match="the roof is on fire"):
        trained(GradientNorm(), model=Broken(), data=blobs(9, dtype=torch.float32))


def test_json_and_digests_tell_two_strengths_and_forms_apart_and_read_back() -> None:
    some = [(), (GradientNorm(0.005),), (GradientNorm(0.01),), (GradientNorm(0.005, "per_tensor"),)]
    recipes = [replace(RECIPE, penalties=p) for p in some]
    assert len({digest(r.to_json()) for r in recipes}) == len({digest(described(r.penalties)) for r in recipes}) == 4
    for one in recipes:
        assert Recipe(**fields_of(one.to_json())) == one
    assert "gradient_norm" not in recipes[0].to_json()  # older digests hold
    assert recipes[1].to_json()["penalties"] == []


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (0.005, (GradientNorm(),)),
        (1, (GradientNorm(1.0),)),
        (0, ()),
        ({}, (GradientNorm(),)),
        ({"form": "per_tensor"}, (GradientNorm(form="per_tensor"),)),
        ({"alpha": 0.1, "form": "global"}, (GradientNorm(0.1),)),
    ],
)
def test_how_a_file_spells_it(value: Any, want: Any) -> None:
    assert fields_of({"gradient_norm": value, "milestones": [1]}) == {"milestones": (1,), "penalties": want}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-0.1, "Recipe.gradient_norm of 0 or more, got -0.1: give a finite number, or a table with alpha and form"),
        (math.nan, "Recipe.gradient_norm of 0 or more, got nan"),
        (True, "Recipe.gradient_norm of 0 or more, got True"),
        ("0.1", "Recipe.gradient_norm of 0 or more, got '0.1'"),
        (None, "Recipe.gradient_norm of 0 or more, got None"),
        ({"alpha": 0}, "Recipe.gradient_norm.alpha above 0, got 0: give a finite number in that range"),
        ({"form": "all"}, "Recipe.gradient_norm.form global or per_tensor, got 'all': choose one of them"),
        ({"alhpa": 1}, "Recipe.gradient_norm with alpha, form, got 'alhpa': did you mean 'alpha'"),
    ],
)
def test_values_of_a_file_that_are_refused(value: Any, text: str) -> None:
    with pytest.raises(UserError, match=text):
        fields_of({"gradient_norm": value})


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"alpha": 0.0}, "GradientNorm.alpha above 0, got 0.0: give a finite number in that range"),
        ({"alpha": "x"}, "GradientNorm.alpha above 0, got 'x'"),
        ({"form": "sum"}, "GradientNorm.form global or per_tensor, got 'sum': choose one of them"),
    ],
)
def test_settings_that_are_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        GradientNorm(**fields)


def test_two_of_them_are_refused() -> None:
    with pytest.raises(UserError, match="one GradientNorm in Recipe.penalties, got several: add their alphas up"):
        Recipe(penalties=(GradientNorm(0.1), GradientNorm(0.2)))


def test_it_is_a_joint_penalty() -> None:
    assert isinstance(GradientNorm(), Joint)
