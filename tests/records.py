"""Ledgers with the events that the service writes, and realistic numbers in them, for tests of records and pages."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from expunge.ledger import Entry, Ledger, Request

START = datetime(2025, 1, 31, 9, 0, tzinfo=UTC)
SSD = {"name": "ssd", "alpha": 10.0, "dampening": 1.0}
CITATION = {"title": "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening",
            "authors": "Jack Foster and Stefan Schoepf and Alexandra Brintrup", "year": 2024,
            "link": "https://arxiv.org/abs/2308.07707", "venue": "AAAI"}  # fmt: skip
SO_FAR = {"requests": 4, "samples": 9, "stale": 4}
ENVIRONMENT = {"python": "3.11.9", "torch": "2.6.0", "expunge": "0.1.0", "code": "c0de" * 16, "digest": "e0" * 32}


class Clock:
    """A time that each look moves by an hour."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now

    def __call__(self) -> datetime:
        self.now += timedelta(hours=1)
        return self.now

    def days(self, count: int) -> None:
        """Let days pass."""
        self.now += timedelta(days=count)


def opened(folder: Path, clock: Clock) -> Ledger:
    """Return a new ledger."""
    return Ledger.open(folder, create=True, now=clock, actor="ada")


def asked(id: str, *values: str, kind: Any = "ids", route: Any = None, note: str = "") -> Request:
    """Return a request of the last day of January."""
    day = date(2025, 1, 31)
    return Request(id, kind, values or ("train/1",), route, received=day, due=day + timedelta(days=30), note=note)


def number(x: float, spread: float = 0.02, n: int = 500, unit: str = "1") -> dict[str, Any]:
    return {"x": x, "low": x - spread, "high": x + spread, "n": n, "unit": unit}


def unlearned(version: str, *, nature: str = "approximate edit", method: Any = None, **more: Any) -> dict[str, Any]:
    """Return what the service says of a new version."""
    return {
        "version": version, "before": "b" * 64, "after": "a" * 64, "files": {"model.safetensors": "f" * 64},
        "method": SSD if method is None else method, "nature": nature, "citation": CITATION, "seed": 7,
        "seconds": 1.25, "changed": 0.031, "samples": 3, "batch_samples": 5, "data": {"samples": 995, "ids": "d" * 64},
        "environment": ENVIRONMENT, "so_far": SO_FAR, "requests": 2, **more,
    }  # fmt: skip


def verified(test: float = 0.91, forget: float = 0.4) -> dict[str, Any]:
    """Return what the service says of a new version's numbers."""
    before = {
        "accuracy/test": number(0.93),
        "accuracy/forget": number(0.98, 0.01, 3),
        "loss/test": number(0.2, 0.01, 500, "nats"),
    }
    after = {
        "accuracy/test": number(test),
        "accuracy/forget": number(forget, 0.3, 3),
        "loss/test": number(0.25, 0.01, 500, "nats"),
        "flips/lost/test": number(0.03, 0.01),
    }
    changes = {"0": -0.01, "1": 0.0, "2": -0.06, "3": 0.02}
    groups = {
        at: {"accuracy": [0.9, 0.85, 0.94, 80], "change": [c, c - 0.03, c + 0.03, 80]} for at, c in changes.items()
    }
    met = test >= 0.9
    said = "; its 95 % interval does not settle it." if met else ", off by 0.03: edit less."
    text = f"Bound {'met' if met else 'missed'}: accuracy/test >= 0.9, got {test:.4g}{said}"
    bound = {"bound": "accuracy/test >= 0.9", "x": test, "met": met, "sure": False, "held": True, "text": text}
    numbers = {"before": before, "after": after}
    return {"metrics": numbers, "groups": {"label": groups}, "bounds": [bound], "unmeasured": 2}


def edited(ledger: Ledger, request: str, version: str, *, model: str = "model", how: str = "edit", test: float = 0.91,
           made: dict[str, Any] | None = None) -> None:  # fmt: skip
    """Record that a model was freed of a request's samples."""
    bodies: list[tuple[Any, dict[str, Any]]] = [
        ("started", {"how": how, "version": version}), ("unlearned", made or unlearned(version)),
        ("verified", verified(test) | {"how": how, "version": version, "so_far": SO_FAR}),
        ("deployed", {"version": version}),
    ]  # fmt: skip
    for step, body in bodies:
        ledger.record(request, step, body, model=model)


def story(folder: Path) -> Ledger:
    """Return a ledger in which ``req-7`` went through most of what can happen, beside requests of others."""
    clock = Clock()
    ledger = opened(folder, clock)
    for at in range(5):
        ledger.receive(asked(f"other-{at}", f"train/{at + 100}"))
        edited(ledger, f"other-{at}", f"v{at + 1:06}", test=0.93 - 0.004 * at)
        ledger.record(f"other-{at}", "closed")
        clock.days(1)
    ledger.receive(asked("req-7", "train/1", "train/2", "train/3", route="edit-then-retrain", note="secret note"))
    ledger.record("req-7", "held", {"reason": "the identity of who asks is checked"})
    clock.days(2)
    ledger.record("req-7", "released")
    ledger.record_all([Entry("req-7", "started", {"how": "edit"}, "model"), Entry("req-7", "absent", {}, "ranker")])
    ledger.record("req-7", "unlearned", unlearned("v000006"), model="model")
    ledger.record(
        "req-7", "failed", {"reason": "Bound missed: accuracy/test >= 0.9, got 0.87.", **verified(0.87)}, model="model"
    )
    clock.days(1)
    edited(ledger, "req-7", "v000007", test=0.912)
    clock.days(12)
    proof = {"excluded": 12, "excluded_marks": "9" * 64, "trained": {"samples": 988, "read": 988, "ids": "8" * 64}}
    made = unlearned("v000008", nature="exact", method={"name": "retrain"}, proof=proof)
    edited(ledger, "req-7", "v000008", how="retrain", test=0.928, made=made)
    ledger.record("req-7", "closed", {"route": "edit-then-retrain"})
    clock.days(3)
    ledger.record("req-7", "purged", {"destroyed": ["v000007"], "files": ["undo/model-v000007.sealed"]}, model="model")
    return ledger
