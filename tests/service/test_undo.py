"""Replaced versions: kept encrypted, given back bit for bit, destroyed; and every gap in which a process may die."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from expunge.errors import CorruptArtefact, Incompatible, Unwritable, UserError
from expunge.service import artefacts, sealed, undo
from expunge.service.lineage import lineage
from expunge.service.workspace import FIRST, digests
from versions import CANARY, Hand, asked, fill, holding, ids_of, killed_at

SOON = datetime(2025, 3, 15, tzinfo=UTC)
FIRST_FILES = ["model.safetensors", "more/empty.txt", "record.json"]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "PIECE", 512)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is such a place: nothing waits for a disk there."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as name:
        yield Path(name)


@pytest.fixture
def hand(room: Path) -> Hand:
    """A workspace with one version served."""
    made = Hand(room / "space")
    made.begin(room / "start")
    return made


@pytest.fixture
def edited(hand: Hand) -> Hand:
    """One more version served for two requests, the first one kept encrypted."""
    hand.fulfil("a", "b", weights=CANARY)
    put_away(hand)
    return hand


def put_away(hand: Hand, days: int = 14) -> undo.Purged:
    with hand.ledger() as ledger, hand.space.locked(hand.name):
        return undo.put_away(hand.space, ledger, hand.name, days, now=hand.clock())


def rollback(hand: Hand, to: str | None = None) -> undo.RolledBack:
    with hand.ledger() as ledger:
        return undo.rollback(hand.space, ledger, hand.name, to, now=hand.clock)


def purge(hand: Hand, **options: bool) -> undo.Purged:
    with hand.ledger() as ledger:
        return undo.purge(hand.space, ledger, hand.name, now=hand.clock, **options)


def sealed_file(hand: Hand, version: str = FIRST) -> Path:
    return undo.archived(hand.space, hand.name, version)


def test_a_replaced_version_becomes_one_encrypted_file(edited):
    path = sealed_file(edited)
    assert path.read_bytes().startswith(sealed.MAGIC)
    assert CANARY not in path.read_bytes()
    assert edited.space.versions(edited.name) == [edited.space.current(edited.name)]
    assert [p.name for p in edited.space.undo.iterdir()] == [path.name]
    with edited.ledger() as ledger:
        assert undo.until(edited.space, ledger, edited.name, FIRST) == edited.clock.at + timedelta(days=14)


def test_it_comes_back_bit_for_bit(edited):
    was = edited.space.begun(edited.name)["files"]
    done = rollback(edited)
    assert done.version == FIRST
    assert done.requests == ("b", "a")
    folder = edited.space.served(edited.name)
    assert sorted(was) == FIRST_FILES
    assert digests(folder) == was
    assert list(edited.space.undo.iterdir()) == []


def test_a_rollback_opens_its_requests_again_and_remembers_their_ids_no_longer(edited):
    undone = edited.space.current(edited.name)
    with edited.ledger() as ledger:
        assert ledger.remembered(ids_of("a"), edited.name) == list(ids_of("a"))
        assert ledger.status("a").closed
    rollback(edited)
    with edited.ledger() as ledger:
        assert ledger.remembered(ids_of("a")) == []
        status = ledger.status("a")
        assert status.open
        assert not status.models[edited.name].done
        event = ledger.history("a")[-1]
        assert (event.step, event.body) == ("rolled_back", {"version": FIRST, "undone": undone})
        assert ledger.check() == []
        assert lineage(ledger, edited.name).versions == [FIRST]
    assert edited.space.versions(edited.name) == [FIRST]


def test_only_the_last_version_is_undone(edited):
    second = edited.space.current(edited.name)
    edited.fulfil("c")
    put_away(edited)
    done = rollback(edited)
    assert (done.version, done.requests) == (second, ("c",))
    with edited.ledger() as ledger:
        assert ledger.remembered([*ids_of("a"), *ids_of("c")]) == list(ids_of("a"))
    assert rollback(edited).version == FIRST


def test_several_versions_are_undone_at_once(edited):
    third = edited.fulfil("c")
    put_away(edited)
    second = edited.space.versions(edited.name)
    done = rollback(edited, FIRST)
    assert done.requests == ("c", "b", "a")
    assert done.undone[-1] == third
    assert second == [third]
    assert edited.space.versions(edited.name) == [FIRST]
    assert list(edited.space.undo.iterdir()) == []


def test_what_was_served_already_is_served_on(edited):
    served = edited.space.current(edited.name)
    assert rollback(edited, served) == undo.RolledBack(edited.name, (), served)


def test_a_version_served_again_can_be_replaced_and_served_again(edited):
    rollback(edited)
    edited.fulfil("a", "b")
    put_away(edited)
    assert rollback(edited).version == FIRST


def test_a_request_that_found_nothing_left_is_open_again_with_those_that_forgot_it(edited):
    absent(edited, "c", *ids_of("a"), before=2)
    absent(edited, "d", "unknown", before=0)
    assert rollback(edited).requests == ("b", "a", "c")
    with edited.ledger() as ledger:
        assert [ledger.status(id).open for id in "abcd"] == [True, True, True, False]
        assert ledger.remembered([*ids_of("a"), "unknown"]) == ["unknown"]
        assert ledger.check() == []


def test_what_was_refused_after_it_found_nothing_stays_refused_and_is_remembered_no_longer(edited):
    absent(edited, "c", *ids_of("a"), before=2, end="refused")
    assert rollback(edited).requests == ("b", "a")
    with edited.ledger() as ledger:
        assert ledger.status("c").word == "refused"
        assert ledger.remembered(ids_of("a")) == []


def test_no_rollback_where_what_found_nothing_was_erased(edited):
    absent(edited, "c", *ids_of("a"), before=2)
    with edited.ledger() as ledger:
        ledger.erase("c", "asked for")
    with pytest.raises(
        UserError, match="Expected request 'c' to be one that can be opened again on shop, got one that"
    ):
        rollback(edited)


def absent(hand: Hand, id: str, *values: str, before: int, end: str = "closed") -> None:
    """Take a request of which the model holds nothing to its end."""
    with hand.ledger() as ledger:
        ledger.receive(asked(id, *values))
        ledger.remember(hand.name, values, id)
        ledger.record(id, "absent", {"samples": 0, "forgotten_before": before}, model=hand.name)
        ledger.record(id, end, {"reason": "a legal duty"} if end == "refused" else {})


def test_a_hold_forbids_no_rollback(edited):
    with edited.ledger() as ledger:
        ledger.record("a", "held", {"reason": "a lawsuit"})
    assert rollback(edited).version == FIRST


def test_no_rollback_before_the_first_version(hand):
    with pytest.raises(UserError, match="Expected a version of shop before v000000, got none"):
        rollback(hand)


def test_no_rollback_to_a_version_never_served(edited):
    with pytest.raises(UserError, match="a version of shop that was served before v000003, got 'v000002'"):
        rollback(edited, "v000002")


def test_no_rollback_of_an_unknown_model(edited):
    with edited.ledger() as ledger, pytest.raises(UserError, match="got 'shoop': did you mean 'shop'"):
        undo.rollback(edited.space, ledger, "shoop")
    assert edited.space.models == ["shop"]


def test_no_rollback_after_the_window(edited):
    edited.later(days=13, hours=23)
    with edited.ledger() as ledger:
        assert undo.sweep(edited.space, ledger, edited.name, expired_only=True, now=edited.clock()) == undo.Purged()
    edited.later(hours=1)
    served = edited.space.current(edited.name)
    with pytest.raises(UserError, match="got 2025-03-15T12:00:00.00:00, and it was kept until 2025-03-15T12:00:00"):
        rollback(edited)
    assert edited.space.current(edited.name) == served
    assert sealed_file(edited).exists()


def test_no_rollback_after_a_purge(edited):
    purge(edited)
    with pytest.raises(UserError, match="Expected version v000000 of shop to be kept, got one that was destroyed"):
        rollback(edited)


def test_no_rollback_of_an_erased_request(edited):
    with edited.ledger() as ledger:
        ledger.erase("b", "asked for")
    with pytest.raises(
        UserError, match="Expected request 'b' to be one that can be opened again on shop, got one that"
    ):
        rollback(edited)


def test_an_attempt_for_another_request_forbids_no_rollback(edited):
    edited.fulfil("c", steps=1)
    assert rollback(edited).requests == ("b", "a")


def test_no_rollback_of_a_version_whose_request_is_retrained(hand):
    hand.fulfil("a", steps=4)
    put_away(hand)
    hand.fulfil("a", how="retrain", steps=1)
    with pytest.raises(UserError, match="got request 'a', worked on or interrupted: run expunge requests process"):
        rollback(hand)


def test_no_rollback_over_two_versions_of_one_request(hand):
    hand.fulfil("a", steps=4)
    put_away(hand)
    first = hand.space.current(hand.name)
    hand.fulfil("a", how="retrain", steps=4)
    put_away(hand)
    with pytest.raises(UserError, match=f"fulfilled by several of them: roll back to {first}"):
        rollback(hand, FIRST)
    assert rollback(hand).version == first
    with hand.ledger() as ledger:
        assert ledger.remembered(ids_of("a")) == list(ids_of("a"))  # its edit is served
        assert ledger.check() == []
    assert rollback(hand).version == FIRST
    with hand.ledger() as ledger:
        assert ledger.remembered(ids_of("a")) == []
        assert ledger.check() == []


def test_each_version_of_one_request_is_recorded_when_it_is_destroyed(hand):
    hand.fulfil("a", steps=4)
    put_away(hand)
    hand.later(days=10)
    second = hand.space.current(hand.name)
    hand.fulfil("a", how="retrain", steps=5)
    put_away(hand)
    hand.later(days=5)
    assert purge(hand, expired_only=True).versions == ((hand.name, FIRST),)
    with hand.ledger() as ledger:
        assert ledger.history("a")[-1].body["destroyed"] == [FIRST]
        assert artefacts.check(hand.space, ledger) == ledger.check() == []
    assert rollback(hand).version == second


@pytest.mark.parametrize("harm", ["cut", "piece", "longer", "flipped", "header", "swapped", "joined"])
def test_an_encrypted_version_that_is_not_as_it_was_is_refused(edited, harm):
    path, served = sealed_file(edited), edited.space.current(edited.name)
    path.write_bytes(harmed(path.read_bytes(), harm))
    with pytest.raises(CorruptArtefact, match=r"sealed.*: restore it from a copy; the served version is not touched"):
        rollback(edited)
    assert edited.space.current(edited.name) == served
    assert edited.space.versions(edited.name) == [served]
    assert path.exists()
    assert sorted(p.name for p in edited.space.home(edited.name).iterdir()) == [
        "begun.json", "current", "lock", "versions",
    ]  # fmt: skip


def harmed(raw: bytes, harm: str) -> bytes:
    start = len(sealed.MAGIC) + 8 + int.from_bytes(raw[len(sealed.MAGIC) :][:8], "big")
    piece = sealed.PIECE + sealed.TAG
    first, second, rest = raw[start : start + piece], raw[start + piece : start + 2 * piece], raw[start + 2 * piece :]
    assert len(rest) > piece  # or there is nothing to cut off
    return {
        "cut": raw[:-1],
        "piece": raw[: start + 3 * piece],
        "longer": raw + b"x",
        "flipped": raw[: start + 700] + bytes([raw[start + 700] ^ 1]) + raw[start + 701 :],
        "header": raw.replace(b'"until":"2025', b'"until":"2035'),
        "swapped": raw[:start] + second + first + rest,
        "joined": raw + raw[start:],
    }[harm]


def test_a_file_of_another_version_or_of_noise_is_refused(edited):
    edited.fulfil("c")
    put_away(edited)
    second = edited.space.undo / sorted(p.name for p in edited.space.undo.iterdir())[1]
    shutil.copy(sealed_file(edited), second)
    with pytest.raises(Incompatible, match="got another version, or one of another ledger"):
        rollback(edited)
    second.write_bytes(b"noise")
    with pytest.raises(CorruptArtefact, match="got a file without a whole header"):
        rollback(edited)


def test_a_missing_key_is_told(edited):
    with edited.ledger() as ledger:
        (label,) = ledger.keys.live("undo/")
        ledger.keys.destroy_named(label)
    with pytest.raises(CorruptArtefact, match="Expected the key of .* got none: it was destroyed or lost"):
        rollback(edited)


def test_a_piece_of_one_file_opens_in_no_other_of_the_same_key(tmp_path):
    fill(tmp_path / "folder", CANARY, {})
    files, key = digests(tmp_path / "folder"), bytes(32)
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        sealed.seal(tmp_path / "folder", path, key, about={}, files=files)
    raw, other = one.read_bytes(), two.read_bytes()
    assert len(raw) == len(other)
    two.write_bytes(other[:-600] + raw[-600:])
    sealed.check(one, key)
    with pytest.raises(CorruptArtefact, match="cut, altered or sealed with another key"):
        sealed.check(two, key)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024])
def test_folders_of_every_length_come_back(tmp_path, size):
    folder, path, out = tmp_path / "folder", tmp_path / "file", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    if size:
        (folder / "x").write_bytes(bytes(size))
    sealed.seal(folder, path, bytes(32), about={"a": 1}, files=digests(folder))
    sealed.unseal(path, bytes(32), out)
    assert digests(out) == digests(folder)
    assert sealed.header(path).about == {"a": 1}


def test_a_header_names_no_file_outside_the_folder(tmp_path):
    header = sealed.Header({}, {"../x": "0" * 64}, {"../x": 1})
    (tmp_path / "file").write_bytes(header.document())
    with pytest.raises(CorruptArtefact, match="without a whole header"):
        sealed.header(tmp_path / "file")


@contextmanager
def small_disk(most: int) -> Iterator[None]:
    """Let no file grow beyond some bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_loses_nothing(tmp_path):
    hand = Hand(tmp_path / "space")
    fill(tmp_path / "start", CANARY * 4096, {"step": "prepare"})
    with hand.ledger():
        hand.space.begin(hand.name, tmp_path / "start", hand.clock())
    hand.fulfil("a")
    was = digests(hand.space.version(hand.name, FIRST))
    with small_disk(2**19), pytest.raises(Unwritable, match="Expected to write .*sealed, got File too large: free the"):
        put_away(hand)
    assert digests(hand.space.version(hand.name, FIRST)) == was
    assert list(hand.space.undo.iterdir()) == []
    put_away(hand)
    with small_disk(2**19), pytest.raises(Unwritable, match="Expected to write .*v000000, got File too large"):
        rollback(hand)
    assert hand.space.versions(hand.name) == [hand.space.current(hand.name)]
    assert rollback(hand).version == FIRST


