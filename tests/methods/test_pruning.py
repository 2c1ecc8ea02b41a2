"""Which weights are pruned: counts, ties, scores and schedules, held to numbers worked out by hand (spec 02, P1–P3)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, blobs, deep
from expunge.data import Batch
from expunge.errors import NotFinite, UserError
from expunge.masks import Masks
from expunge.methods import _pruning
from expunge.methods._pruning import check_kept, cut, flows, of_all, of_rest, part, prunable, synflow
from expunge.recipe import Penalty, Recipe
from expunge.task import Classification
from expunge.train import fit
from expunge.zoo import networks

TASK = Classification()
D = torch.float64
TENSORS = {
    "a": torch.tensor([[0.5, -0.1, 0.03], [-0.9, 0.2, -0.02]], dtype=D),
    "b": torch.tensor([0.4, -0.05, 0.7, 0.01], dtype=D),
}
SIZES = {name: tensor.abs() for name, tensor in TENSORS.items()}


def lists(masks: Masks) -> dict[str, list[int]]:
    return {name: mask.flatten().int().tolist() for name, mask in masks.kept.items()}


def test_the_smallest_of_all_layers_go_and_a_second_round_goes_on_from_there():
    """P1."""
    first = cut(SIZES, of_all(0.6))
    assert lists(first) == {"a": [1, 0, 0, 1, 0, 0], "b": [1, 0, 1, 0]}
    second = cut(SIZES, of_rest(0.5, until=1.0), kept=first)
    assert lists(second) == {"a": [0, 0, 0, 1, 0, 0], "b": [0, 0, 1, 0]}
    assert lists(first) == {"a": [1, 0, 0, 1, 0, 0], "b": [1, 0, 1, 0]}


def test_of_each_layer_its_own_smallest_go():
    """P1: 4 of 6 and 2 of 4."""
    assert lists(cut(SIZES, of_all(0.6), scope="layer")) == {"a": [1, 0, 0, 1, 0, 0], "b": [1, 0, 1, 0]}
    ten = {"a": 10 * SIZES["a"], "b": SIZES["b"]}
    assert lists(cut(ten, of_all(0.6), scope="layer")) == {"a": [1, 0, 0, 1, 0, 0], "b": [1, 0, 1, 0]}
    assert lists(cut(ten, of_all(0.6))) == {"a": [1, 1, 0, 1, 1, 0], "b": [0, 0, 0, 0]}


@pytest.mark.parametrize(("share", "gone"), [(0.25, 2), (0.35, 4), (0.95, 10), (0.0, 0), (0.05, 0), (0.15, 2)])
def test_halves_are_rounded_to_even(share: float, gone: int):
    """P1: 2.5 to 2, 9.5 to 10, which keeps nothing."""
    masks = cut(SIZES, of_all(share))
    assert masks.size - round(masks.density * masks.size) == gone
    if share == 0.25:
        assert lists(masks) == {"a": [1, 1, 1, 1, 1, 0], "b": [1, 1, 1, 0]}


def test_of_equal_scores_the_first_in_order_go():
    equal = {"a": torch.ones(3), "b": torch.tensor([1.0, 0.0, 1.0])}
    assert lists(cut(equal, of_all(0.5))) == {"a": [0, 0, 1], "b": [1, 0, 1]}
    later = cut(equal, of_all(4 / 6), kept=cut(equal, of_all(0.5)))
    assert lists(later) == {"a": [0, 0, 0], "b": [1, 0, 1]}


def test_what_is_pruned_stays_so_whatever_its_score():
    first = cut(SIZES, of_all(0.6))
    turned = {name: -size for name, size in SIZES.items()}
    assert lists(cut(turned, of_all(0.8), kept=first)) == {"a": [1, 0, 0, 0, 0, 0], "b": [1, 0, 0, 0]}


def test_the_result_is_that_of_a_stable_sort():
    generator = torch.Generator().manual_seed(3)
    scores = {n: torch.randint(9, (size,), generator=generator).float() for n, size in (("a", 40), ("b", 23))}
    for share in (0.1, 0.33, 0.5, 0.9):
        flat = torch.cat(list(scores.values()))
        slow = torch.ones(63, dtype=torch.bool)
        slow[torch.argsort(flat, stable=True)[: round(share * 63)]] = False
        assert torch.equal(torch.cat(list(cut(scores, of_all(share)).kept.values())), slow)


def test_rounds_of_a_fifth():
    """P2."""
    left, seen = 10, []
    for _ in range(4):
        left -= of_rest(0.2, until=1.0)(10, left)
        seen.append(left)
    assert seen == [8, 6, 5, 4]
    many = 11_159_232
    left = many
    for _ in range(14):
        left -= of_rest(0.2, until=1.0)(many, left)
    assert left == 490_789


@pytest.mark.parametrize(("sparsity", "count"), [(0.2, 1), (0.36, 2), (0.5, 4), (0.95, 14), (0.01, 1), (0.999, 31)])
@pytest.mark.parametrize("size", [10, 97, 1000])
def test_the_last_round_ends_at_the_sparsity_asked_for(sparsity: float, count: int, size: int):
    falls, left = _pruning.rounds(sparsity), size
    assert len(falls) == count
    for fall in falls:
        left -= fall(size, left)
        assert left >= size - round(sparsity * size)
    assert left == size - round(sparsity * size)


def linear() -> nn.Module:
    """Return W2 W1 x with the weights of P3."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 0.0]]))
        model[1].weight.copy_(torch.tensor([[3.0, -1.0]]))
    return model


