"""What disks, other programs and other processes do to the file, each told in a sentence."""

import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from expunge.errors import CorruptArtefact, Incompatible, Unwritable, UserError
from expunge.ledger import Ledger, database

WRITER = Path(__file__).with_name("writer.py")
FILE = "ledger.sqlite3"


def test_a_commit_waits_for_the_disk(ledger):
    book, keys = ledger._book.db, ledger.keys._db
    assert [book.execute(f"PRAGMA {p}").fetchone()[0] for p in ("journal_mode", "synchronous")] == ["wal", 2]
    assert [keys.execute(f"PRAGMA {p}").fetchone()[0] for p in ("journal_mode", "synchronous")] == ["delete", 2]
    assert {db.execute("PRAGMA secure_delete").fetchone()[0] for db in (book, keys)} == {1}


def test_no_ledger_is_made_where_none_is_asked_for(folder):
    for readonly in (False, True):
        with pytest.raises(UserError, match=r"a file .*ledger.sqlite3, got none: check --workspace"):
            Ledger.open(folder, readonly=readonly)
    assert not folder.exists()


def test_making_it_again_opens_it(ledger, folder, ask):
    ledger.receive(ask("r"))
    with Ledger.open(folder, create=True) as again:
        assert again.identity == ledger.identity
        assert again.request("r").values == ("train/r",)
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []


def test_what_a_killed_process_left_half_made_is_removed_in_time(ledger, folder):
    old, new = (folder / f".keys.sqlite3.{name}" for name in ("old", "new"))
    for part, age in ((old, 4000), (new, 10)):
        part.write_bytes(b"half made")
        os.utime(part, (time.time() - age,) * 2)
    with Ledger.open(folder, create=True) as again:
        assert again.identity == ledger.identity
    assert (old.exists(), new.exists()) == (False, True)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "9p", "smb3"])
def test_a_network_disk_is_refused(folder, monkeypatch, kind):
    monkeypatch.setattr(database, "file_system", lambda _: kind)
    with pytest.raises(
        UserError, match=rf"SQLite's WAL does not work on a network disk\), got .* on {kind}: choose a local"
    ):
        Ledger.open(folder, create=True)
    assert not folder.exists()


def test_the_file_system_is_that_of_the_deepest_mount(monkeypatch, tmp_path):
    class Mount:
        def __init__(self, mountpoint, fstype):
            self.mountpoint, self.fstype = str(mountpoint), fstype

    mounts = [Mount("/", "ext4"), Mount(tmp_path, "NFS4"), Mount(tmp_path / "x", "tmpfs"), Mount("/xyz", "cifs")]
    monkeypatch.setattr(database.psutil, "disk_partitions", lambda all: mounts)
    assert database.file_system(tmp_path / "y" / "z") == "nfs4"
    assert database.file_system(tmp_path / "x" / "z") == "tmpfs"
    (tmp_path / "link").symlink_to(tmp_path / "x")
    assert database.file_system(tmp_path / "link") == "tmpfs"


def test_a_file_that_is_no_database_is_refused(folder):
    folder.mkdir()
    (folder / FILE).write_bytes(b"this is no database, but long enough to be read as one" * 40)
    (folder / "keys.sqlite3").write_bytes(b"x" * 4096)
    with pytest.raises(CorruptArtefact, match="a sound database .*, got file is not a database: restore the folder"):
        Ledger.open(folder)


def test_another_programs_database_is_refused(folder):
    folder.mkdir()
    with closing(sqlite3.connect(folder / FILE)) as db:
        db.execute("CREATE TABLE t (x)")
    with pytest.raises(Incompatible, match="a ledger of expunge in .*, got another program's database"):
        Ledger.open(folder, create=True)


@pytest.mark.parametrize(
    ("file", "version", "message"),
    [(FILE, 2, "update expunge"), (FILE, 0, "restore it"), ("keys.sqlite3", 9, "update")],
)
def test_another_version_is_refused(ledger, folder, file, version, message):
    ledger.close()
    with closing(sqlite3.connect(folder / file)) as db:
        db.execute(f"PRAGMA user_version={version}")
    with pytest.raises(Incompatible, match=rf"schema 1 in .*{file}, got {version}: {message}"):
        Ledger.open(folder)


