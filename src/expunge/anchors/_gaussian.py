"""Steps of forgetting by a Gaussian q around the weights, held near the Gaussian p that was learned in preparation."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from expunge.anchors._base import Hold, Lowered
from expunge.anchors._flat import Flat, exact, noise_seed
from expunge.anchors._posterior import Posterior, coded, decoded
from expunge.anchors._rules import divergence, explicit, gradients, literal, proximal, settling, size_free
from expunge.anchors._settings import Forgetting, Stored
from expunge.data import Batch
from expunge.errors import Incompatible, NotFinite, UserError, listing
from expunge.fisher import diagonal
from expunge.method import Session, State

log = logging.getLogger(__name__)
FASTEST, SAMPLES = 0.1, 500  # η is SAMPLES/n_eff, FASTEST at most
NARROW, WIDE = math.log(1 / 10), math.log(3)  # how far ln σ of q may be from that of p
LEAP, SLIGHT = 10.0, 1e-4  # a KL that grows by this factor in a step halves η, unless it was below this a sample
LOST = 0.01  # share of the pairs of a request whose objective may be NaN or infinite
ADAM, ADAM_SIGMA = 1e-4, 100.0  # Adam's rate for μ, and that for ln σ as a multiple of it
NOISE = "kl_gaussian"  # tag of the draws, the same under any name
UNSTABLE = 2.0  # η·λ_n·σ_q²/σ_p² from which the explicit rule diverges


class GaussianHold(Hold):
    """The steps of one request: q = N(μ, σ²) a weight starts at p and is moved to lower (1−λ_n)·U + λ_n·KL(q‖p)/n_eff.

    Per trainable weight it holds, in float32, 28 bytes where σ is learned, 20 where it is frozen, 17 where it is frozen
    and kept in 8 bits; where nothing is drawn 16, or 13; and 1 more where masks hold some. No noise is kept: what was
    drawn is what the weights are away from μ. Adam keeps its own two moments of μ, and of ln σ, besides.

    Several processes do the same work: an objective need not be a mean over the batch, so its gradient cannot be put
    together from shares of the batch.

    Args:
        session: the request; its model is edited in place.
        state: of a `Posterior`, let go of once it is read.
        lowered: the objective on a batch.
        how: the settings of the request.
        steps: as many as it takes at most; None: three times the time constant of the pull to p.
        name: of the anchor, for messages.
        stored: how the next state keeps σ.

    Raises:
        MissingNeed: the state holds no σ.
        Incompatible: the state's σ is of another network, or not positive.
        UserError: the explicit rule would diverge, or the forget set leaves nothing of what σ was learned from.
    """

    def __init__(
        self,
        session: Session,
        state: State,
        lowered: Lowered,
        how: Forgetting,
        steps: int | None,
        *,
        name: str,
        stored: Stored,
    ) -> None:
        self.session, self.lowered, self.how, self.name, self.stored = session, lowered, how, name, stored
        self.learned = how.sampling and how.sigma == "learned"
        posterior = Posterior.load(state, session.model)
        if how.deflate:
            posterior = deflated(posterior, session)
        samples = posterior.samples
        self.lam = how.lam if how.literal is None else size_free(how.literal, samples)
        self.weight = (1 - self.lam) * samples
        default = min(FASTEST, SAMPLES / samples)
        self.rate = how.rate or (ADAM if how.rule == "adam" else default)
        self.steps = steps or settling(default if how.rule == "adam" else self.rate, self.lam)
        self._check_stable()
        self.flat = Flat(session.model.eval(), session.masks)
        self.log_p = self._prior(posterior.log_sigma)
        self.posterior = posterior.replaced({})
        del posterior
        self.mu_p = self.flat.weights.clone()
        self.mu = self.flat.weights.clone() if how.sampling else self.flat.weights
        self.log_q = self.log_p.clone() if self.learned else self.log_p
        self.turn = self.flat.vector() if self.learned else None
        self.adam = self._adam() if how.rule == "adam" else None
        self.taken = self.lost = self.halved = 0
        self.kl = 0.0
        self._tell()

    def _check_stable(self) -> None:
        """Refuse the explicit rule where it would diverge, σ of q at its widest.

        Raises:
            UserError: says so.
        """
        widest = math.exp(2 * WIDE) if self.learned else 1.0
        found = self.rate * self.lam * widest
        if self.how.rule == "explicit" and found >= UNSTABLE:
            want = f"{self.name}.rate·λ_n·σ_q²/σ_p² below 2 for the explicit rule, σ_q at its widest"
            remedy = f"set {self.name}.rate below {UNSTABLE / (self.lam * widest):.3g}, or rule to 'proximal'"
            raise UserError(want, f"{found:.3g}", remedy)

    def _prior(self, log_sigma: Mapping[str, Tensor]) -> Tensor:
        """Return ln σ of p as a vector, or its places on the 8-bit grid where memory is to be saved."""
        if not self.how.lean:
            return self.flat.filled(log_sigma, rest=0.0)
        codes = torch.zeros(self.flat.length, dtype=torch.uint8, device=self.flat.device)
        for name, view in self.flat.named(codes).items():
            view.copy_(coded(log_sigma[name]))
        return codes

    def _adam(self) -> torch.optim.Optimizer:
        groups = [{"params": [self.mu], "lr": self.rate}]
        self.mu.grad = self.flat.grads
        if self.turn is not None:
            groups.append({"params": [self.log_q], "lr": self.rate * ADAM_SIGMA})
            self.log_q.grad = self.turn
        return torch.optim.Adam(groups, fused=True)

    def _tell(self) -> None:
        """Record the weights of the objective in both spellings, and what a reader must know of precision and σ."""
        record, samples, facts = self.session.record, self.posterior.samples, self.posterior.facts
        record("lam", self.lam)
        record("literal_lam", literal(self.lam, samples) if self.how.literal is None else self.how.literal)
        record("n_eff", samples)
        record("rate", self.rate, step=0)
        if self.learned and self.session.runtime.precision == "bf16":
            record("note", "Weights were drawn and gradients taken in float32: bf16 would round away what σ tells.")
        found, wanted = facts.get("agreement"), facts.get("agreement_wanted")
        if found and wanted and found[-1] < wanted:
            text = f"Two estimates of σ agreed by {found[-1]:.2f} in preparation, not by {wanted:g}: much of σ is noise"
            record("note", f"{text}, and weights are held by it that training data did not tell apart.")
        if not self.how.deflate and facts.get("importance") != "uniform":
            text = "σ, which the next request starts from, still carries the share of the samples forgotten here"
            record("note", f"{text}; deflate takes it out, and preparing again does.")

    def vectors(self) -> dict[str, Tensor]:
        """Return what is held a weight, by name; Adam's moments aside."""
        held = {"weights": self.flat.weights, "grads": self.flat.grads, "mu_p": self.mu_p, "log_p": self.log_p}
        if self.how.sampling:
            held["mu"] = self.mu
        if self.turn is not None:
            held |= {"log_q": self.log_q, "turn": self.turn}
        return held

    def step(self, batch: Batch) -> float:
        """Take a step on a batch of the forget set.

        Args:
            batch: on the runtime's device.

        Returns:
            The objective before the step, the mean over the draws.

        Raises:
            NotFinite: the objective is NaN or infinite in more than 1 % of the pairs, or at the mean where nothing is
                drawn, or the step left no finite KL.
        """
        self.taken += 1
        before = self.kl
        if self.how.sampling:
            value, halves = self._pairs(batch)
        else:
            value, halves = float(self._gradient(batch)), 1
            if not math.isfinite(value):
                raise NotFinite("a finite objective at the mean", f"{value} at step {self.taken}", self._remedy())
        if not halves:
            return value
        self._moved(halves)
        if not math.isfinite(self.kl):
            raise NotFinite("a finite KL from the prior", f"{self.kl} after step {self.taken}", self._remedy())
        if before > SLIGHT * self.posterior.samples and self.kl > LEAP * before:
            self._slower(before)
        return value

    def _remedy(self) -> str:
        return f"lower {self.name}.rate (now {self.rate:.3g}), or raise {self.name}.lam (now {self.lam:.3g})"

    def _slower(self, before: float) -> None:
        self.rate /= 2
        self.halved += 1
        for group in self.adam.param_groups if self.adam is not None else ():
            group["lr"] /= 2
        log.warning("KL rose from %.3g to %.3g in one step: η is halved to %.3g", before, self.kl, self.rate)
        self.session.record("rate", self.rate, step=self.taken)

    def _seed(self, pair: int) -> int:
        return noise_seed(self.session.seed, NOISE, self.taken, pair)

    def _pairs(self, batch: Batch) -> tuple[float, int]:
        """Take the gradients of every pair; one without a finite objective is left out, and the others taken again.

        Returns:
            The mean objective over the draws that count, NaN if none does, and how many they are.
        """
        pairs = list(range(self.how.draws))
        while pairs:
            values = self._halves(batch, pairs)
            if math.isfinite(values[-1]):
                return sum(values) / len(values), len(values)
            self._cleared()
            pairs.pop((len(values) - 1) // 2)
            self._lose()
        return math.nan, 0

    def _halves(self, batch: Batch, pairs: list[int]) -> list[float]:
        """Take the gradients at μ + σ·ε and μ − σ·ε of each pair, up to an objective that is not finite; return all."""
        values = list[float]()
        for pair in pairs:
            for draw in (self._drawn, self._mirrored):
                draw(pair)
                values.append(float(self._gradient(batch)))
                if not math.isfinite(values[-1]):
                    return values
        return values

    def _lose(self) -> None:
        """Count a pair that is left out.

        Raises:
            NotFinite: it is one too many.
        """
        self.lost += 1
        self.session.record("lost_pairs", self.lost)
        planned = self.steps * self.how.draws
        if self.lost > max(1, LOST * planned):
            want = f"a finite objective in all but 1 % of {planned} pairs of drawn weights"
            got = f"{self.lost} without one by step {self.taken}"
            raise NotFinite(want, got, self._remedy() + f", or set {self.name}.sampling to false")

    def _drawn(self, pair: int) -> None:
        """Put μ + σ·ε into the weights.

        Of the draws θ_k = μ ± σ·ε with gradients g_k, and S_k the sum of the first k gradients, which is what backward
        passes leave in ``grads``: Σ_k (θ_k − μ)·g_k = Σ_k S_k·(θ_k − θ_{k+1}), where μ follows the last draw. So each
        time that the weights move on, ``turn`` takes its share, and no gradient or noise is kept apart.
        """
        flat = self.flat
        vectors = (flat.weights, self.mu, self.log_q, flat.grads, self.turn, flat.free)
        for noise, weights, mu, log_q, grads, turn, free in flat.pieces(*vectors, noise=self._seed(pair)):
            if free is not None:
                noise.mul_(free)
            drawn = noise.mul_(self._plain(log_q).exp()).add_(mu)
            if turn is not None:
                turn.addcmul_(weights.sub_(drawn), grads)
            weights.copy_(drawn)

    def _mirrored(self, pair: int) -> None:
        """Put μ − σ·ε into the weights, where μ + σ·ε is."""
        flat = self.flat
        for weights, mu, grads, turn in flat.pieces(flat.weights, self.mu, flat.grads, self.turn):
            spread = weights.sub_(mu)
            if turn is not None:
                turn.addcmul_(spread, grads, value=2)
            torch.sub(mu, spread, out=weights)

    def _plain(self, log_sigma: Tensor) -> Tensor:
        """Return ln σ of a piece as numbers."""
        return decoded(log_sigma, self.flat.dtype) if log_sigma.dtype == torch.uint8 else log_sigma

    def _gradient(self, batch: Batch) -> Tensor:
        """Add the objective's gradient at the weights as they stand; return its value."""
        with self._precision():
            return self.flat.gradient(lambda: self.lowered(self.flat.model, batch))

    def _precision(self) -> AbstractContextManager[object]:
        """Return the runtime's autocast, or full float32 where σ is learned from differences of gradients."""
        return exact(self.flat.device) if self.learned else self.session.runtime.autocast()

    def _moved(self, halves: int) -> None:
        """Move q by the rule, keep it in its bounds, and measure its KL from p: all in one go over the vectors."""
        flat, factors = self.flat, {"weight": self.weight / halves, "lam": self.lam}
        if self.adam is not None:
            self._down(factors)
            self.adam.step()
        rule = proximal if self.how.rule == "proximal" else explicit
        total = torch.zeros((), dtype=torch.float64, device=flat.device)
        for weights, mu, log_q, mu_p, log_p, grads, turn, free in self._all():
            if self.adam is None:
                if turn is not None:
                    turn.addcmul_(weights.sub_(mu), grads)
                rule(mu, log_q, mu_p, log_p, grads, turn, **factors, rate=self.rate)
            if turn is not None:
                log_q.clamp_(log_p + NARROW, log_p + WIDE)
                turn.zero_()
            if free is not None:
                mu.copy_(torch.where(free, mu, mu_p))
                log_q.copy_(torch.where(free, log_q, log_p))
            grads.zero_()
            total += divergence(mu, log_q, mu_p, log_p).sum()
        self.kl = float(total)

    def _down(self, factors: dict[str, float]) -> None:
        """Put the gradients by μ and ln σ where Adam looks for them."""
        for weights, mu, log_q, mu_p, log_p, grads, turn, _ in self._all():
            if turn is not None:
                turn.addcmul_(weights.sub_(mu), grads)
            by_mu, by_log = gradients(mu, log_q, mu_p, log_p, grads, turn, **factors)
            grads.copy_(by_mu)
            if by_log is not None:
                turn.copy_(by_log)

    def _all(self) -> Iterator[tuple[Any, ...]]:
        """Yield pieces of all vectors: weights, μ and ln σ of q and of p, gradients, turn, and which may move."""
        flat = self.flat
        vectors = (flat.weights, self.mu, self.log_q, self.mu_p, self.log_p, flat.grads, self.turn, flat.free)
        for weights, mu, log_q, mu_p, log_p, grads, turn, free in flat.pieces(*vectors):
            plain = self._plain(log_p)
            yield weights, mu, log_q if self.learned else plain, mu_p, plain, grads, turn, free

    def _cleared(self) -> None:
        self.flat.grads.zero_()
        if self.turn is not None:
            self.turn.zero_()

    @contextmanager
    def mean(self) -> Iterator[nn.Module]:
        """Give the model at μ."""
        if self.how.sampling:
            self.flat.weights.copy_(self.mu)
        yield self.flat.model.eval()

    def penalty(self) -> float:
        """Return KL(q‖p) in nats, the sum over all weights."""
        return self.kl

    def told(self) -> dict[str, float]:
        """Return KL, and KL/n_eff, in nats of the mean training loss."""
        return {"kl": self.kl, "kl_per_sample": self.kl / self.posterior.samples}

    def finish(self) -> tuple[nn.Module, State]:
        """Return the model at μ, and q as the p of the next request."""
        if self.halved:
            times = "once" if self.halved == 1 else f"{self.halved} times"
            text = f"The divergence rose more than tenfold in a step, and the rate was halved {times}: the edit may be "
            self.session.record("note", f"{text}larger than KL tells; measure what is kept before serving it.")
        with self.mean():
            model = self.flat.released().eval()
        requests = int(self.posterior.facts.get("requests", 0)) + 1
        log_sigma = {name: self._plain(view) for name, view in self.flat.named(self.log_q).items()}
        return model, self.posterior.replaced(log_sigma, requests=requests).state(self.stored)


def deflated(posterior: Posterior, session: Session) -> Posterior:
    """Return σ without the share of the samples to forget: 1/σ² ← max(1/σ0², 1/σ² − n·Σ_f (∂ℓ_f/∂θ)²).

    n = n_eff/N is how often each sample went into σ. No σ becomes narrower, nor wider than σ0. It is an estimate: σ was
    learned from curvature, which the squared gradients at the weights as they are now stand in for, so where the
    training loss is near 0 little goes.

    Args:
        posterior: p.
        session: the request, its forget set with labels.

    Raises:
        Incompatible: the state does not say σ0, or how often each sample went in.
        UserError: nothing of what σ was learned from would be left.
    """
    forget, facts = session.forget, posterior.facts
    if not {"sigma0", "passes"} <= facts.keys():
        want = "a state that says σ0 and how often each sample went into σ, which deflate reads"
        raise Incompatible(want, f"facts {listing(list(facts))}", "set deflate to false, or prepare again")
    sigma0, passes = float(facts["sigma0"]), float(facts["passes"])
    samples = posterior.samples - passes * len(forget)
    if samples <= 0:
        want = f"fewer samples to forget than the {posterior.samples / passes:.0f} behind σ"
        raise UserError(want, str(len(forget)), "set deflate to false, or prepare again on what stays")
    squares = diagonal(session.model, session.task, forget, of="loss", runtime=session.runtime, seed=session.seed)
    log_sigma = {}
    for name, value in posterior.log_sigma.items():
        share = squares.sums[name].to(value.device, torch.float64) * passes
        before = (-2 * value.double()).exp_()
        left = torch.minimum(before, (before - share).clamp_min_(sigma0**-2))
        log_sigma[name] = left.log_().mul_(-0.5).to(value)
    found = posterior.replaced(log_sigma, samples)
    session.record("deflated", found.geometric / posterior.geometric)
    return found
