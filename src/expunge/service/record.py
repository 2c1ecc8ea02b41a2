"""The record of one request: what its events say, the methods with their papers, and what all of it does not show."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from expunge import __version__, metrics
from expunge.bounds import Bound
from expunge.errors import UserError
from expunge.files import canonical, jsonable
from expunge.ledger import Event, Head, Ledger, pack
from expunge.ledger.account import account
from expunge.methods import build, load
from expunge.report import requestpage
from expunge.service import capacity, limits

KIND, SCHEMA = "expunge.request", 1
DESTROYS = ("purged", "erased")


def record_of(ledger: Ledger, request: str, *, qualification: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the record of a request as JSON values; what its events do not say is None.

    Args:
        ledger: it was received in.
        request: its id.
        qualification: the last qualification of the method on the model, with a sentence under ``text``; None where
            there is none.

    Returns:
        ``account`` (`expunge.ledger.account`, which follows from the events alone), ``models`` (by name, the attempts
        in plain words with method, papers, numbers and bounds), ``decay`` (by model, its numbers over the requests
        fulfilled so far), ``destroyed``, ``qualification`` and ``limits`` (sentences).

    Raises:
        UserError: no such request.
    """
    return _record(ledger, request, ledger.head(), qualification)


def export(
    folder: Path,
    ledger: Ledger,
    request: str,
    *,
    sign: Path | None = None,
    overwrite: bool = False,
    qualification: Mapping[str, Any] | None = None,
) -> Head:
    """Write the evidence pack of a request: its record as JSON and as a page, and the chain it stands in.

    Args:
        folder: to write.
        ledger: the request was received in.
        request: its id.
        sign: file of an Ed25519 private key.
        overwrite: replace a pack that is there.
        qualification: as `record_of` says.

    Returns:
        The head of the chain as exported.

    Raises:
        UserError: no such request, the folder is taken, or the key is unusable.
    """
    head = ledger.head()
    record = _record(ledger, request, head, qualification)
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    return pack.write(
        folder,
        request=request,
        ledger=ledger.identity,
        events=_until(ledger, head),
        files={pack.RECORD: text, "record.html": requestpage.render(record)},
        sign=sign,
        overwrite=overwrite,
    )


def _until(ledger: Ledger, head: Head) -> Iterator[Event]:
    """Yield the events up to a head: what others add meanwhile is left for the next export."""
    return takewhile(lambda event: event.seq <= head.seq, ledger.events())


def _record(ledger: Ledger, request: str, head: Head, qualification: Mapping[str, Any] | None) -> dict[str, Any]:
    own = [event for event in ledger.history(request) if event.seq <= head.seq]
    told = account(own)
    attempts = {name: [_attempt(a) for a in found["attempts"]] for name, found in told["models"].items()}
    now = datetime.now(UTC).replace(microsecond=0)
    record = {
        "kind": KIND,
        "schema": SCHEMA,
        "expunge": __version__,
        "written": now.isoformat(),
        "ledger": ledger.identity,
        "head": str(head),
        "account": told,
        "overdue": told["status"]["open"] and now.astimezone().date() > date.fromisoformat(told["request"]["due"]),
        "models": {name: _model(told["models"][name], attempts[name]) for name in attempts},
        "decay": _decay(_until(ledger, head), list(attempts)),
        "destroyed": [_destroyed(event) for event in own if event.step in DESTROYS],
        "qualification": None if qualification is None else jsonable(qualification),
    }
    record["limits"] = limits.sentences(record)
    return json.loads(canonical(jsonable(record)))  # type: ignore[no-any-return]


