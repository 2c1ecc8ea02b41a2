"""Decay over the requests so far, and when to retrain."""

from __future__ import annotations

from typing import Any

import pytest

from expunge.ledger import Event
from expunge.service.capacity import Point, advice, curve
from services import Shop


def points(*values: float, first: float = 0.95, name: str = "accuracy/test", step: int = 10) -> list[Point]:
    """Return the points of edits, so many requests apart."""
    before = (first, *values)
    return [
        Point(
            f"v{at}", "2030", "edit", step * (at + 1), 0, value, before[at] - value, None, {name: value}, {name: first}
        )
        for at, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("values", "bounds", "text"),
    [
        ((0.95, 0.94, 0.95), ["accuracy/test >= 0.9"], ""),
        (
            (0.95, 0.93, 0.912),
            ["accuracy/test >= 0.9"],
            r"accuracy/test >= 0.9 is near \(0.912 now, 0.012 from it\): retrain.",
        ),
        ((0.90, 0.85, 0.80), ["accuracy/test >= 0.7"], "at this rate it is reached within 20 requests"),
        ((0.90, 0.85, 0.80), ["accuracy/test >= 0.6"], ""),  # forty requests off, and thirty are seen
        ((0.95, 0.94), ["accuracy/test <= 0.96"], ""),
        ((0.959,), ["accuracy/test < 0.96"], r"accuracy/test < 0.96 is near \(0.959 now"),
        ((0.80,), ["gap accuracy/test <= 0.1"], ""),  # of gaps to a retrained model nothing is known between trainings
        ((0.80,), ["accuracy/retain >= 0.9"], ""),
        ((0.98, 0.98), ["accuracy/test >= 0.96"], ""),  # missed before the first edit
    ],
)
def test_a_bound_that_is_near(values: tuple[float, ...], bounds: list[str], text: str) -> None:
    found = advice(points(*values), bounds, None)
    if not text:
        assert found == []
    else:
        with pytest.raises(AssertionError, match=text):
            raise AssertionError(" ".join(found))


def test_all_falls_together_are_held_to_what_one_may_be() -> None:
    assert advice(points(0.94, 0.93), [], 0.05) == []
    (sentence,) = advice(points(0.93, 0.912), [], 0.05)
    assert sentence == (
        "test accuracy has fallen by 0.038 since the last training (0.038 now, 0.012 from it): retrain."
    )
    assert advice([], ["accuracy/test >= 0.9"], 0.05) == []


def event(seq: int, step: str, version: str, model: str = "model", **body: Any) -> Event:
    return Event(seq, "r", model, step, f"2030-01-{seq:02}", "ada", {"version": version, **body}, "", "")


def test_the_curve_is_of_versions_that_were_served() -> None:
    body = {
        "how": "edit",
        "so_far": {"requests": 3, "samples": 9, "stale": 3},
        "test_accuracy": {"before": 0.9, "after": 0.8},
        "metrics": {"before": {"accuracy/test": {"x": 0.9}}, "after": {"accuracy/test": {"x": 0.8}}},
        "groups": {"label": {"0": {"accuracy": [0.7, 0.6, 0.8, 20]}, "1": {"accuracy": [0.5, 0.4, 0.6, 20]}, "2": {}}},
    }
    events = [
        event(1, "verified", "v1", **body),
        event(2, "verified", "v1", **body),  # of the other request of the batch
        event(3, "deployed", "v1"),
        event(4, "deployed", "v1"),
        event(5, "verified", "v2", **body),
        event(6, "failed", "v2"),
        event(7, "verified", "v3", "other", **body),
        event(8, "deployed", "v3", "other"),
    ]
    (point,) = curve(events, "model")
    assert (point.version, point.at, point.how) == ("v1", "2030-01-01", "edit")
    assert (point.requests, point.samples, point.accuracy, point.worst) == (3, 9, 0.8, 0.5)
    assert (point.values, point.first) == ({"accuracy/test": 0.8}, {"accuracy/test": 0.9})


def test_a_run_says_when_a_model_is_worn(pets: Any) -> None:
    shop: Shop = pets({"policy.accuracy_drop": 0.9, "policy.bounds": ["accuracy/test >= 0.3"]})
    shop.ask("r1", "101", "102")
    assert shop.process()[0].advice == ()
    with shop.ledger() as ledger:
        (point,) = curve(ledger.events(), "model")
    bound = point.accuracy - 0.3 * (point.first["accuracy/test"] - point.accuracy)  # 0.3 / 1.3 of the room is left
    text = (shop.folder / "expunge.toml").read_text().replace(">= 0.3", f">= {bound}")
    (shop.folder / "expunge.toml").write_text(text)
    shop.ask("r2", "103")
    (outcome,) = shop.process()
    assert outcome.step == "deployed"
    assert "is near" in outcome.advice[0]
