"""Sums keep what float32 alone would lose, and take a spoiled window back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cases import blobs, deep, gap
from expunge.fisher import diagonal
from expunge.fisher import sums as module
from expunge.fisher.sums import Sums, place
from expunge.runtime import Runtime
from expunge.task import Classification

D = torch.float64


def params(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    return {"a": nn.Parameter(torch.zeros(3, dtype=dtype)), "b": nn.Parameter(torch.zeros(2, 2, dtype=dtype))}


def add(sums: Sums, name: str, value: torch.Tensor) -> None:
    with sums.open(name) as total:
        total += value


@pytest.mark.parametrize("pairs", [False, True])
def test_many_small_terms_are_not_lost(pairs: bool):
    """Adding 1 to 2²⁴ in float32 gives 2²⁴."""
    sums = Sums(params(), pairs=pairs)
    add(sums, "a", torch.full((3,), 2.0**24))
    sums.close()
    for _ in range(1000):
        add(sums, "a", torch.tensor([1.0, 0.25, 1e-3]))
        sums.close()
    want = 2.0**24 + torch.tensor([1000, 250, 1], dtype=D)
    found = sums.totals()["a"]
    assert found.dtype == (torch.float32 if pairs else D)
    assert float(((found.double() - want) / want).abs().max()) < (2**-24 if pairs else 1e-10)
    single = torch.tensor(2.0**24)
    for _ in range(1000):
        single += 1
    assert float(single) == 2**24


def test_pairs_stay_close_over_a_long_random_sum():
    torch.manual_seed(0)
    sums, want = Sums(params(), pairs=True), torch.zeros(3, dtype=D)
    for _ in range(3000):
        term = torch.rand(3) ** 8
        want += term.double()
        add(sums, "a", term)
        sums.close()
    assert float(((sums.totals()["a"].double() - want) / want).abs().max()) < 2**-23
    high, low = sums.state()["high/a"].double(), sums.state()["low/a"].double()
    assert float(((high + low - want) / want).abs().max()) < 1e-8  # 3,000 roundings of 2⁻³³


def test_a_discarded_window_leaves_nothing():
    sums = Sums(params())
    add(sums, "a", torch.ones(3))
    sums.close()
    add(sums, "a", torch.full((3,), 5.0))
    add(sums, "b", torch.full((2, 2), torch.nan))
    sums.discard()
    sums.close()
    assert sums.totals()["a"].tolist() == [1, 1, 1]
    assert sums.totals()["b"].tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(("dtype", "window"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (D, D)])
def test_a_window_is_at_least_float32(dtype: torch.dtype, window: torch.dtype):
    with Sums(params(dtype)).open("a") as total:
        assert total.dtype == window
    with Sums(params(dtype), exact=True).open("a") as total:
        assert total.dtype == D


def test_float64_models_are_never_held_as_pairs():
    sums = Sums(params(D), pairs=True)
    add(sums, "a", torch.ones(3, dtype=D) / 3)
    sums.close()
    assert sums.totals()["a"].dtype == D


@pytest.mark.parametrize("pairs", [False, True])
def test_a_state_goes_on_where_it_was(pairs: bool):
    first, second = Sums(params(), pairs=pairs), Sums(params(), pairs=pairs)
    for at in range(6):
        add(first, "a", torch.tensor([1.0, 2.0, 1e-9]) * (at + 1))
        first.close()
        if at == 2:
            second.load({n: t.clone() for n, t in first.state().items()})
        elif at > 2:
            add(second, "a", torch.tensor([1.0, 2.0, 1e-9]) * (at + 1))
            second.close()
    assert all(torch.equal(first.totals()[n], t) for n, t in second.totals().items())


def test_little_memory_holds_totals_as_pairs(monkeypatch: pytest.MonkeyPatch):
    class Little:
        available = 8 * 7 * 2 * 3 - 1  # less than twice three float64 totals of seven numbers

    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: Little)
    assert place(params(), 3) == (torch.device("cpu"), True)
    assert place(params(), 2) == (torch.device("cpu"), False)


def test_a_pass_short_of_memory_gives_the_same_diagonal(monkeypatch: pytest.MonkeyPatch):
    model, data = deep(torch.float32).eval(), blobs(40, dtype=torch.float32)
    runtime = Runtime(batch_size=2, progress=False)
    monkeypatch.setattr("expunge.fisher.WINDOW", 2)
    want = diagonal(model, Classification(), data, runtime=runtime)
    monkeypatch.setattr("expunge.fisher.place", lambda params, times: (torch.device("cpu"), True))
    found = diagonal(model, Classification(), data, runtime=runtime)
    assert all(v.dtype == torch.float32 for v in found.sums.values())
    assert gap({k: v.double() for k, v in found.values.items()}, want.values) < 1e-6
    assert found.merge(found).count == 80
