"""The only callers of a method: check everything, hand over what is declared, time, verify, restore."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from expunge import methods, phase, stamp, tensors
from expunge.choice import cost, example, lacking
from expunge.copies import check_made
from expunge.data import Data, id_texts
from expunge.errors import Declined, MissingNeed, UserError, listing
from expunge.files import digest, jsonable
from expunge.method import SETS, Method, Needs, See, Session, State, see
from expunge.runtime import Runtime
from expunge.scenario import Scenario
from expunge.task import Task
from expunge.train import Recipe

log = logging.getLogger(__name__)
OTHERS = 5  # methods that are named where one is refused


@dataclass(frozen=True)
class Prepared:
    """What `prepare` returns.

    Args:
        model: the same weights, unless the method trains the model itself.
        state: to be saved; the training data may then be thrown away.
        seconds: of the method's own work.
        log: recorded values.
        note: what a reader must know.
        peak_memory: bytes beyond those held before the pass.
    """

    model: nn.Module
    state: State
    seconds: float
    log: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    peak_memory: int = 0


@dataclass(frozen=True)
class Unlearned:
    """What `unlearn` returns.

    Args:
        model: a new module; the caller's is untouched.
        state: for the next request.
        log: recorded values, such as counts and the α used.
        note: what a reader must know.
        seconds: of the method's own work.
        total_seconds: with checks and copies.
        changed: parameters changed, per tensor and in all; None when the method returns another network.
        peak_memory: bytes beyond those held before the edit.
        method: the method's settings.
    """

    model: nn.Module
    state: State
    log: Mapping[str, Any]
    note: str
    seconds: float
    total_seconds: float
    changed: tensors.Changed | None
    peak_memory: int
    method: Mapping[str, Any]


def prepare(
    method: Method,
    model: nn.Module,
    task: Task,
    *,
    train: Data | None = None,
    holdout: Data | None = None,
    recipe: Recipe | None = None,
    new_model: Callable[[], nn.Module] | None = None,
    scenario: Scenario | None = None,
    runtime: Runtime | None = None,
    seed: int = 0,
) -> Prepared:
    """Do a method's one-off pass while the training data is at hand.

    Of several processes all call this alike, share the work where the method is distributed, and return the same.

    Args:
        method: from `expunge.methods.load` or `build`.
        model: the trained network; left as it is.
        task: outputs and per-sample loss.
        train: the training data. Where given, keyed hashes of each id and its content go into the state, so
            that a later request with an unknown id or other content is refused.
        holdout: validation data.
        recipe: the original's training recipe.
        new_model: builds the network before training.
        scenario: the expected kind of request, where a method wants it.
        runtime: device, batch size, memory, precision, progress, workdir.
        seed: of everything random.

    Returns:
        Model, state and seconds.

    Raises:
        UserError: a need is missing, the method declines, or a value is not finite.
        MethodFault: the method broke the protocol.
    """
    runtime = runtime or Runtime()
    given = {"train": train, "holdout": holdout, "recipe": recipe, "scenario": scenario}
    with runtime.agreed():
        _check_pass(method, model, task, given)
    _check_same(method, model, given, None, seed, runtime)
    session = _session(method, "prepare", method.prepares, model, task, given, new_model, runtime, seed)
    done = phase.run(method, session, method.prepare)
    blank: tuple[dict[str, Any], stamp.Table] = (stamp.blank(method), {})
    meta, table = blank if train is None else runtime.on_main(lambda: stamp.table(method, train))
    state = stamp.stamped(done.state, done.model, meta, table)
    return Prepared(done.model, state, done.seconds, done.log, done.note, done.peak)


def unlearn(
    method: Method,
    model: nn.Module,
    task: Task,
    *,
    forget: Data | Sequence[object],
    retain: Data | None = None,
    holdout: Data | None = None,
    state: State | None = None,
    recipe: Recipe | None = None,
    new_model: Callable[[], nn.Module] | None = None,
    scenario: Scenario | None = None,
    runtime: Runtime | None = None,
    seed: int = 0,
) -> Unlearned:
    """Fulfil one request: return a new model from which the forget set has been removed.

    Everything is checked before anything is touched: needs, ids, content, weights, finiteness. Of several processes
    all call this alike; a distributed method runs on all of them, any other on the first, and each process returns
    the same result.

    Args:
        method: from `expunge.methods.load` or `build`.
        model: the network the state belongs to; left bit-identical.
        task: outputs and per-sample loss.
        forget: the samples to forget; ids suffice where the method sees IDS or less.
        retain: samples that stay.
        holdout: validation data.
        state: from `prepare`, or from the request before.
        recipe: the original's training recipe.
        new_model: builds the network before training.
        scenario: what kind of set is forgotten, for methods that want it and for `declines`.
        runtime: device, batch size, memory, precision, progress, workdir.
        seed: of everything random.

    Returns:
        Model, state for the next request, log, note, seconds and what changed.

    Raises:
        UserError: the request cannot be fulfilled as it stands; the message says why and what to do.
        MethodFault: the method broke the protocol.
    """
    started = time.perf_counter()
    runtime = runtime or Runtime()
    sets = {"forget": forget, "retain": retain, "holdout": holdout, "recipe": recipe, "scenario": scenario}
    with runtime.agreed():
        ids, given, meta, table = _checked_request(method, model, task, sets, state)
    _check_same(method, model, given, state, seed, runtime)
    meta, table = runtime.shared((meta, table))  # with a secret key of its own where nothing was prepared
    watched = given["forget"].watched() if isinstance(given["forget"], Data) else None
    given["forget"] = watched
    session = _session(method, "unlearn", method.unlearns, model, task, given, new_model, runtime, seed)
    bare = stamp.bare(state)
    done = phase.run(method, session, lambda s: method.unlearn(s, bare), watched)
    meta = meta | {"requests": meta["requests"] + 1, "forgotten": meta["forgotten"] + len(ids)}
    return Unlearned(
        model=done.model,
        state=stamp.stamped(done.state, done.model, meta, table),
        log={k: v for k, v in done.log.items() if k != "note"},
        note=done.note,
        seconds=done.seconds,
        changed=tensors.changed(model, done.model),
        peak_memory=done.peak,
        method=method.settings(),
        total_seconds=time.perf_counter() - started,
    )


def check(method: Method, phase: str, model: nn.Module, task: Task, given: Mapping[str, Any]) -> None:
    """Hold a whole call of `prepare` or `unlearn` to all that is checked before work begins, and do no work.

    Args:
        method: from `expunge.methods`.
        phase: ``prepare`` or ``unlearn``.
        model: the network.
        task: outputs and loss.
        given: the call's further arguments, by keyword.

    Raises:
        UserError: as the call itself would.
    """
    if phase == "prepare":
        sets = {name: given.get(name) for name in ("train", "holdout", "recipe", "scenario")}
        _check_pass(method, model, task, sets)
    else:
        sets = {name: given.get(name) for name in ("forget", "retain", "holdout", "recipe", "scenario")}
        _checked_request(method, model, task, sets, given.get("state"))


def serve(method: Method, model: nn.Module, state: State) -> nn.Module:
    """Return the module that answers requests, from weights and state read back from disk.

    Args:
        method: the method that left the state.
        model: the network with its stored weights.
        state: as loaded.

    Returns:
        The module the state belongs to: an ensemble, a masked network, or the model itself.

    Raises:
        Incompatible: state and weights do not belong together.
    """
    served = method.serve(model, stamp.bare(state))
    stamp.check_weights(method, served, state)
    return served


def _check_pass(method: Method, model: nn.Module, task: Task, given: Mapping[str, Any]) -> None:
    """Check a call of `prepare`."""
    _check_call(method, model, task)
    asked = _Asked("prepare", method, model, task, given["scenario"])
    _check_applies(asked, given)
    _check_sets(train=given["train"], holdout=given["holdout"])
    _check_needs(asked, method.prepares, given)
    if given["train"] is not None and len(given["train"]) == 0:
        raise UserError("training data", f"no sample in {given['train'].name}", "pass data that is not empty")


def _checked_request(
    method: Method, model: nn.Module, task: Task, sets: Mapping[str, Any], state: State | None
) -> tuple[list[str], dict[str, Any], dict[str, Any], stamp.Table]:
    """Check a call of `unlearn`; return its ids, what is handed to the method, and the next state's stamp and table."""
    forget, retain, scenario = sets["forget"], sets["retain"], sets["scenario"]
    samples = forget if isinstance(forget, Data) else None
    ids = samples.ids if samples is not None else id_texts(forget)
    _check_call(method, model, task)
    asked = _Asked("unlearn", method, model, task, scenario)
    _check_applies(asked, sets)
    if state is not None and not isinstance(state, State):
        raise UserError("a State", type(state).__name__, "pass ready.state, or State.load(path)")
    _check_sets(retain=retain, holdout=sets["holdout"])
    _check_ids(ids, samples, retain, scenario)
    _check_trained(ids, sets["holdout"])
    sighted = samples
    if sighted is None and method.unlearns.forget <= See.IDS:
        sighted = Data.from_arrays(torch.zeros(len(ids), 0), ids=ids, name="forget").only_ids()
    given = {**sets, "forget": sighted}
    _check_needs(asked, method.unlearns, given)
    return ids, given, *stamp.check(method, model, state, ids, samples, retain)


