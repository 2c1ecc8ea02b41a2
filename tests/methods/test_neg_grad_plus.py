"""NegGrad+: down the retain loss and up the forget loss in one step."""

from __future__ import annotations

import copy
import math
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cases import blobs, deep
from expunge.data import Data
from expunge.errors import Declined, MissingNeed, NotFinite, UserError
from expunge.methods import load
from expunge.methods.neg_grad_plus import beside_size
from expunge.task import Classification, Regression
from expunge.train import Recipe, batch_orders, fit
from expunge.unlearn import unlearn
from replays import close, reads, rows, samples, sgd

TASK = Classification()
NEGGRAD = load("neg_grad_plus")
DATA = blobs()


def parts(count: int) -> dict[str, Data]:
    return {"forget": DATA.subset(DATA.ids[:count]), "retain": DATA.without(DATA.ids[:count])}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return fit(deep(), TASK, DATA, Recipe(epochs=10, lr=0.05, batch_size=8))


@pytest.mark.parametrize(("alpha", "want"), [(0.5, -0.66211426), (0.95, 0.11880937), (0.9999, 0.20540512)])
def test_loss_is_that_of_the_formula(alpha: float, want: float):
    model = rows((2, 0.5, -1), (0, 1, 3), (1, 2, 0), (0.5, 0.5, 3))
    data = Data.from_arrays(torch.eye(4, dtype=torch.float64), [0, 2, 1, 0])
    forget, retain = data.subset(data.ids[2:]), data.subset(data.ids[:2])
    done = unlearn(NEGGRAD(alpha=alpha, epochs=1), model, TASK, forget=forget, retain=retain)
    assert done.log["loss"] == [[1, pytest.approx(want, abs=1e-8)]]


@pytest.mark.parametrize("norm", ["frozen", "moving"])
def test_equals_a_loop_written_by_hand(norm: str, model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    seen = reads(monkeypatch, NEGGRAD)
    method = NEGGRAD(alpha=0.7, epochs=2, lr=0.02, weight_decay=1e-2, batch_size=20, until=None, norm=norm)
    done = unlearn(method, model, TASK, **parts(11), seed=2)
    assert sorted(map(len, seen)) == [9] * 2 + [11] * 6 + [20] * 4
    forget = [ids for ids in seen if len(ids) == 11]
    retain = [ids for ids in seen if len(ids) != 11]
    assert len({tuple(ids) for ids in forget}) == 6
    slow = copy.deepcopy(model).train(norm == "moving")
    pairs = [(*samples(DATA, r), *samples(DATA, f)) for r, f in zip(retain, forget, strict=True)]
    losses = [
        lambda net, x=x, y=y, u=u, v=v: 0.7 * F.cross_entropy(net(x), y) - 0.3 * F.cross_entropy(net(u), v)
        for x, y, u, v in pairs
    ]
    sgd(slow, losses, lr=0.02, momentum=0.9, decay=1e-2)
    assert close(done.model, slow)
    assert done.log["steps"] == 6


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 43, 59])
def test_every_epoch_trains_on_every_sample(count: int, model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    seen = reads(monkeypatch, NEGGRAD)
    method, sets = NEGGRAD(epochs=1, batch_size=8, until=None), parts(count)
    unlearn(method, model, TASK, **sets)
    read = [i for ids in seen for i in ids]
    assert set(read) == set(DATA.ids)
    assert len(read) <= sum(n * len(sets[name]) for name, n in method.passes("unlearn", None).items())


def test_the_forget_batches_of_an_epoch_are_no_more_than_its_steps_and_no_larger_than_they_must_be():
    for retain, forget in product((1, 2, 8, 9, 16, 17, 18), range(1, 40)):
        steps = len(list(batch_orders(8, range(retain))))
        size = beside_size(retain, forget, 8)
        assert size <= max(8, -(-forget // steps))
        assert len(list(batch_orders(size, range(forget)))) <= steps


def test_a_forget_set_of_one_sample_freezes_batchnorm(model: nn.Module):
    done = {count: unlearn(NEGGRAD(epochs=1), model, TASK, **parts(count)).model for count in (1, 2)}
    still = {
        c: all(torch.equal(a, b) for a, b in zip(model.buffers(), m.buffers(), strict=True)) for c, m in done.items()
    }
    assert still == {1: True, 2: False}


def test_it_raises_the_forget_loss_and_keeps_the_rest_until_chance(model: nn.Module):
    sets = {"forget": DATA.subset(DATA.ids[::3]), "retain": DATA.without(DATA.ids[::3])}
    done = unlearn(NEGGRAD(alpha=0.8, epochs=40, lr=0.02), model, TASK, **sets)
    course = [value for _, value in done.log["forget_loss"]]
    assert course[-1] >= math.log(3) > course[-2]
    assert f"stopped after epoch {len(course)} of 40" in done.note
    batch = sets["retain"].read(range(40))
    with torch.no_grad():
        assert (done.model(batch.inputs).argmax(1) == batch.target).double().mean() > 0.9


def test_without_retain_data_it_names_what_would_do(model: nn.Module):
    with pytest.raises(MissingNeed, match=r"retain for neg_grad_plus to unlearn.*gradient_ascent"):
        unlearn(NEGGRAD(), model, TASK, forget=parts(9)["forget"])


def test_regression_needs_a_ceiling_in_numbers():
    torch.manual_seed(0)
    model = nn.Linear(4, 1, dtype=torch.float64)
    data = Data.from_arrays(DATA.read(range(30)).inputs, torch.arange(30.0, dtype=torch.float64) / 30)
    sets = {"forget": data.subset(data.ids[:5]), "retain": data.without(data.ids[:5])}
    with pytest.raises(Declined, match="until"):
        unlearn(NEGGRAD(), model, Regression(), **sets)
    done = unlearn(NEGGRAD(alpha=0.5, lr=0.02, epochs=40, until=4.0), model, Regression(), **sets)
    assert done.log["forget_loss"][-1][1] >= 4


def test_divergence_names_the_step_and_the_rate(model: nn.Module):
    with pytest.raises(NotFinite, match=r"step \d+: lower neg_grad_plus.lr \(now 1e"):
        unlearn(NEGGRAD(epochs=9, lr=1e160), model, TASK, **parts(9))


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5, math.nan])
def test_alpha_lies_between_the_two_methods_that_it_mixes(alpha: float):
    with pytest.raises(UserError, match="neg_grad_plus.alpha above 0 and below 1.*finetune.*gradient_ascent"):
        NEGGRAD(alpha=alpha)


def test_steps_that_move_nothing_are_told() -> None:
    """One logit, whose softmax is 1 whatever it is: no loss has a gradient."""
    model, data = nn.Linear(3, 1), Data.from_arrays(torch.randn(8, 3), torch.zeros(8, dtype=torch.long))
    sets = {"forget": data.subset(data.ids[:2]), "retain": data.without(data.ids[:2])}
    done = unlearn(load("neg_grad_plus")(epochs=1), model, Classification(), **sets)
    assert done.changed.count == 0
    assert "None of the 1 steps moved a weight: the loss has no gradient" in done.note
