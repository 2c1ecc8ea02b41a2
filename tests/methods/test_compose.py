"""Any objective under any anchor: pairs, looks, ends, and what each pair asks for."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cases import blobs, deep
from expunge import anchors, methods, objectives
from expunge.data import Batch, Data
from expunge.errors import Declined, MissingNeed, NotFinite, UserError
from expunge.methods import build, load
from expunge.runtime import Runtime
from expunge.scenario import forget_class, forget_random
from expunge.task import Classification, Regression
from expunge.tensors import weights_digest
from expunge.train import Recipe, fit, mean_loss
from expunge.unlearn import Unlearned, prepare, unlearn

TASK = Classification()
COMPOSE = load("compose")
DATA = blobs()
FORGET, RETAIN = DATA.subset(DATA.ids[:7]), DATA.without(DATA.ids[:7])
HOLDOUT = Data.from_arrays(*[DATA.read(range(20)).inputs + 0.3, DATA.read(range(20)).target], name="holdout")
QUIET = Runtime(progress=False, batch_size=5)
LEARNING = {"epochs": 1, "agreement": None}
QUICK = {
    "none": {"steps": 3},
    "retain_repair": {"steps": 3},
    "l2sp": {"steps": 3},
    "fisher": {"epochs": 1},
    "kl_gaussian": LEARNING,
}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return fit(deep(), TASK, DATA, Recipe(epochs=12, lr=0.05, batch_size=8))


def forgotten(method: Any, model: nn.Module, *, forget: Data = FORGET, **more: Any) -> Unlearned:
    """Prepare and unlearn with everything at hand, then return what came of it."""
    sets = {"holdout": HOLDOUT, "new_model": deep, "runtime": QUIET, "seed": 2} | more
    ready = prepare(method, model, TASK, train=DATA, **{k: v for k, v in sets.items() if k != "scenario"})
    retain = DATA.without(forget.ids)
    return unlearn(method, ready.model, TASK, forget=forget, retain=retain, state=ready.state, **sets)


@pytest.mark.parametrize(("objective", "anchor"), list(product(objectives.names(), anchors.names())))
def test_any_pair_runs(objective: str, anchor: str, model: nn.Module):
    method = COMPOSE(objective=objective, anchor={"name": anchor, **QUICK[anchor]}, steps=3, every=2, force=True)
    before = weights_digest(model)
    done = forgotten(method, model)
    assert weights_digest(model) == before
    assert done.log["steps"] == 3
    assert [step for step, _ in done.log["objective"]] == [0, 2, 3]
    assert done.changed is not None
    if objective != "scrub":  # at the start both agree, and there the divergence has no gradient
        assert done.changed.count > 0


def test_a_pair_is_the_same_from_python_a_mapping_and_plain_settings():
    here = COMPOSE(objective="entropy", anchor={"name": "retain_repair", "lam": 0.3})
    there = build({"name": "compose", "objective": {"name": "entropy"}, "anchor": here.anchor.settings()})
    typed = build(
        {"name": "compose", **methods.parse(["objective=entropy", "anchor.name=retain_repair", "anchor.lam=0.3"])}
    )
    assert here == there == typed == build(here.settings())
    assert here.anchor == anchors.load("retain_repair")(lam=0.3)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"objective": "entropie"}, "a known objective, got 'entropie': did you mean 'entropy'"),
        ({"anchor": "nothing"}, "a known anchor, got 'nothing'"),
        ({"anchor": 3}, "an anchor as anchor, got 3: write its name"),
        ({"objective": {"name": "entropy", "strength": 2}}, "a field of entropy, got 'strength'"),
        ({"every": 0}, "compose.every of 1 or more, got 0"),
        ({"steps": 0}, "compose.steps of 1 or more, got 0"),
        ({"accuracy": 1.5}, "compose.accuracy from 0 to 1, got 1.5"),
        ({"early": True}, "compose.early settled or reached or never, got True"),
        ({"anchor": {"name": "retain_repair", "lam": 1}}, "retain_repair.lam above 0 and below 1, got 1"),
        ({"anchor": {"name": "retain_repair", "keep": "all"}}, "a value that fits retain_repair.keep"),
        ({"anchor": {"name": "none", "lr": 0}}, "none.lr above 0, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], text: str):
    with pytest.raises(UserError, match=text):
        COMPOSE(**fields)


@pytest.mark.parametrize("keep", ["loss", "original", "both"])
def test_repair_equals_a_loop_written_by_hand(keep: str, model: nn.Module):
    """One batch holds the forget set, one the retain set, so that orders decide nothing but the last bits."""
    double = copy.deepcopy(model).double()
    x, y = (DATA.read(range(len(DATA))).inputs.double(), DATA.read(range(len(DATA))).target)
    data = Data.from_arrays(x, y)
    n = len(data) - 7
    anchor = {"name": "retain_repair", "lam": 0.4, "keep": keep, "lr": 0.03, "optimizer": "sgd", "budget": 4.0}
    method = COMPOSE(objective="uniform", anchor=anchor, steps=4, early="never", force=True)
    parts = {"forget": data.subset(data.ids[:7]), "retain": data.without(data.ids[:7])}
    done = unlearn(method, double, TASK, **parts, runtime=QUIET)
    slow = copy.deepcopy(double).eval()
    optimizer = torch.optim.SGD(slow.parameters(), lr=0.03, momentum=0.9)
    with torch.no_grad():
        said = double.eval()(x[7:]).log_softmax(1)
    for _ in range(4):
        optimizer.zero_grad()
        u = (-torch.log(torch.tensor(3.0, dtype=torch.float64)) - slow(x[:7]).log_softmax(1).mean(1)).mean()
        out = slow(x[7:])
        ce, kl = F.cross_entropy(out, y[7:]), (said.exp() * (said - out.log_softmax(1))).sum(1).mean()
        rest = {"loss": ce, "original": kl, "both": ce + kl}[keep]
        (0.6 * u + 0.4 * rest).backward()
        optimizer.step()
    assert n == len(x) - 7
    for a, b in zip(done.model.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_frozen_statistics_stay_and_so_do_buffers(model: nn.Module):
    done = forgotten(COMPOSE(objective="uniform", anchor={"name": "none", "steps": 4}), model)
    for (name, was), (_, now) in zip(model.named_buffers(), done.model.named_buffers(), strict=True):
        assert torch.equal(was, now), name


def test_nothing_to_forget_moves_no_weight_unless_forced(model: nn.Module):
    """τ below the forget loss: the model does no better on these samples than on unseen ones."""
    method = COMPOSE(objective={"name": "tau_hinge", "tau": 1e-6}, anchor="none")
    done = forgotten(method, model)
    assert done.changed is not None
    assert done.changed.count == 0
    assert done.log["steps"] == 0
    assert "Nothing to forget: the mean loss of the forget set is" in done.note
    assert "set compose.force" in done.note
    forced = {"name": "tau_hinge", "tau": 1e-6, "hinge": "two_sided"}
    done = forgotten(COMPOSE(objective=forced, anchor={"name": "none", "steps": 3}, force=True), model)
    assert done.changed is not None
    assert done.changed.count > 0


def test_the_threshold_is_the_loss_on_held_out_data_and_missing_is_refused(model: nn.Module):
    done = forgotten(COMPOSE(objective="tau_hinge", anchor={"name": "none", "steps": 2}, force=True), model)
    assert done.log["tau"] == pytest.approx(mean_loss(copy.deepcopy(model).eval(), TASK, HOLDOUT, QUIET), rel=1e-6)
    assert done.log["tau_gap"] == pytest.approx(1 - done.log["forget_loss"][-1][1] / done.log["tau"])
    with pytest.raises(MissingNeed, match="holdout for compose to unlearn, got none: pass holdout="):
        unlearn(COMPOSE(objective="tau_hinge", anchor="none"), model, TASK, forget=FORGET, runtime=QUIET)
    told = COMPOSE(objective={"name": "tau_hinge", "tau": 2.0}, anchor={"name": "none", "steps": 2})
    assert unlearn(told, model, TASK, forget=FORGET, runtime=QUIET).log["steps"] == 2


def test_tau_and_its_gap_are_those_of_the_objective(model: nn.Module):
    """A τ that was set, and that of a class, not the loss on held-out data where that is another number."""
    anchor = {"name": "kl_gaussian", **LEARNING}
    done = forgotten(COMPOSE(objective={"name": "tau_hinge", "tau": 2.0}, anchor=anchor, steps=2), model)
    assert done.log["tau"] == 2.0
    assert done.log["tau_gap"] == pytest.approx(1 - done.log["forget_loss"][-1][1] / 2)
    case = forget_class(DATA, 1)
    method = COMPOSE(objective="tau_hinge", anchor={"name": "none", "steps": 2})
    done = forgotten(method, model, forget=DATA.subset(case.forget), scenario=case)
    assert done.log["tau"] == pytest.approx(math.log(3))
    assert done.log["tau_gap"] == pytest.approx(1 - done.log["forget_loss"][-1][1] / math.log(3))


def test_it_ends_at_first_reach_at_two_looks_or_never(model: nn.Module):
    steps = {}
    for early in ("reached", "settled", "never"):
        anchor = {"name": "none", "steps": 60, "lr": 0.02}
        done = forgotten(COMPOSE(objective="uniform", anchor=anchor, every=1, early=early), model)
        steps[early] = done.log["steps"]
        assert done.log["reached"] is True
    assert steps["settled"] == steps["reached"] + 1
    assert steps["never"] == 60


def test_not_forgotten_is_said(model: nn.Module):
    done = forgotten(COMPOSE(objective="entropy", anchor={"name": "none", "steps": 2, "lr": 1e-6}), model)
    assert done.log["reached"] is False
    assert "Not forgotten after 2 of 2 steps: the mean entropy of the forget set's predictions is" in done.note


@pytest.mark.parametrize("level", [0.6, 0.3])
def test_an_accuracy_matches_the_level_of_forgetting(level: float, model: nn.Module):
    for objective in ("ascent", "random_label"):
        method = COMPOSE(
            objective=objective, anchor={"name": "none", "lr": 5e-3}, every=1, early="reached", accuracy=level
        )
        done = forgotten(method, model)
        found = [value for _, value in done.log["forget_accuracy"]]
        assert found[-1] <= level < min(found[:-1])


def test_an_accuracy_says_also_what_is_forgotten_at_the_start_and_at_the_end(model: nn.Module):
    """τ of 1e-6 calls the set forgotten as it comes, and the entropy's target is out of reach: neither is asked."""
    low = {"name": "tau_hinge", "tau": 1e-6}
    done = forgotten(COMPOSE(objective=low, anchor={"name": "none", "steps": 2}, accuracy=0.0), model)
    assert done.log["steps"] == 2
    assert "Not forgotten after 2 of 2 steps: 100.0% of the forget set are told right (at most 0.0%)" in done.note
    done = forgotten(COMPOSE(objective="entropy", anchor="none", accuracy=1.0), model)
    assert done.log["steps"] == 0
    assert "Nothing to forget: 100.0% of the forget set are told right (at most 100.0%)" in done.note


