"""Per-sample gradients of a batch in factored form, and the kernels that sum their powers without forming them all.

A layer's rule gives one factored gradient for each of its parameters; what is the cheapest way to Σ_s |g_s|^p is
decided here, by shape and device. On a CPU one product at a time is formed, in tiles that stay in its cache, and
squared into the sum; on a GPU as many samples at once as the memory budget allows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.fisher.checks import least

Budget = Callable[[], int]
TILE = 2**22  # bytes of one sample's product; larger ones leave the cache and are mapped anew by the allocator
_SMALL = 2**18  # bytes of a product up to which several samples may be multiplied in one call,
_LIGHT = 2**20  # where one has at most so many multiplications: beyond, one product at a time is the faster
CHUNK = 2_400_000  # bytes of unfolded patches, or of factors made contiguous, at once


def raised(tensor: Tensor, power: int) -> Tensor:
    """Return |x|^power."""
    return tensor.square() if power == 2 else tensor.abs()


def add_raised(total: Tensor, value: Tensor, power: int) -> None:
    """Add |x|^power to the sum, in place; ``value`` is spoiled."""
    if power == 2:
        total.addcmul_(value, value)
    else:
        total.add_(value.abs_())


@cache
def _innerprod() -> bool:
    """Return whether oneDNN's inner product can be called; on many CPUs it is twice as fast as the BLAS in torch."""
    if not torch.backends.mkldnn.is_available():
        return False
    left, right = torch.arange(6.0).reshape(2, 3), torch.arange(12.0).reshape(4, 3)
    try:
        return torch.equal(torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], ""), left @ right.T)
    except (AttributeError, RuntimeError):
        return False


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return left·rightᵀ, (M, N), of left (M, K) and right (N, K)."""
    single = left.dtype == right.dtype == torch.float32 and left.device.type == "cpu"
    if single and torch.backends.mkldnn.enabled and _innerprod():
        return torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")  # type: ignore[no-any-return]
    return left @ right.T


def parallel(tensor: Tensor) -> bool:
    """Return whether many samples are better multiplied at once: on a GPU."""
    return tensor.is_cuda


def add_products(total: Tensor, left: Tensor, right: Tensor, power: int, budget: Budget) -> None:
    """Add Σ_s |left_s·right_sᵀ|^p to the sum (O, I), in place.

    Args:
        total: the sum.
        left: (B, O, T).
        right: (B, I, T).
        power: p.
        budget: gives the bytes that the products of several samples may take at once; asked on a GPU only.
    """
    size = total.numel() * left.element_size()
    light = size <= _SMALL and total.numel() * left.shape[2] <= _LIGHT
    if parallel(left) or light:
        step = max(1, (budget() if parallel(left) else 4 * _SMALL) // size)
        for at in slices(len(left), step):
            values = torch.bmm(left[at], right[at].transpose(1, 2))
            if parallel(left):  # one kernel that reads the products once
                total += raised(torch.linalg.vector_norm(values, power, dim=0), power)
            else:
                total += (values.mul_(values) if power == 2 else values.abs_()).sum(dim=0)
        return
    rows = max(1, TILE // (total.shape[1] * left.element_size()))
    for at in slices(total.shape[0], rows):
        part = total[at]
        for a, b in zip(left[:, at], right, strict=True):
            add_raised(part, product(a, b), power)


def slices(n: int, step: int) -> Iterator[slice]:
    """Yield consecutive slices of ``step`` rows, the last one shorter."""
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


class Gradient(ABC):
    """Per-sample gradients of one parameter over a batch.

    Args:
        shape: of the parameter.
    """

    shape: tuple[int, ...]

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples B."""

    @abstractmethod
    def each(self, at: slice) -> Tensor:
        """Return the gradients of some samples, (b, *shape)."""

    @abstractmethod
    def add(self, total: Tensor, power: int, budget: Budget) -> None:
        """Add Σ_s |g_s|^power to the sum of the parameter's shape, in place."""

    @abstractmethod
    def fold(self, times: int) -> Gradient:
        """Return the gradients of B / times samples, each the sum of consecutive rows."""

    def factors(self) -> list[Tensor]:
        """Return the smallest nonzero magnitude (B,) of each factor that a square may lose, for a warning."""
        return []


