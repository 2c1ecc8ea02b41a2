"""A pool of models on halves of the data, and simulated requests on each of them: the cells, and what they say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from expunge.bench import answers, problems
from expunge.bench.cell import Cell, Task
from expunge.bench.runner import Executor, InProcess, plan, run
from expunge.bench.stages import RESULT, SCENARIO, Setting
from expunge.bench.store import Store, versions
from expunge.bench.together import at_once, train_together
from expunge.bench.workers import Workers
from expunge.data import Data
from expunge.errors import Declined, ExpungeError, Incompatible, UserError
from expunge.files import read_document, write_document
from expunge.qualify.asked import Against, Asked, Drawing
from expunge.qualify.trials import Mask, Said, Trials, check_stands
from expunge.shadows import draw
from expunge.trial import Request
from expunge.zoo import Problem

POOL, POOL_KIND, POOL_SCHEMA = "pool.json", "expunge.pool", 1
LEAST_MODELS = 8  # with fewer, half of them without the two of the request leave no mean and deviation to speak of
MASK: Mapping[str, Any] = {"name": "head_mask"}
ANY_REQUEST = Request("random", 1)  # of the stages that no request decides
Told = Callable[[Task, str, int, int], None]


@dataclass(frozen=True, eq=False)
class Pool:
    """Models trained on balanced random halves of a data set, each a cell of the benchmark's store.

    Args:
        data: as in `expunge.bench.cell.Cell`.
        network: its name.
        recipe: how it is trained, in full.
        setting: where the store is and work is done.
        models: T, even and at least 8.
        seed: of halves, training and draws.
        workers: processes that do the work.
        told: called with each task that ended, its outcome, and how many of how many have.
        variants: changes of the recipe, by name, under which a retrained model is as good as another: batch size ...
        stacked: models trained in one pass; 0 takes 16 on a GPU, and one by one elsewhere, where it is no faster.

    Raises:
        UserError: an odd number of models, or too few.
    """

    data: Mapping[str, Any]
    network: str
    recipe: Mapping[str, Any]
    setting: Setting
    models: int
    seed: int = 0
    workers: int = 1
    told: Told | None = field(default=None)
    stacked: int = 0
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.models < LEAST_MODELS or self.models % 2:
            want = f"an even number of models, {LEAST_MODELS} or more: they come in pairs of complementary halves"
            raise UserError(want, str(self.models), "train 64, or 30 for a verdict at the least")

    @cached_property
    def problem(self) -> Problem:
        """Data, network and recipe, with all training data."""
        return problems.problem(self._cell(0, ANY_REQUEST, half=False), self.setting.data_dir, self.setting.projects)

    @cached_property
    def seen(self) -> Mask:
        """Which samples each model is trained on, (T, N)."""
        return draw(self.train.ids, self.models, self.seed)

    @property
    def train(self) -> Data:
        """All training data."""
        return self.problem.train

    @cached_property
    def places(self) -> dict[str, int]:
        """The column of each training sample."""
        return {name: at for at, name in enumerate(self.train.ids)}

    @cached_property
    def store(self) -> Store:
        """Where the models are."""
        return Store.open(self.setting.store)

    def check(self) -> None:
        """Hold the store to this pool, or note in it what it is of.

        Raises:
            UserError: there is no test data, or some of the data has no labels.
            Incompatible: it holds the pool of another network, recipe, data set, seed or version.
        """
        test = self.problem.test
        if test is None or not (len(test) and test.labelled and self.train.labelled):
            remedy = "name test data, and a column of labels"
            raise UserError("labelled training and test data to qualify on", "none of one", remedy)
        file = self.store.path / POOL
        own = {
            "data": {k: v for k, v in self.data.items() if k != "project"},
            "samples": problems.fingerprint([self.train, self.problem.test]),
            "network": self.network,
            "recipe": dict(self.recipe),
            "seed": self.seed,
            "precision": self.setting.precision,
            "versions": {k: v for k, v in versions().items() if k != "python"},
        }
        if not file.is_file():
            write_document(file, POOL_KIND, POOL_SCHEMA, own)
            return
        there = read_document(file, POOL_KIND, POOL_SCHEMA)
        odd = [key for key in own if there.get(key) != own[key]]
        if odd:
            key = odd[0]
            got = "other samples" if key in ("samples", "data") else f"one of {key} {_brief(there.get(key), own[key])}"
            want = f"a pool of this model in {self.store.path}"
            raise Incompatible(want, got, "choose another --store, or put things back as they were")

    def train_all(self) -> None:
        """Train what is missing of the pool, and ask every model of all samples.

        Raises:
            ExpungeError: a model cannot be trained.
        """
        tasks = [self.answered(t) for t in range(self.models)]
        together = self.stacked or at_once(self.setting)
        if together > 1:
            train_together([task.needs[0] for task in tasks], self.setting, together)
        self.done(tasks)

    def answered(self, model: int) -> Task:
        """Return the task of what a model of the pool says."""
        return self._cell(model, ANY_REQUEST).task("answered")

    def cell(self, model: int, request: Request, method: Mapping[str, Any] | None = None) -> Cell:
        """Return the cell of one request to one model."""
        found = self._cell(model, request)
        return found if method is None else found.with_method(method)

    def done(self, tasks: Sequence[Task]) -> None:
        """Do what is missing of tasks and of what they need.

        Raises:
            Declined: a method does not apply.
            Incompatible: a finished task's folder is not what was written.
            ExpungeError: a task failed; failed ones are tried again by every call.
        """
        work = plan(tasks, self.store, retry=True)
        executor: Executor
        executor = InProcess(self.setting) if self.workers == 1 else Workers(self.setting, self.workers)
        summary = run(work, self.store, executor, told=self.told)
        if summary.corrupt:
            want = f"a finished cell {summary.corrupt[0].name}"
            raise Incompatible(want, "a corrupt one", "remove its folder, it is computed anew")
        if summary.failed:
            body = self.store.failure(summary.failed[0]) or {}
            error = f"{len(summary.failed)} of {len(work.tasks)} tasks failed, the first: {body.get('message')}"
            raise (UserError if body.get("usage") else ExpungeError)("all tasks done", error, "mend it and run again")
        for task in tasks:
            if self.store.status(task) != "done":  # a decline is noted where it was said, not at what needs it
                self._declined(task)

    def said(self, tasks: Sequence[Task], kept: Mask) -> Said:
        """Return what models say, from finished tasks *answered*.

        Args:
            tasks: a row each.
            kept: what each was trained on and is to remember, (R, N).
        """
        rows = [answers.load(self.store.folder(task)) for task in tasks]
        right = None if rows[0].right is None else np.stack([r.right for r in rows if r.right is not None])
        right_test = None if right is None else np.stack([r.right_test for r in rows if r.right_test is not None])
        return Said(np.stack([r.train for r in rows]), np.stack([r.test for r in rows]), kept, right, right_test)

    @cached_property
    def originals(self) -> Said:
        """What the pool's models say."""
        return self.said([self.answered(t) for t in range(self.models)], self.seen)

    @cached_property
    def drawing(self) -> Drawing:
        """What requests are drawn from."""
        return Drawing(self.train, self.seen, self.originals.train, self.seed)

    def seconds(self, stage: str, tasks: Sequence[Task]) -> float:
        """Return how long tasks of a stage took that these tasks rest on, each counted once."""
        found = dict[str, Task]()
        level: Sequence[Task] = tasks
        while level:
            found |= {task.name: task for task in level if task.stage == stage}
            level = list({need.name: need for task in level for need in task.needs}.values())
        return sum(float(self.store.finished(task)["seconds"]) for task in found.values())

    def _declined(self, task: Task) -> None:
        level: Sequence[Task] = [task]
        while level:
            for each in level:
                reason = str((self.store.done(each) or {}).get("reason") or "")
                if reason:
                    raise Declined("a method that applies", reason, "take another method or request")
            level = [need for each in level for need in each.needs]

    def _cell(self, model: int, request: Request, half: bool = True) -> Cell:
        part = {"half": {"model": model, "seed": self.seed}} if half else {}
        return Cell(
            data={**self.data, **part},
            network=self.network,
            recipe=self.recipe,
            request=request.to_json(),
            seed=self.seed + model,
            precision=self.setting.precision,
        )


