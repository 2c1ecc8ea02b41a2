"""Evidence packs: anybody can check one, and whatever was changed in it is found and named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expunge.errors import CorruptArtefact, UserError
from expunge.ledger import pack
from expunge.ledger.account import account
from expunge.ledger.events import Event, Head, first, linked
from expunge.ledger.signing import generate_key, load_private, load_public

LEDGER, ASKED, OTHER = "0" * 32, "req-1", "somebody-else"
RECEIVED = {"kind": "ids", "count": 2, "route": None, "received": "2025-01-31", "due": "2025-03-02",
            "commitment": "c0", "key": 1}  # fmt: skip


def chained(entries: list[tuple[str, str | None, str, dict[str, Any]]]) -> list[Event]:
    """Return entries of request, model, step and body as the events of a ledger."""
    head, events, last = Head(0, first(LEDGER)), [], dict[str, int]()
    for seq, (request, model, step, body) in enumerate(entries, 1):
        at = f"2025-02-{seq:02}T12:00:00.000000+00:00"
        event = Event(seq, request, model, step, at, "op", body, head.digest, "", "", last.get(request, 0))
        last[request] = seq
        event = replace(event, digest=linked(seq, head.digest, event.inner))
        events.append(event)
        head = event.head
    return events


EVENTS = chained([
    (OTHER, None, "received", {**RECEIVED, "key": 2}),
    (ASKED, None, "received", RECEIVED),
    (OTHER, "m", "started", {"how": "edit"}),
    (ASKED, "m", "started", {"how": "edit"}),
    (ASKED, "m", "unlearned", {"version": "v000004", "before": "aa", "after": "bb"}),
    (OTHER, "m", "unlearned", {"version": "v000004"}),
    (ASKED, "m", "verified", {"metrics": {"accuracy/test": {"x": 0.9, "low": 0.8, "high": 0.95, "n": 90}}}),
    (OTHER, "m", "verified", {}),
    (ASKED, "m", "deployed", {}),
    (ASKED, None, "closed", {"route": "edit"}),
    (OTHER, None, "held", {"reason": "court"}),
])  # fmt: skip
MINE = [e for e in EVENTS if e.request == ASKED]


def files(events: list[Event] = MINE) -> dict[str, bytes | str]:
    return {"record.json": json.dumps({"account": account(events), "x": 1}), "record.html": "<p>café</p>"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    private = tmp_path_factory.mktemp("keys") / "sign"
    return private, generate_key(private)


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, Path]) -> Path:
    folder = tmp_path_factory.mktemp("pack") / "signed"
    pack.write(folder, request=ASKED, ledger=LEDGER, events=EVENTS, files=files(), sign=keys[0])
    return folder


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    pack.write(tmp_path / "pack", request=ASKED, ledger=LEDGER, events=EVENTS, files=files())
    return tmp_path / "pack"


def where(problems: list[pack.Problem]) -> set[str]:
    return {p.where.partition(",")[0] for p in problems}


def resealed(folder: Path, **changes: Any) -> None:
    """Make the digests of a pack anew after something in it was changed, as a forger would."""
    body = json.loads((folder / "manifest.json").read_bytes())
    del body["digest"]
    body["files"] = {name: sha256((folder / name).read_bytes()).hexdigest() for name in body["files"]}
    (folder / "manifest.json").write_bytes(pack._sealed(body | changes))


def altered(folder: Path, old: str, new: str) -> None:
    """Replace a text in the events of a pack."""
    text = (folder / "events.json").read_text()
    assert old in text
    (folder / "events.json").write_text(text.replace(old, new, 1))


def test_a_pack_as_written_is_in_order_and_says_how_far_that_goes(
    signed: Path, plain: Path, keys: tuple[Path, Path]
) -> None:
    assert pack.verify(signed) == pack.verify(signed, keys[1]) == pack.verify(plain) == []
    assert pack.verify(plain, head=EVENTS[-1].head) == pack.verify(plain, head=EVENTS[3].head) == []
    assert sorted(p.name for p in signed.iterdir()) == [
        "events.json", "manifest.json", "record.html", "record.json", "signature.json",
    ]  # fmt: skip
    assert "only that nothing was changed by accident" in pack.standing(plain)
    assert pack.standing(plain).startswith("Not signed.")
    assert "does not know" in pack.standing(signed)
    assert pack.standing(signed, keys[1]).startswith("Signed with the key that was given")
    assert "The head kept elsewhere is in the chain" in pack.standing(plain, head=EVENTS[-1].head)
    assert "Whether later ones are, the ledger alone can tell" in pack.standing(plain, head=EVENTS[-1].head)


def test_nothing_of_other_requests_is_in_it_but_links(plain: Path) -> None:
    text = "".join(p.read_text() for p in plain.iterdir())
    assert ASKED in text
    assert OTHER not in text
    assert "court" not in text
    assert EVENTS[0].inner in text


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_byte_is_found_and_its_file_named(
    data: st.DataObject, signed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    name = data.draw(st.sampled_from(sorted(p.name for p in signed.iterdir())))
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(signed, copy)
    content = bytearray((copy / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (copy / name).write_bytes(content)
    for key in (None, keys[1]):
        assert where(pack.verify(copy, key)) == {name}


def test_every_bit_of_manifest_and_signature_counts(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(signed, tmp_path / "copy")
    for name in ("manifest.json", "signature.json"):
        content = (copy / name).read_bytes()
        for at in range(0, len(content)):
            (copy / name).write_bytes(content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :])
            assert where(pack.verify(copy, keys[1])) == {name}, (name, at)
        (copy / name).write_bytes(content)


@pytest.mark.parametrize("name", ["manifest.json", "events.json", "record.json", "record.html"])
def test_a_missing_file_is_named(plain: Path, name: str) -> None:
    (plain / name).unlink()
    found = pack.verify(plain)
    assert where(found) == {name}
    assert "it is missing" in str(found[0])


def test_extra_files_links_and_folders_are_named(plain: Path) -> None:
    (plain / "more.txt").write_text("x")
    (plain / "folder").mkdir()
    assert where(pack.verify(plain)) == {"more.txt", "folder"}
    shutil.rmtree(plain / "folder")
    (plain / "more.txt").rename(plain.parent / "aside")
    shutil.copy(plain / "record.html", plain.parent / "same")
    (plain / "record.html").unlink()
    (plain / "record.html").symlink_to(plain.parent / "same")
    assert "no plain file" in str(pack.verify(plain)[0])


def test_an_altered_event_is_named_even_where_all_digests_of_files_were_made_anew(plain: Path) -> None:
    altered(plain, '"version":"v000004"', '"version":"v000009"')
    resealed(plain)
    found = pack.verify(plain)
    assert [(p.what, p.where) for p in found] == [("event", "events.json, event 5")]
    assert "it was altered" in found[0].got


def test_a_link_that_was_altered_is_found_at_the_next_event_shown(plain: Path) -> None:
    altered(plain, EVENTS[2].inner, "f" * 64)
    resealed(plain)
    assert [(p.what, p.where) for p in pack.verify(plain)] == [("chain", "events.json, event 4")]


def test_removed_events_are_found(plain: Path) -> None:
    lines = (plain / "events.json").read_text().splitlines(keepends=True)
    gone = next(i for i, line in enumerate(lines) if '"step":"verified"' in line)
    (plain / "events.json").write_text("".join(lines[:gone] + lines[gone + 1 :]))
    resealed(plain)
    assert [p.what for p in pack.verify(plain)] == ["chain"]
    shorter = "".join(lines[:gone]).rstrip(",\n") + "\n]}\n"
    (plain / "events.json").write_text(shorter)
    resealed(plain)
    assert [p.what for p in pack.verify(plain)] == ["head"]
    cut = EVENTS[5].head
    resealed(plain, head=str(cut))  # a consistent, shorter chain: only what was kept elsewhere can tell
    assert where(pack.verify(plain)) == {"record.json"}
    found = pack.verify(plain, head=EVENTS[-1].head)
    assert "events are missing" in str(found[0])


def test_a_rewritten_chain_is_found_by_the_head_kept_elsewhere_alone(tmp_path: Path) -> None:
    entries = [(e.request, e.model, e.step, dict(e.body)) for e in EVENTS]
    entries[4][3]["after"] = "cc"
    forged = chained(entries)
    mine = [e for e in forged if e.request == ASKED]
    pack.write(tmp_path / "p", request=ASKED, ledger=LEDGER, events=forged, files=files(mine))
    assert pack.verify(tmp_path / "p") == pack.verify(tmp_path / "p", head=EVENTS[3].head) == []
    found = pack.verify(tmp_path / "p", head=EVENTS[4].head)
    assert [p.what for p in found] == ["head"]
    assert "rewritten" in found[0].got


def test_a_head_that_does_not_fit_is_found(plain: Path) -> None:
    resealed(plain, head=f"11:{'a' * 64}")
    assert [p.what for p in pack.verify(plain)] == ["head"]


def test_an_account_that_the_events_do_not_tell_is_found(plain: Path) -> None:
    body = json.loads((plain / "record.json").read_text())
    body["account"]["days"]["in_time"] = None
    (plain / "record.json").write_text(json.dumps(body))
    resealed(plain)
    assert [(p.what, p.where) for p in pack.verify(plain)] == [("record", "record.json")]


def test_steps_that_are_not_allowed_are_found(tmp_path: Path) -> None:
    events = chained([(ASKED, None, "received", RECEIVED), (ASKED, "m", "deployed", {})])
    pack.write(tmp_path / "p", request=ASKED, ledger=LEDGER, events=events, files=files(events[:1]))
    found = pack.verify(tmp_path / "p")
    assert [p.what for p in found] == ["step"]
    assert "'deployed'" in found[0].got


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"chain": []}', "[" * 100_000, '{"kind": NaN}', '{"kind": 1, "kind": 2}', "\x00", "9" * 5000],
)
@pytest.mark.parametrize("name", ["manifest.json", "events.json", "record.json", "signature.json"])
def test_whatever_stands_in_a_file_is_a_problem_and_no_crash(plain: Path, name: str, text: str) -> None:
    (plain / name).write_text(text)
    if name in ("events.json", "record.json"):
        resealed(plain)
    assert where(pack.verify(plain)) == {name}


@pytest.mark.parametrize("name", ["../record.html", "/etc/passwd", "", ".hidden", "signature.json", "manifest.json"])
def test_a_manifest_that_names_other_places_is_not_followed(plain: Path, name: str) -> None:
    body = json.loads((plain / "manifest.json").read_bytes())
    del body["digest"]
    body["files"][name] = "0" * 64
    (plain / "manifest.json").write_bytes(pack._sealed(body))
    assert where(pack.verify(plain)) == {"manifest.json"}


def test_a_signature_of_another_key_or_none_is_found(
    plain: Path, signed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    other = generate_key(tmp_path / "other")
    assert "another key" in str(pack.verify(signed, other)[0])
    assert "there is none" in str(pack.verify(plain, keys[1])[0])
    shutil.copy(signed / "signature.json", plain)
    resealed(plain, request=ASKED, written="2001-01-01")
    assert "does not fit" in str(pack.verify(plain, keys[1])[0])


def test_writing_refuses_what_would_not_be_a_pack(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    common: dict[str, Any] = {"request": ASKED, "ledger": LEDGER, "events": EVENTS, "files": files()}
    with pytest.raises(UserError, match=r"plain names, record\.json among them, got none"):
        pack.write(tmp_path / "p", **common | {"files": {}})
    with pytest.raises(UserError, match=r"got '\.\./x'"):
        pack.write(tmp_path / "p", **common | {"files": files() | {"../x": ""}})
    with pytest.raises(UserError, match="a request 'unknown' in the ledger"):
        pack.write(tmp_path / "p", **common | {"request": "unknown"})
    with pytest.raises(CorruptArtefact, match="event 2 to follow the one before it, got event 3"):
        pack.write(tmp_path / "p", **common | {"events": [EVENTS[0], *EVENTS[2:]]})
    with pytest.raises(UserError, match="a private key in .*, got a public one"):
        pack.write(tmp_path / "p", **common, sign=keys[1])
    assert not (tmp_path / "p").exists()
    assert not list(tmp_path.iterdir())
    assert pack.write(tmp_path / "p", **common) == EVENTS[-1].head
    with pytest.raises(UserError, match="a path that is free to write"):
        pack.write(tmp_path / "p", **common)
    pack.write(tmp_path / "p", **common, overwrite=True)
    with pytest.raises(UserError, match="an evidence pack, a folder, at .*, got nothing there"):
        pack.verify(tmp_path / "nowhere")


def test_keys_are_for_their_owner_alone_and_wrong_ones_get_a_sentence(tmp_path: Path) -> None:
    public = generate_key(tmp_path / "mine")
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o600
    assert load_public(public).public_bytes_raw() == load_private(tmp_path / "mine").public_key().public_bytes_raw()
    with pytest.raises(UserError, match="a path that is free"):
        generate_key(tmp_path / "mine")
    (tmp_path / "noise").write_bytes(os.urandom(64))
    with pytest.raises(UserError, match="an Ed25519 private key as PEM in .*, got something else"):
        load_private(tmp_path / "noise")
    with pytest.raises(UserError, match="an Ed25519 public key as PEM in .*, got something else"):
        load_public(tmp_path / "noise")
    with pytest.raises(UserError, match="a public key in .*, got a private one"):
        load_public(tmp_path / "mine")
    with pytest.raises(UserError, match=r"a key file .*, got No such file"):
        load_private(tmp_path / "none")
    key = load_pem_private_key((tmp_path / "mine").read_bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    (tmp_path / "locked").write_bytes(locked)
    with pytest.raises(UserError, match="without a passphrase in .*, got an encrypted one"):
        load_private(tmp_path / "locked")
    curve = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "curve").write_bytes(curve)
    with pytest.raises(UserError, match="a key of another kind"):
        load_private(tmp_path / "curve")


def test_a_pack_is_checked_without_torch(signed: Path) -> None:
    code = f"""import sys
