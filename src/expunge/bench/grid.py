"""A grid file: data sets × networks × requests × methods × seeds, and the cells it asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from expunge import attacks, methods, metrics, zoo
from expunge.bench.cell import Cell
from expunge.errors import UserError, listing, suggest
from expunge.files import canonical, digest, read_document
from expunge.project import Project
from expunge.project.config import check_recipe
from expunge.project.sections import LARGEST, Count, Free, Section, Word, Words, place, read
from expunge.recipe import Recipe
from expunge.trial import Request

CONTROLS = ("no_op", "head_mask")  # they stand in every table by themselves
TUNED = "tuned"  # key of a method's table: a file that expunge tune wrote
TUNED_KIND, TUNED_SCHEMA = "expunge.tuned", 1
ONE_BY_ONE = "remove one of them"
Seeds = Annotated[list[Annotated[int, Field(ge=0, le=LARGEST)]], Field(min_length=1)]


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
        scenario: name of the entry in ``[scenarios]``.
        differences: what differs from our data and protocol, a sentence each.
        values: by model and number: ``[mean]`` or ``[mean, spread]``, in the units of our tables (shares in [0, 1]).
    """

    source: Word
    data: Word
    network: Word
    scenario: Word
    differences: Words = []
    values: dict[str, dict[str, Annotated[list[float], Field(min_length=1, max_length=2)]]] = {}


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
        metrics: families to measure; all that do not train by default.
        attacks: membership attacks; all by default.
        data: names, or tables by name.
        networks: names, or tables by name; each data set's own by default.
        scenarios: requests as texts, or texts by name.
        methods: names, or tables of fields by name.
        published: numbers from papers.
        runtime: how work runs.
        resources: what one task takes of a cluster.
    """

    title: str = ""
    about: str = ""
    seeds: Annotated[int, Field(ge=1, le=1000)] | Seeds = 10
    retrained: Annotated[int, Field(ge=2, le=20)] = 2
    metrics: Words = []
    attacks: Words = []
    data: Words | dict[str, DataEntry]
    networks: Words | dict[str, NetworkEntry] = []
    scenarios: Words | dict[str, Word]
    methods: Words | dict[str, Free]
    published: list[Published] = []
    runtime: RuntimeEntry = RuntimeEntry()
    resources: Resources = Resources()


@dataclass(frozen=True)
class Place:
    """Where in the grid a table stands: one data set, network and request, by their names in the file."""

    data: str
    network: str
    scenario: str

    def __str__(self) -> str:
        return f"{self.data}, {self.network}, {self.scenario}"


@dataclass(frozen=True)
class Grid:
    """What a grid file asks for.

    Args:
        name: of the file, without its ending.
        file: as read.
        places: by data set, network and request: the cell all methods share, of seed 0.
        methods: settings by the name that a table gives them.
        seeds: of training.
        projects: project files by the digest of what they say.
        tuned: what tuning found, by the name of the method.
    """

    name: str
    file: GridFile
    places: Mapping[Place, Cell]
    methods: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    projects: Mapping[str, Path] = field(default_factory=dict)
    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The grid's title, or its name."""
        return self.file.title or self.name

    def shared(self, at: Place, seed: int) -> Cell:
        """Return the cell of a place and seed that all methods share: original, retrained models, controls."""
        return replace(self.places[at], seed=seed)

    def cell(self, at: Place, method: str, seed: int) -> Cell:
        """Return one method's cell."""
        return replace(self.places[at], seed=seed, method=self.methods[method])

    def cells(self) -> Iterator[Cell]:
        """Yield every cell, seed by seed so that whole comparisons are there early."""
        for at in self.places:
            for seed in self.seeds:
                yield self.shared(at, seed)
                for method in self.methods:
                    yield self.cell(at, method, seed)

    def __len__(self) -> int:
        return len(self.places) * len(self.seeds) * (1 + len(self.methods))


