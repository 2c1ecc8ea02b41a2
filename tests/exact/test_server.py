"""A server answers all the while samples are deleted, and whatever kills it, its folder is consistent when opened."""

from __future__ import annotations

import gc
import os
import random
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from expunge.data import Data
from expunge.errors import CorruptArtefact, Unwritable, UserError
from expunge.exact import journal
from expunge.exact.receipt import NONE, OUTSIDE, PURGED, Receipt
from expunge.exact.replay import audit
from expunge.exact.server import Server
from expunge.exact.store import QUEUE, Store
from expunge.methods import load
from expunge.tensors import save_weights
from expunge.train import Recipe
from expunge.unlearn import prepare
from shardings import QUIET, TASK, case, die, forked

BOTH = pytest.mark.parametrize("name", ["sisa", "s3t"])
OPERATIONS = ["fsync", "replace", "rename", "unlink", "rmdir", "mkdir"]


def requests(name: str, count: int) -> list[list[str]]:
    """Return requests, of one sample or two, that leave each shard its last slice (sisa: its first) untouched."""
    made = case(name)
    parts = (1, 2) if name == "sisa" else (0, 1)
    ids = [i for shard in (0, 1) for part in parts for i in made.slice_of(shard, part)]
    random.Random(3).shuffle(ids)
    return [ids[n : n + 1] for n in range(count)]


@BOTH
def test_no_prediction_fails_during_thirty_deletions_and_each_is_that_of_one_plan(name: str, tmp_path: Path):
    made = case(name)
    x, answers, failures, done = made.inputs, list[Tensor](), list[BaseException](), threading.Event()

    def read(server: Server) -> None:
        try:
            while not done.is_set():
                answers.append(server.predict(x))
        except BaseException as error:
            failures.append(error)

    with made.server(tmp_path / "store") as server:
        expected = [server.predict(x)]
        readers = [threading.Thread(target=read, args=(server,)) for _ in range(2 if name == "sisa" else 1)]
        for thread in readers:
            thread.start()
        for number, ids in enumerate(requests(name, 30)):
            receipt = server.delete(ids)
            assert receipt.audit["in both"] == 0
            if number % 3 == 0:
                assert audit(Store.open(tmp_path / "store")).clean
            expected.append(server.predict(x))
        done.set()
        for thread in readers:
            thread.join()
    assert failures == []
    assert len(server.receipts()) == 30
    plans = [
        expected[0],
        *(now for then, now in zip(expected, expected[1:], strict=False) if not torch.equal(then, now)),
    ]
    assert len(plans) >= 4
    seen = [next(n for n, plan in enumerate(plans) if torch.equal(plan, answer)) for answer in answers]
    assert len(set(seen)) == len(plans)  # all of them were seen at work


@pytest.mark.slow
@pytest.mark.usefixtures("unsynced")
def test_a_thousand_requests_on_digits_leave_nothing_and_fail_no_prediction(tmp_path: Path):
    digits = load_digits()
    x = torch.as_tensor(digits.data, dtype=torch.float32) / 8 - 1
    train = Data.from_arrays(x, digits.target)
    networks = [nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)) for _ in range(2)]
    method = load("sisa")(shards=10, slices=6, stage_epochs=1)
    how = {"train": train, "recipe": Recipe(epochs=4, batch_size=16), "new_model": lambda: networks[1]}
    ready = prepare(method, networks[0], TASK, **how, runtime=QUIET)
    book, state = method.book(ready.state), ready.state
    kept = book.at[book.rows(train.ids)] > 0  # one slice is never hit, so that something is left to serve
    ids = [i for i, may in zip(train.ids, kept, strict=True) if may]
    random.Random(7).shuffle(ids)
    Store.create(tmp_path / "store", state)
    count, failures, done = [0], list[BaseException](), threading.Event()

    def read(server: Server) -> None:
        try:
            while not done.is_set():
                assert torch.isfinite(server.predict(x[:32])).all()
                count[0] += 1
        except BaseException as error:
            failures.append(error)

    with Server(tmp_path / "store", method.served_from(ready.model), TASK) as server:
        reader = threading.Thread(target=read, args=(server,))
        reader.start()
        for number, one in enumerate(ids[:1000]):
            receipt = server.delete([one])
            assert (receipt.request, receipt.audit["in both"]) == (number + 1, 0)
            live = {s.name for s in server.book.stages.values() if s.live}
            there = {f"{p.parent.name[5:]}/{p.name}" for p in (tmp_path / "store").glob("shard*/*")}
            assert there == live
            if number % 50 == 0:
                assert audit(Store.open(tmp_path / "store")).clean
        done.set()
        reader.join()
    assert failures == []
    assert count[0] > 1000
    assert server.served["0"][1] == 1
    assert audit(Store.open(tmp_path / "store")).deleted == 1000


