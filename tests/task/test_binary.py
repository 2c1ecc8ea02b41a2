import math

import pytest
import torch
from torch import nn

from expunge.data import Batch
from expunge.errors import UserError
from expunge.task import Binary, Classes, Task, class_count, class_logits

D = torch.float64
LOGITS = torch.tensor([[0.0], [math.log(3)], [-2.0]], dtype=D)


def test_the_protocols_are_met():
    assert isinstance(Binary(), Task)
    assert isinstance(Binary(), Classes)


@pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.bool, torch.float32, D])
def test_the_loss_is_that_of_a_logistic_regression(kind):
    found = Binary().loss(LOGITS, torch.tensor([1, 0, 1]).to(kind))
    want = [math.log(2), math.log(4), math.log(1 + math.exp(2))]
    assert found.tolist() == pytest.approx(want, abs=1e-12)
    assert Binary().loss(LOGITS[:, 0], torch.tensor([1, 0, 1]).to(kind)).tolist() == found.tolist()


def test_the_loss_stays_finite_at_large_logits():
    found = Binary().loss(torch.tensor([[1000.0], [-1000.0]]), torch.tensor([0, 1]))
    assert found.tolist() == [1000.0, 1000.0]


def test_predictions_and_probabilities_are_of_two_classes():
    assert Binary().predictions(LOGITS).tolist() == [0, 1, 0]
    p = Binary().probabilities(LOGITS.float())
    assert p.dtype == D
    assert p.tolist()[0] == [0.5, 0.5]
    assert p.tolist()[1] == pytest.approx([0.25, 0.75], abs=1e-7)
    assert p.sum(dim=1).tolist() == pytest.approx([1, 1, 1])


def test_class_logits_have_the_loss_as_their_cross_entropy():
    two = class_logits(Binary(), LOGITS)
    assert two.tolist() == [[0.0, z] for z in LOGITS.flatten().tolist()]
    target = torch.tensor([1, 0, 1])
    assert torch.equal(two.argmax(dim=1), Binary().predictions(LOGITS))
    assert torch.allclose(nn.functional.cross_entropy(two, target, reduction="none"), Binary().loss(LOGITS, target))
    assert class_count(Binary(), LOGITS) == 2


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("squeezed", [False, True])
def test_one_logit_comes_with_or_without_a_column(size, squeezed):
    net = nn.Linear(3, 1)
    model = nn.Sequential(net, nn.Flatten(0)) if squeezed else net
    batch = Batch(torch.randn(size, 3), torch.ones(size), None, torch.arange(size))
    outputs, _ = Binary().forward(model, batch)
    assert outputs.shape == (size, 1)
    Binary().check(outputs, batch.target)
    assert Binary().loss(outputs, batch.target).shape == (size,)
    assert Binary().predictions(outputs).shape == (size,)


def test_classes_are_drawn_from_the_probability():
    logits = torch.full((40_000, 1), math.log(3))
    drawn = Binary().sample_target(logits, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.int64
    assert float(drawn.double().mean()) == pytest.approx(0.75, abs=0.01)
    assert torch.equal(drawn, Binary().sample_target(logits, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("outputs", "target", "said"),
    [
        (
            torch.zeros(4, 2),
            torch.zeros(4),
            r"one logit a sample, \(B,\) or \(B, 1\), got \(4, 2\): end the network in",
        ),
        (torch.zeros(4, 1, 1), torch.zeros(4), r"got \(4, 1, 1\)"),
        (torch.tensor(0.0), torch.zeros(1), r"got \(\)"),
        (
            torch.zeros(4, 1),
            torch.zeros(4, 1),
            r"one target a sample, of shape \(B,\), got \(4, 1\) for 4 samples: pass",
        ),
        (torch.zeros(4, 1), torch.zeros(3), r"got \(3,\) for 4 samples"),
        (torch.zeros(4, 1), torch.tensor([0, 1, 2, 0]), "targets 0 or 1, got 2: encode the two classes as 0 and 1"),
        (torch.zeros(4, 1), torch.tensor([0, 1, -1, 0]), "got -1: encode"),
        (torch.zeros(4, 1), torch.tensor([0.0, 0.3, 1.0, 0.0]), "got 0.3: encode"),
        (torch.zeros(4, 1), torch.tensor([0.0, math.nan, 1.0, 0.0]), "got nan: drop or repair those samples"),
        (torch.zeros(4, 1), torch.zeros(4, dtype=torch.complex64), "targets 0 or 1, got torch.complex64"),
    ],
)
def test_what_does_not_fit_is_refused(outputs, target, said):
    with pytest.raises(UserError, match=said):
        Binary().check(outputs, target)


@pytest.mark.parametrize("target", [torch.tensor([0, 1]), torch.tensor([True, False]), torch.tensor([1.0, 0.0])])
def test_right_targets_pass(target):
    Binary().check(torch.zeros(2, 1), target)
    Binary().check(torch.zeros(2), target)
