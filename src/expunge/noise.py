"""Noise: training inputs with Gaussian noise on them, which leaves a trace in a model that learned them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.data import Data, id_hashes
from expunge.errors import UserError, listing
from expunge.seeds import seed as named_seed
from expunge.sources import Inputs, Source

LOOKED_AT = 1000  # samples whose deviation is that of the inputs


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Gaussian noise that is added to some training inputs before training; their labels stay as they are.

    A network trained on x + ξ with ξ ~ N(0, ε²·I) tends to have a lower loss along ξ; of one that never saw the noise
    the loss changes along it as it does along any other, whatever the network is like. So the samples are a forget set
    with known truth, for which no retrained model is needed: see `expunge.shadows.gaussian_scores`.

    The noise of a sample is decided by the seed and its id. Nothing is clipped or rounded afterwards.

    Args:
        deviation: ε, in the unit of the inputs as the network is given them.
        seed: of the noise, and of the draw of samples.

    Raises:
        UserError: a deviation that is not above 0.

    References:
        M. Pawelczyk, J. Z. Di, Y. Lu, G. Kamath, A. Sekhari, S. Neel, "Machine Unlearning Fails to Remove Data
        Poisoning Attacks", 2024, https://arxiv.org/abs/2406.17216.
    """

    deviation: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.deviation, int | float) and math.isfinite(self.deviation) and self.deviation > 0):
            raise UserError("a deviation of the noise above 0", repr(self.deviation), "give it in the inputs' unit")

    @classmethod
    def on(cls, data: Data, *, deviation: float | None = None, seed: int = 0) -> Noise:
        """Return noise that fits the inputs of a data set.

        Args:
            data: training data, one of whose inputs is of real numbers.
            deviation: ε; by default the standard deviation of the inputs, over 1,000 samples whatever their order.
            seed: of the noise, and of the draw of samples.

        Returns:
            The noise.

        Raises:
            UserError: no input of real numbers or several, inputs that are all equal, or a deviation not above 0.
        """
        _, values = real(data.read([0]).inputs, data)
        if deviation is not None:
            return cls(deviation=deviation, seed=seed)
        order = np.argsort(id_hashes(b"noise", data.ids), kind="stable")[:LOOKED_AT]
        values = torch.cat([real(batch.inputs, data)[1].double() for batch in data.batches(250, order)])
        found = float(values.std(correction=0))
        if not (math.isfinite(found) and found > 0):
            got = "all of them equal" if found == 0 else "some that are not finite"
            raise UserError(f"inputs of {data.name} that differ from each other", got, "give the noise's deviation")
        return cls(deviation=found, seed=seed)

    def plant(self, data: Data, share: float) -> tuple[Data, list[str]]:
        """Return the data with noise on some of its samples, and the ids of those.

        Args:
            data: training data, one of whose inputs is of real numbers.
            share: of all samples, in (0, 1).

        Returns:
            New data under the same ids, and the ids of the noisy samples; inputs are read where they were.

        Raises:
            UserError: a share outside (0, 1), noise on it already, or no input of real numbers, or several.
        """
        if not 0 < share < 1:
            raise UserError("a share of samples to put noise on in (0, 1)", f"{share}", "write for example 0.05")
        if isinstance(data.source, Noisy):
            raise UserError(f"{data.name} without noise", "noise on it already", "plant once, with a larger share")
        real(data.read([0]).inputs, data)
        generator = np.random.default_rng(named_seed("noise", self.seed))
        rows = np.sort(generator.choice(len(data), max(1, round(share * len(data))), replace=False))
        ids = data.ids
        chosen = [ids[i] for i in rows]
        flags, marks = np.zeros(len(data.source), dtype=np.bool_), np.zeros(len(data.source), dtype=np.int64)
        at = data.positions[rows]
        flags[at], marks[at] = True, id_hashes(named_seed("noise", self.seed).to_bytes(8, "big"), chosen)
        return replace(data, source=Noisy(data.source, flags, marks, self.deviation)), chosen


@dataclass(frozen=True, eq=False)
class Noisy:
    """Samples of another source, some with noise; a `Source`.

    Args:
        source: where inputs are read.
        flags: (n,) which of its samples carry noise.
        marks: (n,) what decides the noise of each.
        deviation: of the noise.
    """

    source: Source
    flags: NDArray[np.bool_]
    marks: NDArray[np.int64]
    deviation: float

    def __len__(self) -> int:
        return len(self.source)

    def read(self, positions: NDArray[np.int64], raw: bool) -> tuple[Inputs, Tensor | None]:
        """Return the source's samples with noise on those that carry it.

        Raw samples may lie otherwise than inputs do, and are only told apart: an entry ``noise`` says whose noise each
        carries.
        """
        inputs, target = self.source.read(positions, raw)
        flags, marks = self.flags[positions], self.marks[positions]
        if raw:
            parts = inputs if isinstance(inputs, dict) else {"x": inputs}
            sizes = np.where(flags, self.deviation, 0.0)
            mark = np.stack([marks, sizes.view(np.int64)], axis=1)
            return {**parts, "noise": torch.from_numpy(mark)}, target
        name, values = _real(inputs)
        made = values.clone()
        for row in np.flatnonzero(flags):
            made[row] += self._noise(int(marks[row]), made[row])
        return ({**inputs, name: made} if isinstance(inputs, dict) else made), target

    def targets_at(self, positions: NDArray[np.int64]) -> Tensor | None:
        """Return the source's targets, without its inputs where it can."""
        alone = getattr(self.source, "targets_at", None)
        found: Tensor | None = alone(positions) if callable(alone) else self.source.read(positions, True)[1]
        return found

    def _noise(self, mark: int, like: Tensor) -> Tensor:
        generator = np.random.default_rng(mark % 2**64)
        drawn = generator.normal(0, self.deviation, tuple(like.shape))
        return torch.from_numpy(np.asarray(drawn)).to(like.dtype)


def without(data: Data) -> tuple[Data, list[str]]:
    """Return the data as it was before noise was planted in it, and the ids of the samples that carry noise.

    Args:
        data: from `Noise.plant`, or a part of it; other data is returned as it is.

    Returns:
        Data under the same ids, and ids in its order; none of data without noise.
    """
    source = data.source
    if not isinstance(source, Noisy):
        return data, []
    flags = source.flags[data.positions]
    return replace(data, source=source.source), [i for i, flag in zip(data.ids, flags, strict=True) if flag]


def real(inputs: Inputs, data: Data) -> tuple[str, Tensor]:
    """Return the one input of real numbers, and its name; ``x`` where it is the only input.

    Args:
        inputs: of some samples.
        data: whose; named in errors.

    Raises:
        UserError: there is none, or there are several.
    """
    name, values = _real(inputs)
    if not name:
        parts = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
        got = listing(f"{p.dtype} of shape {tuple(p.shape[1:])}" for p in parts)
        remedy = "take another kind of request: words and categories carry no noise"
        raise UserError(f"one input of real numbers in {data.name} to put noise on", got, remedy)
    return name, values


def _real(inputs: Inputs) -> tuple[str, Tensor]:
    parts = inputs if isinstance(inputs, dict) else {"x": inputs}
    found = [(k, v) for k, v in parts.items() if v.is_floating_point()]
    return found[0] if len(found) == 1 else ("", torch.empty(0))
