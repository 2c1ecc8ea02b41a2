"""One backward pass for the whole batch: rules turn each layer's input and output gradient into its sum.

Parameter gradients are switched off, so autograd computes only the gradients that flow between layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from expunge.data import Batch
from expunge.fisher.checks import Sums, least, warn_underflow, zeros
from expunge.fisher.quantities import power, scalars, verify
from expunge.fisher.rules import RULES
from expunge.runtime import Runtime
from expunge.task import Task


def covered(model: nn.Module, params: Mapping[str, nn.Parameter]) -> dict[str, nn.Module]:
    """Return the modules with a rule that alone own some of the parameters, by name."""
    names = {id(p): name for name, p in params.items()}
    owned = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    owners: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) in names]
        if own and type(module) in RULES and _plain(module) and all(owned[id(p)] == 1 for p in own):
            owners[name] = module
    return owners


def _plain(module: nn.Module) -> bool:
    """Return whether the module is in the configuration that its rule describes."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.running_mean is not None
    if isinstance(module, nn.Embedding):
        return not module.scale_grad_by_freq and module.max_norm is None
    return True


class Uses(TorchFunctionMode):
    """Counts the operations that each parameter enters: a rule knows of one, its own layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and run the operation; reading a shape or dtype gives no tensor and is no use."""
        found = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(found)):
            leaves = tree_leaves((args, kwargs))
            self.count.update({id(leaf) for leaf in leaves if isinstance(leaf, nn.Parameter)})
        return found


def used_once(
    model: nn.Module, task: Task, batch: Batch, runtime: Runtime, modules: Mapping[str, nn.Module]
) -> dict[str, nn.Module]:
    """Return the modules whose parameters enter one operation of a forward pass each, and none behind their back."""
    with torch.enable_grad(), runtime.autocast(), Uses() as uses:
        task.forward(model, batch)
    return {n: m for n, m in modules.items() if all(uses.count[id(p)] == 1 for p in m.parameters(recurse=False))}


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for p, _ in flags:
            p.requires_grad_(False)
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


class Reused(Exception):
    """A layer did not run once on one row a sample, or its input changed in place: its rule does not hold.

    Args:
        name: the module's name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def _warn(module: nn.Module, a: Tensor, delta: Tensor, name: str) -> None:
    """Warn of lost squares: of δ, and where the gradient is a product δ·a also of a and of the product."""
    factors = [least(delta)]
    if isinstance(module, nn.Linear | nn.Conv2d):
        factors += [least(a), factors[0] * least(a)]
    for factor in factors:
        warn_underflow(factor, name)


def sums(
    model: nn.Module,
    task: Task,
    batch: Batch,
    params: Mapping[str, nn.Parameter],
    of: str,
    runtime: Runtime,
    modules: Mapping[str, nn.Module],
    watch: bool = True,
) -> Sums:
    """Return what `reference.sums` returns, for the parameters of ``modules``.

    With ``watch`` squares that underflow are looked for and warned of, which costs some passes over activations.

    Raises:
        Reused: a module's rule does not hold on this batch.
    """
    names = {id(p): name for name, p in params.items()}
    own = {name for m in modules.values() for p in m.parameters(recurse=False) if (name := names.get(id(p)))}
    total = zeros({name: params[name] for name in sorted(own)})
    calls = dict.fromkeys(modules, 0)
    device = next(iter(params.values())).device
    anchor = torch.zeros((), device=device, requires_grad=True)

    def hook(name: str) -> Any:
        def forward(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            calls[name] += 1
            shared = bool(args) and isinstance(module, nn.Embedding) and len(args[0]) == 1
            if calls[name] > 1 or not args or (len(args[0]) != len(batch) and not shared):
                raise Reused(name)
            a = args[0].detach()
            if shared:  # positions looked up once for all samples: a row a sample keeps their gradients apart
                a, out = (t.expand(len(batch), *t.shape[1:]) for t in (a, out))
            version = a._version
            if not out.requires_grad:
                out = out + anchor.to(out.dtype)

            def backward(delta: Tensor) -> None:
                if a._version != version:
                    raise Reused(name)
                if watch and power(of) == 2:
                    _warn(module, a, delta, name)
                with torch.no_grad():
                    for key, value in RULES[type(module)](module, a, delta, power(of)).items():
                        target = names.get(id(getattr(module, key)))
                        if target is not None:
                            total[target] += value

            out.register_hook(backward)
            return out

        return forward

    with ExitStack() as stack:
        stack.enter_context(_frozen(model))
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(hook(name)).remove)
        with torch.enable_grad():
            with runtime.autocast():
                outputs, _ = task.forward(model, batch)
                verify(of, task, outputs, batch)
                each = scalars(of, task, outputs, batch)
            for q in each:
                torch.autograd.backward(q.sum(), inputs=[anchor], retain_graph=q is not each[-1])
    unused = [name for name, n in calls.items() if n == 0]
    if unused:
        raise Reused(unused[0])
    return total
