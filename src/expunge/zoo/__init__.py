"""Named data sets and networks, for the demo, the command line and the benchmark; no method knows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from expunge.data import Data
from expunge.errors import UserError, suggest
from expunge.seeds import seed as named_seed
from expunge.task import Classification, Task
from expunge.train import Recipe
from expunge.zoo import embedded, named, networks, recipes

__all__ = ["Problem", "datasets", "load", "network", "networks", "outputs", "recipe"]


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
        classes: names of the network's outputs; none for real targets.
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


def datasets() -> list[str]:
    """Return the names of the data sets.

    >>> datasets()[:4]
    ['ag_news', 'cifar10', 'cifar100', 'cifar10_super']
    """
    return sorted([*embedded.DATASETS, *named.NAMED])


def network(name: str) -> str:
    """Return the name of a data set's own network."""
    return named.NAMED[name].network if name in named.NAMED else embedded.DATASETS[name]().network


def recipe(name: str, network: str) -> Recipe:
    """Return how a network is trained on a named data set; no file is opened."""
    if name in named.NAMED or network in ("resnet18", "vit"):
        return recipes.recipe(name, network)
    return embedded.DATASETS[name]().recipe


def outputs(name: str, network: str, limit: int | None = None) -> int:
    """Return how many outputs a network has for a named data set, once both fit each other; no file is opened.

    Args:
        name: see `datasets`.
        network: see `networks.names`.
        limit: as in `load`.

    Returns:
        Classes, or real targets.

    Raises:
        UserError: a network that does not fit the data, or a limit below one sample a class.
    """
    spec = named.NAMED[name] if name in named.NAMED else embedded.DATASETS[name]()
    shape = _shape(spec, network) if isinstance(spec, named.Named) else spec.shape
    classes = spec.classes if isinstance(spec, named.Named) else len(spec.classes)
    _check_limit(limit, max(1, classes))
    networks.check(network, shape)
    return spec.outputs


def load(
    name: str,
    network: str | None = None,
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Problem:
    """Return a named data set with a network for it.

    ``digits`` and ``diabetes`` come with scikit-learn. The others are read from ``data_dir/<name>/train-*.parquet``
    and ``test-*.parquet`` where that folder is there, else from the Hugging Face Hub; their test split is cut once and
    for all, a fifth holdout, the rest test, and ids are ``name/split/row`` of the published table. Images carry the
    columns ``label`` and ``superclass``; in ``cifar20``, ``cifar10_super`` and ``fashion_mnist_super`` the superclass
    is the target, and ``fine`` and ``fine_name`` hold the class; faces carry ``subject``.

    Args:
        name: see `datasets`.
        network: see `networks.names`; the data set's own by default.
        data_dir: folder of data sets, and of pretrained networks in ``models/``; default the environment variable
            EXPUNGE_DATA.
        limit: training samples to take, balanced by class, with half as many for test and an eighth for holdout.
        seed: of that draw.

    Returns:
        The problem.

    Raises:
        UserError: an unknown name, a network that does not fit the data, or data that is not to be had.
    """
    if name not in datasets():
        raise UserError("a known data set", repr(name), suggest(name, datasets()))
    if name in named.NAMED:
        folder = named.folder_of(data_dir)
        models = None if folder is None else folder / "models"
        spec = named.NAMED[name]
        _check_limit(limit, spec.classes)
        network = network or spec.network
        build = networks.factory(network, _shape(spec, network), spec.outputs, models=models)
        found = named.load(name, network, folder, limit, seed)
        parts = found.train, found.holdout, found.test
        return Problem(name, network, *parts, Classification(), recipe(name, network), build, found.classes)
    own = embedded.DATASETS[name]()
    _check_limit(limit, max(1, len(own.classes)))
    network = network or own.network
    build = networks.factory(network, own.shape, own.outputs)
    most = [None] * 3 if limit is None else [limit, limit // 8, limit // 2]
    splits = zip((own.train, own.holdout, own.test), most, strict=True)
    train, holdout, test = (_part(d, n, name, seed) for d, n in splits)
    return Problem(name, network, train, holdout, test, own.task, recipe(name, network), build, own.classes)


def _shape(spec: named.Named, network: str) -> tuple[int, ...]:
    """Return the shape of inputs that a data set gives a network."""
    return networks.BASE_SHAPE if network == networks.BASE and len(spec.shape) == 3 else spec.shape


def _check_limit(limit: int | None, classes: int) -> None:
    if limit is not None and limit < max(8, classes):
        least = f"at least {max(8, classes)} samples"
        raise UserError(f"a limit of {least}, one a class", str(limit), "raise it")


def _part(data: Data, n: int | None, name: str, seed: int) -> Data:
    if n is None or n >= len(data):
        return data
    targets = data.targets()
    labels = np.zeros(len(data), dtype=np.int64) if targets.is_floating_point() else targets.numpy()
    ids = data.ids
    rows = named.balanced(labels, n, named_seed("zoo", name, data.name, "limit", seed))
    return data.subset([ids[i] for i in rows])
