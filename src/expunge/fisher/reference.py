"""One backward pass a sample: slow, always right, the truth the other engines are held to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from expunge.data import Batch
from expunge.fisher.checks import check_flows, plain, sample, warn_underflow, wide
from expunge.fisher.kernels import raised
from expunge.fisher.quantities import power, scalars, verify
from expunge.runtime import Runtime
from expunge.task import Task


def sums(
    model: nn.Module, task: Task, batch: Batch, params: Mapping[str, nn.Parameter], of: str, runtime: Runtime
) -> dict[str, Tensor]:
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
    total = {n: torch.zeros(p.shape, dtype=torch.float64, device=p.device) for n, p in params.items()}
    for _, _, found in rows(model, task, batch, params, of, runtime):
        for name, grad in found:
            total[name] += raised(grad, power(of))
    return total


def tried(
    model: nn.Module, task: Task, batch: Batch, params: Mapping[str, nn.Parameter], of: str, runtime: Runtime
) -> tuple[Tensor, dict[str, Tensor], dict[str, list[float]]]:
    """Return the outputs of samples, each alone, and of the probed quantity what `sums` gives.

    Returns:
        Outputs; `checks.sample` of the sums by parameter; the share of each sample in them, all entries added.
    """
    total = {n: sample(torch.zeros(p.shape, dtype=torch.float64, device=p.device)) for n, p in params.items()}
    shares = {n: [0.0] * len(batch) for n in params}
    outputs: list[Tensor] = []
    for row, out, found in rows(model, task, batch, params, of, runtime, probe=True):
        outputs.append(out)
        for name, grad in found:
            term = raised(sample(grad), power(of)).double()
            total[name] += term
            shares[name][row] += float(term.sum())
    return torch.cat(outputs), total, shares


def rows(
    model: nn.Module,
    task: Task,
    batch: Batch,
    params: Mapping[str, nn.Parameter],
    of: str,
    runtime: Runtime,
    probe: bool = False,
) -> Iterator[tuple[int, Tensor, list[tuple[str, Tensor]]]]:
    """Take the gradients of each scalar of each sample, float32 or wider.

    Yields:
        The sample's row, its outputs, and gradients by parameter; those that it does not use are left out.
    """
    for row in range(len(batch)):
        one = batch.part(slice(row, row + 1))
        with torch.enable_grad(), runtime.autocast():
            outputs, _ = task.forward(model, one)
            verify(of, task, outputs, one)
            each = [q.sum() for q in scalars(of, task, outputs, one, probe)]
        check_flows(each)
        for q in each:
            grads = torch.autograd.grad(q, list(params.values()), retain_graph=q is not each[-1], allow_unused=True)
            found = [(n, wide(plain(g))) for n, g in zip(params, grads, strict=True) if g is not None]
            if power(of) == 2 and not probe:
                for name, grad in found:
                    warn_underflow(grad, name)
            yield row, outputs.detach(), found


def batch_mean(
    model: nn.Module, task: Task, batch: Batch, params: Mapping[str, nn.Parameter], of: str, runtime: Runtime
) -> dict[str, Tensor]:
    """Return |∂/∂θ mean_s q_s|^p of a batch: the published codes' quantity, not the Fisher diagonal.

    It changes with batch size and order, and weighs every batch alike whatever its size.

    Args:
        model: in eval mode.
        task: how to run it.
        batch: the samples, targets ready.
        params: the parameters by name.
        of: ``batch_mean`` (the loss, squared) or ``batch_mean_norm`` (‖f‖², absolute).
        runtime: for precision.

    Returns:
        Float64 tensors in the parameters' shapes.
    """
    with torch.enable_grad(), runtime.autocast():
        outputs, _ = task.forward(model, batch)
        verify(of, task, outputs, batch)
        mean = scalars(of, task, outputs, batch)[0].mean()
    check_flows([mean])
    grads = torch.autograd.grad(mean, list(params.values()), allow_unused=True)
    return {n: raised(plain(g).double(), power(of)) for n, g in zip(params, grads, strict=True) if g is not None}
