"""How much of what a network says of each training sample comes from that sample: a cheap score of memorisation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

from expunge.data import Data
from expunge.errors import UserError
from expunge.evidence import Outputs, collect
from expunge.originals import original as trained
from expunge.runtime import Runtime
from expunge.seeds import seed as named_seed
from expunge.task import Classes
from expunge.zoo import Problem

FOLDS = 3


def memorisation(
    problem: Problem, train: Data, original: nn.Module, *, runtime: Runtime | None = None, seed: int = 0
) -> NDArray[np.float64]:
    """Return how much better the original does on each sample than a network that was trained without its third.

    Feldman and Zhang call memorised what a network gives the right label only because it was trained on it:
    mem(x, y) = Pr[h(x) = y | trained with it] − Pr[h(x) = y | trained without it], over many trainings of each sort.
    Here each side is one network: the score is p_original(y|x) − p_k(y|x), where network k was trained by the same
    recipe from the same initialisation on the two thirds of the data that lack the sample. It costs two trainings.
    Without classes it is the difference of the losses, ℓ_k(x, y) − ℓ_original(x, y).

    What can be read off the original alone is no stand-in for it: where the original does not fit all of its data,
    the samples of highest loss are those it has not learned, and have nothing to be forgotten.

    Args:
        problem: task, network and recipe.
        train: the data that the original was trained on.
        original: the trained network.
        runtime: device, batch size, progress.
        seed: of the original; the thirds and their trainings take one that follows from it.

    Returns:
        (N,) scores in the data's order, higher = known by heart more.

    Raises:
        UserError: fewer than two samples, data without labels, or a problem without recipe and new_model.

    References:
        V. Feldman, C. Zhang, "What Neural Networks Memorize and Why: Discovering the Long Tail via Influence
        Estimation", 2020, https://arxiv.org/abs/2008.03703. K. Zhao, M. Kurmanji, G.-O. Bărbulescu,
        E. Triantafillou, P. Triantafillou, "What makes unlearning hard and what to do about it", 2024,
        https://arxiv.org/abs/2406.01257: the more of a forget set is memorised, the harder it is to unlearn.
    """
    if len(train) < 2:
        raise UserError("two training samples or more to tell the hardest", f"{len(train)}", "add some")
    ids = train.ids
    own = named_seed("hardness", seed)  # starting where a retrained model starts would choose in that one's favour
    order = np.random.default_rng(own).permutation(len(train))
    without = np.empty(len(train))
    for k in range(min(FOLDS, len(train))):
        rows = np.sort(order[k::FOLDS])
        held = train.subset([ids[i] for i in rows])
        network = trained(problem, train.without(held.ids), runtime=runtime, seed=own)
        without[rows] = _merit(problem, collect(network, problem.task, held, runtime=runtime))
    return _merit(problem, collect(original, problem.task, train, runtime=runtime)) - without


def _merit(problem: Problem, said: Outputs) -> NDArray[np.float64]:
    """Return the probability of the label, (N,), or less the loss where there are no classes."""
    if said.loss is None:
        raise UserError("labels, to tell the hardest samples", "none", "give targets when building the data")
    chance = said.signals.confidence if isinstance(problem.task, Classes) else None
    merit: NDArray[np.float64] = (-said.loss if chance is None else chance).numpy()
    return merit
