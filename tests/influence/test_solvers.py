"""Solvers of (C + D)·x = v: the numbers of small systems, agreement with one another, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cases import CASES, QUIET
from expunge.errors import NotFinite, UserError
from expunge.influence import (
    CG,
    Compat,
    Curvature,
    Direct,
    Lissa,
    Listed,
    LowRank,
    Matrix,
    OfModel,
    Space,
    Woodbury,
)
from expunge.influence.gram import rows_of
from expunge.influence.solvers import largest

D = torch.float64


def t(*values: object) -> Tensor:
    return torch.tensor(values, dtype=D)


def close(found: Tensor, *values: float, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(found, t(*values), atol=tolerance, rtol=0)


RIDGE, SLOPE = Matrix(t([4.5, 6], [6, 14.5])), t(-0.811965812, -2.435897436)
TWO, ONE = Matrix(t([2, 0.5], [0.5, 1])), t(1, -1)
THREE, ALONG = Listed(t([1, 0], [1, 1], [0, 2])), t(1, 2)


def test_direct_and_conjugate_gradients_solve_the_ridge_system():
    close(Direct().solve(RIDGE, SLOPE).x, 0.0971583023, -0.2081963620)
    first = CG(most=1, rtol=1e-12, atol=0).solve(RIDGE, SLOPE)
    close(first.x, -0.0474833808, -0.1424501425)
    assert not first.done
    second = CG(rtol=1e-12, atol=0).solve(RIDGE, SLOPE)
    close(second.x, 0.0971583023, -0.2081963620)
    assert (second.iterations, second.done) == (2, True)
    assert second.residual < 1e-14


def test_conjugate_gradients_stop_at_the_residual_asked_for():
    size = float(SLOPE.norm())
    first = CG(most=1, rtol=0, atol=0).solve(RIDGE, SLOPE)
    for solver in (CG(rtol=1.01 * first.residual / size, atol=0), CG(rtol=0, atol=1.01 * first.residual)):
        found = solver.solve(RIDGE, SLOPE)
        assert (found.iterations, found.done) == (1, True)
        assert found.residual == pytest.approx(first.residual)


@pytest.mark.parametrize(
    ("depth", "want"), [(1, (0.40625, -0.46875)), (2, (0.51171875, -0.65234375)), (3, (0.58740234, -0.80322266))]
)
def test_lissa_step_by_step(depth: int, want: tuple[float, float]):
    found = Lissa(depth=depth, scale=4).solve(TWO, ONE)
    close(found.x, *want)
    assert (found.iterations, found.done) == (depth, False)


def test_lissa_has_the_limits_that_its_fixed_point_says():
    close(Lissa(scale=4, rtol=1e-12).solve(TWO, ONE).x, 0.85714286, -1.42857143)
    close(Lissa(scale=4, shrink=0.01, rtol=1e-12).solve(TWO, ONE).x, 0.82282539, -1.35712759)
    close(Direct().solve(TWO, ONE, 0.04).x, 0.82282539, -1.35712759)
    close(Lissa(rtol=1e-12).solve(TWO, ONE).x, 0.85714286, -1.42857143)  # finds its own scale


def test_the_residual_of_lissa_counts_its_own_damping_as_an_error():
    found = Lissa(scale=4, shrink=0.01, rtol=1e-12).solve(TWO, ONE)
    assert found.done
    assert found.residual == pytest.approx(float((0.04 * found.x).norm()))


def test_woodbury_of_three_gradients_by_hand():
    """Rank-one updates one after another give the same as the dual form."""
    k, f = ALONG.clone(), torch.eye(2, dtype=D)
    for g, want in zip(THREE.values, [(0.75, 2), (0.31578947, 1.42105263), (0.46153846, 0.69230769)], strict=True):
        f += torch.outer(g, g) / 3
        k = torch.linalg.solve(f, ALONG)
        close(k, *want)
    found = Woodbury().solve(LowRank(THREE), ALONG, 1.0)
    close(found.x, 0.46153846, 0.69230769)
    close(Direct().solve(LowRank(THREE), ALONG, 1.0).x, 0.46153846, 0.69230769)
    assert found.residual < 1e-14


def test_published_recursion_moves_along_the_first_gradient_alone():
    for count, want in [(1, (1, 2)), (2, (0.25, 2)), (3, (-0.75, 2))]:
        found = Compat(3).solve(LowRank(Listed(THREE.values[:count])), ALONG, 1.0)
        close(found.x, *want)
        assert float((found.x - ALONG)[1]) == 0  # parallel to (1, 0)
        assert not found.done


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 10**6))
def test_published_recursion_is_parallel_to_the_first_gradient_for_any_gradients(n: int, p: int, seed: int):
    draw = torch.Generator().manual_seed(seed)
    rows, v = torch.randn(n, p, generator=draw, dtype=D), torch.randn(p, generator=draw, dtype=D)
    k, o = v.clone(), rows[0].clone()
    for g in rows[1:]:
        q = o @ g
        k, o = k - (k @ g) / (n + q) * o, o - q / (n + q) * o
    found = Compat(n).solve(LowRank(Listed(rows)), v, 1.0).x
    torch.testing.assert_close(found, k, rtol=1e-6, atol=1e-8)
    moved = found - v
    rest = moved - (moved @ rows[0]) / (rows[0] @ rows[0]) * rows[0]
    assert float(rest.norm()) <= 1e-8 * (1 + float(moved.norm()))


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 9), st.integers(1, 7), st.floats(0.05, 3), st.integers(0, 10**6))
def test_all_solvers_agree(n: int, p: int, damping: float, seed: int):
    draw = torch.Generator().manual_seed(seed)
    rows, v = torch.randn(n, p, generator=draw, dtype=D), torch.randn(p, generator=draw, dtype=D)
    low = LowRank(Listed(rows))
    d = damping * (1 + torch.rand(p, generator=draw, dtype=D))
    want = torch.linalg.solve(rows.T @ rows / n + torch.diag(d), v)
    tight = {"rtol": 1e-11}
    for solver in (Direct(), CG(atol=0, **tight), Lissa(depth=5000, **tight), Woodbury()):
        found = solver.solve(low, v, d)
        torch.testing.assert_close(found.x, want, rtol=1e-7, atol=1e-8)
        assert found.done
        assert found.residual <= 1e-8 * (1 + float(v.norm()))


def test_nothing_to_solve_for_is_nothing():
    for solver in (Direct(), CG(), Lissa(), Woodbury()):
        found = solver.solve(LowRank(THREE), torch.zeros(2, dtype=D), 1.0)
        assert not found.x.any()
        assert found.residual == 0


@pytest.mark.parametrize("name", ["linear", "conv", "residual", "attention", "linear_weighted"])
def test_the_dual_form_on_a_network_is_the_direct_solution(name: str):
    case = CASES[name]
    model, data = case.make()
    space = Space(model)
    v = torch.randn(space.size, dtype=D)
    d = space.filled({n: 0.1 * (1 + i) for i, n in enumerate(space.params)})
    want = Direct().solve(LowRank(rows_of(model, case.task, data, QUIET)), v, d).x
    for room in (None, 2000):
        found = Woodbury().solve(LowRank(OfModel(space, case.task, data, QUIET, room=room)), v, d)
        torch.testing.assert_close(found.x, want, rtol=1e-6, atol=1e-9)
        assert found.residual < 1e-8
    by_products = CG(rtol=1e-12, atol=0).solve(
        Curvature(space, case.task, [data], QUIET, kind="fisher", scale=1 / 8), v, d
    )
    torch.testing.assert_close(by_products.x, want, rtol=1e-6, atol=1e-8)


def test_stochastic_lissa_comes_near_and_repeats_by_its_seed():
    case = CASES["linear"]
    model, data = case.make()
    space = Space(model)
    v = torch.randn(space.size, dtype=D)
    curvature = Curvature(space, case.task, [data], QUIET, kind="gauss_newton", scale=1 / 8)
    want = Direct().solve(curvature, v, 1.0).x
    one, two = (Lissa(depth=300, scale=20, batch=4, seed=3).solve(curvature, v, 1.0) for _ in range(2))
    assert torch.equal(one.x, two.x)
    assert float((one.x - want).norm()) < 0.2 * float(want.norm())
    other = Lissa(depth=300, scale=20, batch=4, seed=4).solve(curvature, v, 1.0)
    assert not torch.equal(one.x, other.x)


def test_the_largest_eigenvalue_is_found():
    values = torch.linalg.eigvalsh(RIDGE.values)
    assert largest(RIDGE, 0.5, SLOPE) == pytest.approx(float(values.max()) + 0.5, rel=1e-6)


BAD = Matrix(t([1, 0], [0, -1]))


def test_indefinite_curvature_is_refused_with_a_remedy():
    text = "raise the damping, or take the curvature gauss_newton"
    with pytest.raises(UserError, match=f"curvature above 0 in every direction, for the solver cg, .*{text}"):
        CG().solve(BAD, t(1, 2))
    with pytest.raises(UserError, match=f"curvature that is positive definite, got one that is not: {text}"):
        Direct().solve(BAD, t(1, 2))
    with pytest.raises(UserError, match=f"steps of the solver lissa that shrink, .*{text}"):
        Lissa(scale=2).solve(BAD, t(1, 2))
    assert CG(rtol=1e-12).solve(BAD, t(1, 2), 1.5).done


def test_a_scale_that_lissa_diverges_with_is_refused():
    with pytest.raises(
        UserError, match=r"steps of the solver lissa that shrink, .*raise the scale .now 0.5. or the damping"
    ):
        Lissa(scale=0.5).solve(TWO, ONE)


def test_too_many_parameters_for_a_matrix_are_refused():
    with pytest.raises(UserError, match="at most 5,000 parameters for the solver direct, got 5,001: name fewer layers"):
        Direct().solve(LowRank(Listed(torch.ones(1, 5001, dtype=D))), torch.ones(5001, dtype=D), 1.0)


def test_what_the_low_rank_solvers_need_is_said():
    with pytest.raises(UserError, match="damping above 0 for the solver woodbury, got 0"):
        Woodbury().solve(LowRank(THREE), ALONG)
    for solver in (Woodbury(), Compat()):
        with pytest.raises(UserError, match="per-sample gradients for the solver"):
            solver.solve(TWO, ONE, 1.0)


@pytest.mark.parametrize("damping", [1e-8, 1e-300])
def test_damping_lost_beside_the_gradients_is_refused_by_woodbury(damping: float):
    """Equal gradients of 1e8: the system of their products is singular in rounding, or not even finite."""
    with pytest.raises(UserError, match=f"damping that rounding does not swallow, .* woodbury, got {damping:g}: raise"):
        Woodbury().solve(LowRank(Listed(torch.full((3, 2), 1e8, dtype=D))), ALONG, damping)


def test_infinite_curvature_is_refused():
    with pytest.raises(NotFinite, match="finite curvature, got .* in iteration 1"):
        CG().solve(Matrix(t([np.inf, 0], [0, 1])), t(1, 1))
