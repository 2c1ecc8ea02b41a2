"""What a setting is tried on in tuning: one request on one seed, from the benchmark's stages, without a test set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from expunge import methods
from expunge.bench.cell import Cell, Task
from expunge.bench.objectives import ATTACKS, FAMILIES, Objective
from expunge.bench.runner import InProcess, Told, plan, run
from expunge.bench.stages import MODEL, STATE, Setting, Work
from expunge.bench.store import Store
from expunge.data import Data
from expunge.errors import CorruptArtefact, Declined, ExpungeError, UserError
from expunge.evaluate import evaluate
from expunge.evidence import Outputs
from expunge.method import Method, State
from expunge.runtime import Runtime
from expunge.scenario import Scenario
from expunge.scores import REFERENCE, Scores
from expunge.steps import Step, step
from expunge.unlearn import Unlearned, prepare, serve, unlearn
from expunge.zoo import Problem

TRIED = "tried"  # name of the row of a setting
Ready = tuple[nn.Module, State]


@dataclass(frozen=True)
class Ground:
    """One request on one seed: the original and the training data, and what settings are compared with.

    Args:
        seed: of training, of the draw, and of everything random.
        problem: data, network and recipe; its test set is None.
        train: the training data, with wrong labels or triggers where the request plants them.
        original: the trained network.
        steps: the request, or the requests that follow each other; no scenario in them names test samples.
        runtime: device, batch size.
        known: scores of original, retrained models and controls, with holdout measured as the test set.
        outputs: what original and retrained say of each sample.
    """

    seed: int
    problem: Problem
    train: Data
    original: nn.Module
    steps: tuple[Step, ...]
    runtime: Runtime
    known: Scores | None = None
    outputs: Mapping[str, dict[str, Outputs]] = field(default_factory=dict)

    def prepared(self, method: Method) -> Ready:
        """Return model and state of the method's one-off pass, done now."""
        ready = prepare(method, self.original, self.problem.task, train=self.train, **self._common(self.steps[0].own))
        return ready.model, ready.state

    def tried(self, method: Method, ready: Ready) -> Scores:
        """Return the scores after the last request, with a row `TRIED`; nothing is written to disk.

        Args:
            method: with the settings to try.
            ready: what it prepared.

        Returns:
            The scores beside those of original, retrained models and controls.
        """
        model, state = ready
        done: list[Unlearned] = []
        for one in self.steps:
            sets: dict[str, Any] = {
                "forget": self.train.subset(one.own.forget),
                "retain": self.train.without(one.union.forget),
            }
            done = [unlearn(method, model, self.problem.task, **sets, state=state, **self._common(one.own))]
            model, state = done[0].model, done[0].state
        outputs = dict(self.outputs)
        return _measured(self, {TRIED: done[0]}, known=self.known, outputs=outputs)

    def _common(self, scenario: Scenario) -> dict[str, Any]:
        p = self.problem
        return {
            "holdout": p.holdout,
            "recipe": p.recipe,
            "new_model": p.new_model,
            "scenario": scenario,
            "runtime": self.runtime,
            "seed": self.seed,
        }


def needed(cell: Cell, objective: Objective, method: Method | None = None) -> list[Task]:
    """Return what has to be in the store before a request can be tuned on, on one seed.

    Args:
        cell: the request and its seed, without a method.
        objective: says how many models are retrained.
        method: whose one-off pass all settings share; None where each does its own.

    Returns:
        Tasks of the benchmark's stages.
    """
    found = [cell.task("trained"), cell.task("drawn")]
    found += [cell.task("retrained", cell.asked.measured[-1], again) for again in range(objective.retrained)]
    return found if method is None else [*found, replace(cell, method=method.settings()).task("prepared")]