@dataclass(frozen=True)
class _Asked:
    """What a call asks of whom."""

    phase: str
    method: Method
    model: nn.Module
    task: Task
    scenario: Scenario | None

    def others(self, have: Mapping[str, int]) -> str:
        """Return the cheapest other methods that apply and need no more than what is there; to unlearn, unprepared.

        A method that must be given another one to run is not among them: what it needs depends on that one.
        """
        found = list[Method]()
        for name in methods.names():
            other = example(name)
            needs = other.prepares if self.phase == "prepare" else other.unlearns
            idle = not needs.required() if self.phase == "prepare" else bool(other.prepares.required())
            if name == self.method.name or idle or lacking(needs, have) or "method" in other.example:
                continue
            if not other.declines(self.task, self.scenario, self.model):
                found.append(other)
        return " or ".join(other.name for other in sorted(found, key=cost)[:OTHERS])


def _check_call(method: Method, model: nn.Module, task: Task) -> None:
    if not isinstance(method, Method):
        got = f"the class {method.__name__}" if isinstance(method, type) else type(method).__name__
        raise UserError("an instance of a method", got, "write for example load('ssd')()")
    if not isinstance(model, nn.Module):
        raise UserError("a torch.nn.Module", type(model).__name__, "pass the trained network")
    if not isinstance(task, Task):
        raise UserError("a task", type(task).__name__, "pass Classification(), Regression() or another of expunge.task")
    check_made(model)
    tensors.check_weights(model, "weights", "restore the model from a good checkpoint")


