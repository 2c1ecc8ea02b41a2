"""Tug of war and average gap: the published numbers, and which test set they take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from expunge.attacks.svc import SVCEfficacy
from expunge.evidence import Outputs
from expunge.metric import Audit, Unavailable, Value
from expunge.metrics.tow import Tow, average_gap, efficacy, tow
from expunge.task import Regression
from pairs import audit, said, taken

RETRAINED = {"UA": 5.24, "RA": 100.0, "TA": 94.26, "MIA": 12.88}


def test_published_numbers() -> None:
    """ToW of the specification; average gaps of SalUn and l1-sparse, printed as 1.15 and 2.26."""
    own, other = {"f": 0.10, "r": 0.98, "t": 0.74}, {"f": 0.0, "r": 1.0, "t": 0.73}
    assert tow(own, other) == pytest.approx(0.87318, abs=1e-12) == tow(other, own)
    salun = {"UA": 2.85, "RA": 99.62, "TA": 93.93, "MIA": 14.39}
    sparse = {"UA": 4.19, "RA": 97.74, "TA": 91.59, "MIA": 9.84}
    assert average_gap(salun, RETRAINED) == pytest.approx(1.1525)
    assert average_gap(sparse, RETRAINED) == pytest.approx(2.255)
    assert average_gap(RETRAINED, RETRAINED) == 0.0


def answers(accuracy: float, n: int = 100, margin: float = 4.0) -> Outputs:
    """Return outputs with this accuracy, of varying confidence."""
    labels = torch.arange(n) % 2
    wrong = (torch.arange(n) >= round(accuracy * n)).long()
    confidence = margin * (1 + torch.arange(n) / n).double()
    return said(F.one_hot((labels + wrong) % 3, 3) * confidence[:, None], labels)


def splits(forget: float, retain: float, test: float, **more: Outputs) -> dict[str, Outputs]:
    return {"forget": answers(forget), "retain": answers(retain), "test": answers(test), **more}


OWN, REFERENCE = splits(0.10, 0.98, 0.74), splits(0.0, 1.0, 0.73)


def test_the_metric_takes_accuracies_over_samples_and_the_efficacy_of_both_models() -> None:
    given = audit(OWN, REFERENCE)
    found = Tow()(given)
    assert found["tow/tow"] == Value.single(found["tow/tow"].x)
    assert found["tow/tow"].x == pytest.approx(0.87318, abs=1e-12)

    def called_unseen(splits: dict[str, Outputs]) -> float:
        alone = audit(splits)
        return float((SVCEfficacy().fit(alone).score(splits["forget"]) <= 0).double().mean())

    mia = abs(called_unseen(OWN) - called_unseen(REFERENCE))
    assert mia > 0
    assert found["tow/average_gap"].x == pytest.approx((0.10 + 0.02 + 0.01 + mia) / 4, abs=1e-12)
    assert given.shared == {"tow/retrained": called_unseen(REFERENCE)}
    assert efficacy(audit(OWN)) == called_unseen(OWN)


def test_retrained_is_fitted_once_for_all_models(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[Audit] = []
    fit = SVCEfficacy.fit

    def counted(self: SVCEfficacy, audit: Audit, shadows: Any = ()) -> SVCEfficacy:
        fitted.append(audit)
        return fit(self, audit, shadows)

    monkeypatch.setattr(SVCEfficacy, "fit", counted)
    shared: dict[str, Any] = {}
    values = [Tow()(audit(OWN, REFERENCE, shared=shared)) for _ in range(3)]
    assert values[0] == values[1] == values[2]
    assert len(fitted) == 4


def test_a_class_forgotten_as_a_whole_is_left_out_of_the_test_set() -> None:
    rest = {"own": answers(0.9), "other": answers(0.8)}
    own, other = OWN | {"test_retain": rest["own"]}, REFERENCE | {"test_retain": rest["other"]}
    whole = Tow()(audit(own, other, kind="class", target=2))["tow/tow"].x
    assert whole == pytest.approx(0.9 * 0.98 * 0.9)
    part = Tow()(audit(own, other, kind="class", target=1))["tow/tow"].x  # some of the class stays in retain
    assert part == pytest.approx(0.87318)
    subclass = Tow()(audit(own, other, kind="subclass", target={"value": 2, "column": "fine"}))["tow/tow"].x
    assert subclass == pytest.approx(0.87318)


def test_laws() -> None:
    copy = {k: replace(o, outputs=o.outputs.clone()) for k, o in REFERENCE.items()}
    assert {k: v.x for k, v in Tow()(audit(copy, REFERENCE)).items()} == {"tow/tow": 1.0, "tow/average_gap": 0.0}
    there, back = Tow()(audit(OWN, REFERENCE)), Tow()(audit(REFERENCE, OWN))
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    moved = Tow()(audit(taken(OWN, order), taken(REFERENCE, order)))
    for name, value in there.items():
        assert isinstance(value, Value)
        assert value.x == pytest.approx(back[name].x, abs=1e-12) == pytest.approx(moved[name].x, abs=1e-12)


def test_why_there_is_no_number() -> None:
    def why(own: dict[str, Outputs], other: dict[str, Outputs] | None = REFERENCE, **more: Any) -> set[str]:
        return {v.reason for v in Tow()(audit(own, other, **more)).values() if isinstance(v, Unavailable)}

    assert why(OWN, None) == {"there is no retrained model to compare with"}
    assert why({k: v for k, v in OWN.items() if k != "test"}) == {"there are no samples in test"}
    assert why(OWN | {"test": replace(OWN["test"], target=None, loss=None)}) == {"test has no labels"}
    assert why(OWN, task=Regression()) == {"the task has no classes"}
    assert why(OWN, kind="class", target=2) == {"there are no samples in test_retain"}
    few = {k: o.take(torch.arange(1)) for k, o in OWN.items()}
    also = {k: o.take(torch.arange(1)) for k, o in REFERENCE.items()}
    reason = "needs 2 retained and 2 unseen samples of the kinds that stay, has 1 and 1"
    assert why(few, also) == {f"MIA efficacy cannot be had: {reason}"}
    assert isinstance(Tow()(audit(few, also))["tow/tow"], Value)
