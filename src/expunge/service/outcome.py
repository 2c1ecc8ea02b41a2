"""What came of requests on one model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from expunge.ledger.steps import How

End = Literal["deployed", "absent", "scheduled", "failed", "refused"]


@dataclass(frozen=True)
class Outcome:
    """What came of some requests on one model.

    Args:
        model: its name.
        requests: their ids.
        step: ``deployed``; ``absent``: the model holds nothing of them; ``scheduled``: to be retrained with the next
            cadence; ``failed``: the served model is as it was; ``refused``: nothing could be started.
        how: ``edit`` or ``retrain``.
        version: that is served now.
        text: a sentence for the operator, which may name samples.
        advice: what to do before the model is worn out.
    """

    model: str
    requests: tuple[str, ...]
    step: End
    how: How | None = None
    version: str | None = None
    text: str = ""
    advice: tuple[str, ...] = ()

    @property
    def missed(self) -> bool:
        """Whether the requests are still to be fulfilled, and somebody has to do something."""
        return self.step in ("failed", "refused")


class Outcomes(list[Outcome]):
    """What came of a run."""

    @property
    def missed(self) -> bool:
        """Whether something is left that somebody has to do something about."""
        return any(outcome.missed for outcome in self)
