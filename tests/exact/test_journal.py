"""Files of lines that only grow: what was appended is read, a torn end is no line, a cut keeps the first ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from expunge.errors import CorruptArtefact, Unwritable
from expunge.exact import journal

LINES = [{"n": 0}, {"n": 1, "text": "two\u2028lines\n"}, {"n": 2}]


def test_lines_are_read_as_they_were_appended(tmp_path: Path):
    path = tmp_path / "lines.jsonl"
    assert journal.read(path) == []
    journal.append(path, LINES[:2])
    journal.append(path, LINES[2:])
    assert journal.read(path) == LINES


def test_wherever_a_kill_cuts_the_last_line_those_before_it_are_read(tmp_path: Path):
    path = tmp_path / "lines.jsonl"
    journal.append(path, LINES)
    body = path.read_bytes()
    starts = [0, *(at + 1 for at, byte in enumerate(body) if byte == ord("\n"))]
    for size in range(len(body) + 1):
        path.write_bytes(body[:size])
        whole = sum(start <= size for start in starts) - 1
        assert journal.read(path) == LINES[:whole]
        journal.cut(path, whole)  # what is appended next begins a line of its own
        journal.append(path, LINES[:1])
        assert journal.read(path) == [*LINES[:whole], LINES[0]]


def test_a_cut_keeps_the_first_lines_and_no_more_than_there_are(tmp_path: Path):
    path = tmp_path / "lines.jsonl"
    journal.cut(path, 2)
    assert not path.exists()
    journal.append(path, LINES)
    journal.cut(path, 5)
    assert journal.read(path) == LINES
    journal.cut(path, 1)
    assert journal.read(path) == LINES[:1]


def test_a_line_that_is_no_object_is_named(tmp_path: Path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"n":0}\n[1]\n{"n":2}\n')
    with pytest.raises(CorruptArtefact, match=r"JSON object in line 2 of .*lines.jsonl, got \[1\]: restore"):
        journal.read(path)


def test_where_the_disk_is_full_the_file_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "lines.jsonl"
    journal.append(path, LINES[:1])

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(Unwritable, match="No space left on device"):
            journal.append(path, LINES[1:])
    journal.append(path, LINES[2:])
    assert journal.read(path) == [LINES[0], LINES[2]]
