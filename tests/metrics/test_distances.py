"""Laws of every distance to retrained, through `evaluate`: a copy is at none, order and batches have no say."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from expunge import zoo
from expunge.data import Data
from expunge.evaluate import evaluate
from expunge.metric import Unavailable, Value
from expunge.metrics import load
from expunge.runtime import Runtime
from expunge.scenario import forget_ids
from expunge.scores import FLOOR, Scores
from expunge.train import fit, fresh
from expunge.zoo.embedded import mislabelled
from worlds import QUIET, World, network, world

FAMILIES = ("activation", "divergence", "flips", "similarity", "tow", "weights", "zrf")


@pytest.fixture(scope="module")
def tiny() -> World:
    return world()


@pytest.fixture(scope="module")
def retrained(tiny: World) -> nn.Module:
    start = fresh(network(), new_model=network, seed=1)
    return fit(start, tiny.task, tiny.train.without(tiny.scenario.forget), tiny.recipe, runtime=QUIET, seed=1)


def scored(
    tiny: World, again: Sequence[nn.Module], runtime: Runtime = QUIET, shuffle: bool = False, **more: nn.Module
) -> Scores:
    def shuffled(data: Data, seed: int) -> Data:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
        return data.subset([data.ids[i] for i in order.tolist()])

    train, test, case = tiny.train, tiny.test, tiny.scenario
    if shuffle:
        train, test = shuffled(train, 0), shuffled(test, 1)
        gone = set(case.forget)
        case = replace(case, train=train.ids, forget=tuple(i for i in train.ids if i in gone))
    models = {"original": tiny.model, "retrained": list(again), **more}
    given = {"train": train, "test": test, "scenario": case, "runtime": runtime, "new_model": network}
    return evaluate(models, tiny.task, metrics=FAMILIES, **given)


def test_a_bit_identical_copy_of_retrained_is_ideal(tiny: World, retrained: nn.Module) -> None:
    scores = scored(tiny, [retrained], copied=copy.deepcopy(retrained))
    for name, number in scores.numbers.items():
        value, reference = scores["copied"][name], scores["retrained"][name]
        assert isinstance(value, Value), name
        if number.target is None:
            assert value == reference, name
        else:
            assert value.x == number.target, name
            assert reference == Unavailable("it is the reference itself"), name
        assert scores.distances["copied"][name] == 0.0, name


def test_the_untouched_original_is_at_a_distance(tiny: World, retrained: nn.Module) -> None:
    scores = scored(tiny, [retrained])
    off = {n for n in scores.numbers if n.endswith("/forget") or n.startswith(("weights", "tow"))}
    assert {n: scores.distances["no_op"][n] for n in off if scores.distances["no_op"][n] < 1e-3} == {}


def test_neither_order_nor_batches_have_a_say(tiny: World, retrained: nn.Module) -> None:
    first = scored(tiny, [retrained])
    others = scored(tiny, [retrained], shuffle=True), scored(tiny, [retrained], replace(QUIET, batch_size=200))
    for other in others:
        for name, value in first["no_op"].items():
            found = other["no_op"][name]
            assert isinstance(value, Value)
            assert isinstance(found, Value)
            assert found.x == pytest.approx(value.x, abs=1e-5), name


def test_the_families_declare_what_they_are() -> None:
    for family in FAMILIES:
        metric = load(family)()
        for name, number in metric.numbers.items():
            assert name.startswith(f"{family}/")
            assert number.range[0] < number.range[1]
            assert number.target is None or number.range[0] <= number.target <= number.range[1]


def test_on_mislabelled_digits_the_original_is_far_and_a_second_retrained_model_near() -> None:
    """Weights alone tell nothing: the second model, of another seed, is farther off than the untouched original."""
    problem = zoo.load("digits")
    train, ids = mislabelled(problem.train, 0.05, classes=10, seed=0)
    case = forget_ids(train, ids)

    def trained(data: Data, seed: int) -> nn.Module:
        start = fresh(problem.new_model(), new_model=problem.new_model, seed=seed)
        return fit(start, problem.task, data, problem.recipe, runtime=QUIET, seed=seed)

    rest = train.without(ids)
    models = {"original": trained(train, 0), "retrained": [trained(rest, 0), trained(rest, 1)]}
    given = {"train": train, "test": problem.test, "scenario": case, "runtime": QUIET}
    scores = evaluate(models, problem.task, metrics=FAMILIES, new_model=problem.new_model, **given)
    told = ("divergence/js/forget", "activation/l2/forget", "similarity/agreement/forget", "zrf/forget")
    for name in (*told, "tow/tow", "tow/average_gap"):
        assert scores.distances["no_op"][name] > 5 * scores.distances[FLOOR][name], name
    assert scores["no_op"]["weights/to_retrained"].x < scores[FLOOR]["weights/to_retrained"].x
