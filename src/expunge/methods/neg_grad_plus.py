"""Descent on retain data and ascent on the samples to forget, in one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from expunge.errors import UserError
from expunge.method import Needs, Reference, Search, See, Session, option
from expunge.methods._ascent import Ascending, Ceiling
from expunge.methods._steps import Descent, Taken
from expunge.references import KURMANJI_2023
from expunge.train import Recipe


@dataclass(frozen=True, kw_only=True)
class NegGradPlus(Ascending):
    """Lower α·CE(B_r) − (1−α)·CE(B_f), a step a pair of a retain and a forget batch, CE the mean loss over a batch.

    −CE(B_f) is the objective `ascent` without its cap. An epoch is one pass over the retain set; the forget set goes in
    lockstep, begun again in a new order, with new augmentation, when it is used up. (The published code keeps its first
    pass and repeats it.) Its batches are of one size, at most the retain set's, or larger where the forget set is the
    larger one: an epoch takes all of it. It ends early once the mean forget loss, in eval mode after an epoch, reaches
    ``until``. Published values of α are 0.95 (small sets) and 0.9999; tune 1−α on a log grid.

    Needs forget and retain data with labels. Applies to all tasks; without classes ``until`` must be a number or
    None. BatchNorm statistics move with both batches, the retain batch first; a forget set of one sample freezes them.

    Passes: E over the retain set and as many forget samples in lockstep, at most one pass over the forget set an
    epoch more than that, and another, without gradients, for ``until``; with ``keep_best``, which asks for ``until`` to
    be None, E over holdout.
    """

    reference: ClassVar[Reference] = KURMANJI_2023
    example: ClassVar[dict[str, object]] = {"epochs": 1}

    epochs: int = option(
        5, symbol="E", unit="passes over the retain set", text="at most", search=Search(1, 10, whole=True)
    )
    lr: float = option(0.01, symbol="η", unit="1", text="learning rate", search=Search(1e-4, 1e-1, log=True))
    weight_decay: float = option(0.0, symbol="wd", unit="1", text="coupled L2; of adamw decoupled")
    alpha: float = option(
        0.95,
        symbol="α",
        unit="1",
        text="weight of the retain loss, in (0, 1); the forget loss has 1−α",
        search=Search(choices=(0.5, 0.9, 0.95, 0.99, 0.999, 0.9999)),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.alpha, int | float) or not 0 < self.alpha < 1:
            remedy = "for 1 take finetune, for 0 gradient_ascent"
            raise UserError(f"{self.name}.alpha above 0 and below 1", repr(self.alpha), remedy)

    @property
    def unlearns(self) -> Needs:
        """Forget and retain data with labels; the recipe where there is one."""
        return self.sees(forget=See.LABELLED, retain=See.LABELLED)

    def passes(self, phase: str, recipe: Recipe | None) -> dict[str, float]:
        """Return two passes over the retain set an epoch, one for the lockstep, and those over the other sets."""
        return self.reads(phase, forget=self.epochs * (1 if self.until is None else 2), retain=2 * self.epochs)

    def descend(self, session: Session, descent: Descent) -> None:
        """Take a step a pair until the ceiling or the last epoch."""
        ceiling = Ceiling(session, descent, self)

        def loss(model: nn.Module, taken: Taken) -> Tensor:
            assert taken.beside is not None
            retain = descent.losses(taken.batch).mean()
            return self.alpha * retain + (1 - self.alpha) * ceiling.loss(taken.beside.batch)

        size = beside_size(len(session.retain), len(session.forget), descent.size)
        for _ in range(self.epochs):
            descent.epoch([session.retain], loss, beside=[session.forget], beside_size=size)
            if ceiling.reached():
                break


def beside_size(retain: int, forget: int, size: int) -> int:
    """Return the forget samples a step: about as many in each, and all of them within one pass over the retain set.

    Args:
        retain: samples of the retain set.
        forget: samples of the forget set.
        size: samples a step of the retain set; exceeded only where the pass would end too early.
    """
    steps = max(1, (retain + size - 2) // size)  # a last batch of one sample joins its neighbour
    return -(-forget // min(steps, -(-forget // size)))


METHOD = NegGradPlus
