"""Integrated gradients: C3 to C6, both engines, the network's representation along concepts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import expunge.concepts.attribution as module
from cases import QUIET
from expunge.concepts.attribution import (
    chosen,
    class_attributions,
    class_logit,
    integrated_gradients,
    mean_gradients,
    network_attributions,
    tail,
)
from expunge.data import Data
from expunge.errors import Misfit, MissingExtra, UserError
from expunge.task import Binary, Classification, Regression

D = torch.float64
ENGINES = ["own", "captum"]


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=D)


def network(k: int = 3) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, k)).double()


def samples(n: int = 8, k: int = 3) -> Data:
    g = torch.Generator().manual_seed(1)
    return Data.from_arrays(torch.randn(n, 4, generator=g, dtype=D), torch.arange(n) % k)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bias", [0.0, 7.0])
def test_of_a_linear_function_it_is_the_weight_times_the_way_from_the_baseline(engine, bias):
    w = torch.tensor([1, -2, 0.5], dtype=D)
    found = integrated_gradients(lambda x: x @ w + bias, rows([2, 1, 4]), rows([0, 0, 1]), engine=engine)
    assert found.values.tolist() == [pytest.approx([2, -2, 1.5], abs=1e-6)]
    assert found.values.sum() == pytest.approx(1.5, abs=1e-6)
    assert found.gap.abs().max() < 1e-6
    assert found.engine == engine


@pytest.mark.parametrize("engine", ENGINES)
def test_a_product_is_shared_and_a_sigmoid_is_complete(engine):
    product = integrated_gradients(lambda x: x[:, 0] * x[:, 1], rows([3, 2]), torch.zeros(2), engine=engine)
    assert product.values.tolist() == [pytest.approx([3, 3], abs=1e-6)]
    sigmoid = integrated_gradients(
        lambda x: torch.sigmoid(x[:, 0] - 2 * x[:, 1] + 0.5), rows([2, 0.5]), torch.zeros(2), engine=engine
    )
    assert sigmoid.values.tolist() == [pytest.approx([0.39023029, -0.19511515], abs=1e-5)]
    assert float(sigmoid.values.sum()) == pytest.approx(0.19511515, abs=1e-5)
    assert float(sigmoid.gap.abs()) < 1e-6


@pytest.mark.parametrize("engine", ENGINES)
def test_two_nodes_are_exact_for_a_cube(engine):
    found = integrated_gradients(lambda x: x[:, 0] ** 3, rows([2]), torch.zeros(1), steps=2, engine=engine)
    assert float(found.values) == pytest.approx(8, abs=1e-6)


def test_other_rules_miss_what_the_nodes_hit():
    """The plain mean with both ends, and captum's trapezoids, whose weights add up to (n − 1)/n."""
    x = np.linspace(0, 1, 32)
    assert float((2 * 3 * (2 * x) ** 2).mean()) == pytest.approx(8.12903226, abs=1e-6)
    captum = pytest.importorskip("captum.attr")
    cube = captum.IntegratedGradients(lambda x: x[:, 0] ** 3)
    off = cube.attribute(rows([2]), rows([0]), n_steps=32, method="riemann_trapezoid")
    assert float(off) == pytest.approx(7.75403, abs=1e-4)
    linear = captum.IntegratedGradients(lambda x: x @ torch.tensor([1, -2, 0.5], dtype=D))
    off = linear.attribute(rows([2, 1, 4]), rows([0, 0, 1]), n_steps=50, method="riemann_trapezoid")
    assert off.tolist() == [pytest.approx([0.98 * 2, 0.98 * -2, 0.98 * 1.5], abs=1e-6)]


def test_both_engines_agree_on_a_network_and_leave_no_gap():
    net, x = network(), samples().read(range(8)).inputs
    assert isinstance(x, Tensor)
    own, captum = (integrated_gradients(lambda a: net(a)[:, 1], x, x.mean(dim=0), engine=e) for e in ENGINES)
    assert torch.allclose(own.values, captum.values, atol=1e-6)
    assert own.gap.abs().max() < 1e-9
    assert not any(p.grad is not None for p in net.parameters())


def test_it_agrees_with_a_fine_sum():
    net, x = network(), samples().read(range(3)).inputs
    assert isinstance(x, Tensor)
    total = torch.zeros_like(x)
    for i in range(2000):
        at = ((i + 0.5) / 2000 * x).requires_grad_(True)
        total += torch.autograd.grad(net(at)[:, 0].sum(), at)[0] / 2000
    found = mean_gradients(lambda a: net(a)[:, 0], x, torch.zeros(4), engine="own")
    assert torch.allclose(found, total, atol=1e-6)


def test_the_engine_is_captum_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert chosen("auto") == "own"
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    assert chosen("auto") == "captum"
    with pytest.raises(UserError, match="an engine among auto, captum, own, got 'shap'"):
        chosen("shap")


def test_captum_asked_for_and_not_installed_says_how_to_install_it(monkeypatch):
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name="captum")

    monkeypatch.setattr("expunge.extras.importlib.import_module", missing)
    with pytest.raises(MissingExtra, match=r"pip install 'expunge\[concepts\]'"):
        mean_gradients(lambda x: x[:, 0], rows([1.0]), torch.zeros(1), engine="captum")