def fill(tasks: list[Task], store: Store, setting: Setting, told: Told | None) -> None:
    """Do what is missing of the tasks; what failed before is tried again.

    Args:
        tasks: from `needed`.
        store: where results are.
        setting: where work is done.
        told: called with each task that ended, its outcome, and how many of how many have.

    Raises:
        CorruptArtefact: a folder is not what was written.
        Declined: the method does not apply to a request.
        UserError: a task cannot be done with what was given.
        ExpungeError: a task failed for another reason.
    """
    work = plan(tasks, store, retry=True)
    for task in work.corrupt:
        remedy = "remove the folder: what it held is computed anew"
        raise CorruptArtefact(f"a finished task in {store.folder(task)}", "other files than were written", remedy)
    summary = run(work, store, InProcess(setting), told=told)
    for task in summary.failed:
        failure = store.failure(task) or {}
        message = str(failure.get("message"))
        where = f"{task.stage} of {task.cell.asked}, seed {task.cell.seed}, failed: {message}"
        raise _told(message) if failure.get("usage") else ExpungeError(where)
    for task in tasks:
        found = store.done(task) or {}
        if found.get("outcome") == "declined":
            name = task.cell.method["name"]
            got = f"one that {name} declines ({found['reason']})"
            raise Declined(f"a request that {name} applies to", got, "take another request, or another method")


def _told(message: str) -> UserError:
    """Return the error of a task that could not use what it was given, in the sentence that the task left."""
    error = UserError("", "", "")
    error.args = (message,)
    return error


def laid(cell: Cell, store: Store, setting: Setting, objective: Objective) -> Ground:
    """Return what settings are tried on, from finished stages; retrained models and controls are measured here.

    Args:
        cell: the request and its seed, without a method.
        store: where the stages are.
        setting: where work is done.
        objective: says how many models were retrained.

    Returns:
        The ground.

    Raises:
        UserError: the problem has no holdout set.
    """
    runtime = setting.runtime(None, False)
    last = cell.asked.measured[-1]
    work = Work(cell.task("retrained", last), store, setting, runtime)
    problem = replace(work.problem, test=None)
    if problem.holdout is None or len(problem.holdout) == 0:
        remedy = "give the problem a holdout set: tuning measures on it, and never on the test set"
        raise UserError(f"a holdout set of {problem.name} to tune on", "none", remedy)
    whole, parts = work.drawn()
    blind = replace(whole, test=())
    steps = tuple(step(blind, parts, number) for number in range(1, len(parts) + 1))
    first, retrain = work.original(), methods.load("retrain")()
    again = [cell.task("retrained", last, k) for k in range(objective.retrained)]
    models: dict[str, Any] = {"original": first}
    if again:
        models[REFERENCE] = [work.result(task, retrain, first) for task in again]
    outputs: dict[str, dict[str, Outputs]] = {}
    bare = Ground(cell.seed, problem, work.train, first, steps, runtime)
    return replace(bare, known=_measured(bare, models, known=None, outputs=outputs), outputs=outputs)


def stored(cell: Cell, method: Method, store: Store, setting: Setting) -> Ready:
    """Return model and state of the one-off pass that all settings share, from the store."""
    task = replace(cell, method=method.settings()).task("prepared")
    work = Work(task, store, setting, setting.runtime(None, False))
    folder = store.folder(task)
    model = work.filled(task) if (folder / MODEL).is_file() else work.original()
    state = State.load(folder / STATE)
    return serve(method, model, state), state


def _measured(
    ground: Ground, models: Mapping[str, Any], *, known: Scores | None, outputs: dict[str, dict[str, Outputs]]
) -> Scores:
    """Measure what objectives read; holdout is handed over as the test set."""
    p, scenario = ground.problem, ground.steps[-1].union
    return evaluate(
        models,
        p.task,
        train=ground.train,
        scenario=replace(scenario, holdout=(), test=scenario.holdout),
        test=p.holdout,
        recipe=p.recipe,
        new_model=p.new_model,
        metrics=FAMILIES,
        attacks=ATTACKS,
        runtime=ground.runtime,
        seed=ground.seed,
        known=known,
        outputs=outputs,
    )
