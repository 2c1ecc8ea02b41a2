"""What methods have in common that train on with the retain set alone, by `expunge.train.fit`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from expunge.errors import NotFinite
from expunge.method import Needs, See, Session, option
from expunge.methods._fields import Checked
from expunge.train import Penalty, Recipe, batch_orders, fit


@dataclass(frozen=True, kw_only=True)
class TrainingOn(Checked):
    """SGD on the retain set at a constant rate, from the original weights; BatchNorm statistics move with it.

    Augmentation, penalties and, where unset, the batch size come from the original's recipe where it is given.
    """

    distributed: ClassVar[bool] = True
    prepared_by: ClassVar[frozenset[str] | None] = frozenset()  # nothing is prepared but the record of ids

    epochs: int = option(5, symbol="E", unit="passes over the retain set", text="how long to train on")
    lr: float = option(0.02, symbol="η", unit="1", text="constant learning rate")
    momentum: float = option(0.9, symbol="μ", unit="1", text="of SGD")
    weight_decay: float = option(5e-4, symbol="wd", unit="1", text="coupled L2")
    batch_size: int | None = option(
        None, symbol="B", unit="samples", text="samples a step; unset, the recipe's, or 64 without a recipe"
    )
    keep_best: bool = option(
        False, unit="-", text="return the epoch with the lowest loss on holdout data, which it then needs"
    )

    def __post_init__(self) -> None:
        self.count("epochs", 1)
        self.count("batch_size", 1)
        self.positive("lr")
        self.positive("momentum", "weight_decay", zero=True)

    @property
    def unlearns(self) -> Needs:
        """The retain set with labels, the recipe where there is one, and holdout data where it decides."""
        holdout = See.LABELLED if self.keep_best else See.NONE
        return Needs(retain=See.LABELLED, holdout=holdout, recipe=True, optional=frozenset({"recipe"}))

    @property
    def forces(self) -> tuple[str, ...]:
        """Names of the settings beside the rate that may be too strong."""
        return ()

    def further(self, given: Recipe | None, *penalties: Penalty) -> Recipe:
        """Return how it trains on.

        Args:
            given: the original's recipe, or None.
            penalties: beside the recipe's own.
        """
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
            penalties=(*(() if given is None else given.penalties), *penalties),
            patience=self.epochs if self.keep_best else None,  # never stops it: the best of all epochs is returned
        )

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return the epochs over the retain set, and over holdout data where it decides."""
        if phase == "prepare":
            return {}
        return {"retain": float(self.epochs), **({"holdout": float(self.epochs)} if self.keep_best else {})}

    def trained(self, session: Session, recipe: Recipe) -> nn.Module:
        """Return the session's model trained on with the retain set, under the session's masks.

        Raises:
            NotFinite: the loss became NaN or infinite; names the settings to lower.
        """
        session.record("epochs", recipe.epochs)
        session.record("steps", recipe.epochs * self.steps(session))
        try:
            return fit(
                session.model,
                session.task,
                session.retain,
                recipe,
                holdout=session.holdout if self.keep_best else None,
                runtime=session.runtime,
                seed=session.seed,
                masks=session.masks,
            )
        except NotFinite as error:
            said = " or ".join(f"{self.name}.{name} (now {getattr(self, name):g})" for name in ("lr", *self.forces))
            raise NotFinite(f"{error.expected} of {self.name}", error.got, f"lower {said}") from error

    def steps(self, session: Session) -> int:
        """Return how many steps an epoch has."""
        size = self.further(session.recipe).batch_size
        return sum(1 for _ in batch_orders(size, range(len(session.retain))))
