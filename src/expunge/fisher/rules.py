"""Closed per-layer rules: per-sample gradients of a layer's parameters from its input and its output's gradient.

A rule is one function registered for a module type; adding one touches this file alone. It returns the gradients in
factored form (`kernels`), by the name of the module's attribute. A type may be named by its dotted name, so that its
library need not be imported; a subclass has the rule where it does not override ``forward``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.fisher.checks import wide
from expunge.fisher.kernels import CHUNK, Dense, Gradient, Outer, Patches, Rows, Window, slices

Rule = Callable[[Any, Tensor, Tensor], dict[str, Gradient]]
RULES: dict[str, Rule] = {}


def rule(*types: type[nn.Module] | str) -> Callable[[Rule], Rule]:
    """Register a rule for module types, or for their dotted names."""

    def register(function: Rule) -> Rule:
        RULES.update({t if isinstance(t, str) else _dotted(t): function for t in types})
        return function

    return register


def _dotted(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def rule_of(module: nn.Module) -> Rule | None:
    """Return the rule of a module's type, or of the type whose ``forward`` it inherits; None where there is none."""
    for base in type(module).__mro__:
        found = RULES.get(_dotted(base))
        if found is not None and "forward" not in vars(module) and type(module).forward is base.forward:  # type: ignore[attr-defined]
            return found if _described(module) else None
    return None


