"""The gradient of the summed loss over a data set, added up in batches of any size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from expunge.data import Batch, Data
from expunge.errors import NotFinite, listing
from expunge.fisher.checks import chosen
from expunge.influence.products import gradients
from expunge.influence.space import check_sums
from expunge.passes import Passes
from expunge.penalties import without_cudnn
from expunge.runtime import Runtime
from expunge.task import Task


class SummedGradient:
    """Σ_i w_i·∂ℓ_i/∂θ by trainable parameter, in float64, whatever the batches are: sums of samples, not of means.

    Each batch is run forward and backward once. Terms of a batch are summed by autograd in the parameters' own format,
    batches in float64. Several processes each take their share of the samples; `close` adds them.

    Args:
        model: in eval mode, on the runtime's device; no gradient is left on it.
        task: per-sample loss.
        runtime: batch size, precision, processes.

    Attributes:
        values: the sums, by name; tied parameters stand under their first name, frozen ones are left out.
        loss: Σ_i w_i·ℓ_i.

    Raises:
        UserError: gradients that depend on the batch, or complex parameters.
    """

    def __init__(self, model: nn.Module, task: Task, runtime: Runtime) -> None:
        check_sums(model)
        self.model, self.task, self.runtime = model, task, runtime
        self.weights = chosen(model, None)
        self.values = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in self.weights.items()}
        self.loss = 0.0
        self._passes = Passes(runtime)

    def add(
        self,
        data: Data,
        order: Sequence[int] | NDArray[np.int64] | None = None,
        *,
        advance: Callable[[int], None] = lambda n: None,
        seen: Callable[[Batch, Tensor], None] = lambda batch, losses: None,
    ) -> None:
        """Add this process's share of the samples.

        Args:
            data: labelled samples.
            order: positions in it; all by default.
            advance: called with the number of samples of each batch, of all processes together.
            seen: called with each batch, as it was read, and the losses of its samples.
        """
        at = self.runtime.part(np.arange(len(data)) if order is None else np.asarray(order, dtype=np.int64))
        weights = list(self.weights.values())
        with self.runtime.agreed(), without_cudnn(self.model):
            for batch, losses, found in gradients(
                self.model, self.task, data, self.runtime, weights, order=at, passes=self._passes
            ):
                for total, gradient in zip(self.values.values(), found, strict=True):
                    if gradient is not None:
                        total += gradient
                weight = 1.0 if batch.weight is None else batch.weight.double().cpu()
                self.loss += float((losses.double().cpu() * weight).sum())
                seen(batch, losses)
                advance(len(batch) * self.runtime.count)

    def close(self, what: str) -> dict[str, Tensor]:
        """Return the sums over all processes.

        Args:
            what: the data set, for the message.

        Raises:
            NotFinite: one is NaN or infinite.
        """
        loss = torch.tensor(self.loss, dtype=torch.float64)
        *totals, loss = self.runtime.sum([*self.values.values(), loss])
        self.values, self.loss = dict(zip(self.weights, totals, strict=True)), float(loss)
        bad = [name for name, value in self.values.items() if not bool(torch.isfinite(value).all())]
        if bad:
            got = f"NaN or infinity in {listing(bad)}"
            raise NotFinite(f"a finite gradient of the loss on {what}", got, "check the weights and that data")
        return self.values
