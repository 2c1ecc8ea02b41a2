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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from expunge.bench import ground as grounds
from expunge.bench import objectives
from expunge.bench import study as studies
from expunge.bench.cell import Task
from expunge.bench.ground import TRIED, Ground, Ready
from expunge.bench.objectives import Undefined
from expunge.bench.runner import one_by_one
from expunge.bench.stages import Setting
from expunge.bench.store import Store
from expunge.bench.study import Running, Study
from expunge.bench.tuning import Tuning, document
from expunge.errors import CorruptArtefact, Declined, Incompatible, MissingExtra, MissingNeed, UserError
from expunge.scores import REFERENCE, Scores

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
    with studies.opened(study, tuning.method, tuning.spec, tuning.space, tuning.start, tuning.seed) as room:
        if len(room.finished()) < trials or room.noted(studies.COMPARED) is None:
            with one_by_one():
                _Search(tuning, setting, room, told).run(trials)
        return document(tuning, room.finished()[:trials], room.noted(studies.COMPARED), room.importance())


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
        tasks = [
            task for column in tuning.seeded for cell in column for task in grounds.needed(cell, tuning.aim, shared)
        ]

        def step(task: Task, _: str, over: int, total: int) -> None:
            self.told(Progress(f"{task.stage}: {task.cell.asked}, seed {task.cell.seed}", over, total))

        grounds.fill(tasks, store, self.setting, step)
        if shared is None:
            return {}
        return {
            (i, k): grounds.stored(cell, shared, store, self.setting)
            for i, column in enumerate(tuning.seeded)
            for k, cell in enumerate(column)
        }

    def _grounds(self) -> list[list[Ground]]:
        """Return the grounds, a list of seeds for each request."""
        tuning, store, total = self.tuning, Store(self.setting.store), len(self.tuning.cells) * len(self.tuning.seeds)
        laid: list[list[Ground]] = []
        for i, column in enumerate(tuning.seeded):
            laid.append([])
            for k, cell in enumerate(column):
                what = f"measuring retrained: {cell.asked}, seed {cell.seed}"
                self.told(Progress(what, i * len(column) + k, total))
                laid[i].append(grounds.laid(cell, store, self.setting, tuning.aim))
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
            method = self.tuning.made(chosen)
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
