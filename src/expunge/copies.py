"""Private copies of a model, and what must hold of one before it is copied."""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from expunge import tensors
from expunge.errors import UserError, listing

_OWN = set(vars(nn.Module()))  # parameters, buffers, children and hooks: not what a forward pass stores
_PLAIN = (type(None), bool, int, float, str, torch.Size, torch.dtype, torch.device)


def check_made(model: nn.Module) -> None:
    """Refuse what is no module, and a lazy one whose parameters do not exist yet.

    Raises:
        UserError: says which.
    """
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise UserError("a torch.nn.Module", got, "pass the trained network")
    lazy = [n for n, p in [*model.named_parameters(), *model.named_buffers()] if is_lazy(p)]
    if lazy:
        remedy = "run the model once on a batch before training it"
        raise UserError("a model whose parameters exist", f"lazy {listing(lazy)}", remedy)


def check_trainable(model: nn.Module) -> None:
    """Refuse a model that has nothing to train.

    Raises:
        UserError: it has no parameters, none is trainable, or they do not exist yet.
    """
    check_made(model)
    if not tensors.parameters(model):
        got = "frozen ones only" if any(True for _ in model.parameters()) else "none"
        remedy = "call requires_grad_(True) on some" if got != "none" else "pass a network with weights"
        raise UserError("a model with trainable parameters", got, remedy)


def private(model: nn.Module) -> nn.Module:
    """Return a deep copy.

    Raises:
        UserError: a tensor of a past forward pass is stored on the model, it holds something that has no copy, or its
            own ``__deepcopy__`` hands out the model's parameters.
    """
    kept = [name for name, _, _, value in _stored(model) if any(t.grad_fn is not None for t in value)]
    if kept:
        remedy = (
            "delete it before the call, and let forward store it detached or not at all; "
            "where it is torch.nn.utils.weight_norm's, take torch.nn.utils.parametrizations instead"
        )
        raise UserError("a model that can be copied", f"a tensor of a past forward pass in {listing(kept)}", remedy)
    try:
        made = copied(model)
    except Exception as error:  # whatever a member's own copying raises
        got = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        remedy = "leave locks, files and open connections out of it, or give it a __deepcopy__"
        raise UserError("a model that can be copied", got, remedy) from error
    own = {id(p) for p in model.parameters()}
    if any(id(p) in own for p in made.parameters()):
        remedy = "mend its __deepcopy__, which must copy them"
        raise UserError("a model that can be copied", "a copy that shares parameters with it", remedy)
    return made


def copied(model: nn.Module, shared: Iterable[object] = ()) -> nn.Module:
    """Return a deep copy, some objects of which may be the model's own.

    Most of what `copy.deepcopy` does with a network is to copy the dictionaries of hooks that every module keeps and
    that are empty nearly everywhere; they are made anew, which takes a third of the time and comes to the same.

    Args:
        model: left as it is.
        shared: parameters, buffers or other members that the copy is to hold as they are.
    """
    memo: dict[int, Any] = {id(one): one for one in shared}
    for module in model.modules():
        for value in vars(module).values():
            if type(value) in (dict, OrderedDict) and not value:
                memo.setdefault(id(value), type(value)())
    return copy.deepcopy(model, memo)


def as_before(made: nn.Module, source: nn.Module) -> nn.Module:
    """Take from a copy the tensors that its forward passes stored on it as plain attributes, which hold samples' data.

    What the source stores under the same name is put back, and so are the numbers and flags beside it, such as the
    length that a stored table is for; parameters and buffers are left alone.

    Args:
        made: the copy, edited in place.
        source: the model it was copied from.

    Returns:
        ``made``.
    """
    old = {(path, type(m)): m for path, m in source.named_modules()}
    types = {path: type(m) for path, m in made.named_modules()}
    for name, module, key, value in list(_stored(made)):
        path = name.rpartition(".")[0]
        before = old.get((path, types[path]))
        if before is not None and key in vars(before):
            setattr(module, key, copy.deepcopy(vars(before)[key]))
        elif before is not None or any(t.grad_fn is not None for t in value):
            delattr(module, key)
        if before is not None:
            _put_back(module, before)
    return made


def _put_back(module: nn.Module, before: nn.Module) -> None:
    """Give a module the plain numbers, texts and flags of the one it was copied from: they tell of what it stored."""
    old = vars(before)
    for key, value in list(vars(module).items()):
        if key in _OWN or not isinstance(value, _PLAIN):
            continue
        if key not in old:
            delattr(module, key)
        elif isinstance(old[key], _PLAIN):
            setattr(module, key, old[key])


def _stored(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, list[Tensor]]]:
    """Yield plain attributes that hold tensors, not parameters or buffers: full name, module, attribute, tensors."""
    known = {id(t) for t in [*model.parameters(), *model.buffers()]}  # an LSTM lists its weights in one, too
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in _OWN and isinstance(value, Tensor | list | tuple | dict | deque):
                found = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
                if found and not any(id(t) in known for t in found):
                    yield f"{path}.{key}" if path else key, module, key, found


def layout(model: nn.Module) -> list[Any]:
    """Return what a state dict leaves out: each module's type, attributes and numbers of hooks, shapes of tensors."""
    shapes = [(name, tuple(t.shape), str(t.dtype)) for name, t in model.state_dict().items()]
    rows = [
        (path, type(m), sorted(vars(m)), [len(v) for k, v in sorted(vars(m).items()) if k.endswith("_hooks")])
        for path, m in model.named_modules()
    ]
    return [*shapes, *rows]
