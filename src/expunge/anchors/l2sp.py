"""A spring to the weights as they were, the same for every weight."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.anchors._base import Anchor, Hold, Lowered
from expunge.anchors._flat import Flat
from expunge.data import Batch
from expunge.errors import NotFinite
from expunge.method import Reference, Search, Session, State, option
from expunge.references import LI_2018


def sprung(weights: Tensor, start: Tensor, g: Tensor, *, strength: float, lr: float) -> None:
    """Minimise ‖θ' − θ‖²/(2·η) + U + β/2·‖θ' − θ_o‖², U to first order at θ: θ' = (θ/η + β·θ_o − g)/(1/η + β).

    Args:
        weights: θ, edited.
        start: θ_o.
        g: ∂U/∂θ.
        strength: β.
        lr: η.
    """
    # θ' = θ + η/(1 + η·β)·(β·(θ_o − θ) − g): the same, without the difference of two large numbers
    weights.add_((start - weights).mul_(strength).sub_(g), alpha=lr / (1 + lr * strength))


@dataclass(frozen=True, kw_only=True)
class L2SP(Anchor):
    """Lower U + β/2·‖θ − θ_o‖², θ_o the weights before the request: every weight is held alike.

    Steps are of gradient descent on U, with the spring in closed form, so that it sets no limit to the rate. Nothing
    is prepared, and nothing read but the forget set: it is what shows whether knowing the weights' importance is worth
    its preparation. The penalty is β/2·‖θ − θ_o‖². In eval mode: BatchNorm's statistics stay, and dropout is off.
    """

    reference: ClassVar[Reference] = LI_2018

    strength: float = option(0.1, symbol="β", unit="1", text="of the spring", search=Search(1e-3, 10, log=True))
    lr: float = option(0.01, symbol="η", unit="1", text="learning rate", search=Search(1e-4, 1, log=True))
    steps: int = option(200, symbol="T", unit="steps", text="at most", search=Search(20, 1000, log=True, whole=True))

    def __post_init__(self) -> None:
        self.positive("strength", "lr")
        self.count("steps", 1)

    @property
    def planned(self) -> int:
        """As many as its field says."""
        return self.steps

    def hold(self, session: Session, state: State, lowered: Lowered, steps: int | None) -> L2SPHold:
        """Return steps that a spring holds back."""
        return L2SPHold(session, state, lowered, self, self.steps if steps is None else steps)


class L2SPHold(Hold):
    """The steps of one request. It holds 12 bytes a weight in float32: the weights, their gradients, and θ_o.

    Args:
        session: the request; its model is edited in place.
        state: returned as it is.
        lowered: the objective on a batch.
        anchor: gives β and η.
        steps: as many as it takes at most.
    """

    def __init__(self, session: Session, state: State, lowered: Lowered, anchor: L2SP, steps: int) -> None:
        self.runtime, self.state, self.lowered, self.anchor, self.steps = session.runtime, state, lowered, anchor, steps
        self.flat = Flat(session.model.eval(), session.masks)
        self.start = self.flat.weights.clone()

    def step(self, batch: Batch) -> float:
        """Take a step.

        Args:
            batch: on the runtime's device.

        Returns:
            The objective before it.

        Raises:
            NotFinite: it is NaN or infinite.
        """
        flat = self.flat
        with self.runtime.autocast():
            value = float(flat.gradient(lambda: self.lowered(flat.model, batch)))
        if not math.isfinite(value):
            remedy = f"lower {self.anchor.name}.lr (now {self.anchor.lr:g}), or raise {self.anchor.name}.strength"
            raise NotFinite("a finite objective", str(value), remedy)
        for weights, start, grads, free in flat.pieces(flat.weights, self.start, flat.grads, flat.free):
            sprung(weights, start, grads, strength=self.anchor.strength, lr=self.anchor.lr)
            if free is not None:
                weights.copy_(torch.where(free, weights, start))
            grads.zero_()
        return value

    @contextmanager
    def mean(self) -> Iterator[nn.Module]:
        """Give the model as it is."""
        yield self.flat.model.eval()

    def penalty(self) -> float:
        """Return β/2·‖θ − θ_o‖²."""
        flat, total = self.flat, torch.zeros((), dtype=torch.float64, device=self.flat.device)
        for weights, start in flat.pieces(flat.weights, self.start):
            total += (weights - start).square_().sum()
        return 0.5 * self.anchor.strength * float(total)

    def finish(self) -> tuple[nn.Module, State]:
        """Return the model as it is."""
        return self.flat.released().eval(), self.state


ANCHOR = L2SP
