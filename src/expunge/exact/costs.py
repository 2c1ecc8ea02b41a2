"""What exact unlearning systems cost: retraining in SISA, training a sequence of groups of layers, and storage.

A system has m shards of L slices and B sequences a shard.
"""

from __future__ import annotations

import math
from typing import Literal

from expunge.errors import UserError, suggest
from expunge.exact.orders import whole


def _asked(samples: int, shards: int, requests: int) -> None:
    if whole(requests, "requests", 0) > whole(samples, "samples") or whole(shards, "shards") > samples:
        got = f"{requests} requests, {shards} shards and {samples} samples"
        raise UserError("no more requests, and no more shards, than samples", got, "count them again")


def sisa_epochs(epochs: float, slices: int) -> float:
    """Return the epochs of a sliced training that processes as many samples as e' epochs of an unsliced one.

    e = 2L/(L+1)·e', spread evenly over the slices, e/L each; step i trains on slices 1..i.

    References:
        L. Bourtoule, V. Chandrasekaran, C. A. Choquette-Choo, H. Jia, A. Travers, B. Zhang, D. Lie, N. Papernot,
        "Machine Unlearning", 2021, https://arxiv.org/abs/1912.03817, equation 1.
    """
    return 2 * whole(slices, "slices") / (slices + 1) * epochs


def sharding_cost(samples: int, shards: int, requests: int) -> float:
    """Return the expected samples that SISA retrains on for requests served one at a time, unsliced, an epoch each.

    (N/m + 1/(2m) − 1)·K − K²/(2m): each request retrains its shard, less all that it lost.

    Args:
        samples: N.
        shards: m.
        requests: K.

    >>> round(sharding_cost(1000, 5, 5), 1)
    993.0

    References:
        As `sisa_epochs`, equation 2.
    """
    _asked(samples, shards, requests)
    return (samples / shards + 1 / (2 * shards) - 1) * requests - requests**2 / (2 * shards)


def sharding_cost_batch(samples: int, shards: int, requests: int) -> float:
    """Return the expected samples that SISA retrains on for requests served together: N·(1 − (1 − 1/m)^K) − K.

    Args:
        samples: N.
        shards: m.
        requests: K.

    >>> round(sharding_cost_batch(1000, 5, 5), 1)
    667.3

    References:
        As `sisa_epochs`, equation 3.
    """
    _asked(samples, shards, requests)
    return samples * (1 - (1 - 1 / shards) ** requests) - requests


def slicing_cost(samples: int, slices: int, epochs: float = 1.0) -> float:
    """Return the expected samples that a sliced shard processes again for one request: e'·D·(2/3 + 1/(3L)).

    Slicing alone saves at most a third.

    Args:
        samples: of the shard, D.
        slices: L.
        epochs: of an unsliced training, e'.

    >>> slicing_cost(1000, 4)
    750.0

    References:
        As `sisa_epochs`, equation 4.
    """
    return epochs * samples * (2 / 3 + 1 / (3 * whole(slices, "slices")))


def slicing_cost_batch(samples: int, slices: int, requests: int, epochs: float = 1.0) -> float:
    """Return the expected samples that a sliced shard processes again for requests served together.

    2e'D/(L(L+1))·(L(L+1)/2 − (E[r²] − E[r])/2) with r the lowest slice hit, P(r ≥ j) = ((L − j + 1)/L)^K.

    Args:
        samples: of the shard, D.
        slices: L.
        requests: to the shard, K.
        epochs: of an unsliced training, e'.

    >>> round(slicing_cost_batch(1000, 4, 1), 6) == slicing_cost(1000, 4)
    True

    References:
        As `sisa_epochs`, equation 5.
    """
    whole(slices, "slices")
    whole(requests, "requests")
    # E[r² − r]/2 = Σ_{j≥2} (j − 1)·P(r ≥ j)
    saved = math.fsum((j - 1) * ((slices - j + 1) / slices) ** requests for j in range(2, slices + 1))
    return 2 * epochs * samples / (slices * (slices + 1)) * (slices * (slices + 1) / 2 - saved)


