"""Influence, Newton, IU and first order: ridge by hand and in general, networks, and who is refused."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from cases import blobs, deep
from expunge.data import Data
from expunge.errors import UserError
from expunge.influence import Curvature, Direct, OfModel, Space, gradient
from expunge.influence.gram import rows_of
from expunge.influence.solvers import MOST
from expunge.masks import Masks
from expunge.method import Needs, See, Session, State
from expunge.methods import build, load
from expunge.methods.influence import iu_direction
from expunge.runtime import Runtime
from expunge.task import Classification, Regression, Task
from expunge.tensors import parameters
from expunge.train import Recipe, fit
from expunge.unlearn import Unlearned, unlearn

D = torch.float64
METHOD = load("influence")
QUIET = Runtime(batch_size=7, progress=False, device="cpu")
SQUARED = Regression()
HALF = {"damping": 0, "penalty": 1.0, "penalty_scales": False}  # twice ½‖Xw − y‖² + ¼‖w‖², as the loss has no ½


def t(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=D)


def close(found: Tensor, *values: float, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(found.detach().reshape(-1), t(*values), atol=tolerance, rtol=0)


def line(weights: Tensor, bias: float | None = None) -> nn.Module:
    """Return the linear model of these weights."""
    model = nn.Linear(len(weights), 1, bias=bias is not None).double().eval()
    model.weight.data = weights[None].clone()
    if bias is not None:
        model.bias.data = t(bias)
    return model


def request(method: Any, model: nn.Module, data: Data, gone: list[int], task: Task = SQUARED, **more: Any) -> Unlearned:
    ids = [data.ids[i] for i in gone]
    more = {"runtime": QUIET, **more}
    return unlearn(method, model, task, forget=data.subset(ids), retain=data.without(ids), **more)


X, Y = t([1, 0], [1, 1], [1, 2], [1, 3]), t(1, 2, 2, 5)
ROWS = Data.from_arrays(X, Y[:, None])


def ridge(x: Tensor, y: Tensor, penalty: float | Tensor) -> Tensor:
    """Return the minimiser of ½‖Xw − y‖² + ½·wᵀ·penalty·w."""
    return torch.linalg.solve(x.T @ x + torch.diag(penalty * torch.ones(x.shape[1], dtype=D)), x.T @ y)


START = ridge(X, Y, 0.5)


def test_ridge_with_one_row_deleted_by_hand():
    close(START, 0.6495726496, 1.1794871795)
    exact = ridge(X[:3], Y[:3], 0.5)
    close(exact, 0.9268292683, 0.5853658537)
    for solver in ("direct", "cg"):
        done = request(METHOD(kind="newton", solver=solver, rtol=1e-12, **HALF), line(START), ROWS, [3])
        torch.testing.assert_close(done.model.weight[0], exact, atol=1e-10, rtol=0)
        done = request(METHOD(solver=solver, rtol=1e-12, **HALF), line(START), ROWS, [3])
        close(done.model.weight, 0.7467309519, 0.9712908174)
        assert done.log["leverage"] == pytest.approx(0.6495726496, abs=1e-9)
        assert "had 65% of the curvature along the step" in done.note
        assert float((START - exact).norm()) == pytest.approx(0.6556305228, abs=1e-9)
        gap = float((done.model.weight[0].detach() - exact).norm())
        assert gap == pytest.approx(0.4258796558, abs=1e-9)
        assert gap / float((START - exact).norm()) == pytest.approx(done.log["leverage"], abs=1e-9)


def test_first_order_of_ridge_by_hand():
    """The loss has no ½, so τ is half as long."""
    done = request(METHOD(kind="first_order", alpha=0.025), line(START), ROWS, [3])
    close(done.model.weight, 0.6089743590, 1.0576923077)
    gap = float((done.model.weight[0].detach() - ridge(X[:3], Y[:3], 0.5)).norm())
    assert gap == pytest.approx(0.5693189111, abs=1e-9)
    assert done.log["step_norm"] * 0.025 == pytest.approx(float((done.model.weight[0] - START).norm()))


def test_ridge_with_two_rows_deleted_by_hand():
    exact = ridge(X[1:3], Y[1:3], 0.5)
    close(exact, 0.8421052632, 0.6315789474)
    done = request(METHOD(kind="newton", solver="direct", **HALF), line(START), ROWS, [0, 3])
    torch.testing.assert_close(done.model.weight[0], exact, atol=1e-10, rtol=0)
    done = request(METHOD(solver="direct", **HALF), line(START), ROWS, [0, 3])
    close(done.model.weight, 0.5730148294, 1.0431733509)


def test_ridge_whose_penalty_scales_with_n_by_hand():
    exact = ridge(X[:3], Y[:3], 0.375)
    close(exact, 0.9709401709, 0.5743589744)
    scaled = METHOD(kind="newton", solver="direct", damping=0, penalty=0.25)
    done = request(scaled, line(START), ROWS, [3])
    torch.testing.assert_close(done.model.weight[0], exact, atol=1e-10, rtol=0)
    without = METHOD(kind="newton", solver="direct", damping=0, penalty=0.75, penalty_scales=False)
    wrong = request(without, line(START), ROWS, [3])  # the delete term without λw*
    close(wrong.model.weight, 0.97158302, 0.54657024)
    assert float((wrong.model.weight[0] - exact).norm().detach()) > 0.02


def test_the_weight_decay_of_the_recipe_is_the_penalty():
    named = request(METHOD(kind="newton", damping=0, penalty=0.25), line(START), ROWS, [3])
    recipe = Recipe(weight_decay=0.25)
    found = request(METHOD(kind="newton", damping=0), line(START), ROWS, [3], recipe=recipe)
    assert torch.equal(found.model.weight, named.model.weight)
    assert found.log["penalty"] == 0.25
    other = Recipe(weight_decay=0.25, optimizer="adamw")
    found = request(METHOD(kind="newton", damping=0), line(START), ROWS, [3], recipe=other)
    assert found.log["penalty"] == 0
    assert "weight decay of adamw is no part of the objective" in found.note


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 9), st.integers(1, 4), st.floats(0.05, 2), st.booleans(), st.integers(0, 10**6))
def test_of_any_ridge_newton_is_exact_and_the_error_of_influence_is_the_leverage(
    n: int, p: int, penalty: float, scales: bool, seed: int
):
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, p, generator=draw, dtype=D), torch.randn(n, generator=draw, dtype=D)
    gone = int(torch.randint(n, (1,), generator=draw))
    rest = [i for i in range(n) if i != gone]
    whole, left = (penalty * n, penalty * (n - 1)) if scales else (penalty, penalty)
    start, exact = ridge(x, y, whole), ridge(x[rest], y[rest], left)
    data = Data.from_arrays(x, y[:, None])
    fields = {"solver": "direct", "damping": 0, "penalty": 2 * penalty, "penalty_scales": scales}
    done = request(METHOD(kind="newton", **fields), line(start), data, [gone])
    torch.testing.assert_close(done.model.weight[0].detach(), exact, atol=1e-10, rtol=1e-10)
    if not scales and float((start - exact).norm()) > 1e-6:
        h = float(x[gone] @ torch.linalg.solve(x.T @ x + penalty * torch.eye(p, dtype=D), x[gone]))
        done = request(METHOD(**fields), line(start), data, [gone])
        ratio = float((done.model.weight[0].detach() - exact).norm() / (start - exact).norm())
        assert ratio == pytest.approx(h, rel=1e-6, abs=1e-9)
        assert done.log["leverage"] == pytest.approx(h, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("gone", [1, 3])
def test_the_leverage_has_the_share_of_a_penalty_that_the_forgotten_samples_take_along(gone: int):
    """Of a single weight the error of the step is the leverage, whatever is forgotten."""
    x, y = t(1, 2, -1, 0.5, 1.5), t(2, 1, -3, 0, 1)
    start, exact = ridge(x[:, None], y, 5 * 0.8), ridge(x[gone:, None], y[gone:], (5 - gone) * 0.8)
    data = Data.from_arrays(x[:, None], y[:, None])
    done = request(METHOD(solver="direct", damping=0, penalty=1.6), line(start), data, list(range(gone)))
    error = float((done.model.weight[0].detach() - exact) / (start - exact))
    assert done.log["leverage"] == pytest.approx(error, rel=1e-9)
    assert error == pytest.approx(float(x[:gone].square().sum() + 0.8 * gone) / float(x.square().sum() + 4), rel=1e-9)


def test_sample_weights_count_in_gradients_and_curvature():
    """A row of weight 2 is two rows."""
    weight = torch.tensor([1.0, 2, 1, 1])
    weighted = Data.from_arrays(X, Y[:, None], weight=weight)
    twice = torch.cat([X, X[1:2]]), torch.cat([Y, Y[1:2]])
    start, exact = ridge(*twice, 0.5), ridge(torch.cat([X[:3], X[1:2]]), torch.cat([Y[:3], Y[1:2]]), 0.5)
    done = request(METHOD(kind="newton", solver="direct", **HALF), line(start), weighted, [3])
    torch.testing.assert_close(done.model.weight[0].detach(), exact, atol=1e-10, rtol=0)


def test_direction_of_iu_by_hand():
    v = iu_direction(t(-0.7, -2.1), t(0.7, 2.1), 1, 3)
    close(v, -0.23333333, -0.7)
    close(t(-0.7, -2.1) / 3, -0.23333333, -0.7)  # at a minimum S_f/n_r is the same
    residual = X @ START - Y
    close(iu_direction(X[3] * residual[3], X[:3].T @ residual[:3], 1, 3), -0.2435897436, -0.7628205128)


def test_iu_at_the_least_squares_optimum_and_off_it():
    for start, want in ((t(0.7, 1.2), (-0.23333333, -0.7)), (START, (-0.2435897436, -0.7628205128))):
        done = request(METHOD(kind="iu", damping=1e9, alpha=1e9), line(start), ROWS, [3])
        step = done.model.weight[0].detach() - start
        close(step / 2, *want)  # the loss has no ½


@settings(deadline=None, max_examples=10)
@given(st.integers(3, 8), st.integers(1, 4), st.integers(0, 10**6))
def test_iu_is_parallel_to_its_direction_under_much_damping(n: int, p: int, seed: int):
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, p, generator=draw, dtype=D), torch.randn(n, 1, generator=draw, dtype=D)
    start, data = torch.randn(p, generator=draw, dtype=D), Data.from_arrays(x, y)
    grads = 2 * (x @ start - y[:, 0])[:, None] * x
    v = iu_direction(grads[0], grads[1:].sum(0), 1, n - 1)
    done = request(METHOD(kind="iu", damping=1e8, alpha=1e8), line(start), data, [0])
    torch.testing.assert_close(done.model.weight[0].detach() - start, v, rtol=1e-5, atol=1e-5)


@cache
def trained() -> tuple[nn.Module, Data]:
    data = blobs(40)
    return fit(deep(), Classification(), data, Recipe(epochs=6, lr=0.05), runtime=QUIET), data


def moved(before: nn.Module, after: nn.Module) -> Tensor:
    pairs = zip(parameters(before).values(), parameters(after).values(), strict=True)
    return torch.cat([(b - a).detach().flatten() for a, b in pairs])


def test_iu_of_a_network_is_the_inverse_fisher_information_of_all_retained_gradients():
    model, data = trained()
    done = request(METHOD(kind="iu", damping=0.01), model, data, list(range(7)), Classification())
    forget, retain = data.subset(data.ids[:7]), data.without(data.ids[:7])
    g_f, g_r = (rows_of(model, Classification(), part, QUIET).values for part in (forget, retain))
    v = iu_direction(g_f.sum(0), g_r.sum(0), 7, 33)
    want = torch.linalg.solve(g_r.T @ g_r / 33 + 0.01 * torch.eye(g_r.shape[1], dtype=D), v)
    torch.testing.assert_close(moved(model, done.model), want, rtol=1e-6, atol=1e-10)
    for solver in ("cg", "direct"):
        other = request(
            METHOD(kind="iu", damping=0.01, solver=solver, rtol=1e-10, iterations=500),
            model,
            data,
            list(range(7)),
            Classification(),
        )
        torch.testing.assert_close(moved(model, other.model), want, rtol=1e-5, atol=1e-8)


def test_published_iu_moves_along_v_and_the_first_retained_gradient():
    model, data = trained()
    done = request(METHOD(kind="iu", solver="compat", samples=5), model, data, list(range(7)), Classification())
    forget, retain = data.subset(data.ids[:7]), data.without(data.ids[:7])
    g_f, g_r = (rows_of(model, Classification(), part, QUIET).values for part in (forget, retain))
    v = iu_direction(g_f.sum(0), g_r.sum(0), 7, 33)
    k, o = v.clone(), g_r[0].clone()
    for g in g_r[1:7]:  # two more samples are read than the number divided by
        q = o @ g
        k, o = k - (k @ g) / (5 + q) * o, o - q / (5 + q) * o
    torch.testing.assert_close(moved(model, done.model), k, rtol=1e-6, atol=1e-10)
    assert "applies no inverse curvature" in done.note


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton", "fisher"])
@pytest.mark.parametrize("kind", ["influence", "newton"])
def test_the_step_of_a_network_solves_its_system(kind: str, curvature: Any):
    model, data = trained()
    recipe = Recipe(weight_decay=0.01)
    method = METHOD(kind=kind, curvature=curvature, damping=2.0, rtol=1e-10)
    done = request(method, model, data, list(range(7)), Classification(), recipe=recipe)
    forget, retain = data.subset(data.ids[:7]), data.without(data.ids[:7])
    space, task = Space(model), Classification()
    sets, n = ([forget, retain], 40) if kind == "influence" else ([retain], 33)
    v = (gradient(space, task, forget, QUIET) + 7 * 0.01 * space.weights()) / n
    operator = Curvature(space, task, sets, QUIET, kind=curvature, scale=1 / n)
    want = Direct().solve(operator, v, 2.01).x
    torch.testing.assert_close(moved(model, done.model), want, rtol=1e-6, atol=1e-9)
    assert done.log["residual"] < 1e-9
    assert 0 < done.log["iterations"] <= 100
    whole = gradient(space, task, data, QUIET) + 40 * 0.01 * space.weights()
    own = n * v
    assert done.log["gradient_ratio"] == pytest.approx(float(whole.norm() / own.norm()))
    assert done.log["step_norm"] == pytest.approx(float(want.norm()), rel=1e-6)


def test_far_from_a_minimum_a_note_says_so():
    data = blobs(20)
    done = request(METHOD(damping=1.0), deep().eval(), data, [0, 1], Classification())
    assert "not at a minimum of the training objective" in done.note
    at_minimum = request(METHOD(kind="newton", **HALF), line(START), ROWS, [3])
    assert "minimum" not in at_minimum.note
    fitted = Data.from_arrays(X, (X @ START)[:, None])  # no gradient at all
    through = request(METHOD(kind="newton", damping=0.1), line(START), fitted, [3])
    assert through.log["gradient_ratio"] < 0.1
    assert "minimum" not in through.note


def test_newton_on_a_converged_head_comes_nearer_to_retrained_than_the_original():
    data = blobs(60)
    head = nn.Linear(4, 3).double()
    recipe = Recipe(epochs=300, lr=0.5, batch_size=60, momentum=0.9, weight_decay=0.01, schedule="constant")
    model = fit(head, Classification(), data, recipe, runtime=QUIET)
    gone = list(range(12))
    again = fit(head, Classification(), data.without([data.ids[i] for i in gone]), recipe, runtime=QUIET)
    gaps = {}
    for kind in ("influence", "newton"):
        done = request(METHOD(kind=kind, damping=0, rtol=1e-8), model, data, gone, Classification(), recipe=recipe)
        gaps[kind] = float(moved(again, done.model).norm())
    first = float(moved(again, model).norm())
    assert gaps["newton"] < 0.1 * first
    assert gaps["newton"] < gaps["influence"] < first


def test_one_layer_alone_moves_and_the_others_stay_to_the_bit():
    model, data = trained()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for layers, moving in (("last", {"1.weight", "1.bias"}), (("0.2",), {"0.2.weight", "0.2.bias"})):
        done = request(METHOD(layers=layers, damping=1.0), model, data, [0, 1, 2], Classification())
        for name, p in done.model.named_parameters():
            assert torch.equal(p, before[name]) == (name not in moving), name
    space = Space(model, ["1.weight", "1.bias"])
    done = request(METHOD(layers="last", damping=0.1, rtol=1e-11), model, data, [0, 1, 2], Classification())
    forget = data.subset(data.ids[:3])
    operator = Curvature(space, Classification(), [data], QUIET, kind="gauss_newton", scale=1 / 40)
    want = Direct().solve(operator, gradient(space, Classification(), forget, QUIET) / 40, 0.1).x
    torch.testing.assert_close(moved(model, done.model)[-len(want) :], want, rtol=1e-6, atol=1e-9)


def test_an_unknown_layer_is_refused_with_those_that_exist():
    model, data = trained()
    with pytest.raises(UserError, match="layers with trainable weights, of 0.0.0, 0.0.1, 0.2, 1, got 'head'"):
        request(METHOD(layers="head"), model, data, [0], Classification())


def under(masks: Masks, method: Any, model: nn.Module, data: Data) -> nn.Module:
    session = Session(
        task=Classification(),
        runtime=QUIET,
        seed=0,
        method="influence",
        phase="unlearn",
        needs=Needs(forget=See.LABELLED, retain=See.LABELLED, recipe=True, optional=frozenset({"recipe"})),
        source=model,
        given={"forget": data.subset(data.ids[:5]), "retain": data.without(data.ids[:5])},
        masks=masks,
    )
    with torch.enable_grad():
        return method.unlearn(session, State())[0]


@pytest.mark.parametrize("solver", ["cg", "direct", "lissa"])
def test_masked_weights_stay_and_the_step_is_sought_among_the_others(solver: str):
    model, data = trained()
    torch.manual_seed(2)
    masks = Masks({n: torch.rand(p.shape) > 0.5 for n, p in parameters(model).items() if p.dim() > 1})
    found = under(masks, METHOD(solver=solver, damping=0.5, rtol=1e-10, depth=5000), model, data)
    step = moved(model, found)
    free = torch.cat([masks.kept.get(n, torch.ones(p.shape) > 0).flatten() for n, p in parameters(model).items()])
    assert not step[~free].any()
    space = Space(model)
    operator = Curvature(space, Classification(), [data], QUIET, kind="gauss_newton", scale=1 / 40)
    matrix = operator.products(torch.eye(space.size, dtype=D)) + 0.5 * torch.eye(space.size, dtype=D)
    v = gradient(space, Classification(), data.subset(data.ids[:5]), QUIET) / 40
    want = torch.linalg.solve(matrix[free][:, free], v[free])
    torch.testing.assert_close(step[free], want, rtol=1e-6, atol=1e-8)
    with pytest.raises(UserError, match="weights that may all move, for the solver woodbury, got some under a mask"):
        under(masks, METHOD(kind="iu"), model, data)


def test_masked_weights_do_not_slow_lissa():
    """Of small features, so that the largest eigenvalue among the free weights is far below 1."""
    generator = torch.Generator().manual_seed(0)
    data = Data.from_arrays(0.1 * torch.randn(40, 4, generator=generator, dtype=D), torch.arange(40) % 3)
    model = nn.Linear(4, 3, bias=False).double().eval()
    masks = Masks({"weight": torch.arange(12).reshape(3, 4) % 2 == 0})
    found, want = (
        moved(model, under(masks, METHOD(damping=1e-3, rtol=1e-9, **fields), model, data))
        for fields in ({"solver": "lissa", "depth": 60}, {"solver": "direct"})
    )
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-10)


def test_alpha_is_searched_on_holdout_data():
    model, data = trained()
    holdout = blobs(30, seed=9, name="holdout")
    plain = request(METHOD(damping=1.0), model, data, [0, 1, 2], Classification())
    done = request(METHOD(damping=1.0, alpha="search"), model, data, [0, 1, 2], Classification(), holdout=holdout)
    losses = dict(done.log["holdout_losses"])
    assert list(losses) == [2.0**k for k in range(-6, 7)]
    assert done.log["alpha"] == min(losses, key=lambda a: losses[a])
    step = moved(model, plain.model)
    torch.testing.assert_close(moved(model, done.model), done.log["alpha"] * step, rtol=1e-6, atol=1e-9)
    with pytest.raises(UserError, match="holdout"):
        request(METHOD(alpha="search"), model, data, [0], Classification())


def test_forgetting_what_added_nothing_to_the_gradient_changes_nothing():
    """Rows that the line goes through, at the optimum of the others, and no penalty: Δ is 0."""
    start = ridge(X[:3], Y[:3], 0.0)
    y = torch.cat([Y[:3], X[3:] @ start])
    data = Data.from_arrays(X, y[:, None])
    model = line(start)
    for kind in ("influence", "newton"):
        done = request(METHOD(kind=kind, damping=0.1), model, data, [3])
        torch.testing.assert_close(done.model.weight, model.weight, atol=1e-12, rtol=0)
    zero = Data.from_arrays(t([0, 0], [1, 1], [1, 2]), t([0], [1], [2]))
    done = request(METHOD(kind="first_order", alpha=0.5), model, zero, [0])
    assert torch.equal(done.model.weight, model.weight)
    assert "No weight moved" in done.note


def diabetes() -> tuple[Tensor, Tensor, Tensor]:
    """Return X, y and the penalty of each weight, the intercept's first and 0."""
    found = load_diabetes()
    x = np.hstack([np.ones((len(found.data), 1)), found.data])
    return torch.from_numpy(x), torch.from_numpy(found.target), t(0, *[0.1] * 10)


