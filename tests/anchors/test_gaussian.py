"""Steps of a Gaussian near its prior: parity, laws, and a slow reference hold in plain loops."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cases import CASES, QUIET, blobs, deep
from expunge.anchors import _flat
from expunge.anchors._flat import ALIGNED, noise_seed
from expunge.anchors._gaussian import NOISE, GaussianHold, deflated
from expunge.anchors._posterior import LEVELS, LOW, STEP, Posterior
from expunge.anchors._rules import divergence, explicit, gradients, learned, literal, proximal, size_free
from expunge.anchors._settings import Forgetting
from expunge.data import Batch, Data
from expunge.errors import Incompatible, MissingNeed, NotFinite, UserError
from expunge.masks import Masks
from expunge.method import Needs, See, Session, State
from expunge.runtime import Runtime
from expunge.task import Classification
from expunge.tensors import parameters, weights_digest

TASK = Classification()
RULES: dict[str, Callable[..., None]] = {"proximal": proximal, "explicit": explicit}
BATCHES = [slice(0, 3), slice(3, 6), slice(6, 8)]  # the last one is smaller


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class How(Forgetting):
    """Settings of a hold, checked as an anchor's are."""

    def __post_init__(self) -> None:
        self.check_forgetting()


def entropy(model: nn.Module, batch: Batch) -> Tensor:
    logs = model(batch.inputs).log_softmax(1)
    return (logs.exp() * logs).sum(1).mean()


def posterior(model: nn.Module, samples: float = 400.0, **facts: Any) -> Posterior:
    """Return σ between 0.01 and 0.05 around a model's trainable weights."""
    generator = torch.Generator().manual_seed(3)
    log_sigma = {
        name: torch.log(0.01 + 0.04 * torch.rand(p.shape, generator=generator, dtype=torch.float64)).to(p.dtype)
        for name, p in parameters(model).items()
    }
    return Posterior(log_sigma, samples, {"sigma0": 0.05, "passes": 2.0, **facts})


def request(model: nn.Module, data: Data, *, runtime: Runtime = QUIET, masks: Masks | None = None) -> Session:
    needs = Needs(forget=See.LABELLED)
    return Session(
        task=TASK, runtime=runtime, seed=5, method="m", phase="unlearn", needs=needs, source=model,
        given={"forget": data}, masks=masks,
    )  # fmt: skip


def held(
    model: nn.Module,
    data: Data,
    how: How,
    *,
    lowered: Any = entropy,
    steps: int | None = None,
    state: State | None = None,
    **options: Any,
) -> GaussianHold:
    session = request(model, data, **options)
    state = posterior(model).state() if state is None else state
    return GaussianHold(session, state, lowered, how, steps, name="kl", stored="float32")


def batches(data: Data, count: int) -> list[Batch]:
    return [data.read(range(len(data))).part(BATCHES[i % 3]) for i in range(count)]


# -- the divergence and the rules ----------------------------------------------------------------------------------


MU_P, SIGMA_P = vector(0, 1, -0.5), vector(0.1, 0.2, 0.05)
MU_Q, SIGMA_Q = vector(0.05, 0.9, -0.5), vector(0.08, 0.25, 0.05)
NONE = torch.zeros(3, dtype=torch.float64)


def test_the_divergence_of_three_scalars():
    found = divergence(MU_Q, SIGMA_Q.log(), MU_P, SIGMA_P.log())
    assert found.tolist() == pytest.approx([0.1681435513, 0.1831064487, 0], abs=1e-10)
    assert float(found.sum()) == pytest.approx(0.35125, abs=1e-14)


def test_the_divergences_gradients_are_those_of_autograd_and_of_finite_differences():
    mu, log = MU_Q.clone().requires_grad_(), SIGMA_Q.log().requires_grad_()
    divergence(mu, log, MU_P, SIGMA_P.log()).sum().backward()
    by_mu, by_log = gradients(MU_Q, SIGMA_Q.log(), MU_P, SIGMA_P.log(), NONE, NONE, weight=1.0, lam=1.0)
    assert by_mu.tolist() == pytest.approx([5, -2.5, 0], abs=1e-12)
    assert (by_log / SIGMA_Q).tolist() == pytest.approx([-4.5, 2.25, 0], abs=1e-12)
    assert by_log.tolist() == pytest.approx([-0.36, 0.5625, 0], abs=1e-12)
    assert torch.allclose(by_mu, mu.grad, rtol=0, atol=1e-13)
    assert torch.allclose(by_log, log.grad, rtol=0, atol=1e-13)
    step = 1e-5
    for at, want in enumerate(by_mu):
        moved = torch.zeros(3, dtype=torch.float64)
        moved[at] = step
        up, down = (divergence(MU_Q + s * moved, SIGMA_Q.log(), MU_P, SIGMA_P.log()).sum() for s in (1, -1))
        assert float((up - down) / (2 * step)) == pytest.approx(float(want), abs=1e-8)


