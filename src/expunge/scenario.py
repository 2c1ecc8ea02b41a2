"""Who is to be forgotten: sample ids only, no data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime, time
from typing import Any, Literal, get_args

import numpy as np

from expunge.data import Data, id_texts
from expunge.errors import UserError, listing, suggest
from expunge.files import digest
from expunge.seeds import seed as named_seed

Kind = Literal["class", "subclass", "random", "ids", "subject", "range", "dates"]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A split of sample ids into what is forgotten and what stays.

    Args:
        train: ids the original model was trained on, forget included.
        forget: ids to forget, a part of train.
        holdout: ids kept for validation, outside train.
        test: ids for measuring only, outside train and holdout.
        kind: how the forget set was chosen.
        target: class label, subject, range, dates or other plain value the kind refers to, or None.

    Raises:
        UserError: forget empty, everything, or not in train; ids twice; splits that overlap.
    """

    train: tuple[str, ...]
    forget: tuple[str, ...]
    holdout: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    kind: Kind = "ids"
    target: Any = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UserError("a known kind of scenario", repr(self.kind), suggest(str(self.kind), get_args(Kind)))
        for name in ("train", "forget", "holdout", "test"):
            ids = getattr(self, name)
            if len(set(ids)) != len(ids):
                raise UserError(f"unique ids in {name}", "an id more than once", "name each sample once")
        if not self.forget:
            raise UserError("at least one sample to forget", "an empty forget set", "name ids that are in the data")
        train = set(self.train)
        stray = [i for i in self.forget if i not in train]
        if stray:
            raise UserError("forget ids that are in train", f"unknown {listing(stray)}", "take ids from train.ids")
        if len(self.forget) == len(self.train):
            remedy = "keep some, or train a new model without them"
            raise UserError("something to retain", f"all {len(train)} training samples to forget", remedy)
        for name in ("holdout", "test"):
            both = [i for i in getattr(self, name) if i in train]
            if both:
                raise UserError(f"{name} ids outside train", f"{listing(both)} in both", "give splits other names")
        both = sorted(set(self.holdout) & set(self.test))
        if both:
            raise UserError("test ids outside holdout", f"{listing(both)} in both", "give splits other names")

    @property
    def retain(self) -> tuple[str, ...]:
        """Ids that stay: train without forget."""
        gone = set(self.forget)
        return tuple(i for i in self.train if i not in gone)

    @property
    def asked(self) -> Asked:
        """Kind, target and sizes."""
        sizes = {name: len(getattr(self, name)) for name in ("train", "forget", "retain", "holdout", "test")}
        return Asked(self.kind, self.target, sizes)

    def digest(self) -> str:
        """Return the SHA-256 of the ids, kind and target."""
        return digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the scenario as plain JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["target"] = copy.deepcopy(self.target)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Scenario:
        """Return the scenario that `to_json` gave."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) and k != "target" else v for k, v in body.items()}
        return cls(**values)


@dataclass(frozen=True)
class Asked:
    """What a reader wants to know of a scenario: its kind and sizes, without the ids.

    Args:
        kind: how the forget set was chosen.
        target: class label, subject, range or other plain value.
        counts: samples by set: train, forget, retain, holdout, test.
    """

    kind: str
    target: Any
    counts: Mapping[str, int]


def _build(
    data: Data, forget: Iterable[str], holdout: Data | None, test: Data | None, kind: Kind, target: Any
) -> Scenario:
    return Scenario(
        train=tuple(data.ids),
        forget=tuple(forget),
        holdout=tuple(holdout.ids) if holdout is not None else (),
        test=tuple(test.ids) if test is not None else (),
        kind=kind,
        target=target,
    )


def _part(ids: Sequence[str], fraction: float, seed: int, *names: object) -> list[str]:
    """Return a seeded share of the ids, at least one, in the data's order."""
    if not 0 < fraction <= 1:
        raise UserError("a fraction in (0, 1]", f"{fraction}", "give a share of the samples")
    if fraction == 1:
        return list(ids)
    count = max(1, round(fraction * len(ids)))
    chosen = np.random.default_rng(named_seed("scenario", seed, *names)).choice(len(ids), count, replace=False)
    return [ids[i] for i in sorted(chosen)]


