"""Bayesian gradient descent: σ of each weight, learned from how the training loss answers to draws around the weights.

Per trainable scalar it holds, in float32, 20 bytes where two estimates of σ draw a pair each (the default): weights,
gradients, μ and two ln σ. More draws an estimate need 4 bytes more; one estimate 4 less, weights that follow 8 more.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from expunge import tensors
from expunge.anchors._flat import Flat, noise_seed
from expunge.anchors._rules import descended, narrowed
from expunge.anchors._settings import Learning
from expunge.data import Batch, Data
from expunge.errors import CorruptArtefact, Incompatible, NotFinite
from expunge.files import digest
from expunge.identity import built, content, described
from expunge.method import Session
from expunge.passes import whole
from expunge.processes import EXCHANGE
from expunge.runtime import Runtime
from expunge.train import batch_orders, outputs_and_losses, share

log = logging.getLogger(__name__)
LOST = 0.01  # share of the draws whose loss may be NaN or infinite
RANKED = 10**6  # scalars at most whose σ is ranked
DRIFT = 0.05  # share of weights at σ_max above which noise, not curvature, has moved σ
CLOSE = math.log(1.01)  # of ln σ to a bound, to be counted as at it


@dataclass
class Chain:
    """One estimate of σ, from draws of its own.

    Args:
        log_sigma: ln σ, (length,).
        draws: pairs ±ε a batch, or lone draws where they are not antithetic.
        samples: behind it.
    """

    log_sigma: Tensor
    draws: int
    samples: float = 0.0


@dataclass(frozen=True)
class Learned:
    """What was learned.

    Args:
        log_sigma: ln σ, (length,).
        samples: n_eff, behind it.
        epochs: over the training set.
        agreement: rank correlation of the two estimates after each epoch; empty with one estimate.
    """

    log_sigma: Tensor = field(repr=False)
    samples: float
    epochs: int
    agreement: Sequence[float]


def disturb(flat: Flat, mu: Tensor, log_sigma: Tensor, seed: int) -> None:
    """Set the weights to μ + σ·ε, ε standard normal; those that may not move stay at μ."""
    for noise, weights, center, spread, free in flat.pieces(flat.weights, mu, log_sigma, flat.free, noise=seed):
        if free is not None:
            noise.mul_(free)
        torch.addcmul(center, spread.exp(), noise, out=weights)


def draws(settings: Learning) -> list[int]:
    """Return how many draws each estimate of σ makes a batch: pairs, or lone draws where they are not antithetic."""
    if not settings.antithetic:
        return [2 * settings.pairs]
    half = settings.pairs // 2
    return [settings.pairs] if settings.agreement is None else [settings.pairs - half, half]


def needed(agreement: float, epochs: int, wanted: float) -> int | None:
    """Return after how many epochs two estimates would agree as wanted, from how they agree now.

    Of a sum over T draws the signal grows with T and the noise with √T, so that r/(1 − r) grows with T.

    Args:
        agreement: r now, below 1.
        epochs: done.
        wanted: r wanted, below 1.

    Returns:
        The epochs in all; None where r is not above 0, and tells nothing.

    >>> needed(0.24, 60, 0.8)
    760
    """
    if agreement <= 0:
        return None
    return round(epochs * wanted / (1 - wanted) * (1 - agreement) / agreement)


class Saved:
    """What an interrupted run goes on from: one file in ``runtime.workdir``, which process 0 writes and reads for all.

    Its name is made of everything but the samples' content that decides σ; the content is looked at when the file is
    written first and when one is found, so that a short run costs nothing.

    Args:
        settings: how σ is learned.
        session: weights, ids, seed, task, masks and the folder.
        sigma0: σ before any sample.
    """

    def __init__(self, settings: Learning, session: Session, sigma0: float) -> None:
        self.runtime, self.data, self._content = session.runtime, session.train, ""
        self.path: Path | None = None
        self._last = time.monotonic()
        if self.runtime.workdir is None:
            return
        apart = ("importance", "scale", "stored")
        how = {name: value for name, value in settings.learning().items() if name not in apart}
        parts = [how, sigma0, described(session.task), built(session.source), described(session.masks)]
        path = session.checkpoint("bgd-" + digest([*parts, self.runtime.count])[:12])
        self.path = None if path is None else path.with_name(f"{path.name}.safetensors")

    @property
    def due(self) -> bool:
        """Whether this process is to write now."""
        if self.path is None or not self.runtime.main:
            return False
        return time.monotonic() - self._last >= self.runtime.checkpoint_every

    def keep(self, values: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Write tensors and counts, whole or not at all."""
        assert self.path is not None
        tensors.save(self.path, values, {**meta, "content": self._digest()}, overwrite=True)
        self._last = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what was written; nothing where there is no file, or one of other samples."""
        if self.path is None or not self.path.exists():
            return {}, {}
        try:
            found, meta = tensors.load(self.path)
            values = found.whole()
        except (CorruptArtefact, Incompatible) as error:
            log.warning("%s cannot be read (%s): beginning anew", self.path.name, type(error).__name__)
            return {}, {}
        if meta["content"] != self._digest():
            log.warning("other content under the ids of %s than in %s: beginning anew", self.data.name, self.path.name)
            return {}, {}
        return values, meta

    def clear(self) -> None:
        """Remove the file, once the run has ended."""
        if self.path is not None and self.runtime.main:
            self.path.unlink(missing_ok=True)

    def _digest(self) -> str:
        self._content = self._content or digest(content(self.data))
        return self._content


class Learner:
    """Learns σ by Bayesian gradient descent while μ stays: ln σ ← ln σ − asinh(½·σ·e), batch by batch.

    e = E[(∂L/∂θ)·ε] of the loss summed over the batch, at θ = μ + σ·ε. A pair ±ε gives e = ½·(g₊ − g₋)·ε, free of the
    gradient at μ, so that a loss without curvature leaves σ as it is. Two estimates draw apart from each other, and
    their ranks' correlation tells how much of σ is noise; what is kept has the mean of their precisions 1/σ².

    With ``mean_rate`` μ follows: μ ← μ − η·σ²·ḡ, each of two estimates taking half the rate.

    Args:
        settings: how; refused values are refused before.
        session: training data, task, seed, masks, where to keep what is interrupted.
        flat: the weights, as they are at μ.
        sigma0: σ before any sample.
        runtime: in full precision.
    """

    def __init__(self, settings: Learning, session: Session, flat: Flat, sigma0: float, runtime: Runtime) -> None:
        self.settings, self.session, self.flat, self.runtime = settings, session, flat, runtime
        self.mu, self.sigma0 = flat.weights.clone(), sigma0
        self.highest = 3 * sigma0 if settings.sigma_max is None else settings.sigma_max
        self.chains = [Chain(flat.vector(math.log(sigma0)), n) for n in draws(settings)]
        alone = settings.antithetic and all(chain.draws == 1 for chain in self.chains)
        follows = settings.mean_rate > 0
        self.products = None if alone else flat.vector()  # Σ (g₊ − g₋)·σε over the draws of a batch
        self.gradients = flat.vector() if follows else None  # Σ g over them
        self.first = flat.vector() if follows and settings.antithetic else None  # g₊ of a pair
        self.epoch = self.batch = self.planned = self.drawn = self.lost = self.cut = 0
        self.agreement: list[float] = []
        self.saved = Saved(settings, session, sigma0)

    def run(self) -> Learned:
        """Learn, from where an interrupted run was.

        Returns:
            σ, the two estimates joined; the weights are at μ again.

        Raises:
            NotFinite: the loss of drawn weights is NaN or infinite in more than 1 % of the draws.
        """
        data, settings = self.session.train, self.settings
        checked = len(self.chains) == 2
        most = settings.most_epochs if checked else settings.epochs
        self._restore()
        with self.runtime.tracking(f"learning σ on {data.name}", most * len(data)) as advance, torch.no_grad():
            advance(min(self.epoch * len(data) + self.batch * settings.learn_batch, most * len(data)))
            while self.epoch < most:
                for at in self._batches(data):
                    self._step(data, at)
                    advance(len(at))
                self.epoch, self.batch = self.epoch + 1, 0
                if checked:
                    self._compare()
                    if self.epoch >= settings.epochs and self.agreement[-1] >= float(settings.agreement or 0):
                        advance((most - self.epoch) * len(data))
                        break
        return self._finished()

    def _batches(self, data: Data) -> Iterator[NDArray[np.int64]]:
        """Yield the positions of each batch that an epoch has left."""
        generator = torch.Generator().manual_seed(noise_seed(self.session.seed, "order", self.epoch))
        orders = list(batch_orders(self.settings.learn_batch, torch.randperm(len(data), generator=generator)))
        self.planned = self.settings.epochs * len(orders) * sum(chain.draws for chain in self.chains)
        for at in orders[self.batch :]:
            yield at
            self.batch += 1

    def _step(self, data: Data, at: NDArray[np.int64]) -> None:
        """Draw around μ on one batch, and let each estimate take its step."""
        runtime, said = self.runtime, whole(f"a batch of {len(at)} samples", self._smaller)
        with runtime.agreed(), said:
            self._keep()
            mine = share(at, runtime.rank, runtime.count)
            batch = data.read(mine).to(runtime.torch_device) if len(mine) else None
        for number, chain in enumerate(self.chains):
            if self.products is not None:
                self.products.zero_()
            if self.gradients is not None:
                self.gradients.zero_()
            good = sum(self._drawn(chain, batch, len(at), (number, one)) for one in range(chain.draws))
            if good:
                self._update(chain, len(at), good * (2 if self.settings.antithetic else 1))
                chain.samples += len(at)

    @property
    def _smaller(self) -> str:
        return f"lower {self.settings.name}.learn_batch"

    def _drawn(self, chain: Chain, batch: Batch | None, size: int, place: tuple[int, int]) -> bool:
        """Add a draw's gradients, or a pair's difference; return whether loss and gradients are finite."""
        flat, runtime = self.flat, self.runtime
        flat.grads.zero_()
        disturb(flat, self.mu, chain.log_sigma, noise_seed(self.session.seed, "bgd", self.epoch, self.batch, *place))
        with runtime.agreed(), whole(f"a batch of {size} samples", self._smaller):
            value = self._gradient(batch, size)
            if self.settings.antithetic:
                if self.first is not None:
                    self.first.copy_(flat.grads)
                flat.grads.neg_()
                flat.weights.lerp_(self.mu, 2.0)  # μ + σ·ε to μ − σ·ε
                value = value + self._gradient(batch, size)
        good = self._added(value)
        self._count(good)
        if good and self.products is not None:
            for products, weights, mu, grads in flat.pieces(self.products, flat.weights, self.mu, flat.grads):
                products.addcmul_(weights - mu, grads)
        if good and self.gradients is not None:
            self.gradients.add_(flat.grads)
            if self.first is not None:
                self.gradients.add_(self.first, alpha=2)  # grads are g₋ − g₊
        return good

    def _gradient(self, batch: Batch | None, size: int) -> Tensor:
        """Add the gradient of this process's share of the batch's mean loss; return that share."""
        if batch is None:
            return torch.zeros((), dtype=self.flat.dtype, device=self.flat.device)

        def loss() -> Tensor:
            losses = outputs_and_losses(self.flat.model, self.session.task, batch)[1]
            return (losses if batch.weight is None else losses * batch.weight.to(losses)).sum() / size

        return self.flat.gradient(loss)

    def _added(self, value: Tensor) -> bool:
        """Sum gradients and loss over processes; return whether they are finite."""
        if self.runtime.count > 1:
            for vector in [self.flat.grads] if self.first is None else [self.flat.grads, self.first]:
                for part in vector.split(EXCHANGE):
                    part.copy_(self.runtime.sum([part])[0])
            (value,) = self.runtime.sum([value])
        return bool(torch.isfinite(value + self.flat.grads.sum()))

    def _count(self, good: bool) -> None:
        """Count a draw.

        Raises:
            NotFinite: too many were lost.
        """
        self.drawn, self.lost = self.drawn + 1, self.lost + (not good)
        if self.lost > LOST * max(self.planned, self.drawn):
            want = "a finite loss of drawn weights in 99 % of the draws"
            got = f"NaN or infinity in {self.lost} of {self.drawn}"
            raise NotFinite(want, got, f"lower {self.settings.name}.sigma0, or check the data")

    def _update(self, chain: Chain, size: int, count: int) -> None:
        """Take the step of an estimate: x = ½·σ·e is size/(2·count)·Σ g·(θ − μ), θ and g of each of `count` draws."""
        flat, settings = self.flat, self.settings
        low, high = math.log(settings.sigma_min), math.log(self.highest)
        vectors = (flat.weights, self.mu, flat.grads, chain.log_sigma, self.products, self.gradients, flat.free)
        for weights, mu, grads, log_sigma, products, summed, free in flat.pieces(*vectors):
            x = (weights - mu).mul_(grads) if products is None else products
            x.mul_(size / (2 * count))
            if summed is not None:
                summed.mul_(size / count)
                if free is not None:
                    summed.mul_(free)
                descended(mu, log_sigma, summed, settings.mean_rate / len(self.chains))
            self.cut += narrowed(log_sigma, x)
            log_sigma.clamp_(low, high)

    def _compare(self) -> None:
        """Note the rank correlation of the two estimates: 1 or 0 where one of them ranks nothing."""
        a, b = (self.flat.scalars(chain.log_sigma, RANKED).cpu().numpy() for chain in self.chains)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            found = float(stats.spearmanr(a, b).statistic) if len(a) > 1 else math.nan
        if math.isnan(found):
            found = float(np.array_equal(a, b))
        self.agreement.append(found)
        log.info("two estimates of σ agree by %.3f after epoch %d", found, self.epoch)

    def _finished(self) -> Learned:
        """Return the weights to μ, join the estimates, and record what a reader may want to know."""
        self.flat.weights.copy_(self.mu)
        self._tell()
        first, *rest = self.chains
        for other in rest:
            for a, b in self.flat.pieces(first.log_sigma, other.log_sigma):
                a.sub_(torch.expm1(2 * (a - b)).mul_(0.5).log1p_(), alpha=0.5)  # ½·(e⁻²ᵃ + e⁻²ᵇ), and a where b is a
        self.saved.clear()
        samples = sum(chain.samples for chain in self.chains) / len(self.chains)
        return Learned(first.log_sigma, samples, self.epoch, tuple(self.agreement))

    def _tell(self) -> None:
        record, settings = self.session.record, self.settings
        for epoch, value in enumerate(self.agreement, start=1):
            record("agreement", value, step=epoch)
        if self.agreement and self.agreement[-1] < float(settings.agreement or 0):
            text = f"Two estimates of σ agree by a rank correlation of {self.agreement[-1]:.2f} after {self.epoch} "
            text += f"epochs, not by {settings.agreement:g}: much of σ is noise; "
            more = needed(self.agreement[-1], self.epoch, float(settings.agreement or 0))
            text += "" if more is None else f"about {more:,} epochs would take it there; "
            text += f"raise {settings.name}.most_epochs or pairs, lower learn_batch, which makes more draws an epoch, "
            record("note", f"{text}or set importance to 'fisher_model'.")
        if self.lost:
            record("note", f"The loss of drawn weights was not finite in {self.lost} of {self.drawn} draws, left out.")
        record("cut_steps", self.cut)
        record("lost_draws", self.lost)
        low, high, start = (math.log(value) for value in (settings.sigma_min, self.highest, self.sigma0))
        shares = {"sigma_min": self._share(torch.le, min(low + CLOSE, (low + start) / 2))}
        shares["sigma_max"] = self._share(torch.ge, max(high - CLOSE, (high + start) / 2))
        for name, value in shares.items():
            record(f"at_{name}", value)
        if shares["sigma_max"] > DRIFT:
            text = (
                f"{shares['sigma_max']:.0%} of the weights stand at sigma_max ({self.highest:.3g}), where noise or a "
            )
            text += "loss that curves downwards takes σ, and samples do not: "
            record("note", f"{text}lower {settings.name}.sigma0, or raise pairs.")

    def _share(self, reached: Callable[[Tensor, float], Tensor], bound: float) -> float:
        """Return the share of the weights whose ln σ has come to a bound; what may not move stays at ln σ0."""
        vectors = [part for chain in self.chains for (part,) in self.flat.pieces(chain.log_sigma)]
        found = sum(int(torch.count_nonzero(reached(part, bound))) for part in vectors)
        return found / max(1, self.flat.moving * len(self.chains))

    def _keep(self) -> None:
        """Write how far it has come, if it is time; process 0 does it for all."""
        if self.saved.due:
            values = {f"log_sigma/{n}": chain.log_sigma for n, chain in enumerate(self.chains)} | {"mu": self.mu}
            meta = {name: getattr(self, name) for name in ("epoch", "batch", "drawn", "lost", "cut", "agreement")}
            self.saved.keep(values, {**meta, "samples": [chain.samples for chain in self.chains]})

    def _restore(self) -> None:
        found, meta = self.runtime.on_main(self.saved.load)
        if not found:
            return
        for n, chain in enumerate(self.chains):
            chain.log_sigma.copy_(found[f"log_sigma/{n}"])
            chain.samples = meta["samples"][n]
        self.mu.copy_(found["mu"])
        for name in ("epoch", "batch", "drawn", "lost", "cut", "agreement"):
            setattr(self, name, meta[name])
        log.info("resuming the learning of σ at batch %d of epoch %d", self.batch + 1, self.epoch + 1)
