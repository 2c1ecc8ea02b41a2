"""Steps of a plain optimiser on the weights, of anchors that put no distribution around them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from expunge.anchors._base import Anchor, Hold, Lowered
from expunge.data import Batch
from expunge.errors import NotFinite
from expunge.method import Search, Session, State, option
from expunge.train import optimizer_of, stepped


@dataclass(frozen=True, kw_only=True)
class Stepping(Anchor):
    """What anchors have in common whose steps are those of an optimiser.

    Steps are taken in eval mode: BatchNorm's statistics stay, and dropout is off.
    """

    lr: float = option(1e-3, symbol="η", unit="1", text="learning rate", search=Search(1e-5, 1e-1, log=True))
    optimizer: Literal["adam", "adamw", "sgd"] = option("adam", unit="-", text="adam, adamw or sgd")
    momentum: float = option(0.9, symbol="μ", unit="1", text="of sgd")
    weight_decay: float = option(0.0, symbol="wd", unit="1", text="L2; decoupled with adamw")
    clip: float | None = option(None, unit="1", text="largest norm of a step's gradient; unset, no limit")
    steps: int = option(200, symbol="T", unit="steps", text="at most", search=Search(20, 1000, log=True, whole=True))

    def __post_init__(self) -> None:
        self.one_of("optimizer", "adam", "adamw", "sgd")
        self.positive("lr", "clip")
        self.positive("momentum", "weight_decay", zero=True)
        self.count("steps", 1)

    @property
    def planned(self) -> int:
        """As many as its field says."""
        return self.steps


class Descent(Hold):
    """Steps down the objective, and what a subclass adds to it.

    Args:
        session: the request; its model is edited.
        state: returned as it is.
        lowered: the objective on a batch.
        anchor: gives the optimiser.
        steps: as many as it takes at most; None: the anchor's.
    """

    def __init__(self, session: Session, state: State, lowered: Lowered, anchor: Stepping, steps: int | None) -> None:
        self.session, self.state, self.lowered, self.anchor = session, state, lowered, anchor
        self.model, self.runtime = session.model, session.runtime
        self.steps = anchor.steps if steps is None else steps
        self.optimizer = optimizer_of(self.model, anchor)
        self.held = None if session.masks is None else session.masks.hold(self.model)

    def with_rest(self, value: Tensor) -> Tensor:
        """Return the loss of a step from the objective's value; by default that alone."""
        return value

    def step(self, batch: Batch) -> float:
        """Take a step."""
        self.model.eval()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            with self.runtime.autocast():
                value = self.lowered(self.model, batch)
                loss = self.with_rest(value)
            found = float(loss.detach())
            if not math.isfinite(found):
                remedy = f"lower {self.anchor.name}.lr (now {self.anchor.lr:g})"
                raise NotFinite("a finite objective", str(found), remedy)
            if loss.requires_grad:
                loss.backward()
        stepped(self.model, self.optimizer, self.anchor.clip, self.held)
        return float(value.detach())

    @contextmanager
    def mean(self) -> Iterator[nn.Module]:
        """Give the model as it is."""
        yield self.model.eval()

    def finish(self) -> tuple[nn.Module, State]:
        """Return the model as it is."""
        self.optimizer.zero_grad(set_to_none=True)
        return self.model.eval(), self.state
