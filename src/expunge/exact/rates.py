"""Closed forms of exact unlearning systems: requests until retraining, and how deep shards serve until then.

A system has m shards of L slices and B sequences a shard. A request deletes one sample; one that lands in a slice
already hit costs nothing and is counted. A sequence is lost when its top slice is hit, so how many requests a system
serves before it must be trained from scratch depends on the set of distinct top slices alone, b = min(B, L) of each
shard: it is the time of a coupon collector. SISA without retraining is B = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as distributions

from expunge.errors import UserError, suggest
from expunge.exact.orders import Order, probabilities, whole
from expunge.exact.sequences import depths

Failure = Literal["all", "first"]
Tops = Sequence[Sequence[float]]
STEP = 1 / 64  # of the trapezoid rule on a logarithmic axis, where it converges exponentially


def _system(shards: int, slices: int, budget: int) -> tuple[int, int]:
    """Return the number m·L of slices, and b = min(B, L) of distinct top slices a shard."""
    m, length = whole(shards, "shards"), whole(slices, "slices")
    return m * length, min(whole(budget, "a budget of sequences"), length)


def harmonic(n: int) -> float:
    """Return H_n = 1 + 1/2 + … + 1/n."""
    return math.fsum(1 / j for j in range(1, n + 1))


def deletion_rate(shards: int, slices: int, budget: int = 1) -> float:
    """Return the expected number of requests until no shard has a sequence left, δ = mL·H_{mb}.

    Each request hits one of the mL slices, all alike, with replacement: the limit of many samples.

    Args:
        shards: m.
        slices: of a shard, L.
        budget: sequences of a shard, B, with min(B, L) distinct top slices.

    >>> round(deletion_rate(5, 4), 2), round(deletion_rate(5, 4, 4), 2)
    (45.67, 71.95)

    Raises:
        UserError: a count below 1.

    References:
        S. Basu Roy Chowdhury, K. Choromanski, A. Sehanobish, A. Dubey, S. Chaturvedi, "Towards Scalable Exact Machine
        Unlearning Using Parameter-Efficient Fine-Tuning", 2025, https://arxiv.org/abs/2406.16257, gives it as a bound.
    """
    count, b = _system(shards, slices, budget)
    return count * harmonic(shards * b)


def deletion_variance(shards: int, slices: int, budget: int = 1) -> float:
    """Return the variance of the number of requests that `deletion_rate` is the mean of.

    Σ_{j=1..mb} (1 − j/(mL)) / (j/(mL))²: waiting times between new top slices are independent and geometric.

    Args:
        shards: m.
        slices: of a shard, L.
        budget: sequences of a shard, B.

    >>> round(deletion_variance(5, 4, 4) ** 0.5, 2)
    23.8

    Raises:
        UserError: a count below 1.
    """
    count, b = _system(shards, slices, budget)
    return math.fsum((1 - j / count) / (j / count) ** 2 for j in range(1, shards * b + 1))


def gain(shards: int, slices: int, budget: int) -> float:
    """Return how many times as many requests B sequences serve as one: H_{m·min(B, L)} / H_m, no more beyond B = L.

    >>> round(gain(5, 4, 4), 3), gain(5, 4, 8) == gain(5, 4, 4)
    (1.576, True)

    Raises:
        UserError: a count below 1.
    """
    _, b = _system(shards, slices, budget)
    return harmonic(shards * b) / harmonic(shards)


def renewals(horizon: float, mean: float, variance: float) -> float:
    """Return how often a system is trained from scratch during some requests, to second order in 1/horizon.

    n/δ + (σ² − δ²)/(2δ²) for integer times between, plus 1/(2δ): each time starts anew with all slices clean.

    Args:
        horizon: number of requests, n, many times δ.
        mean: δ, of the requests until retraining.
        variance: σ², of the same.

    >>> round(renewals(1000, deletion_rate(5, 4), deletion_variance(5, 4)), 1)
    21.5

    References:
        W. Feller, "Fluctuation theory of recurrent events", 1949, https://doi.org/10.1090/S0002-9947-1949-0032114-7.
    """
    return horizon / mean + (variance - mean**2 + mean) / (2 * mean**2)


def _tops(tops: Tops, failure: str, what: str) -> list[NDArray[np.float64]]:
    if failure not in get_args(Failure):
        raise UserError("a rule of failure", repr(failure), suggest(failure, get_args(Failure)))
    found = [np.asarray(shard, dtype=np.float64) for shard in tops]
    if not found or any(shard.ndim != 1 or shard.size == 0 for shard in found):
        raise UserError(f"the {what} of the top slices of each shard", "a shard without any", "give one a top slice")
    wrong = [x for shard in found for x in shard.tolist() if not (math.isfinite(x) and x >= 0)]
    if wrong:
        raise UserError(f"finite {what} of at least 0", f"{wrong[0]:g}", "give one a top slice")
    return found


def _waiting(rates: list[NDArray[np.float64]], failure: str, damping: float) -> float:
    """Return ∫_0^∞ P(not failed at u)·e^{−damping·u} du, where top slice j is hit by u with probability 1 − e^{−r_j·u}.

    With x = ln u the integrand is analytic and falls off at both ends, so equal steps are as good as exact.
    """
    rates = [r for r in rates if r.all()] if failure == "first" else rates  # a slice never hit keeps its shard alive
    if not rates or not all(r.all() for r in rates):
        return math.inf if damping == 0 else 1 / damping
    every = np.concatenate(rates)
    low, high = math.log(1e-20 / (every.max() + damping)), math.log((60 + math.log(every.size)) / every.min())
    u = np.exp(np.arange(low, high + STEP, STEP))
    lost = np.zeros_like(u)  # of failure "all": ln P(all shards lost); of "first": ln P(none lost)
    with np.errstate(divide="ignore"):
        for shard in rates:
            values, counts = np.unique(shard, return_counts=True)
            gone = sum(n * np.log(-np.expm1(-r * u)) for r, n in zip(values, counts, strict=True))
            lost += gone if failure == "all" else np.log(-np.expm1(gone))
    alive = -np.expm1(lost) if failure == "all" else np.exp(lost)
    return float(math.fsum(alive * np.exp(-damping * u) * u) * STEP)


def deletion_rate_prior(tops: Tops, failure: Failure = "all") -> float:
    """Return the expected number of requests until failure where slices are hit with given probabilities.

    With q_j the probabilities of the distinct top slices P, those of all slices of all shards summing to 1:
    ``all`` ∫_0^∞ (1 − Π_{j∈P}(1 − e^{−q_j·u})) du, ``first`` ∫_0^∞ Π_s (1 − Π_{j∈P_s}(1 − e^{−q_j·u})) du.

    Args:
        tops: q of the distinct top slices of each shard, by shard; with a prior p within each of m shards that are
            equally likely, q = p/m.
        failure: ``all`` when no shard has a sequence left, ``first`` when one has none.

    Returns:
        The expectation; infinite where a slice that is never hit stands on top.

    >>> prior = (0.4, 0.3, 0.2, 0.1)
    >>> round(deletion_rate_prior([[prior[3] / 5]] * 5), 2), round(deletion_rate_prior([[p / 5 for p in prior]] * 5), 2)
    (114.17, 120.24)

    Raises:
        UserError: a shard without a top slice, probabilities that are negative or sum to more than 1, or another rule.
    """
    rates = _tops(tops, failure, "probabilities")
    if (total := float(sum(r.sum() for r in rates))) > 1 + 1e-9:
        remedy = "divide those within a shard by the number of shards"
        raise UserError("probabilities of top slices that sum to at most 1", f"{total:g}", remedy)
    return _waiting(rates, failure, 0.0)


def first_lost(shards: int, slices: int, budget: int = 1) -> float:
    """Return the expected number of requests until the first shard has no sequence left, a stricter rule of failure.

    mL·∫_0^∞ [1 − (1 − e^{−u})^b]^m du, which is L for B = 1.

    Args:
        shards: m.
        slices: of a shard, L.
        budget: sequences of a shard, B.

    >>> round(first_lost(5, 4, 4), 2)
    19.29

    Raises:
        UserError: a count below 1.
    """
    count, b = _system(shards, slices, budget)
    return deletion_rate_prior([[1 / count] * b] * shards, "first")


def deletion_rate_finite(samples: int, shards: int, slices: int, budget: int = 1) -> float:
    """Return the expected number of requests until no shard has a sequence left, each sample deleted at most once.

    (N + 1)·(1 − Π_{i=1..mb} is/(is + 1)) with slices of equal size s = N/(mL).

    Args:
        samples: N, a multiple of mL.
        shards: m.
        slices: of a shard, L.
        budget: sequences of a shard, B.

    >>> round(deletion_rate_finite(1200, 5, 4, 4), 3)
    69.649

    Raises:
        UserError: a count below 1, or samples that do not divide into slices of equal size.
    """
    count, b = _system(shards, slices, budget)
    if whole(samples, "samples") % count:
        remedy = "give the sizes to deletion_rate_sizes"
        raise UserError(f"samples that divide into {count} slices of equal size", str(samples), remedy)
    size = samples // count
    return (samples + 1) * -math.expm1(-math.fsum(math.log1p(1 / (i * size)) for i in range(1, shards * b + 1)))


def deletion_rate_sizes(samples: int, tops: Sequence[Sequence[int]], failure: Failure = "all") -> float:
    """Return the expected number of requests until failure, each sample deleted at most once, slices of any size.

    ``all`` is Σ_{∅≠J⊆P} (−1)^{#J+1}·(N + 1)/(1 + Σ_{j∈J} s_j) over the top slices P, here as the integral
    (N + 1)·∫_0^∞ (1 − Π_{j∈P}(1 − e^{−s_j·v}))·e^{−v} dv, which has no terms that cancel.

    Args:
        samples: N.
        tops: numbers of samples s of the distinct top slices of each shard, by shard.
        failure: as of `deletion_rate_prior`.

    >>> round(deletion_rate_sizes(1080, [[172], [176]]), 3)
    9.258

    Raises:
        UserError: a shard without a top slice, an empty slice, more samples in top slices than in all, another rule.
    """
    sizes = _tops(tops, failure, "sizes")
    if not all((s >= 1).all() for s in sizes):
        raise UserError("top slices with samples", "an empty one", "assign samples to fewer slices")
    if (total := int(sum(s.sum() for s in sizes))) > whole(samples, "samples"):
        remedy = "count each top slice of a shard once"
        raise UserError(f"at most {samples} samples in the top slices", str(total), remedy)
    return (samples + 1) * _waiting(sizes, failure, 1.0)


def _kept(slices: int, kept: int, requests: int) -> None:
    whole(requests, "requests", 0)
    if whole(kept, "a depth", 0) > whole(slices, "slices"):
        raise UserError(f"a depth of at most the {slices} slices", str(kept), "a shard is never deeper")


def retention_sisa(slices: int, kept: int, requests: int) -> float:
    """Return the probability that one sequence keeps a depth of at least k after r requests to its shard, (1 − k/L)^r.

    Args:
        slices: L.
        kept: k.
        requests: r.

    >>> retention_sisa(4, 1, 3)
    0.421875

    References:
        As `deletion_rate`, lemma 2.
    """
    _kept(slices, kept, requests)
    return (1 - kept / slices) ** requests


def retention_printed(slices: int, kept: int, requests: int, budget: int) -> float:
    """Return the published probability that a shard keeps a depth of at least k: 1 − (1 − (1 − k/L)^r)^B'.

    B' = min(B, L!/(L − k)!). It takes the sequences as independent; they share their deletions, so it is too high for
    random ones, which `retention_random` is exact for. `retention` is exact for any that are given.

    Args:
        slices: L.
        kept: k.
        requests: to the shard, r.
        budget: sequences of the shard, B.

    >>> round(retention_printed(4, 1, 3, 4), 4)
    0.8883

    References:
        As `deletion_rate`, lemma 2.
    """
    whole(budget, "a budget of sequences")
    return 1 - (1 - retention_sisa(slices, kept, requests)) ** min(budget, math.perm(slices, kept))


def retention_random(slices: int, kept: int, requests: int, budget: int) -> float:
    """Return the probability that a shard of B sequences drawn at random, repeats allowed, keeps a depth of at least k.

    Σ_d P(d distinct slices hit)·[1 − (1 − C(L−d, k)/C(L, k))^B], P(d) = C(L, d)·d!·S₂(r, d)/L^r by recursion over r.

    Args:
        slices: L.
        kept: k.
        requests: to the shard, r.
        budget: sequences of the shard, B.

    >>> round(retention_random(4, 1, 3, 4), 4)
    0.8459
    """
    _kept(slices, kept, requests)
    whole(budget, "a budget of sequences")
    chance = np.zeros(slices + 1)
    chance[0] = 1.0
    known = np.arange(slices + 1) / slices
    for _ in range(requests):
        chance = chance * known + np.concatenate([[0.0], (chance * (1 - known))[:-1]])
    clean = np.array([math.comb(slices - d, kept) / math.comb(slices, kept) for d in range(slices + 1)])
    return float(chance @ (1 - (1 - clean) ** budget))


def thinned(shard: Callable[[int], float], requests: int, shards: int) -> float:
    """Return what a quantity of one shard is after requests to the whole system: a shard gets Binomial(r, 1/m) of them.

    Args:
        shard: the quantity after a number of requests to the shard.
        requests: to the system, r.
        shards: equally likely, m.

    >>> round(thinned(lambda r: retention_sisa(4, 1, r), 10, 5), 4) == round(0.95**10, 4)
    True
    """
    whole(requests, "requests", 0)
    chances = distributions.binom.pmf(np.arange(requests + 1), requests, 1 / whole(shards, "shards"))
    return math.fsum(p * shard(r) for r, p in enumerate(chances.tolist()))


def retention(
    sequences: Sequence[Order], requests: Sequence[int], prior: ArrayLike | None = None, shards: int = 1
) -> NDArray[np.float64]:
    """Return the exact probability that a shard with given sequences keeps at least each depth, (requests, L + 1).

    Goes through the 2^L sets of slices that may be hit; no two terms cancel.

    Args:
        sequences: of the shard, of at most 16 slices.
        requests: after how many requests to the system.
        prior: weight of each slice in the shard, (L,); None for slices that are equally likely.
        shards: equally likely ones that a request goes to; 1 for requests to this shard.

    Returns:
        P(depth ≥ k) in column k = 0..L, a row for each number of requests.

    >>> from expunge.exact.sequences import cyclic
    >>> retention(cyclic(4, 4), [3])[0].tolist()
    [1.0, 1.0, 0.4375, 0.0625, 0.0]

    Raises:
        UserError: more than 16 slices, sequences that are no permutations of the same slices, a wrong prior, or a
            number of requests below 0.
    """
    left = depths(sequences)
    slices = len(sequences[0])
    p = np.full(slices, 1 / slices) if prior is None else probabilities(prior, slices)
    after = [whole(r, "requests", 0) for r in requests]
    elsewhere, p = 1 - 1 / whole(shards, "shards"), p / shards
    chance = np.zeros(2**slices)
    chance[0] = 1.0
    found: dict[int, NDArray[np.float64]] = {}
    for r in range(max(after, default=0) + 1):
        if r in after:
            exact = np.bincount(left, weights=chance, minlength=slices + 1)
            found[r] = exact[::-1].cumsum()[::-1]
        following = elsewhere * chance
        for j in range(slices):
            pairs, new = chance.reshape(-1, 2, 2**j), following.reshape(-1, 2, 2**j)
            new[:, 1] += p[j] * (pairs[:, 0] + pairs[:, 1])
        chance = following
    return np.array([found[r] for r in after]).reshape(len(after), slices + 1)


def served_depth(
    sequences: Sequence[Order], requests: Sequence[int], prior: ArrayLike | None = None, shards: int = 1
) -> NDArray[np.float64]:
    """Return the expected depth that a shard serves at after some requests, Σ_{k≥1} P(depth ≥ k), (len(requests),).

    Args:
        sequences: as of `retention`.
        requests: as of `retention`.
        prior: as of `retention`.
        shards: as of `retention`.

    >>> from expunge.exact.sequences import cyclic
    >>> served_depth(cyclic(4, 4), [1, 10], shards=5).round(3).tolist()
    [3.8, 2.27]
    """
    return np.asarray(retention(sequences, requests, prior, shards)[:, 1:].sum(axis=1))