def work_printed(slices: int, budget: int = 1) -> float:
    """Return the published cost of training B sequences, in trainings of all layers on all data: B·(L+1)/(2L).

    It counts trained layers alone, and neither the forward pass nor what passes through frozen layers above.

    References:
        S. Basu Roy Chowdhury, K. Choromanski, A. Sehanobish, A. Dubey, S. Chaturvedi, "Towards Scalable Exact Machine
        Unlearning Using Parameter-Efficient Fine-Tuning", 2025, https://arxiv.org/abs/2406.16257.
    """
    return whole(budget, "a budget of sequences") * (whole(slices, "slices") + 1) / (2 * slices)


def work(
    slices: int, *, equal: Literal["epochs", "samples"] = "epochs", cached: bool = False, share: float = 1.0
) -> float:
    """Return the work of training one sequence in units of one model with the same adapters on the same data.

    Per sample, a forward pass through all blocks costs 1, and a backward pass the share of blocks it reaches: f·i/L at
    stage i, f for the model in comparison, which costs 1 + f. Stage i processes the i/L of the data:
    [(L+1)/2 + f·(L+1)(2L+1)/(6L)] / (1 + f) at equal epochs a stage. With activations under the group kept from one
    pass to the next the forward pass costs f·i/L too: 2f·(L+1)(2L+1)/(6L) / (1 + f).

    Args:
        slices: L.
        equal: ``epochs``: each stage trains for as many epochs as the model; ``samples``: for 2/(L+1) of them, so that
            as many samples are processed in all.
        cached: whether activations below the group are kept, which needs inputs that do not change.
        share: of the blocks that have adapters, f.

    >>> round(work(4), 2), round(work(6), 2), round(work(4, cached=True), 2)
    (2.19, 3.01, 1.88)

    Raises:
        UserError: no slice, a share outside (0, 1], or neither epochs nor samples to be equal.
    """
    count = whole(slices, "slices")
    if not 0 < share <= 1:
        raise UserError("a share of blocks with adapters above 0 and at most 1", repr(share), "write half as 0.5")
    if equal not in ("epochs", "samples"):
        raise UserError("what is equal to the model in comparison", repr(equal), suggest(equal, ("epochs", "samples")))
    backward = share * (count + 1) * (2 * count + 1) / (6 * count)
    forward = backward if cached else (count + 1) / 2
    return (forward + backward) / (1 + share) * (1.0 if equal == "epochs" else 2 / (count + 1))


def _copies(shards: int, slices: int, budget: int, *sizes: float) -> int:
    """Return the number of sequences in all."""
    whole(slices, "slices")
    if not all(size >= 0 for size in sizes):
        raise UserError("bytes of at least 0", f"{min(sizes):g}", "measure the files")
    return whole(shards, "shards") * whole(budget, "a budget of sequences")


def storage(shards: int, slices: int, budget: int, *, adapters: float, head: float = 0.0) -> float:
    """Return the bytes of all artefacts, stored by stage: m·B·(A + L·head), a bound where sequences share stages.

    Args:
        shards: m.
        slices: L.
        budget: B.
        adapters: bytes of the adapters of all groups together, A.
        head: bytes of a head, one a stage; 0 where heads are frozen.

    >>> round(storage(5, 6, 1, adapters=6.29e6, head=0.82e6) / 1e9, 3)
    0.056
    """
    return _copies(shards, slices, budget, adapters, head) * (adapters + slices * head)


def storage_checkpoints(shards: int, slices: int, budget: int, *, adapters: float, head: float = 0.0) -> float:
    """Return the bytes of a whole checkpoint after each stage, as SISA stores them: m·B·L·(A + head).

    >>> round(storage_checkpoints(5, 6, 1, adapters=6.29e6, head=0.82e6) / 1e9, 3)
    0.213
    """
    return _copies(shards, slices, budget, adapters, head) * slices * (adapters + head)
