"""Named data sets and networks, for the demo, the command line and the benchmark; no method knows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from expunge.data import Data
from expunge.errors import UserError, suggest
from expunge.seeds import seed as named_seed
from expunge.task import Classification, Task
from expunge.train import Recipe
from expunge.zoo import cards, embedded, named, networks, recipes
from expunge.zoo.filed import FILED
from expunge.zoo.tabular import embedding_row

__all__ = ["Known", "Problem", "datasets", "embedding_row", "hub", "known", "load", "network", "networks", "recipe"]

EMBEDDED: Mapping[str, Callable[[], embedded.Embedded]] = {**embedded.DATASETS, "cards": cards.cards}


@dataclass(frozen=True)
class Problem:
    """A data set with a task, a network and the recipe to train it; a user's own project may lack some of them.

    Args:
        name: of the data set.
        network: of the network.
        train: training data.
        holdout: validation data.
        test: test data.
        task: outputs and loss.
        recipe: how the network is trained.
        new_model: builds the network before training, from torch's random state; can be sent to other processes.
        classes: names of the classes, in the order of the network's outputs where it has one a class; none for real
            targets.
    """

    name: str
    network: str
    train: Data
    holdout: Data | None
    test: Data | None
    task: Task
    recipe: Recipe | None
    new_model: Callable[[], nn.Module] | None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Known:
    """What is known of a named data set before any file of it is opened.

    Args:
        name: of the data set.
        shape: of one input as the network is given it: (C, H, W) of images, (F,), `networks.Tokens` or `Pair`,
            `networks.Window`, or `networks.Table`.
        size: training samples; of those read from files the published number, unless a limit is lower.
        counts: training samples of each class; none for real targets.
        columns: values by the names of its columns; None of a column whose values stand in the files alone.
    """

    name: str
    shape: tuple[Any, ...]
    size: int
    counts: tuple[int, ...]
    columns: Mapping[str, tuple[str, ...] | None]


def datasets() -> list[str]:
    """Return the names of the data sets.

    >>> datasets()[:4]
    ['ag_news', 'cards', 'cifar10', 'cifar100']
    """
    return sorted([*EMBEDDED, *FILED, *named.NAMED])


def hub(name: str) -> str | None:
    """Return a data set's name on the Hugging Face Hub, None where it has none there or is not known."""
    found = named.NAMED.get(name) or FILED.get(name)
    return None if found is None else found.hub


def network(name: str) -> str:
    """Return the name of a data set's own network."""
    found = named.NAMED.get(name) or FILED.get(name) or EMBEDDED[name]()
    return found.network


def recipe(name: str, network: str) -> Recipe:
    """Return how a network is trained on a named data set; no file is opened."""
    if name in named.NAMED or name in FILED:
        return recipes.recipe(name, network)
    own = EMBEDDED[name]()
    return recipes.recipe(name, network) if own.classes and network in ("resnet18", "vit") else own.recipe


