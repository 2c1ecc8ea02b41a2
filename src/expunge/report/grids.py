"""What a report over a grid is made of: one leaf a place and step, its numbers as sections of an audit document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from expunge.report import document as doc
from expunge.report import format as fmt
from expunge.report.document import Section
from expunge.report.recorded import Pairs

DONE = "done"
SHOWN = ("floor", "control", "method")  # roles of the rows that are compared with retrained
ORDER = (DONE, "declined", "failed", "blocked", "corrupt", "running", "missing")
WORDS = {
    DONE: "done",
    "declined": "declined",
    "failed": "failed",
    "blocked": "waiting for what failed",
    "corrupt": "corrupt",
    "running": "running",
    "missing": "not run yet",
}


@dataclass(frozen=True)
class Cell:
    """One method at one place and seed, or what all methods share there.

    Args:
        status: ``done``, ``declined``, ``failed``, ``blocked``, ``corrupt``, ``running`` or ``missing``.
        reason: why it is not done, in words.
        name: of its folder in the store: stage and key.
        seconds: what it took, by part.
        log: what its run recorded once.
        series: what its run recorded step by step: step and value by name, None for what is not finite.
        concepts: what its run recorded of concepts, from `expunge.report.concepts.gathered`.
        map: the map of representations before and after that its run recorded; see `expunge.report.maps.recorded`.
    """

    status: str
    reason: str = ""
    name: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    log: Mapping[str, Any] = field(default_factory=dict)
    series: Mapping[str, Pairs] = field(default_factory=dict)
    concepts: Mapping[str, Any] | None = None
    map: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Published:
    """Numbers of a paper beside one leaf.

    Args:
        source: title, authors, year, table.
        differences: what differs from our data and protocol, a sentence each.
        values: by model and number: the mean and, where it is known, the spread, in the unit of our number.
    """

    source: str
    differences: Sequence[str] = ()
    values: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Leaf:
    """All that is known of one place of a grid after one step of its request.

    Args:
        place: data set, network and request, as one name.
        slug: the same for a file name, unique in the report.
        section: the numbers pooled over seeds; None where nothing is done.
        text: a sentence on who is forgotten.
        step: requests fulfilled.
        steps: requests that follow each other.
        runs: the numbers by seed, as sections.
        cells: by seed and method; ``""`` is what all methods share.
        versions: that the numbers were made with.
        published: numbers of papers.
        short: the place without what all places of the grid have in common.
        warnings: what a reader must know of how its methods were tuned, and of what they cost.
    """

    place: str
    slug: str
    section: Section | None
    text: str = ""
    step: int = 1
    steps: int = 1
    runs: Mapping[int, Section] = field(default_factory=dict)
    cells: Mapping[tuple[int, str], Cell] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    published: Sequence[Published] = ()
    short: str = ""
    warnings: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The place and, where requests follow each other, the step."""
        return self.place + (f", after request {self.step} of {self.steps}" if self.steps > 1 else "")

    @property
    def page(self) -> str:
        """Address of its own page, relative to the index."""
        return f"{self.slug}.html"

    @property
    def cell_page(self) -> str:
        """Address of the page of its cells, relative to the index."""
        return f"cells/{self.slug}.html"

    @property
    def numbers(self) -> dict[str, str]:
        """The id of each number in the page of cells, by its name."""
        return {} if self.section is None else {m["name"]: f"n{i}" for i, m in enumerate(doc.metrics(self.section), 1)}

    def seeds(self, method: str) -> tuple[int, int]:
        """Return how many seeds of a method are done, and how many were asked for."""
        found = [cell for (_, name), cell in self.cells.items() if name == method]
        return sum(cell.status == DONE for cell in found), len(found)

    def gaps(self, method: str) -> list[tuple[str, str, list[int]]]:
        """Return status, reason and seeds of a method's cells that are not done."""
        found: dict[tuple[str, str], list[int]] = {}
        for (seed, name), cell in self.cells.items():
            if name == method and cell.status != DONE:
                found.setdefault((cell.status, cell.reason), []).append(seed)
        return [(status, reason, seeds) for (status, reason), seeds in found.items()]


