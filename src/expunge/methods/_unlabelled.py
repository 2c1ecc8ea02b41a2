"""What forgetting without labels is made of: losses as pure functions, pairs of batches, agreement, when to stop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.task.causal_lm import IGNORED

FLAT = 0.2  # of the budget, over which nothing must change for the curve to be flat
STILL = 0.01  # a change of agreement or of u that is none
PART = 0.1  # of all that the curves have changed; one that has only set out from zero changes by a larger part
Push = Literal["phi", "clamp"]


def phi(m: Tensor) -> Tensor:
    """Return φ(m) = exp(m / (m + 1)), from 1 up to e: what bounds the error that is to grow.

    Args:
        m: errors, 0 or more.

    >>> [round(float(phi(torch.tensor(m))), 4) for m in (0.0, 1.0, 3.0)]
    [1.0, 1.6487, 2.117]
    """
    return torch.exp(m / (m + 1))


def extractor_loss(
    retain: Tensor, forget: Tensor, *, push: Push | None = "phi", mean: bool = True, most: float | None = None
) -> Tensor:
    """Return the loss that keeps retain representations likely and makes those to forget unlikely.

    Σ φ(m_r) − Σ φ(m_f) with ``phi``; Σ m_r − Σ min(m_f, most) with ``clamp``; Σ m_r − Σ m_f without either.

    Args:
        retain: errors m_r under the density of all training data, (B_r,).
        forget: errors m_f under the density of the forget set, (B_f,).
        push: what bounds the second term.
        mean: whether both sums are means.
        most: the bound of ``clamp``.

    Returns:
        A scalar.
    """
    if push == "phi":
        retain, forget = phi(retain), phi(forget)
    elif push == "clamp":
        forget = forget.clamp(max=most)
    return retain.mean() - forget.mean() if mean else retain.sum() - forget.sum()


def turned(e: Tensor, teacher: Tensor) -> Tensor:
    """Return u = 1 − cos(e, e^T) of each sample, (N,), from 0 to 2; 0 where e^T is all zeros and has no direction.

    Args:
        e: representations (N, d).
        teacher: the original's, (N, d).
    """
    found = 1 - F.cosine_similarity(e, teacher, dim=1)
    return torch.where((teacher != 0).any(dim=1), found, torch.zeros_like(found))


def alignment_loss(retain: Tensor, forget: Tensor, tau: float, *, mean: bool = True) -> Tensor:
    """Return the loss that keeps retain representations where the original has them, and turns those to forget.

    Σ_i [u_i − log Σ_j exp(u_j / τ)], i over retain and j over forget samples. With ``mean`` both sums are means, so it
    is 0 where nothing has moved; of the sums it is then −B_r · ln B_f.

    Args:
        retain: u of the retain samples, (B_r,).
        forget: u of the samples to forget, (B_f,).
        tau: τ; the turning weighs about 1/τ against the keeping.
        mean: whether both sums are means.

    Returns:
        A scalar.
    """
    away = torch.logsumexp(forget / tau, dim=0)
    if mean:
        return retain.mean() - (away - math.log(len(forget)))
    return (retain - away).sum()


Pair = tuple[Tensor, Tensor]


def pairs(forget: int, retain: int, size: int, generator: torch.Generator, *, ragged: bool = False) -> Iterator[Pair]:
    """Yield the positions of pairs of batches for ever: of samples to forget, and of retain samples.

    Each side goes through its samples in one random order after another, in batches of one size that may go on into the
    next order, so that all of both sides is visited. ``ragged`` is the published walk: both sides begin anew as soon as
    the shorter one ends, and the last batch of a side may be smaller.

    Args:
        forget: how many samples there are to forget.
        retain: how many retain samples there are.
        size: samples a batch, fewer where a side has fewer.
        generator: of the orders.
        ragged: the published walk.

    Yields:
        Positions (B_f,) and (B_r,).
    """
    if not ragged:
        yield from zip(_endless(forget, size, generator), _endless(retain, size, generator), strict=False)
    while True:
        orders = [torch.randperm(n, generator=generator).split(size) for n in (forget, retain)]
        yield from zip(*orders, strict=False)


def _endless(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    size, left = min(size, count), torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < size:
            left = torch.cat([left, torch.randperm(count, generator=generator)])
        now, left = left[:size], left[size:]
        yield now


@dataclass(frozen=True)
class Look:
    """What was seen at one look, without labels.

    Args:
        step: after how many updates.
        retain: agreement with the original on held-out retain samples, at most 1.
        forget: agreement on samples to forget.
        retain_turned: mean u on held-out retain samples.
        forget_turned: mean u on samples to forget.
    """

    step: int
    retain: float
    forget: float
    retain_turned: float = 0.0
    forget_turned: float = 0.0


@dataclass
class Watch:
    """When to stop, of looks alone.

    Args:
        least: agreement on held-out retain samples below which it ends.
        budget: updates planned.
    """

    least: float
    budget: int
    looks: list[Look] = field(default_factory=list)

    def ended(self, look: Look) -> str | None:
        """Return ``retain`` where the retain samples' agreement has fallen, ``flat`` where the rest stands still.

        It has fallen where it is too low at two looks in a row, or at the last: it may dip where classes are crossed.
        The rest stands still once the curves of the samples to forget, agreement and mean u, have moved at all, and
        have then changed over a fifth of the budget or more by no more than 0.01, and no more than a tenth of the most
        that either has moved: the turning starts where its gradient is zero, and creeps before it runs.
        """
        self.looks.append(look)
        low = [one.retain < self.least for one in self.looks[-2:]]
        if all(low) or (low[-1] and look.step >= self.budget):
            return "retain"
        before = [one for one in self.looks if one.step <= look.step - FLAT * self.budget]
        moved = max(1 - look.forget, look.forget_turned)
        if low[-1] or moved <= STILL or not before:
            return None
        past = [one for one in self.looks if one.step >= before[-1].step]
        spans = [max(values) - min(values) for values in zip(*((o.forget, o.forget_turned) for o in past), strict=True)]
        return "flat" if max(spans) <= min(STILL, PART * moved) else None


def agreement(now: Tensor, before: Tensor, spread: Tensor | None = None) -> float:
    """Return how far predictions are those of the original, at most 1.

    Of classes and tokens the share that is the same. Of real numbers the share of the original's variance that is kept,
    1 − Σ (y − y^T)² / Σ (y^T − mean y^T)².

    Args:
        now: predictions (N, ...).
        before: the original's, (N, ...); places of −100 do not count where they are integers.
        spread: predictions whose variance is taken instead of those of ``before``.
    """
    if now.is_floating_point():
        among = before if spread is None else spread
        variance = (among.double() - among.double().mean(dim=0)).square().mean()
        return float(1 - (now.double() - before.double()).square().mean() / variance.clamp_min(1e-12))
    counted = before != IGNORED
    return float((now == before)[counted].double().mean()) if bool(counted.any()) else 1.0
