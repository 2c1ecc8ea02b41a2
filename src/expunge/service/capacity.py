"""How much a model has worn: the decay over the requests it forgot, and when to retrain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from expunge.bounds import Bound
from expunge.ledger import Event
from expunge.service.measure import worst_class
from expunge.service.site import Site

LAST = 5  # points that the straight line goes through
NEAR = 0.25  # of the room between the first value and the bound


@dataclass(frozen=True)
class Point:
    """A version of a model, as it was verified.

    Args:
        version: its name.
        at: when it was verified.
        how: ``edit`` or ``retrain``.
        requests: forgotten by edits since the last training.
        samples: forgotten by edits since the last training.
        accuracy: on test data, in [0, 1]; None without classes or test data.
        fall: of that, by this version; on the classes that stay, where one was forgotten.
        worst: accuracy of the worst class on samples that stay.
        values: every number after it.
        first: every number before it.
    """

    version: str
    at: str
    how: str
    requests: int
    samples: int
    accuracy: float | None
    fall: float | None
    worst: float | None
    values: dict[str, float] = field(repr=False)
    first: dict[str, float] = field(repr=False)


def curve(events: Iterable[Event], name: str) -> list[Point]:
    """Return the decay of a model over the versions that were served.

    Args:
        events: of the ledger, in their order; of several models and requests.
        name: of the model.

    Returns:
        A point a version, in order; versions that were rolled back are among them.
    """
    verified, served = dict[str, Event](), list[str]()
    for event in events:
        version = str(event.body.get("version"))
        if event.model == name and event.step == "verified":
            verified.setdefault(version, event)
        elif event.model == name and event.step == "deployed" and version in verified and version not in served:
            served.append(version)
    return [_point(version, verified[version]) for version in served]


def _point(version: str, event: Event) -> Point:
    body = event.body
    rows = {at: {k: float(v["x"]) for k, v in row.items()} for at, row in body.get("metrics", {}).items()}
    so_far: dict[str, Any] = body.get("so_far", {})
    return Point(
        version=version,
        at=event.at,
        how=str(body.get("how")),
        requests=int(so_far.get("requests", 0)),
        samples=int(so_far.get("samples", 0)),
        accuracy=body.get("test_accuracy", {}).get("after"),
        fall=body.get("fall"),
        worst=worst_class(body),
        values=rows.get("after", {}),
        first=rows.get("before", {}),
    )


def advice(points: Sequence[Point], bounds: Sequence[str], drop: float | None) -> list[str]:
    """Return why the model should be retrained soon, in sentences; none while all bounds are far.

    A bound is near where less than a quarter of the room is left that there was before the first edit, or where a
    straight line through the last five values (least squares over the requests so far) reaches it within as many
    requests as those values span.

    Args:
        points: since the last training.
        bounds: of the policy, ``NAME OP NUMBER``; bounds on gaps are left out.
        drop: most that test accuracy may fall by one request; here all requests since the training together are held
            to it. None for no bound.
    """
    edits = [p for p in points if p.how == "edit"]
    if not edits:
        return []
    found = []
    for bound in (Bound.parse(text) for text in bounds):
        seen = [(p.requests, p.values[bound.name]) for p in edits if bound.name in p.values]
        start = edits[0].first.get(bound.name)
        if not bound.gap and seen and start is not None:
            why = _near([(0, start), *seen], bound.number, bound.sign[0] == ">")
            found += [f"{bound} is near ({why}): retrain."] if why else []
    falls = [(p.requests, p.fall) for p in edits if p.fall is not None]
    if drop is not None and falls:
        sums = np.cumsum([fall for _, fall in falls]).tolist()
        falls = [(at, total) for (at, _), total in zip(falls, sums, strict=True)]
        why = _near([(0, 0.0), *falls], drop, floor=False)
        found += (
            [f"test accuracy has fallen by {falls[-1][1]:.3g} since the last training ({why}): retrain."] if why else []
        )
    return found


def _near(values: Sequence[tuple[float, float]], bound: float, floor: bool) -> str:
    """Return why a bound is near, or an empty text.

    Args:
        values: requests so far and the number then, the first before any edit.
        bound: that it is held to.
        floor: whether the number must stay above.
    """
    room, left = ((y - bound) * (1 if floor else -1) for y in (values[0][1], values[-1][1]))
    if room <= 0:  # it was missed before the first edit
        return ""
    if left <= NEAR * room:
        return f"{values[-1][1]:.4g} now, {left:.3g} from it"
    x, y = np.asarray(values[-LAST:], dtype=np.float64).T
    span = float(x[-1] - x[0])
    if len(x) < 3 or span <= 0:
        return ""
    slope = float(np.polyfit(x, y, 1)[0]) * (-1 if floor else 1)
    if slope <= 0 or left / slope > span:
        return ""
    rest = max(1, round(left / slope))
    return f"at this rate it is reached within {rest} request{'' if rest == 1 else 's'}"


def advise(site: Site) -> tuple[str, ...]:
    """Return what to do before the served model is worn out.

    Args:
        site: the model.
    """
    counters = site.counters(site.folder())
    policy = site.place.config.policy
    points = curve(site.ledger.events(int(counters["seq"]) + 1), site.name)
    last = max((at for at, p in enumerate(points) if p.how == "retrain"), default=-1)
    found = advice(points[last + 1 :], policy.bounds, policy.accuracy_drop)
    every, stale = site.policy.refresh_every, int(counters["stale"])
    if every and stale >= every:
        old = f"{stale} request{'' if stale == 1 else 's'} old"
        found.append(f"the state is {old}: the next edit prepares it anew (refresh_every = {every}).")
    return tuple(found)
