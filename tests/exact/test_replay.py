"""The audit finds every lie it is told; stages trained again from the manifest are those that are kept, to the bit."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.data import Data, relabelled
from expunge.errors import CorruptArtefact, Incompatible, UserError
from expunge.exact.book import Book
from expunge.exact.manifest import FIRST, entry
from expunge.exact.replay import audit, replay
from expunge.exact.server import Server
from expunge.exact.store import ENTRIES, RECORDED, Store, recorded
from expunge.method import State
from expunge.runtime import Runtime
from expunge.unlearn import prepare, unlearn
from shardings import QUIET, TASK, Case, N, case, die, forked, network

BOTH = pytest.mark.parametrize("name", ["sisa", "s3t"])


def again(made: Case, kept: State | Store, **options: Any) -> list[Any]:
    """Return the replay of a case."""
    return replay(kept, made.base, TASK, **{"train": made.train, "recipe": made.recipe, "runtime": QUIET, **options})


def after(made: Case, *requests: list[str]) -> State:
    """Return the state after requests."""
    model, state = made.ready.model, made.ready.state
    for ids in requests:
        done = unlearn(made.method, model, TASK, forget=ids, state=state)
        model, state = done.model, done.state
    return state


def changed(state: State, book: Book, values: Mapping[str, Any] | None = None) -> State:
    """Return a state with another record in it."""
    tensors = {**state.tensors, **book.tensors(), **(values or {})}
    return State(tensors, {**state.meta, RECORDED: book.to_json(), ENTRIES: list(book.manifest)})


@BOTH
def test_a_state_as_it_was_prepared_is_clean_and_every_stage_replays_to_the_bit(name: str, tmp_path: Path):
    made = case(name)
    for kept in (made.ready.state, made.store(tmp_path / "store")):
        found = audit(kept)
        assert found.clean
        assert (found.deleted, found.reached, found.depths) == (0, N, (3, 3))
        assert found.live == (6 if name == "sisa" else 18)
        assert found.served == 6
    report = again(made, made.ready.state)
    assert len(report) == found.live
    assert all(one.same for one in report)


@BOTH
def test_after_deletions_what_is_left_replays_without_the_deleted_samples(name: str):
    made = case(name)
    gone = [made.slice_of(0, 2)[0], made.slice_of(1, 1)[0]]
    state = after(made, gone[:1], gone[1:])
    found = audit(state)
    assert found.clean
    assert (found.deleted, found.depths) == (2, (2, 1) if name == "sisa" else (2, 2))
    report = again(made, state, train=made.train.without(gone))
    assert {one.stage for one in report} == {s.name for s in recorded(state).stages.values() if s.live}
    assert all(one.same for one in report)


@settings(max_examples=8)
@given(st.data())
def test_after_any_deletions_the_audit_is_clean_and_every_stage_replays(draw: st.DataObject):
    made = case("sisa")
    ids = draw.draw(st.lists(st.sampled_from(made.train.ids), unique=True, min_size=1, max_size=4))
    book = recorded(made.ready.state)
    kept = 0
    for part in ids:
        if not book.after([*ids[:kept], part]).failed:
            kept += 1
    state = after(made, *([i] for i in ids[:kept]))
    assert audit(state).clean
    assert audit(state).deleted == kept
    assert all(one.same for one in again(made, state, train=made.train.without(ids[:kept])))


def test_retrained_stages_replay_and_the_deleted_samples_do_not_come_back():
    made = case("sisa")
    gone = made.slice_of(0, 1)[:1]
    stays = made.train.without(gone)
    args = {"retain": stays, "recipe": made.recipe, "state": made.ready.state, "runtime": QUIET}
    done = unlearn(made.method, made.ready.model, TASK, forget=gone, **args)
    assert audit(done.state).depths == (3, 3)
    assert audit(done.state).clean
    assert all(one.same for one in again(made, done.state))  # the data may hold them: they are not read
    anew = prepare(made.method, network("sisa"), TASK, train=stays, **_how(made))
    assert {n: t.tolist() for n, t in anew.state.tensors.items() if n.startswith("stage/")} == {
        n: t.tolist() for n, t in done.state.tensors.items() if n.startswith("stage/")
    }


def _how(made: Case) -> dict[str, Any]:
    return {"recipe": made.recipe, "new_model": lambda: made.base, "runtime": QUIET}


@BOTH
def test_a_stage_that_was_tampered_with_does_not_replay_and_fails_the_audit(name: str):
    made = case(name)
    state = made.ready.state
    key = next(n for n in state.tensors if n.startswith("stage/0/0-1/"))
    bad = State({**state.tensors, key: state.tensors[key] + 0.5}, state.meta)
    assert audit(bad).faults == ("The tensors of stage 0/0-1 are not those of the manifest.",)
    (found,) = again(made, bad, stages=["0/0-1"])
    assert not found.same
    assert found.differs == (key.removeprefix("stage/0/0-1/"),)
    assert found.largest == pytest.approx(0.5)
    (behind,) = again(made, bad, stages=["0/0-1-2"])  # what it was made from is another now
    assert not behind.same


def forged(book: Book, name: str, tensors: str) -> Book:
    """Return a record whose last training of a stage gave other tensors, its manifest whole."""
    lines: list[dict[str, Any]] = []
    for line in book.manifest:
        body = {k: v for k, v in line.items() if k not in ("number", "entry", "previous", "hash")}
        if line["entry"] == "retrained" and line["stage"] == name:
            body["tensors"] = tensors
        lines.append(entry(lines[-1]["hash"] if lines else FIRST, len(lines), line["entry"], body))
    stage = replace(book.stages[name], tensors=tensors)
    return replace(book, stages={**book.stages, name: stage}, manifest=tuple(lines))


def test_weights_that_were_trained_on_a_deleted_sample_are_found_by_replay_where_all_records_are_forged():
    made = case("sisa")
    gone = made.slice_of(0, 0)[:1]
    args = {"retain": made.train.without(gone), "recipe": made.recipe, "state": made.ready.state, "runtime": QUIET}
    done = unlearn(made.method, made.ready.model, TASK, forget=gone, **args)
    assert again(made, done.state, stages=["0/0"])[0].same
    old = {n: t for n, t in made.ready.state.tensors.items() if n.startswith("stage/0/0/")}
    lie = forged(recorded(done.state), "0/0", recorded(made.ready.state).stages["0/0"].tensors)
    bad = changed(done.state, lie, old)
    assert audit(bad).clean
    (found,) = again(made, bad, stages=["0/0"])
    assert not found.same
    assert found.largest > 1e-4


def test_the_audit_finds_deletions_that_were_taken_back():
    made = case("sisa")
    ids = made.slice_of(0, 1)
    state = after(made, ids[:2])
    book = recorded(state)
    lie = replace(book, gone=book.gone.copy())
    lie.gone[book.rows(ids[:1])] = 0
    assert audit(changed(state, lie)).faults == ("Request 1 deleted other samples than the table marks for it.",)
    moved = replace(book, at=book.at.copy())
    moved.at[book.rows(ids[2:3])] = 0
    assert "read other samples than the table says" in audit(changed(state, moved)).faults[0]
    settings = replace(book, config={**book.config, "seed": 99})
    assert "settings of training are not those that the manifest says" in audit(changed(state, settings)).faults[0]


def test_the_audit_finds_tensors_and_files_of_revoked_stages(tmp_path: Path):
    made = case("sisa")
    ids = made.slice_of(0, 1)[:1]
    state = after(made, ids)
    old = {n: t for n, t in made.ready.state.tensors.items() if n.startswith("stage/0/0-1/")}
    bad = State({**state.tensors, **old}, state.meta)
    assert audit(bad).faults == ("The state still holds tensors of stage 0/0-1, which is not live.",)
    with made.server(tmp_path / "store") as server:
        file = tmp_path / "store" / "shard0" / "0-1" / "model.safetensors"
        body = file.read_bytes()
        server.delete(ids)
    assert audit(Store.open(tmp_path / "store")).clean
    file.parent.mkdir()
    file.write_bytes(body)
    assert audit(Store.open(tmp_path / "store")).faults == (f"{file.parent} belongs to no stage that is live.",)
    with Server(tmp_path / "store", made.base, TASK):  # a server clears it away
        assert not file.exists()


def test_the_audit_holds_the_network_before_any_stage_to_the_record_where_it_is_given():
    made = case("sisa")
    assert audit(made.ready.state, made.base).clean
    other = made.base
    torch.nn.init.zeros_(next(other.parameters()))
    want = ("The weights of the network before any stage are not those that training began from.",)
    assert audit(made.ready.state, other).faults == want


def test_a_broken_chain_is_refused():
    state = case("sisa").ready.state
    lines = [dict(line) for line in state.meta[ENTRIES]]
    lines[2]["n"] += 1
    with pytest.raises(CorruptArtefact, match="entries follow each other, got a break at 2"):
        audit(State(state.tensors, {**state.meta, ENTRIES: lines}))
    with pytest.raises(CorruptArtefact, match="stages as the manifest tells of them"):
        audit(State(state.tensors, {**state.meta, ENTRIES: state.meta[ENTRIES][:-1]}))


def test_what_does_not_belong_to_the_record_is_refused_in_a_sentence():
    made = case("sisa")
    state = made.ready.state
    with pytest.raises(UserError, match=r"stages among 0/0, .*, got 0/9: name others"):
        again(made, state, stages=["0/9"])
    with pytest.raises(UserError, match=r"all \d+ samples that stage 0/0 read, got 1 fewer: pass the data"):
        again(made, state, train=made.train.without(made.slice_of(0, 0)[:1]), stages=["0/0"])
    flipped = relabelled(made.train, (made.train.targets() + 1) % 3)
    with pytest.raises(UserError, match="content that was prepared under each id, got other content under patient-"):
        again(made, state, train=flipped, stages=["0/0"])
    with pytest.raises(Incompatible, match="the recipe that sisa was prepared with, got another"):
        again(made, state, recipe=replace(made.recipe, lr=0.2))
    with pytest.raises(Incompatible, match="the network that training began from, got another"):
        replay(state, made.new_model().float().apply(_shifted), TASK, train=made.train, recipe=made.recipe)
    with pytest.raises(UserError, match="a state that sisa or s3t prepared, got another"):
        audit(State())


def _shifted(module: torch.nn.Module) -> None:
    for p in module.parameters(recurse=False):
        torch.nn.init.constant_(p, 0.25)


def big(*shape: int) -> Data:
    draw = torch.Generator().manual_seed(5)
    return Data.from_arrays(torch.randn(200, *shape, generator=draw), torch.randint(0, 3, (200,), generator=draw))


def trained(name: str, folder: Path, train: Data) -> State:
    """Prepare with each stage kept in a folder until the end."""
    made = case(name)
    runtime = Runtime(progress=False, device="cpu", workdir=folder, checkpoint_every=0)
    return prepare(made.method, network(name), TASK, train=train, **{**_how(made), "runtime": runtime}).state


@pytest.mark.parametrize(
    ("name", "shape"), [("sisa", (5,)), pytest.param("s3t", (1, 4, 4), marks=pytest.mark.slow)], ids=["sisa", "s3t"]
)
def test_training_killed_twenty_times_ends_as_if_it_never_was(
    name: str, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # what a process wrote outlasts its being killed without it
    train, draw, folder = big(*shape), random.Random(11), tmp_path / "killed"
    whole = trained(name, tmp_path / "whole", train)
    begun = time.perf_counter()
    assert recorded(trained(name, tmp_path / "whole", train)).manifest == recorded(whole).manifest
    takes = time.perf_counter() - begun
    kept, ended = list[int](), False
    while len(kept) < 20 or not ended:

        def work(wait: float) -> None:
            timer = threading.Timer(wait, die)
            timer.start()
            state = trained(name, folder, train)
            timer.cancel()
            state.save(tmp_path / "state.safetensors", overwrite=True)

        ended = forked(partial(work, draw.uniform(0, takes))) == 0
        if ended:
            state = State.load(tmp_path / "state.safetensors")
            assert recorded(state).manifest == recorded(whole).manifest
            assert all(torch.equal(state.tensors[n], whole.tensors[n]) for n in whole.tensors if n.startswith("stage/"))
            assert audit(state).clean
            assert list(folder.glob("*.safetensors")) == []
        else:
            kept.append(len(list(folder.glob("*stage*.safetensors"))))
    assert len(set(kept)) >= 3  # the kills fell in different stages
