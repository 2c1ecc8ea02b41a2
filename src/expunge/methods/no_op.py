"""The control that changes nothing: a measure that cannot tell it from a retrained model proves nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from expunge.method import Method, Nature, Needs, Reference, Session, State


@dataclass(frozen=True, kw_only=True)
class NoOp(Method):
    """Return the original unchanged."""

    unlearns = Needs()
    control: ClassVar[bool] = True
    nature: ClassVar[Nature] = Nature.NOTHING
    reference: ClassVar[Reference] = Reference(
        "Controls of the expunge audit", "The expunge authors", 2026, "https://pypi.org/project/expunge/"
    )

    def unlearn(self, session: Session, state: State) -> tuple[nn.Module, State]:
        """Return the private copy as it is."""
        session.record("note", "A control: nothing was changed.")
        return session.model, state


METHOD = NoOp
