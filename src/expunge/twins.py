"""Near-duplicates of forget samples among those that stay, and training samples among those that count as unseen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import betabinom
from torch import Tensor

from expunge.data import Data
from expunge.errors import listing
from expunge.evidence import Outputs

CLOSER = 0.99  # share of unseen samples that are farther from their nearest retained sample than a near-duplicate is
SURE = 0.01  # chance of as many near-duplicates by accident, above which none is claimed
SHOWN = 5
ENOUGH = 2000  # unseen samples that the bar is read off
BLOCK = 2**22  # similarities worked on at once


@dataclass(frozen=True)
class Twins:
    """Forget samples that have a twin among the retained ones.

    Args:
        pairs: (forget id, retain id, whether the inputs are the same to the bit), nearest first.
        forget: samples in the forget set.
        chance: near-duplicates to expect by accident.
        seen: by name of a set that counts as unseen, (id there, training id) of samples with the same inputs.
    """

    pairs: tuple[tuple[str, str, bool], ...]
    forget: int
    chance: float
    seen: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)

    def sentence(self) -> str:
        """Return what a reader must know of them."""
        exact = [pair for pair in self.pairs if pair[2]]
        near = [pair for pair in self.pairs if not pair[2]]
        of, parts = f" of {self.forget} forget samples", []
        if exact:
            stand = "stands" if len(exact) == 1 else "stand"
            parts.append(f"{len(exact)}{of} {stand} in the retain set too, to the bit")
        if near:
            who, where = ("", "there") if exact else (of, "that stays")
            have = "has" if len(near) == 1 else "have"
            parts.append(
                f"{len(near)}{who} {have} a near-duplicate {where}, closer in the features than {100 * CLOSER:g} % of "
                f"unseen samples are to their nearest ({self.chance:.1f} by chance)"
            )
        shown = listing([f"{a} ~ {b}" for a, b, _ in (*exact, *near)], SHOWN)
        return f"{'; '.join(parts)}: {shown}. What such twins teach the model stays, and looks like membership."

    def sentences(self) -> list[str]:
        """Return what a reader must know of them, and of each set of unseen samples that were trained on."""
        found = [self.sentence()] if self.pairs else []
        for name, pairs in self.seen.items():
            stand = "stands" if len(pairs) == 1 else "stand"
            shown = listing([f"{a} ~ {b}" for a, b in pairs], SHOWN)
            found.append(
                f"{len(pairs)} of the {name} samples {stand} in the training data too, to the bit: {shown}. "
                "They count as unseen, and make members look like others."
            )
        return found


def near_duplicates(
    forget: Data, retain: Data, seen_by: Mapping[str, Outputs], unseen: Mapping[str, Data] | None = None
) -> Twins:
    """Return the twins of forget samples in the retain set: same inputs, or nearer features than unseen samples have.

    A forget sample is a near-duplicate where the cosine of its features, centred by the mean of the retained ones, with
    those of its nearest retained sample is above a bar: the k-th largest of that cosine of m unseen samples, k = m/100
    rounded up. Unseen are test samples of the forgotten kind where there are any, for a kind as a whole may lie near or
    far; else all. Some are above the bar by accident: of n forget samples that are like the unseen ones, c or more with
    the chance P(B ≥ c), B beta-binomial of n trials with parameters k and m − k + 1, the bar's own error included.
    Near ones are named only where that chance is below 0.01. The features must come from a model that saw neither
    forget nor test samples, so that the two are alike but for their twins.

    Args:
        forget: samples to forget.
        retain: samples that stay.
        seen_by: outputs of the retrained model by split, with one tap; without features only exact twins are found.
        unseen: sets that count as unseen, by name, to be searched for training samples under other ids.

    Returns:
        The pairs, exact ones first, and the training samples among the unseen.
    """
    of_forget, of_retain = _first(forget), _first(retain)
    exact, ids = _exact(forget, of_retain), forget.ids
    trained = of_retain | of_forget
    again = {name: tuple(_exact(data, trained).items()) for name, data in (unseen or {}).items()}
    again = {name: found for name, found in again.items() if found}
    pairs = [(a, b, True) for a, b in exact.items()]
    rest = np.asarray([i for i, key in enumerate(ids) if key not in exact], dtype=np.int64)
    test = next((s for s in ("test_forget", "test") if len(seen_by.get(s) or ())), "test")
    parts = [seen_by.get(split) for split in ("forget", "retain", test)]
    flat = [_flat(o) for o in parts if o is not None and o.features and len(o)]
    if len(flat) < 3 or len(rest) == 0:
        return Twins(tuple(pairs), len(forget), 0.0, again)
    own, stay, others = flat
    middle = stay.mean(dim=0)
    stay = _units(stay, middle)
    there, at = _nearest(_units(own[torch.from_numpy(rest)], middle), stay)
    bar, k, m = _bar(_nearest(_units(others[:: -(-len(others) // ENOUGH)], middle), stay)[0])
    above = there > bar
    if above.any() and betabinom.sf(above.sum() - 1, len(rest), k, m - k + 1) < SURE:
        stays = retain.ids
        pairs += [(ids[rest[i]], stays[at[i]], False) for i in np.argsort(-there, kind="stable") if above[i]]
    return Twins(tuple(pairs), len(forget), len(rest) * k / (m + 1), again)


def _first(data: Data) -> dict[int, str]:
    """Return the id of the first sample with some inputs, by their hash."""
    return dict(zip(data.contents().tolist()[::-1], data.ids[::-1], strict=True))


def _exact(data: Data, where: Mapping[int, str]) -> dict[str, str]:
    """Return whose inputs are the same, by id."""
    return {i: where[h] for i, h in zip(data.ids, data.contents().tolist(), strict=True) if h in where}


def _bar(values: NDArray[np.float64]) -> tuple[float, int, int]:
    """Return the k-th largest of the m values, k and m."""
    k, m = math.ceil(round((1 - CLOSER) * len(values), 9)), len(values)
    return float(np.partition(values, m - k)[m - k]), k, m


def _flat(outputs: Outputs) -> Tensor:
    """Return the features of the one tap, (N, F)."""
    return next(iter(outputs.features.values())).flatten(1).float()


def _units(features: Tensor, middle: Tensor) -> Tensor:
    """Return features (N, F) of unit length, seen from the middle: what all samples share does not make them alike."""
    return torch.nn.functional.normalize(features - middle, dim=1)


def _nearest(rows: Tensor, others: Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the largest cosine of each row with any other row, and whose it is."""
    step = max(1, BLOCK // max(1, len(others)))
    found = [(rows[i : i + step] @ others.T).max(dim=1) for i in range(0, len(rows), step)]
    values = torch.cat([f.values for f in found]).double().numpy()
    return values, torch.cat([f.indices for f in found]).numpy()