def _matching(data: Data, values: Any, wanted: Callable[[Any], bool], what: str, known: Iterable[Any]) -> list[str]:
    ids = [i for i, v in zip(data.ids, values, strict=True) if wanted(v)]
    if not ids:
        there = listing(sorted({str(k) for k in known}), 20)
        raise UserError(f"{what} in {data.name}", "no sample that matches", f"choose among {there}")
    return ids


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def forget_class(
    data: Data,
    label: int,
    *,
    holdout: Data | None = None,
    test: Data | None = None,
    fraction: float = 1.0,
    seed: int = 0,
) -> Scenario:
    """Forget one class, or a random share of it.

    Args:
        data: the training data, labelled.
        label: the class index.
        holdout: validation data, for its ids.
        test: test data, for its ids.
        fraction: share of the class, (0, 1].
        seed: of the draw when fraction is below 1.

    Returns:
        The scenario, kind ``class``, target the label.

    Raises:
        UserError: real targets, several labels a sample, or no sample of the class.
    """
    targets = data.targets()
    real = targets.is_floating_point() and not bool(((targets == 0) | (targets == 1)).all())
    if real or targets.numel() != len(targets):
        got = f"{'real targets' if real else 'several labels a sample'}, of shape {tuple(targets.shape)}"
        raise UserError(f"class labels in {data.name}, to forget a class", got, "use forget_range, or name ids")
    labels = targets.reshape(-1).tolist()
    ids = _matching(data, labels, lambda v: v == label, f"a sample of class {label}", labels)
    return _build(data, _part(ids, fraction, seed, "class", _plain(label)), holdout, test, "class", _plain(label))


def forget_subclass(
    data: Data,
    label: Any,
    *,
    column: str,
    holdout: Data | None = None,
    test: Data | None = None,
    fraction: float = 1.0,
    seed: int = 0,
) -> Scenario:
    """Forget one fine class of a model trained on coarse ones.

    Args:
        data: the training data; its targets are the coarse classes.
        label: value of the fine class.
        column: the column that holds the fine class.
        holdout: validation data, for its ids.
        test: test data, for its ids.
        fraction: share of the fine class, (0, 1].
        seed: of the draw when fraction is below 1.

    Returns:
        The scenario, kind ``subclass``, target ``{"column": column, "value": label}``.
    """
    ids = _equal(data, column, label)
    target = {"column": column, "value": _plain(label)}
    return _build(data, _part(ids, fraction, seed, "subclass", _plain(label)), holdout, test, "subclass", target)


def forget_random(
    data: Data, amount: float, *, holdout: Data | None = None, test: Data | None = None, seed: int = 0
) -> Scenario:
    """Forget a random part.

    Args:
        data: the training data.
        amount: an int is a number of samples, a float in (0, 1) a share.
        holdout: validation data, for its ids.
        test: test data, for its ids.
        seed: of the draw.

    Returns:
        The scenario, kind ``random``, target the number of samples.

    Raises:
        UserError: a number of samples that the data does not have.
    """
    ids = data.ids
    amount = _plain(amount)
    count = amount if isinstance(amount, int) else 0
    if isinstance(amount, float) and 0 < amount <= 1:
        count = max(1, round(amount * len(ids)))
    if not 0 < count < len(ids):
        raise UserError(f"1 to {len(ids) - 1} samples to forget", f"{amount}", "give a number or a share in (0, 1)")
    chosen = np.random.default_rng(named_seed("scenario", seed, "random")).choice(len(ids), count, replace=False)
    return _build(data, [ids[i] for i in sorted(chosen)], holdout, test, "random", int(count))


def forget_ids(data: Data, ids: Iterable[object], *, holdout: Data | None = None, test: Data | None = None) -> Scenario:
    """Forget the samples with these ids.

    Args:
        data: the training data.
        ids: ids of samples in it.
        holdout: validation data, for its ids.
        test: test data, for its ids.

    Returns:
        The scenario, kind ``ids``.
    """
    return _build(data, id_texts(ids), holdout, test, "ids", None)


def forget_subject(
    data: Data, subject: Any, *, column: str, holdout: Data | None = None, test: Data | None = None
) -> Scenario:
    """Forget every sample of one data subject.

    Args:
        data: the training data.
        subject: value that names the subject.
        column: the column that holds subjects.
        holdout: validation data, for its ids.
        test: test data, for its ids.

    Returns:
        The scenario, kind ``subject``, target ``{"column": column, "value": subject}``.
    """
    target = {"column": column, "value": _plain(subject)}
    return _build(data, _equal(data, column, subject), holdout, test, "subject", target)


