"""Products with curvature and sums of gradients: in chunks with an unequal last batch, beside whole matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian

from cases import CASES, QUIET, Case, Tied, blobs, deep
from expunge.data import Data
from expunge.errors import NotFinite, UserError
from expunge.influence import Curvature, Kind, Space, directional, gradient, named
from expunge.influence.gram import rows_of
from expunge.runtime import Runtime
from expunge.task import Binary, Classification, MultiLabel, Quantile, Regression, Task

D = torch.float64
SMALL = ["linear", "linear_weighted", "linear_regression", "inplace_relu", "residual", "tied", "frozen", "keyword"]
SMOOTH = ["conv", "batchnorm2d", "layernorm", "embedding", "attention", "recurrent", "bidirectional", "dict_inputs"]


def made(case: Case) -> tuple[nn.Module, Data, Space]:
    model, data = case.make()
    return model, data, Space(model)


def slow_hessian(model: nn.Module, case: Case, data: Data, space: Space) -> Tensor:
    """Return the Hessian of the weighted sum of losses, by differentiating all of it at once."""
    batch = data.read(range(len(data)))

    def total(theta: Tensor) -> Tensor:
        values = {
            name: theta[at].view(p.shape)
            for (name, p), at in zip(space.params.items(), space.slices.values(), strict=True)
        }

        class Bare(nn.Module):
            def forward(self, x: Any) -> Any:
                return functional_call(model, values, (x,))

        outputs, _ = case.task.forward(Bare(), batch)
        losses = case.task.loss(outputs, batch.target)
        return (losses if batch.weight is None else losses * batch.weight.to(losses)).sum()

    return hessian(total)(space.weights())


@pytest.mark.parametrize("name", SMALL)
def test_hessian_in_chunks_is_the_whole_one(name: str):
    case = CASES[name]
    model, data, space = made(case)
    found = Curvature(space, case.task, [data], QUIET).products(torch.eye(space.size, dtype=D))
    torch.testing.assert_close(found, slow_hessian(model, case, data, space), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", SMOOTH)
def test_hessian_products_are_differences_of_gradients(name: str):
    case = CASES[name]
    _, data, space = made(case)
    v = torch.randn(space.size, dtype=D)
    if name == "embedding":
        v[:4] = 0  # the row of padding has no gradient: it does not move
    found = Curvature(space, case.task, [data], QUIET, scale=0.5).products(v[None])[0]
    start, step = space.weights(), 1e-5
    space.put(start + step * v)
    up = gradient(space, case.task, data, QUIET)
    space.put(start - step * v)
    down = gradient(space, case.task, data, QUIET)
    torch.testing.assert_close(found, 0.5 * (up - down) / (2 * step), rtol=1e-5, atol=1e-7)


def test_gradients_of_samples_add_up_with_their_weights():
    case = CASES["linear_weighted"]
    _, data, space = made(case)
    rows = rows_of(space.model, case.task, data, QUIET).values
    torch.testing.assert_close(gradient(space, case.task, data, QUIET), rows.sum(0), rtol=1e-10, atol=1e-12)
    by = torch.randn(len(data), dtype=D)
    torch.testing.assert_close(gradient(space, case.task, data, QUIET, by=by), by @ rows, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [*SMALL, *SMOOTH])
def test_derivatives_along_a_direction_are_those_of_each_sample(name: str):
    case = CASES[name]
    _, data, space = made(case)
    v = torch.randn(space.size, dtype=D)
    rows = rows_of(space.model, case.task, data, QUIET).values
    torch.testing.assert_close(directional(space, case.task, data, QUIET, v), rows @ v, rtol=1e-8, atol=1e-11)
    found = Curvature(space, case.task, [data], QUIET, kind="fisher").products(v[None])[0]
    torch.testing.assert_close(found, rows.T @ (rows @ v), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", ["inplace_relu", "conv", "linear_regression", "linear_weighted"])
def test_gauss_newton_is_its_definition(name: str):
    """Σ w·JᵀHJ with J sample by sample and output by output, H by differentiating the loss twice."""
    case = CASES[name]
    model, data, space = made(case)
    want = torch.zeros(space.size, space.size, dtype=D)
    batch = data.read(range(len(data)))
    for i in range(len(data)):
        one = batch.part(slice(i, i + 1))
        outputs, _ = case.task.forward(model, one)
        rows = [torch.autograd.grad(o, list(space.params.values()), retain_graph=True) for o in outputs[0]]
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        inner = hessian(lambda z, y=one.target: case.task.loss(z[None], y).sum())(outputs[0].detach())
        want += (1.0 if one.weight is None else float(one.weight[0])) * jacobian.T @ inner @ jacobian
    found = Curvature(space, case.task, [data], QUIET, kind="gauss_newton").products(torch.eye(space.size, dtype=D))
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-10)


def test_gauss_newton_is_the_hessian_where_outputs_are_linear_in_the_weights():
    data, task = blobs(8), Classification()
    space = Space(nn.Linear(4, 3).double().eval())
    unit = torch.eye(space.size, dtype=D)
    one, two = (Curvature(space, task, [data], QUIET, kind=k).products(unit) for k in ("hessian", "gauss_newton"))
    torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton", "fisher"])
def test_batches_and_partitions_do_not_matter(kind: Kind):
    model, data, task = deep().eval(), blobs(23), Classification()
    space = Space(model)
    v = torch.randn(2, space.size, dtype=D)
    whole = Curvature(space, task, [data], Runtime(batch_size=23, progress=False), kind=kind).products(v)
    parts = [data.subset(data.ids[:9]), data.subset(data.ids[9:])]
    found = Curvature(space, task, parts, Runtime(batch_size=4, progress=False), kind=kind).products(v)
    torch.testing.assert_close(found, whole, rtol=1e-9, atol=1e-11)


def test_an_estimate_over_all_samples_is_the_product_and_one_over_some_is_scaled_up():
    model, data, task = deep().eval(), blobs(10), Classification()
    space = Space(model)
    curvature = Curvature(space, task, [data.subset(data.ids[:4]), data.subset(data.ids[4:])], QUIET, scale=0.1)
    v = torch.randn(space.size, dtype=D)
    every = torch.arange(10).numpy()
    torch.testing.assert_close(curvature.estimate(v, every), curvature.products(v[None])[0])
    halves = curvature.estimate(v, every[:5]), curvature.estimate(v, every[5:])
    torch.testing.assert_close((halves[0] + halves[1]) / 2, curvature.products(v[None])[0])


def test_masked_weights_have_no_rows_and_no_columns():
    model, data, task = deep().eval(), blobs(9), Classification()
    space = Space(model)
    free = torch.arange(space.size) % 3 > 0
    whole = Curvature(space, task, [data], QUIET).products(torch.eye(space.size, dtype=D))
    found = Curvature(space, task, [data], QUIET, free=free).products(torch.eye(space.size, dtype=D))
    torch.testing.assert_close(found, whole * free * free[:, None])


def test_the_model_is_left_as_it_was():
    model, data, task = deep().eval(), blobs(9), Classification()
    model[1].bias.requires_grad_(False)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    flags = [p.requires_grad for p in model.parameters()]
    space = Space(model, ["1.weight"])
    Curvature(space, task, [data], QUIET).products(space.weights()[None])
    gradient(space, task, data, QUIET)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())
    assert [p.requires_grad for p in model.parameters()] == flags


def test_layers_are_named_by_their_modules():
    model, data, task = deep().eval(), blobs(9), Classification()
    few = data.read([0])
    assert named(model, "all", task, few) == [n for n, _ in model.named_parameters()]
    assert named(model, "last", task, few) == ["1.weight", "1.bias"]
    assert named(model, "0.0", task, few) == ["0.0.0.weight", "0.0.0.bias", "0.0.1.weight", "0.0.1.bias"]
    assert named(model, ("0.2", "1"), task, few) == ["0.2.weight", "0.2.bias", "1.weight", "1.bias"]


def test_the_last_layer_is_the_one_called_last_and_not_the_one_written_last():
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(4, 3), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    model = Backwards().double().eval()
    assert named(model, "last", Classification(), blobs(3).read([0])) == ["head.weight", "head.bias"]


class Token(nn.Module):
    """A network with a weight of its own beside its head's, and so left after it."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.head = nn.Parameter(torch.zeros(4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.token)


