"""When a forget set counts as forgotten, when there is nothing to forget, and how both are told."""

from __future__ import annotations

import math
from typing import Any

import pytest

from expunge.objectives import Context, Level, build, names
from expunge.task import Classification, Regression

LN3 = math.log(3)


def level(classes: int = 3, **more: Any) -> Level:
    return Level(**{"value": 0.0, "loss": 0.0, "entropy": 0.0, "accuracy": 1.0, "classes": classes, **more})


def about(**more: Any) -> Context:
    return Context(**{"task": Classification(), **more})


RULES = [  # settings, context, what is measured, its value at which it is reached, and a step of it towards that
    ({"name": "entropy"}, {}, "entropy", 0.9 * LN3, 1e-6),
    ({"name": "entropy", "target": 0.5}, {}, "entropy", 0.5 * LN3, 1e-6),
    ({"name": "uniform"}, {}, "entropy", 0.9 * LN3, 1e-6),
    ({"name": "uniform", "target": 0.2}, {"whole_class": True}, "entropy", 0.2 * LN3, 1e-6),
    *(
        ({"name": name, **settings}, context, "accuracy", most, -1e-6)
        for name in ("random_label", "bad_teacher")
        for settings, context, most in (
            ({}, {}, 1 / 3),
            ({}, {"accuracy": 0.8}, 0.8),
            ({}, {"accuracy": 0.8, "whole_class": True}, 0.01),
            ({}, {"whole_class": True}, 0.01),
            ({"target": 0.25}, {"accuracy": 0.8}, 0.25),
            ({"target": 0.25}, {"whole_class": True}, 0.25),
        )
    ),
    ({"name": "scrub", "temperature": 1.0}, {}, "value", -2 * LN3, -1e-6),
    ({"name": "scrub"}, {}, "value", -16 * 2 * LN3, -1e-6),
    ({"name": "scrub", "cap": 0.5, "temperature": 2.0}, {}, "value", -4 * 0.5, -1e-6),
    ({"name": "ascent"}, {}, "value", -2 * LN3, -1e-6),
    ({"name": "ascent", "cap": 1.5}, {}, "value", -1.5, -1e-6),
    ({"name": "ascent", "cap": 1.5, "capped": False}, {}, "value", -1.5, -1e-6),
    ({"name": "tau_hinge"}, {"tau": 0.4}, "loss", 0.4, 1e-6),
    ({"name": "tau_hinge"}, {"tau": 0.4, "whole_class": True}, "loss", LN3, 1e-6),
    ({"name": "tau_hinge"}, {"tau": 1.4, "whole_class": True}, "loss", 1.4, 1e-6),
    ({"name": "tau_hinge", "tau": 0.3}, {"tau": 0.4, "whole_class": True}, "loss", 0.3, 1e-6),
]


@pytest.mark.parametrize(("settings", "context", "field", "at", "step"), RULES)
def test_the_forget_set_is_forgotten_from_a_value_on(
    settings: dict[str, Any], context: dict[str, Any], field: str, at: float, step: float
) -> None:
    objective = build(settings)
    assert not objective.reached(level(**{field: at - step}), about(**context))
    assert objective.reached(level(**{field: at + step}), about(**context))
    if settings["name"] not in ("entropy", "uniform"):  # theirs is a product, which rounds
        assert objective.reached(level(**{field: at}), about(**context))


def test_every_objective_has_a_rule_here() -> None:
    assert {settings["name"] for settings, *_ in RULES} == set(names())


@pytest.mark.parametrize(("settings", "context", "field", "at", "step"), RULES)
def test_a_model_that_comes_with_it_forgotten_has_nothing_to_forget(
    settings: dict[str, Any], context: dict[str, Any], field: str, at: float, step: float
) -> None:
    objective = build(settings)
    assert objective.idle(level(**{field: at + step}), about(**context))
    far = {"entropy": 0.0, "accuracy": 1.0, "value": 0.0, "loss": 0.0}
    assert not objective.idle(level(**{field: far[field]}), about(**context))


def test_the_hinge_has_nothing_to_do_where_tau_is_hardly_above_the_forget_loss() -> None:
    objective = build("tau_hinge")
    for loss, idle in ((1.0, True), (1.0 / 1.05 + 1e-9, True), (1.0 / 1.05 - 1e-9, False)):
        assert objective.idle(level(loss=loss), about(tau=1.0)) is idle
    assert not objective.reached(level(loss=0.99), about(tau=1.0))


def test_without_classes_the_hinge_ends_at_tau_and_ascent_at_its_cap() -> None:
    context = about(task=Regression(), tau=40.0, whole_class=True)
    bare = {"entropy": None, "accuracy": None, "classes": 0}
    assert build("tau_hinge").reached(level(**bare, loss=40.0), context)
    assert not build("tau_hinge").reached(level(**bare, loss=39.0), context)
    assert build({"name": "ascent", "cap": 7.0}).reached(level(**bare, value=-7.0), context)
    assert not build({"name": "ascent", "cap": 7.0}).reached(level(**bare, value=-6.9), context)


@pytest.mark.parametrize(
    ("settings", "context", "measured", "text"),
    [
        (
            "entropy",
            {},
            {"entropy": 0.5},
            "the mean entropy of the forget set's predictions is 0.5 nats (0.989 or more)",
        ),
        ("uniform", {}, {"entropy": 1.0}, "the mean entropy of the forget set's predictions is 1 nats (0.989 or more)"),
        ("random_label", {"accuracy": 0.8}, {}, "100.0% of the forget set are told right (at most 80.0%)"),
        (
            "bad_teacher",
            {"whole_class": True},
            {"accuracy": 0.5},
            "50.0% of the forget set are told right (at most 1.0%)",
        ),
        ("scrub", {}, {"value": -8.0}, "the mean divergence of the forget set is 0.5 (2.2 or more)"),
        ({"name": "ascent", "cap": 3.0}, {}, {"value": -1.25}, "the mean loss of the forget set is 1.25 (3 or more)"),
        ("tau_hinge", {"tau": 0.4}, {"loss": 0.1}, "the mean loss of the forget set is 0.1 (0.4 or more)"),
    ],
)
def test_what_is_met_is_told_beside_what_is_asked_for(
    settings: Any, context: dict[str, Any], measured: dict[str, Any], text: str
) -> None:
    assert build(settings).met(level(**measured), about(**context)) == text
