"""UNSIR: noise against a class, impair and repair, beside a hand-written loop; what it leaves alone."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import CASES, QUIET, blobs, deep
from expunge.data import Batch, Data
from expunge.errors import Declined, NotFinite, UserError
from expunge.masks import Masks
from expunge.method import See, Session, State
from expunge.methods import _steps, load
from expunge.methods.unsir import first_of_others, noise_loss
from expunge.scenario import forget_class, forget_ids, forget_random
from expunge.task import Classification, Regression
from expunge.tensors import weights_digest
from expunge.train import Recipe, fit
from expunge.unlearn import Unlearned, unlearn

TASK = Classification()
UNSIR = load("unsir")
D = torch.float64
SMALL = {"noises": 4, "noise_steps": 6, "repeats": 2, "batch_size": 20}


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return fit(deep(), TASK, blobs(), Recipe(epochs=4, lr=0.05))


def request(model: nn.Module, data: Data | None = None, label: int = 1, **options: Any) -> Unlearned:
    data = blobs() if data is None else data
    case = forget_class(data, label)
    given = {"forget": case.forget, "retain": data.without(case.forget), "scenario": case, "seed": 2}
    return unlearn(UNSIR(**{**SMALL, **options}), model, TASK, runtime=QUIET, **given)


def session(model: nn.Module, masks: Masks | None = None, **options: Any) -> tuple[Any, Session]:
    data, method = blobs(), UNSIR(**{**SMALL, **options})
    case = forget_class(data, 1)
    given = {"retain": data.without(case.forget), "scenario": case, "recipe": None}
    more = {"method": "unsir", "phase": "unlearn", "needs": method.unlearns, "masks": masks}
    return method, Session(task=TASK, runtime=QUIET, seed=0, source=model, given=given, **more)


def norms(model: nn.Module) -> list[Tensor]:
    return [b.clone() for b in model.buffers()]


def test_the_loss_of_two_noises_by_hand():
    noise = torch.tensor([[1, -2, 0.5, 0], [0.1, 0.2, -0.3, 0.4]], dtype=D).reshape(2, 1, 2, 2)
    losses = TASK.loss(torch.tensor([[1, 0, -1], [0.2, 0.1, 0.4]], dtype=D), torch.tensor([2, 2]))
    assert float(losses.mean()) == pytest.approx(1.67371851, abs=1e-8)
    assert float(noise_loss(losses, noise, 0.1)) == pytest.approx(-1.39621851, abs=1e-8)


def test_the_penalty_starts_at_its_expectation():
    torch.manual_seed(0)
    noise = torch.randn(256, 3, 32, 32, dtype=D)
    assert float(noise_loss(torch.zeros(256, dtype=D), noise, 0.1)) == pytest.approx(307.2, abs=1.5)


def test_the_first_samples_of_each_other_class():
    targets = torch.tensor([2, 1, 0, 2, 2, 0, 1])
    assert first_of_others(targets, 1, 2).tolist() == [0, 2, 3, 5]
    assert first_of_others(targets, 0, 9).tolist() == [0, 1, 3, 4, 6]
    assert first_of_others(torch.tensor([1, 1]), 1, 2).tolist() == []


@pytest.mark.parametrize("compat", ["paper", "official"])
def test_equals_a_hand_written_loop(trained: nn.Module, compat: str):
    options = {"batch_size": 18, "per_class": 13, "epochs": 2, "lr": 0.01, "repair_lr": 0.003, "penalty": 0.2}
    method, given = session(trained, compat=compat, **options)
    torch.manual_seed(7)
    made, _ = method.unlearn(given, State())

    model = copy.deepcopy(trained)
    torch.manual_seed(7)
    noise = torch.randn(4, 4).double().requires_grad_(True)
    model.train(compat == "official")
    first = torch.optim.Adam([noise], lr=0.1)
    for _ in range(6):
        value = -F.cross_entropy(model(noise), torch.ones(4).long()) + 0.2 * noise.square().sum() / 4
        (noise.grad,) = torch.autograd.grad(value, [noise])
        first.step()
    keep = [i for i in range(60) if i % 3 == 0][:13] + [i for i in range(60) if i % 3 == 2][:13]
    batch = blobs().read(sorted(keep))
    pool = torch.cat([noise.detach()] * 2 + [batch.inputs]), torch.cat([torch.ones(8).long(), batch.target])
    rest = pool[0][8:], pool[1][8:]
    model.train()
    for passes, lr, (x, y) in [(2, 0.01, pool), (1, 0.003, rest)]:
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        for _ in range(passes):
            for at in torch.randperm(len(x)).split(18):  # 34 as 18 and 16, 26 as 18 and 8
                optimizer.zero_grad()
                F.cross_entropy(model(x[at]), y[at]).backward()
                optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(made.state_dict()[name], value, rtol=1e-9, atol=1e-11, msg=name)
    assert given.log["impair_steps"] == 4
    assert given.log["repair_steps"] == 2
    assert given.log["steps"] == 6
    assert given.log["retained"] == 26
    assert given.log["noise_loss_after"] < given.log["noise_loss_before"]


@pytest.mark.parametrize("compat", ["paper", "official"])
def test_noise_moves_no_weight_and_leaves_no_gradient(trained: nn.Module, compat: str):
    method, given = session(trained, compat=compat)
    before, statistics = {n: p.clone() for n, p in trained.named_parameters()}, norms(trained)
    start = torch.randn(4, 4, dtype=D)
    learned = method._learned(given, start.clone(), 1, lambda n: None)
    assert not torch.equal(learned, start)
    assert not learned.requires_grad
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in given.model.named_parameters())
    moved = [not torch.equal(a, b) for a, b in zip(statistics, norms(given.model), strict=True)]
    assert all(moved) if compat == "official" else not any(moved)


def test_the_recipe_augments_what_stays_and_not_the_noise(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    images, labels = torch.randn(24, 1, 4, 4), torch.arange(24) % 3
    data = Data.from_arrays(images, labels)
    case = forget_class(data, 1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    seen: list[tuple[bytes, int]] = []
    real = _steps.outputs_and_losses

    def noted(model: nn.Module, task: Classification, batch: Batch) -> tuple[Tensor, Tensor]:
        seen.extend((x.numpy().tobytes(), int(y)) for x, y in zip(batch.inputs, batch.target, strict=True))
        return real(model, task, batch)

    monkeypatch.setattr(_steps, "outputs_and_losses", noted)
    given = {"forget": case.forget, "retain": data.without(case.forget), "scenario": case, "runtime": QUIET}
    real_ones = {x.numpy().tobytes() for x in images}
    for recipe in (None, Recipe(batch_size=20), Recipe(batch_size=20, flip=True, crop=1)):
        seen.clear()
        unlearn(UNSIR(**{**SMALL, "epochs": 3, "batch_size": None}), model, TASK, recipe=recipe, **given)
        noise, rest = [x for x, y in seen if y == 1], [x for x, y in seen if y != 1]
        assert len(noise) == 4 * 2 * 3
        assert len(set(noise)) == 4  # the same four, three epochs long
        assert len(rest) == 16 * 4
        assert (set(rest) <= real_ones) is (recipe is None or not recipe.flip)


def test_it_forgets_the_class_and_no_other(trained: nn.Module):
    data = blobs()
    done = request(trained, data, noises=8, noise_steps=25, repeats=None, epochs=3, repair_epochs=3)
    wrong = done.model(data.read(range(60)).inputs).argmax(dim=1) != data.targets()
    hit = [float(wrong[data.targets() == c].double().mean()) for c in range(3)]
    assert hit[1] > 0.8
    assert max(hit[0], hit[2]) < 0.1


def test_unset_copies_are_a_twentieth_of_what_stays(trained: nn.Module):
    assert request(trained, repeats=None).log["repeats"] == 1
    data = blobs(480)
    assert request(trained, data, repeats=None, noises=2).log["repeats"] == 8  # 320 stay: 16 noises
    assert request(trained, data, repeats=3, noises=2).log["repeats"] == 3


class Counted:
    """A dataset that keeps which samples were read."""

    def __init__(self, data: Data) -> None:
        batch = data.read(range(len(data)))
        self.x, self.y, self.read = batch.inputs, data.targets(), set[int]()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, at: int) -> tuple[Tensor, Tensor]:
        self.read.add(at)
        return self.x[at], self.y[at]


def test_forget_samples_are_never_read(trained: nn.Module):
    assert UNSIR().unlearns.forget is See.NONE
    counted = Counted(blobs())
    data = Data.from_torch(counted)
    case = forget_class(data, 1)
    retain = data.without(case.forget)
    counted.read.clear()
    unlearn(UNSIR(**SMALL), trained, TASK, forget=case.forget, retain=retain, scenario=case, runtime=QUIET)
    assert counted.read == {i for i in range(60) if i % 3 != 1}


def test_masked_weights_stay(trained: nn.Module):
    kept = {n: torch.arange(p.numel()).reshape(p.shape) % 2 == 0 for n, p in trained.named_parameters()}
    method, given = session(trained, Masks(kept))
    made, _ = method.unlearn(given, State())
    old = dict(trained.named_parameters())
    for name, value in made.named_parameters():
        assert torch.equal(value[~kept[name]], old[name][~kept[name]]), name
        assert not torch.equal(value, old[name]), name


def test_repair_may_be_left_out(trained: nn.Module):
    done = request(trained, repair_epochs=0)
    assert done.log["repair_steps"] == 0
    assert UNSIR(repair_epochs=0, epochs=2).passes("unlearn", None) == {"retain": 2.0}
    assert weights_digest(done.model) != weights_digest(request(trained).model)


def test_part_of_a_class_is_forgotten_whole_and_said(trained: nn.Module):
    data = blobs()
    case = forget_class(data, 1, fraction=0.5)
    given = {"forget": case.forget, "retain": data.without(case.forget), "scenario": case, "runtime": QUIET}
    done = unlearn(UNSIR(**SMALL), trained, TASK, **given)
    assert "10 samples of class 1 were to stay: unsir forgets a class as a whole" in done.note
    assert done.log["retained"] == 40
    assert request(trained).note == ""


def test_declines_what_is_no_class(trained: nn.Module):
    data = blobs()
    cases = {"random": forget_random(data, 5), "ids": forget_ids(data, data.ids[:3])}
    for kind, case in cases.items():
        given = {"retain": data.without(case.forget), "scenario": case}
        with pytest.raises(Declined, match=f"learns noise against one class, and the forget set is of kind '{kind}'"):
            unlearn(UNSIR(), trained, TASK, forget=case.forget, **given)
    model, targets = CASES["linear_regression"].make()
    assert "no classes" in UNSIR().declines(Regression(), None, model)


def test_no_other_class_to_repair_on_is_refused(trained: nn.Module):
    data = blobs()
    case = forget_class(data, 1, fraction=0.5)
    same = data.subset([i for i in forget_class(data, 1).forget if i not in case.forget])
    with pytest.raises(UserError, match="retain samples of other classes than 1 for unsir, got none"):
        unlearn(UNSIR(**SMALL), trained, TASK, forget=case.forget, retain=same, scenario=case, runtime=QUIET)


@pytest.mark.parametrize("kind", ["tokens", "dict"])
def test_inputs_that_are_no_real_numbers_are_refused(kind: str, trained: nn.Module):
    y = np.arange(12) % 3
    x: Any = torch.ones(12, 4, dtype=torch.int64) if kind == "tokens" else {"pixel_values": torch.ones(12, 4)}
    data = Data.from_arrays(x, y)
    got = "torch.int64" if kind == "tokens" else "a dict with pixel_values"
    with pytest.raises(UserError, match=f"one tensor of real numbers, which unsir adds noise to, got .*{got}"):
        request(trained, data)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"noise_lr": 1e200}, r"a finite loss of unsir's noise, got \S+ at its step 2: lower unsir.noise_lr"),
        ({"lr": 1e200, "epochs": 3}, r"a finite loss of unsir, got \S+ at step \d: lower unsir.lr \(now 1e\+200\)"),
        ({"repair_lr": 1e200, "repair_epochs": 3}, r"at step \d: lower unsir.repair_lr \(now 1e\+200\) or unsir.lr"),
    ],
)
def test_divergence_names_the_step_and_the_setting(options: dict[str, Any], text: str, trained: nn.Module):
    with pytest.raises(NotFinite, match=text):
        request(trained, **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"noises": 0}, "unsir.noises of 1 or more, got 0"),
        ({"noises": 1, "compat": "official"}, "unsir.noises of 2 or more, got 1"),
        ({"noise_steps": 0}, "unsir.noise_steps of 1 or more"),
        ({"repeats": 0}, "unsir.repeats of 1 or more"),
        ({"repair_epochs": -1}, "unsir.repair_epochs of 0 or more"),
        ({"repair_lr": 0.0}, "unsir.repair_lr above 0"),
        ({"noise_lr": float("inf")}, "unsir.noise_lr above 0"),
        ({"penalty": -0.1}, "unsir.penalty of 0 or more"),
        ({"compat": "published"}, "unsir.compat paper or official"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], text: str):
    with pytest.raises(UserError, match=text):
        UNSIR(**options)
