"""Where a request is: folded from its events alone, one after another; a step that is not allowed is refused.

A request goes through steps of its own (received, held, released, approved, refused, closed, erased), and each model
that it touches through steps of that model (scheduled, started, absent, unlearned, verified, deployed, failed,
rolled_back, purged).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from expunge.errors import UserError, listing, suggest
from expunge.ledger.events import Event

Step = Literal[
    "received", "held", "released", "approved", "refused", "closed", "erased", "scheduled", "started", "absent",
    "unlearned", "verified", "deployed", "failed", "rolled_back", "purged",
]  # fmt: skip
Route = Literal["edit", "retrain", "edit-then-retrain"]
How = Literal["edit", "retrain"]

STEPS: tuple[str, ...] = get_args(Step)
ROUTES: tuple[str, ...] = get_args(Route)
NEXT: Mapping[str | None, tuple[Step, ...]] = {
    None: ("scheduled", "started", "absent"),
    "scheduled": ("started", "absent"),
    "started": ("unlearned", "failed", "absent"),
    "unlearned": ("verified", "failed"),
    "verified": ("deployed", "failed"),
    "deployed": ("started", "scheduled"),
    "failed": ("started", "scheduled", "absent"),
    "rolled_back": ("started", "scheduled", "absent"),
    "absent": ("started", "rolled_back"),
}
"""What may follow each step of a model; where an older version is kept, rolled_back and purged too.

Absent is rolled back where a version that had forgotten the samples for another request is served no longer.

After purged a model is at the step it was at before.
"""

MODEL_STEPS = frozenset(STEPS[STEPS.index("scheduled") :])
RUNNING = frozenset({"started", "unlearned", "verified"})
HELD = frozenset({"started", "purged", "erased", "closed"})  # what a hold forbids
REASONED = frozenset({"held", "refused", "failed", "erased"})  # whose body must say why


@dataclass(frozen=True)
class ModelStatus:
    """Where a request is with one model.

    Args:
        step: the last one; that an older version was purged changes none.
        how: of the last attempt, or the one that is scheduled; None where none was.
        version: of the model, the last that an event named.
        done: how the model that is served was freed of the request's samples: deployed and not rolled back.
        undo: how many of its deployments can be rolled back: neither rolled back yet nor purged.
        attempt: the number of the event that began the last attempt, 0 where none was.
        seq: the number of the last event.
    """

    step: Step
    how: How | None = None
    version: str | None = None
    done: frozenset[How] = frozenset()
    undo: int = 0
    attempt: int = 0
    seq: int = 0

    @property
    def running(self) -> bool:
        """Whether an attempt has begun and not ended."""
        return self.step in RUNNING

    @property
    def left(self) -> frozenset[How]:
        """What is left of `done` after a rollback of the last deployment; a retrained model is never edited again."""
        return self.done - (frozenset({"retrain"}) & self.done or self.done)

    @property
    def freed(self) -> bool:
        """Whether the model that is served holds none of the request's samples, exactly or approximately."""
        return self.step == "absent" or bool(self.done)


