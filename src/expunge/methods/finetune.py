"""Training on with the retain set alone, in the hope that the rest fades."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from expunge.method import Reference, Search, Session, State, option
from expunge.methods._retain import TrainingOn
from expunge.references import GOLATKAR_2020


@dataclass(frozen=True, kw_only=True)
class Finetune(TrainingOn):
    """Minimise the loss on the retain set for some epochs from the original weights, by SGD at a constant rate.

    BatchNorm statistics move with training. A low rate hardly forgets; forgetting varies widely over seeds.
    """

    reference: ClassVar[Reference] = GOLATKAR_2020
    example: ClassVar[dict[str, object]] = {"epochs": 1}

    epochs: int = option(
        5,
        symbol="E",
        unit="passes over the retain set",
        text="how long to train on",
        search=Search(1, 10, whole=True),
    )
    lr: float = option(0.02, symbol="η", unit="1", text="constant learning rate", search=Search(1e-4, 1e-1, log=True))

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """Fit on; augmentation, batch size and penalties come from the original's recipe where it is given."""
        return self.trained(session, self.further(session.recipe)), state


METHOD = Finetune