def load(path: Path) -> Grid:
    """Read a grid file and check every name in it; no data is opened.

    Args:
        path: of the file.

    Returns:
        The grid.

    Raises:
        UserError: no such file, an unknown key, name or value; names the line.
        CorruptArtefact: not TOML.
    """
    missing = "write one, or take one of benchmarks/grids"
    file, text = read(path, GridFile, what="a grid file", missing=missing)
    asked = _Asked(path, text, file)
    networks, requests = asked.networks(), asked.requests()
    settings, tuned = asked.methods()
    measures = asked.measures()
    places, projects = dict[Place, Cell](), dict[str, Path]()
    for name, entry in _named(file.data, DataEntry).items():
        data, project = asked.data(name, entry)
        if project is not None:
            projects[data["digest"]] = project
        for network, found in (networks or {asked.network(data, project): NetworkEntry()}).items():
            architecture, recipe = asked.recipe(data, project, network, found)
            for scenario, request in requests.items():
                cell = Cell(
                    data=data,
                    network=architecture,
                    recipe=recipe.to_json(),
                    request=request.to_json(),
                    seed=0,
                    measures=measures,
                )
                places[Place(name, network, scenario)] = cell
    seeds = tuple(range(file.seeds)) if isinstance(file.seeds, int) else tuple(dict.fromkeys(file.seeds))
    grid = Grid(path.stem, file, places, settings, seeds, projects, tuned)
    asked.check_published(grid)
    return grid


def _named(given: list[str] | dict[str, Any], kind: Any) -> dict[str, Any]:
    return {name: kind() for name in given} if isinstance(given, list) else dict(given)


