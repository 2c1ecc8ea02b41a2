"""Fulfil deletion requests on the models that are served, and keep what was forgotten from being learned again."""

from __future__ import annotations

from collections.abc import Sequence

from expunge.data import Data
from expunge.ledger import Ledger
from expunge.project import Project
from expunge.service.outcome import Outcome, Outcomes
from expunge.service.process import ONE, places, process
from expunge.service.site import refuse_learning_again
from expunge.service.workspace import Workspace

__all__ = ["Outcome", "Outcomes", "Workspace", "guard", "places", "process", "refuse_deleted"]


def guard(place: Project, ids: Sequence[str]) -> None:
    """Refuse training data that holds samples deleted on request, before anything is trained on it.

    Does nothing where the project has no file or no ledger.

    Args:
        place: the project, whose section ``[requests]`` names the workspace.
        ids: of the training data.

    Raises:
        UserError: it holds some; says how many.
    """
    space = Workspace.of(place)
    if place.file is None or not space.received:
        return
    own = place.file.resolve()
    named: list[str | None] = [
        n for n, file in place.config.requests.models.items() if (place.folder / file).resolve() == own
    ]
    if not place.config.requests.models and space.models == [ONE]:
        named = [ONE]
    with Ledger.open(space.folder, readonly=True) as ledger:
        for name in named or [None]:
            refuse_learning_again(ledger, name, ids)
            if name is not None and not space.has_begun(name):  # no closed request will ever be asked of it
                refuse_learning_again(ledger, None, ids, over=True)


def refuse_deleted(place: Project, data: Data) -> None:
    """Refuse training data that holds samples deleted on request; see `guard`."""
    guard(place, data.ids)
