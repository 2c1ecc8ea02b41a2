"""Models of deletion requests: which slice each request hits, and when each slice is hit first.

Requests are generated without regard to the sequences, so systems compared under the same seed answer the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from expunge.errors import UserError
from expunge.exact.orders import Order, probabilities, whole
from expunge.exact.rates import Failure, deletion_rate_prior, deletion_rate_sizes

Plan = Sequence[Sequence[Order]]  # the sequences of each shard
Times = NDArray[np.int64]
Generator = np.random.Generator


class Requests(Protocol):
    """Who asks for what: a model of the requests that arrive."""

    @property
    def shards(self) -> int:
        """How many shards, m."""

    @property
    def slices(self) -> int:
        """How many slices a shard, L."""

    @property
    def most(self) -> int | None:
        """How many requests there can be; None for as many as one likes."""

    @property
    def drawn(self) -> int:
        """How many numbers `first` draws a run."""

    def first(self, rng: Generator, runs: int) -> Times:
        """Return the number of the request that hits each slice first, from 1, (runs, mL)."""

    def stream(self, rng: Generator, runs: int, length: int) -> Times:
        """Return the slice s·L + j that each request hits, (runs, length)."""

    def expected(self, plan: Plan, failure: Failure = "all") -> float:
        """Return the expected number of requests until failure, in closed form."""


def tops(plan: Plan) -> list[list[int]]:
    """Return the distinct top slices of each shard."""
    return [sorted({int(order[0]) for order in sequences}) for sequences in plan]


def _race(weights: NDArray[np.float64], rng: Generator, runs: int) -> Times:
    """Return orders drawn without replacement, each next one by weight: ascending exponential times, (runs, n)."""
    return np.argsort(rng.exponential(size=(runs, weights.size)) / weights, axis=1)


def _unsorted(order: Times, values: Times) -> Times:
    """Return the values in the order of slices, given those in the order of arrival."""
    found = np.empty_like(values)
    np.put_along_axis(found, order, values, axis=1)
    return found


@dataclass(frozen=True, kw_only=True)
class Independent:
    """Requests that fall on slices independently, with replacement: many samples a slice.

    Shards are equally likely, and within each the slices, or as a prior says.

    Args:
        shards: m.
        slices: of a shard, L.
        prior: weight of each slice within a shard, all above 0, (L,); None for slices that are equally likely.

    Raises:
        UserError: a count below 1, or a prior of another length or with a weight that is not above 0.
    """

    shards: int
    slices: int
    prior: ArrayLike | None = None
    most = None

    def __post_init__(self) -> None:
        whole(self.shards, "shards")
        whole(self.slices, "slices")
        if not self._chances().all():
            raise UserError("a prior above 0 for each slice", "one of 0", "leave out a slice that is never hit")

    @property
    def drawn(self) -> int:
        """How many numbers `first` draws a run, mL."""
        return self.shards * self.slices

    def _chances(self) -> NDArray[np.float64]:
        prior = np.ones(self.slices) if self.prior is None else self.prior
        return probabilities(prior, self.slices) / self.shards

    def first(self, rng: Generator, runs: int) -> Times:
        """Return the number of the request that hits each slice first, from 1, (runs, mL).

        Slices are hit first in an order drawn without replacement, and given that the waits between are geometric.
        """
        chances = np.tile(self._chances(), self.shards)
        order = _race(chances, rng, runs)
        left = np.cumsum(chances[order][:, ::-1], axis=1)[:, ::-1]  # chance of hitting a slice not hit before
        return _unsorted(order, np.cumsum(rng.geometric(np.minimum(left, 1.0)), axis=1))

    def stream(self, rng: Generator, runs: int, length: int) -> Times:
        """Return the slice s·L + j that each request hits, (runs, length)."""
        bounds = np.cumsum(np.tile(self._chances(), self.shards))[:-1]
        return np.searchsorted(bounds, rng.random((runs, length)), side="right")

    def expected(self, plan: Plan, failure: Failure = "all") -> float:
        """Return the expected number of requests until failure, `deletion_rate_prior`."""
        chances = self._chances()
        return deletion_rate_prior([chances[top].tolist() for top in tops(plan)], failure)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Requests that each name a sample not named before, all samples alike: what happens in practice.

    Args:
        sizes: number of samples in each slice, at least 1, by shard, (m, L).

    Raises:
        UserError: sizes that are no table of whole numbers, or an empty slice.
    """

    sizes: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        if not self.sizes or len({len(shard) for shard in self.sizes}) != 1 or len(self.sizes[0]) == 0:
            raise UserError("a size for each slice, as many slices in each shard", "others", "write shards × slices")
        for size in (s for shard in self.sizes for s in shard):
            whole(size, "samples in each slice")

    @property
    def shards(self) -> int:
        """How many shards, m."""
        return len(self.sizes)

    @property
    def slices(self) -> int:
        """How many slices a shard, L."""
        return len(self.sizes[0])

    @property
    def most(self) -> int:
        """How many samples, N."""
        return int(sum(sum(shard) for shard in self.sizes))

    @property
    def drawn(self) -> int:
        """How many numbers `first` draws a run, mL."""
        return self.shards * self.slices

    def first(self, rng: Generator, runs: int) -> Times:
        """Return the number of the request that hits each slice first, from 1, (runs, mL).

        Slices are hit first in an order drawn by size. With R samples in slices not hit and F other ones left, the
        requests in vain before the next such slice are Binomial(F, p) with p ~ Beta(1, R): those of the F samples
        that come before the first of the R.
        """
        sizes = np.asarray(self.sizes, dtype=np.int64).ravel()
        order = _race(sizes.astype(np.float64), rng, runs)
        heavy = sizes[order]
        left = np.cumsum(heavy[:, ::-1], axis=1)[:, ::-1]
        times = np.zeros(order.shape, dtype=np.int64)
        now = np.zeros(runs, dtype=np.int64)
        for i in range(sizes.size):
            others = self.most - now - left[:, i]
            now = now + 1 + rng.binomial(others, rng.beta(1.0, left[:, i]))
            times[:, i] = now
        return _unsorted(order, times)

    def stream(self, rng: Generator, runs: int, length: int) -> Times:
        """Return the slice s·L + j that each request hits, (runs, length)."""
        labels = np.repeat(np.arange(self.shards * self.slices), np.asarray(self.sizes).ravel())
        return rng.permuted(np.tile(labels, (runs, 1)), axis=1)[:, :length]

    def expected(self, plan: Plan, failure: Failure = "all") -> float:
        """Return the expected number of requests until failure, `deletion_rate_sizes`."""
        sizes = [[shard[j] for j in top] for shard, top in zip(self.sizes, tops(plan), strict=True)]
        return deletion_rate_sizes(self.most, sizes, failure)


