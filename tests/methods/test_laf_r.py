"""LAF+R: which weights the repair moves, what it reads, when it ends, a slow loop beside it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from cases import CASES, QUIET
from expunge.data import Data
from expunge.errors import MissingNeed, NotFinite, UserError
from expunge.method import See
from expunge.methods import load
from expunge.methods._represent import RepresentationSplit
from expunge.methods.laf_r import labelled_part
from expunge.seeds import seed as named_seed
from expunge.task import Classification, Regression
from expunge.tensors import weights_digest
from expunge.train import Recipe, batch_orders, fit
from expunge.unlearn import Unlearned, prepare, unlearn
from extractors import DATA, HEADS, UNSPLIT, network, of_class
from worlds import world

TASK = Classification()
LAF, LAFR = load("laf"), load("laf_r")
SHORT: dict[str, Any] = {"updates": 4, "every": 2, "vae_epochs": 1, "batch_size": 4, "lr_ra": 1e-2, "early": False}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return fit(network(), TASK, DATA, Recipe(epochs=10, lr=0.05, batch_size=8), runtime=QUIET)


def asked(method: Any, model: nn.Module, data: Data = DATA, task: Any = TASK, **sets: Data) -> Unlearned:
    ready = prepare(method, model, task, train=data, runtime=QUIET, seed=2)
    return unlearn(method, model, task, **(sets or of_class(data)), state=ready.state, runtime=QUIET, seed=2)


def test_it_sees_labels_of_the_retain_set_alone():
    method = LAFR()
    assert method.prepares.train == See.INPUTS
    assert (method.unlearns.forget, method.unlearns.retain) == (See.INPUTS, See.LABELLED)


@pytest.mark.parametrize("name", [name for name in CASES if name not in UNSPLIT])
def test_with_the_classifier_s_scope_the_extractor_stays_on_every_architecture(name: str):
    case = CASES[name]
    model, data = case.make(torch.float32)
    ids, more = data.ids, {**SHORT, "updates": 2, "extractor": HEADS.get(name)}
    sets = {"forget": data.subset(ids[:3]), "retain": data.subset(ids[3:])}
    plain = asked(LAF(**more), model, data, case.task, **sets)
    done = asked(LAFR(**more, share=1.0, repair_lr=1e-2, repair_epochs=1), model, data, case.task, **sets)
    before, after = plain.model.state_dict(), done.model.state_dict()
    split = RepresentationSplit.of(model, case.task, data, QUIET, HEADS.get(name))
    moved = [k for k in before if not torch.equal(before[k], after[k])]
    assert moved
    assert set(moved) <= set(split.classifier)


@pytest.mark.parametrize("scope", ["classifier", "all"])
def test_equals_a_loop_written_by_hand(model: nn.Module, scope: str):
    more = {"share": 0.5, "repair_scope": scope, "repair_lr": 1e-3, "repair_epochs": 2}
    done = asked(LAFR(**SHORT, **more), model)
    slow = copy.deepcopy(asked(LAF(**SHORT), model).model).eval()
    learned, held = labelled_part(of_class()["retain"], 0.5, seed=2)
    assert held is not None
    assert (len(learned), len(held), done.log["labelled"]) == (18, 2, 20)
    x, y = learned.read(range(18)).inputs, learned.targets()
    optimizer = torch.optim.Adam((slow[1] if scope == "classifier" else slow).parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(named_seed("laf_r", "order", 2))
    for _ in range(2):
        for at in batch_orders(32, torch.randperm(18, generator=generator)):
            optimizer.zero_grad()
            logs = [slow(x[i][None])[0].log_softmax(0)[y[i]] for i in at]
            (-sum(logs) / len(logs)).backward()
            optimizer.step()
    assert done.log["repair_epochs"] == 2
    fast, want = done.model.state_dict(), slow.state_dict()
    assert all(torch.allclose(fast[k], want[k], rtol=0, atol=1e-9) for k in want)
    assert weights_digest(done.model) != weights_digest(model)


def test_the_repair_lowers_the_loss_on_what_it_learns_from(model: nn.Module):
    done = asked(LAFR(**SHORT, share=1.0, repair_lr=1e-2), model)
    losses = [loss for _, loss in done.log["repair_loss"]]
    assert losses[-1] < losses[0]
    held = [loss for _, loss in done.log["repair_held_loss"]]
    assert held == sorted(held, reverse=True) or len(held) == done.log["repair_epochs"] + 1


def test_it_ends_and_goes_back_where_the_held_out_loss_rises(model: nn.Module):
    sets = of_class()
    learned = set(labelled_part(sets["retain"], 1.0, seed=2)[0].ids)
    pairs = zip(DATA.ids, DATA.targets().tolist(), strict=True)
    wrong = torch.tensor([(y + 1) % 3 if i in learned else y for i, y in pairs])
    other = Data.from_arrays(DATA.read(range(60)).inputs, wrong, ids=DATA.ids)
    parts = {name: other.subset(part.ids) for name, part in sets.items()}
    done = asked(LAFR(**SHORT, share=1.0, repair_lr=0.1), model, other, **parts)
    held = [loss for _, loss in done.log["repair_held_loss"]]
    assert held[1] > held[0]
    assert done.log["repair_epochs"] == 1
    plain = asked(LAF(**SHORT), model)
    assert weights_digest(done.model) == weights_digest(plain.model)


def test_of_few_labels_none_is_held_out(model: nn.Module):
    done = asked(LAFR(**SHORT, share=0.01, repair_epochs=3), model)
    assert done.log["labelled"] == 1
    assert "repair_held_loss" not in done.log
    assert done.log["repair_epochs"] == 3


def test_the_labelled_part_is_drawn_by_the_seed():
    one, two, other = (labelled_part(DATA, 0.5, seed) for seed in (1, 1, 2))
    ids = [[*a.ids, *b.ids] for a, b in (one, two, other) if b is not None]
    assert ids[0] == ids[1] != ids[2]
    assert len(set(ids[0])) == 30


def test_labels_outside_the_labelled_part_change_nothing(model: nn.Module):
    method, sets = LAFR(**SHORT, share=0.25, repair_lr=1e-2), of_class()
    learned, held = labelled_part(sets["retain"], 0.25, seed=2)
    assert held is not None
    used = {*learned.ids, *held.ids}
    y = DATA.targets()
    wrong = torch.tensor([v if i in used else (v + 1) % 3 for i, v in zip(DATA.ids, y.tolist(), strict=True)])
    other = Data.from_arrays(DATA.read(range(60)).inputs, wrong, ids=DATA.ids)
    parts = {name: other.subset(part.ids) for name, part in sets.items()}
    assert weights_digest(asked(method, model).model) == weights_digest(asked(method, model, other, **parts).model)


def test_a_repair_that_brings_the_forgotten_back_says_so(model: nn.Module):
    strong = {**SHORT, "updates": 120, "lr_ra": 5e-3, "batch_size": 16}
    done = asked(LAFR(**strong, share=1.0, repair_scope="all", repair_lr=1e-2), model)
    found = done.log["repair_agreement"]
    assert found["before"] < 0.3
    assert ("brought predictions on the forget set back" in done.note) is (found["after"] - found["before"] > 0.05)
    assert done.log["agreement"]["forget"] == found["after"]


def test_real_targets_are_repaired_by_their_own_loss():
    w = world("range")
    method = LAFR(**SHORT, share=1.0, repair_epochs=2)
    done = asked(method, w.model, w.train, Regression(), forget=w.forget, retain=w.retain)
    assert len(done.log["repair_loss"]) >= 1


def test_it_needs_labels_and_a_classifier(model: nn.Module):
    sets = of_class()
    with pytest.raises(MissingNeed, match="retain data with labels for laf_r, got none"):
        asked(LAFR(**SHORT), model, forget=sets["forget"], retain=sets["retain"].unlabelled())
    with pytest.raises(
        UserError, match="trainable weights above 1 for laf_r to repair, got none: set repair_scope to all"
    ):
        prepare(LAFR(**SHORT, extractor="1"), model, TASK, train=DATA, runtime=QUIET)  # before anything is moved
    assert asked(LAFR(**SHORT, extractor="1", repair_scope="all"), model).log["labelled"] == 4


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"share": 0.0}, "laf_r.share"),
        ({"share": 1.5}, "laf_r.share of at most 1, got 1.5: give a share of the retain set"),
        ({"repair_scope": "head"}, "laf_r.repair_scope classifier or all"),
        ({"repair_lr": 0.0}, "laf_r.repair_lr"),
        ({"repair_epochs": 0}, "laf_r.repair_epochs of 1 or more"),
        ({"tau": 1.0}, "laf_r.tau of 5 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], why: str):
    with pytest.raises(UserError, match=why):
        LAFR(**settings)


def test_a_repair_that_diverges_names_its_rate(model: nn.Module):
    with pytest.raises(NotFinite, match=r"loss"):
        asked(LAFR(**SHORT, share=1.0, repair_lr=1e300, repair_scope="all"), model)