STOP, BEGUN, GO = threading.Event(), threading.Event(), threading.Event()


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server whose task waits in an answer, which is under way."""
    made = case("sisa")
    forward = TASK.forward

    def waiting(self: Any, model: nn.Module, batch: Any, taps: Any = ()) -> Any:
        found = forward(model, batch, taps)
        if STOP.is_set():
            STOP.clear()
            BEGUN.set()
            assert GO.wait(60)
        return found

    monkeypatch.setattr(type(TASK), "forward", waiting)
    for event in (BEGUN, GO):
        event.clear()
    answers = list[Tensor]()
    with made.server(tmp_path / "store") as server:
        before = server.predict(made.inputs)
        STOP.set()
        thread = threading.Thread(target=lambda: answers.append(server.predict(made.inputs)))
        thread.start()
        assert BEGUN.wait(60)
        yield made, server, before, answers
        GO.set()
        thread.join()


def test_an_answer_under_way_ends_by_the_old_plan_and_the_receipt_waits_for_it(slow: Any):
    made, server, before, answers = slow
    receipts = list[Receipt]()
    deleting = threading.Thread(target=lambda: receipts.append(server.delete(made.slice_of(0, 1)[:1])))
    deleting.start()
    while server.served["0"][1] == 3:  # switched, and not done
        pass
    new = server.predict(made.inputs)  # answered at once, by the new plan
    assert not torch.equal(new, before)
    assert receipts == []
    assert (server._store.folder / "shard0" / "0-1").exists()
    GO.set()
    deleting.join()
    assert not (server._store.folder / "shard0" / "0-1").exists()
    assert len(receipts) == 1
    assert torch.equal(answers[0], before)


def test_an_answer_that_does_not_end_leaves_the_request_in_the_queue(slow: Any):
    made, server, _, _ = slow
    server._patience = 0.05
    ids = made.slice_of(0, 1)
    with pytest.raises(UserError, match=r"answers of the old members to end within 0.05 s, got 1 that go on: end them"):
        server.delete(ids[:1])
    assert server.receipts() == []
    assert server.served["0"][1] == 1  # nobody is answered by the old members any more
    GO.set()
    server._patience = 60.0
    assert [r.request for r in server.finish()] == [1]
    assert server.delete(ids[1:2]).request == 2


def test_old_members_are_let_go(tmp_path: Path):
    made = case("s3t")
    with made.server(tmp_path / "store") as server:
        old, kept = (weakref.ref(server.module.members[n]) for n in ("0", "1"))
        server.delete(made.slice_of(0, 0)[:1])
        gc.collect()
        assert old() is None
        assert kept() is server.module.members["1"]


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncs cost time, and what a process wrote outlasts its being killed without them."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def stores(made: Any, path: Path) -> Callable[[str], Path]:
    """Return what gives a fresh copy of a store."""
    made.store(path / "first")

    def copied(name: str) -> Path:
        shutil.copytree(path / "first", path / name)
        return path / name

    return copied


def counting(monkeypatch: pytest.MonkeyPatch, at: int, torn: bool) -> list[str]:
    """Be killed before the operation of this number; where it is a sync of a file, half of its last bytes are lost."""
    seen = list[str]()

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def operation(*args: Any, **options: Any) -> Any:
            seen.append(name)
            if len(seen) == at:
                if torn and name == "fsync" and os.path.isfile(f"/proc/self/fd/{args[0]}"):
                    path = os.readlink(f"/proc/self/fd/{args[0]}")
                    if not path.endswith(".safetensors"):
                        os.truncate(path, max(0, os.path.getsize(path) - 7))
                die()
            return real(*args, **options)

        return operation

    for name in OPERATIONS:
        monkeypatch.setattr(os, name, counted(name))
    return seen


def consistent(made: Any, folder: Path, ids: list[str], before: Tensor, after: Tensor) -> bool:
    """Open a folder after a kill, hold it to the one state or the other, and return whether the request was kept."""
    with made.server(folder) as server:
        kept = server.book.requests == 1
        assert torch.equal(server.predict(made.inputs), after if kept else before)
        assert audit(Store.open(folder)).clean
        assert [r.request for r in server.receipts()] == ([1] if kept else [])
        assert list(folder.rglob(".*.*")) == []
        assert len(list(folder.glob("table-*"))) == 1
        lines = journal.read(folder / "manifest.jsonl")
        assert [e["hash"] for e in lines] == [e["hash"] for e in server._store.book.manifest]
        if not kept:
            assert server.delete(ids).request == 1
            assert torch.equal(server.predict(made.inputs), after)
        with pytest.raises(UserError, match="already deleted"):
            server.delete(ids)
    return kept


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize(("name", "torn"), [("sisa", False), ("sisa", True), ("s3t", False)])
def test_killed_before_any_operation_on_the_disk_a_deletion_is_whole_or_never_was(
    name: str, torn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = case(name)
    fresh, ids = stores(made, tmp_path), made.slice_of(0, 1)[:1]
    with made.server(fresh("plain")) as server:
        before = server.predict(made.inputs)
        server.delete(ids)
        after = server.predict(made.inputs)
    kept, number, code = list[bool](), 0, -9
    while code == -9:
        number += 1
        folder = fresh(f"killed{number}")

        def work(folder: Path = folder, number: int = number) -> None:
            server = made.server(folder)
            with monkeypatch.context() as patch:
                counting(patch, number, torn)
                server.delete(ids)

        code = forked(work)
        kept.append(consistent(made, folder, ids, before, after))
        shutil.rmtree(folder)
    assert code == 0
    assert number > 15
    assert kept[0] == (not torn)  # the line is written whole before its file is synced
    assert kept[-1]
    assert kept == sorted(kept)  # once it is in the queue it is kept


@pytest.mark.usefixtures("unsynced")
def test_killed_while_it_finishes_what_a_kill_left_a_folder_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = case("sisa")
    fresh, ids = stores(made, tmp_path), made.slice_of(0, 1)[:1]
    folder = fresh("plain")
    with made.server(folder) as server:
        before = server.predict(made.inputs)
        server.delete(ids)
        after = server.predict(made.inputs)
    asked = journal.read(folder / QUEUE)[:1]
    number, code = 0, -9
    while code == -9:
        number += 1
        folder = fresh(f"killed{number}")
        journal.append(folder / QUEUE, asked)

        def work(folder: Path = folder, number: int = number) -> None:
            with monkeypatch.context() as patch:
                counting(patch, number, False)
                made.server(folder)

        code = forked(work)
        assert consistent(made, folder, ids, before, after)
        shutil.rmtree(folder)
    assert code == 0
    assert number > 12


FRESH = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from shardings import TASK, data, network
from expunge.exact.server import Server
from expunge.tensors import load_weights
base, folder, ids, out = network(sys.argv[6]), Path(sys.argv[3]), sys.argv[4], Path(sys.argv[5])
load_weights(Path(sys.argv[2]), base)
opened, watching = [], True
def hook(event, args):
    if watching and event == "open" and isinstance(args[0], (str, bytes)):
        opened.append(str(args[0]))
sys.addaudithook(hook)
server = Server(folder, base, TASK)
x = data(*((5,) if sys.argv[6] == 'sisa' else (1, 4, 4))).read(range(60)).inputs
first = server.predict(x)
opened.clear()
server.delete([ids])
watching = False
outside = [p for p in opened if not p.startswith(str(folder)) and not p.endswith((".py", ".pyc"))]
assert opened and outside == [], outside
torch.save([first, server.predict(x)], out)
"""