@pytest.mark.parametrize("rest", [f"{FILE}-wal", "keys.sqlite3-journal"])
def test_a_file_that_was_lost_is_not_made_anew_over_its_log(folder, rest):
    folder.mkdir()
    (folder / rest).write_bytes(b"what is left")
    name = rest.split("-")[0]
    with pytest.raises(CorruptArtefact, match=f"{name} beside {rest} in .*, got none: restore {name} from a copy"):
        Ledger.open(folder, create=True)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(Unwritable, match="to write .*file"):
        Ledger.open(tmp_path / "file" / "requests", create=True)


def test_a_folder_that_cannot_be_written_is_told(folder, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(database.tempfile, "mkstemp", refuse)
    with pytest.raises(Unwritable, match="to write .*requests, got Permission denied"):
        Ledger.open(folder, create=True)


def test_a_copy_on_a_disk_that_cannot_be_written_is_read(ledger, folder, ask, monkeypatch):
    """No log beside the file can be made there; the file is read as one that nobody changes."""
    ledger.receive(ask("r"))
    ledger.close()
    monkeypatch.setattr(database.os, "access", lambda *_: False)
    with Ledger.open(folder, readonly=True) as reader:
        assert reader.check() == []
        assert [p.name for p in folder.iterdir() if p.name.endswith(("-wal", "-shm"))] == []


@pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not bind the superuser")
def test_a_file_without_the_permission_to_write_is_told(ledger, folder, ask):
    ledger.close()
    (folder / FILE).chmod(0o400)
    with pytest.raises(UserError, match=r"to write .*ledger.sqlite3"), Ledger.open(folder) as again:
        again.receive(ask("r"))


def test_a_full_disk_is_told_and_nothing_is_lost(ledger, ask):
    ledger.receive(ask("a"))
    pages = ledger._book.rows("PRAGMA page_count")[0][0]
    ledger._book.db.execute(f"PRAGMA max_page_count={pages + 1}")
    head = ledger.head()
    with pytest.raises(
        Unwritable, match=r"to write .*got database or disk is full .*a step is kept whole or not at all"
    ):
        ledger.receive(ask("b", "x" * 100_000))
    assert ledger.head() == head
    ledger._book.db.execute("PRAGMA max_page_count=1000000")
    assert ledger.receive(ask("b", "x" * 100_000))
    assert ledger.check() == []


def test_a_limit_of_the_system_is_told_and_nothing_acknowledged_is_lost(folder, ask):
    with Ledger.open(folder, create=True, actor="ann") as ledger:
        ledger.receive(ask("first"))

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (800_000, 800_000))

    run = subprocess.run(
        [sys.executable, WRITER, "write", folder, "w", "1000"],
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
    )
    said = run.stdout.split()
    assert "Unwritable" in run.stderr
    assert "a step is kept whole or not at all" in run.stderr
    assert len(said) > 10
    with Ledger.open(folder) as ledger:
        assert {s.request for s in ledger.all()} == {"first", *said}
        assert ledger.check() == []
        assert ledger.receive(ask("after"))


def test_a_process_that_keeps_the_file_locked_is_waited_for_then_told(ledger, folder, ask):
    ledger._book.db.execute("PRAGMA busy_timeout=20")
    with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UserError, match="to be free within 60 s, got another process that keeps it locked"):
            ledger.receive(ask("r"))
    assert ledger.receive(ask("r"))


def test_a_table_that_is_missing_is_told(ledger, folder, ask):
    ledger.close()
    with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as db:
        db.execute("DROP TABLE latest")
    with Ledger.open(folder) as again:
        with pytest.raises(CorruptArtefact, match="a sound database .*, got no such table: latest"):
            again.receive(ask("r"))
        assert [p.what for p in again.check()] == ["schema", "schema", "database"]
    with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as db:
        db.execute("DROP TABLE meta")
    with pytest.raises(CorruptArtefact, match="got no such table: meta"):
        Ledger.open(folder)