def test_a_version_that_was_altered_is_not_put_away(hand):
    hand.fulfil("a")
    (hand.space.version(hand.name, FIRST) / "record.json").write_text("altered")
    with pytest.raises(CorruptArtefact, match="got others: record.json"):
        put_away(hand)
    assert hand.space.versions(hand.name)[0] == FIRST


def test_what_cannot_be_read_back_is_not_relied_on(hand, monkeypatch):
    hand.fulfil("a")
    monkeypatch.setattr(sealed, "_leave_memory", lambda path: path.write_bytes(path.read_bytes()[:-1]))
    with pytest.raises(CorruptArtefact, match="cut, altered or sealed with another key"):
        put_away(hand)
    assert hand.space.versions(hand.name)[0] == FIRST
    assert list(hand.space.undo.iterdir()) == []


def test_the_served_version_is_never_put_away(hand):
    with hand.ledger() as ledger, pytest.raises(UserError, match="a version of shop that is not served, got v000000"):
        undo.archive(hand.space, ledger, hand.name, FIRST, SOON)


def test_a_purge_leaves_no_byte_of_the_old_weights(edited):
    edited.fulfil("c")
    half = edited.space.undo / ".shop-v000003.sealed.abcdefgh" / "shop-v000003.sealed"
    half.parent.mkdir()
    half.write_bytes(CANARY)
    clear = "models/shop/versions/v000003/model.safetensors"
    assert holding(edited.folder, CANARY) == [clear, str(half.relative_to(edited.folder))]
    found = purge(edited)
    assert found.versions == (("shop", FIRST), ("shop", "v000003"))
    assert found.requests == ("a", "b", "c")
    assert holding(edited.folder, CANARY) == []
    assert list(edited.space.undo.iterdir()) == []
    with edited.ledger() as ledger:
        assert ledger.keys.live("undo/") == []
        event = ledger.history("a")[-1]
        assert (event.step, event.body["destroyed"], event.body["reason"]) == ("purged", [FIRST], "asked for")
        assert not ledger.status("a").models[edited.name].undo
        assert ledger.check() == []
    assert purge(edited) == undo.Purged()


