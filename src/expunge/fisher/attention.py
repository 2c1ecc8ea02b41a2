"""`torch.nn.MultiheadAttention` written out in plain operations, so that its projections have inputs and outputs."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Project(Protocol):
    """Applies rows of a weight and of a bias, named as attributes of the module, to (B, T, I)."""

    def __call__(self, x: Tensor, weight: str, bias: str | None, rows: slice | None = None) -> Tensor:
        """Return (B, T, O)."""


def described(module: nn.MultiheadAttention) -> bool:
    """Return whether `attend` covers the module's configuration."""
    return module.bias_k is None and module.bias_v is None and not module.add_zero_attn


def attend(
    module: nn.MultiheadAttention,
    project: Project,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return what ``module.forward`` returns in eval mode, for batches.

    Args:
        module: the layer.
        project: applies its weights.
        query: as in the module's forward, like all that follow.
        key: keys.
        value: values.
        key_padding_mask: (B, S).
        need_weights: whether to return weights.
        attn_mask: (L, S) or (B·heads, L, S).
        average_attn_weights: over heads.
        is_causal: a hint; the mask says the same.

    Returns:
        Outputs, and weights or None.
    """
    joint, shared = query is key and key is value, key is value
    if not module.batch_first:
        query, key, value = (t.transpose(0, 1) for t in (query, key, value))
    queries, keys, values = _projected(module, project, query, key, value, joint, shared)
    rows, heads = len(query), module.num_heads
    queries, keys, values = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (queries, keys, values))
    mask = _mask(attn_mask, key_padding_mask, rows, heads, queries)
    weights = None
    if need_weights:
        scores = queries @ keys.transpose(2, 3) / queries.shape[3] ** 0.5
        weights = (scores if mask is None else scores + mask).softmax(dim=3)
        out = weights @ values
        weights = weights.mean(dim=1) if average_attn_weights else weights
    else:
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    bias = None if module.out_proj.bias is None else "out_proj.bias"
    out = project(out.transpose(1, 2).flatten(2), "out_proj.weight", bias)
    return (out if module.batch_first else out.transpose(0, 1)), weights


def _projected(
    module: nn.MultiheadAttention,
    project: Project,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    joint: bool,
    shared: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    width, bias = module.embed_dim, None if module.in_proj_bias is None else "in_proj_bias"
    parts = [slice(i * width, (i + 1) * width) for i in range(3)]
    if not module._qkv_same_embed_dim:
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        each = zip((query, key, value), names, parts, strict=True)
        queries, keys, values = (project(x, name, bias, rows) for x, name, rows in each)
    elif joint:
        queries, keys, values = project(query, "in_proj_weight", bias).chunk(3, dim=2)
    elif shared:
        queries = project(query, "in_proj_weight", bias, parts[0])
        keys, values = project(key, "in_proj_weight", bias, slice(width, 3 * width)).chunk(2, dim=2)
    else:
        some = zip((query, key, value), parts, strict=True)
        queries, keys, values = (project(x, "in_proj_weight", bias, rows) for x, rows in some)
    return queries, keys, values


def _mask(attn_mask: Tensor | None, padding: Tensor | None, rows: int, heads: int, like: Tensor) -> Tensor | None:
    """Return what is added to the scores (B, heads, L, S), or None."""
    parts = []
    if attn_mask is not None:
        mask = _added(attn_mask, like)
        parts.append(mask.unflatten(0, (rows, heads)) if mask.dim() == 3 else mask)
    if padding is not None:
        parts.append(_added(padding, like)[:, None, None, :])
    return sum(parts[1:], parts[0]) if parts else None


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask as numbers to add; True stands for what is not seen."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, -torch.inf)
