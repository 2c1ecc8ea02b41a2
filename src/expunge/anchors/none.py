"""Nothing that keeps the rest."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.anchors._base import Lowered
from expunge.anchors._descent import Descent, Stepping
from expunge.method import Session, State


@dataclass(frozen=True, kw_only=True)
class NoAnchor(Stepping):
    """Lower the objective alone: θ ← θ − η·∇U.

    It reads the forget set and nothing else, and what keeps the rest of the model is that it stops early. Beside it
    stands what an anchor is worth.
    """

    def hold(self, session: Session, state: State, lowered: Lowered, steps: int | None) -> Descent:
        """Return steps on the objective alone."""
        return Descent(session, state, lowered, self, steps)


ANCHOR = NoAnchor