@dataclass(frozen=True)
class Dense(Gradient):
    """Gradients as they are.

    Args:
        values: (B, *shape).
    """

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The parameter's shape."""
        return tuple(self.values.shape[1:])

    def each(self, at: slice) -> Tensor:
        """Return some of the values."""
        return self.values[at]

    def add(self, total: Tensor, power: int, budget: Budget) -> None:
        """Add their powers."""
        if parallel(self.values) or total.numel() * self.values.element_size() <= _SMALL:
            total += raised(self.values, power).sum(dim=0)
            return
        for value in self.values:
            if power == 2:
                total.addcmul_(value, value)
            else:
                total += value.abs()

    def fold(self, times: int) -> Dense:
        """Sum consecutive rows."""
        return Dense(self.values.reshape(-1, times, *self.shape).sum(dim=1))

    def factors(self) -> list[Tensor]:
        """Return each sample's smallest value."""
        return [least(self.values)]


@dataclass(frozen=True)
class Outer(Gradient):
    """Sums over positions of outer products, Σ_t l_t r_tᵀ: a matrix applied to vectors at T positions.

    Args:
        left: (B, T, O).
        right: (B, T, I).
    """

    left: Tensor
    right: Tensor

    def __len__(self) -> int:
        return len(self.left)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(O, I)."""
        return self.left.shape[2], self.right.shape[2]

    def each(self, at: slice) -> Tensor:
        """Return the matrices (b, O, I)."""
        return torch.bmm(self.left[at].transpose(1, 2), self.right[at])

    def add(self, total: Tensor, power: int, budget: Budget) -> None:
        """Add the powers; at one position (Δ∘Δ)ᵀ(A∘A), one product for all samples."""
        if self.left.shape[1] == 1:
            left, right = raised(self.left[:, 0], power), raised(self.right[:, 0], power)
            if parallel(left) or total.dtype != left.dtype:
                total += left.T @ right
            elif left.dtype == torch.float32:
                total += product(left.T, right.T)
            else:
                total.addmm_(left.T, right)
            return
        row = self.left[0].numel() + self.right[0].numel()
        limit = budget() // 4 if parallel(self.left) else CHUNK
        for at in slices(len(self), max(1, limit // (row * self.left.element_size()))):
            left, right = (t[at].transpose(1, 2).contiguous() for t in (self.left, self.right))
            add_products(total, left, right, power, budget)

    def fold(self, times: int) -> Outer:
        """Take consecutive rows as further positions."""
        left, right = (t.reshape(len(t) // times, -1, t.shape[2]) for t in (self.left, self.right))
        return Outer(left, right)

    def factors(self) -> list[Tensor]:
        """Return what l, r and their product at their smallest are."""
        left, right = least(self.left), least(self.right)
        return [left, right, left * right]


@dataclass(frozen=True)
class Window:
    """How a convolution moves over its padded input, a number for each spatial dimension.

    Args:
        kernel: size.
        stride: step.
        dilation: distance between the kernel's entries.
        pad: of `torch.nn.functional.pad`, last dimension first.
        mode: its mode.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad: tuple[int, ...]
    mode: str = "constant"

    def patches(self, a: Tensor, out: tuple[int, ...]) -> Tensor:
        """Return what the kernel sees at each place: (B, C, K, L) of a (B, C, ...), K entries, L places."""
        if any(self.pad):
            a = F.pad(a, self.pad, self.mode)
        a = a.contiguous()
        first, channel, *steps = a.stride()
        size = (*a.shape[:2], *self.kernel, *out)
        inner = (d * s for d, s in zip(self.dilation, steps, strict=True))
        outer = (d * s for d, s in zip(self.stride, steps, strict=True))
        view = a.as_strided(size, (first, channel, *inner, *outer), a.storage_offset())
        return view.reshape(*a.shape[:2], -1, prod(out))

    def rows(self, a: Tensor, out: tuple[int, ...]) -> Tensor:
        """Return the same of an image whose channels come last in memory: (B, L, K·C)."""
        if any(self.pad):
            a = F.pad(a, self.pad, self.mode)
        a = a.contiguous(memory_format=torch.channels_last)
        first, channel, *steps = a.stride()
        size = (len(a), *out, *self.kernel, a.shape[1])
        inner = (d * s for d, s in zip(self.dilation, steps, strict=True))
        outer = (d * s for d, s in zip(self.stride, steps, strict=True))
        view = a.as_strided(size, (first, *outer, *inner, channel), a.storage_offset())
        return view.reshape(len(a), prod(out), -1)


