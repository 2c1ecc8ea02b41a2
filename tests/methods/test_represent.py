"""A network split at a module: which weights are on which side, and one row of numbers a sample."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, QUIET, Bidirectional, Dict, Output, Positions, Residual, Tied, blobs, deep, frozen_first, mlp
from expunge.data import Batch, Data
from expunge.errors import NotFinite, UserError
from expunge.methods._represent import RepresentationSplit, pooled
from expunge.task import CausalLM, Classification
from expunge.tensors import parameters, weights_digest

TASK = Classification()


def split_of(model: nn.Module, data: Data, tap: str | None = None) -> RepresentationSplit:
    return RepresentationSplit.of(model, TASK, data, QUIET, tap)


def test_the_default_is_the_input_of_the_last_linear_layer():
    split = split_of(deep(), blobs())
    assert split.tap == "1:input"
    assert split.extractor == ("0.0.0.weight", "0.0.0.bias", "0.0.1.weight", "0.0.1.bias", "0.2.weight", "0.2.bias")
    assert split.classifier == ("1.weight", "1.bias")
    assert split.shared == ()


def test_a_module_s_name_is_its_output():
    split = split_of(deep(), blobs(), "0.0")
    assert split.extractor == ("0.0.0.weight", "0.0.0.bias", "0.0.1.weight", "0.0.1.bias")
    assert split.classifier == ("0.2.weight", "0.2.bias", "1.weight", "1.bias")
    e = split.said(deep().eval(), TASK, blobs(), QUIET).e
    assert torch.equal(e, deep().eval()[0][0](blobs().read(range(60)).inputs).detach())


def test_weights_that_reach_the_outputs_past_the_split_are_shared():
    model, data = CASES["residual"].make()
    assert isinstance(model, Residual)
    split = split_of(model, data, "b")
    assert split.extractor == ("b.weight", "b.bias")
    assert split.shared == ("a.weight", "a.bias")
    assert split.classifier == ("head.weight", "head.bias")


UNSPLIT = ("tied", "tied_unseen_at_first", "frozen", "output_object", "output_mapping")  # by the head: nothing below
HEADS = {name: "head:input" for name in CASES if name.startswith("attention_")}  # their last linear layer is no head


@pytest.mark.parametrize("name", [name for name in CASES if name not in UNSPLIT])
def test_each_side_is_the_weights_that_the_split_is_moved_by(name: str):
    """Of each architecture: changing a weight below changes e, one above changes outputs of the same e alone."""
    case = CASES[name]
    model, data = case.make()
    split = RepresentationSplit.of(model, case.task, data, QUIET, HEADS.get(name))
    before = split.said(model, case.task, data, QUIET).e
    assert before.shape[0] == len(data)
    for part, moves in ((split.extractor, True), (split.classifier, False)):
        other = copy.deepcopy(model)
        names = parameters(other)
        with torch.no_grad():
            for weight in part:
                names[weight].add_(0.1 * torch.randn_like(names[weight]))
        assert torch.equal(split.said(other, case.task, data, QUIET).e, before) is not moves
    assert not set(split.extractor) & {*split.classifier, *split.shared}
    assert {*split.extractor, *split.classifier, *split.shared} == set(parameters(model))


def test_of_a_sequence_it_is_the_mean_over_what_is_no_padding():
    x, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    batch = Batch({"input_ids": torch.zeros(2, 4), "attention_mask": mask}, None, None, torch.arange(2))
    found = pooled(x, batch, nn.LayerNorm(3), "norm")
    assert torch.allclose(found, torch.stack([x[0, :2].mean(0), x[1].mean(0)]))
    plain = Batch(torch.zeros(2, 4, 3), None, None, torch.arange(2))
    assert torch.allclose(pooled(x, plain, nn.LayerNorm(3), "norm"), x.mean(1))


def test_padding_changes_no_representation():
    model, ids = CASES["dict_inputs"].make()[0], torch.randint(1, 5, (5, 4))
    ids[:, 2:] = 3
    mask = torch.ones(5, 4).bool()
    mask[:, 2:] = False
    other = ids.clone()
    other[:, 2:] = 1
    rows = [_rows(model, Data.from_arrays({"input_ids": i, "mask": mask})) for i in (ids, other)]
    assert isinstance(model, Dict)
    assert torch.equal(*rows)


def _rows(model: nn.Module, data: Data) -> Tensor:
    return split_of(model, data, "norm").said(model, TASK, data, QUIET).e


def test_of_feature_maps_it_is_each_channel_s_mean():
    x = torch.randn(2, 3, 4, 5)
    batch = Batch(x, None, None, torch.arange(2))
    assert torch.allclose(pooled(x, batch, nn.ReLU(), "r"), x.mean((2, 3)))
    assert torch.allclose(pooled(x[:, :, 0], batch, nn.Conv1d(1, 3, 1), "c"), x[:, :, 0].mean(2))


def test_half_precision_becomes_float32():
    batch = Batch(torch.zeros(2, 3), None, None, torch.arange(2))
    assert pooled(torch.ones(2, 3).bfloat16(), batch, nn.ReLU(), "r").dtype == torch.float32
    assert pooled(torch.ones(2, 3).double(), batch, nn.ReLU(), "r").dtype == torch.float64


class Speaker(nn.Module):
    """Says the likeliest next token of six, with a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(6, 4), nn.Linear(4, 6)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(input_ids)))


