"""A generated file in the layout of ETTh1."""

import numpy as np

from expunge.zoo import ett

HOURS = sum(ett.PARTS.values())


def lines(hours=HOURS, change=None):
    """Return a file of the published layout: a trend, days and weeks, and noise."""
    random, t = np.random.default_rng(0), np.arange(hours)
    base = 20 + 1e-3 * t + 5 * np.sin(2 * np.pi * t / 24) + 2 * np.sin(2 * np.pi * t / 168)
    values = np.stack([base * (i + 1) / 7 + random.normal(0, 1, hours) for i in range(7)], axis=1)
    dates = np.datetime64("2016-07-01T00:00:00") + t.astype("timedelta64[h]")
    rows = [
        f"{str(d).replace('T', ' ')},{','.join(f'{v:.6f}' for v in row)}" for d, row in zip(dates, values, strict=True)
    ]
    found = ["date," + ",".join(ett.SERIES), *rows]
    if change is not None:
        change(found)
    return "\n".join(found) + "\n", values, dates


def put(root, text):
    (root / "ett").mkdir(exist_ok=True)
    (root / "ett" / ett.FILE).write_text(text)
    return root
