"""Bad Teacher: an untrained network teaches what is to be forgotten, the original what stays."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, blobs, deep
from expunge.data import Batch, Data
from expunge.errors import Declined, MissingNeed, NotFinite, UserError
from expunge.method import See
from expunge.methods import load
from expunge.scenario import forget_random
from expunge.task import Classification, Regression
from expunge.tensors import weights_digest
from expunge.train import Recipe, fit
from expunge.unlearn import unlearn
from replays import close, reads, rows, samples

TASK = Classification()
BAD = load("bad_teacher")
DATA = blobs()
TEACHER, UNTRAINED = [[3, 1, 0.2], [0.1, 2, -1]], [[0.1, -0.2, 0.05], [0, 0.3, -0.1]]
STUDENT = [[2.5, 0.8, 0], [0, 1.5, -0.5]]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return fit(deep(), TASK, DATA, Recipe(epochs=10, lr=0.05, batch_size=8))


def parts(count: int) -> dict[str, Data]:
    return {"forget": DATA.subset(DATA.ids[:count]), "retain": DATA.without(DATA.ids[:count])}


def float64(values: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL(p ‖ q) of each sample by its definition."""
    p, q = teacher.detach().softmax(1), student.softmax(1)
    return (p * (p / q).log()).sum(1)


@dataclass(frozen=True)
class Watching(Classification):
    """A task that keeps what was run: module, whether it was in training mode, whether with gradients."""

    runs: list[tuple[nn.Module, bool, bool]] = field(default_factory=list, compare=False)

    def forward(self, model: nn.Module, batch: Batch, taps: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        self.runs.append((model, model.training, torch.is_grad_enabled()))
        return super().forward(model, batch, taps)


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({}, 0.12318051),
        ({"compat": "official"}, 0.04106017),
        ({"temperature": 4}, 0.00788205),
        ({"temperature": 4, "compat": "official"}, 0.00262735),
    ],
)
def test_the_loss_of_a_batch_is_that_of_the_formula(settings: dict[str, object], want: float):
    teacher = float64([TEACHER[0], UNTRAINED[1]])
    assert float(BAD(**settings).objective.distance(teacher, float64(STUDENT))) == pytest.approx(want, abs=1e-8)


def test_each_sample_counts_alike():
    teacher, student = float64([TEACHER[0], UNTRAINED[1]]), float64(STUDENT)
    found = [float(BAD().objective.distance(teacher[i : i + 1], student[i : i + 1])) for i in range(2)]
    assert found == pytest.approx([0.00659059, 0.23977044], abs=1e-8)


def test_the_untrained_network_teaches_the_forget_set_alone():
    data = Data.from_arrays(torch.eye(2, dtype=torch.float64), [0, 1])
    for gone in (0, 1):
        ids = [data.ids[gone]]
        sets = {"forget": data.subset(ids), "retain": data.without(ids)}
        done = unlearn(BAD(), rows(*TEACHER), TASK, **sets, new_model=lambda: rows(*UNTRAINED))
        want = float(kl(float64(UNTRAINED), float64(TEACHER))[gone]) / 2  # the original agrees with itself on the other
        assert done.log["loss"] == [[1, pytest.approx(want, abs=1e-12)]]


