"""Named data sets and networks, for the demo, the command line and the benchmark; no method knows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from expunge.data import Data
from expunge.errors import UserError, suggest
from expunge.task import Classification, Regression
from expunge.train import Recipe
from expunge.zoo import embedded, networks

__all__ = ["Problem", "datasets", "load", "networks"]


@dataclass(frozen=True)
class Problem:
    """A data set with a task, a network and the recipe to train it.

    Args:
        name: of the data set.
        network: of the network.
        train: training data.
        holdout: validation data.
        test: test data.
        task: outputs and loss.
        recipe: how the network is trained.
        new_model: builds the network before training, from torch's random state.
    """

    name: str
    network: str
    train: Data
    holdout: Data
    test: Data
    task: Classification | Regression
    recipe: Recipe
    new_model: Callable[[], nn.Module]


def datasets() -> list[str]:
    """Return the names of the data sets.

    >>> datasets()
    ['diabetes', 'digits']
    """
    return sorted(embedded.DATASETS)


def load(name: str, network: str | None = None) -> Problem:
    """Return a named data set with a network for it.

    Args:
        name: see `datasets`.
        network: see `networks.names`; the data set's own by default.

    Returns:
        The problem; its splits are always the same.

    Raises:
        UserError: an unknown name, or a network that does not fit the data.
    """
    if name not in embedded.DATASETS:
        raise UserError("a known data set", repr(name), suggest(name, embedded.DATASETS))
    found = embedded.DATASETS[name]()
    network = network or found.network
    build = networks.factory(network, found.shape, found.outputs)
    return Problem(name, network, found.train, found.holdout, found.test, found.task, found.recipe, build)