def test_the_last_layer_of_networks_in_networks_and_of_a_single_layer():
    few, task = blobs(3, dtype=torch.float32).read([0]), Classification()
    inside = nn.Sequential(Token())
    encoder = nn.Sequential(nn.Unflatten(1, (2, 2)), nn.TransformerEncoderLayer(2, 1, 4, batch_first=True))
    found = [named(m.eval(), "last", task, few) for m in (Token(), inside, nn.Linear(4, 3))]
    assert found == [["head.weight", "head.bias"], ["0.head.weight", "0.head.bias"], ["weight", "bias"]]
    assert named(nn.Sequential(encoder, nn.Flatten()).eval(), "last", task, few) == [
        "0.1.norm2.weight",
        "0.1.norm2.bias",
    ]
    still = nn.Sequential(Token().requires_grad_(False), nn.Flatten())
    still.spare = nn.Linear(2, 2)
    still.forward = lambda x: still[0](x)
    with pytest.raises(UserError, match="a last layer with trainable weights, got none that is called: name layers"):
        named(still.eval(), "last", task, few)


def test_a_layer_whose_weights_are_partly_tied_to_another_is_refused_without_that_other():
    model, few = Tied().eval(), Data.from_arrays(torch.zeros(3, 2, dtype=torch.long), torch.arange(3)).read([0])
    text = "layers with weights of their own, got tied ones in head: name the layer that they are tied to as well"
    for layers in ("last", "head"):
        with pytest.raises(UserError, match=text):
            named(model, layers, Classification(), few)
    assert named(model, ["embedding", "head"], Classification(), few) == ["embedding.weight", "head.bias"]


