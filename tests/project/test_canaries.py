"""Projects whose training data holds canaries: planted here or before, the same in every command, told when not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from expunge.canaries import FILE, Canaries, plant
from expunge.method import State
from expunge.project import Project
from expunge.train import Recipe, fit, fresh
from projects import Copy, parquet, rows, toml
from shell import expunge, refused
from worlds import QUIET

PLANTS = {"model.weights": "train", "recipe.canaries": 6}
N, LEFT = 60, 54
SUBJECT = ("forget", "--subject", "ann")


def done(place: Path, *words: object) -> str:
    code, out, err = expunge(*words, cwd=place)
    assert code in (0, 3), err
    return out


def opened(place: Path) -> Project:
    return Project.open(place / "expunge.toml")


def labels(data: Any) -> dict[str, int]:
    return dict(zip(data.ids, data.targets().tolist(), strict=True))


def kept(place: Path, rule: Any, columns: dict[str, Any] | None = None) -> None:
    """Write the training table anew with the rows whose id is to stay."""
    table = rows(N) if columns is None else columns
    left = [at for at, key in enumerate(table["key"]) if rule(str(key))]
    parquet(place / "train.parquet", {k: [v[at] for at in left] for k, v in table.items()})


@pytest.fixture(scope="module")
def planted(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project after prepare that trained its network with canaries."""
    folder = tmp_path_factory.mktemp("planted") / "shop"
    shutil.copytree(pets, folder)
    (folder / "expunge.toml").write_text(toml(PLANTS))
    assert f"Prepared ssd on {LEFT} samples" in (out := done(folder, "prepare"))
    assert "Canaries: 6 of them under random labels, 6 further samples kept out of training.\n" in out
    return folder


@pytest.fixture
def shop(planted: Path, tmp_path: Path) -> Path:
    shutil.copytree(planted, tmp_path / "shop", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "shop"


def test_the_network_is_trained_on_planted_data_once_and_the_manifest_stands_beside_the_record(shop: Path) -> None:
    project = opened(shop)
    train, want = plant(project.full_train, 6)
    work = shop / "expunge-work"
    assert sorted(p.name for p in work.iterdir()) == [FILE, "model.safetensors", "record.json", "state.safetensors"]
    found = Canaries.load(work / FILE)
    assert found == want == project.canaries
    assert labels(project.train) == labels(train)
    assert (len(project.full_train), len(project.train)) == (N, LEFT)
    assert project.recipe == Recipe(epochs=2, batch_size=16, lr=0.1)
    assert json.loads((work / "record.json").read_text())["canaries"] == found.digest()
    assert State.load(work / "state.safetensors").meta["expunge"]["samples"] == LEFT
    start = fresh(project.blank(), new_model=project.new_model)
    model = fit(start, project.task, train, project.recipe, runtime=QUIET)
    weights = load_file(work / "model.safetensors")
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())
    assert project.problem().train.ids == train.ids
    assert project.problem().recipe == project.recipe


def test_another_order_of_rows_and_another_seed_of_training_plant_the_same(shop: Path) -> None:
    parquet(shop / "train.parquet", {k: list(v)[::-1] for k, v in rows(N).items()})
    done(shop, "prepare", "--seed", 3, "-o", "again")
    assert (shop / "again" / FILE).read_bytes() == (shop / "expunge-work" / FILE).read_bytes()


def test_requests_and_the_audit_work_on_what_was_trained_on(shop: Path) -> None:
    found = Canaries.load(shop / "expunge-work" / FILE)
    who = dict(zip(map(str, rows(N)["key"]), rows(N)["owner"], strict=True))
    subject = ("forget", "--subject", next(who[i] for i in found.unseen))
    mine = [i for i in who if who[i] == subject[-1] and i not in found.unseen]
    assert 0 < len(mine) < 12
    assert f"Edited for {len(mine)} of {LEFT} samples" in done(shop, *subject)
    assert (shop / "expunge-forgotten" / FILE).read_bytes() == (shop / "expunge-work" / FILE).read_bytes()
    done(shop, *subject, "-m", "retrain", "-o", "retrained")
    done(shop, "audit", "--retrained", "retrained")
    wrong = next(label for label in (0, 1, 2) if label in found.planted.values())
    trained = labels(opened(shop).train)
    out = done(shop, "forget", "--class", wrong, "-o", "class")
    assert f"Edited for {list(trained.values()).count(wrong)} of {LEFT} samples" in out


