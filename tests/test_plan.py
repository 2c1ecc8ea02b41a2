"""Dry runs from Python: passes and sizes as a real run has them, refusals as its own, nothing changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from expunge.errors import UserError
from expunge.methods import load
from expunge.plan import PROBE, plan
from expunge.scenario import forget_class
from expunge.tensors import weights_digest
from expunge.unlearn import prepare
from worlds import QUIET, World, world


@pytest.fixture(scope="module")
def wide() -> World:
    return world("class", 6 * PROBE)


def given(of: World, **more: Any) -> dict[str, Any]:
    return {"forget": of.forget, "retain": of.retain, "recipe": of.recipe, "scenario": of.scenario, **more}


def test_passes_and_sizes_are_those_of_the_whole_run(wide: World) -> None:
    found = plan(load("ssd")(), "prepare", wide.model, wide.task, given={"train": wide.train}, runtime=QUIET)
    assert (found.passes, found.sizes) == ({"train": 1.0}, {"train": 6 * PROBE})
    assert found.probed == 2 * PROBE
    assert found.reads == 6 * PROBE
    assert found.problem == ""
    assert found.seconds is not None
    assert found.seconds > 0


def test_a_training_counts_by_its_epochs_though_the_probe_has_one(wide: World) -> None:
    recipe = replace(wide.recipe, epochs=7)
    values = given(wide, recipe=recipe, new_model=wide.new_model)
    found = plan(load("retrain")(), "unlearn", wide.model, wide.task, given=values, runtime=QUIET)
    assert found.passes == {"retain": 7.0}
    assert found.sizes == {"retain": len(wide.retain)}
    assert found.reads == 7 * len(wide.retain)
    assert found.probed == 2 * PROBE


def test_more_epochs_take_more_time(wide: World) -> None:
    times = []
    for epochs in (1, 4000):
        values = given(wide, recipe=replace(wide.recipe, epochs=epochs), new_model=wide.new_model)
        found = plan(load("retrain")(), "unlearn", wide.model, wide.task, given=values, runtime=QUIET)
        assert found.seconds is not None
        times.append(found.seconds)
    assert times[1] > 4 * times[0]


def test_nothing_is_changed_and_no_random_number_drawn(wide: World) -> None:
    state = prepare(load("ssd")(), wide.model, wide.task, train=wide.train, runtime=QUIET).state
    before, random = weights_digest(wide.model), torch.random.get_rng_state()
    found = plan(load("ssd")(), "unlearn", wide.model, wide.task, given=given(wide, state=state), runtime=QUIET)
    assert found.problem == ""
    assert weights_digest(wide.model) == before
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not wide.model.training


@pytest.mark.parametrize(
    ("name", "without", "text"),
    [
        ("ssd", "", "the state that ssd prepared, got none"),
        ("finetune", "retain", "retain for finetune to unlearn, got none"),
        ("retrain", "retain", "retain for retrain to unlearn, got none"),
    ],
)
def test_what_is_missing_is_told_and_no_time(name: str, without: str, text: str, wide: World) -> None:
    values = {k: v for k, v in given(wide).items() if k != without}
    found = plan(load(name)(), "unlearn", wide.model, wide.task, given=values, runtime=QUIET)
    assert text in found.problem
    assert found.seconds is None


def test_a_network_before_training_that_nobody_can_build_is_told(wide: World) -> None:
    def unsaid() -> nn.Module:
        raise UserError("the network before training", "none", "say it")

    values = {**given(wide), "new_model": unsaid}
    found = plan(load("retrain")(), "unlearn", wide.model, wide.task, given=values, runtime=QUIET)
    assert found.problem == "Expected the network before training, got none: say it."
    assert found.seconds is None


def test_a_fault_beyond_the_probe_is_found_as_the_run_would(wide: World) -> None:
    state = prepare(load("ssd")(), wide.model, wide.task, train=wide.train, runtime=QUIET).state
    gone = forget_class(wide.train, 2)
    other = wide.train.subset(gone.forget)
    odd = replace(other, source=type(other.source)(other.source.x.clone(), other.source.y, None))
    odd.source.x[other.positions[-1]] += 1
    values = {"forget": odd, "retain": wide.train.without(gone.forget), "scenario": gone, "state": state}
    found = plan(load("ssd")(), "unlearn", wide.model, wide.task, given=values, runtime=QUIET)
    assert f"other content under {other.ids[-1]}" in found.problem


def test_few_samples_are_probed_whole() -> None:
    tiny = world("class", 30)
    found = plan(load("ssd")(), "prepare", tiny.model, tiny.task, given={"train": tiny.train}, runtime=QUIET)
    assert found.probed == 30
    assert found.seconds is not None


def test_a_model_that_cannot_be_used_is_refused(wide: World) -> None:
    found = plan(load("ssd")(), "prepare", nn.Identity(), wide.task, given={"train": wide.train}, runtime=QUIET)
    assert "a model with trainable parameters, got none" in found.problem
