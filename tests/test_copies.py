import copy
import threading
from collections import deque

import pytest
import torch
from torch import nn

from expunge import copies
from expunge.data import Data
from expunge.errors import UserError
from expunge.evidence import collect
from expunge.fisher import diagonal
from expunge.methods import build
from expunge.task import Classification
from expunge.tensors import weights_digest
from expunge.train import Recipe, fit, fresh
from expunge.unlearn import prepare, unlearn
from worlds import QUIET

TASK = Classification()


class Keeps(nn.Module):
    """Stores what it computes on itself."""

    def __init__(self, detached=False):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.detached = nn.Linear(4, 5), nn.Linear(5, 3), detached
        self.scale = torch.ones(())  # a constant that is no buffer

    def forward(self, x):
        hidden = self.body(x).relu() * self.scale
        self.last = hidden.detach() if self.detached else hidden
        self.body.seen = [x]
        self.scale = self.scale.clone()
        return self.head(hidden)


def samples(n=12):
    torch.manual_seed(1)
    return Data.from_arrays(torch.randn(n, 4), torch.arange(n) % 3)


def test_a_tensor_of_a_past_forward_pass_is_named():
    model = Keeps()
    model(torch.zeros(2, 4))
    with pytest.raises(
        UserError, match="a model that can be copied, got a tensor of a past forward pass in last: delete"
    ):
        fit(model, TASK, samples(), Recipe(epochs=1), runtime=QUIET)


def test_what_has_no_copy_is_named():
    model = nn.Linear(4, 3)
    model.lock = threading.Lock()
    with pytest.raises(UserError, match="a model that can be copied, got TypeError: cannot pickle '_thread.lock'"):
        copies.private(model)


@pytest.mark.parametrize("detached", [False, True])
def test_results_keep_no_samples_that_the_network_stored(detached):
    model, data = Keeps(detached).eval(), samples()
    trained = fit(model, TASK, data, Recipe(epochs=1), runtime=QUIET)
    ready = prepare(build({"name": "ssd"}), model, TASK, train=data, runtime=QUIET)
    forget = data.subset(data.ids[:3])
    done = unlearn(build({"name": "ssd"}), ready.model, TASK, forget=forget, state=ready.state, runtime=QUIET)
    for found in (trained, ready.model, done.model):
        assert not hasattr(found, "last")
        assert not hasattr(found.body, "seen")
        assert found.scale == 1
    assert weights_digest(ready.model) == weights_digest(model)


def test_what_the_caller_had_stored_is_put_back():
    model = Keeps(detached=True).eval()
    with torch.no_grad():
        model(torch.ones(2, 4))
    before = model.last.clone()
    found = fit(model, TASK, samples(), Recipe(epochs=1), runtime=QUIET)
    assert torch.equal(found.last, before)
    assert found.last is not model.last


class Table(nn.Module):
    """Keeps a table for the length it met last, as rotary embeddings do, and a queue of what passed."""

    def __init__(self):
        super().__init__()
        self.head, self.length, self.table, self.queue = nn.Linear(4, 3), None, None, deque(maxlen=2)

    def forward(self, x):
        if x.shape[1] != self.length or self.table.device != x.device:
            self.length, self.table = x.shape[1], torch.arange(x.shape[1]).cos()
        self.queue.append(x.detach())
        return self.head(x * self.table)


@pytest.mark.parametrize("used", [False, True])
def test_a_table_that_forward_keeps_goes_with_the_length_it_is_for(used):
    model, data = Table().eval(), samples()
    if used:
        model(torch.ones(1, 4))
    ready = prepare(build({"name": "ssd"}), model, TASK, train=data, runtime=QUIET)
    for found in (fit(model, TASK, data, Recipe(epochs=1), runtime=QUIET), ready.model):
        assert found.length == model.length
        assert len(found.queue) == int(used)
        assert found(torch.ones(2, 4)).shape == (2, 3)


class Itself(nn.Linear):
    def __deepcopy__(self, memo):
        return self


def test_a_copy_that_is_the_model_itself_is_refused_before_it_is_trained():
    model = Itself(4, 3)
    before = weights_digest(model)
    with pytest.raises(UserError, match="got a copy that shares parameters with it: mend its __deepcopy__"):
        fit(model, TASK, samples(), Recipe(epochs=1), runtime=QUIET)
    assert weights_digest(model) == before


def test_lists_of_parameters_stay_those_of_the_copy():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.lstm(x.unsqueeze(1))[0][:, -1])

    model = Last()
    found = fit(model, TASK, samples(), Recipe(epochs=1), runtime=QUIET)
    assert all(a is b for a, b in zip(found.lstm._flat_weights, found.lstm.parameters(), strict=True))
    assert not torch.equal(found.lstm.weight_ih_l0, model.lstm.weight_ih_l0)