def test_a_purged_key_opens_no_copy_of_the_file(edited, tmp_path):
    shutil.copy(sealed_file(edited), tmp_path / "copy")
    purge(edited)
    shutil.copy(tmp_path / "copy", sealed_file(edited))
    with edited.ledger() as ledger, pytest.raises(CorruptArtefact, match="got none: it was destroyed or lost"):
        undo.restore(edited.space, ledger, edited.name, FIRST)


def test_a_hold_stops_a_purge(edited):
    second = edited.space.current(edited.name)
    edited.fulfil("c")
    put_away(edited)
    with edited.ledger() as ledger:
        ledger.record("b", "held", {"reason": "a lawsuit"})
    found = purge(edited)
    assert found.versions == (("shop", second),)
    assert [(k.what, k.why) for k in found.kept if k.what == FIRST] == [
        (FIRST, "request 'b' is held (a lawsuit): release it first")
    ]
    assert sealed_file(edited).exists()
    with edited.ledger() as ledger:
        assert [e.step for e in ledger.history("a")].count("purged") == 0
        ledger.record("b", "released")
    assert purge(edited).versions == (("shop", FIRST),)


def test_a_purge_that_was_recorded_is_ended_whoever_is_held_since(edited, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr(undo, "drop", dies)
        with pytest.raises(RuntimeError, match="killed"):
            purge(edited)
    with edited.ledger() as ledger:
        assert ledger.history("a")[-1].step == "purged"
        ledger.record("b", "held", {"reason": "a lawsuit"})
    with pytest.raises(UserError, match="Expected version v000000 of shop to be kept, got one that was destroyed"):
        rollback(edited)
    assert purge(edited, expired_only=True).versions == (("shop", FIRST),)
    assert not sealed_file(edited).exists()


def dies(*_: object) -> None:
    raise RuntimeError("killed")


def test_a_request_with_an_attempt_under_way_stops_a_purge(hand):
    hand.fulfil("a", steps=4)
    put_away(hand)
    made = hand.fulfil("a", how="retrain", steps=2)
    (kept,) = [k for k in purge(hand).kept if k.what == FIRST]
    assert "'a' is worked on, or its work was interrupted: run expunge requests process" in kept.why
    assert made in hand.space.versions(hand.name)


def test_what_is_over_is_destroyed_and_the_rest_stays(edited):
    second = edited.space.current(edited.name)
    edited.later(days=7)
    edited.fulfil("c")
    put_away(edited)
    edited.later(days=7)
    found = purge(edited, expired_only=True)
    assert found.versions == (("shop", FIRST),)
    assert found.requests == ("a", "b")
    assert not sealed_file(edited).exists()
    assert sealed_file(edited, second).exists()
    assert rollback(edited).version == second


def test_no_days_keep_no_version(hand):
    hand.fulfil("a")
    found = put_away(hand, days=0)
    assert found.versions == (("shop", FIRST),)
    assert found.requests == ("a",)
    assert hand.space.versions(hand.name) == [hand.space.current(hand.name)]
    assert not hand.space.undo.exists()
    with hand.ledger() as ledger:
        assert ledger.history("a")[-1].body["reason"] == "the policy keeps no replaced version"


def test_a_version_that_is_missing_already_is_recorded_as_destroyed(edited):
    sealed_file(edited).unlink()
    assert purge(edited).requests == ("a", "b")
    with edited.ledger() as ledger:
        assert ledger.keys.live("undo/") == []


def killed(hand: Hand, room: Path, work: Callable[[Hand], object], every: bool) -> Iterator[Hand]:
    """Yield copies of a workspace, in each of which some work was killed one change later than in the one before."""
    for step in range(1, 500):
        copy = Hand(room / f"killed-{step}", hand.name, hand.clock)
        shutil.copytree(hand.folder, copy.folder, symlinks=True)
        if not killed_at(step, lambda copy=copy: work(copy), every):
            return
        yield copy
        shutil.rmtree(copy.folder)
    raise AssertionError("the work had no end")


def story(hand: Hand) -> list[tuple[object, ...]]:
    """Return what happened, without times and numbers of events."""
    with hand.ledger() as ledger:
        assert ledger.check() == []
        return [(e.request, e.step, e.model, dict(e.body)) for e in ledger.events()]


def files(hand: Hand) -> list[str]:
    """Return the names of everything but SQLite's own files."""
    names = (str(p.relative_to(hand.folder)) for p in hand.folder.rglob("*"))
    return sorted(n for n in names if not n.endswith(("-wal", "-shm", "-journal")))


def keys(hand: Hand) -> set[str]:
    """Return the versions that there are keys of."""
    with hand.ledger() as ledger:
        return {label.split("/")[2] for label in ledger.keys.live("undo/")}


WORK = {"put away": put_away, "roll back": lambda hand: rollback(hand, FIRST), "purge": purge}


def check_every_gap(hand: Hand, room: Path, work: str, every: bool) -> int:
    """Kill some work at each of its changes, repeat it, and compare with work that was not killed."""
    whole = Hand(room / "whole", hand.name, hand.clock)
    shutil.copytree(hand.folder, whole.folder, symlinks=True)
    WORK[work](whole)
    wanted = (story(whole), files(whole), whole.space.current(whole.name), keys(whole))
    count = 0
    for copy in killed(hand, room, WORK[work], every):
        assert sorted(digests(copy.space.served(copy.name))) == FIRST_FILES  # what is served is there, whole
        WORK[work](copy)
        copy.space.tidy(copy.name)  # as `process` does before it begins
        assert (story(copy), files(copy), copy.space.current(copy.name), keys(copy)) == wanted
        count += 1
    return count


@pytest.mark.parametrize("work", WORK)
def test_work_that_is_killed_in_any_gap_ends_the_same_when_it_is_repeated(edited, room, work):
    if work == "put away":
        edited.fulfil("c")
    assert check_every_gap(edited, room, work, every=False) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("work", WORK)
def test_work_on_several_versions_is_killed_at_every_change(edited, room, work):
    edited.fulfil("c")
    if work == "roll back":
        put_away(edited)
    assert check_every_gap(edited, room, work, every=True) >= 14