@pytest.mark.parametrize(("budget", "steps"), [(0.5, 60), (6.0, 3), (1.0, 20), (6.0, 53)])
def test_repair_reads_no_more_of_the_retain_set_than_its_budget(
    budget: float, steps: int, model: nn.Module, monkeypatch: pytest.MonkeyPatch
):
    """53 samples stay: fewer than the steps, several passes, two a step so that one would be left over, and six."""
    read, seen = Data.read, [0]

    def counted(data: Data, index: Sequence[int]) -> Batch:
        seen[0] += len(index) * (len(data) == len(RETAIN))
        return read(data, index)

    anchor = {"name": "retain_repair", "budget": budget}
    method = COMPOSE(objective="uniform", anchor=anchor, steps=steps, early="never")
    monkeypatch.setattr(Data, "read", counted)
    done = unlearn(method, model, TASK, forget=FORGET, retain=RETAIN, runtime=QUIET)
    assert done.log["steps"] == steps
    assert 0 < seen[0] <= budget * len(RETAIN)


def test_without_labels_what_the_original_says_stands_for_them(model: nn.Module):
    bare = Data.from_arrays(FORGET.read(range(7)).inputs, ids=FORGET.ids)
    method = COMPOSE(objective="uniform", anchor={"name": "none", "steps": 40, "lr": 0.02}, accuracy=0.5)
    done = unlearn(method, model, TASK, forget=bare, runtime=QUIET)
    assert done.log["forget_accuracy"][0][1] == 1.0
    assert done.log["forget_accuracy"][-1][1] <= 0.5
    assert "forget_loss" not in done.log


