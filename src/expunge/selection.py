"""Who is to be forgotten, as a request names them, looked up in the data that is there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.data import Data
from expunge.errors import UserError, listing
from expunge.files import there
from expunge.kinds import BETWEEN, SPANS, dates, ends
from expunge.project import Project
from expunge.scenario import (
    Scenario,
    forget_class,
    forget_dates,
    forget_ids,
    forget_random,
    forget_range,
    forget_subclass,
    forget_subject,
)
from expunge.task import Classes


@dataclass(frozen=True)
class Who:
    """Who is to be forgotten, as options name them; exactly one is given.

    Args:
        ids: text file, one id a line.
        label: a class, by number or name; where targets are numbers a range of them, ``LOW..HIGH``,
            or of the dates of a series, both included.
        subclass: a value of the subclass column.
        subject: a value of the subject column.
        amount: so many samples at random.
        samples: file of the samples themselves.
    """

    ids: Path | None = None
    label: str | None = None
    subclass: str | None = None
    subject: str | None = None
    amount: int | None = None
    samples: str | None = None

    def check(self) -> None:
        """Refuse none, or several.

        Raises:
            UserError: says which were given.
        """
        names = {"ids": "--ids", "label": "--class", "subclass": "--subclass", "subject": "--subject"}
        names |= {"amount": "--random", "samples": "--samples"}
        given = [option for field, option in names.items() if getattr(self, field) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise UserError(f"exactly one of {', '.join(names.values())}", got, "say who is to be forgotten")

    def scenario(self, place: Project, train: Data, seed: int) -> Scenario:
        """Return the scenario on the training data that is left."""
        rest: dict[str, Any] = {"holdout": place.holdout, "test": place.test}
        if self.label is not None and BETWEEN in self.label and not isinstance(place.task, Classes):
            return _span(train, self.label, rest)
        if self.label is not None:
            return forget_class(train, self.class_index(place), **rest)
        if self.amount is not None:
            return forget_random(train, self.amount, seed=seed, **rest)
        if self.subclass is not None:
            return forget_subclass(train, self.subclass, column=column_of(place, "subclass"), **rest)
        if self.subject is not None:
            column = column_of(place, "subject")
            self._check_subject(train, place, column)
            return forget_subject(train, self.subject, column=column, **rest)
        wanted = self.wanted()
        self._check_ids(wanted, train, place)
        return forget_ids(train, wanted, **rest)

    def _check_subject(self, train: Data, place: Project, column: str) -> None:
        """Refuse a subject with no sample left; other subjects are named in no message, for it may be passed on."""
        assert self.subject is not None
        if self.subject in map(str, train.column(column)):
            return
        if self.subject in map(str, place.train.column(column)):
            got = f"samples of {_shown([self.subject])} that are all already forgotten"
            raise UserError("a subject that is still to be forgotten", got, "there is nothing left to request")
        if self.subject in map(str, place.full_train.column(column)):
            got = f"samples of {_shown([self.subject])} that were all kept out of training, as canaries"
            raise UserError("a subject that was trained on", got, "there is nothing to forget")
        remedy = "check its spelling; who else is there is not shown"
        raise UserError(f"a subject of the column {column}", f"unknown {_shown([self.subject])}", remedy)

    def _check_ids(self, wanted: list[str], train: Data, place: Project) -> None:
        """Refuse ids that stand twice, were forgotten before, or are unknown, with a known one that is meant."""
        seen: set[str] = set()
        twice = sorted({i for i in wanted if i in seen or seen.add(i)})  # type: ignore[func-returns-value]
        if twice:
            raise UserError(f"each id once in {self.ids}", f"{_shown(twice)} more than once", "name each sample once")
        left, every = set(train.ids), set(place.train.ids)
        gone = [i for i in wanted if i in every and i not in left]
        if gone:
            raise UserError("ids that are still to be forgotten", f"already forgotten {_shown(gone)}", "leave them out")
        unseen = [] if place.canaries is None else [i for i in wanted if i in place.canaries.unseen]
        if unseen:
            got = f"{_shown(unseen)}, kept out of training as canaries"
            raise UserError("ids of samples that were trained on", got, "leave them out: there is nothing to forget")
        unknown = [i for i in wanted if i not in left]
        if unknown:
            meant = next((other for i in unknown for other in _alike(i) if other in left), None)
            example = f"ids look like {_shown(train.ids[:2])}"
            remedy = (
                f"did you mean '{meant}'"
                if meant is not None
                else f"write them as in the training data, whose {example}"
            )
            raise UserError("ids of the training data", f"unknown {_shown(unknown)}", remedy)

    def wanted(self) -> list[str]:
        """Return the ids of the file.

        Raises:
            UserError: it cannot be read, or holds none.
        """
        assert self.ids is not None
        what, found_there = f"a text file with one id a line at {self.ids}", there(self.ids)
        if found_there != "a file":
            raise UserError(what, found_there or "nothing there", "check the path")
        try:
            text = self.ids.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(what, f"bytes that are no UTF-8 text ({error.reason})", "save it as UTF-8") from error
        except OSError as error:
            raise UserError(what, error.strerror or str(error), "check its permissions") from error
        found = [line.strip() for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
        if not found:
            raise UserError(f"ids in {self.ids}, one a line", "none", "write the ids that are to be forgotten")
        return found

    def class_index(self, place: Project) -> int:
        """Return the class of ``label``, a number or a name.

        Raises:
            UserError: there is no such class, or the task has none.
        """
        assert self.label is not None
        if not isinstance(place.task, Classes):
            remedy = "name --ids, --subclass or --subject, or write --class LOW..HIGH for a range"
            raise UserError("a task with classes for --class", "targets that are numbers", remedy)
        names = list(place.class_names)
        if self.label in names:
            return names.index(self.label)
        try:
            return int(self.label)
        except ValueError as error:
            known = f"a number, or one of {', '.join(names)}" if names else "a number"
            raise UserError(f"a class: {known}", _shown([self.label]), "name one that exists") from error


@dataclass(frozen=True)
class Selection:
    """A request, resolved against the data that is there.

    Args:
        forget: the samples to forget.
        train: the training data not yet forgotten, or None where it is gone.
        scenario: who is forgotten, or None without training data.
        asked: samples asked for.
        matched: of these, samples that are there.
        problem: why the request would be refused, in a dry run.
    """

    forget: Data
    train: Data | None
    scenario: Scenario | None
    asked: int
    matched: int
    problem: str = ""

    def given(self) -> dict[str, Any]:
        """Return the data that `expunge.unlearn.unlearn` is called with, by keyword."""
        if self.train is None or self.scenario is None:
            return {"forget": self.forget}
        retain = self.train.without(self.scenario.forget)
        return {"forget": self.forget, "retain": retain, "scenario": self.scenario}


def resolve(who: Who, place: Project, gone: list[str], seed: int, lenient: bool) -> Selection:
    """Return the request; with ``lenient``, what is wrong with it is told in ``problem`` instead of raised.

    Args:
        who: as the options name them.
        place: model and data.
        gone: ids forgotten before.
        seed: of a random choice.
        lenient: for a dry run.

    Returns:
        The request.

    Raises:
        UserError: unknown or forgotten ids, no training data, nothing that matches.
    """
    if who.samples is not None:
        forget = place.given(who.samples)
        return Selection(forget, None, None, len(forget), len(forget))
    if not place.train_is_here:
        here = place.config.data.train or "anywhere: [data] train is not set"
        remedy = "restore it, or pass the samples to forget with --samples FILE"
        raise UserError("the training data, to look the request up in", f"none at {here}", remedy)
    whole = place.train
    left = set(whole.ids) - set(gone)
    train = whole.without([i for i in whole.ids if i not in left]) if gone else whole
    try:
        scenario = who.scenario(place, train, seed)
    except UserError as error:
        if not lenient:
            raise
        wanted = who.wanted() if who.ids is not None else []
        matched = [i for i in dict.fromkeys(wanted) if i in left]
        return Selection(train.subset(matched), train, None, len(wanted), len(matched), str(error))
    n = len(scenario.forget)
    return Selection(train.subset(scenario.forget), train, scenario, n, n)


def check_share(place: Project, request: Selection, trained: int | None) -> None:
    """Refuse a request larger than the policy allows.

    Args:
        place: model, data and policy.
        request: as resolved.
        trained: training samples not yet forgotten, or None where nobody knows.

    Raises:
        UserError: the share of the training samples is too large.
    """
    most = place.config.policy.largest_share
    if trained is not None and request.asked > most * trained:
        got = f"{request.asked} of {trained} samples"
        remedy = "split the request, or raise largest_share in [policy]"
        raise UserError(f"a request for at most {most:.0%} of the training data", got, remedy)


def _span(train: Data, text: str, rest: dict[str, Any]) -> Scenario:
    """Return the scenario of a range of targets; of dates where the ends are none, or a sample has several targets."""
    several = train.labelled and (targets := train.targets()).numel() != len(targets)
    if several or not all(_number(part) for part in text.split(BETWEEN)):
        return forget_dates(train, *dates(text), **rest)
    return forget_range(train, *ends(text), **rest)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(ids: list[str]) -> str:
    """Return ids for a message: at most five, long ones cut, control characters made visible."""
    plain = [i if i.isprintable() and i else repr(i) for i in ids]
    return listing(i if len(i) <= 60 else f"{i[:57]}..." for i in plain)


def _alike(name: str) -> list[str]:
    """Return other ways to write an id: 1 for 1.0, 7 for 007, without quotes or a comma at its end."""
    bare = name.strip("\"',; ")
    found = [bare, bare.removesuffix(".0")]
    return [*found, *(f.lstrip("0") or "0" for f in found if f.isdigit())]


def column_of(place: Project, kind: str) -> str:
    """Return the column that names subjects or subclasses.

    Args:
        place: the project.
        kind: ``subject`` or ``subclass``.

    Raises:
        UserError: the project names none.
    """
    named = getattr(place.config.data, kind)
    if named is not None:
        return str(named)
    own = {"subject": ("subject",), "subclass": ("fine_name", "superclass")}[kind]
    found = [c for c in own if place.zoo is not None and c in place.train.columns]
    if not found:
        remedy = f"set {kind} = 'column' in [data] of the project file"
        raise UserError(f"a column that names the {kind}", "none", remedy)
    return found[0]


def title(scenario: Scenario, classes: Sequence[str] = ()) -> str:
    """Return a request's name, a class by its own where it has one."""
    target = scenario.target["value"] if isinstance(scenario.target, dict) and "value" in scenario.target else None
    if scenario.kind == "class":
        known = isinstance(scenario.target, int) and scenario.target < len(classes)
        return f"class {classes[scenario.target] if known else scenario.target}"
    if target is not None:
        return f"{scenario.kind} {target}"
    if scenario.kind in SPANS and isinstance(scenario.target, dict):
        low, high = _ends(scenario)
        column = scenario.target.get("column")
        return f"{scenario.kind} {column} {low}{BETWEEN}{high}" if column else f"{scenario.kind} {low}{BETWEEN}{high}"
    return f"{len(scenario.forget)} samples ({scenario.kind})"


def text(scenario: Scenario, classes: Sequence[str] = ()) -> str:
    """Return a sentence on who is forgotten."""
    named = scenario.kind in ("class", "subclass", "subject")
    what = {"random": "samples drawn at random"}.get(scenario.kind, "the samples named")
    what = f"all samples of {title(scenario, classes)}" if named else what
    if scenario.kind in SPANS and isinstance(scenario.target, dict):
        low, high = _ends(scenario)
        of = scenario.target.get("column") or "target"
        spans = {
            "range": f"all samples whose {of} is from {low} up to, not including, {high}",
            "dates": f"every window of the series with a moment from {low} to {high} in it",
        }
        what = spans[scenario.kind]
    return f"Forgotten: {what}, {len(scenario.forget)} of {len(scenario.train)} training samples."


def _ends(scenario: Scenario) -> tuple[str, str]:
    low, high = (scenario.target[end] for end in ("low", "high"))
    return tuple(f"{v:g}" if isinstance(v, float) else str(v) for v in (low, high))  # type: ignore[return-value]


def counts(scenario: Scenario) -> dict[str, int]:
    """Return the sizes of the sets."""
    return {n: len(getattr(scenario, n)) for n in ("train", "forget", "retain", "holdout", "test")}
