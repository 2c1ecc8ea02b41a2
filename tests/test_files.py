import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge import files
from expunge.errors import CorruptArtefact, Incompatible, NotFinite, UserError


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_canonical_has_one_text_for_one_value():
    assert files.canonical({"b": [1.5, None], "a": "é"}) == '{"a":"\\u00e9","b":[1.5,null]}'
    assert files.canonical({"a": 1, "b": 2}) == files.canonical({"b": 2, "a": 1})


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": -float("inf")}])
def test_canonical_refuses_what_json_cannot_hold(value):
    with pytest.raises(NotFinite, match="NaN or infinity"):
        files.canonical(value)


def test_digest_is_sha256_of_bytes_or_canonical_json():
    assert files.digest({"a": 1}).startswith("015abd7f5cc5")
    assert files.digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.digest(b"a", bytearray(b"b"), memoryview(b"c")) == files.digest(b"abc")
    assert files.digest("abc") != files.digest(b"abc")


def test_atomic_puts_the_whole_file_in_place(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with files.atomic(path) as temporary:
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_no_litter(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write():
        with files.atomic(path) as temporary:
            temporary.write_text("ha")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("written", [True, False])
def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path, written):
    path = tmp_path / "state"
    path.mkdir()
    (path / "old").write_text("old")

    def write():
        with files.atomic(path) as temporary:
            if written:
                temporary.mkdir()
                (temporary / "new").write_text("new")

    if written:
        write()
        assert names(path) == ["new"]
    else:  # nothing to move: what was there must stay
        with pytest.raises(UserError, match=r"Expected to write .*state"):
            write()
        assert (path / "old").read_text() == "old"
    assert names(tmp_path) == ["state"]


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_process_stopped_half_way_leaves_the_old_file(tmp_path, blow, form):
    path = tmp_path / "a"
    if form == "folder":
        path.mkdir()
    old = path / "part" if form == "folder" else path
    old.write_text("old")
    code = f"""
        import pathlib, sys, time
        from expunge import files
        with files.atomic(pathlib.Path({str(path)!r})) as temporary:
            if {form == "folder"}:
                temporary.mkdir()
                temporary = temporary / "part"
            with temporary.open("w") as handle:
                handle.write("half of the n")
                handle.flush()
                print("half", flush=True)
                time.sleep(60)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "half\n"
    child.send_signal(blow)
    child.communicate(timeout=30)
    assert child.returncode != 0
    assert old.read_text() == "old"
    if blow == signal.SIGINT:  # nobody can tidy after SIGKILL
        assert names(tmp_path) == ["a"]


def test_a_full_disk_is_one_sentence(tmp_path):
    code = f"""
        import pathlib, resource
        from expunge import errors, files
        path = pathlib.Path({str(tmp_path / "a")!r})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            files.write_text(path, "x" * 1000)
        except errors.UserError as error:
            print(error)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert (
        run.stdout
        == f"Expected to write {tmp_path / 'a'}, got File too large: free the space or choose another folder.\n"
    )
    assert names(tmp_path) == []


def test_a_parent_that_is_a_file_cannot_be_written_in(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "a.txt"
    with pytest.raises(UserError, match=r"Expected a folder to write a\.txt in, got .*file, not writable"):
        files.check_free(path, overwrite=False)
    with pytest.raises(UserError, match="to write"):
        files.write_text(path, "x")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="not writable"):
        files.check_free(tmp_path / "a", overwrite=True)


def test_check_free_refuses_what_stands_there(tmp_path):
    path = tmp_path / "a"
    files.check_free(path, overwrite=False)
    files.check_free(tmp_path / "new" / "deep" / "a", overwrite=False)
    path.write_text("")
    with pytest.raises(UserError, match=r"existing file or folder: choose another path, or pass overwrite=True\.$"):
        files.check_free(path, overwrite=False)
    files.check_free(path, overwrite=True)


def test_a_document_comes_back_with_its_kind_and_schema(tmp_path):
    path = tmp_path / "a.json"
    files.write_document(path, "record", 2, {"x": [1, "é"]})
    assert files.read_document(path, "record", 2) == {"kind": "record", "schema": 2, "x": [1, "é"]}
    assert files.read_document(path, "record", 3)["schema"] == 2


def test_a_document_with_nan_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "a.json"
    files.write_document(path, "record", 1, {"x": 1})
    before = path.read_bytes()
    with pytest.raises(NotFinite):
        files.write_document(path, "record", 1, {"x": float("nan")})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (None, UserError, "none there"),
        (b'{"kind": "record", "sch', CorruptArtefact, "Unterminated string"),
        (b"\xff\xfe\x00", CorruptArtefact, "a JSON document in"),
        (b"[1]", Incompatible, "'list'"),
        (b'{"schema": 1}', Incompatible, "None"),
        (b'{"kind": "grid", "schema": 1}', Incompatible, "of kind 'record' in .*, got 'grid'"),
        (b'{"kind": "record", "schema": 9}', Incompatible, "schema 1 or older in .*, got 9: update expunge"),
        (b'{"kind": "record", "schema": "1"}', Incompatible, "got '1'"),
    ],
)
def test_a_document_that_is_not_one(tmp_path, content, error, said):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=said) as caught:
        files.read_document(path, "record", 1)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ({"a": (1, 2.5), 3: None}, {"a": [1, 2.5], "3": None}),
        (np.float32(0.5), 0.5),
        (np.arange(3), [0, 1, 2]),
        (torch.tensor([[1.0], [2.0]]), [[1.0], [2.0]]),
        (torch.tensor(3), 3),
        (float("nan"), "nan"),
        (-float("inf"), "-inf"),
        (np.array([np.nan]), ["nan"]),
        (True, True),
        ({"c", "a", "b"}, ["a", "b", "c"]),
        (frozenset({10, 9}), [10, 9]),
    ],
)
def test_jsonable(value, plain):
    found = files.jsonable(value)
    assert found == plain
    json.dumps(found, allow_nan=False)


def test_an_interrupt_between_the_renames_puts_the_old_folder_back(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old.txt").write_text("old")
    rename = Path.rename

    def interrupted(self, target):
        found = rename(self, target)
        if Path(target).name == "replaced":
            raise KeyboardInterrupt
        return found

    def write():
        with files.atomic(path) as room:
            room.mkdir()

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert (path / "old.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_into_a_private_folder_is_written_straight_and_elsewhere_as_ever(tmp_path, monkeypatch):
    synced, mine = [], tmp_path / "mine"
    mine.mkdir()
    monkeypatch.setattr(files.os, "fsync", synced.append)
    with files.private(mine):
        with files.atomic(mine / "a") as path:
            assert path == mine / "a"
            path.write_text("1")
        assert synced == []
        with files.atomic(tmp_path / "b") as path:
            assert path != tmp_path / "b"
            path.write_text("2")
        assert len(synced) == 2  # the file and the folder
        with pytest.raises(UserError, match="to write .*mine/c, got No space left"), files.atomic(mine / "c"):
            raise OSError(28, "No space left")
    with files.atomic(mine / "a") as path:
        assert path != mine / "a"
        path.write_text("3")
    assert (mine / "a").read_text() == "3"
    files.sync(mine)
    assert len(synced) == 6