class Plain:
    """A task whose outputs are the network's."""

    def forward(self, model: nn.Module, batch: Batch, taps: Any = ()) -> tuple[Tensor, dict[str, Tensor]]:
        return model(batch.inputs), {}


def every(model: nn.Module) -> Masks:
    return Masks({name: torch.ones(p.shape, dtype=torch.bool) for name, p in model.named_parameters()})


def test_scores_of_synflow_are_conserved_by_layer():
    """P3: R = 9.5, scores [[3, 6], [.5, 0]] and [9, .5], and 9.5 in each layer."""
    model = linear()
    before = [p.detach().clone() for p in model.parameters()]
    scores = flows(model, Plain(), torch.ones(1, 2, dtype=D), every(model))
    assert scores["0.weight"].tolist() == [[3.0, 6.0], [0.5, 0.0]]
    assert scores["1.weight"].tolist() == [[9.0, 0.5]]
    assert [float(s.sum()) for s in scores.values()] == [9.5, 9.5]
    half = cut(scores, of_all(0.5))
    assert lists(half) == {"0.weight": [1, 1, 0, 0], "1.weight": [1, 0]}
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_scores_under_a_mask_are_those_of_the_pruned_network():
    model = linear()
    masks = Masks({"0.weight": torch.tensor([[True, False], [True, True]]), "1.weight": torch.tensor([[True, True]])})
    scores = flows(model, Plain(), torch.ones(1, 2, dtype=D), masks)
    assert scores["0.weight"].tolist() == [[3.0, 0.0], [0.5, 0.0]]
    assert scores["1.weight"].tolist() == [[3.0, 0.5]]


def test_synflow_is_the_same_in_single_precision_and_for_every_sign_and_mode():
    model = networks.build("convnet", (1, 8, 8), 4)
    names = prunable(model, "auto")
    masks = synflow(model, TASK, (1, 8, 8), names, 0.9)
    total = sum(mask.numel() for mask in masks.kept.values())
    assert sum(int(mask.sum()) for mask in masks.kept.values()) == total - round(0.9 * total)
    assert all(bool(mask.any()) for mask in masks.kept.values())
    with torch.no_grad():
        for p in model.parameters():
            p.neg_()
    again = synflow(model.eval(), TASK, (1, 8, 8), names, 0.9)
    assert all(torch.equal(masks.kept[n], again.kept[n]) for n in names)
    once = cut(flows(model, TASK, torch.ones(1, 1, 8, 8, dtype=D), again), of_all(0.9), kept=again)
    assert all(torch.equal(once.kept[n], again.kept[n]) for n in names)