@dataclass(frozen=True)
class _Asked:
    """A grid file while its names are looked up."""

    path: Path
    text: str
    file: GridFile

    def refuse(self, tables: list[str], key: str, expected: str, got: str, remedy: str) -> UserError:
        """Return the error of a value, with its line."""
        return UserError(f"{expected} in {place(self.path, self.text, tables, key)}", got, remedy)

    def told(self, tables: list[str], key: str, error: UserError) -> UserError:
        """Return an error from elsewhere with the line that caused it."""
        return self.refuse(tables, key, error.expected, error.got, error.remedy)

    def data(self, name: str, entry: DataEntry) -> tuple[dict[str, Any], Path | None]:
        """Return what names a data set, and its project file if it has one."""
        if entry.project is not None:
            if entry.name is not None or entry.limit is not None:
                both = "project, and name or limit"
                raise self.refuse(["data"], name, "a project or a named data set", both, ONE_BY_ONE)
            file = self.path.parent / entry.project
            config = Project.open(file).config
            body = {part: getattr(config, part).model_dump(mode="json") for part in ("model", "data", "task")}
            return {"project": file.stem, "digest": digest(body)}, file
        known, named = zoo.datasets(), entry.name or name
        if named not in known:
            raise self.refuse(["data"], name, "a known data set", repr(named), suggest(named, known))
        return {"name": named} | ({} if entry.limit is None else {"limit": entry.limit}), None

    def networks(self) -> dict[str, NetworkEntry]:
        """Return the networks by name."""
        found = _named(self.file.networks, NetworkEntry)
        for name, entry in found.items():
            known, named = zoo.networks.names(), entry.name or name
            if named not in known:
                raise self.refuse(["networks"], name, "a known network", repr(named), suggest(named, known))
            check_recipe(entry.recipe, self.path, self.text, ["networks", name, "recipe"])
        return found

    def network(self, data: Mapping[str, Any], project: Path | None) -> str:
        """Return the name of a data set's own network."""
        return zoo.network(data["name"]) if project is None else Project.open(project).config.model.network

    def recipe(
        self, data: Mapping[str, Any], project: Path | None, name: str, entry: NetworkEntry
    ) -> tuple[str, Recipe]:
        """Return the network's own name, and how it is trained."""
        network = entry.name or name
        if project is None:
            base = zoo.recipe(data["name"], network)
        else:
            opened = Project.open(project)
            own = opened.recipe
            if self.file.networks:
                got = f"networks beside the project {project.name}"
                raise self.refuse([], "networks", "a project with its own network", got, ONE_BY_ONE)
            if own is None:
                raise UserError(f"a [recipe] in {project.name}", "none", "a benchmark trains every model itself")
            base = own
        changes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.recipe.items()}
        try:
            return network, replace(base, **changes)
        except UserError as error:
            raise self.told(["networks", name], "recipe", error) from error

    def requests(self) -> dict[str, Request]:
        """Return the requests by name."""
        given = self.file.scenarios
        texts = given if isinstance(given, dict) else {text: text for text in given}
        if not texts:
            raise self.refuse(
                [], "scenarios", "at least one request", "none", "write for example scenarios = ['class=3']"
            )
        found = dict[str, Request]()
        for name, text in texts.items():
            try:
                request = Request.parse(text)
            except UserError as error:
                tables, key = (["scenarios"], name) if isinstance(given, dict) else ([], "scenarios")
                raise self.told(tables, key, error) from error
            label = name if isinstance(given, dict) else str(request)
            if label in found:
                raise self.refuse([], "scenarios", "requests of different names", f"{label!r} twice", ONE_BY_ONE)
            found[label] = request
        return found

    def methods(self) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """Return each method's full settings by its name in tables, and what tuning found of them."""
        settings, tuned = dict[str, dict[str, Any]](), dict[str, Any]()
        given: dict[str, Mapping[str, Any]] = _named(self.file.methods, dict)
        for name, table in given.items():
            values = {"name": name, **table}
            known = methods.names()
            if values["name"] not in known:
                wrong = str(values["name"])
                raise self.refuse(["methods"], name, "a known method", repr(wrong), suggest(wrong, known))
            if values["name"] == "retrain" or name in ("original", "retrained", *CONTROLS):
                remedy = "leave it out: original, retrained models and controls stand in every table"
                raise self.refuse(["methods"], name, "a method to compare with retraining", repr(name), remedy)
            if TUNED in values:
                values, tuned[name] = self._tuned(name, values)
            try:
                settings[name] = methods.build(values).settings()
            except UserError as error:
                raise self.told(["methods"], name, error) from error
        twice = [n for n, s in settings.items() if list(settings.values()).count(s) > 1]
        if twice:
            raise self.refuse(["methods"], twice[0], "methods that differ", f"{listing(twice)} alike", ONE_BY_ONE)
        return settings, tuned

    def _tuned(self, name: str, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a method's values with those that tuning chose, and what the file says of the tuning."""
        file = self.path.parent / str(values.pop(TUNED))
        found = read_document(file, TUNED_KIND, TUNED_SCHEMA)
        chosen = found["method"]
        if chosen["name"] != values["name"]:
            got, remedy = repr(chosen["name"]), "name the file of this method"
            raise self.refuse(["methods", name], TUNED, f"a file in which {values['name']} was tuned", got, remedy)
        return {**chosen, **values}, {k: v for k, v in found.items() if k not in ("kind", "schema")}

    def measures(self) -> dict[str, Any]:
        """Return what is measured, by name."""
        chosen: dict[str, Any] = {"retrained": self.file.retrained}
        for key, registry, given in (
            ("metrics", metrics, self.file.metrics),
            ("attacks", attacks, self.file.attacks),
        ):
            known = registry.names()
            for name in given:
                if name not in known:
                    raise self.refuse([], key, f"a known name in {key}", repr(name), suggest(name, known))
            chosen[key] = sorted(given) or ([n for n in known if not _trains(n)] if key == "metrics" else known)
        if "membership" not in chosen["metrics"]:
            if self.file.attacks:
                raise self.refuse(
                    [], "attacks", "'membership' among the metrics", "none", "add it, or leave attacks out"
                )
            chosen["attacks"] = []
        return chosen

    def check_published(self, grid: Grid) -> None:
        """Refuse numbers that no table of the grid has a place for."""
        for entry in self.file.published:
            at = Place(entry.data, entry.network, entry.scenario)
            if at not in grid.places:
                there = listing([str(p) for p in grid.places], 8)
                raise self.refuse([], "published", "numbers of a place in the grid", str(at), f"choose among {there}")
            models = ["original", "retrained", *grid.methods]
            for model in entry.values:
                if model not in models:
                    got = f"'{model}'"
                    raise self.refuse(["published"], "values", "a model of the grid", got, suggest(model, models))


def _trains(name: str) -> bool:
    return metrics.load(name).trains


def fingerprint(grid: Grid) -> str:
    """Return what identifies a grid's cells."""
    return digest([canonical([c.data, c.request]) for c in grid.places.values()], sorted(grid.methods), grid.seeds)
