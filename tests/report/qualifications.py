"""Qualification records to show: of two kinds and three sizes, with a real verdict of the tests' own numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from expunge.qualify import Finding, Verdict, decide, words
from expunge.qualify.sizes import InRow, Size
from expunge.qualify.strong import Strong, Worst
from expunge.shadows import Spread
from expunge.stats import Interval, clopper_pearson

DIGEST = "9f2ab07c51d84e06a3bb1b7c8c1f5f3d2a60c4f4f8f1b6f0a1d2c3b4a5968778"
ITS_DATA = "41c70b5e6a"
NAMED = "patient-0042"  # a sample of which a page says nothing


def within(x: float, half: float, n: int = 64) -> Interval:
    """Return an interval that goes as far up as down."""
    return Interval(x, x - half, x + half, n)


def size(n: int, gap: float, floor: float, bound: float | None, failed: int, requests: int = 64) -> dict[str, Any]:
    """Return one size of a kind; one of fewer than 29 requests has no bound, one sample is too little to tell."""
    found = Size(
        n=n,
        requests=requests,
        gap=within(gap, 0.18 * floor, requests),
        floor=floor,
        bound=bound,
        bound_retrained=None if bound is None else 0.8 * floor,
        needed=29 if bound is None else None,
        failed=failed,
        rate=clopper_pearson(failed, requests),
        by_chance=1 / (requests + 1),
        failed_original=requests - 2 if n > 1 else 9,
        caught=0.9 if n > 1 else 0.26,
        test=within(-0.0042, 0.0011, requests),
        test_retrained=within(-0.0031, 0.0009, requests),
        retain=within(-0.0007, 0.0004, requests),
    )
    return found.to_json() | {"seconds": 0.0214}


def row() -> dict[str, Any]:
    """Return requests in a row, up to eight of them on one model."""
    failed = (0, 1, 2, 13)
    found = InRow(
        n=10,
        requests=64,
        tried=(1, 2, 4, 8),
        failed=failed,
        rates=tuple(clopper_pearson(f, 64) for f in failed),
        bounds=tuple(clopper_pearson(f, 64, 0.9).high for f in failed),
        caught=(0.9,) * 4,
        longest=4,
        tolerance=0.1,
        confidence=0.95,
    )
    return found.to_json()


def findings(far: bool = False, retrained: bool = False) -> list[Finding]:
    """Return one of each kind of test, of a model that lies far from the retrained ones or not."""
    rank = 1 / 65 if far else 0.4 if retrained else 0.72
    return [
        Finding(name="accuracy, forget", kind="equivalence", p=1e-9 if far else 0.9, within=0.99 if far else 2e-5, n=20,
                needed=None if far else 12, smallest=0.021, unit="1", margin=0.03, passable=0.019, why="the floor"),
        Finding(name="rank among retrained models", kind="rank", p=rank, floor=1 / 65, n=1, k=64, needed=19,
                smallest=2.41, unit="standard deviations of a retrained model"),
        Finding(name="farther than other retrained models", kind="farther", p=0.001 if far else 0.31, floor=0.0005,
                n=20, needed=3, smallest=0.62, unit="mean distances of a retrained model from their mean"),
        Finding(name="attack on forget samples", kind="attack", p=1e-12 if far else 0.44, n=640, needed=640,
                smallest=0.036, unit="1"),
    ]  # fmt: skip


def judged(
    own: Sequence[Finding], controls: Mapping[Any, Sequence[Finding]], declined: Mapping[Any, str]
) -> dict[str, Any]:
    """Return the verdict on findings beside controls, and both, as a record has them."""
    found = decide(own, controls, declined=declined)
    run = {name: [_finding(f) for f in tests] for name, tests in controls.items()}
    return {"verdict": _verdict(found), "controls": run}


def _verdict(found: Verdict) -> dict[str, Any]:
    return {
        "value": found.value,
        "text": words(found),
        "officer": words(found, "officer"),
        "reasons": list(found.reasons),
        "declined": dict(found.declined),
        "n": found.n,
        "k": found.k,
        "level": found.level,
        "chance": found.chance,
        "findings": [_finding(f) for f in found.findings],
    }


def _finding(found: Finding) -> dict[str, Any]:
    kept = ("name", "kind", "p", "within", "margin", "smallest", "unit", "n", "k", "needed")
    body = {name: getattr(found, name) for name in kept}
    return body | {"smallest": None if math.isinf(found.smallest) else found.smallest}


def spread(mean: float, half: float) -> Spread:
    """Return a mean over groups of 16 models."""
    return Spread(mean, mean - half, mean + half, np.array([mean]), 16)


def attacks(far: bool = False) -> dict[str, Any]:
    """Return what the attacks found."""
    found = Strong(
        u_lira=within(0.83 if far else 0.513, 0.021),
        u_lira_worst=0.97 if far else 0.631,
        worst_by_chance=0.618,
        worst=(Worst(id=NAMED, accuracy=within(0.97, 0.02)),),
        values=32,
        why="",
        pooled=within(0.79 if far else 0.502, 0.02),
        klom={"forget": spread(0.921 if far else 0.214, 0.03), "retain": spread(0.201, 0.02)},
        klom_floor={"forget": spread(0.208, 0.03), "retain": spread(0.197, 0.02)},
        quality=0.031 if far else 0.187,
        quality_floor=0.203,
        pair=within(0.94 if far else 0.55, 0.02),
        pair_retrained=within(0.71, 0.02),
        members=within(0.533, 0.01),
        members_retrained=within(0.531, 0.01),
    )
    return found.to_json()


def random_kind() -> dict[str, Any]:
    """Return a kind that is within its margin, with one size too few requests for a bound and requests in a row."""
    controls = {"no_op": findings(far=True), "retrained": findings(retrained=True)}
    return {
        "kind": "random",
        "words": "Random samples",
        "against": "pool",
        "sizes": [
            size(1, 0.31, 2.9, None, 1, requests=20),
            size(10, 0.11, 0.41, 0.37, 3),
            size(72, 0.034, 0.16, 0.13, 1),
        ],
        "in_row": row(),
        **judged(findings(), controls, {"head_mask": "it masks one class"}),
        "attacks": attacks(),
    }


def class_kind() -> dict[str, Any]:
    """Return a kind that is distinguishable: more is left of a class than retrained models have of it."""
    controls = {"no_op": findings(far=True), "head_mask": findings(far=True), "retrained": findings(retrained=True)}
    return {
        "kind": "class",
        "words": "A whole class (class=3)",
        "against": "retrained",
        "sizes": [
            size(18, 1.9, 0.8, 2.6, 51),
            size(36, 2.4, 0.7, 2.9, 58),
            size(72, 2.71, 0.62, 3.1, 64),
        ],
        "in_row": None,
        **judged(findings(far=True), controls, {}),
        "attacks": attacks(far=True),
    }


def undecided_kind() -> dict[str, Any]:
    """Return a kind without evidence: a control failed, one was not run, and next to nothing is known."""
    none = dict.fromkeys(("bound", "bound_retrained", "needed", "floor", "by_chance", "failed_original", "test",
                          "retain", "seconds", "gap", "failed", "rate"))  # fmt: skip
    few = [Finding(name="rank", kind="rank", p=1.0, floor=1.0, n=1, k=3, needed=19, smallest=math.inf)]
    return {
        "kind": "subject",
        "words": "All samples of one person",
        "against": "pool",
        "sizes": [{"n": 12, "requests": 8, **none}],
        "in_row": None,
        **judged(few, {"no_op": few}, {}),
        "attacks": dict.fromkeys(attacks()) | {"why": "9 of 12 forgotten samples are named by fewer than 4 requests"},
    }


def record(kinds: Sequence[Mapping[str, Any]] | None = None, **changed: Any) -> dict[str, Any]:
    """Return the body of a qualification record.

    Args:
        kinds: of requests; two by default.
        changed: of the record.
    """
    return {
        "made": "2025-11-22T23:40:00+00:00",
        "expunge": "0.3.0",
        "torch": "2.8.0",
        "project": "digits",
        "network": "mlp",
        "task": "classification",
        "model": DIGEST,
        "data": ITS_DATA,
        "samples": 1437,
        "recipe": {"epochs": 40, "optimiser": "sgd", "lr": 0.05, "batch": 64},
        "method": {"name": "ssd", "alpha": 6.75, "dampening": 0.172, "order": None},
        "pool": {"models": 64, "samples": 718, "seed": 0, "seconds": 81.2, "models_per_minute": 47.1},
        "confidence": 0.95,
        "share": 0.9,
        "unit": "nats",
        "kinds": [random_kind(), class_kind()] if kinds is None else list(kinds),
        "excludes": [
            "The models asked to forget were trained on 718 of 1,437 samples: on all of them each weighs less.",
            "A bound holds for 90% of requests with 95% confidence: a single request may lie beyond it.",
            "Only outputs on the samples as they are were looked at.",
        ],
        "cost": {"pool": 81.2, "retrained": 96.4, "requests": 12.7, "analysis": 3.4, "retrain": 1.27},
        **changed,
    }
