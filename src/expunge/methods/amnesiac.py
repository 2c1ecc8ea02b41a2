"""Unlearning by relabelling, the baseline that benchmarks call amnesiac."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from expunge.method import Reference, Search, Session, option
from expunge.methods._relabel import Relabelling, relabelled_epoch
from expunge.methods._steps import Descent
from expunge.objectives.random_label import RandomLabel
from expunge.references import GRAVES_2021


@dataclass(frozen=True, kw_only=True)
class Amnesiac(Relabelling):
    """Give each forget sample one random wrong label, and train on with them among the retain data, in one shuffle.

    On the forget set that is the objective `random_label`. The label is drawn once, uniform over the K−1 classes other
    than the sample's own by the task's labels: never the forgotten class of a class request, and for a subclass any
    other superclass. Classes that earlier requests removed are not left out.

    This is what Graves et al. call *unlearning*, which the literature's tables list as amnesiac. It is not their
    *amnesiac unlearning*, which logs the update of every training batch and subtracts those that held the samples.
    They add several copies of each sample with different wrong labels where single samples are forgotten; no later
    code does, nor does this.

    Needs forget and retain data with labels. Declines tasks without classes. BatchNorm statistics move.

    Passes: E over the forget set and E over the retain set; with ``keep_best`` E over holdout.
    """

    reference: ClassVar[Reference] = GRAVES_2021
    example: ClassVar[dict[str, object]] = {"epochs": 1}

    epochs: int = option(3, symbol="E", unit="passes over both sets", text="how long", search=Search(1, 10, whole=True))
    lr: float = option(1e-4, symbol="η", unit="1", text="learning rate", search=Search(1e-5, 1e-2, log=True))
    optimizer: Literal["sgd", "adam", "adamw"] = option("adam", unit="-", text="sgd, adam or adamw")
    weight_decay: float = option(0.0, symbol="wd", unit="1", text="coupled L2; of adamw decoupled")

    def descend(self, session: Session, descent: Descent) -> None:
        """Draw the labels from the session's seed, and train on."""
        objective = RandomLabel()
        context = objective.context(session)
        for _ in range(self.epochs):
            relabelled_epoch(session, descent, objective, context, order="mixed")


METHOD = Amnesiac