def _brief(there: Any, own: Any) -> str:
    """Return what differs, as "lr 0.1 instead of 0.05"."""
    if isinstance(there, dict) and isinstance(own, dict):
        keys = sorted(k for k in {*there, *own} if there.get(k) != own.get(k))
        return ", ".join(f"{k} {there.get(k)!r} instead of {own.get(k)!r}" for k in keys[:3])
    return f"{there!r} instead of {own!r}"


@dataclass(frozen=True, eq=False)
class Simulated:
    """Requests of one kind and size by one method on every model of a pool.

    Args:
        asked: what was asked.
        against: what stood for the retrained models, after one request.
        steps: after how many requests in a row.
        trials: the models, after so many requests.
        legitimate: models retrained under each variant of the recipe, after one request, by its name.
        masked: what head-masked models say, after one request; None where the mask does not apply.
        unmasked: why it does not.
        seconds: of all edits, one step, on average.
        cost: seconds by name: ``retrained``, those of variants included, and ``requests``, of all of them.
    """

    asked: Asked
    against: Against
    steps: tuple[int, ...]
    trials: tuple[Trials, ...]
    legitimate: Mapping[str, Said]
    masked: Said | None
    unmasked: str
    seconds: float
    cost: Mapping[str, float]


def simulate(pool: Pool, asked: Asked, method: Mapping[str, Any]) -> Simulated:
    """Ask every model of a trained pool to forget, and return what all models say.

    Args:
        pool: trained.
        asked: kind and size.
        method: settings with its ``name``.

    Returns:
        The trials, with models retrained without the samples beside them.

    Raises:
        Declined: the method does not apply to such requests.
        UserError: requests that cannot be drawn.
        ExpungeError: a task failed.
    """
    cells = [pool.cell(t, request, method) for t, request in enumerate(pool.drawing.requests(asked))]
    pool.done([cell.bare.task("drawn") for cell in cells])
    forgotten, steps = [_forgotten(pool, cell) for cell in cells], _steps(asked.times)
    half, first_gone = int(pool.seen[0].sum()), np.stack([f[0] for f in forgotten])
    kept = pool.seen & ~first_gone
    stands = pool.drawing.stands(asked, kept)
    check_stands(first_gone, ~kept if stands is None else stands)  # before anything is trained for it
    against = {s: asked.against(max(int(f[s - 1].sum()) for f in forgotten), half) for s in steps}
    edits = {step: [cell.task("answered", step) for cell in cells] for step in steps}
    retrained = {
        step: [cell.shared.task("answered", step, 1) for cell in cells] if against[step] == "retrained" else []
        for step in steps
    }
    pool.done([task for step in steps for task in edits[step]])  # first: a method may decline
    pool.done([task for step in steps for task in retrained[step]])
    masks, unmasked = _masks(pool, asked, cells)
    trials = tuple(
        _trials(pool, asked, edits[step], retrained[step], [f[step - 1] for f in forgotten]) for step in steps
    )
    legitimate, varied = _legitimate(pool, cells, against[steps[0]], trials[0])
    first = [task.needs[0] for task in edits[steps[0]]]
    every = [task for step in steps for task in edits[step]]
    return Simulated(
        asked=asked,
        against=against[steps[0]],
        steps=steps,
        trials=trials,
        legitimate=legitimate,
        masked=pool.said(masks, trials[0].unlearned.kept) if masks else None,
        unmasked=unmasked,
        seconds=float(np.mean([pool.store.read(task, RESULT)["seconds"] for task in first])),
        cost={
            "retrained": pool.seconds("retrained", [task for step in steps for task in retrained[step]]) + varied,
            "requests": sum(pool.seconds(stage, every) for stage in ("prepared", "unlearned", "answered")),
        },
    )


