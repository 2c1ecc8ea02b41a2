"""What still holds what was forgotten: found, destroyed in the workspace, and told of outside it."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
import torch

from expunge import tensors
from expunge.errors import UserError
from expunge.files import write_document
from expunge.folders import RECORD
from expunge.folders import SCHEMA as FORM
from expunge.project import Project
from expunge.service import undo
from expunge.service.leftovers import Leftover, destroy, inside, leftovers
from versions import CANARY, Hand, asked, fill, holding, ids_of

SUBJECT = "Ada <Lovelace> & sons"
SECRETS = [*ids_of("a"), SUBJECT]
TOML = """
[model]
network = "shop:net"
weights = "trained.safetensors"
[runtime]
workdir = "half-done"
[requests]
workspace = "space"
start = "start"
"""


@pytest.fixture
def hand(tmp_path: Path) -> Hand:
    """A workspace in a project, one version replaced, and requests of ids and of a subject."""
    made = Hand(tmp_path / "space")
    (tmp_path / "expunge.toml").write_text(TOML)
    made.begin(tmp_path / "start")
    made.fulfil("a")
    with made.ledger() as ledger:
        ledger.receive(asked("person", SUBJECT, kind="subject"))
    return made


def purge(hand: Hand) -> undo.Purged:
    with hand.ledger() as ledger:
        return undo.purge(hand.space, ledger, now=hand.clock)


def kinds(hand: Hand) -> dict[str, str]:
    """Return what is left in the workspace: kind by path."""
    with hand.ledger() as ledger, hand.space.locked(hand.name):
        return {str(e.path.relative_to(hand.folder)): e.kind for e in inside(hand.space, ledger, hand.name)}


def beside(hand: Hand) -> dict[str, Leftover]:
    """Return what is left outside, by path."""
    place = Project.open(hand.folder.parent / "expunge.toml")
    with hand.ledger() as ledger:
        found = leftovers(hand.space, ledger, place, hand.name)
    return {str(e.path.relative_to(hand.folder.parent)): e for e in found if not e.inside}


def plant(folder: Path) -> None:
    """Write weights that hold the canary, with ids in their metadata, and a document and a page that name people."""
    folder.mkdir(parents=True)
    values = torch.frombuffer(bytearray(CANARY), dtype=torch.uint8)
    tensors.save(folder / "mask.safetensors", {"mask": values}, {"forgotten": SECRETS})
    (folder / "ids.json").write_text(json.dumps({"who": SECRETS}))
    (folder / "page.html").write_text("<p>Ada &lt;Lovelace&gt; &amp; sons</p>")


def raw(folder: Path) -> list[str]:
    """Return the files that hold the canary, an id or the subject, as they are or as JSON and HTML write them."""
    return holding(folder, CANARY, *(s.encode() for s in SECRETS), b"Ada &lt;Lovelace&gt; &amp; sons")


def test_a_clean_workspace_has_the_replaced_version_alone(hand):
    assert kinds(hand) == {"models/shop/versions/v000000": "version"}
    with hand.ledger() as ledger, hand.space.locked(hand.name):
        undo.put_away(hand.space, ledger, hand.name, 14, now=hand.clock())
    assert kinds(hand) == {"undo/shop-v000000.sealed": "archive"}
    purge(hand)
    assert kinds(hand) == {}


PLACES = {
    "work/shop/fit-1": "work/shop",
    "work/gone/fit-1": "work/gone",
    "models/shop/.v000003.abcdefgh/v000003": "models/shop/.v000003.abcdefgh",
    "models/shop/versions/.v000003.abcdefgh/v000003": "models/shop/versions/.v000003.abcdefgh",
    "models/shop/versions/v000077": "models/shop/versions/v000077",
    "models/shop/versions/old": "models/shop/versions/old",
    "models/shop/shadows": "models/shop/shadows",
    "undo/.shop-v000003.sealed.abcdefgh/x": "undo/.shop-v000003.sealed.abcdefgh",
    "undo/masks": "undo/masks",
    "cache/a/b": "cache",
    ".pack.abcdefgh/pack": ".pack.abcdefgh",
}


@pytest.mark.parametrize("planted", PLACES)
def test_what_is_planted_in_the_workspace_is_found_and_destroyed(hand, planted):
    plant(hand.folder / planted)
    assert PLACES[planted] in kinds(hand)
    found = purge(hand)
    assert PLACES[planted] in {str(e.path.relative_to(hand.folder)) for e in found.removed}
    assert raw(hand.folder) == []


def test_nothing_that_was_planted_is_left_by_a_purge(hand):
    for planted in PLACES:
        plant(hand.folder / planted)
    (hand.folder / "ids.txt").write_text("\n".join(ids_of("a")))
    (hand.folder / "notes.txt").write_text(f"of {SUBJECT}, by mail")
    assert len(raw(hand.folder)) == 3 * len(PLACES) + 3
    purge(hand)
    assert raw(hand.folder) == []
    with hand.ledger() as ledger:
        assert ledger.check() == []
        assert ledger.request("person").values == (SUBJECT,)


def test_a_store_and_older_outputs_in_the_workspace_are_destroyed(hand):
    write_document(hand.folder / "bench" / "store.json", "expunge.store", 1, {})
    write_document(hand.folder / "out" / "record.json", RECORD, FORM, {"step": "forget"})
    (hand.folder / "seen").mkdir()
    (hand.folder / "seen" / "audit.json").write_text("{}")
    found = kinds(hand)
    assert (found["bench"], found["out"], found["seen"]) == ("benchmark", "forgotten", "audit")
    purge(hand)
    assert sorted(p.name for p in hand.folder.iterdir() if p.is_dir()) == ["models"]


def test_what_is_nobody_s_and_an_evidence_pack_stay(hand):
    (hand.folder / "notes.txt").write_text("of train/other, by mail")
    (hand.folder / "pack").mkdir()
    (hand.folder / "pack" / "events.json").write_text("[]")
    found = purge(hand)
    assert kinds(hand) == {"notes.txt": "unknown"}
    assert (hand.folder / "pack" / "events.json").exists()
    assert found.removed == ()
    with hand.ledger() as ledger, hand.space.locked(hand.name):
        (left,) = inside(hand.space, ledger, hand.name)
    assert "look into it, and remove it where it holds" in left.why
    with pytest.raises(UserError, match=r"something that the service wrote in its workspace, got .*notes.txt"):
        destroy(left)


def test_a_workspace_that_is_the_project_s_own_folder_keeps_the_project(tmp_path):
    hand = Hand(tmp_path)
    (tmp_path / "expunge.toml").write_text(TOML)
    hand.begin(tmp_path / "start")
    hand.fulfil("a")
    (tmp_path / "trained.safetensors").write_bytes(CANARY)
    purge(hand)
    assert (tmp_path / "start" / "model.safetensors").exists()
    assert (tmp_path / "trained.safetensors").exists()
    assert {*kinds(hand).values()} == {"unknown"}


def test_a_served_version_that_names_somebody_is_told_of_and_stays(hand):
    served = hand.space.served(hand.name)
    (served / "canaries.json").write_text(json.dumps({"ids": list(ids_of("a"))}))
    purge(hand)
    assert kinds(hand) == {str(served.relative_to(hand.folder)): "served"}
    assert served.exists()


def test_the_version_before_stays_while_a_later_one_is_not_deployed(tmp_path):
    hand = Hand(tmp_path / "space")
    hand.begin(tmp_path / "start")
    made = hand.fulfil("a", steps=3)
    hand.space.switch(hand.name, made)  # the process was killed before it could record that
    assert kinds(hand) == {}
    purge(hand)
    assert hand.space.versions(hand.name) == ["v000000", made]


def test_a_hold_keeps_what_is_left(hand):
    plant(hand.folder / "work" / "shop" / "fit-1")
    with hand.ledger() as ledger:
        ledger.record("person", "held", {"reason": "a lawsuit"})
    found = purge(hand)
    assert found.removed == ()
    assert [k.why for k in found.kept] == ["request 'person' is held (a lawsuit): release it first"]
    assert (hand.folder / "work" / "shop" / "fit-1").exists()


def test_what_stands_beside_the_workspace_is_told_of(hand, monkeypatch):
    project = hand.folder.parent
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", project / "hub")
    plant(project / "half-done")
    (project / "trained.safetensors").write_bytes(CANARY)
    write_document(project / "runs" / "one" / "record.json", RECORD, FORM, {"step": "forget", "who": SECRETS[0]})
    write_document(project / "runs" / "two" / "record.json", RECORD, FORM, {"step": "prepare"})
    for name, text in {"three": f"samples of {SUBJECT}, 3 of 20", "four": "class 7"}.items():
        (project / "seen" / name).mkdir(parents=True)
        (project / "seen" / name / "audit.json").write_text(json.dumps({"text": text}))
    write_document(project / "bench" / "store.json", "expunge.store", 1, {})
    plant(project / ".out.abcdefgh" / "out")
    fill(project / "other", b"x", {})
    found = beside(hand)
    assert {path: e.kind for path, e in found.items()} == {
        ".out.abcdefgh": "half-written",
        "bench": "benchmark",
        "half-done": "checkpoint",
        "runs/one": "forgotten",
        "runs/two": "prepared",
        "seen/three": "audit",
        "start": "prepared",
        "trained.safetensors": "original",
    }
    assert all("It is outside the workspace and stays: destroy it yourself" in e.why for e in found.values())
    assert "It names a sample or subject of a request in the clear." in found["runs/one"].why
    assert "It names" not in found["runs/two"].why
    purge(hand)
    assert beside(hand) == found


def test_copies_that_the_datasets_library_keeps_are_told_of(hand, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    (tmp_path / "hub" / "uoft-cs___cifar10").mkdir(parents=True)
    (tmp_path / "hub" / "uoft-cs___cifar100").mkdir(parents=True)
    (tmp_path / "expunge.toml").write_text('[data]\nname = "cifar10"\n')
    assert [(path, e.kind) for path, e in beside(hand).items() if e.kind == "cache"] == [
        ("hub/uoft-cs___cifar10", "cache")
    ]


def test_ids_of_an_erased_request_are_known_by_their_marks(hand):
    project = hand.folder.parent
    with hand.ledger() as ledger:
        ledger.erase("a", "asked for")
    write_document(project / "out" / "record.json", RECORD, FORM, {"step": "forget", "forgotten": [ids_of("a")[0]]})
    assert "It names a sample or subject of a request in the clear." in beside(hand)["out"].why
