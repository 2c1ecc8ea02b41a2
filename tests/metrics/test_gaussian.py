"""Noisy canaries: the score of known models, a slow reference, and networks that saw the noise or did not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from expunge.data import Data
from expunge.evaluate import evaluate
from expunge.metric import Audit, Unavailable, Value
from expunge.metrics import load
from expunge.metrics.gaussian import gradients
from expunge.noise import Noise, Planted
from expunge.noise import planted as known
from expunge.poison import Backdoor
from expunge.scenario import forget_ids
from expunge.shadows import gaussian_scores
from expunge.task import Binary, Classification, Regression, Task
from expunge.train import Recipe, fit
from pairs import audit, said
from worlds import QUIET

SCORE = "gaussian/score"


def planted(n: int = 12, share: float = 0.9, dtype: torch.dtype = torch.float64, target: Tensor | None = None) -> Data:
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(1), dtype=dtype)
    y = torch.arange(n) % 3 if target is None else target
    return Noise(deviation=0.5).plant(Data.from_arrays(x, y, name="train"), share)[0]


def clean_of(data: Data) -> tuple[Data, list[str]]:
    found = known(data)
    assert isinstance(found, Planted)
    return found.clean, found.ids


def network(outputs: int = 3, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.BatchNorm1d(7), nn.Linear(7, outputs)).to(dtype)


def asked(data: Data, model: nn.Module, task: Task, **more: Any) -> Audit:
    """Return the audit of a model on noisy forget samples; the measure reads the model, not its outputs."""
    outputs = said(torch.zeros(len(data), 3), torch.zeros(len(data), dtype=torch.int64))
    return audit({"forget": outputs}, data={"forget": data}, models={"model": model}, task=task, runtime=QUIET, **more)


def measured(data: Data, model: nn.Module, task: Task) -> Value | Unavailable:
    return load("gaussian")()(asked(data, model, task))[SCORE]


@pytest.mark.parametrize(
    ("task", "outputs", "target"),
    [
        (Classification(), 3, None),
        (Binary(), 1, torch.arange(12) % 2),
        (Regression(), 1, torch.linspace(-1, 1, 12, dtype=torch.float64)[:, None]),
    ],
    ids=["classes", "two classes", "numbers"],
)
def test_it_is_the_score_of_the_losss_gradient_sample_by_sample(
    task: Task, outputs: int, target: Tensor | None
) -> None:
    """In batches of 7, the last of 4, against one backward pass of the loss for each sample."""
    data, model = planted(target=target), network(outputs)
    clean, ids = clean_of(data)
    assert len(ids) == 11
    slow, drawn = [], []
    for name in ids:
        one, noisy = clean.subset([name]).read([0]), data.subset([name]).read([0])
        assert isinstance(one.inputs, Tensor)
        assert isinstance(noisy.inputs, Tensor)
        x = one.inputs.clone().requires_grad_()
        loss = task.loss(task.forward(model.eval(), replace(one, inputs=x))[0], one.target)  # type: ignore[arg-type]
        (slope,) = torch.autograd.grad(loss.sum(), x)
        slow.append(slope[0].numpy())
        drawn.append((noisy.inputs - one.inputs)[0].numpy())
    want = gaussian_scores(slow, drawn, 0.5)
    own = asked(data, model.train(), task)
    found = load("gaussian")()(own)[SCORE]
    assert isinstance(found, Value)
    assert found.x == pytest.approx(want.mean.x, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((want.mean.low, want.mean.high), abs=1e-12)
    assert found.n == 11
    assert own.kept.samples["score/gaussian"] == pytest.approx(want.scores, abs=1e-12)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_a_sure_network_has_a_score_where_the_gradient_of_its_loss_is_lost() -> None:
    """At margins of 200 nats the loss's gradient is 0 in float32; the margin's points where it would."""
    data = planted(dtype=torch.float32)
    model = nn.Linear(5, 3)
    with torch.no_grad():
        model.weight.copy_(torch.randn(3, 5, generator=torch.Generator().manual_seed(2)))
        model.bias.copy_(torch.tensor([200.0, 0.0, 0.0]))
    data = data.subset([i for i, y in zip(data.ids, data.targets().tolist(), strict=True) if y == 0])
    clean = clean_of(data)[0]
    x = clean.read(range(len(clean))).inputs.requires_grad_()  # type: ignore[union-attr]
    Classification().loss(model(x), torch.zeros(len(clean), dtype=torch.int64)).sum().backward()
    assert float(x.grad.abs().max()) == 0  # type: ignore[union-attr]
    found = gradients(model, Classification(), clean, QUIET)
    assert found is not None
    z = model(clean.read(range(len(clean))).inputs).double()[:, 1:]
    want = z.softmax(dim=1) @ model.weight.double()[1:] - model.weight.double()[0]
    assert found == pytest.approx(want.detach().numpy(), rel=1e-5)
    assert isinstance(measured(data, model, Classification()), Value)


class Dead(nn.Module):
    """Answers the same for all but the first samples of a batch."""

    def __init__(self, alive: int) -> None:
        super().__init__()
        self.alive, self.net = alive, network()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * (torch.arange(len(x)) < self.alive)[:, None]


def test_samples_without_a_gradient_are_left_out() -> None:
    data = planted(share=0.5)
    found = measured(data, Dead(4), Classification())
    assert isinstance(found, Value)
    assert found.n == 4
    reason = "noise and a gradient that is not 0 are needed on at least 2 forgotten samples"
    assert measured(data, Dead(1), Classification()) == Unavailable(reason)
    assert measured(data, Dead(0), Classification()) == Unavailable(reason)


class Deaf(nn.Module):
    """Answers whatever the input."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.answer.expand(len(x), 3)


