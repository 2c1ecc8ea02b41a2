"""What is done at each stage of a cell: read what it needs from the store, work, write one folder."""

from __future__ import annotations

import logging
import shutil
import time
import traceback
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import nn

from expunge import methods, tensors
from expunge.bench import answers, problems, rows
from expunge.bench.cell import Cell, Stage, Task
from expunge.bench.store import Store, write_plain
from expunge.data import Data
from expunge.errors import Declined, ExpungeError, Incompatible, Unwritable, UserError
from expunge.evaluate import evaluate
from expunge.evidence import Outputs
from expunge.files import canonical, digest, jsonable
from expunge.method import Method, State
from expunge.project.measures import measure
from expunge.runtime import Progress, Runtime
from expunge.scenario import Scenario
from expunge.scores import REFERENCE, Scores
from expunge.steps import Step, step
from expunge.tensors import isolated_rng, load_weights, save_weights
from expunge.trial import APART, describe, original
from expunge.unlearn import Unlearned, prepare, serve, unlearn
from expunge.zoo import Problem

log = logging.getLogger(__name__)
T = TypeVar("T")
MODEL, STATE, SCENARIO, RESULT = "model.safetensors", "state.safetensors", "scenario.json", "result.json"
Outcome = Literal["done", "declined", "failed", "busy"]


class Recent:
    """The last few things read in this process, by what they were read from; what is kept is never edited.

    Args:
        most: how many.
    """

    def __init__(self, most: int) -> None:
        self.most, self.found = most, dict[Any, Any]()

    def get(self, key: Hashable, read: Callable[[], T]) -> T:
        """Return what is kept under a key, or read it."""
        value: T = self.found.pop(key) if key in self.found else read()
        self.found[key] = value
        while len(self.found) > self.most:
            del self.found[next(iter(self.found))]
        return value


_PROBLEMS, _CHANGED, _MODELS, _DRAWN, _REFERENCES = Recent(2), Recent(4), Recent(4), Recent(4), Recent(2)
_HALVES = Recent(4)
_PRINTS, _RESULTS = Recent(64), Recent(2)


@dataclass(frozen=True)
class Setting:
    """Where work is done; it changes no result beyond rounding.

    Args:
        store: folder of results.
        projects: project files by the digest of what they say.
        data_dir: folder of named data sets.
        device: torch device, or auto.
        batch_size: samples a forward pass outside training.
        precision: ``full`` or ``bf16``.
        memory: bytes that per-sample gradients may use at once.
    """

    store: Path
    projects: Mapping[str, Path] = field(default_factory=dict, hash=False)
    data_dir: Path | None = None
    device: str = "auto"
    batch_size: int = 256
    precision: Literal["full", "bf16"] = "full"
    memory: int | None = None

    def runtime(self, workdir: Path | None, progress: Callable[[Progress], None] | bool | None) -> Runtime:
        """Return the runtime of one task, which keeps checkpoints in a folder of its own."""
        same: dict[str, Any] = {n: getattr(self, n) for n in ("device", "batch_size", "precision", "memory")}
        return Runtime(**same, progress=progress, workdir=workdir, processes=1)


def perform(task: Task, setting: Setting, progress: Callable[[Progress], None] | bool | None = False) -> Outcome:
    """Do one task, if nobody else does, and leave its folder; a task that raises leaves its traceback.

    Args:
        task: what it needs is done.
        setting: where.
        progress: receives the progress of long passes.

    Returns:
        ``done``; ``declined`` where the method does not apply; ``failed``; ``busy`` where somebody else works on it.

    Raises:
        Unwritable: the store cannot be written; nothing is noted of the task.
    """
    store = Store.open(setting.store)
    with store.claimed(task) as mine:
        if not mine:
            return "busy"
        found = _finished(store, task)
        if found is not None:
            return found
        try:
            return _done(task, store, setting, progress)
        except Unwritable:  # as a full disk: no fault of the task, and true of all that follow
            raise
        except ExpungeError as error:
            store.fail(task, str(error), traceback.format_exc(), isinstance(error, UserError))
        except Exception as error:
            store.fail(task, f"{type(error).__name__}: {error}", traceback.format_exc(), usage=False)
    log.warning("%s failed: %s", task.name, (store.failure(task) or {})["message"])
    return "failed"


def _finished(store: Store, task: Task) -> Outcome | None:
    """Return the outcome that somebody else was faster to reach; a corrupt folder is computed anew."""
    status = store.status(task)
    return status if status in ("done", "declined") else None