@pytest.mark.parametrize("name", ["sisa", pytest.param("s3t", marks=pytest.mark.slow)])
def test_a_fresh_process_with_the_live_files_alone_answers_alike_and_reads_nothing_else(name: str, tmp_path: Path):
    made = case(name)
    ids = made.slice_of(1, 1)
    with made.server(tmp_path / "store") as server:
        server.delete(made.slice_of(0, 2)[:1])
        shutil.copytree(tmp_path / "store", tmp_path / "live")
        first = server.predict(made.inputs)
        server.delete(ids[:1])
        second = server.predict(made.inputs)
    live = {s.name for s in Store.open(tmp_path / "live").book.stages.values() if s.live}
    there = {f"{p.parent.name[-1]}/{p.name}" for p in (tmp_path / "live").glob("shard*/*")}
    assert there == live
    shutil.rmtree(tmp_path / "store")
    save_weights(tmp_path / "base.safetensors", made.base, {})
    arguments = [str(Path(__file__).parents[1]), str(tmp_path / "base.safetensors"), str(tmp_path / "live")]
    call = [sys.executable, "-c", FRESH, *arguments, ids[0], str(tmp_path / "out.pt"), name]
    run = subprocess.run(call, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert torch.equal(found[0], first)
    assert torch.equal(found[1], second)


def bytes_of(*modules: nn.Module) -> int:
    parts = {t.untyped_storage().data_ptr(): t for m in modules for t in [*m.parameters(), *m.buffers()]}
    return sum(t.untyped_storage().nbytes() for t in parts.values())


def test_shards_share_one_backbone_in_memory(tmp_path: Path):
    made = case("s3t")
    base = made.base
    store = made.store(tmp_path / "store")
    with Server(tmp_path / "store", base, TASK) as server:
        own = sum(
            t.nbytes for one in server.served.values() for k in range(1, 4) for n, t in stage_of(store, one, k).items()
            if n.startswith("adapter/") or k == 3
        )  # fmt: skip
        assert bytes_of(server.module) == bytes_of(base) + own
        server.delete(made.slice_of(0, 0)[:1])
        assert bytes_of(server.module) < bytes_of(base) + own


def stage_of(store: Store, one: Any, k: int) -> dict[str, Tensor]:
    same = {s.name: s for s in store.book.stages.values() if s.prefix == one[0][:k]}
    return store.read(min(same))


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (["nobody"], "ids that were prepared, got unknown nobody: take"),
        (["patient-0"], "ids that are still to be deleted, got already deleted patient-0: leave"),
        (["patient-1", "patient-1"], "each id once, got one or more twice: name each sample once"),
        ([], "at least one sample to delete, got no id: name"),
        ("patient-1", "a list of ids, got 'patient-1'"),
    ],
)
def test_a_bad_request_is_refused_in_a_sentence_and_changes_nothing(ids: Any, text: str, tmp_path: Path):
    made = case("sisa")
    with made.server(tmp_path / "store") as server:
        server.delete(["patient-0"])
        then = {p: p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file()}
        with pytest.raises(UserError, match=text):
            server.delete(ids)
        assert {p: p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file()} == then
        assert server.delete(["patient-1"]).request == 2


