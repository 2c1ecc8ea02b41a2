"""A store gives back what was put in, holds no id in clear, names what is damaged, and outlasts a kill."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from expunge.errors import CorruptArtefact, Incompatible, UserError
from expunge.exact import journal
from expunge.exact.book import ExactnessBroken
from expunge.exact.replay import audit
from expunge.exact.server import Server
from expunge.exact.store import BOOK, MANIFEST, QUEUE, Store, reached, recorded
from expunge.extras import imported
from expunge.method import State
from expunge.unlearn import serve, unlearn
from shardings import TASK, case, die, forked

BOTH = pytest.mark.parametrize("name", ["sisa", "s3t"])


def same(one: State, other: State) -> bool:
    return (
        one.meta == other.meta
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(one.tensors[k], other.tensors[k]) for k in one.tensors)
    )


def weights(store: Store, stage: str) -> Path:
    """Return the file of a stage's weights."""
    file = "model" if store.book.config["kind"] == "sisa" else "adapter_model"
    return store.path(store.book.stages[stage]) / f"{file}.safetensors"


def altered(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(bytes(body))


@BOTH
def test_a_state_comes_back_as_it_was(name: str, tmp_path: Path):
    made = case(name)
    store = made.store(tmp_path / "store")
    assert store.damaged == {}
    assert same(store.state(), made.ready.state)
    again = serve(made.method, made.base, Store.open(tmp_path / "store").state())
    assert torch.equal(again.eval()(made.inputs), made.ready.model.eval()(made.inputs))


def test_each_stage_of_s3t_is_an_adapter_that_peft_reads(tmp_path: Path):
    peft = imported("peft", package="peft", extra="hf")
    made = case("s3t")
    store = made.store(tmp_path / "store")
    place = store.path(store.book.stages["1/2"])
    assert sorted(p.name for p in place.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "head.safetensors",
    ]
    model = peft.PeftModel.from_pretrained(made.base, place)
    own = made.method.member(made.base, store.book.config, [store.read("1/2")])
    adapters = {k: v for k, v in model.state_dict().items() if "lora_" in k}
    assert len(adapters) == 4
    for key, value in adapters.items():
        plain = key.removeprefix("base_model.model.").replace(".default.", ".s3t.")
        assert torch.equal(value, own.state_dict()[plain])


@BOTH
def test_no_id_is_on_the_disk_in_clear_before_and_after_a_deletion(name: str, tmp_path: Path):
    with case(name).server(tmp_path / "store") as server:
        server.delete(["patient-7"])
    found = [p for p in (tmp_path / "store").rglob("*") if p.is_file()]
    assert len(found) > 6
    assert [p for p in found if b"patient" in p.read_bytes()] == []


@pytest.mark.parametrize("name", ["sisa", "s3t", "s3t_all"])
def test_what_is_served_from_a_store_forgets_as_the_method_itself_does(name: str, tmp_path: Path):
    made = case(name)
    model, state = made.ready.model, made.ready.state
    with made.server(tmp_path / "store") as server:
        first, second, third = (made.slice_of(*place) for place in ((0, 2), (1, 1), (0, 1)))
        for ids in (first[:1], [second[0], third[0]], third[1:2]):
            done = unlearn(made.method, model, TASK, forget=ids, state=state)
            model, state = done.model, done.state
            server.delete(ids)
            assert torch.equal(server.predict(made.inputs), model.eval()(made.inputs))
            assert recorded(server.state()).manifest == recorded(state).manifest
        assert same(server.state(), state)
        made_anew = unlearn(made.method, server.module, TASK, forget=second[1:2], state=server.state())
        assert recorded(made_anew.state).requests == 4


@BOTH
@pytest.mark.parametrize("how", ["altered", "cut short", "missing"])
def test_a_shard_with_a_damaged_file_falls_back_and_says_so(
    name: str, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    made = case(name)
    store = made.store(tmp_path / "store")
    path = weights(store, "0/0-1-2")
    whole = path.read_bytes()
    if how == "altered":
        altered(path)
    elif how == "cut short":
        path.write_bytes(whole[:-20])
    else:
        path.unlink()
    found = Store.open(tmp_path / "store")
    assert list(found.damaged) == ["0/0-1-2"]
    assert "stage 0/0-1-2 cannot be read" in caplog.text
    assert str(path.parent) in caplog.text
    report = audit(found)
    assert not report.clean
    assert "weights of stage 0/0-1-2 cannot be read" in report.faults[0]
    with made.server(tmp_path / "store") as server:
        short = server.served["0"]
        assert short == (((0, 1, 2), 2) if name == "sisa" else ((2, 0, 1), 3))  # or another whole sequence
        assert server.served["1"] == ((0, 1, 2), 3)
        stages = [store.read(f"0/{'-'.join(map(str, short[0][:k]))}") for k in range(1, short[1] + 1)]
        member = made.method.member(made.base, store.book.config, stages).eval()
        assert torch.equal(server.module.members["0"](made.inputs)[0], member(made.inputs)[0])
        state = server.state()
    assert recorded(state).manifest[-2]["cause"] == "damaged"
    assert audit(state).clean
    assert torch.equal(serve(made.method, made.base, state).eval()(made.inputs), server.predict(made.inputs))
    path.write_bytes(whole)  # from a copy: nothing was thrown away
    assert made.server(tmp_path / "store").served["0"] == ((0, 1, 2), 3)


def test_a_checkpoint_that_only_later_is_needed_is_found_damaged_then(tmp_path: Path):
    made = case("sisa")
    store = made.store(tmp_path / "store")
    with made.server(tmp_path / "store") as server:
        altered(weights(store, "0/0-1"))  # while it is served
        assert server.damaged == {}
        receipt = server.delete(made.slice_of(0, 2)[:1])
        assert list(server.damaged) == ["0/0-1"]
        assert receipt.depths[0] == (3, 1)
        assert receipt.audit["damaged stages"] == ["0/0-1"]
        assert server.served["0"] == ((0, 1, 2), 1)


def test_a_checkpoint_that_is_not_served_may_be_damaged_and_the_state_does_without_what_is_behind_it(tmp_path: Path):
    made = case("sisa")
    altered(weights(made.store(tmp_path / "store"), "0/0-1"))
    with made.server(tmp_path / "store") as server:
        assert list(server.damaged) == ["0/0-1"]
        assert server.served["0"] == ((0, 1, 2), 3)
        state = server.state()
    assert audit(state).clean
    assert audit(state).depths == (1, 3)
    model = serve(made.method, made.base, state)
    done = unlearn(made.method, model, TASK, forget=made.slice_of(1, 2)[:1], state=state)
    assert audit(done.state).depths == (1, 2)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (BOOK, "an intact file .*book.json, got other bytes"),
        (MANIFEST, "manifest whose entries follow each other, got a break at 3"),
        ("table", "an intact file .*table-.*, got other bytes"),
    ],
)
def test_an_altered_record_is_refused(file: str, text: str, tmp_path: Path):
    case("sisa").store(tmp_path / "store")
    path = next((tmp_path / "store").glob(f"{file}*"))
    if file == "table":
        altered(path)
    elif file == BOOK:
        path.write_text(path.read_text().replace('"requests":0', '"requests":1'))
    else:
        lines = path.read_text().splitlines(keepends=True)
        lines[3] = lines[3].replace('"n":', '"n":1')
        path.write_text("".join(lines))
    with pytest.raises(CorruptArtefact, match=text):
        Store.open(tmp_path / "store")