def apart(w: Tensor) -> nn.Module:
    return line(w[1:], float(w[0]))


def joined(model: nn.Module) -> Tensor:
    return torch.cat([model.bias, model.weight[0]]).detach()


SLOPES = {"solver": "direct", "damping": 0, "penalty": 0.2, "penalty_scales": False, "penalised": "weights"}


def test_diabetes_with_the_first_rows_deleted():
    x, y, penalty = diabetes()
    data = Data.from_arrays(x[:, 1:], y[:, None])
    start, exact = ridge(x, y, penalty), ridge(x[44:], y[44:], penalty)
    assert float((start - exact).norm()) == pytest.approx(68.54519, rel=1e-4)
    gone, wide = list(range(44)), {"runtime": Runtime(batch_size=100, progress=False)}
    done = request(METHOD(**SLOPES), apart(start), data, gone, **wide)
    assert float((joined(done.model) - exact).norm()) == pytest.approx(6.986671, rel=1e-4)
    done = request(METHOD(kind="newton", **SLOPES), apart(start), data, gone, **wide)
    assert float((joined(done.model) - exact).norm()) < 1e-8


def test_diabetes_with_a_range_of_targets_deleted():
    x, y, penalty = diabetes()
    low = y <= 75
    assert int(low.sum()) == 87
    data = Data.from_arrays(x[:, 1:], y[:, None])
    start, gold = ridge(x, y, penalty), ridge(x[~low], y[~low], penalty)
    gone = low.nonzero().flatten().tolist()
    done = request(METHOD(**SLOPES), apart(start), data, gone, runtime=Runtime(batch_size=100, progress=False))
    step = joined(done.model)
    assert float((start - gold).norm()) == pytest.approx(142.34134, rel=1e-4)
    assert float((step - gold).norm()) == pytest.approx(81.89807, rel=1e-4)
    for w, want in ((start, (48.87468, 42.40242)), (gold, (69.35970, 41.60321)), (step, (61.29628, 41.38211))):
        errors = (x @ w - y).abs()
        assert (float(errors[low].mean()), float(errors[~low].mean())) == pytest.approx(want, rel=1e-4)
    for w, far in ((start, 21.31444), (step, 8.15004)):
        found = wasserstein_distance((x[low] @ w).numpy(), (x[low] @ gold).numpy())
        assert found == pytest.approx(far, rel=1e-4)


