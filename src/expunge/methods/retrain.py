"""Retraining from scratch without the forget set: the definition of forgetting, and its full price."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from expunge.method import Method, Nature, Needs, Reference, See, Session, State
from expunge.references import CAO_2015
from expunge.train import Recipe, fit


@dataclass(frozen=True, kw_only=True)
class Retrain(Method):
    """Train the network anew on the retain set with the original's recipe: θ = Train(init, D_r).

    Every parameter and buffer is re-initialised, or built by ``new_model``; published code that resets only the
    last layer keeps a backbone that has seen the forget set.
    """

    distributed: ClassVar[bool] = True
    nature: ClassVar[Nature] = Nature.EXACT
    unlearns = Needs(
        retain=See.LABELLED, holdout=See.LABELLED, recipe=True, fresh=True, optional=frozenset({"holdout"})
    )
    reference: ClassVar[Reference] = CAO_2015
    example: ClassVar[dict[str, object]] = {}

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return the recipe's epochs over the retain set; holdout is read once an epoch where training may stop."""
        if phase == "prepare" or recipe is None:
            return {}
        return {"retain": float(recipe.epochs), "holdout": 0.0 if recipe.patience is None else float(recipe.epochs)}

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """Fit a fresh network; the recipe's early stopping uses holdout where given."""
        recipe: Recipe = session.recipe
        start = session.new_model()
        if session.masks is not None:  # of a pruned network: the new one has the same weights missing
            session.masks.prune(start)
        model = fit(
            start,
            session.task,
            session.retain,
            recipe,
            holdout=session.holdout,
            runtime=session.runtime,
            seed=session.seed,
            masks=session.masks,
        )
        session.record("epochs_at_most", recipe.epochs)
        return model, State()


METHOD = Retrain