@pytest.fixture
def sound(ledger, folder, ask, fulfil):
    """Return a closed ledger of some pages."""
    ledger.receive_all(ask(f"r{n}", "x" * 300) for n in range(30))
    fulfil(ledger, "r7")
    ledger.close()
    return folder


def test_every_damaged_page_is_told(sound, tmp_path):
    """Each page of the file in turn is overwritten, as a broken disk would."""
    size = (sound / FILE).stat().st_size
    page = 4096
    assert size // page > 10
    for number in range(size // page):
        folder = shutil.copytree(sound, tmp_path / f"page{number}")
        with (folder / FILE).open("r+b") as file:
            file.seek(number * page)
            file.write(b"\xa5" * page)
        try:
            with Ledger.open(folder, readonly=True) as ledger:
                found = ledger.check()
        except UserError as error:
            found = [error]
        assert found, f"page {number} is damaged, and nothing was told"


def test_a_damaged_page_is_told_where_it_is_read(sound):
    with closing(sqlite3.connect(sound / FILE)) as db:
        root = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'events'").fetchone()[0]
    with (sound / FILE).open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xa5" * 4096)
    with Ledger.open(sound) as ledger:
        with pytest.raises(
            CorruptArtefact, match="got database disk image is malformed: restore the folder from a copy"
        ):
            ledger.history("r7")
        assert {p.what for p in ledger.check()} == {"database"}


def test_one_flipped_bit_in_what_an_event_says_is_told(sound):
    raw = (sound / FILE).read_bytes()
    place = raw.index(b'{"how":"edit"') + 9
    (sound / FILE).write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
    with Ledger.open(sound, readonly=True) as ledger:
        assert [p.where for p in ledger.check()][0] == "event 31 (started, request r7, model model)"


def test_a_log_cut_or_torn_anywhere_leaves_a_sound_beginning(ledger, folder, ask, tmp_path):
    """What a loss of power leaves where the disk had not written all: the events up to some one, and their chain."""
    done = []
    for n in range(12):
        ledger.receive(ask(f"r{n}"))
        done.append(ledger.head())
    log = (folder / f"{FILE}-wal").read_bytes()
    base = shutil.copytree(folder, tmp_path / "base")
    seen = set()
    for number in range(60):
        at = len(log) * number // 59
        torn = log[:at] if number % 2 else log[:at] + bytes(min(512, len(log) - at)) + log[at + 512 :]
        (base / f"{FILE}-wal").write_bytes(torn)
        copy = shutil.copytree(base, tmp_path / f"cut{number}")
        (copy / f"{FILE}-shm").unlink()
        with Ledger.open(copy) as again:
            assert again.check() == []
            count = again.head().seq
            assert again.head() == done[count - 1] if count else True
            lost = again.check(done[-1])
            assert [p.what for p in lost] == ([] if count == 12 else ["head"])
            assert again.receive(ask("after"))
        seen.add(count)
    assert len(seen) > 5


def test_a_loss_of_power_while_the_log_is_copied_into_the_file_loses_nothing(ledger, folder, ask, tmp_path):
    """Any mixture of old, new and half written pages beside the whole log: the log is copied again."""
    ledger.receive_all(ask(f"r{n}", "x" * 500) for n in range(20))
    ledger._book.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    ledger.receive_all(ask(f"s{n}", "x" * 500) for n in range(20))
    before = shutil.copytree(folder, tmp_path / "before")
    ledger._book.rows("PRAGMA wal_checkpoint(PASSIVE)")
    old, new = ((place / FILE).read_bytes() for place in (before, folder))
    assert old != new
    head, random = ledger.head(), Random(0)
    for number in range(20):
        pages = []
        for at in range(0, len(new), 4096):
            cut = random.choice([0, 4096, 512 * random.randrange(8)])
            pages.append(new[at : at + cut] + old[at + cut : at + 4096].ljust(4096 - cut, b"\0"))
        copy = shutil.copytree(before, tmp_path / str(number))
        (copy / FILE).write_bytes(b"".join(pages))
        (copy / f"{FILE}-shm").unlink()
        with Ledger.open(copy) as again:
            assert again.head() == head
            assert again.check(head) == []
