"""What is wrong with stored versions: files held to digests in the ledger, the first version's among them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from expunge.service import artefacts
from expunge.service.workspace import FIRST, digests
from services import Shop


def problems(shop: Shop) -> list[str]:
    with shop.ledger() as ledger:
        return [str(p) for p in artefacts.check(shop.space, ledger)]


@pytest.fixture
def edited(pets: Any) -> Shop:
    shop: Shop = pets({"requests.undo_days": 1000, "requests.batch": 1})
    shop.ask("r1", "100")
    shop.ask("r2", "101")
    shop.process()
    return shop


def test_a_sound_workspace_has_no_problem(edited: Shop) -> None:
    assert problems(edited) == []


def test_each_altered_file_is_named(edited: Shop) -> None:
    served = edited.space.served("model")
    files = sorted(digests(served))
    for file in files:
        raw = (served / file).read_bytes()
        (served / file).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        assert problems(edited) == [f"models/model/versions/{served.name}/{file}: altered"]
        (served / file).write_bytes(raw)
    (served / "more.bin").write_bytes(b"x")
    assert problems(edited) == [f"models/model/versions/{served.name}/more.bin: not one of the version's files"]


def test_a_first_version_that_is_being_copied_is_no_problem(pets: Any) -> None:
    shop: Shop = pets()
    shop.ask("r1", "100")
    begun = shop.space.home("model") / "begun.json"
    with shop.ledger(), shop.space.locked("model"):
        shop.space.begin("model", shop.folder / "expunge-work", shop.now())
    begun.unlink()  # as of a process that was killed just before
    assert problems(shop) == []
    shop.process()
    assert problems(shop) == []
    begun.unlink()
    assert problems(shop)[0] == "models/model/begun.json: altered: it names other files than the events do"


def test_the_first_version_cannot_be_swapped_together_with_its_list(edited: Shop) -> None:
    begun = edited.space.home("model") / "begun.json"
    body = json.loads(begun.read_text())
    body["files"]["model.safetensors"] = "0" * 64
    begun.write_text(json.dumps(body))
    assert "models/model/begun.json: altered: it names other files than the events do" in problems(edited)
    assert any(FIRST in line for line in problems(edited))  # its archive is of other files too
