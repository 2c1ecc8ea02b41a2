"""Which versions of a model were served one after another, and for whom: folded from the ledger's events alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from expunge.ledger import Ledger
from expunge.service.workspace import FIRST


@dataclass
class Line:
    """The versions of a model that were served, without those that were rolled back.

    Args:
        versions: oldest first; the last is the one that is served.
        requests: by version, the ids of the requests it was made for.
        purged: versions that were recorded as destroyed.
    """

    versions: list[str] = field(default_factory=lambda: [FIRST])
    requests: dict[str, list[str]] = field(default_factory=dict)
    purged: set[str] = field(default_factory=set)

    @property
    def served(self) -> str:
        """The version that the ledger says is served."""
        return self.versions[-1]

    def before(self, version: str) -> str | None:
        """Return the version that was served before one, None before the first."""
        at = self.versions.index(version)
        return self.versions[at - 1] if at else None

    def after(self, version: str) -> list[str]:
        """Return the versions that were served after one, oldest first."""
        return self.versions[self.versions.index(version) + 1 :]

    def made_for(self, versions: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield version and request for each request of some versions."""
        return ((v, request) for v in versions for request in self.requests.get(v, ()))


def lineage(ledger: Ledger, name: str) -> Line:
    """Return the line of versions of a model, reading all events once.

    Args:
        ledger: the requests.
        name: of the model.
    """
    line = Line()
    for event in ledger.events(steps=("deployed", "rolled_back", "purged")):
        version = event.body.get("version")
        if event.model != name:
            continue
        if event.step == "deployed":
            if version != line.served:
                line.versions.append(str(version))
            line.requests.setdefault(line.served, []).append(event.request)
        elif event.step == "rolled_back" and version in line.versions:
            while line.served != version:
                line.requests.pop(line.versions.pop(), None)
        elif event.step == "purged":
            line.purged.update(event.body.get("destroyed", ()))
    return line
