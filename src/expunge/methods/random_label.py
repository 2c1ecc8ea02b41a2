"""Training on with random wrong labels on the samples to forget, drawn anew in every epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from expunge.method import Reference
from expunge.methods._relabel import RandomLabelling
from expunge.references import GOLATKAR_2020


@dataclass(frozen=True, kw_only=True)
class RandomLabel(RandomLabelling):
    """Train on by SGD with CE on the forget set under random wrong labels and CE on the retain set under its own.

    Each label is uniform over the K−1 classes other than the sample's own and drawn anew in every epoch, or once for
    all with ``redraw=False``: the objective `random_label` under each draw. An epoch takes all forget batches and then
    all retain batches, or with ``order="mixed"`` both sets in one shuffle. This is the loop of SalUn's code without its
    mask. There labels are drawn from all K classes, so that one in K stays true: ``compat="official"``.

    Needs forget and retain data with labels, those of the forget set only to leave them out. Retain data is required:
    wrong labels alone leave nothing that holds the rest. Declines tasks without classes. BatchNorm statistics move.

    Passes: E over the forget set and E over the retain set; with ``keep_best`` E over holdout.
    """

    reference: ClassVar[Reference] = GOLATKAR_2020
    example: ClassVar[dict[str, object]] = {"epochs": 1}


METHOD = RandomLabel
