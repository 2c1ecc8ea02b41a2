"""Erasure: nothing of what a request named stays in any file, and the chain still holds."""

import logging
import sqlite3
from contextlib import closing
from random import Random

import pytest

import expunge.ledger
from expunge.errors import UserError
from expunge.ledger import Erased, Ledger
from expunge.ledger.keys import GONE, Keys, commitment, opened, seal
from expunge.ledger.payloads import about

CANARY = "canary-7f3a91"


def found(folder, *needles):
    """Return the files under a folder that hold any of the bytes."""
    return [p.name for p in folder.rglob("*") if p.is_file() and any(n in p.read_bytes() for n in needles)]


def refused(ledger, request):
    ledger.receive(request)
    ledger.record(request.id, "refused", {"reason": "sent twice"})


def test_nothing_named_is_ever_in_a_file_in_clear(ledger, folder, ask, fulfil):
    ledger.receive(ask("r", f"train/{CANARY}", note=CANARY))
    ledger.remember("model", [f"train/{CANARY}"], "r")
    assert found(folder, CANARY.encode(), CANARY.encode("utf-16-le")) == []


def test_an_erasure_leaves_no_byte_of_payload_or_key(ledger, folder, ask):
    others = [ask(f"o{n}", "x" * (n * 97 % 5000 + 1)) for n in range(40)]
    ledger.receive_all(others[:20])
    refused(ledger, ask("r", *(f"{CANARY}/{n}" for n in range(500))))
    ledger.receive_all(others[20:])
    number = ledger.history("r")[0].body["key"]
    key = ledger.keys.take(number)
    sealed = ledger._book.rows("SELECT sealed FROM payloads WHERE key = ?", [number])[0][0]
    parts = [sealed[n : n + 24] for n in range(0, len(sealed) - 24, 24)]
    assert "keys.sqlite3" in found(folder, key)  # the scan finds what is there
    assert {"ledger.sqlite3-wal"} <= set(found(folder, *parts))
    head = ledger.head()
    ledger.erase("r", "asked for by the person")
    assert found(folder, key, *parts) == []
    assert ledger.check(head) == []
    assert (ledger.status("r").word, ledger.status("r").erased) == ("refused", True)
    with pytest.raises(Erased, match="what request 'r' named"):
        ledger.request("r")
    assert [ledger.request(o.id) for o in others] == others
    ledger.close()
    assert found(folder, key, *parts) == []


def test_many_erasures_in_any_order_leave_no_key_behind(ledger, folder, ask):
    names = [f"r{n}" for n in range(70)]
    ledger.receive_all(ask(name) for name in names)
    keys = {name: ledger.keys.take(ledger.history(name)[0].body["key"]) for name in names}
    gone = [name for n, name in enumerate(names) if n % 3]
    for name in Random(0).sample(gone, len(gone)):
        ledger.record(name, "refused", {"reason": "r"})
        ledger.erase(name, "r")
    raw = b"".join(p.read_bytes() for p in folder.iterdir())
    assert [name for name in gone if keys[name] in raw] == []
    assert all(keys[name] in raw for name in names if name not in gone)
    assert ledger.check() == []


def test_erasing_twice_changes_nothing(ledger, ask):
    refused(ledger, ask("r"))
    ledger.erase("r", "asked for")
    head = ledger.head()
    ledger.erase("r", "asked for again")
    assert ledger.head() == head


def test_what_is_open_or_held_is_not_erased(ledger, ask):
    ledger.receive(ask("r"))
    with pytest.raises(UserError, match="one of the steps held, approved, refused for request 'r', got 'erased'"):
        ledger.erase("r", "asked for")
    ledger.record("r", "refused", {"reason": "sent twice"})
    ledger.record("r", "held", {"reason": "a court asks"})
    with pytest.raises(UserError, match=r"got 'erased' while it is held \(a court asks\)"):
        ledger.erase("r", "asked for")
    assert ledger.request("r").values == ("train/r",)
    ledger.record("r", "released")
    with pytest.raises(UserError, match="a reason for the step 'erased' of request 'r', got ''"):
        ledger.erase("r", "")
    assert ledger.request("r").values == ("train/r",)