def _done(task: Task, store: Store, setting: Setting, progress: Callable[[Progress], None] | bool | None) -> Outcome:
    begun = time.perf_counter()
    room = store.workdir(task)
    work = Work(task, store, setting, setting.runtime(room, progress))
    try:
        made = _STAGES[task.stage](work)
    except Declined as error:
        with store.writing(task, "declined", _reason(error)) as (_, body):
            body["seconds"] = time.perf_counter() - begun
        return "declined"
    with store.writing(task) as (folder, body):
        made(folder)
        body["seconds"] = time.perf_counter() - begun
        body |= work.said
    shutil.rmtree(room, ignore_errors=True)
    return "done"


def _reason(error: Declined) -> str:
    return str(error).partition(": ")[2].partition("; take another method")[0].rstrip(".") or str(error)


@dataclass(frozen=True)
class Work:
    """One task at work.

    Args:
        task: which.
        store: results of earlier stages, and of this.
        setting: where.
        runtime: device, batch size, progress, checkpoints.
        said: what goes into the folder's document.
    """

    task: Task
    store: Store
    setting: Setting
    runtime: Runtime
    said: dict[str, Any] = field(default_factory=dict)

    @property
    def cell(self) -> Cell:
        """The cell the task belongs to."""
        return self.task.cell

    @cached_property
    def problem(self) -> Problem:
        """Data, network and recipe; of a cell on half of the data with that half."""
        whole, part = self.whole, self.cell.data.get("half")
        if part is None:
            return whole
        key = (canonical(self.cell.data), self.setting)
        return replace(whole, train=_HALVES.get(key, lambda: problems.half_of(whole.train, part)))

    @cached_property
    def whole(self) -> Problem:
        """The same with all training data, whatever part of it the cell is about."""
        cell = replace(self.cell, data={k: v for k, v in self.cell.data.items() if k != "half"})
        key = (canonical([cell.data, cell.network, cell.recipe]), self.setting)
        return _PROBLEMS.get(key, lambda: problems.problem(cell, self.setting.data_dir, self.setting.projects))

    @cached_property
    def train(self) -> Data:
        """The training data, with wrong labels or triggers where the request plants them."""
        request, problem = self.cell.asked, self.problem
        if not request.changes_data:
            return problem.train
        key = (canonical([self.cell.data, self.cell.request]), self.cell.seed, self.setting)
        return _CHANGED.get(key, lambda: request.training(problem, self.cell.seed))

    def need(self, stage: Stage, again: int = 0) -> Task:
        """Return an earlier task that this one needs, itself or through another."""
        level: tuple[Task, ...] = self.task.needs
        while level:
            for task in level:
                if task.stage == stage and task.again == again:
                    return task
            level = tuple(n for task in level for n in task.needs)
        raise LookupError(f"{self.task.name} needs no {stage}")

    def original(self) -> nn.Module:
        """Return the original model.

        Raises:
            Incompatible: it was trained on other data of the same name.
        """
        self.check_data()
        return self.filled(self.need("trained"))

    def check_data(self) -> None:
        """Refuse data that changed under its name since the original was trained.

        Raises:
            Incompatible: it was trained on other data of the same name.
        """
        task = self.need("trained")
        if self.finished(task).get("data") != self.fingerprint():
            remedy = "put the data back as it was, or use another --store"
            raise Incompatible(f"the data that {task.name} was trained on", "other samples under its name", remedy)

    def fingerprint(self, measuring: bool = False) -> str:
        """Return what tells data sets of one name apart: ids and targets, and the content of some samples.

        Args:
            measuring: of the test set, which nothing reads before models are measured; else of training and holdout.
        """
        planted = [self.cell.request, self.cell.seed] if self.cell.asked.changes_data else None
        problem = self.problem
        return _PRINTS.get(
            (canonical([self.cell.data, planted]), self.setting, measuring),
            lambda: problems.fingerprint([problem.test] if measuring else [self.train, problem.holdout]),
        )

    def filled(self, task: Task) -> nn.Module:
        """Return the network with a task's weights."""
        return _MODELS.get(self.mark(task), lambda: self._filled(self.store.folder(task) / MODEL))

    def finished(self, task: Task) -> dict[str, Any]:
        """Return an earlier task's document, read once."""
        if task.name not in self._documents:
            self._documents[task.name] = self.store.finished(task)
        return self._documents[task.name]

    @cached_property
    def _documents(self) -> dict[str, dict[str, Any]]:
        return {}

    def mark(self, task: Task) -> tuple[Path, str]:
        """Return what tells a finished folder from one computed anew."""
        return self.store.folder(task), digest(self.finished(task)["files"])

    def _filled(self, path: Path) -> nn.Module:
        build = self.problem.new_model
        if build is None:
            raise UserError("a network before training", "none", "name [model] base in the project file")
        with isolated_rng(0):
            model = build()
        load_weights(path, model)
        return model.eval()

    def step(self) -> tuple[Scenario, Step]:
        """Return who is forgotten in all, and in the request that this task is about."""
        scenario, parts = self.drawn()
        return scenario, step(scenario, parts, self.task.step)

    def drawn(self) -> tuple[Scenario, list[list[str]]]:
        """Return who is forgotten in all requests, and the ids of each."""
        task = self.need("drawn")
        body = _DRAWN.get(self.mark(task), lambda: self.store.read(task, SCENARIO))
        return Scenario.from_json(body["scenario"]), body["parts"]

    def references(self) -> tuple[Scores, dict[str, dict[str, Outputs]]]:
        """Return what was measured of original, retrained models and controls, and what the first two say.

        Raises:
            Incompatible: it was measured on other test data of the same name.
        """
        task = self.need("reference")
        if self.finished(task).get("test") != self.fingerprint(measuring=True):
            remedy = "put the data back as it was, or use another --store"
            raise Incompatible(
                f"the test data that {task.name} was measured on", "other samples under its name", remedy
            )

        def read() -> tuple[Scores, dict[str, dict[str, Outputs]]]:
            return rows.from_json(self.store.read(task, rows.VALUES)), rows.load_evidence(self.store.folder(task))

        known, outputs = _REFERENCES.get(self.mark(task), read)
        return known, dict(outputs)

    def result(self, task: Task, method: Method, before: nn.Module) -> Unlearned:
        """Return what `expunge.unlearn.unlearn` returned, from its folder."""
        folder = self.store.folder(task)
        body = self.store.read(task, RESULT)
        state = State.load(folder / STATE)
        model = serve(method, self.filled(task), state)
        return Unlearned(**body, model=model, state=state, changed=tensors.changed(before, model))

    def common(self) -> dict[str, Any]:
        """Return the arguments that every call of a method shares."""
        p = self.problem
        return {"recipe": p.recipe, "new_model": p.new_model, "holdout": p.holdout, "runtime": self.runtime}


