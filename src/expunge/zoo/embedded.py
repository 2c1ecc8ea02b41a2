"""Data sets that scikit-learn carries: digits (1,797 images of 8×8), as classes or as values, and diabetes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn import datasets

from expunge.data import Data, relabelled
from expunge.errors import UserError
from expunge.seeds import seed as named_seed
from expunge.task import Classification, Regression, Task
from expunge.train import Recipe

SUPERCLASSES = {"round": (0, 6, 8, 9), "straight": (1, 4, 7), "mixed": (2, 3, 5)}


@dataclass(frozen=True)
class Embedded:
    """A data set in three splits.

    Args:
        train: the samples to train on.
        holdout: those for validation.
        test: those for measuring.
        task: its task.
        shape: of one input.
        outputs: classes, or targets.
        network: the default one.
        recipe: trains it.
        classes: their names.
    """

    train: Data
    holdout: Data
    test: Data
    task: Task
    shape: tuple[Any, ...]
    outputs: int
    network: str
    recipe: Recipe
    classes: tuple[str, ...] = ()


def _splits(
    name: str, x: Any, y: Any, columns: dict[str, list[Any]], shares: tuple[float, float] = (0.65, 0.75)
) -> list[Data]:
    """Return train, holdout and test, the same at every call; ids are ``name/row`` of the published table."""
    order = np.random.default_rng(named_seed("zoo", name)).permutation(len(x))
    cuts = [round(share * len(x)) for share in shares]
    parts = zip(("train", "holdout", "test"), np.split(order, cuts), strict=True)
    return [
        Data.from_arrays(
            x[rows],
            y[rows],
            ids=[f"{name}/{i}" for i in rows],
            columns={k: [v[i] for i in rows] for k, v in columns.items()},
            name=part,
        )
        for part, rows in parts
    ]


def _digits() -> tuple[Any, torch.Tensor, dict[str, list[Any]]]:
    """Return images in [0, 1], digits, and the column ``superclass``."""
    table = datasets.load_digits()
    x = torch.tensor(table.images / 16, dtype=torch.float32).unsqueeze(1)
    y = torch.tensor(table.target, dtype=torch.long)
    coarse = {digit: name for name, members in SUPERCLASSES.items() for digit in members}
    return x, y, {"superclass": [coarse[int(d)] for d in y]}


def digits() -> Embedded:
    """Handwritten digits in [0, 1], (1, 8, 8); column ``superclass``: round, straight or mixed; split 65/10/25."""
    train, holdout, test = _splits("digits", *_digits())
    recipe = Recipe(epochs=25, batch_size=64, lr=0.1, schedule="cosine")
    return Embedded(train, holdout, test, Classification(), (1, 8, 8), 10, "convnet", recipe, tuple("0123456789"))


def digits_value() -> Embedded:
    """The digits as a regression: the target is the number that the image shows, 0 to 9; split 60/20/20."""
    x, y, columns = _digits()
    train, holdout, test = _splits("digits_value", x, y.float().unsqueeze(1), columns, (0.6, 0.8))
    recipe = Recipe(
        epochs=30,
        batch_size=32,
        lr=0.01,
        optimizer="adamw",
        weight_decay=0.0,
        schedule="multistep",
        milestones=(20,),  # a schedule that watches the holdout loss would differ from model to model
        gamma=0.1,
    )
    return Embedded(train, holdout, test, Regression(error="absolute"), (1, 8, 8), 1, "convnet4", recipe)


def diabetes() -> Embedded:
    """Disease progression of 442 patients from ten measurements; target standardised; split 65/10/25."""
    table = datasets.load_diabetes()
    x = torch.tensor(table.data / table.data.std(axis=0), dtype=torch.float32)
    y = torch.tensor((table.target - table.target.mean()) / table.target.std(), dtype=torch.float32).unsqueeze(1)
    train, holdout, test = _splits("diabetes", x, y, {"sex": [float(v) for v in table.data[:, 1]]})
    recipe = Recipe(epochs=40, batch_size=32, lr=0.02, schedule="cosine")
    return Embedded(train, holdout, test, Regression(), (10,), 1, "mlp", recipe)


DATASETS: dict[str, Callable[[], Embedded]] = {"digits": digits, "digits_value": digits_value, "diabetes": diabetes}


def mislabelled(data: Data, share: float, *, classes: int, seed: int = 0) -> tuple[Data, list[str]]:
    """Return the data with a share of its labels flipped to another class, and the ids of those samples.

    A model trained on it repeats the wrong labels; one trained without those samples does not. So this is a forget
    set with known truth.

    Args:
        data: labelled with class indices.
        share: of the samples, in (0, 1).
        classes: number of classes.
        seed: of the draw.

    Returns:
        New data under the same ids, with the true label in the column ``clean``, and the flipped ids; inputs are read
        where they were.

    Raises:
        UserError: a share outside (0, 1), fewer than two classes, or targets that are no class indices.
    """
    targets = data.targets()
    if targets.is_floating_point() or targets.dim() != 1:
        got = f"{targets.dtype} of shape {tuple(targets.shape)}"
        raise UserError("class labels to flip", got, "ask for another kind of request where targets are real")
    if not 0 < share < 1:
        raise UserError("a share of labels to flip in (0, 1)", f"{share}", "write for example 0.05")
    if classes < 2:
        raise UserError("two classes or more to flip labels between", f"{classes}", "take another kind of request")
    generator = np.random.default_rng(named_seed("mislabelled", seed))
    clean = targets.numpy()
    rows = np.sort(generator.choice(len(data), max(1, round(share * len(data))), replace=False))
    noisy = clean.copy()
    noisy[rows] = (clean[rows] + generator.integers(1, classes, len(rows))) % classes
    column = {"clean": np.asarray(clean.tolist(), dtype=object)}
    flipped = relabelled(data, torch.from_numpy(noisy), column, why="mislabelled")
    ids = data.ids
    return flipped, [ids[i] for i in rows]
