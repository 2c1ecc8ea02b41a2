"""The head mask: it hides a class behind its logit and changes no weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, Output, blobs, deep
from expunge.data import Data
from expunge.errors import Declined
from expunge.method import State
from expunge.methods import load
from expunge.scenario import forget_class, forget_random
from expunge.task import Classification, Regression, output_tensor
from expunge.tensors import weights_digest
from expunge.train import Recipe, fit
from expunge.unlearn import Unlearned, serve, unlearn

TASK = Classification()
MASK = load("head_mask")


def logits(model: nn.Module, data: Data) -> Tensor:
    with torch.no_grad():
        return output_tensor(model(data.read(range(len(data))).inputs))


def request(model: nn.Module, data: Data, label: int = 1, **options: float) -> Unlearned:
    case = forget_class(data, label)
    return unlearn(MASK(**options), model, TASK, forget=data.subset(case.forget), scenario=case)


@pytest.mark.parametrize("kind", ["tensor", "object", "mapping"])
def test_one_logit_falls_below_all_others_and_the_rest_is_untouched(kind: str):
    data = blobs()
    if kind == "tensor":
        model = fit(deep(), TASK, data, Recipe(epochs=3, lr=0.05))
    else:
        torch.manual_seed(0)
        model = Output(mapping=kind == "mapping").double().eval()
    before = logits(model, data)
    done = request(model, data)
    after = logits(done.model, data)
    assert torch.equal(after[:, [0, 2]], before[:, [0, 2]])
    torch.testing.assert_close(after[:, 1], before[:, [0, 2]].amin(dim=1) - 10)
    assert int((before.argmax(dim=1) == 1).sum()) > 0
    assert int((after.argmax(dim=1) == 1).sum()) == 0
    assert weights_digest(done.model) == weights_digest(model)
    assert done.changed.count == 0
    assert torch.equal(logits(model, data), before)  # the caller's model carries no hook
    assert float((logits(request(model, data, margin=2.5).model, data)[:, 1] - after[:, 1] - 7.5).abs().max()) < 1e-12


def test_serve_puts_the_hook_back_on_weights_from_disk(tmp_path):
    data = blobs()
    model = fit(deep(), TASK, data, Recipe(epochs=3, lr=0.05))
    done = request(model, data, margin=3.0)
    done.state.save(tmp_path / "state.safetensors")
    bare = deep().eval()
    bare.load_state_dict(done.model.state_dict())
    assert int((logits(bare, data).argmax(dim=1) == 1).sum()) > 0
    served = serve(MASK(), bare, State.load(tmp_path / "state.safetensors"))
    assert torch.equal(logits(served, data), logits(done.model, data))


def test_second_request_masks_both_classes():
    data = blobs()
    model = fit(deep(), TASK, data, Recipe(epochs=3, lr=0.05))
    first = request(model, data)
    case = forget_class(data, 0)
    both = unlearn(MASK(), first.model, TASK, forget=data.subset(case.forget), state=first.state, scenario=case)
    assert set(logits(both.model, data).argmax(dim=1).tolist()) == {2}
    bare = deep().eval()
    bare.load_state_dict(both.model.state_dict())
    assert set(logits(serve(MASK(), bare, both.state), data).argmax(dim=1).tolist()) == {2}


def test_declines_what_is_no_class():
    data = blobs()
    case = forget_random(data, 5)
    with pytest.raises(Declined, match="masks one class, and the forget set is of kind 'random'"):
        unlearn(MASK(), deep(), TASK, forget=data.subset(case.forget), scenario=case)
    model, targets = CASES["linear_regression"].make()
    case = forget_random(targets, 2)
    with pytest.raises(Declined, match="this task has no classes"):
        unlearn(MASK(), model, Regression(), forget=targets.subset(case.forget), scenario=case)