def _model(told: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what became of the request on one model."""
    done = [a for a in attempts if a["result"] == "deployed"]
    served = done[-1] if done else None
    attempts = [{**a, "result": "replaced"} if a in done[:-1] else a for a in attempts]
    counts = [a["samples"] for a in done if isinstance(a["samples"], int)]  # a later one finds them forgotten
    samples = max(counts, default=None)
    return {
        "outcome": limits.outcome(told, served),
        "nature": None if served is None else served["nature"],
        "samples": samples,
        "shows": limits.could_show(samples),
        "attempts": list(attempts),
    }


def _attempt(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return one attempt: what was done, with which method, and what was measured."""
    body = {step: found for step, found in told.items() if isinstance(found, Mapping)}
    edit, check = body.get("unlearned", {}), body.get("verified") or body.get("failed", {})
    steps = [step for step in body if step != "purged"] or ["started"]  # what was destroyed says nothing of the result
    last = max(steps, key=lambda step: body.get(step, {}).get("seq", 0))
    method = edit.get("method")
    return {
        "result": last,
        "how": body.get("started", {}).get("how"),
        "began": body.get("started", told)["at"],
        "ended": body[last]["at"] if last in body else None,
        "version": edit.get("version"),
        "before": edit.get("before"),
        "after": edit.get("after"),
        "files": edit.get("files"),
        "method": method,
        "papers": _papers(method, edit.get("citation")),
        "nature": limits.nature(edit.get("nature") or _nature(method), edit.get("level")),
        "seed": edit.get("seed"),
        "seconds": edit.get("seconds"),
        "changed": edit.get("changed"),
        "samples": edit.get("samples"),
        "not_at_hand": edit.get("not_at_hand") or None,
        "batch": {"requests": edit.get("requests"), "samples": edit.get("batch_samples")},
        "data": edit.get("data"),
        "proof": edit.get("proof"),
        "recipe": edit.get("recipe"),
        "prepared": edit.get("prepared"),
        "so_far": edit.get("so_far"),
        "environment": edit.get("environment"),
        "note": edit.get("note"),
        "qualification": edit.get("qualification"),
        "numbers": _numbers(check),
        "groups": _groups(check),
        "bounds": check.get("bounds"),
        "unmeasured": check.get("unmeasured"),
        "accuracy_drop": check.get("accuracy_drop"),
        "caveats": [str(check[name]) for name in ("flaw", "limits") if check.get(name)],
        "reason": body.get("failed", {}).get("reason"),
        "remedy": body.get("failed", {}).get("remedy"),
    }


def _numbers(check: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the numbers before and after, in the order they were recorded, flips last."""
    found = _mapping(check, "metrics")
    before, after, gaps = _mapping(found, "before"), _mapping(found, "after"), _mapping(check, "gaps")
    return [
        {
            "name": name,
            "label": labels().get(name, name),
            "before": before.get(name),
            "after": entry,
            "gap": gaps.get(name),
        }
        for name, entry in after.items()
    ]


def _groups(check: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return accuracy and its change by column and group, as numbers with intervals."""
    found: dict[str, list[dict[str, Any]]] = {}
    for column, places in _mapping(check, "groups").items():
        rows = [{"at": at, **{k: _entry(row.get(k)) for k in ("accuracy", "change")}} for at, row in places.items()]
        found[column] = rows
    return found


def _entry(values: Any) -> dict[str, Any] | None:
    return None if values is None else {**dict(zip(("x", "low", "high", "n"), values, strict=True)), "unit": "1"}


def _mapping(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = body.get(name)
    return found if isinstance(found, Mapping) else {}


@cache
def labels() -> dict[str, str]:
    """Return the name in words of every number that can be measured."""
    families = [metrics.load(name)() for name in metrics.names()]
    return {name: number.label for family in families for name, number in family.numbers.items()}


def _papers(method: Any, given: Any) -> list[dict[str, Any]]:
    """Return the papers of a method and of those it is composed of."""
    if isinstance(given, Mapping):
        return [dict(given)]
    found = list[dict[str, Any]]()
    for name in _named(method):
        with suppress(UserError):  # a method that this version of the package does not have
            paper = dict(vars(load(name).reference))
            found += [] if paper in found else [paper]
    return found


def _named(method: Any) -> Iterable[str]:
    """Yield the names of a method and of those within it."""
    if isinstance(method, Mapping) and isinstance(method.get("name"), str):
        yield method["name"]
        for value in method.values():
            yield from _named(value)


def _nature(method: Any) -> str | None:
    """Return what a method does to a trace, None where this version of the package does not know it or its settings."""
    with suppress(UserError):
        return str(build(method).nature) if isinstance(method, Mapping) else None
    return None


def _decay(events: Iterable[Event], models: Sequence[str]) -> dict[str, Any]:
    """Return, for each model, its numbers over the requests fulfilled so far; nothing of who asked."""
    lines = {model: _Line() for model in models}
    for event in events:
        if event.model in lines:
            lines[event.model].add(event)
    return {model: line.course(model) for model, line in lines.items()}


class _Line:
    """The versions of a model that were served, each with what was measured and for how many requests it was made.

    Versions that were rolled back are left out.
    """

    def __init__(self) -> None:
        self.verified: dict[str, Event] = {}
        self.served: dict[str, int] = {}
        self.deployed: list[Event] = []

    def add(self, event: Event) -> None:
        """Follow one event of the model."""
        version = str(event.body.get("version"))
        if event.step == "verified":
            self.verified.setdefault(version, event)
        elif event.step == "deployed" and version in self.verified:
            self.deployed += [] if version in self.served else [event]
            self.served[version] = self.served.get(version, 0) + 1
        elif event.step == "rolled_back":
            while self.served and next(reversed(self.served)) != version:
                self.served.popitem()

    def course(self, model: str) -> dict[str, Any]:
        """Return the curves of the model, how far its last numbers are from their bounds, and what to do."""
        curves: dict[str, list[dict[str, Any]]] = {}
        fulfilled, retrained, body = 0, list[int](), dict[str, Any]()
        for version, requests in self.served.items():
            fulfilled, body = fulfilled + requests, dict(self.verified[version].body)
            retrained += [fulfilled] if body.get("how") == "retrain" else []
            for number in _numbers(body):
                if _known(number["after"]):
                    curves.setdefault(number["name"], []).append({"at": fulfilled, **number["after"]})
        bounds = [bound for outcome in body.get("bounds") or () if (bound := _bound(outcome)) is not None]
        order = dict.fromkeys(
            [*(b["name"] for b in bounds), "accuracy/test", "accuracy/test_retain", "accuracy/retain"]
        )
        return {
            "fulfilled": fulfilled,
            "retrained": retrained,
            "bounds": bounds,
            "curves": {n: {"label": labels().get(n, n), "points": curves[n]} for n in order if n in curves},
            "advice": self._advice(model, body),
        }

    def _advice(self, model: str, body: Mapping[str, Any]) -> list[str]:
        """Return why the model should be retrained soon, held to the bounds that were set last."""
        points = [
            p for p in capacity.curve([*self.verified.values(), *self.deployed], model) if p.version in self.served
        ]
        last = max((at for at, point in enumerate(points) if point.how == "retrain"), default=-1)
        texts = [str(outcome["bound"]) for outcome in body.get("bounds") or () if _bound(outcome) is not None]
        return capacity.advice(points[last + 1 :], texts, (body.get("accuracy_drop") or {}).get("bound"))


def _known(entry: Any) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("x"), int | float)


def _bound(outcome: Any) -> dict[str, Any] | None:
    """Return a bound on a value with what is left until it is missed; None for one on a gap, or of another form."""
    try:
        bound = Bound.parse(str(outcome["bound"]))
        left = float(outcome["x"]) - bound.number
    except (UserError, KeyError, TypeError, ValueError):
        return None
    if bound.gap:
        return None
    left = left if bound.sign[0] == ">" else -left
    return {"name": bound.name, "sign": bound.sign, "number": bound.number, "left": left}


def _destroyed(event: Event) -> dict[str, Any]:
    """Return what was destroyed, when, and why."""
    hidden = ("reason", "what") if event.step == "erased" else ("reason",)
    what = {name: value for name, value in event.body.items() if name not in hidden}
    if event.step == "erased":
        what = {"key": "that of what the request named: the ledger tells no longer whom it was about"}
    return {"at": event.at, "step": event.step, "model": event.model, "what": what, "reason": event.body.get("reason")}
