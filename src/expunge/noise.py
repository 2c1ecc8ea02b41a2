"""Noise: training inputs with Gaussian noise on them, which leaves a trace in a model that learned them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.data import Data, id_hashes
from expunge.errors import UserError, listing
from expunge.poison import Stamped
from expunge.seeds import seed as named_seed
from expunge.sources import Inputs, Relabelled, Source

LOOKED_AT = 1000  # samples whose deviation is that of the inputs
FEW = 64  # samples on which noise is looked for once it is added
MARK = "\0noise"  # a name that no input of a network has


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Gaussian noise that is added to some training inputs before training; their labels stay as they are.

    A network trained on x + ξ with ξ ~ N(0, ε²·I) tends to have a lower loss along ξ; of one that never saw the noise
    the loss changes along it as it does along any other, whatever the network is like. So the samples are a forget set
    with known truth, for which no retrained model is needed: see `expunge.shadows.gaussian_scores`.

    The noise of a sample is decided by the seed and its id. It is cast to the inputs' type, and nothing is clipped.

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
        given = self.deviation
        real = isinstance(given, Real) and not isinstance(given, bool)
        try:
            found = float(given) if real else math.nan
        except OverflowError:
            found = math.inf
        if not (math.isfinite(found) and found > 0):
            raise UserError("a deviation of the noise above 0", f"{given!r:.40}", "give it in the inputs' unit")
        object.__setattr__(self, "deviation", found)

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
            UserError: no samples, no input of real numbers or several, inputs that are all equal, or a deviation not
                above 0.
        """
        _check(data)
        if deviation is not None:
            return cls(deviation=deviation, seed=seed)
        order = np.argsort(id_hashes(b"noise", data.ids), kind="stable")[:LOOKED_AT]
        values = values_of(data.subset([data.ids[i] for i in order]))
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
            UserError: a share outside (0, 1), no samples, noise on it already, no input of real numbers or several, or
                noise that is lost in the inputs' type.
        """
        if not 0 < share < 1:
            raise UserError("a share of samples to put noise on in (0, 1)", f"{share}", "write for example 0.05")
        if planted(data) is not None:
            raise UserError(f"{data.name} without noise", "noise on it already", "plant once, with a larger share")
        _check(data)
        generator = np.random.default_rng(named_seed("noise", self.seed))
        rows = np.sort(generator.choice(len(data), max(1, round(share * len(data))), replace=False))
        ids = data.ids
        chosen = [ids[i] for i in rows]
        flags, marks = np.zeros(len(data.source), dtype=np.bool_), np.zeros(len(data.source), dtype=np.int64)
        at = data.positions[rows]
        flags[at], marks[at] = True, id_hashes(named_seed("noise", self.seed).to_bytes(8, "big"), chosen)
        made = replace(data, source=Noisy(data.source, flags, marks, self.deviation))
        self._check_kept(data.subset(chosen[:FEW]), made.subset(chosen[:FEW]))
        return made, chosen

    def _check_kept(self, before: Data, after: Data) -> None:
        """Refuse noise that the type of the inputs cannot hold beside them."""
        drawn = values_of(after) - values_of(before)
        found = float(drawn.square().mean().sqrt())
        if not abs(found / self.deviation - 1) <= max(0.05, 6 / math.sqrt(2 * drawn.numel())):
            kind = real(before.read([0]).inputs, before)[1].dtype
            got = f"a deviation of {found:.3g} once it is added to {kind} inputs"
            want = f"noise of deviation {self.deviation:g} on {before.name}"
            raise UserError(want, got, "take larger noise, or scale the inputs")


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

        Raw samples may lie otherwise than inputs do, and are only told apart: an entry says whose noise each carries.
        """
        inputs, target = self.source.read(positions, raw)
        flags, marks = self.flags[positions], self.marks[positions]
        if raw:
            parts = inputs if isinstance(inputs, dict) else {"x": inputs}
            sizes = np.where(flags, self.deviation, 0.0)
            mark = np.stack([marks, sizes.view(np.int64)], axis=1)
            return {**parts, MARK: torch.from_numpy(mark)}, target
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


@dataclass(frozen=True)
class Planted:
    """What is known of noise in a data set.

    Args:
        clean: the data without it, under the same ids.
        ids: of the samples that carry noise, in the data's order.
        deviation: of the noise.
    """

    clean: Data
    ids: list[str]
    deviation: float


def planted(data: Data) -> Planted | None:
    """Return what noise a data set carries, None where none was planted in what it is read from.

    It is found under labels that were changed and patches that were added afterwards.

    Args:
        data: from `Noise.plant`, or a part of it, or made of such.
    """
    found = _under(data.source)
    if found is None:
        return None
    source, flags, deviation = found
    at = flags[data.positions]
    return Planted(replace(data, source=source), [i for i, f in zip(data.ids, at, strict=True) if f], deviation)


def untouched(data: Data) -> Data:
    """Return the data without noise and patches, under the same ids and the labels it has.

    Args:
        data: maybe from `Noise.plant` or `Backdoor.plant`, or made of such.
    """
    return replace(data, source=_bare(data.source))


def _bare(source: Source) -> Source:
    if isinstance(source, Noisy | Stamped):
        return _bare(source.source)
    return replace(source, source=_bare(source.source)) if isinstance(source, Relabelled) else source


def _under(source: Source) -> tuple[Source, NDArray[np.bool_], float] | None:
    """Return a source without noise, which of its samples carried some, and how much."""
    if isinstance(source, Noisy):
        return source.source, source.flags, source.deviation
    if not isinstance(source, Relabelled | Stamped):
        return None
    found = _under(source.source)
    if found is None:
        return None
    inner, flags, deviation = found
    return (
        replace(source, source=inner),
        flags[source.positions] if isinstance(source, Relabelled) else flags,
        deviation,
    )


def _check(data: Data) -> None:
    if len(data) == 0:
        raise UserError("samples to put noise on", f"none in {data.name}", "pass data that is not empty")
    real(data.read([0]).inputs, data)


def values_of(data: Data) -> Tensor:
    """Return the input of real numbers of all samples, (N, ...) in float64."""
    return torch.cat([real(b.inputs, data)[1].double() for b in data.batches(250)])


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
