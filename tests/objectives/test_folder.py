"""The folder of objectives: names, settings, what each needs and declines, and what it is given in a request."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn

from expunge.errors import UndeclaredNeed, UserError
from expunge.method import Needs, See, Session
from expunge.objectives import Objective, build, load, names
from expunge.registry import Registry
from expunge.task import Classification, Regression
from expunge.tensors import weights_digest
from expunge.train import fresh
from worlds import QUIET, World, world

SEVEN = ["ascent", "bad_teacher", "entropy", "random_label", "scrub", "tau_hinge", "uniform"]
OTHER: dict[str, dict[str, Any]] = {  # settings that are not the defaults
    "ascent": {"cap": 3.5, "capped": False},
    "bad_teacher": {"target": 0.2, "temperature": 2.0, "compat": "official"},
    "entropy": {"target": 0.5},
    "random_label": {"target": 0.0, "exclude_true": False},
    "scrub": {"temperature": 1.5, "cap": 2.0, "capped": False},
    "tau_hinge": {"tau": 1.25, "hinge": "two_sided", "reduction": "sample"},
    "uniform": {"target": 0.75},
}


@pytest.fixture(scope="module")
def trained() -> World:
    return world("class")


def test_the_folder_holds_the_seven() -> None:
    assert names() == SEVEN


@pytest.mark.parametrize("name", names())
def test_each_has_its_files_name_a_formula_and_says_when_it_is_reached(name: str) -> None:
    cls = load(name)
    assert cls.name == cls.__module__.rpartition(".")[2] == name
    text = cls.__doc__ or ""
    assert "U = " in text
    assert "∂U/∂" in text
    assert "Reached " in text
    assert "bound" in text
    for field in fields(cls):
        assert field.metadata["unit"], field.name
        assert field.metadata["text"], field.name


@pytest.mark.parametrize("name", names())
def test_the_name_a_mapping_and_an_instance_build_the_same(name: str) -> None:
    plain = load(name)()
    assert build(name) == build({"name": name}) == build(plain) == plain
    assert set(OTHER[name]) == {f.name for f in fields(load(name))}
    other = build({"name": name, **OTHER[name]})
    assert other != plain
    assert other.settings() == {"name": name, **OTHER[name]}
    assert build(other.settings()) == other
    assert build(plain.settings()) == plain


@pytest.mark.parametrize("name", names())
def test_an_unknown_field_is_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match=f"a field of {name}, got 'colour'"):
        build({"name": name, "colour": 1})


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("entropi", "a known objective, got 'entropi'.*entropy"),
        ({"target": 0.5}, "an objective as objective, got .*target.*expunge objectives"),
        (5, "an objective as objective, got 5"),
        ({"name": "entropy", "target": "much"}, "a value that fits entropy.target, got 'much'"),
        ({"name": "entropy", "target": 1.0}, "entropy.target above 0 and below 1, got 1.0"),
        ({"name": "uniform", "target": 0.0}, "uniform.target above 0 and below 1, got 0.0"),
        ({"name": "random_label", "target": 1.5}, "random_label.target from 0 to 1, got 1.5"),
        ({"name": "random_label", "exclude_true": 2}, "random_label.exclude_true"),
        ({"name": "bad_teacher", "temperature": 0}, "bad_teacher.temperature above 0, got 0"),
        ({"name": "bad_teacher", "compat": "code"}, "bad_teacher.compat"),
        ({"name": "scrub", "cap": -1}, "scrub.cap above 0, got -1"),
        ({"name": "ascent", "cap": 0}, "ascent.cap above 0, got 0"),
        ({"name": "ascent", "capped": "no way"}, "ascent.capped"),
        ({"name": "tau_hinge", "tau": float("inf")}, "tau_hinge.tau above 0, got inf"),
        ({"name": "tau_hinge", "hinge": "three"}, "tau_hinge.hinge"),
        ({"name": "tau_hinge", "reduction": "sum"}, "tau_hinge.reduction"),
    ],
)
def test_what_no_objective_takes_is_refused(config: Any, text: str) -> None:
    with pytest.raises(UserError, match=text):
        build(config)


@pytest.mark.parametrize(
    ("name", "field"), [("scrub", "capped"), ("ascent", "capped"), ("random_label", "exclude_true")]
)
def test_a_class_made_in_python_checks_its_fields_too(name: str, field: str) -> None:
    with pytest.raises(UserError, match=f"{name}.{field} True or False, got 1"):
        load(name)(**{field: 1})


def test_a_task_without_classes_has_two_of_them() -> None:
    assert {name for name in names() if build(name).declines(Classification())} == set()
    why = {name: build(name).declines(Regression()) for name in names()}
    assert why.pop("tau_hinge") is None
    assert (
        why.pop("ascent")
        == "the objective ascent is capped at 2·ln K of K classes, and this task has none: set its cap"
    )
    assert build({"name": "ascent", "cap": 3.0}).declines(Regression()) is None
    assert why == {n: f"the objective {n} is of classes, and this task has none" for n in why}


@pytest.mark.parametrize("name", names())
def test_needs_are_the_forget_set_and_where_it_teaches_the_untrained_network(name: str) -> None:
    needs = build(name).needs
    labelled = name in ("random_label", "ascent", "tau_hinge")
    assert needs.forget == (See.LABELLED if labelled else See.INPUTS)
    assert needs.fresh is (name == "bad_teacher")
    assert needs.required() == ["forget", "fresh"] if needs.fresh else ["forget"]
    assert (needs.retain, needs.train, needs.holdout) == (See.NONE,) * 3


def session(trained: World, needs: Needs, **more: Any) -> Session:
    given = {"forget": trained.forget, "scenario": trained.scenario}
    return Session(
        **{"task": trained.task, "runtime": QUIET, "seed": 0, "method": "compose", "phase": "unlearn", "needs": needs},
        **{"source": trained.model, "given": given, "factory": trained.new_model, **more},
    )


@pytest.mark.parametrize("name", names())
def test_a_request_gives_each_what_it_looks_at_and_no_more(name: str, trained: World) -> None:
    objective = build(name)
    now = session(trained, objective.needs)
    torch.manual_seed(4)
    context = objective.context(now, tau=0.3, accuracy=0.9)
    assert (context.tau, context.accuracy, context.whole_class, context.task) == (0.3, 0.9, True, trained.task)
    assert (context.draws is None) is (name != "random_label")
    assert (context.teacher is None) is (name not in ("bad_teacher", "scrub"))
    if context.draws is not None:
        assert context.draws.shape == (len(trained.forget),)
        torch.manual_seed(4)
        assert torch.equal(context.draws, objective.context(now).draws)
    if context.teacher is not None:
        start = trained.model if name == "scrub" else fresh(trained.model, new_model=trained.new_model, seed=0)
        assert weights_digest(context.teacher) == weights_digest(start)
        modules: list[nn.Module] = [*context.teacher.modules()]
        assert not any(m.training for m in modules)
        assert not any(p.requires_grad for p in context.teacher.parameters())
        said = context.taught(trained.forget.read(range(3)))
        assert said.shape == (3, 3)
        assert not said.requires_grad


@pytest.mark.parametrize("kind", ["random", "no scenario", "undeclared"])
def test_only_a_request_for_a_class_is_one(kind: str, trained: World) -> None:
    objective: Objective = build("entropy")
    now = session(trained, objective.needs)
    assert objective.context(now).whole_class
    if kind == "undeclared":
        other = session(trained, Needs(forget=See.INPUTS))
        with pytest.raises(UndeclaredNeed, match="scenario"):
            _ = other.scenario
    else:
        scenario = world("random").scenario if kind == "random" else None
        other = session(trained, objective.needs, given={"forget": trained.forget, "scenario": scenario})
    assert not objective.context(other).whole_class


def test_objectives_of_other_packages_come_from_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry.every[Objective]
    assert registry.group == "expunge.objectives"
    entropy = load("entropy")

    class Entry:
        name = "mine"

        def load(self) -> object:
            return entropy

    def groups(group: str) -> list[Entry]:
        return [Entry()] if group == "expunge.objectives" else []

    monkeypatch.setattr("expunge.registry.entry_points", groups)
    assert names() == sorted([*SEVEN, "mine"])
    assert build("mine") == entropy()
