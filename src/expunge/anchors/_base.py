"""What an anchor is: it takes the steps of forgetting, and holds what is to be kept in its own way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from expunge.data import Batch
from expunge.method import Needs, Reference, Session, State
from expunge.part import Checks
from expunge.recipe import Recipe
from expunge.task import Task

Lowered = Callable[[nn.Module, Batch], Tensor]
"""The objective on a batch of the forget set: a scalar, without gradient where there is nothing more to lower."""


@dataclass(frozen=True)
class Known:
    """What `prepare` wrote down of held-out data.

    Args:
        tau: the mean loss, in its unit; None where there was no held-out data.
        accuracy: in [0, 1]; None where there are no classes, or no held-out data.
    """

    tau: float | None = None
    accuracy: float | None = None


class Anchor(Checks, ABC):
    """What keeps the rest of a model while an objective is lowered; a subclass is a frozen dataclass in its own file.

    It owns the steps: by retain data beside the forget set, by a distribution around the weights, or by nothing.
    """

    reference: ClassVar[Reference | None] = None
    retained: ClassVar[bool] = False  # whether a request needs retain data

    @property
    def planned(self) -> int | None:
        """The steps that it takes at most where a request names none; None where they depend on what was prepared."""
        return None

    @property
    def prepares(self) -> Needs:
        """What `prepare` reads; nothing by default."""
        return Needs()

    @property
    def unlearns(self) -> Needs:
        """What `unlearn` reads besides the forget set; nothing by default."""
        return Needs()

    def declines(self, task: Task, model: nn.Module) -> str | None:
        """Return why it cannot hold such a model, or None."""
        return None

    def prepare(self, session: Session) -> tuple[nn.Module, State]:
        """Do the one-off pass; default: the model unchanged and an empty state."""
        return session.model, State()

    def preparation(self) -> dict[str, object]:
        """Return the settings that decide what `prepare` leaves; empty where it prepares nothing."""
        return {}

    def passes(self, phase: str, recipe: Recipe | None, steps: int | None) -> dict[str, float]:
        """Return how often a phase reads each set but the forget set, and how often a step runs each forget batch.

        Args:
            phase: ``prepare`` or ``unlearn``.
            recipe: the original's training recipe, or None.
            steps: that a request takes at most; None: as many as the anchor sees fit.

        Returns:
            Passes by set; under ``forget`` the times that a step runs a batch of the forget set.
        """
        return {"forget": 1.0} if phase == "unlearn" else {}

    def known(self, state: State) -> Known:
        """Return what a state says of held-out data; nothing by default."""
        return Known()

    @abstractmethod
    def hold(self, session: Session, state: State, lowered: Lowered, steps: int | None) -> Hold:
        """Return what takes the steps of a request.

        Args:
            session: the request; its ``model`` is edited in place.
            state: from `prepare`, or from the request before.
            lowered: the objective on a batch.
            steps: as many as it takes at most; None leaves that to the anchor.
        """


class Hold(ABC):
    """The steps of one request.

    Attributes:
        steps: as many as it takes at most.
    """

    steps: int

    @abstractmethod
    def step(self, batch: Batch) -> float:
        """Take a step on a batch of the forget set, on the runtime's device; return its objective before the step.

        Raises:
            NotFinite: the objective is NaN or infinite; names the setting to lower.
        """

    @abstractmethod
    def mean(self) -> AbstractContextManager[nn.Module]:
        """Give the model as it would be returned now, in eval mode, inside the block."""

    def penalty(self) -> float | None:
        """Return how far the model is from where it began, in nats of the anchor's divergence; None without one."""
        return None

    def told(self) -> dict[str, float]:
        """Return what else is worth a line in the log at a check."""
        return {}

    @abstractmethod
    def finish(self) -> tuple[nn.Module, State]:
        """Return the model, in eval mode, and the state for the next request."""
