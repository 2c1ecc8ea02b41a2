"""Near-duplicates of forget samples among those that stay: what they teach the model stays with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor

from expunge.data import Data
from expunge.errors import listing
from expunge.evidence import Outputs

CLOSER = 0.99  # share of test samples that are farther from their nearest retained sample than a near-duplicate is
SURE = 0.01  # chance of as many near-duplicates by accident, above which none is claimed
SHOWN = 5
BLOCK = 2**22  # similarities worked on at once


@dataclass(frozen=True)
class Twins:
    """Forget samples that have a twin among the retained ones.

    Args:
        pairs: (forget id, retain id, whether the inputs are the same to the bit), nearest first.
        forget: samples in the forget set.
        chance: near-duplicates to expect by accident.
    """

    pairs: tuple[tuple[str, str, bool], ...]
    forget: int
    chance: float

    def sentence(self) -> str:
        """Return what a reader must know of them."""
        exact = [pair for pair in self.pairs if pair[2]]
        near = [pair for pair in self.pairs if not pair[2]]
        parts = []
        if exact:
            parts.append(f"{len(exact)} of {self.forget} forget samples stand in the retain set too, to the bit")
        if near:
            parts.append(
                f"{len(near)} of {self.forget} have a near-duplicate there, closer in the features than "
                f"{100 * CLOSER:g} % of the test samples are to theirs ({self.chance:.1f} by chance)"
            )
        shown = listing([f"{a} ~ {b}" for a, b, _ in (*exact, *near)], SHOWN)
        return f"{'; '.join(parts)}: {shown}. What such twins teach the model stays, and looks like membership."


def near_duplicates(forget: Data, retain: Data, seen_by: Mapping[str, Outputs]) -> Twins:
    """Return the twins of forget samples in the retain set: same inputs, or nearer features than unseen samples have.

    A forget sample is a near-duplicate where the cosine of its features with those of its nearest retained sample is
    above the 0.99 quantile of the same cosine of test samples. By chance one in a hundred is; near ones are therefore
    named only where there are more than chance allows (one-sided binomial test at 0.01). The features must come from
    a model that saw neither forget nor test samples, so that the two are alike but for their twins.

    Args:
        forget: samples to forget.
        retain: samples that stay.
        seen_by: outputs of the retrained model by split, with one tap; without features only exact twins are found.

    Returns:
        The pairs, exact ones first.
    """
    exact = _exact(forget, retain)
    near: list[tuple[str, str, bool]] = []
    parts = [seen_by.get(split) for split in ("forget", "retain", "test")]
    if all(o is not None and o.features for o in parts):
        own, stay, test = (_units(o) for o in parts if o is not None)
        there, at = _nearest(own, stay)
        bar = float(np.quantile(_nearest(test, stay)[0], CLOSER))
        order = [int(i) for i in np.argsort(-there) if there[i] > bar and forget.ids[i] not in exact]
        above = int((there > bar).sum())
        if above and binomtest(above, len(forget), 1 - CLOSER, alternative="greater").pvalue < SURE:
            ids, others = forget.ids, retain.ids
            near = [(ids[i], others[int(at[i])], False) for i in order]
    pairs = (*((a, b, True) for a, b in exact.items()), *near)
    return Twins(pairs, len(forget), (1 - CLOSER) * len(forget))


def _exact(forget: Data, retain: Data) -> dict[str, str]:
    """Return the id of a retained sample with the same inputs, by forget id."""
    where = dict(zip(retain.contents().tolist(), retain.ids, strict=True))
    return {i: where[h] for i, h in zip(forget.ids, forget.contents().tolist(), strict=True) if h in where}


def _units(outputs: Outputs) -> Tensor:
    """Return features (N, F) of unit length, centred so that what all samples share does not make them alike."""
    flat = next(iter(outputs.features.values())).flatten(1).float()
    return torch.nn.functional.normalize(flat - flat.mean(dim=0), dim=1)


def _nearest(rows: Tensor, others: Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the largest cosine of each row with any other row, and whose it is."""
    step = max(1, BLOCK // max(1, len(others)))
    found = [(rows[i : i + step] @ others.T).max(dim=1) for i in range(0, len(rows), step)]
    values = torch.cat([f.values for f in found]).double().numpy()
    return values, torch.cat([f.indices for f in found]).numpy()
