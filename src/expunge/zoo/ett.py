"""ETTh1, oil temperature and loads of a transformer by the hour: a week in, the temperature of the next day out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.data import Data
from expunge.errors import Incompatible, UserError
from expunge.tables import read_csv
from expunge.zoo.forecast import Window
from expunge.zoo.named import ENVIRONMENT

FILE = "ETTh1.csv"
SERIES = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")  # the last one is forecast
BEFORE, AFTER = 168, 24  # hours that are given, hours that are forecast
LENGTH = BEFORE + AFTER
PARTS = {"train": 8640, "holdout": 2880, "test": 2880}  # hours: 12, 4 and 4 months of 30 days, as published
SHAPE = Window(BEFORE, len(SERIES))


def windows(hours: int, limit: int | None = None) -> NDArray[np.int64]:
    """Return the first hours of the windows that lie in a part: all, or ``limit`` at one stride.

    Args:
        hours: of the part.
        limit: windows to take at most; the stride is then the number of all windows by it, rounded down.

    Returns:
        Hours from the start of the part, rising.

    >>> windows(196).tolist(), windows(196, 2).tolist()
    ([0, 1, 2, 3, 4], [0, 2])
    """
    every = hours - LENGTH + 1
    if limit is None or limit >= every:
        return np.arange(every)
    return np.arange(limit) * (every // limit)


def load(name: str, folder: Path | None, limit: int | None, seed: int) -> tuple[Data, Data, Data]:
    """Read ``ett/ETTh1.csv`` and cut it by time into train, holdout and test.

    Each part is a stretch of hours of its own, and no window reaches from one into another. All series are
    standardised by mean and deviation of the hours of the training part. An input is (168, 7), a target (24,); the
    columns ``start`` and ``end`` are the dates of a window's first and last hour, forecast hours included; ids are
    ``name/row`` of the first hour in the file.

    Args:
        name: of the data set.
        folder: of data sets.
        limit: training windows to take, at one stride; of test half as many, of holdout an eighth.
        seed: not used: no window is drawn by chance.

    Returns:
        Train, holdout and test.

    Raises:
        UserError: no such file.
        Incompatible: other columns, too few hours, values that are missing, or dates that are not every hour.

    References:
        H. Zhou et al., "Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting", 2021,
        https://arxiv.org/abs/2012.07436; its data are at https://github.com/zhouhaoyi/ETDataset.
    """
    dates, values = _read(folder)
    own = values[: PARTS["train"]]
    scaled = torch.from_numpy((values - own.mean(axis=0)) / own.std(axis=0)).float()
    most = {"train": limit, "holdout": None if limit is None else limit // 8, "test": limit and limit // 2}
    found, start = [], 0
    for part, hours in PARTS.items():
        at = windows(hours, most[part])
        stretch = scaled[start : start + hours]
        found.append(_windows(name, part, dates[start : start + hours], stretch, at, start))
        start += hours
    return found[0], found[1], found[2]


def _windows(name: str, part: str, dates: list[str], series: Tensor, at: NDArray[np.int64], first: int) -> Data:
    """Return the windows of one part; inputs are views of its series, so that no hour is kept 192 times."""
    views = series.unfold(0, LENGTH, int(at[1] - at[0]) if len(at) > 1 else 1)[: len(at)].transpose(1, 2)
    columns = {"start": [dates[i] for i in at], "end": [dates[i + LENGTH - 1] for i in at]}
    ids = [f"{name}/{first + i}" for i in at]
    return Data.from_arrays(views[:, :BEFORE], views[:, BEFORE:, -1], ids=ids, columns=columns, name=part)


def _read(folder: Path | None) -> tuple[list[str], NDArray[np.float64]]:
    """Return the dates of the hours of all parts, and the series (hours, 7)."""
    place = None if folder is None else folder / "ett" / FILE
    if place is None or not place.is_file():
        got = "no data folder" if folder is None else f"none in {folder}"
        remedy = (
            f"take it from github.com/zhouhaoyi/ETDataset, and name the folder above by --data-dir or {ENVIRONMENT}"
        )
        raise UserError(f"the file ett/{FILE}", got, remedy)
    table = read_csv([place])
    lost = [c for c in ("date", *SERIES) if c not in table.column_names]
    if lost:
        raise Incompatible(f"a column '{lost[0]}' in {place}", "none", "take the published file")
    hours = sum(PARTS.values())
    if len(table) < hours:
        raise Incompatible(f"{hours} hours in {place}", f"{len(table)}", "take the whole published file")
    rows = table.with_format("numpy")[:hours]
    try:
        values = np.stack([np.asarray(rows[c], dtype=np.float64) for c in SERIES], axis=1)
        dates = np.asarray(rows["date"], dtype="datetime64[s]")
    except (TypeError, ValueError) as error:
        got = str(error).splitlines()[0]
        raise Incompatible(f"dates and numbers in {place}", got, "take the published file") from error
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise Incompatible(f"a number in every cell of {place}", f"none in row {bad[0]}", "take the published file")
    odd = np.flatnonzero(np.diff(dates) != np.timedelta64(1, "h"))
    if len(odd):
        got = f"{dates[odd[0]]} and then {dates[odd[0] + 1]}"
        raise Incompatible(f"one row an hour in {place}", got, "fill the gap, or take the published file")
    return [str(date).replace("T", " ") for date in dates], values
