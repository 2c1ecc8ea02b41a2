"""A grid file: data sets × networks × requests × methods × seeds, and the cells it asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from expunge import attacks, methods, metrics, zoo
from expunge.bench import fits, problems
from expunge.bench.cell import Cell
from expunge.bench.grid_file import MODEL, DataEntry, GridFile, NetworkEntry, Published
from expunge.errors import UserError, listing, suggest
from expunge.files import read_document, there
from expunge.metric import Number
from expunge.metrics.membership import Membership
from expunge.project import Project
from expunge.project.config import check_recipe
from expunge.project.measures import changed, measure
from expunge.project.sections import place, read
from expunge.recipe import Recipe, fields_of
from expunge.trial import Request

CONTROLS = ("no_op", "head_mask")  # they stand in every table by themselves
ROWS = ("original", "retrained", *CONTROLS, "floor")  # names that no method may take
AGAIN = "retrained (other seed)"  # nor names that begin like the rows of further retrained models
TUNED = "tuned"  # key of a method's table: a file that expunge tune wrote
TUNED_KIND, TUNED_SCHEMA = "expunge.tuned", 1
ONE_BY_ONE = "remove one of them"


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
        file: as read; what differs in all its published numbers stands with each of them.
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
                shared = self.shared(at, seed)
                yield shared
                for method in self.methods.values():
                    yield shared.with_method(method)

    def __len__(self) -> int:
        return len(self.places) * len(self.seeds) * (1 + len(self.methods))


def load(path: Path) -> Grid:
    """Read a grid file, check every name in it, and refuse what no cell could carry out; no data is opened.

    Of a project with files of its own only the project file is read: whether its requests and network fit its samples,
    its first cell tells.

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
    for name, entry in file.data.items():
        data, project = asked.data(name, entry)
        if entry.project is not None:
            projects[data["digest"]] = path.parent / entry.project
        for network, found in (networks or {asked.network(data, project): NetworkEntry()}).items():
            architecture, recipe = asked.recipe(name, project, network, found)
            asked.check_fits(name, project, network, architecture, recipe, requests)
            for scenario, request in requests.items():
                cell = Cell(
                    data=data,
                    network=architecture,
                    recipe=recipe.to_json(),
                    request=request.to_json(),
                    seed=0,
                    precision=file.runtime.precision,
                    measures=measures,
                )
                places[Place(name, network, scenario)] = cell
    whole = file.model_copy(update={"published": asked.published()})
    grid = Grid(path.stem, whole, places, settings, tuple(file.seeds), projects, tuned)
    asked.check_published(grid, measures)
    return grid


