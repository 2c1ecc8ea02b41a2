"""The anchor as it is asked for: needs, refusals, whole requests one after another, and what is kept between them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cases import QUIET, blobs, deep
from expunge.anchors import build, load
from expunge.anchors._posterior import Posterior
from expunge.anchors._rules import literal
from expunge.data import Data
from expunge.errors import Incompatible, MissingNeed, UserError
from expunge.method import Method, See, State
from expunge.methods import build as method
from expunge.task import Classification, Regression
from expunge.tensors import parameters, weights_digest
from expunge.train import Recipe, fit
from expunge.unlearn import Prepared, Unlearned, prepare, unlearn

ANCHOR = load("kl_gaussian")
TASK = Classification()
DATA, HOLDOUT = blobs(90), blobs(30, seed=7, name="holdout")
FORGET = DATA.subset(DATA.ids[::3])
REST = DATA.without(FORGET.ids)
SHORT = {"epochs": 2, "most_epochs": 2, "learn_batch": 16}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return fit(deep(), TASK, DATA, Recipe(epochs=10, lr=0.05, batch_size=8))


def way(objective: Any = "uniform", *, steps: int | None = None, **anchor: Any) -> Method:
    return method(
        {
            "name": "compose",
            "objective": objective,
            "anchor": {"name": "kl_gaussian", **SHORT, **anchor},
            "steps": steps,
        }
    )


@pytest.fixture(scope="module")
def ready(model: nn.Module) -> Prepared:
    return prepare(way(), model, TASK, train=DATA, holdout=HOLDOUT, runtime=QUIET)


def request(ready: Prepared, method: Method, forget: Data = FORGET, **given: Any) -> Unlearned:
    return unlearn(method, ready.model, TASK, forget=forget, state=ready.state, runtime=QUIET, **given)


def right(model: nn.Module, data: Data) -> float:
    batch = data.read(range(len(data)))
    with torch.no_grad():
        return float((model(batch.inputs).argmax(1) == batch.target).double().mean())


def loss(model: nn.Module, data: Data) -> float:
    batch = data.read(range(len(data)))
    with torch.no_grad():
        return float(F.cross_entropy(model(batch.inputs), batch.target))


def test_it_forgets_a_class_and_keeps_the_rest_without_reading_it(model: nn.Module, ready: Prepared):
    assert weights_digest(ready.model) == weights_digest(model)
    done = request(ready, way("ascent", lam=0.1))
    assert right(model, FORGET) > 0.9
    assert right(done.model, FORGET) < 0.2
    assert right(done.model, REST) > 0.9
    assert done.log["n_eff"] == 180
    assert done.log["literal_lam"] == pytest.approx(literal(0.1, 180))
    assert done.log["kl_per_sample"][-1][1] == pytest.approx(done.log["penalty"][-1][1] / 180)
    assert weights_digest(ready.model) == weights_digest(model)


def test_the_more_the_prior_weighs_the_less_is_forgotten_and_the_less_q_moves(ready: Prepared):
    done = [request(ready, way(lam=lam, steps=60)) for lam in (0.3, 0.9, 0.999)]
    penalties = [d.log["penalty"][-1][1] for d in done]
    gone = [loss(d.model, FORGET) for d in done]
    assert penalties == sorted(penalties, reverse=True)
    assert gone == sorted(gone, reverse=True)
    assert penalties[0] > 10 * penalties[2]


WAYS = {
    "proximal": {},
    "explicit": {"rule": "explicit"},
    "adam": {"rule": "adam", "rate": 1e-2},
    "four halves": {"draws": 2},
    "frozen": {"sigma": "frozen"},
    "lean": {"sigma": "frozen", "lean": True, "stored": "uint8"},
    "mean only": {"sigma": "frozen", "sampling": False},
    "deflated": {"deflate": True},
    "uint8": {"stored": "uint8"},
}


@pytest.mark.parametrize("name", WAYS)
def test_every_way_forgets(name: str, model: nn.Module, ready: Prepared):
    done = request(ready, way(lam=0.5, **WAYS[name]))
    assert loss(done.model, FORGET) > loss(model, FORGET) + 0.4
    assert right(done.model, REST) > 0.85
    state = done.state
    codes = {t.dtype for n, t in state.tensors.items() if n.startswith("log_sigma/")}
    assert codes == {torch.uint8 if "stored" in WAYS[name] else torch.float64}
    assert ("still carries the share" in done.note) == (name != "deflated")


def test_requests_one_after_another_start_where_the_last_ended(ready: Prepared, tmp_path: Path):
    first = request(ready, way(lam=0.5), DATA.subset(DATA.ids[0:30:3]))
    first.state.save(tmp_path / "state.safetensors")
    state = State.load(tmp_path / "state.safetensors")
    before = Posterior.load(state, first.model)
    second = unlearn(
        way(lam=1 - 1e-9, steps=30),
        first.model,
        TASK,
        forget=DATA.subset(DATA.ids[30:60:3]),
        state=state,
        runtime=QUIET,
    )
    after = Posterior.load(second.state, second.model)
    for name, p in parameters(second.model).items():  # all weight on the prior: the first result, not the original
        assert torch.allclose(p, parameters(first.model)[name], rtol=0, atol=1e-7)
        assert torch.allclose(after.log_sigma[name], before.log_sigma[name], rtol=0, atol=1e-6)
    assert (before.facts["requests"], after.facts["requests"]) == (1, 2)
    assert before.samples == after.samples == 180
    assert before.facts["tau"] == after.facts["tau"] == pytest.approx(loss(ready.model, HOLDOUT), abs=1e-12)


def test_a_state_of_other_weights_is_refused(model: nn.Module, ready: Prepared):
    other = fit(deep(), TASK, DATA, Recipe(epochs=1, lr=0.05, batch_size=8))
    with pytest.raises(Incompatible, match="weights"):
        unlearn(way(), other, TASK, forget=FORGET, state=ready.state, runtime=QUIET)
    with pytest.raises(UserError):
        unlearn(way(), model, TASK, forget=FORGET, state=State(), runtime=QUIET)


def test_the_held_out_loss_is_kept_for_objectives_that_rise_to_it(model: nn.Module, ready: Prepared):
    known = build("kl_gaussian").known(ready.state)
    assert known.tau == pytest.approx(loss(model, HOLDOUT), abs=1e-12)
    assert known.accuracy == right(model, HOLDOUT)
    without = prepare(way(), model, TASK, train=DATA, runtime=QUIET)
    assert build("kl_gaussian").known(without.state).tau is None
    assert build("kl_gaussian").known(State()).tau is None
    done = request(ready, way({"name": "tau_hinge"}, lam=0.5), DATA.subset(DATA.ids[:12]))
    assert done.log["tau"] == known.tau


def test_what_is_read_follows_from_the_fields(model: nn.Module, ready: Prepared):
    anchor = ANCHOR()
    assert (anchor.prepares.train, anchor.prepares.holdout) == (See.LABELLED, See.LABELLED)
    assert anchor.prepares.required() == ["train"]
    assert anchor.unlearns.required() == []
    assert ANCHOR(importance="fisher_model").prepares.train == See.INPUTS
    assert ANCHOR(deflate=True).unlearns.forget == See.LABELLED
    bare = FORGET.unlabelled()
    assert request(ready, way("entropy", steps=2), bare).log["steps"] == 2
    with pytest.raises(MissingNeed, match="forget data with labels"):
        request(ready, way("entropy", deflate=True), bare)
    with pytest.raises(MissingNeed, match="train"):
        prepare(way(), model, TASK, runtime=QUIET)


def test_what_is_prepared_depends_on_the_settings_of_sigma_alone():
    one, other = ANCHOR(lam=0.5, rule="explicit", draws=3), ANCHOR()
    assert one.preparation() == other.preparation() != ANCHOR(epochs=4).preparation()


def test_passes_count_draws():
    assert ANCHOR(epochs=3, agreement=None).passes("prepare", None, None) == {"train": 12}
    assert ANCHOR(draws=2).passes("unlearn", None, None) == {"forget": 4}
    assert ANCHOR(sampling=False, sigma="frozen").passes("unlearn", None, None) == {"forget": 1}


def test_regression_is_held_too():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    data = Data.from_arrays(x, x[:, :2] * 2)
    task = Regression()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    model = fit(model, task, data, Recipe(epochs=20, lr=0.02, batch_size=8))
    objective = {"name": "tau_hinge", "tau": 3.0}
    ready = prepare(way(objective), model, task, train=data, runtime=QUIET)
    done = unlearn(
        way(objective, lam=0.1, steps=80), ready.model, task, forget=data.subset(data.ids[:8]), state=ready.state,
        runtime=QUIET,
    )  # fmt: skip
    values = [v for _, v in done.log["forget_loss"]]
    assert values[-1] > 1.5 * values[0]


def test_sigma_that_is_not_positive_is_refused(ready: Prepared):
    def spoilt(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        name = next(n for n in tensors if n.startswith("log_sigma/"))
        return {**tensors, name: tensors[name].clone().fill_(-math.inf)}

    state = State(spoilt({n: ready.state.tensors[n] for n in ready.state.tensors}), ready.state.meta)
    with pytest.raises(Incompatible, match="positive finite σ of every weight"):
        unlearn(way(), ready.model, TASK, forget=FORGET, state=state, runtime=QUIET)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"lam": 0.0}, "kl_gaussian.lam above 0 and below 1, got 0.0"),
        ({"lam": 1.0}, "kl_gaussian.lam above 0 and below 1, got 1.0"),
        ({"lam": math.nan}, "kl_gaussian.lam above 0 and below 1"),
        ({"literal": 1.5}, "kl_gaussian.literal above 0 and below 1"),
        ({"rate": 0.0}, "kl_gaussian.rate above 0"),
        ({"draws": 0}, "kl_gaussian.draws of 1 or more"),
        ({"rule": "newton"}, "kl_gaussian.rule proximal or explicit or adam"),
        ({"sigma": "fixed"}, "kl_gaussian.sigma learned or frozen"),
        ({"lean": True}, "kl_gaussian.sigma 'frozen' beside lean"),
        ({"lean": 1}, "kl_gaussian.lean True or False"),
        ({"sampling": False}, "kl_gaussian.sigma 'frozen' where nothing is drawn"),
        ({"sampling": False, "sigma": "frozen", "draws": 2}, "kl_gaussian.draws left alone where nothing is drawn"),
        ({"deflate": True, "scale": 0.01}, "kl_gaussian.scale 'own' beside deflate"),
        ({"sigma0": -0.1}, "kl_gaussian.sigma0 above 0"),
        ({"importance": "hessian"}, "kl_gaussian.importance bgd or"),
    ],
)
def test_settings_out_of_range(fields: dict[str, Any], match: str):
    with pytest.raises(UserError, match=match):
        ANCHOR(**fields)


def test_settings_survive_plain_values():
    anchor = build({"name": "kl_gaussian", "lam": 0.7, "scale": "bgd", "importance": "uniform"})
    assert build(anchor.settings()) == anchor