def test_indefinite_curvature_is_refused_in_words():
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double().eval(), blobs(20)
    with pytest.raises(UserError, match="for the solver cg, .*raise the damping, or take the curvature gauss_newton"):
        request(METHOD(curvature="hessian", damping=0), model, data, [0, 1], Classification())


def test_too_many_parameters_for_direct_are_refused():
    data = Data.from_arrays(torch.randn(6, 100, dtype=D), torch.arange(6) % 3)
    model = nn.Sequential(nn.Linear(100, 60), nn.Linear(60, 3)).double().eval()
    with pytest.raises(UserError, match="at most 5,000 parameters for the solver direct, got 6,243: name fewer layers"):
        request(METHOD(solver="direct"), model, data, [0], Classification())
    assert request(METHOD(solver="direct", layers="last"), model, data, [0], Classification()).changed.count > 0


def test_a_solver_that_runs_out_of_iterations_is_noted():
    model, data = trained()
    done = request(METHOD(damping=0.001, iterations=2), model, data, [0, 1], Classification())
    assert "The solver ended at a residual of" in done.note
    assert "raise the damping (now 0.001) or influence.iterations" in done.note


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_an_absolute_error_has_little_curvature(curvature: Any):
    """Of a linear model none: Gauss-Newton is refused, and the Hessian is the damping alone."""
    task = Regression(error="absolute")
    method = METHOD(curvature=curvature, damping=0.5)
    if curvature == "gauss_newton":
        with pytest.raises(UserError, match="a loss that is curved in the outputs"):
            request(method, line(START), ROWS, [3], task)
        return
    done = request(method, line(START), ROWS, [3], task)
    slope = (X[3] @ START - Y[3]).sign() * X[3]
    torch.testing.assert_close(done.model.weight[0].detach() - START, slope / 4 / 0.5)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"kind": "inverse"}, "influence.kind influence or newton or iu or first_order, got 'inverse'"),
        ({"curvature": "kfac"}, "influence.curvature hessian or gauss_newton or fisher, got 'kfac'"),
        ({"solver": "qr"}, "influence.solver direct or cg or lissa or woodbury or compat, got 'qr'"),
        ({"kind": "first_order"}, "alpha for kind='first_order', got None"),
        ({"kind": "first_order", "alpha": "search"}, "alpha for kind='first_order', got 'search'"),
        ({"kind": "first_order", "alpha": 1, "damping": 1}, "no damping for kind='first_order', got 1"),
        ({"kind": "iu", "penalty": 0.1}, "no penalty for kind='iu', got 0.1"),
        ({"penalty_scales": False}, "a penalty with penalty_scales=False, got none"),
        ({"solver": "woodbury"}, "curvature='fisher' for the solver woodbury, got 'gauss_newton'"),
        ({"solver": "woodbury", "curvature": "fisher"}, "the retain set's curvature for the solver woodbury"),
        (
            {"solver": "compat", "kind": "newton", "curvature": "fisher"},
            "kind='iu' and no damping for the solver compat",
        ),
        ({"solver": "compat", "kind": "iu", "damping": 0.1}, "no damping for the solver compat, got kind='iu' and dam"),
        ({"kind": "iu", "damping": 0}, "damping above 0 for the solver woodbury, got 0"),
        ({"scale": 3.0}, "solver='lissa' with influence.scale, got 'cg': leave it out, or set the solver"),
        ({"solver": "direct", "batch": 4}, "solver='lissa' with influence.batch, got 'direct'"),
        ({"kind": "iu", "shrink": 0.1}, "solver='lissa' with influence.shrink, got 'woodbury'"),
        ({"alpha": 0}, "influence.alpha above 0, or 'search', got 0"),
        ({"damping": -1}, "influence.damping of 0 or more, got -1"),
        ({"layers": ()}, "influence.layers all, last or names"),
        ({"samples": 0}, "influence.samples of 1 or more"),
        ({"penalised": "biases"}, "influence.penalised all or weights, got 'biases'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields: dict[str, Any], text: str):
    with pytest.raises(UserError, match=text):
        METHOD(**fields)


def test_it_is_built_from_plain_values():
    method = build({"name": "influence", "layers": ["fc", "head"], "kind": "iu"})
    assert method.layers == ("fc", "head")
    assert build(method.settings()) == method
    assert build({"name": "influence", "layers": "last"}).layers == "last"


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "first_order", "alpha": 0.1},
        {"damping": 0.5, "iterations": 7},
        {"kind": "newton", "solver": "lissa", "damping": 0.5, "depth": 20},
        {"kind": "newton", "solver": "direct", "layers": "last"},
        {"kind": "iu"},
        {"kind": "iu", "solver": "compat"},
        {"damping": 0.5, "iterations": 7, "alpha": "search"},
    ],
)
def test_no_kind_and_no_solver_reads_more_than_it_says(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    model, data = trained()
    method, read, seen, holdout = METHOD(**fields), Data.read, [0], blobs(10, seed=9, name="holdout")

    def counted(part: Data, index: Any) -> Any:
        seen[0] += len(index)
        return read(part, index)

    sizes = {"forget": 7, "retain": 33, "holdout": 10}
    most = sum(times * sizes[name] for name, times in method.passes("unlearn", None).items())
    more = {"holdout": holdout} if method.alpha == "search" else {}
    monkeypatch.setattr(Data, "read", counted)
    request(method, model, data, list(range(7)), Classification(), **more)
    ids = 40 + 40 + len(holdout)  # what the driver reads of their content
    assert seen[0] <= most + ids + QUIET.batch_size
    assert set(method.work("unlearn", None, 3)) == set(method.passes("unlearn", None))


def test_needs_depend_on_the_kind():
    assert METHOD().unlearns.required() == ["forget", "retain"]
    assert METHOD(kind="first_order", alpha=0.1).unlearns.required() == ["forget"]
    assert set(METHOD(alpha="search").unlearns.required()) == {"forget", "retain", "holdout"}


def test_the_fisher_information_is_of_drawn_samples_where_there_are_many():
    model, data = trained()
    one, two = (
        request(METHOD(kind="iu", samples=10, damping=0.01), model, data, list(range(7)), Classification(), seed=s)
        for s in (0, 1)
    )
    assert not torch.equal(moved(model, one.model), moved(model, two.model))
    same = request(METHOD(kind="iu", samples=10, damping=0.01), model, data, list(range(7)), Classification(), seed=0)
    assert torch.equal(moved(model, one.model), moved(model, same.model))


def test_woodbury_within_newton_has_the_penalty_in_its_diagonal():
    model, data = trained()
    fields = {"kind": "newton", "curvature": "fisher", "damping": 0.01, "penalty": 0.1, "penalised": "weights"}
    low = request(METHOD(solver="woodbury", **fields), model, data, list(range(7)), Classification())
    by_products = request(METHOD(solver="direct", **fields), model, data, list(range(7)), Classification())
    torch.testing.assert_close(moved(model, low.model), moved(model, by_products.model), rtol=1e-6, atol=1e-9)
    assert len(OfModel(Space(model), Classification(), data, QUIET)) == 40


def test_the_page_runs():
    page = (Path(__file__).parents[2] / "docs" / "influence.md").read_text(encoding="utf-8")
    codes = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(codes) == 2
    for code in codes:
        exec(code, {})
    assert f"more than {MOST:,} weights" in page