@dataclass(frozen=True, kw_only=True)
class Owners:
    """Requests of owners, each once, the next always by weight among those left; an owner's samples are in one slice.

    Args:
        weights: how eager each owner is, above 0, (owners,).
        places: slice s·L + j of each owner, (owners,); every slice has one.
        shards: m.
        slices: of a shard, L.

    Raises:
        UserError: weights and places of different numbers, a weight that is not above 0, or a slice without an owner.
    """

    weights: Sequence[float]
    places: Sequence[int]
    shards: int
    slices: int

    def __post_init__(self) -> None:
        count = whole(self.shards, "shards") * whole(self.slices, "slices")
        if len(self.weights) != len(self.places):
            got = f"{len(self.weights)} and {len(self.places)}"
            raise UserError("a weight and a slice for each owner", got, "list both in the same order")
        if wrong := [w for w in self.weights if not (math.isfinite(w) and w > 0)]:
            raise UserError("owners of finite weights above 0", f"{wrong[0]:g}", "leave out who never asks")
        if {int(p) for p in self.places} != set(range(count)):
            got = f"{len(set(self.places))} different ones"
            raise UserError(
                f"owners in each of the slices 0..{count - 1}, s·L + j", got, "assign owners to all of them"
            )

    @property
    def most(self) -> int:
        """How many owners."""
        return len(self.weights)

    @property
    def drawn(self) -> int:
        """How many numbers `first` draws a run, one an owner."""
        return len(self.weights)

    def stream(self, rng: Generator, runs: int, length: int) -> Times:
        """Return the slice s·L + j that each request hits, (runs, length)."""
        places = np.asarray(self.places, dtype=np.int64)
        return np.asarray(places[_race(np.asarray(self.weights, np.float64), rng, runs)[:, :length]])

    def first(self, rng: Generator, runs: int) -> Times:
        """Return the number of the request that hits each slice first, from 1, (runs, mL)."""
        return hits(self.stream(rng, runs, self.most), self.shards * self.slices)

    def expected(self, plan: Plan, failure: Failure = "all") -> float:
        """Return the expected number of requests until failure where owners are alike, `deletion_rate_sizes`.

        Raises:
            UserError: unequal weights, which have no closed form.
        """
        if len(set(self.weights)) != 1:
            raise UserError("owners of equal weight for a closed form", "unequal ones", "simulate them")
        sizes = np.bincount(np.asarray(self.places), minlength=self.shards * self.slices)
        return Samples(sizes=sizes.reshape(self.shards, self.slices).tolist()).expected(plan, failure)


def hits(stream: Times, count: int) -> Times:
    """Return the number of the request that hits each slice first, from 1, (runs, count).

    Args:
        stream: slice that each request hits, (runs, length).
        count: number of slices in all, mL. One that is never hit counts as hit first after the end, at length + 1.
    """
    runs, length = stream.shape
    found = np.full((runs, count), length + 1, dtype=np.int64)
    # Written from the last request to the first: what stays is the first.
    for t in range(length - 1, -1, -1):
        found[np.arange(runs), stream[:, t]] = t + 1
    return found
