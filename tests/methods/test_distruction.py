"""DiStruction as a whole: prepare once, forget without the data that stays, again and again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cases import blobs, deep
from expunge.data import Batch, Data
from expunge.errors import Incompatible, MissingNeed, UserError
from expunge.method import State
from expunge.methods import build, load
from expunge.runtime import Runtime
from expunge.scenario import forget_class
from expunge.task import Classification
from expunge.tensors import weights_digest
from expunge.train import Recipe, fit, mean_loss
from expunge.unlearn import Prepared, prepare, unlearn

TASK = Classification()
DISTRUCTION = load("distruction")
DATA = blobs()
CASE = forget_class(DATA, 1)
FORGET = DATA.subset(CASE.forget)
QUIET = Runtime(progress=False, batch_size=16)
SHORT: dict[str, Any] = {"epochs": 2, "agreement": None}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return fit(deep(), TASK, DATA, Recipe(epochs=12, lr=0.05, batch_size=8))


@pytest.fixture(scope="module")
def ready(model: nn.Module) -> Prepared:
    return prepare(DISTRUCTION(**SHORT), model, TASK, train=DATA, runtime=QUIET, seed=1)


def test_preparation_leaves_the_weights_to_the_bit(model: nn.Module, ready: Prepared):
    assert weights_digest(ready.model) == weights_digest(model)
    names = {name for name, _ in model.named_parameters()}
    assert {key.removeprefix("log_sigma/") for key in ready.state.tensors if key.startswith("log_sigma/")} == names


def test_a_request_reads_the_forget_set_alone(model: nn.Module, ready: Prepared):
    method = DISTRUCTION(**SHORT, lam=0.3, steps=60)
    assert method.unlearns.required() == ["forget"]
    done = unlearn(method, model, TASK, forget=FORGET.unlabelled(), state=ready.state, runtime=QUIET)
    entropy = [value for _, value in done.log["entropy"]]
    assert entropy[-1] > entropy[0]
    assert done.log["kl"][-1][1] == done.log["penalty"][-1][1] > 0
    assert done.changed is not None
    assert done.changed.count > 0


def test_a_stronger_anchor_moves_less(model: nn.Module, ready: Prepared):
    far = []
    for lam in (0.1, 0.9, 1 - 1e-9):
        method = DISTRUCTION(**SHORT, lam=lam, steps=40, early="never", rate=0.01)
        done = unlearn(method, model, TASK, forget=FORGET, state=ready.state, runtime=QUIET)
        pairs = zip(model.parameters(), done.model.parameters(), strict=True)
        far.append(sum(float((a - b).detach().square().sum()) for a, b in pairs))
    assert far[0] > far[1] > far[2]
    assert far[2] < 1e-6 * far[0]


def test_it_is_the_composition_of_its_parts(model: nn.Module, ready: Prepared):
    own = DISTRUCTION(**SHORT, lam=0.4, objective="uniform", steps=10)
    objective, anchor = own.pair
    pair = load("compose")(objective=objective, anchor=anchor, steps=10)
    there = prepare(pair, model, TASK, train=DATA, runtime=QUIET, seed=1)
    results = [
        unlearn(method, model, TASK, forget=FORGET, state=state, runtime=QUIET, seed=4)
        for method, state in ((own, ready.state), (pair, there.state))
    ]
    assert weights_digest(results[0].model) == weights_digest(results[1].model)


def test_requests_follow_each_other_from_disk(model: nn.Module, ready: Prepared, tmp_path: Path):
    method = DISTRUCTION(**SHORT, objective="uniform", lam=0.3, steps=20)
    ids = list(CASE.forget)
    now, state = model, ready.state
    for at, part in enumerate((ids[:4], ids[4:])):
        state.save(tmp_path / f"{at}.safetensors")
        done = unlearn(
            method, now, TASK, forget=DATA.subset(part), state=State.load(tmp_path / f"{at}.safetensors"), runtime=QUIET
        )
        now, state = done.model, done.state
    with pytest.raises(Incompatible):  # the first state belongs to the first weights
        unlearn(method, now, TASK, forget=FORGET, state=ready.state, runtime=QUIET)


def test_settings_of_another_preparation_are_refused(model: nn.Module, ready: Prepared):
    """A default stands for whatever was prepared; what is asked for must be what was done, in later requests too."""
    plain = DISTRUCTION(steps=1)
    done = unlearn(plain, model, TASK, forget=FORGET, state=ready.state, runtime=QUIET)
    rest = DATA.subset(DATA.without(FORGET.ids).ids[:3])
    for now, state, forget in ((model, ready.state, FORGET), (done.model, done.state, rest)):
        with pytest.raises(
            Incompatible, match=r"of distruction prepared with sigma0=0\.03, got one prepared with sigma0=0\.02"
        ):
            unlearn(DISTRUCTION(**SHORT, sigma0=0.03), now, TASK, forget=forget, state=state, runtime=QUIET)
    bits = DISTRUCTION(stored="uint8", steps=1)
    kept = unlearn(bits, model, TASK, forget=FORGET, state=ready.state, runtime=QUIET).state
    assert {kept.tensors[n].dtype for n in kept.tensors if n.startswith("log_sigma/")} == {torch.uint8}


def test_a_state_that_tells_no_settings_where_it_should_is_refused(model: nn.Module, ready: Prepared):
    for odd in (3, {}):
        state = State(ready.state.tensors, {**ready.state.meta, "prepared": odd})
        with pytest.raises(Incompatible, match="settings that distruction was prepared with in its state, got "):
            unlearn(DISTRUCTION(**SHORT), model, TASK, forget=FORGET, state=state, runtime=QUIET)


def test_what_goes_wrong_names_the_methods_own_fields(model: nn.Module, ready: Prepared):
    method = DISTRUCTION(**SHORT, rule="explicit", rate=1.0)
    with pytest.raises(UserError, match=r"distruction\.rate·λ_n·σ_q²/σ_p² below 2 .*: set distruction\.rate below"):
        unlearn(method, model, TASK, forget=FORGET, state=ready.state, runtime=QUIET)


def test_a_plan_counts_the_steps_that_a_rate_decides():
    found = [DISTRUCTION(lam=0.5, rate=rate, every=20).passes("unlearn", None)["forget"] for rate in (0.02, 0.01)]
    assert found == [2 * 300 + 300 / 20 + 2, 2 * 600 + 600 / 20 + 2]


def test_deflating_counts_among_the_passes(model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    """Every step and every look reads the whole forget set, and so does what is taken out of σ first."""
    method = DISTRUCTION(**SHORT, deflate=True, sampling=False, sigma="frozen", steps=25, early="never")
    ready = prepare(method, model, TASK, train=DATA, runtime=QUIET)
    read, seen = Data.read, [0]

    def counted(data: Data, index: Sequence[int]) -> Batch:
        seen[0] += len(index)
        return read(data, index)

    monkeypatch.setattr(Data, "read", counted)
    unlearn(method, model, TASK, forget=FORGET, state=ready.state, runtime=QUIET)
    trial = QUIET.batch_size  # samples on which the engines of the squared gradients are first held to each other
    most = method.passes("unlearn", None)["forget"] * len(FORGET) + trial
    assert 28 * len(FORGET) < seen[0] <= most


def test_a_state_of_another_anchor_is_refused_unless_it_was_made_alike(model: nn.Module):
    compose = load("compose")
    fisher = compose(objective="uniform", anchor="fisher", steps=1)
    state = prepare(fisher, model, TASK, train=DATA, runtime=QUIET).state
    alike = compose(objective="uniform", anchor={"name": "kl_gaussian", "importance": "fisher_model"}, steps=1)
    assert unlearn(alike, model, TASK, forget=FORGET, state=state, runtime=QUIET).log["steps"] == 1
    learned = compose(objective="uniform", anchor="kl_gaussian")
    with pytest.raises(
        Incompatible, match="importance='bgd', got .*importance='fisher_model' for the anchor fisher: prep"
    ):
        unlearn(learned, model, TASK, forget=FORGET, state=state, runtime=QUIET)


def test_eight_bits_do_nearly_the_same(model: nn.Module):
    found = {}
    for stored in ("float32", "uint8"):
        method = DISTRUCTION(**SHORT, stored=stored, lam=0.5, steps=20, early="never")
        ready = prepare(method, model, TASK, train=DATA, runtime=QUIET, seed=1)
        done = unlearn(method, model, TASK, forget=FORGET, state=ready.state, runtime=QUIET, seed=1)
        found[stored] = torch.cat([p.detach().flatten() for p in done.model.parameters()])
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    moved = (found["float32"] - start).norm()
    assert 0 < (found["uint8"] - found["float32"]).norm() < 0.1 * moved


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"lam": 0}, "distruction.lam above 0 and below 1, got 0"),
        ({"lam": 1.0}, "distruction.lam above 0 and below 1, got 1.0"),
        ({"literal": 1.5}, "distruction.literal above 0 and below 1, got 1.5"),
        ({"sigma0": -0.1}, "distruction.sigma0 above 0, got -0.1"),
        ({"pairs": 1}, "distruction.pairs of 2 or more, an estimate of σ from each half, got 1"),
        ({"lean": True}, "distruction.sigma 'frozen' beside lean"),
        ({"rule": "newton"}, "distruction.rule(,)? (proximal or explicit or adam, )?got 'newton'"),
        ({"most_epochs": 1}, "distruction.most_epochs of 3 or more"),
        ({"objective": "nothing"}, "a known objective, got 'nothing'"),
    ],
)
def test_what_is_out_of_range_is_refused(fields: dict[str, Any], text: str):
    with pytest.raises(UserError, match=text):
        DISTRUCTION(**fields)
    with pytest.raises(UserError, match=text):
        build({"name": "distruction", **fields})


def test_without_its_state_it_is_refused_before_any_work(model: nn.Module, ready: Prepared):
    with pytest.raises(MissingNeed, match="the state that distruction prepared"):
        unlearn(DISTRUCTION(**SHORT), model, TASK, forget=FORGET, runtime=QUIET)
    other = fit(deep(), TASK, DATA, Recipe(epochs=1, lr=0.01))
    with pytest.raises(Incompatible, match="weights"):
        unlearn(DISTRUCTION(**SHORT), other, TASK, forget=FORGET, state=ready.state, runtime=QUIET)


def test_a_threshold_is_read_from_what_preparation_wrote(model: nn.Module):
    held = Data.from_arrays(DATA.read(range(20)).inputs + 0.4, DATA.read(range(20)).target, name="holdout")
    method = DISTRUCTION(**SHORT, objective="tau_hinge", lam=0.2, steps=10, force=True)
    with pytest.raises(MissingNeed, match="holdout for distruction to prepare"):
        prepare(method, model, TASK, train=DATA, runtime=QUIET)
    ready = prepare(method, model, TASK, train=DATA, holdout=held, runtime=QUIET)
    done = unlearn(method, model, TASK, forget=FORGET, state=ready.state, runtime=QUIET)
    assert done.log["tau"] == pytest.approx(mean_loss(model.eval(), TASK, held, QUIET))
    assert "tau_gap" in done.log
