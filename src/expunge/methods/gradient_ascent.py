"""Gradient ascent on the samples to forget, with nothing that holds the rest in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from expunge.method import Needs, Reference, Search, See, Session, option
from expunge.methods._ascent import Ascending, Ceiling
from expunge.methods._steps import Descent
from expunge.references import THUDI_2022
from expunge.train import Recipe


@dataclass(frozen=True, kw_only=True)
class GradientAscent(Ascending):
    """Raise the loss on the forget set by SGD: θ ← θ − η·∇(−mean loss on a forget batch), weight decay as in training.

    This is the objective `ascent` without its cap. The loss has no upper bound, so it stops once the mean forget loss,
    taken in eval mode after each epoch, reaches ``until``: by default ln K, that of guessing among K classes. A
    sample's gradient is as large as 1 − p_y, its doubt of its own class: memorised samples start slowly, and then go
    fast. Raise ``lr`` or ``epochs`` if nothing is forgotten; ``clip`` (1, say) bounds the leap that may overshoot
    ``until`` by far within an epoch.

    Needs the forget set with labels alone. BatchNorm is frozen by default, for the statistics of forget batches damage
    the rest at any rate; the published code lets them move, as ``norm="moving"``. Applies to all tasks; without
    classes ``until`` must be a number or None.

    Passes: E over the forget set, and E more, without gradients, for ``until``; with ``keep_best``, which asks for
    ``until`` to be None, E over holdout.
    """

    reference: ClassVar[Reference] = THUDI_2022
    example: ClassVar[dict[str, object]] = {"epochs": 1}

    epochs: int = option(
        5, symbol="E", unit="passes over the forget set", text="at most", search=Search(1, 30, whole=True)
    )
    lr: float = option(1e-4, symbol="η", unit="1", text="learning rate", search=Search(1e-5, 1e-1, log=True))
    norm: Literal["moving", "frozen"] = option(
        "frozen", unit="-", text="whether BatchNorm statistics move with the forget batches, or stay frozen"
    )

    @property
    def unlearns(self) -> Needs:
        """Forget data with labels; the recipe where there is one."""
        return self.sees(forget=See.LABELLED)

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return the epochs, twice where the forget loss is measured after each; over holdout with ``keep_best``."""
        return self.reads(phase, forget=self.epochs * (1 if self.until is None else 2))

    def descend(self, session: Session, descent: Descent) -> None:
        """Go up until the ceiling or the last epoch."""
        ceiling = Ceiling(session, descent, self)
        climbed = False
        for _ in range(self.epochs):
            mean = descent.epoch([session.forget], lambda model, taken: ceiling.loss(taken.batch))
            climbed = climbed or mean != 0
            if ceiling.reached():
                break
        if not climbed:
            text = "the loss of every forget sample is 0 in its number format and so has no gradient"
            session.record("note", f"{text}; nothing but weight decay moved the weights")


METHOD = GradientAscent
