"""Registries of parts: a folder is one, parts hold parts of other kinds, and what does not fit is refused in words."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from expunge import registry
from expunge.errors import UserError
from expunge.part import Checks
from expunge.registry import Registry


class Fruit(Checks):
    """What the first folder holds."""


class Basket(Checks):
    """What the second one holds; a basket may hold fruit, and a basket."""


FILES = {
    "fruits/apple.py": """
@dataclass(frozen=True, kw_only=True)
class Apple(Fruit):
    weight: float = option(0.1, unit="kg", text="of one")
    ripe: bool = option(True, unit="-", text="whether it is")
    days: tuple[int, ...] = option((), unit="days", text="on which it was picked")

    def __post_init__(self):
        self.positive("weight")


FRUIT = Apple
""",
    "fruits/pear.py": """
@dataclass(frozen=True, kw_only=True)
class Pear(Fruit):
    pass


FRUIT = Pear
""",
    "fruits/_peel.py": "FRUIT = None",
    "fruits/stone.py": "FRUIT = 3",
    "fruits/bare.py": "",
    "baskets/wicker.py": """
@dataclass(frozen=True, kw_only=True)
class Wicker(Basket):
    first: Fruit = option(None, unit="fruit", text="always there")
    second: Fruit | None = option(None, unit="fruit", text="may be there")
    inner: Basket | None = option(None, unit="basket", text="may be there")
    label: str = option("", unit="-", text="what is written on it")