def test_one_server_alone_has_a_folder(tmp_path: Path):
    made = case("sisa")
    with made.server(tmp_path / "store") as server:
        with pytest.raises(UserError, match="that no other server has open, got one that does: close it"):
            made.server(tmp_path / "store")
        with pytest.raises(UserError, match="that no other server has open, got one that does: close it"):
            Store.create(tmp_path / "store", made.ready.state, overwrite=True)
        before = server.predict(made.inputs)
    with pytest.raises(UserError, match="a server that is open, got one that was closed"):
        server.delete(["patient-0"])
    assert torch.equal(server.predict(made.inputs), before)
    made.server(tmp_path / "store").close()
    assert Store.create(tmp_path / "store", made.ready.state, overwrite=True).book.requests == 0


def test_where_the_disk_is_full_the_old_plan_answers_and_the_request_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = case("sisa")
    ids = made.slice_of(0, 1)
    with made.server(tmp_path / "store") as server:
        before = server.predict(made.inputs)

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(Unwritable, match="No space left on device"):
                server.delete(ids[:1])
        assert torch.equal(server.predict(made.inputs), before)
        assert server.receipts() == []
        assert [r.request for r in server.finish()] == [1]
        assert not torch.equal(server.predict(made.inputs), before)
        assert audit(Store.open(tmp_path / "store")).clean


def test_a_commit_that_failed_at_its_end_is_repeated_without_a_moment_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = case("sisa")
    ids, folder = made.slice_of(0, 1)[:1], tmp_path / "store"

    def failing(self: Store, table: str) -> None:
        raise Unwritable("to write", "no", "free the space")

    with made.server(folder) as server:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "_sweep", failing)  # when book.json names the manifest's new lines already
            with pytest.raises(Unwritable):
                server.delete(ids)
        opened = Store.open(folder)
        assert opened.book.requests == 1
        cut = journal.cut

        def whole(path: Path, lines: int) -> None:
            cut(path, lines)
            Store.open(folder)

        with monkeypatch.context() as patch:
            patch.setattr(journal, "cut", whole)
            assert [r.request for r in server.finish()] == [1]
        assert audit(Store.open(folder)).clean


@BOTH
def test_the_order_of_requests_changes_nothing_and_a_batch_is_all_of_them(name: str, tmp_path: Path):
    made = case(name)
    chosen = [ids for (ids,) in requests(name, 5)]
    found = []
    for number, order in enumerate([chosen, chosen[::-1], [chosen]]):
        with made.server(tmp_path / str(number)) as server:
            for ids in order:
                server.delete([ids] if isinstance(ids, str) else ids)
            found.append((server.served, server.predict(made.inputs)))
    assert found[0][0] == found[1][0] == found[2][0]
    assert torch.equal(found[0][1], found[1][1])
    assert torch.equal(found[0][1], found[2][1])


