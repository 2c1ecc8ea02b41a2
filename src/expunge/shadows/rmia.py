"""Robust membership inference: a sample's likelihood ratio beside those of a population, from few reference models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from expunge import stats
from expunge.errors import UserError
from expunge.shadows.pool import Floats, line, table

DEFAULT = 0.3
SCALES = tuple(i / 10 for i in range(11))
TINY = 1e-30  # floor of the mean probability, which is 0 only where a is 1


def rmia(
    target_probability: ArrayLike,
    references: ArrayLike,
    seen: ArrayLike,
    population_target: ArrayLike,
    population_references: ArrayLike,
    *,
    a: float = DEFAULT,
    gamma: float = 1.0,
) -> NDArray[np.float64]:
    """Return the share of a population that each sample's likelihood ratio exceeds: higher means trained on.

    With P_out(x) the mean probability of the label under all references that were not trained on x,
    p̂ = ½((1 + a)·P_out + 1 − a) stands for the mean over models with and without x, ratio = t(x)/p̂(x), and
    score(x) = |{z: ratio(x)/ratio(z) > γ}|/Z. The average is over every reference that did not see the point. (Code in
    use keeps the R/2 largest values instead, for the population too, which all R references have not seen: that
    makes p̂(z) too large.) The comparison sorts the population once: no N by Z table is made.

    Args:
        target_probability: t(x), of the label under the model attacked, (N,), in [0, 1].
        references: the same under reference models, (R, N).
        seen: whether the reference was trained on the sample, (R, N) bool.
        population_target: t(z) of samples that no model was trained on, (Z,).
        population_references: the same under the references, (R, Z).
        a: how far p̂ follows P_out, in [0, 1]; ``tuned`` chooses it.
        gamma: how many times a sample's ratio must be another's, above 0.

    Returns:
        Scores, (N,), in [0, 1].

    Raises:
        UserError: shapes that do not fit, a number that is not a probability, a sample that every reference saw, or
            a or gamma out of range.

    References:
        S. Zarifzadeh, P. Liu, R. Shokri, "Low-Cost High-Power Membership Inference Attacks", 2024,
        https://arxiv.org/abs/2312.03262.
    """
    others, mask = _checked(references, seen)
    z_others = _probabilities(table(population_references, "references"))
    if len(z_others) != len(others):
        got = f"{len(others)} and {len(z_others)}"
        raise UserError("as many references of the samples as of the population", got, "run all on both")
    if not (0 <= a <= 1 and gamma > 0):
        raise UserError("a in [0, 1] and gamma above 0", f"a = {a}, gamma = {gamma}", "take a = 0.3 and gamma = 1")
    x = _probabilities(line(target_probability, others.shape[1], "probabilities of the target"))
    z = _probabilities(line(population_target, z_others.shape[1], "probabilities of the population"))
    unseen = len(mask) - mask.sum(axis=0)
    if int(unseen.min()) == 0:
        got = f"{int((unseen == 0).sum())} samples that all {len(mask)} saw"
        raise UserError("a reference for each sample that was not trained on it", got, "add references or drop them")
    ratio = x / _expected(np.where(mask, 0.0, others).sum(axis=0) / unseen, a)
    beside = np.sort(z / _expected(z_others.mean(axis=0), a))
    return np.asarray(np.searchsorted(beside, ratio / gamma, side="left") / len(beside), dtype=np.float64)


def _checked(references: ArrayLike, seen: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    others, mask = _probabilities(table(references, "references")), np.asarray(seen)
    if mask.dtype != np.bool_ or mask.shape != others.shape:
        got = f"{mask.dtype} of shape {mask.shape}"
        raise UserError(f"a bool mask of shape {others.shape}", got, "say of each reference what it was trained on")
    return others, mask


def _probabilities(x: Floats) -> Floats:
    if x.min() < 0 or x.max() > 1:
        raise UserError("probabilities in [0, 1]", f"{x.min():g} to {x.max():g}", "give exp(−loss), not the loss")
    return x


def _expected(outside: Floats, a: float) -> Floats:
    """Return the mean probability over models with and without the sample, guessed from those without."""
    return np.maximum(((1 + a) * outside + 1 - a) / 2, TINY)


@dataclass(frozen=True)
class Tuned:
    """The scale of ``rmia`` that attacks a reference model best.

    Args:
        a: the scale.
        auc: by scale, the AUC of the attack on the reference, with its interval.
    """

    a: float
    auc: dict[float, stats.Interval]


def tuned(
    references: ArrayLike,
    seen: ArrayLike,
    population_references: ArrayLike,
    *,
    victim: int = 0,
    gamma: float = 1.0,
) -> Tuned:
    """Return the scale a of 0, 0.1, …, 1 with the largest AUC at telling what one reference was trained on.

    That reference is the target and left out of the others, so the model to be audited has no part in the choice.
    Samples that every other reference saw are left out. Of equal scales the one closest to 0.3 is taken.

    Args:
        references: probabilities of the label under reference models, (R, N), R at least 2.
        seen: whether the reference was trained on the sample, (R, N) bool; the victim's row has both kinds.
        population_references: probabilities of samples that no reference was trained on, (R, Z).
        victim: row of the reference attacked.
        gamma: as in ``rmia``.

    Returns:
        The scale, and the AUC of each.

    Raises:
        UserError: what ``rmia`` refuses, fewer than 2 references, no such row, or a victim without two kinds of
            samples.
    """
    others, mask = _checked(references, seen)
    population = table(population_references, "references")
    if len(others) < 2 or not 0 <= victim < len(others):
        got = f"row {victim} of {len(others)}"
        raise UserError("a row of at least 2 references to attack", got, "train a second reference")
    if len(population) != len(others):
        got = f"{len(others)} and {len(population)}"
        raise UserError("as many references of the samples as of the population", got, "run all on both")
    left = np.delete(np.arange(len(others)), victim)
    usable = ~mask[left].all(axis=0)
    member = mask[victim, usable]
    if member.all() or not member.any():
        got = f"{int(member.sum())} and {int((~member).sum())}"
        raise UserError("samples that the reference saw and did not see", got, "take a reference of a random half")
    x, rest, saw = others[victim, usable], others[left][:, usable], mask[left][:, usable]
    found = {}
    for a in SCALES:
        scores = rmia(x, rest, saw, population[victim], population[left], a=a, gamma=gamma)
        found[a] = stats.auc(scores[member], scores[~member])
    return Tuned(max(SCALES, key=lambda a: (found[a].x, -abs(a - DEFAULT))), found)