def known(name: str, network: str | None = None, limit: int | None = None) -> Known:
    """Return what is known of a named data set, once data, network and limit fit each other; no file is opened.

    Args:
        name: see `datasets`.
        network: see `networks.names`; one that takes the data as it is by default.
        limit: as in `load`.

    Returns:
        Its shape, size, classes and columns.

    Raises:
        UserError: an unknown name, a network that does not fit the data, or a limit below one sample a class.
    """
    _check_name(name)
    if name in named.NAMED:
        spec = named.NAMED[name]
        shape, size = named.shape_of(spec, network), spec.size if limit is None else min(limit, spec.size)
        _check_fit(shape, spec.classes, network, limit)
        counts = tuple(size // spec.classes * len(members) for members in spec.targets)
        values = {"superclass": tuple(spec.groups or ()), "fine": tuple(map(str, range(spec.classes)))}
        return Known(name, shape, size, counts, {column: values.get(column) for column in spec.columns})
    if name in FILED:
        filed = FILED[name]
        _check_fit(filed.shape, len(filed.classes), network, limit)
        size = filed.size if limit is None else min(limit, filed.size)
        return Known(name, filed.shape, size, filed.counts(size), dict.fromkeys(filed.columns))
    own = EMBEDDED[name]()
    _check_fit(own.shape, len(own.classes), network, limit)
    train = _part(own, own.train, limit, name)
    counts = tuple(np.bincount(train.targets(), minlength=len(own.classes)).tolist()) if own.classes else ()
    columns = {column: tuple(sorted({str(v) for v in found})) for column, found in train.columns.items()}
    return Known(name, own.shape, len(train), counts, columns)


def load(
    name: str,
    network: str | None = None,
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Problem:
    """Return a named data set with a network for it.

    ``digits``, ``digits_value`` and ``diabetes`` come with scikit-learn, ``cards`` is generated. Images and news are
    read from ``data_dir/<name>/train-*.parquet`` and ``test-*.parquet`` where that folder is there, else from the
    Hugging Face Hub; their test split is cut once and for all, a fifth holdout, the rest test, and ids are
    ``name/split/row`` of the published table. Images carry the columns ``label`` and ``superclass``; in ``cifar20``,
    ``cifar10_super`` and ``fashion_mnist_super`` the superclass is the target, and ``fine`` and ``fine_name`` hold the
    class; faces carry ``subject``. ``ett`` and ``ett_mean`` are windows of one series, read by `expunge.zoo.ett.load`;
    ``credit`` and ``stsb`` are tables, read by `expunge.zoo.rows`.

    Args:
        name: see `datasets`.
        network: see `networks.names`; the data set's own by default.
        data_dir: folder of data sets, and of pretrained networks in ``models/``; default the environment variable
            EXPUNGE_DATA. Pretrained networks may lie elsewhere, where EXPUNGE_MODELS says.
        limit: training samples to take, with half as many for test and an eighth for holdout: balanced by class where
            there is one output a class, at one stride where they are windows of a series, else whatever they are.
        seed: of that draw.

    Returns:
        The problem.

    Raises:
        UserError: an unknown name, a network that does not fit the data, or data that is not to be had.
    """
    _check_name(name)
    if name in named.NAMED:
        folder = named.folder_of(data_dir)
        spec = named.NAMED[name]
        _check_limit(limit, spec.classes)
        network = network or spec.network
        shape = named.shape_of(spec, network)
        build = networks.factory(network, shape, spec.outputs, models=named.models_of(folder))
        found = named.load(name, network, folder, limit, seed)
        parts = found.train, found.holdout, found.test
        return Problem(name, network, *parts, Classification(), recipe(name, network), build, found.classes)
    if name in FILED:
        filed = FILED[name]
        _check_limit(limit, len(filed.classes))
        network = network or filed.network
        folder = named.folder_of(data_dir)
        build = networks.factory(network, filed.shape, filed.outputs, models=named.models_of(folder))
        splits = filed.read(name, folder, limit, seed)
        return Problem(name, network, *splits, filed.task, recipe(name, network), build, filed.classes)
    own = EMBEDDED[name]()
    _check_limit(limit, max(1, len(own.classes)))
    network = network or own.network
    models = named.models_of(named.folder_of(data_dir)) if network in networks.PRETRAINED else None
    build = networks.factory(network, own.shape, own.outputs, models=models)
    most = [None] * 3 if limit is None else [limit, limit // 8, limit // 2]
    whole = zip((own.train, own.holdout, own.test), most, strict=True)
    train, holdout, test = (_part(own, d, n, name, seed) for d, n in whole)
    return Problem(name, network, train, holdout, test, own.task, recipe(name, network), build, own.classes)


def _check_name(name: str) -> None:
    if name not in datasets():
        raise UserError("a known data set", repr(name), suggest(name, datasets()))


def _check_fit(shape: tuple[int, ...], classes: int, network: str | None, limit: int | None) -> None:
    _check_limit(limit, max(1, classes))
    if network is not None:
        networks.check(network, shape)


def _check_limit(limit: int | None, classes: int) -> None:
    if limit is not None and limit < max(8, classes):
        least = f"at least {max(8, classes)} samples"
        raise UserError(f"a limit of {least}, one a class", str(limit), "raise it")


def _part(own: embedded.Embedded, data: Data, n: int | None, name: str, seed: int = 0) -> Data:
    """Return so many samples, balanced by class where a network has an output a class."""
    if n is None or n >= len(data):
        return data
    balance = isinstance(own.task, Classification)
    labels = data.targets().numpy() if balance else np.zeros(len(data), dtype=np.int64)
    ids = data.ids
    rows = named.balanced(labels, n, named_seed("zoo", name, data.name, "limit", seed))
    return data.subset([ids[i] for i in rows])
