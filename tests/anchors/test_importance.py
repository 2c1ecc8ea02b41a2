"""σ from the Fisher information against loops over samples and classes, and one σ for all, on one scale."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cases import CASES
from expunge.anchors._flat import Flat
from expunge.anchors._importance import geometric, measured, narrowed_by, quantity, rescaled
from expunge.data import Data
from expunge.masks import Masks
from expunge.method import See
from expunge.task import Classification, Regression
from expunge.tensors import parameters
from learning import QUIET, D, Own, Vector, loss_gradient, ones, quadratic, session


def slow_model(model: nn.Module, data: Data) -> dict[str, Tensor]:
    """Return the mean over samples of Σ_y p_y·(∂ln p_y/∂θ)²."""
    params = parameters(model)
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    for i in range(len(data)):
        logs = model(data.read([i]).inputs).log_softmax(1)[0]
        for y in range(len(logs)):
            grads = torch.autograd.grad(logs[y], list(params.values()), retain_graph=True, allow_unused=True)
            for name, grad in zip(params, grads, strict=True):
                total[name] += 0 if grad is None else logs[y].exp().detach() * grad**2 / len(data)
    return total


def slow_true(model: nn.Module, task: Classification | Regression, data: Data) -> dict[str, Tensor]:
    """Return the mean over samples of the squared gradient of the loss of the true labels."""
    each = [loss_gradient(model, task, data.read([i])) for i in range(len(data))]
    return {name: sum(g[name] ** 2 for g in each) / len(each) for name in each[0]}


@pytest.mark.parametrize("name", ["linear", "batchnorm2d", "tied", "frozen"])
def test_the_models_own_labels(name: str):
    model, data = CASES[name].make()
    found = measured("fisher_model", session(model, Classification(), data, sight=See.INPUTS), QUIET)
    want = slow_model(model, data)
    assert found.keys() == want.keys()
    assert all(torch.allclose(found[n], f, rtol=1e-8, atol=1e-14) for n, f in want.items())


@pytest.mark.parametrize("name", ["linear_weighted", "linear_regression", "conv"])
def test_the_true_labels(name: str):
    model, data = CASES[name].make()
    found = measured("fisher_emp", session(model, CASES[name].task, data), QUIET)
    want = slow_true(model, CASES[name].task, data)
    assert all(torch.allclose(found[n], f, rtol=1e-8, atol=1e-14) for n, f in want.items())


def test_without_classes_a_label_is_drawn_from_the_model():
    assert quantity("fisher_model", Regression()) == "sampled_loss"
    assert quantity("fisher_model", Classification()) == "true"
    assert quantity("fisher_emp", Regression()) == "loss"
    model, data = CASES["linear_regression"].make()
    found = measured("fisher_model", session(model, Regression(), data, sight=See.INPUTS), QUIET)
    assert all(float(f.min()) > 0 for f in found.values())


def test_precision_is_the_priors_and_the_samples():
    model, data = CASES["linear"].make()
    fisher = slow_model(model, data)
    flat = Flat(copy.deepcopy(model))
    log_sigma = narrowed_by(fisher, flat, 0.05, 700.0, 1e-6)
    for name, view in flat.named(log_sigma).items():
        assert torch.allclose(view, -0.5 * (1 / 0.05**2 + 700 * fisher[name]).log(), rtol=1e-12, atol=0)
        assert float(view.max()) <= math.log(0.05)
    bounded = flat.scalars(narrowed_by(fisher, flat, 0.05, 700.0, 0.045))
    assert float(bounded.min()) == math.log(0.045)
    assert float(bounded.max()) > math.log(0.045)


def test_squares_of_known_slopes():
    at = Vector(1.0, -1.0)
    curved = quadratic(torch.diag(torch.tensor([2.0, 3.0], dtype=D)))  # slopes 2 and −3 there
    sloped = Own(lambda out: (out * torch.tensor([3.0, 0.5], dtype=D)).sum(1))
    for task, want in ((curved, [4.0, 9.0]), (sloped, [9.0, 0.25])):
        found = measured("fisher_emp", session(at, task, ones(5, 2)), QUIET)
        assert torch.allclose(found["theta"], torch.tensor(want, dtype=D), rtol=1e-12)


def test_masked_weights_keep_sigma0():
    model, data = CASES["linear"].make()
    free = torch.zeros(5, 4, dtype=torch.bool)
    free[0] = True
    flat = Flat(copy.deepcopy(model), Masks({"0.weight": free}))
    log_sigma = narrowed_by(slow_model(model, data), flat, 0.05, 700.0, 1e-6)
    found = flat.named(log_sigma)["0.weight"]
    assert bool((found[~free] == math.log(0.05)).all())
    assert bool((found[free] < math.log(0.05)).all())
    rescaled(flat, log_sigma, 0.01)
    assert bool((found[~free] == math.log(0.05)).all())
    assert geometric(flat, log_sigma) == pytest.approx(0.01, rel=1e-12)


@pytest.mark.parametrize("scale", [0.5, 1e-4])
def test_rescaling_sets_the_geometric_mean_and_keeps_the_shape(scale: float):
    flat = Flat(CASES["linear"].make()[0])
    log_sigma = torch.linspace(-9, -3, flat.length, dtype=D)
    before = log_sigma.clone()
    rescaled(flat, log_sigma, scale)
    values = torch.cat([log_sigma[place] for place in flat.slices.values()])
    assert float(values.mean().exp()) == pytest.approx(scale, rel=1e-12)
    assert torch.allclose(log_sigma - before, (log_sigma - before)[0].expand(flat.length), rtol=0, atol=1e-12)


def test_batches_do_not_change_it():
    model, data = CASES["linear"].make()
    given = session(model, Classification(), data)
    one, other = (measured("fisher_emp", given, replace(QUIET, batch_size=n)) for n in (1, 8))
    assert all(torch.allclose(one[n], f, rtol=1e-12, atol=1e-16) for n, f in other.items())
