"""Random labels: training on with wrong labels on the forget set, redrawn every epoch; and the draw itself."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from cases import blobs, deep
from expunge.data import Data
from expunge.errors import Declined, MissingNeed, NotFinite, UserError
from expunge.methods import load
from expunge.objectives._labels import drawn_labels, uniform
from expunge.task import Classification, Regression
from expunge.train import Recipe, fit
from expunge.unlearn import unlearn
from replays import Noting, close, reads, samples, sgd

TASK = Classification()
RANDOM = load("random_label")
DATA = blobs()
TRUE = dict(zip(DATA.ids, DATA.targets().tolist(), strict=True))


def parts(count: int) -> dict[str, Data]:
    return {"forget": DATA.subset(DATA.ids[:count]), "retain": DATA.without(DATA.ids[:count])}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return fit(deep(), TASK, DATA, Recipe(epochs=10, lr=0.05, batch_size=8))


def trained_on(seen: list[list[str]], task: Noting) -> list[dict[str, int]]:
    """Return by epoch the label that each sample was trained with."""
    pairs = zip([i for ids in seen for i in ids], [t for ts in task.targets for t in ts], strict=True)
    epochs: list[dict[str, int]] = []
    for n, (sample, label) in enumerate(pairs):
        if n % len(DATA) == 0:
            epochs.append({})
        epochs[-1][sample] = label
    assert [len(e) for e in epochs] == [len(DATA)] * len(epochs)
    return epochs


@given(st.integers(2, 9), st.integers(0, 8), st.floats(0, 1, exclude_max=True))
def test_a_wrong_label_is_a_class_and_never_the_true_one(classes: int, label: int, u: float):
    label %= classes
    found = drawn_labels(torch.tensor([u], dtype=torch.float64), torch.tensor([label]), classes)
    assert found.dtype == torch.int64
    assert found.item() in set(range(classes)) - {label}


@pytest.mark.parametrize("exclude", [True, False])
@pytest.mark.parametrize("true", [0, 3, 6])
def test_labels_are_uniform(exclude: bool, true: int):
    classes, n = 7, 84_000
    even = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    found = drawn_labels(even, torch.full((n,), true), classes, exclude_true=exclude)
    want = [n // (classes - exclude)] * classes
    if exclude:
        want[true] = 0
    assert torch.bincount(found, minlength=classes).tolist() == want


def test_draws_follow_the_seed_and_lie_below_one():
    torch.manual_seed(3)
    first = uniform(10_000)
    torch.manual_seed(3)
    assert torch.equal(first, uniform(10_000))
    assert 0 <= first.min() < 1e-3
    assert 1 - 1e-3 < first.max() < 1
    assert drawn_labels(torch.tensor([1 - 2**-53], dtype=torch.float64), torch.tensor([4]), 5).item() == 3


def test_a_single_class_has_no_wrong_label():
    with pytest.raises(UserError, match="two classes or more to draw a wrong label from, got 1"):
        drawn_labels(torch.zeros(1), torch.zeros(1, dtype=torch.int64), 1)


@pytest.mark.parametrize("order", ["forget_first", "mixed"])
def test_equals_a_loop_written_by_hand(order: str, model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    seen, task = reads(monkeypatch, RANDOM), Noting()
    method = RANDOM(epochs=2, lr=0.02, momentum=0.5, weight_decay=1e-2, batch_size=9, order=order)
    done = unlearn(method, model, task, **parts(13), seed=2)
    ids = [i for some in seen for i in some]
    slow = copy.deepcopy(model).train()
    losses = []
    for labels in task.targets:
        (x, _), y = samples(DATA, ids[: len(labels)]), torch.tensor(labels)
        ids = ids[len(labels) :]
        losses.append(lambda net, x=x, y=y: F.cross_entropy(net(x), y))
    sgd(slow, losses, lr=0.02, momentum=0.5, decay=1e-2)
    assert close(done.model, slow)
    sizes = [9, 4, 9, 9, 9, 9, 9, 2] if order == "forget_first" else [9] * 6 + [6]
    assert [len(labels) for labels in task.targets] == sizes * 2
    assert done.log["steps"] == 2 * len(sizes)
    names = {"forget_first": {"forget_loss", "retain_loss"}, "mixed": {"loss"}}
    assert names[order] == {k for k in done.log if k.endswith("loss")}


@pytest.mark.parametrize("order", ["forget_first", "mixed"])
@pytest.mark.parametrize("redraw", [True, False])
def test_forget_samples_never_have_their_label_and_the_others_always(
    redraw: bool, order: str, model: nn.Module, monkeypatch: pytest.MonkeyPatch
):
    seen, task = reads(monkeypatch, RANDOM), Noting()
    sets = parts(20)
    unlearn(RANDOM(epochs=4, batch_size=8, redraw=redraw, order=order), model, task, **sets)
    epochs = trained_on(seen, task)
    forget = sets["forget"].ids
    assert all(e[i] != TRUE[i] for e in epochs for i in forget)
    assert all({e[i] for e in epochs for i in forget if TRUE[i] == c} == {0, 1, 2} - {c} for c in range(3))
    assert all(e[i] == TRUE[i] for e in epochs for i in sets["retain"].ids)
    drawn = [[e[i] for i in forget] for e in epochs]
    assert all((a != b) is redraw for a, b in pairwise(drawn))


@pytest.mark.parametrize("order", ["forget_first", "mixed"])
def test_the_order_of_an_epoch(order: str, model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    seen = reads(monkeypatch, RANDOM)
    sets = parts(20)
    unlearn(RANDOM(epochs=1, batch_size=8, order=order), model, TASK, **sets)
    forget = set(sets["forget"].ids)
    turns = [i in forget for ids in seen for i in ids]
    assert (turns == sorted(turns, reverse=True)) is (order == "forget_first")
    assert turns.count(True) == 20


def test_the_published_code_leaves_one_label_in_k_true(model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    seen, task = reads(monkeypatch, RANDOM), Noting()
    sets = parts(30)
    unlearn(RANDOM(epochs=20, compat="official"), model, task, **sets)
    kept = [e[i] == TRUE[i] for e in trained_on(seen, task) for i in sets["forget"].ids]
    assert sum(kept) / len(kept) == pytest.approx(1 / 3, abs=0.06)


def test_two_classes_are_swapped(monkeypatch: pytest.MonkeyPatch):
    data = blobs(20, classes=2)
    seen, task = reads(monkeypatch, RANDOM), Noting()
    sets = {"forget": data.subset(data.ids[:5]), "retain": data.without(data.ids[:5])}
    unlearn(RANDOM(epochs=1), deep(classes=2), task, **sets)
    places = [data.ids.index(i) for i in seen[0]]
    assert task.targets[0] == [1 - place % 2 for place in places]


class Keyed(nn.Module):
    """Takes a dict and returns an output with logits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3, dtype=torch.float64)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"logits": self.inner(x * scale)}


