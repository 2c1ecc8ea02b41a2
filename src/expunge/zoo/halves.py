"""Half the classes of an image set as public data, which a network is pretrained on, and the other half as private."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.data import Data, relabelled
from expunge.seeds import seed as named_seed
from expunge.zoo import embedded, named

HALVES = {"public": (0, 1, 2, 3, 4), "private": (5, 6, 7, 8, 9)}


def load(name: str, folder: Path | None, limit: int | None, seed: int) -> tuple[Data, Data, Data]:
    """Return one half of ``digits`` or ``fashion_mnist``, in the splits and under the ids of the whole.

    Targets count the half's classes from 0; the column ``label`` names them.

    Args:
        name: of the data set: the whole's, then ``_public`` or ``_private``.
        folder: of data sets, or None.
        limit: class-balanced training samples to take; of test half as many, of holdout an eighth.
        seed: of that draw.

    Returns:
        Train, holdout and test; no sample of one half is in the other.
    """
    whole, _, half = name.rpartition("_")
    if whole == "digits":
        found = embedded.digits()
        parts = found.train, found.holdout, found.test
        names: tuple[str, ...] = found.classes
    else:
        read = named.load(whole, "", folder, None, 0)
        parts, names = (read.train, read.holdout, read.test), read.classes
    most = [None] * 3 if limit is None else [limit, limit // 8, limit // 2]
    first, second, third = (
        _half(data, HALVES[half], names, n, named_seed("zoo", name, data.name, "limit", seed))
        for data, n in zip(parts, most, strict=True)
    )
    return first, second, third


def _half(data: Data, classes: tuple[int, ...], names: tuple[str, ...], limit: int | None, seed: int) -> Data:
    """Return the samples of some classes, relabelled from 0; balanced where there is a limit."""
    labels, ids = data.targets().numpy(), data.ids
    at = np.flatnonzero(np.isin(labels, classes))
    if limit is not None and limit < len(at):
        at = at[named.balanced(labels[at], limit, seed)]
    label: NDArray[Any] = np.asarray([names[c] for c in labels[at]], dtype=object)
    taken = data.subset([ids[i] for i in at])
    targets = data.targets().new_tensor([classes.index(c) for c in labels[at]])
    return replace(relabelled(taken, targets, why="classes of one half"), all_columns={"label": label})


def counts(name: str, size: int) -> tuple[int, ...]:
    """Return the training samples of each class among so many of a half."""
    if name.startswith("digits"):
        part = load(name, None, size, 0)[0].targets().numpy()
        return tuple(np.bincount(part, minlength=5).tolist())
    return (size // 5,) * 5
