"""The entropy attack by hand-checked numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from expunge.attacks import load
from expunge.attacks.entropy_lr import EntropyLR
from expunge.errors import UserError
from expunge.evidence import Outputs
from expunge.metric import Audit
from expunge.scenario import Scenario
from expunge.signals import signals
from expunge.task import Classification

MEMBERS, OTHERS = np.array([0, 0.1, 0.2, 0.3, 0.4, 0.5]), np.array([0.6, 0.9, 1.2])
FORGOTTEN = np.array([0.05, 0.55, 0.65, 1.0])


def outputs(logits: Tensor) -> Outputs:
    return Outputs(logits.double(), logits.argmax(dim=1))


def with_entropy(values: np.ndarray) -> Outputs:
    """Return two-class... K = 8 logits (t, 0, ..., 0) whose entropies are these, t found by bisection."""
    rows = []
    for value in values:
        low, high = 0.0, 60.0
        for _ in range(200):
            middle = (low + high) / 2
            p = torch.tensor([middle] + [0.0] * 7, dtype=torch.float64).softmax(0)
            low, high = (middle, high) if float(-torch.xlogy(p, p).sum()) > value else (low, middle)
        rows.append([low] + [0.0] * 7)
    return outputs(torch.tensor(rows, dtype=torch.float64))


def audit(**splits: Outputs) -> Audit:
    scenario = Scenario(train=("a", "b"), forget=("a",))
    return Audit(
        evidence={("model", s): o for s, o in splits.items()}, models={}, task=Classification(), scenario=scenario
    )


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ((0.5, 0.25, 0.25, 0.0), 1.0397208),
        ((1.0, 0.0, 0.0, 0.0), 0.0),
        ((0.25,) * 4, math.log(4)),
        ((0.5, 0.5, 0, 0), math.log(2)),
    ],
)
def test_entropy_in_nats_of_exact_zeros_too(p: tuple[float, ...], expected: float):
    logits = torch.tensor([[math.log(v) if v else -2000.0 for v in p]], dtype=torch.float64)
    assert float(signals(logits).entropy) == pytest.approx(expected, abs=1e-7)
    shifted = outputs(logits + 37.0)
    assert float(shifted.signals.entropy) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("penalty", "weight", "bias", "threshold"),
    [("binary", -1.10078, 0.63132, 0.57350), ("multinomial", -1.79559, 1.02564, 0.57120)],
)
def test_fit_by_hand(penalty: str, weight: float, bias: float, threshold: float):
    attack = EntropyLR(penalty=penalty).fit_entropies(MEMBERS, OTHERS)
    assert attack.weight == pytest.approx(weight, abs=1e-3)
    assert attack.bias == pytest.approx(bias, abs=1e-3)
    assert -attack.bias / attack.weight == pytest.approx(threshold, abs=1e-3)
    fitted = EntropyLR(penalty=penalty).fit(
        audit(retain=with_entropy(MEMBERS), test=with_entropy(OTHERS), forget=with_entropy(FORGOTTEN))
    )
    assert (fitted.weight, fitted.bias) == pytest.approx((attack.weight, attack.bias), abs=1e-6)
    scores = fitted.score(with_entropy(FORGOTTEN))
    assert (scores > 0).tolist() == [True, True, False, False]  # half of the forget set is called member
    torch.testing.assert_close(
        scores, torch.tensor(attack.weight * FORGOTTEN + attack.bias), atol=1e-6, rtol=0, check_dtype=False
    )


def test_sign_is_free():
    attack = EntropyLR(penalty="binary").fit_entropies(np.array([0.9, 1, 1.1, 1.2]), np.array([0.1, 0.2, 0.3, 0.4]))
    assert attack.weight == pytest.approx(1.197, abs=1e-3)
    assert -attack.bias / attack.weight == pytest.approx(0.65, abs=1e-3)
    assert float(attack.score(with_entropy(np.array([2.0])))) > 0


def test_classes_weigh_alike_whatever_their_sizes():
    """Balanced weights: nine copies of every test sample move the loss only through the penalty's share of n."""
    attack = EntropyLR().fit_entropies(np.repeat(MEMBERS, 200), np.repeat(OTHERS, 10))
    assert MEMBERS.max() < -attack.bias / attack.weight < OTHERS.min()


def test_unfitted_and_missing_evidence_are_refused():
    with pytest.raises(UserError, match="a fitted attack, got an unfitted one"):
        EntropyLR().score(with_entropy(MEMBERS))
    with pytest.raises(UserError, match="outputs on retain and test"):
        EntropyLR().fit(audit(retain=with_entropy(MEMBERS)))
    assert load("entropy_lr") is EntropyLR
    with pytest.raises(UserError, match="did you mean 'entropy_lr'"):
        load("entropy_rl")
    assert replace(EntropyLR(), weight=1.0, bias=-1.0).score(with_entropy(np.array([1.5]))).item() == pytest.approx(0.5)