def _legitimate(pool: Pool, cells: Sequence[Cell], against: Against, trials: Trials) -> tuple[dict[str, Said], float]:
    """Return models retrained under each variant of the recipe, of their own pool or for each request, and seconds."""
    found, seconds = dict[str, Said](), 0.0
    for name, changes in pool.variants.items():
        other = replace(pool, recipe={**pool.recipe, **changes}, variants={})
        if against == "pool":
            other.train_all()
            found[name] = other.originals.rows(np.arange(pool.models) ^ 1)
            tasks = [other.answered(t) for t in range(pool.models)]
        else:
            tasks = [other.cell(t, cell.asked).task("answered", 1, 1) for t, cell in enumerate(cells)]
            other.done(tasks)
            found[name] = other.said(tasks, trials.unlearned.kept)
        seconds += other.seconds("trained", tasks) + other.seconds("retrained", tasks)
    return found, seconds


def _masks(pool: Pool, asked: Asked, cells: Sequence[Cell]) -> tuple[list[Task], str]:
    """Return what head-masked models say, or why the mask does not apply."""
    if asked.kind != "class":
        return [], "it masks one class, and these requests are of samples whatever their class"
    masks = [cell.shared.with_method(MASK).task("answered", 1) for cell in cells]
    try:
        pool.done(masks)
    except Declined as error:
        return [], error.got
    return masks, ""


def _steps(times: int) -> tuple[int, ...]:
    """Return the numbers of requests in a row after which models are asked: doubled each time, and the last."""
    found = [1]
    while found[-1] < times:
        found.append(min(2 * found[-1], times))
    return tuple(found)


def _forgotten(pool: Pool, cell: Cell) -> list[Mask]:
    """Return which samples are forgotten after each request in a row, (N,) each."""
    body = pool.store.read(cell.bare.task("drawn"), SCENARIO)
    places = pool.places
    found, gone = list[Mask](), np.zeros(len(places), dtype=np.bool_)
    for part in body["parts"]:
        gone = gone.copy()
        gone[[places[i] for i in part]] = True
        found.append(gone)
    return found


def _trials(
    pool: Pool, asked: Asked, edits: Sequence[Task], retrained: Sequence[Task], forgotten: Sequence[Mask]
) -> Trials:
    forget = np.stack(forgotten)
    kept = pool.seen & ~forget
    before, after = pool.originals, pool.said(edits, kept)
    if retrained:
        again = pool.said(retrained, kept)
        stands = pool.drawing.stands(asked, kept)
        return Trials(tuple(pool.train.ids), forget, before, after, again, again, stands)
    partners = np.arange(pool.models) ^ 1
    return Trials(tuple(pool.train.ids), forget, before, after, before.rows(partners), before)
