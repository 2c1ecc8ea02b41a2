"""Unlearning by relabelling: one wrong label a forget sample, mixed with the retain data."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cases import blobs, deep
from expunge.data import Data
from expunge.errors import Declined, MissingNeed, NotFinite
from expunge.methods import load
from expunge.scenario import Scenario, forget_class, forget_subclass
from expunge.task import Classification, Regression
from expunge.train import Recipe, fit
from expunge.unlearn import unlearn
from replays import Noting, close, reads, samples

TASK = Classification()
AMNESIAC = load("amnesiac")
FINE = [i % 6 for i in range(60)]
DATA = Data.from_arrays(blobs().read(range(60)).inputs, blobs().targets(), columns={"fine": FINE})
TRUE = dict(zip(DATA.ids, DATA.targets().tolist(), strict=True))


def parts(count: int) -> dict[str, Data]:
    return {"forget": DATA.subset(DATA.ids[:count]), "retain": DATA.without(DATA.ids[:count])}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return fit(deep(), TASK, DATA, Recipe(epochs=10, lr=0.05, batch_size=8))


def adam(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]], lr: float) -> nn.Module:
    """Take a step of Adam down the cross-entropy of each batch: θ ← θ − η·m̂/(√v̂ + 1e-8), β = 0.9, 0.999."""
    first = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    second = copy.deepcopy(first)
    for step, (x, y) in enumerate(batches, 1):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for n, p in model.named_parameters():
                first[n] = 0.9 * first[n] + 0.1 * p.grad
                second[n] = 0.999 * second[n] + 0.001 * p.grad**2
                p -= lr * (first[n] / (1 - 0.9**step)) / ((second[n] / (1 - 0.999**step)).sqrt() + 1e-8)
    model.zero_grad()
    return model


def test_defaults_are_those_of_the_published_baseline():
    method = AMNESIAC()
    assert (method.optimizer, method.lr, method.epochs, method.weight_decay) == ("adam", 1e-4, 3, 0.0)
    assert method.passes("unlearn", None) == {"forget": 3.0, "retain": 3.0}


def test_equals_a_loop_written_by_hand(model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    seen, task = reads(monkeypatch, AMNESIAC), Noting()
    sets = parts(13)
    done = unlearn(AMNESIAC(lr=1e-2, batch_size=9), model, task, **sets, seed=2)
    ids = [i for some in seen for i in some]
    batches, at = [], 0
    for labels in task.targets:
        x, _ = samples(DATA, ids[at : at + len(labels)])
        batches.append((x, torch.tensor(labels)))
        at += len(labels)
    assert [len(labels) for labels in task.targets] == ([9] * 6 + [6]) * 3
    assert close(done.model, adam(copy.deepcopy(model).train(), batches, 1e-2), tolerance=1e-9)

    labels = [t for ts in task.targets for t in ts]
    epochs = [dict(zip(ids[e : e + 60], labels[e : e + 60], strict=True)) for e in (0, 60, 120)]
    assert epochs[0] == epochs[1] == epochs[2]
    assert len(epochs[0]) == 60
    assert all((epochs[0][i] == TRUE[i]) is (i in sets["retain"].ids) for i in DATA.ids)
    mixed = [{i in sets["forget"].ids for i in ids[at : at + 9]} for at in range(0, 54, 9)]
    assert mixed.count({True, False}) > 3


@pytest.mark.parametrize(
    ("case", "own"),
    [(forget_class(DATA, 1), 1), (forget_subclass(DATA, 5, column="fine"), 2)],
    ids=["class", "subclass"],
)
def test_labels_are_the_other_classes_of_the_task(
    case: Scenario, own: int, model: nn.Module, monkeypatch: pytest.MonkeyPatch
):
    seen, task = reads(monkeypatch, AMNESIAC), Noting()
    sets = {"forget": DATA.subset(case.forget), "retain": DATA.without(case.forget)}
    unlearn(AMNESIAC(epochs=1), model, task, **sets, scenario=case)
    ids, labels = [i for some in seen for i in some], [t for ts in task.targets for t in ts]
    given = {label for i, label in zip(ids, labels, strict=True) if i in set(case.forget)}
    assert {TRUE[i] for i in case.forget} == {own}
    assert given == {0, 1, 2} - {own}


def test_another_seed_draws_other_labels(model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    found = []
    for seed in (0, 0, 1):
        with monkeypatch.context() as patch:
            seen, task = reads(patch, AMNESIAC), Noting()
            unlearn(AMNESIAC(epochs=1), model, task, **parts(20), seed=seed)
        labels = zip([i for some in seen for i in some], [t for ts in task.targets for t in ts], strict=True)
        found.append(dict(labels))
    assert found[0] == found[1] != found[2]


def test_the_forget_class_is_gone_and_the_others_stay(model: nn.Module):
    case = forget_class(DATA, 1)
    sets = {"forget": DATA.subset(case.forget), "retain": DATA.without(case.forget)}
    done = unlearn(AMNESIAC(lr=0.02, epochs=8, batch_size=8), model, TASK, **sets)
    right = []
    for data in sets.values():
        batch = data.read(range(len(data)))
        right.append(float((done.model(batch.inputs).argmax(1) == batch.target).double().mean()))
    assert right[0] == 0
    assert right[1] > 0.9


def test_it_declines_what_has_no_classes_and_asks_for_labels_and_retain_data(model: nn.Module):
    with pytest.raises(Declined, match="amnesiac draws wrong classes, and this task has no classes"):
        unlearn(AMNESIAC(), model, Regression(), **parts(5))
    with pytest.raises(MissingNeed, match="retain for amnesiac"):
        unlearn(AMNESIAC(), model, TASK, forget=parts(5)["forget"])
    bare = Data.from_arrays(DATA.read(range(60)).inputs)
    with pytest.raises(MissingNeed, match="forget data with labels for amnesiac"):
        unlearn(AMNESIAC(), model, TASK, forget=bare.subset(bare.ids[:5]), retain=parts(5)["retain"])


def test_divergence_names_the_step_and_the_rate(model: nn.Module):
    with pytest.raises(NotFinite, match=r"a finite loss of amnesiac.* step \d+: lower amnesiac.lr \(now 1e"):
        unlearn(AMNESIAC(lr=1e200), model, TASK, **parts(5))
