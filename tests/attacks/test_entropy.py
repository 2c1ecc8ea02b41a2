"""The entropy attack by ranks: no labels, sure means member."""

from __future__ import annotations

import pytest
import torch

from expunge.attacks.entropy import Entropy
from expunge.metric import Unavailable
from expunge.metrics.membership import Membership
from expunge.task import Regression
from pairs import audit, noise, said

P = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.9, 0.05], [0.3, 0.3, 0.4]], dtype=torch.float64)


def test_score_is_minus_the_entropy_by_hand() -> None:
    expected = [-0.80181855, -0.39439769, -1.08889998]
    assert Entropy().score(said(P.log())).tolist() == pytest.approx(expected, abs=1e-8)


def test_it_reads_no_label_and_takes_either_side() -> None:
    sure, unsure = said(6 * noise(200, 4)), said(noise(200, 4, seed=1))
    attack, name = Membership(names=("entropy",)), "membership/entropy/auc"
    labelled = said(sure.outputs, torch.arange(200) % 4)
    under = attack(audit({"forget": sure, "test": unsure}))
    assert under[name].x > 0.8
    assert attack(audit({"forget": labelled, "test": unsure})) == under
    over = attack(audit({"forget": unsure, "test": sure}))
    assert over[name].x == pytest.approx(1 - under[name].x, abs=1e-12)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    mixed = attack(audit({"forget": sure.take(order), "test": unsure.take(order)}))
    assert mixed[name].x == pytest.approx(under[name].x)
    real = attack(audit({"forget": sure, "test": unsure}, task=Regression()))
    assert set(real.values()) == {Unavailable("the task has no classes")}