def test_synflow_follows_its_scores_step_by_step():
    """A slow loop of its own: absolute weights, autograd, a stable sort."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    names = ["0.weight", "2.weight"]
    alive = {name: torch.ones_like(dict(model.named_parameters())[name]) for name in names}
    for k in range(1, 101):
        w = {name: p.detach().abs() * alive.get(name, 1) for name, p in model.named_parameters()}
        w = {name: p.requires_grad_(True) for name, p in w.items()}
        out = torch.ones(1, 3, dtype=D)
        for layer in (0, 2, 4):
            out = out @ w[f"{layer}.weight"].T + w[f"{layer}.bias"]
        grads = torch.autograd.grad(out.sum(), [w[name] for name in names])
        flat = torch.cat(
            [torch.where(alive[n] > 0, (g * w[n]).detach(), -1).flatten() for n, g in zip(names, grads, strict=True)]
        )
        gone = torch.argsort(flat, stable=True)[: round(48 * (1 - 0.3 ** (k / 100)))]
        mask = torch.ones(48, dtype=D)
        mask[gone] = 0
        alive = {"0.weight": mask[:18].reshape(6, 3), "2.weight": mask[18:].reshape(5, 6)}
    found = synflow(model, Plain(), (3,), names, 0.7)
    assert {n: m.double().tolist() for n, m in found.kept.items()} == {n: m.tolist() for n, m in alive.items()}


def test_scores_that_say_nothing_are_refused():
    model = linear()
    with torch.no_grad():
        model[1].weight.zero_()
    with pytest.raises(UserError, match="scores of synflow above 0, got 0 for every weight: take another pruner"):
        flows(model, Plain(), torch.ones(1, 2, dtype=D), every(model))
    with torch.no_grad():
        model[1].weight.fill_(1e200)
        model[0].weight.fill_(1e200)
    with pytest.raises(NotFinite, match=r"finite scores of synflow, got NaN or infinity in 0\.weight"):
        flows(model, Plain(), torch.ones(1, 2, dtype=D), every(model))


def test_a_layer_that_keeps_nothing_is_refused_by_name():
    check_kept(cut(SIZES, of_all(0.6)), "pruned")
    want = r"a weight kept in every layer that is pruned, got none in a, b: lower pruned\.sparsity, or spread it"
    with pytest.raises(UserError, match=want):
        check_kept(cut(SIZES, of_all(0.95)), "pruned")


def test_random_scores_depend_on_the_seed_alone():
    model, narrow = deep(), deep(torch.float32)
    names = prunable(model, "weights")
    state = torch.get_rng_state()
    one, other = (_pruning.drawn(model, names, seed) for seed in (5, 6))
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    again = _pruning.drawn(narrow, names, 5)
    assert all(torch.equal(one[n], again[n]) for n in names)
    assert not any(torch.equal(one[n], other[n]) for n in names)


# What is prunable.


def test_of_the_published_network_all_convolutions_are_prunable():
    """P15: ResNet-18 for CIFAR-10 has 11,159,232 weights in convolutions; 95 % leave 557,962."""
    with torch.device("meta"):
        model = networks.build("resnet18", (3, 32, 32), 10)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    names = prunable(model, "conv")
    assert prunable(model, "auto") == prunable(model, "weights") == names
    assert (len(names), sum(sizes[n] for n in names)) == (20, 11_159_232)
    assert 11_159_232 - of_all(0.95)(11_159_232, 11_159_232) == 557_962
    left, rate = 11_159_232, 1 - 0.05**0.01
    assert rate == pytest.approx(0.0295130, abs=1e-7)
    for _ in range(100):  # counted from what is left it ends two short: ours counts from all
        left -= of_rest(rate, until=1.0)(11_159_232, left)
    assert left == 557_960


class Mixed(nn.Module):
    """A small convolution before larger linear layers, attention, norms, an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 8)
        self.conv = nn.Conv2d(1, 2, 3)
        self.sound = nn.Conv1d(2, 2, 3)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 8))
        self.attention = nn.MultiheadAttention(8, 2)
        self.cross = nn.MultiheadAttention(8, 2, kdim=4, vdim=4)
        self.head = nn.Linear(8, 3)


