"""The paired attack: each sample's margin under the model less that under retrained."""

from __future__ import annotations

import math

import pytest
import torch

from expunge.attacks.paired import Paired
from expunge.errors import UserError
from expunge.evidence import Outputs
from expunge.metric import Unavailable
from expunge.metrics.membership import Membership
from expunge.task import Regression
from pairs import audit, noise, said, taken

NAME = "membership/paired/auc"


def test_score_by_hand() -> None:
    own = said(torch.tensor([[0.99, 0.01], [0.6, 0.4]]).double().log(), torch.tensor([0, 0]))
    other = said(torch.tensor([[0.97, 0.03], [0.8, 0.2]]).double().log(), torch.tensor([0, 0]))
    expected = [math.log(99) - math.log(0.97 / 0.03), math.log(1.5) - math.log(4)]
    assert Paired().score(own, other).tolist() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(UserError, match="outputs of the retrained model for the paired attack, got none"):
        Paired().score(own)
    with pytest.raises(UserError, match="labelled samples for the paired attack, got none"):
        Paired().score(said(own.outputs), said(other.outputs))


def splits(easy: float, known: float, seed: int, n: int = 300) -> dict[str, Outputs]:
    """Return logits of a model that knows forget samples better by so much; what is easy is easy for every model."""
    labels = torch.arange(n) % 5
    hard = easy * noise(n, seed=99)[:, None] * torch.eye(5)[labels]
    forget = said(0.3 * noise(n, 5, seed=seed) + hard + known * torch.eye(5)[labels], labels)
    return {"forget": forget, "test": said(0.3 * noise(n, 5, seed=seed + 1) + hard, labels)}


def test_it_sees_what_the_loss_attack_cannot() -> None:
    """Samples differ by far more than forgetting does: pairing takes that out."""
    model, retrained = splits(4.0, 0.5, 0), splits(4.0, 0.0, 10)
    found = Membership(names=("loss", "paired"))(audit(model, retrained))
    assert abs(found["membership/loss/auc"].x - 0.5) < 0.08
    assert found[NAME].low > 0.7
    over = Membership(names=("paired",))(audit(splits(4.0, -0.5, 0), retrained))
    assert over[NAME].high < 0.3  # forgotten too well: the other side, not folded
    again = Membership(names=("paired",))(audit(splits(4.0, 0.0, 20), retrained))
    assert again[NAME].low < 0.5 < again[NAME].high
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    mixed = Membership(names=("paired",))(audit(taken(model, order), taken(retrained, order)))
    assert mixed[NAME].x == pytest.approx(found[NAME].x)


def test_one_half_is_the_ideal_and_retrained_itself_has_none() -> None:
    metric, one = Membership(names=("paired",)), splits(1.0, 0.0, 0)
    assert metric.numbers[NAME].target == 0.5
    assert metric(audit(one))[NAME] == Unavailable("there is no retrained model to compare with")
    given = audit(one, one)
    given.models["model"] = given.models["retrained"]
    assert metric(given)[NAME] == Unavailable("it is the reference itself")
    assert metric(audit(one, one))[NAME] == Unavailable("all scores are equal")


def test_without_classes_losses_take_the_place_of_margins() -> None:
    def real(error: float, seed: int) -> Outputs:
        target = noise(50, 1, seed=77)
        outputs = target + error * noise(50, 1, seed=seed)
        return Outputs(outputs, outputs, target, (outputs - target).square().mean(dim=1))

    model = {"forget": real(0.1, 0), "test": real(1.0, 1)}
    retrained = {"forget": real(1.0, 2), "test": real(1.0, 3)}
    found = Membership(names=("paired",))(audit(model, retrained, task=Regression()))
    assert found[NAME].x > 0.65
    fitted = Paired().fit(audit(model, retrained, task=Regression()))
    expected = retrained["forget"].loss - model["forget"].loss
    torch.testing.assert_close(fitted.score(model["forget"], retrained["forget"]), expected)