def _last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Patches(Gradient):
    """Gradients of a convolution's kernel: outputs' gradients times patches of the input, unfolded when needed.

    Args:
        left: (B, O, ...), one vector at each place of the kernel.
        right: (B, C, ...), the input that it moves over.
        window: how it moves.
        groups: into which O and C are divided.
        times: consecutive rows that are one sample.
    """

    left: Tensor
    right: Tensor
    window: Window
    groups: int = 1
    times: int = 1

    def __len__(self) -> int:
        return len(self.left) // self.times

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(O, C/groups, *kernel)."""
        return self.left.shape[1], self.right.shape[1] // self.groups, *self.window.kernel

    def _pairs(self, at: slice) -> tuple[Tensor, Tensor]:
        """Return left (b, G, O/G, L) and patches (b, G, C/G·K, L) of some samples."""
        rows = slice(at.start * self.times, at.stop * self.times)
        left, places = self.left[rows], tuple(self.left.shape[2:])
        patches = self.window.patches(self.right[rows], places)
        both = []
        for tensor in (left, patches):
            t = tensor.reshape(len(left) // self.times, self.times, self.groups, -1, prod(places))
            both.append(t.permute(0, 2, 3, 1, 4).flatten(3))
        return both[0], both[1]

    def _step(self, budget: Budget) -> int:
        patches = self.right.shape[1] * prod(self.window.kernel) * prod(self.left.shape[2:]) * self.times
        limit = budget() // 2 if parallel(self.left) else CHUNK
        return max(1, limit // (patches * self.left.element_size()))

    def each(self, at: slice) -> Tensor:
        """Return the kernels' gradients (b, O, C/groups, *kernel)."""
        left, right = self._pairs(at)
        return (left @ right.transpose(2, 3)).reshape(-1, *self.shape)

    def add(self, total: Tensor, power: int, budget: Budget) -> None:
        """Add the powers, a chunk of unfolded samples at a time."""
        if self.groups == self.times == 1 and _last(self.left) and _last(self.right):
            self._add_last(total, power, budget)
            return
        if not total.is_contiguous():
            plain = torch.zeros_like(total, memory_format=torch.contiguous_format)
            self.add(plain, power, budget)
            total += plain
            return
        flat = total.view(self.groups, self.shape[0] // self.groups, -1)
        few = 16 * flat[0].numel() * self.left.element_size() <= _SMALL
        for at in slices(len(self), self._step(budget)):
            left, right = self._pairs(at)
            if self.groups > 1 and few:
                flat += self._grouped(left, right, power)
                continue
            for group, part in enumerate(flat):
                add_products(part, left[:, group], right[:, group], power, budget)

    def _add_last(self, total: Tensor, power: int, budget: Budget) -> None:
        """Add the powers where channels come last in memory, into a sum that may have them last too."""
        here = total if _last(total) else torch.zeros_like(total, memory_format=torch.channels_last)
        flat = here.permute(0, 2, 3, 1).view(len(here), -1)
        places = (self.left.shape[2], self.left.shape[3])
        for at in slices(len(self), self._step(budget)):
            right = self.window.rows(self.right[at], places).transpose(1, 2)
            add_products(flat, self.left[at].flatten(2), right, power, budget)
        if here is not total:
            total += here

    def _grouped(self, left: Tensor, right: Tensor, power: int) -> Tensor:
        if left.shape[2] == 1:  # depthwise: a product of a vector with a few others
            values = (left * right).sum(dim=3).unsqueeze(2)
        else:
            values = left @ right.transpose(2, 3)
        return raised(values, power).sum(dim=0)

    def fold(self, times: int) -> Patches:
        """Take consecutive rows as further places."""
        return Patches(self.left, self.right, self.window, self.groups, self.times * times)

    def factors(self) -> list[Tensor]:
        """Return what both factors and their product at their smallest are."""
        left, right = least(self.left), least(self.right)
        return [left, right, left * right]


@dataclass(frozen=True)
class Rows(Gradient):
    """Gradients of a table of which each sample reads some rows, several times maybe.

    Args:
        index: (B, T) rows read.
        values: (B, T, D) gradients at them.
        rows: of the table.
        padding: a row without gradient, or None.
    """

    index: Tensor
    values: Tensor
    rows: int
    padding: int | None = None

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(rows, D)."""
        return self.rows, self.values.shape[2]

    def each(self, at: slice) -> Tensor:
        """Return the tables' gradients (b, rows, D)."""
        index, values = self.index[at], self.values[at]
        out = torch.zeros(len(index) * self.rows, self.shape[1], dtype=values.dtype, device=values.device)
        offset = torch.arange(len(index), device=index.device).unsqueeze(1) * self.rows
        out = out.index_add_(0, (index + offset).reshape(-1), values.flatten(0, 1)).reshape(-1, *self.shape)
        if self.padding is not None:
            out[:, self.padding] = 0
        return out

    def add(self, total: Tensor, power: int, budget: Budget) -> None:
        """Add the powers of the rows read, each sample's repeats summed first."""
        offset = torch.arange(len(self), device=self.index.device).unsqueeze(1) * self.rows
        keys, where = (self.index + offset).reshape(-1).unique(return_inverse=True)
        flat = self.values.flatten(0, 1)
        summed = torch.zeros(len(keys), flat.shape[1], dtype=flat.dtype, device=flat.device).index_add_(0, where, flat)
        rows = keys % self.rows
        if self.padding is not None:
            summed[rows == self.padding] = 0
        total.index_add_(0, rows, raised(summed, power).to(total.dtype))

    def fold(self, times: int) -> Rows:
        """Take consecutive rows as further positions."""
        index, values = self.index.reshape(len(self) // times, -1), self.values
        return Rows(index, values.reshape(len(index), -1, values.shape[2]), self.rows, self.padding)

    def factors(self) -> list[Tensor]:
        """Return each sample's smallest value."""
        return [least(self.values)]


@dataclass(frozen=True)
class Part(Gradient):
    """Gradients of some rows of a parameter.

    Args:
        inner: of those rows.
        start: the first of them.
        shape: of the whole parameter.
    """

    inner: Gradient
    start: int
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.inner)

    def each(self, at: slice) -> Tensor:
        """Return gradients of the whole parameter, 0 in the other rows."""
        out = (found := self.inner.each(at)).new_zeros(at.stop - at.start, *self.shape)
        out[:, self.start : self.start + found.shape[1]] = found
        return out

    def add(self, total: Tensor, power: int, budget: Budget) -> None:
        """Add the powers to those rows."""
        self.inner.add(total[self.start : self.start + self.inner.shape[0]], power, budget)

    def fold(self, times: int) -> Part:
        """Fold the rows' gradients."""
        return Part(self.inner.fold(times), self.start, self.shape)

    def factors(self) -> list[Tensor]:
        """Return theirs."""
        return self.inner.factors()


@dataclass(frozen=True)
class Several(Gradient):
    """The sum of several gradients of one parameter, from its several uses.

    Args:
        parts: of as many samples each.
    """

    parts: Sequence[Gradient]

    def __len__(self) -> int:
        return len(self.parts[0])

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The parameter's shape."""
        return self.parts[0].shape

    def each(self, at: slice) -> Tensor:
        """Return the sums (b, *shape)."""
        first, *rest = (part.each(at) for part in self.parts)
        return sum(rest, first)

    def add(self, total: Tensor, power: int, budget: Budget) -> None:
        """Sum over uses, then add the powers."""
        size = total.numel() * total.element_size()
        step = max(1, (budget() // 4 if parallel(total) else _SMALL) // size)
        for at in slices(len(self), step):
            Dense(self.each(at)).add(total, power, budget)

    def fold(self, times: int) -> Several:
        """Fold each of them."""
        return Several([part.fold(times) for part in self.parts])


def together(parts: Sequence[Gradient]) -> Gradient:
    """Return the gradient of a parameter from its several uses; matrices' positions are joined."""
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(p, Outer) for p in parts):
        left, right = (torch.cat([getattr(p, side) for p in parts], dim=1) for side in ("left", "right"))
        return Outer(left, right)
    return Several(parts)
