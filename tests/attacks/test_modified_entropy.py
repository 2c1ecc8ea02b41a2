"""The modified-entropy attack: the right formula, sample by sample."""

from __future__ import annotations

import pytest
import torch

from expunge.attacks.modified_entropy import ModifiedEntropy
from expunge.errors import UserError
from expunge.metrics.membership import Membership
from pairs import audit, noise, said

P = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.9, 0.05], [0.3, 0.3, 0.4]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 0])
RIGHT = [0.16216725, 0.01566538, 1.15411370]
RELEASED = [1.62481132, 3.00626833, 2.05207822]  # ln p for ln(1 − p), and label columns of all rows


def test_numbers_by_hand() -> None:
    found = ModifiedEntropy().score(said(P.log(), LABELS))
    assert (-found).tolist() == pytest.approx(RIGHT, abs=1e-8)
    assert all(abs(-x - y) > 0.5 for x, y in zip(found.tolist(), RELEASED, strict=True))


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    labels = torch.arange(90) % 5
    logits = 3 * noise(90, 5)
    whole = ModifiedEntropy().score(said(logits, labels))
    alone = torch.cat([ModifiedEntropy().score(said(logits[i : i + 1], labels[i : i + 1])) for i in range(90)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-12)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ModifiedEntropy().score(said(logits, labels).take(order)), whole[order])


def test_sure_and_wrong_is_no_member() -> None:
    logits = torch.tensor([[9.0, 0, 0], [0, 0, 0], [0, 9.0, 0]])
    right, unsure, wrong = ModifiedEntropy().score(said(logits, torch.zeros(3, dtype=torch.long))).tolist()
    assert right > unsure > wrong
    extreme = ModifiedEntropy().score(said(torch.tensor([[-3000.0, 0.0]]), torch.tensor([0])))
    assert bool(torch.isfinite(extreme).all())
    with pytest.raises(UserError, match="labelled samples for the modified-entropy attack, got none"):
        ModifiedEntropy().score(said(logits))


def test_forgetting_too_much_shows_below_one_half() -> None:
    labels = torch.arange(300) % 3
    wrong = said(noise(300, 3) + 6 * torch.eye(3)[(labels + 1) % 3], labels)
    plain = said(noise(300, 3, seed=1) + 2 * torch.eye(3)[labels], labels)
    found = Membership(names=("modified_entropy",))(audit({"forget": wrong, "test": plain}))
    assert found["membership/modified_entropy/auc"].x < 0.05