@dataclass(frozen=True)
class _Asked:
    """A grid file while its names are looked up."""

    path: Path
    text: str
    file: GridFile

    def refuse(
        self, tables: list[str], key: str, expected: str, got: str, remedy: str, nth: int | None = None
    ) -> UserError:
        """Return the error of a value, with its line."""
        return UserError(f"{expected} in {place(self.path, self.text, tables, key, nth)}", got, remedy)

    def told(self, tables: list[str], key: str, error: UserError) -> UserError:
        """Return an error from elsewhere with the line that caused it."""
        return self.refuse(tables, key, error.expected, error.got, error.remedy)

    def data(self, name: str, entry: DataEntry) -> tuple[dict[str, Any], Project | None]:
        """Return what names a data set, and its project if it is one."""
        if entry.project is not None:
            if entry.name is not None or entry.limit is not None:
                both = "project, and name or limit"
                raise self.refuse(["data"], name, "a project or a named data set", both, ONE_BY_ONE)
            file = self.path.parent / entry.project
            if there(file) != "a file":
                got, remedy = there(file) or "nothing there", "name it from the folder that the grid file is in"
                raise self.refuse(["data", name], "project", f"a project file {file}", got, remedy)
            project = Project.open(file)
            config, known = project.config, zoo.datasets()
            if config.data.name is not None and config.data.name not in known:
                want, got = f"a known data set in {file.name}", repr(config.data.name)
                raise self.refuse(["data", name], "project", want, got, suggest(config.data.name, known))
            return problems.named(file, project), project
        known, named = zoo.datasets(), entry.name or name
        if named not in known:
            raise self.refuse(["data"], name, "a known data set", repr(named), suggest(named, known))
        return {"name": named} | ({} if entry.limit is None else {"limit": entry.limit}), None

    def networks(self) -> dict[str, NetworkEntry]:
        """Return the networks by name."""
        for name, entry in self.file.networks.items():
            known, named = zoo.networks.names(), entry.name or name
            if named not in known:
                raise self.refuse(["networks"], name, "a known network", repr(named), suggest(named, known))
            check_recipe(entry.recipe, self.path, self.text, ["networks", name, "recipe"])
        return self.file.networks

    def network(self, data: Mapping[str, Any], project: Project | None) -> str:
        """Return the name of a data set's own network."""
        return zoo.network(data["name"]) if project is None else project.config.model.network

    def recipe(self, data: str, project: Project | None, name: str, entry: NetworkEntry) -> tuple[str, Recipe]:
        """Return the network's own name, and how it is trained."""
        network = entry.name or name
        if project is not None:
            if self.file.networks:
                got = f"networks beside the project {_file(project)}"
                raise self.refuse([], "networks", "a project with its own network", got, ONE_BY_ONE)
            try:
                return network, _recipe(project)
            except UserError as error:
                raise self._unfit(data, project, name, error) from error
        base = zoo.recipe(self.file.data[data].name or data, network)
        try:
            return network, replace(base, **fields_of(entry.recipe))
        except UserError as error:
            key = _named(error, entry.recipe, "Recipe")
            raise self.told(["networks", name, "recipe"], key, error) from error

    def check_fits(
        self,
        name: str,
        project: Project | None,
        network: str,
        architecture: str,
        recipe: Recipe,
        requests: Mapping[str, Request],
    ) -> None:
        """Refuse recipes, limits, networks and requests with which every cell would fail."""
        section = self.file.data[name] if project is None else project.config.data
        source = (section.name or name) if project is None else section.name
        try:
            fits.check_trains(recipe)
            if source is None:
                return
            known = zoo.known(source, architecture if project is None else _architecture(project), section.limit)
            known = replace(known, name=name)
            fits.check_inputs(recipe, known)
        except UserError as error:
            raise self._unfit(name, project, network, error) from error
        if project is not None and _plants(project):
            return
        for key, request in zip(self.file.scenarios, requests.values(), strict=True):
            try:
                fits.check_request(request, known)
            except UserError as error:
                raise self.told(["scenarios"], key, error) from error

    def _unfit(self, name: str, project: Project | None, network: str, error: UserError) -> UserError:
        """Return the error of a recipe, limit or network, with the line that caused it."""
        if project is not None:
            got = f"{error.got} in {_file(project)}"
            return self.refuse(["data", name], "project", error.expected, got, error.remedy)
        if "Recipe." in error.expected:
            table = self.file.networks[network].recipe if network in self.file.networks else {}
            return self.told(["networks", network, "recipe"], _named(error, table, "Recipe"), error)
        return self.told(*((["data", name], "limit") if "limit" in error.expected else (["networks"], network)), error)

    def requests(self) -> dict[str, Request]:
        """Return the requests by name; one that is its own name is shown in words."""
        found = dict[str, Request]()
        for name, text in self.file.scenarios.items():
            try:
                request = Request.parse(text)
            except UserError as error:
                raise self.told(["scenarios"], name, error) from error
            label = name if name != text else str(request)
            if label in found:
                raise self.refuse([], "scenarios", "requests of different names", f"{label!r} twice", ONE_BY_ONE)
            found[label] = request
        return found

    def methods(self) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
        """Return each method's full settings by its name in tables, and what tuning found of them."""
        settings, tuned = dict[str, dict[str, Any]](), dict[str, Any]()
        for name, table in self.file.methods.items():
            values = {"name": name, **table}
            method, known = str(values["name"]), methods.names()
            if method in ("retrain", *CONTROLS) or name in ROWS or name.startswith(AGAIN):
                remedy = "leave it out: original, retrained models and controls stand in every table"
                raise self.refuse(["methods"], name, "a method to compare with retraining", repr(name), remedy)
            if method not in known:
                raise self.refuse(["methods"], name, "a known method", repr(method), suggest(method, known))
            if TUNED in values:
                try:
                    values, tuned[name] = self._tuned(name, values)
                except UserError as error:
                    raise self.told(["methods", name], TUNED, error) from error
            try:
                settings[name] = methods.build(values).settings()
            except UserError as error:
                raise self.told(["methods", name], _named(error, table, method), error) from error
        # Tuning may well have kept the default: then both rows say the same, and a reader learns that.
        plain = {n: s for n, s in settings.items() if n not in tuned}
        twice = [n for n, s in plain.items() if list(plain.values()).count(s) > 1]
        if twice:
            raise self.refuse(["methods"], twice[1], "methods that differ", f"{listing(twice)} alike", ONE_BY_ONE)
        return settings, tuned

    def _tuned(self, name: str, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a method's values with those that tuning chose, and what the file says of the tuning."""
        given = values.pop(TUNED)
        if not isinstance(given, str):
            raise UserError("the name of a file that expunge tune wrote", repr(given), "write tuned = 'FILE.json'")
        found = read_document(self.path.parent / given, TUNED_KIND, TUNED_SCHEMA)
        chosen = found.get("method")
        if not isinstance(chosen, dict) or chosen.get("name") != values["name"]:
            got = repr(chosen.get("name")) if isinstance(chosen, dict) else "no method"
            raise UserError(f"a file in which {values['name']} was tuned", got, f"name {name}'s file")
        lacking = [key for key in ("on", "trials", "seeds", "objective") if key not in found]
        if lacking:
            raise UserError(f"a file that expunge tune wrote, {given}", f"none of {listing(lacking)}", "tune again")
        both = sorted(set(values) & set(chosen) - {"name"})
        if both:
            raise UserError("fields from the file of a tuning alone", f"{listing(both)} beside it", "leave them out")
        return {**chosen, **values}, {k: v for k, v in found.items() if k not in ("kind", "schema")}

    def measures(self) -> dict[str, Any]:
        """Return what is measured, by name."""
        chosen: dict[str, Any] = {"retrained": self.file.retrained}
        for key, known, default, given in (
            ("metrics", metrics.names(), [n for n in metrics.names() if not _trains(n)], self.file.metrics),
            ("attacks", attacks.names(), attacks.alone(), self.file.attacks),
        ):
            for name in given:
                if name not in known:
                    raise self.refuse([], key, f"a known name in {key}", repr(name), suggest(name, known))
            chosen[key] = sorted(given) or default
        for name, table in self.file.metrics.items():
            try:
                measure(name, table)
            except UserError as error:
                raise self.told(["metrics"], name, error) from error
        if settings := changed(self.file.metrics):
            chosen["settings"] = settings
        if "membership" not in chosen["metrics"]:
            if self.file.attacks:
                want, remedy = "'membership' among the metrics", "add it, or leave attacks out"
                raise self.refuse([], "attacks", want, "none", remedy)
            chosen["attacks"] = []
        return chosen

    def published(self) -> list[Published]:
        """Return the published numbers, each with all that differs from ours."""
        every = self.file.differences
        return [p.model_copy(update={"differences": [*every, *p.differences]}) for p in self.file.published]

    def check_published(self, grid: Grid, measures: Mapping[str, Any]) -> None:
        """Refuse published numbers of no place or number that the grid has; models it may lack."""
        numbers, there = _numbers(measures), list(dict.fromkeys(map(str, grid.places)))
        seen = set[tuple[Place, str, str, str]]()
        for nth, entry in enumerate(self.file.published):
            at = Place(entry.data, entry.network, entry.scenario)
            if at not in grid.places:
                remedy = f"choose among {listing(there, 8)}"
                raise self.refuse([], "published", "numbers of a place in the grid", str(at), remedy, nth)
            for model, found in entry.values.items():
                tables = ["published", "values", model]
                if model not in ("original", "retrained", *grid.methods) and not MODEL.fullmatch(model):
                    remedy = "write original, retrained, a name of the grid, or a method's name such as bad_teacher"
                    raise self.refuse(tables[:2], model, "the name of a model", repr(model), remedy, nth)
                for name, value in found.items():
                    if name not in numbers:
                        want, remedy = "a number that the grid measures", _measured(name, numbers, measures)
                        raise self.refuse(tables, name, want, repr(name), remedy, nth)
                    low, high = numbers[name].range
                    if not low <= value[0] <= high or any(spread < 0 for spread in value[1:]):
                        want, remedy = f"{name} in [{low:g}, {high:g}], and a spread of 0 or more", "write 74 % as 0.74"
                        raise self.refuse(tables, name, want, f"{value}", remedy, nth)
                    if (at, entry.source, model, name) in seen:
                        raise self.refuse(tables, name, "each published number once", f"{name} twice", ONE_BY_ONE, nth)
                    seen.add((at, entry.source, model, name))


def _named(error: UserError, table: Mapping[str, Any], owner: str) -> str:
    """Return the key of a table that an error is about, where it names one."""
    about = (k for k in table if error.got == repr(k) or re.search(rf"{owner}\.{re.escape(k)}\b", error.expected))
    return next(about, "")


def _file(project: Project) -> str:
    """Return the name of a project's file."""
    return project.file.name if project.file is not None else project.name


def _recipe(project: Project) -> Recipe:
    """Return how a project's network is trained: as its file says, or as the named network is on the named data set."""
    source = project.config.data.name
    if project.config.recipe is None and source is not None:
        return zoo.recipe(source, _architecture(project) or zoo.network(source))
    if project.recipe is None:
        raise UserError("a [recipe]", "none", "add one: a benchmark trains every model itself")
    return project.recipe


def _plants(project: Project) -> bool:
    """Return whether a project's training data holds canaries beside the samples of its data set."""
    return project.config.data.canaries is not None or bool((project.config.recipe or {}).get("canaries"))


def _architecture(project: Project) -> str | None:
    """Return the named network of a project on a named data set; None where it is the user's own."""
    config = project.config
    if config.data.name is None or ":" in config.model.network:
        return None
    return config.model.network or zoo.network(config.data.name)


def _numbers(measures: Mapping[str, Any]) -> dict[str, Number]:
    """Return the numbers that are measured, by name."""
    found = dict[str, Number]()
    for name in measures["metrics"]:
        own = measures.get("settings", {}).get(name)
        family = Membership(names=tuple(measures["attacks"])) if name == "membership" else measure(name, own)
        found |= family.numbers
    return found


def _measured(name: str, numbers: Mapping[str, Number], measures: Mapping[str, Any]) -> str:
    """Return what to do about a number that is not measured."""
    family, _, attack = name.partition("/")
    attack = attack.partition("/")[0]
    if family in metrics.names() and family not in measures["metrics"]:
        return f"add '{family}' to metrics, or leave it out"
    if family == "membership" and attack in attacks.names() and attack not in measures["attacks"]:
        return f"add '{attack}' to attacks, or leave it out"
    return suggest(name, numbers)


def _trains(name: str) -> bool:
    return metrics.load(name).trains
