"""What a Gaussian anchor prepares, whole: σ held to drawn weights' loss, facts for later, and what is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, Tied
from expunge import __version__, tensors
from expunge.anchors._base import Known
from expunge.anchors._flat import Flat
from expunge.anchors._importance import geometric
from expunge.anchors._learn import passes, prepared
from expunge.anchors._posterior import Posterior
from expunge.anchors._settings import Learning
from expunge.data import Batch, Data
from expunge.errors import Incompatible, UserError
from expunge.fisher import diagonal
from expunge.masks import Masks
from expunge.method import Method, Needs, Reference, See, Session, State
from expunge.task import Classification, Regression
from expunge.unlearn import prepare, unlearn
from learning import QUIET, D, How, Own, Vector, how, ones, quadratic, session


def done(settings: Learning, given: Session) -> tuple[nn.Module, Posterior, State]:
    """Return the model, what was learned, and the state it was read from."""
    model, state = prepared(settings, given)
    return model, Posterior.load(state, model), state


def samples(n: int = 8, seed: int = 1, name: str = "train", dtype: torch.dtype = D, **options: Any) -> Data:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=dtype)
    return Data.from_arrays(x, torch.arange(n) % 3, name=name, **options)


def given_for(model: nn.Module | None = None, holdout: Data | None = None, **options: Any) -> Session:
    return session(model or CASES["linear"].make()[0], Classification(), samples(), holdout, **options)


IMPORTANCES = ("bgd", "fisher_model", "fisher_emp", "uniform")


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("dtype", [D, torch.float32, torch.bfloat16])
def test_weights_buffers_and_modes_end_as_they_were(importance: str, dtype: torch.dtype):
    model, _ = CASES["batchnorm2d"].make(dtype)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 2, 5, 4, generator=generator).to(dtype)
    data = Data.from_arrays(x, torch.arange(8) % 3)
    sight = See.INPUTS if importance == "fisher_model" else See.LABELLED
    made, found, _ = done(how(importance=importance, sigma0=0.1), session(model, Classification(), data, sight=sight))
    assert tensors.weights_digest(made) == tensors.weights_digest(model)
    assert not made.training
    assert all(p.grad is None for p in made.parameters())
    assert {v.dtype for v in found.log_sigma.values()} == {D if dtype == D else torch.float32}
    narrower = [bool((v < math.log(0.1) - 1e-9).any()) for v in found.log_sigma.values()]
    assert all(narrower) if importance.startswith("fisher") else any(narrower) == (importance == "bgd")


def test_the_facts_say_how_it_was_learned():
    model, _ = CASES["linear"].make()
    model[0].bias.requires_grad_(False)
    masks = Masks({"2.bias": torch.tensor([True, False, False])})
    given = given_for(model, samples(5, 2, "holdout"), masks=masks)
    _, found, state = done(how(pairs=3, sigma0=0.1), given)
    want = {
        "importance": "bgd",
        "scale": "own",
        "sigma0": 0.1,
        "sigma_min": 1e-6,
        "sigma_max": 3 * 0.1,
        "mean_rate": 0.0,
        "antithetic": True,
        "pairs": 3,
        "batch": 3,
        "epochs": 2,
        "passes": 2.0,
        "N": 8,
        "seed": 4,
        "scalars": 20 + 15 + 3,
        "masked": 2,
        "excluded": ["0.bias"],
        "ties": {},
        "task": ["expunge.task.Classification", []],
        "checked": 8,
        "held_out": 5,
        "version": __version__,
    }
    assert {name: found.facts[name] for name in want} == want
    assert found.facts["agreement"] == [value for _, value in given.log["agreement"]]
    assert len(found.facts["agreement"]) == 2
    assert "fisher" not in found.facts
    assert found.samples == given.log["n_eff"] == 16
    assert sorted(state.tensors) == ["log_sigma/0.weight", "log_sigma/2.bias", "log_sigma/2.weight"]
    assert given.log["training_passes"] == 2 * 3 * 2


def test_tied_weights_are_told():
    data = Data.from_arrays(
        torch.randint(1, 5, (8, 4), generator=torch.Generator().manual_seed(0)), torch.arange(8) % 5
    )
    _, found, _ = done(how(), session(Tied().to(D).eval(), Classification(), data))
    assert found.facts["ties"] == {"embedding.weight": ["head.weight"]}
    assert found.facts["scalars"] == 25


def test_another_transform_is_told_apart():
    facts = [
        done(how(), session(CASES["linear"].make()[0], Classification(), samples(transform=t)))[1].facts
        for t in (None, torch.tanh, torch.tanh, torch.sin)
    ]
    digests = [f["transform"] for f in facts]
    assert digests[1] == digests[2]
    assert len(set(digests)) == 3


def test_what_is_known_of_held_out_data():
    model, _ = CASES["linear"].make()
    holdout = samples(7, 2, "holdout")
    _, found, _ = done(how(), given_for(model, holdout))
    batch = holdout.read(range(7))
    losses = nn.functional.cross_entropy(model(batch.inputs), batch.target, reduction="none").detach()
    hits = (model(batch.inputs).argmax(1) == batch.target).double().mean()
    assert found.facts["tau"] == pytest.approx(float(losses.mean()), rel=1e-12)
    assert found.facts["tau_sd"] == pytest.approx(float(losses.std(correction=0)), rel=1e-12)
    assert found.known == Known(found.facts["tau"], float(hits))


def test_without_held_out_labels_nothing_is_known():
    for holdout in (None, samples(5, 2, "holdout").unlabelled()):
        _, found, _ = done(how(), given_for(holdout=holdout))
        assert found.known == Known(None, None)
        assert (found.facts["tau_sd"], found.facts["held_out"]) == (None, 0)


def test_a_task_without_classes_has_no_accuracy():
    model, data = CASES["linear_regression"].make()
    _, found, _ = done(how(), session(model, Regression(), data, data))
    assert found.facts["tau"] > 0
    assert found.facts["accuracy"] is None


def test_losses_are_those_of_the_weights_and_of_a_draw():
    given = session(Vector(0.0, 0.0), quadratic(100 * torch.eye(2, dtype=D)), ones(6, 2))
    _, found, _ = done(how(importance="uniform"), given)
    assert found.facts["clean_loss"] == given.log["clean_loss"] == 0
    assert 0 < found.facts["sampled_loss"] < 50 * 0.02**2 * 2 * 10
    assert "note" not in given.log


def steep(clean: float) -> Session:
    """Return a session whose loss is far higher a little way off the weights."""
    return session(Vector(0.0, 0.0), Own(lambda out: 1e4 * out.square().sum(1) + clean), ones(6, 2))


def test_sigma0_is_halved_until_drawn_weights_keep_their_loss():
    given = steep(0.01)
    _, found, _ = done(how(importance="uniform"), given)
    sigma0 = found.facts["sigma0"]
    assert sigma0 in [0.02 / 2**n for n in range(1, 6)]
    assert found.geometric == pytest.approx(sigma0, rel=1e-9)
    assert found.facts["sigma_max"] == 3 * sigma0
    assert 0.015 < found.facts["sampled_loss"] <= 0.01 + 0.05 < 4 * found.facts["sampled_loss"]
    assert f"σ0 was halved to {sigma0:.3g}: drawn weights lost the model's loss at 0.02." in given.log["note"]
    high = done(how(importance="uniform"), steep(1.0))[1].facts  # twice the loss is more than 0.05 there
    assert high["sigma0"] > sigma0
    assert 1.05 < high["sampled_loss"] <= 2


def test_a_sigma0_that_would_have_to_be_below_the_least_is_refused():
    want = r"σ0 above sigma_min \(0.015\) at which drawn weights keep a loss of 0.06, got a loss of .* at 0.02: lower"
    with pytest.raises(UserError, match=want):
        done(how(importance="uniform", sigma_min=0.015), steep(0.01))


def test_a_loss_in_other_units_may_rise_by_its_share():
    given = session(Vector(100.0), Own(lambda out: out.square().sum(1)), ones(6, 1))
    _, found, _ = done(how(importance="uniform", sigma0=0.5), given)
    assert abs(found.facts["sampled_loss"] - 1e4) > 0.05
    assert "note" not in given.log


def test_a_loss_that_is_not_finite_at_sigma0_halves_it():
    bounded = Own(lambda out: torch.where(out.abs() < 0.01, 1.0, math.nan).sum(1) + out.sum(1) * 0)
    given = session(Vector(0.0), bounded, ones(6, 1))
    _, found, _ = done(how(importance="uniform"), given)
    assert found.facts["sigma0"] < 0.02
    assert found.facts["sampled_loss"] == 1


def test_a_sigma_that_is_too_wide_in_the_end_is_told():
    task = Own(lambda out: out.square().sum(1))
    draw = session(Vector(*[0.1] * 10), task, ones(6, 10))
    _, plain, _ = done(how(importance="uniform", sigma0=0.01), draw)
    assert "note" not in draw.log
    wide = session(Vector(*[0.1] * 10), task, ones(6, 10))
    _, found, _ = done(how(importance="uniform", sigma0=0.01, scale=0.3), wide)
    assert found.facts["sampled_loss"] > found.facts["clean_loss"] * 1.05 > plain.facts["sampled_loss"] * 0.9
    assert "the weights themselves 0.1: σ is too wide; lower kl_gaussian.sigma0 or raise epochs." in wide.log["note"][0]


def test_of_many_samples_some_are_tried(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("expunge.anchors._learn.CHECKED", 5)
    read: list[int] = []

    class Notes(Classification):
        def forward(self, model: nn.Module, batch: Batch, taps: Any = ()) -> Any:
            read.extend(batch.index.tolist())
            return super().forward(model, batch, taps)

    data = samples(9)
    _, found, _ = done(how(importance="uniform"), session(CASES["linear"].make()[0], Notes(), data))
    assert found.facts["checked"] == 5
    assert len(read) == 3 * 5  # the weights, σ0, and what was learned


def test_without_labels_draws_are_held_to_held_out_data():
    holdout = samples(5, 2, "holdout")
    given = given_for(holdout=holdout, sight=See.INPUTS)
    _, found, _ = done(how(importance="fisher_model"), given)
    assert found.facts["checked"] == 5
    assert found.facts["clean_loss"] == pytest.approx(found.facts["tau"], rel=1e-12)
    assert found.facts["fisher"] == "true"
    blind = given_for(sight=See.INPUTS)
    _, found, _ = done(how(importance="fisher_model"), blind)
    assert (found.facts["clean_loss"], found.facts["sampled_loss"], found.facts["checked"]) == (None, None, 0)
    assert "No labels were seen, so σ was not held to the loss of drawn weights." in blind.log["note"]


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_sigma_can_be_rescaled_to_a_number(importance: str):
    own, scaled = (done(how(importance=importance, scale=s), given_for())[1] for s in ("own", 0.003))
    assert scaled.geometric == pytest.approx(0.003, rel=1e-9)
    assert scaled.samples == own.samples
    for name, value in own.log_sigma.items():
        gap = scaled.log_sigma[name] - value
        assert torch.allclose(gap, torch.full_like(gap, math.log(0.003 / own.geometric)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("importance", ["fisher_model", "fisher_emp", "uniform"])
def test_sigma_can_be_rescaled_to_that_of_a_descent(importance: str):
    settings = how(sigma0=0.2, learn_batch=4, epochs=2, most_epochs=4, agreement=0.99)
    _, descent, _ = done(settings, given_for())
    given = given_for()
    _, found, _ = done(replace(settings, importance=importance, scale="bgd"), given)
    assert found.geometric == pytest.approx(descent.geometric, rel=1e-9)
    assert found.samples == descent.samples == 4 * 8
    assert found.facts["epochs"] == 4
    assert given.log["training_passes"] == 4 * 4
    assert (importance == "uniform") == (len({round(float(x), 9) for x in flat_of(found)}) == 1)


def flat_of(found: Posterior) -> Tensor:
    return torch.cat([v.flatten() for v in found.log_sigma.values()])


def test_without_a_descent_the_samples_are_those_of_the_epochs():
    for importance in ("uniform", "fisher_emp"):
        _, found, _ = done(how(importance=importance, epochs=5), given_for())
        assert (found.samples, found.facts["passes"], found.facts["agreement"]) == (40, 5.0, [])


def test_the_fishers_sigma_is_the_formula():
    model, data = CASES["linear"].make()
    want = diagonal(model, Classification(), data, of="true").values
    _, found, _ = done(how(importance="fisher_model", sigma0=0.1), session(model, Classification(), data))
    for name, value in found.log_sigma.items():
        assert torch.allclose((-2 * value).exp(), 1 / 0.1**2 + 16 * want[name], rtol=1e-9)


def test_weights_that_follow_are_what_was_prepared():
    model, _ = CASES["linear"].make()
    given = given_for(model)
    made, _, _ = done(how(mean_rate=5.0, sigma0=0.1), given)
    assert tensors.weights_digest(made) != tensors.weights_digest(model)
    assert "The weights followed at a rate of 5 while σ was learned: what was prepared is" in given.log["note"][0]


def test_sigma_kept_in_eight_bits_is_near():
    _, plain, _ = done(how(sigma0=0.1), given_for())
    _, found, state = done(how(sigma0=0.1, stored="uint8"), given_for())
    assert {t.dtype for t in state.tensors.values()} == {torch.uint8}
    assert all(bool((torch.expm1(found.log_sigma[n] - v).abs() < 0.028).all()) for n, v in plain.log_sigma.items())


def test_float32_is_full_whatever_the_runtime_says():
    seen: set[tuple[str, bool]] = set()

    class Watches(Classification):
        def forward(self, model: nn.Module, batch: Batch, taps: Any = ()) -> Any:
            outputs, found = super().forward(model, batch, taps)
            assert outputs.dtype == torch.float32
            seen.add((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
            return outputs, found

    model = CASES["linear"].make(torch.float32)[0]
    data = samples(dtype=torch.float32)
    given = session(model, Watches(), data, data, runtime=replace(QUIET, precision="bf16"))
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("medium")
        _, found, _ = done(how(), given)
    finally:
        torch.set_float32_matmul_precision(before[0])
    assert seen == {("highest", False)}
    assert torch.backends.cudnn.allow_tf32 == before[1]
    assert "σ was learned in float32: bf16 would round a draw away." in given.log["note"]
    _, plain, _ = done(how(), session(model, Classification(), data, data))
    assert all(torch.equal(found.log_sigma[n], v) for n, v in plain.log_sigma.items())


def test_what_a_reader_may_want_to_know_is_recorded():
    given = given_for()
    _, found, _ = done(how(sigma0=0.1), given)
    values = flat_of(found).exp()
    quantiles = given.log["sigma_quantiles"]
    assert list(quantiles) == ["0", "0.01", "0.1", "0.5", "0.9", "0.99", "1"]
    assert quantiles["0"] == pytest.approx(float(values.min()), rel=1e-9)
    assert quantiles["0.5"] == pytest.approx(float(values.quantile(0.5)), rel=1e-9)
    assert given.log["sigma0"] == 0.1
    assert given.log["below_bf16"] == given.log["informed"] == 0
    known = session(Vector(0.0, 0.0), quadratic(torch.diag(torch.tensor([1e3, 1e-3], dtype=D))), ones(6, 2))
    done(how(sigma0=0.01, pairs=4, epochs=5), known)
    assert known.log["informed"] == 0.5
    little = "The samples tell more than σ0 does of 0.0% of the weights: the others are held alike; raise kl_gaussian"
    assert [sum(little in n for n in s.log.get("note", [])) for s in (given, known)] == [1, 0]
    alike = given_for()
    done(how(importance="uniform"), alike)
    assert "note" not in alike.log
    steep = session(Vector(100.0, 0.1), Own(lambda out: out.sum(1)), ones(4, 2))
    done(how(importance="uniform"), steep)
    assert steep.log["below_bf16"] == 0.5  # a step of bf16 at 100 is 0.39


def test_training_data_without_samples_or_labels_is_refused():
    model, _ = CASES["linear"].make()
    with pytest.raises(UserError, match="training data to learn σ from, got no sample in train"):
        done(how(), session(model, Classification(), samples().subset([])))
    for importance in ("bgd", "fisher_emp", "uniform"):
        with pytest.raises(UserError, match=r"labels in train, .* or set kl_gaussian.importance to 'fisher_model'"):
            done(how(importance=importance), session(model, Classification(), samples().unlabelled()))


def test_masks_on_everything_are_refused():
    model, _ = CASES["linear"].make()
    masks = Masks({name: torch.zeros(p.shape, dtype=torch.bool) for name, p in model.named_parameters()})
    with pytest.raises(UserError, match="weights that may move, got masks on all of them: mask fewer"):
        done(how(), given_for(model, masks=masks))


REFUSED = {
    "importance": ({"importance": "guess"}, "kl_gaussian.importance bgd or fisher_model or fisher_emp or uniform"),
    "scale": ({"scale": 0}, "kl_gaussian.scale above 0"),
    "scale's word": ({"scale": "fisher"}, "kl_gaussian.scale above 0"),
    "sigma0": ({"sigma0": 0.0}, "kl_gaussian.sigma0 above 0"),
    "bounds": ({"sigma_max": 0.01}, "sigma0 between sigma_min .* and sigma_max .0.01., got 0.02"),
    "pairs": ({"pairs": 1}, "kl_gaussian.pairs of 2 or more, an estimate of σ from each half"),
    "pairs for the scale": ({"pairs": 1, "importance": "uniform", "scale": "bgd"}, "pairs of 2 or more"),
    "epochs": ({"epochs": 5, "most_epochs": 4}, "most_epochs of 5 or more"),
    "agreement": ({"agreement": 1.0}, "kl_gaussian.agreement above 0 and below 1"),
    "grid": ({"stored": "uint8", "sigma_min": 1e-7}, "sigma_min of 1e-6 or more and sigma_max of 1 or less"),
    "wide grid": ({"stored": "uint8", "sigma0": 0.5}, "sigma_max of 1 or less .* got 1e-06 and 1.5"),
    "rate": ({"mean_rate": 1.0, "importance": "uniform"}, "mean_rate of 0 with importance 'uniform', which moves no"),
    "antithetic": ({"antithetic": 1}, "kl_gaussian.antithetic True or False"),
    "batch": ({"learn_batch": 0}, "kl_gaussian.learn_batch of 1 or more"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_settings_that_are_refused(what: str):
    settings, want = REFUSED[what]
    with pytest.raises(UserError, match=want):
        How(**settings)


def test_settings_that_are_not():
    assert How(pairs=1, agreement=None).agreement is None
    assert How(pairs=1, antithetic=False).highest == 0.06
    assert How(pairs=1, importance="fisher_model").sight == See.INPUTS
    assert How(importance="fisher_model", scale="bgd").sight == How().sight == See.LABELLED
    assert How(stored="uint8", sigma0=0.3).highest == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("settings", "most", "least"),
    [
        ({}, 120, 12),
        ({"pairs": 5, "epochs": 2, "most_epochs": 10}, 100, 20),
        ({"agreement": None}, 12, 12),
        ({"antithetic": False}, 12, 12),
        ({"importance": "uniform"}, 0, 0),
        ({"importance": "fisher_emp"}, 1, 1),
        ({"importance": "fisher_model"}, 7, 7),
        ({"importance": "fisher_model", "scale": "bgd"}, 127, 19),
    ],
)
def test_what_a_preparation_costs(settings: dict[str, Any], most: float, least: float):
    assert passes(How(**settings), 10) == pytest.approx(most)
    assert passes(How(**settings), 10, most=False) == pytest.approx(least)


@dataclass(frozen=True, kw_only=True)
class Keeps(How, Method):
    """Prepares σ, and forgets nothing."""

    name: ClassVar[str] = "keeps"
    reference: ClassVar[Reference] = Reference(
        "Tests", "The expunge authors", 2026, "https://pypi.org/project/expunge/"
    )

    @property
    def prepares(self) -> Needs:
        return Needs(train=self.sight, holdout=See.LABELLED, optional=frozenset({"holdout"}))

    @property
    def unlearns(self) -> Needs:
        return Needs(forget=See.LABELLED)

    def prepare(self, session: Session) -> tuple[nn.Module, State]:
        return prepared(self, session)

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        session.forget.read(range(len(session.forget)))
        return session.model, Posterior.load(state, session.model).state(self.stored)


@pytest.mark.parametrize("stored", ["float32", "uint8"])
def test_a_state_from_disk_is_bound_to_the_weights(stored: str, tmp_path: Path):
    method = Keeps(epochs=1, most_epochs=1, stored=stored, learn_batch=4)
    model, data = CASES["linear"].make()
    ready = prepare(method, model, Classification(), train=data, holdout=samples(5, 2, "holdout"), runtime=QUIET)
    ready.state.save(tmp_path / "state.safetensors")
    state = State.load(tmp_path / "state.safetensors")
    forget = data.subset(data.ids[:2])
    done = unlearn(method, ready.model, Classification(), forget=forget, state=state, runtime=QUIET)
    assert Posterior.load(done.state, done.model).facts == state.meta["posterior"]["facts"]
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-7
    with pytest.raises(Incompatible, match="the weights the state belongs to, got others than .*: pass the model that"):
        unlearn(method, model, Classification(), forget=forget, state=state, runtime=QUIET)


def test_only_what_is_trained_has_a_sigma():
    model, data = CASES["linear"].make()
    model.requires_grad_(False)
    adapter = nn.Sequential(model, nn.Linear(3, 3, bias=False)).to(D).eval()
    ready = prepare(Keeps(epochs=1, most_epochs=1), adapter, Classification(), train=data, runtime=QUIET)
    found = Posterior.load(ready.state, ready.model)
    assert list(found.log_sigma) == ["1.weight"]
    assert found.facts["excluded"] == [f"0.{name}" for name, _ in model.named_parameters()]
    assert found.facts["scalars"] == 9


def test_the_geometric_mean_of_a_state_is_that_of_the_vector():
    model = CASES["linear"].make()[0]
    _, found, _ = done(how(importance="fisher_emp", scale=0.01), given_for(model))
    flat = Flat(CASES["linear"].make()[0])
    assert geometric(flat, flat.filled(found.log_sigma, 0.0)) == pytest.approx(found.geometric, rel=1e-12)
