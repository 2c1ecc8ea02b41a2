"""A network's last linear layer: found, and fed in float64 with the features of everything below it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.copies import private
from expunge.data import Batch, Data
from expunge.errors import UserError
from expunge.passes import Passes, out_of_memory
from expunge.runtime import Runtime
from expunge.task import Task, check_targets
from expunge.tensors import check_finite

PROBED = 2  # samples that show which layer gives the outputs


@dataclass(frozen=True, eq=False)
class Features:
    """What the head is fed with, a row a sample, in the data's order.

    Args:
        x: (N, p), float64.
        target: (N, ...) labels.
        weight: (N,) sample weights, ones where there are none, float64.
    """

    x: Tensor
    target: Tensor
    weight: Tensor


def linear(model: nn.Module) -> list[str]:
    """Return the names of linear layers whose weight is a parameter of their own, in order."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and joined(n, "weight") in names]


def joined(module: str, parameter: str) -> str:
    """Return a parameter's name from its module's, which is empty for the network itself."""
    return f"{module}.{parameter}" if module else parameter


class Head:
    """The linear layer whose output is the network's, with a float64 copy of the network that feeds it.

    Features are worked out in float64, so that those of a later request differ from the first ones by no more than
    float64 rounds, whatever the batches and the device.

    Args:
        model: in eval mode; left as it is.
        task: how to run it.
        data: of which the first samples show the layer.
        method: who asks, for messages.

    Raises:
        UserError: no layer is such, or the features depend on its weights.
    """

    def __init__(self, model: nn.Module, task: Task, data: Data, method: str) -> None:
        self.task, self.method = task, method
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.model = private(model).double().requires_grad_(False)
        batch = _double(data.read(range(min(PROBED, len(data)))).to(self.device))
        self.name = self._found(batch)
        self.layer: nn.Linear = self.model.get_submodule(self.name)  # type: ignore[assignment]
        own = {id(p) for p in self.layer.parameters()}
        self.alone = all(id(t) in own for t in [*self.model.parameters(), *self.model.buffers()])
        self._check_apart(batch)

    @torch.no_grad()
    def _found(self, batch: Batch) -> str:
        for name in reversed(linear(self.model)):
            try:
                outputs, found = self.task.forward(self.model, batch, [f"{name}:input", name])
            except UserError:  # not reached
                continue
            except Exception as error:
                if out_of_memory(error):
                    raise
                remedy = "let its forward keep the type of its inputs, or pass features and a single linear layer"
                got = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
                raise UserError(f"a network that runs in float64 for {self.method}", got, remedy) from error
            if self._gives(self.model.get_submodule(name), found[f"{name}:input"], found[name], outputs, batch):
                return name
        remedy = "let it end in an nn.Linear that sees one row a sample, with nothing after it"
        raise UserError(f"a network whose outputs are a linear layer's for {self.method}", "none", remedy)

    @staticmethod
    def _gives(layer: Any, x: Any, out: Any, outputs: Tensor, batch: Batch) -> bool:
        """Return whether these outputs are Wx + b of one row a sample."""
        if not isinstance(x, Tensor) or not isinstance(out, Tensor) or x.dim() != 2 or len(x) != len(batch):
            return False
        if out.numel() != outputs.numel() or not torch.allclose(out.reshape(outputs.shape), outputs):
            return False
        return torch.allclose(F.linear(x, layer.weight, layer.bias), out)

    @torch.no_grad()
    def _check_apart(self, batch: Batch) -> None:
        """Refuse a head whose weights work below it too: with other weights its features would be others."""
        before = self._fed(batch)
        kept = {name: p.clone() for name, p in self.layer.named_parameters()}
        for p in self.layer.parameters():
            p.zero_()
        after = self._fed(batch)
        for name, p in self.layer.named_parameters():
            p.copy_(kept[name])
        if not torch.equal(before, after):
            got = f"{self.name or 'the layer'}, whose weights are used below it too"
            raise UserError(f"a last linear layer with weights of its own for {self.method}", got, "untie them")

    def _fed(self, batch: Batch) -> Tensor:
        return self.task.forward(self.model, batch, [f"{self.name}:input"])[1][f"{self.name}:input"]

    def features(self, data: Data, runtime: Runtime, advance: Callable[[int], None]) -> Features:
        """Run the network once over labelled data, and keep what its head is fed with.

        Args:
            data: the samples.
            runtime: batch size.
            advance: told how many samples are done.

        Returns:
            The head's inputs with targets and sample weights.

        Raises:
            UserError: targets do not fit, or a sample weight is below 0 or not finite.
            NotFinite: a feature is NaN or infinite.
        """

        def work(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
            moved = _double(batch.to(self.device))
            tap = f"{self.name}:input"
            with torch.no_grad():
                outputs, found = self.task.forward(self.model, moved, [tap])
            assert moved.target is not None
            check_targets(self.task, outputs, moved.target)
            weight = torch.ones(len(batch), dtype=torch.float64, device=self.device)
            return found[tap], moved.target, weight if moved.weight is None else moved.weight.double()

        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for part in Passes(runtime).over(data, work):
            parts.append(part)
            advance(len(part[0]))
        x, target, weight = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        check_finite({"the head's input": x}, f"features of {data.name}", "check the weights and inputs")
        return Features(x, target, weight)


def _double(batch: Batch) -> Batch:
    """Return the batch with its fractional inputs and targets in float64."""
    inputs = batch.inputs
    wide = {k: _wide(v) for k, v in inputs.items()} if isinstance(inputs, dict) else _wide(inputs)
    return replace(batch, inputs=wide, target=None if batch.target is None else _wide(batch.target))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
