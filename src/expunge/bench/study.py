"""Trials in Optuna: kept in an SQLite file, drawn by TPE, given up early where other trials did better.

What is tried next depends on the seed, the number of finished trials and their values, and on nothing else: a search
that was killed and goes on tries what it would have tried anyway. A trial that was cut off counts as never made.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from expunge.errors import CorruptArtefact, Incompatible, UserError, listing
from expunge.extras import imported
from expunge.files import atomic, digest
from expunge.method import Search
from expunge.seeds import seed as named_seed

SPEC, DIGEST, COMPARED, DEFAULT, TOLD = "spec", "digest", "compared", "default", "told"
STARTUP = 10  # trials drawn at random before TPE has something to go by, Optuna's own default
PATIENT = 5  # finished trials before one is given up, Optuna's own default
State = Literal["complete", "pruned", "refused"]


@dataclass(frozen=True)
class Trial:
    """A finished trial.

    Args:
        number: from 0; the first is the default settings.
        chosen: values of the searched fields; of the default settings those in their range.
        state: ``complete``; ``pruned`` where it was given up; ``refused`` where the setting does not work.
        value: what is made small, over the seeds that were run; None where the setting does not work.
        told: what the tuning says of it.
    """

    number: int
    chosen: Mapping[str, Any]
    state: State
    value: float | None
    told: Mapping[str, Any]


@dataclass(frozen=True)
class Running:
    """A trial at work.

    Args:
        number: from 0.
        chosen: values of the searched fields; of the default settings those in their range.
        study: the study.
        trial: Optuna's.
    """

    number: int
    chosen: Mapping[str, Any]
    study: Study
    trial: Any

    def hopeless(self, value: float, step: int) -> bool:
        """Note the value so far, and return whether it is worse than the median of earlier trials at this step."""
        self.trial.report(value, step)
        return bool(self.trial.should_prune())

    def finish(self, told: Mapping[str, Any], value: float | None) -> None:
        """End the trial; one without a value was given up, or does not work: TPE takes it for a bad one."""
        self.trial.set_user_attr(TOLD, dict(told))
        state = _states()
        self.study.found.tell(self.trial, value, state=state.PRUNED if value is None else state.COMPLETE)


@dataclass(frozen=True)
class Study:
    """A search in its file.

    Args:
        found: Optuna's study.
        space: where each field is searched.
        default: values of the searched fields that the default settings have.
        seed: of the search.
    """

    found: Any
    space: Mapping[str, Search]
    default: Mapping[str, Any]
    seed: int

    def finished(self) -> list[Trial]:
        """Return the finished trials in order."""
        every = self.found.get_trials(deepcopy=False, states=_ended())
        return [_trial(i, t, complete=t.state == _states().COMPLETE) for i, t in enumerate(every)]

    def ask(self) -> Running:
        """Return the next trial: first the default settings, then what TPE proposes."""
        optuna, number = _optuna(), len(self.finished())
        self.found.sampler = optuna.samplers.TPESampler(
            seed=named_seed("tune", self.seed, number) % 2**32,
            n_startup_trials=STARTUP,
            multivariate=False,  # as when the methods' own searches were made
            constant_liar=False,
        )
        names = list(self.space)
        if number == 0:
            names = [n for n in names if n in self.default and holds(self.space[n], self.default[n])]
            waiting = self.found.get_trials(deepcopy=False, states=(_states().WAITING,))
            if not waiting:
                self.found.enqueue_trial({n: self.default[n] for n in names}, user_attrs={DEFAULT: True})
        trial = self.found.ask()
        return Running(number, {n: _suggested(trial, n, self.space[n]) for n in names}, self, trial)

    def note(self, name: str, value: Any) -> None:
        """Keep a JSON value with the study."""
        self.found.set_user_attr(name, value)

    def noted(self, name: str) -> Any:
        """Return a value that was kept, or None."""
        return self.found.user_attrs.get(name)

    def importance(self) -> dict[str, float]:
        """Return the share of the value's variance that each field explains alone or with others, by fANOVA.

        Empty where there is but one field, or where fewer than `STARTUP` trials were completed.
        """
        optuna, state = _optuna(), _states()
        whole = [t for t in self.found.get_trials(states=(state.COMPLETE,)) if self.space.keys() <= t.params.keys()]
        if len(self.space) < 2 or len(whole) < STARTUP or len({t.value for t in whole}) < 2:
            return {}
        judge = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(self.found, evaluator=judge, params=list(self.space))
        return {name: float(share) for name, share in shares.items()}


@contextmanager
def opened(
    path: Path, name: str, spec: Mapping[str, Any], space: Mapping[str, Search], default: Mapping[str, Any], seed: int
) -> Iterator[Study]:
    """Open a study, or make one; nobody else may work on the file meanwhile.

    Args:
        path: the SQLite file; it may hold several studies.
        name: of the study.
        spec: everything that decides the trials, as plain values.
        space: where each field is searched.
        default: the default settings' values of these fields.
        seed: of the search.

    Yields:
        The study, rid of trials that were cut off.

    Raises:
        MissingExtra: Optuna is not installed.
        UserError: another process works on it.
        Incompatible: it is one of other settings, or was written by another version of Optuna.
        CorruptArtefact: the file is no study.
    """
    optuna = _optuna()
    loud = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.with_name(f"{path.name}.lock"), path):
            found = _found(path, name, spec)
            state = _states()
            for trial in found.get_trials(deepcopy=False, states=(state.RUNNING,)):
                found.tell(trial.number, state=state.FAIL)
            found.pruner = optuna.pruners.MedianPruner(n_startup_trials=PATIENT, n_warmup_steps=0)
            yield Study(found, space, default, seed)
    finally:
        optuna.logging.set_verbosity(loud)


def holds(search: Search, value: Any) -> bool:
    """Return whether a value lies where a field is searched.

    >>> holds(Search(0.1, 100.0, log=True), "auto"), holds(Search(1, 10, whole=True), 5)
    (False, True)
    """
    if search.choices:
        return value in search.choices
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and search.low <= value <= search.high and (not search.whole or value == int(value))


def _optuna() -> Any:
    return imported("optuna", package="optuna", extra="tune")


def _states() -> Any:
    return _optuna().trial.TrialState


def _ended() -> tuple[Any, ...]:
    return _states().COMPLETE, _states().PRUNED


def _found(path: Path, name: str, spec: Mapping[str, Any]) -> Any:
    """Return Optuna's study of this name, held to what is asked for; a new one where no trial is finished yet."""
    optuna = _optuna()
    broken = imported("sqlalchemy.exc", package="sqlalchemy", extra="tune").DatabaseError
    if not path.exists():
        with atomic(path) as room:  # whole tables, or none
            made = _storage(room)
            made.remove_session()
            made.engine.dispose()
    try:
        storage = _storage(path)
        found = optuna.create_study(storage=storage, study_name=name, direction="minimize", load_if_exists=True)
        if found.get_trials(deepcopy=False, states=_ended()):
            _check(found, spec, path)
            return found
        optuna.delete_study(study_name=name, storage=storage)
        found = optuna.create_study(storage=storage, study_name=name, direction="minimize")
    except RuntimeError as error:  # of the tables' version
        remedy = "go on with the version of Optuna that wrote it, or choose another --output"
        raise Incompatible(f"a study that Optuna {optuna.__version__} reads in {path}", "another", remedy) from error
    except (broken, optuna.exceptions.StorageInternalError) as error:
        got = f"another file ({str(error.__cause__ or error).splitlines()[0]:.80})"
        raise CorruptArtefact(f"a study in {path}", got, "restore it, or choose another --output") from error
    found.set_user_attr(SPEC, dict(spec))
    found.set_user_attr(DIGEST, digest(spec))
    return found