def test_requests_in_a_row_with_samples_deleted_in_between_keep_the_labels(shop: Path) -> None:
    found = Canaries.load(shop / "expunge-work" / FILE)
    first, second = sorted(found.planted)[:2]
    gone = {first, sorted(found.unseen)[0], "159"}
    (shop / "ids.txt").write_text(first)
    done(shop, "forget", "--ids", "ids.txt", "-o", "one")
    kept(shop, lambda key: key not in gone)
    (shop / "ids.txt").write_text(second)  # refused, were its label drawn anew
    out = done(shop, "forget", "--ids", "ids.txt", "--start", "one", "-o", "two")
    assert "Edited for 1 of" in out
    assert Canaries.load(shop / "two" / FILE) == found
    done(shop, "audit", "--unlearned", "two", "--original", "one", "-o", "audit")


def test_a_whole_class_deleted_since_changes_no_random_label(shop: Path) -> None:
    found = Canaries.load(shop / "expunge-work" / FILE)
    true = labels(opened(shop).full_train)
    kept(shop, lambda key: true[key] != 0)
    one = next(i for i in sorted(found.planted) if true[i] != 0)
    (shop / "ids.txt").write_text(one)
    assert "Edited for 1 of" in done(shop, "forget", "--ids", "ids.txt")


def test_samples_that_come_with_a_request_have_the_label_they_were_trained_on(shop: Path) -> None:
    found = Canaries.load(shop / "expunge-work" / FILE)
    some = [*sorted(found.planted)[:2], "100" if "100" not in found.unseen else "101"]
    kept(shop, lambda key: key in some)
    shutil.move(shop / "train.parquet", shop / "some.parquet")
    assert "Edited for 3 samples" in done(shop, "forget", "--samples", "some.parquet", "-o", "gone")
    assert Canaries.load(shop / "gone" / FILE) == found
    parquet(shop / "some.parquet", {k: [v[int(sorted(found.unseen)[0]) - 100]] for k, v in rows(N).items()})
    assert "ids of the prepared training data, got unknown" in refused(shop, "forget", "--samples", "some.parquet")


def test_who_was_kept_out_of_training_is_told_so(shop: Path) -> None:
    found = Canaries.load(shop / "expunge-work" / FILE)
    lone = sorted(found.unseen)[0]
    table = rows(N)
    table["owner"][int(lone) - 100] = "zoe"
    kept(shop, lambda key: True, table)
    (shop / "ids.txt").write_text(f"{lone}\n{sorted(found.planted)[0]}\n")
    said = refused(shop, "forget", "--ids", "ids.txt")
    assert f"ids of samples that were trained on, got {lone}, kept out of training as canaries: leave them out" in said
    said = refused(shop, "forget", "--subject", "zoe")
    assert "a subject that was trained on, got samples of zoe that were all kept out of training, as canaries" in said


def test_a_dry_run_names_the_manifest(shop: Path) -> None:
    for words in (("prepare", "-o", "new"), (*SUBJECT, "-o", "new")):
        found = json.loads(done(shop, "--json", *words, "--plan"))
        assert [Path(f["file"]).name for f in found["files"]].count(FILE) == 1
    assert not (shop / "new").exists()


# Weights that were trained before.


@pytest.fixture
def before(fresh: Copy, tmp_path: Path) -> Path:
    """Return a project whose weights were trained by fit, with canaries of another seed."""
    place = fresh({"data.canaries": "training/canaries.json"})
    project = opened(place)
    start = project.blank()
    run = replace(QUIET, workdir=place / "training")
    model = fit(start, project.task, project.full_train, replace(project.recipe, canaries=5), runtime=run, seed=7)
    save_file(dict(model.state_dict()), place / "model.safetensors")
    return place