def _check_sets(**sets: object) -> None:
    for name, data in sets.items():
        if data is not None and not isinstance(data, Data):
            raise UserError(f"{name} as Data", type(data).__name__, "build it with Data.from_torch or from_arrays")


def _check_same(
    method: Method, model: nn.Module, given: Mapping[str, Any], state: State | None, seed: int, runtime: Runtime
) -> None:
    """Refuse a call that the processes of one launch make with different weights, samples or settings."""
    if runtime.count > 1:
        samples = {name: value.ids for name, value in given.items() if isinstance(value, Data)}
        settings = digest(method.settings(), seed, None if state is None else jsonable(state.meta))
        runtime.same(weights=tensors.weights_digest(model), samples=digest(samples), settings=settings)


def _check_ids(ids: Sequence[str], forget: Data | None, retain: Data | None, scenario: Scenario | None) -> None:
    if not ids:
        raise UserError("at least one sample to forget", "an empty forget set", "name ids that are in the data")
    if len(set(ids)) != len(ids):
        twice = sorted({i for i in ids if ids.count(i) > 1}) if len(ids) < 10_000 else ["one or more"]
        raise UserError("unique forget ids", f"{listing(twice)} more than once", "name each sample once")
    if retain is not None:
        both = sorted(set(ids) & set(retain.ids))
        if both:
            remedy = "pass retain=train.without(forget ids)"
            raise UserError("retain data without the forgotten samples", f"{listing(both)} in both", remedy)
        if len(retain) == 0:
            raise UserError("something to retain", "an empty retain set", "forget fewer samples, or train a new model")
    if scenario is not None and set(scenario.forget) != set(ids):
        odd = sorted(set(scenario.forget) ^ set(ids))
        raise UserError("the scenario's forget ids", f"others ({listing(odd)})", "pass data.subset(scenario.forget)")


