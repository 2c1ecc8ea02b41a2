"""The rules that learn σ: parity with the derivation, their numerics, and what the printed formula gives instead."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from expunge.anchors._rules import asinh_, descended, learned, narrowed, settling

D = torch.float64
MU, SIGMA = torch.tensor([0.5, -0.2], dtype=D), torch.tensor([0.1, 0.02], dtype=D)
EPS = torch.tensor([[1, -0.5], [-0.4, 2]], dtype=D)
G = torch.tensor([[3, -10], [1, 40]], dtype=D)


def moments(factor: float = 1) -> tuple[Tensor, Tensor]:
    """Return ḡ and e of two draws."""
    return (factor * G).mean(0), (factor * G * EPS).mean(0)


def stepped(e: Tensor, sigma: Tensor = SIGMA) -> Tensor:
    log_sigma = sigma.log()
    learned(log_sigma, e)
    return log_sigma.exp()


def printed(sigma: Tensor, factor: float = 1) -> tuple[Tensor, Tensor]:
    """Return what the paper's equation gives, square inside the mean and linear term under the root; and the root's."""
    products = factor * G * EPS
    under = 1 + 0.25 * sigma**2 * products.square().mean(0) - 0.5 * sigma**2 * products.mean(0)
    return sigma * under.sqrt(), under


def near(found: Tensor, *want: float, rel: float = 1e-8) -> bool:
    return torch.allclose(found, torch.tensor(want, dtype=found.dtype), rtol=rel, atol=0)


def test_one_step_of_two_draws():
    assert near(MU + SIGMA * EPS[0], 0.6, -0.21)
    assert near(MU + SIGMA * EPS[1], 0.46, -0.16)
    g, e = moments()
    assert near(g, 2, 15)
    assert near(e, 1.3, 42.5)
    for rate, want in ((1, (0.48, -0.206)), (2, (0.46, -0.212))):
        mu = MU.clone()
        descended(mu, SIGMA.log(), g, rate)
        assert near(mu, *want)
    assert near(stepped(e), 0.0937110273, 0.0132313138)
    root = SIGMA * (1 + (0.5 * SIGMA * e) ** 2).sqrt() - 0.5 * SIGMA**2 * e
    assert torch.allclose(stepped(e), root, rtol=1e-12, atol=0)


def test_the_printed_formula_gives_another_sigma():
    _, e = moments()
    wrong, _ = printed(SIGMA)
    assert near(wrong, 0.1002471945, 0.0229150605)
    assert not near(stepped(e), *wrong.tolist(), rel=0.05)


def test_a_batch_of_128_narrows_sigma_where_the_printed_formula_widens_it():
    g, e = moments(128)
    mu = MU.clone()
    descended(mu, SIGMA.log(), g)
    assert near(mu, -2.06, -0.968)
    uncut = SIGMA * torch.exp(-asinh_(0.5 * SIGMA * e))
    assert near(uncut, 0.0059880667, 0.0001838080, rel=1e-6)
    assert near(stepped(e) / SIGMA, *[math.exp(-math.asinh(5))] * 2)  # ½·σ·e of 8 and 54, cut to 5
    wrong, under = printed(SIGMA, 128)
    assert near(under, 187.7648, 5263.272)
    assert near(wrong, 1.3702729655, 1.4509682285)


def test_the_precision_grows_by_the_curvature_of_each_sample():
    log_sigma = torch.tensor([0.02], dtype=D).log()
    for step in range(390):
        learned(log_sigma, 128 * log_sigma.exp())  # e of ½θ² over 128 samples
        if step == 0:
            assert near(log_sigma.exp(), 0.0194945526)
    assert near(log_sigma.exp(), 0.0043595531)
    precision = float((-2 * log_sigma).exp())
    assert precision == pytest.approx(52615.786, rel=1e-7)
    assert precision == pytest.approx(1 / 0.02**2 + 390 * 128, rel=0.01)


def test_far_out_in_float32_where_the_root_gives_zero():
    x = torch.tensor(5000.0)
    assert float((1 + x * x).sqrt() - x) == 0
    assert float(torch.exp(-asinh_(x.clone()))) == pytest.approx(1.0e-4, rel=1e-6)


@given(st.floats(-30, 30), st.booleans(), st.sampled_from([torch.float32, D]))
def test_asinh_is_torchs_own(power: float, negative: bool, dtype: torch.dtype):
    x = torch.tensor([(-1 if negative else 1) * math.exp(power)], dtype=D).to(dtype)
    want = x.double().asinh()
    assert torch.allclose(asinh_(x.clone()).double(), want, rtol=3e-7 if dtype == torch.float32 else 1e-14, atol=0)


def test_asinh_of_nothing_is_nothing():
    assert asinh_(torch.zeros(3)).tolist() == [0, 0, 0]
    assert asinh_(torch.zeros(0)).shape == (0,)


@given(st.floats(-60, 60), st.floats(-9, 0))
def test_a_step_is_odd_in_e_and_keeps_sigma_positive(e: float, log_sigma: float):
    up, down = (torch.tensor([log_sigma], dtype=D) for _ in range(2))
    learned(up, torch.tensor([e], dtype=D))
    learned(down, torch.tensor([-e], dtype=D))
    assert float(up.exp()) > 0
    assert float((up - log_sigma) + (down - log_sigma)) == pytest.approx(0, abs=1e-12)


def test_steep_steps_are_cut_and_counted():
    log_sigma = torch.zeros(4, dtype=D)
    cut = learned(log_sigma, torch.tensor([2.0, 10.5, -1e9, 10.0], dtype=D))
    assert cut == 2
    assert near(log_sigma, -math.asinh(1), -math.asinh(5), math.asinh(5), -math.asinh(5))
    assert narrowed(torch.zeros(2), torch.tensor([5.0, -5.0])) == 0
    assert narrowed(torch.zeros(0), torch.zeros(0)) == 0


def test_steps_enough_to_settle():
    assert settling(0.1, 0.9) == 34
    assert settling(1.0, 1.0) == 3
