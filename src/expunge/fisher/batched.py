"""vmap over the gradient of one sample, chunked to a memory budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from expunge.data import Batch
from expunge.fisher.checks import warn_underflow, wide
from expunge.fisher.kernels import raised
from expunge.fisher.quantities import count, power, scalars, verify
from expunge.runtime import Runtime
from expunge.task import Task

_CACHED = 2**26  # bytes of gradients at once on a CPU, where more are slower, not faster


class _Objective(nn.Module):
    """The quantity of one sample as a module, so that `functional_call` can swap the model's parameters."""

    def __init__(self, model: nn.Module, task: Task, of: str, pick: int, probe: bool) -> None:
        super().__init__()
        self.model, self.task, self.of, self.pick, self.probe = model, task, of, pick, probe

    def forward(self, inputs: Any, target: Tensor | None, weight: Tensor | None) -> Tensor:
        one = {k: v.unsqueeze(0) for k, v in inputs.items()} if isinstance(inputs, dict) else inputs.unsqueeze(0)
        label = None if target is None else target.unsqueeze(0)
        batch = Batch(one, label, None if weight is None else weight.unsqueeze(0), torch.zeros(1, dtype=torch.long))
        outputs, _ = self.task.forward(self.model, batch)
        return scalars(self.of, self.task, outputs, batch, self.probe)[self.pick].squeeze(0)


def sums(
    model: nn.Module,
    task: Task,
    batch: Batch,
    params: Mapping[str, nn.Parameter],
    of: str,
    runtime: Runtime,
    probe: bool = False,
) -> dict[str, Tensor]:
    """Return what `reference.sums` returns, several samples at a time; of the probed quantity with ``probe``.

    Raises:
        RuntimeError: vmap cannot trace the model (in-place code, data-dependent branches).
    """
    total = {n: torch.zeros(p.shape, dtype=torch.float64, device=p.device) for n, p in params.items()}
    for _, grads in rows(model, task, batch, params, of, runtime, probe):
        for name, g in grads.items():
            if power(of) == 2 and not probe:
                warn_underflow(g, name)
            total[name] += raised(g, power(of)).sum(dim=0)
    return total


def rows(
    model: nn.Module,
    task: Task,
    batch: Batch,
    params: Mapping[str, nn.Parameter],
    of: str,
    runtime: Runtime,
    probe: bool = False,
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Yield the gradients themselves, of some samples at a time: which, and (b, *shape) by parameter.

    Of the quantity ``true`` every sample comes once a class.

    Raises:
        RuntimeError: vmap cannot trace the model (in-place code, data-dependent branches).
    """
    with torch.no_grad(), runtime.autocast():
        outputs, _ = task.forward(model, batch)
        verify(of, task, outputs, batch)
    picks = 1 if probe else count(of, task, outputs)
    width = 3 * max(1, sum(p.numel() * p.element_size() for p in params.values()))
    room = runtime.budget() if outputs.is_cuda else min(runtime.budget(), _CACHED)
    chunk = max(1, min(len(batch), room // width))
    inner = {f"model.{name}": p.detach() for name, p in params.items()}
    for pick in range(picks):
        objective = _Objective(model, task, of, pick, probe)

        def value(p: dict[str, Tensor], x: Any, y: Any, w: Any, f: _Objective = objective) -> Tensor:
            with runtime.autocast():
                return functional_call(f, p, (x, y, w))  # type: ignore[no-any-return]

        mapped = vmap(grad(value), in_dims=(None, 0, _axis(batch.target), _axis(batch.weight)), randomness="error")
        for start in range(0, len(batch), chunk):
            at = slice(start, min(start + chunk, len(batch)))
            some = batch.part(at)
            with torch.no_grad():  # or the parameters that were not asked for would keep a graph over all batches
                grads = mapped(inner, some.inputs, some.target, some.weight)
            yield at, {name: wide(grads[f"model.{name}"]) for name in params}


def _axis(tensor: Tensor | None) -> int | None:
    return None if tensor is None else 0
