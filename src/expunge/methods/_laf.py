"""Forgetting without labels by the extractor alone: the steps, the looks, and the way back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.data import Batch, Data
from expunge.errors import NotFinite
from expunge.method import Session
from expunge.methods._represent import RepresentationSplit, Said
from expunge.methods._steps import joined
from expunge.methods._unlabelled import (
    STILL,
    Look,
    Push,
    Watch,
    agreement,
    alignment_loss,
    extractor_loss,
    pairs,
    turned,
)
from expunge.methods._vae import Density, Fit, fitted
from expunge.passes import whole
from expunge.seeds import seed as named_seed
from expunge.stats import principal_axes
from expunge.tensors import parameters
from expunge.train import stepped

WATCHED = 256  # samples of each set, at most, that a look is at
HELD, LEAST = 0.1, 32  # the share of the retain set, and samples, that are held out of the steps and looked at
CURVE = 200  # recorded values of a loss, at most
MAPPED = {"retain": 150, "forget": 100}  # samples of the map
SPANNED = 500  # retain samples, at most, whose representations its axes are found from
MORE = "take more updates, higher rates or a tau nearer to 5, or another method"
QUANTILE = 0.99  # of the errors that bound the push away


@dataclass(frozen=True, kw_only=True)
class How:
    """How the extractor is to forget; see the fields of `laf`.

    Args:
        updates: pairs of batches.
        lr_ue: rate of Adam on the extractor loss; None leaves that loss out.
        lr_ra: rate of Adam on the alignment loss; None leaves that loss out.
        tau: of the alignment loss.
        size: samples of each side a step.
        push: what bounds the extractor loss.
        official: sums and ragged pairs, as published.
        least: agreement on retain samples below which it ends and goes back; None never ends early.
        every: updates from one look to the next.
        fit: of the densities.
    """

    updates: int
    lr_ue: float | None
    lr_ra: float | None
    tau: float
    size: int
    push: Push
    official: bool
    least: float | None
    every: int
    fit: Fit


class Forgetting:
    """One request on its way.

    Args:
        session: shows inputs of the forget set and the retain set.
        how: the settings.
        split: of the network.
        density: of all training data, or None where no extractor loss is lowered.
        name: of the method, for messages.
    """

    def __init__(
        self, session: Session, how: How, split: RepresentationSplit, density: Density | None, name: str
    ) -> None:
        self.session, self.how, self.split, self.name = session, how, split, name
        self.model, self.task, self.runtime = session.model, session.task, session.runtime
        self.forget, self.retain = session.forget, session.retain
        self.seconds = dict[str, float]()
        self.used, self.held = self._drawn()
        with self._timed("representations"):
            self.taught = self._said(self.forget)
            self.taught_retain = self._said(self.retain, self.used)
            self.taught_held = self._said(self.retain, self.held)
        like = self.taught.e[:0].to(self.runtime.torch_device)
        self.densities: tuple[Density, Density] | None = None
        self.most: float | None = None
        if density is not None:
            with self._timed("densities"):
                self.densities = self._densities(density.to(like), like)
        self.watched = torch.randperm(len(self.forget), generator=self._generator("watched"))[:WATCHED]
        self.steps, self.least = 0, self._least()

    def _least(self) -> float | None:
        """Return the agreement below which it ends; of few samples one may be told otherwise."""
        n, least = len(self.held), self.how.least
        if least is None or self.taught_held.prediction.is_floating_point():
            return least
        return min(least, (n - 1) / n)

    def _generator(self, what: str) -> torch.Generator:
        return torch.Generator().manual_seed(named_seed("laf", what, self.session.seed))

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - start

    def _said(self, data: Data, order: Tensor | None = None) -> Said:
        return self.split.said(self.model, self.task, data, self.runtime, order)

    def _drawn(self) -> tuple[Tensor, Tensor]:
        """Return positions of retain samples that the steps use, and of those held out; one sample is both."""
        order = torch.randperm(len(self.retain), generator=self._generator("retain"))
        held = min(WATCHED, max(1, int(HELD * len(order)), min(LEAST, len(order) // 4)))
        used = order[held:] if len(order) > 1 else order
        return used[: self.how.updates * self.how.size], order[:held]

    def _densities(self, density: Density, like: Tensor) -> tuple[Density, Density]:
        """Return the density of all data and that of the forget set, and find the bound of a clamped push."""
        how, rows = self.how, self.taught.e.to(like)
        scale = getattr(density, "scale", None) if how.fit.kind == "vae" else None
        seed = named_seed("laf", "forget", self.session.seed)
        own = fitted(rows, how.fit, seed, scale=scale, record=self._fitting("forget_vae_loss"))
        if how.push == "clamp":
            kept = self.taught_retain.e.to(like)
            noise = self._noise(own, len(kept), self._generator("bound"), like)
            self.most = float(own.errors(kept, noise).double().quantile(QUANTILE))
            self.session.record("most_error", self.most)
        return density, own

    def _fitting(self, name: str) -> Callable[[float, int], None]:
        return lambda loss, step: self.session.record(name, loss, step=step)

    @staticmethod
    def _noise(density: Density, count: int, generator: torch.Generator, like: Tensor) -> Tensor:
        return torch.randn(count, density.code, generator=generator, dtype=like.dtype).to(like.device)

    def run(self) -> None:
        """Take the updates, look at the model, stop, and go back where the retain samples have suffered."""
        with self._timed("steps"), self.only(self.split.extractor) as names:
            stopped = self._run(names)
        self.session.record("steps", self.steps)
        self.session.record("stopped", stopped)
        self.session.record("retain_used", len(self.used))
        self.session.record("retain_per_forget", len(self.taught_retain.e) / len(self.forget))

    @contextmanager
    def only(self, names: tuple[str, ...]) -> Iterator[dict[str, nn.Parameter]]:
        """Let gradients flow into some parameters alone, and keep the model in eval mode."""
        every = parameters(self.model)
        self.model.eval()
        for name, value in every.items():
            value.requires_grad_(name in names)
        try:
            yield {name: every[name] for name in names}
        finally:
            for value in every.values():
                value.requires_grad_(True)
                value.grad = None

    def _run(self, weights: Mapping[str, nn.Parameter]) -> str:
        how, session = self.how, self.session
        rates = {"ue": how.lr_ue, "ra": how.lr_ra}
        optimizers = {k: torch.optim.Adam(weights.values(), lr=lr) for k, lr in rates.items() if lr is not None}
        held = None if session.masks is None else session.masks.hold(self.model)
        noise, watch = self._generator("noise"), Watch(-math.inf if self.least is None else self.least, how.updates)
        good = self._look(watch, 0)[0], _copied(weights)
        every, sums = max(1, -(-how.updates // CURVE)), dict.fromkeys(optimizers, 0.0)
        drawn = pairs(len(self.forget), len(self.used), how.size, self._generator("pairs"), ragged=how.official)
        each = min(how.size, len(self.forget)) + min(how.size, len(self.used))
        with self.runtime.tracking(f"unlearning by {self.name}", how.updates * each) as advance:
            for step in range(1, how.updates + 1):
                pair = self._read(*next(drawn))
                for key, optimizer in optimizers.items():
                    loss = self._step(key, pair, noise, lambda o=optimizer: stepped(self.model, o, None, held))  # type: ignore[misc]
                    sums[key] += loss
                self.steps = step
                advance(len(pair.batch))
                if step % every == 0 or step == how.updates:
                    over = every if step % every == 0 else step % every
                    for key in sums:
                        session.record(f"{key}_loss", sums[key] / over, step=step)
                        sums[key] = 0.0
                if step % how.every == 0 or step == how.updates:
                    look, why = self._look(watch, step)
                    if self.least is None:
                        continue
                    if why == "retain":
                        self._go_back(weights, good, look)
                    elif look.retain >= self.least:
                        good = look, _copied(weights)
                    if why is not None:
                        return why
        return "budget"

    def _read(self, forget: Tensor, retain: Tensor) -> _Pair:
        with whole(f"{len(forget) + len(retain)} samples a step", f"lower {self.name}.batch_size"):
            device = self.runtime.torch_device
            batch = joined([self.retain.read(self.used[retain]).to(device), self.forget.read(forget).to(device)])
            teacher = torch.cat([self.taught_retain.e[retain], self.taught.e[forget]]).to(device)
            return _Pair(batch, teacher, len(retain))

    def _step(self, key: str, pair: _Pair, noise: torch.Generator, step: Callable[[], None]) -> float:
        """Take a step down one of the losses; return the loss minus what it is where nothing has moved."""
        for value in parameters(self.model).values():
            value.grad = None
        with whole(f"{len(pair.batch)} samples a step", f"lower {self.name}.batch_size"), torch.enable_grad():
            with self.runtime.autocast():
                e, _ = self.split.representations(self.model, self.task, pair.batch)
            loss, still = self._ue(e, pair, noise) if key == "ue" else self._ra(e, pair)
            if not bool(torch.isfinite(loss)):
                rate = f"{self.name}.lr_{key}"
                want = f"a finite loss of {self.name}"
                lr = self.how.lr_ue if key == "ue" else self.how.lr_ra
                raise NotFinite(want, f"{loss.item()} at update {self.steps + 1}", f"lower {rate} (now {lr:g})")
            loss.backward()
        step()
        return float(loss.detach()) - still

    def _ue(self, e: Tensor, pair: _Pair, noise: torch.Generator) -> tuple[Tensor, float]:
        assert self.densities is not None
        all_data, own = self.densities
        drawn = [self._noise(all_data, pair.retain, noise, e), self._noise(own, len(e) - pair.retain, noise, e)]

        def loss(e: Tensor) -> Tensor:
            errors = all_data.errors(e[: pair.retain], drawn[0]), own.errors(e[pair.retain :], drawn[1])
            return extractor_loss(*errors, push=self.how.push, mean=not self.how.official, most=self.most)

        with torch.no_grad():
            still = float(loss(pair.teacher))
        return loss(e), still

    def _ra(self, e: Tensor, pair: _Pair) -> tuple[Tensor, float]:
        u, official = turned(e, pair.teacher), self.how.official
        loss = alignment_loss(u[: pair.retain], u[pair.retain :], self.how.tau, mean=not official)
        return loss, -pair.retain * math.log(len(e) - pair.retain) if official else 0.0

    def _look(self, watch: Watch, step: int) -> tuple[Look, str | None]:
        """Compare the model with the original on held-out retain samples and on samples to forget."""
        look = self.looked(step)
        for name in ("retain", "forget"):
            self.session.record(f"{name}_agreement", getattr(look, name), step=step)
            self.session.record(f"{name}_turned", getattr(look, f"{name}_turned"), step=step)
        return look, watch.ended(look)

    def looked(self, step: int) -> Look:
        """Return what is seen of the model as it is."""
        retain = self._said(self.retain, self.held) if step else self.taught_held
        at = self.watched
        before = Said(self.taught.e[at], self.taught.prediction[at])
        forget = self._said(self.forget, at) if step else before
        spread = torch.cat([self.taught_held.prediction, self.taught.prediction])
        return Look(
            step,
            agreement(retain.prediction, self.taught_held.prediction, spread),
            agreement(forget.prediction, before.prediction, spread),
            float(turned(retain.e, self.taught_held.e).mean()),
            float(turned(forget.e, before.e).mean()),
        )

    def _go_back(self, weights: Mapping[str, nn.Parameter], good: tuple[Look, dict[str, Tensor]], look: Look) -> None:
        with torch.no_grad():
            for name, value in good[1].items():
                weights[name].copy_(value)
        session, at = self.session, good[0].step
        session.record("rolled_back_to", at)
        what = "Agreement with the original on held-out retain samples fell to"
        text = f"{what} {look.retain:.3f} after {look.step} updates"
        end = f"the weights are those after {at}" if at else "the weights are the original's: nothing was forgotten"
        more = "" if at else f"; lower {self.name}.lr_ue or lr_ra, look more often, or lower keep"
        session.record("note", f"{text}: {end}{more}.")

    def finished(self) -> None:
        """Record how far the result is from the original, the map of representations, and what each part cost."""
        look = self.looked(self.steps)
        known = {"retain": look.retain, "forget": look.forget}
        self.session.record("agreement", known)
        self.session.record("turned", {"retain": look.retain_turned, "forget": look.forget_turned})
        if 1 - look.forget <= STILL and look.forget_turned <= STILL:
            text = "Representations of the forget set hardly moved, and the model says of it what the original said"
            self.session.record("note", f"{text}: {MORE}.")
        elif look.forget > look.retain - STILL:
            text = "Predictions agree with the original's hardly less on the forget set than on retain samples"
            text += f" ({look.forget:.3f} and {look.retain:.3f})"
            self.session.record("note", f"{text}; where the two sets are not alike, {MORE}.")
        with self._timed("map"):
            self.session.record("representation_map", self._map())
        self.session.record("part_seconds", self.seconds)

    def refitted(self) -> Density:
        """Return the density of the retain representations as the extractor now gives them."""
        with self._timed("refit"):
            rows = self._said(self.retain).e.to(self.runtime.torch_device)
            seed = named_seed("laf", "all", self.session.seed)
            return fitted(rows, self.how.fit, seed, record=self._fitting("vae_loss"))

    def _map(self) -> dict[str, Any]:
        """Return the places of some samples on the two main axes of the original's retain representations; no ids."""
        generator = self._generator("map")
        base = self.taught_retain.e[:SPANNED].double()  # drawn in a random order
        centre, axes, shares = principal_axes(base.numpy())
        found: dict[str, Any] = {"explained": shares.tolist(), "kinds": [], "before": [], "after": []}
        sides = {
            "retain": (self.retain, self.used, self.taught_retain.e),
            "forget": (self.forget, torch.arange(len(self.forget)), self.taught.e),
        }
        for kind, (data, positions, taught) in sides.items():
            at = torch.randperm(len(positions), generator=generator)[: MAPPED[kind]].sort().values
            after = self._said(data, positions[at]).e
            found["kinds"] += [kind] * len(at)
            for key, e in (("before", taught[at]), ("after", after)):
                found[key] += np.round((e.double().numpy() - centre) @ axes, 4).tolist()
        return found


@dataclass(frozen=True)
class _Pair:
    """The samples of one update, retain samples first.

    Args:
        batch: of both sides.
        teacher: the original's representations of them, (B_r + B_f, d).
        retain: how many are retain samples.
    """

    batch: Batch
    teacher: Tensor
    retain: int


def _copied(weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in weights.items()}
