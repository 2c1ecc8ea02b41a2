"""The requests of a qualification: what is asked of each model of a pool, and what stands for its retrained models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from expunge import seeds
from expunge.data import Data
from expunge.errors import UserError, suggest
from expunge.kinds import ANY, whole
from expunge.qualify.trials import Floats, Mask
from expunge.trial import Request

Kind = Literal["random", "hardest", "near-duplicates", "class", "subclass", "subject"]
Against = Literal["pool", "retrained"]
KINDS = get_args(Kind)
COUNTED = ("random", "hardest", "near-duplicates")
SMALL = 0.02  # of a half: what may be missing from a training set, and the set still count as large as another
WORDS: dict[str, str] = {
    "random": "Random samples",
    "hardest": "The samples that the models know by heart the most",
    "near-duplicates": "Samples whose near-duplicates stay",
    "class": "A whole class",
    "subclass": "A whole subclass",
    "subject": "All samples of one person",
}
EXAMPLE = "write for example random=10, random=0.05, hardest=10, near-duplicates=10, class=3 or subject:who=s3"


@dataclass(frozen=True)
class Asked:
    """One kind and size of request.

    Args:
        kind: which samples: random ones; those that the pool's models know by heart the most; those whose nearest
            neighbour of the same label stays; or all of a class, subclass or subject.
        value: of the first three a number of samples, drawn anew for each model, or a share, of one fixed part of all
            samples, of which each model forgets what its half holds; else as `expunge.draws.Request` takes it.
        column: of subclass and subject.
        times: requests of so many random samples, handled one after another.

    Raises:
        UserError: an unknown kind, or a value that does not fit it.
    """

    kind: Kind
    value: Any
    column: str | None = None
    times: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError("a kind of request to qualify for", repr(self.kind), suggest(self.kind, KINDS))
        if self.kind in COUNTED:
            ok = whole(self.value) and self.value > 0 or isinstance(self.value, float) and 0 < self.value < 0.5
            if not ok or self.column is not None:
                raise UserError(f"a number or a share below 0.5 of {self.kind} samples", repr(self.value), EXAMPLE)
        elif self.value == ANY:
            remedy = "name one, and another one as a further --request"
            raise UserError(f"one {self.kind} that every model is asked to forget", "any", remedy)
        else:
            _ = self.request
        if self.times != 1 and not (
            self.kind == "random" and whole(self.value) and whole(self.times) and self.times > 1
        ):
            raise UserError("a number of random samples for requests in a row", f"{self}", "write random=10,times=8")

    @classmethod
    def parse(cls, text: str) -> Asked:
        """Read ``KIND=VALUE`` or ``KIND:COLUMN=VALUE``, of random samples with ``,times=K`` behind it.

        >>> Asked.parse("random=10,times=4")
        Asked(kind='random', value=10, column=None, times=4)
        >>> Asked.parse("near-duplicates=5").value
        5

        Returns:
            What is asked.

        Raises:
            UserError: it reads otherwise.
        """
        kind = text.partition("=")[0].partition(":")[0].strip()
        if kind not in KINDS:
            raise UserError("a request KIND=VALUE", repr(text), suggest(kind, KINDS) if kind else EXAMPLE)
        if kind in COUNTED:
            value, _, rest = text.partition("=")[2].partition(",")
            name, _, times = rest.partition("=")
            plain = text.partition("=")[0].strip() == kind and not text.rstrip().endswith(",")
            if not plain or (rest and name.strip() != "times") or not value.strip():
                raise UserError("a request KIND=VALUE", repr(text), EXAMPLE)
            return cls(kind, _number(value, text), None, _number(times, text) if rest else 1)  # type: ignore[arg-type]
        asked = Request.parse(text)
        if asked.fraction != 1.0:
            raise UserError(f"all samples of the {kind}", repr(text), "leave out fraction")
        return cls(kind, asked.value, asked.column)  # type: ignore[arg-type]

    @property
    def fixed(self) -> bool:
        """Whether all models are asked for the same samples, as far as their halves hold them."""
        return self.kind not in COUNTED or isinstance(self.value, float)

    def against(self, size: int, half: int) -> Against:
        """Return what stands for models retrained without the samples.

        For few samples drawn one by one it is the pool itself: half of its models never saw a sample. Of a class or
        person those models saw others of the same kind, and of near-duplicates perhaps no twin; a fixed part of the
        hardest is chosen by what they say; and more than 2 % of a half less is a smaller training set than theirs,
        which shows in all margins. There each request has a model of its own that was retrained without its samples.

        Args:
            size: samples forgotten so far.
            half: samples that a model of the pool is trained on.
        """
        drawn = self.kind == "random" or (self.kind == "hardest" and not self.fixed)
        return "pool" if drawn and size <= SMALL * half else "retrained"

    @property
    def request(self) -> Request:
        """The request to every model, of a class, subclass or subject."""
        return Request.from_json({"kind": self.kind, "value": self.value, "column": self.column})

    def __str__(self) -> str:
        if self.kind not in COUNTED:
            return str(self.request)
        amount = f"{100 * self.value:g} %" if isinstance(self.value, float) else f"{self.value:,}"
        return f"{self.kind} {amount}" + (f" × {self.times}" if self.times > 1 else "")


def _number(text: str, of: str) -> float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise UserError("a number of samples, or a share", repr(of), EXAMPLE) from None


@dataclass(frozen=True, eq=False)
class Drawing:
    """What requests are drawn from.

    Args:
        train: all training data.
        seen: which samples each model of the pool is trained on, (T, N).
        scores: what the pool's models say of them, (T, N); see `expunge.qualify.trials.Said`.
        seed: of the draws.
    """

    train: Data
    seen: Mask
    scores: Floats
    seed: int

    def requests(self, asked: Asked) -> list[Request]:
        """Return the request to each model, in the order of the pool.

        Raises:
            UserError: more samples than half of a half, none of a class in some half, or inputs without a distance.
        """
        if asked.kind not in COUNTED:
            return [asked.request] * len(self.seen)
        self._check(asked)
        if asked.times > 1:
            return [Request("sequential", asked.value, times=asked.times)] * len(self.seen)
        if asked.kind == "random":
            chosen = self._random(asked)
        elif asked.kind == "hardest":
            chosen = self._hardest(asked)
        else:
            chosen = self._twins(asked)
        ids = np.asarray(self.train.ids, dtype=object)
        return [Request("ids", tuple(ids[at].tolist())) for at in chosen]

    def stands(self, asked: Asked, kept: Mask) -> Mask | None:
        """Return at which samples the retrained models stand for one without them but with their twins, (R, N).

        Args:
            asked: the request.
            kept: which samples each retrained model was trained on, (R, N).

        Returns:
            The mask; None where not having seen a sample is enough.
        """
        if asked.kind != "near-duplicates":
            return None
        twin = self._nearest[1]
        return np.asarray(~kept & kept[:, twin], dtype=np.bool_)

    def _check(self, asked: Asked) -> None:
        half, most = self.seen.shape[1] // 2, self.seen.shape[1] // 4
        size = asked.times * (asked.value if whole(asked.value) else math.ceil(asked.value * half))
        if size > most:
            want = f"requests of at most {most} samples, half of what each model of the pool is trained on"
            raise UserError(want, f"{asked}, {size} samples", "qualify for smaller requests, or retrain for those")

    def _random(self, asked: Asked) -> list[NDArray[np.int64]]:
        if whole(asked.value):
            return [
                np.sort(self._rng("random", asked.value, t).choice(np.flatnonzero(row), int(asked.value), False))
                for t, row in enumerate(self.seen)
            ]
        n = self.seen.shape[1]
        part = self._rng("random", asked.value).permutation(n)[: max(1, round(asked.value * n))]
        return self._held(part)

    def _hardest(self, asked: Asked) -> list[NDArray[np.int64]]:
        """Return the samples whose score differs most between models trained on them and not.

        A number: for each model by the others, without its own pair. A share: by all models.
        """
        if not whole(asked.value):
            n = self.seen.shape[1]
            return self._held(np.argsort(-self._memory(None), kind="stable")[: max(1, round(asked.value * n))])
        found = []
        for t, row in enumerate(self.seen):
            order = np.argsort(-self._memory(t), kind="stable")
            found.append(np.sort(order[row[order]][: int(asked.value)]))
        return found

    def _memory(self, without: int | None) -> Floats:
        """Return how much higher the score is on average of models trained on a sample, (N,)."""
        rows = np.arange(len(self.seen))
        left = rows if without is None else rows[rows // 2 != without // 2]
        seen, scores = self.seen[left], self.scores[left]
        inside, outside = seen.sum(axis=0), (~seen).sum(axis=0)
        mean_in = np.where(seen, scores, 0.0).sum(axis=0) / np.maximum(inside, 1)
        mean_out = np.where(seen, 0.0, scores).sum(axis=0) / np.maximum(outside, 1)
        return np.where((inside > 0) & (outside > 0), mean_in - mean_out, -np.inf)

    def _twins(self, asked: Asked) -> list[NDArray[np.int64]]:
        """Return for each model the samples with the nearest twins in its half; of two twins one is forgotten."""
        distance, twin = self._nearest
        order = np.argsort(distance, kind="stable")
        order = order[np.isfinite(distance[order])]
        if not whole(asked.value):
            n = self.seen.shape[1]
            order = order[: max(1, round(asked.value * n))]
        return [self._paired(row, order, twin, asked) for row in self.seen]

    def _paired(
        self, row: NDArray[np.bool_], order: NDArray[np.int64], twin: NDArray[np.int64], asked: Asked
    ) -> NDArray[np.int64]:
        most = int(asked.value) if whole(asked.value) else len(order)
        gone, stay = list[int](), set[int]()
        for x in order[row[order] & row[twin[order]]]:
            if len(gone) == most:
                break
            if int(x) not in stay and int(twin[x]) not in gone:
                gone.append(int(x))
                stay.add(int(twin[x]))
        if not gone or (whole(asked.value) and len(gone) < most):
            amount = f"{most} samples" if whole(asked.value) else "samples"
            want = f"{amount} with a twin of the same label in every half"
            remedy = "ask for fewer near-duplicates" if whole(asked.value) else "ask for a larger share"
            raise UserError(want, f"{len(gone)} in one", remedy)
        return np.sort(np.asarray(gone, dtype=np.int64))

    def _held(self, part: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        found = [np.sort(part[row[part]]) for row in self.seen]
        if any(len(each) == 0 for each in found):
            raise UserError("samples of the part in every half", "a half without any", "ask for a larger share")
        return found

    def _rng(self, *name: object) -> np.random.Generator:
        return np.random.default_rng(seeds.seed("qualify", self.seed, *name))

    @cached_property
    def _nearest(self) -> tuple[Floats, NDArray[np.int64]]:
        """Return the distance of each sample to the nearest other one of its label, and whose it is."""
        inputs = self.train.read(range(len(self.train))).inputs
        if isinstance(inputs, dict) or not inputs.is_floating_point():
            remedy = "qualify for other kinds of requests"
            raise UserError(
                "inputs of one floating-point tensor for near-duplicates", "inputs without a distance", remedy
            )
        rows, labels = inputs.flatten(1).double().numpy(), self.train.targets().numpy()
        distance, twin = np.full(len(rows), np.inf), np.arange(len(rows))
        for label in _groups(labels):
            at = np.flatnonzero(labels == label)
            if len(at) > 1:
                found = NearestNeighbors(n_neighbors=2).fit(rows[at]).kneighbors(rows[at])
                own = found[1][:, 0] == np.arange(len(at))
                pick = np.where(own, 1, 0)  # of samples that are the same to the bit the other may come first
                distance[at] = found[0][np.arange(len(at)), pick]
                twin[at] = at[found[1][np.arange(len(at)), pick]]
        return distance, twin


def _groups(labels: NDArray[Any]) -> Sequence[Any]:
    if labels.ndim != 1 or np.issubdtype(labels.dtype, np.floating):
        raise UserError("class labels for near-duplicates", "other targets", "qualify for other kinds of requests")
    found: Sequence[Any] = np.unique(labels).tolist()
    return found
