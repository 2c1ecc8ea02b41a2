"""Dry runs of exact methods: a request is told what itself takes, not what a failure would."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from expunge.data import Data
from expunge.plan import plan
from expunge.unlearn import unlearn
from shardings import QUIET, TASK, Case, case


def request(made: Case, ids: list[str], *, given: bool) -> dict[str, Any]:
    more = {"retain": made.train.without(ids), "recipe": made.recipe} if given else {}
    return {"forget": ids, "state": made.ready.state, **more}


def planned(made: Case, phase: str, given: dict[str, Any]) -> Any:
    return plan(made.method, phase, made.ready.model, TASK, given=given, runtime=QUIET)


@pytest.mark.parametrize("given", [True, False])
def test_a_deletion_that_trains_nothing_reads_nothing(given: bool) -> None:
    made = case("s3t")
    found = planned(made, "unlearn", request(made, made.slice_of(0, 1)[:1], given=given))
    assert (found.problem, found.passes, found.reads) == ("", {}, 0)
    assert found.seconds is not None
    assert found.seconds > 0


@pytest.mark.parametrize("name", ["sisa", "s3t"])
@pytest.mark.parametrize("slices", [[(0, 0)], [(0, 2), (1, 1)], [(n, k) for n in (0, 1) for k in (0, 1, 2)]])
def test_what_is_read_is_what_the_request_reads(name: str, slices: list[tuple[int, int]]) -> None:
    made = case(name)
    values = request(made, [made.slice_of(*place)[0] for place in slices], given=True)
    done = unlearn(made.method, made.ready.model, TASK, **values, runtime=QUIET)
    found = planned(made, "unlearn", values)
    assert found.problem == ""
    assert found.reads == done.log["samples_processed"]


def test_what_a_failure_misses_is_told() -> None:
    made = case("s3t")
    every = [made.slice_of(n, k)[0] for n in (0, 1) for k in (0, 1, 2)]
    found = planned(made, "unlearn", request(made, every, given=False))
    assert "retain and recipe for s3t, because no shard has a clean stage left, got none" in found.problem
    assert found.seconds is None


def test_a_sample_that_is_deleted_already_is_told() -> None:
    made = case("sisa")
    one = made.slice_of(0, 1)[:1]
    done = unlearn(made.method, made.ready.model, TASK, forget=one, state=made.ready.state, runtime=QUIET)
    found = plan(made.method, "unlearn", done.model, TASK, given={"forget": one, "state": done.state}, runtime=QUIET)
    assert one[0] in found.problem
    assert found.seconds is None


@pytest.mark.parametrize(
    ("change", "settings", "text"),
    [
        ({"patience": 2}, {}, "a recipe without early stopping for sisa, got patience=2"),
        ({}, {"shards": 30}, "a sample in every slice, got none in"),
        ({}, {"owner": "patient"}, "patient"),
    ],
)
def test_a_preparation_is_refused_beforehand(change: dict[str, Any], settings: dict[str, Any], text: str) -> None:
    made = case("sisa")
    given = {"train": made.train, "recipe": replace(made.recipe, **change), "new_model": made.new_model}
    given["holdout"] = Data.from_arrays(made.train.source.x[:5], made.train.source.y[:5], name="holdout")
    method = replace(made.method, **settings)
    found = plan(method, "prepare", made.new_model(), TASK, given=given, runtime=QUIET)
    assert text in found.problem
    assert found.seconds is None