@BOTH
def test_a_deletion_in_one_shard_leaves_every_byte_of_the_others(name: str, tmp_path: Path):
    made = case(name)
    with made.server(tmp_path / "store") as server:
        then = {p: p.read_bytes() for p in (tmp_path / "store" / "shard1").rglob("*") if p.is_file()}
        server.delete(made.slice_of(0, 1)[:2])
        assert {p: p.read_bytes() for p in (tmp_path / "store" / "shard1").rglob("*") if p.is_file()} == then


def test_members_that_a_deletion_leaves_alone_are_taken_over_and_a_shard_is_synced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made, synced = case("s3t_all"), list[str]()
    fsync = os.fsync

    def members(server: Server) -> dict[Any, nn.Module]:
        return {(name[0], order[:k]): server.module.members[name] for name, (order, k) in server.served.items()}

    with made.server(tmp_path / "store") as server:
        before = members(server)
        monkeypatch.setattr(
            os, "fsync", lambda file: [fsync(file), synced.append(os.readlink(f"/proc/self/fd/{file}"))]
        )
        receipt = server.delete(made.slice_of(0, 2)[:1])
        after = members(server)
    assert len(receipt.revoked) == 6
    assert set(after) - set(before) == {("0", (0, 1)), ("0", (1,))}
    assert [line for line in after if line in before and after[line] is before[line]] == [
        line for line in after if line in before
    ]
    assert len([path for path in synced if path.endswith("shard0")]) == 1
    assert len(synced) == 12  # queue 3, new as it is; twice manifest and record, 3 each; table 2; the shard's folder


@BOTH
def test_when_nothing_is_left_to_serve_the_receipt_asks_for_training_anew(name: str, tmp_path: Path):
    made = case(name)
    with made.server(tmp_path / "store") as server:
        lost = server.delete([made.slice_of(0, part)[0] for part in range(3)])
        assert (lost.lost, lost.retrain) == ((0,), False)
        assert server.predict(made.inputs).shape == (60, 3)
        last = server.delete([made.slice_of(1, part)[0] for part in range(3)])
        assert (last.lost, last.retrain) == ((0, 1), True)
        with pytest.raises(UserError, match="a shard with something left to serve, got none after the deletions: prep"):
            server.predict(made.inputs)
        assert list((tmp_path / "store").glob("shard*/*")) == []
    with made.server(tmp_path / "store") as server, pytest.raises(UserError, match="none after the deletions"):
        server.predict(made.inputs)


@BOTH
def test_a_receipt_says_what_was_done_what_holds_and_what_is_left(name: str, tmp_path: Path):
    made = case(name)
    ids = made.slice_of(0, 1)
    with made.server(tmp_path / "store") as server:
        receipt, again = server.delete(ids[:2]), server.delete(ids[2:3])
        book = server.book
    assert (receipt.request, receipt.samples, again.request, again.revoked) == (1, 2, 2, ())
    assert set(receipt.revoked) == {s.name for s in book.stages.values() if s.shard == 0 and 1 in s.prefix}
    assert receipt.depths == ((3, 1 if name == "sisa" else 2), (3, 3))
    assert again.depths[0] == (receipt.depths[0][1],) * 2
    assert receipt.asked <= str(receipt.switched) <= receipt.done <= again.asked
    assert receipt.audit["deleted samples so far"] == 2
    assert all(what.startswith((PURGED, NONE, OUTSIDE)) for what in receipt.residues.values())
    assert receipt.residues["adapters" if name == "s3t" else "whole networks"].startswith(PURGED)
    text = str(receipt.to_json())
    assert "private" not in text
    assert "secure" not in text
    assert [level[:2] for level in receipt.levels] == ["E0", "E1", "E2"]
    assert "public weights" in receipt.caveats[0]
    with made.server(tmp_path / "store") as server:
        assert server.receipts() == [receipt, again]
        assert server.delete(ids[3:4]).request == 3


def test_a_queue_that_names_other_samples_is_refused(tmp_path: Path):
    made = case("sisa")
    made.store(tmp_path / "store")
    line = {"step": "asked", "request": 1, "at": "", "samples": [12345], "marks": []}
    journal.append(tmp_path / "store" / QUEUE, [line])
    with pytest.raises(CorruptArtefact, match="samples of the table in queue.jsonl, got others"):
        made.server(tmp_path / "store")
    journal.cut(tmp_path / "store" / QUEUE, 0)
    made.server(tmp_path / "store").close()  # the lock was let go
