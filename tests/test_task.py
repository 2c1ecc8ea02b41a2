import math
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from expunge.data import Batch
from expunge.errors import UserError
from expunge.task import Binary, Classification, Quantile, Regression, Task, run, sample_losses

D = torch.float64
INDEX = torch.arange(4)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3)).to(D)


def batch(x=None, target=None):
    torch.manual_seed(1)
    return Batch(torch.randn(4, 3, dtype=D) if x is None else x, target, None, INDEX)


class Shaped(nn.Module):
    """Wraps a network and returns its output in another container."""

    def __init__(self, net, shape):
        super().__init__()
        self.net, self.shape = net, shape

    def forward(self, x):
        return self.shape(self.net(x))


class Summed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, left, right=None):
        return self.layer(left + right)


def test_the_protocol_is_met():
    assert isinstance(Classification(), Task)
    assert isinstance(Regression(), Task)


def test_cross_entropy_by_hand():
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], dtype=D)
    found = Classification().loss(logits, torch.tensor([0, 2]))
    want = [-math.log(math.e / (math.e + math.e**2 + math.e**3)), math.log(3)]
    assert found.tolist() == pytest.approx(want, abs=1e-12)
    assert Classification().loss(logits, torch.tensor([0, 2], dtype=torch.uint8)).tolist() == found.tolist()


def test_predictions_and_probabilities():
    logits = torch.tensor([[1.0, 2.0], [math.log(3), 0.0]])
    assert Classification().predictions(logits).tolist() == [1, 0]
    p = Classification().probabilities(logits)
    assert p.dtype == D
    assert p[1].tolist() == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize(("error", "want"), [("squared", [(0.5**2 + 1) / 2, 4.5]), ("absolute", [(0.5 + 1) / 2, 1.5])])
def test_regression_loss_is_the_mean_over_targets(error, want):
    outputs = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=D)
    target = torch.tensor([[0.5, 3.0], [3.0, 0.0]], dtype=D)
    assert Regression(error=error).loss(outputs, target).tolist() == want
    assert Regression(error=error).loss(outputs[:, 1], target[:, 1]).tolist() == [
        float(v) ** (2 if error == "squared" else 1) for v in (1.0, 0.0)
    ]


def test_an_error_of_another_name_is_refused():
    with pytest.raises(UserError, match="error as squared or absolute, got 'mse': name one of the two"):
        Regression(error="mse")


@pytest.mark.parametrize("task", [Regression(), Binary(), Quantile(quantiles=(0.5,))])
def test_a_batch_of_one_that_a_network_squeezes_is_still_a_batch(task):
    model = Shaped(nn.Linear(3, 1), torch.squeeze)
    own = batch(torch.randn(1, 3), torch.ones(1))
    outputs, _ = task.forward(model, own)
    assert outputs.shape == (1, 1)
    assert sample_losses(task, outputs, own.target).shape == (1,)


@pytest.mark.parametrize("target", [torch.tensor([1.0, 2.0, 0.0, 1.0]), torch.tensor([[1.0], [2.0], [0.0], [1.0]])])
def test_one_dimensional_regression_never_broadcasts(target):
    model = Shaped(nn.Linear(3, 1).to(D), lambda y: y.squeeze(1))
    with torch.no_grad():
        outputs, _ = Regression().forward(model, batch())
    assert outputs.shape == (4, 1)
    found = Regression().loss(outputs, target)
    assert found.tolist() == [(float(o) - float(t)) ** 2 for o, t in zip(outputs, target, strict=True)]
    assert torch.equal(Regression().predictions(outputs), outputs)


@pytest.mark.parametrize(
    "shape",
    [
        lambda y: y,
        lambda y: {"loss": None, "logits": y},
        lambda y: types.SimpleNamespace(logits=y, hidden_states=None),
    ],
)
def test_outputs_with_logits_are_read_like_tensors(shape):
    net = network()
    outputs, found = Classification().forward(Shaped(net, shape), batch())
    assert torch.equal(outputs, net(batch().inputs))
    assert found == {}


@pytest.mark.parametrize("shape", [lambda y: (y,), lambda y: {"scores": y}, lambda y: None])
def test_other_outputs_are_refused(shape):
    with pytest.raises(UserError, match="returns a tensor or an output with logits, got (tuple|dict|NoneType): wrap"):
        Classification().forward(Shaped(network(), shape), batch())


def test_dict_inputs_become_keyword_arguments():
    model = Summed()
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    outputs, _ = run(model, batch({"right": y, "left": x}))
    assert torch.equal(outputs, model.layer(x + y))


def hooks(model):
    return sum(len(m._forward_hooks) for m in model.modules())


def test_taps_give_outputs_and_first_inputs():
    model = network()
    b = batch()
    outputs, found = run(model, b, taps=["0", "2:input", "", ":input"])
    hidden = F.linear(b.inputs, model[0].weight, model[0].bias)
    assert torch.equal(found["0"], hidden)
    assert torch.equal(found["2:input"], hidden.relu())
    assert torch.equal(found[""], outputs)
    assert torch.equal(found[":input"], b.inputs)
    assert torch.equal(outputs, run(model, b)[0])
    assert hooks(model) == 0


