"""Seeded simulations of what the kernel test and the rank of distances can see: planted shifts of vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from expunge.errors import UserError
from expunge.qualify.nearer import relative
from expunge.qualify.power import allowed, check_power
from expunge.qualify.rank import left_out
from expunge.stats import clopper_pearson

Floats = NDArray[np.float64]
GRID = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class Planted:
    """How often planted shifts were found in seeded trials.

    Args:
        shifts: the grid, in root mean square distances of a retrained model from the retrained models' mean.
        found: trials, of each shift, that rejected.
        trials: of each shift.
        power: that a shift needs to count as visible.
        smallest: the smallest shift that, like every larger one of the grid, is found with the power by a one-sided
            lower Clopper-Pearson bound of 95 %; infinite where none is.
    """

    shifts: tuple[float, ...]
    found: tuple[int, ...]
    trials: int
    power: float
    smallest: float


def _planted(
    rejections: Callable[[float], int], shifts: Sequence[float], trials: int, power: float, level: float
) -> Planted:
    check_power(power, level)
    grid = tuple(sorted(shifts))
    if not grid or grid[0] <= 0 or clopper_pearson(trials, max(trials, 1), 0.9).low < power:
        want = f"shifts above 0 and at least {math.ceil(math.log(0.05) / math.log(power))} trials"
        raise UserError(want, f"{list(shifts)} and {trials}", "take the default grid and 200 trials")
    found = tuple(rejections(s) for s in grid)
    smallest = math.inf
    for shift, count in zip(reversed(grid), reversed(found), strict=True):
        if clopper_pearson(count, trials, 0.9).low < power:
            break
        smallest = shift
    return Planted(shifts=grid, found=found, trials=trials, power=power, smallest=smallest)


class _Draws:
    """Normal vectors with the covariance of given rows, in as few coordinates as keep every distance."""

    def __init__(self, rows: ArrayLike, seed: int) -> None:
        x = np.asarray(rows, dtype=np.float64)
        if x.ndim != 2 or len(x) < 2 or not np.isfinite(x).all() or not np.ptp(x, axis=0).any():
            raise UserError("two or more finite rows that differ", str(x.shape), "give a row a retrained model, (K, D)")
        self.scale = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) / math.sqrt(len(x) - 1)
        self.size = float(np.sqrt(np.square(self.scale).sum()))
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape: int) -> Floats:
        """Return vectors around 0, (*shape, coordinates)."""
        return np.asarray(self.rng.normal(size=(*shape, self.scale.size)) * self.scale)

    def away(self, shift: float, *shape: int) -> Floats:
        """Return vectors of length shift · size, each in the direction in which a drawn model lies."""
        v = self(*shape)
        return np.asarray(v * (shift * self.size / np.linalg.norm(v, axis=-1, keepdims=True)))


def kernel_shift(
    retrained: ArrayLike,
    sizes: tuple[int, int, int],
    *,
    shifts: Sequence[float] = GRID,
    power: float = 0.95,
    level: float = 0.05,
    paired: bool = False,
    trials: int = 200,
    permutations: int = 199,
    seed: int = 0,
) -> Planted:
    """Return the smallest of planted shifts that `nearer.relative` finds farther than other retrained models.

    Models are drawn from a normal distribution with the covariance of the retrained ones; those in question are all
    shifted by one vector, in the direction in which a drawn model lies, drawn anew in each trial.

    Args:
        retrained: (K, D), two rows or more, from which the covariance is taken.
        sizes: rows in question, of other retrained models, and of the reference.
        shifts: the grid, in root mean square distances of a retrained model from their mean.
        power: that counts as visible.
        level: of the test.
        paired: as in `nearer.relative`.
        trials: of each shift.
        permutations: of each trial.
        seed: of shifts, models and relabellings.

    Raises:
        UserError: rows that do not differ, shifts not above 0, too few trials for the power, or what
            `nearer.relative` refuses.
    """
    n, m, r = sizes

    def rejections(shift: float) -> int:
        draw, count = _Draws(retrained, seed), 0
        for trial in range(trials):
            u, w, v = draw(n) + draw.away(shift), draw(m), draw(r)
            test = relative(u, w, v, side="farther", paired=paired, permutations=permutations, seed=seed + trial)
            count += test.p <= level
        return count

    return _planted(rejections, shifts, trials, power, level)


def distance_shift(
    retrained: ArrayLike,
    k: int,
    *,
    shifts: Sequence[float] = GRID,
    power: float = 0.95,
    level: float = 0.05,
    trials: int = 200,
    seed: int = 0,
) -> Planted:
    """Return the smallest of planted shifts of one model that `rank.rank_distance` among k models rejects.

    Args:
        retrained: (K, D), two rows or more, from which the covariance is taken.
        k: retrained models to rank among.
        shifts: as in `kernel_shift`, as are the power and the level.
        power: that counts as visible.
        level: of the rank.
        trials: of each shift.
        seed: of shifts and models.

    Raises:
        UserError: rows that do not differ, shifts not above 0, or too few trials for the power.
    """
    most = allowed(k, level, "upper")

    def rejections(shift: float) -> int:
        draw = _Draws(retrained, seed)
        z = draw(trials, k + 1)
        z[:, 0] += draw.away(shift, trials)
        scores = left_out(z)
        return int(((scores[:, 1:] >= scores[:, :1]).sum(axis=1) <= most).sum())

    return _planted(rejections, shifts, trials, power, level)