def test_the_prior_itself_has_no_divergence_and_no_gradient():
    assert divergence(MU_P, SIGMA_P.log(), MU_P, SIGMA_P.log()).tolist() == [0, 0, 0]
    by_mu, by_log = gradients(MU_P, SIGMA_P.log(), MU_P, SIGMA_P.log(), NONE, NONE, weight=1.0, lam=1.0)
    assert by_mu.tolist() == by_log.tolist() == [0, 0, 0]


def test_a_step_down_the_gradient_lowers_the_divergence_and_with_the_printed_sign_raises_it():
    by_mu, _ = gradients(MU_Q, SIGMA_Q.log(), MU_P, SIGMA_P.log(), NONE, NONE, weight=1.0, lam=1.0)
    before = divergence(MU_Q, SIGMA_Q.log(), MU_P, SIGMA_P.log()).sum()
    down, printed = (
        divergence(MU_Q - 1e-3 * SIGMA_P**2 * g, SIGMA_Q.log(), MU_P, SIGMA_P.log()).sum() for g in (by_mu, -by_mu)
    )
    assert down < before < printed


@pytest.mark.parametrize(
    ("rule", "lam", "rate", "mu", "sigma"),
    [
        ("proximal", 0.5, 1, 0.0475757576, 0.0823038051),
        ("proximal", 0.1, 0.5, 0.0596124031, 0.0772816511),
        ("proximal", 0, 1, 0.0756, 0.0723990050),
        ("explicit", 0.5, 1, 0.0468, 0.0832639744),
        ("explicit", 0.1, 0.5, 0.05992, 0.0744470920),
    ],
)
def test_one_step_of_each_rule(rule: str, lam: float, rate: float, mu: float, sigma: float):
    q, log = vector(0.05), vector(0.08).log()
    RULES[rule](
        q, log, vector(0), vector(0.1).log(), vector(-4), vector(0.08 * 2.5), weight=1 - lam, lam=lam, rate=rate
    )
    assert float(q) == pytest.approx(mu, abs=1e-10)
    assert float(log.exp()) == pytest.approx(sigma, abs=1e-10)


def test_the_explicit_rules_gradients():
    by_mu, by_log = gradients(
        vector(0.05),
        vector(0.08).log(),
        vector(0),
        vector(0.1).log(),
        vector(-4),
        vector(0.08 * 2.5),
        weight=0.5,
        lam=0.5,
    )
    assert float(by_mu) == pytest.approx(0.5, abs=1e-12)
    assert float(by_log) / 0.08 == pytest.approx(-1, abs=1e-12)


def test_without_a_prior_and_at_rate_one_the_proximal_step_is_bayesian_gradient_descent():
    torch.manual_seed(0)
    mu, log, g, e = (torch.randn(50, dtype=torch.float64) for _ in range(4))
    q, log_q = mu.clone(), log.clone()
    proximal(q, log_q, torch.randn_like(mu), torch.randn_like(mu), g, log.exp() * e, weight=1.0, lam=0.0, rate=1.0)
    want = log.clone()
    learned(want, e)
    kept = (0.5 * log.exp() * e).abs() < 5
    assert int(kept.sum()) > 40
    assert torch.allclose(log_q[kept], want[kept], rtol=0, atol=1e-12)
    assert torch.allclose(q, mu - (2 * log).exp() * g, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("rule", "first", "second"), [("proximal", 0.004, 0.0071738232), ("explicit", 0.005, 0.0086879358)]
)
def test_both_rules_end_at_the_same_fixed_point(rule: str, first: float, second: float):
    """U = ½·2·(θ − 1)²: its exact moments at N(μ, σ²) are ḡ = 2(μ − 1) and e = 2σ."""
    mu, log, mu_p, log_p = vector(0), vector(0.1).log(), vector(0), vector(0.1).log()
    seen = []
    for _ in range(200):
        RULES[rule](mu, log, mu_p, log_p, 2 * (mu - 1), 2 * (2 * log).exp(), weight=0.5, lam=0.5, rate=0.5)
        seen.append(float(mu))
    assert seen[:2] == pytest.approx([first, second], abs=1e-9)
    assert seen[-1] == pytest.approx(0.0196078431373, abs=1e-10)
    assert float(log.exp()) == pytest.approx(0.0990147542977, abs=1e-10)