def test_equals_a_loop_written_by_hand(model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    seen, sets = reads(monkeypatch, BAD), parts(11)
    method = BAD(epochs=2, lr=0.01, weight_decay=1e-2, batch_size=10, retain_share=0.5)
    done = unlearn(method, model, TASK, **sets, new_model=deep, seed=2)
    assert done.log["retained"] == 24
    slow, good, bad = copy.deepcopy(model).train(), copy.deepcopy(model).eval(), deep().eval()
    optimizer = torch.optim.Adam(slow.parameters(), lr=0.01, weight_decay=1e-2)
    gone, parts_read, sizes = set(sets["forget"].ids), iter(seen), []
    while (ids := next(parts_read, None)) is not None:
        while len(ids) < (5 if sum(sizes) in (30, 65) else 10):
            ids = [*ids, *next(parts_read)]
        sizes.append(len(ids))
        x, _ = samples(DATA, ids)
        teacher = torch.stack([(bad if i in gone else good)(row[None])[0] for i, row in zip(ids, x, strict=True)])
        optimizer.zero_grad()
        kl(teacher, slow(x)).mean().backward()
        optimizer.step()
    assert sizes == [10, 10, 10, 5] * 2
    assert close(done.model, slow)
    assert done.log["steps"] == 8


def test_official_is_a_smaller_step_by_the_number_of_classes(model: nn.Module):
    plain = {"optimizer": "sgd", "momentum": 0.0, "epochs": 2, "batch_size": 10}
    one = unlearn(BAD(lr=0.02, **plain), model, TASK, **parts(11), new_model=deep)
    other = unlearn(BAD(lr=0.06, compat="official", **plain), model, TASK, **parts(11), new_model=deep)
    assert close(one.model, other.model)
    assert not close(one.model, model)


def test_the_share_is_drawn_once_and_the_rest_is_never_read(model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    seen, sets, drawn = reads(monkeypatch, BAD), parts(11), {}
    for seed in (0, 1):
        seen.clear()
        done = unlearn(BAD(epochs=3), model, TASK, **sets, new_model=deep, seed=seed)
        read = [i for ids in seen for i in ids]
        drawn[seed] = set(read) - set(sets["forget"].ids)
        assert {i: read.count(i) for i in read} == dict.fromkeys([*sets["forget"].ids, *drawn[seed]], 3)
        assert len(drawn[seed]) == done.log["retained"] == 14  # of 49, rounded down
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(("share", "retain", "want"), [(0.01, 49, 1), (1.0, 49, 49), (0.3, 1, 1)])
def test_a_share_holds_at_least_a_sample(share: float, retain: int, want: int, model: nn.Module):
    sets = {"forget": DATA.subset(DATA.ids[:11]), "retain": DATA.subset(DATA.ids[-retain:])}
    done = unlearn(BAD(retain_share=share), model, TASK, **sets, new_model=deep)
    assert done.log["retained"] == want


def test_teachers_stay_as_they_were(model: nn.Module):
    task = Watching()
    done = unlearn(BAD(epochs=2, lr=0.01), model, task, **parts(11), new_model=deep)
    unlike = {id(m): m for m, training, _ in task.runs if not training}
    assert sorted(map(weights_digest, unlike.values())) == sorted([weights_digest(model), weights_digest(deep())])
    assert all(p.grad is None and not p.requires_grad for m in unlike.values() for p in m.parameters())
    assert {grad for m, _, grad in task.runs if id(m) in unlike} == {False}
    assert {grad for m, _, grad in task.runs if id(m) not in unlike} == {True}
    assert not any(torch.equal(a, b) for a, b in zip(model.buffers(), done.model.buffers(), strict=True))


def test_labels_are_not_asked_for(model: nn.Module):
    sets = parts(11)
    bare = {name: data.unlabelled() for name, data in sets.items()}
    one, other = (unlearn(BAD(), model, TASK, **given, new_model=deep) for given in (sets, bare))
    assert weights_digest(one.model) == weights_digest(other.model) != weights_digest(model)
    assert BAD().unlearns.forget == BAD().unlearns.retain == See.INPUTS
    with pytest.raises(MissingNeed, match="holdout for bad_teacher"):
        unlearn(BAD(keep_best=True), model, TASK, **sets, new_model=deep)


def test_it_nears_the_untrained_network_and_keeps_the_rest(model: nn.Module):
    forget = DATA.subset(DATA.ids[::3])  # a class
    sets = {"forget": forget, "retain": DATA.without(forget.ids)}
    done = unlearn(BAD(epochs=30, lr=0.01, retain_share=0.5, batch_size=8), model, TASK, **sets, new_model=deep)
    x, y = samples(DATA, sets["retain"].ids)
    gone, bad = samples(DATA, forget.ids)[0], deep().eval()
    with torch.no_grad():
        assert (done.model(x).argmax(1) == y).double().mean() > 0.9
        assert kl(bad(gone), done.model(gone)).mean() < 0.1 * kl(bad(gone), model(gone)).mean()


@pytest.mark.parametrize("name", ["output_object", "output_mapping", "dict_inputs", "branch"])
def test_any_input_and_output_of_a_classifier(name: str):
    model, data = CASES[name].make()
    sets = {"forget": data.subset(data.ids[:3]), "retain": data.without(data.ids[:3])}
    torch.manual_seed(8)
    untrained = CASES[name].build().double()
    done = unlearn(BAD(), model, TASK, **sets, new_model=lambda: untrained)
    assert done.changed.count > 0


def test_without_classes_or_retain_data_it_is_refused(model: nn.Module):
    case = forget_random(DATA, 5, seed=0)
    assert "no classes" in BAD().declines(Regression(), case, model)
    with pytest.raises(Declined, match="distils probabilities of classes"):
        unlearn(BAD(), model, Regression(), **parts(5), new_model=deep)
    with pytest.raises(MissingNeed, match="retain for bad_teacher to unlearn"):
        unlearn(BAD(), model, TASK, forget=parts(5)["forget"], new_model=deep)


def test_divergence_names_the_step_and_the_rate(model: nn.Module):
    method = BAD(epochs=9, lr=1e200, optimizer="sgd")
    with pytest.raises(NotFinite, match=r"step \d+: lower bad_teacher.lr \(now 1e"):
        unlearn(method, model, TASK, **parts(9), new_model=deep)


@pytest.mark.parametrize(
    ("field", "value"),
    [("retain_share", 0.0), ("retain_share", 1.1), ("temperature", 0), ("temperature", math.inf), ("compat", "both")],
)
def test_bad_settings_are_refused(field: str, value: object):
    with pytest.raises(UserError, match=f"bad_teacher.{field}"):
        BAD(**{field: value})