def _storage(path: Path) -> Any:
    return _optuna().storages.RDBStorage(f"sqlite:///{path.absolute()}")


def _check(found: Any, spec: Mapping[str, Any], path: Path) -> None:
    """Hold a study to what is asked for."""
    if found.user_attrs.get(DIGEST) == digest(spec):
        return
    then = found.user_attrs.get(SPEC, {})
    other = [k for k in {**then, **spec} if then.get(k) != spec.get(k)]
    want, got = (listing([f"{k}={one.get(k)!r:.80}" for k in other]) for one in (spec, then))
    raise Incompatible(f"a study with {want} in {path}", f"one with {got}", "choose another --output, or ask as before")


@contextmanager
def _alone(lock: Path, path: Path) -> Iterator[None]:
    """Hold a lock that ends with the process, however it ends: SQLite's own, on an empty file beside the study."""
    connection = sqlite3.connect(lock, timeout=0, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        connection.close()
        remedy = "wait for it, or choose another --output"
        raise UserError(f"a study that nobody else works on in {path}", f"'{error}'", remedy) from error
    try:
        yield
    finally:
        connection.close()


def _suggested(trial: Any, name: str, search: Search) -> Any:
    if search.choices:
        return trial.suggest_categorical(name, list(search.choices))
    if search.whole:
        return trial.suggest_int(name, int(search.low), int(search.high), log=search.log)
    return trial.suggest_float(name, search.low, search.high, log=search.log)


def _trial(number: int, found: Any, complete: bool) -> Trial:
    told = found.user_attrs.get(TOLD, {})
    steps = found.intermediate_values
    so_far = steps[max(steps)] if steps else None
    state: State = "complete" if complete else "refused" if told.get("why") else "pruned"
    value = found.value if complete else None if state == "refused" else so_far
    return Trial(number, dict(found.params), state, value, told)