def test_a_rule_without_nodes_is_refused_and_no_rows_give_none():
    with pytest.raises(UserError, match="one node of the quadrature or more, got 0"):
        mean_gradients(lambda x: x[:, 0], rows([1.0]), torch.zeros(1), steps=0)
    for engine in ENGINES:
        assert mean_gradients(lambda x: x[:, 0], torch.zeros(0, 3), torch.zeros(3), engine=engine).shape == (0, 3)


def test_a_linear_head_weighs_concepts_by_how_much_more_of_them_a_class_has():
    weights = rows([2, 0.5, -1], [0, 0, 0])
    s = rows([0.5, 2.5, 3], [0.7, 2.5, 3], [0.3, 0.1, 0.0])
    found = class_attributions(
        lambda a: a @ weights.T, s, torch.tensor([0, 0, 1]), 2, baseline=torch.tensor([0.5, 1, 1], dtype=D)
    )
    assert found.values[0].tolist() == pytest.approx([0.2, 0.75, -2], abs=1e-6)
    assert int(weights[0].argmax()) == 0  # by the weights alone it would be the other concept
    assert int(found.values[0].argmax()) == 1
    assert found.counts.tolist() == [2, 1]


def test_by_default_the_baseline_is_the_mean_score_and_classes_without_samples_have_no_attributions():
    g = torch.Generator().manual_seed(2)
    w, s, y = torch.randn(4, 3, generator=g, dtype=D), torch.randn(9, 3, generator=g, dtype=D), torch.arange(9) % 3
    found = class_attributions(lambda a: a @ w.T + 1, s, y, 4)
    for k in range(3):
        assert torch.allclose(found.values[k], w[k] * (s[y == k].mean(dim=0) - s.mean(dim=0)), atol=1e-6)
    assert not found.values[3].any()
    assert found.counts.tolist() == [3, 3, 3, 0]


def test_labels_that_are_no_classes_of_the_head_are_refused():
    s = torch.zeros(2, 3)
    with pytest.raises(Misfit, match="classes 0 to 1, got class 2"):
        class_attributions(lambda a: a[:, :2], s, torch.tensor([0, 2]), 2)
    with pytest.raises(Misfit, match="one class a sample, got torch.float32"):
        class_attributions(lambda a: a[:, :2], s, torch.tensor([0.0, 1.0]), 2)
    with pytest.raises(Misfit, match="a class for each of 2 rows, got 1"):
        class_attributions(lambda a: a[:, :2], s, torch.tensor([0]), 2)
    with pytest.raises(UserError, match="scores of samples to attribute, got none"):
        class_attributions(lambda a: a[:, :2], s[:0], torch.zeros(0, dtype=torch.int64), 2)


@pytest.mark.parametrize("tap", ["2", "3", "4:input", "2:input"])
def test_the_rest_of_a_network_gives_its_outputs_back(tap):
    net, batch = network(), samples().read(range(5))
    rest, e = tail(net, Classification(), batch, tap)
    want, _ = Classification().forward(net, batch)
    assert torch.equal(rest(e), want)
    assert not torch.equal(rest(e + 1), want)
    assert torch.equal(net(batch.inputs), want)  # no hook is left
    assert all(p.requires_grad for p in net.parameters())


def test_a_representation_that_the_outputs_do_not_depend_on_is_refused():
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.a(x)
            return self.b(x)

    with pytest.raises(UserError, match="outputs that depend on a, got outputs that do not"):
        tail(Aside().double(), Classification(), samples().read([0, 1]), "a")


