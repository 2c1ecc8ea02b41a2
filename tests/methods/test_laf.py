"""LAF: held to a slow loop, blind to labels, the classifier bit-identical on every architecture, stopped unlabelled."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, QUIET, blobs
from expunge import unlearn as unlearning
from expunge.data import Data
from expunge.errors import Incompatible, MissingNeed, NotFinite, UserError
from expunge.masks import Masks
from expunge.method import See, Session, State
from expunge.methods import load
from expunge.methods._represent import RepresentationSplit
from expunge.methods._unlabelled import pairs
from expunge.methods._vae import GaussianVAE, Scale, fitted
from expunge.seeds import seed as named_seed
from expunge.task import Classification, Regression, Task
from expunge.tensors import weights_digest
from expunge.train import Recipe, fit
from expunge.unlearn import Unlearned, prepare, unlearn
from extractors import DATA, HEADS, UNSPLIT, network, of_class
from worlds import world

D = torch.float64
TASK = Classification()
LAF = load("laf")
SHORT: dict[str, Any] = {"updates": 4, "every": 2, "vae_epochs": 1, "batch_size": 4}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return fit(network(), TASK, DATA, Recipe(epochs=10, lr=0.05, batch_size=8), runtime=QUIET)


def asked(method: Any, model: nn.Module, data: Data = DATA, task: Task = TASK, **sets: Data) -> Unlearned:
    ready = prepare(method, model, task, train=data, runtime=QUIET, seed=2)
    sets = sets or of_class(data)
    return unlearn(method, model, task, **sets, state=ready.state, runtime=QUIET, seed=2)


def labels(data: Data, targets: Tensor | None) -> Data:
    """Return the same inputs and ids with other labels, or none."""
    return Data.from_arrays(data.read(range(len(data))).inputs, targets, ids=data.ids)


@pytest.mark.parametrize("name", [name for name in CASES if name not in UNSPLIT])
def test_labels_change_no_bit_and_the_classifier_stays_on_every_architecture(name: str):
    case = CASES[name]
    model, data = case.make(torch.float32)
    method = LAF(**SHORT, extractor=HEADS.get(name), lr_ue=1e-2, lr_ra=1e-2, early=False)
    y = data.targets()
    found = []
    for other in (labels(data, y), labels(data, y.roll(3, 0)), labels(data, None)):
        ids = other.ids
        found.append(asked(method, model, other, case.task, forget=other.subset(ids[:3]), retain=other.subset(ids[3:])))
    first, *others = found
    for done in others:
        assert weights_digest(done.model) == weights_digest(first.model)
        own = [k for k in first.state.tensors if not k.startswith("samples/")]
        assert all(torch.equal(done.state.tensors[k], first.state.tensors[k]) for k in own)
    split = RepresentationSplit.of(model, case.task, data, QUIET, HEADS.get(name))
    before, after = model.state_dict(), first.model.state_dict()
    still = {*(name for name, _ in model.named_buffers()), *split.classifier, *split.shared}
    assert still
    assert all(torch.equal(before[k], after[k]) for k in still)
    assert any(not torch.equal(before[k], after[k]) for k in split.extractor)
    assert first.model.training is model.training


@pytest.mark.parametrize("name", UNSPLIT)
def test_architectures_without_an_extractor_are_refused(name: str):
    model, data = CASES[name].make()
    with pytest.raises(UserError, match="trainable weights below .* for laf, got"):
        prepare(LAF(**SHORT), model, TASK, train=data, runtime=QUIET)


class Slow:
    """The method again, a sample at a time: float64, its own losses, weights read from the states."""

    def __init__(self, method: Any, model: nn.Module, state: State, sets: dict[str, Data], seed: int) -> None:
        self.method, self.official, self.seed = method, method.profile == "official", seed
        self.model, self.teacher = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
        self.x = {name: data.read(range(len(data))).inputs for name, data in sets.items()}
        self.scale = Scale(state.tensors["shift"], state.tensors["width"])
        rows = self.teacher[0](self.x["forget"]).detach()
        own = fitted(rows, method.fit, named_seed("laf", "forget", seed), scale=self.scale)
        self.nets = [self.net(tensors) for tensors in (state.tensors, own.tensors())]

    def generator(self, what: str) -> torch.Generator:
        return torch.Generator().manual_seed(named_seed("laf", what, self.seed))

    def net(self, tensors: Mapping[str, Tensor]) -> GaussianVAE:
        net = GaussianVAE(6, self.method.latent, out=self.method.fit.out).double()
        net.load_state_dict({k: tensors[k] for k in tensors if k.startswith(("encoder", "decoder"))})
        return net.requires_grad_(False)

    def phi(self, net: GaussianVAE, x: Tensor, noise: Tensor) -> Tensor:
        e = self.model[0](x[None])[0]
        at = (e - self.scale.shift) / self.scale.width
        m = ((net(at[None], noise[None]).rebuilt[0] - at) ** 2).sum()
        return torch.exp(m / (1 + m))

    def ue(self, forget: Tensor, retain: Tensor, noise: torch.Generator) -> Tensor:
        sums = []
        for net, part in zip(self.nets, (retain, forget), strict=True):
            drawn = torch.randn(len(part), self.method.latent, generator=noise, dtype=D)
            total = sum(self.phi(net, x, z) for x, z in zip(part, drawn, strict=True))
            sums.append(total if self.official else total / len(part))
        return sums[0] - sums[1]

    def ra(self, forget: Tensor, retain: Tensor) -> Tensor:
        def u(x: Tensor) -> Tensor:
            e, t = self.model[0](x[None])[0], self.teacher[0](x[None])[0].detach()
            return 1 - (e * t).sum() / (e.norm() * t.norm())

        away = sum(torch.exp(u(x) / self.method.tau) for x in forget)
        total = sum(u(x) - torch.log(away if self.official else away / len(forget)) for x in retain)
        return total if self.official else total / len(retain)

    def run(self) -> tuple[list[int], list[float]]:
        """Take the updates; return the sizes of the forget batches, and the alignment losses."""
        method, sizes, told = self.method, list[int](), list[float]()
        order = torch.randperm(len(self.x["retain"]), generator=self.generator("retain"))
        used = order[10:][: method.updates * method.batch_size]  # a quarter of 40 is held out
        one, two = (torch.optim.Adam(self.model[0].parameters(), lr=lr) for lr in (method.lr_ue, method.lr_ra))
        noise, counts = self.generator("noise"), (len(self.x["forget"]), len(used))
        walk = pairs(*counts, method.batch_size, self.generator("pairs"), ragged=self.official)
        for at_f, at_r in islice(walk, method.updates):
            forget, retain = self.x["forget"][at_f], self.x["retain"][used[at_r]]
            sizes.append(len(forget))
            one.zero_grad()
            self.ue(forget, retain, noise).backward()
            one.step()
            two.zero_grad()
            loss = self.ra(forget, retain)
            loss.backward()
            two.step()
            told.append(loss.item() + (len(retain) * math.log(len(forget)) if self.official else 0.0))
        return sizes, told


@pytest.mark.parametrize(("profile", "sizes"), [("default", [8] * 7), ("official", [8, 8, 4] * 2 + [8])])
def test_equals_a_loop_written_by_hand(model: nn.Module, profile: str, sizes: list[int]):
    settings = {"updates": 7, "batch_size": 8, "lr_ue": 1e-3, "lr_ra": 2e-3, "tau": 5.0, "latent": 3, "vae_epochs": 2}
    method = LAF(profile=profile, early=False, **settings)
    ready = prepare(method, model, TASK, train=DATA, runtime=QUIET, seed=2)
    done = unlearn(method, model, TASK, **of_class(), state=ready.state, runtime=QUIET, seed=2)
    slow = Slow(method, model, ready.state, of_class(), seed=2)
    found, told = slow.run()
    assert found == sizes
    fast, want = done.model.state_dict(), slow.model.state_dict()
    assert all(torch.allclose(fast[k], want[k], rtol=0, atol=1e-7) for k in want)
    assert [loss for _, loss in done.log["ra_loss"]] == pytest.approx(told, abs=1e-7)
    moved = (fast["0.0.0.weight"] - model.state_dict()["0.0.0.weight"]).abs().max()
    assert float(moved) > 1e-3


def test_the_prepared_density_is_fitted_to_all_training_inputs(model: nn.Module):
    method = LAF(**SHORT)
    ready = prepare(method, model, TASK, train=DATA, runtime=QUIET, seed=2)
    rows = copy.deepcopy(model).eval()[0](DATA.read(range(60)).inputs).detach()
    want = fitted(rows, method.fit, named_seed("laf", "all", 2)).tensors()
    assert all(torch.allclose(ready.state.tensors[k], want[k], atol=1e-9) for k in want)
    assert torch.allclose(ready.state.tensors["shift"], rows.mean(0))
    assert weights_digest(ready.model) == weights_digest(model)


def test_the_next_state_knows_the_retain_set_alone(model: nn.Module):
    method = LAF(**SHORT, lr_ra=1e-2)
    done, sets = asked(method, model), of_class()
    rows = copy.deepcopy(done.model).eval()[0](sets["retain"].read(range(40)).inputs).detach()
    want = fitted(rows, method.fit, named_seed("laf", "all", 2)).tensors()
    assert all(torch.allclose(done.state.tensors[k], want[k], atol=1e-9) for k in want)
    assert {k for k in done.state.tensors if not k.startswith("samples/")} == set(want)
    more = sets["retain"].ids[:5]
    given = {"forget": sets["retain"].subset(more), "retain": sets["retain"].without(more)}
    again = unlearn(method, done.model, TASK, **given, state=done.state, runtime=QUIET)
    assert again.state.meta["expunge"]["requests"] == 2


def test_a_class_is_forgotten_and_the_rest_is_kept(model: nn.Module):
    done = asked(LAF(updates=120, lr_ra=5e-3, batch_size=16), model)
    y, x = DATA.targets(), DATA.read(range(60)).inputs
    said, before = done.model.eval()(x).argmax(1), model.eval()(x).argmax(1)
    assert float((before == y).double().mean()) > 0.95
    assert float((said == y)[y == 0].double().mean()) < 0.3
    assert float((said == y)[y != 0].double().mean()) > 0.95
    assert done.log["agreement"]["forget"] < 0.3
    assert done.log["agreement"]["retain"] >= 0.98


def test_where_retain_samples_suffer_it_goes_back(model: nn.Module):
    done = asked(LAF(updates=40, every=5, lr_ue=0.3, use_ra=False), model)
    assert done.log["stopped"] == "retain"
    assert done.log["rolled_back_to"] == 0
    assert done.log["steps"] == 10
    assert weights_digest(done.model) == weights_digest(model)
    assert "the weights are the original's: nothing was forgotten; lower laf.lr_ue or lr_ra" in done.note
    assert "hardly moved" in done.note


def test_it_goes_back_to_the_last_good_look(model: nn.Module):
    settings: dict[str, Any] = {"every": 4, "lr_ue": 0.01, "use_ra": False, "batch_size": 16}
    done = asked(LAF(updates=120, **settings), model)
    at = done.log["rolled_back_to"]
    assert 0 < at < done.log["steps"]
    kept = dict(done.log["retain_agreement"])
    assert kept[at] >= 0.9 > kept[done.log["steps"]]  # of the ten that are held out one may be told otherwise
    plain = asked(LAF(updates=at, early=False, **settings), model)
    assert all(torch.allclose(a, b) for a, b in zip(done.model.parameters(), plain.model.parameters(), strict=True))


def test_published_settings_take_all_their_updates(model: nn.Module):
    wild = {"updates": 12, "every": 4, "lr_ue": 0.3, "use_ra": False}
    done = asked(LAF(profile="official", **wild), model)
    assert (done.log["steps"], done.log["stopped"]) == (12, "budget")
    assert "rolled_back_to" in asked(LAF(profile="official", early=True, **wild), model).log


@pytest.mark.parametrize(
    "settings",
    [
        {"density": "gaussian"},
        {"push": "clamp"},
        {"push": "clamp", "density": "gaussian"},
        {"profile": "official"},
        {"profile": "official", "density": "gaussian"},
        {"use_ra": False},
        {"use_ue": False},
        {"extractor": "0.0"},
        {"tau": 5.0},
        {"latent": 3},
        {"beta": 1.0},
        {"vae_lr": 1e-2},
        {"vae_batch": 7},
        {"vae_epochs": 4},
        {"batch_size": 9},
        {"lr_ue": 1e-2},
        {"lr_ra": 1e-2},
        {"updates": 9},
    ],
)
def test_every_setting_counts(model: nn.Module, settings: dict[str, Any]):
    base = {**SHORT, "lr_ue": 1e-3, "early": False}
    plain, other = (asked(LAF(**{**base, **more}), model) for more in ({}, settings))
    assert weights_digest(plain.model) != weights_digest(other.model)


def test_without_the_extractor_loss_nothing_is_prepared(model: nn.Module):
    method = LAF(**SHORT, use_ue=False, lr_ra=1e-2)
    assert method.prepares.train == See.NONE
    done = unlearn(method, model, TASK, **of_class(), runtime=QUIET)
    assert "ue_loss" not in done.log
    assert [k for k in done.state.tensors if not k.startswith("samples/")] == []


def test_losses_are_told_minus_what_they_are_where_nothing_moved(model: nn.Module):
    for profile in ("default", "official"):
        log = asked(LAF(profile=profile, updates=3, batch_size=7, lr_ue=1e-12, lr_ra=1e-12, vae_epochs=1), model).log
        for name in ("ue_loss", "ra_loss"):
            assert [value for _, value in log[name]] == pytest.approx([0] * 3, abs=1e-6)


def test_a_long_run_s_curves_are_means_of_some_updates(model: nn.Module):
    settings = {"early": False, "every": 500, "batch_size": 2, "vae_epochs": 1, "use_ue": False}
    log = asked(LAF(updates=401, **settings), model).log
    steps = [step for step, _ in log["ra_loss"]]
    assert steps == [*range(3, 402, 3), 401]
    assert len(log["retain_agreement"]) == 2


def test_the_map_shows_the_same_samples_before_and_after(model: nn.Module):
    done, sets = asked(LAF(**SHORT, lr_ra=1e-2), model), of_class()
    shown = done.log["representation_map"]
    assert len(shown["before"]) == len(shown["after"]) == len(shown["kinds"])
    assert shown["kinds"].count("forget") == len(sets["forget"])
    assert 0 < shown["kinds"].count("retain") < len(sets["retain"])
    assert shown["before"] != shown["after"]
    assert 0 < shown["explained"][1] <= shown["explained"][0] <= 1
    retain = torch.tensor([xy for xy, kind in zip(shown["before"], shown["kinds"], strict=True) if kind == "retain"])
    assert retain.mean(0).abs().max() < 1e-3
    covariance = torch.cov(retain.T)
    assert abs(covariance[0, 1]) < 1e-2 * covariance[0, 0]


def test_the_log_names_no_sample(model: nn.Module):
    whole = DATA.read(range(len(DATA)))
    named = Data.from_arrays(whole.inputs, whole.target, ids=[f"person-{i}" for i in range(len(DATA))])
    for method in (LAF(**SHORT), load("laf_r")(**SHORT)):
        assert "person-" not in json.dumps(asked(method, model, named, **of_class(named)).log)


def test_a_map_of_wide_representations_is_quick():
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(4, 4096), nn.ReLU(), nn.Linear(4096, 3)).double()
    done = asked(LAF(**SHORT), wide)
    assert done.log["part_seconds"]["map"] < 5  # a matrix of all pairs of dimensions takes a minute
    assert 0 < done.log["representation_map"]["explained"][0] <= 1


def test_one_retain_sample_has_a_map(model: nn.Module):
    ids = DATA.ids
    done = asked(LAF(**SHORT), model, forget=DATA.subset(ids[:3]), retain=DATA.subset(ids[3:4]))
    assert done.log["representation_map"]["explained"] == [0, 0]
    assert done.log["representation_map"]["kinds"] == ["retain"] + ["forget"] * 3


def test_where_the_forget_set_is_told_like_the_retain_set_it_is_said(model: nn.Module):
    mixed = DATA.ids[::3]
    sets = {"forget": DATA.subset(mixed), "retain": DATA.without(mixed)}
    done = asked(LAF(**SHORT, use_ra=False, lr_ue=3e-2, early=False), model, **sets)
    assert "hardly moved" not in done.note
    assert "hardly less on the forget set than on retain samples" in done.note


def test_what_each_part_cost_is_recorded(model: nn.Module):
    found = asked(LAF(**SHORT), model).log["part_seconds"]
    assert found.keys() == {"representations", "densities", "steps", "map", "refit"}
    assert all(seconds > 0 for seconds in found.values())


def test_where_hardly_anything_moves_it_is_said(model: nn.Module):
    done = asked(LAF(**SHORT, lr_ra=1e-9, lr_ue=1e-9), model)
    assert "Representations of the forget set hardly moved" in done.note


def test_masked_weights_stay(model: nn.Module):
    method = LAF(**SHORT, lr_ra=1e-2, lr_ue=1e-2, early=False)
    name = "0.0.0.weight"
    kept = {k: torch.ones_like(p, dtype=torch.bool) for k, p in model.named_parameters()}
    kept[name][:4] = False
    ready = prepare(method, model, TASK, train=DATA, runtime=QUIET)
    plain = unlearning._session

    def masked(*given: Any) -> Session:
        return replace(plain(*given), masks=Masks(kept))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unlearning, "_session", masked)
        done = unlearn(method, model, TASK, **of_class(), state=ready.state, runtime=QUIET)
    assert "rolled_back_to" not in done.log
    before, after = (m.state_dict()[name] for m in (model, done.model))
    assert torch.equal(before[:4], after[:4])
    assert not torch.equal(before[4:], after[4:])


def test_regression_is_forgotten_by_representations_too():
    w = world("range")
    method = LAF(**{**SHORT, "updates": 40}, lr_ra=1e-2)
    done = asked(method, w.model, w.train, Regression(), forget=w.forget, retain=w.retain)
    assert done.log["turned"]["forget"] > done.log["turned"]["retain"]
    assert done.log["retain_agreement"][0][1] == pytest.approx(1)
    assert done.log["agreement"]["retain"] <= 1


@pytest.mark.parametrize("count", [1, 2])
def test_few_samples_will_do(model: nn.Module, count: int):
    done = asked(LAF(**SHORT, lr_ra=1e-2, early=False), model, **of_class(count=count))
    assert done.changed.count > 0
    assert done.log["steps"] == 4
    ids = DATA.ids
    tiny = asked(LAF(**SHORT, early=False), model, forget=DATA.subset(ids[:1]), retain=DATA.subset(ids[1:2]))
    assert tiny.log["steps"] == 4


def test_labels_that_are_given_are_said_to_be_ignored_once_a_call(model: nn.Module, caplog: pytest.LogCaptureFixture):
    method = LAF(**SHORT)
    with caplog.at_level(logging.INFO, "expunge.unlearn"):
        ready = prepare(method, model, TASK, train=DATA, runtime=QUIET)
        unlearn(method, model, TASK, **of_class(), state=ready.state, runtime=QUIET)
    want = [
        "laf reads no labels: those of train are ignored",
        "laf reads no labels: those of forget and retain are ignored",
    ]
    assert caplog.messages == want
    caplog.clear()
    with caplog.at_level(logging.INFO, "expunge.unlearn"):
        prepare(method, model, TASK, train=labels(DATA, None), runtime=QUIET)
        prepare(load("ssd")(), model, TASK, train=DATA, runtime=QUIET)
    assert caplog.messages == []


def test_a_state_of_other_settings_is_refused(model: nn.Module, tmp_path: Path):
    ready = prepare(LAF(**SHORT), model, TASK, train=DATA, runtime=QUIET)
    sets = of_class()
    for method, why in (
        (LAF(**SHORT, latent=5), "prepared with latent=5, got one prepared with latent=8: prepare anew"),
        (LAF(**SHORT, extractor="0.0"), "prepared with tap='0.0', got one prepared with tap='1:input'"),
        (LAF(**SHORT, profile="official"), "prepared with profile='official', got one"),
        (LAF(**SHORT, density="gaussian"), "prepared with density='gaussian', got one"),
    ):
        with pytest.raises(Incompatible, match=why):
            unlearn(method, model, TASK, **sets, state=ready.state, runtime=QUIET)
    bare = prepare(LAF(**SHORT, use_ue=False), model, TASK, train=DATA, runtime=QUIET).state
    with pytest.raises(Incompatible, match="a state prepared by laf with use_ue, got one without a density"):
        unlearn(LAF(**SHORT), model, TASK, **sets, state=bare, runtime=QUIET)
    with pytest.raises(MissingNeed, match="run prepare"):
        unlearn(LAF(**SHORT), model, TASK, **sets, runtime=QUIET)
    named = LAF(**SHORT, extractor="1:input")  # the default by its name
    assert unlearn(named, model, TASK, **sets, state=ready.state, runtime=QUIET).log["steps"] == 4


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"tau": 1.0}, "laf.tau of 5 or more, got 1: raise it"),
        ({"keep": 1.5}, "laf.keep of at most 1, got 1.5"),
        ({"use_ue": False, "use_ra": False}, "laf.use_ue or laf.use_ra, got neither: set one of them"),
        ({"profile": "official", "push": "clamp"}, "laf.push phi in the official profile, got 'clamp'"),
        ({"profile": "mine"}, "laf.profile default or official"),
        ({"density": "flow"}, "laf.density vae or gaussian"),
        ({"push": "none"}, "laf.push phi or clamp"),
        ({"extractor": ""}, "laf.extractor as a module's name, got ''"),
        ({"updates": 0}, "laf.updates of 1 or more"),
        ({"batch_size": 0}, "laf.batch_size of 1 or more"),
        ({"every": 0}, "laf.every of 1 or more"),
        ({"latent": 0}, "laf.latent of 1 or more"),
        ({"lr_ue": -1.0}, "laf.lr_ue"),
        ({"lr_ra": 0.0}, "laf.lr_ra"),
        ({"beta": -1.0}, "laf.beta"),
        ({"use_ue": 1}, "laf.use_ue True or False"),
        ({"early": "yes"}, "laf.early True or False"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], why: str):
    with pytest.raises(UserError, match=why):
        LAF(**settings)


def test_a_loss_that_is_not_finite_names_the_rate(model: nn.Module):
    with pytest.raises(NotFinite, match=r"a finite loss of laf, got nan at update \d+: lower laf.lr_(ue|ra)"):
        asked(LAF(updates=9, lr_ue=1e200, lr_ra=1e200, early=False, vae_epochs=1), model)


def test_it_reads_no_more_retain_samples_than_its_updates_need(model: nn.Module):
    data = blobs(600)
    done = asked(LAF(**SHORT), model, data)
    assert done.log["retain_used"] == 16  # 4 updates of 4
    assert done.log["retain_per_forget"] == 16 / 200