def test_of_a_class_one_percent_may_be_told_and_else_as_of_held_out_data(model: nn.Module):
    for case in (forget_class(DATA, 1), forget_random(DATA, 7)):
        anchor = {"name": "none", "lr": 0.02, "steps": 80}
        method = COMPOSE(objective="random_label", anchor=anchor, every=1, early="reached")
        done = forgotten(method, model, forget=DATA.subset(case.forget), scenario=case)
        with torch.no_grad():
            batch = HOLDOUT.read(range(len(HOLDOUT)))
            right = float((model.eval()(batch.inputs).argmax(1) == batch.target).double().mean())
        most = 0.01 if case.kind == "class" else right
        assert done.log["forget_accuracy"][-1][1] <= most
        assert all(value > most for _, value in done.log["forget_accuracy"][:-1])


def test_most_of_the_data_is_warned_of(model: nn.Module, caplog: pytest.LogCaptureFixture):
    case = forget_random(DATA, 0.6)
    forget = DATA.subset(case.forget)
    done = forgotten(
        COMPOSE(objective="uniform", anchor={"name": "none", "steps": 1}), model, forget=forget, scenario=case
    )
    assert "60% of the training data is to be forgotten" in done.note
    assert "60% of the training data is to be forgotten" in caplog.text


def test_regression_takes_objectives_of_the_loss_alone():
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    data = Data.from_arrays(x, x.sum(1))
    net = fit(nn.Sequential(nn.Linear(4, 1)), Regression(), data, Recipe(epochs=5, lr=0.05))
    parts = {"forget": data.subset(data.ids[:4]), "retain": data.without(data.ids[:4]), "runtime": QUIET}
    method = COMPOSE(objective={"name": "tau_hinge", "tau": 5.0}, anchor={"name": "retain_repair", "lr": 0.05})
    done = unlearn(method, net, Regression(), **parts)
    assert done.log["forget_loss"][-1][1] > 10 * done.log["forget_loss"][0][1]
    with pytest.raises(Declined, match="the objective entropy is of classes, and this task has none"):
        unlearn(COMPOSE(objective="entropy", anchor="none"), net, Regression(), **parts)
    with pytest.raises(Declined, match="keep 'both' compares probabilities"):
        unlearn(
            COMPOSE(objective=method.objective, anchor={"name": "retain_repair", "keep": "both"}),
            net,
            Regression(),
            **parts,
        )
    with pytest.raises(Declined, match=r"compose\.accuracy is a share of classes told right"):
        unlearn(COMPOSE(objective=method.objective, anchor="none", accuracy=0.1), net, Regression(), **parts)


def test_a_rate_too_high_is_named():
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    data = Data.from_arrays(x, x.sum(1))
    anchor = {"name": "none", "lr": 1e10, "optimizer": "sgd"}
    method = COMPOSE(
        objective={"name": "ascent", "cap": 1.0, "capped": False}, anchor=anchor, early="never", force=True
    )
    with pytest.raises(NotFinite, match=r"a finite objective, got -inf: lower none\.lr \(now 1e\+10\)"):
        unlearn(method, nn.Linear(4, 1), Regression(), forget=data.subset(data.ids[:4]), runtime=QUIET)


def test_preparations_are_shared_by_objectives_of_one_anchor():
    gaussian = {"name": "kl_gaussian"}
    kept = [COMPOSE(objective=o, anchor=gaussian).preparation() for o in ("entropy", "tau_hinge")]
    assert kept[0] == kept[1]
    assert COMPOSE(objective="entropy", anchor=gaussian | {"lam": 0.5}).preparation() == kept[0]
    assert COMPOSE(objective="entropy", anchor=gaussian | {"sigma0": 0.05}).preparation() != kept[0]
