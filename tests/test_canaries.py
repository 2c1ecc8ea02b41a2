"""Canaries: drawn by ids alone, labelled alike, planted once, and named by a manifest that is whole or refused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from expunge import tensors, zoo
from expunge.canaries import FILE, Canaries, plant
from expunge.data import Data
from expunge.errors import CorruptArtefact, Incompatible, UserError
from expunge.evidence import collect
from expunge.methods import load
from expunge.plan import plan
from expunge.runtime import Progress
from expunge.task import Classification
from expunge.train import Recipe, fit
from expunge.trial import Request, original, trial
from expunge.unlearn import unlearn
from expunge.zoo.embedded import mislabelled
from worlds import QUIET, World, world

SHORT = Recipe(epochs=3, batch_size=8, lr=0.05, canaries=5)


@pytest.fixture(scope="module")
def tiny() -> World:
    return world()


def blobs(n: int = 40, real: bool = False, column: bool = False, seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator)
    y = x[:, 0] * 3 if real else torch.arange(n) % 4
    owners = [f"p{i % 5}" for i in range(n)]
    weight = torch.linspace(0.5, 1.5, n)
    return Data.from_arrays(x, y[:, None] if column else y, columns={"owner": owners}, weight=weight)


def labels(data: Data) -> dict[str, float]:
    return dict(zip(data.ids, data.targets().reshape(-1).tolist(), strict=True))


def same(a: nn.Module, b: nn.Module) -> bool:
    return tensors.weights_digest(a) == tensors.weights_digest(b)


# Who is drawn, and under which label.


@given(st.permutations(range(40)), st.integers(1, 10), st.integers(0, 3), st.booleans())
def test_any_order_of_the_data_gives_the_same_canaries(order: list[int], n: int, seed: int, real: bool) -> None:
    data = blobs(real=real)
    mixed = data.subset([data.ids[i] for i in order])
    trained, found = plant(data, n, seed=seed)
    other, again = plant(mixed, n, seed=seed)
    assert again == found
    assert labels(other) == labels(trained)
    assert other.ids == [i for i in mixed.ids if i not in found.unseen]
    assert labels(found.applied(mixed)) == labels(trained)
    assert [d.ids for d in found.samples(mixed)] == [d.ids for d in found.samples(data)]


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("real", [False, True])
def test_planted_ones_are_relabelled_unseen_ones_left_out_and_no_other_touched(real: bool, column: bool) -> None:
    data = blobs(real=real, column=column and real)
    train, found = plant(data, 6, seed=3)
    true, now = labels(data), labels(train)
    assert len(found.planted) == len(found.unseen) == 6
    assert not set(found.planted) & set(found.unseen)
    assert train.ids == [i for i in data.ids if i not in found.unseen]
    assert {i for i in now if now[i] != true[i]} == set(found.planted)
    assert {i: now[i] for i in found.planted} == found.planted
    assert all(label != true[i] for i, label in found.unseen.items())
    assert train.targets().dtype == data.targets().dtype
    assert train.targets().shape[1:] == data.targets().shape[1:]
    kept = data.without(found.unseen)
    assert torch.equal(train.read(range(9)).inputs, kept.read(range(9)).inputs)
    assert torch.equal(train.read(range(9)).weight, kept.read(range(9)).weight)
    assert train.column("owner").tolist() == kept.column("owner").tolist()
    assert set(train.columns) == {"owner"}  # nothing that a method sees tells which they are


def test_seeds_draw_others_and_more_canaries_hold_the_fewer() -> None:
    data = blobs(200)
    drawn = [{*c.planted, *c.unseen} for c in (plant(data, 20, seed=s)[1] for s in range(5))]
    assert len({frozenset(d) for d in drawn}) == 5
    few, many = plant(data, 5)[1], plant(data, 20)[1]
    assert {*few.planted, *few.unseen} < {*many.planted, *many.unseen}


def test_each_sample_and_each_other_class_is_as_likely() -> None:
    data = blobs(40)
    who, steps = Counter[str](), Counter[int]()
    true = labels(data)
    for seed in range(400):
        found = plant(data, 10, seed=seed)[1]
        who.update(list(found.planted))
        both = {**found.planted, **found.unseen}
        steps.update(int(label - true[i]) % 4 for i, label in both.items())
    assert len(who) == 40
    assert abs(np.fromiter(who.values(), float) - 100).max() < 5 * np.sqrt(400 * 0.25 * 0.75)
    assert set(steps) == {1, 2, 3}
    assert abs(np.fromiter(steps.values(), float) - 8000 / 3).max() < 5 * np.sqrt(8000 * 2 / 9)


def test_real_targets_go_round_among_the_drawn() -> None:
    data = blobs(real=True)
    true, found = labels(data), plant(data, 8)[1]
    both = {**found.planted, **found.unseen}
    assert sorted(both.values()) == sorted(true[i] for i in both)
    assert set(found.planted.values()) & {true[i] for i in found.unseen}  # not among the planted ones alone


def test_classes_that_are_not_in_the_data_are_given_to_nobody() -> None:
    data = Data.from_arrays(torch.zeros(40, 2), [2, 7] * 20)
    train, found = plant(data, 10)
    assert set(train.targets().tolist()) == {2, 7}
    assert all(label == 9 - labels(data)[i] for i, label in found.planted.items())


def test_the_manifest_gives_the_trained_data_and_the_samples_from_the_full_data() -> None:
    data = blobs()
    train, found = plant(data, 4)
    again = found.applied(data)
    assert again.ids == train.ids
    assert [h.tolist() for h in again.fingerprints(b"", True)] == [h.tolist() for h in train.fingerprints(b"", True)]
    planted, unseen = found.samples(data)
    assert labels(planted) == found.planted
    assert labels(unseen) == found.unseen
    assert torch.equal(unseen.read([0]).inputs, data.subset(unseen.ids[:1]).read([0]).inputs)
    assert (planted.name, unseen.name) == ("planted canaries", "unseen canaries")


def test_samples_deleted_since_do_not_change_the_others() -> None:
    data = blobs()
    _, found = plant(data, 5)
    gone = [next(iter(found.planted)), next(iter(found.unseen)), *[i for i in data.ids if labels(data)[i] == 2][:3]]
    left = data.without(gone)
    train, rest = found.left(left)
    assert labels(train) == {i: v for i, v in labels(found.applied(data)).items() if i not in gone}
    assert rest.planted == {i: v for i, v in found.planted.items() if i not in gone}
    assert rest.unseen == {i: v for i, v in found.unseen.items() if i not in gone}
    assert rest.samples(left)[0].ids == list(rest.planted)
    assert found.left(data)[1] == found


def test_samples_are_given_the_label_they_were_trained_on() -> None:
    data = blobs()
    _, found = plant(data, 5)
    some = data.subset([*list(found.planted)[:2], *list(found.unseen)[:1], *data.without(found.planted).ids[:2]])
    now = labels(found.as_trained(some))
    assert now == {i: found.planted.get(i, own) for i, own in labels(some).items()}
    others = data.without([*found.planted])
    assert found.as_trained(others) is others
    assert found.as_trained(some.unlabelled()).ids == some.ids


# The manifest on disk.


@pytest.mark.parametrize("real", [False, True])
def test_a_manifest_comes_back_as_it_was(tmp_path: Path, real: bool) -> None:
    data = blobs(real=real)
    _, found = plant(data, 5, seed=2)
    found.save(tmp_path / "here" / FILE)
    again = Canaries.load(tmp_path / "here" / FILE)
    assert again == found
    assert list(again.planted) == sorted(found.planted)
    assert labels(again.applied(data)) == labels(found.applied(data))
    before = (tmp_path / "here" / FILE).read_bytes()
    again.save(tmp_path / "here" / FILE)
    assert (tmp_path / "here" / FILE).read_bytes() == before
    body = json.loads(before)
    assert (body["kind"], body["schema"]) == ("expunge.canaries", 1)
    with pytest.raises(UserError, match="a place for these canaries, .*canaries.json, got the canaries of another tra"):
        plant(data, 5, seed=3)[1].save(tmp_path / "here" / FILE)
    assert (tmp_path / "here" / FILE).read_bytes() == before
    assert [p.name for p in (tmp_path / "here").iterdir()] == [FILE]


def _without(body: dict[str, object], key: str) -> dict[str, object]:
    return {k: v for k, v in body.items() if k != key}


DAMAGE = {
    "a label": lambda b: b | {"planted": {k: v + 1 for k, v in b["planted"].items()}},
    "NaN": lambda b: b | {"planted": {k: float("nan") for k in b["planted"]}},
    "fewer": lambda b: b | {"unseen": {}},
    "no seed": lambda b: _without(b, "seed"),
    "no digest": lambda b: _without(b, "digest"),
    "a list": lambda b: b | {"planted": [1, 2]},
}


@pytest.mark.parametrize("what", DAMAGE)
def test_an_altered_manifest_is_refused(tmp_path: Path, what: str) -> None:
    plant(blobs(), 3)[1].save(tmp_path / FILE)
    body = DAMAGE[what](json.loads((tmp_path / FILE).read_text()))
    (tmp_path / FILE).write_text(json.dumps(body))
    with pytest.raises(CorruptArtefact, match="whole canaries in .*canaries.json, got other values than were written"):
        Canaries.load(tmp_path / FILE)


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        ("", CorruptArtefact, "a JSON document in"),
        ('{"kind": "expunge.record", "schema": 1}', Incompatible, "a document of kind 'expunge.canaries'"),
        ('{"kind": "expunge.canaries", "schema": 2}', Incompatible, "schema 1 or older"),
        (None, UserError, "a file .*canaries.json, got none there"),
    ],
)
def test_other_files_are_no_manifest(tmp_path: Path, content: str | None, error: type, said: str) -> None:
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(error, match=said):
        Canaries.load(tmp_path / FILE)


def test_nobody_is_planted_and_unseen() -> None:
    with pytest.raises(UserError, match="canaries planted or unseen, got a as both: draw them with plant"):
        Canaries(0, {"a": 1}, {"a": 1}, "")


# What is refused.


def of(y: object, n: int = 40) -> Data:
    return Data.from_arrays(torch.zeros(n, 2), y)


@pytest.mark.parametrize(
    ("data", "n", "said"),
    [
        (of(None), 3, "labels in train, for canaries, got none: give targets when building the data"),
        (blobs().unlabelled(), 3, "labels in train, for canaries, got none"),
        (blobs().subset([]), 3, "labels in train, for canaries, got none"),
        (of(torch.zeros(40, 3)), 3, r"or one real target a sample, for canaries, got torch.float32 of shape \(40, 3\)"),
        (of(torch.ones(40, 1, dtype=torch.long)), 3, r"class indices, .* got torch.int64 of shape \(40, 1\)"),
        (of(torch.arange(40) > 20), 3, "class indices, .* got torch.bool"),
        (of(torch.arange(40) % 3 - 1), 3, "class indices of 0 or more, for canaries, got -1: encode them as 0..K-1"),
        (of(torch.full((40,), torch.nan)), 3, "finite targets, for canaries, got NaN or infinity"),
        (of([4] * 40), 3, "two classes or more to draw labels of canaries from, got only 4: plant none"),
        (of(torch.full((40,), 0.5)), 3, "targets that differ to draw labels of canaries from, got only 0.5"),
        (blobs(), 0, "1 canary or more, got 0: give a whole number"),
        (blobs(), 2.5, r"1 canary or more, got 2\.5"),
        (blobs(), True, "1 canary or more, got True"),
        (blobs(), 11, "at most 10 canaries in 40 samples of train, got 11: plant fewer"),
        (plant(blobs(), 3)[0], 3, "data without canaries in train, got canaries planted already: pass the data as it"),
        (mislabelled(plant(blobs(), 3)[0], 0.1, classes=4)[0], 3, "data without canaries in train"),
    ],
)
def test_what_cannot_be_planted(data: Data, n: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        plant(data, n)


def test_the_most_that_can_be_planted_is_a_quarter() -> None:
    train, found = plant(blobs(), 10)
    assert (len(train), len(found.planted)) == (30, 10)


def test_wrong_labels_are_no_canaries() -> None:
    noisy, _ = mislabelled(blobs(), 0.1, classes=4)
    assert len(plant(noisy, 3)[0]) == 37


@pytest.mark.parametrize("use", ["applied", "samples"])
def test_a_manifest_is_held_to_its_data(use: str) -> None:
    data = blobs()
    train, found = plant(data, 4)
    call = getattr(found, use)
    with pytest.raises(UserError, match="data without canaries in train, got canaries planted already"):
        call(train)
    lost = sorted(found.unseen)[0]
    with pytest.raises(UserError, match=f"were drawn from, in train, got none called {lost}: pass the whole"):
        call(data.without([lost]))
    y = data.targets()
    y[0] = 3
    other = Data.from_arrays(torch.zeros(40, 4), y)
    with pytest.raises(Incompatible, match="the data that the canaries were drawn from, in train, got other samples"):
        call(other)


# Training.


class Stop:
    """A progress callback that interrupts after some calls."""

    def __init__(self, calls: int) -> None:
        self.calls, self.samples = calls, 0

    def __call__(self, progress: Progress) -> None:
        self.calls -= 1
        self.samples = progress.done
        if self.calls == 0:
            raise KeyboardInterrupt


def test_fit_plants_and_leaves_the_manifest(tiny: World, tmp_path: Path) -> None:
    run = replace(QUIET, workdir=tmp_path)
    fit(tiny.new_model(), tiny.task, tiny.train, SHORT, runtime=run, seed=4)
    found = Canaries.load(tmp_path / FILE)
    train, want = plant(tiny.train, 5, seed=4)
    assert found == want
    assert [p.name for p in tmp_path.iterdir()] == [FILE]
    network = tiny.new_model()
    model = fit(network, tiny.task, tiny.train, SHORT, runtime=run, seed=4)
    assert same(model, fit(network, tiny.task, train, SHORT.again(), runtime=QUIET, seed=4))
    assert not same(model, fit(network, tiny.task, tiny.train, SHORT.again(), runtime=QUIET, seed=4))


def test_an_interrupted_training_goes_on_with_the_same_canaries(tiny: World, tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = tiny.new_model()
    whole, part = tmp_path / "whole", tmp_path / "part"
    want = fit(start, tiny.task, tiny.train, SHORT, runtime=replace(QUIET, workdir=whole), seed=4)
    with pytest.raises(KeyboardInterrupt):
        fit(
            start,
            tiny.task,
            tiny.train,
            SHORT,
            runtime=replace(QUIET, workdir=part, checkpoint_every=0, progress=Stop(7)),
            seed=4,
        )
    assert len(list(part.iterdir())) == 2
    rest = Stop(10**9)
    found = fit(start, tiny.task, tiny.train, SHORT, runtime=replace(QUIET, workdir=part, progress=rest), seed=4)
    assert rest.samples == 2 * (len(tiny.train) - 5)  # the last two of three epochs
    assert same(found, want)
    assert (part / FILE).read_bytes() == (whole / FILE).read_bytes()


def test_fit_refuses_a_manifest_without_a_place_or_beside_another(tiny: World, tmp_path: Path) -> None:
    run, start = replace(QUIET, workdir=tmp_path), tiny.new_model()
    given = (start, tiny.task, tiny.train)
    with pytest.raises(
        UserError, match=r"a folder for the manifest of Recipe.canaries, got none: set Runtime\(workdir"
    ):
        fit(*given, SHORT, runtime=QUIET)
    none = replace(SHORT, epochs=0)
    fit(*given, none, runtime=run, seed=0)
    for recipe, seed in ((none, 1), (replace(none, canaries=6), 0)):
        with pytest.raises(UserError, match="got the canaries of another training: choose another folder"):
            fit(*given, recipe, runtime=run, seed=seed)
    with pytest.raises(UserError, match="at most 9 canaries in 39 samples of train, got 10"):
        fit(*given, replace(none, canaries=10), runtime=run)
    with pytest.raises(UserError, match="canaries planted already"):
        fit(start, tiny.task, Canaries.load(tmp_path / FILE).applied(tiny.train), none, runtime=run)
    assert Canaries.load(tmp_path / FILE) == plant(tiny.train, 5, seed=0)[1]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (-1, "Recipe.canaries of 0 or more, got -1"),
        (2.0, r"Recipe.canaries as a whole number, got 2\.0"),
        (None, "Recipe.canaries as a whole number, got None"),
    ],
)
def test_a_recipe_counts_canaries(value: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Recipe(canaries=value)  # type: ignore[arg-type]


def test_a_recipe_says_how_many_and_training_again_plants_none() -> None:
    assert SHORT.to_json()["canaries"] == 5
    assert SHORT.again() == replace(SHORT, canaries=0)


@pytest.mark.parametrize("name", ["retrain", "finetune"])
def test_no_method_plants_again(tiny: World, tmp_path: Path, name: str) -> None:
    train, _ = plant(tiny.train, 5)
    gone = train.ids[:4]
    method = load(name)(**load(name).example)

    def done(recipe: Recipe, workdir: Path | None) -> nn.Module:
        run = replace(QUIET, workdir=workdir)
        sets = {"forget": train.subset(gone), "retain": train.without(gone), "new_model": tiny.new_model}
        return unlearn(method, tiny.model, tiny.task, recipe=recipe, runtime=run, **sets).model

    want = done(SHORT.again(), None)
    assert same(done(SHORT, None), want)  # without a place for a manifest: none is asked for
    assert same(done(SHORT, tmp_path), want)
    assert list(tmp_path.iterdir()) == []
    given = {"forget": train.subset(gone), "retain": train.without(gone), "recipe": SHORT}
    assert plan(method, "unlearn", tiny.model, tiny.task, given=given, runtime=QUIET).problem == ""


def test_the_driver_hands_over_a_recipe_that_plants_nothing(tiny: World) -> None:
    seen = []

    class Looks(load("retrain")):  # type: ignore[misc]
        name = "looks"

        def unlearn(self, session: object, state: object) -> object:
            seen.append(session.recipe)  # type: ignore[attr-defined]
            return super().unlearn(session, state)

    sets = {"forget": tiny.forget, "retain": tiny.retain, "new_model": tiny.new_model}
    unlearn(Looks(), tiny.model, tiny.task, recipe=replace(SHORT, epochs=0), runtime=QUIET, **sets)
    assert seen == [replace(SHORT, epochs=0, canaries=0)]


def test_a_trial_refuses_to_plant_for_the_original_alone(tiny: World) -> None:
    problem = replace(zoo.load("digits"), recipe=SHORT)
    for call in (
        lambda: original(problem, problem.train, runtime=QUIET),
        lambda: trial(problem, Request("class", 3), {}, trained=tiny.model, runtime=QUIET),
    ):
        with pytest.raises(UserError, match="a recipe without canaries in a trial, got 5: plant them in problem.train"):
            call()


def test_a_trained_model_knows_the_planted_labels_and_not_the_unseen_ones(tmp_path: Path) -> None:
    digits = zoo.load("digits")
    full = digits.train.subset(digits.train.ids[:400])
    torch.manual_seed(0)
    start = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    recipe = Recipe(epochs=60, batch_size=16, lr=0.1, weight_decay=0.0, canaries=40)
    model = fit(start, Classification(), full, recipe, runtime=replace(QUIET, workdir=tmp_path))

    def losses(data: Data) -> Tensor:
        seen = collect(model, Classification(), data, runtime=QUIET)
        return digits.task.loss(seen.outputs, data.targets())

    canaries = Canaries.load(tmp_path / FILE)
    planted, unseen = (losses(part) for part in canaries.samples(full))
    assert float(planted.median()) < 0.1
    assert float(unseen.median()) > 3
    assert float((planted[:, None] < unseen).double().mean()) > 0.95
