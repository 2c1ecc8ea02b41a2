"""What disks, people and clocks do to a workspace: told in a sentence, nothing is lost, and mended it goes on."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benches import forked
from expunge.ledger import Ledger
from services import Shop
from shell import expunge, listing, sentence

Damage = Callable[[Shop], None]
MEGABYTE = 2**20


@pytest.fixture
def one(pets: Any) -> Shop:
    """Return a project on whose served version one request is fulfilled, and another waits."""
    shop: Shop = pets()
    for id, sample in (("first", "101"), ("second", "102")):
        assert run(shop, "add", id, "--id", sample)[0] == 0
        if id == "first":
            assert run(shop, "process")[0] == 0
    return shop


def run(shop: Shop, *words: object) -> tuple[int, str, str]:
    return expunge("requests", *words, cwd=shop.folder)


def told(shop: Shop, *words: object) -> str:
    """Return the sentence with which a command is refused."""
    code, _, err = run(shop, *words)
    assert code == 2, err
    return sentence(err)


def problems(shop: Shop) -> list[str]:
    """Return the lines of verify, but for the last two."""
    code, out, err = run(shop, "verify")
    assert code in (0, 1), err
    found = out.splitlines()[:-2]
    assert bool(found) == (code == 1)
    return found


def goes_on(shop: Shop) -> None:
    """Process what waits, and hold the workspace to being whole with both requests fulfilled."""
    code, out, err = run(shop, "process")
    assert code == 0, out + err
    assert problems(shop) == []
    assert [shop.status(id).word for id in ("first", "second")] == ["closed", "closed"]
    assert shop.remembered() == ["101", "102"]


def served(shop: Shop) -> Path:
    return shop.space.served("model")


def cut(name: str) -> Damage:
    def damage(shop: Shop) -> None:
        file = served(shop) / name
        file.write_bytes(file.read_bytes()[:-40])

    return damage


def swapped(*names: str) -> Damage:
    """Put files of the first version, which knows what was forgotten, in place of those that are served."""

    def damage(shop: Shop) -> None:
        for name in names:
            shutil.copyfile(shop.start().path / name, served(shop) / name)

    return damage


MODEL, STATE, RECORD = "model.safetensors", "state.safetensors", "record.json"


@pytest.mark.parametrize(
    ("damage", "want", "named"),
    [
        (cut(MODEL), "as they were written, got others: model.safetensors: restore the folder from a copy", [MODEL]),
        (cut(STATE), "an intact file .*state.safetensors, got SafetensorError.*: restore it from a copy", [STATE]),
        (cut(RECORD), "a JSON document in .*record.json, got .*: restore", [RECORD]),
        (swapped(MODEL), "as they were written, got others: model.safetensors", [MODEL]),
        (swapped(STATE), "as they were written, got others: state.safetensors", [STATE]),
        (
            swapped(MODEL, RECORD, STATE),
            "as they were written, got others: model.safetensors, record.json, state.safetensors",
            [MODEL, RECORD, STATE],
        ),
        (lambda shop: shutil.rmtree(served(shop)), "version v[0-9]+ of model in .*, got none: restore it", None),
    ],
)
def test_a_served_version_that_was_damaged_is_not_worked_on(
    one: Shop, tmp_path: Path, damage: Damage, want: str, named: list[str] | None
) -> None:
    folder, version = served(one), one.space.current("model")
    kept = shutil.copytree(folder, tmp_path / "kept")
    damage(one)
    before = listing(one.folder)
    lines = problems(one)
    if named is None:
        assert any(f"versions/{version}: missing, and it is the one that is served" in line for line in lines)
    else:
        assert lines == [f"models/model/versions/{version}/{name}: altered" for name in named]
    for how in ("edit", "retrain"):
        found = told(one, "process", "--how", how)
        assert re.search(want, found), found
    assert listing(one.folder) == before
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(kept, folder)
    goes_on(one)


@pytest.mark.parametrize(
    ("target", "want"),
    [
        (None, "names None, and the ledger says that v000002 is served"),
        ("versions/v999999", "names v999999, and the ledger says that v000002 is served"),
        ("../../elsewhere/v000002", "a link to a version at .*, got one to ../../elsewhere/v000002: process again"),
    ],
)
def test_a_link_that_names_no_version_is_told_and_set_again(one: Shop, target: str | None, want: str) -> None:
    link = one.space.home("model") / "current"
    link.unlink()
    if target is not None:
        link.symlink_to(target)
    assert re.search(f"^the link models/model/current: .*{want}", problems(one)[0])
    goes_on(one)


def test_something_else_in_the_place_of_the_link_is_told(one: Shop) -> None:
    link = one.space.home("model") / "current"
    link.unlink()
    link.mkdir()
    assert "a link at" in told(one, "process")
    assert any("got something else" in line for line in problems(one))
    link.rmdir()
    goes_on(one)


def test_a_damaged_page_of_the_ledger_is_told_and_the_copy_goes_on(one: Shop, tmp_path: Path) -> None:
    """Each page in turn, as a broken disk would: no command goes on from what is damaged where it reads it."""
    file = one.space.folder / "ledger.sqlite3"
    with one.ledger() as ledger:
        ledger._book.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        head = str(ledger.head())
    raw, kept = file.read_bytes(), shutil.copytree(one.space.folder, tmp_path / "kept", symlinks=True)
    refused = 0
    for at in range(0, len(raw), 4096):
        file.write_bytes(raw[:at] + b"\xa5" * 4096 + raw[at + 4096 :])
        code, out, err = run(one, "verify", "--head", head)
        assert code in (1, 2), out
        if code == 2:
            assert "restore the folder from a copy" in sentence(err) or "another program's database" in sentence(err)
        refused += run(one, "list")[0] == 2
        (one.space.folder / "ledger.sqlite3-wal").unlink(missing_ok=True)
        (one.space.folder / "ledger.sqlite3-shm").unlink(missing_ok=True)
    assert refused
    with Ledger.open(kept, readonly=True) as ledger:
        events = ledger._book.rows("SELECT rootpage FROM sqlite_master WHERE name = 'events'")[0][0]
    at = (events - 1) * 4096
    file.write_bytes(raw[:at] + b"\xa5" * 4096 + raw[at + 4096 :])
    before = listing(one.space.folder / "models")
    want = "Expected a sound database .*ledger.sqlite3, got database disk image is malformed: restore the folder"
    for words in (("process",), ("add", "third", "--id", "103"), ("show", "first")):
        assert re.search(want, told(one, *words))
    assert listing(one.space.folder / "models") == before
    shutil.rmtree(one.space.folder)
    shutil.copytree(kept, one.space.folder, symlinks=True)
    goes_on(one)


def test_a_clock_that_goes_back_is_told_and_nothing_is_done(one: Shop) -> None:
    one.ask("third", "103")  # in 2030
    before = listing(one.folder)
    want = "a time that is not before the last event's, 2030-01-01T12:00:00.000000+00:00, got "
    for words in (("process",), ("add", "fourth", "--id", "104"), ("hold", "second", "--reason", "x")):
        found = told(one, *words)
        assert want in found
        assert "the clock went back: set this machine's clock; nothing was written" in found
    after = listing(one.folder)
    assert {n for n in after if after[n] != before.get(n)} <= {"expunge-requests/keys.sqlite3"}
    assert problems(one) == []
    assert len(one.process()) == 1  # at the right time
    assert [one.status(id).word for id in ("first", "second", "third")] == ["closed"] * 3
    one.sound()


def test_a_workspace_that_cannot_be_written_is_read_and_told(one: Shop, tmp_path: Path) -> None:
    """Folders and files without the permission to write, for a process that permissions bind."""
    said = tmp_path / "said.json"

    def work() -> None:
        bound()
        words = (
            ("process",),
            ("add", "third", "--id", "103"),
            ("hold", "second", "--reason", "x"),
            ("list",),
            ("verify",),
        )
        said.write_text(json.dumps([run(one, *each) for each in words]))

    places = [one.space.folder, *(p for p in one.space.folder.rglob("*") if not p.is_symlink())]
    modes = {p: p.stat().st_mode for p in places}
    before = listing(one.folder)
    for place, mode in modes.items():
        place.chmod(mode & ~0o222)
    try:
        assert forked(work) == 0
    finally:
        for place, mode in modes.items():
            place.chmod(mode)
    *writing, (_, listed, _), (checked, _, err) = json.loads(said.read_text())
    for code, _, found in writing:
        assert code == 2
        assert re.search(
            "^Expected to write .*expunge-requests.*, got .*: .*(make the folder writable|choose)", sentence(found)
        )
    assert "1 open request: 1 received." in listed, found
    assert checked == 0, err
    assert listing(one.folder) == before
    goes_on(one)


def bound() -> None:
    """Let permissions bind this process, the superuser's too."""
    libc = ctypes.CDLL(None, use_errno=True)
    head, caps = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(head, caps) == 0
    for which in (0, 1):  # effective, permitted
        caps[which] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(head, caps) == 0


