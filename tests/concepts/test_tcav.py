"""Derivatives along concepts: C11, the test against chance, gradients beside a loop."""

from __future__ import annotations

import warnings

import pytest
import torch
from scipy import stats
from torch import nn

from cases import QUIET
from expunge.concepts.tcav import by_chance, class_gradients, directional, magnitude, sign_count
from expunge.data import Data
from expunge.errors import UserError
from expunge.task import Classification

D = torch.float64


def test_sign_count_and_magnitude_by_hand():
    derivatives = torch.tensor([2.0, -1, 3, -2])
    assert float(sign_count(derivatives)) == 0.5
    assert float(magnitude(derivatives)) == 0.625
    assert float(derivatives.mean()) == 0.5  # what captum calls the magnitude
    both = torch.stack([derivatives, torch.zeros(4)], dim=1)
    assert sign_count(both).tolist() == [0.5, 0]
    assert magnitude(both).tolist() == [0.625, 0]


def test_derivatives_do_not_depend_on_how_long_a_vector_is():
    g, c = torch.tensor([[1.0, 2]], dtype=D), torch.tensor([[3.0, 4], [0, 0.5]], dtype=D)
    assert directional(g, c).tolist() == [pytest.approx([2.2, 2])]


def test_the_test_against_chance_is_welchs_and_knows_sets_that_do_not_vary():
    a, b = [0.9, 0.8, 1.0, 0.95], [0.5, 0.2, 0.9, 0.4, 0.6]
    assert by_chance(a, b) == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)
    assert by_chance([1, 1, 1], [0, 0]) == 0
    assert by_chance([1, 1, 1], [1, 1]) == 1
    assert by_chance([1, 1, 1], [0, 1, 0, 1]) < 1
    with warnings.catch_warnings():  # of numbers that hardly vary, or not at all
        warnings.simplefilter("error")
        assert by_chance([0.3, 0.1 + 0.2, 0.3], [0.3, 0.3]) > 0.05
        assert by_chance([0.9] * 20, [0.9] * 19 + [0.1]) > 0.05
        assert by_chance([0.9] * 20, [0.1] * 20) == 0
    with pytest.raises(UserError, match="two sign counts or more of either kind, got 1 and 2"):
        by_chance([1], [0, 1])


def test_gradients_are_those_of_each_samples_own_logit():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    data = Data.from_arrays(torch.randn(8, 4, dtype=D), torch.arange(8) % 3)
    found = class_gradients(net, Classification(), data, "1:input", runtime=QUIET)
    assert sorted(found) == [0, 1, 2]
    for k in range(3):
        for row, i in zip(found[k], range(k, 8, 3), strict=True):
            e = net[0](data.read([i]).inputs).detach().requires_grad_(True)
            (want,) = torch.autograd.grad(net[1:](e)[0, k], e)
            assert torch.allclose(row, want[0])
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_gradients_need_labels_and_samples():
    net, data = nn.Sequential(nn.Linear(4, 3)), Data.from_arrays(torch.randn(4, 4), torch.arange(4) % 3)
    with pytest.raises(UserError, match="labels in train, got none"):
        class_gradients(net, Classification(), data.unlabelled(), "0:input", runtime=QUIET)
    with pytest.raises(UserError, match="samples in train, got none"):
        class_gradients(net, Classification(), data.subset([]), "0:input", runtime=QUIET)
