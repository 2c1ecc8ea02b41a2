"""A network's weights as one vector: views both ways, and everything as it was afterwards."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, Tied
from expunge import tensors
from expunge.anchors._flat import ALIGNED, Flat, exact, noise_seed
from expunge.errors import Incompatible, UserError
from expunge.masks import Masks

D = torch.float64


def network(dtype: torch.dtype = D) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)).to(dtype).eval()


def test_the_vector_is_the_network_and_the_network_the_vector():
    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    flat = Flat(model)
    assert (flat.count, flat.moving) == (sum(p.numel() for p in before.values()),) * 2
    assert all(torch.equal(view, before[name]) for name, view in flat.named(flat.weights).items())
    assert all(place.start % ALIGNED == 0 for place in flat.slices.values())
    flat.weights.mul_(2)
    assert all(torch.equal(p, 2 * before[name]) for name, p in model.named_parameters())


def test_backward_passes_add_to_the_gradients():
    model, x = network(), torch.randn(4, 2, 4, 4, dtype=D)
    other = copy.deepcopy(model)
    flat = Flat(model)
    values = [flat.gradient(lambda: model(x).square().sum()) for _ in range(2)]
    loss = other(x).square().sum()
    want = torch.autograd.grad(loss, list(other.parameters()))
    assert values == [loss, loss]
    for view, grad in zip(flat.named(flat.grads).values(), want, strict=True):
        assert torch.allclose(view, 2 * grad, rtol=1e-12, atol=0)
    inside = sum(int(view.count_nonzero()) for view in flat.named(flat.grads).values())
    assert int(flat.grads.count_nonzero()) == inside  # between parameters there is nothing


def test_a_scalar_without_gradient_adds_none():
    flat = Flat(network())
    assert float(flat.gradient(lambda: torch.tensor(3.0))) == 3
    assert int(flat.grads.count_nonzero()) == 0


def test_tied_weights_stand_once_and_frozen_ones_not():
    tied = Flat(Tied().double())
    assert list(tied.slices) == ["embedding.weight", "head.bias"]
    model = network()
    model[1].requires_grad_(False)
    flat = Flat(model)
    assert list(flat.slices) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    flat.weights.zero_()
    assert float(model[1].weight.sum()) == 3


@pytest.mark.parametrize("dtype", [torch.float32, D, torch.bfloat16, torch.float16])
def test_released_it_is_what_it_was(dtype: torch.dtype):
    model = network(dtype).to(memory_format=torch.channels_last)
    before, shapes = tensors.weights_digest(model), [(p.dtype, p.stride()) for p in model.parameters()]
    flat = Flat(model)
    assert {p.dtype for p in model.parameters()} == {D if dtype == D else torch.float32}
    flat.gradient(lambda: model(torch.randn(2, 2, 4, 4, dtype=dtype)).sum())
    assert flat.released() is model
    assert tensors.weights_digest(model) == before
    assert [(p.dtype, p.stride()) for p in model.parameters()] == shapes
    assert all(p.grad is None for p in model.parameters())
    assert model(torch.randn(2, 2, 4, 4, dtype=dtype)).dtype == dtype
    flat.weights.zero_()
    assert tensors.weights_digest(model) == before  # parameters of their own


def test_inputs_of_half_precision_are_widened_as_the_weights_are():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2)

        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            return self.a(x) + ids[:, None]

    model = Named().bfloat16()
    flat = Flat(model)
    out = model(x=torch.ones(3, 2, dtype=torch.bfloat16), ids=torch.arange(3))
    assert out.dtype == torch.float32
    assert torch.equal(out, model(torch.ones(3, 2), torch.arange(3)))
    flat.released()
    assert len(model._forward_pre_hooks) == 0
    assert len(Flat(network()).model._forward_pre_hooks) == 0


@pytest.mark.parametrize("piece", [1 << 16, 16, 5])
def test_pieces_cover_vectors_side_by_side_with_the_same_noise(piece: int):
    flat = Flat(network())
    flat.piece = piece
    a, b = torch.arange(flat.length, dtype=D), -torch.arange(flat.length, dtype=D)
    parts = list(flat.pieces(a, None, b, noise=7))
    assert torch.equal(torch.cat([p[1] for p in parts]), a)
    assert torch.equal(torch.cat([p[3] for p in parts]), b)
    assert all(p[2] is None and len(p[0]) == len(p[1]) <= piece for p in parts)
    assert torch.equal(noise(flat, 7), noise(flat, 7))
    assert not torch.equal(noise(flat, 7), noise(flat, 8))
    next(flat.pieces(a))[0].fill_(1)
    assert float(a[:piece].mean()) == 1  # parts are views


def noise(flat: Flat, seed: int) -> Tensor:
    return torch.cat([part.clone() for (part,) in flat.pieces(noise=seed)])


def test_noise_is_standard_normal():
    flat = Flat(nn.Linear(300, 300))
    flat.piece = 1000
    drawn = noise(flat, 1).double()
    assert float(drawn.mean()) == pytest.approx(0, abs=0.015)
    assert float(drawn.std()) == pytest.approx(1, abs=0.01)
    halves = drawn[: len(drawn) // 2 * 2].reshape(2, -1)
    assert abs(float(torch.corrcoef(halves)[0, 1])) < 0.02


def test_seeds_of_noise_differ_by_place():
    seeds = {
        noise_seed(0),
        noise_seed(1),
        noise_seed(0, 1),
        noise_seed(0, "a"),
        noise_seed(0, 1, 0),
        noise_seed(0, 0, 1),
    }
    assert len(seeds) == 6


def test_filled_vectors_have_a_value_between_parameters():
    flat = Flat(network())
    values = {name: torch.full_like(p, n) for n, (name, p) in enumerate(flat.params.items(), start=1)}
    found = flat.filled(values, rest=-1)
    assert all(torch.equal(view, values[name]) for name, view in flat.named(found).items())
    assert int((found == -1).sum()) == flat.length - flat.count


def test_scalars_are_those_that_may_move_one_after_another():
    model = network()
    kept = {"0.bias": torch.tensor([True, False, True]), "3.weight": torch.zeros(2, 12, dtype=torch.bool)}
    plain, masked = Flat(copy.deepcopy(model)), Flat(copy.deepcopy(model), Masks(kept))
    want = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(plain.scalars(plain.weights), want)
    assert masked.moving == masked.count - 25 == len(masked.scalars(masked.weights))
    assert not bool(torch.isin(model[3].weight.detach(), masked.scalars(masked.weights)).any())


def test_many_scalars_are_thinned_by_a_step_that_no_usual_size_divides():
    flat = Flat(nn.Linear(100, 99))
    flat.weights.copy_(torch.arange(flat.length))
    found = flat.scalars(flat.weights, most=1000)  # every 10th would meet the same column of a row of 100
    assert found[:3].tolist() == [0, 11, 22]
    assert 0.8 * 1000 < len(found) <= 1001


def test_refused_networks():
    with pytest.raises(UserError, match="trainable weights on one device, got none: unfreeze some"):
        Flat(network().requires_grad_(False))
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(
        UserError, match=r"weights of one dtype, got some of float32 and some of float64: call float\(\)"
    ):
        Flat(mixed)
    with pytest.raises(Incompatible, match="which the mask is for"):
        Flat(network(), Masks({"nothing": torch.ones(2, dtype=torch.bool)}))


@pytest.mark.parametrize("name", ["linear", "embedding", "batchnorm2d", "frozen"])
def test_outputs_are_those_of_the_network(name: str):
    model, data = CASES[name].make() if name in CASES else CASES["linear"].make()
    if name == "frozen":
        model[0].requires_grad_(False)
    x = data.read(range(len(data))).inputs
    want = model(x)
    assert torch.equal(Flat(copy.deepcopy(model)).model(x), want)


PRECISION = """
import torch
from expunge.anchors._flat import exact
backends = torch.backends
places = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul, backends.mkldnn.conv]
def now():
    try:
        old = (torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32)
    except RuntimeError:
        old = None
    return old, [place.fp32_precision for place in places]
for way in ("", "set_float32_matmul_precision('medium')", "backends.cuda.matmul.allow_tf32 = False",
            "backends.cuda.matmul.allow_tf32 = True", "backends.cuda.matmul.fp32_precision = 'tf32'"):
    exec("torch." + way if way else "")
    before = now()
    try:
        with exact(torch.device("cpu")):
            assert not {"tf32", "bf16"} & set(now()[1]), (way, now())
            raise KeyError
    except KeyError:
        pass
    assert now() == before, (way, now(), before)
"""


def test_precision_is_full_inside_and_as_it_was_afterwards():
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("torch older than 2.9 has the older switches alone")
    command = [sys.executable, "-c", PRECISION]  # the switches are the process's
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_autocast_is_off_inside():
    with torch.autocast("cpu", dtype=torch.bfloat16), exact(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
