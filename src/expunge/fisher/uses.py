"""What a forward pass does with each parameter: the operations it enters, and the calls of its module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from expunge.data import Batch
from expunge.runtime import Runtime
from expunge.task import Task

_WORDS = """add sub mul div true_divide pow neg exp log sqrt rsqrt tanh sigmoid softplus relu abs square clamp clamp_min
sin cos erf where maximum minimum addcmul lerp expand expand_as repeat cat concat stack unsqueeze squeeze view view_as
reshape permute transpose flatten clone contiguous to type_as float sum mean"""
ELEMENTWISE = {*_WORDS.split(), *(f"{w}_" for w in _WORDS.split()), "__getitem__", "__neg__"}
ELEMENTWISE |= {f"__{way}{w}__" for w in ("add", "sub", "mul", "truediv", "pow") for way in ("", "r", "i")}


def own(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that a rule for the module would serve, by attribute."""
    found = dict(module.named_parameters(recurse=False))
    if isinstance(module, nn.MultiheadAttention):  # its last projection is never called as a module
        found |= {f"out_proj.{n}": p for n, p in module.out_proj.named_parameters(recurse=False)}
    return found


class Uses(TorchFunctionMode):
    """Counts the operations that each parameter enters: a rule knows of one a call, its own layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()
        self.names: dict[int, set[str]] = {}

    def plain(self, p: nn.Parameter) -> bool:
        """Return whether a parameter entered operations only that say so where a shape does not fit."""
        return self.names.get(id(p), set()) <= ELEMENTWISE

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and run the operation; reading a shape or dtype gives no tensor and is no use."""
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        several = isinstance(found, tuple | list) and any(isinstance(f, Tensor) for f in found)
        if several or isinstance(found, Tensor):
            for value in (*args, *kwargs.values()):
                for leaf in value if isinstance(value, tuple | list) else (value,):
                    if isinstance(leaf, nn.Parameter):
                        self.count[id(leaf)] += 1
                        self.names.setdefault(id(leaf), set()).add(getattr(func, "__name__", ""))
        return found


@dataclass
class Calls:
    """What is seen of the modules with parameters while `watching`.

    Args:
        rows: by id of a module, the rows of its input, call by call; 0 where it has none.
        count: by id of a parameter, calls of modules that own it.
    """

    rows: dict[int, list[int]] = field(default_factory=dict)
    count: Counter[int] = field(default_factory=Counter)


@contextmanager
def watching(model: nn.Module) -> Iterator[Calls]:
    """Note the calls of modules with parameters."""
    seen = Calls()

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        seen.count.update(id(p) for p in own(module).values())
        a = first_input(args, kwargs)
        inner = isinstance(module, nn.MultiheadAttention)  # its projections get batches, whatever comes first outside
        seen.rows.setdefault(id(module), []).append(1 if inner else 0 if a is None or a.dim() == 0 else len(a))

    with ExitStack() as stack:
        for module in model.modules():
            if own(module) and not isinstance(module, torch.jit.ScriptModule):  # those take no hooks
                stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield seen


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the first thing that a module is called with, if it is a tensor."""
    a = args[0] if args else next(iter(kwargs.values()), None)
    return a if isinstance(a, Tensor) else None


def uses(model: nn.Module, task: Task, batch: Batch, runtime: Runtime) -> tuple[Uses, Calls, Tensor]:
    """Return what operations each parameter enters in a forward pass, the calls that explain them, and the outputs."""
    with watching(model) as calls, torch.enable_grad(), runtime.autocast(), Uses() as seen:
        outputs, _ = task.forward(model, batch)
    return seen, calls, outputs.detach()
