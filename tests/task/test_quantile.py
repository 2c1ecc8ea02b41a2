import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from expunge.data import Batch
from expunge.errors import UserError
from expunge.task import Classes, Quantile, Task

D = torch.float64


def test_it_is_a_task_without_classes():
    assert isinstance(Quantile(), Task)
    assert not isinstance(Quantile(), Classes)


def test_the_pinball_loss_of_the_specification():
    predicted = torch.tensor([[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]], dtype=D)
    found = Quantile().loss(predicted, torch.tensor([2.5, 1.0], dtype=D))
    assert float(found.mean()) == pytest.approx(0.975, abs=1e-12)
    assert found.tolist() == pytest.approx([0.45, 1.5], abs=1e-12)
    assert Quantile().loss(predicted, torch.tensor([[2.5], [1.0]], dtype=D)).tolist() == found.tolist()


def test_steps_count_by_their_mean():
    torch.manual_seed(0)
    outputs, target = torch.randn(4, 5, 3, dtype=D), torch.randn(4, 5, dtype=D)
    each = torch.stack([Quantile().loss(outputs[:, t], target[:, t]) for t in range(5)])
    assert torch.allclose(Quantile().loss(outputs, target), each.mean(dim=0))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=5, unique=True), st.integers(0, 10_000))
def test_the_loss_is_least_at_the_quantiles_of_the_targets(levels, seed):
    levels = sorted(levels)
    y = torch.randn(101, dtype=D, generator=torch.Generator().manual_seed(seed))
    task = Quantile(quantiles=levels)
    best = torch.tensor([y.sort().values[math.ceil(q * 101) - 1] for q in levels], dtype=D).expand(101, -1)
    least = task.loss(best, y).mean()
    for shift in (-0.1, 0.1):
        assert task.loss(best + shift, y).mean() >= least - 1e-12


def test_the_prediction_is_the_quantile_nearest_to_the_median():
    outputs = torch.arange(24.0).reshape(2, 3, 4)
    assert Quantile(quantiles=(0.1, 0.4, 0.55, 0.9)).predictions(outputs).equal(outputs[..., 2])
    for levels in ((0.4, 0.6), (0.3, 0.7), (0.1, 0.9)):  # 0.7 − 0.5 is less than 0.5 − 0.3 in floating point
        assert Quantile(quantiles=levels).predictions(torch.tensor([[1.0, 2.0]])).tolist() == [1.0]


def test_targets_are_drawn_by_the_inverse_of_the_distribution():
    outputs = torch.tensor([[0.0, 1.0, 5.0]], dtype=D).expand(100_000, 3)
    task = Quantile(quantiles=(0.2, 0.5, 0.9))
    drawn = task.sample_target(outputs, torch.Generator().manual_seed(0))
    assert drawn.shape == (100_000,)
    for at, share in ((0.0, 0.2), (0.5, 0.35), (1.0, 0.5), (3.0, 0.7), (5.0, 0.9)):
        assert float((drawn <= at).double().mean()) == pytest.approx(share, abs=0.006)
    assert float(drawn.min()) == pytest.approx(-2 / 3, abs=1e-3)  # 0.2 below at 1 by 0.3
    assert float(drawn.max()) == pytest.approx(6.0, abs=1e-3)  # 0.1 above at 4 by 0.4
    assert torch.equal(drawn, task.sample_target(outputs, torch.Generator().manual_seed(0)))


def test_crossing_quantiles_are_sorted_before_a_draw():
    there, back = (torch.tensor([row], dtype=D).expand(50, 3) for row in ([0.0, 1.0, 2.0], [2.0, 0.0, 1.0]))
    draws = [Quantile().sample_target(outputs, torch.Generator().manual_seed(1)) for outputs in (there, back)]
    assert torch.equal(*draws)


@pytest.mark.parametrize("q", [0.5, 0.8])
def test_a_single_level_draws_from_the_density_of_its_loss(q):
    outputs = torch.full((200_000, 1), 3.0, dtype=D)
    drawn = Quantile(quantiles=(q,)).sample_target(outputs, torch.Generator().manual_seed(0)) - 3
    assert float((drawn <= 0).double().mean()) == pytest.approx(q, abs=0.005)
    assert float(drawn[drawn > 0].mean()) == pytest.approx(1 / q, rel=0.03)
    assert float(-drawn[drawn < 0].mean()) == pytest.approx(1 / (1 - q), rel=0.03)


@pytest.mark.parametrize("size", [1, 3])
def test_steps_and_single_samples_go_through(size):
    body = nn.Sequential(nn.Linear(3, 6), nn.Unflatten(1, (2, 3)))
    batch = Batch(torch.randn(size, 3), torch.randn(size, 2), None, torch.arange(size))
    outputs, _ = Quantile().forward(body, batch)
    Quantile().check(outputs, batch.target)
    assert Quantile().loss(outputs, batch.target).shape == (size,)
    assert Quantile().predictions(outputs).shape == (size, 2)
    assert Quantile().sample_target(outputs, torch.Generator()).shape == (size, 2)


def test_one_level_may_come_without_a_column():
    batch = Batch(torch.randn(4, 3), torch.randn(4), None, torch.arange(4))
    outputs, _ = Quantile(quantiles=(0.5,)).forward(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), batch)
    assert outputs.shape == (4, 1)
    half = (batch.target - outputs[:, 0]).abs() / 2
    assert torch.allclose(Quantile(quantiles=(0.5,)).loss(outputs, batch.target), half)


@pytest.mark.parametrize("levels", [(), (0.5, 0.5), (0.9, 0.1), (0.0, 0.5), (0.5, 1.0), (math.nan,)])
def test_levels_that_are_no_quantiles_are_refused(levels):
    with pytest.raises(UserError, match="quantiles between 0 and 1, rising, got .*: write for example 0.1, 0.5, 0.9"):
        Quantile(quantiles=levels)


@pytest.mark.parametrize("levels", [0.5, ("a",), None])
def test_what_are_no_numbers_is_refused(levels):
    with pytest.raises(UserError, match="quantiles as several numbers, got .*: write for example 0.1, 0.5, 0.9"):
        Quantile(quantiles=levels)


@pytest.mark.parametrize(
    ("outputs", "target", "said"),
    [
        (
            torch.zeros(4, 4),
            torch.zeros(4),
            r"outputs \(B, 3\) or \(B, T, 3\), got \(4, 4\): end the network in one unit",
        ),
        (torch.zeros(4), torch.zeros(4), r"got \(4,\)"),
        (
            torch.zeros(4, 3),
            torch.tensor([0, 1, 2, 0]),
            "real targets, got torch.int64, targets that are classes: pass fl",
        ),
        (torch.zeros(4, 2, 3), torch.zeros(4), r"the outputs' shape, got \(4,\) for outputs \(4, 2\)"),
        (torch.zeros(4, 3), torch.zeros(4, 3), r"got \(4, 3\) for outputs \(4,\)"),
        (torch.zeros(4, 3), torch.tensor([0.0, math.nan, 0.0, 0.0]), "finite targets, got NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_refused(outputs, target, said):
    with pytest.raises(UserError, match=said):
        Quantile().check(outputs, target)
