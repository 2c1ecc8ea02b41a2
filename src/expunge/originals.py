"""The trained network that requests are made to: a problem's own, by its recipe."""

from __future__ import annotations

from torch import nn

from expunge.data import Data
from expunge.errors import UserError
from expunge.recipe import Recipe
from expunge.runtime import Runtime
from expunge.seeds import seed as named_seed
from expunge.tensors import isolated_rng
from expunge.train import fit
from expunge.zoo import Problem


def original(problem: Problem, train: Data, *, runtime: Runtime | None = None, seed: int = 0) -> nn.Module:
    """Return the problem's network trained on the data by its recipe, which may stop by the loss on holdout.

    Args:
        problem: network, recipe and holdout data.
        train: the data to train on.
        runtime: device, progress, workdir.
        seed: of the initialisation and of training.

    Returns:
        A new module, in eval mode.

    Raises:
        UserError: the problem has no recipe, or no network before training, or its recipe plants canaries.
    """
    start, recipe = started(problem, seed)
    return fit(start, problem.task, train, recipe, holdout=problem.holdout, runtime=runtime, seed=seed)


def started(problem: Problem, seed: int) -> tuple[nn.Module, Recipe]:
    """Return the network that `original` starts from, and its recipe.

    Args:
        problem: network and recipe.
        seed: of the initialisation.

    Raises:
        UserError: the problem has no recipe, or no network before training, or its recipe plants canaries.
    """
    if problem.recipe is None or problem.new_model is None:
        raise UserError("a problem with recipe and new_model", "one without", "name both")
    check_planted(problem)
    with isolated_rng(named_seed("fresh", seed)):  # as `fresh` draws it for the retrained ones
        return problem.new_model(), problem.recipe


def check_planted(problem: Problem) -> None:
    """Refuse a recipe that would plant canaries for the original alone: all others train on ``problem.train``.

    Raises:
        UserError: it plants some.
    """
    if problem.recipe is not None and problem.recipe.canaries:
        remedy = "plant them in problem.train with expunge.canaries.plant, and pass recipe.again()"
        raise UserError("a recipe without canaries in a trial", f"{problem.recipe.canaries}", remedy)
