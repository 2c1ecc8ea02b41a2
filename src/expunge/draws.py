"""Who is to be forgotten, as a benchmark asks for it: a request by kind, drawn anew for each seed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, get_args

import numpy as np
from torch import nn

from expunge.data import Data
from expunge.errors import UserError, listing, suggest
from expunge.hardness import memorisation
from expunge.kinds import (
    ANY,
    COLUMN,
    EXAMPLES,
    OPTIONS,
    PLANTED,
    SPANS,
    Kind,
    called,
    checked,
    dates,
    ends,
    read,
    whole,
)
from expunge.noise import Noise
from expunge.poison import Backdoor
from expunge.runtime import Runtime
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
from expunge.seeds import seed as named_seed
from expunge.steps import united
from expunge.zoo import Problem
from expunge.zoo.embedded import mislabelled

NAMED = 2  # ids that stand in the name of a request; the rest are counted


@dataclass(frozen=True)
class Request:
    """Who is to be forgotten in a trial, drawn anew for each seed where chance decides.

    ======================= =========================================================================================
    class                   all training samples of a class, or a ``fraction`` of them
    subclass                the same of a value of a column; the labels are coarser
    subject                 all training samples of one person; of a person drawn for each seed where the value is ``*``
    range                   all training samples whose target, or a column, lies from LOW up to, not including, HIGH
    dates                   all training windows of a series that overlap a stretch of time, LOW and HIGH included
    random                  a number of samples, or a share
    hardest                 the number, or share, of samples that the original knows by heart the most
    mislabelled             a share of the labels is flipped before training; those samples
    poison                  a share of the samples gets a trigger patch and the label ``target`` before training; those
    noised                  a share of the samples gets Gaussian noise before training; those
    single                  a number of requests of one random sample each, handled one after another, measured after
                            the last
    sequential              ``times`` requests of a number, or share, of random samples each; or one request for each of
                            several classes; handled one after another, measured after each
    ids                     the samples with these ids, the same for every seed
    ======================= =========================================================================================

    Args:
        kind: one of these.
        value: class index; value of the column; of ``range`` and ``dates`` the text ``LOW..HIGH``; number of samples
            (int) or share in (0, 1) (float); of ``single`` the number of requests; of ``sequential`` a number, a share,
            or class indices; of ``ids`` the ids.
        column: of subclass and subject; of range, which without one is of targets.
        fraction: share of the class, of each of several, or of the subclass, (0, 1].
        times: number of requests of ``sequential``, unless it lists classes.
        target: class index that the patch of ``poison`` stands for.
        patch: its side in pixels; None takes an eighth of the image's shorter side.
        deviation: of the noise of ``noised``, in the unit of the inputs; None takes that of the inputs themselves.

    Raises:
        UserError: an unknown kind, a value or column that does not fit it, or an option of another kind.
    """

    kind: Kind
    value: Any
    column: str | None = None
    fraction: float = 1.0
    times: int = 1
    target: int = 0
    patch: int | None = None
    deviation: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UserError("a known kind of request", repr(self.kind), suggest(str(self.kind), get_args(Kind)))
        if self.kind != "range" and (self.column is None) == (self.kind in COLUMN):
            remedy = f"write for example {EXAMPLES[self.kind]}"
            got = repr(self.kind) + (" without one" if self.column is None else f" with '{self.column}'")
            raise UserError("a column with subclass and subject, or range, and no other kind", got, remedy)
        for name, kinds in OPTIONS.items():
            if getattr(self, name) != _DEFAULTS[name] and self.kind not in kinds:
                remedy = f"leave it out: it belongs to {listing(kinds)}"
                raise UserError(f"options of {called(self.kind)}", f"{name}={getattr(self, name)}", remedy)
        object.__setattr__(self, "value", checked(self.kind, self.value))
        if not isinstance(self.fraction, Real) or not 0 < self.fraction <= 1:
            raise UserError("a fraction in (0, 1]", repr(self.fraction), "give a share of the samples")
        for name, number, least in (("times", self.times, 1), ("target", self.target, 0), ("patch", self.patch, 1)):
            if number is not None and (not whole(number) or number < least):
                raise UserError(f"{name} of {least} or more", repr(number), "give a whole number")
        if self.deviation is not None:
            object.__setattr__(self, "deviation", Noise(deviation=self.deviation).deviation)
        if self.times != 1 and isinstance(self.value, tuple):
            raise UserError("several classes, or a number of requests", "both", "leave out times")

    @classmethod
    def parse(cls, text: str) -> Request:
        """Read ``KIND=VALUE`` or ``KIND:COLUMN=VALUE``, with ``,OPTION=VALUE`` behind it.

        ``class=3``, ``class=3,fraction=0.5``, ``classes=5+6,fraction=0.4``, ``subclass:fine_name=ship``,
        ``subject:who=s3``, ``subject:who=*``, ``range=0..2``, ``range:age=20..30``, ``dates=2016-08-01..2016-08-31``,
        ``random=0.05``, ``random=100``, ``hardest=100``, ``mislabelled=0.05``, ``poison=0.05,target=0,patch=3``,
        ``noised=0.05,deviation=0.3``, ``single=10``, ``sequential=20,times=5``, ``sequential:class=3+5+7``,
        ``ids=train/3+train/8``.

        Returns:
            The request.

        Raises:
            UserError: it reads otherwise.

        >>> Request.parse("subclass:fine_name=ship").value
        'ship'
        >>> Request.parse("sequential:class=3+5+7").steps
        3
        """
        return cls(**read(text))

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Request:
        """Return the request that `to_json` gave.

        Raises:
            UserError: an unknown key, or a value that does not fit.
        """
        known = [f.name for f in fields(cls)]
        odd = [k for k in body if k not in known]
        if odd:
            raise UserError(f"keys of a request among {listing(known, 10)}", repr(odd[0]), suggest(odd[0], known))
        if "kind" not in body or "value" not in body:
            raise UserError("a request with kind and value", listing(body) or "nothing", "give both")
        return cls(**body)

    def to_json(self) -> dict[str, Any]:
        """Return the request as plain JSON values, options at their default left out."""
        body = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in body.items()}
        return {k: v for k, v in plain.items() if k not in _DEFAULTS or v != _DEFAULTS[k]}

    @property
    def changes_data(self) -> bool:
        """Whether the original is trained on other data than the problem's: wrong labels, patches, noise."""
        return self.kind in PLANTED

    @property
    def needs_original(self) -> bool:
        """Whether the forget set depends on the trained original."""
        return self.kind == "hardest"

    @property
    def steps(self) -> int:
        """Number of requests that are handled one after another; 1 of most kinds."""
        if self.kind in ("single", "classes", "ids"):
            return int(self.value) if self.kind == "single" else 1
        return len(self.value) if isinstance(self.value, tuple) else self.times

    @property
    def measured(self) -> tuple[int, ...]:
        """Numbers of the requests, from 1, after which models are measured."""
        return tuple(range(1, self.steps + 1)) if self.kind == "sequential" else (self.steps,)

    def check_size(self, n: int) -> int:
        """Return how many of n training samples each request asks for; 0 where classes or a column decide it.

        Raises:
            UserError: all of them, or more, in all requests.
        """
        if self.kind == "ids":
            return _count(len(self.value), n, "name fewer ids")
        if self.kind in ("class", *SPANS, *COLUMN) or isinstance(self.value, tuple):
            return 0
        size = 1 if self.kind == "single" else _count(self.value, n)
        if self.steps * size >= n:
            most = f"at most {n - 1} samples to forget in all"
            raise UserError(most, f"{self.steps} × {size}", "ask for fewer requests, or for less each")
        return size

    def training(self, problem: Problem, seed: int) -> Data:
        """Return the data that the original is trained on: with what the request plants in it, if it does.

        Raises:
            UserError: labels or inputs that cannot be changed so.
        """
        return self._changed(problem, seed)[0]

    def draw(
        self, problem: Problem, seed: int, *, original: nn.Module | None = None, runtime: Runtime | None = None
    ) -> tuple[Data, Scenario]:
        """Return the data that the original is trained on, and who is forgotten; of several requests all together.

        Args:
            problem: data, network and recipe.
            seed: of the draw.
            original: trained on `training` with this seed, where the request `needs_original`.
            runtime: device, batch size, progress, for the passes over the original.

        Returns:
            Training data and scenario.

        Raises:
            UserError: nothing in the data matches, more samples than there are, or no original where it is needed.
        """
        train, changed = self._changed(problem, seed)
        rest: dict[str, Any] = {"holdout": problem.holdout, "test": problem.test}
        if self.kind == "class":
            return train, forget_class(train, self.value, fraction=self.fraction, seed=seed, **rest)
        if self.kind == "classes":
            gone = {i for c in self.value for i in forget_class(train, c, fraction=self.fraction, seed=seed).forget}
            case = forget_ids(train, [i for i in train.ids if i in gone], **rest)
            return train, united(case, self.value) if self.fraction == 1 else case
        if self.kind == "subclass":
            rest |= {"column": self.column, "fraction": self.fraction, "seed": seed}
            return train, forget_subclass(train, self.value, **rest)
        if self.kind == "subject":
            who = _anyone(train, str(self.column), seed) if self.value == ANY else self.value
            return train, forget_subject(train, who, column=str(self.column), **rest)
        if self.kind == "range":
            return train, forget_range(train, *ends(self.value), column=self.column, **rest)
        if self.kind == "dates":
            return train, forget_dates(train, *dates(self.value), **rest)
        if self.kind == "random":
            return train, forget_random(train, self.value, seed=seed, **rest)
        if self.kind in ("single", "sequential"):
            parts = self._series(train, seed)
            classes = self.value if isinstance(self.value, tuple) else ()
            return train, united(forget_ids(train, [i for part in parts for i in part], **rest), classes)
        if self.kind == "ids":
            return train, forget_ids(train, self.value, **rest)
        if self.kind == "hardest":
            changed = _hardest(self, problem, train, seed, original, runtime)
        return train, forget_ids(train, changed, **rest)

    def parts(
        self, problem: Problem, seed: int, *, original: nn.Module | None = None, runtime: Runtime | None = None
    ) -> list[tuple[str, ...]]:
        """Return the ids of each request in the order they are handled; one tuple for most kinds.

        Args:
            problem: as in `draw`.
            seed: as in `draw`.
            original: as in `draw`.
            runtime: as in `draw`.

        Returns:
            Ids by request; joined they are the forget set of `draw`.

        Raises:
            UserError: as `draw`.
        """
        if self.kind in ("single", "sequential"):
            return self._series(self.training(problem, seed), seed)
        return [self.draw(problem, seed, original=original, runtime=runtime)[1].forget]

    def backdoor(self, problem: Problem) -> Backdoor | None:
        """Return the trigger patch of a ``poison`` request, None of other kinds.

        Raises:
            UserError: inputs that are no images, or a patch that does not fit on them.
        """
        if self.kind != "poison":
            return None
        return Backdoor.on(problem.train, target=self.target, size=self.patch)

    def triggered(self, problem: Problem) -> Data | None:
        """Return the test samples of other classes with the trigger of a ``poison`` request, None of other kinds.

        Raises:
            UserError: no test data, or inputs that are no images.
        """
        backdoor = self.backdoor(problem)
        if backdoor is None:
            return None
        if problem.test is None:
            raise UserError("test data to try a trigger on", "none", "name test data in the problem")
        return backdoor.triggered(problem.test)

    def _changed(self, problem: Problem, seed: int) -> tuple[Data, list[str]]:
        """Return the training data, and the ids of the samples in it that the request changed."""
        if self.kind == "mislabelled":
            classes = len(problem.classes) or int(problem.train.targets().max()) + 1
            return mislabelled(problem.train, self.value, classes=classes, seed=seed)
        if self.kind == "noised":
            return Noise.on(problem.train, deviation=self.deviation, seed=seed).plant(problem.train, self.value)
        backdoor = self.backdoor(problem)
        return (problem.train, []) if backdoor is None else backdoor.plant(problem.train, self.value, seed=seed)

    def _series(self, train: Data, seed: int) -> list[tuple[str, ...]]:
        """Return the ids of the requests of ``single`` and ``sequential``; more requests begin with the same ones."""
        if isinstance(self.value, tuple):
            return [forget_class(train, label).forget for label in self.value]
        size = self.check_size(len(train))
        ids, order = train.ids, np.random.default_rng(named_seed("request", self.kind, seed)).permutation(len(train))
        rows = (sorted(order[k * size : (k + 1) * size]) for k in range(self.steps))
        return [tuple(ids[i] for i in part) for part in rows]

    def __str__(self) -> str:
        value: Any = self.value
        if self.kind == "ids":
            value = listing(value, NAMED)
        elif isinstance(value, tuple):
            value = ("" if self.kind == "classes" else "classes ") + listing(value, len(value))
        elif isinstance(value, float):
            value = f"{100 * value:g} %"
        part = f"{100 * self.fraction:g} % of " if self.fraction < 1 else ""
        part += f"{self.column} " if self.kind == "range" and self.column else ""
        more = f" × {self.times}" if self.times > 1 else ""
        more += f" to class {self.target}" if self.kind == "poison" else ""
        more += f", patch {self.patch}" if self.patch is not None else ""
        more += f", deviation {self.deviation:g}" if self.deviation is not None else ""
        return f"{self.kind} {part}{'any' if value == ANY else value}{more}"