def test_a_language_model_s_padding_is_no_prediction():
    torch.manual_seed(0)
    ids, mask = torch.randint(0, 6, (5, 4)), torch.ones(5, 4).long()
    mask[1:, 3] = 0
    data = Data.from_arrays({"input_ids": ids, "attention_mask": mask}, CausalLM.labels(ids, mask))
    model = Speaker()
    split = RepresentationSplit.of(model, CausalLM(), data, QUIET)
    said = split.said(model, CausalLM(), data.unlabelled(), QUIET)
    assert (split.tap, said.e.shape) == ("head:input", (5, 4))
    assert torch.equal(said.prediction == -100, mask == 0)
    wanted = torch.tanh(model.embedding(ids[1, :3])).mean(0).detach()
    assert torch.allclose(said.e[1], wanted)


def test_batches_change_nothing_and_the_model_is_left_as_found():
    model = deep().train()
    model[0][2].eval()
    digest, modes = weights_digest(model), [m.training for m in model.modules()]
    split, data = split_of(model, blobs()), blobs()
    one = split.said(model, TASK, data, QUIET).e
    order = torch.arange(59, -1, -1)
    assert torch.allclose(split.said(model, TASK, data, QUIET, order).e.flip(0), one, atol=1e-12)
    assert weights_digest(model) == digest
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_without_a_linear_head_modules_that_would_do_are_named():
    model = nn.Sequential(nn.Conv2d(2, 4, 2), nn.ReLU(), nn.Conv2d(4, 3, (4, 3)), nn.Flatten())
    data = Data.from_arrays(torch.randn(4, 2, 5, 4))
    with pytest.raises(
        UserError, match=r"a linear head for laf to split the network at, got none .* one of 0, 1, 2:in"
    ):
        split_of(model, data)
    assert split_of(model, data, "1").extractor == ("0.weight", "0.bias")


def test_nothing_trainable_below_is_said():
    data = blobs()
    with pytest.raises(UserError, match="trainable weights below 2:input for laf, got none: no module would do"):
        split_of(frozen_first().double(), data)
    with pytest.raises(UserError, match="trainable weights below head:input for laf, got none: no module would do"):
        split_of(Output(mapping=False).double(), data)


@pytest.mark.parametrize("name", UNSPLIT)
def test_architectures_without_anything_below_the_head_are_refused(name: str):
    model, data = CASES[name].make()
    with pytest.raises(UserError, match="Expected trainable weights below .* for laf, got (none|only weights)"):
        split_of(model, data)


def test_tied_weights_do_not_move():
    model, data = CASES["tied"].make()
    assert isinstance(model, Tied)
    with pytest.raises(UserError, match=r"got only weights that the part above shares \(embedding.weight\)"):
        split_of(model, data)


@pytest.mark.parametrize("tap", ["9", "0:output", "nowhere"])
def test_an_unknown_module_is_refused_and_others_named(tap: str):
    with pytest.raises(
        UserError, match=r"laf.extractor among the network's modules, got .*: set laf.extractor to .* 0.2"
    ):
        split_of(deep(), blobs(), tap)


def test_a_module_without_rows_of_numbers_is_refused():
    model = nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 3)).double()
    with pytest.raises(UserError, match="representations of two dimensions or more at 1:input, got 1"):
        split_of(model, blobs())
    words, tokens = CASES["bidirectional"].make()
    assert isinstance(words, Bidirectional)
    with pytest.raises(UserError, match="representations of 2 samples at word:input, got torch.int64 of shape"):
        split_of(words, tokens, "word:input")
    late = mlp().double()
    late.unused = nn.Linear(2, 2)
    late.forward = lambda x: late[2](late[1](late[0](x)))  # type: ignore[method-assign]
    with pytest.raises(UserError, match="taps that the forward pass reaches, got unused, not called"):
        split_of(late, blobs(), "unused")


def test_representations_that_are_not_finite_are_refused():
    model = nn.Sequential(nn.Embedding(5, 4), Positions(), nn.Linear(4, 3))
    data = Data.from_arrays(torch.randint(0, 5, (6, 2)))
    split = split_of(model, data)
    with torch.no_grad():
        model[0].weight[:] = torch.nan
    with pytest.raises(NotFinite, match="finite representations on train at 2:input, got NaN or infinity"):
        split.said(model, TASK, data, QUIET)
