"""LFSSD: the output-norm importance by hand, and no label anywhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cases import blobs, deep
from expunge.data import Data
from expunge.errors import MissingNeed
from expunge.fisher import diagonal
from expunge.method import See
from expunge.methods import load
from expunge.task import Classification
from expunge.tensors import weights_digest
from expunge.train import Recipe, fit
from expunge.unlearn import Unlearned, prepare, unlearn

LFSSD = load("lfssd")
TASK = Classification()


def request(model: nn.Module, train: Data, forget: Data, alpha: float) -> Unlearned:
    ready = prepare(LFSSD(alpha=alpha), model, TASK, train=train)
    return unlearn(LFSSD(alpha=alpha), model, TASK, forget=forget, state=ready.state)


@pytest.mark.parametrize("sign", [1, -1])
def test_four_samples_by_hand(sign: int):
    """∂‖f‖²/∂W row: (6,6), (−2,2), (8,0), (0,16); means of absolute values (4,6), and r₂ = 16/6."""
    model = nn.Linear(2, 2, bias=False).double().eval()
    model.weight.data = torch.tensor([[1.0, 2.0], [1.0, 2.0]], dtype=torch.float64) * sign
    data = Data.from_arrays(torch.tensor([[1.0, 1], [1, -1], [2, 0], [0, 2]], dtype=torch.float64))
    found = diagonal(model, TASK, data, of="output_norm").values["weight"]
    torch.testing.assert_close(found, torch.tensor([[4.0, 6.0]] * 2, dtype=torch.float64))
    done = request(model, data, data.subset(["train/3"]), 2.0)
    expected = torch.tensor([[1.0, 0.75]] * 2, dtype=torch.float64) * sign
    torch.testing.assert_close(done.model.weight.data, expected)
    assert request(model, data, data.subset(["train/3"]), 2.7).changed.count == 0  # 16/6 < 2.7


def test_labels_are_never_seen():
    assert LFSSD().prepares.train is See.INPUTS
    assert LFSSD().unlearns.forget is See.INPUTS
    model, data = fit(deep(), TASK, blobs(), Recipe(epochs=5, lr=0.05)), blobs()
    inputs = data.read(range(len(data))).inputs
    labels = data.targets()
    ids = data.ids[:6]
    found = [
        request(model, d, d.subset(ids), 1.1)
        for d in (data, Data.from_arrays(inputs, labels.flip(0)), Data.from_arrays(inputs), data.unlabelled())
    ]
    assert found[0].changed.count > 0
    assert len({weights_digest(done.model) for done in found}) == 1
    # a state prepared with one labelling serves a request with another
    state = prepare(LFSSD(alpha=1.1), model, TASK, train=data).state
    other = Data.from_arrays(inputs, labels.flip(0)).subset(ids)
    done = unlearn(LFSSD(alpha=1.1), model, TASK, forget=other, state=state)
    assert weights_digest(done.model) == weights_digest(found[0].model)
    assert weights_digest(model) != weights_digest(found[0].model)


def test_next_state_equals_one_prepared_without_the_forgotten():
    model, data = fit(deep(), TASK, blobs(), Recipe(epochs=5, lr=0.05)), blobs()
    ids = data.ids[10:25]
    done = request(model, data, data.subset(ids), 1.1)
    without = prepare(LFSSD(), model, TASK, train=data.without(ids)).state
    names = [k for k in without.tensors if k.startswith("importance/")]
    assert names
    for name in names:
        torch.testing.assert_close(done.state.tensors[name], without.tensors[name], rtol=1e-6, atol=1e-12)
    assert done.state.meta["count"] == 45
    assert int(done.state.tensors["samples/forgotten"].sum()) == 15


@pytest.mark.parametrize(
    ("ids", "order", "row"),
    [("0123", "data", (3.0, 6.0)), ("0213", "data", (4.0, 6.0)), ("3120", "label", (4.0, 6.0))],
)
def test_means_over_batches_by_hand(ids: str, order: str, row: tuple[float, float]):
    """Signs cancel inside a batch: (6,6) with (−2,2) and (8,0) with (0,16) give (2,4) and (4,8); I_f is (0,16)."""
    model = nn.Linear(2, 2, bias=False).double().eval()
    model.weight.data = torch.tensor([[1.0, 2.0], [1.0, 2.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 1], [1, -1], [2, 0], [0, 2]], dtype=torch.float64)
    weight = [1.0, 7.0, 5.0, 3.0]  # a sample's weight belongs to its loss, and must not come in with its label
    whole = Data.from_arrays(x, torch.tensor([0, 1, 0, 1]), weight=weight)
    data = whole.subset([f"train/{i}" for i in ids])
    method = LFSSD(alpha=2.0, importance="batch_mean", batch=2, order=order)
    state = prepare(method, model, TASK, train=data).state
    omega = state.tensors["importance/weight"] / state.meta["count"]
    torch.testing.assert_close(omega, torch.tensor([row, row], dtype=torch.float64))
    done = unlearn(method, model, TASK, forget=data.subset(["train/3"]), state=state)
    torch.testing.assert_close(done.model.weight.data, torch.tensor([[1, 0.75]] * 2, dtype=torch.float64))


def test_labels_are_asked_for_only_to_sort_by_them():
    model, data = fit(deep(), TASK, blobs(), Recipe(epochs=5, lr=0.05)), blobs()
    given = LFSSD(importance="batch_mean", order="data")
    assert (given.prepares.train, given.unlearns.forget) == (See.INPUTS, See.INPUTS)
    assert prepare(given, model, TASK, train=data.unlabelled()).state.meta["of"] == "batch_mean_norm"
    by_label = LFSSD(importance="batch_mean")
    assert (by_label.prepares.train, by_label.unlearns.forget) == (See.LABELLED, See.LABELLED)
    with pytest.raises(MissingNeed, match="train data with labels for lfssd"):
        prepare(by_label, model, TASK, train=data.unlabelled())
    assert LFSSD(order="label").prepares.train is See.INPUTS  # the exact importance has no order