from pathlib import Path
from expunge.ledger import pack
assert pack.verify(Path({str(signed)!r})) == []
assert "torch" not in sys.modules"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_an_event_of_the_request_that_is_passed_off_as_another_s_is_missed(tmp_path: Path) -> None:
    """As a forger would, who hides an attempt that failed, in a pack whose chain still ends with the true head."""
    retried = chained([
        (ASKED, None, "received", RECEIVED),
        (ASKED, "m", "started", {"how": "edit"}),
        (ASKED, "m", "failed", {"reason": "a bound was missed"}),
        (ASKED, "m", "started", {"how": "edit"}),
        (ASKED, "m", "unlearned", {"version": "v000004"}),
    ])  # fmt: skip
    pack.write(tmp_path / "pack", request=ASKED, ledger=LEDGER, events=retried, files=files(retried))
    assert pack.verify(tmp_path / "pack", head=retried[-1].head) == []
    shown = [retried[0], *retried[3:]]
    body = json.loads((tmp_path / "pack" / "events.json").read_text())
    hidden = {"from": 2, "inner": [retried[1].inner, retried[2].inner]}
    body["chain"] = [shown[0].document(), hidden, *(event.document() for event in shown[1:])]
    (tmp_path / "pack" / "events.json").write_text(json.dumps(body))
    (tmp_path / "pack" / "record.json").write_text(json.dumps({"account": account(shown)}))
    resealed(tmp_path / "pack")
    (problem,) = pack.verify(tmp_path / "pack", head=retried[-1].head)
    assert str(problem) == ("events.json, event 4: event 3 of the same request, which it follows, is not shown")