def test_lines_of_something_else_and_a_lost_table_are_refused_in_a_sentence(tmp_path: Path):
    made = case("sisa")
    for number, (file, text, match) in enumerate(
        [
            (MANIFEST, "{}\n" * 7, "7 entries in .*manifest.jsonl as committed, got 7 of them or others"),
            (QUEUE, '{"request": 1}\n', "requests and receipts alone in .*queue.jsonl, got another in line 1"),
            (QUEUE, '{"step": "asked", "request": 1}\n', "requests and receipts alone in .*, got another in line 1"),
            ("table", "", "the table .*table-.*, got none: restore the folder"),
        ]
    ):
        folder = made.store(tmp_path / f"store{number}").folder
        if file == "table":
            next(folder.glob("table-*")).unlink()
        else:
            (folder / file).write_text(text)
        with pytest.raises(CorruptArtefact, match=match):
            audit(Store.open(folder))
        with pytest.raises(CorruptArtefact, match=match):
            made.server(folder)


def test_each_member_that_is_served_is_held_to_the_record(tmp_path: Path):
    made = case("s3t_all")
    book = made.store(tmp_path / "store").book
    served = made.method.served(book)
    assert len(reached(book, served)[0]) == 18
    gone = book.after(made.slice_of(0, 1)[:1])
    with pytest.raises(ExactnessBroken, match=r"Stage 0/0-1 is served, and it is revoked"):
        reached(gone, served)  # the deepest sequence of each shard is not all that answers
    assert len(reached(gone, made.method.served(gone))[0]) < 18


