"""A spring to the weights as they were: steps, fixed point, masks, and a whole request."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, QUIET, blobs, deep
from expunge.anchors import build, load
from expunge.anchors.l2sp import L2SPHold, sprung
from expunge.data import Batch, Data
from expunge.errors import NotFinite, UserError
from expunge.masks import Masks
from expunge.method import Needs, See, Session, State
from expunge.methods import build as method
from expunge.task import Classification
from expunge.tensors import parameters
from expunge.train import Recipe, fit
from expunge.unlearn import unlearn

L2SP = load("l2sp")
TASK = Classification()
BATCHES = [slice(0, 3), slice(3, 6), slice(6, 8)]  # the last one is smaller


def entropy(model: nn.Module, batch: Batch) -> Tensor:
    logs = model(batch.inputs).log_softmax(1)
    return (logs.exp() * logs).sum(1).mean()


def held(model: nn.Module, data: Data, lowered: Any = entropy, masks: Masks | None = None, **fields: Any) -> L2SPHold:
    session = Session(
        task=TASK, runtime=QUIET, seed=0, method="m", phase="unlearn", needs=Needs(forget=See.LABELLED), source=model,
        given={"forget": data}, masks=masks,
    )  # fmt: skip
    return L2SP(**fields).hold(session, State({}, {"kept": 1}), lowered, None)


def batches(data: Data, count: int) -> list[Batch]:
    return [data.read(range(len(data))).part(BATCHES[i % 3]) for i in range(count)]


def test_equals_a_slow_hold():
    model, data = CASES["linear"].make()
    hold = held(model, data, strength=0.7, lr=0.3)
    slow, start = copy.deepcopy(model), [p.detach().clone() for p in model.parameters()]
    for batch in batches(data, 7):
        value = entropy(slow, batch)
        grads = torch.autograd.grad(value, list(slow.parameters()))
        assert hold.step(batch) == pytest.approx(float(value.detach()), abs=1e-12)
        for p, g, first in zip(slow.parameters(), grads, start, strict=True):
            for i in range(p.numel()):
                theta, at, by = p.data.view(-1), float(first.view(-1)[i]), float(g.reshape(-1)[i])
                theta[i] = (float(theta[i]) / 0.3 + 0.7 * at - by) / (1 / 0.3 + 0.7)
    apart = sum(float((p.detach() - first).square().sum()) for p, first in zip(slow.parameters(), start, strict=True))
    assert hold.penalty() == pytest.approx(0.5 * 0.7 * apart, rel=1e-10)
    assert apart > 1e-3
    done, state = hold.finish()
    assert state.meta == {"kept": 1}
    for a, b in zip(done.parameters(), slow.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)


def test_it_ends_where_the_gradient_of_the_sum_is_zero_whatever_the_rate():
    """U = ½·3·(θ − 1)² from θ_o = 0: θ = 3/(3 + β); the spring sets no limit to the rate."""
    for strength, lr in ((1.0, 0.1), (1.0, 0.4), (50.0, 0.4)):
        theta, start = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        for _ in range(400):
            sprung(theta, start, 3 * (theta - 1), strength=strength, lr=lr)
        assert float(theta) == pytest.approx(3 / (3 + strength), abs=1e-12)


def test_a_stiff_spring_holds_and_without_gradient_it_draws_back():
    model, data = CASES["linear"].make()
    far = []
    for strength in (0.01, 1.0, 1e4):
        hold = held(model, data, strength=strength, lr=0.1)
        for batch in batches(data, 20):
            hold.step(batch)
        far.append(float((hold.flat.weights - hold.start).abs().max()))
    assert far[0] > far[1] > far[2]
    assert far[2] < 1e-3
    hold = held(model, data, strength=1.0, lr=0.5)
    for batch in batches(data, 5):
        hold.step(batch)
    before = hold.penalty()
    hold.lowered = lambda model, batch: torch.tensor(2.0)
    for batch in batches(data, 20):
        assert hold.step(batch) == 2.0
    assert hold.penalty() == pytest.approx(before / 1.5**40, rel=1e-6)


def test_masked_weights_end_as_they_were():
    model, data = CASES["linear"].make()
    name = "0.weight"
    keep = torch.rand(5, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    hold = held(model, data, masks=Masks({name: keep}))
    for batch in batches(data, 4):
        hold.step(batch)
    done, _ = hold.finish()
    old, new = parameters(model)[name], parameters(done)[name]
    assert torch.equal(old[~keep], new[~keep])
    assert not bool((old[keep] == new[keep]).any())


def test_it_holds_twelve_bytes_a_weight():
    model, data = CASES["linear"].make(torch.float32)
    hold = held(model, data)
    own = [v for v in (*vars(hold).values(), *vars(hold.flat).values()) if isinstance(v, Tensor)]
    assert sum(v.element_size() for v in own if v.numel() == hold.flat.length) == 12


def test_an_objective_that_is_not_finite_is_refused():
    model, data = CASES["linear"].make()
    hold = held(model, data, lambda model, batch: entropy(model, batch) * math.inf)
    with pytest.raises(
        NotFinite, match=r"a finite objective, got -inf: lower l2sp.lr \(now 0.01\), or raise l2sp.stre"
    ):
        hold.step(batches(data, 1)[0])


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"strength": 0}, "l2sp.strength above 0"),
        ({"strength": math.inf}, "l2sp.strength above 0"),
        ({"lr": -1.0}, "l2sp.lr above 0"),
        ({"steps": 0}, "l2sp.steps of 1 or more"),
        ({"steps": 2.5}, "l2sp.steps of 1 or more"),
    ],
)
def test_settings_out_of_range(fields: dict[str, Any], match: str):
    with pytest.raises(UserError, match=match):
        L2SP(**fields)


def test_a_request_forgets_a_class_and_keeps_the_rest():
    data = blobs()
    model = fit(deep(), TASK, data, Recipe(epochs=10, lr=0.05, batch_size=8))
    forget = data.subset(data.ids[::3])
    anchor = {"name": "l2sp", "strength": 0.3, "lr": 0.05, "steps": 60}
    way = method({"name": "compose", "objective": "ascent", "anchor": anchor})
    assert way.prepares.required() == []
    done = unlearn(way, model, TASK, forget=forget, runtime=QUIET)
    parts = {"forget": forget, "rest": data.without(forget.ids)}
    share = {}
    for name, part in parts.items():
        batch = part.read(range(len(part)))
        with torch.no_grad():
            share[name] = float((done.model(batch.inputs).argmax(1) == batch.target).double().mean())
    assert share["forget"] < 0.1 < 0.9 < share["rest"]
    assert done.log["penalty"][-1][1] > 0
    assert build(build("l2sp").settings()) == L2SP()
