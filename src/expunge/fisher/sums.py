"""Sums over samples: float32 while a window of samples is under way, float64 across windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor

from expunge.fisher.checks import wide
from expunge.fisher.kernels import Budget, Gradient

WINDOW = 256
"""Samples, or one batch if that is more, that are summed in float32 before the sum goes to float64."""


def _short(bytes_wanted: int, device: torch.device) -> bool:
    """Return whether fewer bytes than twice these are free on a device."""
    free = psutil.virtual_memory().available if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    return bool(free < 2 * bytes_wanted)


def place(params: Mapping[str, Tensor], times: int = 1) -> tuple[torch.device, bool]:
    """Return where totals are held, and whether memory for float64 is too short there so that they are pairs.

    Args:
        params: what is summed for.
        times: how many sums of all of them.
    """
    size = 8 * times * sum(p.numel() for p in params.values())
    device = next(iter(params.values())).device
    if device.type != "cpu" and _short(size, device):
        device = torch.device("cpu")
    return device, _short(size, device)


class Sums:
    """Sums of non-negative terms by parameter.

    A window's terms are added in float32 (float64 for float64 parameters, or with ``exact``) in one copy of the
    parameters on their device, then to float64 totals. On a GPU short of memory the totals are held by the CPU; where
    that one is short too they are pairs: a float32 sum and a bfloat16 carry, 6 bytes a parameter, rounded by about
    2⁻³² at each window and to float32 at the end.

    Args:
        params: what is summed for, by name.
        exact: add in float64 from the start.
        device: where the totals are held; with the parameters if None.
        pairs: hold the totals as pairs.

    Attributes:
        last: whether kernels of images are summed with channels last in memory, as their terms come.
    """

    last: bool = False

    def __init__(
        self,
        params: Mapping[str, Tensor],
        *,
        exact: bool = False,
        device: torch.device | None = None,
        pairs: bool = False,
    ) -> None:
        self._kind = {n: torch.float64 if exact else wide(p.new_empty(0)).dtype for n, p in params.items()}
        self._like = dict(params)
        self._recent: dict[str, Tensor] = {}
        self._used: set[str] = set()
        self._device = device or next(iter(params.values())).device
        self.pairs = pairs
        self._total: dict[str, tuple[Tensor, Tensor | None]] = {}

    @contextmanager
    def open(self, name: str) -> Iterator[Tensor]:
        """Yield the window's sum of one parameter, to add to in place."""
        if name not in self._recent:
            like = self._like[name]
            layout = torch.channels_last if self.last and like.dim() == 4 else torch.contiguous_format
            recent = torch.empty(like.shape, dtype=self._kind[name], device=like.device, memory_format=layout)
            self._recent[name] = recent.zero_()
        self._used.add(name)
        yield self._recent[name]

    def receive(self, name: str, gradient: Gradient, power: int, budget: Budget) -> None:
        """Take the gradients of one parameter over a batch: add their powers to the window's sum."""
        with self.open(name) as total:
            gradient.add(total, power, budget)

    def window(self) -> dict[str, Tensor]:
        """Return the window's sums of those parameters that have any, and zeros of the others."""
        for name in self._like:
            with self.open(name):
                pass
        return self._recent

    def discard(self) -> None:
        """Take the window's terms back."""
        for name in self._used:
            self._recent[name].zero_()
        self._used.clear()

    def close(self) -> None:
        """Add the window's sums to the totals and begin another window."""
        for name in sorted(self._used):
            recent = self._recent[name]
            high, low = self._held(name)
            if low is None:
                high.add_(recent.to(self._device))
            else:
                self._carry(high, low, recent.to(self._device))
        self.discard()

    def _held(self, name: str) -> tuple[Tensor, Tensor | None]:
        if name not in self._total:
            pair = self.pairs and self._kind[name] == torch.float32
            like, kind = self._recent.get(name, self._like[name]), torch.float32 if pair else torch.float64
            low = torch.zeros_like(like, dtype=torch.bfloat16, device=self._device) if pair else None
            self._total[name] = torch.zeros_like(like, dtype=kind, device=self._device), low
        return self._total[name]

    @staticmethod
    def _carry(high: Tensor, low: Tensor, term: Tensor) -> None:
        """Add a term to high + low; what the rounded sum loses (Knuth's two-sum) stays in low."""
        total = high + term
        part = total - high
        lost = (high - (total - part)) + (term - part) + low
        high.copy_(total + lost)
        low.copy_(lost - (high - total))

    def totals(self) -> dict[str, Tensor]:
        """Return the sums by name, float64 (rounded once to float32 where they were held as pairs)."""
        return {name: self._held(name)[0].contiguous() for name in self._like}

    def state(self) -> dict[str, Tensor]:
        """Return all that a later `load` needs, at the end of a window."""
        found = {}
        for name in self._like:
            high, low = self._held(name)
            found[f"high/{name}"] = high.contiguous()
            if low is not None:
                found[f"low/{name}"] = low.contiguous()
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`."""
        for name in self._like:
            low = state.get(f"low/{name}")
            held = state[f"high/{name}"].to(self._device)
            self._total[name] = held, None if low is None else low.to(self._device)
