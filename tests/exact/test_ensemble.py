"""Several networks as one: what their outputs mean, and that every tensor is there once, wherever the module goes."""

import copy
import math
import pickle
import threading

import pytest
import torch
from torch import nn

from expunge.copies import private
from expunge.errors import UserError
from expunge.exact.ensemble import RULES, Ensemble, combined, rule, twin
from expunge.task import Binary, Classification, MultiLabel, Quantile, Regression
from expunge.tensors import weights_digest

TASKS = {
    (Classification(), "softmax"): "softmax",
    (Classification(), "logits"): "mean",
    (Classification(), "votes"): "votes",
    (Binary(), "softmax"): "sigmoid",
    (Binary(), "logits"): "mean",
    (MultiLabel(), "votes"): "votes of signs",
    (Regression(), "softmax"): "mean",
    (Regression(), "votes"): "mean",
    (Quantile((0.1, 0.9)), "softmax"): "mean",
}


class Logged(nn.Module):
    """A network with a buffer, a tied weight and outputs as of transformers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return {"logits": self.norm(self.second(torch.tanh(self.first(x))))}


def shared(count=3):
    """Return an ensemble whose members hold the base's own tensors, and one layer more of their own."""
    torch.manual_seed(0)
    base = Logged()
    members = {}
    for at in range(count):
        member = twin(base)
        member.second = nn.Linear(3, 3)
        members[str(at)] = member
    return Ensemble(base, members).eval()


@pytest.mark.parametrize(("task", "aggregate"), TASKS)
def test_the_rule_follows_from_the_task(task, aggregate):
    assert rule(aggregate, task) == TASKS[task, aggregate]


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_softmax_of_the_outputs_is_the_mean_softmax(scale):
    outputs = scale * torch.randn(4, 5, 3, dtype=torch.float64)
    want = outputs.softmax(-1).mean(0)
    assert torch.allclose(combined(outputs, "softmax").softmax(-1), want, atol=1e-12)
    assert torch.isfinite(combined(outputs, "softmax")).all()


def test_sigmoid_of_the_outputs_is_the_mean_sigmoid():
    outputs = torch.randn(4, 5, 1, dtype=torch.float64)
    assert torch.allclose(combined(outputs, "sigmoid").sigmoid(), outputs.sigmoid().mean(0), atol=1e-12)
    far = torch.full((3, 1), 400.0)
    assert torch.equal(combined(far, "sigmoid"), far[0])


def test_votes_are_shares_and_the_mean_probability_breaks_ties():
    outputs = torch.tensor([[[4.0, 0, 0]], [[0, 1.0, 0]], [[0, 1.1, 0]]])
    assert combined(outputs, "votes").argmax().item() == 1
    assert combined(outputs, "votes").softmax(-1)[0].tolist() == pytest.approx([1 / 3, 2 / 3, 0], abs=1e-3)
    tie = torch.tensor([[[0.0, 9.0, 0]], [[1.0, 0, 0]]])
    assert combined(tie, "votes").argmax().item() == 1
    assert torch.isfinite(combined(1e4 * outputs, "votes")).all()


def test_votes_of_signs_are_the_log_ratio_of_votes():
    outputs = torch.tensor([[[2.0, -1]], [[3.0, -1]], [[-9.0, -1]]], dtype=torch.float64)
    found = combined(outputs, "votes of signs")
    assert found[0, 0].item() == pytest.approx(math.log(2), abs=1e-3)
    assert found[0, 1].item() < -5


@pytest.mark.parametrize("how", RULES)
def test_one_member_says_what_it_says(how):
    outputs = torch.randn(1, 6, 3)
    if how not in ("votes", "votes of signs"):
        assert torch.allclose(combined(outputs, how).softmax(-1), outputs[0].softmax(-1), atol=1e-6)
    assert torch.equal(combined(outputs, how).argmax(-1), outputs[0].argmax(-1))
    assert combined(outputs.bfloat16(), how).dtype == torch.bfloat16


def test_what_members_share_is_in_memory_once_wherever_the_module_goes():
    made = shared()
    for other in (made, copy.deepcopy(made), pickle.loads(pickle.dumps(made)), private(made), made.to("cpu").double()):
        first, *rest = other.members.values()
        assert all(m.first.weight is other.base.first.weight for m in [first, *rest])
        assert len({id(p) for p in other.parameters()}) == 5 + 2 * 3
        names = list(other.state_dict())
        assert "base.first.weight" in names
        assert "members.0.first.weight" not in names
        assert "members.2.second.weight" in names
        assert all(m.norm.running_mean is other.base.norm.running_mean for m in [first, *rest])
        assert names == list(made.state_dict())
    assert weights_digest(copy.deepcopy(made)) == weights_digest(made)


def test_a_copy_shares_nothing_with_its_original():
    made = shared()
    other = copy.deepcopy(made)
    with torch.no_grad():
        other.base.first.weight.zero_()
    assert made.members["1"].first.weight.abs().sum() > 0
    assert other.members["1"].first.weight.abs().sum() == 0


def test_the_state_dict_of_shared_tensors_loads_back():
    made, other = shared(), shared()
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(made.state_dict())
    assert weights_digest(other) == weights_digest(made)
    short = made.state_dict()
    short.pop("members.1.second.bias")
    with pytest.raises(RuntimeError, match=r"members\.1\.second\.bias"):
        other.load_state_dict(short)


def test_modes_reach_every_member_and_the_base_is_frozen():
    made = shared().train()
    assert all(m.norm.training for m in made.members.values())
    made.eval()
    assert not any(m.training for m in made.modules())
    assert not any(p.requires_grad for p in made.base.parameters())
    assert all(m.second.weight.requires_grad for m in made.members.values())


def test_many_threads_predict_at_once():
    made, x = shared(4), torch.randn(64, 3)
    want, wrong = made(x), []

    def work():
        with torch.no_grad():
            for _ in range(20):
                if not torch.equal(made(x), want):
                    wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_no_member_and_an_unknown_rule_are_refused():
    with pytest.raises(UserError, match="an ensemble of one member or more, got none"):
        Ensemble(nn.Linear(1, 1), {})
    with pytest.raises(UserError, match="a rule among .*, got 'median'"):
        Ensemble(nn.Linear(1, 1), {"0": nn.Linear(1, 1)}, "median")
