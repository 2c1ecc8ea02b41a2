"""The record of a qualification: one JSON file, what it covers, and when it no longer holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from expunge import __version__
from expunge.data import Data
from expunge.errors import CorruptArtefact
from expunge.files import digest, read_document, write_document
from expunge.identity import content

KIND, SCHEMA = "expunge.qualification", 1
REST = (
    "It does not exclude that this request came out worse, that single samples of it stand out, or that weights and "
    "hidden layers hold traces which outputs do not show."
)


def data_digest(train: Data) -> str:
    """Return what tells training sets apart: ids, content, labels and weights of every sample; nobody is named."""
    return digest(content(train))


class _Part(BaseModel):
    """What is read of the document; the rest of it is for reports."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Rate(_Part):
    x: float
    low: float | None
    high: float | None


class _Size(_Part):
    n: PositiveInt
    requests: PositiveInt
    bound: float | None
    failed: NonNegativeInt
    rate: _Rate
    blind: bool


class _Row(_Part):
    n: PositiveInt
    longest: NonNegativeInt
    tolerance: float


class _Verdict(_Part):
    value: str


class _Kind(_Part):
    kind: str
    words: str
    target: dict[str, Any] | None = None
    sizes: list[_Size] = Field(min_length=1)
    in_row: _Row | None
    verdict: _Verdict


class _Pool(_Part):
    samples: PositiveInt


class _Record(_Part):
    made: str
    expunge: str
    model: str | None
    data: str
    method: dict[str, Any]
    samples: PositiveInt
    pool: _Pool
    confidence: float
    share: float
    unit: str
    kinds: list[_Kind] = Field(min_length=1)


