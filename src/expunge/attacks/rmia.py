"""Robust membership inference: each sample's likelihood ratio beside those of unseen samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.attacks._labelled import labelled
from expunge.attacks._shadowed import Under, ids_of, under
from expunge.errors import UserError
from expunge.evidence import Evidence, Outputs
from expunge.metric import Attack, Audit
from expunge.shadows.pool import Floats, draw
from expunge.shadows.rmia import rmia


@dataclass(frozen=True, kw_only=True)
class RMIA(Attack):
    """Score = the share of a population of unseen samples whose likelihood ratio a sample's exceeds.

    A ratio is p_y under the audited model over ½((1 + a)·P_out + 1 − a), with P_out the mean p_y under the shadow
    models that were not trained on the sample; see `expunge.shadows.rmia`. One shadow model will do.

    The population are samples that neither the audited model nor any shadow model was trained on. It is a random half
    of the unseen samples the attack is judged on, drawn by their ids, or the holdout set, where that is the larger one
    and the forgotten are of no kind of their own: of a removed class a population of other classes would lie on one
    side of all that is to be ranked. The score is one rising function of the ratio for all samples, so that unseen
    samples which are in the population are ranked like any other. Only ties are not quite even: of two samples between
    neighbours of the population one may be such a neighbour. That moves the AUC by at most 1/(2Z), Z the size of the
    population, and retrained's alike.

    Args:
        a: how far the mean with and without a sample follows the mean without, in [0, 1].
        gamma: γ, how many times a sample's ratio must be another's, above 0.
        known: probabilities of the label under the shadow models; fitted.
        beside: p_y of the population under the audited model (Z,) and under the shadow models (T, Z); fitted.

    References:
        S. Zarifzadeh, P. Liu, R. Shokri, "Low-Cost High-Power Membership Inference Attacks", 2024,
        https://arxiv.org/abs/2312.03262.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "labels"})
    undefined: ClassVar[tuple[str, ...]] = ("needs 2 unseen samples of the forgotten kind",)
    label: ClassVar[str] = "RMIA"
    shadows: ClassVar[int] = 1

    a: float = 0.3
    gamma: float = 1.0
    known: Under | None = field(default=None, repr=False, compare=False)
    beside: tuple[Floats, Floats] | None = field(default=None, repr=False, compare=False)

    def declines(self, audit: Audit) -> str | None:
        """Return why not: there are no unseen samples to compare with."""
        count = 0 if audit.unseen is None else len(audit.unseen)
        return None if count >= 2 else f"needs 2 unseen samples of the forgotten kind, has {count}"

    def fit(self, audit: Audit, shadows: Sequence[Evidence] = ()) -> RMIA:
        """Take the probabilities under the shadow models, and those of the population.

        Args:
            audit: unseen samples, with ids; a holdout set, if there is one.
            shadows: see `expunge.evidence.Shadow`.

        Returns:
            The fitted attack.

        Raises:
            UserError: no shadow models, ones that do not fit the samples, or a population they were trained on.
        """
        if not shadows:
            raise UserError("shadow models for RMIA", "none", "pass evidence of them as shadows")
        known = under(shadows, lambda said: labelled(said.signals.confidence, self.label), self.label)
        known.at(audit.said("forget"), self.label, "forget")
        others, split = self._population(audit, known)
        at = known.at(others, self.label, split)
        free = ~known.seen[:, at].any(axis=0)
        if not free.any():
            want = "unseen samples that no shadow model was trained on, for RMIA"
            raise UserError(want, f"none of {len(at)}", "keep test samples out of the shadow models' training sets")
        own = self._probability(others)[free]
        return replace(self, known=known, beside=(own, known.values[:, at[free]]))

    def score(self, outputs: Outputs, before: Outputs | None = None) -> Tensor:
        """Return the score of each sample, (N,), in [0, 1].

        Args:
            outputs: of samples that the shadow models were run on, with their ids, in any order.
            before: not used.

        Raises:
            UserError: not fitted, no labels, no ids, samples that the shadow models were not run on or that all of them
                were trained on.
        """
        if self.known is None or self.beside is None:
            raise UserError("a fitted attack", "an unfitted one", "call fit first")
        at, x = self.known.at(outputs, self.label), self._probability(outputs)
        sides = self.known.values[:, at], self.known.seen[:, at]
        return torch.from_numpy(rmia(x, *sides, *self.beside, a=self.a, gamma=self.gamma))

    def _population(self, audit: Audit, known: Under) -> tuple[Outputs, str]:
        """Return the population and the split it is from."""
        unseen, holdout = audit.unseen, audit.outputs("holdout")
        assert unseen is not None
        half = unseen.take(torch.from_numpy(draw(ids_of(unseen, self.label), 1, audit.seed)[0]))
        if holdout is None or len(holdout) < len(half) or audit.outputs("test_forget") is not None:
            return half, "test"
        there = all(known.knows(i, "holdout") for i in ids_of(holdout, self.label))
        return (holdout, "holdout") if there else (half, "test")

    def _probability(self, outputs: Outputs) -> NDArray[np.float64]:
        found: NDArray[np.float64] = labelled(outputs.signals.confidence, self.label).numpy()
        return found


ATTACK = RMIA
