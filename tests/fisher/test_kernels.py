"""Every kernel is held to the dense per-sample gradients, in every regime of sizes and as a GPU would run it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expunge.fisher import kernels
from expunge.fisher.kernels import Dense, Gradient, Outer, Part, Patches, Rows, Several, Window, together

D = torch.float64
B = 5


def dense(g: Gradient) -> Tensor:
    return g.each(slice(0, len(g)))


def conv(groups: int = 1) -> Patches:
    torch.manual_seed(1)
    window = Window((3, 2), (2, 1), (1, 2), (1, 1, 0, 2))
    a = torch.randn(B, 4, 7, 6, dtype=D)
    rows, columns = (7 + 2 - 3) // 2 + 1, 6 + 2 - 3 + 1
    return Patches(torch.randn(B, 6, rows, columns, dtype=D), a, window, groups)


def linear(positions: int = 3) -> Outer:
    torch.manual_seed(2)
    return Outer(torch.randn(B, positions, 4, dtype=D), torch.randn(B, positions, 6, dtype=D))


def rows() -> Rows:
    torch.manual_seed(3)
    return Rows(torch.randint(0, 4, (B, 6)), torch.randn(B, 6, 3, dtype=D), 4, 0)


MADE = {
    "dense": lambda: Dense(torch.randn(B, 4, 3, dtype=D)),
    "outer": linear,
    "outer of one position": lambda: linear(1),
    "patches": conv,
    "patches in groups": lambda: conv(2),
    "rows": rows,
    "part": lambda: Part(linear(), 2, (9, 6)),
    "several": lambda: Several([linear(), linear(2), Dense(torch.randn(B, 4, 6, dtype=D))]),
    "several parts": lambda: Several([Part(linear(), 0, (9, 6)), Part(linear(1), 3, (9, 6))]),
}


@pytest.fixture(params=["as is", "large", "tiles", "gpu"])
def regime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send small tensors the ways of large ones: one product a sample, in tiles, many at once."""
    if request.param in ("large", "tiles"):
        monkeypatch.setattr(kernels, "_SMALL", 0)
    if request.param == "tiles":
        monkeypatch.setattr(kernels, "TILE", 100)
        monkeypatch.setattr(kernels, "CHUNK", 1000)
    if request.param == "gpu":
        monkeypatch.setattr(kernels, "parallel", lambda tensor: True)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("name", MADE)
def test_sums_equal_those_of_dense_gradients(name: str, power: int, regime: None):
    gradient = MADE[name]()
    assert len(gradient) == B
    each = dense(gradient)
    assert tuple(each.shape) == (B, *gradient.shape)
    total = torch.ones(gradient.shape, dtype=D)
    gradient.add(total, power, lambda: 700)  # a budget of a few samples
    torch.testing.assert_close(total, 1 + each.abs().pow(power).sum(dim=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MADE)
def test_folding_sums_consecutive_rows(name: str):
    gradient = MADE[name]()
    folded = gradient.fold(5)
    want = dense(gradient).sum(dim=0, keepdim=True)
    assert len(folded) == 1
    torch.testing.assert_close(dense(folded), want, rtol=1e-12, atol=1e-12)
    total = torch.zeros(gradient.shape, dtype=D)
    folded.add(total, 2, lambda: 700)
    torch.testing.assert_close(total, want[0].square(), rtol=1e-12, atol=1e-12)


def test_uses_of_a_matrix_are_joined_along_positions():
    parts = [linear(), linear(2)]
    joined = together(parts)
    assert isinstance(joined, Outer)
    torch.testing.assert_close(dense(joined), dense(parts[0]) + dense(parts[1]))
    assert together(parts[:1]) is parts[0]


def test_depthwise_groups_equal_the_general_way(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    g = Patches(torch.randn(B, 4, 4, dtype=D), torch.randn(B, 4, 6, dtype=D), Window((3,), (1,), (1,), (0, 0)), 4)
    assert g.shape == (4, 1, 3)
    found = torch.zeros(g.shape, dtype=D)
    g.add(found, 2, lambda: 1)
    monkeypatch.setattr(kernels, "_SMALL", 0)
    general = torch.zeros(g.shape, dtype=D)
    g.add(general, 2, lambda: 1)
    torch.testing.assert_close(found, general)
    torch.testing.assert_close(found, dense(g).square().sum(dim=0))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("last", [False, True])
def test_channels_last_in_memory_give_the_same_sums(power: int, last: bool, regime: None):
    plain = conv()
    left, right = (t.contiguous(memory_format=torch.channels_last) for t in (plain.left, plain.right))
    total = torch.ones(plain.shape, dtype=D)
    if last:
        total = total.contiguous(memory_format=torch.channels_last)
    for made in (Patches(left, right, plain.window), Patches(plain.left, right, plain.window)):
        made.add(total, power, lambda: 700)
    want = 1 + 2 * dense(plain).abs().pow(power).sum(dim=0)
    torch.testing.assert_close(total, want, rtol=1e-12, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(m=st.integers(1, 9), n=st.integers(1, 9), k=st.integers(1, 9), turned=st.booleans())
def test_the_fast_product_is_a_product(m: int, n: int, k: int, turned: bool):
    left, right = torch.randn(m, k), torch.randn(n, k)
    if turned:  # not contiguous
        left, right = left.T.contiguous().T, right.T.contiguous().T
    torch.testing.assert_close(kernels.product(left, right), left @ right.T)


def test_the_fast_product_can_be_switched_off():
    left, right = torch.randn(3, 4), torch.randn(5, 4)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(kernels.product(left, right), left @ right.T)