def test_an_erasure_that_was_killed_before_its_key_was_destroyed_is_finished_on_opening(
    ledger, folder, ask, monkeypatch
):
    refused(ledger, ask("r"))
    key = ledger.keys.take(1)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Keys, "destroy", killed)
        with pytest.raises(KeyboardInterrupt):
            ledger.erase("r", "asked for")
    with Ledger.open(folder, readonly=True) as reader:
        assert [p.what for p in reader.check()] == ["key"]
        assert "the erasure is under way, or open the ledger to finish it" in str(reader.check()[0])
    with Ledger.open(folder) as again:
        assert again.check() == []
    assert found(folder, key) == []


def test_a_reader_that_keeps_the_log_is_told_and_the_key_is_gone(ledger, folder, ask, caplog, monkeypatch):
    refused(ledger, ask("r"))
    key = ledger.keys.take(1)
    monkeypatch.setattr(expunge.ledger, "PATIENCE", 0.05)
    with closing(sqlite3.connect(folder / "ledger.sqlite3", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchone()
        with caplog.at_level(logging.WARNING):
            ledger.erase("r", "asked for")
        assert "still holds encrypted bytes of an erased request, whose key is destroyed" in caplog.text
    assert found(folder, key) == []
    with Ledger.open(folder) as again:
        assert again._book.rows("SELECT * FROM erasing") == []
    assert (folder / "ledger.sqlite3-wal").stat().st_size < 3 * 4200


def test_a_key_that_was_destroyed_is_never_handed_out_again(ledger, ask):
    ledger.keys.more(1)
    ledger.keys.destroy(1)
    ledger.receive(ask("r"))
    assert ledger.history("r")[0].body["key"] == 2
    assert ledger.check() == []


def test_keys_are_made_ahead(ledger, ask):
    ledger.receive(ask("a"))
    made = ledger.keys.made
    assert made >= 64
    for n in range(made - 1):
        ledger.receive(ask(f"b{n}"))
    assert ledger.keys.made == made
    ledger.receive(ask("c"))
    assert ledger.keys.made == made + 64
    ledger.receive_all(ask(f"d{n}") for n in range(200))
    assert ledger.keys.made == made + 64 + 200
    assert ledger.check() == []


def test_keys_with_names(ledger, folder):
    one = ledger.keys.named("undo/model-v000000")
    assert ledger.keys.named("undo/model-v000000") == ledger.keys.find("undo/model-v000000") == one
    assert ledger.keys.find("other") is None
    ledger.keys.named("undo/other_-v000000")
    assert ledger.keys.live("undo/other") == ["undo/other_-v000000"]
    assert ledger.keys.live("undo/") == ["undo/model-v000000", "undo/other_-v000000"]
    ledger.keys.destroy_named("undo/model-v000000")
    assert found(folder, one) == []
    assert ledger.keys.find("undo/model-v000000") is None
    assert ledger.keys.live("undo/") == ["undo/other_-v000000"]
    with pytest.raises(UserError, match="a key 'undo/model-v000000' that is there, got one that was destroyed"):
        ledger.keys.named("undo/model-v000000")


def test_the_ledgers_own_secret_is_not_destroyed(ledger):
    ledger.keys.destroy(0)
    assert ledger.keys.take(0) == ledger.keys.secret != GONE


def test_only_the_owner_reads_the_files(folder, ledger):
    assert {p.stat().st_mode & 0o077 for p in folder.iterdir()} == {0}


def test_what_is_sealed_opens_with_its_key_and_for_its_request_only():
    key, other = bytes(range(32)), bytes(range(1, 33))
    sealed = seal(key, b"payload", about("ledger", "r", 1))
    assert opened(key, sealed, about("ledger", "r", 1)) == b"payload"
    assert seal(key, b"payload", b"") != seal(key, b"payload", b"")
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    mine = about("ledger", "r", 1)
    elsewhere = [(key, sealed, about("ledger", "s", 1)), (key, sealed, about("other", "r", 1))]
    for wrong in [(other, sealed, mine), (key, changed, mine), *elsewhere, (key, b"", b"")]:
        with pytest.raises(UserError, match="sealed bytes that open with their key"):
            opened(*wrong)
    assert commitment(key, b"a") != commitment(key, b"b") != commitment(other, b"b")