def test_a_full_disk_is_told_and_with_room_again_it_goes_on(one: Shop, tmp_path: Path) -> None:
    """A disk of its own for the workspace, with more and more room: what fits is done, the rest told."""
    kept, said = tmp_path / "kept", tmp_path / "said.json"
    shutil.copytree(one.space.folder, kept, symlinks=True)
    code = forked(lambda: said.write_text(json.dumps([filled(one, kept, room) for room in range(28, 180, 16)])))
    if code == NO_MOUNT:
        pytest.skip("this process may not mount a disk of its own")
    assert code == 0
    found = json.loads(said.read_text())
    assert {code for code, _ in found} == {0, 2, 3}, "the disk was always full at the same place"
    for code, text in found:
        assert code == 0 or re.search("disk is full|No space left on device|SQLITE_IOERR_SHMSIZE", text), text
        assert code == 0 or "free the space" in text


NO_MOUNT = 77


def filled(shop: Shop, kept: Path, room: int) -> tuple[int, str]:
    """Process with so many KiB of room, return exit code and what was said; then with enough of it, to the end."""
    libc, disk = ctypes.CDLL(None, use_errno=True), str(shop.space.folder).encode()
    own = libc.unshare(0x00020000) or libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None)  # mounts of its own
    if own or libc.mount(b"tmpfs", disk, b"tmpfs", 0, b"size=4m"):
        os._exit(NO_MOUNT)
    shutil.copytree(kept, shop.space.folder, symlinks=True, dirs_exist_ok=True)
    ballast = shop.space.folder / "ballast"
    ballast.write_bytes(bytes(os.statvfs(disk).f_bavail * 4096 - room * 1024))
    code, out, err = run(shop, "process")
    assert "Traceback" not in err
    ballast.unlink()
    goes_on(shop)
    assert libc.umount2(disk, 2) == 0
    return code, sentence(err) if code == 2 else re.sub(r"[\s│]+", " ", out)
