"""A new version of a model, before it is kept: what an edit and a retraining both return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from expunge.data import Data
from expunge.evaluate import Model
from expunge.method import State
from expunge.project import Project
from expunge.scenario import Scenario


@dataclass(frozen=True)
class Made:
    """A new version of a model.

    Args:
        place: model and data.
        before: the network that is served.
        after: the new one, or the result of an edit.
        state: for the next request.
        name: the method's, or ``retrained``.
        record: of the version's folder; nobody is named in it.
        body: of the event; nothing personal.
        train: training data with the samples to forget, without those forgotten before.
        scenario: who is forgotten, None where none of them is at hand.
        idle: why nothing was changed, or empty.
        classes: that are forgotten as a whole.
    """

    place: Project
    before: nn.Module
    after: Model
    state: State
    name: str
    record: dict[str, Any]
    body: dict[str, Any]
    train: Data
    scenario: Scenario | None
    idle: str = ""
    classes: frozenset[int] = frozenset()

    @property
    def model(self) -> nn.Module:
        """The new network."""
        return self.after if isinstance(self.after, nn.Module) else self.after.model