@dataclass(frozen=True)
class Status:
    """Where a request is.

    Args:
        request: its id.
        kind: ``ids``, ``subject`` or ``class``.
        count: how many values it names.
        route: how it is to be fulfilled; None where the policy decides.
        received: the day, ``2025-01-31``.
        due: the last day.
        opened_by: who received it.
        held: why it is held, None where it is not.
        approved_by: who approved it.
        refused: why it was refused.
        closed: whether it is fulfilled on every model.
        erased: whether what it named is gone from the ledger.
        models: where it is with each model.
        seq_first: the number of its first event.
        seq_last: the number of its last event.
    """

    request: str
    kind: str
    count: int
    route: Route | None
    received: str
    due: str
    opened_by: str
    held: str | None = None
    approved_by: str | None = None
    refused: str | None = None
    closed: bool = False
    erased: bool = False
    models: Mapping[str, ModelStatus] = field(default_factory=dict)
    seq_first: int = 0
    seq_last: int = 0

    @property
    def open(self) -> bool:
        """Whether something is still to be done: neither closed nor refused."""
        return not self.closed and self.refused is None

    @property
    def begun(self) -> bool:
        """Whether an attempt was made on any model: it can no longer be approved, and needs no approval."""
        return any(m.attempt for m in self.models.values())

    @property
    def word(self) -> str:
        """One word for a list; of several models, what asks for attention first."""
        if not self.open:
            return "refused" if self.refused is not None else "closed"
        steps = {m.step for m in self.models.values()}
        found = (s for s in ("failed", "started", "unlearned", "verified", "scheduled") if s in steps)
        return "held" if self.held is not None else next(found, "open" if steps else "received")

    def fulfilled(self, route: Route) -> bool:
        """Return whether every model is rid of the samples in the way that a route asks for.

        ``edit`` is fulfilled by an edit or a retrained model, the other two by a retrained model; all by absence.
        """
        need: set[How] = {"edit", "retrain"} if route == "edit" else {"retrain"}
        return bool(self.models) and all(m.step == "absent" or m.done & need for m in self.models.values())

    def document(self) -> dict[str, Any]:
        """Return the status as a JSON object."""
        models = {name: {**vars(m), "done": sorted(m.done)} for name, m in self.models.items()}
        return {**vars(self), "models": models}

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Status:
        """Return the status that `document` wrote."""
        found = {n: ModelStatus(**{**m, "done": frozenset(m["done"])}) for n, m in document["models"].items()}
        return cls(**{**document, "models": found})


def allowed(status: Status | None, model: str | None = None) -> tuple[Step, ...]:
    """Return the steps that may come next.

    Args:
        status: of the request, None before its first event.
        model: the name of a model for the steps of that model, None for those of the request itself.
    """
    if status is None:
        return ("received",)
    steps = _of_request(status) if model is None else _of_model(status, status.models.get(model))
    return tuple(s for s in steps if status.held is None or s not in HELD)


def _of_request(status: Status) -> list[Step]:
    if status.erased:
        return []
    steps: list[Step] = ["held" if status.held is None else "released"]
    if not status.open:
        return [*steps, "erased"]
    models = status.models.values()
    if status.approved_by is None and not status.begun:
        steps.append("approved")
    if not any(m.done or m.running for m in models):
        steps.append("refused")
    if models and all(m.freed and not m.running for m in models):
        steps.append("closed")
    return steps


def _of_model(status: Status, model: ModelStatus | None) -> list[Step]:
    back: list[Step] = ["rolled_back", "purged"] if model and model.undo and not model.running else []
    absent: list[Step] = ["rolled_back"] if model and model.step == "absent" and not back else []
    if status.erased:  # what it named is gone: it could not be done again
        return [s for s in back if s == "purged"]
    return [*back, *absent] if not status.open else [*NEXT[model.step if model else None], *back]


def advance(status: Status | None, event: Event) -> Status:
    """Return the status of a request after one more event.

    Args:
        status: before, None before its first event.
        event: of that request.

    Returns:
        The status after it.

    Raises:
        UserError: the step is unknown or not allowed now, or the event does not say what its step needs.
    """
    who = f"request '{event.request}'" + (f" with model '{event.model}'" if event.model is not None else "")
    _check_place(event, who)
    steps = allowed(status, event.model)
    if event.step not in steps:
        held = f" while it is held ({status.held})" if status and status.held and event.step in HELD else ""
        expected = f"one of the steps {listing(steps, 9)}" if steps else "no further step"
        remedy = "see expunge requests show for what was done so far"
        raise UserError(f"{expected} for {who}", f"'{event.step}'{held}", remedy)
    _check_body(event, who)
    if status is None:
        return _received(event)
    _check_story(status, event, who)
    after = _with_model(status, event) if event.model is not None else _with_step(status, event)
    return replace(after, seq_last=event.seq)


def _check_place(event: Event, who: str) -> None:
    if event.step not in STEPS:
        raise UserError(f"a step for {who}", f"'{event.step}'", suggest(event.step, STEPS))
    if (event.step in MODEL_STEPS) != (event.model is not None):
        wants = "the name of a model with" if event.model is None else "no model with"
        remedy = "give one" if event.model is None else "leave it out"
        raise UserError(f"{wants} the step '{event.step}' of {who}", repr(event.model), remedy)


