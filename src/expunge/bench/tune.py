"""Tuning: a method's fields are searched for the setting that an objective likes best, on seeds of its own.

A trial is one setting. For each seed it unlearns in memory from the original and the prepared state that all trials
share through the benchmark's store, and is measured on the forget, retain and holdout set. The test set is not read.
The first trial is the default settings, so what is found is no worse than they are, on the seeds it was found on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np

from expunge import __version__, methods, zoo
from expunge.bench import ground as grounds
from expunge.bench import objectives
from expunge.bench import study as studies
from expunge.bench.cell import Cell, Task
from expunge.bench.grid import TUNED_KIND, TUNED_SCHEMA
from expunge.bench.ground import TRIED, Ground, Ready
from expunge.bench.objectives import Objective, Undefined
from expunge.bench.runner import one_by_one
from expunge.bench.stages import Setting
from expunge.bench.store import Store
from expunge.bench.study import Running, Study, Trial
from expunge.errors import CorruptArtefact, Declined, Incompatible, MissingExtra, MissingNeed, UserError, suggest
from expunge.files import canonical, jsonable, write_document
from expunge.method import Method, Search
from expunge.scores import REFERENCE, Scores
from expunge.trial import Request

FIRST = 100  # of the tuning seeds: grids count theirs from 0, and no model is to be reported that was tuned on
FORMAT = 1  # of what decides a trial's value beside its settings; another one refuses older studies
ELSEWHERE = (CorruptArtefact, Declined, Incompatible, MissingExtra, MissingNeed)  # errors that no setting causes


@dataclass(frozen=True)
class Progress:
    """How far a tuning is.

    Args:
        what: is being done, in words.
        done: tasks, seeds or trials done.
        total: of how many.
        best: smallest value so far, None before the first.
    """

    what: str
    done: int
    total: int
    best: float | None = None


Told = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What is tuned, and on what: all that decides the trials, but their number.

    Args:
        method: name of the method.
        fixed: fields that keep these values.
        space: where the others are searched; see `space`.
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
        return methods.build({"name": self.method, **self.fixed})

    @property
    def shares(self) -> bool:
        """Whether no searched field decides what the method prepares."""
        decides = self.default.prepared_by
        return decides is not None and not decides & self.space.keys()

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


def space(method: str, fixed: Mapping[str, Any], ranges: Sequence[str] = ()) -> dict[str, Search]:
    """Return where the fields of a method are searched.

    Args:
        method: its name.
        fixed: fields that keep a value, and so are not searched.
        ranges: ``FIELD=LOW:HIGH``, with ``:log`` or ``:linear`` behind it, or ``FIELD=A,B,C``; each takes the place of
            what the field declares, or adds a field that declares nothing.

    Returns:
        By field, in the order of the method's fields.

    Raises:
        UserError: an unknown field, one that is fixed and searched, a range that is none, or nothing to search.
    """
    cls = methods.load(method)
    known = {f.name: f.metadata.get("search") for f in fields(cls)}
    hints = get_type_hints(cls)
    asked: dict[str, Search] = {}
    for text in ranges:
        name, sign, value = (part.strip() for part in text.partition("="))
        if not sign or name in asked:
            raise UserError("ranges FIELD=LOW:HIGH or FIELD=A,B,C, each field once", repr(text), "write alpha=0.1:100")
        if name not in known:
            raise UserError(f"a field of {method}", repr(name), suggest(name, known) if known else "it has none")
        if name in fixed:
            raise UserError(f"{name} either fixed or searched", "both", "leave out --set or --range")
        whole = int in (options := get_args(hints[name]) or (hints[name],)) and float not in options
        asked[name] = _range(text, value, known[name] or Search(whole=whole))
    own = {n: search for n, search in known.items() if isinstance(search, Search) and n not in fixed}
    found = {n: asked.get(n) or own[n] for n in known if n in asked or n in own}
    if not found:
        got = f"{method}, " + ("whose are all fixed" if any(known.values()) else "which declares none")
        remedy = "name one with --range FIELD=LOW:HIGH" if known else "take another method: it has no fields at all"
        raise UserError("a method with fields to search", got, remedy)
    for name, search in found.items():
        for value in search.choices or (search.low, search.high):
            methods.build({"name": method, **fixed, name: int(value) if search.whole else value})
    return found


def tune(
    tuning: Tuning, *, setting: Setting, study: Path, trials: int = 50, told: Told | None = None
) -> dict[str, Any]:
    """Search a method's fields; killed or interrupted, the same call goes on where it was.

    Args:
        tuning: what is tuned, on what.
        setting: where work is done, and the store of trained, retrained and prepared models.
        study: SQLite file of the trials; studies of several methods share one.
        trials: how many in all, the default settings included.
        told: called with each step.

    Returns:
        The document, see docs/tuning.md: the chosen settings under ``method``, their value and the default's, where
        and how they were found, and every trial.

    Raises:
        MissingExtra: Optuna is not installed.
        UserError: a request that cannot be made, a method that declines it, or no setting that works.
        Incompatible: the study is one of other settings.
    """
    if trials < 1:
        raise UserError("1 trial or more", f"{trials}", "ask for more")
    told = told or (lambda _: None)
    wanted = {name: tuning.default.settings().get(name) for name in tuning.space}
    with studies.opened(study, tuning.method, tuning.spec, tuning.space, wanted, tuning.seed) as room:
        if len(room.finished()) < trials or room.noted(studies.COMPARED) is None:
            with one_by_one():
                _Search(tuning, setting, room, told).run(trials)
        found = room.finished()[:trials]
        return _document(tuning, found, room.noted(studies.COMPARED), room.importance())


def save(path: Path, document: Mapping[str, Any]) -> None:
    """Write what `tune` returned; a grid names the file as ``tuned`` in a method's table."""
    write_document(path, TUNED_KIND, TUNED_SCHEMA, document)


