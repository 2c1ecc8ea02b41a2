"""What a request means for one model: which of its training samples are to be forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expunge import selection, stamp
from expunge.data import Data
from expunge.errors import UserError
from expunge.ledger import Request
from expunge.method import State
from expunge.project import Project
from expunge.scenario import Scenario, forget_class, forget_ids, forget_subject


@dataclass(frozen=True)
class Holding:
    """What is known of the samples that a model holds.

    Args:
        train: the training data at hand.
        trained: of its ids, those that the model was trained on and has not forgotten.
        gone: of its ids, those that are remembered as forgotten.
        missing: samples that the model was trained on, has not forgotten, and that are no longer at hand.
    """

    train: Data
    trained: frozenset[str]
    gone: frozenset[str]
    missing: int

    @property
    def left(self) -> Data:
        """The training data that the model holds; what came in since it was trained is not in it."""
        return self.train.subset([i for i in self.train.ids if i in self.trained])


def holding(train: Data, gone: Sequence[str], state: State) -> Holding:
    """Hold the training data at hand to what a model was prepared on.

    Args:
        train: the training data at hand.
        gone: of its ids, those that are remembered as forgotten.
        state: of the model, which knows by keyed hashes what it was prepared on; one that does not is taken to have
            been prepared on all of it.

    Returns:
        What the model holds.

    Raises:
        UserError: the state knows none of the ids.
    """
    forgotten = frozenset(gone)
    known, stay = stamp.prepared(state, train.ids), stamp.staying(state)
    if known is None or stay is None:
        return Holding(train, frozenset(train.ids) - forgotten, forgotten, 0)
    trained = frozenset(i for i, there in zip(train.ids, known, strict=True) if there) - forgotten
    if not trained and len(train) > len(forgotten):
        got = f"{len(train)} samples under ids that it does not know"
        raise UserError("the training data that the model was prepared on", got, "check [data] train and id")
    return Holding(train, trained, forgotten, stay - len(trained))


@dataclass(frozen=True)
class Target:
    """A request, looked up in the training data of one model.

    Args:
        request: what is asked.
        ids: samples at hand that the model has not forgotten yet.
        past: samples at hand that it has forgotten before.
        new: samples at hand that came in after it was trained: it never learned them, and shall not.
        gone: ids that it was trained on and that are no longer at hand.
        unknown: samples that it was trained on and that are no longer at hand, of which nobody can say whether they
            are the request's.
        fault: why it could not be looked up, or None.
    """

    request: Request
    ids: tuple[str, ...]
    past: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    unknown: int = 0
    fault: UserError | None = None

    @property
    def absent(self) -> bool:
        """Whether the model holds nothing of the request."""
        return not self.ids and not self.gone and not self.unknown and self.fault is None

    @property
    def remembered(self) -> list[str]:
        """Ids that shall not be learned again: those of its samples, and those that it names though none is there."""
        named = self.request.values if self.request.kind == "ids" else ()
        return list(dict.fromkeys((*self.ids, *self.new, *self.gone, *named)))

    @property
    def texts(self) -> set[str]:
        """All texts by which samples are named."""
        return {*self.request.values, *self.ids, *self.past, *self.new, *self.gone}

    @property
    def problem(self) -> UserError | None:
        """Why it cannot be forgotten by an edit, if so."""
        lost = len(self.gone) if self.gone else 0 if self.ids else self.unknown
        if self.fault is not None or not lost:
            return self.fault
        whose = "of the request's samples" if self.gone else "prepared samples, which may be the request's,"
        remedy = "restore them for this one edit, or take the route retrain"
        return UserError("training data with the samples to forget", f"{lost} {whose} that are not there", remedy)


def target(request: Request, place: Project, held: Holding, state: State) -> Target:
    """Look a request up.

    Args:
        request: what is asked.
        place: model and data.
        held: what the model holds.
        state: of the model.

    Returns:
        The samples; or why they cannot be told, as where no column names subjects.
    """
    try:
        found = _matching(request, place, held.train)
    except UserError as error:
        return Target(request, (), fault=error)
    ids = tuple(i for i in found if i in held.trained)
    past = tuple(i for i in found if i in held.gone)
    new = tuple(i for i in found if i not in held.trained and i not in held.gone)
    if request.kind != "ids":
        return Target(request, ids, past, new, unknown=held.missing)
    rest = sorted(set(request.values) - set(found))
    known = stamp.prepared(state, rest)
    lost = () if known is None else tuple(i for i, there in zip(rest, known, strict=True) if there)
    return Target(request, ids, past, new, lost)


def _matching(request: Request, place: Project, train: Data) -> list[str]:
    wanted = set(request.values)
    if request.kind == "ids":
        return [i for i in train.ids if i in wanted]
    if request.kind == "subject":
        values = map(str, train.column(selection.column_of(place, "subject")))
        return [i for i, value in zip(train.ids, values, strict=True) if value in wanted]
    classes = {c for value in request.values if (c := _class(value, place)) is not None}
    labels = train.targets().tolist() if classes else []
    return [i for i, value in zip(train.ids, labels, strict=False) if value in classes]


def _class(value: str, place: Project) -> int | None:
    """Return the index of a class, None where the model has no such class."""
    try:
        return selection.Who(label=value).class_index(place)
    except UserError:
        return None


def classes(targets: Sequence[Target], place: Project) -> frozenset[int]:
    """Return the classes that are to be forgotten as a whole, by index."""
    named = (value for t in targets if t.request.kind == "class" for value in t.request.values)
    return frozenset(label for value in named if (label := _class(value, place)) is not None)


def scenario(targets: Sequence[Target], place: Project, train: Data) -> Scenario:
    """Return what is forgotten of the training data that is left, all requests together.

    One class, or one subject, keeps its kind, which some methods and metrics ask for.

    Args:
        targets: the requests.
        place: model and data.
        train: training data not forgotten before.

    Returns:
        The scenario.
    """
    ids = list(dict.fromkeys(i for t in targets for i in t.ids))
    first = targets[0].request
    if len(targets) == 1 and len(first.values) == 1 and first.kind != "ids":
        value = first.values[0]
        label = _class(value, place) if first.kind == "class" else None
        if label is not None:
            return forget_class(train, label, holdout=place.holdout, test=place.test)
        column = selection.column_of(place, "subject")
        return forget_subject(train, value, column=column, holdout=place.holdout, test=place.test)
    return forget_ids(train, ids, holdout=place.holdout, test=place.test)
