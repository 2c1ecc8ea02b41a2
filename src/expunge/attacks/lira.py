"""The likelihood-ratio attack: each sample's margin beside its margins under shadow models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from expunge.attacks._labelled import labelled
from expunge.attacks._shadowed import places, under
from expunge.errors import UserError
from expunge.evidence import Evidence, Outputs
from expunge.metric import Attack, Audit
from expunge.shadows.lira import Variance, lira
from expunge.shadows.pool import Pool

LEAST = 2  # models a side, of each sample


@dataclass(frozen=True, kw_only=True)
class LiRA(Attack):
    """Score = how much likelier a sample's margin is under models that were trained on it than under others.

    Online it is ln N(φ; μ_in, σ_in²) − ln N(φ; μ_out, σ_out²), offline Φ((φ − μ_out)/σ_out); see
    `expunge.shadows.lira`. What makes a sample easy or hard is in its own μ and drops out, which is what this attack
    has over a threshold on the loss.

    Forget samples may have been in a shadow model's training set; unseen ones were in none, unless test samples were
    given to some of them. A likelihood ratio of one kind of samples cannot be ranked among tail probabilities of the
    other. So all samples are scored in one way: online where every forget sample and every unseen one has 2 shadow
    models on either side, else offline, where every one needs 2 that were not trained on it.

    Offline the forget samples have fewer models outside than unseen samples, T/2 against T on random halves, and so the
    noisier μ_out. Where there is nothing to tell, the AUC is still ½, but of 8 shadow models some 1.4 % of the forget
    samples exceed the threshold that 1 % of the unseen do. The retrained model's rate holds the same error. The shared
    deviation is over all samples that the shadow models were run on. The audited model must not be one of them, nor
    the one that was trained on the complement of its training set.

    Args:
        online: which score; None takes the likelihood ratio where there are models enough.
        variance: of each sample's own, ``shared`` by all, or ``auto``: own from 64 models a side.
        ddof: what is taken off the number of values in a variance: 0 or 1.
        pool: margins under the shadow models, of all samples with models enough; fitted.

    References:
        N. Carlini, S. Chien, M. Nasr, S. Song, A. Terzis, F. Tramèr, "Membership Inference Attacks From First
        Principles", 2022, https://arxiv.org/abs/2112.03570.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "labels"})
    label: ClassVar[str] = "LiRA"
    shadows: ClassVar[int] = LEAST

    online: bool | None = None
    variance: Variance = "auto"
    ddof: int = 0
    pool: Pool | None = field(default=None, repr=False, compare=False)

    def fit(self, audit: Audit, shadows: Sequence[Evidence] = ()) -> LiRA:
        """Take the margins under the shadow models, and choose the score.

        Args:
            audit: forget and unseen samples, with ids.
            shadows: see `expunge.evidence.Shadow`.

        Returns:
            The fitted attack.

        Raises:
            UserError: no shadow models, ones that do not fit the samples, or too few of a sample.
        """
        if not shadows:
            raise UserError("shadow models for LiRA", "none", "pass evidence of them as shadows")
        found = under(shadows, lambda said: labelled(said.signals.margin, self.label), self.label)
        ids = tuple(found.sources)
        pool, unseen = Pool(found.values, found.seen, ids), audit.unseen
        judged = [found.at(audit.said("forget"), self.label, "forget")]
        judged += [] if unseen is None else [found.at(unseen, self.label, "test")]
        there = pool.of([ids[i] for i in np.concatenate(judged)])
        both = int(min(there.inside.min(), there.outside.min())) >= LEAST
        online = both if self.online is None else self.online
        there.require(inside=LEAST if online else 0, outside=LEAST)
        enough = (pool.outside >= LEAST) & ((pool.inside >= LEAST) | (not online))
        return replace(self, online=online, pool=pool.of([ids[i] for i in np.flatnonzero(enough)]))

    def score(self, outputs: Outputs, before: Outputs | None = None) -> Tensor:
        """Return the score of each sample, (N,).

        Args:
            outputs: of samples that the shadow models were run on, with their ids, in any order.
            before: not used.

        Raises:
            UserError: not fitted, no labels, no ids, or samples that too few shadow models were run on.
        """
        if self.pool is None:
            raise UserError("a fitted attack", "an unfitted one", "call fit first")
        at = places(self.pool.ids, outputs, self.label)
        # Filled up to the whole pool, whose shared deviation then is that of any part of it.
        whole = np.zeros(len(self.pool.ids))
        whole[at] = labelled(outputs.signals.margin, self.label).numpy()
        found = lira(whole, self.pool, online=bool(self.online), variance=self.variance, ddof=self.ddof)
        return torch.from_numpy(found[at])


ATTACK = LiRA
