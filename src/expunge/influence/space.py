"""The weights that a step may move: some of a network's parameters as one vector, found by the names of layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.data import Batch
from expunge.errors import UserError, listing, suggest
from expunge.fisher.checks import chosen, plain
from expunge.fisher.quantities import unfused
from expunge.task import Task
from expunge.tensors import parameters


class Space:
    """Some of a network's trainable parameters as one vector θ of p scalars, float64.

    Args:
        model: on its device; in eval mode where anything is computed with it.
        names: of the parameters; all trainable ones by default. A tied parameter stands there once.

    Raises:
        UserError: an unknown or frozen name, weights of less than float32, or gradients that depend on the batch.
    """

    def __init__(self, model: nn.Module, names: Sequence[str] | None = None) -> None:
        self.model, self.params = model, chosen(model, names)
        narrow = [name for name, p in self.params.items() if p.dtype not in (torch.float32, torch.float64)]
        if narrow:
            got = f"{self.params[narrow[0]].dtype} in {listing(narrow)}"
            raise UserError("weights of float32 or float64, for curvature", got, "call float() on the model")
        check_sums(model)
        self.device = next(iter(self.params.values())).device
        self.slices, self.size = dict[str, slice](), 0
        for name, p in self.params.items():
            self.slices[name] = slice(self.size, self.size + p.numel())
            self.size += p.numel()

    def zeros(self) -> Tensor:
        """Return a vector of zeros, (p,)."""
        return torch.zeros(self.size, dtype=torch.float64, device=self.device)

    def filled(self, values: Mapping[str, Tensor | float]) -> Tensor:
        """Return the vector with these values where their parameters stand, and 0 elsewhere."""
        found = self.zeros()
        for name, value in values.items():
            at = self.slices[name]
            found[at] = value.detach().reshape(-1).to(found) if isinstance(value, Tensor) else value
        return found

    def weights(self) -> Tensor:
        """Return θ, (p,)."""
        return self.filled(self.params)

    def parts(self, vector: Tensor) -> list[Tensor]:
        """Return a vector's entries in the parameters' shapes and dtypes."""
        return [vector[at].view(self.params[n].shape).to(self.params[n].dtype) for n, at in self.slices.items()]

    def add_to(self, total: Tensor, grads: Sequence[Tensor | None], scale: float = 1.0) -> None:
        """Add tensors in the parameters' order to a vector, in place; None stands for zeros."""
        for at, grad in zip(self.slices.values(), grads, strict=True):
            if grad is not None:
                total[at].add_(plain(grad).reshape(-1), alpha=scale)

    def put(self, vector: Tensor) -> None:
        """Set θ to a vector, in place, each weight rounded once; no other weight is touched."""
        with torch.no_grad():
            for name, at in self.slices.items():
                self.params[name].copy_(vector[at].view(self.params[name].shape))

    @contextmanager
    def alone(self) -> Iterator[list[nn.Parameter]]:
        """Freeze all other parameters in the block, and let everything in it be differentiated twice.

        Fused attention and fused recurrent layers have no second derivative: their plain forms run.

        Yields:
            The parameters, in order.
        """
        own = {id(p) for p in self.params.values()}
        others = [p for p in self.model.parameters() if p.requires_grad and id(p) not in own]
        recurrent = any(isinstance(m, nn.RNNBase) for m in self.model.modules())
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(unfused())
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if recurrent:
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            try:
                for p in others:
                    p.requires_grad_(False)
                yield list(self.params.values())
            finally:
                for p in others:
                    p.requires_grad_(True)


def check_sums(model: nn.Module) -> None:
    """Refuse layers whose gradient over a batch is not the sum over its samples.

    Raises:
        UserError: names them.
    """
    odd = [n for n, m in model.named_modules() if getattr(m, "scale_grad_by_freq", False)]
    if odd:
        got = f"some scaled by frequencies in a batch, of {listing(odd)}"
        raise UserError("gradients that are sums over samples", got, "set scale_grad_by_freq=False there")


def named(model: nn.Module, layers: str | Sequence[str], task: Task, batch: Batch) -> list[str]:
    """Return the names of the trainable parameters of some layers.

    Args:
        model: in eval mode.
        layers: ``all``; ``last``, the layer with trainable weights whose call begins last, of a network that is a
            single layer that one; or names of modules, each with all that is in it.
        task: how to run it, for ``last``.
        batch: some samples, for ``last``.

    Raises:
        UserError: an unknown layer, or one without trainable weights; lists those that have some. One whose weights
            are tied to those of a layer that is not named.
    """
    known = parameters(model)
    if layers == "all":
        return list(known)
    if layers == "last":
        layers = _last(model, task, batch)
        if not layers:
            return [n for n in known if "." not in n]
    wanted = [layers] if isinstance(layers, str) else list(layers)
    owners = dict.fromkeys(name.rpartition(".")[0] for name in known)
    every = [name for name, m in model.named_modules() if any(p.requires_grad for p in m.parameters())]
    for layer in wanted:
        if layer not in every or not layer:
            tail = suggest(layer, [n for n in owners if n]) if layer else "name a layer"
            have = listing([n for n in owners if n], 12) or "none, all weights being the model's own"
            raise UserError(f"'all', 'last' or layers with trainable weights, of {have}", repr(layer), tail)
    found = [n for n in known if any(n.startswith(f"{layer}.") for layer in wanted)]
    own = {id(p) for layer in wanted for p in model.get_submodule(layer).parameters() if p.requires_grad}
    if own - {id(known[n]) for n in found}:  # some stand under the name of an earlier layer, to which they are tied
        remedy = "name the layer that they are tied to as well"
        raise UserError("layers with weights of their own", f"tied ones in {listing(wanted)}", remedy)
    return found


def _last(model: nn.Module, task: Task, batch: Batch) -> str:
    """Return the name of the module with trainable parameters of its own that a forward pass enters last.

    The last that is left may be one around it: a network with a token of its own is left after its head.

    Raises:
        UserError: none is called.
    """
    called = list[str]()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(unfused())
        for name, module in model.named_modules():
            if any(p.requires_grad for p in module.parameters(recurse=False)):
                hook = module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
                stack.callback(hook.remove)
        task.forward(model, batch)
    if not called:
        raise UserError("a last layer with trainable weights", "none that is called", "name layers, or take all")
    return called[-1]
