"""Versions of a model: which is served, what is whole, what a killed process may leave."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from expunge.errors import CorruptArtefact, UserError
from expunge.service import Workspace, guard, refuse_deleted
from expunge.service.workspace import FIRST, check_files, digests
from projects import parquet, rows
from services import Shop
from shell import expunge

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    """A workspace with one model and its first version."""
    (tmp_path / "start" / "inner").mkdir(parents=True)
    (tmp_path / "start" / "weights").write_bytes(b"first")
    (tmp_path / "start" / "inner" / "config").write_bytes(b"config")
    found = Workspace(tmp_path / "space")
    with found.locked("net"):
        found.begin("net", tmp_path / "start", NOW)
    return found


def made(space: Workspace, version: str, content: bytes = b"second") -> None:
    space.version("net", version).mkdir()
    (space.version("net", version) / "weights").write_bytes(content)


def test_the_first_version_is_a_copy_and_served(space: Workspace, tmp_path: Path) -> None:
    assert (space.models, space.versions("net"), space.current("net")) == (["net"], [FIRST], FIRST)
    assert digests(space.served("net")) == digests(tmp_path / "start") == space.begun("net")["files"]
    assert space.begun("net")["begun"] == "2030-01-01T00:00:00+00:00"
    assert os.readlink(space.home("net") / "current") == f"versions/{FIRST}"
    (tmp_path / "start" / "weights").write_bytes(b"other")
    space.begin("net", tmp_path / "start", NOW)  # it has begun: nothing is copied again
    assert (space.served("net") / "weights").read_bytes() == b"first"


def test_another_version_is_served_in_one_step(space: Workspace) -> None:
    made(space, "v000012")
    made(space, "v000002")
    assert space.versions("net") == [FIRST, "v000002", "v000012"]
    space.switch("net", "v000012")
    assert (space.served("net") / "weights").read_bytes() == b"second"
    assert [p.name for p in space.home("net").glob(".*")] == []
    with pytest.raises(CorruptArtefact, match="version v000013 of net in .*, got none: restore it from a copy"):
        space.switch("net", "v000013")
    assert space.current("net") == "v000012"
    with pytest.raises(UserError, match="a version of net that is not served, got v000012"):
        space.destroy("net", "v000012")
    space.destroy("net", "v000002")
    space.destroy("net", "v000002")
    assert space.versions("net") == [FIRST, "v000012"]


def test_a_served_version_that_is_lost_is_told(space: Workspace) -> None:
    with pytest.raises(UserError, match="a served version of other in .*, got none"):
        space.served("other")
    (space.home("net") / "versions").rename(space.home("net") / "elsewhere")
    with pytest.raises(CorruptArtefact, match="the served version of net in .*, got none: restore it from a copy"):
        space.served("net")
    (space.home("net") / "current").unlink()
    (space.home("net") / "current").mkdir()
    with pytest.raises(CorruptArtefact, match="a link at .*current, got something else"):
        space.current("net")


def test_what_is_half_written_is_removed(space: Workspace) -> None:
    (space.home("net") / "versions" / ".v000003.ab" / "v000003").mkdir(parents=True)
    (space.home("net") / ".current.12").symlink_to("versions/v000003")
    assert space.versions("net") == [FIRST]
    space.tidy("net")
    assert [p.name for p in space.home("net").rglob(".*")] == []
    assert space.current("net") == FIRST


def test_other_files_than_were_written_are_named(space: Workspace) -> None:
    files = digests(space.served("net"))
    check_files(space.served("net"), files)
    (space.served("net") / "weights").write_bytes(b"wrong")
    (space.served("net") / "more").write_bytes(b"")
    (space.served("net") / "inner" / "config").unlink()
    with pytest.raises(CorruptArtefact, match="others: inner/config, more, weights: restore"):
        check_files(space.served("net"), files)


def test_what_was_forgotten_is_not_learned_again(pets: Any) -> None:
    shop: Shop = pets()
    refuse_deleted(shop.project, shop.project.train)
    shop.ask("r1", "101", "102")
    shop.process()
    place = shop.project
    with pytest.raises(UserError) as refusal:
        refuse_deleted(place, place.train)
    expected = "training data without deleted samples, got 2 of 60 samples that were deleted on request: take them out"
    assert expected in str(refusal.value)
    guard(place, place.train.without(["101", "102"]).ids)
    with pytest.raises(UserError, match="got 1 of 1 samples"):
        guard(place, ["102"])


def test_a_project_without_a_ledger_is_not_guarded(pets: Any, tmp_path: Path) -> None:
    shop: Shop = pets({"requests.workspace": "elsewhere"})
    shop.ask("r1", "101")
    shop.process()
    with pytest.raises(UserError, match="got 1 of 1 samples"):
        guard(shop.project, ["101"])
    (shop.folder / "elsewhere").rename(tmp_path / "away")
    guard(shop.project, ["101"])


def test_a_model_that_comes_late_has_learned_nothing_that_closed_requests_named(pets: Any) -> None:
    shop: Shop = pets()
    late: Shop = pets({"requests.workspace": "../shop/expunge-requests"}, name="late")
    text = (shop.folder / "expunge.toml").read_text()
    models = '\n[requests.models]\na = "expunge.toml"\n'
    (shop.folder / "expunge.toml").write_text(text + models)
    shop.ask("r1", "101")
    shop.process()
    (shop.folder / "expunge.toml").write_text(text + models + 'b = "../late/expunge.toml"\n')
    shop.ask("r2", "102")
    refused = "a model b that has learned nothing that closed requests named, got 1 of its training samples, deleted on"
    assert [(o.model, o.step) for o in shop.process()] == [("a", "deployed"), ("b", "refused")]
    with pytest.raises(UserError, match=refused):
        shop.process()
    assert shop.status("r2").models.keys() == {"a"}
    assert shop.status("r2").open
    with pytest.raises(UserError, match="deleted on request"):
        guard(late.project, ["101"])
    own = '\n[requests.models]\na = "../shop/expunge.toml"\nb = "expunge.toml"\n'
    (late.folder / "expunge.toml").write_text((late.folder / "expunge.toml").read_text() + own)
    with pytest.raises(UserError, match="deleted on request"):
        guard(late.project, ["101"])
    guard(late.project, ["102"])  # r2 is open, and will be asked of it
    columns = rows(60)
    parquet(late.folder / "train.parquet", {k: [w for i, w in enumerate(v) if i != 1] for k, v in columns.items()})
    shutil.rmtree(late.folder / "expunge-work")
    assert expunge("prepare", cwd=late.folder)[0] == 0
    assert [(o.model, o.step) for o in shop.process()] == [("b", "deployed")]
    assert shop.status("r2").closed


def test_a_model_is_guarded_from_what_it_forgot_itself(pets: Any) -> None:
    shop: Shop = pets()
    other: Shop = pets({"requests.workspace": "../shop/expunge-requests"}, name="other")
    parquet(other.folder / "train.parquet", {k: v[10:] for k, v in rows(60).items()})
    text = (shop.folder / "expunge.toml").read_text()
    models = '\n[requests.models]\na = "expunge.toml"\nb = "../other/expunge.toml"\n'
    (shop.folder / "expunge.toml").write_text(text + models)
    shop.ask("r1", "101", "102")
    shop.process(only=["r1"])
    assert shop.status("r1").models["b"].step == "failed"  # prepared on them, and they are no longer at hand
    with pytest.raises(UserError, match="deleted on request"):
        guard(shop.project, ["101"])
    with pytest.raises(UserError, match="deleted on request"):  # it does not know its name there: any model counts
        guard(other.project, ["101"])