def limits(search: Search) -> dict[str, Any]:
    """Return where a field is searched, as plain values."""
    if search.choices:
        return {"choices": list(search.choices)}
    return {"low": search.low, "high": search.high, "log": search.log, "whole": search.whole}


def place(cell: Cell) -> dict[str, Any]:
    """Return data, network and request of a cell as plain values."""
    return {"data": dict(cell.data), "network": cell.network, "request": dict(cell.request)}


@dataclass(frozen=True)
class _Search:
    """Trials at work.

    Args:
        tuning: what is tuned, on what.
        setting: where work is done.
        study: where trials are kept.
        told: called with each step.
    """

    tuning: Tuning
    setting: Setting
    study: Study
    told: Told

    def run(self, trials: int) -> None:
        """Train what is missing, lay the grounds, and try settings until there are so many."""
        ready = self._stages()
        laid = self._grounds()
        scales = [self.tuning.aim.scales([_known(g) for g in column]) for column in laid]
        for cell, found in zip(self.tuning.cells, scales, strict=True):
            if not found:
                got = f"none on '{cell.asked}'"
                raise UserError("a number that the retrained models have", got, "check labels and outputs")
        self.study.note(studies.COMPARED, self._compared(laid, scales))
        while len(done := self.study.finished()) < trials:
            best = min((t.value for t in done if t.state == "complete" and t.value is not None), default=None)
            self.told(Progress(f"trial {len(done) + 1}", len(done), trials, best))
            with _quiet():
                self._trial(self.study.ask(), laid, scales, ready)
        self.told(Progress("trials", trials, trials))

    def _stages(self) -> dict[tuple[int, int], Ready]:
        """Fill the store, and return what the method prepared by request and seed, where all settings share it."""
        tuning, store = self.tuning, Store.open(self.setting.store)
        shared = tuning.default if tuning.shares else None
        columns = [[replace(cell, seed=seed) for seed in tuning.seeds] for cell in tuning.cells]
        tasks = [task for column in columns for cell in column for task in grounds.needed(cell, tuning.aim, shared)]

        def step(task: Task, _: str, over: int, total: int) -> None:
            self.told(Progress(f"{task.stage}: {task.cell.asked}, seed {task.cell.seed}", over, total))

        grounds.fill(tasks, store, self.setting, step)
        if shared is None:
            return {}
        return {
            (i, k): grounds.stored(cell, shared, store, self.setting)
            for i, column in enumerate(columns)
            for k, cell in enumerate(column)
        }

    def _grounds(self) -> list[list[Ground]]:
        """Return the grounds, a list of seeds for each request."""
        tuning, store, total = self.tuning, Store(self.setting.store), len(self.tuning.cells) * len(self.tuning.seeds)
        laid: list[list[Ground]] = []
        for i, cell in enumerate(tuning.cells):
            laid.append([])
            for k, seed in enumerate(tuning.seeds):
                self.told(Progress(f"measuring retrained: {cell.asked}, seed {seed}", i * len(tuning.seeds) + k, total))
                laid[i].append(grounds.laid(replace(cell, seed=seed), store, self.setting, tuning.aim))
        return laid

    def _compared(self, laid: list[list[Ground]], scales: list[dict[str, float]]) -> dict[str, Any]:
        """Return what trials stand beside: scales, and the lengths of the original, controls and retrained models."""
        rows: dict[str, list[dict[str, float]]] = {}
        for column, scale in zip(laid, scales, strict=True):
            known = [_known(ground) for ground in column]
            for model in known[0].values:
                if model in ("original", REFERENCE):  # no_op is the one, with the other they are compared
                    continue
                try:
                    several = [self.tuning.aim.lengths(scores, model, scale) for scores in known]
                except Undefined:
                    continue
                rows.setdefault(model, []).append(_mean(several))
        whole = {m: lengths for m, lengths in rows.items() if len(lengths) == len(laid)}
        told = [{objectives.told(k): v for k, v in scale.items()} for scale in scales]
        return {"scales": told, "lengths": whole, "values": {m: _value(parts) for m, parts in whole.items()}}

    def _trial(
        self,
        running: Running,
        laid: list[list[Ground]],
        scales: list[dict[str, float]],
        ready: Mapping[tuple[int, int], Ready],
    ) -> None:
        """Try one setting, seed by seed, until it is worse than most were; a setting that does not work is told so."""
        begun, first = time.perf_counter(), running.number == 0
        chosen = {} if first else dict(running.chosen)
        values: list[float] = []
        parts: list[list[dict[str, float]]] = [[] for _ in laid]
        told: dict[str, Any] = {"chosen": chosen}
        ended: float | None = None
        try:
            method = methods.build({"name": self.tuning.method, **self.tuning.fixed, **chosen})
            for k in range(len(self.tuning.seeds)):
                for i, column in enumerate(laid):
                    scores = column[k].tried(method, ready.get((i, k)) or column[k].prepared(method))
                    parts[i].append(self.tuning.aim.lengths(scores, TRIED, scales[i]))
                values.append(_value([part[k] for part in parts]))
                if running.hopeless(float(np.mean(values)), k) and k + 1 < len(self.tuning.seeds):
                    break
            else:
                ended = float(np.mean(values))
        except ELSEWHERE:
            raise
        except (UserError, Undefined) as error:
            told["why"] = str(error)
        told |= {"values": values, "lengths": [_mean(p) for p in parts if p], "seconds": time.perf_counter() - begun}
        running.finish(told, ended)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep methods from warning of settings that nobody asked for."""
    logger = logging.getLogger("expunge.methods")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _known(ground: Ground) -> Scores:
    assert ground.known is not None
    return ground.known


def _mean(several: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([each[name] for each in several])) for name in several[0]}


def _value(parts: Sequence[Mapping[str, float]]) -> float:
    """Return the mean over requests of the mean length."""
    return float(np.mean([np.mean(list(lengths.values())) for lengths in parts]))


def _range(text: str, value: str, own: Search) -> Search:
    """Return where a field is to be searched, in the way of what it declares itself where nothing else is said."""
    low, colon, rest = value.partition(":")
    if not colon:
        choices = tuple(methods.parse([f"value={part.strip()}"])["value"] for part in value.split(","))
        if len(choices) < 2 or len({canonical(c) for c in choices}) < len(choices):
            raise UserError(
                "a range LOW:HIGH, or two choices or more A,B", repr(text), "write for example alpha=0.1:100"
            )
        return Search(choices=choices)
    high, _, way = rest.partition(":")
    if way not in ("", "log", "linear"):
        raise UserError("'log' or 'linear' behind a range", repr(way), "write for example alpha=0.1:100:log")
    try:
        ends = float(low), float(high)
    except ValueError as error:
        raise UserError("numbers LOW:HIGH", repr(text), "write for example alpha=0.1:100") from error
    log = own.log and not own.choices if not way else way == "log"
    if not (np.isfinite(ends).all() and ends[0] < ends[1] and (ends[0] > 0 or not log)):
        raise UserError(f"finite LOW < HIGH{', both above 0' if log else ''}", repr(text), "turn or narrow the range")
    if own.whole and not all(end.is_integer() for end in ends):
        raise UserError("whole numbers LOW:HIGH", repr(text), "write for example epochs=1:10")
    return Search(*ends, log=log, whole=own.whole)


def _document(
    tuning: Tuning, found: list[Trial], compared: Mapping[str, Any], importance: Mapping[str, float]
) -> dict[str, Any]:
    """Return the document of a tuning."""
    whole = [t for t in found if t.state == "complete" and t.value is not None]
    if not whole:
        why = next((t.told["why"] for t in found if t.told.get("why")), "none")
        raise UserError("a setting that works", f"none of {len(found)} ({why})", "narrow the ranges")
    best = min(whole, key=lambda t: (t.value, t.number))
    chosen = dict(best.told["chosen"])
    method = methods.build({"name": tuning.method, **tuning.fixed, **chosen}).settings()
    tried = [t.value for t in found if t.number == 0]
    counts = {state: sum(t.state == state for t in found) for state in ("complete", "pruned", "refused")}
    edits = sum(len(t.told["values"]) for t in found) * len(tuning.cells)
    return {
        "expunge": __version__,
        "method": method,
        "default": tuning.default.settings(),
        "chosen": {name: method[name] for name in tuning.space},
        "space": {
            name: limits(search) | {"symbol": _symbol(tuning.method, name)} for name, search in tuning.space.items()
        },
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


def _symbol(method: str, name: str) -> str:
    return str(next(f for f in fields(methods.load(method)) if f.name == name).metadata.get("symbol", ""))


def _data(cell: Cell) -> str:
    limit = cell.data.get("limit")
    name = str(cell.data.get("name") or cell.data.get("project"))
    return f"{name}, {limit} samples" if limit else name
