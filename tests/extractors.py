"""A network to split before its head, a class to forget, and the architectures of the zoo that cannot be split."""

from __future__ import annotations

import torch
from torch import nn

from cases import CASES, blobs
from expunge.data import Data

DATA = blobs()
UNSPLIT = ("tied", "tied_unseen_at_first", "frozen", "output_object", "output_mapping")
HEADS = {name: "head:input" for name in CASES if name.startswith("attention_")}


def network() -> nn.Module:
    """Return a network with BatchNorm and signed representations of six numbers."""
    torch.manual_seed(11)
    body = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), nn.ReLU(), nn.Linear(8, 6))
    return nn.Sequential(body, nn.Linear(6, 3)).double()


def of_class(data: Data = DATA, label: int = 0, count: int | None = None) -> dict[str, Data]:
    """Return samples of a class as the forget set, and all others as the retain set."""
    ids = [i for i, y in zip(data.ids, data.targets().tolist(), strict=True) if y == label][:count]
    return {"forget": data.subset(ids), "retain": data.without(ids)}