def forget_range(
    data: Data,
    low: Any,
    high: Any,
    *,
    column: str | None = None,
    holdout: Data | None = None,
    test: Data | None = None,
) -> Scenario:
    """Forget samples whose target, or column, lies in [low, high): the lower end is forgotten, the upper one stays.

    Args:
        data: the training data.
        low: lower end, included.
        high: upper end, excluded; write a little more than the largest value to forget.
        column: a column with ordered values; None takes the target, one number a sample.
        holdout: validation data, for its ids.
        test: test data, for its ids.

    Returns:
        The scenario, kind ``range``, target ``{"column": column, "low": low, "high": high}``.

    Raises:
        UserError: several targets a sample, values that have no order, ends the wrong way round, or a range that holds
            no sample; the message tells the range there is.
    """
    low, high = _plain(low), _plain(high)
    if column is None:
        targets = data.targets()
        if targets.numel() != len(targets):
            got = f"targets of shape {tuple(targets.shape)}"
            raise UserError("one target a sample", got, "name a column to take the range from")
        values: Any = targets.reshape(-1).tolist()
    else:
        values = data.column(column)
    where = "targets" if column is None else f"column '{column}'"
    try:
        bad = [i for i, v in zip(data.ids, values, strict=True) if v != v]
        ids = [i for i, v in zip(data.ids, values, strict=True) if low <= v < high]
        ends, forward = (min(values), max(values)), low < high
    except TypeError as error:
        remedy = "give ends of the type that the values have, and a value to every sample"
        raise UserError(f"ends that can be compared with the {where} of {data.name}", str(error), remedy) from error
    if bad:
        raise UserError(f"a value in every sample of {data.name}", f"NaN in {listing(bad)}", "repair or drop those")
    if not ids:
        there = f"the {where} of {data.name} go from {ends[0]} to {ends[1]}"
        got = "no sample in it" if forward else "an upper end that is not above the lower one"
        raise UserError(f"a range [{low}, {high}) with samples", got, f"choose one that holds some: {there}")
    target = {"column": column, "low": low, "high": high}
    return _build(data, ids, holdout, test, "range", target)


def forget_dates(
    data: Data,
    low: str | date | datetime,
    high: str | date | datetime,
    *,
    start: str = "start",
    end: str = "end",
    holdout: Data | None = None,
    test: Data | None = None,
) -> Scenario:
    """Forget a stretch of time: every window of a series that overlaps [low, high], both ends included.

    A window from s to e holds some of what is to be forgotten if s ≤ high and e ≥ low, in its inputs or its targets.
    All such windows are forgotten, so none stays in retain, and a model retrained on retain has seen no hour of the
    stretch. Windows beside it may share other hours with forgotten ones; those hours are not to be forgotten.

    Args:
        data: the training data, windows of a series.
        low: first date or time, ISO text or a ``datetime``; a date alone begins at midnight.
        high: last date or time; a date alone is the whole day.
        start: column with the time of a window's first step.
        end: column with the time of its last step, targets included.
        holdout: validation data, for its ids.
        test: test data, for its ids.

    Returns:
        The scenario, kind ``dates``, target ``{"start": start, "end": end, "low": low, "high": high}``, times as text.

    Raises:
        UserError: no such column, something that is no date, a window that ends before it begins, ends the wrong way
            round, or no window that overlaps; the message tells the dates there are.

    >>> import torch
    >>> times = {"start": ["2024-01-01", "2024-01-02", "2024-01-04"], "end": ["2024-01-02", "2024-01-03", "2024-01-05"]}
    >>> series = Data.from_arrays(torch.zeros(3, 1), columns=times)
    >>> forget_dates(series, "2024-01-02", "2024-01-02").retain
    ('train/2',)
    """
    first, last = moment(low, "low", at=time.min), moment(high, "high", at=time.max)
    starts = [moment(v, start, at=time.min) for v in data.column(start)]
    ends = [moment(v, end, at=time.max) for v in data.column(end)]
    try:
        reversed_ = [i for i, a, b in zip(data.ids, starts, ends, strict=True) if b < a]
        ids = [i for i, a, b in zip(data.ids, starts, ends, strict=True) if a <= last and b >= first]
        forward = first <= last
    except TypeError as error:
        raise UserError("dates all with a time zone, or none", str(error), "write them alike") from error
    if reversed_:
        got = f"{listing(reversed_)}, where '{end}' is before '{start}'"
        raise UserError(f"windows of {data.name} that begin before they end", got, "name the columns the other way")
    if not ids or not forward:
        there = f"those of {data.name} go from {min(starts)} to {max(ends).replace(microsecond=0)}"
        got = "none" if forward else "an end before the beginning"
        raise UserError(f"windows that overlap {low} to {high}", got, f"choose other dates: {there}")
    target = {"start": start, "end": end, "low": str(_plain(low)), "high": str(_plain(high))}
    return _build(data, ids, holdout, test, "dates", target)


def moment(value: Any, what: str, *, at: time) -> datetime:
    """Return a date or time as a moment; a date alone stands for that time of the day.

    Args:
        value: ISO text, or a ``date`` or ``datetime``.
        what: it is found in, for the message.
        at: the time of a day that is named alone.

    Raises:
        UserError: it is no date.
    """
    value = _plain(value)
    try:
        if isinstance(value, str):
            value = (
                date.fromisoformat(value) if len(value.strip()) <= len("2024-01-01") else datetime.fromisoformat(value)
            )
        if isinstance(value, date):
            return value if isinstance(value, datetime) else datetime.combine(value, at)
    except ValueError:
        pass
    raise UserError(f"a date or time in '{what}'", repr(value), "write it as 2024-01-31, or 2024-01-31 18:00")


def _equal(data: Data, column: str, value: Any) -> list[str]:
    values = data.column(column)
    return _matching(data, values, lambda v: v == value or str(v) == str(value), f"'{value}' in {column}", values)