class Cut(nn.Module):
    """Answers through no graph, as a network that was compiled for inference."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()[:, :3]


class Steep(nn.Module):
    """Finite answers whose gradient is infinite."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(x * 0)[:, :3] + x[:, :3]


def test_without_a_number_there_is_a_reason() -> None:
    data, task = planted(), Classification()
    for model in (Deaf(), Cut()):
        assert measured(data, model, task) == Unavailable("its outputs do not depend on the input")
    assert measured(data, Steep(), task) == Unavailable("a gradient is infinite or not a number")
    plain, ids = clean_of(data)
    found = measured(plain, network(), task)
    assert isinstance(found, Unavailable)
    assert found.reason.startswith("no noise was planted: put it on training samples with expunge.noise.Noise")
    assert measured(data.without(ids), network(), task) == Unavailable("no forgotten sample carries noise")
    bare = replace(asked(data, network(), task), models={})
    assert load("gaussian")()(bare)[SCORE] == Unavailable("the model itself was not given")


def test_noise_under_a_patch_is_told_from_noise_that_is_there() -> None:
    data = Data.from_arrays(torch.rand(12, 1, 4, 4), torch.arange(12) % 3, name="train")
    noisy = Noise(deviation=1.0).plant(data, 0.9)[0]
    covered = Backdoor(target=1, size=4, margin=0, value=(1.0,)).plant(noisy, 0.6)[0]
    found = measured(covered, nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), Classification())
    assert isinstance(found, Unavailable)
    assert found.reason.startswith("what the samples carry is not the noise that was planted: noise of deviation")


def test_samples_may_be_single_numbers() -> None:
    data = Noise(deviation=0.5).plant(Data.from_arrays(torch.linspace(-1, 1, 12), torch.arange(12) % 2), 0.9)[0]
    found = measured(data, nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 2)), Classification())
    assert isinstance(found, Value)
    assert found.n == 11


def test_a_network_that_saw_the_noise_is_told_from_such_as_did_not() -> None:
    """The control is caught, and neither of two retrained models is, at thresholds that chance passes in 1 of 1,000."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(120, 40, generator=generator), torch.randint(3, (120,), generator=generator)
    data, ids = Noise(deviation=1.0, seed=1).plant(Data.from_arrays(x, y, name="train"), 0.4)
    recipe = Recipe(epochs=15, batch_size=16, lr=0.05)
    torch.manual_seed(0)
    start, task = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 3)), Classification()
    models = {
        "original": fit(start, task, data, recipe, runtime=QUIET),
        "retrained": [fit(start, task, data.without(ids), recipe, runtime=QUIET, seed=seed) for seed in (0, 1)],
    }
    scores = evaluate(
        models, task, train=data, scenario=forget_ids(data, ids), metrics=["gaussian"], new_model=None, runtime=QUIET
    )
    z = {name: found[SCORE].x * found[SCORE].n ** 0.5 for name, found in scores.values.items()}
    assert z["original"] == z["no_op"] < -3.6
    assert all(abs(z[name]) < 3.3 for name in ("retrained", "retrained (other seed)"))
    assert scores.numbers[SCORE].target == 0
    assert np.isfinite(scores.samples["original"]["score/gaussian"]).all()
