"""Where a network looks: attention maps of tapped activations, how far two networks' are apart, and what is tapped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.data import Batch
from expunge.errors import UserError, listing
from expunge.task import Task

EPSILON = 1e-12  # below it a map's norm is taken for it: a map of zeros stays one
CONVOLUTIONS = (nn.Conv1d, nn.ConvTranspose1d)
PASSED_OVER = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag)


def attention(activation: Tensor, channel: int | None = None) -> Tensor:
    """Return A(a) = v / max(‖v‖₂, 1e-12) of each sample, v the mean of a² over channels at every other position.

    Where there is a single position, as of a (B, H) tap, v is a² itself: its mean would be one number, and A always 1.

    Args:
        activation: a, (B, ...).
        channel: the dimension of the channels; None where there are no positions beside them.

    Returns:
        (B, P) for P positions, or (B, H).

    Source:
        Sergey Zagoruyko and Nikos Komodakis, Paying More Attention to Attention, 2017,
        https://arxiv.org/abs/1612.03928.

    >>> a = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]], dtype=torch.float64)
    >>> attention(a, channel=1).round(decimals=2).tolist()
    [[0.93, 0.37]]
    """
    wide = activation.to(torch.promote_types(activation.dtype, torch.float32)).square()
    value = wide.flatten(1) if channel is None else wide.mean(dim=channel).flatten(1)
    if value.shape[1] == 1:
        value = wide.flatten(1)
    return F.normalize(value, dim=1, eps=EPSILON)


def collapsed(activation: Tensor) -> Tensor:
    """Return the published map: the mean over dimension 1 whatever it is, so that every (B, H) tap gives 1.

    Args:
        activation: (B, ...).

    Returns:
        (B, P).
    """
    wide = activation.to(torch.promote_types(activation.dtype, torch.float32)).square()
    return F.normalize(wide.mean(dim=1).flatten(1) if wide.dim() > 2 else wide.mean(dim=1, keepdim=True), eps=EPSILON)


@dataclass(frozen=True)
class Tap:
    """A module whose output is looked at.

    Args:
        name: of the module.
        channel: the dimension of its channels; None where there are no positions beside them.
        published: whether the map is the published one.
    """

    name: str
    channel: int | None
    published: bool = False

    def apart(self, one: Tensor, other: Tensor) -> Tensor:
        """Return AD, the mean over samples and positions of the squared difference of two maps, a scalar.

        Args:
            one: activations of a network, (B, ...).
            other: of another one for the same samples.
        """
        if self.published:
            return (collapsed(one) - collapsed(other)).square().mean()
        return (attention(one, self.channel) - attention(other, self.channel)).square().mean()


def alignment(taps: Sequence[Tap], one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor | float:
    """Return Σ_j AD_j over taps, a scalar; 0 without taps.

    Args:
        taps: what is compared.
        one: activations of a network by name, of the same samples in the same order as the other's.
        other: of the other network; no gradient is to flow into it.
    """
    return sum((tap.apart(one[tap.name], other[tap.name]) for tap in taps), start=0.0)


@contextmanager
def _outputs(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield what every module returns by name, in the order of the calls."""
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        for name, module in model.named_modules():

            def keep(module: nn.Module, given: Any, out: Any, name: str = name) -> None:
                found[name] = out[0] if isinstance(out, tuple) and out else out

            stack.callback(module.register_forward_hook(keep).remove)
        yield found


class Probe:
    """What each module of a network says of a few samples, and which of them can be tapped.

    Args:
        model: in eval mode.
        task: runs it.
        batch: some samples.
    """

    def __init__(self, model: nn.Module, task: Task, batch: Batch) -> None:
        self.samples = len(batch)
        self.modules = dict(model.named_modules())
        with torch.no_grad(), _outputs(model) as said:
            self.answer = task.forward(model, batch)[0].detach()
        self.said: dict[str, Tensor] = {name: out for name, out in said.items() if name and self._usable(name, out)}

    def _usable(self, name: str, out: Any) -> bool:
        """Return whether an output has the batch in front and more than one real number a sample."""
        if not isinstance(out, Tensor) or not out.is_floating_point() or out.dim() < 2 or len(out) != self.samples:
            return False
        return out[0].numel() > 1 and getattr(self.modules[name], "batch_first", True) is not False

    def channel(self, name: str) -> int | None:
        """Return the dimension of a tap's channels.

        It is the second of (B, C, H, W) and other images, the last of sequences (B, T, H), unless the module holds a
        one-dimensional convolution, (B, C, T); None of (B, H).
        """
        dimensions = self.said[name].dim()
        if dimensions == 2:
            return None
        convolves = any(isinstance(m, CONVOLUTIONS) for m in self.modules[name].modules())
        return 1 if dimensions > 3 or convolves else 2

    def taps(self, names: Sequence[str], published: bool = False) -> tuple[Tap, ...]:
        """Return the taps of these names."""
        return tuple(Tap(name, self.channel(name), published) for name in names)

    def asked(self, names: Sequence[str], field: str) -> Sequence[str]:
        """Return the names that a user gave.

        Args:
            names: of modules.
            field: where they were given, for messages.

        Raises:
            UserError: there is no such module, it is never called, or its output is no tensor with the batch in front
                and two numbers a sample or more; lists those that can be tapped.
        """
        odd = [name for name in names if name not in self.said]
        if odd:
            why = (
                "no such module" if odd[0] not in self.modules else "no output (B, ...) of two numbers a sample or more"
            )
            known = listing(self.said, 60) or "none: this network has no output to tap"
            raise UserError(f"{field} among {known}", f"{odd[0]!r} ({why})", "name others, or leave them out")
        return names

    def found(self) -> list[str]:
        """Return the blocks of the network, which are tapped where nothing is asked for.

        They are the network's children that hold weights and are neither a normalisation nor an embedding. In the
        place of a child come its own children where it is a list or a `Sequential` of several such parts, where its
        output cannot be tapped, and where there would be fewer than two blocks otherwise. A block whose output is that
        of the network, and the last one if it gives as many numbers, is none: the outputs are compared as such.
        """
        blocks = self._opened("")
        kept = self._inner(blocks)
        while len(kept) < 2:
            further = [inner for block in blocks for inner in self._opened(block)]
            if len(self._inner(further)) <= len(kept):
                break
            blocks, kept = further, self._inner(further)
        return kept

    def _inner(self, names: Sequence[str]) -> list[str]:
        called = list(self.said)
        known = sorted((n for n in names if n in self.said), key=called.index)
        return [n for n in known if not self._answers(self.said[n], last=n == known[-1])]

    def _answers(self, out: Tensor, last: bool) -> bool:
        """Return whether a block is what gives the network's outputs, as they are or before they are shifted."""
        if out.numel() != self.answer.numel():
            return False
        return last or torch.equal(out.reshape(-1).to(self.answer), self.answer.reshape(-1))

    def _opened(self, name: str) -> list[str]:
        found = []
        for child, module in self.modules[name].named_children():
            full = f"{name}.{child}" if name else child
            if not _weighs(module):
                continue
            several = isinstance(module, nn.Sequential) and sum(map(_weighs, module.children())) > 1
            inner = self._opened(full) if several or full not in self.said else []
            found += inner or [full]
        return found


def _weighs(module: nn.Module) -> bool:
    """Return whether a module holds weights, and is neither a normalisation nor an embedding."""
    return not isinstance(module, PASSED_OVER) and next(module.parameters(), None) is not None