def slow(net: nn.Module, data: Data, baseline: Tensor, units: Tensor, ways: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `network_attributions` gives at the input of the last layer but one, sample by sample."""
    total, left = torch.zeros(3, len(units), dtype=D), torch.zeros(3, dtype=D)
    for i in range(len(data)):
        batch = data.read([i])
        k = int(batch.target)
        e = net[:3](batch.inputs)[0]
        slope = torch.zeros_like(e)
        for j in range(1000):
            at = (baseline + (j + 0.5) / 1000 * (e - baseline)).detach().requires_grad_(True)
            slope += torch.autograd.grad(net[3:](at[None])[0, k], at)[0] / 1000
        found = ((e - baseline) @ ways.T) * (slope @ units.T)
        rise = net[3:](e[None])[0, k] - net[3:](baseline[None])[0, k]
        total[k] += found.detach()
        left[k] += (rise - found.sum()).detach()
    counts = torch.bincount(data.targets().long(), minlength=3)
    return total / counts[:, None], left / counts


@pytest.mark.parametrize("split", ["unit", "least_squares"])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_networks_own_attributions_are_those_of_a_loop(split, engine):
    net, data = network(), samples()
    g = torch.Generator().manual_seed(3)
    vectors, baseline = torch.randn(3, 5, generator=g, dtype=D), torch.randn(5, generator=g, dtype=D)
    units = vectors / vectors.norm(dim=1, keepdim=True)
    ways = units if split == "unit" else torch.linalg.inv(units @ units.T) @ units
    want, left = slow(net, data, baseline, units, ways)
    found = network_attributions(
        net, Classification(), data, "2", vectors, 3, baseline=baseline, split=split, engine=engine, runtime=QUIET
    )
    assert torch.allclose(found.values, want, atol=1e-5)
    assert found.residual is not None
    assert torch.allclose(found.residual, left, atol=1e-5)
    assert found.gap < 1e-6
    assert found.counts.tolist() == [3, 3, 2]


def test_orthogonal_vectors_of_every_direction_leave_nothing_and_doubled_ones_do():
    net, data = network(), samples()
    basis = torch.linalg.qr(torch.randn(5, 5, dtype=D, generator=torch.Generator().manual_seed(4)))[0]
    ask = {"baseline": torch.zeros(5, dtype=D), "runtime": QUIET, "engine": "own"}
    whole = network_attributions(net, Classification(), data, "2", basis, 3, **ask)
    assert whole.residual.abs().max() < 1e-9
    twice = torch.cat([basis, basis])
    unit = network_attributions(net, Classification(), data, "2", twice, 3, **ask)
    assert unit.residual.abs().max() > 1e-3
    split = network_attributions(net, Classification(), data, "2", twice, 3, split="least_squares", **ask)
    assert split.residual.abs().max() < 1e-9
    assert torch.allclose(split.values[:, :5], whole.values / 2)


def test_positions_of_a_representation_are_added_up():
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(2, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.a(x.reshape(len(x), 2, 2))).mean(dim=1))

    torch.manual_seed(0)
    net, data = Pooled().double(), samples()
    basis = torch.eye(5, dtype=D)
    found = network_attributions(
        net, Classification(), data, "a", basis, 3, baseline=torch.zeros(5, dtype=D), runtime=QUIET, engine="own"
    )
    assert found.residual.abs().max() < 1e-9
    rise = [(net(data.read([i]).inputs) - net.head.bias)[0, i % 3].item() for i in range(8)]  # tanh(0) = 0
    assert found.values.sum(dim=1).tolist() == pytest.approx([np.mean(rise[k::3]) for k in range(3)], abs=1e-8)


def test_what_cannot_be_attributed_is_said():
    net, data = network(), samples()
    ask = {"baseline": torch.zeros(5, dtype=D), "runtime": QUIET}
    with pytest.raises(UserError, match=r"concepts and a baseline of 5 numbers, as at 2, got vectors \(2, 4\)"):
        network_attributions(net, Classification(), data, "2", torch.ones(2, 4), 3, **ask)
    with pytest.raises(UserError, match="labels in train, got none"):
        network_attributions(net, Classification(), data.unlabelled(), "2", torch.ones(2, 5), 3, **ask)
    with pytest.raises(UserError, match="a split among unit, least_squares"):
        network_attributions(net, Classification(), data, "2", torch.ones(2, 5), 3, split="none", **ask)
    with pytest.raises(UserError, match="samples in train, got none"):
        network_attributions(net, Classification(), data.subset([]), "2", torch.ones(2, 5), 3, **ask)
    with pytest.raises(UserError, match="exclusive classes"):
        network_attributions(net, Regression(), data, "2", torch.ones(2, 5), 3, **ask)


def test_what_a_class_lacks_is_not_present_though_it_adds_to_the_logit():
    weights = rows([2, -1], [0, 0])
    s = rows([3, 0], [3, 0], [1, 4])
    found = class_attributions(lambda a: a @ weights.T, s, torch.tensor([0, 0, 1]), 2)
    assert found.values[0].tolist() == pytest.approx([4 / 3, 4 / 3])
    assert found.above[0].tolist() == pytest.approx([2 / 3, -4 / 3])
    assert found.present[0].tolist() == pytest.approx([4 / 3, 0])


def test_how_much_more_a_class_has_is_told_of_the_network_too():
    net, data = network(), samples()
    vectors, baseline = torch.eye(5, dtype=D) * 3, torch.full((5,), 0.1, dtype=D)
    found = network_attributions(net, Classification(), data, "2", vectors, 3, baseline=baseline, runtime=QUIET)
    e = net[:3](data.read(range(8)).inputs).detach()
    want = torch.stack([(e[k::3] - 0.1).mean(dim=0) for k in range(3)])
    assert torch.allclose(found.above, want)


def test_of_one_output_for_two_classes_each_has_a_logit_that_concepts_add_to():
    z = torch.tensor([[2.0], [-3.0]])
    assert class_logit(Binary(), z, torch.tensor([1, 0])).tolist() == [2.0, 3.0]
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    data = Data.from_arrays(torch.randn(9, 4, dtype=D), torch.arange(9) % 2)
    found = network_attributions(
        net, Binary(), data, "1", torch.eye(5, dtype=D), 2, baseline=torch.zeros(5, dtype=D), runtime=QUIET
    )
    e = net[:2](data.read(range(9)).inputs).detach()
    own = e * net[2].weight.detach()
    assert torch.allclose(found.values, torch.stack([-own[::2].mean(dim=0), own[1::2].mean(dim=0)]))
