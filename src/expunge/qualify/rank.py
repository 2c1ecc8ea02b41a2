"""Where one unlearned model ranks among retrained ones, and forgotten samples among unseen ones; no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as distributions

from expunge.errors import UserError, suggest
from expunge.qualify.equivalence import check_level, values
from expunge.stats import clopper_pearson

Side = Literal["upper", "lower", "both"]
ROUNDING = 1e-12  # two distances closer than this share of the larger one are a tie


@dataclass(frozen=True, kw_only=True)
class Rank:
    """The conformal rank of one unlearned model among retrained ones.

    Args:
        p: conformal p-value.
        extreme: retrained models at least as extreme, on the side that decides.
        k: retrained models.
        side: which numbers are extreme; ``upper`` of distances.
        floor: the smallest p that k models allow.
        level: chance that a model trained like the retrained ones is rejected, at most.
    """

    p: float
    extreme: int
    k: int
    side: Side
    floor: float
    level: float

    @property
    def able(self) -> bool:
        """Whether k is large enough to reject at the level at all."""
        return self.floor <= self.level + 1e-12

    @property
    def rejects(self) -> bool:
        """Whether the unlearned model ranks further out than a retrained one does with a chance above the level."""
        return self.p <= self.level + 1e-12  # 1/20 is 0.05 however it was rounded


def least(level: float = 0.05, side: Side = "upper") -> int:
    """Return the fewest retrained models among which a rank can reject: ⌈1/level⌉ − 1, on both sides ⌈2/level⌉ − 1.

    >>> least(0.05), least(0.05, "both"), least(0.01)
    (19, 39, 99)

    Raises:
        UserError: a level outside (0, 0.5), or an unknown side.
    """
    check_level(level)
    if side not in get_args(Side):
        raise UserError("a side of the rank", repr(side), suggest(side, get_args(Side)))
    return math.ceil((2 if side == "both" else 1) / level - 1e-9) - 1


def require(k: int, level: float = 0.05, side: Side = "upper") -> None:
    """Refuse to rank among too few models to reject at the level.

    Raises:
        UserError: fewer retrained models than `least`.
    """
    want = least(level, side)
    if k < want:
        raise UserError(f"at least {want} retrained models for the level {level:g}", str(k), f"train {want - k} more")


def rank_number(unlearned: float, retrained: ArrayLike, *, side: Side = "both", level: float = 0.05) -> Rank:
    """Return the conformal rank of one number of an unlearned model among those of K retrained ones.

    p = (1 + #{retrained at least as extreme})/(K + 1), ties counted as extreme; on both sides twice the smaller of the
    two, at most 1. Where the unlearned model is one more draw of the retrained ones, P(p ≤ α) ≤ α for every α and
    every distribution. Below `least` models p cannot reach the level, which ``able`` says; `require` refuses.

    A distance to one retrained model, which is not among the K, is such a number too, with ``side="upper"``.

    Args:
        unlearned: the number of the unlearned model.
        retrained: the numbers of the retrained models, (K,).
        side: which numbers are extreme.
        level: chance of a false rejection.

    >>> r = rank_number(9.0, list(range(8)), side="upper")
    >>> round(r.p, 4), r.able
    (0.1111, False)

    Raises:
        UserError: no retrained model, a number that is not finite, an unknown side, or a level outside (0, 0.5).

    References:
        V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World", 2005,
        https://doi.org/10.1007/b106715.
    """
    least(level, side)
    x, others = float(values(unlearned, "the unlearned model")[0]), values(retrained, "retrained models")
    above, below = int((others >= x).sum()), int((others <= x).sum())
    count = {"upper": above, "lower": below, "both": min(above, below)}[side]
    times = 2 if side == "both" else 1
    k = int(others.size)
    p = min(1.0, times * (1 + count) / (k + 1))
    return Rank(p=p, extreme=count, k=k, side=side, floor=min(1.0, times / (k + 1)), level=level)


def rank_distance(
    unlearned: ArrayLike, retrained: ArrayLike, *, standardise: bool = False, level: float = 0.05
) -> Rank:
    """Return the conformal rank of an unlearned model's distance to the centre of the retrained ones.

    Of all K + 1 vectors each has the score ‖zᵢ − mean of the other K‖. The unlearned model stands among the others of
    each retrained one, so that the scores of K + 1 models of one kind can be exchanged; a distance to the mean of the
    retrained alone, which holds them and not the unlearned one, would reject too often.

    Args:
        unlearned: (D,).
        retrained: (K, D).
        standardise: whether to divide each of the D numbers by its standard deviation over all K + 1 vectors first;
            one without spread is left out.
        level: chance of a false rejection.

    >>> round(rank_distance([5.0, 5.0], np.eye(2).repeat(10, axis=0)).p, 4)
    0.0476

    Raises:
        UserError: no retrained model, vectors of different widths or not finite, or a level outside (0, 0.5).
    """
    one, rest = np.asarray(unlearned, dtype=np.float64), np.asarray(retrained, dtype=np.float64)
    if one.ndim != 1 or rest.ndim != 2 or len(rest) == 0 or rest.shape[1] != one.size:
        raise UserError("a vector and rows of its width", f"{one.shape} and {rest.shape}", "give a row a model, (K, D)")
    z = np.concatenate([one[None], rest])
    if not np.isfinite(z).all():
        raise UserError("finite vectors", "some that are not", "drop undefined ones first")
    if standardise:
        sd = z.std(axis=0)
        z = (z[:, sd > 0] - z[:, sd > 0].mean(axis=0)) / sd[sd > 0]
    scores = left_out(z[None])[0]
    return rank_number(float(scores[0]) * (1 - ROUNDING), scores[1:], side="upper", level=level)


def left_out(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance of each vector to the mean of the others of its group, (G, N, D) to (G, N)."""
    n = z.shape[1]
    away = z - (z.sum(axis=1, keepdims=True) - z) / (n - 1)
    return np.asarray(np.sqrt(np.square(away).sum(axis=2)))


@dataclass(frozen=True, kw_only=True)
class Tail:
    """The result of a test that few of the samples are far out.

    Args:
        p: exact p-value.
        count: forgotten samples among the highest of all.
        highest: how many samples are the highest of all.
        n: forgotten samples.
        floor: the smallest p that could have come out.
    """

    p: float
    count: int
    highest: int
    n: int
    floor: float


def tail(forgotten: ArrayLike, unseen: ArrayLike, *, share: float = 0.05) -> Tail:
    """Return the test that too many forgotten samples are among the highest scores of forgotten and unseen ones.

    A mean hides an edit that went wrong on few samples; they stand at the end of the ranks. Of N + M scores the
    ⌈share·(N + M)⌉ highest are taken, with all that tie with the last of them, and p is the hypergeometric chance that
    as many of the N or more fall among them, exact where forgotten and unseen samples can be exchanged.

    Args:
        forgotten: scores of the forgotten samples, (N,), high where a sample looks remembered (or damaged).
        unseen: scores of samples that no model was trained on, (M,).
        share: of all scores that count as highest.

    >>> round(tail([9.0, 9.0, *range(8)], range(10), share=0.1).p, 4)
    0.5

    Raises:
        UserError: no score, one that is not finite, or a share outside (0, 1).
    """
    a, b = values(forgotten, "forgotten samples"), values(unseen, "unseen samples")
    if not 0 < share < 1:
        raise UserError("a share between 0 and 1", str(share), "write 5 % as 0.05")
    both = np.concatenate([a, b])
    last = np.sort(both)[-math.ceil(share * both.size - 1e-9)]
    count, highest = int((a >= last).sum()), int((both >= last).sum())
    chance = distributions.hypergeom(both.size, a.size, highest)
    most = min(highest, a.size)
    return Tail(
        p=float(min(1.0, chance.sf(count - 1))),
        count=count,
        highest=highest,
        n=int(a.size),
        floor=float(chance.sf(most - 1)),
    )


def certified(passes: int, trials: int, level: float = 0.05, confidence: float = 0.95) -> bool:
    """Return whether trials of a wrong model certify that it passes with a chance of at most the level.

    That is, whether the one-sided upper Clopper-Pearson bound of passes out of trials is at most the level: of 500
    trials 16 passes certify 5 %, 17 do not.

    Args:
        passes: how often a wrong model passed.
        trials: how often it was tried.
        level: the chance to certify.
        confidence: of the bound.

    >>> certified(16, 500), certified(17, 500)
    (True, False)

    Raises:
        UserError: no trial, more passes than trials, a level outside (0, 0.5), or a confidence outside (0.5, 1).
    """
    check_level(level)
    check_level(1 - confidence)
    return clopper_pearson(passes, trials, 2 * confidence - 1).high <= level
