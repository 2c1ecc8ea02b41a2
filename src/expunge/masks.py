"""Masks over parameters: which weights may move, and what holds the others where they are, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from expunge.errors import Incompatible, UserError, listing


@dataclass(frozen=True, eq=False)
class Masks:
    """Which scalars of which parameters may move; a parameter without a mask is free.

    A mask stands outside the network, so copies, optimisers and checkpoints know nothing of it. Who takes steps holds
    the masked scalars by `hold`, for gradients that are zero are not enough: weight decay and momentum move them.

    Args:
        kept: by name of a parameter a bool tensor of its shape, True where the scalar may move.
    """

    firm: ClassVar[bool] = True  # whether values are held, not gradients alone
    kept: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        odd = [name for name, mask in self.kept.items() if mask.dtype != torch.bool]
        if odd:
            got = f"{self.kept[odd[0]].dtype} for {odd[0]}"
            raise UserError("bool masks", got, "give True where a weight may move")

    @property
    def size(self) -> int:
        """Scalars that have a mask."""
        return sum(mask.numel() for mask in self.kept.values())

    @property
    def density(self) -> float:
        """Share of them that may move, in [0, 1]."""
        return sum(int(mask.sum()) for mask in self.kept.values()) / max(1, self.size)

    @property
    def densities(self) -> dict[str, float]:
        """The same share of each parameter, by name."""
        return {name: int(mask.sum()) / max(1, mask.numel()) for name, mask in self.kept.items()}

    def check(self, model: nn.Module) -> None:
        """Refuse a network that the masks do not belong to.

        Raises:
            Incompatible: it has no parameter of a name, or one of another shape.
        """
        found = dict(model.named_parameters())
        missing = [name for name in self.kept if name not in found]
        if missing:
            want = f"a network with parameters {listing(missing)}, which the mask is for"
            raise Incompatible(want, "one without", "take the mask that was made for this network")
        for name, mask in self.kept.items():
            if mask.shape != found[name].shape:
                want = f"{name} of shape {tuple(mask.shape)}, which the mask is for"
                raise Incompatible(want, str(tuple(found[name].shape)), "take the mask made for this network")

    def both(self, other: Masks | None) -> Masks:
        """Return the masks under which a scalar may move only where it may under both; on this one's device."""
        if other is not None and not other.firm:
            return other.both(self)
        return self if other is None else Masks(self._common(other))

    def _common(self, other: Masks) -> dict[str, Tensor]:
        mixed = {n: mask & other.kept[n].to(mask.device) if n in other.kept else mask for n, mask in self.kept.items()}
        return {**other.kept, **mixed}

    def prune(self, model: nn.Module) -> None:
        """Set the masked scalars of a network to zero, in place.

        Raises:
            Incompatible: the masks are for another network.
        """
        self.check(model)
        found = dict(model.named_parameters())
        with torch.no_grad():
            for name, mask in self.kept.items():
                found[name].masked_fill_(~mask.to(found[name].device), 0)

    def strays(self, model: nn.Module) -> int:
        """Return how many masked scalars of a network are not zero.

        Raises:
            Incompatible: the masks are for another network.
        """
        self.check(model)
        found = dict(model.named_parameters())
        return sum(int((found[name][~mask.to(found[name].device)] != 0).sum()) for name, mask in self.kept.items())

    def hold(self, model: nn.Module) -> Held:
        """Return what keeps the masked scalars of a network at the values they have now.

        Raises:
            Incompatible: the masks are for another network.
        """
        self.check(model)
        found = dict(model.named_parameters())
        return Held(
            {
                name: (found[name], mask.to(found[name].device), found[name].detach().clone())
                for name, mask in self.kept.items()
            }
        )


@dataclass(frozen=True, eq=False)
class Held:
    """Masked scalars of one network with the values they are held at.

    Args:
        parts: by name: the parameter, its mask, its values at the start.
    """

    parts: Mapping[str, tuple[nn.Parameter, Tensor, Tensor]]

    def gradients(self) -> None:
        """Set the gradients of masked scalars to zero, so that they count in no norm and enter no momentum."""
        for parameter, mask, _ in self.parts.values():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(~mask, 0)

    def moved(self) -> int:
        """Return how many masked scalars are not at the values they are held at."""
        return sum(int((~mask & (p != start)).sum()) for p, mask, start in self.parts.values())

    def put_back(self) -> None:
        """Set the masked scalars to the values they are held at."""
        with torch.no_grad():
            for parameter, mask, start in self.parts.values():
                parameter.copy_(torch.where(mask, parameter, start))

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        """Undo what a step did to masked scalars, in the weights and in the optimiser's own tensors."""
        self.put_back()
        for parameter, mask, _ in self.parts.values():
            for name, slot in optimizer.state.get(parameter, {}).items():
                if name != "step" and isinstance(slot, Tensor) and slot.shape == parameter.shape:
                    slot.masked_fill_(~mask, 0)
