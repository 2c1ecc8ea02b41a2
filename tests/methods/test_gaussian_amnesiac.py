"""Gaussian amnesiac: targets drawn once from the moments of all training targets, trained on among the rest."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from expunge.data import Data
from expunge.errors import Declined, Misfit, MissingNeed, NotFinite, UserError
from expunge.method import See, State
from expunge.methods import load
from expunge.methods.gaussian_amnesiac import Moments
from expunge.scenario import forget_random
from expunge.task import Binary, Classification, MultiLabel, Quantile, Regression, Task
from expunge.tensors import weights_digest
from expunge.train import Recipe, fit
from expunge.unlearn import Prepared, prepare, unlearn
from replays import close, reads, samples

TASK = Regression("absolute")
AMNESIAC = load("gaussian_amnesiac")
RECIPE = Recipe(epochs=10, lr=0.02, batch_size=8)
D = torch.float64


def net(outputs: int = 1) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, outputs)).double()


def values(n: int = 37, outputs: int = 1, weight: Tensor | None = None) -> Data:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 4, generator=generator, dtype=D)
    y = torch.stack([(k + 1) * x.sum(dim=1) + 10 * k for k in range(outputs)], dim=1)
    return Data.from_arrays(x, y, weight=weight)


DATA = values()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return fit(net(), TASK, DATA, RECIPE)


def parts(count: int = 9, data: Data = DATA) -> dict[str, Data]:
    return {"forget": data.subset(data.ids[:count]), "retain": data.without(data.ids[:count])}


def ready(model: nn.Module, data: Data = DATA, task: Task = TASK) -> Prepared:
    return prepare(AMNESIAC(), model, task, train=data)


class Noting(Regression):
    """A task that keeps the targets of each call of its loss."""

    def __init__(self) -> None:
        super().__init__("absolute")
        object.__setattr__(self, "targets", [])

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        self.targets.append(target.flatten().tolist())
        return super().loss(outputs, target)


# The moments.


def test_the_moments_are_those_of_all_targets_with_one_degree_of_freedom_less(model: nn.Module):
    data = Data.from_arrays(torch.randn(5, 4, dtype=D), torch.tensor([10.0, 20, 30, 40, 50]))
    found = prepare(AMNESIAC(), model, TASK, train=data).state
    assert float(found.tensors["mean"]) == 30
    assert float(found.tensors["deviation"]) == pytest.approx(15.8113883, abs=1e-7)
    assert found.meta["count"] == 5


@pytest.mark.parametrize("shape", [(41,), (41, 1), (41, 3), (41, 2, 3)])
def test_every_coordinate_has_its_own(shape: tuple[int, ...]):
    torch.manual_seed(0)
    y = torch.randn(shape) * 5 + torch.arange(shape[-1])
    found = Moments.of(Data.from_arrays(torch.zeros(41, 2), y))
    assert found.mean.shape == found.deviation.shape == shape[1:]
    rows = y.double().reshape(41, -1)
    for k in range(rows.shape[1]):
        column = [float(v) for v in rows[:, k]]
        mean = sum(column) / 41
        assert float(found.mean.reshape(-1)[k]) == pytest.approx(mean, abs=1e-12)
        want = (sum((v - mean) ** 2 for v in column) / 40) ** 0.5
        assert float(found.deviation.reshape(-1)[k]) == pytest.approx(want, abs=1e-12)
    torch.manual_seed(1)
    drawn = found.drawn(20000)
    assert drawn.shape == (20000, *shape[1:])
    torch.testing.assert_close(drawn.mean(dim=0), found.mean, atol=0.2, rtol=0)
    torch.testing.assert_close(drawn.std(dim=0), found.deviation, atol=0.2, rtol=0)


@pytest.mark.parametrize(
    ("targets", "error", "text"),
    [
        (torch.arange(4), Misfit, "real targets, got torch.int64"),
        (torch.tensor([1.0, float("nan"), 2.0, 3.0]), Misfit, "finite targets, got NaN or infinity"),
        (torch.tensor([1.0]), UserError, "two targets or more in train, got 1"),
    ],
)
def test_targets_without_moments_are_refused(targets: Tensor, error: type[UserError], text: str, model: nn.Module):
    data = Data.from_arrays(torch.randn(len(targets), 4, dtype=D), targets)
    with pytest.raises(error, match=text):
        prepare(AMNESIAC(), model, TASK, train=data)


# The draws.


def test_each_sample_has_one_target_for_all_epochs_and_those_that_stay_their_own(model: nn.Module):
    found: dict[int, list[list[list[float]]]] = {}
    sets = parts()
    own = {v for v in sets["retain"].targets().flatten().tolist()}
    for seed in (0, 0, 1):
        task = Noting()
        unlearn(AMNESIAC(epochs=3, batch_size=10), model, task, **sets, state=ready(model).state, seed=seed)
        epochs = [[v for part in task.targets[k : k + 4] for v in part] for k in (0, 4, 8)]
        for said in epochs:
            assert len(said) == 37
            assert {v for v in said if v in own} == own
        drawn = [sorted(set(said) - own) for said in epochs]
        assert len(drawn[0]) == 9
        assert drawn[0] == drawn[1] == drawn[2]
        found.setdefault(seed, []).append(drawn[0])
    assert found[0][0] == found[0][1] != found[1][0]


@pytest.mark.parametrize("batch", [1, 7])
def test_targets_with_and_without_a_column_are_the_same(batch: int, model: nn.Module):
    method, x = AMNESIAC(epochs=1, batch_size=batch), DATA.read(range(len(DATA))).inputs
    flat, column = (Data.from_arrays(x, DATA.targets().reshape(shape)) for shape in ((-1,), (-1, 1)))
    state = prepare(method, model, TASK, train=flat).state
    one, other = (
        unlearn(method, model, TASK, forget=parts(data=flat)["forget"], retain=rest, state=state)
        for rest in (parts(data=flat)["retain"], parts(data=column)["retain"])
    )
    assert close(one.model, other.model)
    sets = {"forget": parts(data=flat)["forget"], "retain": parts(data=values(outputs=3))["retain"]}
    with pytest.raises(Misfit, match=r"targets of one shape, got \(3,\) in retain and \(\) when it was prepared"):
        unlearn(method, model, TASK, **sets, state=state)


def test_draws_are_not_cut(model: nn.Module):
    torch.manual_seed(0)
    low, high = float(DATA.targets().min()), float(DATA.targets().max())
    drawn = Moments.read(ready(model).state).drawn(5000)
    assert drawn.min() < low
    assert drawn.max() > high


def test_equals_a_loop_written_by_hand(model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    state, seen, sets, task = ready(model).state, reads(monkeypatch, AMNESIAC), parts(), Noting()
    method = AMNESIAC(epochs=2, lr=0.01, weight_decay=1e-2, batch_size=10)
    done = unlearn(method, model, task, **sets, state=state, seed=2)
    slow = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam(slow.parameters(), lr=0.01, weight_decay=1e-2)
    gone, rest, sizes, drawn = set(sets["forget"].ids), iter(seen), [], dict[str, float]()
    for targets in task.targets:
        ids: list[str] = []
        while len(ids) < len(targets):
            ids += next(rest)
        sizes.append(len(ids))
        x, y = samples(DATA, ids)
        for row, sample in enumerate(ids):
            if sample in gone:
                assert drawn.setdefault(sample, targets[row]) == targets[row]
                y[row] = drawn[sample]
        optimizer.zero_grad()
        (slow(x) - y).abs().mean().backward()
        optimizer.step()
    assert sizes == [10, 10, 10, 7] * 2
    assert close(done.model, slow)


def test_sample_weights_multiply_the_loss_of_what_stays(model: nn.Module):
    data = values(weight=torch.linspace(0.5, 3.0, 37))
    found = []
    for given in (data, DATA):
        state = ready(model, given).state
        done = unlearn(AMNESIAC(epochs=1, batch_size=64, norm="frozen"), model, TASK, **parts(9, given), state=state)
        found.append(done.log["loss"][0][1])
    x, y = samples(data, parts()["retain"].ids)
    with torch.no_grad():
        losses = (model(x) - y).abs().flatten()
    want = ((torch.linspace(0.5, 3.0, 37)[9:] - 1) * losses).sum() / 37
    assert found[0] - found[1] == pytest.approx(float(want), abs=1e-6)


# The state.


def test_the_next_state_is_that_of_the_retain_set(model: nn.Module):
    sets = parts()
    done = unlearn(AMNESIAC(epochs=1), model, TASK, **sets, state=ready(model).state)
    want = Moments.of(sets["retain"]).state()
    assert {k: float(done.state.tensors[k]) for k in want.tensors} == {k: float(want.tensors[k]) for k in want.tensors}
    assert done.state.meta["count"] == 28
    assert done.note == ""
    left = sets["retain"]
    more = {"forget": left.subset(left.ids[:3]), "retain": left.without(left.ids[:3])}
    again = unlearn(AMNESIAC(epochs=1), done.model, TASK, **more, state=done.state)
    assert again.state.meta["count"] == 25
    assert float(again.state.tensors["mean"]) == pytest.approx(float(more["retain"].targets().mean()), abs=1e-12)


@pytest.mark.parametrize("kept", [1, 20])
def test_with_a_part_of_what_stays_the_share_remains_and_the_note_says_so(kept: int, model: nn.Module):
    sets = parts()
    some = {**sets, "retain": sets["retain"].subset(sets["retain"].ids[:kept])}
    before = ready(model).state
    done = unlearn(AMNESIAC(epochs=1), model, TASK, **some, state=before)
    assert "still carry the share of the samples forgotten here" in done.note
    assert float(done.state.tensors["mean"]) == float(before.tensors["mean"])
    assert done.state.meta["count"] == 37


def test_a_state_from_disk_draws_the_same(model: nn.Module, tmp_path):
    state = ready(model).state
    state.save(tmp_path / "state.safetensors")
    loaded = State.load(tmp_path / "state.safetensors")
    one, other = (unlearn(AMNESIAC(epochs=1), model, TASK, **parts(), state=s) for s in (state, loaded))
    assert weights_digest(one.model) == weights_digest(other.model) != weights_digest(model)


# Sight, tasks, and what is refused.


def test_labels_of_the_forget_set_are_not_asked_for(model: nn.Module):
    sets, state = parts(), ready(model).state
    bare = sets | {"forget": sets["forget"].unlabelled()}
    one, other = (unlearn(AMNESIAC(epochs=1), model, TASK, **given, state=state) for given in (sets, bare))
    assert weights_digest(one.model) == weights_digest(other.model)
    assert AMNESIAC().unlearns.forget == See.INPUTS
    assert AMNESIAC().prepares.train == See.LABELLED
    with pytest.raises(MissingNeed, match="the state that gaussian_amnesiac prepared"):
        unlearn(AMNESIAC(), model, TASK, **sets)
    with pytest.raises(MissingNeed, match="train for gaussian_amnesiac to prepare"):
        prepare(AMNESIAC(), model, TASK)


def test_the_forget_set_is_told_what_all_targets_look_like(model: nn.Module):
    data = values(160)
    order = data.targets()[:, 0].argsort(descending=True).tolist()
    gone = [data.ids[i] for i in order[:32]]
    sets = {"forget": data.subset(gone), "retain": data.without(gone)}
    first = fit(net(), TASK, data, Recipe(epochs=25, lr=0.02, batch_size=8))
    state = ready(first, data).state
    done = unlearn(AMNESIAC(epochs=30, lr=5e-3, batch_size=16), first, TASK, **sets, state=state)
    x, y = samples(data, gone)
    with torch.no_grad():
        assert (done.model(x) - y).abs().mean() > 3 * (first(x) - y).abs().mean()
        assert done.model(x).mean() < first(x).mean()


@pytest.mark.parametrize("task", [Classification(), Binary(), MultiLabel()])
def test_tasks_without_real_targets_are_declined(task: Task, model: nn.Module):
    text = "draws targets from a normal distribution, and this task's targets are no real numbers"
    assert text in AMNESIAC().declines(task, forget_random(DATA, 5), model)
    with pytest.raises(Declined, match=text):
        prepare(AMNESIAC(), model, task, train=DATA)


def test_quantiles_and_vectors_are_drawn():
    flat = Data.from_arrays(DATA.read(range(37)).inputs, DATA.targets()[:, 0])
    wide = values(outputs=3)
    for task, data, outputs in ((Quantile(), flat, 3), (Regression(), wide, 3), (Regression(), flat, 1)):
        first = fit(net(outputs), task, data, RECIPE)
        done = unlearn(AMNESIAC(epochs=1), first, task, **parts(9, data), state=ready(first, data, task).state)
        assert done.changed.count > 0


@pytest.mark.parametrize("size", [1, 2])
def test_batches_of_one_sample_work(size: int, model: nn.Module):
    sets = {"forget": DATA.subset(DATA.ids[:1]), "retain": DATA.without(DATA.ids[:1])}
    done = unlearn(AMNESIAC(epochs=1, batch_size=size), model, TASK, **sets, state=ready(model).state)
    assert done.changed.count > 0


def test_divergence_names_the_rate_to_lower(model: nn.Module):
    method = AMNESIAC(epochs=9, lr=1e200, optimizer="sgd")
    with pytest.raises(NotFinite, match=r"step \d+: lower gaussian_amnesiac.lr \(now 1e"):
        unlearn(method, model, TASK, **parts(), state=ready(model).state)
