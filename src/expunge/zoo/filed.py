"""Data sets of files whose targets are numbers, or one of two: what is known of them before a file is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from expunge.data import Data
from expunge.task import Binary, Quantile, Regression, Task
from expunge.zoo import ett, rows

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
        classes: names of the two classes; none for numbers.
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
FILED: dict[str, Filed] = {
    "credit": CREDIT,
    "ett": ETT,
    "ett_mean": replace(ETT, outputs=(ett.AFTER,), task=Regression()),
    "stsb": STSB,
}
