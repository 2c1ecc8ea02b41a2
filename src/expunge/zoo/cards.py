"""Card transactions drawn by a seed: people with several rows each, and a fraud label that follows a known rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.data import Data
from expunge.errors import UserError
from expunge.seeds import seed as named_seed
from expunge.task import Binary
from expunge.train import Recipe
from expunge.zoo.embedded import Embedded
from expunge.zoo.tabular import SUBJECT, Table, check_categories

CATEGORIES = {  # merchants: share of the rows, middle of the natural logarithm of the amount, risk in logits
    "groceries": (0.26, 3.4, -0.8),
    "fuel": (0.12, 3.8, -0.3),
    "restaurants": (0.14, 3.3, -0.5),
    "clothing": (0.10, 4.0, 0.1),
    "electronics": (0.07, 5.2, 1.0),
    "travel": (0.06, 5.8, 0.5),
    "pharmacy": (0.07, 3.0, -0.6),
    "streaming": (0.08, 2.4, 0.0),
    "games": (0.04, 3.0, 1.2),
    "jewellery": (0.03, 5.6, 1.3),
    "cash": (0.03, 4.6, 0.8),
}
COUNTRIES = 8
DEVICES = {"chip": (0.35, -0.6), "contactless": (0.35, -0.3), "stripe": (0.05, 1.2), "online": (0.25, 0.6)}
REAL = ("amount", "spread", "sine", "cosine")
CLASSES = ("genuine", "fraud")
START = np.datetime64("2025-01-01T00", "h")
CUTS = (0.65, 0.75)  # of the rows by date: the end of train, and of holdout
ALONE = -2.6  # logits of a transaction without any sign of fraud
NIGHT, ABROAD, LARGE, PERSON, NOISE = 1.0, 1.6, 0.7, 1.2, 0.5


def cards(holders: int = 200, *, seed: int = 0) -> Embedded:
    """Return a year of card transactions, 5 to 35 of each cardholder, about a tenth of them fraud.

    A transaction is fraud with probability σ(z), where z adds up: a night hour, a country that is not the
    cardholder's own, an amount above what that person spends on such things, the risk of merchant category and
    device, a normal term of the cardholder (deviation 1.2) that no other column tells, and normal noise (0.5). So an
    embedding row of a person learns something of that person alone.

    The rows are in the order of their dates, the first 65 % train, then 10 % holdout and 25 % test. Inputs are
    ``real`` (N, 4): logarithm of the amount, its distance from the middle of the merchant category, sine and cosine of
    the hour, standardised by the training rows; and ``categories`` (N, 4): cardholder, merchant category, country and
    device. Columns: ``subject``, the index of the cardholder and of the embedding row; ``category``, the segment;
    ``date``, to the hour. Nothing here is of a real person.

    Args:
        holders: cardholders, 2 or more.
        seed: of everything.

    Returns:
        The splits, task `Binary`, and the network ``tabular``; its recipe decays no weights, so that the row of a
        person whom nobody trained on stays as it was drawn.

    Raises:
        UserError: fewer than two cardholders.
    """
    if holders < 2:
        raise UserError("two cardholders or more", f"{holders}", "raise it, so that somebody is retained")
    rows = _drawn(holders, np.random.default_rng(named_seed("zoo", "cards", seed)))
    shape = Table(len(REAL), (SUBJECT, "category", "country", "device"), (holders, *_sizes()))
    cuts = [round(cut * len(rows["label"])) for cut in CUTS]
    real = np.stack([rows[name] for name in REAL], axis=1)
    real = (real - real[: cuts[0]].mean(axis=0)) / real[: cuts[0]].std(axis=0)
    categories = torch.from_numpy(np.stack([rows[name] for name in shape.names], axis=1))
    check_categories(shape, categories)
    inputs = {"real": torch.tensor(real, dtype=torch.float32), "categories": categories}
    names = np.array(list(CATEGORIES))
    columns = {
        SUBJECT: rows[SUBJECT].tolist(),
        "category": names[rows["category"]].tolist(),
        "date": [str(date).replace("T", " ") + ":00" for date in rows["date"]],
    }
    bounds = [0, *cuts, len(rows["label"])]
    parts = [
        Data.from_arrays(
            {name: tensor[low:high] for name, tensor in inputs.items()},
            torch.from_numpy(rows["label"][low:high]),
            ids=[f"cards/{i}" for i in range(low, high)],
            columns={name: values[low:high] for name, values in columns.items()},
            name=part,
        )
        for part, low, high in zip(("train", "holdout", "test"), bounds, bounds[1:], strict=False)
    ]
    recipe = Recipe(epochs=15, batch_size=64, lr=3e-3, optimizer="adamw", weight_decay=0.0)
    return Embedded(parts[0], parts[1], parts[2], Binary(), shape, 1, "tabular", recipe, CLASSES)


def _sizes() -> tuple[int, int, int]:
    return len(CATEGORIES), COUNTRIES, len(DEVICES)


def _drawn(holders: int, random: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Return the columns of all rows, in the order of their dates."""
    shares, middles, risks = (np.array(part) for part in zip(*CATEGORIES.values(), strict=True))
    used, dangers = (np.array(part) for part in zip(*DEVICES.values(), strict=True))
    subject = np.repeat(np.arange(holders), random.integers(5, 36, holders))
    n = len(subject)
    home, spends = random.integers(0, COUNTRIES, holders)[subject], random.normal(0, 0.5, holders)[subject]
    person = random.normal(0, PERSON, holders)[subject]
    category = random.choice(len(shares), n, p=shares / shares.sum())
    device = random.choice(len(used), n, p=used)
    away = random.random(n) < 0.08
    country = np.where(away, (home + random.integers(1, COUNTRIES, n)) % COUNTRIES, home)
    hour = np.round(random.normal(14, 5, n)).astype(np.int64) % 24
    excess = random.normal(0, 0.8, n)
    amount = middles[category] + spends + excess
    logit = ALONE + risks[category] + dangers[device] + NIGHT * (hour < 6) + ABROAD * away + LARGE * excess + person
    label = random.random(n) < 1 / (1 + np.exp(-logit - random.normal(0, NOISE, n)))
    date = START + random.integers(0, 365, n) * 24 + hour
    found = {
        SUBJECT: subject,
        "category": category,
        "country": country,
        "device": device,
        "amount": amount,
        "spread": amount - middles[category],
        "sine": np.sin(2 * np.pi * hour / 24),
        "cosine": np.cos(2 * np.pi * hour / 24),
        "label": label.astype(np.int64),
        "date": date,
    }
    order = np.argsort(date, kind="stable")
    return {name: values[order] for name, values in found.items()}