_DEFAULTS = {f.name: f.default for f in fields(Request) if f.name not in ("kind", "value")}


def _count(amount: float, n: int, remedy: str = "give a number or a share in (0, 1)") -> int:
    """Return how many of n samples an amount is: itself where it is a whole number, else that share."""
    count = int(amount) if whole(amount) else max(1, round(amount * n))
    if not 0 < count < n:
        raise UserError(f"1 to {n - 1} samples to forget", f"{amount}", remedy)
    return count


def _anyone(train: Data, column: str, seed: int) -> Any:
    """Return one value of a column, drawn by the seed, whatever the order of the data."""
    known = {str(v): v for v in train.column(column)}
    names = sorted(known)
    return known[names[np.random.default_rng(named_seed("request", "subject", column, seed)).integers(len(names))]]


def _hardest(
    request: Request, problem: Problem, train: Data, seed: int, original: nn.Module | None, runtime: Runtime | None
) -> list[str]:
    if original is None:
        remedy = "pass original=, trained on request.training(problem, seed)"
        raise UserError("the trained original, to tell the hardest samples", "none", remedy)
    count = _count(request.value, len(train))
    scores = memorisation(problem, train, original, runtime=runtime, seed=seed)
    ids = train.ids
    return [ids[i] for i in sorted(np.argsort(-scores, kind="stable")[:count])]
