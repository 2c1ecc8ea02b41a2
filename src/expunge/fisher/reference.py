"""One backward pass a sample: slow, always right, the truth the other engines are held to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from expunge.data import Batch
from expunge.fisher.checks import Sums, warn_underflow, wide, zeros
from expunge.fisher.quantities import power, scalars, verify
from expunge.runtime import Runtime
from expunge.task import Task


def sums(
    model: nn.Module, task: Task, batch: Batch, params: Mapping[str, nn.Parameter], of: str, runtime: Runtime
) -> Sums:
    """Return Σ_s |∂q_s/∂θ|^p over the samples of a batch, one backward pass each.

    Args:
        model: in eval mode.
        task: how to run it.
        batch: the samples, targets ready.
        params: the parameters by name.
        of: the quantity q; p is 1 for ``output_norm``, else 2.
        runtime: for precision.

    Returns:
        Float64 tensors in the parameters' shapes.
    """
    total = zeros(params)
    for row in range(len(batch)):
        one = _row(batch, row)
        with torch.enable_grad(), runtime.autocast():
            outputs, _ = task.forward(model, one)
            verify(of, task, outputs, one)
            each = [q.sum() for q in scalars(of, task, outputs, one)]
        for q in each:
            grads = torch.autograd.grad(q, list(params.values()), retain_graph=True, allow_unused=True)
            for name, grad in zip(params, grads, strict=True):
                if grad is None:
                    continue
                if power(of) == 2:
                    warn_underflow(wide(grad), name)
                    total[name] += wide(grad).square()
                else:
                    total[name] += wide(grad).abs()
    return total


def batch_mean(
    model: nn.Module, task: Task, batch: Batch, params: Mapping[str, nn.Parameter], runtime: Runtime
) -> Sums:
    """Return the square of the batch-mean gradient: the published code's quantity, not the Fisher diagonal.

    It changes with batch size and order, and weighs every batch alike whatever its size.

    Returns:
        Float64 tensors in the parameters' shapes.
    """
    with torch.enable_grad(), runtime.autocast():
        outputs, _ = task.forward(model, batch)
        verify("loss", task, outputs, batch)
        mean = scalars("loss", task, outputs, batch)[0].mean()
    grads = torch.autograd.grad(mean, list(params.values()), allow_unused=True)
    total = zeros(params)
    for name, grad in zip(params, grads, strict=True):
        if grad is not None:
            total[name] += wide(grad).square()
    return total


def _row(batch: Batch, row: int) -> Batch:
    at = slice(row, row + 1)
    inputs = {k: v[at] for k, v in batch.inputs.items()} if isinstance(batch.inputs, dict) else batch.inputs[at]
    target = None if batch.target is None else batch.target[at]
    return Batch(inputs, target, None if batch.weight is None else batch.weight[at], batch.index[at])
