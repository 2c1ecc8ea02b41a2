"""Elastic weight consolidation: what its springs are made of, and that nothing is drawn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cases import QUIET, blobs, deep
from expunge.anchors import build, load
from expunge.anchors._posterior import Posterior
from expunge.data import Data
from expunge.errors import UserError
from expunge.method import Method, See, State
from expunge.methods import build as method
from expunge.task import Classification
from expunge.tensors import parameters
from expunge.train import Recipe, fit
from expunge.unlearn import Prepared, prepare, unlearn

ANCHOR = load("fisher")
TASK = Classification()
DATA, HOLDOUT = blobs(60), blobs(30, seed=7, name="holdout")
FORGET = DATA.subset(DATA.ids[::3])


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return fit(deep(), TASK, DATA, Recipe(epochs=6, lr=0.05, batch_size=8))


def way(objective: Any = "uniform", *, steps: int | None = None, **anchor: Any) -> Method:
    return method({"name": "compose", "objective": objective, "anchor": {"name": "fisher", **anchor}, "steps": steps})


def prepared(model: nn.Module, data: Data = DATA, **anchor: Any) -> Prepared:
    return prepare(way(**anchor), model, TASK, train=data, runtime=QUIET)


def sigma(ready: Prepared) -> dict[str, torch.Tensor]:
    return {n: v.exp() for n, v in Posterior.load(ready.state, ready.model).log_sigma.items()}


def squares(model: nn.Module, own: bool) -> dict[str, torch.Tensor]:
    """Return the mean squared gradient, over samples and the model's own labels, or at the true ones."""
    batch, params = DATA.read(range(len(DATA))), parameters(model)
    found = {n: torch.zeros_like(p) for n, p in params.items()}
    for i in range(len(DATA)):
        logs = model(batch.inputs[i : i + 1]).log_softmax(1)[0]
        weights = logs.exp().detach() if own else F.one_hot(batch.target[i], 3).to(logs)
        for label, weight in enumerate(weights):
            grads = torch.autograd.grad(logs[label], list(params.values()), retain_graph=True)
            for name, g in zip(found, grads, strict=True):
                found[name] += weight * g.square() / len(DATA)
    return found


@pytest.mark.parametrize("importance", ["fisher_model", "fisher_emp"])
def test_springs_are_as_strong_as_the_fisher_information_is_large(importance: str, model: nn.Module):
    found = sigma(prepared(model, importance=importance, sigma0=0.01, epochs=5))
    for name, f in squares(model, importance == "fisher_model").items():
        assert torch.allclose(found[name] ** -2, 1 / 0.01**2 + 5 * 60 * f, rtol=1e-8, atol=0)


def test_it_needs_no_labels_of_the_models_own(model: nn.Module):
    bare = DATA.unlabelled()
    one, other = sigma(prepared(model, bare)), sigma(prepared(model))
    assert all(torch.equal(one[n], other[n]) for n in one)
    assert ANCHOR().prepares.train == See.INPUTS
    assert ANCHOR(importance="fisher_emp").prepares.train == ANCHOR(scale="bgd").prepares.train == See.LABELLED
    assert ANCHOR().prepares.required() == ["train"]


def test_a_scale_sets_the_geometric_mean_and_leaves_the_shape(model: nn.Module):
    one, other = sigma(prepared(model)), sigma(prepared(model, scale=0.005))
    ratios = torch.cat([(other[n] / one[n]).flatten() for n in one])
    assert float(ratios.max() - ratios.min()) < 1e-12
    logs = torch.cat([v.log().flatten() for v in other.values()])
    assert float(logs.mean().exp()) == pytest.approx(0.005, rel=1e-9)


def test_a_step_is_the_spring_in_closed_form_and_nothing_is_drawn(model: nn.Module):
    """One step on the whole forget set from θ_o: θ' = θ_o − w·g/(1/(η·σ²) + λ_n/σ²)."""
    ready = prepared(model)
    seen = []
    done = [
        unlearn(
            way(lam=0.8, rate=0.05, steps=1), ready.model, TASK, forget=FORGET, state=ready.state, runtime=QUIET, seed=s
        )
        for s in (0, 1)
    ]
    batch, params = FORGET.read(range(len(FORGET))), parameters(model)
    loss = -model(batch.inputs).log_softmax(1).mean(1).mean()
    grads = torch.autograd.grad(loss, list(params.values()))
    weight = (1 - 0.8) * 3 * 60
    for (name, p), g in zip(params.items(), grads, strict=True):
        want = p - weight * g * sigma(ready)[name] ** 2 / (1 / 0.05 + 0.8)
        seen.append(float((want - p).detach().abs().max()))
        for d in done:
            assert torch.allclose(parameters(d.model)[name], want, rtol=0, atol=1e-10)
    assert max(seen) > 1e-4
    assert done[0].log["n_eff"] == 180


def test_it_forgets_a_class_and_keeps_the_rest(model: nn.Module):
    ready = prepare(way(), model, TASK, train=DATA, holdout=HOLDOUT, runtime=QUIET)
    done = unlearn(way("ascent", lam=0.1), ready.model, TASK, forget=FORGET, state=ready.state, runtime=QUIET)
    share = {}
    for name, part in {"forget": FORGET, "rest": DATA.without(FORGET.ids)}.items():
        batch = part.read(range(len(part)))
        with torch.no_grad():
            share[name] = float((done.model(batch.inputs).argmax(1) == batch.target).double().mean())
    assert share["forget"] < 0.3
    assert share["rest"] > 0.9
    assert ANCHOR().known(ready.state).tau is not None
    assert ANCHOR().known(State()).tau is None
    assert done.state.meta["posterior"]["facts"]["requests"] == 1


def test_what_is_prepared_depends_on_the_fisher_information_alone():
    assert ANCHOR(lam=0.5, rate=0.1).preparation() == ANCHOR().preparation() != ANCHOR(epochs=4).preparation()
    assert ANCHOR().passes("unlearn", None, None) == {"forget": 1}
    assert ANCHOR().passes("prepare", None, None) == {"train": 1}
    assert ANCHOR(epochs=50).preparation()["epochs"] == 50


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"importance": "bgd"}, "fisher.importance fisher_model or fisher_emp"),
        ({"lam": 1.0}, "fisher.lam above 0 and below 1"),
        ({"rate": -0.1}, "fisher.rate above 0"),
        ({"sigma0": 0.0}, "fisher.sigma0 above 0"),
        ({"epochs": 0}, "fisher.epochs of 1 or more"),
        ({"scale": math.inf}, "fisher.scale above 0"),
        ({"stored": "int4"}, "fisher.stored float32 or uint8"),
    ],
)
def test_settings_out_of_range(fields: dict[str, Any], match: str):
    with pytest.raises(UserError, match=match):
        ANCHOR(**fields)


def test_settings_survive_plain_values():
    assert build({"name": "fisher", "scale": "bgd", "epochs": 40}) == ANCHOR(scale="bgd", epochs=40)
    assert build(ANCHOR(lam=0.4).settings()) == ANCHOR(lam=0.4)
