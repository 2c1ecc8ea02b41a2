"""What a preparation leaves: nothing lost, 8 bits as close as they are said to be, and refused where it cannot be."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import Tied
from expunge.anchors._base import Known
from expunge.anchors._posterior import HIGH, LEVELS, LOW, WORST, Posterior, coded, decoded, remembered
from expunge.errors import Incompatible, MissingNeed
from expunge.method import State
from expunge.tensors import parameters

D = torch.float64


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).to(dtype)


def posterior(model: nn.Module, low: float = 1e-5, high: float = 0.05, **facts: Any) -> Posterior:
    """Return σ spread evenly in ratios from low to high."""
    generator = torch.Generator().manual_seed(1)
    span = math.log(high / low)
    found = {
        name: (math.log(low) + span * torch.rand(p.shape, generator=generator, dtype=D)).to(
            torch.promote_types(p.dtype, torch.float32)
        )
        for name, p in parameters(model).items()
    }
    return Posterior(found, 500.0, {"sigma0": 0.05, **facts})


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_kept_as_it_is_it_comes_back_to_the_bit(dtype: torch.dtype, tmp_path: Path):
    model = network(dtype)
    first = posterior(model, tau=0.25, accuracy=0.9, ties={"a": ["b"]}, agreement=[0.5, 0.75])
    first.state("float32").save(tmp_path / "state.safetensors")
    state = State.load(tmp_path / "state.safetensors")
    found = Posterior.load(state, model)
    assert all(torch.equal(found.log_sigma[n], v) and v.dtype == dtype for n, v in first.log_sigma.items())
    assert (found.samples, found.facts) == (500.0, first.facts)
    assert found.known == Known(0.25, 0.9)
    assert state.meta["posterior"]["error"] == 0


def test_a_network_of_half_precision_has_its_sigma_in_float32():
    model = network(torch.bfloat16)
    found = Posterior.load(posterior(model).state(), model)
    assert {v.dtype for v in found.log_sigma.values()} == {torch.float32}


@given(st.floats(math.log(LOW), math.log(HIGH)))
def test_eight_bits_change_sigma_by_under_three_percent(log_sigma: float):
    value = torch.tensor([log_sigma], dtype=D)
    back = decoded(coded(value), D)
    assert abs(float(torch.expm1(back - value))) <= WORST < 0.028


def test_the_grid_is_256_values_from_its_low_end_to_its_high_one():
    every = decoded(torch.arange(LEVELS, dtype=torch.uint8), D)
    assert float(every[0].exp()) == pytest.approx(1e-6, rel=1e-12)
    assert float(every[-1].exp()) == pytest.approx(1, rel=1e-12)
    assert torch.equal(coded(every), torch.arange(LEVELS, dtype=torch.uint8))
    assert torch.allclose(every.diff(), torch.tensor(math.log(1e6) / 255, dtype=D), rtol=1e-12)


def test_eight_bits_take_a_quarter_and_say_what_they_change():
    model = network()
    first = posterior(model)
    kept = first.state("uint8")
    found = Posterior.load(kept, model)
    change = max(float(torch.expm1((found.log_sigma[n] - v).abs()).max()) for n, v in first.log_sigma.items())
    assert {t.dtype for t in kept.tensors.values()} == {torch.uint8}
    assert 0.01 < kept.meta["posterior"]["error"] <= 0.028
    assert change == pytest.approx(kept.meta["posterior"]["error"], rel=1e-4)


def test_off_the_grid_the_change_is_told():
    model = network()
    kept = posterior(model, low=1e-8, high=1e-7).state("uint8")
    assert kept.meta["posterior"]["error"] > 9  # 1e-7 is kept as 1e-6


def test_a_state_shares_no_memory_with_what_it_was_made_of():
    model = network(D)
    whole = torch.full((100,), -4.0, dtype=D)
    log_sigma = {n: whole[: p.numel()].view(p.shape) for n, p in parameters(model).items()}
    state = Posterior(log_sigma, 1.0).state()
    whole.zero_()
    assert all(bool((t == -4).all()) for t in state.tensors.values())
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in state.tensors.values())


def test_the_geometric_mean_is_over_all_scalars():
    log_sigma = {"a": torch.tensor([0.01, 0.04]).log(), "b": torch.tensor([[0.08]]).log()}
    assert Posterior(log_sigma, 1.0).geometric == pytest.approx((0.01 * 0.04 * 0.08) ** (1 / 3), rel=1e-6)


def test_another_sigma_keeps_the_facts():
    first = posterior(network(), tau=0.5)
    other = first.replaced({"a": torch.zeros(1)}, requests=1)
    assert (other.samples, other.facts) == (500.0, {"sigma0": 0.05, "tau": 0.5, "requests": 1})
    assert first.replaced({}, samples=7.0, tau=0.1).known == Known(0.1, None)
    assert first.facts == {"sigma0": 0.05, "tau": 0.5}


def altered(state: State, name: str, value: Tensor | None, **meta: Any) -> State:
    tensors = dict(state.tensors)
    tensors.pop(name)
    if value is not None:
        tensors[name] = value
    return State(tensors, {"posterior": {**state.meta["posterior"], **meta}})


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, -60.0, 60.0])
def test_sigma_that_is_not_positive_and_finite_is_refused(odd: float):
    model = network()
    state = posterior(model).state()
    value = state.tensors["log_sigma/1.weight"].clone()
    value[1, 2] = odd
    with pytest.raises(
        Incompatible, match=r"positive finite σ of every weight, got others: 1 of 6 in 1.weight: prepare again"
    ):
        Posterior.load(altered(state, "log_sigma/1.weight", value), model)


@pytest.mark.parametrize("samples", [0.0, -1.0, math.nan, "many", None, True])
def test_sigma_of_no_samples_is_refused(samples: Any):
    state = posterior(network()).state()
    meta = {"posterior": {**state.meta["posterior"], "samples": samples}}
    with pytest.raises(Incompatible, match="σ learned from more than 0 samples, got .*: prepare again"):
        Posterior.load(State(state.tensors, meta), network())


@pytest.mark.parametrize(
    ("meta", "text"),
    [
        (3, "a state with n_eff and facts of its σ, got 3"),
        ({"samples": 10.0}, "a state with n_eff and facts"),
        ({"samples": 10.0, "facts": {"tau": "x"}}, "a number as tau of σ in the state, got 'x'"),
        ({"samples": 10.0, "facts": {"requests": "x"}}, "a number as requests of σ in the state, got 'x'"),
        ({"samples": 10.0, "facts": {"sigma0": None}}, "a number as sigma0 of σ in the state, got None"),
        ({"samples": 10.0, "facts": {"passes": -1}}, "a number as passes of σ in the state, got -1"),
        ({"samples": 10.0, "facts": {"agreement": 0.5}}, "numbers as agreement of σ in the state, got 0.5"),
    ],
)
def test_facts_that_no_preparation_writes_are_refused(meta: Any, text: str):
    state = State(posterior(network()).state().tensors, {"posterior": meta})
    for read in (lambda: Posterior.load(state, network()), lambda: remembered(state)):
        with pytest.raises(Incompatible, match=re.escape(text)):
            read()


def test_sigma_in_integers_off_the_grid_is_refused():
    state = posterior(network()).state()
    odd = state.tensors["log_sigma/1.weight"].to(torch.int64)
    with pytest.raises(Incompatible, match=r"ln σ as floats, or in uint8 on the grid, got torch\.int64 of 1\.weight"):
        Posterior.load(altered(state, "log_sigma/1.weight", odd), network())


def test_a_state_without_a_preparation_is_refused():
    with pytest.raises(MissingNeed, match="ln σ of every weight, .* got a state without it: run prepare while"):
        Posterior.load(State({"a": torch.zeros(2)}, {"b": 1}), network())


def test_sigma_of_other_weights_is_refused():
    model = network()
    state = posterior(model).state()
    with pytest.raises(Incompatible, match=r"got none for 1.weight: pass the model that was prepared"):
        Posterior.load(altered(state, "log_sigma/1.weight", None), model)
    with pytest.raises(Incompatible, match="got another shape for 1.weight"):
        Posterior.load(altered(state, "log_sigma/1.weight", torch.zeros(3)), model)
    frozen = copy.deepcopy(model)
    frozen[0].requires_grad_(False)
    with pytest.raises(Incompatible, match="one for 0.weight, which is not trained, 0.bias, which is not trained"):
        Posterior.load(state, frozen)


def test_a_tied_weight_has_one_sigma():
    model = Tied()
    state = posterior(model).state()
    assert sorted(state.tensors) == ["log_sigma/embedding.weight", "log_sigma/head.bias"]
    assert list(Posterior.load(state, model).log_sigma) == ["embedding.weight", "head.bias"]
