"""The record of slices and stages: what a request leaves, what is served, and that no deleted sample is reached."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.shelves import ROTATIONS, blank, filled, stage

from expunge.errors import CorruptArtefact, UserError
from expunge.exact.book import Book, ExactnessBroken, samples_digest, tensor_name
from expunge.method import State

ONE = ((0, 1, 2, 3),)


def copied(book):
    return Book.from_json(book.to_json(), book.manifest, book.tensors())


def test_the_example_of_the_paper():
    book = filled().after(["0/0/0"])
    assert book.live(0) == [((1, 2, 3, 0), 3), ((2, 3, 0, 1), 2), ((3, 0, 1, 2), 1)]
    book = book.after(["0/1/0"])
    assert book.plan() == (((2, 3, 0, 1), 2),)
    assert book.live(0) == [((2, 3, 0, 1), 2), ((3, 0, 1, 2), 1)]


def test_sequences_with_a_common_beginning_share_stages():
    book = filled(orders=((0, 1, 2), (0, 2, 1)))
    assert set(book.stages) == {"0/0", "0/0-1", "0/0-2", "0/0-1-2", "0/0-2-1"}
    assert book.stages["0/0-2-1"].parents == ("0/0-2",)
    assert book.after(["0/2/1"]).plan() == (((0, 1, 2), 2),)


def test_a_slice_that_was_hit_costs_nothing_more_and_counts():
    once = filled().after(["0/2/0"])
    twice = once.after(["0/2/1"])
    assert twice.plan() == once.plan()
    assert twice.requests == 2
    assert [line["entry"] for line in twice.manifest[len(once.manifest) :]] == ["request"]


@pytest.mark.parametrize(("failure", "expected"), [("all", False), ("first", True)])
def test_the_failure_rule_says_when_everything_is_retrained(failure, expected):
    book = filled(2, ONE, failure=failure).after(["1/0/0"])
    assert book.dead() == [1]
    assert book.plan() == ((ONE[0], 4), None)
    assert book.failed is expected
    assert book.after(["0/0/0"]).failed


@given(st.lists(st.integers(0, 47), min_size=1, max_size=30, unique=True), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_no_deleted_sample_is_ever_reached_and_requests_commute(picks, random):
    start = filled(2, per=6)
    names = [f"{s}/{j}/{n}" for s in range(2) for j in range(4) for n in range(6)]
    ids = [names[p] for p in picks]
    book = start
    for one in ids:
        book = book.after([one])
        book.check()
        assert not (book.closure(book.plan()) & (book.gone > 0)).any()
    random.shuffle(ids)
    together = start.after(ids)
    assert together.plan() == book.plan()
    assert np.array_equal(together.gone > 0, book.gone > 0)
    hit = {(int(i[0]), int(i[2])) for i in ids}
    for shard, orders in enumerate(start.sequences):
        want = [next((k for k, s in enumerate(o) if (shard, s) in hit), 4) for o in orders]
        assert [book.depth(shard, o) for o in orders] == want


def test_a_deletion_leaves_other_shards_as_they_were():
    start = filled(3)
    book = start.after(["1/0/0", "1/3/2"])
    assert book.plan()[0] == start.plan()[0]
    assert book.plan()[2] == start.plan()[2]
    other = [n for n in start.stages if not n.startswith("1/")]
    assert all(book.stages[n] == start.stages[n] for n in other)


def test_a_stage_trained_anew_is_live_and_has_not_read_what_was_deleted_before():
    book = filled(1, ONE).after(["0/1/0"])
    assert book.plan() == ((ONE[0], 1),)
    book, names = book.purged()
    assert names == ["0/0-1", "0/0-1-2", "0/0-1-2-3"]
    for k in (2, 3, 4):
        book = book.trained(stage(book, 0, ONE[0][:k]))
    book.check()
    assert book.plan() == ((ONE[0], 4),)
    assert book.closure(book.plan()).sum() == 11
    assert book.manifest[-1]["entry"] == "retrained"
    assert book.after(["0/3/0"]).plan() == ((ONE[0], 3),)


def test_training_that_read_a_deleted_sample_is_not_recorded():
    book = filled(1, ONE)
    stale = book.stages["0/0-1"]
    with pytest.raises(ExactnessBroken, match=r"Stage 0/0-1 read other samples than those of its slices that stay"):
        book.after(["0/1/0"]).trained(stale)


def test_a_served_stage_that_is_revoked_or_read_a_deleted_sample_is_found_out():
    start = filled()
    book = start.after(["0/1/0"])
    with pytest.raises(ExactnessBroken, match=r"Stage 0/0-1 is served, and it is revoked"):
        book.check(start.plan())
    hidden = replace(book, stages=start.stages)
    with pytest.raises(ExactnessBroken, match=r"trained on 1 deleted samples"):
        hidden.check(start.plan())
    lost = replace(start, stages={k: v for k, v in start.stages.items() if k != "0/0-1"})
    with pytest.raises(ExactnessBroken, match=r"Stage 0/0-1 is served, and the record does not hold it"):
        lost.check(start.plan())
    moved = start.at.copy()
    moved[0] = (moved[0] + 1) % 4
    with pytest.raises(ExactnessBroken, match="read other samples than the table says"):
        replace(start, at=moved).check()


def test_unknown_deleted_and_repeated_ids_are_refused():
    book = filled().after(["0/0/0"])
    with pytest.raises(UserError, match="ids that were prepared, got unknown x"):
        book.after(["x"])
    with pytest.raises(UserError, match="still to be deleted, got already deleted 0/0/0"):
        book.after(["0/0/1", "0/0/0"])
    with pytest.raises(UserError, match="each id once"):
        book.after(["0/0/1", "0/0/1"])


def test_an_id_in_several_shards_is_a_corrupt_table():
    config = {"kind": "sisa", "shards": 2, "slices": 1, "sequences": (((0,),),) * 2, "seed": 0, "failure": "all"}
    book = Book.opened(config, b"", ["a", "b", "a"], np.array([0, 0, 1], np.int32))
    with pytest.raises(CorruptArtefact, match="each id in one slice, got a in several"):
        book.after(["a"])


def test_the_record_survives_a_state(tmp_path):
    book = filled(2).after(["0/0/0"]).purged()[0]
    meta = {"book": book.to_json(), "manifest": list(book.manifest)}
    State(book.tensors(), meta).save(tmp_path / "s.safetensors")
    state = State.load(tmp_path / "s.safetensors")
    other = Book.from_json(state.meta["book"], state.meta["manifest"], state.tensors)
    assert other.stages == book.stages
    assert other.plan() == book.plan()
    assert other.digest == book.digest
    assert other.after(["1/2/0"]).plan() == book.after(["1/2/0"]).plan()
    assert other.after(["1/2/0"]).manifest == book.after(["1/2/0"]).manifest


def test_content_and_copies_of_deleted_samples_are_erased():
    config = {"kind": "sisa", "shards": 1, "slices": 2, "sequences": (((0, 1),),), "seed": 0, "failure": "all"}
    content, twin = np.array([5, 6, 7]), np.array([0, 0, -1], np.int32)
    book = Book.opened(config, b"", ["a", "b", "c"], np.array([0, 1, 1], np.int32), content, twin)
    after = book.after(["b"])
    assert sorted(after.content) == [0, 5, 7]
    assert sorted(after.twin) == [-1, -1, 0]
    assert sorted(book.content) == [5, 6, 7]


@pytest.mark.parametrize("how", ["changed", "cut", "swapped"])
def test_a_manifest_that_was_altered_is_found_out(how):
    book = filled(1, ONE).after(["0/1/0"])
    lines = [dict(line) for line in book.manifest]
    if how == "changed":
        lines[1]["n"] += 1
    elif how == "cut":
        del lines[1]
    else:
        lines[0], lines[1] = lines[1], lines[0]
    with pytest.raises(CorruptArtefact, match="a manifest whose entries follow each other, got a break at [01]"):
        Book.from_json(book.to_json(), lines, book.tensors())


def test_stages_ahead_of_or_behind_the_manifest_are_found_out():
    start, book = filled(1, ONE), filled(1, ONE).after(["0/1/0"])
    with pytest.raises(CorruptArtefact, match="stages as the manifest tells of them, got others under 0/0-1"):
        Book.from_json(start.to_json(), book.manifest, start.tensors())
    with pytest.raises(CorruptArtefact, match="stages as the manifest tells of them"):
        Book.from_json(book.to_json(), start.manifest, book.tensors())


def test_a_table_or_record_that_is_not_whole_is_found_out():
    book = filled(1, ONE)
    short = {**book.tensors(), "slices/at": torch.zeros(2, dtype=torch.int32)}
    with pytest.raises(CorruptArtefact, match="a whole table of slices"):
        Book.from_json(book.to_json(), book.manifest, short)
    with pytest.raises(CorruptArtefact, match=r"a whole record of slices and stages, got something else \(KeyError"):
        Book.from_json({"config": {}}, book.manifest, book.tensors())


def test_every_entry_of_training_names_its_samples_seed_and_settings():
    line = filled(1, ONE).manifest[2]
    assert line["stage"] == "0/0-1-2"
    assert line["parents"] == ["0/0-1"]
    assert (line["n"], line["seed"], line["born"]) == (9, 1, 0)
    assert line["config"] == blank(1, ONE).digest
    assert set(line["versions"]) == {"expunge", "torch"}
    assert line["samples"] == samples_digest(blank(1, ONE).id[blank(1, ONE).inside(0, (0, 1, 2))])


def test_names_of_tensors():
    assert tensor_name("1/0-2", "a.weight") == "stage/1/0-2/a.weight"
    assert len(ROTATIONS) == 4
    assert copied(filled()).plan() == filled().plan()
