"""Simulated deletion requests to an exact unlearning system: how long it lasts, how deep it serves, its restarts.

How long a system lasts depends on when each slice is hit first, and only those times are drawn: 100,000 runs of 5
shards of 4 slices take about a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from expunge.errors import UserError
from expunge.exact.arrivals import Generator, Plan, Requests, Times, tops
from expunge.exact.orders import Order, checked, whole
from expunge.exact.sequences import Select, choose
from expunge.seeds import seed as seeded

AT_ONCE = 2**21  # numbers drawn together
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def plans(
    shards: int,
    slices: int,
    budget: int,
    prior: ArrayLike | None = None,
    select: Select = "cyclic",
    seed: int = 0,
    *,
    own: bool = False,
) -> list[list[Order]]:
    """Return the sequences of each shard, as `choose` does, the same in each.

    Args:
        shards: m.
        slices: of a shard, L.
        budget: sequences of a shard, B.
        prior: as of `choose`.
        select: as of `choose`.
        seed: as of `choose`.
        own: of ``random``, whether each shard draws its own.

    Raises:
        UserError: as `choose`, or ``own`` where nothing is drawn.
    """
    if own and select != "random":
        raise UserError("the rule random for own sequences of each shard", select, "leave own out")
    seeds = [seeded("shard", seed, s) if own else seed for s in range(whole(shards, "shards"))]
    return [choose(slices, budget, prior, select, s) for s in seeds]


@dataclass(frozen=True)
class Summary:
    """What simulated runs came to.

    Args:
        n: number of runs.
        mean: over runs.
        sd: standard deviation of one run.
        se: standard error of the mean, sd/√n.
        quantiles: values that a share of 0.05, 0.25, 0.5, 0.75, 0.95 of the runs is not above.
    """

    n: int
    mean: float
    sd: float
    se: float
    quantiles: dict[float, float]

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Summary:
        """Return the summary of one number a run, (n,)."""
        sd = float(values.std(ddof=1))
        at = dict(zip(QUANTILES, np.quantile(values, QUANTILES).tolist(), strict=True))
        return cls(values.size, float(values.mean()), sd, sd / math.sqrt(values.size), at)


@dataclass(frozen=True)
class Lifetime:
    """How many requests a system lasts.

    Args:
        all: requests until no shard has a sequence left, that one counted.
        first: requests until one shard has none.
    """

    all: Summary
    first: Summary

    @classmethod
    def of(cls, lost: Times) -> Lifetime:
        """Return it from the request that each shard is lost at, (runs, m)."""
        return cls(Summary.of(lost.max(axis=1).astype(np.float64)), Summary.of(lost.min(axis=1).astype(np.float64)))


@dataclass(frozen=True)
class Simulation:
    """A system under simulated requests.

    Args:
        lifetime: requests until all shards are lost, and until one is.
        served: mean depth of the shards, over the requests until all are lost.
        depth: mean depth of the shards after each number of requests that was asked for, lost ones at depth 0.
        quality: mean of F(depth) over the shards, alike; empty where no F was given.
    """

    lifetime: Lifetime
    served: Summary
    depth: dict[int, Summary]
    quality: dict[int, Summary]


def levels(first: Times, plan: Plan) -> Times:
    """Return the request at which each shard loses each depth, (runs, m, L): it is at depth k while r < value[k − 1].

    A depth of k lasts as long as one set of k leading slices is clean: max over sets of the min over their slices.

    Args:
        first: request that hits each slice first, (runs, mL).
        plan: sequences of each shard.
    """
    runs, slices = first.shape[0], len(plan[0][0])
    by_slice = np.ascontiguousarray(first.T).reshape(len(plan), slices, runs)  # one slice's times lie side by side
    found = np.zeros_like(by_slice)
    for s, sequences in enumerate(plan):
        above: dict[frozenset[int], Times] = {}
        for k in range(slices):
            here: dict[frozenset[int], Times] = {}
            for order in sequences:
                if (members := frozenset(order[: k + 1])) not in here:
                    last = by_slice[s, order[k]]
                    here[members] = np.minimum(last, above[frozenset(order[:k])]) if k else last
            for times in here.values():
                np.maximum(found[s, k], times, out=found[s, k])
            above = here
    return np.moveaxis(found, 2, 0)


def _chunks(runs: int, width: int, name: str, seed: int) -> Iterator[tuple[Generator, int]]:
    """Yield a generator and a number of runs until there are enough, of a size that memory allows."""
    size = max(1, AT_ONCE // width)
    for n, start in enumerate(range(0, runs, size)):
        yield np.random.default_rng(seeded(name, seed, n)), min(size, runs - start)


def _fitting(requests: Requests, plan: Plan, runs: int) -> None:
    whole(runs, "runs", 2)
    if len(plan) != requests.shards:
        remedy = "give the sequences of each shard, as plans returns them"
        raise UserError(f"the sequences of {requests.shards} shards", f"those of {len(plan)}", remedy)
    for sequences in plan:
        checked(sequences, requests.slices)


def lifetime(requests: Requests, plan: Plan, *, runs: int = 4000, seed: int = 0) -> Lifetime:
    """Return how many simulated requests systems last: all that matters is when the top slices are hit first.

    Args:
        requests: the model of requests, such as `Independent`, `Samples` or `Owners` of ``expunge.exact.arrivals``.
        plan: sequences of each shard; one sequence is SISA without retraining.
        runs: number of simulated runs.
        seed: of the requests, which do not depend on the sequences.

    >>> from expunge.exact.arrivals import Independent
    >>> found = lifetime(Independent(shards=5, slices=4), plans(5, 4, 4)).all
    >>> abs(found.mean - 71.95) < 4 * found.se
    True

    Raises:
        UserError: fewer than two runs, or sequences of other shards or slices than the requests'.
    """
    _fitting(requests, plan, runs)
    lost = []
    for rng, n in _chunks(runs, requests.drawn, "first hits", seed):
        first = requests.first(rng, n).reshape(n, requests.shards, requests.slices)
        lost.append(np.stack([first[:, s, top].max(axis=1) for s, top in enumerate(tops(plan))], axis=1))
    return Lifetime.of(np.concatenate(lost))


def simulate(
    requests: Requests,
    plan: Plan,
    *,
    runs: int = 4000,
    seed: int = 0,
    after: Sequence[int] = (),
    quality: Sequence[float] | None = None,
) -> Simulation:
    """Return how deep systems serve under simulated requests, and how long they last.

    A shard serves its deepest sequence, and is lost when the top slice of each was hit. Nothing is retrained.

    Args:
        requests: as of `lifetime`.
        plan: as of `lifetime`.
        runs: as of `lifetime`.
        seed: as of `lifetime`; the same requests.
        after: numbers of requests after which depth and quality are wanted.
        quality: F(0..L), what a shard is worth at each depth, (L + 1,).

    >>> from expunge.exact.arrivals import Independent
    >>> found = simulate(Independent(shards=5, slices=4), plans(5, 4, 4), after=[10]).depth[10]
    >>> abs(found.mean - 2.27) < 4 * found.se
    True

    Raises:
        UserError: fewer than two runs, sequences of other shards or slices than the requests', a number of requests
            below 0, or qualities that are not one a depth, or wanted after no number of requests.
    """
    _fitting(requests, plan, runs)
    times = [whole(r, "requests", 0) for r in after]
    worth = None if quality is None else np.asarray(quality, dtype=np.float64)
    if worth is not None and (worth.shape != (requests.slices + 1,) or not np.isfinite(worth).all()):
        want = f"a quality for each depth 0..{requests.slices}"
        raise UserError(want, f"{worth.size} values", "write F(0), F(1), ..., all finite")
    if worth is not None and not times:
        raise UserError("numbers of requests after which quality is wanted", "none", "give after, such as [1, 10, 100]")
    lost, served = [], []
    depth: dict[int, list[NDArray[np.float64]]] = {r: [] for r in times}
    value: dict[int, list[NDArray[np.float64]]] = {r: [] for r in times if worth is not None}
    for rng, n in _chunks(runs, requests.drawn, "first hits", seed):
        ends = levels(requests.first(rng, n), plan)
        lost.append(ends[:, :, 0])
        until = ends[:, :, 0].max(axis=1)
        served.append((ends - 1).sum(axis=(1, 2)) / requests.shards / until)  # a depth lost at r was served r − 1 times
        for r in times:
            deep = (ends > r).sum(axis=2)
            depth[r].append(deep.mean(axis=1))
            if worth is not None:
                value[r].append(worth[deep].mean(axis=1))
    return Simulation(
        Lifetime.of(np.concatenate(lost)),
        Summary.of(np.concatenate(served)),
        {r: Summary.of(np.concatenate(found)) for r, found in depth.items()},
        {r: Summary.of(np.concatenate(found)) for r, found in value.items()},
    )


@dataclass(frozen=True)
class Restarts:
    """How often a system was trained anew while requests arrived.

    Args:
        scratch: times that all shards were lost and everything was trained from scratch.
        rebuilt: times that a shard was rebuilt in the background.
    """

    scratch: Summary
    rebuilt: Summary


def restarts(
    requests: Requests,
    plan: Plan,
    *,
    horizon: int = 1000,
    heal: int | None = None,
    runs: int = 4000,
    seed: int = 0,
) -> Restarts:
    """Return how often a system is trained anew during some requests.

    When no shard has a sequence left, everything is trained from scratch on what remains before the next request.
    With ``heal``, a shard that is lost is rebuilt in the background and serves again, all sequences whole, after that
    many further requests; those to it in the meantime are left out of the rebuilding and harm nothing.

    Args:
        requests: the model of requests.
        plan: sequences of each shard.
        horizon: number of requests.
        heal: requests that arrive while a shard is rebuilt; None rebuilds none.
        runs: number of simulated runs.
        seed: of the requests, which do not depend on the sequences.

    Raises:
        UserError: as `simulate`, or more requests than there can be.
    """
    _fitting(requests, plan, runs)
    if requests.most is not None and whole(horizon, "requests") > requests.most:
        got = f"a horizon of {horizon}"
        raise UserError(f"at most {requests.most} requests, each sample or owner once", got, "take a shorter one")
    wait = None if heal is None else whole(heal, "requests of a rebuild", 0)
    width = max(whole(horizon, "requests"), requests.most or 0)
    counts = [
        _restarted(requests.stream(rng, n, horizon), plan, wait) for rng, n in _chunks(runs, width, "stream", seed)
    ]
    scratch, rebuilt = (np.concatenate(found).astype(np.float64) for found in zip(*counts, strict=True))
    return Restarts(Summary.of(scratch), Summary.of(rebuilt))


def _restarted(stream: Times, plan: Plan, wait: int | None) -> tuple[Times, Times]:
    """Return how often each run starts from scratch, and rebuilds a shard."""
    runs, shards, slices = stream.shape[0], len(plan), len(plan[0][0])
    top = np.zeros((shards, slices), dtype=bool)
    for s, here in enumerate(tops(plan)):
        top[s, here] = True
    clean = np.broadcast_to(top, (runs, shards, slices)).copy()  # top slices not hit
    due = np.full((runs, shards), -1, dtype=np.int64)  # the request after which a lost shard is back
    scratch, rebuilt = np.zeros(runs, dtype=np.int64), np.zeros(runs, dtype=np.int64)
    rows = np.arange(runs)
    for t in range(stream.shape[1]):
        shard, slice_ = np.divmod(stream[:, t], slices)
        clean[rows, shard, slice_] = False
        lost: NDArray[np.bool_] = np.logical_not(np.any(clean, axis=2))
        failed: NDArray[np.bool_] = np.all(lost, axis=1)
        scratch += failed
        clean[failed], due[failed] = top, -1
        if wait is not None:
            due[lost & ~failed[:, None] & (due < 0)] = t + wait
            back = due == t
            rebuilt += back.sum(axis=1)
            clean[back] = np.broadcast_to(top, clean.shape)[back]
            due[back] = -1
    return scratch, rebuilt
