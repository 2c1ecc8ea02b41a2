"""Several networks that answer as one: the served module of sharded methods, every tensor of it in memory once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.copies import copied
from expunge.errors import UserError
from expunge.task import Binary, Classification, MultiLabel, Task, output_tensor

AGGREGATES = ("softmax", "logits", "votes")
RULES = ("softmax", "sigmoid", "votes", "votes of signs", "mean")
TIE = 1e-3  # of one vote: what the mean probabilities add to the votes, to order classes of equally many


def rule(aggregate: str, task: Task) -> str:
    """Return how members' outputs are put together, one of `RULES`.

    Args:
        aggregate: ``softmax`` (mean probability), ``logits`` (mean output) or ``votes`` (shares of votes).
        task: what the outputs mean; without probabilities their mean is taken, whatever ``aggregate`` says.
    """
    if aggregate != "logits" and isinstance(task, Binary | MultiLabel):
        return "sigmoid" if aggregate == "softmax" else "votes of signs"
    if aggregate == "votes":
        return "votes" if isinstance(task, Classification) else "mean"
    spread = isinstance(task, Classification) or bool(getattr(task, "softmax", False))
    return "softmax" if aggregate == "softmax" and spread else "mean"


def combined(outputs: Tensor, how: str) -> Tensor:
    """Return the outputs of an ensemble of M members, which mean what one member's outputs mean.

    ``softmax``: ln 1/M Σ softmax(f_i) over the last dimension, so that its softmax is the mean probability.
    ``sigmoid``: ln Σ σ(z_i) − ln Σ σ(−z_i), so that its sigmoid is the mean probability.
    ``votes``: ln (votes + 10⁻³·p)/(M + 10⁻³), p the mean probability, which orders classes of equally many votes;
    ``votes of signs``: the log-ratio of the votes for and against, made in the same way. ``mean``: the mean.

    Args:
        outputs: of the members, (M, B, ...).
        how: one of `RULES`.

    >>> combined(torch.tensor([[[1.0]], [[3.0]]]), "mean")
    tensor([[2.]])
    """
    count = len(outputs)
    if how == "mean":
        return outputs.mean(0)
    wide = outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs
    if how == "softmax":
        found = wide.log_softmax(-1).logsumexp(0) - torch.log(torch.tensor(float(count), dtype=wide.dtype))
    elif how == "sigmoid":
        found = F.logsigmoid(wide).logsumexp(0) - F.logsigmoid(-wide).logsumexp(0)
    elif how == "votes":
        votes = F.one_hot(wide.argmax(-1), wide.shape[-1]).to(wide).sum(0)
        found = _shares(votes, wide.softmax(-1).mean(0), count)
    else:
        votes, mean = (wide > 0).to(wide).sum(0), wide.sigmoid().mean(0)
        against = (-wide).sigmoid().mean(0)
        found = _shares(votes, mean, count) - _shares(count - votes, against, count)
    return found.to(outputs.dtype)


def _shares(votes: Tensor, probability: Tensor, count: int) -> Tensor:
    """Return the logarithm of shares of votes, finite where there is none."""
    least = torch.finfo(votes.dtype).tiny
    return ((votes + TIE * probability) / (count + TIE)).clamp_min(least).log()


def twin(base: nn.Module) -> nn.Module:
    """Return a copy of a network's structure that holds the very parameters and buffers of the network itself."""
    return copied(base, [*base.parameters(), *base.buffers()])


class Ensemble(nn.Module):
    """Members that answer as one network; what members share with each other or with the base is in memory once.

    The forward pass writes nothing on any module, so that many threads may predict at once. The state dict holds
    each shared tensor once, under the first of its names. It is in training or eval mode as its base is.

    Args:
        base: the network before any stage; its weights are frozen, and are what is stored beside the state.
        members: networks by name; a name has no dot.
        how: how their outputs are put together, one of `RULES`.

    Raises:
        UserError: no member, or an unknown rule.
    """

    def __init__(self, base: nn.Module, members: Mapping[str, nn.Module], how: str = "softmax") -> None:
        super().__init__()
        if not members:
            raise UserError("an ensemble of one member or more", "none", "train one before it serves")
        if how not in RULES:
            raise UserError(f"a rule among {', '.join(RULES)}", repr(how), "choose one of them")
        self.base = base.requires_grad_(False)
        self.training = base.training
        self.members = nn.ModuleDict(dict(members))
        self.how = how
        self.register_state_dict_post_hook(_once)
        self.register_load_state_dict_post_hook(_tied)

    @property
    def before_training(self) -> nn.Module:
        """The base, from which `expunge.train.fresh` makes a network before training."""
        return self.base

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the outputs of all members put together, of the shape of one member's."""
        found = [output_tensor(member(*args, **kwargs)) for member in self.members.values()]
        return combined(torch.stack(found), self.how)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Move or convert every tensor; a buffer that is shared would otherwise become one for each that shares it."""
        every: dict[int, list[tuple[dict[str, Any], str]]] = {}
        for module in self.modules():
            for kept in (module._parameters, module._buffers):
                for name, tensor in kept.items():
                    if tensor is not None:
                        every.setdefault(id(tensor), []).append((kept, name))
        super()._apply(fn, recurse)
        for (first, own), *others in every.values():
            for kept, name in others:
                kept[name] = first[own]
        return self


def _names(module: nn.Module) -> dict[int, list[str]]:
    """Return all full names of each parameter and buffer, by identity."""
    found: dict[int, list[str]] = {}
    every = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, tensor in every:
        found.setdefault(id(tensor), []).append(name)
    return found


def _once(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Leave each tensor in the state dict once, under the first of its names there."""
    order = {name: at for at, name in enumerate(state)}
    for names in _names(module).values():
        for name in sorted((prefix + n for n in names if prefix + n in order), key=order.__getitem__)[1:]:
            del state[name]


def _tied(module: nn.Module, found: Any) -> None:
    """Take a tensor for given that stands under another of its names."""
    missing = set(found.missing_keys)
    given = {name for names in _names(module).values() if any(n not in missing for n in names) for name in names}
    found.missing_keys[:] = [n for n in found.missing_keys if n not in given]
