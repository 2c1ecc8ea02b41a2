"""σ by Bayesian gradient descent: a slow learner, losses of known curvature, mishaps, and going on after a kill."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import CASES
from expunge import tensors
from expunge.anchors._bgd import Learned, Learner, needed
from expunge.anchors._flat import Flat
from expunge.anchors._settings import Learning
from expunge.data import Batch, Data
from expunge.errors import NotFinite, UserError
from expunge.masks import Masks
from expunge.method import Session
from expunge.runtime import Progress
from expunge.task import Classification, Regression
from expunge.tensors import parameters
from learning import LINEAR, QUIET, D, Own, Vector, how, kept_in, ones, quadratic, session, slowly


def learned(settings: Learning, given: Session, sigma0: float | None = None) -> tuple[dict[str, Tensor], Learned, Flat]:
    """Return σ by parameter, what was learned, and the weights."""
    flat = Flat(given.model, given.masks)
    found = Learner(settings, given, flat, sigma0 or settings.sigma0, replace(given.runtime, precision="full")).run()
    return {name: view.exp() for name, view in flat.named(found.log_sigma).items()}, found, flat


WAYS: dict[str, dict[str, Any]] = {
    "two estimates": {},
    "three pairs": {"pairs": 3},
    "five pairs": {"pairs": 5, "epochs": 1, "most_epochs": 1},
    "one estimate": {"agreement": None},
    "a pair": {"agreement": None, "pairs": 1},
    "lone draws": {"antithetic": False},
    "weights follow": {"mean_rate": 2.0, "agreement": None},
    "weights follow two": {"mean_rate": 2.0, "pairs": 3},
    "weights follow lone draws": {"mean_rate": 0.5, "antithetic": False, "pairs": 1},
    "narrow": {"sigma_min": 0.0195, "sigma_max": 0.0201, "agreement": None},
}


@pytest.mark.parametrize("way", WAYS)
def test_equals_a_slow_learner(way: str):
    model, data = CASES["linear_weighted"].make()
    settings = how(**{"sigma0": 0.3, **WAYS[way]}) if way != "narrow" else how(**WAYS[way])
    found, _, flat = learned(settings, session(model, Classification(), data))
    want, mean = slowly(model, Classification(), data, settings)
    for name, sigma in want.items():
        assert torch.allclose(found[name], sigma, rtol=1e-9, atol=0), name
        assert torch.allclose(flat.named(flat.weights)[name], mean[name], rtol=1e-12, atol=1e-14), name
    moved = any(not torch.equal(mean[name], p) for name, p in parameters(model).items())
    assert moved == (settings.mean_rate > 0)
    assert any(bool((sigma != settings.sigma0).any()) for sigma in want.values())


@pytest.mark.parametrize("name", ["linear_regression", "conv", "batchnorm2d", "tied", "frozen", "embedding"])
def test_equals_a_slow_learner_on_other_networks(name: str):
    case = CASES[name]
    model, data = case.make()
    found, _, _ = learned(how(sigma0=0.2), session(model, case.task, data))
    want, _ = slowly(model, case.task, data, how(sigma0=0.2))
    assert found.keys() == want.keys()
    for one, sigma in want.items():
        assert torch.allclose(found[one], sigma, rtol=1e-9, atol=0), one


def test_in_pieces_of_any_size_it_is_the_same(monkeypatch: pytest.MonkeyPatch):
    model, data = CASES["linear"].make(torch.float32)
    found, _, _ = learned(how(sigma0=0.2), session(model, Classification(), data))
    monkeypatch.setattr("expunge.anchors._flat.PIECE", {"cpu": 32, "cuda": 32})
    other, _, _ = learned(how(sigma0=0.2), session(model, Classification(), data))
    assert all(torch.equal(found[n], s) for n, s in other.items())


def test_the_same_seed_gives_the_same_sigma_and_another_another():
    model, data = CASES["linear"].make()
    first, second, other = (
        learned(how(sigma0=0.2), session(model, Classification(), data, seed=seed))[0] for seed in (4, 4, 5)
    )
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert not any(torch.equal(first[n], other[n]) for n in first)


@pytest.mark.parametrize("hessian", ["diagonal", "full"])
def test_precision_grows_by_the_curvature_times_the_samples(hessian: str):
    full = torch.tensor([[1.0, 0.4, -0.2], [0.4, 0.5, 0.1], [-0.2, 0.1, 0.05]], dtype=D)
    matrix = full if hessian == "full" else full.diag().diag()
    settings = how(epochs=25, agreement=None, pairs=4, learn_batch=64, sigma0=0.05)
    found, run, _ = learned(settings, session(Vector(0.3, -1, 2), quadratic(matrix), ones(1000, 3)))
    assert run.samples == 25_000
    curvature = (found["theta"] ** -2 - 0.05**-2) / run.samples
    assert torch.allclose(curvature, full.diag(), rtol=0.12, atol=0)


def test_sigma_of_a_linear_loss_stays_to_the_bit():
    for dtype in (torch.float32, D):
        model = Vector(0.3, -1.2, 2.5, dtype=dtype)
        _, run, flat = learned(how(epochs=3), session(model, LINEAR, ones(10, 3, dtype)))
        assert torch.equal(flat.named(run.log_sigma)["theta"], torch.full((3,), math.log(0.02), dtype=dtype))
        assert list(run.agreement) == [1.0] * 3  # both know the same, that is nothing


def test_lone_draws_of_a_linear_loss_walk_at_random_and_a_note_says_where_to():
    slope = Own(lambda out: 0.5 * out.sum(1))
    given = session(Vector(*[0.3] * 40), slope, ones(30, 40))
    _, run, flat = learned(how(antithetic=False, epochs=10, sigma_max=0.0205), given)
    found = flat.named(run.log_sigma)["theta"]
    high = float((found.exp() > 0.0205 / 1.01).double().mean())
    assert given.log["at_sigma_max"] == high > 0.05
    assert float(found.max()) <= math.log(0.0205)
    assert f"{high:.0%} of the weights stand at sigma_max (0.0205), where noise or a loss" in given.log["note"][0]


def test_a_loss_that_curves_downwards_takes_sigma_to_its_bound():
    given = session(Vector(0.1, 0.2), quadratic(torch.diag(torch.tensor([-1e4, 1.0], dtype=D))), ones(30, 2))
    _, run, flat = learned(how(epochs=5), given)
    found = flat.named(run.log_sigma)["theta"]
    assert float(found[0]) == math.log(0.06)
    assert float(found[1]) < math.log(0.02)
    assert given.log["at_sigma_max"] == 0.5


def test_what_is_not_weights_stays_to_the_bit():
    model, data = CASES["batchnorm2d"].make(torch.float32)
    model[0].requires_grad_(False)
    before = tensors.weights_digest(model)
    given = session(model, Classification(), data)
    learned(how(sigma0=0.2), given)
    assert tensors.weights_digest(given.model) == tensors.weights_digest(model) == before


def test_weights_end_to_the_bit_where_they_were():
    model, data = CASES["conv"].make(torch.float32)
    given = session(model, Classification(), data)
    _, _, flat = learned(how(), given)
    assert tensors.weights_digest(flat.released()) == tensors.weights_digest(model)


def test_dropout_is_off():
    torch.manual_seed(0)
    layers = [nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)]
    plain = nn.Sequential(*layers).to(D).eval()
    dropped = nn.Sequential(layers[0], nn.Tanh(), nn.Dropout(0.5), layers[2]).to(D).train()
    data = CASES["linear"].make()[1]
    found = [learned(how(sigma0=0.2), session(m, Classification(), data))[0] for m in (plain, dropped)]
    for a, b in zip(found[0].values(), found[1].values(), strict=True):
        assert torch.equal(a, b)


def test_masked_weights_are_not_disturbed():
    model, data = CASES["linear"].make()
    generator = torch.Generator().manual_seed(2)
    kept = {n: torch.rand(p.shape, generator=generator) < 0.5 for n, p in parameters(model).items() if n != "2.bias"}
    given = session(model, Classification(), data, masks=Masks(kept))
    found, _, flat = learned(how(sigma0=0.2, mean_rate=1.0), given)
    want, mean = slowly(model, Classification(), data, how(sigma0=0.2, mean_rate=1.0), kept=kept)
    for name, sigma in want.items():
        assert torch.allclose(found[name], sigma, rtol=1e-9, atol=0)
        assert torch.allclose(flat.named(flat.weights)[name], mean[name], rtol=1e-12, atol=1e-14)
    for name, free in kept.items():
        assert bool((found[name][~free] == torch.tensor(math.log(0.2), dtype=D).exp()).all())
        assert torch.equal(flat.named(flat.weights)[name][~free], parameters(model)[name][~free])


def test_five_vectors_are_held_by_default():
    model, data = CASES["linear"].make()

    def held(**settings: Any) -> int:
        given = session(model, Classification(), data)
        flat = Flat(given.model)
        learner = Learner(how(**settings), given, flat, 0.02, QUIET)
        vectors = [*vars(flat).values(), *vars(learner).values(), *(c.log_sigma for c in learner.chains)]
        return sum(isinstance(v, Tensor) and v.shape == (flat.length,) for v in vectors)

    assert held() == 5
    assert held(pairs=3) == 6
    assert held(agreement=None, pairs=1) == 4
    assert held(mean_rate=1.0) == 7


CALLS, BAD, STOP = [0], dict[int, float](), [10**9]


class Counts(Classification):
    """Counts batches; in some of them the loss is not finite, and at one nothing goes on."""

    def forward(self, model: nn.Module, batch: Batch, taps: Any = ()) -> Any:
        assert not model.training
        if CALLS[0] >= STOP[0]:
            raise KeyboardInterrupt
        return super().forward(model, batch, taps)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        CALLS[0] += 1
        return super().loss(outputs, target) * BAD.get(CALLS[0], 1.0)


def counts(bad: dict[int, float] | None = None, stop: int = 10**9) -> Counts:
    """Return the task, its counts set anew."""
    CALLS[0], STOP[0] = 0, stop
    BAD.clear()
    BAD.update(bad or {})
    return Counts()


MANY = {"epochs": 13, "most_epochs": 13, "agreement": 0.999}  # 13 epochs of 4 batches of 2 pairs: 104


@pytest.mark.parametrize("call", [1, 2, 203])
@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_pair_with_a_loss_that_is_not_finite_is_left_out(call: int, odd: float):
    model, data = CASES["linear"].make()
    settings = how(learn_batch=2, **MANY)
    given = session(model, counts({call: odd}), data)
    found, run, _ = learned(settings, given)
    assert run.samples == 13 * 8 - 2 / 2  # one of the two estimates lacks a batch
    assert all(bool(torch.isfinite(s).all()) for s in found.values())
    assert given.log["lost_draws"] == 1
    assert any("not finite in 1 of 104 draws, left out" in note for note in given.log["note"])


def test_of_several_pairs_the_others_count():
    model, data = CASES["linear"].make()
    settings = how(learn_batch=8, pairs=2, agreement=None, epochs=60, most_epochs=60)
    given = session(model, counts({1: math.nan}), data)
    found, run, _ = learned(settings, given)
    assert (run.samples, given.log["lost_draws"]) == (60 * 8, 1)
    assert all(bool(torch.isfinite(s).all()) for s in found.values())


def test_gradients_that_are_not_finite_are_left_out_too():
    class Root(Own):
        calls = 0

        def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
            Root.calls += 1
            return (outputs * 0).sum(1).sqrt() if Root.calls == 3 else self.of(outputs)  # at 0 its slope is infinite

    given = session(Vector(0.3, 1.0), Root(lambda out: out.square().sum(1)), ones(8, 2))
    found, _, _ = learned(how(learn_batch=2, **MANY), given)
    assert given.log["lost_draws"] == 1
    assert bool(torch.isfinite(found["theta"]).all())


def test_more_than_one_percent_of_lost_draws_ends_it():
    model, data = CASES["linear"].make()
    bad = dict.fromkeys((1, 5), math.nan)
    want = r"finite loss of drawn weights in 99 % of the draws, got NaN or infinity in 2 of 3: lower kl_gaussian.sigma0"
    with pytest.raises(NotFinite, match=want):
        learned(how(learn_batch=2, **MANY), session(model, counts(bad), data))


def test_steep_steps_are_counted():
    given = session(Vector(1.0, 1.0), quadratic(1e6 * torch.eye(2, dtype=D)), ones(9, 2))
    learned(how(sigma0=0.5, sigma_min=1e-9), given)
    assert given.log["cut_steps"] > 0


def spread(n: int) -> Own:
    """Return a quadratic whose curvatures are far apart, so that the ranks of σ are soon known."""
    return quadratic(torch.logspace(-2, 3, n, dtype=D).diag())


def test_it_ends_when_both_estimates_agree():
    given = session(Vector(*[0.1] * 20), spread(20), ones(64, 20))
    _, run, _ = learned(how(learn_batch=8, epochs=2, most_epochs=30, agreement=0.9), given)
    assert 2 <= run.epochs < 30
    assert run.agreement[-1] >= 0.9
    assert all(value < 0.9 for value in run.agreement[1:-1])
    assert given.log["agreement"] == [[n, value] for n, value in enumerate(run.agreement, start=1)]
    assert "note" not in given.log
    assert run.samples == run.epochs * 64


def test_at_least_the_epochs_that_are_asked_for():
    given = session(Vector(*[0.1] * 20), spread(20), ones(64, 20))
    _, run, _ = learned(how(learn_batch=8, epochs=12, most_epochs=30, agreement=0.1), given)
    assert run.epochs == 12


def test_estimates_that_do_not_agree_are_told():
    model, data = CASES["linear"].make()
    given = session(model, Classification(), data)
    _, run, _ = learned(how(agreement=0.99), given)
    assert run.epochs == 2
    assert f"agree by a rank correlation of {run.agreement[-1]:.2f} after 2 epochs, not by 0.99" in given.log["note"][0]
    assert "raise kl_gaussian.most_epochs or pairs, lower learn_batch, which makes" in given.log["note"][0]
    more = needed(run.agreement[-1], 2, 0.99)
    assert ("epochs would take it there" in given.log["note"][0]) == (more is not None)


def test_how_long_two_estimates_take_to_agree():
    assert needed(0.5, 10, 0.5) == 10
    assert needed(0.2, 1, 0.8) == 16
    assert needed(0.0, 5, 0.8) is needed(-0.1, 5, 0.8) is None
    given = session(Vector(*[0.1] * 20), spread(20), ones(64, 20))
    _, run, _ = learned(how(learn_batch=8, epochs=3, agreement=0.9999), given)
    assert f"about {needed(run.agreement[-1], 3, 0.9999):,} epochs would take it there" in given.log["note"][0]


@pytest.mark.parametrize("settings", [{"agreement": None}, {"antithetic": False}])
def test_one_estimate_takes_the_epochs_that_are_asked_for(settings: dict[str, Any]):
    model, data = CASES["linear"].make()
    given = session(model, Classification(), data)
    _, run, _ = learned(how(**{**settings, "most_epochs": 9}), given)
    assert (run.epochs, list(run.agreement)) == (2, [])
    assert "agreement" not in given.log


def test_progress_counts_samples_up_to_the_end():
    said: list[Progress] = []
    given = session(Vector(*[0.1] * 20), spread(20), ones(64, 20), runtime=replace(QUIET, progress=said.append))
    learned(how(learn_batch=10, epochs=1, most_epochs=30), given)
    assert said[-1] == Progress("learning σ on train", 64 * 30, 64 * 30)
    assert [p.done for p in said] == sorted(p.done for p in said)


def stopped(given: Session, settings: Learning) -> None:
    with pytest.raises(KeyboardInterrupt):
        learned(settings, given)


RESUMED = {
    "two estimates": {},
    "three pairs that weights follow": {"pairs": 3, "mean_rate": 1.0},
    "lone draws": {"antithetic": False},
}


@pytest.mark.parametrize("way", RESUMED)
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_after_a_kill_in_mid_epoch_it_goes_on_to_the_same_bits(way: str, dtype: torch.dtype, tmp_path: Path):
    model, data = CASES["linear"].make(dtype)
    settings = how(sigma0=0.2, agreement=0.999, **RESUMED[way])
    whole = session(model, counts(), data)
    want, plain, flat = learned(settings, whole)
    calls = CALLS[0]
    stopped(session(model, counts(stop=calls * 5 // 7), data, runtime=kept_in(tmp_path)), settings)
    assert len(list(tmp_path.glob("kl_gaussian-prepare-bgd-*.safetensors"))) == 1
    again = session(model, counts(), data, runtime=kept_in(tmp_path))
    found, run, after = learned(settings, again)
    assert all(torch.equal(found[n], s) for n, s in want.items())
    assert torch.equal(after.weights, flat.weights)
    assert (run.samples, run.epochs, run.agreement) == (plain.samples, plain.epochs, plain.agreement)
    assert again.log == whole.log
    assert 0 < CALLS[0] <= calls - calls * 5 // 7 + calls // 6  # at most a step again
    assert list(tmp_path.iterdir()) == []


def test_written_no_more_often_than_asked(tmp_path: Path):
    model, data = CASES["linear"].make()
    stopped(session(model, counts(stop=20), data, runtime=kept_in(tmp_path, every=3600)), how())
    assert list(tmp_path.iterdir()) == []


def test_what_was_kept_of_other_work_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model, data = CASES["linear"].make()
    runtime = kept_in(tmp_path)
    stopped(session(model, counts(stop=20), data, runtime=runtime), how())
    for other in (how(sigma_max=0.05), how(mean_rate=1.0), how(pairs=3)):
        given = session(model, counts(), data, runtime=runtime)
        learned(other, given)
        assert CALLS[0] == 6 * 2 * other.pairs
    assert len(list(tmp_path.iterdir())) == 1  # of the first, still
    ids = data.ids
    renamed = Data.from_arrays(data.read(range(8)).inputs.flip(0), data.read(range(8)).target, ids=ids)
    with caplog.at_level(logging.WARNING):
        given = session(model, counts(), renamed, runtime=runtime)
        found, _, _ = learned(how(), given)
    assert "other content under the ids of train" in caplog.text
    want, _, _ = learned(how(), session(model, Classification(), renamed))
    assert all(torch.equal(found[n], s) for n, s in want.items())


def test_a_file_that_cannot_be_read_is_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model, data = CASES["linear"].make()
    stopped(session(model, counts(stop=20), data, runtime=kept_in(tmp_path)), how())
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING):
        found, _, _ = learned(how(), session(model, counts(), data, runtime=kept_in(tmp_path)))
    assert "cannot be read (CorruptArtefact): beginning anew" in caplog.text
    want, _, _ = learned(how(), session(model, Classification(), data))
    assert all(torch.equal(found[n], s) for n, s in want.items())


def test_too_little_memory_for_a_batch_is_a_sentence():
    class Hungry(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much")
            return super().forward(x)

    data = Data.from_arrays(torch.randn(8, 4), torch.arange(8) % 3)
    with pytest.raises(
        UserError, match="memory for a batch of 3 samples, got too little: lower kl_gaussian.learn_batch"
    ):
        learned(how(), session(Hungry(4, 3), Classification(), data))


def test_a_copy_is_worked_on():
    model, data = CASES["linear_regression"].make()
    before = copy.deepcopy(model)
    learned(how(mean_rate=1.0), session(model, Regression(), data))
    assert tensors.weights_digest(model) == tensors.weights_digest(before)
    assert all(p.grad is None for p in model.parameters())
