"""Which ids a state marks as forgotten, whatever made it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from expunge.data import relabelled
from expunge.method import State
from expunge.methods import load
from expunge.stamp import forgotten, unchanged
from expunge.unlearn import Unlearned, prepare, unlearn
from worlds import QUIET, World, world


@pytest.fixture(scope="module")
def tiny() -> World:
    return world("random")


def prepared(w: World) -> tuple[State, Unlearned]:
    """Return a prepared state, and what a request made of it."""
    ready = prepare(load("ssd")(), w.model, w.task, train=w.train, runtime=QUIET)
    done = unlearn(load("ssd")(), ready.model, w.task, forget=w.forget, state=ready.state, runtime=QUIET)
    return ready.state, done


def retrained(w: World, ids: list[str], model: Unlearned | None = None) -> Unlearned:
    start, state = (w.model, None) if model is None else (model.model, model.state)
    gone = {} if state is None else {i: f for i, f in zip(w.train.ids, forgotten(state, w.train.ids), strict=True) if f}
    retain = w.train.without([*gone, *ids])
    recipe = replace(w.recipe, epochs=1)
    given = {"forget": ids, "retain": retain, "recipe": recipe, "new_model": w.new_model, "runtime": QUIET}
    return unlearn(load("retrain")(), start, w.task, state=state, **given)


def test_a_prepared_state_marks_nothing_until_a_request(tiny: World) -> None:
    ready, done = prepared(tiny)
    assert forgotten(ready, tiny.train.ids).tolist() == [False] * len(tiny.train)
    gone = set(tiny.scenario.forget)
    assert forgotten(done.state, tiny.train.ids).tolist() == [i in gone for i in tiny.train.ids]
    assert forgotten(done.state, ["nobody", *tiny.scenario.forget[:1]]).tolist() == [False, True]
    assert forgotten(done.state, []).tolist() == []


def test_a_state_that_was_not_prepared_marks_them_too(tiny: World, tmp_path: Path) -> None:
    ids = list(tiny.train.ids)
    first = retrained(tiny, ids[3:6])
    assert [i for i, f in zip(ids, forgotten(first.state, ids), strict=True) if f] == ids[3:6]
    second = retrained(tiny, ids[10:12], first)
    assert [i for i, f in zip(ids, forgotten(second.state, ids), strict=True) if f] == ids[3:6] + ids[10:12]
    second.state.save(tmp_path / "state")
    again = State.load(tmp_path / "state")
    assert forgotten(again, ids).tolist() == forgotten(second.state, ids).tolist()


def test_a_state_tells_the_samples_it_was_prepared_on_from_changed_ones(tiny: World) -> None:
    ready, done = prepared(tiny)
    gone, rest = list(tiny.scenario.forget), tiny.train.without(tiny.scenario.forget)
    assert unchanged(ready, tiny.train)
    assert unchanged(ready, rest)
    assert unchanged(done.state, rest)
    assert not unchanged(done.state, tiny.train.subset(gone[:1]))
    for swap in (replace(rest, all_ids=np.roll(rest.all_ids, 1)), relabelled(rest, 1 - rest.targets())):
        assert not unchanged(done.state, swap)
    stranger = np.array(["nobody" if i == rest.ids[-1] else i for i in rest.all_ids], dtype=object)
    assert not unchanged(done.state, replace(rest, all_ids=stranger))
    assert unchanged(retrained(tiny, gone).state, rest) is None


def test_states_without_marks_are_not_taken_for_ones_that_forgot_nothing(tiny: World) -> None:
    _, done = prepared(tiny)
    meta = dict(done.state.meta)
    own = dict(meta["expunge"])
    assert forgotten(State(), tiny.train.ids) is None
    assert forgotten(State(done.state.tensors, {k: v for k, v in meta.items() if k != "expunge"}), ["a"]) is None
    assert forgotten(State(done.state.tensors, {**meta, "expunge": "text"}), ["a"]) is None
    keyless = {k: v for k, v in own.items() if k != "key"}
    assert forgotten(State(done.state.tensors, {**meta, "expunge": keyless}), ["a"]) is None
    bare = {k: done.state.tensors[k] for k in done.state.tensors if not k.startswith("samples/")}
    assert forgotten(State(bare, meta), ["a"]) is None
