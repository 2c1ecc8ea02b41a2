import math
import time
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from expunge import tensors
from expunge.data import Data
from expunge.errors import NotFinite, UserError
from expunge.evidence import Outputs, Shadow, _joined, collect
from expunge.runtime import Runtime
from expunge.task import Classification, Regression

D = torch.float64
RUN = Runtime(batch_size=3, progress=False)  # 3, 3 and 2 samples


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.ReLU(), nn.Linear(5, 3)).to(D)


def samples(**options):
    torch.manual_seed(1)
    return Data.from_arrays(torch.randn(8, 4, dtype=D), torch.arange(8) % 3, **options)


def one_by_one(model, data):
    """Return outputs and losses of each sample alone, in eval mode."""
    model = model.eval()
    rows = [data.read([i]) for i in range(len(data))]
    with torch.no_grad():
        outputs = [model(r.inputs)[0] for r in rows]
    losses = [float(-o.log_softmax(0)[int(r.target)]) for o, r in zip(outputs, rows, strict=True)]
    return torch.stack(outputs), losses


def test_every_row_is_what_the_sample_gives_alone():
    data = samples()
    found = collect(network(), Classification(), data, runtime=RUN)
    outputs, losses = one_by_one(network(), data)
    assert torch.allclose(found.outputs, outputs, rtol=0, atol=1e-12)
    assert found.loss.tolist() == pytest.approx(losses, abs=1e-12)
    assert found.prediction.tolist() == outputs.argmax(1).tolist()
    assert found.target.tolist() == data.targets().tolist()
    assert len(found) == 8


@pytest.mark.parametrize("size", [1, 4, 8, 100])
def test_batch_size_changes_nothing(size):
    a, b = (
        collect(network(), Classification(), samples(), runtime=Runtime(batch_size=s, progress=False))
        for s in (size, 3)
    )
    assert torch.allclose(a.outputs, b.outputs, rtol=0, atol=1e-12)


def test_rows_follow_the_datas_order():
    data = samples()
    part = data.subset(["train/6", "train/1", "train/3", "train/0"])
    whole, found = (collect(network(), Classification(), d, runtime=RUN) for d in (data, part))
    assert torch.allclose(found.outputs, whole.outputs[[6, 1, 3, 0]], rtol=0, atol=1e-12)


def test_results_are_in_float64_on_a_float32_model():
    data = Data.from_arrays(torch.ones(2, 4), [0, 1])
    found = collect(network().float(), Classification(), data, runtime=RUN)
    assert (found.outputs.dtype, found.loss.dtype) == (D, D)
    want = F.cross_entropy(found.outputs, torch.tensor([0, 1]), reduction="none")
    assert found.loss.tolist() == want.tolist()  # computed wide, not widened


def test_regression():
    data = Data.from_arrays(samples().read(range(8)).inputs, torch.arange(8.0, dtype=D))
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)).to(D)
    found = collect(model, Regression(), data, runtime=RUN)
    assert found.outputs.shape == (8, 1)
    want = [(float(o) - i) ** 2 for i, o in enumerate(found.outputs)]
    assert found.loss.tolist() == pytest.approx(want, abs=1e-12)


def test_features_are_the_tapped_activations():
    model, data = network(), samples()
    found = collect(model, Classification(), data, taps=["0", "4:input"], runtime=RUN)
    x = data.read(range(8)).inputs
    with torch.no_grad():
        first = model[0](x)
        last = model.eval()[1](first).relu()
    assert torch.allclose(found.features["0"].double(), first, atol=1e-6)
    assert torch.allclose(found.features["4:input"].double(), last, atol=1e-6)


def test_without_labels_there_is_no_loss():
    found = collect(network(), Classification(), samples().unlabelled(), runtime=RUN)
    assert found.target is None
    assert found.loss is None
    assert found.take(torch.tensor([1])).loss is None


def test_take_keeps_rows_together():
    found = collect(network(), Classification(), samples(), taps=["0"], runtime=RUN)
    some = found.take(torch.tensor([5, 2]))
    assert torch.equal(some.outputs, found.outputs[[5, 2]])
    assert some.loss.tolist() == [float(found.loss[5]), float(found.loss[2])]
    assert some.prediction.tolist() == [int(found.prediction[5]), int(found.prediction[2])]
    assert some.target.tolist() == [2, 2]
    assert torch.equal(some.features["0"], found.features["0"][[5, 2]])
    assert len(found.take(torch.arange(8) > 4)) == 3