BASKET = Wicker
""",
}
HEAD = "from dataclasses import dataclass\nfrom expunge.part import option\nfrom registry_kinds import Basket, Fruit\n"


@dataclass
class Entry:
    """What importlib.metadata gives for an entry point."""

    name: str
    value: object
    group: ClassVar[str] = "fruits.others"

    def load(self) -> object:
        return self.value


@dataclass(frozen=True, kw_only=True)
class Quince(Fruit):
    """From another package."""

    name: ClassVar[str] = "quince"


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Registry[Any], Registry[Any]]]:
    """Yield the registries of two folders, of fruits and of baskets."""
    for name, text in FILES.items():
        path = tmp_path / "registry_kept" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(HEAD + text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "registry_kinds", sys.modules[__name__])
    monkeypatch.setattr(Registry, "every", dict(Registry.every))
    where = tmp_path / "registry_kept"
    fruit = Registry(
        "registry_kept.fruits", [str(where / "fruits")], Fruit, word="fruit", held="FRUIT", group="fruits.others"
    )
    basket = Registry("registry_kept.baskets", [str(where / "baskets")], Basket, word="basket", held="BASKET")
    yield fruit, basket
    for name in [m for m in sys.modules if m.partition(".")[0] == "registry_kept"]:
        del sys.modules[name]


Folders = tuple[Registry[Any], Registry[Any]]


def test_the_folder_is_the_registry_and_an_underscore_hides(folders: Folders) -> None:
    fruits, baskets = folders
    assert fruits.names() == ["apple", "bare", "pear", "stone"]
    assert baskets.names() == ["wicker"]
    assert fruits.load("apple").name == "apple"
    with pytest.raises(UserError, match="a known fruit, got '_peel'"):
        fruits.load("_peel")


@pytest.mark.parametrize(("name", "kind"), [("stone", "int"), ("bare", "NoneType")])
def test_a_module_that_holds_no_such_class_is_refused(name: str, kind: str, folders: Folders) -> None:
    with pytest.raises(UserError, match=f"a Fruit class as '{name}', got {kind}: set FRUIT to the class in its file"):
        folders[0].load(name)


def test_a_name_that_is_nearly_right_is_suggested(folders: Folders) -> None:
    with pytest.raises(UserError, match="a known fruit, got 'aple'.*apple"):
        folders[0].build({"name": "aple"})


def test_entry_points_are_those_of_the_group_alone(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def found(group: str) -> list[Entry]:
        asked.append(group)
        return [Entry("quince", Quince), Entry("odd", "Quince")] if group == "fruits.others" else []

    monkeypatch.setattr(registry, "entry_points", found)
    fruits, baskets = folders
    assert fruits.names() == ["apple", "bare", "odd", "pear", "quince", "stone"]
    assert fruits.build({"name": "quince"}) == Quince()
    with pytest.raises(UserError, match="a Fruit class as 'odd', got str"):
        fruits.load("odd")
    assert baskets.names() == ["wicker"]
    assert set(asked) == {"fruits.others"}  # none is asked for where there is no group
    asked.clear()
    fruits.load("pear")
    assert asked == []  # nor for what the folder has


def test_a_part_inside_another_comes_from_its_name_its_mapping_or_itself(folders: Folders) -> None:
    fruits, baskets = folders
    apple = fruits.build({"name": "apple"})
    want = baskets.build({"name": "wicker", "first": {"name": "apple"}})
    assert want.first == apple
    assert want.second is None
    assert baskets.build({"name": "wicker", "first": "apple"}) == want
    assert baskets.build({"name": "wicker", "first": apple}) == want
    full = {
        "name": "wicker",
        "first": {"name": "apple", "weight": 0.25},
        "second": "pear",
        "inner": {"name": "wicker", "first": "pear", "second": None},
    }
    made = baskets.build(full)
    assert (made.first.weight, made.second.name) == (0.25, "pear")
    assert made.inner == baskets.build({"name": "wicker", "first": "pear"})
    assert baskets.build(made.settings()) == made
    assert made.settings()["inner"]["first"] == {"name": "pear"}


def test_what_is_built_from_is_left_as_it_was(folders: Folders) -> None:
    config = {"name": "wicker", "first": {"name": "apple", "weight": 0.25}}
    folders[1].build(config)
    assert config == {"name": "wicker", "first": {"name": "apple", "weight": 0.25}}


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"label": "mine"}, "a mapping with the basket's name under 'name', got .*: add one"),
        ({"name": 3}, "a mapping with the basket's name under 'name'"),
        ({"name": "wicker", "lable": "mine"}, "a field of wicker, got 'lable'.*label"),
        ({"name": "wicker", "first": {"name": "pear", "weight": 1}}, "a field of pear, got 'weight': it has none"),
        (
            {"name": "wicker", "first": None},
            r"a fruit as wicker.first, got None: write its name, or \{name = .*expunge f",
        ),
        ({"name": "wicker", "first": {"weight": 1}}, "a fruit as wicker.first, got .*weight"),
        ({"name": "wicker", "second": 5}, "a fruit as wicker.second, got 5"),
        ({"name": "wicker", "second": ["pear"]}, "a fruit as wicker.second, got ..pear"),
        ({"name": "wicker", "second": "plum"}, "a known fruit, got 'plum'"),
        ({"name": "wicker", "second": {"name": "wicker"}}, "a known fruit, got 'wicker'"),
        ({"name": "wicker", "inner": "apple"}, "a known basket, got 'apple'"),
        (
            {"name": "wicker", "first": {"name": "apple", "weight": "much"}},
            "a value that fits apple.weight, got 'much' ",
        ),
        (
            {"name": "wicker", "first": {"name": "apple", "weight": True}},
            "apple.weight, got True .a yes or no is no num",
        ),
        ({"name": "wicker", "first": {"name": "apple", "weight": -1}}, "apple.weight above 0, got -1"),
        (
            {"name": "wicker", "first": {"name": "apple", "days": [1, True]}},
            r"apple.days, got \[1, True\] .a yes or no",
        ),
        ({"name": "wicker", "label": 5}, "a value that fits wicker.label, got 5 .*see expunge baskets wicker"),
    ],
)
def test_what_does_not_fit_is_refused(config: dict[str, Any], text: str, folders: Folders) -> None:
    with pytest.raises(UserError, match=text):
        folders[1].build(config)


def test_an_instance_of_another_kind_is_refused(folders: Folders) -> None:
    fruits, baskets = folders
    basket = baskets.build({"name": "wicker", "first": "pear"})
    with pytest.raises(UserError, match="a fruit as wicker.second, got Wicker"):
        baskets.build({"name": "wicker", "first": "pear", "second": basket})
    with pytest.raises(UserError, match="a fruit as fruit, got Wicker"):
        fruits.given("fruit", basket)


def test_a_value_is_taken_as_its_field_has_it(folders: Folders) -> None:
    made = folders[0].build({"name": "apple", "weight": "0.5", "ripe": False, "days": ["3", 4]})
    assert (made.weight, made.ripe, made.days) == (0.5, False, (3, 4))
    assert isinstance(folders[0].build({"name": "apple", "weight": 2}).weight, float)


@pytest.mark.parametrize(("word", "article"), [("fruit", "a fruit"), ("objective", "an objective")])
def test_a_word_has_its_article(word: str, article: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Registry, "every", {})
    assert Registry("nowhere", [], Fruit, word=word, held="FRUIT").article == article
