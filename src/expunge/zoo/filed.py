"""Data sets of files whose targets are numbers, one of two, or a half's classes: known before a file is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from expunge.data import Data
from expunge.task import Binary, Classification, Quantile, Regression, Task
from expunge.zoo import ett, halves, named, rows

Read = Callable[[str, Path | None, int | None, int], tuple[Data, Data, Data]]


@dataclass(frozen=True, kw_only=True)
class Filed:
    """A data set and how it is read.

    Args:
        read: from name, folder of data sets, limit and seed to train, holdout and test.
        hub: its name on the Hub, or None where it has no official place there.
        shape: of one input.
        outputs: of a network for it.
        task: its task.
        network: the default one.
        size: training samples as published.
        columns: of its data.
        classes: their names; none for numbers.
        counts: training samples of each class, from their number; none for numbers.
    """

    read: Read
    hub: str | None
    shape: tuple[Any, ...]
    outputs: int | tuple[int, ...]
    task: Task
    network: str
    size: int
    columns: tuple[str, ...]
    classes: tuple[str, ...] = ()
    counts: Callable[[int], tuple[int, ...]] = lambda size: ()


ETT = Filed(
    read=ett.load,
    hub=None,
    shape=ett.SHAPE,
    outputs=(ett.AFTER, 3),
    task=Quantile((0.1, 0.5, 0.9)),
    network="linear_forecast",
    size=len(ett.windows(ett.PARTS["train"])),
    columns=("start", "end"),
)
CREDIT = Filed(
    read=rows.credit,
    hub=rows.CREDIT,
    shape=rows.SHAPE,
    outputs=1,
    task=Binary(),
    network="tabular",
    size=round(rows.SHARES[0] * rows.ROWS),
    columns=("subject", "category", "age"),
    classes=rows.CLASSES,
    counts=rows.counts,
)
STSB = Filed(
    read=rows.stsb,
    hub=rows.STSB,
    shape=rows.PAIR,
    outputs=1,
    task=Regression(),
    network="text_pair",
    size=5_749,
    columns=("sentence1", "sentence2"),
)
FASHION = ("T - shirt / top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def _half(name: str, hub: str | None, shape: tuple[int, ...], size: int, names: tuple[str, ...]) -> Filed:
    return Filed(
        read=halves.load,
        hub=hub,
        shape=shape,
        outputs=5,
        task=Classification(),
        network="vit",
        size=size,
        columns=("label",),
        classes=tuple(names[c] for c in halves.HALVES[name.rpartition("_")[2]]),
        counts=partial(halves.counts, name),
    )


FILED: dict[str, Filed] = {
    "credit": CREDIT,
    "digits_private": _half("digits_private", None, (1, 8, 8), 585, tuple("0123456789")),
    "digits_public": _half("digits_public", None, (1, 8, 8), 583, tuple("0123456789")),
    "ett": ETT,
    "ett_mean": replace(ETT, outputs=(ett.AFTER,), task=Regression()),
    "fashion_mnist_private": _half("fashion_mnist_private", named.FASHION.hub, (1, 28, 28), 30_000, FASHION),
    "fashion_mnist_public": _half("fashion_mnist_public", named.FASHION.hub, (1, 28, 28), 30_000, FASHION),
    "stsb": STSB,
}
