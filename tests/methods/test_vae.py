"""Densities of representations: the autoencoder's loss by the numbers, a fit held to a slow loop, the state."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.errors import Incompatible, NotFinite
from expunge.methods._vae import (
    INSIDE,
    Autoencoded,
    Coded,
    Fit,
    Gaussian,
    GaussianVAE,
    Scale,
    divergences,
    fitted,
    read,
    vae_loss,
)
from expunge.seeds import seed as named_seed
from expunge.tensors import isolated_rng
from expunge.train import batch_orders

D = torch.float64
MEAN = torch.tensor([[0.5, -1.0], [0.0, 2.0]], dtype=D)
LOG = torch.tensor([[0.0, -math.log(2)], [math.log(4), 0.0]], dtype=D)
E = torch.tensor([[1.0, 0, 2], [0, 1, -1]], dtype=D)
REBUILT = torch.tensor([[0.5, 0.5, 0.5], [0.25, 0.75, 0.5]], dtype=D)


def rows(n: int = 23, d: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return 3 * torch.randn(n, d, generator=generator, dtype=D) * torch.linspace(0.2, 2, d, dtype=D) + 1


def test_the_divergence_is_that_of_the_formula():
    each = divergences(MEAN[:1].T, LOG[:1].T)  # a code of one dimension each
    assert each.tolist() == pytest.approx([0.125, 0.59657359], abs=1e-8)
    assert divergences(MEAN, LOG).tolist() == pytest.approx([0.72157359, 2.80685282], abs=1e-8)
    assert float(divergences(MEAN, LOG).mean()) == pytest.approx(1.76421320, abs=1e-8)


def test_the_loss_is_that_of_the_formula():
    coded = Coded(REBUILT, MEAN, LOG)
    assert (REBUILT - E).square().sum(1).tolist() == [2.75, 2.375]
    assert float(vae_loss(E, coded, 0.025, INSIDE)) == pytest.approx(2.60660533, abs=1e-8)
    assert float(vae_loss(E, coded, 1.0)) == pytest.approx(4.32671320, abs=1e-8)


def test_half_the_error_and_the_divergence_are_a_gaussian_s_bound():
    errors = (REBUILT - E).square().sum(1)
    bound = -torch.distributions.Normal(REBUILT, 1.0).log_prob(E).sum(1) + divergences(MEAN, LOG)
    assert float(bound.mean()) == pytest.approx(5.80227880, abs=1e-8)
    formula = errors / 2 + divergences(MEAN, LOG) + 1.5 * math.log(2 * math.pi)
    assert float(formula.mean()) == pytest.approx(5.80227880, abs=1e-8)


def test_the_network_is_that_of_its_widths():
    net = GaussianVAE(5, 3, out="sigmoid").double()
    widths = [tuple(value.shape) for name, value in net.state_dict().items() if name.endswith("weight")]
    assert widths == [(128, 5), (32, 128), (6, 32), (32, 3), (128, 32), (5, 128)]
    e, noise = rows(), torch.randn(23, 3, dtype=D)
    with torch.no_grad():
        coded = net(e, noise)
    assert 0 < float(coded.rebuilt.min()) <= float(coded.rebuilt.max()) < 1
    assert float(GaussianVAE(5, 3).double()(30 * e, noise).rebuilt.detach().abs().max()) > 1
    hidden = F.relu(F.linear(F.relu(F.linear(e, *_layer(net, "encoder.0"))), *_layer(net, "encoder.2")))
    code = F.linear(hidden, *_layer(net, "encoder.4"))
    assert torch.equal(coded.mean, code[:, :3])
    z = code[:, :3] + torch.exp(code[:, 3:]).sqrt() * noise
    hidden = F.relu(F.linear(F.relu(F.linear(z, *_layer(net, "decoder.0"))), *_layer(net, "decoder.2")))
    assert torch.allclose(coded.rebuilt, torch.sigmoid(F.linear(hidden, *_layer(net, "decoder.4"))), atol=1e-12)


def _layer(net: GaussianVAE, name: str) -> tuple[Tensor, Tensor]:
    layer = net.get_submodule(name)
    return layer.weight, layer.bias


def test_a_fit_equals_a_loop_written_by_hand():
    how, at = Fit(q=2, epochs=2, size=5, beta=0.1, lr=0.01), rows()
    found = fitted(at, how, seed=4)
    mean, width = at.mean(0), ((at - at.mean(0)) ** 2).mean(0).sqrt()
    with isolated_rng(named_seed("vae", 4)):
        net = GaussianVAE(5, 2).double()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        sizes = []
        for _ in range(2):
            for index in batch_orders(5, torch.randperm(23)):
                e = torch.stack([(at[i] - mean) / width for i in index])
                noise, sizes = torch.randn(len(e), 2, dtype=D), [*sizes, len(e)]
                loss = torch.zeros((), dtype=D)
                for row, eps in zip(e, noise, strict=True):
                    coded = net(row[None], eps[None])
                    kl = sum(
                        -(1 + v - m**2 - v.exp()) / 2 for m, v in zip(coded.mean[0], coded.log_variance[0], strict=True)
                    )
                    loss = loss + (((coded.rebuilt[0] - row) ** 2).sum() + 0.1 * kl) / len(e)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    assert sizes == [5, 5, 5, 5, 3] * 2
    slow = Autoencoded(net, Scale(mean, width))
    noise = torch.randn(23, 2, dtype=D)
    assert torch.allclose(found.errors(at, noise), slow.errors(at, noise), rtol=1e-9)


def test_a_fit_depends_on_nothing_drawn_before_and_leaves_nothing_behind():
    at, how = rows().requires_grad_(False), Fit(q=2, epochs=1)
    torch.manual_seed(0)
    one = fitted(at, how, seed=1).tensors()
    state = torch.get_rng_state()
    torch.randn(7)
    two = fitted(at, how, seed=1).tensors()
    assert all(torch.equal(one[name], two[name]) for name in one)
    torch.manual_seed(0)
    fitted(at, how, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(one["encoder.0.weight"], fitted(at, how, seed=2).tensors()["encoder.0.weight"])
    assert at.grad is None


def test_a_fit_lowers_the_loss_and_gradients_reach_the_representations_alone():
    losses = list[float]()
    density = fitted(rows(200), Fit(q=4, epochs=15), seed=0, record=lambda loss, step: losses.append(loss))
    assert losses[-1] < 0.5 * losses[0]
    e = rows(6).requires_grad_()
    density.errors(e, torch.randn(6, 4, dtype=D)).sum().backward()
    assert float(e.grad.abs().min()) > 0
    assert all(p.grad is None for p in density.net.parameters())


def test_a_gaussian_s_error_is_the_squared_distance():
    at = rows()
    density, e = fitted(at, Fit(kind="gaussian"), seed=0), rows(4) + 0.3
    want = [sum(float((x - at[:, j].mean()) ** 2 / at[:, j].var(correction=0)) for j, x in enumerate(row)) for row in e]
    assert density.errors(e).tolist() == pytest.approx(want, rel=1e-12)
    assert float(density.errors(at).mean()) == pytest.approx(5.0)


def test_a_dimension_that_never_varies_is_not_blown_up():
    at = torch.cat([rows(), torch.full((23, 1), 7.0, dtype=D)], dim=1)
    scale = Scale.of(at)
    assert float(scale.width[-1]) == pytest.approx(0.01 * float(at.std(0, correction=0).square().mean().sqrt()))
    assert Scale.of(at[:1]).width.tolist() == [1.0] * 6
    assert torch.isfinite(fitted(at[:1], Fit(q=2, epochs=1), seed=0).errors(at, torch.zeros(23, 2, dtype=D))).all()


@pytest.mark.parametrize("how", [Fit(q=2, epochs=1), Fit(kind="gaussian"), Fit(q=3, epochs=1, out="sigmoid")])
def test_a_density_comes_back_from_its_tensors(how: Fit):
    density = fitted(rows(), how, seed=0)
    again, noise = read(density.tensors(), how), torch.randn(23, how.q, dtype=D)
    assert again.code == density.code
    assert torch.equal(again.errors(rows(), noise), density.errors(rows(), noise))


def test_tensors_of_another_density_are_refused():
    tensors = fitted(rows(), Fit(q=2, epochs=1), seed=0).tensors()
    with pytest.raises(Incompatible, match="an autoencoder of 5 and 3 dimensions in the state, got another"):
        read(tensors, Fit(q=3))
    with pytest.raises(Incompatible, match="a density of representations in the state, got none: prepare anew"):
        read({}, Fit())
    with pytest.raises(NotFinite, match="the density in the state"):
        read(tensors | {"shift": torch.full((5,), torch.nan)}, Fit(q=2))


def test_a_fit_that_diverges_is_said():
    with pytest.raises(NotFinite, match="a finite loss of the autoencoder, got .* after 1 steps: lower vae_lr"):
        fitted(1e200 * rows(), Fit(q=2, epochs=1, standardise=False), seed=0)
    assert isinstance(fitted(rows(), Fit(kind="gaussian"), seed=0), Gaussian)
