"""Training on with the retain set alone, in the hope that the rest fades."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from expunge.errors import UserError
from expunge.method import Method, Needs, Reference, Search, See, Session, State, option
from expunge.train import Recipe, fit


@dataclass(frozen=True, kw_only=True)
class Finetune(Method):
    """Minimise the loss on the retain set for some epochs from the original weights, by SGD at a constant rate.

    BatchNorm statistics move with training. A low rate hardly forgets; forgetting varies widely over seeds.
    """

    distributed: ClassVar[bool] = True
    prepared_by: ClassVar[frozenset[str] | None] = frozenset()  # nothing is prepared but the record of ids
    unlearns = Needs(retain=See.LABELLED, recipe=True, optional=frozenset({"recipe"}))
    reference: ClassVar[Reference] = Reference(
        "Eternal Sunshine of the Spotless Net: Selective Forgetting in Deep Networks",
        "Aditya Golatkar and Alessandro Achille and Stefano Soatto",
        2020,
        "https://arxiv.org/abs/1911.04933",
        "CVPR",
    )
    example: ClassVar[dict[str, object]] = {"epochs": 1}

    epochs: int = option(
        5,
        symbol="E",
        unit="passes over the retain set",
        text="how long to train on",
        search=Search(1, 10, whole=True),
    )
    lr: float = option(0.02, symbol="η", unit="1", text="constant learning rate", search=Search(1e-4, 1e-1, log=True))
    momentum: float = option(0.9, symbol="μ", unit="1", text="of SGD")
    weight_decay: float = option(5e-4, symbol="wd", unit="1", text="coupled L2")
    batch_size: int | None = option(
        None, symbol="B", unit="samples", text="samples a step; unset, the recipe's, or 64 without a recipe"
    )

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UserError("finetune.epochs of 1 or more", str(self.epochs), "give a positive number")
        self._recipe(None)

    def _recipe(self, given: Recipe | None) -> Recipe:
        size, crop, flip = (64, 0, False) if given is None else (given.batch_size, given.crop, given.flip)
        return Recipe(
            epochs=self.epochs,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule="constant",
            batch_size=size if self.batch_size is None else self.batch_size,
            crop=crop,
            flip=flip,
            penalties=() if given is None else given.penalties,
        )

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return the epochs over the retain set."""
        return {"retain": float(self.epochs)} if phase == "unlearn" else {}

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """Fit on; augmentation, batch size and penalties come from the original's recipe where it is given."""
        recipe = self._recipe(session.recipe)
        session.record("epochs", recipe.epochs)
        model = fit(
            session.model,
            session.task,
            session.retain,
            recipe,
            runtime=session.runtime,
            seed=session.seed,
            masks=session.masks,
        )
        return model, state


METHOD = Finetune
