"""Pruning: which weights may go, which go first, how many; and the part of a training that follows a rewind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from expunge.copies import private
from expunge.data import Batch
from expunge.errors import UserError, listing
from expunge.masks import Masks
from expunge.recipe import Penalty, Recipe
from expunge.task import Task
from expunge.tensors import check_finite, isolated_rng, parameters

Layers = Literal["auto", "conv", "weights"]
Scope = Literal["global", "layer"]
Fall = Callable[[int, int], int]  # (weights in all, weights left) -> how many of those left go

ROUND = 0.2  # share of the weights left that goes in a round of iterative magnitude pruning
ITERATIONS = 100  # of SynFlow


def prunable(model: nn.Module, layers: Layers) -> list[str]:
    """Return the names of the trainable weight tensors that pruning takes from; biases and norms stay dense.

    Args:
        model: the network.
        layers: ``conv``: weights of 2-d convolutions, as published; ``weights``: those of all convolutions, linear
            layers and attention projections but the last such layer, which gives the outputs; ``auto``: ``conv``
            where that is more than half of all that is trained, else ``weights``.

    Returns:
        The names, in the model's order; none where there is no such layer.
    """
    names = {id(p): name for name, p in parameters(model).items()}
    whole = [[p for p in _matrices(m) if p is not None] for m in model.modules()]
    every = [part for part in whole if part][:-1]
    convolutions = [[m.weight] for m in model.modules() if isinstance(m, nn.Conv2d)]
    if layers == "auto":
        most = sum(p.numel() for (p,) in convolutions if id(p) in names)
        layers = "conv" if 2 * most > sum(p.numel() for p in parameters(model).values()) else "weights"
    chosen = {id(p) for part in (convolutions if layers == "conv" else every) for p in part}
    return [name for key, name in names.items() if key in chosen]


def _matrices(module: nn.Module) -> list[Tensor | None]:
    if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
        return [module.weight]
    if isinstance(module, nn.MultiheadAttention):  # its last projection is a linear layer of its own
        return [module.in_proj_weight, module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    return []


def of_all(share: float) -> Fall:
    """Return how many go so that round(share·n) of all n are gone; halves are rounded to even."""
    return lambda n, left: max(0, left - (n - round(share * n)))


def of_rest(share: float, until: float) -> Fall:
    """Return how many go so that round(share·m) of the m left go, and no more than ``until`` allows of all."""
    return lambda n, left: min(round(share * left), of_all(until)(n, left))


def rounds(sparsity: float) -> list[Fall]:
    """Return the rounds of iterative magnitude pruning: 20 % of those left each, the last down to the sparsity.

    >>> [len(rounds(s)) for s in (0.2, 0.5, 0.95)]
    [1, 4, 14]
    """
    count = max(1, math.ceil(math.log(1 - sparsity) / math.log(1 - ROUND) - 1e-9))
    return [of_rest(ROUND, sparsity)] * (count - 1) + [of_all(sparsity)]


def cut(scores: Mapping[str, Tensor], fall: Fall, *, scope: Scope = "global", kept: Masks | None = None) -> Masks:
    """Prune the weights of the lowest scores; of equal scores the first in order go first.

    Args:
        scores: by name of a parameter, of its shape.
        fall: how many go, of all weights together or of each tensor's.
        scope: ``global`` or ``layer``.
        kept: masks of an earlier round: what was pruned stays so.

    Returns:
        Masks on the CPU, True where a weight is kept; a tensor may be left with none.
    """
    groups: list[Sequence[str]] = [list(scores)] if scope == "global" else [[name] for name in scores]
    found: dict[str, Tensor] = {}
    for names in groups:
        flat = torch.cat([scores[name].detach().double().flatten() for name in names])
        alive = torch.ones_like(flat, dtype=torch.bool)
        if kept is not None:
            alive = torch.cat([kept.kept[name].flatten() for name in names]).to(flat.device)
        gone = fall(len(flat), int(alive.sum()))
        at = alive.nonzero()[:, 0]
        alive[at[_lowest(flat[at], gone)]] = False
        parts = alive.cpu().split([scores[name].numel() for name in names])
        found |= {name: part.reshape(scores[name].shape) for name, part in zip(names, parts, strict=True)}
    return Masks({name: mask.clone() for name, mask in found.items()})


def _lowest(values: Tensor, count: int) -> Tensor:
    """Return the positions of the lowest values; of equal ones the first."""
    if count == 0:
        return torch.zeros(0, dtype=torch.int64, device=values.device)
    edge = values.kthvalue(count).values
    below = (values < edge).nonzero()[:, 0]
    ties = (values == edge).nonzero()[: count - len(below), 0]
    return torch.cat([below, ties])


def check_kept(masks: Masks, name: str) -> None:
    """Refuse masks that leave a layer without any weight, through which nothing would flow.

    Args:
        masks: what is kept.
        name: of the method, whose settings the sentence names.

    Raises:
        UserError: names the layers.
    """
    empty = [layer for layer, mask in masks.kept.items() if not bool(mask.any())]
    if empty:
        want, got = "a weight kept in every layer that is pruned", f"none in {listing(empty)}"
        raise UserError(want, got, f"lower {name}.sparsity, or spread it otherwise by {name}.scope or {name}.by")


def magnitudes(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the scores |w|."""
    found = parameters(model)
    return {name: found[name].detach().abs() for name in names}


