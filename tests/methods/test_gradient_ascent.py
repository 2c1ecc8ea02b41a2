"""Gradient ascent: up the forget loss alone, to a ceiling."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cases import blobs, deep
from expunge.data import Data
from expunge.errors import Declined, NotFinite, UserError
from expunge.methods import build, load
from expunge.task import Classification, Regression
from expunge.train import Recipe, fit
from expunge.unlearn import unlearn
from replays import close, reads, rows, samples, sgd

TASK = Classification()
ASCENT = load("gradient_ascent")
DATA = blobs()
FORGET = DATA.subset(DATA.ids[:11])
PLAIN = {"momentum": 0.0, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return fit(deep(), TASK, DATA, Recipe(epochs=10, lr=0.05, batch_size=8))


def test_loss_and_logit_gradient_are_those_of_the_formula():
    model = rows((1, 2, 0), (0.5, 0.5, 3))
    data = Data.from_arrays(torch.eye(2, dtype=torch.float64), [1, 0])
    done = unlearn(ASCENT(epochs=1, lr=1.0, until=None, **PLAIN), model, TASK, forget=data)
    assert done.log["loss"] == [[1, pytest.approx(-1.52980717, abs=1e-8)]]
    want = [[-0.12236424, 0.16737952, -0.04501529], [0.46474527, -0.03525473, -0.42949054]]
    gradient = (model.weight - done.model.weight).T
    assert torch.allclose(gradient, torch.tensor(want, dtype=torch.float64), atol=1e-8)


@pytest.mark.parametrize("norm", ["frozen", "moving"])
def test_equals_a_loop_written_by_hand(norm: str, model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    seen = reads(monkeypatch, ASCENT)
    method = ASCENT(epochs=3, lr=0.02, momentum=0.5, weight_decay=1e-2, batch_size=4, until=None, norm=norm)
    done = unlearn(method, model, TASK, forget=FORGET, seed=2)
    assert [len(ids) for ids in seen] == [4, 4, 3] * 3
    assert len({tuple(ids) for ids in seen}) == 9
    slow = copy.deepcopy(model).train(norm == "moving")
    batches = [samples(DATA, ids) for ids in seen]
    losses = [lambda net, x=x, y=y: -F.cross_entropy(net(x), y) for x, y in batches]
    sgd(slow, losses, lr=0.02, momentum=0.5, decay=1e-2)
    assert close(done.model, slow)
    assert done.log["steps"] == 9
    moved = [not torch.equal(a, b) for a, b in zip(model.buffers(), done.model.buffers(), strict=True)]
    assert any(moved) is all(moved) is (norm == "moving")


def test_it_stops_once_the_forget_loss_is_that_of_chance(model: nn.Module):
    done = unlearn(ASCENT(epochs=50, lr=0.05), model, TASK, forget=FORGET)
    course = [value for _, value in done.log["forget_loss"]]
    assert 1 < len(course) < 50
    assert course[-1] >= math.log(3) > course[-2]
    assert done.log["epochs"] == done.log["reached_epoch"] == len(course)
    assert f"stopped after epoch {len(course)} of 50" in done.note
    assert "reached 1.099, that of chance" in done.note
    with torch.no_grad():
        batch = FORGET.read(range(11))
        assert F.cross_entropy(done.model(batch.inputs), batch.target).item() == pytest.approx(course[-1], rel=1e-12)
    lower = unlearn(ASCENT(epochs=50, lr=0.05, until=0.5), model, TASK, forget=FORGET)
    assert lower.log["epochs"] < len(course)
    assert "reached 0.5, the one asked for" in lower.note


def test_without_a_ceiling_it_goes_on_and_measures_nothing(model: nn.Module):
    done = unlearn(ASCENT(epochs=30, lr=0.1, until=None), model, TASK, forget=FORGET)
    assert done.log["epochs"] == 30
    assert done.log["loss"][-1][1] < -math.log(3)
    assert "forget_loss" not in done.log
    assert done.note == ""
    assert ASCENT(epochs=30, until=None).passes("unlearn", None) == {"forget": 30.0}
    assert ASCENT(epochs=30).passes("unlearn", None) == {"forget": 60.0}


def test_a_ceiling_reached_in_the_last_epoch_is_no_early_stop(model: nn.Module):
    done = unlearn(ASCENT(epochs=1, lr=0.5, until=0.1), model, TASK, forget=FORGET)
    assert done.log["reached_epoch"] == 1
    assert done.note == ""


@pytest.mark.parametrize("name", ["gradient_ascent", "neg_grad_plus"])
@pytest.mark.parametrize("until", ["chance", 2.0])
def test_the_best_epoch_on_holdout_beside_a_ceiling_is_refused(name: str, until: float | str):
    text = f"{name}.keep_best or {name}.until, got both: leave keep_best out, for it returns an epoch before"
    with pytest.raises(UserError, match=text):
        load(name)(keep_best=True, until=until)


def test_the_best_epoch_on_holdout_is_one_that_has_hardly_forgotten(model: nn.Module):
    given = {"forget": FORGET, "holdout": blobs(30, seed=5, name="holdout")}
    done = unlearn(ASCENT(epochs=8, lr=0.05, until=None, keep_best=True), model, TASK, **given)
    first = unlearn(ASCENT(epochs=1, lr=0.05, until=None), model, TASK, forget=FORGET)
    assert done.log["best_epoch"] == 1
    assert close(done.model, first.model)


@pytest.mark.parametrize(("until", "what"), [(None, "a finite loss"), (1e300, "a finite forget loss")])
def test_divergence_names_the_step_and_the_rate(until: float | None, what: str, model: nn.Module):
    with pytest.raises(NotFinite, match=rf"{what} of gradient_ascent.* step \d+: lower gradient_ascent.lr \(now 1e"):
        unlearn(ASCENT(epochs=9, lr=1e160, until=until), model, TASK, forget=FORGET)


def test_samples_learned_to_the_last_bit_do_not_move_and_a_note_says_so():
    model = rows((900, 0, 0), (0, 900, 0))
    data = Data.from_arrays(torch.eye(2, dtype=torch.float64), [0, 1])
    done = unlearn(ASCENT(**PLAIN), model, TASK, forget=data)
    assert torch.equal(done.model.weight, model.weight)
    assert "the loss of every forget sample is 0 in its number format" in done.note


def test_regression_needs_a_ceiling_in_numbers():
    torch.manual_seed(0)
    model = nn.Linear(4, 1, dtype=torch.float64)
    data = Data.from_arrays(DATA.read(range(9)).inputs, torch.arange(9.0, dtype=torch.float64))
    with pytest.raises(Declined, match="stops at the loss of chance unless until is set to a number or None"):
        unlearn(ASCENT(), model, Regression(), forget=data)
    done = unlearn(ASCENT(lr=1e-2, epochs=50, until=500.0), model, Regression(), forget=data)
    assert done.log["forget_loss"][-1][1] >= 500 > done.log["forget_loss"][-2][1]


def test_sample_weights_count():
    model = rows((1, 2, 0), (0.5, 0.5, 3))
    data = Data.from_arrays(torch.eye(2, dtype=torch.float64), [1, 0], weight=[1.0, 0.0])
    done = unlearn(ASCENT(epochs=1, lr=1.0, until=None, **PLAIN), model, TASK, forget=data)
    moved = (model.weight != done.model.weight).any(dim=0)
    assert moved.tolist() == [True, False]


@pytest.mark.parametrize(
    ("field", "value"), [("until", "never"), ("until", -1.0), ("until", math.inf), ("lr", 0.0), ("norm", "still")]
)
def test_bad_settings_are_refused(field: str, value: object):
    with pytest.raises(UserError, match=f"gradient_ascent.{field}"):
        ASCENT(**{field: value})


def test_the_ceiling_is_read_from_plain_values():
    assert build({"name": "gradient_ascent", "until": None}).until is None
    assert build({"name": "gradient_ascent", "until": "chance"}).until == "chance"
    assert build({"name": "gradient_ascent", "until": 3}).until == 3.0
