"""L1-sparse: fine-tuning under a penalty whose strength follows a schedule, and is found from a displacement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import blobs, deep
from expunge.data import Data
from expunge.errors import MissingNeed, NotFinite, UserError
from expunge.masks import Masks
from expunge.method import See, Session, State
from expunge.methods import build, load
from expunge.methods.l1_sparse import L1, SoftThreshold, l1_norm
from expunge.runtime import Runtime
from expunge.task import Classification
from expunge.tensors import parameters, weights_digest
from expunge.train import Recipe, fit
from expunge.unlearn import Unlearned, unlearn

TASK = Classification()
QUIET = Runtime(progress=False, device="cpu")
L1_SPARSE = load("l1_sparse")
D = torch.float64


class Point(nn.Module):
    """Weights that logits do not depend on, beside constant logits: the loss pulls at none of them."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(values, dtype=D))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3] + 0.0 * self.theta.sum()


class Interrupt:
    """A progress callback that interrupts after some calls."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self, progress: object) -> None:
        self.calls -= 1
        if self.calls == 0:
            raise KeyboardInterrupt


def trained() -> nn.Module:
    return fit(deep(), TASK, blobs(), Recipe(epochs=3, lr=0.05), runtime=QUIET)


def forgotten(model: nn.Module, data: Data | None = None, **more: object) -> Unlearned:
    """Return what l1_sparse makes of a model; fields and arguments of `unlearn` by keyword."""
    data = data or blobs()
    given = {name: more.pop(name) for name in ("recipe", "seed", "holdout", "runtime") if name in more}
    given = {"runtime": QUIET, **given}
    return unlearn(L1_SPARSE(**more), model, TASK, forget=data.ids[:9], retain=data.without(data.ids[:9]), **given)


def test_the_penalty_by_hand() -> None:
    logits, y = torch.tensor([[2, 0.5, -1], [0, 1, 3]], dtype=D), torch.tensor([0, 2])
    model = Point(0.3, -1.2, 0, 2.5, -0.05)
    norm = l1_norm(model)
    assert norm.item() == pytest.approx(4.05, abs=1e-12)
    loss = F.cross_entropy(logits, y)
    assert loss.item() == pytest.approx(0.20557866, abs=1e-8)
    penalty = L1(5e-4)(model, None, logits, loss)  # type: ignore[arg-type]
    assert (loss + penalty).item() == pytest.approx(0.20760366, abs=1e-8)
    assert torch.autograd.grad(norm, model.theta)[0].tolist() == [1, -1, 0, 1, -1]


def test_the_first_step_by_hand() -> None:
    done = forgotten(Point(0.3, -1.2, 0, 2.5, -0.05), epochs=1, batch_size=64, gamma=5e-4)
    want = torch.tensor([0.2999935, -1.199989, 0, 2.4999825, -0.04999475], dtype=D)
    assert torch.allclose(done.model.theta, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({"epochs": 10}, [5, 4.5, 4, 3.5, 3, 2.5, 2, 1.5, 1, 0.5]),
        ({"epochs": 10, "free_epochs": 2}, [5, 4.375, 3.75, 3.125, 2.5, 1.875, 1.25, 0.625, 0, 0]),
        ({"epochs": 5}, [5, 4, 3, 2, 1]),
        ({"epochs": 10, "schedule": "growth"}, [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5]),
        ({"epochs": 4, "schedule": "growth", "free_epochs": 2}, [0, 2.5, 0, 0]),
        ({"epochs": 3, "schedule": "constant", "free_epochs": 1}, [5, 5, 0]),
    ],
)
def test_the_schedules(fields: dict[str, object], want: list[float]) -> None:
    penalty = L1(5e-4, L1_SPARSE(**fields).shares)
    found = [penalty.at_epoch(t).gamma for t in range(len(want))]
    assert found == pytest.approx([1e-4 * w for w in want], abs=1e-15)
    assert SoftThreshold(5e-4, penalty.shares).at_epoch(0) == SoftThreshold(found[0])


def test_a_schedule_shorter_than_the_training_is_refused_before_the_first_epoch() -> None:
    text = "3 epochs or fewer under this L1 schedule, got epoch 4 of training: give each epoch a share"
    penalty = L1(5e-4, (1.0, 0.5, 0.0))
    for one in (penalty, SoftThreshold(5e-4, penalty.shares)):
        with pytest.raises(UserError, match=text):
            one.at_epoch(3)
        with pytest.raises(UserError, match=text):
            Recipe(epochs=4, penalties=(one,))
    assert Recipe(epochs=2, penalties=(penalty,)).terms(1) == (L1(2.5e-4),)
    assert Recipe(epochs=40, penalties=(L1(5e-4),)).terms(39) == (L1(5e-4),)


@pytest.mark.parametrize(("gamma", "want"), [(5e-4, 0.0437), (1e-4, 0.0087), (0.2, 17.5)])
def test_the_rule_of_thumb_for_the_displacement(gamma: float, want: float) -> None:
    method = L1_SPARSE(gamma=gamma)
    assert gamma * method.reach(159) == pytest.approx(want, rel=6e-3)


def test_a_pruned_weight_adds_nothing_to_the_norm_and_stays_zero() -> None:
    model = Point(0.5, -0.2)
    masks = Masks({"theta": torch.tensor([True, False])})
    masks.prune(model)
    assert l1_norm(model).item() == 0.5
    found = edited(model, masks, gamma=0.1)
    assert found.theta[1].item() == 0
    assert 0 < found.theta[0].item() < 0.5


def edited(model: nn.Module, masks: Masks, **fields: object) -> nn.Module:
    """Return the model after l1_sparse under masks, as a composition calls it."""
    method, data = L1_SPARSE(**fields), blobs()
    given = {"retain": data, "recipe": None}
    session = Session(
        task=TASK, runtime=QUIET, seed=0, method="l1_sparse", phase="unlearn", needs=method.unlearns, source=model,
        given=given, masks=masks,
    )  # fmt: skip
    return method.unlearn(session, State())[0]


@pytest.mark.parametrize("proximal", [False, True])
def test_masked_weights_stay_to_the_bit(proximal: bool) -> None:
    model = trained()
    generator = torch.Generator().manual_seed(0)
    kept = {n: torch.rand(p.shape, generator=generator) < 0.5 for n, p in parameters(model).items()}
    found = parameters(edited(model, Masks(kept), proximal=proximal, displacement=3.0))
    for name, before in parameters(model).items():
        assert torch.equal(found[name][~kept[name]], before[~kept[name]])
        assert not torch.equal(found[name][kept[name]], before[kept[name]])


def test_equals_a_loop_written_out() -> None:
    """Constant order, an unequal last batch, momentum, weight decay, a decaying strength, in train mode."""
    model, data = trained(), blobs()
    rest = data.without(data.ids[:9])
    done = forgotten(model, epochs=3, gamma=0.02, lr=0.03, batch_size=20, free_epochs=1, seed=4)
    seen: list[list[int]] = []
    batches = [done.log["gamma"] * s for s in (1.0, 0.5, 0.0)]
    slow, recipe = Orders(seen), Recipe(epochs=3, lr=0.03, batch_size=20, schedule="constant", penalties=())
    fit(model, TASK, rest, replace(recipe, penalties=(slow,)), runtime=QUIET, seed=4)  # draws the same orders
    work = fit(model, TASK, rest, replace(recipe, epochs=0), runtime=QUIET).train()
    velocity = [torch.zeros_like(p) for p in work.parameters()]
    whole = rest.read(range(len(rest)))
    for step, at in enumerate(seen):
        loss = F.cross_entropy(work(whole.inputs[at]), whole.target[at])
        grads = torch.autograd.grad(loss, list(work.parameters()))
        with torch.no_grad():
            for p, g, v in zip(work.parameters(), grads, velocity, strict=True):
                v.mul_(0.9).add_(g + 5e-4 * p + batches[step // 3] * torch.sign(p))
                p.sub_(0.03 * v)
    assert [len(at) for at in seen] == [20, 20, 11] * 3
    for a, b in zip(done.model.parameters(), work.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


class Orders:
    """A penalty of nothing that keeps which samples each batch holds."""

    def __init__(self, seen: list[list[int]]) -> None:
        self.seen = seen

    def __call__(self, model: nn.Module, batch: object, outputs: Tensor, losses: Tensor) -> Tensor:
        self.seen.append(batch.index.tolist())  # type: ignore[attr-defined]
        return losses.new_zeros(())


def test_without_strength_it_is_finetuning() -> None:
    model, data = trained(), blobs()
    same = {"epochs": 2, "lr": 0.03}
    done = forgotten(model, gamma=0.0, **same)
    plain = unlearn(
        load("finetune")(**same), model, TASK, forget=data.ids[:9], retain=data.without(data.ids[:9]), runtime=QUIET
    )
    assert weights_digest(done.model) == weights_digest(plain.model)
    assert weights_digest(forgotten(model, **same).model) != weights_digest(plain.model)


@pytest.mark.parametrize("proximal", [False, True])
@pytest.mark.parametrize("schedule", ["constant", "decay", "growth"])
def test_the_displacement_is_kept(proximal: bool, schedule: str) -> None:
    """A weight that the loss does not hold moves as far as it is told, whatever the rate and the number of steps."""
    model = Point(4.0, -6.0)
    fields = {"proximal": proximal, "schedule": schedule, "displacement": 0.1, "weight_decay": 0.0, "momentum": 0.5}
    done = forgotten(model, epochs=400, lr=0.01, batch_size=30, **fields)
    assert done.log["displacement"] == pytest.approx(0.5)
    moved = model.theta.abs() - done.model.theta.abs()
    assert moved.tolist() == pytest.approx([0.5, 0.5], rel=5e-3)  # momentum begins at rest
    assert l1_norm(done.model).item() == pytest.approx(done.log["l1_after"])
    assert done.log["l1_before"] == 10


def test_the_proximal_step_leaves_exact_zeros_and_the_subgradient_none() -> None:
    model = trained()
    fields = {"displacement": 3.0, "batch_size": 5, "threshold": 0.01}
    soft, rough = (forgotten(model, proximal=p, **fields) for p in (True, False))

    def zeros(done: Unlearned) -> int:
        return sum(int((p == 0).sum()) for p in done.model.parameters())

    assert zeros(soft) > 20
    assert zeros(rough) == 0
    for done in (soft, rough):
        assert done.log["small_after"] > done.log["small_before"]
        assert done.log["l1_after"] < 0.9 * done.log["l1_before"]
    assert soft.log["small_after"] >= zeros(soft) / sum(p.numel() for p in model.parameters())


def test_the_norm_is_summed_in_float32_at_least() -> None:
    model = nn.Linear(300, 300, bias=False).half()
    nn.init.constant_(model.weight, 1.0)
    assert l1_norm(model).item() == 90_000  # beyond the largest float16
    assert l1_norm(model).dtype == torch.float32
    assert l1_norm(deep()).dtype == D


def test_frozen_weights_count_nowhere() -> None:
    model = trained()
    model[1].weight.requires_grad_(False)
    free = sum(float(p.detach().abs().sum()) for p in model.parameters() if p.requires_grad)
    done = forgotten(model, epochs=1)
    assert done.log["l1_before"] == pytest.approx(free)
    assert torch.equal(done.model[1].weight, model[1].weight)


def test_penalties_of_the_recipe_stay() -> None:
    model = trained()
    seen: list[list[int]] = []
    forgotten(model, epochs=2, recipe=Recipe(batch_size=20, penalties=(Orders(seen),)))
    assert [len(at) for at in seen] == [20, 20, 11] * 2


@pytest.mark.parametrize("proximal", [False, True])
def test_an_interrupted_edit_resumes_in_its_epoch(tmp_path: Path, proximal: bool) -> None:
    model, fields = trained(), {"epochs": 4, "batch_size": 20, "displacement": 2.0, "proximal": proximal, "seed": 3}
    want = forgotten(model, **fields)
    runtime = Runtime(progress=Interrupt(9), device="cpu", workdir=tmp_path, checkpoint_every=0)
    with pytest.raises(KeyboardInterrupt):
        forgotten(model, runtime=runtime, **fields)
    assert len(list(tmp_path.iterdir())) == 1
    other = forgotten(model, runtime=replace(runtime, progress=False), **{**fields, "displacement": 1.0})
    assert len(list(tmp_path.iterdir())) == 1  # another strength goes on from no checkpoint of this one
    found = forgotten(model, runtime=replace(runtime, progress=False), **fields)
    assert weights_digest(found.model) == weights_digest(want.model) != weights_digest(other.model)
    assert list(tmp_path.iterdir()) == []


def test_the_recipe_says_what_it_trained_by() -> None:
    recipe = L1_SPARSE(epochs=2).further(None, L1(0.25, (1.0, 0.5)))
    assert recipe.to_json()["penalties"] == ["L1(gamma=0.25, shares=(1.0, 0.5))"]
    assert build(L1_SPARSE(gamma=0.1).settings()) == L1_SPARSE(gamma=0.1)


def test_the_best_epoch_is_returned_only_when_asked() -> None:
    model, data = trained(), blobs(30, seed=8, name="holdout")
    fields = {"epochs": 6, "displacement": 20.0, "lr": 0.02}
    best = forgotten(model, keep_best=True, holdout=data, **fields)
    last = forgotten(model, **fields)
    x, y = data.read(range(30)).inputs, data.targets()
    with torch.no_grad():
        found = [float(F.cross_entropy(done.model(x), y)) for done in (best, last)]
    assert found[0] < found[1]
    with pytest.raises(MissingNeed, match="holdout"):
        forgotten(model, keep_best=True)
    assert L1_SPARSE(keep_best=True).passes("unlearn", None) == {"retain": 10.0, "holdout": 10.0}
    assert L1_SPARSE().passes("unlearn", None) == {"retain": 10.0}
    assert L1_SPARSE().passes("prepare", None) == {}


def test_it_sees_no_forget_sample() -> None:
    needs = L1_SPARSE().unlearns
    assert (needs.forget, needs.retain) == (See.NONE, See.LABELLED)


def test_divergence_is_named() -> None:
    with pytest.raises(NotFinite, match=r"a finite training loss of l1_sparse, got .* in epoch \d+"):
        forgotten(trained(), lr=1e6, epochs=40)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"epochs": 0}, "l1_sparse.epochs of 1 or more"),
        ({"lr": -1.0}, "lr"),
        ({"momentum": 1.0}, "l1_sparse.momentum below 1"),
        ({"gamma": -0.1}, "l1_sparse.gamma of 0 or more"),
        ({"gamma": float("nan")}, "l1_sparse.gamma"),
        ({"displacement": 0.0}, "l1_sparse.displacement above 0"),
        ({"threshold": 0.0}, "l1_sparse.threshold above 0"),
        ({"schedule": "grow"}, "l1_sparse.schedule constant, decay, growth, got 'grow': did you mean 'growth'"),
        ({"epochs": 3, "free_epochs": 3}, "free_epochs from 0 to 2, so that 1 or more of 3 epochs have L1, got 3"),
        ({"epochs": 3, "free_epochs": 2, "schedule": "growth"}, "free_epochs from 0 to 1"),
        ({"free_epochs": -1}, "l1_sparse.free_epochs"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text):
        L1_SPARSE(**fields)