@dataclass(frozen=True)
class Book:
    """A grid and all that is known of it.

    Args:
        title: of the grid.
        about: a sentence or two on it.
        axes: what was crossed, by name: data sets, networks, requests, methods, seeds.
        leaves: in the grid's order, the steps of a place one after another.
        methods: names in the grid's order.
        tuned: what tuning found, by method.
        command: that made the report.
        created: when the last number was made, as ISO 8601; empty where that is not known.
    """

    title: str
    about: str
    axes: Mapping[str, Sequence[str]]
    leaves: Sequence[Leaf]
    methods: Sequence[str]
    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    command: str = ""
    created: str = ""

    @property
    def sections(self) -> list[Section]:
        """The pooled sections there are."""
        return [leaf.section for leaf in self.leaves if leaf.section is not None]

    @property
    def models(self) -> list[str]:
        """Every model of any leaf, and every method whether it ran or not, in the order of a table."""
        sections, methods = self.sections, self.methods
        found = [str(m["name"]) for role in doc.ROLES for section in sections for m in doc.of_role(section, role)]
        return list(dict.fromkeys([*(name for name in found if name not in methods), *methods]))

    @property
    def anchors(self) -> dict[str, str]:
        """The id of each model in the pages of cells."""
        return {name: f"m{i}" for i, name in enumerate(self.models, 1)}

    @property
    def places(self) -> dict[str, list[Leaf]]:
        """The leaves by place, a leaf a step."""
        found: dict[str, list[Leaf]] = {}
        for leaf in self.leaves:
            found.setdefault(leaf.place, []).append(leaf)
        return found

    @property
    def versions(self) -> dict[str, str]:
        """The versions that any number was made with."""
        found: dict[str, list[str]] = {}
        for leaf in self.leaves:
            for name, version in leaf.versions.items():
                found.setdefault(name, []).extend(version.split(", "))
        return {name: ", ".join(sorted(set(each))) for name, each in sorted(found.items())}

    def cells(self) -> dict[tuple[str, int, str], Cell]:
        """Return the cells by short place, seed and method; one of several steps is as far as its first open one."""
        found: dict[tuple[str, int, str], Cell] = {}
        for leaf in self.leaves:
            for (seed, method), cell in leaf.cells.items():
                key = (leaf.short or leaf.place, seed, method)
                if key not in found or found[key].status == DONE:
                    found[key] = cell
        return found

    def statuses(self) -> dict[str, int]:
        """Return how many cells there are of each status."""
        counts = Counter(cell.status for cell in self.cells().values())
        return {status: counts[status] for status in ORDER if counts[status]}


@dataclass(frozen=True)
class Line:
    """One row of a leaf: a model that is compared with retrained.

    Args:
        model: its name.
        role: floor, control or method.
        entry: the model in the leaf's section; None where no seed has it.
        absent: why there is no number of it at all, or an empty string.
        partly: what is missing of some seeds, or an empty string.
    """

    model: str
    role: str
    entry: Mapping[str, Any] | None
    absent: str = ""
    partly: str = ""


def lines(leaf: Leaf, methods: Sequence[str]) -> list[Line]:
    """Return the rows of a leaf: floor, controls, then every method of the grid in its order, whether it ran or not.

    Args:
        leaf: the leaf.
        methods: names in the grid's order.

    Returns:
        One row a model.
    """
    section = leaf.section or {"models": []}
    entries = {m["name"]: m for m in doc.models(section) if m["role"] in SHOWN}
    found = [_line(leaf, name, entry) for name, entry in entries.items() if name not in methods]
    return found + [_line(leaf, name, entries.get(name)) for name in methods]


def _line(leaf: Leaf, name: str, entry: Mapping[str, Any] | None) -> Line:
    done, asked = leaf.seeds(name)
    why = "; ".join(told(status, reason, seeds, asked) for status, reason, seeds in leaf.gaps(name))
    role = "method" if entry is None else str(entry["role"])
    if entry is None:
        return Line(name, role, None, absent=why or WORDS["missing"])
    if entry.get("declined") or entry["flaw"]:
        absent = f"declined: {entry['declined']}" if entry.get("declined") else f"nothing is said: {entry['flaw']}"
        return Line(name, role, entry, absent=absent)
    return Line(name, role, entry, partly=f"{done} of {asked} seeds ({why})" if done < asked else "")


def told(status: str, reason: str, seeds: Sequence[int], asked: int) -> str:
    """Return what became of some cells in words.

    >>> told("failed", "out of memory", [1, 2], 3)
    'seeds 1 and 2 failed: out of memory'
    >>> told("missing", "not run yet", [0, 1], 2)
    'not run yet'
    """
    words = WORDS.get(status, status)
    text = words if not reason or reason == words else f"{words}: {reason}"
    if len(seeds) == asked:
        return text
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {fmt.listed([str(s) for s in seeds])} {text}"
