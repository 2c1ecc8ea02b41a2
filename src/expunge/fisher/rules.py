"""Closed per-layer rules: Σ_s |∂q_s/∂θ|^p of one layer from its input and the gradient at its output.

A rule is one function registered for an exact module type; adding one touches this file alone. A layer whose
weight is used once a sample gives Σ_s (δ_s a_sᵀ)² = (Δ∘Δ)ᵀ(A∘A); one used at several positions is summed over
them before squaring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.fisher.checks import wide

Rule = Callable[[Any, Tensor, Tensor, int], dict[str, Tensor]]
RULES: dict[type[nn.Module], Rule] = {}
_CHUNK = 2**26  # bytes of unfolded patches at once


def rule(*types: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register a rule for exact module types; a subclass may compute something else and has none."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(types, function))
        return function

    return register


def raised(tensor: Tensor, power: int) -> Tensor:
    """Return |x|^power."""
    return tensor.square() if power == 2 else tensor.abs()


def outer(left: Tensor, right: Tensor, power: int) -> Tensor:
    """Return Σ_s |Σ_t l_st r_stᵀ|^p for left (B, T, O) and right (B, T, I), as (O, I)."""
    if left.shape[1] == 1:
        return raised(left[:, 0], power).T @ raised(right[:, 0], power)
    total = torch.zeros(left.shape[2], right.shape[2], dtype=left.dtype, device=left.device)
    if left.is_cuda:
        step = max(1, 2**28 // (total.numel() * total.element_size()))
        for start in range(0, len(left), step):
            at = slice(start, start + step)
            total += raised(left[at].transpose(1, 2) @ right[at], power).sum(dim=0)
        return total
    for a, b in zip(left, right, strict=True):
        product = a.T @ b
        if power == 2:
            total.addcmul_(product, product)
        else:
            total += product.abs_()
    return total


def _with_bias(module: Any, weight: Tensor, delta_sum: Tensor, power: int) -> dict[str, Tensor]:
    out = {"weight": weight}
    if module.bias is not None:
        out["bias"] = raised(delta_sum, power).sum(dim=0)
    return out


@rule(nn.Linear)
def linear(module: nn.Linear, a: Tensor, delta: Tensor, power: int) -> dict[str, Tensor]:
    """Linear on (B, I) or (B, ..., I)."""
    left = wide(delta).reshape(len(a), -1, module.out_features)
    right = wide(a).reshape(len(a), -1, module.in_features)
    return _with_bias(module, outer(left, right, power), left.sum(dim=1), power)


@rule(nn.Conv2d)
def conv2d(module: nn.Conv2d, a: Tensor, delta: Tensor, power: int) -> dict[str, Tensor]:
    """Convolution of (B, C, H, W) with any stride, padding, dilation and groups, as a product with patches."""
    a, delta = wide(a), wide(delta)
    a = F.pad(
        a,
        module._reversed_padding_repeated_twice,
        "constant" if module.padding_mode == "zeros" else module.padding_mode,
    )
    groups, size = module.groups, module.weight[0].numel()
    flat = delta.flatten(2)  # (B, O, L)
    total = torch.zeros(module.out_channels, size, dtype=a.dtype, device=a.device)
    step = max(1, _CHUNK // (groups * size * flat.shape[2] * a.element_size()))
    for start in range(0, len(a), step):
        at = slice(start, start + step)
        patches = F.unfold(a[at], module.kernel_size, module.dilation, 0, module.stride)
        parts = zip(flat[at].chunk(groups, dim=1), patches.chunk(groups, dim=1), strict=True)
        total += torch.cat([outer(d.transpose(1, 2), p.transpose(1, 2), power) for d, p in parts])
    return _with_bias(module, total.reshape(module.weight.shape), flat.sum(dim=2), power)


@rule(nn.BatchNorm1d, nn.BatchNorm2d)
def batch_norm(module: nn.BatchNorm2d, a: Tensor, delta: Tensor, power: int) -> dict[str, Tensor]:
    """BatchNorm with running statistics on (B, C) or (B, C, ...)."""
    assert module.running_mean is not None
    assert module.running_var is not None
    a, delta = (wide(t).reshape(len(t), module.num_features, -1) for t in (a, delta))
    scale = (module.running_var + module.eps).rsqrt().unsqueeze(1)
    normal = (a - module.running_mean.unsqueeze(1)) * scale
    weight = raised((delta * normal).sum(dim=2), power).sum(dim=0)
    return _with_bias(module, weight, delta.sum(dim=2), power)


@rule(nn.LayerNorm)
def layer_norm(module: nn.LayerNorm, a: Tensor, delta: Tensor, power: int) -> dict[str, Tensor]:
    """LayerNorm over the last dimensions, any positions between them and the batch."""
    shape = tuple(module.normalized_shape)
    normal = F.layer_norm(wide(a), shape, eps=module.eps).reshape(len(a), -1, *shape)
    delta = wide(delta).reshape(len(a), -1, *shape)
    weight = raised((delta * normal).sum(dim=1), power).sum(dim=0)
    return _with_bias(module, weight, delta.sum(dim=1), power)


@rule(nn.GroupNorm)
def group_norm(module: nn.GroupNorm, a: Tensor, delta: Tensor, power: int) -> dict[str, Tensor]:
    """GroupNorm on (B, C, ...)."""
    normal = F.group_norm(wide(a), module.num_groups, eps=module.eps).reshape(len(a), module.num_channels, -1)
    delta = wide(delta).reshape(normal.shape)
    weight = raised((delta * normal).sum(dim=2), power).sum(dim=0)
    return _with_bias(module, weight, delta.sum(dim=2), power)


@rule(nn.Embedding)
def embedding(module: nn.Embedding, a: Tensor, delta: Tensor, power: int) -> dict[str, Tensor]:
    """Embedding of token indices (B, ...): rows used several times in a sample are summed first."""
    tokens = a.reshape(len(a), -1)
    rows = torch.arange(len(a), device=a.device).unsqueeze(1) * module.num_embeddings + tokens
    keys, where = rows.reshape(-1).unique(return_inverse=True)
    flat = wide(delta).reshape(-1, module.embedding_dim)
    each = torch.zeros(len(keys), module.embedding_dim, dtype=flat.dtype, device=flat.device).index_add_(0, where, flat)
    total = torch.zeros(module.num_embeddings, module.embedding_dim, dtype=flat.dtype, device=flat.device)
    total.index_add_(0, keys % module.num_embeddings, raised(each, power))
    if module.padding_idx is not None:
        total[module.padding_idx] = 0
    return {"weight": total}
