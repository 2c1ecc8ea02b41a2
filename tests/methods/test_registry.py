"""The registry: the folder, and entry points of other packages."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import pytest

from expunge import methods, registry
from expunge.errors import UserError
from expunge.method import Method
from skeletons import ClassOnly


@dataclass
class Entry:
    """What importlib.metadata gives for an entry point."""

    name: str
    value: object
    group: ClassVar[str] = "expunge.methods"

    def load(self) -> object:
        return self.value


def test_methods_of_other_packages_come_from_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [Entry("class_only", ClassOnly), Entry("odd", 3)])
    assert methods.load("class_only") is ClassOnly
    assert methods.build({"name": "class_only"}) == ClassOnly()
    with pytest.raises(UserError, match="a Method class as 'odd', got int: set METHOD"):
        methods.load("odd")


def test_a_folder_member_wins_over_an_entry_point_of_the_same_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [Entry("ssd", ClassOnly)])
    assert methods.load("ssd") is not ClassOnly
    assert methods.names().count("ssd") == 1


@pytest.mark.parametrize("name", methods.names(controls=True))
def test_no_field_of_a_method_hides_a_part_of_the_protocol(name: str) -> None:
    own = {f.name for f in fields(methods.load(name))}
    assert own.isdisjoint(n for n in vars(Method) if not n.startswith("_"))


def test_methods_of_one_paper_cite_it_alike() -> None:
    found = [methods.load(name).reference for name in methods.names(controls=True)]
    assert len(set(found)) < len(found)
    assert len({reference.link for reference in found}) == len(set(found))


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        (["alpha=5", "unseen=skip"], {"alpha": 5, "unseen": "skip"}),
        (["method.name=ssd", "method.alpha=2.5"], {"method": {"name": "ssd", "alpha": 2.5}}),
        (["flag=true", "text=a=b", "none=null"], {"flag": True, "text": "a=b", "none": None}),
    ],
)
def test_settings_are_read_as_json_or_text(settings: list[str], want: dict[str, object]) -> None:
    assert methods.parse(settings) == want


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["alpha"], "settings of the form KEY=VALUE, got 'alpha'"),
        (["=5"], "settings of the form KEY=VALUE"),
        (["alpha=1", "alpha=2"], "each setting once, got alpha twice"),
        (["alpha=1", "alpha.b=2"], "each setting once, got alpha twice"),
    ],
)
def test_broken_settings_are_refused(settings: list[str], text: str) -> None:
    with pytest.raises(UserError, match=text):
        methods.parse(settings)


def test_a_composition_takes_the_name_of_its_method_alone() -> None:
    for outer in ("pruned", "salun"):
        assert methods.build({"name": outer, "method": "ssd"}) == methods.build(
            {"name": outer, "method": {"name": "ssd"}}
        )
    assert methods.build({"name": "salun", "method": None}) == methods.load("salun")()


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            {"name": "s3t", "targets": "query"},
            r"a list for s3t.targets, got .query.: write a list, such as targets=\[\"query\"\]",
        ),
        ({"name": "finetune", "epochs": True}, "a value that fits finetune.epochs, got True"),
        ({"name": "scrub", "gamma": False}, "a value that fits scrub.gamma, got False"),
        ({"name": "ssd", "alpha": True}, "a value that fits ssd.alpha, got True"),
        ({"name": "scrub", "milestones": [True]}, "a value that fits scrub.milestones, got .True."),
        ({"name": "salun", "method": {}}, "a method as salun.method, got {}"),
        ({"name": "salun", "method": {"density": 1}}, "a method as salun.method"),
        ({"name": "salun", "method": 5}, "a method as salun.method, got 5"),
        ({"name": "pruned", "method": None}, "a method as pruned.method, got None"),
    ],
)
def test_values_of_another_kind_are_refused(config: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text):
        methods.build(config)


OPTIMIZED = [n for n in methods.names() if "optimizer" in {f.name for f in fields(methods.load(n))}]


@pytest.mark.parametrize("name", OPTIMIZED)
def test_a_method_that_steps_takes_every_optimiser_there_is(name: str) -> None:
    for optimizer in ("sgd", "adam", "adamw"):
        method = methods.build({"name": name, "optimizer": optimizer})
        assert method == methods.load(name)(optimizer=optimizer)
        assert method.settings()["optimizer"] == optimizer
    with pytest.raises(UserError, match=f"a value that fits {name}.optimizer, got 'lion'"):
        methods.build({"name": name, "optimizer": "lion"})


NUMBERS = ["finetune", "l1_sparse", "bad_teacher", "scrub", "unsir", "jit", "neg_grad_plus", "fisher_forgetting"]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["five", [1], float("nan"), -1, True])
def test_a_field_of_the_wrong_kind_is_refused_by_the_class_itself(name: str, value: object) -> None:
    cls = methods.load(name)
    numbers = [f.name for f in fields(cls) if str(f.type).split(" ")[0] in ("int", "float")]
    assert numbers
    for field in numbers:
        with pytest.raises(UserError, match=rf"{name}\.{field}|Recipe\.{field}"):
            cls(**{field: value})
