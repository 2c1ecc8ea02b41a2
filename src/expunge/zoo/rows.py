"""Named tables of rows in parquet files or on the Hub: clients of a credit card, pairs of sentences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.data import Data
from expunge.errors import Incompatible
from expunge.seeds import seed as named_seed
from expunge.tables import Columns, hashed_words, to_data
from expunge.zoo.named import balanced, table
from expunge.zoo.networks import Pair
from expunge.zoo.tabular import Table

CREDIT = "scikit-learn/credit-card-clients"
DEFAULT = "default.payment.next.month"
CLASSES = ("paid", "default")
CATEGORIES = {"SEX": (1, 2), "EDUCATION": (0, 6), "MARRIAGE": (0, 3)}  # first and last value as published
REAL = (
    *("LIMIT_BAL", "AGE", "PAY_0", "PAY_2", "PAY_3", "PAY_4", "PAY_5", "PAY_6"),
    *(f"{kind}_AMT{month}" for kind in ("BILL", "PAY") for month in range(1, 7)),
)
SHAPE = Table(len(REAL), tuple(CATEGORIES), tuple(last - first + 1 for first, last in CATEGORIES.values()))
SHARES = (0.65, 0.75)  # of the rows: the end of train, and of holdout
ROWS, DEFAULTS = 30_000, 6_636  # as published

STSB = "sentence-transformers/stsb"
PAIR = Pair(length=32, vocabulary=8192)
LARGEST = 5.0  # the published scores are those of people, 0 to 5, divided by it


def credit(name: str, folder: Path | None, limit: int | None, seed: int) -> tuple[Data, Data, Data]:
    """Read 30,000 clients of a credit card in Taiwan, and whether they failed to pay the next month.

    The one published split is cut once and for all, 65 % train, 10 % holdout, 25 % test. Inputs are ``real``, (N, 20),
    standardised by the whole training part whatever the limit, and ``categories``, (N, 3): sex, education and marriage.
    Columns: ``subject``, the published number of the client; ``category``, the education, as the segment; ``age``.

    Args:
        name: of the data set.
        folder: of data sets.
        limit: training rows to draw; of test half as many, of holdout an eighth.
        seed: of that draw.

    Returns:
        Train, holdout and test.

    Raises:
        UserError: no such data, a missing or infinite value, or a column that is not there.
        Incompatible: a category or target that was not published.

    References:
        I-C. Yeh and C. Lien, "The comparisons of data mining techniques for the predictive accuracy of probability of
        default of credit card clients", 2009, https://doi.org/10.1016/j.eswa.2007.12.020.
    """
    rows = table(name, "credit", CREDIT, "train", folder)
    numbers = to_data(rows, Columns(inputs=(*REAL, *CATEGORIES), target=DEFAULT, keep=("ID",)), name="train")
    values, label = numbers.read(range(len(numbers))).inputs, numbers.targets()
    assert isinstance(values, torch.Tensor)
    _check(label.double().numpy(), DEFAULT, 0, 1)
    codes = values[:, len(REAL) :].double().numpy()
    for at, (column, (first, last)) in enumerate(CATEGORIES.items()):
        _check(codes[:, at], column, first, last)
    order = np.random.default_rng(named_seed("zoo", "credit")).permutation(len(rows))
    parts = np.split(order, [round(share * len(rows)) for share in SHARES])
    real = values[:, : len(REAL)].double()
    own = real[parts[0]]
    real = (real - own.mean(dim=0)) / own.std(dim=0, correction=0).clamp_min(1e-12)
    firsts = np.array([first for first, _ in CATEGORIES.values()])
    inputs = {"real": real.float(), "categories": torch.from_numpy((codes - firsts).astype(np.int64))}
    clients = numbers.column("ID").tolist()
    columns = {
        "subject": clients,
        "category": [int(v) for v in codes[:, list(CATEGORIES).index("EDUCATION")]],
        "age": [int(v) for v in values[:, REAL.index("AGE")]],
    }
    whole = Data.from_arrays(inputs, label, ids=[f"{name}/train/{i}" for i in range(len(rows))], columns=columns)
    found = [_drawn(whole, name, part, at, limit, seed) for part, at in zip(_PARTS, parts, strict=True)]
    return found[0], found[1], found[2]


def stsb(name: str, folder: Path | None, limit: int | None, seed: int) -> tuple[Data, Data, Data]:
    """Read pairs of sentences and how alike people found them, 0 to 5; the published train, validation and test.

    The published scores, from 0 to 1, are multiplied by 5. Columns: ``sentence1`` and ``sentence2``.

    Args:
        name: of the data set.
        folder: of data sets.
        limit: training pairs to draw; of test half as many, of validation an eighth.
        seed: of that draw.

    Returns:
        Train, holdout and test.

    Raises:
        UserError: no such data, a missing value, or a column that is not there.
        Incompatible: a score beyond 0 and 1.

    References:
        D. Cer et al., "SemEval-2017 Task 1: Semantic Textual Similarity", 2017, https://arxiv.org/abs/1708.00055.
    """
    columns = Columns(
        inputs=("sentence1", "sentence2"),
        target="score",
        keep=("sentence1", "sentence2"),
        text=hashed_words(*PAIR),
        real=True,
    )
    found = []
    for part, split in zip(_PARTS, ("train", "validation", "test"), strict=True):
        whole = to_data(table(name, "stsb", STSB, split, folder), columns, name=part)
        score = whole.targets()
        _check(score.double().numpy().ravel(), "score", 0, 1, whole=False)
        inputs, ids = whole.read(range(len(whole))).inputs, [f"{name}/{split}/{i}" for i in range(len(whole))]
        kept = {column: values.tolist() for column, values in whole.columns.items()}
        scaled = Data.from_arrays(inputs, LARGEST * score, ids=ids, columns=kept, name=part)
        found.append(_drawn(scaled, name, part, np.arange(len(whole)), limit, seed))
    return found[0], found[1], found[2]


_PARTS = {"train": 1, "holdout": 8, "test": 2}  # part: what the limit is divided by


def _drawn(whole: Data, name: str, part: str, at: NDArray[np.int64], limit: int | None, seed: int) -> Data:
    """Return the rows of a part, of which the limit draws some whatever their class."""
    most = None if limit is None else limit // _PARTS[part]
    if most is not None and most < len(at):
        at = at[balanced(np.zeros(len(at), dtype=np.int64), most, named_seed("zoo", name, part, "limit", seed))]
    ids = whole.ids
    return replace(whole.subset([ids[i] for i in at]), name=part)


def _check(values: NDArray[np.float64], column: str, first: float, last: float, whole: bool = True) -> None:
    """Refuse values that were not published."""
    bad = np.flatnonzero((values < first) | (values > last) | (whole & (values != np.round(values))))
    if len(bad):
        want = f"{'whole numbers' if whole else 'numbers'} from {first:g} to {last:g} in '{column}'"
        remedy = "correct or drop that row" if whole else "divide scores from 0 to 5 by 5, as they are published"
        raise Incompatible(want, f"{values[bad[0]]:g} in row {bad[0]}", remedy)


def counts(size: int) -> tuple[int, int]:
    """Return how many of so many clients paid and failed to, at the published share."""
    failed = round(size * DEFAULTS / ROWS)
    return size - failed, failed
