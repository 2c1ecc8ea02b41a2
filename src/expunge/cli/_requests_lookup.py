"""Requests looked up in the training data of every model they may touch, before they are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from expunge.cli._app import Options
from expunge.cli._requests import Place
from expunge.cli._requests_input import Draft
from expunge.errors import UserError, listing

PATTERN = "*?[:"  # in what [data] train names: a pattern or a function, which only the project can look for
REMEDY = "check the spelling; where its samples are not in the data any more, pass --unchecked"


@dataclass
class Found:
    """What a request names, looked up.

    Args:
        matched: ids of samples that are there, by model.
        unknown: values that none of the models' data holds.
    """

    matched: dict[str, list[str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """Samples over all models, one that several learned counted once."""
        return len({i for ids in self.matched.values() for i in ids})


def possible(place: Place) -> bool:
    """Return whether there may be training data to look requests up in; without it, torch need not be loaded."""
    if place.file is None:
        return False
    if place.body.get("requests", {}).get("models"):
        return True
    data = place.body.get("data", {})
    train = data.get("train")
    if data.get("name") is not None or not isinstance(train, str):
        return data.get("name") is not None
    return any(mark in train for mark in PATTERN) or (place.file.parent / train).exists()


def look_up(place: Place, chosen: Options, drafts: Sequence[Draft]) -> tuple[list[Found] | None, list[str]]:
    """Look requests up.

    Args:
        place: whose project file names the models.
        chosen: root options.
        drafts: the requests.

    Returns:
        What was found for each, None where no training data is at hand; and the models whose data is not.

    Raises:
        UserError: the data of all models is at hand, and a value is in none of them.
    """
    if not possible(place):
        return None, []
    from expunge.service import places

    every = places(place.project(chosen))
    here = {name: own for name, own in every.items() if own.train_is_here}
    missing = [name for name in every if name not in here]
    if not here:
        return None, missing
    finders = {name: _Finder(own) for name, own in here.items()}
    found = [_found(draft, finders) for draft in drafts]
    for draft, one in zip(drafts, found, strict=True):
        if one.unknown and not missing:
            expected, got = _unknown(draft, one.unknown, list(every))
            raise UserError(expected, got, REMEDY)
    return found, missing


def _found(draft: Draft, finders: dict[str, _Finder]) -> Found:
    result, known, problems = Found(), set[str](), list[UserError]()
    for name, finder in finders.items():
        try:
            by_value = {value: finder.ids(draft.kind, value) for value in draft.values}
        except UserError as error:  # this model has no column or classes for it
            problems.append(error)
            continue
        result.matched[name] = [i for ids in by_value.values() for i in ids]
        known |= {value for value, ids in by_value.items() if ids}
    if len(problems) == len(finders):
        raise problems[0]
    result.unknown = [value for value in draft.values if value not in known]
    return result


def _unknown(draft: Draft, values: Sequence[str], models: Sequence[str]) -> tuple[str, str]:
    """Return what was expected and what came, for a message."""
    what = {"ids": "ids of the training data", "subject": "a subject of the training data", "class": "a class"}
    where = f" in {draft.where}" if draft.where else ""
    of = f" of {listing(models)}" if len(models) > 1 else ""
    shown = listing(value if value.isprintable() and len(value) <= 60 else f"{value[:60]!r}" for value in values)
    return f"{what[draft.kind]}{of}{where}", f"unknown {shown}"


class _Finder:
    """The samples of one model by what a request may name."""

    def __init__(self, place: Any) -> None:
        self.place, self.train = place, place.train
        self._maps: dict[str, dict[str, list[str]]] = {}

    def ids(self, kind: str, value: str) -> list[str]:
        """Return the ids of the samples that a value names.

        Raises:
            UserError: there is no column of subjects, or the task has no such class.
        """
        makers: dict[str, Callable[[], dict[str, list[str]]]] = {
            "ids": lambda: {i: [i] for i in self.train.ids},
            "subject": self._subjects,
            "class": self._classes,
        }
        if kind not in self._maps:
            self._maps[kind] = makers[kind]()
        key = self._index(value) if kind == "class" else value
        return self._maps[kind].get(key, [])

    def _subjects(self) -> dict[str, list[str]]:
        from expunge.selection import column_of

        return self._grouped(map(str, self.train.column(column_of(self.place, "subject"))))

    def _classes(self) -> dict[str, list[str]]:
        return self._grouped(map(str, self.train.targets().tolist()))

    def _index(self, value: str) -> str:
        from expunge.selection import Who
        from expunge.task import Classes

        if not isinstance(self.place.task, Classes):
            remedy = "name samples by --ids FILE or --id, or a person by --subject"
            raise UserError("a request by class of a model that has classes", f"{value!r:.60}", remedy)
        return str(Who(label=value).class_index(self.place))

    def _grouped(self, keys: Any) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, key in zip(self.train.ids, keys, strict=True):
            found.setdefault(key, []).append(name)
        return found