def _trained(work: Work) -> Callable[[Path], None]:
    work.said["data"] = work.fingerprint()
    model = original(work.problem, work.train, runtime=work.runtime, seed=work.cell.seed)
    return lambda folder: save_weights(folder / MODEL, model, {})


def _drew(work: Work) -> Callable[[Path], None]:
    request, problem = work.cell.asked, work.problem
    given: dict[str, Any] = {"original": work.original(), "runtime": work.runtime} if request.needs_original else {}
    scenario = request.draw(problem, work.cell.seed, **given)[1]
    parts = [scenario.forget] if request.steps == 1 else request.parts(problem, work.cell.seed, **given)
    text, _ = describe(request, problem)
    work.said["asked"] = {"text": text, "kind": request.kind, "classes": list(problem.classes)}
    body = {"scenario": scenario.to_json(), "parts": [list(p) for p in parts]}
    return lambda folder: write_plain(folder / SCENARIO, body)


def _retrained(work: Work) -> Callable[[Path], None]:
    method, (_, now) = methods.load("retrain")(), work.step()
    seed, whole = work.cell.seed + APART * work.task.again, work.train
    sets: dict[str, Any] = {"forget": whole.subset(now.union.forget), "retain": whole.without(now.union.forget)}
    common = work.common() | {"scenario": now.union, "seed": seed}
    first, task = work.original(), work.problem.task
    ready = prepare(method, first, task, train=whole, **common)
    done = unlearn(method, ready.model, task, **sets, state=ready.state, **common)
    return lambda folder: _save(folder, done)


def _prepared(work: Work) -> Callable[[Path], None]:
    method, first = work.cell.made, work.original()
    scenario = step(*work.drawn(), 1).own if method.prepares.scenario else None
    common = work.common() | {"scenario": scenario, "seed": work.cell.seed}
    ready = prepare(method, first, work.problem.task, train=work.train, **common)
    work.said["prepare"] = {"seconds": ready.seconds, "peak_memory": ready.peak_memory, "note": ready.note}
    own = tensors.weights_digest(ready.model) != tensors.weights_digest(first)

    def write(folder: Path) -> None:
        ready.state.save(folder / STATE)
        if own:
            save_weights(folder / MODEL, method.served_from(ready.model), {})

    return write


def _unlearned(work: Work) -> Callable[[Path], None]:
    method, (scenario, now) = work.cell.made, work.step()
    gone = set(now.union.forget) - set(now.own.forget)
    left = work.train.without([i for i in scenario.forget if i in gone]) if gone else work.train
    before = work.need("unlearned") if work.task.step > 1 else work.need("prepared")
    own = (work.store.folder(before) / MODEL).is_file()
    state = State.load(work.store.folder(before) / STATE)
    model = serve(method, work.filled(before) if own else work.original(), state)
    done = unlearn(
        method,
        model,
        work.problem.task,
        forget=left.subset(now.own.forget),
        retain=left.without(now.own.forget),
        state=state,
        scenario=now.own,
        seed=work.cell.seed,
        **work.common(),
    )
    return lambda folder: _save(folder, done)


