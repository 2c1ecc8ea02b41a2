"""JiT: the Lipschitz quotient by hand, steps beside a hand-written loop, and what the published code does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import QUIET, blobs, deep
from expunge.data import Data
from expunge.errors import NotFinite, UserError
from expunge.masks import Masks
from expunge.method import Needs, See, Session, State
from expunge.methods import load
from expunge.methods.jit import quotients
from expunge.task import Classification, Regression, Task
from expunge.tensors import changed, weights_digest
from expunge.train import Recipe, fit
from expunge.unlearn import Unlearned, unlearn

TASK = Classification()
JIT = load("jit")
D = torch.float64
SMALL = {"samples": 3, "batch_size": 4, "sigma": 0.5, "lr": 0.01}
OFFICIAL = {"compat": "official", "norm": "moving"}


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return fit(deep(), TASK, blobs(), Recipe(epochs=4, lr=0.05))


def request(model: nn.Module, data: Data, task: Task = TASK, **options: Any) -> Unlearned:
    return unlearn(JIT(**{**SMALL, **options}), model, task, forget=data, runtime=QUIET, seed=1)


def session(model: nn.Module, data: Data, masks: Masks | None = None, **options: Any) -> tuple[Any, Session]:
    method = JIT(**{**SMALL, **options})
    more = {"method": "jit", "phase": "unlearn", "needs": method.unlearns, "masks": masks}
    given = {"forget": data.unlabelled()}
    return method, Session(task=TASK, runtime=QUIET, seed=0, source=model, given=given, **more)


@pytest.mark.parametrize(
    ("options", "rows"), [({}, [[0.9, 0], [0, 1]]), (OFFICIAL, [[1.3, 0.4], [0, 1]])], ids=["paper", "official"]
)
def test_one_step_by_hand(options: dict[str, Any], rows: list[list[float]], monkeypatch: pytest.MonkeyPatch):
    """W = I, x = (3, 4), ε = (1, 0): k = 1, ∂k/∂W = [[1, 0], [0, 0]]; without f(x′) it is [[−3, −4], [0, 0]]."""
    model = nn.Linear(2, 2, bias=False).double().eval()
    model.weight.data = torch.eye(2, dtype=D)
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.tensor([[1.0, 0.0]], dtype=D))
    data = Data.from_arrays(torch.tensor([[3.0, 4.0]], dtype=D))
    done = request(model, data, lr=0.1, samples=1, sigma=1.0, **options)
    torch.testing.assert_close(done.model.weight.data, torch.tensor(rows, dtype=D))
    assert done.log["quotient"] == [[1, pytest.approx(1.0)]]


@pytest.mark.parametrize("official", [False, True])
def test_equals_a_hand_written_loop(trained: nn.Module, official: bool):
    data = blobs().subset(blobs().ids[:10])
    options = {"epochs": 2, **(OFFICIAL if official else {})}
    method, given = session(trained, data, **options)
    torch.manual_seed(7)
    made, _ = method.unlearn(given, State())

    model, x = copy.deepcopy(trained), data.read(range(10)).inputs
    model.train(official)
    gathered: dict[str, Tensor] = {}
    sums = []
    torch.manual_seed(7)
    for _ in range(2):
        found = 0.0
        for at in torch.randperm(10).split(4):  # 4, 4 and 2
            now, total = x[at], torch.zeros(len(at), dtype=D)
            outputs = model(now)
            for _ in range(3):
                nearby = now + 0.5 * torch.randn_like(now)
                nearby = nearby.clamp(now.min(), now.max()) if official else nearby
                moved = model(nearby).detach() if official else model(nearby)
                total = total + (outputs - moved).norm(dim=1) / (now - nearby).norm(dim=1)
            names, values = zip(*model.named_parameters(), strict=True)
            loss = total.sum() / 3
            for name, gradient in zip(names, torch.autograd.grad(loss, values), strict=True):
                gathered[name] = gathered[name] + gradient if official and name in gathered else gradient
            with torch.no_grad():
                for name, value in model.named_parameters():
                    value -= 0.01 * gathered[name]
            found += float(loss.detach())
        sums.append(found / 10)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(made.state_dict()[name], value, rtol=1e-9, atol=1e-11, msg=name)
    assert [step for step, _ in given.log["quotient"]] == [3, 6]
    assert [value for _, value in given.log["quotient"]] == pytest.approx(sums)
    assert given.log["steps"] == 6


def test_outputs_grow_smoother_around_what_is_forgotten(trained: nn.Module):
    data = blobs().subset(blobs().ids[:10])
    values = [v for _, v in request(trained, data, epochs=8, samples=25).log["quotient"]]
    assert values[-1] < 0.8 * values[0]


def test_a_step_hardly_depends_on_the_batch_size(trained: nn.Module):
    data = blobs().subset(blobs().ids[:12])
    old = dict(trained.named_parameters())

    def move(size: int) -> Tensor:
        new = request(trained, data, batch_size=size, lr=1e-6, samples=400).model
        return torch.cat([(p - old[n]).detach().flatten() for n, p in new.named_parameters()])

    one, all_of_them = move(1), move(12)
    assert float((one - all_of_them).norm() / one.norm()) < 0.1  # the sum of quotients; of their mean it were 0.9


def test_the_gradient_where_nothing_moves_is_zero():
    z = torch.zeros(2, 3, dtype=D, requires_grad=True)
    x = torch.ones(2, 4, dtype=D)
    found = quotients(z, z.detach().clone(), x, x)
    assert found.tolist() == [0, 0]
    found.sum().backward()
    assert torch.equal(z.grad, torch.zeros_like(z))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_noise_that_rounding_swallows_has_no_quotient(dtype: torch.dtype):
    x = torch.tensor([[1000.0, 1000], [1, 1]], dtype=dtype)
    nearby = x + torch.tensor([[1e-5, 1e-5], [0.5, 0]], dtype=dtype)  # the first sample is x itself again
    z = torch.tensor([[1.0, 2], [3, 4]], dtype=dtype, requires_grad=True)
    moved = torch.tensor([[5.0, 2], [4, 4]], dtype=dtype)  # dropout, say, told the first two apart
    found = quotients(z, moved, x, nearby)
    assert found.dtype == torch.float32
    assert found.tolist() == [0, 2]
    found.sum().backward()
    assert z.grad.tolist() == [[0, 0], [-2, 0]]


def test_quotients_of_halves_are_summed_in_float32():
    x, z = torch.zeros(1, 4096, dtype=torch.float16), torch.zeros(1, 1, dtype=torch.float16)
    found = quotients(z, z + 1, x, x + 2e-4)  # of squares that float16 takes for 0
    assert found.item() == pytest.approx(1 / (64 * 2e-4), rel=1e-3)


def test_dropout_beside_noise_that_rounding_swallows_moves_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)).half()
    data = Data.from_arrays(torch.full((5, 4), 1000.0, dtype=torch.float16))
    done = request(model.eval(), data, sigma=1e-3, norm="moving")
    assert done.log["quotient"] == [[1, 0.0]]
    assert done.changed.count == 0
    assert "did not change under the noise, or rounding swallowed it: this pass changed nothing" in done.note


def test_outputs_that_do_not_move_are_noted():
    model = nn.Linear(4, 3).double().eval()
    nn.init.zeros_(model.weight)
    done = request(model, blobs().subset(blobs().ids[:5]))
    assert done.changed.count == 0
    assert "The outputs did not change under the noise" in done.note


def test_published_clamping_to_a_batch_of_one_value_stays_finite():
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double().eval()
    data = Data.from_arrays(torch.ones(4, 4, dtype=D))
    assert request(model, data, **OFFICIAL).changed.count == 0  # x′ = x


def test_the_default_is_eval_mode_with_dropout_off(trained: nn.Module):
    data = blobs().subset(blobs().ids[:10])
    plain = nn.Sequential(trained, nn.Identity())
    dropped = nn.Sequential(copy.deepcopy(trained), nn.Dropout(0.5)).eval()
    a, b = (request(m, data).model.state_dict() for m in (plain, dropped))
    assert all(torch.equal(a[k], b[k]) for k in a)
    same = dict(trained.named_buffers())
    still, moving = (dict(request(trained, data, norm=n).model.named_buffers()) for n in ("frozen", "moving"))
    assert all(torch.equal(still[k], same[k]) for k in same)
    assert not any(torch.equal(moving[k], same[k]) for k in same)


def test_inputs_alone_are_seen(trained: nn.Module):
    assert JIT().unlearns == Needs(forget=See.INPUTS)
    data = blobs().subset(blobs().ids[:10])
    inputs = data.read(range(10)).inputs
    found = [request(trained, d) for d in (data, Data.from_arrays(inputs), Data.from_arrays(inputs, [0] * 10))]
    assert len({weights_digest(done.model) for done in found}) == 1
    assert found[0].changed.count > 0


def test_it_serves_outputs_of_a_regression():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double().eval()
    inputs = blobs().read(range(9)).inputs
    done = request(model, Data.from_arrays(inputs, inputs[:, 0]), Regression(), epochs=5)
    values = [v for _, v in done.log["quotient"]]
    assert values[-1] < values[0]


def test_masked_weights_stay(trained: nn.Module):
    data = blobs().subset(blobs().ids[:10])
    kept = {n: torch.arange(p.numel()).reshape(p.shape) % 2 == 0 for n, p in trained.named_parameters()}
    for options in ({}, OFFICIAL):
        method, given = session(trained, data, Masks(kept), **options)
        made, _ = method.unlearn(given, State())
        old = dict(trained.named_parameters())
        assert all(torch.equal(p[~kept[n]], old[n][~kept[n]]) for n, p in made.named_parameters())
        assert changed(trained, made).count > 0


@pytest.mark.parametrize("kind", ["tokens", "dict"])
def test_inputs_that_are_no_real_numbers_are_refused(kind: str, trained: nn.Module):
    x: Any = torch.ones(6, 4, dtype=torch.int64) if kind == "tokens" else {"pixel_values": torch.ones(6, 4)}
    got = "torch.int64" if kind == "tokens" else "a dict with pixel_values"
    with pytest.raises(UserError, match=f"one tensor of real numbers, which jit adds noise to, got .*{got}"):
        request(trained, Data.from_arrays(x))


def test_divergence_names_the_step_and_the_setting(trained: nn.Module):
    data = blobs().subset(blobs().ids[:10])
    with pytest.raises(NotFinite, match=r"a finite loss of jit, got \S+ at step \d: lower jit.lr \(now 1e\+200\)"):
        request(trained, data, lr=1e200, epochs=3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sigma": 0.0}, "jit.sigma above 0"),
        ({"samples": 0}, "jit.samples of 1 or more"),
        ({"epochs": 0}, "jit.epochs of 1 or more"),
        ({"compat": "code"}, "jit.compat paper or official"),
        ({"compat": "official"}, "jit with compat='official' and norm='moving', as published, got norm='frozen'"),
        ({**OFFICIAL, "momentum": 0.9}, "compat='official' and momentum=0.0, as published, got momentum=0.9"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], text: str):
    with pytest.raises(UserError, match=text):
        JIT(**options)