LAZY = "a model whose parameters exist, got lazy 0.weight, 0.bias: run the model once"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: fit(m(), TASK, samples(), Recipe(), runtime=QUIET), LAZY),
        (lambda m: fresh(m()), LAZY),
        (lambda m: collect(m(), TASK, samples(), runtime=QUIET), LAZY),
        (lambda m: diagonal(m(), TASK, samples(), runtime=QUIET), LAZY),
        (lambda m: prepare(build({"name": "ssd"}), m(), TASK, train=samples(), runtime=QUIET), LAZY),
        (lambda m: unlearn(build({"name": "no_op"}), m(), TASK, forget=["a"], runtime=QUIET), LAZY),
    ],
    ids=["fit", "fresh", "collect", "diagonal", "prepare", "unlearn"],
)
def test_a_lazy_model_is_refused(call, said):
    with pytest.raises(UserError, match=said):
        call(lambda: nn.Sequential(nn.LazyLinear(3)).eval())


@pytest.mark.parametrize(
    "call",
    [
        lambda m, d: fit(m, TASK, d, Recipe(), runtime=QUIET),
        lambda m, d: collect(m, TASK, d, runtime=QUIET),
        lambda m, d: diagonal(m, TASK, d, runtime=QUIET),
        lambda m, d: prepare(build({"name": "ssd"}), m, TASK, train=d, runtime=QUIET),
    ],
    ids=["fit", "collect", "diagonal", "prepare"],
)
def test_other_things_for_a_model_and_for_data_are_refused(call):
    with pytest.raises(UserError, match=r"a torch\.nn\.Module, got dict: pass the trained network"):
        call({"weight": 1}, samples())
    with pytest.raises(UserError, match=r"as (expunge\.data\.)?Data, got tuple: build it with Data\.from_"):
        call(nn.Linear(4, 3).eval(), (torch.zeros(3, 4), [0, 1, 2]))


class Nothing(nn.Module):
    def forward(self, x):
        return x[:, :3]


@pytest.mark.parametrize(
    "call",
    [
        lambda m: fit(m, TASK, samples(), Recipe(), runtime=QUIET),
        lambda m: diagonal(m, TASK, samples(), runtime=QUIET),
        lambda m: prepare(build({"name": "ssd"}), m, TASK, train=samples(), runtime=QUIET),
    ],
    ids=["fit", "diagonal", "prepare"],
)
def test_a_model_without_parameters_is_refused(call):
    with pytest.raises(UserError, match="a model with trainable parameters, got none"):
        call(Nothing().eval())


def test_a_model_without_parameters_can_be_run_and_made_anew():
    assert collect(Nothing(), TASK, samples(), runtime=QUIET).outputs.shape == (12, 3)
    assert isinstance(fresh(Nothing(), new_model=None), Nothing)


class Silent(nn.Sequential):
    """Overrides `train` and forgets to return itself."""

    def train(self, mode=True):
        super().train(mode)


def test_a_train_that_returns_nothing_does_no_harm():
    model, data = Silent(nn.Linear(4, 3)), samples()
    model.eval()
    assert not fit(model, TASK, data, Recipe(epochs=2, patience=1), holdout=samples(6), runtime=QUIET).training
    assert fresh(model).training
    assert fresh(model, new_model=lambda: Silent(nn.Linear(4, 3))).training
    assert len(collect(model, TASK, data, runtime=QUIET)) == 12
    ready = prepare(build({"name": "ssd"}), model, TASK, train=data, runtime=QUIET)
    request = {"forget": data.subset(data.ids[:3]), "retain": data.without(data.ids[:3]), "runtime": QUIET}
    done = unlearn(build({"name": "ssd"}), ready.model, TASK, state=ready.state, **request)
    assert not done.model.training
    unlearn(build({"name": "retrain"}), model, TASK, recipe=Recipe(epochs=1), **request)


def test_the_layout_knows_hooks_and_attributes():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert copies.layout(copy.deepcopy(model)) == copies.layout(model)
    hooked, named = copy.deepcopy(model), copy.deepcopy(model)
    hooked[0].register_forward_hook(lambda m, a, o: o)
    named[1].mask = 3
    for other in (hooked, named, nn.Sequential(nn.Linear(2, 2), nn.Tanh()), model.double()):
        assert copies.layout(other) != copies.layout(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


def test_a_copy_keeps_no_dictionary_of_its_source():
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    net[0].register_forward_hook(lambda module, args, out: out + 1)
    made = copies.copied(net)
    mine, theirs = (
        {id(v) for m in one.modules() for v in vars(m).values() if isinstance(v, dict)} for one in (net, made)
    )
    assert not mine & theirs
    assert len(theirs) == len({(m, k) for m in made.modules() for k, v in vars(m).items() if isinstance(v, dict)})
    assert torch.equal(made(torch.ones(1, 3)), net(torch.ones(1, 3)))
    made[1].register_forward_hook(lambda module, args, out: out * 0)
    assert not net[1]._forward_hooks
    assert net(torch.ones(1, 3)).any()


def test_a_copy_holds_what_it_is_told_to_share():
    net = nn.Linear(3, 2)
    made = copies.copied(net, [net.weight])
    assert made.weight is net.weight
    assert made.bias is not net.bias
    assert torch.equal(made.bias, net.bias)