@dataclass(frozen=True)
class Cited:
    """What a qualification says of one request.

    Args:
        covers: whether a simulated kind and size stands for it.
        text: for an engineer: bound, confidence, rate of failures, verdict; or why nothing covers it.
        officer: for a data-protection officer.
        entry: the simulated size, as in the record; None where nothing covers the request.
    """

    covers: bool
    text: str
    officer: str
    entry: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Qualification:
    """What simulated requests said of a method on a model.

    Args:
        body: as `expunge.qualify.study.qualify` returns it, with ``model``, the digest of the weights that requests
            start from (None for any that the recipe gives), and ``data``, see `data_digest`.
    """

    body: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path) -> Qualification:
        """Read a record.

        Returns:
            The record.

        Raises:
            UserError: no such file.
            CorruptArtefact: it is not JSON, or a part that is cited is missing or of another kind.
            Incompatible: another kind of document, or one of a newer version.
        """
        body = read_document(path, KIND, SCHEMA)
        try:
            _Record.model_validate(body)
        except ValidationError as error:
            at = ".".join(map(str, error.errors()[0]["loc"]))
            raise CorruptArtefact(f"a qualification record in {path}", f"no usable {at}", "write it again") from error
        return cls({k: v for k, v in body.items() if k not in ("kind", "schema")})

    def save(self, path: Path) -> None:
        """Write the record, atomically."""
        write_document(path, KIND, SCHEMA, self.body)

    @property
    def digest(self) -> str:
        """What tells this record from any other."""
        return digest(dict(self.body))

    def expired(self, *, model: str | None, same_data: bool, method: Mapping[str, Any]) -> tuple[str, ...]:
        """Return why the record no longer holds, in words; nothing where it does.

        Args:
            model: digest of the weights that the first edit started from.
            same_data: whether those were trained on the data that was qualified.
            method: settings with its name.
        """
        own, found = self.body, list[str]()
        if own.get("model") is not None and own["model"] != model:
            found.append("the model is another than was qualified, or was trained anew since")
        if not same_data:
            found.append("the training data is not what it was")
        if own["method"].get("name") != method.get("name"):
            found.append(f"the method is {method.get('name')} instead of {own['method'].get('name')}")
        else:
            odd = sorted(k for k in {*own["method"], *method} if own["method"].get(k) != method.get(k))
            found += [f"{k} of the method is {method.get(k)!r} instead of {own['method'].get(k)!r}" for k in odd]
        if _minor(str(own["expunge"])) != _minor(__version__):
            found.append(f"it was made by expunge {own['expunge']}, and this is {__version__}")
        return tuple(found)

    def cited(self, *, kind: str, n: int, in_row: int = 1, target: Any = None) -> Cited:
        """Return what the record says of a request.

        A mean gap over more samples spreads less, so the bound of a size stands for larger requests too, as far as the
        largest that was simulated; never for smaller ones. People and classes were simulated in halves of the data,
        which hold about half of their samples: there the largest counts as what it is in all of the data.

        Args:
            kind: ``random`` for samples named one by one, ``class``, ``subclass`` or ``subject``.
            n: samples.
            in_row: which edit it is on this model since its training, from 1.
            target: of a class; a simulated person stands for others, a class for no other class.
        """
        own = [k for k in self.body["kinds"] if k["kind"] == kind]
        if not own:
            there = ", ".join(sorted({k["kind"] for k in self.body["kinds"]}))
            return uncovered(f"requests of kind {kind} were not simulated ({there} were)")
        if kind == "class":
            own = [k for k in own if str((k.get("target") or {}).get("value")) == str(target)]
            if not own:
                return uncovered("requests for this class were not simulated")
        sizes = sorted(((size, entry) for entry in own for size in entry["sizes"]), key=lambda pair: pair[0]["n"])
        least, most = sizes[0][0]["n"], self._in_all(kind, sizes[-1][0]["n"])
        if n < least:
            return uncovered(f"no simulated request was that small: the smallest had {least:,}, this one {n:,}")
        if n > most:
            return uncovered(f"no simulated request was that large: the largest had {most:,}, this one {n:,}")
        size, entry = [pair for pair in sizes if pair[0]["n"] <= n][-1]
        longest = max(1, int((entry["in_row"] or {}).get("longest") or 0))
        if in_row > longest:
            return uncovered(
                f"it is edit {in_row:,} on this model since its training, and {longest:,} in a row can be claimed"
            )
        return self._covered(entry, size, in_row)

    def _in_all(self, kind: str, n: int) -> int:
        """Return how many samples of all data a simulated size stands for at most; it was rounded."""
        if kind == "random":
            return n
        half: float = self.body["pool"]["samples"] / self.body["samples"]
        return math.ceil((n + 0.5) / half)

    def _covered(self, entry: Mapping[str, Any], size: Mapping[str, Any], in_row: int) -> Cited:
        share, sure, rate = self.body["share"], self.body["confidence"], size["rate"]
        if size["bound"] is None:
            bound = f"{size['requests']} simulated requests are too few for a bound"
        else:
            bound = (
                f"with {sure:.0%} confidence at least {share:.0%} of such requests end within {size['bound']:.3g} "
                f"{self.body['unit']} of retraining, on the mean of their samples"
            )
        verdict = entry["verdict"]["value"]
        low, high = rate["low"] or 0.0, 1.0 if rate["high"] is None else rate["high"]
        words = entry["words"].partition(" (")[0].lower()  # a class is not named: what was asked for stays sealed
        text = (
            f"Qualified by {size['requests']} simulated requests of {size['n']:,} ({words}): {bound}; "
            f"{size['failed']} of them ({rate['x']:.1%}, {sure:.0%} interval {low:.1%} to {high:.1%}) ended farther "
            f"away than every retrained model; verdict on the procedure: {verdict}. "
        )
        if in_row > 1:
            row = entry["in_row"]
            text += (
                f"These are numbers of a first edit, and this is edit {in_row:,} since the training: up to "
                f"{row['longest']:,} in a row of {row['n']:,} each, at most {row['tolerance']:.0%} fail. "
            )
        officer = (
            f"The procedure was tried on {size['requests']} simulated requests like this one; the verdict on it is: "
            f"{verdict}. That is a statement on such requests in general, not a measurement of this one, and does not "
            "exclude that single samples are still known to the model."
        )
        text += REST
        if size["blind"]:
            blind = " Requests of this size are too small to be told from a model on which nothing was done."
            text, officer = text + blind, officer + blind
        return Cited(True, text, officer, dict(size))


def uncovered(why: str) -> Cited:
    """Return that nothing in a record stands for a request, and why."""
    text = f"The qualification does not cover this request: {why}."
    return Cited(False, text, text)


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
