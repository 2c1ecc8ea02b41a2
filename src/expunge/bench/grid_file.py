"""What a grid file may say: its tables and keys, and what each must look like."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from expunge.errors import listing
from expunge.project.sections import LARGEST, Count, Free, Section, Word, Words

MOST = 1000  # seeds
MODEL = re.compile(r"[a-z][a-z0-9_]*( [\w.=/-]+)*")  # of published models that the grid need not have


def _tables(value: Any) -> Any:
    """Return tables by name, where names alone are given."""
    return {name: {} for name in _names(value)} if not isinstance(value, dict) else value


def _texts(value: Any) -> Any:
    """Return texts by name, where texts alone are given: each is its own name."""
    return {text: text for text in _names(value)} if not isinstance(value, dict) else value


def _names(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise ValueError("a list of texts, or a table, was expected")
    twice = sorted({v for v in value if value.count(v) > 1})
    if twice:
        raise ValueError(f"{listing(map(repr, twice))} more than once")
    return value


def _some(value: dict[str, Any]) -> dict[str, Any]:
    if not value:
        raise ValueError("at least one was expected")
    return value


def _shown(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse names that cannot stand in a table."""
    odd = [name for name in value if not name.strip() or not name.isprintable()]
    if odd:
        raise ValueError(f"the name {odd[0]!r} cannot be shown in a table")
    return value


def _seeds(value: Any) -> list[int]:
    """Return the seeds: as listed, or as many as asked for from 0."""
    whole = [v for v in (value if isinstance(value, list) else [value]) if type(v) is int and 0 <= v <= LARGEST]
    if not isinstance(value, list):
        if not whole or not 1 <= value <= MOST:
            raise ValueError(f"a number of seeds from 1 to {MOST}, or a list of seeds, was expected")
        return list(range(value))
    if not value or len(whole) < len(value) or len(set(whole)) < len(whole):
        raise ValueError("a list of seeds holds whole numbers of 0 or more, each once")
    return whole


class DataEntry(Section):
    """One data set.

    Args:
        name: of a named data set; the entry's own name by default.
        limit: class-balanced part of so many training samples.
        project: project file, instead: its data, network and recipe.
    """

    name: Word | None = None
    limit: Annotated[int, Field(ge=10, le=LARGEST)] | None = None
    project: Word | None = None


class NetworkEntry(Section):
    """One network.

    Args:
        name: of the network; the entry's own name by default.
        recipe: fields of `expunge.train.Recipe` that differ from the named data set's.
    """

    name: Word | None = None
    recipe: Free = {}


class Published(Section):
    """Numbers from a paper, to stand beside ours.

    Args:
        source: title, authors, year, table.
        data: name of the entry in ``[data]``.
        network: name of the entry in ``[networks]``.
        scenario: name of the entry in ``[scenarios]``, or of the request where they are a list: ``class 3``.
        differences: what differs from our data and protocol, a sentence each; those of the whole file come first.
        values: by model and number: ``[mean]`` or ``[mean, spread]``, in the units of our tables (shares in [0, 1]).
            Models are ``original``, ``retrained``, methods as the grid names them, and such as the grid does not have.
    """

    source: Word
    data: Word
    network: Word
    scenario: Word
    differences: Words = []
    values: dict[str, dict[str, Annotated[list[float], Field(min_length=1, max_length=2)]]]


class RuntimeEntry(Section):
    """How work runs; changes no result beyond rounding.

    Args:
        batch_size: samples a forward pass outside training.
        precision: ``full`` or ``bf16``.
        memory: bytes that per-sample gradients may use at once.
    """

    batch_size: Count = 256
    precision: Literal["full", "bf16"] = "full"
    memory: Count | None = None


class Resources(Section):
    """What one task takes of a cluster.

    Args:
        cpus: processor cores.
        gpus: graphics processors; a half lets two tasks share one.
    """

    cpus: Annotated[float, Field(gt=0)] = 1.0
    gpus: Annotated[float, Field(ge=0)] = 0.0


class GridFile(Section):
    """A grid file.

    Args:
        title: of tables and reports.
        about: a sentence or two for the reader.
        seeds: a number n for seeds 0 to n−1, or the seeds.
        retrained: models retrained a seed: the first is the reference, each further one gives the floor.
        metrics: families to measure, or tables of their settings by name; all that do not train by default.
        attacks: membership attacks; all by default.
        data: names, or tables by name.
        networks: names, or tables by name; each data set's own by default.
        scenarios: requests as texts, or texts by name.
        methods: names, or tables of fields by name.
        differences: what differs from our data and protocol in all published numbers, a sentence each.
        published: numbers from papers.
        runtime: how work runs.
        resources: what one task takes of a cluster.
    """

    title: str = ""
    about: str = ""
    seeds: Annotated[list[int], BeforeValidator(_seeds)] = list(range(10))
    retrained: Annotated[int, Field(ge=2, le=20)] = 2
    metrics: Annotated[dict[str, Free], BeforeValidator(_tables)] = {}
    attacks: Words = []
    data: Annotated[dict[str, DataEntry], BeforeValidator(_tables), AfterValidator(_some), AfterValidator(_shown)]
    networks: Annotated[dict[str, NetworkEntry], BeforeValidator(_tables), AfterValidator(_shown)] = {}
    scenarios: Annotated[dict[str, Word], BeforeValidator(_texts), AfterValidator(_some), AfterValidator(_shown)]
    methods: Annotated[dict[str, Free], BeforeValidator(_tables), AfterValidator(_shown)]
    differences: Words = []
    published: list[Published] = []
    runtime: RuntimeEntry = RuntimeEntry()
    resources: Resources = Resources()