@pytest.mark.parametrize("fails", [False, True])
def test_model_modes_grads_hooks_and_generators_are_left_as_found(fails):
    model, data = network().train(), samples()
    model[2].eval()
    model[0].weight.requires_grad_(False)
    before = tensors.weights_digest(model)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    if fails:
        with pytest.raises(UserError, match="taps that the forward pass reaches|a tap"):
            collect(model, Classification(), data, taps=["0", "9"], runtime=RUN)
    else:
        collect(model, Classification(), data, taps=["0"], runtime=RUN)
    assert [m.training for m in model] == [True, True, False, True, True]
    assert model.training
    assert tensors.weights_digest(model) == before  # the running statistics too
    assert torch.is_grad_enabled()
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True, True]
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_outputs_that_are_not_finite_are_refused(bad):
    model = network().train()
    with torch.no_grad():
        model[4].bias[1] = bad
    with pytest.raises(NotFinite, match="finite outputs on probe, got NaN or infinity: check the weights and inputs"):
        collect(model, Classification(), samples(name="probe"), runtime=RUN)
    assert model.training


def test_targets_that_do_not_fit_are_refused():
    data = Data.from_arrays(torch.zeros(2, 4, dtype=D), [0, 3])
    with pytest.raises(UserError, match="classes 0 to 2, got class 3"):
        collect(network(), Classification(), data, runtime=RUN)


def test_no_samples_are_refused():
    with pytest.raises(UserError, match="samples to run the model on, got none in train"):
        collect(network(), Classification(), samples().subset([]), runtime=RUN)


def test_progress_counts_every_sample():
    heard = []
    collect(network(), Classification(), samples(), runtime=Runtime(batch_size=3, progress=heard.append))
    assert [(p.done, p.total) for p in heard] == [(3, 8), (6, 8), (8, 8)]


def test_ids_go_with_the_rows():
    data = samples()
    found = collect(network(), Classification(), data, runtime=RUN)  # in three batches
    assert found.ids == tuple(data.ids) == tuple(f"train/{i}" for i in range(8))
    assert found.take(torch.tensor([5, 2])).ids == ("train/5", "train/2")
    assert found.take(torch.arange(8) > 5).ids == ("train/6", "train/7")
    assert found.take(torch.arange(0)).ids == ()
    part = collect(network(), Classification(), data.subset(["train/6", "train/1"]), runtime=RUN)
    assert part.ids == ("train/6", "train/1")
    assert _joined([part, found.take(torch.tensor([0]))]).ids == ("train/6", "train/1", "train/0")
    nameless = replace(part, ids=None)
    assert nameless.take(torch.tensor([1])).ids is None
    assert _joined([part, nameless]).ids is None  # some are no names of all


def test_ids_of_many_samples_cost_nothing_to_speak_of():
    n = 50_000
    one = torch.zeros(n, 1)
    bare = Outputs(one, one[:, 0])
    named = replace(bare, ids=tuple(f"train/{i}" for i in range(n)))
    index = torch.arange(n - 1, -1, -1)
    took = []
    for _ in range(5):
        start = time.perf_counter()
        found = named.take(index)
        took.append(time.perf_counter() - start)
    assert found.ids[0] == f"train/{n - 1}"
    assert min(took) < 0.1  # some 3 ms on an idle core


def test_a_shadow_is_evidence_that_says_what_it_was_trained_on():
    model, data = network(), samples()
    splits = {"forget": data.subset(["train/6", "train/1"]), "test": data.without(["train/6", "train/1"])}
    found = Shadow.of(model, Classification(), splits, trained=["train/6", "other/2"], runtime=RUN)
    assert found.trained == {"train/6", "other/2"}
    assert list(found) == [("model", "forget"), ("model", "test")]
    assert len(found) == 2
    assert found["model", "forget"].ids == ("train/6", "train/1")
    want = collect(model, Classification(), splits["test"], runtime=RUN)
    assert torch.equal(found["model", "test"].outputs, want.outputs)
    assert found.get(("retrained", "test")) is None
    assert ("model", "retain") not in found
    assert repr(found) == "Shadow(forget, test; trained on 2 samples)"
    with pytest.raises(KeyError):
        found["original", "test"]
    with pytest.raises(UserError, match=r"a list of ids, got 'train/6': write \[id\] for a single one"):
        Shadow({}, "train/6")
