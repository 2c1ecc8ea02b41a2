import math

import pytest
import torch
from torch import nn

from expunge.data import Batch
from expunge.errors import UserError
from expunge.task import Classes, MultiLabel, Task, class_count, class_logits

D = torch.float64
LOGITS = torch.tensor([[0.0, math.log(3)], [-math.log(4), 1.0]], dtype=D)


def test_it_is_a_task_without_exclusive_classes():
    assert isinstance(MultiLabel(), Task)
    assert not isinstance(MultiLabel(), Classes)
    assert class_count(MultiLabel(), LOGITS) == 0
    with pytest.raises(
        UserError, match="a task of exclusive classes for the head, got MultiLabel: use Classification, or"
    ):
        class_logits(MultiLabel(), LOGITS, "the head")


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float32])
def test_the_loss_is_the_mean_over_labels(kind):
    found = MultiLabel().loss(LOGITS, torch.tensor([[1, 1], [0, 0]]).to(kind))
    want = [(math.log(2) + math.log(4 / 3)) / 2, (math.log(5 / 4) + math.log(1 + math.e)) / 2]
    assert found.tolist() == pytest.approx(want, abs=1e-12)


def test_predictions_and_probabilities_are_label_by_label():
    assert MultiLabel().predictions(LOGITS).tolist() == [[0, 1], [0, 1]]
    p = MultiLabel().probabilities(LOGITS.float())
    assert p.dtype == D
    assert p.flatten().tolist()[:3] == pytest.approx([0.5, 0.75, 0.2], abs=1e-7)


def test_labels_are_drawn_independently():
    logits = torch.tensor([[0.0, math.log(3)]]).expand(40_000, 2)
    drawn = MultiLabel().sample_target(logits, torch.Generator().manual_seed(0)).double()
    assert drawn.mean(dim=0).tolist() == pytest.approx([0.5, 0.75], abs=0.01)
    assert float((drawn[:, 0] * drawn[:, 1]).mean()) == pytest.approx(0.375, abs=0.01)


def test_one_sample_goes_through():
    batch = Batch(torch.randn(1, 3), torch.tensor([[1, 0]]), None, torch.arange(1))
    outputs, _ = MultiLabel().forward(nn.Linear(3, 2), batch)
    MultiLabel().check(outputs, batch.target)
    assert MultiLabel().loss(outputs, batch.target).shape == (1,)


@pytest.mark.parametrize(
    ("outputs", "target", "said"),
    [
        (torch.zeros(4), torch.zeros(4), r"logits of shape \(B, K\), got \(4,\)"),
        (
            torch.zeros(4, 3),
            torch.zeros(4),
            r"one 0 or 1 for every label, of shape \(B, K\), got \(4,\) for logits \(4, 3",
        ),
        (
            torch.zeros(4, 3),
            torch.zeros(4, 4),
            r"got \(4, 4\) for logits \(4, 3\): make labels and the last layer agree",
        ),
        (torch.zeros(1, 2), torch.tensor([[0, 3]]), "targets 0 or 1, got 3"),
        (torch.zeros(1, 2), torch.tensor([[0.5, 1.0]]), "targets 0 or 1, got 0.5"),
        (torch.zeros(1, 2), torch.tensor([[math.nan, 1.0]]), "got nan: drop or repair those samples"),
    ],
)
def test_what_does_not_fit_is_refused(outputs, target, said):
    with pytest.raises(UserError, match=said):
        MultiLabel().check(outputs, target)