def _described(module: nn.Module) -> bool:
    """Return whether the module is in the configuration that its rule describes."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.running_mean is not None
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return not module.track_running_stats
    if isinstance(module, nn.Embedding):
        return not module.scale_grad_by_freq and module.max_norm is None
    return True


def _positions(tensor: Tensor, *last: int) -> Tensor:
    """Return (B, T, *last) of (B, ..., *last)."""
    return wide(tensor).reshape(len(tensor), -1, *last)


def _by_parts(a: Tensor, delta: Tensor, each: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return what ``each`` gives for all samples, a few at a time: memory for all at once is new memory each time."""
    step = max(1, CHUNK // max(1, a[:1].numel() * 4))
    return torch.cat([each(wide(a[at]), wide(delta[at])) for at in slices(len(a), step)])


def _with_bias(module: Any, weight: Gradient, bias: Tensor) -> dict[str, Gradient]:
    """Return both, the bias' gradient being (B, O)."""
    return {"weight": weight} if module.bias is None else {"weight": weight, "bias": Dense(bias)}


@rule(nn.Linear)
def linear(module: nn.Linear, a: Tensor, delta: Tensor) -> dict[str, Gradient]:
    """Linear on (B, ..., I): Σ_t δ_t a_tᵀ."""
    left, right = _positions(delta, module.out_features), _positions(a, module.in_features)
    return _with_bias(module, Outer(left, right), left.sum(dim=1))


@rule("transformers.pytorch_utils.Conv1D")
def transposed_linear(module: Any, a: Tensor, delta: Tensor) -> dict[str, Gradient]:
    """GPT-2's layer on (B, ..., I) with a weight (I, O): Σ_t a_t δ_tᵀ."""
    inputs, outputs = module.weight.shape
    left, right = _positions(a, inputs), _positions(delta, outputs)
    return _with_bias(module, Outer(left, right), right.sum(dim=1))


def _padding(module: Any) -> tuple[int, ...]:
    return tuple(module._reversed_padding_repeated_twice)


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(module: nn.Conv2d, a: Tensor, delta: Tensor) -> dict[str, Gradient]:
    """Convolution of (B, C, ...) with any stride, padding, dilation and groups, as a product with patches."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    window = Window(module.kernel_size, module.stride, module.dilation, _padding(module), mode)
    a, delta = wide(a), wide(delta)
    return _with_bias(module, Patches(delta, a, window, module.groups), delta.flatten(2).sum(dim=2))


@rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def transposed_convolution(module: nn.ConvTranspose2d, a: Tensor, delta: Tensor) -> dict[str, Gradient]:
    """Transposed convolution of (B, C, ...): its kernel moves over the output's gradient."""
    sides: Any = reversed(module.padding)
    pad = tuple(chain.from_iterable((p, p) for p in sides))
    window = Window(module.kernel_size, module.stride, module.dilation, pad)
    a, delta = wide(a), wide(delta)
    return _with_bias(module, Patches(a, delta, window, module.groups), delta.flatten(2).sum(dim=2))


@rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
def batch_norm(module: nn.BatchNorm2d, a: Tensor, delta: Tensor) -> dict[str, Gradient]:
    """BatchNorm with running statistics on (B, C) or (B, C, ...)."""
    assert module.running_mean is not None
    assert module.running_var is not None
    mean = module.running_mean.unsqueeze(1)
    a, delta = (t.reshape(len(t), module.num_features, -1) for t in (a, delta))
    centred = _by_parts(a, delta, lambda x, d: (x - mean).mul_(d).sum(dim=2))
    return _with_bias(module, Dense(centred * (module.running_var + module.eps).rsqrt()), wide(delta).sum(dim=2))


@rule(nn.LayerNorm)
def layer_norm(module: nn.LayerNorm, a: Tensor, delta: Tensor) -> dict[str, Gradient]:
    """LayerNorm over the last dimensions, any positions between them and the batch."""
    shape = tuple(module.normalized_shape)
    a, delta = (t.reshape(len(t), -1, *shape) for t in (a, delta))
    weight = _by_parts(a, delta, lambda x, d: F.layer_norm(x, shape, eps=module.eps).mul_(d).sum(dim=1))
    return _with_bias(module, Dense(weight), wide(delta).sum(dim=1))


@rule(nn.RMSNorm)
def rms_norm(module: nn.RMSNorm, a: Tensor, delta: Tensor) -> dict[str, Gradient]:
    """RMSNorm over the last dimensions, any positions between them and the batch."""
    shape = tuple(module.normalized_shape)
    eps = torch.finfo(a.dtype).eps if module.eps is None else module.eps
    normal = _positions(F.rms_norm(wide(a), list(shape), eps=eps), *shape)
    return {"weight": Dense(normal.mul_(_positions(delta, *shape)).sum(dim=1))}


@rule(nn.GroupNorm)
def group_norm(module: nn.GroupNorm, a: Tensor, delta: Tensor) -> dict[str, Gradient]:
    """GroupNorm on (B, C, ...)."""
    normal = F.group_norm(wide(a), module.num_groups, eps=module.eps)
    return _scaled(module, normal, delta)


@rule(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def instance_norm(module: nn.InstanceNorm2d, a: Tensor, delta: Tensor) -> dict[str, Gradient]:
    """InstanceNorm without running statistics on (B, C, ...)."""
    return _scaled(module, F.instance_norm(wide(a), eps=module.eps), delta)


def _scaled(module: Any, normal: Tensor, delta: Tensor) -> dict[str, Gradient]:
    """Return the gradients of a scale and a shift for each channel of (B, C, ...)."""
    normal, delta = (wide(t).reshape(*t.shape[:2], -1) for t in (normal, delta))
    return _with_bias(module, Dense((normal * delta).sum(dim=2)), delta.sum(dim=2))


@rule(nn.PReLU)
def prelu(module: nn.PReLU, a: Tensor, delta: Tensor) -> dict[str, Gradient]:
    """PReLU on (B, C, ...), one slope a channel or one in all."""
    values = (wide(a).clamp_max(0) * wide(delta)).reshape(len(a), a.shape[1] if a.dim() > 1 else 1, -1).sum(dim=2)
    return {"weight": Dense(values if module.num_parameters > 1 else values.sum(dim=1, keepdim=True))}


@rule(nn.Embedding)
def embedding(module: nn.Embedding, a: Tensor, delta: Tensor) -> dict[str, Gradient]:
    """Embedding of token indices (B, ...): rows used several times in a sample are summed first."""
    index, values = a.reshape(len(a), -1), _positions(delta, module.embedding_dim)
    return {"weight": Rows(index, values, module.num_embeddings, module.padding_idx)}
