"""The record of a qualification: one JSON file, what it covers, and when it no longer holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge import __version__
from expunge.data import Data
from expunge.errors import CorruptArtefact
from expunge.files import digest, read_document, write_document
from expunge.identity import content

KIND, SCHEMA = "expunge.qualification", 1
HEAD = ("method", "data", "kinds", "share", "confidence", "excludes", "expunge", "made", "unit")
SIZE = ("n", "requests", "bound", "failed", "rate", "blind")


def data_digest(train: Data) -> str:
    """Return what tells training sets apart: ids, content, labels and weights of every sample; nobody is named."""
    return digest(content(train))


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
            CorruptArtefact: it is not JSON, or parts of it are missing.
            Incompatible: another kind of document, or one of a newer version.
        """
        body = read_document(path, KIND, SCHEMA)
        kinds = body.get("kinds")
        lacks = [key for key in HEAD if key not in body]
        if not lacks and not (isinstance(kinds, list) and all(_whole(kind) for kind in kinds)):
            lacks = ["kinds"]
        if lacks:
            raise CorruptArtefact(f"a qualification record in {path}", f"none of {lacks[0]}", "write it again")
        return cls({k: v for k, v in body.items() if k not in ("kind", "schema")})

    def save(self, path: Path) -> None:
        """Write the record, atomically."""
        write_document(path, KIND, SCHEMA, self.body)

    @property
    def digest(self) -> str:
        """What tells this record from any other."""
        return digest(dict(self.body))

    def expired(self, *, model: str | None, data: str, method: Mapping[str, Any]) -> tuple[str, ...]:
        """Return why the record no longer holds, in words; nothing where it does.

        Args:
            model: digest of the weights that the first edit started from.
            data: of the training set that those were trained on, see `data_digest`.
            method: settings with its name.
        """
        own, found = self.body, list[str]()
        if own.get("model") is not None and own["model"] != model:
            found.append("the model is another than was qualified, or was trained anew since")
        if own["data"] != data:
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
        largest that was simulated; never for smaller ones.

        Args:
            kind: ``random`` for samples named one by one, ``class``, ``subclass`` or ``subject``.
            n: samples.
            in_row: which request it is on this model since its training, from 1.
            target: of a class; a simulated person stands for others, a class for no other class.
        """
        own = [k for k in self.body["kinds"] if k["kind"] == kind]
        if not own:
            there = ", ".join(sorted({k["kind"] for k in self.body["kinds"]}))
            return _uncovered(f"requests of kind {kind} were not simulated ({there} were)")
        if kind == "class":
            own = [k for k in own if str((k.get("target") or {}).get("value")) == str(target)]
            if not own:
                return _uncovered("requests for this class were not simulated")
        entry = own[0]
        sizes = sorted(entry["sizes"], key=lambda size: size["n"])
        least, most = sizes[0]["n"], sizes[-1]["n"]
        if kind == "random" and n < least:
            return _uncovered(f"no simulated request was that small: the smallest had {least:,}, this one {n:,}")
        if kind == "random" and n > most:
            return _uncovered(f"no simulated request was that large: the largest had {most:,}, this one {n:,}")
        row = entry.get("in_row") or {}
        longest = max(1, int(row.get("longest") or 0))
        if in_row > longest:
            return _uncovered(
                f"it is request {in_row:,} on this model since its training, and {longest:,} in a row can be claimed"
            )
        size = sizes[0] if kind != "random" else [s for s in sizes if s["n"] <= n][-1]
        return self._covered(entry, size)

    def _covered(self, entry: Mapping[str, Any], size: Mapping[str, Any]) -> Cited:
        share, sure, rate = self.body["share"], self.body["confidence"], size["rate"]
        if size["bound"] is None:
            bound = f"{size['requests']} simulated requests are too few for a bound"
        else:
            bound = (
                f"with {sure:.0%} confidence at least {share:.0%} of such requests end within {size['bound']:.3g} "
                f"{self.body['unit']} of retraining, on the mean of their samples"
            )
        verdict = entry["verdict"]["value"]
        high = 1.0 if rate["high"] is None else rate["high"]
        text = (
            f"Qualified by {size['requests']} simulated requests of {size['n']:,} ({entry['words'].lower()}): {bound}; "
            f"{size['failed']} of them ended farther away than every retrained model (at most {high:.0%} of such "
            f"requests, 95% confidence); verdict on the procedure: {verdict}."
        )
        officer = (
            f"The procedure was tried on {size['requests']} simulated requests like this one; the verdict on it is: "
            f"{verdict}. That is a statement on such requests in general, not a measurement of this one."
        )
        if size["blind"]:
            blind = " Requests of this size are too small to be told from a model on which nothing was done."
            text, officer = text + blind, officer + blind
        return Cited(True, text, officer, dict(size))


def _whole(kind: Any) -> bool:
    there = isinstance(kind, Mapping) and {"kind", "words", "sizes", "verdict"} <= kind.keys() and kind["sizes"]
    return bool(there) and all(set(SIZE) <= size.keys() for size in kind["sizes"])


def _uncovered(why: str) -> Cited:
    text = f"The qualification does not cover this request: {why}."
    return Cited(False, text, text)


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
