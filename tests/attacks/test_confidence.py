"""The confidence attack: the softmax probability of the label, which ranks as cross-entropy does."""

from __future__ import annotations

import pytest
import torch

from expunge.attacks import load
from expunge.attacks.confidence import Confidence
from expunge.attacks.loss import LossThreshold
from expunge.errors import UserError
from expunge.metric import Unavailable, Value
from expunge.metrics.membership import Membership
from expunge.task import Regression
from pairs import audit, noise, said

P = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.9, 0.05], [0.3, 0.3, 0.4]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 0])


def test_score_is_the_probability_of_the_label() -> None:
    torch.testing.assert_close(
        Confidence().score(said(P.log() + 5, LABELS)), torch.tensor([0.7, 0.9, 0.3], dtype=torch.float64)
    )
    assert load("confidence") is Confidence


def test_it_ranks_as_cross_entropy() -> None:
    labels = torch.arange(300) % 7
    forget, test = said(3 * noise(300, 7), labels), said(noise(300, 7, seed=1), labels)
    ranks = Confidence().score(forget).argsort()
    assert ranks.tolist() == LossThreshold().score(forget).argsort().tolist()
    found = Membership(names=("confidence", "loss"))(audit({"forget": forget, "test": test}))
    for number in ("auc", "balanced_accuracy", "tpr_at_fpr_0.01"):
        assert found[f"membership/confidence/{number}"] == found[f"membership/loss/{number}"]


def test_a_reversed_attack_stays_below_one_half() -> None:
    """Forgotten samples less sure than unseen ones are a finding: the AUC is not folded to its mirror image."""
    labels = torch.arange(400) % 5
    sure, unsure = said(noise(400, 5) + 6 * torch.eye(5)[labels], labels), said(noise(400, 5, seed=1), labels)
    name = "membership/confidence/auc"
    under, over = (
        Membership(names=("confidence",))(audit(s))
        for s in ({"forget": sure, "test": unsure}, {"forget": unsure, "test": sure})
    )
    assert under[name].x > 0.95
    assert over[name].x == pytest.approx(1 - under[name].x, abs=1e-12)


def test_order_does_not_matter_and_what_is_missing_is_named() -> None:
    labels = torch.arange(60) % 3
    forget, test = said(noise(60, 3), labels), said(noise(60, 3, seed=1), labels)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    attack = Membership(names=("confidence",))
    found = attack(audit({"forget": forget, "test": test}))
    mixed = attack(audit({"forget": forget.take(order), "test": test.take(order)}))
    for number in ("auc", "balanced_accuracy"):
        assert mixed[f"membership/confidence/{number}"].x == pytest.approx(found[f"membership/confidence/{number}"].x)
    assert all(isinstance(v, Value) for k, v in found.items() if "tpr" not in k)
    with pytest.raises(UserError, match="labelled samples for the confidence attack, got none"):
        Confidence().score(said(P.log()))
    bare = attack(audit({"forget": said(P.log()), "test": test}))
    assert set(bare.values()) == {Unavailable("forget has no labels")}
    real = attack(audit({"forget": forget, "test": test}, task=Regression()))
    assert set(real.values()) == {Unavailable("the task has no classes")}
