"""The sparse head of concepts: C13, sparsity, fidelity, classes without samples, attributions, what a state keeps."""

from __future__ import annotations

import json
import logging
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from expunge.concepts import head as module
from expunge.concepts.head import SPARSE, ConceptHead, fit_head
from expunge.errors import Incompatible, Misfit, NotFinite, UserError
from expunge.method import State

D = torch.float64


def toy(n: int = 600, noise: float = 0.5, k: int = 3, m: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return scores and classes: class j shifts concept j by 2, the others are noise."""
    y = torch.arange(n) % k
    s = noise * torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=D)
    s[torch.arange(n), y] += 2
    return s, y


def test_concepts_of_noise_get_weights_of_exactly_zero():
    s, y = toy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no option that newer versions of the library are about to drop
        head = fit_head(s, y, 3, grid=(0.05,))
    assert not head.weights[:, 3:].any()
    assert (head.weights[:, :3].diagonal() > 1).all()
    assert head.accuracy > 0.98
    assert float((head.logits(s).argmax(dim=1) == y).double().mean()) > 0.98
    assert head.converged


def test_the_head_is_the_optimum_of_the_written_loss():
    s, y = toy(150, noise=1.0, m=4, seed=3)
    head = fit_head(s, y, 3, grid=(0.1,), most=10**6)
    own, _ = module._parts(y.numpy(), 10**6, np.random.default_rng(module.named_seed("concept head", 0)))
    x, t = (s[own] - head.shift) / head.width, y[own]
    assert torch.allclose(x.mean(dim=0), torch.zeros(4, dtype=D), atol=1e-9)
    assert torch.allclose(x.std(dim=0, correction=0), torch.ones(4, dtype=D), atol=1e-9)

    def loss(flat: np.ndarray) -> float:
        w, b = torch.from_numpy(flat[:12].reshape(3, 4)), torch.from_numpy(flat[12:])
        data = torch.nn.functional.cross_entropy(x @ w.T + b, t, reduction="sum")
        penalty = SPARSE * w.abs().sum() + (1 - SPARSE) / 2 * (w**2).sum()
        return float(data + penalty / 0.1)

    here = np.concatenate([head.weights.numpy().ravel(), head.bias.numpy()])
    best = minimize(loss, here, method="Powell", options={"maxiter": 5000}).fun
    assert loss(here) <= best * (1 + 1e-3)


def test_the_smallest_penalty_within_a_point_of_the_best_is_taken():
    s, y = toy(1500, noise=1.2)
    each = {c: fit_head(s, y, 3, grid=(c,)) for c in (0.001, 0.01, 0.1, 1.0)}
    head = fit_head(s, y, 3, grid=(1.0, 0.001, 0.1, 0.01))
    best = max(h.accuracy for h in each.values())
    assert head.best == pytest.approx(best, abs=0.01)
    assert head.penalty == min(c for c, h in each.items() if h.accuracy >= best - 0.01)
    assert head.used <= each[1.0].used


def test_fidelity_is_agreement_with_the_network_and_not_with_labels():
    s, y = toy()
    assert fit_head(s, y, 3).fidelity is None
    assert not fit_head(s, y, 3).faithful
    same = fit_head(s, y, 3, said=y)
    assert same.fidelity == same.accuracy
    assert same.faithful
    other = fit_head(s, y, 3, said=(y + 1) % 3)
    assert other.fidelity < 0.1
    assert not other.faithful


def test_a_class_without_samples_is_never_predicted_and_has_no_attributions():
    s, y = toy()
    y = torch.where(y == 1, 3, y)
    head = fit_head(s, y, 5)
    assert head.fitted == (0, 2, 3)
    logits = head.logits(s.float())
    assert logits.dtype == torch.float32
    assert torch.isinf(logits[:, [1, 4]]).all()
    assert set(logits.argmax(dim=1).tolist()) == {0, 2, 3}
    values = head.attributions(s, y).values
    assert not values[[1, 4]].any()
    assert values[3, 1] > 0


def test_a_sample_of_a_class_that_was_not_fitted_does_not_stop_attributions():
    s, y = toy()
    y[0] = 3  # one sample cannot be fitted and chosen with
    head = fit_head(s, y, 4)
    assert head.fitted == (0, 1, 2)
    found = head.attributions(s, y)
    assert found.counts.tolist() == [199, 200, 200, 0]


def test_two_classes_have_opposite_weights_and_the_margin_between_them():
    s, y = toy(k=2, noise=1.5)
    head = fit_head(s, y, 2, grid=(0.3,))
    assert torch.equal(head.weights[0], -head.weights[1])
    assert head.weights[1, 1] > 0
    assert float((head.logits(s).argmax(dim=1) == y).double().mean()) > 0.8


@pytest.mark.parametrize("engine", ["own", "captum"])
def test_attributions_are_the_raw_weight_times_what_a_class_has_more(engine):
    s, y = toy(noise=1.0)
    head = fit_head(s, y, 3, grid=(0.1,))
    found = head.attributions(s, y, engine=engine)
    for k in range(3):
        want = head.raw[k] * (s[y == k].mean(dim=0) - s.mean(dim=0))
        assert torch.allclose(found.values[k], want, atol=1e-6)
    assert found.gap < 1e-6


def test_large_data_is_thinned_by_class_and_rare_classes_stay():
    s, y = toy(3000)
    y[:20] = 3
    own, kept = module._parts(y.numpy(), 300, np.random.default_rng(0))
    assert 290 <= len(own) <= 310
    assert not set(own) & set(kept)
    assert set(y[own].tolist()) == {0, 1, 2, 3} == set(y[kept].tolist())


def test_a_concept_that_never_varies_says_nothing():
    s, y = toy()
    s[:, 5] = 7.0
    head = fit_head(s, y, 3, grid=(1.0,))
    assert not head.weights[:, 5].any()
    assert torch.isfinite(head.logits(s)).all()


def test_a_solver_that_does_not_end_is_said(caplog, monkeypatch):
    monkeypatch.setattr(module, "ROUNDS", 1)
    s, y = toy(noise=2.0)
    with caplog.at_level(logging.WARNING):
        head = fit_head(s, y, 3, grid=(10.0,))
    assert not head.converged
    assert "the concept head with C = 10 did not converge in 1 rounds" in caplog.text


def test_a_state_keeps_a_head(tmp_path):
    s, y = toy()
    head = fit_head(s, y, 4, said=y)
    State(head.tensors(), {"head": head.meta()}).save(tmp_path / "s.safetensors")
    state = State.load(tmp_path / "s.safetensors")
    again = ConceptHead.read(state.tensors, state.meta["head"])
    assert torch.equal(again.logits(s), head.logits(s))
    assert again.meta() == head.meta()
    json.dumps(head.meta())
    with pytest.raises(Incompatible, match="a head of concepts in the state, got none"):
        ConceptHead.read({}, {})


def test_the_same_seed_gives_the_same_head():
    s, y = toy(noise=1.5)
    one, two = fit_head(s, y, 3, seed=1), fit_head(s, y, 3, seed=1)
    assert torch.equal(one.weights, two.weights)
    assert one.meta() == two.meta()


def test_what_cannot_be_fitted_is_said():
    s, y = toy(30)
    with pytest.raises(Misfit, match=r"scores \(N, m\) and a class for each row"):
        fit_head(s, y[:5], 3)
    with pytest.raises(Misfit, match="classes 0 to 1, got 0 to 2"):
        fit_head(s, y, 2)
    with pytest.raises(Misfit, match=r"a prediction of the network for each of 30 samples, got shape \(4,\)"):
        fit_head(s, y, 3, said=y[:4])
    with pytest.raises(NotFinite, match="finite concept scores"):
        fit_head(s / 0, y, 3)
    with pytest.raises(UserError, match="two samples of two classes or more for the concept head, got 1 such"):
        fit_head(s, torch.zeros_like(y), 3)
    with pytest.raises(UserError, match="penalties C above 0"):
        fit_head(s, y, 3, grid=())