def test_a_tap_of_a_tuple_takes_its_first():
    model = nn.Sequential(nn.LSTM(3, 2, batch_first=True), nn.Identity())
    model[1].forward = lambda pair: pair[0]
    outputs, found = run(model, batch(torch.randn(4, 5, 3)), taps=["0"])
    assert torch.equal(found["0"], outputs)


@pytest.mark.parametrize(
    ("tap", "said"),
    [
        ("9", r"a tap 'module' or 'module:input' among layer, unused, got '9': name an existing module"),
        ("layer:output", "got 'layer:output'"),
        ("unused", "taps that the forward pass reaches, got unused, not called: name others"),
    ],
)
def test_wrong_taps_are_named_and_leave_no_hook(tap, said):
    model, inputs = Summed(), {"left": torch.ones(4, 3), "right": torch.ones(4, 3)}
    with pytest.raises(UserError, match=said):
        run(model, batch(inputs), taps=["layer", tap])
    assert hooks(model) == 0


def test_a_failing_forward_leaves_no_hook():
    model = network()
    with pytest.raises(RuntimeError):
        run(model, batch(torch.ones(4, 7, dtype=D)), taps=["0", "2"])
    assert hooks(model) == 0


def test_classes_are_drawn_from_the_softmax():
    logits = torch.tensor([[0.0, math.log(2), math.log(5)]]).expand(40_000, 3)
    task = Classification()
    drawn = task.sample_target(logits, torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=3) / len(drawn)
    assert share.tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.01)
    assert torch.equal(drawn, task.sample_target(logits, torch.Generator().manual_seed(0)))
    assert not torch.equal(drawn, task.sample_target(logits, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    ("error", "variance", "fourth"),
    [("squared", 0.5, 3 * 0.25), ("absolute", 2.0, 24.0)],  # normal of variance 1/2; Laplace of scale 1
)
def test_targets_are_drawn_from_the_density_of_the_loss(error, variance, fourth):
    outputs = torch.tensor([[3.0, -2.0]], dtype=D).expand(100_000, 2)
    task = Regression(error=error)
    drawn = task.sample_target(outputs, torch.Generator().manual_seed(0)) - outputs
    assert drawn.mean(dim=0).tolist() == pytest.approx([0, 0], abs=0.02)
    assert drawn.var(dim=0).tolist() == pytest.approx([variance] * 2, rel=0.03)
    assert drawn.pow(4).mean(dim=0).tolist() == pytest.approx([fourth] * 2, rel=0.12)
    assert abs(float((drawn[:, 0] * drawn[:, 1]).mean())) < 0.03  # drawn independently


@pytest.mark.parametrize(
    ("outputs", "target", "said"),
    [
        (torch.zeros(4), torch.tensor([0, 1, 2, 0]), r"logits of shape \(B, K\), got \(4,\)"),
        (torch.zeros(4, 3, 1), torch.tensor([0, 1, 2, 0]), r"got \(4, 3, 1\)"),
        (torch.zeros(4, 3), torch.tensor([0.0, 1.0, 2.0, 0.0]), r"class indices as integers .* got torch.float32"),
        (torch.zeros(4, 3), torch.tensor([True, False, True, False]), "got torch.bool"),
        (torch.zeros(4, 3), F.one_hot(torch.tensor([0, 1, 2, 0])), r"got torch.int64 of shape \(4, 3\)"),
        (torch.zeros(4, 3), torch.tensor([0, 1, 3, 0]), "classes 0 to 2, got class 3"),
        (torch.zeros(4, 3), torch.tensor([0, -100, 2, 0]), "classes 0 to 2, got class -100"),
    ],
)
def test_classification_check(outputs, target, said):
    with pytest.raises(UserError, match=said):
        Classification().check(outputs, target)


@pytest.mark.parametrize(
    ("outputs", "target", "said"),
    [
        (
            torch.zeros(4, 1),
            torch.tensor([0, 1, 2, 0]),
            "real targets, got torch.int64, targets that are classes: pass floats",
        ),
        (torch.zeros(4, 2), torch.zeros(4), r"the outputs' shape, got \(4,\) for outputs \(4, 2\)"),
        (torch.zeros(4, 2), torch.zeros(2, 4), r"got \(2, 4\) for outputs \(4, 2\)"),
        (torch.zeros(4, 2, 3), torch.zeros(4, 3, 2), r"got \(4, 3, 2\) for outputs \(4, 2, 3\): make the two agree"),
        (torch.zeros(4, 6), torch.zeros(4, 3, 2), r"got \(4, 3, 2\) for outputs \(4, 6\)"),
        (torch.zeros(4, 1), torch.tensor([0.0, math.nan, 0.0, 0.0]), "finite targets, got NaN or infinity"),
        (torch.zeros(4, 1), torch.tensor([0.0, math.inf, 0.0, 0.0]), "finite targets"),
    ],
)
def test_regression_check(outputs, target, said):
    with pytest.raises(UserError, match=said):
        Regression().check(outputs, target)


def test_right_targets_pass():
    Classification().check(torch.zeros(4, 3), torch.tensor([0, 2, 1, 0], dtype=torch.int32))
    Regression().check(torch.zeros(4, 1), torch.zeros(4))
    Regression().check(torch.zeros(4, 2), torch.zeros(4, 2))
    Regression().check(torch.zeros(4, 2, 1), torch.zeros(4, 2))
    Regression().check(torch.zeros(4, 1), torch.zeros(4, 1, 1))
