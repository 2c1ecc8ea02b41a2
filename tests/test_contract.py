"""The contract of every discovered method and control; a new file in the folder is tested by being there."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expunge import methods
from expunge.data import Batch, Data
from expunge.errors import MissingNeed, UserError
from expunge.method import Method, See, State
from expunge.runtime import Runtime
from expunge.tensors import weights_digest
from expunge.unlearn import Prepared, Unlearned, prepare, unlearn
from worlds import QUIET, World, world

NAMES = methods.names(controls=True)


@pytest.fixture(scope="module")
def places() -> tuple[World, ...]:
    return world(), world("range"), world("blocks"), world("tokens")


@pytest.fixture
def tiny(name: str, places: tuple[World, ...]) -> World:
    """Return the first world that the method of the test applies to."""
    return next(w for w in places if not made(name).declines(w.task, w.scenario, w.model))


def made(name: str) -> Method:
    return methods.build({"name": name, **methods.load(name).example})


def prepared(method: Method, w: World, **more: object) -> Prepared:
    given = {"train": w.train, "holdout": w.holdout, "recipe": w.recipe, "new_model": w.new_model}
    given |= {"scenario": w.scenario, "runtime": QUIET, "seed": 3}
    return prepare(method, w.model, w.task, **{**given, **more})


def run(method: Method, w: World, ready: Prepared, **more: object) -> Unlearned:
    given = {
        "forget": w.forget,
        "retain": w.retain,
        "holdout": w.holdout,
        "state": ready.state,
        "recipe": w.recipe,
        "new_model": w.new_model,
        "scenario": w.scenario,
        "runtime": QUIET,
        "seed": 3,
    }
    return unlearn(method, ready.model, w.task, **{**given, **more})


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return weights_digest(a) == weights_digest(b)


@pytest.mark.parametrize("name", NAMES)
def test_it_describes_itself(name: str) -> None:
    cls = methods.load(name)
    assert cls.name == name == cls.__module__.rpartition(".")[2]
    assert cls.__doc__
    assert cls.__doc__.splitlines()[0].endswith(".")
    assert cls.reference.link.startswith("https://")
    assert 1900 < cls.reference.year <= 2030
    assert name in cls.reference.bibtex(name)
    for field in fields(cls):
        assert field.metadata["text"], field.name
        assert field.metadata["unit"], field.name
    assert methods.build(made(name).settings()) == made(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_caller_sees_nothing_move(name: str, tiny: World) -> None:
    method, before = made(name), weights_digest(tiny.model)
    tiny.model.train()
    tiny.model[1].eval()
    tiny.model[4].bias.requires_grad_(False)
    modes = [m.training for m in tiny.model.modules()]
    flags = [p.requires_grad for p in tiny.model.parameters()]
    torch.manual_seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    try:
        with torch.no_grad():
            ready = prepared(method, tiny)
            done = run(method, tiny, ready)
            assert not torch.is_grad_enabled()
        assert weights_digest(tiny.model) == before
        assert [m.training for m in tiny.model.modules()] == modes
        assert [p.requires_grad for p in tiny.model.parameters()] == flags
        assert all(p.grad is None for p in tiny.model.parameters())
        hooks = [m for m in tiny.model.modules() if m._forward_hooks or m._backward_hooks or m._forward_pre_hooks]
        assert not hooks
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.array_equal(np.random.get_state()[1], states[1])
        assert random.getstate() == states[2]
        if type(done.model) is type(tiny.model):  # of an ensemble there is no mode to put back
            assert [m.training for m in done.model.modules()] == modes
            assert [p.requires_grad for p in done.model.parameters()] == flags
        assert done.model is not tiny.model
    finally:
        tiny.model.eval().requires_grad_(True)


@pytest.mark.parametrize("name", NAMES)
def test_prepare_leaves_the_weights_unless_it_trains(name: str, tiny: World) -> None:
    method = made(name)
    if not (method.prepares.fresh or method.prepares.recipe or method.refits):
        assert same(prepared(method, tiny).model, tiny.model)


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_gives_identical_weights(name: str, tiny: World) -> None:
    method = made(name)
    first, second = (run(method, tiny, prepared(method, tiny)) for _ in range(2))
    assert same(first.model, second.model)
    values = [s for s in first.state.tensors if not s.startswith("samples/")]
    assert all(torch.equal(first.state.tensors[k], second.state.tensors[k]) for k in values)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["state.safetensors", "state"])
def test_a_state_from_disk_gives_identical_weights(name: str, form: str, tiny: World, tmp_path: Path) -> None:
    method, path = made(name), tmp_path / form
    ready = prepared(method, tiny)
    ready.state.save(path)
    loaded = Prepared(ready.model, State.load(path), 0.0)
    assert same(run(method, tiny, ready).model, run(method, tiny, loaded).model)


@pytest.mark.parametrize("name", NAMES)
def test_a_second_request_follows_the_first(name: str, tiny: World) -> None:
    method, w = made(name), tiny
    first = run(method, w, prepared(method, w))
    rest = w.retain
    ids = rest.ids[:3]
    case = copy.copy(w.scenario.to_json()) | {"train": rest.ids, "forget": ids, "kind": "ids", "target": None}
    scenario = type(w.scenario).from_json(case)
    if method.declines(w.task, scenario, first.model):
        return
    more = {"forget": rest.subset(ids), "retain": rest.without(ids), "scenario": scenario, "state": first.state}
    second = run(method, w, Prepared(first.model, first.state, 0.0), **more)
    own = second.state.meta["expunge"]
    assert own["requests"] == 2
    assert own["forgotten"] == len(w.forget) + 3
    with pytest.raises(UserError, match="already forgotten"):
        run(method, w, Prepared(second.model, second.state, 0.0), **{**more, "state": second.state})


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_forget_set_is_refused(name: str, tiny: World) -> None:
    with pytest.raises(UserError, match="at least one sample to forget, got an empty forget set"):
        run(made(name), tiny, prepared(made(name), tiny), forget=[], scenario=None)


@pytest.mark.parametrize("name", NAMES)
def test_each_missing_need_is_named(name: str, tiny: World) -> None:
    method = made(name)
    ready = prepared(method, tiny)
    for need in method.unlearns.required():
        if need in ("forget", "fresh"):
            continue
        with pytest.raises(MissingNeed, match=need):
            run(method, tiny, ready, **{need: None})
    if method.unlearns.forget >= See.INPUTS:
        with pytest.raises(MissingNeed, match="forget"):
            run(method, tiny, ready, forget=list(tiny.scenario.forget))
    if method.prepares.required():
        with pytest.raises(MissingNeed, match="run prepare"):
            run(method, tiny, ready, state=None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 2, 6, 7, 8])
def test_every_forget_sample_counts(name: str, count: int, tiny: World) -> None:
    method, w = made(name), tiny
    ids = w.train.ids[:count]
    scenario = type(w.scenario)(train=tuple(w.train.ids), forget=tuple(ids), kind="ids")
    if method.declines(w.task, scenario, w.model):
        return
    more = {"forget": w.train.subset(ids), "retain": w.train.without(ids), "scenario": scenario}
    done = run(method, w, prepared(method, w, scenario=scenario), **more)
    assert done.changed is None or done.changed.count > 0 or done.note


def choosing(method: Method) -> Method:
    """Return a method that keeps the best epoch; an ascent then has no loss at which it ends."""
    return replace(method, keep_best=True, **({"until": None} if hasattr(method, "until") else {}))  # type: ignore[call-arg]


BOTH = (False, True)
CHOOSING = [(name, best) for name in NAMES for best in BOTH if not best or "keep_best" in made(name).settings()]


@pytest.mark.parametrize(("name", "best"), CHOOSING)
def test_no_method_reads_more_than_it_says(name: str, best: bool, tiny: World, monkeypatch: pytest.MonkeyPatch) -> None:
    method, seen, at = made(name), {"prepare": 0, "unlearn": 0}, [""]
    method = choosing(method) if best else method
    read = Data.read

    def counted(data: Data, index: Sequence[int]) -> Batch:
        if at[0] and data.name not in ("noise", "poisoned"):  # inputs that the method makes are no samples
            seen[at[0]] += len(index)
        return read(data, index)

    def within(phase: str) -> None:
        work = getattr(type(method), phase)

        def watched(self: Method, *given: Any) -> Any:
            outer, at[0] = at[0], phase  # a composition calls another method's within its own
            try:
                return work(self, *given)
            finally:
                at[0] = outer

        monkeypatch.setattr(type(method), phase, watched)

    monkeypatch.setattr(Data, "read", counted)
    for phase in seen:
        within(phase)
    run(method, tiny, prepared(method, tiny))
    sets = {"train": tiny.train, "holdout": tiny.holdout, "forget": tiny.forget, "retain": tiny.retain}
    for phase, count in seen.items():
        most = sum(times * len(sets[part]) for part, times in method.passes(phase, tiny.recipe).items())
        trial = QUIET.batch_size  # samples on which the engines of the Fisher diagonal are first held to each other
        assert count <= most + trial, phase
    assert ("holdout" in method.passes("unlearn", tiny.recipe)) >= best
    assert seen["unlearn"] > 0 or max(method.unlearns.forget, method.unlearns.retain) < See.INPUTS


@pytest.mark.parametrize(("name", "best"), CHOOSING)
def test_no_progress_bar_goes_past_its_end(name: str, best: bool, tiny: World, monkeypatch: pytest.MonkeyPatch) -> None:
    method, bars = made(name), list[list[float]]()
    method = choosing(method) if best else method

    @contextmanager
    def noted(runtime: Runtime, text: str, total: int) -> Iterator[Callable[[int], None]]:
        bar = [float(total), 0.0]
        bars.append(bar)

        def advance(count: int) -> None:
            bar[1] += count

        yield advance

    monkeypatch.setattr(Runtime, "tracking", noted)
    run(method, tiny, prepared(method, tiny))
    assert all(0 < done <= total for total, done in bars)
