import pickle
import re

import pytest
import torch

from expunge import tensors
from expunge.data import Data
from expunge.errors import UserError
from expunge.fisher import diagonal
from expunge.runtime import Runtime
from expunge.task import Quantile, Regression
from expunge.train import fresh
from expunge.zoo import networks
from expunge.zoo.networks import Window

SHAPE = Window(steps=6, series=3)
NAMES = ("linear_forecast", "lstm_forecast")


def made(name, outputs, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return networks.factory(name, SHAPE, outputs)().to(dtype).eval()


def some(n=5):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("outputs", "task"), [((4, 3), Quantile()), ((4,), Regression())])
def test_outputs_are_what_the_task_takes(name, outputs, task):
    make = pickle.loads(pickle.dumps(networks.factory(name, SHAPE, outputs)))
    data = Data.from_arrays(some().float(), torch.randn(5, 4))
    batch = data.read(range(5))
    found, _ = task.forward(make().eval(), batch)
    assert found.shape == (5, *outputs)
    task.check(found, batch.target)
    assert task.loss(found, batch.target).shape == (5,)
    assert made(name, outputs)(some(1)).shape == (1, *outputs)


@pytest.mark.parametrize("name", NAMES)
def test_a_level_moves_the_forecast_and_nothing_else(name):
    model, x = made(name, (4, 3)), some()
    assert torch.allclose(model(x + 7.0), model(x) + 7.0)
    other = x.clone()
    other[:, :, 0] += 3.0  # the level of a series that is not forecast
    assert torch.allclose(model(other), model(x))


def test_the_linear_forecast_is_its_formula():
    model, x = made("linear_forecast", (4, 3)), some()
    past = x[:, :, -1]
    steps = (past - past[:, -1:]) @ model.head.weight.T + model.head.bias
    assert torch.allclose(model(x), (past[:, -1:] + steps).reshape(5, 4, 3))
    assert sum(p.numel() for p in model.parameters()) == 12 * 6 + 12


def test_the_lstm_reads_every_series():
    x = some().requires_grad_()
    made("lstm_forecast", (4,))(x).sum().backward()
    assert (x.grad.abs().sum(dim=(0, 1)) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_networks_come_from_the_random_state_and_can_be_drawn_anew(name):
    digests = [tensors.weights_digest(made(name, (4,), seed)) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    assert tensors.weights_digest(fresh(made(name, (4,)))) != digests[0]


@pytest.mark.parametrize("of", ["loss", "output_norm"])
def test_the_diagonal_of_a_forecast_is_the_references(of):
    data = Data.from_arrays(some(), torch.randn(5, 4, dtype=torch.float64))
    options = {"of": of, "runtime": Runtime(batch_size=3, progress=False)}
    model = made("linear_forecast", (4, 3))
    fast, slow = (diagonal(model, Quantile(), data, engine=e, **options).values for e in ("auto", "reference"))
    for key, value in slow.items():
        torch.testing.assert_close(fast[key], value, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        (
            "mlp",
            SHAPE,
            "numbers for mlp, got windows of 6 steps of 3 series: take another network: linear_forecast, lstm_",
        ),
        (
            "lstm_forecast",
            (1, 8, 8),
            "windows of series for lstm_forecast, got shape (1, 8, 8): take another network: convnet",
        ),
    ],
)
def test_other_shapes_are_refused(name, shape, said):
    with pytest.raises(UserError, match=re.escape(said)):
        networks.factory(name, shape, (4,))
