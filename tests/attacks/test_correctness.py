"""The correctness attack: its AUC is half the difference of two accuracies away from one half."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from expunge.attacks.correctness import Correctness
from expunge.errors import UserError
from expunge.evidence import Outputs
from expunge.metric import Unavailable
from expunge.metrics.membership import Membership
from pairs import audit, said


def answers(right: int, n: int) -> Outputs:
    labels = torch.arange(n) % 3
    return said(4.0 * F.one_hot((labels + (torch.arange(n) >= right)) % 3, 3), labels)


@pytest.mark.parametrize(("members", "others"), [(18, 12), (12, 18), (20, 0), (0, 20)])
def test_auc_by_hand_on_either_side(members: int, others: int) -> None:
    forget, test = answers(members, 20), answers(others, 20)
    assert Correctness().score(forget).tolist() == [1.0] * members + [0.0] * (20 - members)
    found = Membership(names=("correctness",))(audit({"forget": forget, "test": test}))["membership/correctness/auc"]
    assert found.x == pytest.approx(0.5 + (members - others) / 40, abs=1e-12)


def test_what_is_undefined_says_why() -> None:
    found = Membership(names=("correctness",))(audit({"forget": answers(20, 20), "test": answers(30, 30)}))
    assert found["membership/correctness/auc"] == Unavailable("all scores are equal")
    assert found["membership/correctness/balanced_accuracy"] == Unavailable("all scores are equal")
    with pytest.raises(UserError, match="labelled samples for the correctness attack, got none"):
        Correctness().score(said(torch.eye(3)))
