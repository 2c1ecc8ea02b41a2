"""What counts as finished, what does not, and who works on what."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benches import FORK, fill, leftovers, numbers, results, tiny
from expunge import tensors
from expunge.bench import claims, collect, store
from expunge.bench.cell import Task
from expunge.bench.claims import Claims, Owner
from expunge.bench.grid import Grid
from expunge.bench.runner import plan
from expunge.bench.store import Store
from expunge.errors import CorruptArtefact, Incompatible, UserError


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return tiny(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def filled(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "store"
    fill(grid, path)
    return path


@pytest.fixture
def place(filled: Path, tmp_path: Path) -> Store:
    shutil.copytree(filled, tmp_path / "store")
    return Store.open(tmp_path / "store")


@pytest.fixture
def empty(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "empty")


@pytest.fixture
def task(grid: Grid) -> Task:
    return results(grid)[1]


def written(room: Store, task: Task, text: str = "{}") -> None:
    with room.writing(task) as (folder, body):
        (folder / "values.json").write_text(text)
        body["seconds"] = 1.0


# The store itself.


def test_a_store_is_made_once_and_knows_itself(tmp_path: Path) -> None:
    first = Store.open(tmp_path / "a" / "b")
    assert first.identity == Store.open(tmp_path / "a" / "b").identity != Store.open(tmp_path / "c").identity
    assert Store(tmp_path / "nowhere").identity is None
    assert json.loads((first.path / "store.json").read_text())["kind"] == "expunge.store"


def test_a_store_of_a_newer_version_is_refused(empty: Store) -> None:
    head = empty.path / "store.json"
    head.write_text(json.dumps(json.loads(head.read_text()) | {"schema": 2}))
    with pytest.raises(Incompatible, match="schema 1 or older in .*store.json, got 2: update expunge"):
        Store.open(empty.path)


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda p: p.write_text("x"), "a file"),
        (lambda p: (p / "trained").mkdir(parents=True), "another folder, not empty"),
        (lambda p: [p.mkdir(), (p / "notes.txt").write_text("x")], "another folder, not empty"),
    ],
)
def test_what_is_no_store_is_left_alone(make: Callable[[Path], Any], got: str, tmp_path: Path) -> None:
    path = tmp_path / "there"
    make(path)
    before = sorted(path.rglob("*"))
    with pytest.raises(UserError, match=f"a store, or a free path, at .*, got {got}: choose another --store"):
        Store.open(path)
    assert sorted(path.rglob("*")) == before


def test_an_empty_folder_and_one_in_which_a_store_was_being_made_become_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert Store.open(tmp_path / "a").identity
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ".store.json.0123").write_text("half")
    assert Store.open(tmp_path / "b").identity


def test_a_store_that_cannot_be_written_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*words: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(UserError, match="to write .*, got No space left on device: free the space"):
        Store.open(tmp_path / "new")


def test_of_many_that_make_a_store_at_once_all_open_the_same(tmp_path: Path) -> None:
    found, start = [], threading.Barrier(8)

    def make() -> None:
        start.wait()
        found.append(Store.open(tmp_path / "store").identity)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


# Results: whole or not there.


def test_a_result_is_there_whole_with_its_document(empty: Store, task: Task) -> None:
    assert empty.status(task) == "missing"
    with empty.writing(task) as (folder, body):
        (folder / "values.json").write_text('{"a":1}')
        body["seconds"] = 2.0
        assert empty.status(task) == "missing"
    assert empty.status(task) == "done"
    found = empty.finished(task)
    assert found["spec"] == task.spec
    assert found["files"]["values.json"]["size"] == 7
    assert found["versions"]["torch"] == torch.__version__
    assert empty.read(task, "values.json") == {"a": 1}
    assert empty.mean_seconds(task.stage) == 2.0
    assert leftovers(empty.path) == []


def test_a_block_that_raises_leaves_nothing(empty: Store, task: Task) -> None:
    def half() -> None:
        with empty.writing(task) as (folder, _):
            (folder / "values.json").write_text("{}")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert empty.status(task) == "missing"
    assert not empty.folder(task).exists()
    assert leftovers(empty.path) == []


def test_a_full_disk_is_a_sentence_and_leaves_nothing(
    empty: Store, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(store, "write_plain", full)
    with pytest.raises(UserError, match="to write .*measured.*, got No space left: free the space or choose"):
        written(empty, task)
    monkeypatch.undo()
    assert empty.status(task) == "missing"
    assert leftovers(empty.path) == []


def test_a_result_is_synced_once_whole_beside_the_next_ones_work(
    empty: Store, task: Task, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def joined() -> None:
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()

    joined()
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    with empty.writing(task) as (folder, _):
        tensors.save(folder / "model.safetensors", {"a": torch.zeros(2)}, {})
        (folder / "values.json").write_text("{}")
        assert synced == []
    joined()
    place = empty.folder(task)
    files = sorted(str(place / name) for name in ("done.json", "model.safetensors", "values.json"))
    assert sorted(synced[:3]) == files
    assert synced[3:] == [str(place), str(place.parent)]
    empty.forget(task)
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    written(empty, task)
    joined()
    assert "would not outlast a loss of power: [Errno 5] Input/output error" in caplog.text
    assert empty.status(task) == "done"


def test_the_first_result_stays_where_two_were_computed(empty: Store, task: Task) -> None:
    written(empty, task, '{"first":1}')
    written(empty, task, '{"second":2}')
    empty.fail(task, "no", "", usage=False)
    assert empty.read(task, "values.json") == {"first": 1}
    assert empty.status(task) == "done"
    assert leftovers(empty.path) == []


def test_a_failure_is_kept_and_gives_way_to_a_result(empty: Store, task: Task) -> None:
    empty.fail(task, "it broke", "Traceback ...", usage=False)
    assert empty.status(task) == "failed"
    assert (empty.failure(task) or {})["traceback"] == "Traceback ..."
    written(empty, task)
    assert empty.status(task) == "done"
    assert empty.failure(task) is None


def test_a_declined_result_says_why(empty: Store, task: Task) -> None:
    with empty.writing(task, "declined", "it masks one class"):
        pass
    assert empty.status(task) == "declined"
    assert empty.finished(task)["reason"] == "it masks one class"


def test_forgetting_removes_a_result_and_a_stray_file(empty: Store, task: Task) -> None:
    empty.forget(task)  # nothing is there
    written(empty, task)
    empty.forget(task)
    assert empty.status(task) == "missing"
    empty.folder(task).write_text("stray")
    assert empty.status(task) == "corrupt"
    empty.forget(task)
    assert empty.status(task) == "missing"
    assert leftovers(empty.path) == []


# Corrupt folders: reported, never counted, computed anew on request.


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def other(folder: Path) -> None:
    twin = next(p for p in folder.parent.iterdir() if p != folder)
    shutil.copy(twin / "done.json", folder / "done.json")


BROKEN: dict[str, Callable[[Path], Any]] = {
    "a file is cut": lambda f: os.truncate(f / "values.json", 10),
    "a file is longer": lambda f: (f / "values.json").write_text((f / "values.json").read_text() + " "),
    "a file is missing": lambda f: (f / "values.json").unlink(),
    "the document is missing": lambda f: (f / "done.json").unlink(),
    "the document is cut": lambda f: os.truncate(f / "done.json", 100),
    "the document is empty": lambda f: os.truncate(f / "done.json", 0),
    "the document is binary": lambda f: (f / "done.json").write_bytes(b"\xff\xfe\x00"),
    "the document is a list": lambda f: (f / "done.json").write_text("[]"),
    "the document is a folder": lambda f: [(f / "done.json").unlink(), (f / "done.json").mkdir()],
    "a byte of the document is another": lambda f: flip(f / "done.json"),
    "the document is another's": other,
    "the folder is empty": lambda f: [shutil.rmtree(f), f.mkdir()],
    "the folder is a file": lambda f: [shutil.rmtree(f), f.write_text("x")],
    "the failure is cut": lambda f: [shutil.rmtree(f), f.mkdir(), (f / "failed.json").write_text("{")],
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_corrupt_folder_is_reported_never_counted_and_computed_anew_on_request(
    what: str, grid: Grid, place: Store, task: Task, filled: Path
) -> None:
    BROKEN[what](place.folder(task))
    assert place.status(task) == "corrupt"
    found = plan(results(grid), place)
    assert found.tasks == []
    assert found.corrupt == [task]
    (group,) = collect.groups(grid, place)
    (key,) = group.gaps
    assert group.gaps[key].status == "corrupt"
    assert set(group.runs[0].values) == {*collect.groups(grid, Store(filled))[0].runs[0].values} - {key[1]}
    summary = fill(grid, place.path)
    assert summary.corrupt == [task]
    assert summary.counts == {}
    summary = fill(grid, place.path, recompute=True)
    assert summary.counts == {"done": 1}
    assert numbers(place.path) == numbers(filled)
    assert leftovers(place.path) == []


def test_a_flipped_byte_in_values_is_caught_when_they_are_read(grid: Grid, place: Store, task: Task) -> None:
    flip(place.folder(task) / "values.json")
    with pytest.raises(CorruptArtefact, match=r"other bytes in values.json: compute it anew with .* --recompute"):
        place.read(task, "values.json")
    (group,) = collect.groups(grid, place)
    (gap,) = group.gaps.values()
    assert gap.status == "corrupt"
    assert "other bytes in values.json" in gap.reason


@pytest.mark.parametrize("stage", ["trained", "retrained", "unlearned"])
def test_a_flipped_byte_in_weights_is_caught_when_they_are_read(stage: str, place: Store) -> None:
    file = next((place.path / stage).glob("*/model.safetensors"))
    flip(file)
    with pytest.raises(CorruptArtefact, match="other bytes under"):
        dict(tensors.load(file)[0].items())


def test_what_is_read_of_a_task_that_is_not_finished_is_a_sentence(empty: Store, task: Task) -> None:
    with pytest.raises(CorruptArtefact, match="got not finished"):
        empty.read(task, "values.json")
    written(empty, task)
    with pytest.raises(CorruptArtefact, match="got no other.json"):
        empty.read(task, "other.json")


def test_a_corrupt_folder_that_is_read_again_blocks_what_is_missing_and_is_computed_with_it(
    grid: Grid, place: Store, task: Task, filled: Path
) -> None:
    (drawn,) = (t for t in task.reads if t.stage == "retrained")  # by the reference, which is finished
    place.forget(task)
    flip(place.folder(drawn) / "done.json")
    found = plan(results(grid), place)
    assert (found.tasks, found.corrupt, found.blocked) == ([], [drawn], [task])
    assert fill(grid, place.path, recompute=True).counts == {"done": 2}
    assert numbers(place.path) == numbers(filled)


def test_what_a_finished_store_lacks_is_computed_again_where_it_is_read(grid: Grid, place: Store, task: Task) -> None:
    for stage in ("trained", "retrained", "unlearned", "prepared"):
        shutil.rmtree(place.path / stage)
    assert plan(results(grid), place).tasks == []
    place.forget(task)
    assert [t.stage for t in plan(results(grid), place).tasks] == [
        "trained",
        "prepared",
        "unlearned",
        "retrained",
        "measured",
    ]


# Claims.


def test_a_claim_is_one_processs_and_free_afterwards(empty: Store, task: Task) -> None:
    with empty.claimed(task) as mine:
        assert mine
        assert empty.status(task) == "running"
        with empty.claimed(task) as again:
            assert not again
        assert empty.status(task) == "running"
    assert empty.status(task) == "missing"
    assert leftovers(empty.path) == []


def test_a_claim_is_free_after_an_error(empty: Store, task: Task) -> None:
    with pytest.raises(KeyboardInterrupt), empty.claimed(task):
        raise KeyboardInterrupt
    assert empty.status(task) == "missing"


def owned(empty: Store, task: Task, silent: float = 0.0, **changes: Any) -> Path:
    """Write a claim as another process would have, so many seconds ago."""
    claim = empty.path / "claims" / f"{task.stage}-{task.key}.json"
    claim.parent.mkdir(exist_ok=True)
    claim.write_text(json.dumps(vars(replace(Owner.here(), **changes))))
    then = time.time() - silent
    os.utime(claim, (then, then))
    return claim


def taken(empty: Store, task: Task) -> bool:
    with empty.claimed(task) as mine:
        return mine


def test_the_claim_of_a_dead_process_here_is_taken_over_at_once(empty: Store, task: Task) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    owned(empty, task, pid=process.pid, began=1)
    assert empty.status(task) == "missing"  # its number is another process's now
    process.wait()
    assert empty.status(task) == "missing"
    assert taken(empty, task)


def test_a_process_that_ended_and_was_not_waited_for_is_dead(empty: Store, task: Task) -> None:
    child = FORK.Process(target=os.getpid)
    child.start()
    pid = child.pid
    assert pid is not None
    end = time.monotonic() + 30
    while claims._began(pid) is not None and time.monotonic() < end:
        time.sleep(0.01)
    assert claims._began(pid) is None
    child.join()


@pytest.mark.parametrize(("silent", "free"), [(claims.PATIENCE - 20, False), (claims.PATIENCE + 1, True)])
def test_a_claim_from_another_machine_is_taken_over_after_silence(
    silent: float, free: bool, empty: Store, task: Task
) -> None:
    owned(empty, task, silent, host="elsewhere", pid=1)
    assert empty.status(task) == ("missing" if free else "running")
    assert taken(empty, task) is free


def test_silence_is_measured_by_the_clock_of_the_file_system(
    empty: Store, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    owned(empty, task, host="elsewhere")
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert empty.status(task) == "running"
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert empty.status(task) == "running"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}'])
def test_a_claim_that_cannot_be_read_counts_until_it_was_silent(text: str, empty: Store, task: Task) -> None:
    claim = owned(empty, task)
    claim.write_text(text)
    assert empty.status(task) == "running"
    assert not taken(empty, task)
    os.utime(claim, (0, 0))
    assert empty.status(task) == "missing"
    assert taken(empty, task)
    assert leftovers(empty.path) == []


def test_a_claim_that_was_taken_over_is_not_touched_or_freed_by_its_first_owner(
    empty: Store, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.01)
    with empty.claimed(task):
        claim = owned(empty, task, 1000.0, host="elsewhere")  # while this machine slept
        time.sleep(0.1)
        assert time.time() - claim.stat().st_mtime > 900
    assert claim.exists()


def test_a_claim_is_touched_while_its_owner_works(empty: Store, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.01)
    with empty.claimed(task):
        claim = empty.path / "claims" / f"{task.stage}-{task.key}.json"
        os.utime(claim, (0, 0))
        end = time.monotonic() + 30
        while claim.stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert claim.stat().st_mtime > 0


def test_an_interruption_right_after_the_claim_was_made_leaves_none(
    empty: Store, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: threading.Thread) -> None:
        assert [*(empty.path / "claims").glob("*.json")]
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), empty.claimed(task):
        pass
    assert [*(empty.path / "claims").iterdir()] == []


def _race(path: Path, start: Any, out: Any, end: Any) -> None:
    start.wait()
    with Claims(path).held("one") as mine:
        out.put(mine)
        if mine:
            end.wait(60)


@pytest.mark.parametrize("state", ["free", *["dead"] * 4])
def test_of_many_who_claim_at_once_one_succeeds(state: str, tmp_path: Path) -> None:
    if state == "dead":
        (tmp_path / "one.json").write_text(json.dumps(vars(replace(Owner.here(), pid=2**22 - 1, began=1))))
    start, out, end = FORK.Barrier(6), FORK.Queue(), FORK.Event()
    everyone = [FORK.Process(target=_race, args=(tmp_path, start, out, end)) for _ in range(6)]
    for one in everyone:
        one.start()
    found = [out.get(timeout=60) for _ in everyone]
    end.set()
    for one in everyone:
        one.join()
    assert sum(found) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_was_taken_over_since_it_was_looked_at_is_not_inherited_again(empty: Store, task: Task) -> None:
    claim = owned(empty, task, pid=2**22 - 1, began=1)
    dead = claims._owner(claim)
    with empty.claimed(task) as mine:
        assert mine
        assert not empty.claims._inherit(claim, dead, Owner.here())
        assert not empty.claims._inherit(claim, None, Owner.here())
    assert leftovers(empty.path) == []


def test_an_heir_that_died_in_between_is_followed_by_another(empty: Store, task: Task) -> None:
    claim = owned(empty, task, pid=2**22 - 1, began=1)
    heir = claim.with_name(f"{claim.name}.{json.loads(claim.read_text())['token']}")
    shutil.copy(claim, heir)
    assert taken(empty, task)
    assert leftovers(empty.path) == []


def test_an_heir_at_work_is_left_alone(empty: Store, task: Task) -> None:
    claim = owned(empty, task, pid=2**22 - 1, began=1)
    heir = claim.with_name(f"{claim.name}.{json.loads(claim.read_text())['token']}")
    heir.write_text(json.dumps(vars(Owner.here())))
    assert not taken(empty, task)
    assert heir.exists()


# What killed processes leave.


def test_what_killed_processes_left_is_swept_and_what_others_work_on_is_not(
    empty: Store, task: Task, grid: Grid
) -> None:
    here, elsewhere = Owner.here(), replace(Owner.here(), host="0123abcd")
    dead = replace(here, pid=2**22 - 1, began=1)
    parts = empty.path / "parts"
    rooms = {
        n: parts / f"trained-x.{o.host}-{o.pid}-{o.began}-{n}f"
        for n, o in enumerate((here, dead, elsewhere, elsewhere))
    }
    for room in [*rooms.values(), parts / "what is this"]:
        room.mkdir(parents=True)
        (room / "model.safetensors").write_text("half")
    os.utime(rooms[3], (0, 0))
    owned(empty, task, pid=dead.pid, began=1)
    others = owned(empty, results(grid)[0], host="elsewhere")
    stale = empty.path / "claims" / ".x.json.0123"
    stale.write_text("half")
    os.utime(stale, (0, 0))
    unfinished = empty.workdir(task)
    unfinished.mkdir(parents=True)
    empty.sweep()
    assert sorted(p.name for p in parts.iterdir()) == sorted([rooms[0].name, rooms[2].name, "what is this"])
    assert [p.name for p in (empty.path / "claims").iterdir()] == [others.name]
    assert unfinished.exists()  # an interrupted training goes on from there
    written(empty, task)
    empty.sweep()
    assert not unfinished.exists()


def test_a_store_that_may_only_be_read_is_read(
    place: Store, grid: Grid, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.forget(task)
    owned(place, task, host="elsewhere")

    def refuse(*words: Any, **more: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    assert place.status(task) == "running"
    assert plan(results(grid), place).tasks == [task]