def _save(folder: Path, done: Unlearned) -> None:
    save_weights(folder / MODEL, methods.build(done.method).served_from(done.model), {})
    done.state.save(folder / STATE)
    names = ("log", "note", "seconds", "total_seconds", "peak_memory", "method")
    write_plain(folder / RESULT, {name: jsonable(getattr(done, name)) for name in names})


def _referred(work: Work) -> Callable[[Path], None]:
    first, retrain = work.original(), methods.load("retrain")()
    again = [work.need("retrained", k) for k in range(work.cell.retrained)]
    models: dict[str, Any] = {"original": first, REFERENCE: [work.result(task, retrain, first) for task in again]}
    outputs = dict[str, dict[str, Outputs]]()
    scores = _measure(work, models, known=None, outputs=outputs)
    work.said["test"] = work.fingerprint(measuring=True)
    work.said["cost"] = {"retrain": min(model.seconds for model in models[REFERENCE])}

    def write(folder: Path) -> None:
        rows.save(folder, scores)
        rows.save_evidence(folder, outputs)

    return write


def _measured(work: Work) -> Callable[[Path], None]:
    own = work.need("unlearned")
    first, name = work.original(), str(work.cell.method["name"])
    done, reference, retrain = (
        work.result(own, work.cell.made, first),
        work.need("retrained"),
        methods.load("retrain")(),
    )
    retrained = _RESULTS.get(work.mark(reference), lambda: work.result(reference, retrain, first))
    times = _edits(work, own)
    models = {"original": first, REFERENCE: retrained, name: replace(done, **times)}
    known, outputs = work.references()
    whole = _measure(work, models, known=known, outputs=outputs).only([name])
    scores = replace(whole, numbers={}, floor={}, caveats=tuple(c for c in whole.caveats if c not in known.caveats))
    prepared = float(work.store.finished(work.need("prepared"))["prepare"]["seconds"])
    edits, whole_seconds = times["seconds"], times["total_seconds"]
    work.said["cost"] = {"prepare": prepared, "unlearn": done.seconds, "edits": edits, "total": whole_seconds}
    return lambda folder: rows.save(folder, scores)


def _edits(work: Work, last: Task) -> dict[str, Any]:
    """Return what all edits of a row of requests took together: seconds summed, memory at its peak."""
    bodies, task = [], last
    while task.stage == "unlearned":
        bodies.append(work.store.read(task, RESULT))
        task = next(need for need in task.needs if need.stage in ("unlearned", "prepared"))
    seconds, total = (sum(float(body[name]) for body in bodies) for name in ("seconds", "total_seconds"))
    return {"seconds": seconds, "total_seconds": total, "peak_memory": max(int(b["peak_memory"]) for b in bodies)}


def _measure(
    work: Work, models: Mapping[str, Any], known: Scores | None, outputs: dict[str, dict[str, Outputs]]
) -> Scores:
    cell, p, now = work.cell, work.problem, work.step()[1]
    settings = cell.measures.get("settings", {})
    return evaluate(
        models,
        p.task,
        train=work.train,
        scenario=now.union,
        test=p.test,
        holdout=p.holdout,
        recipe=p.recipe,
        new_model=p.new_model,
        metrics=[measure(n, settings[n]) if n in settings else n for n in cell.measures["metrics"]],
        attacks=cell.measures["attacks"] or None,
        runtime=work.runtime,
        seed=cell.seed,
        triggered=cell.asked.triggered(p),
        known=known,
        outputs=outputs,
    )


def _answered(work: Work) -> Callable[[Path], None]:
    source, whole = work.task.needs[0], work.whole
    work.check_data()
    model = work.filled(source)
    if source.stage != "trained":
        method = methods.load("retrain")() if source.stage == "retrained" else work.cell.made
        model = serve(method, model, State.load(work.store.folder(source) / STATE))
    found = answers.ask(model, whole.task, whole.train, whole.test, work.runtime)
    return lambda folder: answers.save(folder, found)


_STAGES: dict[Stage, Callable[[Work], Callable[[Path], None]]] = {
    "trained": _trained,
    "drawn": _drew,
    "retrained": _retrained,
    "reference": _referred,
    "prepared": _prepared,
    "unlearned": _unlearned,
    "measured": _measured,
    "answered": _answered,
}