def test_dict_inputs_sample_weights_and_outputs_with_logits_will_do():
    x = DATA.read(range(60)).inputs
    weight = torch.ones(60)
    weight[:5] = 0
    data = Data.from_arrays({"x": x, "scale": torch.ones(60, 1, dtype=torch.float64)}, DATA.targets(), weight=weight)
    sets = {"forget": data.subset(data.ids[:5]), "retain": data.without(data.ids[:5])}
    torch.manual_seed(0)
    model = Keyed()
    done = unlearn(RANDOM(epochs=1, weight_decay=0.0), model, TASK, **sets)
    assert done.log["forget_loss"] == [[1, 0.0]]  # their weight is 0
    assert done.log["retain_loss"][0][1] > 0
    assert not torch.equal(done.model.inner.weight, model.inner.weight)


def test_forgetting_raises_the_forget_loss_more_than_training_on_does(model: nn.Module):
    sets = parts(12)
    batch = sets["forget"].read(range(12))
    losses = []
    for name in ("random_label", "finetune"):
        done = unlearn(load(name)(epochs=10, lr=0.02, batch_size=8), model, TASK, **sets)
        losses.append(F.cross_entropy(done.model(batch.inputs), batch.target).item())
    assert losses[0] > 2 * losses[1]


def test_it_declines_what_has_no_classes_and_asks_for_retain_data(model: nn.Module):
    with pytest.raises(Declined, match="random_label draws wrong classes, and this task has no classes"):
        unlearn(RANDOM(), model, Regression(), **parts(5))
    with pytest.raises(MissingNeed, match="retain for random_label"):
        unlearn(RANDOM(), model, TASK, forget=parts(5)["forget"])


def test_labels_that_are_no_classes_are_refused(model: nn.Module):
    batch = DATA.read(range(60))
    target = batch.target.clone()
    target[2] = 7
    data = Data.from_arrays(batch.inputs, target)
    with pytest.raises(UserError, match="classes 0 to 2, got class 7"):
        unlearn(RANDOM(), model, TASK, forget=data.subset(data.ids[:5]), retain=data.without(data.ids[:5]))


def test_divergence_names_the_step_and_the_rate(model: nn.Module):
    with pytest.raises(NotFinite, match=r"a finite loss of random_label.* step \d+: lower random_label.lr \(now 1e"):
        unlearn(RANDOM(lr=1e160), model, TASK, **parts(5))


@pytest.mark.parametrize(("field", "value"), [("order", "last"), ("compat", "yes"), ("epochs", 0)])
def test_bad_settings_are_refused(field: str, value: object):
    with pytest.raises(UserError, match=f"random_label.{field}"):
        RANDOM(**{field: value})