def test_a_manifest_left_by_fit_gives_the_data_that_was_trained_on(before: Path) -> None:
    project = opened(before)
    train, want = plant(project.full_train, 5, seed=7)
    assert project.canaries == want
    assert labels(project.train) == labels(train)
    assert "Prepared ssd on 55 samples" in done(before, "prepare")
    assert Canaries.load(before / "expunge-work" / FILE) == want
    shutil.rmtree(before / "training")  # the folder has its own
    (before / "ids.txt").write_text(sorted(want.planted)[0])
    assert "Edited for 1 of 55 samples" in done(before, "forget", "--ids", "ids.txt")


def test_a_manifest_of_other_data_is_refused(before: Path) -> None:
    table = rows(N)
    table["kind"][3] = "dog" if table["kind"][3] != "dog" else "cat"
    kept(before, lambda key: True, table)
    said = refused(before, "prepare")
    assert "the data that the canaries were drawn from, in train, got other samples" in said
    kept(before, lambda key: key not in Canaries.load(before / "training" / FILE).unseen)
    assert "were drawn from, in train, got none called" in refused(before, "prepare")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"recipe.canaries": 5, "data.canaries": "x.json"},
            "canaries in [recipe] or in [data], got both: keep the one",
        ),
        ({"recipe.canaries": 5}, 'weights = "train" in [model], for canaries in [recipe], got trained weights: train'),
        ({"model.weights": "train", "recipe.canaries": 16}, "at most 15 canaries in 60 samples of train, got 16"),
        ({"model.weights": "train", "recipe.canaries": -1}, "Recipe.canaries of 0 or more, got -1"),
        ({"model.weights": "train", "recipe.canaries": "5"}, "Recipe.canaries as a whole number, got '5'"),
        ({"data.canaries": "nowhere.json"}, "nowhere.json, got none there: check the path"),
        ({"data.canaries": "expunge.toml"}, "a JSON document in"),
        ({"data.canaries": 3}, "data.canaries in line"),
    ],
)
def test_what_a_project_may_not_say_of_canaries(changes: dict[str, Any], text: str, fresh: Copy) -> None:
    place = fresh(changes)
    assert text in refused(place, "prepare")
    assert text in refused(place, "prepare", "--plan")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({**PLANTS, "recipe.canaries": 7}, "got another recipe.canaries: put [recipe] back as it was, or prepare anew"),
        ({"model.weights": "train"}, "got another recipe.canaries"),
        ({**PLANTS, "data.canaries": "expunge-work/canaries.json"}, "got another data.canaries: put [data] back"),
    ],
)
def test_canaries_may_not_change_after_prepare(changes: dict[str, Any], text: str, shop: Path) -> None:
    (shop / "expunge.toml").write_text(toml(changes))
    assert text in refused(shop, *SUBJECT)


def test_a_folder_is_held_to_its_own_manifest(shop: Path) -> None:
    own = shop / "expunge-work" / FILE
    moved = own.rename(shop / FILE)
    assert "a file expunge-work/canaries.json, got none there" in refused(shop, *SUBJECT)
    plant(opened(shop).full_train, 6, seed=1)[1].save(own)
    assert "the canaries of expunge-work/record.json, got others: restore the folder" in refused(shop, *SUBJECT)
    own.write_text(moved.read_text().replace('"seed": 0', '"seed": 1'))
    assert "whole canaries in expunge-work/canaries.json, got other values" in refused(shop, *SUBJECT)
    shutil.move(moved, own)
    done(shop, *SUBJECT)


def test_a_named_data_set_takes_canaries_too(tmp_path: Path) -> None:
    text = {"data": {"name": "digits", "limit": 100}, "model": {"network": "mlp"}, "recipe": {"epochs": 1}}
    (tmp_path / "expunge.toml").write_text(toml({"recipe.canaries": 10}, text))
    assert "Prepared ssd on 90 samples" in done(tmp_path, "prepare")
    project = opened(tmp_path)
    assert project.problem().train.ids == project.train.ids
    assert labels(project.train) == labels(plant(project.full_train, 10)[0])