@pytest.mark.parametrize(
    ("lam", "samples", "want"),
    [(0.9, 50_000, 1.7996760583e-4), (0.5, 50_000, 1.9999600008e-5), (0.98, 150_000, 3.2655999040e-4)],
)
def test_the_two_spellings_of_lambda(lam: float, samples: float, want: float):
    assert literal(lam, samples) == pytest.approx(want, abs=1e-14)
    assert size_free(literal(lam, samples), samples) == pytest.approx(lam, abs=1e-12)


# -- a slow hold ---------------------------------------------------------------------------------------------------


@dataclass
class Slow:
    """The same steps, a scalar at a time, from the formulas as they stand."""

    model: nn.Module
    how: How
    posterior: Posterior
    rate: float
    lowered: Callable[[nn.Module, Batch], Tensor] = entropy
    taken: int = 0
    moments: dict[str, list[list[float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.params = parameters(self.model)
        self.starts, end = {}, 0
        for name, p in self.params.items():
            self.starts[name] = end
            end += -(-p.numel() // ALIGNED) * ALIGNED
        self.length = end
        self.mu_p = self.flat({n: p.detach() for n, p in self.params.items()})
        log_p = self.flat(dict(self.posterior.log_sigma))
        if self.how.lean:
            log_p = [math.log(LOW) + STEP * min(LEVELS - 1, max(0, round((v - math.log(LOW)) / STEP))) for v in log_p]
        self.sigma_p = [math.exp(v) for v in log_p]
        self.mu, self.sigma = [*self.mu_p], [*self.sigma_p]

    def flat(self, values: dict[str, Tensor]) -> list[float]:
        return [v for name in self.params for v in values[name].reshape(-1).tolist()]

    def gradient(self, weights: list[float], batch: Batch) -> tuple[float, list[float]]:
        at = 0
        for p in self.params.values():
            p.data.copy_(torch.tensor(weights[at : at + p.numel()], dtype=p.dtype).view(p.shape))
            at += p.numel()
        value = self.lowered(self.model, batch)
        grads = [torch.zeros_like(p) for p in self.params.values()]
        if value.requires_grad:
            grads = torch.autograd.grad(value, list(self.params.values()))
        return float(value.detach()), self.flat(dict(zip(self.params, grads, strict=True)))

    def noise(self, pair: int) -> list[float]:
        generator = torch.Generator().manual_seed(noise_seed(5, NOISE, self.taken, pair))
        draw = torch.empty(self.length, dtype=torch.float64).normal_(generator=generator)
        return self.flat({n: draw[self.starts[n] : self.starts[n] + p.numel()] for n, p in self.params.items()})

    def step(self, batch: Batch) -> float:
        self.taken += 1
        size, values = len(self.mu), []
        g, e = [0.0] * size, [0.0] * size
        count = 2 * self.how.draws
        if not self.how.sampling:
            value, g = self.gradient(self.mu, batch)
            values.append(value)
        for pair in range(self.how.draws if self.how.sampling else 0):
            eps = self.noise(pair)
            for sign in (1, -1):
                weights = [m + sign * s * n for m, s, n in zip(self.mu, self.sigma, eps, strict=True)]
                value, found = self.gradient(weights, batch)
                values.append(value)
                g = [a + b / count for a, b in zip(g, found, strict=True)]
                e = [a + sign * b * n / count for a, b, n in zip(e, found, eps, strict=True)]
        for i in range(size):
            self.moved(i, g[i], e[i] if self.how.sampling and self.how.sigma == "learned" else None)
        return sum(values) / len(values)

    def moved(self, i: int, g: float, e: float | None) -> None:
        lam = self.how.lam if self.how.literal is None else size_free(self.how.literal, self.posterior.samples)
        w, eta = (1 - lam) * self.posterior.samples, self.rate
        m, s, m_p, s_p = self.mu[i], self.sigma[i], self.mu_p[i], self.sigma_p[i]
        down = w * g + lam * (m - m_p) / s_p**2
        slope = None if e is None else w * e + lam * (s / s_p**2 - 1 / s)
        if self.how.rule == "proximal":
            a = 1 / (eta * s**2) + lam / s_p**2
            self.mu[i] = (m / (eta * s**2) + lam * m_p / s_p**2 - w * g) / a
            if e is not None:
                b, c = w * e, 1 / eta + lam
                self.sigma[i] = (-b + math.sqrt(b * b + 4 * a * c)) / (2 * a)
        elif self.how.rule == "explicit":
            self.mu[i] = m - eta * s**2 * down
            if slope is not None:
                self.sigma[i] = s * math.exp(-math.asinh(0.5 * s * slope))
        else:
            self.mu[i] = m - eta * self.adam("mu", i, down)
            if slope is not None:
                self.sigma[i] = s * math.exp(-100 * eta * self.adam("log", i, s * slope))
        self.sigma[i] = min(3 * s_p, max(s_p / 10, self.sigma[i]))

    def adam(self, what: str, i: int, gradient: float) -> float:
        first, second = self.moments.setdefault(what, [[0.0] * len(self.mu), [0.0] * len(self.mu)])
        first[i] = 0.9 * first[i] + 0.1 * gradient
        second[i] = 0.999 * second[i] + 0.001 * gradient**2
        mean, square = first[i] / (1 - 0.9**self.taken), second[i] / (1 - 0.999**self.taken)
        return mean / (math.sqrt(square) + 1e-8)

    def kl(self) -> float:
        rows = zip(self.mu, self.sigma, self.mu_p, self.sigma_p, strict=True)
        return sum(0.5 * ((p - m) ** 2 / t**2 + s**2 / t**2 - 1 + math.log(t**2 / s**2)) for m, s, p, t in rows)


WAYS: dict[str, dict[str, Any]] = {
    "proximal": {},
    "explicit": {"rule": "explicit"},
    "adam": {"rule": "adam"},
    "four halves": {"draws": 2},
    "six halves": {"draws": 3, "rule": "explicit"},
    "frozen": {"sigma": "frozen"},
    "frozen, four halves": {"sigma": "frozen", "draws": 2},
    "frozen, adam": {"sigma": "frozen", "rule": "adam"},
    "lean": {"sigma": "frozen", "lean": True},
    "mean only": {"sigma": "frozen", "sampling": False},
    "mean only, lean": {"sigma": "frozen", "sampling": False, "lean": True, "rule": "explicit"},
    "mean only, adam": {"sigma": "frozen", "sampling": False, "rule": "adam"},
    "literal": {"literal": 0.002},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("piece", [_flat.PIECE["cpu"], 32])
def test_equals_a_slow_hold(way: str, piece: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(_flat.PIECE, "cpu", piece)
    model, data = CASES["linear"].make()
    how = How(lam=0.3, rate=1e-3 if "adam" in way else 0.3 if "explicit" not in str(WAYS[way]) else 0.2, **WAYS[way])
    fast = held(model, data, how)
    slow = Slow(copy.deepcopy(model), how, posterior(model), how.rate or 0.0)
    for batch in batches(data, 7):
        assert fast.step(batch) == pytest.approx(slow.step(batch), abs=1e-10)
        assert fast.penalty() == pytest.approx(slow.kl(), rel=1e-9, abs=1e-10)
    assert fast.told()["kl_per_sample"] == pytest.approx(slow.kl() / 400, rel=1e-9)
    done, state = fast.finish()
    assert slow.flat({n: p.detach() for n, p in parameters(done).items()}) == pytest.approx(slow.mu, abs=1e-10)
    found = Posterior.load(state, done)
    assert slow.flat(dict(found.log_sigma)) == pytest.approx([math.log(s) for s in slow.sigma], abs=1e-9)
    assert max(abs(a - b) / t for a, b, t in zip(slow.mu, slow.mu_p, slow.sigma_p, strict=True)) > 0.05
    if how.sigma == "learned":
        assert max(abs(math.log(a / b)) for a, b in zip(slow.sigma, slow.sigma_p, strict=True)) > 0.005


@pytest.mark.parametrize("name", ["tied", "conv", "batchnorm1d", "frozen"])
def test_equals_a_slow_hold_where_weights_are_shared_frozen_or_of_other_layers(name: str):
    model, data = CASES[name].make()
    fast, slow = held(model, data, How(lam=0.3)), Slow(copy.deepcopy(model), How(lam=0.3), posterior(model), 0.1)
    for batch in batches(data, 3):
        assert fast.step(batch) == pytest.approx(slow.step(batch), abs=1e-10)
        assert fast.penalty() == pytest.approx(slow.kl(), rel=1e-9, abs=1e-10)
    done, _ = fast.finish()
    assert slow.flat({n: p.detach() for n, p in parameters(done).items()}) == pytest.approx(slow.mu, abs=1e-10)
    still = {n for n, p in model.named_parameters() if not p.requires_grad} | {n for n, _ in model.named_buffers()}
    before, after = model.state_dict(), done.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in still)


@pytest.mark.parametrize(("curvature", "bound"), [(1e4, 0.1), (-1e4, 3)])
@pytest.mark.parametrize("rule", ["proximal", "explicit", "adam"])
def test_sigma_stays_within_its_bounds(rule: str, curvature: float, bound: float):
    model, data = CASES["linear"].make()

    start = [p.detach().clone() for p in model.parameters()]

    def bowl(model: nn.Module, batch: Batch) -> Tensor:
        return sum(curvature * (p - at).square().sum() for p, at in zip(model.parameters(), start, strict=True))

    hold = held(model, data, How(lam=0.5, rate=0.1, rule=rule), lowered=bowl)
    for batch in batches(data, 4):
        hold.step(batch)
    apart = (hold.log_q - hold.log_p).exp()
    places = torch.cat([apart[at] for at in hold.flat.slices.values()])
    assert float(places.median()) == pytest.approx(bound, rel=1e-12)
    assert float(places.min()) > 0.1 - 1e-12
    assert float(places.max()) < 3 + 1e-12


# -- laws ----------------------------------------------------------------------------------------------------------


def moved(hold: GaussianHold, data: Data, steps: int) -> float:
    """Return how far weights are from where they were after some steps, in σ_p, at most."""
    for batch in batches(data, steps):
        hold.step(batch)
    return float(((hold.mu - hold.mu_p) / hold.log_p.exp()).abs().max())


def test_with_a_weight_near_one_weights_stay():
    model, data = CASES["linear"].make()
    far = [moved(held(model, data, How(lam=lam, rate=0.1)), data, 30) for lam in (0.5, 0.99, 1 - 1e-6)]
    assert far[0] > 100 * far[2] / 2
    assert far[0] > far[1] > far[2]
    assert far[2] < 1e-4


def test_an_objective_without_gradient_leaves_the_pull_to_the_prior():
    model, data = CASES["linear"].make()
    state = {"on": True}
    hold = held(
        model, data, How(lam=0.5, rate=0.2), lowered=lambda m, b: entropy(m, b) if state["on"] else vector(1)[0]
    )
    moved(hold, data, 5)
    state["on"] = False
    seen = [hold.penalty()]
    for batch in batches(data, 60):
        assert hold.step(batch) == 1.0
        seen.append(hold.penalty())
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < 1e-3 * seen[0]


def test_the_same_seed_gives_the_same_steps_and_another_request_other_noise():
    model, data = CASES["linear"].make()
    one, two = (held(model, data, How(lam=0.5)) for _ in range(2))
    for batch in batches(data, 3):
        assert one.step(batch) == two.step(batch)
    assert torch.equal(one.mu, two.mu)
    one.step(batches(data, 1)[0])
    assert not torch.equal(one.flat.weights, two.flat.weights)


def test_masked_weights_and_what_is_frozen_end_as_they_were():
    model, data = deep(), blobs(8)
    before = copy.deepcopy(model)
    name = next(n for n, p in parameters(model).items() if p.dim() == 2)
    keep = torch.rand(parameters(model)[name].shape, generator=torch.Generator().manual_seed(1)) < 0.5
    seen = list[Tensor]()

    def lowered(model: nn.Module, batch: Batch) -> Tensor:
        seen.append(parameters(model)[name].detach().clone())
        return entropy(model, batch)

    for how in (How(lam=0.2), How(lam=0.2, rule="adam"), How(lam=0.2, sigma="frozen", sampling=False)):
        hold = held(model.eval(), data, how, masks=Masks({name: keep}), lowered=lowered)
        for batch in batches(data, 4):
            hold.step(batch)
        done, state = hold.finish()
        old, new = parameters(before)[name], parameters(done)[name]
        assert torch.equal(old[~keep], new[~keep])
        assert not bool((old[keep] == new[keep]).any())
        assert all(torch.equal(s[~keep], old[~keep]) for s in seen)  # nor are they drawn
        found = Posterior.load(state, done).log_sigma[name]
        assert torch.equal(found[~keep], posterior(before).log_sigma[name][~keep])
        for key, buffer in before.named_buffers():
            assert torch.equal(buffer, dict(done.named_buffers())[key])


def test_the_mean_is_what_is_returned_in_eval_mode():
    model, data = CASES["linear"].make()
    hold = held(model, data, How(lam=0.5))
    for batch in batches(data, 4):
        hold.step(batch)
    with hold.mean() as inside:
        digest = weights_digest(inside)
        assert not inside.training
    hold.step(batches(data, 1)[0])
    with hold.mean() as inside:
        last = weights_digest(inside)
    done, _ = hold.finish()
    assert not done.training
    assert digest != last == weights_digest(done)


def test_a_network_of_half_precision_is_worked_on_in_float32_and_comes_back():
    model, data = CASES["linear"].make(torch.float32)
    hold = held(model.bfloat16(), data, How(lam=0.5, rate=0.5))
    assert hold.mu.dtype == torch.float32
    for batch in batches(data, 3):
        hold.step(batch)
    done, _ = hold.finish()
    assert {p.dtype for p in done.parameters()} == {torch.bfloat16}
    wide = hold.flat.named(hold.mu)
    assert all(torch.equal(p, wide[n].bfloat16()) for n, p in parameters(done).items())


def test_the_next_request_starts_where_this_one_ended():
    model, data = CASES["linear"].make()
    first = held(model, data, How(lam=0.5))
    for batch in batches(data, 5):
        first.step(batch)
    log_q = first.log_q.clone()
    done, state = first.finish()
    second = held(done, data, How(lam=0.5), state=state)
    assert torch.equal(second.mu_p, first.mu)
    places = list(second.flat.slices.values())
    assert all(torch.equal(second.log_p[at], log_q[at]) for at in places)
    assert second.penalty() == 0
    _, state = second.finish()
    facts = Posterior.load(state, done).facts
    assert facts["requests"] == 2
    assert facts["sigma0"] == 0.05
    assert Posterior.load(state, done).samples == 400


# -- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({}, 28),
        ({"draws": 3}, 28),
        ({"sigma": "frozen"}, 20),
        ({"sigma": "frozen", "lean": True}, 17),
        ({"sigma": "frozen", "sampling": False}, 16),
        ({"sigma": "frozen", "sampling": False, "lean": True}, 13),
    ],
)
def test_what_is_held_a_weight_is_what_is_said(settings: dict[str, Any], want: int):
    model, data = CASES["linear"].make(torch.float32)
    hold = held(model, data, How(**settings))
    for batch in batches(data, 2):
        hold.step(batch)
    own = [v for v in vars(hold).values() if isinstance(v, Tensor) and v.numel() == hold.flat.length]
    own += [v for v in vars(hold.flat).values() if isinstance(v, Tensor) and v.numel() == hold.flat.length]
    sizes = {v.data_ptr(): v.element_size() for v in own}
    assert sum(sizes.values()) == want
    assert sizes == {v.data_ptr(): v.element_size() for v in hold.vectors().values()}


class Sizes(TorchDispatchMode):
    """Notes the largest tensor that an operation makes anew."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known, self.largest = {t.untyped_storage().data_ptr() for t in known}, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for t in found if isinstance(found, tuple | list) else [found]:
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, t.untyped_storage().nbytes() // t.element_size())
        return found


@pytest.mark.parametrize("way", WAYS)
def test_no_step_makes_anything_as_long_as_the_weights(way: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(_flat.PIECE, "cpu", 32)
    model, data = CASES["linear"].make()
    hold = held(model, data, How(**WAYS[way]))
    first, second = batches(data, 2)
    hold.step(first)  # Adam makes its moments
    moments = [v for s in hold.adam.state.values() for v in s.values()] if hold.adam is not None else []
    with Sizes([*hold.vectors().values(), *moments]) as seen:
        hold.step(second)
    assert 20 <= seen.largest <= 32 < hold.flat.length


def test_lean_sigma_is_within_the_grids_error():
    model, data = CASES["linear"].make()
    hold = held(model, data, How(sigma="frozen", lean=True))
    assert hold.log_p.dtype == torch.uint8
    _, state = hold.finish()
    again = Posterior.load(state, model)
    worst = max(float((again.log_sigma[n] - v).expm1().abs().max()) for n, v in posterior(model).log_sigma.items())
    assert 0 < worst < 0.028


# -- guards --------------------------------------------------------------------------------------------------------


class Faulty:
    """An objective that is not finite at some of its calls."""

    def __init__(self, *bad: int, value: float = math.nan) -> None:
        self.bad, self.calls, self.value = set(bad), 0, value

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        self.calls += 1
        return entropy(model, batch) * (self.value if self.calls in self.bad else 1.0)


@pytest.mark.parametrize(("bad", "calls"), [(1, 5), (2, 6), (3, 7), (4, 8)])
def test_a_pair_with_a_half_that_is_not_finite_is_left_out(bad: int, calls: int):
    """With two pairs: the one that is left is taken again, and gives what it would have given alone."""
    model, data = CASES["linear"].make()
    faulty = Faulty(bad)
    hold = held(model, data, How(lam=0.5, draws=2), lowered=faulty)
    value = hold.step(batches(data, 1)[0])
    kept = 1 if bad <= 2 else 0
    slow = Slow(copy.deepcopy(model), How(lam=0.5, draws=1), posterior(model), hold.rate)
    noise = slow.noise
    slow.noise = lambda pair: noise(kept)  # type: ignore[method-assign]
    assert value == pytest.approx(slow.step(batches(data, 1)[0]), abs=1e-10)
    assert faulty.calls == calls - 2
    assert hold.lost == 1
    found = slow.flat({n: v for n, v in hold.flat.named(hold.mu).items()})
    assert found == pytest.approx(slow.mu, abs=1e-10)


def test_a_step_without_a_pair_moves_nothing_and_the_second_lost_pair_ends_it():
    model, data = CASES["linear"].make()
    hold = held(model, data, How(lam=0.5, rate=0.1), lowered=Faulty(1, 3, value=math.inf))
    first, second = batches(data, 2)
    assert math.isnan(hold.step(first))
    assert torch.equal(hold.mu, hold.mu_p)
    assert float(hold.flat.grads.abs().max()) == float(hold.turn.abs().max()) == 0
    with pytest.raises(NotFinite, match=r"all but 1 % of 60 pairs of .* got 2 without one by step 2: lower kl.rate"):
        hold.step(second)


def test_more_pairs_may_be_lost_where_more_are_planned():
    model, data = CASES["linear"].make()
    hold = held(model, data, How(), lowered=Faulty(1, 2, 3, 4), steps=400)
    for batch in batches(data, 4):
        hold.step(batch)
    assert hold.lost == 4
    hold.lowered = Faulty(1)
    with pytest.raises(NotFinite, match="kl.sampling to false"):
        hold.step(batches(data, 1)[0])


def test_at_the_mean_one_objective_that_is_not_finite_is_too_many():
    model, data = CASES["linear"].make()
    hold = held(model, data, How(sigma="frozen", sampling=False), lowered=Faulty(2))
    first, second = batches(data, 2)
    hold.step(first)
    with pytest.raises(NotFinite, match=r"a finite objective at the mean, got nan at step 2: lower kl.rate"):
        hold.step(second)


def test_a_gradient_that_is_not_finite_is_found():
    model, data = CASES["linear"].make()
    hold = held(model, data, How(), lowered=lambda m, b: (m(b.inputs).mean() * 0).abs().sqrt())
    with pytest.raises(NotFinite, match=r"a finite KL from the prior, got nan after step 1"):
        hold.step(batches(data, 1)[0])


def test_the_rate_is_halved_where_the_divergence_leaps():
    model, data = CASES["linear"].make()
    scale = {"by": 1.0}
    hold = held(model, data, How(lam=0.5, rate=0.1), lowered=lambda m, b: scale["by"] * entropy(m, b))
    rates = []
    for step, batch in enumerate(batches(data, 6)):
        scale["by"] = 30.0 if step == 4 else 1.0
        before = hold.penalty()
        hold.step(batch)
        rates.append((hold.rate, hold.penalty() > 10 * before > 10 * 1e-4 * 400))
    assert rates == [(0.1, False)] * 4 + [(0.05, True), (0.05, False)]
    assert hold.session.log["rate"] == [[0, 0.1], [5, 0.05]]
    text = "rose more than tenfold in a step, and the rate was halved once"
    assert text not in " ".join(hold.session.log["note"])
    hold.finish()
    assert text in " ".join(hold.session.log["note"])


def test_defaults_of_rate_and_steps():
    model, data = CASES["linear"].make()
    for samples, rate, steps in ((400.0, 0.1, 34), (50_000.0, 0.01, 334)):
        state = posterior(model, samples).state()
        hold = held(model, data, How(), state=state)
        assert (hold.rate, hold.steps) == (pytest.approx(rate), steps)
        assert hold.session.log["lam"] == 0.9
        assert hold.session.log["literal_lam"] == pytest.approx(literal(0.9, samples), rel=1e-12)
        hold = held(model, data, How(literal=literal(0.9, samples)), state=state)
        assert hold.session.log["lam"] == pytest.approx(0.9, abs=1e-12)
        assert hold.weight == pytest.approx(0.1 * samples)
        assert held(model, data, How(rule="adam"), state=state).rate == 1e-4
        assert held(model, data, How(), state=state, steps=7).steps == 7


def test_the_explicit_rule_is_refused_where_it_diverges():
    model, data = CASES["linear"].make()
    with pytest.raises(UserError, match=r"kl.rate·λ_n·σ_q²/σ_p² below 2 .* got 2.25: set kl.rate below 0.444, or rule"):
        held(model, data, How(lam=0.5, rate=0.5, rule="explicit"))
    held(model, data, How(lam=0.5, rate=0.4, rule="explicit"))
    held(model, data, How(lam=0.5, rate=0.5, rule="explicit", sigma="frozen"))
    with pytest.raises(UserError, match="got 2:"):
        held(model, data, How(lam=0.5, rate=4.0, rule="explicit", sigma="frozen"))


def test_what_was_prepared_for_another_network_is_refused():
    model, data = CASES["linear"].make()
    with pytest.raises(Incompatible, match="σ of the weights that the model trains"):
        held(deep(), data, How(), state=posterior(model).state())
    with pytest.raises(MissingNeed, match="run prepare while the training data is at hand"):
        held(model, data, How(), state=State())


@pytest.mark.parametrize(("settings", "full"), [({}, True), ({"sigma": "frozen"}, False)])
def test_gradients_that_sigma_is_learned_from_are_never_autocast(settings: dict[str, Any], full: bool):
    model, data = CASES["linear"].make(torch.float32)
    seen = []

    def lowered(model: nn.Module, batch: Batch) -> Tensor:
        outputs = model(batch.inputs)
        seen.append(outputs.dtype)
        return outputs.float().square().mean()

    hold = held(model, data, How(**settings), lowered=lowered, runtime=Runtime(progress=False, precision="bf16"))
    with torch.autocast("cpu", torch.bfloat16):
        hold.step(batches(data, 1)[0])
    assert set(seen) == {torch.float32 if full else torch.bfloat16}
    notes = " ".join(hold.session.log["note"])
    assert ("bf16 would round away" in notes) == full


# -- deflation -----------------------------------------------------------------------------------------------------


def test_deflation_takes_the_forget_sets_squared_gradients_out_of_the_precision():
    model, data = CASES["linear"].make()
    session = request(model, data)
    p = posterior(model)
    found = deflated(p, session)
    squares = {n: torch.zeros_like(v) for n, v in parameters(model).items()}
    for i in range(len(data)):
        batch = data.read([i])
        loss = TASK.loss(model(batch.inputs), batch.target).sum()
        for name, g in zip(squares, torch.autograd.grad(loss, list(parameters(model).values())), strict=True):
            squares[name] += g.square()
    for name, value in p.log_sigma.items():
        want = ((-2 * value).exp() - 2.0 * squares[name]).clamp_min(1 / 0.05**2)
        assert torch.allclose((-2 * found.log_sigma[name]).exp(), want, rtol=1e-9, atol=0)
    assert found.samples == 400 - 2.0 * 8
    assert session.log["deflated"] == pytest.approx(found.geometric / p.geometric)
    assert session.log["deflated"] > 1


def test_deflation_never_widens_beyond_what_was_known_before_any_sample():
    model, data = CASES["linear"].make()
    p = posterior(model, samples=1e9, passes=1e6, sigma0=0.03)
    found = deflated(p, request(model, data))
    for name, value in p.log_sigma.items():
        wide = value > math.log(0.03)
        assert torch.allclose(found.log_sigma[name][wide], value[wide], rtol=0, atol=1e-12)
        assert torch.allclose(found.log_sigma[name][~wide].exp(), torch.tensor(0.03, dtype=torch.float64))


@pytest.mark.parametrize("gone", ["sigma0", "passes"])
def test_deflation_without_what_was_learned_is_refused(gone: str):
    model, data = CASES["linear"].make()
    found = posterior(model)
    found = replace(found, facts={name: value for name, value in found.facts.items() if name != gone})
    with pytest.raises(Incompatible, match=r"how often each sample went into σ.*: set deflate to false, or prepare"):
        deflated(found, request(model, data))


@pytest.mark.parametrize(("agreement", "told"), [([0.1, 0.3], True), ([0.1, 0.9], False), ([], False)])
def test_a_noisy_preparation_is_told_again_with_every_request(agreement: list[float], told: bool):
    model, data = CASES["linear"].make()
    state = posterior(model, agreement=agreement, agreement_wanted=0.8).state()
    notes = " ".join(held(model, data, How(), state=state).session.log["note"])
    assert ("agreed by 0.30 in preparation, not by 0.8" in notes) == told


def test_steps_are_planned_where_the_rate_is_known():
    assert How(lam=0.5, rate=0.02).planned == 300
    assert How(lam=0.5).planned is How(lam=0.5, rate=0.02, rule="adam").planned is How(literal=0.5, rate=0.1).planned
    assert How().planned is None


def test_deflation_by_all_that_was_learned_from_is_refused():
    model, data = CASES["linear"].make()
    with pytest.raises(UserError, match=r"fewer samples to forget than the 8 behind σ, got 8: set deflate to false"):
        deflated(posterior(model, samples=16.0), request(model, data))


def test_without_deflation_a_note_says_what_sigma_still_carries():
    model, data = CASES["linear"].make()
    text = "still carries the share of the samples forgotten here"
    assert text in " ".join(held(model, data, How()).session.log["note"])
    assert "note" not in held(model, data, How(deflate=True)).session.log
