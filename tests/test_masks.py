"""Masks: scalars that may not move stay where they are to the bit, whatever an optimiser does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, blobs, deep
from expunge.errors import Incompatible, UserError
from expunge.masks import Masks
from expunge.recipe import Recipe
from expunge.task import Classification
from expunge.tensors import parameters, weights_digest
from expunge.train import fit, stepped


def drawn(model: nn.Module, share: float = 0.5, seed: int = 0) -> Masks:
    """Return masks of every weight of two dimensions or more."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: p for name, p in parameters(model).items() if p.dim() > 1}
    return Masks({name: torch.rand(p.shape, generator=generator) < share for name, p in weights.items()})


class Pair(nn.Module):
    """Two weights, of which each gets a gradient of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((2,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize(("hard", "second"), [(True, 2.0), (False, 1.99992707)])
def test_weight_decay_and_momentum_do_not_leak_through(hard: bool, second: float):
    """Spec 02, P9: zero gradients alone let a masked weight drift."""
    model = Pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.013, momentum=0.9, weight_decay=5e-4)
    masks = Masks({"w": torch.tensor([True, False])})
    held = masks.hold(model)
    for _ in range(3):
        model.w.grad = torch.tensor([1.0, 1.0], dtype=torch.float64)
        held.gradients()
        stepped(model, optimizer, None, held if hard else None)
    assert model.w.tolist() == pytest.approx([1.92699748, second], abs=1e-8)
    assert bool(model.w[1] == 2) is hard


@pytest.mark.parametrize(
    "make",
    [
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda params: torch.optim.AdamW(params, lr=0.1, weight_decay=0.1),
        lambda params: torch.optim.Adam(params, lr=0.1, weight_decay=0.1),
    ],
)
def test_no_optimiser_moves_a_masked_weight_and_its_own_tensors_forget_it(make: Any):
    model = Pair()
    optimizer, masks = make(model.parameters()), Masks({"w": torch.tensor([True, False])})
    held = masks.hold(model)
    for _ in range(4):
        model.w.grad = torch.tensor([1.0, 1.0], dtype=torch.float64)
        stepped(model, optimizer, None, held)
    assert model.w[1].item() == 2.0
    assert model.w[0].item() != 2.0
    slots = [s for s in optimizer.state[model.w].values() if isinstance(s, Tensor) and s.shape == model.w.shape]
    assert slots
    assert all(s[1] == 0 and s[0] != 0 for s in slots)


def test_gradients_of_masked_weights_do_not_count_in_the_norm():
    model = Pair()
    optimizer, held = torch.optim.SGD(model.parameters(), lr=1.0), Masks({"w": torch.tensor([True, False])}).hold(model)
    model.w.grad = torch.tensor([0.5, 1000.0], dtype=torch.float64)
    stepped(model, optimizer, 1.0, held)
    assert model.w.tolist() == [1.5, 2.0]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_holds_masked_weights_to_the_bit_and_moves_the_others(optimizer: str):
    start, data = deep(), blobs()
    masks = drawn(start)
    recipe = Recipe(epochs=2, lr=0.01, optimizer=optimizer, clip=0.5)
    made = fit(start, Classification(), data, recipe, masks=masks)
    old, new = parameters(start), parameters(made)
    for name, mask in masks.kept.items():
        assert torch.equal(old[name][~mask], new[name][~mask])
        assert not torch.equal(old[name][mask], new[name][mask])
    free = fit(start, Classification(), data, recipe)
    assert weights_digest(free) != weights_digest(made)
    every = Masks({name: torch.ones_like(mask) for name, mask in masks.kept.items()})
    assert weights_digest(fit(start, Classification(), data, recipe, masks=every)) == weights_digest(free)


def test_a_pruned_start_stays_pruned():
    start = deep()
    masks = drawn(start, 0.3)
    assert masks.strays(start) == sum(int((~mask).sum()) for mask in masks.kept.values())
    masks.prune(start)
    assert masks.strays(start) == 0
    made = fit(start, Classification(), blobs(), Recipe(epochs=2, lr=0.1), masks=masks)
    assert masks.strays(made) == 0
    with torch.no_grad():
        name, mask = next(iter(masks.kept.items()))
        parameters(made)[name][~mask] = 0.5
    assert masks.strays(made) == int((~mask).sum())


def test_what_moved_is_counted_and_put_back():
    model = Pair()
    held = Masks({"w": torch.tensor([True, False])}).hold(model)
    with torch.no_grad():
        model.w += 1
    assert held.moved() == 1
    held.put_back()
    assert (held.moved(), model.w.tolist()) == (0, [3.0, 2.0])


def test_sizes_and_shares():
    masks = Masks({"a": torch.tensor([[True, False], [False, False]]), "b": torch.ones(6, dtype=torch.bool)})
    assert masks.size == 10
    assert masks.density == 0.7
    assert masks.densities == {"a": 0.25, "b": 1.0}
    assert Masks({}).size == 0


def test_both_lets_a_weight_move_only_where_each_does():
    one = Masks({"a": torch.tensor([True, True, False]), "b": torch.tensor([True])})
    two = Masks({"a": torch.tensor([False, True, True]), "c": torch.tensor([False])})
    both = one.both(two)
    assert {name: mask.tolist() for name, mask in both.kept.items()} == {
        "a": [False, True, False], "b": [True], "c": [False],
    }  # fmt: skip
    assert one.both(None) is one


def test_both_compares_masks_of_different_devices_on_the_first_ones():
    here = Masks({"w": torch.tensor([True, False])})
    there = Masks({"w": torch.zeros(2, dtype=torch.bool, device="meta")})  # stands for any other device
    assert there.both(here).kept["w"].device.type == "meta"


def test_an_optimisers_count_of_steps_is_no_masked_value():
    model = nn.Module()
    model.scale = nn.Parameter(torch.tensor(2.0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    held = Masks({"scale": torch.tensor(False)}).hold(model)
    for _ in range(3):
        model.scale.grad = torch.tensor(1.0)
        stepped(model, optimizer, None, held)
    state = optimizer.state[model.scale]
    assert (model.scale.item(), float(state["step"]), float(state["exp_avg"])) == (2.0, 3.0, 0.0)


def test_a_tied_weight_is_masked_once_under_its_first_name():
    model, data = CASES["tied"].make(torch.float32)
    names = [n for n, _ in model.named_parameters()]
    assert "head.weight" not in names
    masks = Masks({"embedding.weight": drawn(model).kept["embedding.weight"]})
    masks.prune(model)
    made = fit(model, CASES["tied"].task, data, Recipe(epochs=1, lr=0.1), masks=masks)
    assert masks.strays(made) == 0
    assert made.head.weight is made.embedding.weight


def test_a_frozen_weight_may_have_a_mask():
    model = deep()
    masks = drawn(model)
    model.requires_grad_(False)
    masks.prune(model)
    assert masks.strays(model) == 0


@pytest.mark.parametrize("use", ["check", "prune", "hold", "strays"])
def test_masks_of_another_network_are_refused(use: str):
    model = deep()
    before = weights_digest(model)
    name = next(iter(drawn(model).kept))
    with pytest.raises(Incompatible, match=r"a network with parameters odd, .* take the mask that was made for this"):
        getattr(Masks({"odd": torch.ones(2, dtype=torch.bool)}), use)(model)
    with pytest.raises(Incompatible, match=rf"{name} of shape \(2,\)"):
        getattr(Masks({name: torch.zeros(2, dtype=torch.bool)}), use)(model)
    assert weights_digest(model) == before


def test_masks_are_true_or_false():
    with pytest.raises(UserError, match=r"bool masks, got torch\.float32 for a: give True where a weight may move"):
        Masks({"a": torch.ones(2)})