def _check_trained(ids: Sequence[str], holdout: Data | None) -> None:
    """Refuse to forget what was held out of training: the original never learned it."""
    both = set() if holdout is None else set(ids) & set(holdout.ids)
    if both:
        remedy = "pass the holdout that the original was trained beside, or give splits other names"
        raise UserError("forget ids outside holdout", f"{listing(sorted(both))} in both", remedy)


def _check_applies(asked: _Asked, given: Mapping[str, Any]) -> None:
    """Refuse a call that the method declines, naming the methods that would do with what is there."""
    reason = asked.method.declines(asked.task, asked.scenario, asked.model)
    if reason:
        others = asked.others(_have(given))
        remedy = f"{reason}; take another method" + (f", such as {others}" if others else "")
        raise Declined(f"a request that {asked.method.name} applies to", "one it declines", remedy)


def _check_needs(asked: _Asked, needs: Needs, given: Mapping[str, Any]) -> None:
    """Refuse a call that lacks a declared need, or sight of a set, naming the methods that would do without."""
    there = {name: value for name, value in given.items() if value is not None} | {"fresh": True}
    missing = [n for n in needs.required() if n not in there]
    short = [n for n in SETS if n in there and needs.declared(n) and _sight(there[n]) < getattr(needs, n)]
    if not missing and not short:
        return
    have, name = _have(given), asked.method.name
    what = f"{' and '.join(missing)} for {name} to {asked.phase}"
    remedy = "pass " + " and ".join(f"{n}=" for n in missing)
    if not missing:
        want = "inputs" if have[short[0]] < See.INPUTS else "labels"
        what, remedy = f"{short[0]} data with {want} for {name}", "give them when building the data"
    others = asked.others(have)
    if others:
        remedy += f", or use {others}, which would do without"
    raise MissingNeed(what, "none", remedy)


def _have(given: Mapping[str, Any]) -> dict[str, int]:
    """Return how much is seen of what is given; it reads a sample of each set, and so only where a call is refused."""
    return {name: _sight(value) for name, value in given.items() if value is not None} | {"fresh": 1}


def _sight(value: Any) -> int:
    if not isinstance(value, Data):
        return 1
    return See.LABELLED if value.labelled else See.INPUTS if value.shows_inputs else See.IDS


def _session(
    method: Method,
    phase: str,
    needs: Needs,
    model: nn.Module,
    task: Task,
    given: Mapping[str, Any],
    new_model: Callable[[], nn.Module] | None,
    runtime: Runtime,
    seed: int,
) -> Session:
    _say_unread(method, needs, given)
    shown = {n: see(v, getattr(needs, n)) if n in SETS else v for n, v in given.items() if needs.declared(n)}
    recipe = shown.get("recipe")
    if isinstance(recipe, Recipe):  # the sets are what was trained on: nothing is planted again
        shown["recipe"] = recipe.again()
    return Session(
        task=task,
        runtime=runtime,
        seed=seed,
        method=method.name,
        phase=phase,
        needs=needs,
        source=model,
        given=shown,
        factory=new_model,
    )


def _say_unread(method: Method, needs: Needs, given: Mapping[str, Any]) -> None:
    """Say once a call that labels are given to a method that reads none; they are hidden from it."""
    both = method.prepares | method.unlearns
    if max(getattr(both, name) for name in SETS) != See.INPUTS:
        return
    seen = [n for n in SETS if getattr(needs, n) == See.INPUTS and isinstance(given.get(n), Data)]
    told = [n for n in seen if given[n].labelled]
    if told:
        log.info("%s reads no labels: those of %s are ignored", method.name, " and ".join(told))
