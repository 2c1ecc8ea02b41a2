"""What is tuned and on what, and the document of what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from expunge import __version__, methods, zoo
from expunge.bench import objectives
from expunge.bench.cell import Cell
from expunge.bench.grid import TUNED_KIND, TUNED_SCHEMA
from expunge.bench.objectives import Objective
from expunge.bench.spaces import ends, limits, merged
from expunge.bench.study import Trial
from expunge.errors import UserError, suggest
from expunge.files import jsonable, write_document
from expunge.method import Method, Search
from expunge.trial import Request

FIRST = 100  # of the tuning seeds: grids count theirs from 0, and no model is to be reported that was tuned on
FORMAT = 1  # of what decides a trial's value beside its settings; another one refuses older studies


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What is tuned, and on what: all that decides the trials, but their number.

    Args:
        method: name of the method.
        fixed: fields that keep these values.
        space: where the others are searched; see `expunge.bench.spaces.space`.
        cells: the requests to tune on, without method and of any seed; see `cells`.
        seeds: of training; apart from those of the grids that report the result.
        objective: ``retrained`` or ``unseen``; see `expunge.bench.objectives`.
        seed: of the search.

    Raises:
        UserError: an unknown objective, one that says nothing on a request, no seed or no request.
    """

    method: str
    fixed: Mapping[str, Any]
    space: Mapping[str, Search]
    cells: Sequence[Cell]
    seeds: Sequence[int]
    objective: str = "retrained"
    seed: int = 0

    def __post_init__(self) -> None:
        aim = objectives.load(self.objective)
        for cell in self.cells:
            reason = aim.refuses(cell.asked)
            if reason:
                want = f"a request that the objective '{self.objective}' can judge"
                raise UserError(want, f"'{cell.asked}' ({reason})", "take the objective 'retrained'")
        for what, given in (("seed", self.seeds), ("request", self.cells)):
            if not given:
                raise UserError(f"at least one {what} to tune on", "none", "name one")
        if len(set(self.seeds)) != len(self.seeds):
            raise UserError("each seed once", f"{list(self.seeds)}", "leave the doubles out")

    @cached_property
    def aim(self) -> Objective:
        """The objective."""
        return objectives.load(self.objective)

    @cached_property
    def default(self) -> Method:
        """The method with the fixed fields, and its defaults elsewhere."""
        return self.made({})

    def made(self, chosen: Mapping[str, Any]) -> Method:
        """Return the method with the fixed fields and chosen values of searched ones.

        Raises:
            UserError: a value that does not fit.
        """
        return methods.build({"name": self.method, **merged(self.fixed, chosen)})

    @cached_property
    def start(self) -> dict[str, Any]:
        """The default settings' values of the searched fields."""
        settings = self.default.settings()
        return {name: _at(settings, name) for name in self.space}

    @property
    def shares(self) -> bool:
        """Whether no searched field decides what the method prepares."""
        left = self.default.preparation()
        tried = [self.made({name: value}) for name, search in self.space.items() for value in ends(search)]
        return all(method.preparation() == left for method in tried)

    @cached_property
    def seeded(self) -> list[list[Cell]]:
        """The cells of each request, one a seed."""
        return [[replace(cell.bare, seed=seed) for seed in self.seeds] for cell in self.cells]

    @property
    def spec(self) -> dict[str, Any]:
        """Everything that decides the trials, as plain values."""
        return {
            "format": FORMAT,
            "default": self.default.settings(),
            "space": {name: limits(search) for name, search in sorted(self.space.items())},
            "on": [place(cell) | {"recipe": dict(cell.recipe)} for cell in self.cells],
            "seeds": list(self.seeds),
            "objective": self.objective,
            "seed": self.seed,
        }


