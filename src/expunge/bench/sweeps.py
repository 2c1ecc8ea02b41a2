"""Settings along which a grid goes: methods that differ in one number alone, the families they form, their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any

from expunge import methods
from expunge.errors import UserError, suggest
from expunge.files import canonical

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    """Methods of a grid along one setting.

    Args:
        setting: its name, the last part of its path in each method's settings.
        symbol: of the setting in the paper, or its name.
        values: of the setting, by the method's name in the grid; of methods that have it as a number.
        families: name of each such method's family: those that differ in the setting alone.
    """

    setting: str
    symbol: str
    values: Mapping[str, float]
    families: Mapping[str, str]

    def ordered(self) -> dict[str, list[str]]:
        """Return the methods of each family in the order of the setting."""
        found: dict[str, list[str]] = {}
        for method in sorted(self.values, key=lambda m: self.values[m]):
            found.setdefault(self.families[method], []).append(method)
        return {family: found[family] for family in dict.fromkeys(self.families.values())}

    def label(self, method: str) -> str:
        """Return the setting and its value as a legend writes them."""
        return f"{self.symbol} = {self.values[method]:g}"


def flat(settings: Settings, before: str = "") -> dict[str, Any]:
    """Return settings by path, those of parts inside with dots.

    >>> flat({"name": "compose", "anchor": {"name": "none", "lr": 0.1}})
    {'name': 'compose', 'anchor.name': 'none', 'anchor.lr': 0.1}
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        path = f"{before}{key}"
        found |= flat(value, f"{path}.") if isinstance(value, Mapping) and value else {path: value}
    return found


def swept(asked: Mapping[str, Settings]) -> list[str]:
    """Return the names of settings that are numbers and in which alone two methods differ, in alphabetical order.

    Args:
        asked: settings by the method's name in the grid.
    """
    every = [flat(settings) for settings in asked.values()]
    found = set()
    for one, other in combinations(every, 2):
        paths = [p for p in {**one, **other} if (p in one) != (p in other) or canonical(one[p]) != canonical(other[p])]
        if len(paths) == 1 and all(_number(each.get(paths[0])) for each in (one, other)):
            found.add(_leaf(paths[0]))
    return sorted(found)


def sweep(asked: Mapping[str, Settings], setting: str) -> Sweep:
    """Return the methods of a grid along a setting.

    Args:
        asked: settings by the method's name in the grid.
        setting: its name, such as ``lam``, or its path where a method has several of that name, ``anchor.lam``.

    Returns:
        The sweep; methods without that setting, or with something else than a number there, are not in it.

    Raises:
        UserError: no method has it as a number, several settings of one method have the name, or no two methods
            differ in it alone.
    """
    every = {name: flat(settings) for name, settings in asked.items()}
    paths = {name: path for name, found in every.items() if (path := _path(found, setting, name)) is not None}
    if not paths:
        known = {_leaf(path) for found in every.values() for path, value in found.items() if _number(value)}
        raise UserError("a setting of the grid's methods that is a number", repr(setting), suggest(setting, known))
    rest = {name: canonical({k: v for k, v in every[name].items() if k != path}) for name, path in paths.items()}
    if len(set(rest.values())) == len(rest):
        found = swept(asked)
        remedy = f"go along {' or '.join(found)}" if found else "put methods into the grid that do"
        raise UserError(f"methods that differ in {setting} alone", "none", remedy)
    named = _given(rest) or _named({rest[name]: every[name] for name in paths}, paths)
    first, path = next(iter(paths.items()))
    values = {name: float(every[name][path]) for name, path in paths.items()}
    return Sweep(_leaf(setting), _symbol(asked[first], path), values, {name: named[rest[name]] for name in paths})


def _path(found: Mapping[str, Any], setting: str, method: str) -> str | None:
    """Return the path of a setting in one method's, where it is a number."""
    paths = [p for p, value in found.items() if _number(value) and (p == setting or _leaf(p) == setting)]
    if setting in paths or len(paths) < 2:
        return setting if setting in paths else next(iter(paths), None)
    raise UserError(f"one setting {setting} of {method}", f"{len(paths)}", f"choose {' or '.join(paths)}")


def _given(rest: Mapping[str, str]) -> dict[str, str]:
    """Return the name of each family as the grid has it: what its methods' names have before their last comma.

    Args:
        rest: what is the same within a family, by the method's name.

    Returns:
        A name by family; nothing where names of one family begin differently, or those of two alike.
    """
    heads: dict[str, set[str]] = {}
    for name, family in rest.items():
        heads.setdefault(family, set()).add(name.rpartition(",")[0].strip())
    found = {family: next(iter(names)) for family, names in heads.items() if len(names) == 1}
    return found if len(found) == len(heads) == len(set(found.values()) - {""}) else {}


def _named(families: Mapping[str, Mapping[str, Any]], paths: Mapping[str, str]) -> dict[str, str]:
    """Return the name of each family: of its parts what tells it from the others, and no more than that."""
    if len(families) == 1:
        return {family: _whole(found) for family, found in families.items()}
    swept = set(paths.values())
    keys = list(dict.fromkeys(k for found in families.values() for k in found if k not in swept))
    keys.sort(key=lambda k: 0 if k.endswith(".name") else 1 if k == "name" else 2)
    chosen: list[str] = []
    for key in keys:
        if _apart(families, [*chosen, key]) > _apart(families, chosen):
            chosen.append(key)
    for key in list(chosen):
        fewer = [k for k in chosen if k != key]
        if _apart(families, fewer) == _apart(families, chosen):
            chosen = fewer
    parts = {family: ", ".join(_parts(found, chosen)) for family, found in families.items()}
    names = {family: parts[family] or str(found["name"]) for family, found in families.items()}
    if len(set(names.values())) < len(names):  # a method and a part of another one of the same name
        names = {family: ", ".join(filter(None, (str(families[family]["name"]), parts[family]))) for family in families}
    return names


def _apart(families: Mapping[str, Mapping[str, Any]], keys: Sequence[str]) -> int:
    """Return how many families these settings tell apart."""
    return len({_parts(found, keys) for found in families.values()})


def _parts(found: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(part for key in keys for part in _part(key, found))


def _part(key: str, found: Mapping[str, Any]) -> Sequence[str]:
    if key not in found:
        return ()
    return (str(found[key]),) if _leaf(key) == "name" else (f"{_leaf(key)} = {_shown(found[key])}",)


def _whole(found: Mapping[str, Any]) -> str:
    """Return the name of a method with those of the parts inside."""
    inside = [str(value) for key, value in found.items() if key.endswith(".name")]
    return f"{found['name']} ({', '.join(inside)})" if inside else str(found["name"])


def _symbol(settings: Settings, path: str) -> str:
    """Return the symbol that a part declares for its field, or the field's name."""
    part: Any = methods.build(settings)
    *inside, last = path.split(".")
    for name in inside:
        part = getattr(part, name)
    known = {f.name: f.metadata.get("symbol", "") for f in fields(part)}
    return known.get(last) or last


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else canonical(value)
