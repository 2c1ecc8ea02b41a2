"""Disks that are full, folders that cannot be written, work that is interrupted and started again."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

from expunge import train
from expunge.checkpoints import Checkpoint
from expunge.fisher.partial import Partial
from projects import Copy
from shell import expunge, listing, refused, sentence

SUBJECT = ("forget", "--subject", "ann")


def full(*words: Any, **more: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "words", [("prepare", "-o", "new"), ("forget", "--subject", "ann"), ("init", "-o", "new.toml")]
)
def test_a_full_disk_leaves_nothing_behind(
    words: tuple[str, ...], ready: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ready()
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    monkeypatch.setattr(Path, "write_text", full)
    said = refused(place, *words)
    assert re.search(r"Expected to write \S+, got No space left on device: free the space or choose another", said)


def test_a_disk_that_fills_while_replacing_keeps_what_was_there(ready: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    place = ready()
    before = listing(place)
    monkeypatch.setattr(os, "replace", full)
    code, _, err = expunge("--yes", "prepare", "--seed", "3", cwd=place)
    assert code == 2
    assert "No space left on device" in sentence(err)
    assert listing(place) == before


@pytest.mark.parametrize("words", [("prepare", "-o", "new"), ("--yes", "prepare"), SUBJECT, ("init", "-o", "new.toml")])
def test_a_folder_that_cannot_be_written(words: tuple[str, ...], ready: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    place = ready()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    said = refused(place, *words)
    assert f"in, got {place}, not writable: choose another folder" in said


def test_a_file_that_cannot_be_read(ready: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    place = ready()
    opened = Path.open

    def locked(self: Path, *words: Any, **more: Any) -> Any:
        if self.name == "model.safetensors" and self.parent == place:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return opened(self, *words, **more)

    monkeypatch.setattr(Path, "open", locked)
    code, _, err = expunge("prepare", "-o", "new", cwd=place)
    assert code == 2
    assert f"a readable file {place / 'model.safetensors'}, got Permission denied: check its permissions" in sentence(
        err
    )


def test_an_error_of_the_system_that_nobody_foresaw_is_a_sentence(ready: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    place = ready()
    monkeypatch.setattr(
        torch, "isfinite", lambda tensor: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error"))
    )
    said = refused(place, "prepare", "-o", "new")
    assert said.startswith("Expected files to be read and written, got Input/output error: check the path")


def test_a_training_that_is_interrupted_goes_on_and_ends_with_the_same_weights(
    fresh: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = fresh(
        {"model.weights": "train", "recipe.epochs": 4, "runtime.workdir": "half", "runtime.checkpoint_every": 0}
    )
    code, _, err = expunge("prepare", "--set", "runtime.workdir=other", "-o", "whole", cwd=place)
    assert code == 0, err
    epochs: list[int] = []
    store, epoch = Checkpoint.store, train._epoch

    def cut(self: Checkpoint, model: Any, optimizer: Any, now: Any) -> None:
        store(self, model, optimizer, now)
        if now.epoch == 2:
            raise KeyboardInterrupt

    def counted(*words: Any, **more: Any) -> None:
        epochs.append(words[6])
        epoch(*words, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "store", cut)
        code, out, err = expunge("prepare", cwd=place)
    assert code == 130
    assert "Traceback" not in err
    assert not (place / "expunge-work").exists()
    assert [p.suffix for p in (place / "half").iterdir()] == [".safetensors"]
    monkeypatch.setattr(train, "_epoch", counted)
    code, _, err = expunge("prepare", cwd=place)
    assert code == 0, err
    assert epochs == [2, 3]
    assert not list((place / "half").iterdir())
    one, two = (load_file(place / n / "model.safetensors") for n in ("whole", "expunge-work"))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_a_pass_that_is_interrupted_goes_on_and_ends_with_the_same_sums(
    ready: Copy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = ready({"runtime.batch_size": 4, "runtime.checkpoint_every": 0})
    monkeypatch.setattr("expunge.fisher.WINDOW", 4)
    code, _, err = expunge("prepare", "-o", "whole", cwd=place)
    assert code == 0, err
    keep, written = Partial.keep, []

    def cut(self: Partial, *words: Any) -> None:
        keep(self, *words)
        written.append(words[1])
        if len(written) == 3:
            raise KeyboardInterrupt

    before = listing(place)
    with monkeypatch.context() as patch:
        patch.setattr(Partial, "keep", cut)
        code, _, err = expunge("prepare", "-o", "new", cwd=place)
    assert code == 130
    assert written == [4, 8, 12]
    assert not (place / "new").exists()
    assert len(list((place / ".new.partial").glob("importance-*"))) == 1
    code, _, err = expunge("--verbose", "prepare", "-o", "new", cwd=place)
    assert code == 0, err
    assert "after 12 samples" in err + caplog.text
    assert not (place / ".new.partial").exists()
    one, two = (load_file(place / n / "state.safetensors") for n in ("whole", "new"))
    sums = [k for k in one if k.startswith("importance/")]
    assert sums
    assert all(torch.equal(one[k], two[k]) for k in sums)
    assert {*listing(place)} >= {*before}


def test_a_checkpoint_cut_short_is_named(fresh: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    place = fresh({"model.weights": "train", "runtime.workdir": "half", "runtime.checkpoint_every": 0})
    store = Checkpoint.store

    def cut(self: Checkpoint, *words: Any) -> None:
        store(self, *words)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "store", cut)
        assert expunge("prepare", cwd=place)[0] == 130
    (file,) = (place / "half").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert f"an intact file {file}" in refused(place, "prepare")


def test_training_from_the_shell_is_that_of_its_seed(fresh: Copy) -> None:
    place = fresh({"model.weights": "train"})
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        assert expunge("prepare", "--seed", seed, "-o", name, cwd=place)[0] == 0
    one, again, two = (load_file(place / n / "model.safetensors") for n in ("one", "again", "two"))
    assert all(torch.equal(one[k], again[k]) for k in one)
    assert not torch.equal(one["head.weight"], two["head.weight"])