def test_an_unknown_layer_is_refused_with_those_that_exist():
    model, few = deep().eval(), blobs(3).read([0])
    with pytest.raises(UserError, match=r"of 0.0.0, 0.0.1, 0.2, 1, got 'heads'"):
        named(model, "heads", Classification(), few)
    with pytest.raises(UserError, match="layers with trainable weights, of 0.0.0, 0.0.1, 0.2, 1, got '0.1'"):
        named(model, ["1", "0.1"], Classification(), few)


def test_a_loss_that_is_linear_in_the_outputs_has_no_gauss_newton_products():
    case = CASES["linear_absolute"]
    _, data, space = made(case)
    with pytest.raises(
        UserError, match="a loss that is curved in the outputs, for Gauss-Newton products of Regression"
    ):
        Curvature(space, case.task, [data], QUIET, kind="gauss_newton").products(space.weights()[None])
    space = Space(nn.Linear(4, 2).double().eval())
    assert not Curvature(space, case.task, [data], QUIET).products(space.weights()[None]).any()


def test_what_cannot_be_differentiated_as_a_sum_is_refused():
    model, data = CASES["embedding_by_frequency"].make()
    with pytest.raises(UserError, match="gradients that are sums over samples, got some scaled by frequencies"):
        Space(model)
    model, data = deep(), blobs(6)
    with pytest.raises(UserError, match="weights of float32 or float64, for curvature, got torch.bfloat16"):
        Space(deep(torch.bfloat16))
    with pytest.raises(UserError, match="a model in eval mode"):
        gradient(Space(model.train()), Classification(), data, QUIET)
    with pytest.raises(UserError, match="labelled samples, got none with labels"):
        gradient(Space(model.eval()), Classification(), data.unlabelled(), QUIET)
    with pytest.raises(UserError, match="a known curvature, got 'hesian': did you mean 'hessian'"):
        Curvature(Space(model), Classification(), [data], QUIET, kind="hesian")  # type: ignore[arg-type]


def labelled(task: Task) -> tuple[int, Data]:
    """Return the outputs that a task takes and samples for it."""
    x = blobs(11).read(range(11)).inputs
    if isinstance(task, MultiLabel):
        return 3, Data.from_arrays(x, torch.arange(33).reshape(11, 3) % 2)
    if isinstance(task, Binary):
        return 1, Data.from_arrays(x, torch.arange(11) % 2)
    return (3 if isinstance(task, Quantile) else 1), Data.from_arrays(x, x[:, :1] - 0.3 * x[:, 1:2])


@pytest.mark.parametrize("task", [Binary(), MultiLabel(), Regression()], ids=lambda t: type(t).__name__)
def test_of_every_curved_task_a_linear_model_has_its_hessian_in_gauss_newton_form(task: Task):
    width, data = labelled(task)
    space = Space(nn.Linear(4, width).double().eval())
    unit = torch.eye(space.size, dtype=D)
    one, two = (Curvature(space, task, [data], QUIET, kind=k).products(unit) for k in ("hessian", "gauss_newton"))
    assert one.any()
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_quantiles_have_fisher_products_and_no_gauss_newton_ones():
    width, data = labelled(Quantile())
    space = Space(nn.Linear(4, width).double().eval())
    with pytest.raises(UserError, match="for Gauss-Newton products of Quantile"):
        Curvature(space, Quantile(), [data], QUIET, kind="gauss_newton").products(space.weights()[None])
    found = Curvature(space, Quantile(), [data], QUIET, kind="fisher").products(torch.eye(space.size, dtype=D))
    rows = rows_of(space.model, Quantile(), data, QUIET).values
    torch.testing.assert_close(found, rows.T @ rows, rtol=1e-9, atol=1e-12)


def test_nan_in_data_is_named():
    x = torch.ones(4, 2, dtype=D)
    x[2, 1] = torch.nan
    data = Data.from_arrays(x, torch.zeros(4, 1, dtype=D))
    space = Space(nn.Linear(2, 1).double().eval())
    with pytest.raises(NotFinite, match="finite gradients over train, got NaN or infinity"):
        gradient(space, Regression(), data, QUIET)