def test_a_manifest_that_is_shorter_than_committed_is_refused(tmp_path: Path):
    store = case("sisa").store(tmp_path / "store")
    journal.cut(store.folder / MANIFEST, 5)
    with pytest.raises(CorruptArtefact, match=r"7 entries in .*manifest.jsonl as committed, got 5 of them or others"):
        Store.open(store.folder)


def test_what_a_killed_writer_left_behind_is_cleared_away(tmp_path: Path):
    made = case("sisa")
    store = made.store(tmp_path / "store")
    journal.append(store.folder / MANIFEST, [{"number": 7, "entry": "revoked"}])
    with (store.folder / MANIFEST).open("ab") as file:
        file.write(b'{"numb')
    (store.folder / "table-0.safetensors").write_bytes(b"half")
    (store.folder / ".book.json.abcd").mkdir()
    (store.folder / ".book.json.abcd" / "book.json").write_text("{")
    made.server(store.folder).close()
    assert sorted(p.name for p in store.folder.iterdir() if "shard" not in p.name) == [
        ".lock",
        BOOK,
        MANIFEST,
        json.loads((store.folder / BOOK).read_text())["table"],
    ]
    assert len(journal.read(store.folder / MANIFEST)) == 7


def test_a_store_is_whole_or_absent_wherever_its_writing_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = case("sisa")
    replaced = os.replace
    for number, at in enumerate(["before", "after"]):
        folder = tmp_path / f"store{number}"

        def killing(one: Path, other: Path, at: str = at) -> None:
            if at == "after":
                replaced(one, other)
            die()

        monkeypatch.setattr(os, "replace", killing)
        assert forked(lambda folder=folder: made.store(folder) and None) == -9
        monkeypatch.undo()
        assert folder.exists() == (at == "after")
        assert made.store(folder).damaged == {} if at == "before" else Store.open(folder).damaged == {}


def test_bad_calls_are_refused_in_a_sentence(tmp_path: Path):
    made = case("sisa")
    made.store(tmp_path / "store")
    with pytest.raises(UserError, match="a path that is free to write"):
        made.store(tmp_path / "store")
    with pytest.raises(UserError, match="a state that sisa or s3t prepared, got another"):
        Store.create(tmp_path / "other", State())
    with pytest.raises(UserError, match="a folder that Store.create wrote at .*, got nothing there: write one"):
        Store.open(tmp_path / "nowhere")
    with pytest.raises(Incompatible, match="network that training began from, got another: pass method.served_from"):
        Server(tmp_path / "store", made.new_model().requires_grad_(False).apply(zeroed), TASK)


def zeroed(module: torch.nn.Module) -> None:
    for p in module.parameters(recurse=False):
        torch.nn.init.zeros_(p)


def test_a_state_whose_tensors_are_not_those_of_its_record_is_not_written(tmp_path: Path):
    state = case("sisa").ready.state
    name = next(n for n in state.tensors if n.startswith("stage/0/0-1/"))
    bad = State({**state.tensors, name: state.tensors[name] + 1}, state.meta)
    with pytest.raises(CorruptArtefact, match="the tensors of stage 0/0-1, got others than the record's"):
        Store.create(tmp_path / "store", bad)
    assert not (tmp_path / "store").exists()