def test_layers_are_chosen_by_kind_and_the_last_is_left():
    model = Mixed()
    inner = ["conv.weight", "sound.weight", "body.0.weight", "body.2.weight", "attention.in_proj_weight"]
    inner += ["attention.out_proj.weight", "cross.q_proj_weight", "cross.k_proj_weight", "cross.v_proj_weight"]
    inner += ["cross.out_proj.weight"]
    assert prunable(model, "conv") == ["conv.weight"]
    assert prunable(model, "weights") == inner
    assert prunable(model, "auto") == inner
    model.body.requires_grad_(False)
    assert prunable(model, "weights") == [n for n in inner if not n.startswith("body")]


def test_networks_without_prunable_layers_have_none():
    assert prunable(nn.Linear(4, 2), "weights") == []
    assert prunable(deep(), "conv") == []
    assert prunable(nn.Identity(), "auto") == []
    frozen = networks.build("convnet", (1, 8, 8), 3).requires_grad_(False)
    assert prunable(frozen, "conv") == []


def test_a_tied_weight_is_pruned_under_its_first_name():
    model, _ = CASES["tied"].make()
    assert prunable(model, "weights") == []
    more = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    more[1].weight = more[0].weight
    assert prunable(more, "weights") == ["0.weight"]


# Parts of a recipe.


@dataclass(frozen=True)
class Growing(Penalty):
    """A penalty of the epoch it holds in."""

    epoch: int = 0

    def at_epoch(self, epoch: int) -> Growing:
        return replace(self, epoch=epoch)

    def __call__(self, model: nn.Module, batch: Batch, outputs: Tensor, losses: Tensor) -> Tensor:
        return torch.zeros(())


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "multistep"])
def test_a_part_of_a_recipe_has_the_rates_and_penalties_of_the_whole(schedule: Any):
    whole = Recipe(epochs=6, schedule=schedule, milestones=(2, 4), warmup=2.5, patience=3, penalties=(Growing(),))
    for start, stop in ((0, 2), (1, 4), (3, 6)):
        some = part(whole, start, stop)
        assert some.epochs == stop - start
        assert [some.rate(e / 4) for e in range(4 * some.epochs)] == [
            whole.rate(start + e / 4) for e in range(4 * some.epochs)
        ]
        assert [some.terms(e) for e in range(some.epochs)] == [(Growing(start + e),) for e in range(some.epochs)]
        assert some.warmup == max(0.0, 2.5 - start)
        assert some.patience == (3 if stop == 6 else None)
        assert some.to_json() == whole.to_json() | {"part": [start, stop]}


def test_the_first_part_of_a_training_is_its_beginning_to_the_bit():
    data, whole = blobs(), Recipe(epochs=3, lr=0.1, warmup=1.5, batch_size=20)
    start = deep()
    seen: list[list[Tensor]] = []

    @dataclass(frozen=True)
    class Watch(Penalty):
        """Keeps the weights before each step, and adds nothing."""

        def __call__(self, model: nn.Module, batch: Batch, outputs: Tensor, losses: Tensor) -> Tensor:
            seen.append([p.detach().clone() for p in model.parameters()])
            return torch.zeros((), dtype=D)

    fit(start, TASK, data, replace(whole, penalties=(Watch(),)), seed=4)
    two = fit(start, TASK, data, part(whole, 0, 2), seed=4)
    assert all(torch.equal(a, b) for a, b in zip(seen[6], two.parameters(), strict=True))
    assert math.isclose(whole.rate(1), part(whole, 1, 3).rate(0))