def _check_body(event: Event, who: str) -> None:
    body, step = event.body, event.step
    reason = body.get("reason")
    if step in REASONED and not (isinstance(reason, str) and reason.strip()):
        raise UserError(f"a reason for the step '{step}' of {who}", repr(reason), "say why")
    if step == "started" and body.get("how") not in get_args(How):
        raise UserError(f"how='edit' or 'retrain' with the step 'started' of {who}", repr(body.get("how")), "say which")
    if step == "scheduled" and body.get("how", "retrain") not in get_args(How):
        raise UserError(f"how='edit' or 'retrain' with 'scheduled' of {who}", repr(body["how"]), "say which")
    version = body.get("version")
    if event.model is not None and not isinstance(version, str | None):
        raise UserError(f"a version of {who}, a text", repr(version), "give the version's name")
    if step in ("received", "closed") and body.get("route") not in (None, *ROUTES):
        raise UserError(f"a route for {who}", repr(body["route"]), suggest(str(body["route"]), ROUTES))
    wanted = {"kind": str, "count": int, "received": str, "due": str, "commitment": str, "key": int}
    bad = [name for name, kind in wanted.items() if not isinstance(body.get(name), kind)] if step == "received" else []
    if bad:
        raise UserError(
            f"{listing(wanted, 9)} with the step 'received' of {who}", f"no usable {listing(bad)}", "add it"
        )


def _check_story(status: Status, event: Event, who: str) -> None:
    """Refuse an allowed step that does not fit what was done before."""
    if event.step == "approved" and event.actor == status.opened_by:
        raise UserError(
            f"another operator than '{event.actor}', who received it, to approve {who}", "the same", "ask one"
        )
    model = status.models.get(event.model or "")
    if event.step == "started" and model is not None:
        done = model.done
        if done and event.body["how"] in done | {"edit"}:
            got = f"how='{event.body['how']}' after {listing(sorted(done))}"
            raise UserError(f"how='retrain', once, after {who} is done", got, "roll back first, or leave it")
    route = event.body.get("route") or status.route
    if event.step == "closed" and route is not None and not status.fulfilled(route):
        raise UserError(
            f"every model done as the route '{route}' asks to close {who}", "one that is not", "do it first"
        )


def _received(event: Event) -> Status:
    body = event.body
    named = {name: body[name] for name in ("kind", "count", "received", "due")}
    status = Status(event.request, route=body.get("route"), opened_by=event.actor, **named)
    return replace(status, seq_first=event.seq, seq_last=event.seq)


def _with_step(status: Status, event: Event) -> Status:
    reason = event.body.get("reason")
    changes: dict[str, dict[str, Any]] = {
        "held": {"held": reason},
        "released": {"held": None},
        "approved": {"approved_by": event.actor},
        "refused": {"refused": reason},
        "closed": {"closed": True},
        "erased": {"erased": True},
    }
    return replace(status, **changes[event.step])


def _with_model(status: Status, event: Event) -> Status:
    name, body = str(event.model), event.body
    old = status.models.get(name, ModelStatus("scheduled"))
    changes: dict[str, Any] = {"step": event.step, "seq": event.seq, "version": body.get("version") or old.version}
    if event.step == "scheduled":
        changes["how"] = body.get("how", "retrain")
    elif event.step == "started":
        changes |= {"how": body["how"], "attempt": event.seq}
    elif event.step == "deployed":
        changes |= {"done": old.done | {old.how}, "undo": old.undo + 1}
    elif event.step == "rolled_back" and old.step != "absent":
        changes |= {"done": old.left, "undo": old.undo - 1}
    elif event.step == "purged":
        gone = body.get("destroyed")
        left = old.undo - len(gone) if isinstance(gone, list) else 0
        changes = {"undo": max(left, 0), "seq": event.seq}
    new = replace(old, **changes)
    closed = status.closed and event.step != "rolled_back"
    return replace(status, models={**status.models, name: new}, closed=closed)