def cells(data: str, network: str | None, requests: Sequence[str]) -> list[Cell]:
    """Return requests on a named data set, to tune on.

    Args:
        data: name of the data set.
        network: name of the network; None takes the data set's own.
        requests: texts of `expunge.draws.Request.parse`.

    Returns:
        A cell a request.

    Raises:
        UserError: an unknown name, or a request that reads otherwise.
    """
    if data not in zoo.datasets():
        raise UserError("a known data set", repr(data), suggest(data, zoo.datasets()))
    network = network or zoo.network(data)
    if network not in zoo.networks.names():
        raise UserError("a known network", repr(network), suggest(network, zoo.networks.names()))
    recipe = zoo.recipe(data, network).to_json()
    asked = [Request.parse(text).to_json() for text in dict.fromkeys(requests)]
    return [Cell(data={"name": data}, network=network, recipe=recipe, request=body, seed=0) for body in asked]


def save(path: Path, document: Mapping[str, Any]) -> None:
    """Write what `tune` returned; a grid names the file as ``tuned`` in a method's table."""
    write_document(path, TUNED_KIND, TUNED_SCHEMA, document)


def place(cell: Cell) -> dict[str, Any]:
    """Return data, network and request of a cell as plain values."""
    return {"data": dict(cell.data), "network": cell.network, "request": dict(cell.request)}


def document(
    tuning: Tuning, found: list[Trial], compared: Mapping[str, Any], importance: Mapping[str, float]
) -> dict[str, Any]:
    """Return the document of a tuning."""
    whole = [t for t in found if t.state == "complete" and t.value is not None]
    if not whole:
        why = next((t.told["why"] for t in found if t.told.get("why")), "none")
        raise UserError("a setting that works", f"none of {len(found)} ({why})", "narrow the ranges")
    best = min(whole, key=lambda t: (t.value, t.number))
    chosen = dict(best.told["chosen"])
    method = tuning.made(chosen).settings()
    tried = [t.value for t in found if t.number == 0]
    counts = {state: sum(t.state == state for t in found) for state in ("complete", "pruned", "refused")}
    edits = sum(len(t.told["values"]) for t in found) * len(tuning.cells)
    return {
        "expunge": __version__,
        "method": method,
        "default": tuning.default.settings(),
        "chosen": {name: _at(method, name) for name in tuning.space},
        "space": {name: limits(search) | {"symbol": _symbol(tuning, name)} for name, search in tuning.space.items()},
        "fixed": jsonable(dict(tuning.fixed)),
        "on": [place(cell) | {"text": f"{_data(cell)}, {cell.network}, {cell.asked}"} for cell in tuning.cells],
        "trials": len(found),
        "seeds": list(tuning.seeds),
        "seed": tuning.seed,
        "objective": tuning.objective,
        "about": tuning.aim.text,
        "value": best.value,
        "default_value": tried[0] if tried else None,
        "best": best.number,
        "budget": {**counts, "edits": edits, "seconds": sum(float(t.told["seconds"]) for t in found)},
        "compared": dict(compared),
        "importance": dict(importance),
        "history": [_told(t) for t in found],
    }


def _told(trial: Trial) -> dict[str, Any]:
    own = {k: trial.told[k] for k in ("chosen", "values", "lengths", "seconds")}
    return {"number": trial.number, "state": trial.state, "value": trial.value, **own, "why": trial.told.get("why", "")}


def _symbol(tuning: Tuning, name: str) -> str:
    """Return the symbol of a searched field."""
    *path, last = name.split(".")
    method: Any = tuning.default
    for part in path:
        method = getattr(method, part)
    return str(next(f for f in fields(method) if f.name == last).metadata.get("symbol", ""))


def _at(settings: Mapping[str, Any], name: str) -> Any:
    """Return a field's value in settings, of a composition's method where the name has a dot."""
    found: Any = settings
    for part in name.split("."):
        found = found[part]
    return found


def _data(cell: Cell) -> str:
    limit = cell.data.get("limit")
    name = str(cell.data.get("name") or cell.data.get("project"))
    return f"{name}, {limit} samples" if limit else name