def drawn(model: nn.Module, names: Sequence[str], seed: int) -> dict[str, Tensor]:
    """Return scores drawn from the uniform distribution on [0, 1)."""
    found = parameters(model)
    with isolated_rng(seed):
        return {name: torch.rand(found[name].shape, dtype=torch.float64) for name in names}


def flows(model: nn.Module, task: Task, ones: Tensor, masks: Masks) -> dict[str, Tensor]:
    """Return SynFlow's scores |∂R/∂w ⊙ w| with R = Σ f_|θ|(1), the outputs of the network whose weights are all |θ|.

    Computed in float64 and eval mode, on a copy; buffers, such as running statistics, are as they are.

    Args:
        model: the network, before training.
        task: gives the outputs.
        ones: (1, ...) float64, the input.
        masks: which weights are left; the scores are of these tensors.

    Raises:
        NotFinite: R or a score is.
        UserError: every score is 0.
    """
    copy = private(model).double().eval()
    masks.prune(copy)
    with torch.no_grad():
        for p in copy.parameters():
            p.abs_()
    weights = {name: dict(copy.named_parameters())[name].requires_grad_(True) for name in masks.kept}
    with torch.enable_grad():
        outputs, _ = task.forward(copy, Batch(ones, None, None, torch.zeros(1, dtype=torch.int64)))
        grads = torch.autograd.grad(outputs.sum(), list(weights.values()), allow_unused=True)
    scores = {
        name: torch.zeros_like(w) if g is None else (g * w).detach().abs()
        for (name, w), g in zip(weights.items(), grads, strict=True)
    }
    check_finite(scores, "scores of synflow", "take another pruner: by omp, imp or random")
    if not any(bool((s > 0).any()) for s in scores.values()):
        raise UserError("scores of synflow above 0", "0 for every weight", "take another pruner: by omp or imp")
    return scores


def synflow(
    model: nn.Module,
    task: Task,
    shape: Sequence[int],
    names: Sequence[str],
    sparsity: float,
    scope: Scope = "global",
    method: str = "pruned",
) -> Masks:
    """Prune before training and without data, so that no layer is cut off long before the others.

    H. Tanaka, D. Kunin, D. Yamins and S. Ganguli, "Pruning neural networks without any data by iteratively conserving
    synaptic flow", 2020, https://arxiv.org/abs/2006.05467. After iteration k of 100, (1−s)^(k/100) of the weights are
    left, those of the highest scores `flows`.

    Args:
        model: the network before training.
        task: gives its outputs.
        shape: of one input; all ones are fed.
        names: of the tensors that are pruned.
        sparsity: s in (0, 1), of all their weights.
        scope: ``global``, as published, or ``layer``.
        method: whose settings an error names.

    Returns:
        The masks.

    Raises:
        UserError: a layer would keep nothing.
    """
    found = parameters(model)
    masks = Masks({name: torch.ones(found[name].shape, dtype=torch.bool) for name in names})
    ones = torch.ones((1, *shape), dtype=torch.float64, device=next(model.parameters()).device)
    for k in range(1, ITERATIONS + 1):
        share = 1 - (1 - sparsity) ** (k / ITERATIONS) if k < ITERATIONS else sparsity
        masks = cut(flows(model, task, ones, masks), of_all(share), scope=scope, kept=masks)
        check_kept(masks, method)
    return masks


@dataclass(frozen=True, kw_only=True)
class Part(Recipe):
    """Some epochs of a recipe, at the rates and with the penalties that they have there.

    Args:
        whole: the recipe.
        start: the first of the epochs, counted from 0.
    """

    whole: Recipe = field(default_factory=Recipe)
    start: int = 0

    def rate(self, epoch: float) -> float:
        """Return the whole recipe's learning rate at this epoch of the part."""
        return self.whole.rate(self.start + epoch)

    def terms(self, epoch: int) -> tuple[Penalty, ...]:
        """Return the whole recipe's penalties at this epoch of the part."""
        return self.whole.terms(self.start + epoch)

    def to_json(self) -> dict[str, Any]:
        """Return the whole recipe as JSON values, with the epochs taken of it."""
        return self.whole.to_json() | {"part": [self.start, self.start + self.epochs]}


def part(recipe: Recipe, start: int, stop: int) -> Recipe:
    """Return the epochs from ``start`` to before ``stop`` of a recipe; only its end may come early by patience."""
    values = {f.name: getattr(recipe, f.name) for f in fields(Recipe)}
    values |= {"epochs": stop - start, "warmup": max(0.0, recipe.warmup - start)}
    values["patience"] = recipe.patience if stop == recipe.epochs else None
    return Part(**values, whole=recipe, start=start)
