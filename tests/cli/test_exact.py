"""Exact unlearning from the shell: prepared, deleted from, held to its manifest, trained again, served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from expunge.exact.server import Server
from expunge.folders import Folder
from expunge.method import State
from expunge.tensors import save_weights
from projects import Small, shop
from shell import expunge, sentence


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with sisa prepared in expunge-work, and one sample deleted in gone."""
    where = shop(tmp_path_factory.mktemp("exact") / "shop", {"method.name": "sisa", "method.alpha": None})
    (where / "ids.txt").write_text("103\n")
    for words in (("prepare", "--set", "shards=2", "--set", "slices=2"), ("forget", "--ids", "ids.txt", "-o", "gone")):
        code, _, err = expunge(*words, cwd=where)
        assert code == 0, err
    return where


def test_what_prepare_and_forget_wrote_is_clean(place: Path):
    code, out, err = expunge("exact", "audit", "expunge-work", cwd=place)
    assert code == 0, err
    assert "4 live stages, 4 of them served, at depth 2, 2 by shard; 60 samples were read for what is" in out
    assert "Clean: no deleted sample is among those read" in out
    code, out, err = expunge("--json", "exact", "audit", "gone", cwd=place)
    assert code == 0, err
    found = json.loads(out)
    assert (found["deleted"], found["faults"], found["clean"]) == (1, [], True)


def test_every_stage_replays(place: Path):
    for folder in ("expunge-work", "gone"):
        code, out, err = expunge("exact", "replay", folder, cwd=place)
        assert code == 0, err
        assert "stages are the same to the bit." in out
    code, out, err = expunge("--json", "exact", "replay", "gone", "--stage", "0/0", "--stage", "1/0", cwd=place)
    assert code == 0, err
    assert [(name, one["same"]) for name, one in json.loads(out).items()] == [("0/0", True), ("1/0", True)]


def test_what_is_not_as_the_manifest_says_ends_with_3(place: Path, tmp_path: Path):
    where = tmp_path / "shop"
    shutil.copytree(place, where)
    file = where / "expunge-work" / "state.safetensors"
    state = State.load(file)
    values = {name: state.tensors[name] for name in state.tensors}
    name = next(n for n in values if n.startswith("stage/0/0/"))
    values[name] = values[name] + 1
    State(values, state.meta).save(file, overwrite=True)
    code, out, _ = expunge("exact", "audit", "expunge-work", cwd=where)
    assert code == 3
    assert "The tensors of stage 0/0 are not those of the manifest." in out
    assert "Not clean: do not serve this." in out
    code, out, _ = expunge("exact", "replay", "expunge-work", "--stage", "0/0", cwd=where)
    assert code == 3
    assert "1 of 1 stages differ." in out


def test_a_store_that_the_shell_wrote_is_served(place: Path, tmp_path: Path):
    code, out, err = expunge("exact", "store", "gone", "-o", tmp_path / "store", cwd=place)
    assert code == 0, err
    assert "stages: " in out
    code, out, err = expunge("exact", "audit", tmp_path / "store", cwd=place)
    assert code == 0, err
    folder = Folder.open(place / "gone")
    base = folder.project.network.load(folder.path)
    x = folder.project.train.read(range(20)).inputs
    with Server(tmp_path / "store", base, folder.project.task) as server:
        assert torch.equal(server.predict(x), folder.model().eval()(x))
        assert server.delete(["104"]).request == 2
    code, _, err = expunge("exact", "store", "gone", "-o", tmp_path / "store", cwd=place)
    assert code == 2
    assert "a path that is free to write" in sentence(err)
    code, _, err = expunge("--yes", "exact", "store", "gone", "-o", tmp_path / "store", cwd=place)
    assert code == 0, err


def test_another_network_before_training_fails_the_audit_and_is_not_stored(place: Path, tmp_path: Path):
    where = tmp_path / "shop"
    shutil.copytree(place, where)
    save_weights(where / "gone" / "model.safetensors", Small(), {}, overwrite=True)
    code, out, _ = expunge("exact", "audit", "gone", cwd=where)
    assert code == 3
    assert "The weights of the network before any stage are not those that training began from." in out
    code, _, err = expunge("exact", "store", "gone", "-o", "store", cwd=where)
    assert code == 2
    assert "the network that training began from in gone, got another: restore" in sentence(err)
    assert not (where / "store").exists()


def test_a_plan_says_no_size_that_it_does_not_know(place: Path):
    code, out, err = expunge("--json", "prepare", "-o", "other", "--plan", cwd=place)
    assert code == 0, err
    assert [row["bytes"] for row in json.loads(out)["files"]][1:] == [None, None]
    (place / "other.txt").write_text("105\n")
    code, out, err = expunge("--json", "forget", "--ids", "other.txt", "--plan", cwd=place)
    assert code == 0, err
    assert json.loads(out)["files"][0]["bytes"] == 4 * (3 * 8 + 8 + 8 * 3 + 3)  # one network, not one a shard


def test_bad_words_are_refused_in_a_sentence(place: Path, tmp_path: Path):
    code, _, err = expunge("exact", "replay", "gone", "--stage", "7/0", cwd=place)
    assert code == 2
    assert "got 7/0: name others" in sentence(err)
    code, _, err = expunge("exact", "audit", "nowhere", cwd=place)
    assert code == 2
    assert "a folder written by prepare or forget at nowhere" in sentence(err)
    other = shop(tmp_path / "shop")
    assert expunge("prepare", cwd=other)[0] == 0
    code, _, err = expunge("exact", "audit", "expunge-work", cwd=other)
    assert code == 2
    assert "a state that sisa or s3t prepared, got another" in sentence(err)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("", "Exit codes: 0 done"),
        ("audit", "Exit code 3: something is not so"),
        ("replay", "OMP_NUM_THREADS"),
        ("store", "adapters that peft"),
    ],
)
def test_the_help_of_each_command_teaches(command: str, text: str, tmp_path: Path):
    code, out, _ = expunge("exact", *command.split(), "--help", cwd=tmp_path)
    assert code == 0
    assert text in " ".join(out.replace("│", " ").split())
    assert "Raises" not in out
